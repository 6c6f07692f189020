//! The calls this test makes, over the daemon's Unix socket.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use bytes::Bytes;
use engine_base::checksum::crc32c;
use hyper_util::rt::TokioIo;
use proto::v1::export_service_client::ExportServiceClient;
use proto::v1::file_service_client::FileServiceClient;
use proto::v1::pool_service_client::PoolServiceClient;
use proto::v1::subvolume_service_client::SubvolumeServiceClient;
use proto::v1::volume_service_client::VolumeServiceClient;
use proto::v1::write_file_request::Message;
use proto::v1::{
    CheckPoolRequest, CreateAttributes, CreateExportRequest, CreateSubvolumeRequest,
    CreateVolumeRequest, ExportNamespace, FilePath, ReadFileRequest, RemoveFileRequest,
    RenameFileRequest, RenameMode, SubvolumeOptions, SyncFileRequest, WriteFileChunk,
    WriteFileHeader, WriteFileRequest,
};
use tokio::net::UnixStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// A channel to the daemon that listens on `socket`.
pub(crate) async fn connect(socket: &Path) -> Result<Channel> {
    let socket: PathBuf = socket.to_owned();
    // The address is not used: the connector opens the socket.
    let endpoint = Endpoint::from_static("http://cairnd");
    let connector = service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Ok(endpoint.connect_with_connector(connector).await?)
}

/// Files of one tree.
#[derive(Clone)]
pub(crate) struct Files {
    client: FileServiceClient<Channel>,
    tree: String,
}

impl Files {
    pub(crate) fn new(channel: Channel, tree: &str) -> Self {
        let client =
            FileServiceClient::new(channel).max_decoding_message_size(proto::MESSAGE_BYTES_MAX);
        Self { client, tree: tree.to_owned() }
    }

    fn path(&self, path: &str) -> Option<FilePath> {
        Some(FilePath { subvolume: self.tree.clone(), path: path.as_bytes().to_vec() })
    }

    /// Writes `data` at `offset`; `truncate` makes it the whole content.
    pub(crate) async fn write(
        &mut self,
        path: &str,
        offset: u64,
        data: Vec<u8>,
        how: Write,
    ) -> Result<()> {
        let header = WriteFileHeader {
            file: self.path(path),
            create: Some(CreateAttributes { mode: 0o644, uid: 0, gid: 0 }),
            exclusive: false,
            truncate: how.truncate,
            sync: how.sync,
            final_size_bytes: None,
        };
        let mut messages = vec![WriteFileRequest { message: Some(Message::Header(header)) }];
        let data = Bytes::from(data);
        for start in (0..data.len()).step_by(proto::CHUNK_BYTES_MAX) {
            let end = data.len().min(start + proto::CHUNK_BYTES_MAX);
            let piece = data.slice(start..end);
            let chunk = WriteFileChunk {
                offset_bytes: offset + start as u64,
                crc32c: crc32c(&piece),
                data: piece,
            };
            messages.push(WriteFileRequest { message: Some(Message::Chunk(chunk)) });
        }
        let response = self.client.write_file(tokio_stream::iter(messages)).await?.into_inner();
        ensure!(response.written_bytes == data.len() as u64, "{response:?}");
        Ok(())
    }

    /// Reads `length` bytes at `offset`, fewer at the end; `None` when there is no such file.
    pub(crate) async fn read(
        &mut self,
        path: &str,
        offset: u64,
        length: Option<u64>,
    ) -> Result<Option<Vec<u8>>> {
        let request =
            ReadFileRequest { file: self.path(path), offset_bytes: offset, length_bytes: length };
        let mut stream = match self.client.read_file(request).await {
            Ok(response) => response.into_inner(),
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(status.into()),
        };
        let mut data = Vec::new();
        loop {
            let part = match stream.message().await {
                Ok(Some(part)) => part,
                Ok(None) => return Ok(Some(data)),
                Err(status) if status.code() == Code::NotFound => return Ok(None),
                Err(status) => return Err(status.into()),
            };
            let expected = offset + data.len() as u64;
            ensure!(
                part.data.is_empty() || part.offset_bytes == expected,
                "a part at {} instead of {expected}",
                part.offset_bytes
            );
            ensure!(part.crc32c == crc32c(&part.data), "a part with a wrong checksum");
            data.extend_from_slice(&part.data);
        }
    }

    /// Renames over whatever has the new name.
    pub(crate) async fn rename(&mut self, from: &str, to: &str) -> Result<()> {
        let request = RenameFileRequest {
            source: self.path(from),
            destination: self.path(to),
            mode: RenameMode::Replace.into(),
        };
        self.client.rename_file(request).await?;
        Ok(())
    }

    pub(crate) async fn remove(&mut self, path: &str) -> Result<()> {
        let request = RemoveFileRequest { file: self.path(path), recursive: false };
        self.client.remove_file(request).await?;
        Ok(())
    }

    pub(crate) async fn sync(&mut self, path: &str) -> Result<()> {
        self.client.sync_file(SyncFileRequest { file: self.path(path) }).await?;
        Ok(())
    }
}

/// How a file is written.
#[derive(Clone, Copy)]
pub(crate) struct Write {
    pub(crate) truncate: bool,
    pub(crate) sync: bool,
}

/// Creates an empty file tree.
pub(crate) async fn create_tree(channel: Channel, name: &str) -> Result<()> {
    let request = CreateSubvolumeRequest { name: name.to_owned(), options: Some(compressed()) };
    SubvolumeServiceClient::new(channel).create_subvolume(request).await?;
    Ok(())
}

/// What shrinks is stored as frames, and what does not lies between them.
fn compressed() -> SubvolumeOptions {
    SubvolumeOptions { compression: "lz4".to_owned(), compression_frame_bytes: 0 }
}

/// Creates a volume with blocks of 4096 bytes and exports it as namespace 1 of `nqn`.
pub(crate) async fn create_volume(
    channel: Channel,
    name: &str,
    bytes: u64,
    nqn: &str,
) -> Result<()> {
    let request = CreateVolumeRequest {
        name: name.to_owned(),
        size_bytes: bytes,
        block_size_bytes: 4096,
        options: Some(compressed()),
    };
    VolumeServiceClient::new(channel.clone()).create_volume(request).await?;
    let request = CreateExportRequest {
        nqn: nqn.to_owned(),
        namespaces: vec![ExportNamespace { nsid: 1, volume: name.to_owned() }],
        allow_any_host: true,
        host_nqns: Vec::new(),
    };
    ExportServiceClient::new(channel).create_export(request).await?;
    Ok(())
}

/// Checks every invariant of the pool; with `verify_data` also every block's checksum.
pub(crate) async fn check(channel: Channel, verify_data: bool) -> Result<()> {
    let request = CheckPoolRequest { verify_data, resume: false };
    let report = PoolServiceClient::new(channel)
        .max_decoding_message_size(proto::MESSAGE_BYTES_MAX)
        .check_pool(request)
        .await?
        .into_inner();
    ensure!(
        report.problems.is_empty() && report.problem_count == 0,
        "fsck found {} problems:\n{}",
        report.problem_count,
        report.problems.join("\n")
    );
    Ok(())
}
