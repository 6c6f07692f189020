//! The connection to the daemon.

use std::path::Path;
use std::time::Duration;

use proto::MESSAGE_BYTES_MAX;
use proto::v1::export_service_client::ExportServiceClient;
use proto::v1::file_service_client::FileServiceClient;
use proto::v1::pool_service_client::PoolServiceClient;
use proto::v1::scrub_service_client::ScrubServiceClient;
use proto::v1::snapshot_service_client::SnapshotServiceClient;
use proto::v1::stats_service_client::StatsServiceClient;
use proto::v1::subvolume_service_client::SubvolumeServiceClient;
use proto::v1::volume_service_client::VolumeServiceClient;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::args::Global;
use crate::failure::{Failure, Result, exit};

/// How long a connection may take to come up: a daemon on the same network answers at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection, and the clients of its services.
#[derive(Debug)]
pub(crate) struct Session {
    channel: Channel,
}

impl Session {
    /// Connects to the socket or endpoint of the command line.
    pub(crate) async fn connect(global: &Global) -> Result<Self> {
        let url = match &global.endpoint {
            Some(url) => url.clone(),
            None => unix_url(&global.socket)?,
        };
        let wrong = |error| Failure::usage(format!("'{url}' is no endpoint: {error}"));
        let mut endpoint = Endpoint::from_shared(url.clone()).map_err(wrong)?;
        if global.endpoint.is_some() {
            endpoint = with_tls(endpoint, &url, global)?;
        }
        if let Some(seconds) = global.timeout {
            endpoint = endpoint.timeout(Duration::from_secs(seconds));
        }
        let channel = endpoint.connect_timeout(CONNECT_TIMEOUT).connect().await;
        let channel = channel.map_err(|error| {
            Failure::new(format!("cannot reach the daemon at {url}: {}", causes(&error)))
                .code(exit::UNREACHABLE)
                .hint(
                    "check that cairnd runs there (--socket, --endpoint) and that you may connect",
                )
        })?;
        Ok(Self { channel })
    }

    pub(crate) fn files(&self) -> FileServiceClient<Channel> {
        FileServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn pool(&self) -> PoolServiceClient<Channel> {
        PoolServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn volumes(&self) -> VolumeServiceClient<Channel> {
        VolumeServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn scrubs(&self) -> ScrubServiceClient<Channel> {
        ScrubServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn snapshots(&self) -> SnapshotServiceClient<Channel> {
        SnapshotServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn subvolumes(&self) -> SubvolumeServiceClient<Channel> {
        SubvolumeServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn exports(&self) -> ExportServiceClient<Channel> {
        ExportServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn stats(&self) -> StatsServiceClient<Channel> {
        StatsServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}

fn unix_url(path: &Path) -> Result<String> {
    let absolute = std::path::absolute(path)
        .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    match absolute.to_str() {
        Some(text) => Ok(format!("unix://{text}")),
        None => Err(Failure::usage("the path of --socket must be UTF-8")),
    }
}

fn with_tls(endpoint: Endpoint, url: &str, global: &Global) -> Result<Endpoint> {
    let given = global.ca.is_some() || global.cert.is_some() || global.server_name.is_some();
    if !url.starts_with("https://") {
        if given {
            return Err(Failure::usage("--ca, --cert and --server-name need an https:// endpoint"));
        }
        return Ok(endpoint);
    }
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| Failure::local(path, "cannot read", &error))
    };
    let Some(ca) = &global.ca else {
        return Err(Failure::usage("an https:// endpoint needs --ca, the authority to trust"));
    };
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?));
    if let (Some(cert), Some(key)) = (&global.cert, &global.key) {
        tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
    }
    if let Some(name) = &global.server_name {
        tls = tls.domain_name(name.clone());
    }
    endpoint.tls_config(tls).map_err(|error| Failure::usage(format!("TLS: {}", causes(&error))))
}

/// An error with its causes, in one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Wrappers often tell their cause themselves.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
