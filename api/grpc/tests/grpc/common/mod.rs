//! A server over a fake pool on a Unix socket of its own, and clients of it.
#![allow(dead_code, unreachable_pub)] // each test binary uses its part

pub mod exports;
pub mod fake;

use std::path::PathBuf;

use api_grpc::{Limits, MemberInfo, Server, ServerConfig, ServerInfo, StartError, UnixConfig};
use engine_store::client::Client;
use proto::v1::export_service_client::ExportServiceClient;
use proto::v1::file_service_client::FileServiceClient;
use proto::v1::pool_service_client::PoolServiceClient;
use proto::v1::scrub_service_client::ScrubServiceClient;
use proto::v1::snapshot_service_client::SnapshotServiceClient;
use proto::v1::stats_service_client::StatsServiceClient;
use proto::v1::subvolume_service_client::SubvolumeServiceClient;
use proto::v1::volume_service_client::VolumeServiceClient;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use exports::Exports;
use fake::Fake;

/// A server, a fake pool behind it and a channel to it.
pub struct Stand {
    pub fake: Fake,
    pub exports: Exports,
    pub channel: Channel,
    pub socket: PathBuf,
    pub stop: Option<oneshot::Sender<()>>,
    pub serving: JoinHandle<Result<(), StartError>>,
    _directory: tempfile::TempDir,
}

pub fn server_info() -> ServerInfo {
    let member = |index| MemberInfo {
        index,
        uuid: [index; 16],
        path: format!("/dev/member{index}"),
        size_bytes: 1 << 30,
        block_size: 4096,
    };
    ServerInfo {
        version: "1.2.3".to_owned(),
        pool_uuid: [0xab; 16],
        started_ns: 42,
        members: (0..3).map(member).collect(),
    }
}

impl Stand {
    pub async fn new() -> Self {
        Self::with(Limits::default()).await
    }

    pub async fn with(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("cairn.sock");
        let config = ServerConfig { unix: Some(UnixConfig::new(&socket)), tcp: vec![], limits };
        let server = Server::bind(&config).await.unwrap();
        let (fake, exports) = (Fake::new(), Exports::default());
        let (stop, stopped) = oneshot::channel();
        let serve =
            server.serve(Client::new(fake.clone()), exports.clone(), server_info(), async {
                let _ = stopped.await;
            });
        let serving = tokio::spawn(serve);
        let channel = connect(&socket).await;
        Self { fake, exports, channel, socket, stop: Some(stop), serving, _directory: directory }
    }

    pub fn files(&self) -> FileServiceClient<Channel> {
        FileServiceClient::new(self.channel.clone())
    }

    pub fn volumes(&self) -> VolumeServiceClient<Channel> {
        VolumeServiceClient::new(self.channel.clone())
    }

    pub fn scrubs(&self) -> ScrubServiceClient<Channel> {
        ScrubServiceClient::new(self.channel.clone())
    }

    pub fn snapshots(&self) -> SnapshotServiceClient<Channel> {
        SnapshotServiceClient::new(self.channel.clone())
    }

    pub fn subvolumes(&self) -> SubvolumeServiceClient<Channel> {
        SubvolumeServiceClient::new(self.channel.clone())
    }

    pub fn exports(&self) -> ExportServiceClient<Channel> {
        ExportServiceClient::new(self.channel.clone())
    }

    pub fn pool(&self) -> PoolServiceClient<Channel> {
        PoolServiceClient::new(self.channel.clone())
    }

    pub fn stats(&self) -> StatsServiceClient<Channel> {
        StatsServiceClient::new(self.channel.clone())
    }
}

pub async fn connect(socket: &std::path::Path) -> Channel {
    let uri = format!("unix://{}", socket.display());
    Endpoint::from_shared(uri).unwrap().connect().await.unwrap()
}

/// It must be INVALID_ARGUMENT with a BadRequest that names `field`.
#[track_caller]
pub fn bad_field<T: std::fmt::Debug>(field: &str, result: Result<T, Status>) {
    let status = result.expect_err(field);
    assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status:?}");
    let details = status.check_error_details().unwrap();
    let info = details.error_info().unwrap();
    assert_eq!((info.domain.as_str(), info.reason.as_str()), ("cairn", "INVALID_ARGUMENT"));
    let violations = &details.bad_request().unwrap().field_violations;
    assert_eq!(violations[0].field, field);
    assert!(!violations[0].description.is_empty());
}
