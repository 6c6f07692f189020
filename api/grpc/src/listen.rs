//! Listening sockets: who may connect is decided here.
//!
//! Always holds: a Unix socket has its permissions before anybody can connect; a socket of a live
//! server is never taken away; plain TCP listens on loopback only unless forced.

use std::fs::{File, Permissions, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::server::Connected;

use crate::server::{StartError, TcpConfig, UnixConfig};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// A bound Unix socket. Its file is removed when this is dropped, if it is still ours.
#[derive(Debug)]
pub(crate) struct UnixSocket {
    pub(crate) listener: UnixListener,
    pub(crate) file: SocketFile,
}

/// The name of a Unix socket in the file system, held by a lock on `<path>.lock`.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: u64,
    _lock: File,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|it| it.ino() == self.inode);
        if ours {
            // The next start removes what is left over.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn failed(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> StartError + use<> {
    let path = path.to_owned();
    move |cause| StartError::Socket { path, what, cause }
}

/// Binds a Unix socket. A stale file from a server that died is replaced; a live server's is not.
pub(crate) fn bind_unix(config: &UnixConfig) -> Result<UnixSocket, StartError> {
    let path = &config.path;
    let mut lock_path = path.clone().into_os_string();
    lock_path.push(".lock");
    let lock_path = PathBuf::from(lock_path);
    let lock = File::options().create(true).truncate(false).write(true).open(&lock_path);
    let lock = lock.map_err(failed(&lock_path, "cannot open the lock file"))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(StartError::Live { path: path.clone() }),
        Err(TryLockError::Error(cause)) => {
            return Err(failed(&lock_path, "cannot lock the lock file")(cause));
        }
    }
    remove_stale(path)?;
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)
        .map_err(failed(path, "cannot make a socket"))?;
    let address = socket2::SockAddr::unix(path).map_err(failed(path, "no usable socket path"))?;
    socket.bind(&address).map_err(failed(path, "cannot bind"))?;
    // Before listen(2): until then every connect is refused.
    std::fs::set_permissions(path, Permissions::from_mode(config.mode))
        .map_err(failed(path, "cannot set permissions"))?;
    let metadata = std::fs::symlink_metadata(path).map_err(failed(path, "cannot stat"))?;
    let file = SocketFile { path: path.clone(), inode: metadata.ino(), _lock: lock };
    socket.listen(BACKLOG).map_err(failed(path, "cannot listen"))?;
    socket.set_nonblocking(true).map_err(failed(path, "cannot make non-blocking"))?;
    let listener = UnixListener::from_std(socket.into()).map_err(failed(path, "cannot poll"))?;
    Ok(UnixSocket { listener, file })
}

/// Removes the socket file of a server that is gone; refuses anything else at `path`.
fn remove_stale(path: &Path) -> Result<(), StartError> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(path, "cannot stat")(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(StartError::NotSocket { path: path.to_owned() });
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(StartError::Live { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed(path, "cannot remove the stale socket"))
        }
        Err(error) => Err(failed(path, "cannot tell whether a server is there")(error)),
    }
}

/// Binds a TCP socket.
pub(crate) async fn bind_tcp(config: &TcpConfig) -> Result<(TcpListener, SocketAddr), StartError> {
    let address = config.address;
    if config.tls.is_none() {
        if !config.plaintext {
            return Err(StartError::PlaintextNotAllowed { address });
        }
        if !address.ip().is_loopback() && !config.plaintext_beyond_loopback {
            return Err(StartError::PlaintextNotLoopback { address });
        }
    }
    let failed = |cause| StartError::Tcp { address, cause };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// A connection that counts against the server's bound while it lives.
#[derive(Debug)]
pub(crate) struct Connection<S> {
    stream: S,
    _permit: OwnedSemaphorePermit,
}

impl<S: Connected> Connected for Connection<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> S::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A socket that accepts.
pub(crate) trait Accept: Send + 'static {
    /// What it accepts.
    type Stream: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static;

    /// The next connection.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = Self::accept(self).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Connections of a socket, as many at a time as `connections` has permits; more wait in the
/// kernel's backlog.
pub(crate) fn incoming<A: Accept>(
    listener: A,
    connections: Arc<Semaphore>,
) -> impl Stream<Item = io::Result<Connection<A::Stream>>> + Send {
    futures::stream::unfold((listener, connections), |(listener, connections)| async move {
        let permit = Arc::clone(&connections).acquire_owned().await.ok()?;
        let accepted = listener.accept().await;
        if let Err(error) = &accepted {
            tracing::warn!(%error, "cannot accept a connection");
            // Out of descriptors, mostly: it passes, but not at once.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        let connection = accepted.map(|stream| Connection { stream, _permit: permit });
        Some((connection, (listener, connections)))
    })
}
