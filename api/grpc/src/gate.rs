//! What every call passes: the bound on concurrent calls, its deadline, the server's stop, and for
//! calls that change something one line in the log.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use engine_memory::alloc_site;
use engine_memory::profile::Scoped;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo, UdsConnectInfo};
use tonic::{Code, Request, Response, Status};

use crate::observe::{MethodTimes, Timer};
use crate::status;

/// Longest that any call may take when its client sets no deadline: a check of a large pool takes
/// hours, nothing takes a day.
const CALL_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Admits calls.
#[derive(Debug)]
pub(crate) struct Gate {
    permits: Arc<Semaphore>,
    calls_max: usize,
    stopping: watch::Receiver<bool>,
    times: MethodTimes,
}

impl Gate {
    /// Admits `calls_max` calls at a time, until `stopping` says true.
    pub(crate) fn new(
        calls_max: usize,
        stopping: watch::Receiver<bool>,
        times: MethodTimes,
    ) -> Self {
        Self { permits: Arc::new(Semaphore::new(calls_max)), calls_max, stopping, times }
    }

    /// Admits a call, or refuses it when too many are in progress.
    pub(crate) fn admit<T>(
        &self,
        method: &'static str,
        request: &Request<T>,
    ) -> Result<Call, Status> {
        let permit = Arc::clone(&self.permits)
            .try_acquire_owned()
            .map_err(|_| status::too_many_calls(self.calls_max))?;
        let started = Instant::now();
        let timeout = match request.metadata().get("grpc-timeout") {
            Some(value) => parse_timeout(value.as_bytes()).ok_or_else(|| {
                status::bad_field("grpc-timeout", "must be 1 to 8 digits and one of H M S m u n")
            })?,
            None => CALL_TIMEOUT_MAX,
        };
        // The transport ends a call at its deadline too, but says CANCELLED. A moment earlier the
        // client gets the code it expects; a success that late would reach nobody anyway.
        let margin = (timeout / 8).min(Duration::from_millis(5));
        Ok(Call {
            permit,
            _timer: self.times.begin(method),
            method,
            peer: peer(request),
            started,
            deadline: started + (timeout - margin).min(CALL_TIMEOUT_MAX),
            stopping: self.stopping.clone(),
        })
    }
}

/// A call in progress.
#[derive(Debug)]
pub(crate) struct Call {
    permit: OwnedSemaphorePermit,
    /// Ends with the call.
    _timer: Timer,
    method: &'static str,
    peer: String,
    started: Instant,
    deadline: Instant,
    stopping: watch::Receiver<bool>,
}

impl Call {
    /// Runs `work` up to the call's deadline or the server's stop.
    pub(crate) async fn run<T>(
        mut self,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        self.bounded(work).await
    }

    /// Runs `work`, which changes `target`, and logs how it ended.
    pub(crate) async fn change<T>(
        self,
        target: &str,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<Response<T>, Status> {
        self.change_of(|| target, work).await
    }

    /// As [`Call::change`], where only the work learns what its target is.
    pub(crate) async fn change_of<'a, T>(
        mut self,
        target: impl FnOnce() -> &'a str,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<Response<T>, Status> {
        let result = self.bounded(work).await;
        self.log(target(), result.as_ref().err());
        result.map(Response::new)
    }

    async fn bounded<T>(
        &mut self,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let deadline = self.deadline;
        let work = Scoped::new(alloc_site!("grpc calls"), work);
        tokio::select! {
            biased;
            result = work => result,
            () = tokio::time::sleep_until(deadline) => Err(status::deadline(
                "DEADLINE_EXCEEDED",
                "the call's deadline has passed; what it had begun may be done or not",
            )),
            () = stopped(&mut self.stopping) => Err(status::stopping()),
        }
    }

    fn log(&self, target: &str, error: Option<&Status>) {
        let elapsed_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let code = error.map_or(Code::Ok, Status::code);
        let message = error.map_or("", |status| status.message());
        tracing::info!(
            method = self.method,
            target_name = target,
            peer = self.peer,
            code = ?code,
            elapsed_us,
            message,
            "change"
        );
        // Held to here, so that the bound covers all of the call.
        let _ = &self.permit;
    }
}

/// Completes when the server gives up its calls; never if it went away without saying so.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    if stopping.wait_for(|stop| *stop).await.is_err() {
        std::future::pending().await
    }
}

/// Who calls, for the log.
fn peer<T>(request: &Request<T>) -> String {
    let extensions = request.extensions();
    if let Some(info) = extensions.get::<UdsConnectInfo>() {
        return match info.peer_cred {
            Some(cred) => format!("unix:uid={},pid={}", cred.uid(), cred.pid().unwrap_or(0)),
            None => "unix".to_owned(),
        };
    }
    let address = extensions
        .get::<TlsConnectInfo<TcpConnectInfo>>()
        .map(|info| info.get_ref().remote_addr())
        .or_else(|| extensions.get::<TcpConnectInfo>().map(TcpConnectInfo::remote_addr));
    match address.flatten() {
        Some(address) => format!("tcp:{address}"),
        None => "unknown".to_owned(),
    }
}

/// The value of a `grpc-timeout` header: "TimeoutValue TimeoutUnit" of the gRPC protocol.
fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count = digits.iter().fold(0_u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(count * 3600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_follow_the_protocol() {
        assert_eq!(parse_timeout(b"1H"), Some(Duration::from_secs(3600)));
        assert_eq!(parse_timeout(b"99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(parse_timeout(b"250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse_timeout(b"7u"), Some(Duration::from_micros(7)));
        for bad in [&b""[..], b"S", b"5", b"5x", b"-1S", b"123456789S", b" 1S", b"1 S"] {
            assert_eq!(parse_timeout(bad), None, "{bad:?}");
        }
    }
}
