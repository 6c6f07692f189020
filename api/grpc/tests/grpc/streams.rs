//! Streams: large files, bounds, back-pressure, deadlines, and clients that go away.

use std::time::Duration;

use crate::common::Stand;
use api_grpc::Limits;
use engine_store::StoreError;
use proto::v1;
use proto::v1::write_file_request::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

const MIB: usize = 1 << 20;

fn at(path: &str) -> Option<v1::FilePath> {
    Some(v1::FilePath { subvolume: "tree".to_owned(), path: path.as_bytes().to_vec() })
}

fn header(path: &str) -> v1::WriteFileRequest {
    let create = Some(v1::CreateAttributes { mode: 0o644, uid: 0, gid: 0 });
    let header = v1::WriteFileHeader { file: at(path), create, ..Default::default() };
    v1::WriteFileRequest { message: Some(Message::Header(header)) }
}

fn chunk(offset: usize, data: &[u8]) -> v1::WriteFileRequest {
    let crc32c = crc32c::crc32c(data);
    let data = data.to_vec().into();
    let chunk = v1::WriteFileChunk { offset_bytes: offset as u64, data, crc32c };
    v1::WriteFileRequest { message: Some(Message::Chunk(chunk)) }
}

/// Bytes that differ from place to place, from xorshift64 with a fixed seed.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| step()).collect()
}

async fn stand(limits: Limits) -> Stand {
    let stand = Stand::with(limits).await;
    let create = v1::CreateSubvolumeRequest { name: "tree".to_owned(), ..Default::default() };
    stand.subvolumes().create_subvolume(create).await.unwrap();
    stand
}

async fn put(stand: &Stand, path: &str, data: &[u8], chunk_bytes: usize) -> v1::WriteFileResponse {
    let mut messages = vec![header(path)];
    let pieces = data.chunks(chunk_bytes).enumerate();
    messages.extend(pieces.map(|(index, piece)| chunk(index * chunk_bytes, piece)));
    stand.files().write_file(tokio_stream::iter(messages)).await.unwrap().into_inner()
}

fn read_all(path: &str) -> v1::ReadFileRequest {
    v1::ReadFileRequest { file: at(path), ..Default::default() }
}

#[tokio::test]
async fn a_large_file_comes_back_whole_within_the_bounds() {
    let stand = stand(Limits::default()).await;
    let data = noise(9 * MIB + 12_345);
    for chunk_bytes in [256 << 10, 100_003] {
        let path = format!("/large{chunk_bytes}");
        let written = put(&stand, &path, &data, chunk_bytes).await;
        assert_eq!(written.written_bytes, data.len() as u64);
        let mut stream = stand.files().read_file(read_all(&path)).await.unwrap().into_inner();
        let mut back = Vec::new();
        while let Some(message) = stream.message().await.unwrap() {
            assert!(message.data.len() <= proto::CHUNK_BYTES_MAX);
            assert_eq!(message.offset_bytes, back.len() as u64);
            if !message.data.is_empty() {
                assert_eq!(message.crc32c, crc32c::crc32c(&message.data));
            }
            back.extend_from_slice(&message.data);
        }
        assert!(back == data);
    }
    let most = stand.fake.data_in_flight_max();
    assert!((2..=4).contains(&most), "{most} requests in flight");
}

#[tokio::test]
async fn a_reader_that_does_not_read_holds_up_the_server() {
    let stand = stand(Limits::default()).await;
    put(&stand, "/f", &noise(24 * MIB), 256 << 10).await;
    let before = stand.fake.data_requests();
    let mut stream = stand.files().read_file(read_all("/f")).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().unwrap().attributes.is_some());
    // Other calls go on meanwhile, and give the stream time to run ahead if it could.
    for _ in 0..200 {
        let stat = v1::StatFileRequest { file: at("/f"), follow_symlink: false };
        stand.files().stat_file(stat).await.unwrap();
    }
    let ahead = stand.fake.data_requests() - before;
    assert!(ahead <= 8, "{ahead} MiB read for a client that takes none");
    drop(stream);
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_stream() {
    let stand = stand(Limits { calls_max: 1, ..Limits::default() }).await;
    put(&stand, "/f", &noise(8 * MIB), 256 << 10).await;
    stand.fake.hold_data(true);
    let mut stream = stand.files().read_file(read_all("/f")).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().unwrap().attributes.is_some());
    stand.fake.until_in_flight(4).await;
    let busy = stand.stats().get_stats(v1::GetStatsRequest {}).await.unwrap_err();
    assert_eq!(busy.code(), Code::ResourceExhausted);
    let details = busy.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "TOO_MANY_CALLS");
    assert!(details.quota_failure().is_some() && details.retry_info().is_some());
    drop(stream);
    // Its requests are dropped, and its place is free again.
    stand.fake.until_in_flight(0).await;
    while stand.stats().get_stats(v1::GetStatsRequest {}).await.is_err() {}
}

#[tokio::test]
async fn a_writer_that_goes_away_ends_its_call() {
    let stand = stand(Limits { calls_max: 1, ..Limits::default() }).await;
    stand.fake.hold_data(true);
    let (sender, receiver) = mpsc::channel(8);
    let mut files = stand.files();
    let call = tokio::spawn(async move { files.write_file(ReceiverStream::new(receiver)).await });
    sender.send(header("/f")).await.unwrap();
    let data = noise(256 << 10);
    // At most four requests of 1 MiB are taken into the engine; the client is held up then.
    stand.fake.hold_data(true);
    for index in 0..20 {
        sender.send(chunk(index * data.len(), &data)).await.unwrap();
    }
    stand.fake.until_in_flight(4).await;
    call.abort();
    stand.fake.until_in_flight(0).await;
    while stand.stats().get_stats(v1::GetStatsRequest {}).await.is_err() {}
    assert_eq!(stand.fake.data_in_flight_max(), 4);
}

/// The server's answer; or the client's own, whose clock runs beside the server's and may be first.
fn assert_deadline(status: &tonic::Status) {
    let is_clients = status.code() == Code::Cancelled && status.message() == "Timeout expired";
    assert!(status.code() == Code::DeadlineExceeded || is_clients, "{status:?}");
}

#[tokio::test]
async fn deadlines_end_calls_and_streams() {
    let stand = stand(Limits::default()).await;
    put(&stand, "/f", &noise(MIB), 256 << 10).await;
    stand.fake.hold_data(true);
    let mut request = Request::new(read_all("/f"));
    request.set_timeout(Duration::from_millis(40));
    let mut stream = stand.files().read_file(request).await.unwrap().into_inner();
    let status = loop {
        match stream.message().await {
            Ok(message) => assert!(message.unwrap().data.is_empty()),
            Err(status) => break status,
        }
    };
    assert_deadline(&status);
    stand.fake.until_in_flight(0).await;

    let (_sender, receiver) = mpsc::channel::<v1::WriteFileRequest>(1);
    let mut request = Request::new(ReceiverStream::new(receiver));
    request.metadata_mut().insert("grpc-timeout", "40m".parse().unwrap());
    let status = stand.files().write_file(request).await.unwrap_err();
    assert_deadline(&status);
    let mut request = Request::new(v1::GetStatsRequest {});
    request.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    let status = stand.stats().get_stats(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
}

#[tokio::test]
async fn a_stream_that_stalls_is_ended() {
    let idle_timeout = Duration::from_millis(30);
    let stand = stand(Limits { idle_timeout, ..Limits::default() }).await;
    let (sender, receiver) = mpsc::channel(1);
    sender.send(header("/f")).await.unwrap();
    let status = stand.files().write_file(ReceiverStream::new(receiver)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(status.get_details_error_info().unwrap().reason, "STREAM_IDLE");
}

#[tokio::test]
async fn engine_errors_end_streams_with_their_code() {
    let stand = stand(Limits::default()).await;
    put(&stand, "/f", &noise(MIB), 256 << 10).await;
    stand.fake.hold_data(true);
    let mut stream = stand.files().read_file(read_all("/f")).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().unwrap().attributes.is_some());
    stand.fake.until_in_flight(1).await;
    stand.fake.fail_next(StoreError::DataLoss { what: "extent 7".to_owned() });
    stand.fake.hold_data(false);
    let status = stream.message().await.unwrap_err();
    assert_eq!(status.code(), Code::DataLoss);
    assert!(status.message().contains("extent 7"), "{status:?}");

    stand.fake.hold_data(true);
    let (sender, receiver) = mpsc::channel(8);
    let mut files = stand.files();
    let call = tokio::spawn(async move { files.write_file(ReceiverStream::new(receiver)).await });
    for message in [header("/g"), chunk(0, &[1; 4096]), chunk(8192, &[2; 4096])] {
        sender.send(message).await.unwrap();
    }
    // The first is in flight; the stream stays open, and the error comes all the same.
    stand.fake.until_in_flight(1).await;
    let full = StoreError::NoSpace { needed_bytes: 2, available_bytes: 1 };
    stand.fake.fail_next(full);
    stand.fake.hold_data(false);
    let status = call.await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.get_details_quota_failure().unwrap().violations[0].subject, "pool:space");
}
