//! Sockets, health, reflection and the stop.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use crate::common::exports::Exports;
use crate::common::fake::Fake;
use crate::common::{Stand, connect, server_info};
use api_grpc::{Limits, Server, ServerConfig, StartError, TcpConfig, TlsConfig, UnixConfig};
use engine_store::client::Client;
use proto::v1;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

fn unix(path: &std::path::Path) -> ServerConfig {
    ServerConfig { unix: Some(UnixConfig::new(path)), ..ServerConfig::default() }
}

fn tcp(address: &str) -> TcpConfig {
    TcpConfig {
        address: address.parse().unwrap(),
        tls: None,
        plaintext: false,
        plaintext_beyond_loopback: false,
    }
}

#[tokio::test]
async fn the_socket_is_for_owner_and_group_and_goes_with_the_server() {
    let mut stand = Stand::new().await;
    let mode = std::fs::metadata(&stand.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o660);
    stand.stop.take().unwrap().send(()).unwrap();
    stand.serving.await.unwrap().unwrap();
    assert!(!stand.socket.exists());
}

#[tokio::test]
async fn a_live_socket_is_refused_and_stays() {
    let stand = Stand::new().await;
    let error = Server::bind(&unix(&stand.socket)).await.unwrap_err();
    assert!(matches!(error, StartError::Live { .. }), "{error}");
    assert!(error.to_string().contains("another server"), "{error}");
    let channel = connect(&stand.socket).await;
    let mut stats = v1::stats_service_client::StatsServiceClient::new(channel);
    stats.get_server_info(v1::GetServerInfoRequest {}).await.unwrap();
}

#[tokio::test]
async fn a_live_socket_of_another_program_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("other.sock");
    let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let error = Server::bind(&unix(&path)).await.unwrap_err();
    assert!(matches!(error, StartError::Live { .. }), "{error}");
    assert!(path.exists());
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_file_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    drop(Server::bind(&unix(&path)).await.unwrap());

    let file = directory.path().join("file");
    std::fs::write(&file, b"precious").unwrap();
    let error = Server::bind(&unix(&file)).await.unwrap_err();
    assert!(matches!(error, StartError::NotSocket { .. }), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    let long = directory.path().join("x".repeat(200));
    let error = Server::bind(&unix(&long)).await.unwrap_err();
    assert!(matches!(error, StartError::Socket { .. }), "{error}");
    let error = Server::bind(&ServerConfig::default()).await.unwrap_err();
    assert!(matches!(error, StartError::NoSocket), "{error}");
}

#[tokio::test]
async fn plain_tcp_must_be_asked_for_and_stays_on_loopback() {
    let config = |tcp| ServerConfig { tcp: vec![tcp], ..ServerConfig::default() };
    let error = Server::bind(&config(tcp("127.0.0.1:0"))).await.unwrap_err();
    assert!(matches!(error, StartError::PlaintextNotAllowed { .. }), "{error}");
    let open = TcpConfig { plaintext: true, ..tcp("0.0.0.0:0") };
    let error = Server::bind(&config(open)).await.unwrap_err();
    assert!(matches!(error, StartError::PlaintextNotLoopback { .. }), "{error}");

    let local = TcpConfig { plaintext: true, ..tcp("127.0.0.1:0") };
    let server = Server::bind(&config(local)).await.unwrap();
    let address = server.tcp_addresses()[0];
    let client = Client::new(Fake::new());
    let serving = tokio::spawn(server.serve(
        client,
        Exports::default(),
        server_info(),
        std::future::pending(),
    ));
    let uri = format!("http://{address}");
    let mut stats = v1::stats_service_client::StatsServiceClient::connect(uri).await.unwrap();
    stats.get_stats(v1::GetStatsRequest {}).await.unwrap();
    serving.abort();
}

#[tokio::test]
async fn unusable_certificates_fail_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let junk = directory.path().join("junk.pem");
    std::fs::write(&junk, b"-----BEGIN NONSENSE-----").unwrap();
    let with = |certificate: &std::path::Path| {
        let tls = TlsConfig {
            certificate: certificate.to_owned(),
            key: certificate.to_owned(),
            client_ca: None,
        };
        let tcp = TcpConfig { tls: Some(tls), ..tcp("127.0.0.1:0") };
        ServerConfig { tcp: vec![tcp], ..ServerConfig::default() }
    };
    let error = Server::bind(&with(&junk)).await.unwrap_err();
    assert!(matches!(error, StartError::Tls { .. }), "{error}");
    let error = Server::bind(&with(&directory.path().join("none.pem"))).await.unwrap_err();
    assert!(matches!(error, StartError::TlsFile { .. }), "{error}");
}

#[tokio::test]
async fn health_is_told_for_the_server_and_each_service() {
    let stand = Stand::new().await;
    let mut health = HealthClient::new(stand.channel.clone());
    let services = ["Export", "File", "Pool", "Stats", "Subvolume", "Volume"];
    let names = services.map(|service| format!("cairn.v1.{service}Service"));
    for service in names.into_iter().chain([String::new()]) {
        let reply = health.check(HealthCheckRequest { service: service.clone() }).await.unwrap();
        assert_eq!(reply.into_inner().status(), ServingStatus::Serving, "{service}");
    }
    let unknown = HealthCheckRequest { service: "cairn.v1.NoService".to_owned() };
    assert_eq!(health.check(unknown).await.unwrap_err().code(), Code::NotFound);
}

macro_rules! reflect {
    ($version:ident, $stand:expr) => {{
        use tonic_reflection::pb::$version::ServerReflectionRequest;
        use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;
        let ask = |message_request| ServerReflectionRequest {
            host: String::new(),
            message_request: Some(message_request),
        };
        let requests = vec![
            ask(MessageRequest::ListServices(String::new())),
            ask(MessageRequest::FileContainingSymbol("cairn.v1.FileService".to_owned())),
        ];
        let mut client = ServerReflectionClient::new($stand.channel.clone());
        let requests = tokio_stream::iter(requests);
        let mut replies = client.server_reflection_info(requests).await.unwrap().into_inner();
        let list = replies.message().await.unwrap().unwrap().message_response.unwrap();
        let MessageResponse::ListServicesResponse(list) = list else { panic!("{list:?}") };
        let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
        for name in ["cairn.v1.FileService", "cairn.v1.VolumeService", "grpc.health.v1.Health"] {
            assert!(names.iter().any(|listed| listed == name), "{name} not in {names:?}");
        }
        let file = replies.message().await.unwrap().unwrap().message_response.unwrap();
        assert!(matches!(file, MessageResponse::FileDescriptorResponse(_)), "{file:?}");
    }};
}

#[tokio::test]
async fn reflection_answers_in_both_versions() {
    let stand = Stand::new().await;
    reflect!(v1, stand);
    reflect!(v1alpha, stand);
}

/// Calls in progress are given up with UNAVAILABLE after the grace period, so that a client which
/// never ends cannot hold up the stop.
#[tokio::test]
async fn a_stop_gives_up_calls_that_do_not_end() {
    let grace = Duration::from_millis(10);
    let mut stand = Stand::with(Limits { shutdown_grace: grace, ..Limits::default() }).await;
    let create = v1::CreateSubvolumeRequest { name: "tree".to_owned(), ..Default::default() };
    stand.subvolumes().create_subvolume(create).await.unwrap();
    let header = v1::WriteFileHeader {
        file: Some(v1::FilePath { subvolume: "tree".to_owned(), path: b"/f".to_vec() }),
        create: Some(v1::CreateAttributes { mode: 0o644, uid: 0, gid: 0 }),
        ..Default::default()
    };
    let message = Some(v1::write_file_request::Message::Header(header));
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(v1::WriteFileRequest { message }).await.unwrap();
    let mut files = stand.files();
    let call = tokio::spawn(async move {
        files.write_file(tokio_stream::wrappers::ReceiverStream::new(receiver)).await
    });
    let stat = v1::StatFileRequest {
        file: Some(v1::FilePath { subvolume: "tree".to_owned(), path: b"/f".to_vec() }),
        follow_symlink: false,
    };
    // The stream has begun when its file exists.
    while stand.files().stat_file(stat.clone()).await.is_err() {}
    stand.stop.take().unwrap().send(()).unwrap();
    let status = call.await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    stand.serving.await.unwrap().unwrap();
    drop(sender);
}
