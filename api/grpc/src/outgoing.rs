//! Server streams: a task makes messages, a short queue carries them, the client's pace holds it up.
//!
//! Always holds: at most [`STREAM_QUEUE_MAX`] messages wait for the client; a client that takes
//! nothing for the idle timeout loses its stream; the task ends when the client goes away.

use std::future::Future;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::gate::Call;
use crate::limits::STREAM_QUEUE_MAX;
use crate::status;

/// What a streaming call answers with.
pub(crate) type Outgoing<T> = ReceiverStream<Result<T, Status>>;

/// Where a producer puts its messages.
pub(crate) struct Sender<T> {
    queue: mpsc::Sender<Result<T, Status>>,
    idle_timeout: Duration,
}

impl<T> Sender<T> {
    /// Hands a message on; waits while the queue is full.
    pub(crate) async fn send(&self, message: T) -> Result<(), Status> {
        match tokio::time::timeout(self.idle_timeout, self.queue.send(Ok(message))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::cancelled("the client went away")),
            Err(_) => Err(status::deadline(
                "STREAM_IDLE",
                "the client took nothing for longer than the server waits",
            )),
        }
    }
}

/// Starts `producer` and returns the stream of what it sends, ended by its error if it fails.
pub(crate) fn start<T, P, F>(call: Call, idle_timeout: Duration, producer: P) -> Outgoing<T>
where
    T: Send + 'static,
    P: FnOnce(Sender<T>) -> F,
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (queue, messages) = mpsc::channel(STREAM_QUEUE_MAX);
    let work = producer(Sender { queue: queue.clone(), idle_timeout });
    tokio::spawn(async move {
        tokio::select! {
            result = call.run(work) => {
                if let Err(status) = result {
                    // Nobody is left to be told when this fails or takes too long.
                    let _ = tokio::time::timeout(idle_timeout, queue.send(Err(status))).await;
                }
            }
            () = queue.closed() => {}
        }
    });
    ReceiverStream::new(messages)
}
