//! The server: configuration, start, service, stop.
//!
//! [`Server::bind`] binds every socket, so that the daemon learns of errors before it is ready;
//! [`Server::serve`] answers until `shutdown` completes, then lets calls end for the grace period,
//! gives the rest up with UNAVAILABLE and returns.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use engine_store::api::Link;
use engine_store::client::Client;
use proto::MESSAGE_BYTES_MAX;
use proto::v1::export_service_server::ExportServiceServer;
use proto::v1::file_service_server::FileServiceServer;
use proto::v1::pool_service_server::PoolServiceServer;
use proto::v1::scrub_service_server::ScrubServiceServer;
use proto::v1::snapshot_service_server::SnapshotServiceServer;
use proto::v1::stats_service_server::StatsServiceServer;
use proto::v1::subvolume_service_server::SubvolumeServiceServer;
use proto::v1::volume_service_server::VolumeServiceServer;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::task::JoinSet;
use tonic::service::{Routes, RoutesBuilder};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};
use tonic_health::server::HealthReporter;

use crate::core::{Core, Shared};
use crate::export::ExportControl;
use crate::gate::Gate;
use crate::info::ServerInfo;
use crate::listen::{self, Accept, SocketFile, UnixSocket};
use crate::log_filter::{LogControl, LogFilter};
use crate::observe::{MethodTimes, Observe, Shown};

/// How long calls that were given up have to tell their clients so.
const FAREWELL: Duration = Duration::from_secs(1);

/// Where and how to serve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerConfig {
    /// The Unix socket for local clients.
    pub unix: Option<UnixConfig>,
    /// TCP sockets.
    pub tcp: Vec<TcpConfig>,
    /// Bounds.
    pub limits: Limits,
}

/// A Unix socket. Whoever may open it may do everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixConfig {
    /// Its path; `<path>.lock` beside it is a lock file.
    pub path: PathBuf,
    /// Permission bits of the socket file.
    pub mode: u32,
}

impl UnixConfig {
    /// A socket at `path` for its owner and group (0660).
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), mode: 0o660 }
    }
}

/// A TCP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpConfig {
    /// Address and port to listen on; port 0 takes a free one.
    pub address: SocketAddr,
    /// Certificate and key. Without it `plaintext` must be set.
    pub tls: Option<TlsConfig>,
    /// Serves without TLS, on loopback addresses only.
    pub plaintext: bool,
    /// Lets `plaintext` serve other addresses too: anybody who can reach them may do everything.
    pub plaintext_beyond_loopback: bool,
}

/// TLS of a TCP socket, as files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// Certificate chain.
    pub certificate: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// Certificate authority that must have signed the clients' certificates. Without it any
    /// client is served.
    pub client_ca: Option<PathBuf>,
}

/// Bounds of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Calls in progress, all connections together; more get RESOURCE_EXHAUSTED. Each streaming
    /// call holds at most about 6 MiB.
    pub calls_max: usize,
    /// Calls in progress on one connection; HTTP/2 makes the client wait with more.
    pub calls_per_connection_max: u32,
    /// Connections of one socket; more wait to be accepted.
    pub connections_max: usize,
    /// How long a stream waits for its client, and a connection for an answer to a ping.
    pub idle_timeout: Duration,
    /// How long calls may go on after the server was told to stop.
    pub shutdown_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            calls_max: 256,
            calls_per_connection_max: 64,
            connections_max: 1024,
            idle_timeout: Duration::from_secs(60),
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

/// Why the server did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Neither a Unix nor a TCP socket is configured.
    #[error("no socket is configured; give a Unix socket path or a TCP address")]
    NoSocket,
    /// Another server listens on the Unix socket.
    #[error("another server is listening on {}; stop it first or choose another path", path.display())]
    Live {
        /// The socket.
        path: PathBuf,
    },
    /// There is something else at the socket's path.
    #[error("{} exists and is not a socket; remove it or choose another path", path.display())]
    NotSocket {
        /// The path.
        path: PathBuf,
    },
    /// The Unix socket could not be set up.
    #[error("{}: {what}: {cause}", path.display())]
    Socket {
        /// The socket or its lock file.
        path: PathBuf,
        /// Which step failed.
        what: &'static str,
        /// The system's error.
        cause: io::Error,
    },
    /// The TCP socket could not be set up.
    #[error("cannot listen on {address}: {cause}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        cause: io::Error,
    },
    /// TCP without TLS was not asked for.
    #[error("{address} has no TLS certificate; give one, or allow plaintext on loopback")]
    PlaintextNotAllowed {
        /// The address.
        address: SocketAddr,
    },
    /// TCP without TLS on an address that others reach.
    #[error("{address} is no loopback address; plaintext there must be forced")]
    PlaintextNotLoopback {
        /// The address.
        address: SocketAddr,
    },
    /// A certificate or key could not be read.
    #[error("cannot read {}: {cause}", path.display())]
    TlsFile {
        /// The file.
        path: PathBuf,
        /// The system's error.
        cause: io::Error,
    },
    /// Certificate and key are not usable.
    #[error("TLS for {address}: {cause}")]
    Tls {
        /// The address.
        address: SocketAddr,
        /// What is wrong with them.
        cause: tonic::transport::Error,
    },
    /// The descriptors for reflection are damaged; a fault of the build.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// Serving failed.
    #[error("serving failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// Bound sockets, not yet serving.
pub struct Server {
    unix: Option<UnixSocket>,
    tcp: Vec<BoundTcp>,
    limits: Limits,
    shown: Shown,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("unix", &self.unix)
            .field("tcp", &self.tcp)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct BoundTcp {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<ServerTlsConfig>,
}

impl Server {
    /// Binds all sockets of `config`. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`StartError`], with nothing left bound.
    pub async fn bind(config: &ServerConfig) -> Result<Self, StartError> {
        if config.unix.is_none() && config.tcp.is_empty() {
            return Err(StartError::NoSocket);
        }
        let unix = config.unix.as_ref().map(listen::bind_unix).transpose()?;
        let mut tcp = Vec::with_capacity(config.tcp.len());
        for socket in &config.tcp {
            let tls = match &socket.tls {
                Some(files) => Some(read_tls(socket.address, files).await?),
                None => None,
            };
            let (listener, address) = listen::bind_tcp(socket).await?;
            tcp.push(BoundTcp { listener, address, tls });
        }
        let limits = config.limits.clone();
        Ok(Self { unix, tcp, limits, shown: Shown::default() })
    }

    /// The bound TCP addresses, in the order of the configuration.
    #[must_use]
    pub fn tcp_addresses(&self) -> Vec<SocketAddr> {
        self.tcp.iter().map(|socket| socket.address).collect()
    }

    /// Shows `observed` to clients: time statistics, what waits, cores. Without it they are told of the
    /// server's own methods only.
    #[must_use]
    pub fn showing(mut self, observed: Arc<dyn Observe>) -> Self {
        self.shown.daemon = Some(observed);
        self
    }

    /// Lets clients change what the program logs. Without it they are told that they cannot.
    #[must_use]
    pub fn changing_log(mut self, log: Arc<dyn LogControl>) -> Self {
        self.shown.log = Some(LogFilter::new(log));
        self
    }

    /// How long the calls of this server take, while it serves and after.
    #[must_use]
    pub fn method_times(&self) -> MethodTimes {
        self.shown.methods.clone()
    }

    /// Answers calls until `shutdown` completes and calls have ended or were given up: at most the
    /// grace period and a second later.
    ///
    /// # Errors
    /// [`StartError`] when a socket fails; the others are stopped then too.
    pub async fn serve<L, E>(
        self,
        client: Client<L>,
        exports: E,
        info: ServerInfo,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), StartError>
    where
        L: Link + Clone + Send + Sync + 'static,
        L::Call: Send,
        E: ExportControl,
    {
        let (drain, draining) = watch::channel(false);
        let (give_up, giving_up) = watch::channel(false);
        let core = Arc::new(Core {
            client,
            exports,
            info,
            gate: Gate::new(self.limits.calls_max, giving_up, self.shown.methods.clone()),
            shown: self.shown,
            idle_timeout: self.limits.idle_timeout,
            exporting: Mutex::new(()),
        });
        let (health, routes) = routes(core).await?;
        let limits = self.limits;
        let mut serving = JoinSet::new();
        let mut socket_file: Option<SocketFile> = None;
        if let Some(UnixSocket { listener, file }) = self.unix {
            socket_file = Some(file);
            serving.spawn(serve_on(
                listener,
                None,
                routes.clone(),
                limits.clone(),
                draining.clone(),
            ));
        }
        for BoundTcp { listener, address, tls } in self.tcp {
            serving.spawn(serve_on(
                listener,
                tls.map(|tls| (address, tls)),
                routes.clone(),
                limits.clone(),
                draining.clone(),
            ));
        }
        // A socket that ends by itself is an error; the others are told to stop then too.
        let early = tokio::select! {
            () = shutdown => Ok(()),
            ended = next_end(&mut serving) => ended,
        };
        health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
        drop(socket_file);
        drain.send_replace(true);
        let graceful = tokio::time::timeout(limits.shutdown_grace, drained(&mut serving)).await;
        if graceful.is_err() {
            tracing::warn!(
                grace_ms = limits.shutdown_grace.as_millis() as u64,
                "calls are still in progress after the grace period; giving them up"
            );
            give_up.send_replace(true);
            // What does not end now ends with the runtime.
            let _ = tokio::time::timeout(FAREWELL, drained(&mut serving)).await;
        }
        early
    }
}

/// The result of the first socket that ends; never when there is none.
async fn next_end(serving: &mut JoinSet<Result<(), StartError>>) -> Result<(), StartError> {
    match serving.join_next().await {
        Some(Ok(result)) => result,
        Some(Err(panicked)) => std::panic::resume_unwind(panicked.into_panic()),
        None => std::future::pending().await,
    }
}

async fn drained(serving: &mut JoinSet<Result<(), StartError>>) {
    while let Some(ended) = serving.join_next().await {
        if let Ok(Err(error)) = ended {
            tracing::warn!(%error, "a socket failed while stopping");
        }
    }
}

async fn read_tls(address: SocketAddr, files: &TlsConfig) -> Result<ServerTlsConfig, StartError> {
    async fn read(path: &PathBuf) -> Result<Vec<u8>, StartError> {
        let failed = |cause| StartError::TlsFile { path: path.clone(), cause };
        tokio::fs::read(path).await.map_err(failed)
    }
    let identity = Identity::from_pem(read(&files.certificate).await?, read(&files.key).await?);
    let mut tls = ServerTlsConfig::new().identity(identity);
    if let Some(authority) = &files.client_ca {
        tls = tls.client_ca_root(Certificate::from_pem(read(authority).await?));
    }
    // Tried here, so that a bad certificate fails the start and not the first connection.
    tonic::transport::Server::builder()
        .tls_config(tls.clone())
        .map_err(|cause| StartError::Tls { address, cause })?;
    Ok(tls)
}

/// All services behind one router.
async fn routes<L, E>(core: Arc<Core<L, E>>) -> Result<(HealthReporter, Routes), StartError>
where
    L: Link + Send + Sync + 'static,
    L::Call: Send,
    E: ExportControl,
{
    let (health, health_server) = tonic_health::server::health_reporter();
    let mut routes = RoutesBuilder::default();
    macro_rules! add {
        ($($server:ident),*) => {$(
            let service = $server::new(Shared(Arc::clone(&core)))
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX);
            routes.add_service(service);
            health.set_serving::<$server<Shared<L, E>>>().await;
        )*};
    }
    add!(
        ExportServiceServer,
        FileServiceServer,
        PoolServiceServer,
        ScrubServiceServer,
        SnapshotServiceServer,
        StatsServiceServer,
        SubvolumeServiceServer,
        VolumeServiceServer
    );
    routes.add_service(health_server);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    routes.add_service(reflection().build_v1()?);
    routes.add_service(reflection().build_v1alpha()?);
    Ok((health, routes.routes()))
}

/// Serves one socket until told to drain.
async fn serve_on<A: Accept>(
    listener: A,
    tls: Option<(SocketAddr, ServerTlsConfig)>,
    routes: Routes,
    limits: Limits,
    mut draining: watch::Receiver<bool>,
) -> Result<(), StartError> {
    let mut builder = tonic::transport::Server::builder()
        .max_concurrent_streams(limits.calls_per_connection_max)
        .http2_keepalive_interval(Some(limits.idle_timeout))
        .http2_keepalive_timeout(Some(limits.idle_timeout));
    if let Some((address, tls)) = tls {
        builder = builder.tls_config(tls).map_err(|cause| StartError::Tls { address, cause })?;
    }
    let incoming = listen::incoming(listener, Arc::new(Semaphore::new(limits.connections_max)));
    let stop = async move {
        // Also when the server was dropped.
        let _ = draining.wait_for(|drain| *drain).await;
    };
    builder.add_routes(routes).serve_with_incoming_shutdown(incoming, stop).await?;
    Ok(())
}
