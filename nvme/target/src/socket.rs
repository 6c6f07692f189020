//! A non-blocking TCP socket: one receive for all that has come, one gathered send.

use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg, sockopt};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

/// What a receive or send did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Progress {
    /// So many bytes.
    Bytes(usize),
    /// Nothing for now.
    WouldBlock,
    /// The peer is gone.
    Gone,
}

/// A connected socket.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
}

impl Socket {
    /// Prepares a stream: non-blocking, without Nagle's delay, with TCP keep alive for hosts that asked
    /// for no NVMe keep alive.
    pub(crate) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        sockopt::set_socket_keepalive(&stream, true)?;
        Ok(Self { stream })
    }

    /// Our end of the connection.
    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        self.stream.local_addr().ok()
    }

    pub(crate) fn receive(&self, buffers: [&mut [u8]; 2]) -> Progress {
        let [first, second] = buffers;
        let result = if first.is_empty() {
            rustix::io::read(&self.stream, second)
        } else {
            let mut parts = [IoSliceMut::new(first), IoSliceMut::new(second)];
            rustix::io::readv(&self.stream, &mut parts)
        };
        match result {
            Ok(0) => Progress::Gone,
            other => progress(other),
        }
    }

    pub(crate) fn send(&self, parts: &[IoSlice<'_>]) -> Progress {
        let mut control = SendAncillaryBuffer::default();
        progress(sendmsg(&self.stream, parts, &mut control, SendFlags::NOSIGNAL))
    }

    /// Says that we send no more. The peer sees the end after what was sent.
    pub(crate) fn shut_down_sending(&self) {
        // An error means that the connection is gone, which the next receive finds.
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn progress(result: rustix::io::Result<usize>) -> Progress {
    match result {
        Ok(len) => Progress::Bytes(len),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Progress::WouldBlock,
        Err(_) => Progress::Gone,
    }
}
