//! `send` and `receive`: snapshots as streams on standard output and from standard input.

use std::io::{self, IsTerminal as _, Read as _, Write as _};

use bytes::Bytes;
use proto::{CHUNK_BYTES_MAX, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::admin::given;
use crate::args::SendArguments;
use crate::connect::Session;
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::size::show;
use crate::snapshots::snapshot_json;

/// Messages read ahead of the network.
const READ_AHEAD_MESSAGES: usize = 8;

/// `send`.
pub(crate) async fn send(
    session: &Session,
    arguments: &SendArguments,
    output: &Output,
) -> Result<()> {
    let mut to = io::stdout();
    if to.is_terminal() {
        let why = "the stream is not for a terminal: redirect it to a file, or pipe it to `cairn receive`";
        return Err(Failure::usage(why));
    }
    let request = v1::SendSnapshotRequest {
        snapshot: arguments.snapshot.clone().unwrap_or_default(),
        base: arguments.base.clone().unwrap_or_default(),
        resume_token: arguments.resume.clone().unwrap_or_default(),
    };
    let mut stream = session.snapshots().send_snapshot(request).await?.into_inner();
    let progress = output.progress();
    let mut sent = 0;
    while let Some(message) = stream.message().await? {
        to.write_all(&message.data).map_err(|error| cannot("write the stream", &error))?;
        sent += message.data.len() as u64;
        progress.inc(message.data.len() as u64);
    }
    to.flush().map_err(|error| cannot("write the stream", &error))?;
    progress.finish_and_clear();
    // Standard output is the stream's.
    output.note(&format!("sent {}", show(sent)));
    Ok(())
}

fn cannot(what: &str, error: &io::Error) -> Failure {
    Failure::new(format!("cannot {what}: {error}"))
}

/// `receive`.
pub(crate) async fn receive(session: &Session, name: String, output: &Output) -> Result<()> {
    if io::stdin().is_terminal() {
        let why = "the stream does not come from a terminal: pipe `cairn send` to this, or redirect a file";
        return Err(Failure::usage(why));
    }
    let (messages, receiver) = mpsc::channel(READ_AHEAD_MESSAGES);
    let progress = output.progress();
    let shown = progress.clone();
    let first = v1::ReceiveSnapshotRequest { name, data: Bytes::new() };
    let reading = tokio::task::spawn_blocking(move || -> io::Result<()> {
        let mut from = io::stdin().lock();
        let mut next = first;
        loop {
            if messages.blocking_send(next).is_err() {
                // The call is over; it says why.
                return Ok(());
            }
            let mut data = Vec::with_capacity(CHUNK_BYTES_MAX);
            (&mut from).take(CHUNK_BYTES_MAX as u64).read_to_end(&mut data)?;
            if data.is_empty() {
                return Ok(());
            }
            shown.inc(data.len() as u64);
            next = v1::ReceiveSnapshotRequest { name: String::new(), data: data.into() };
        }
    });
    let reply = session.snapshots().receive_snapshot(ReceiverStream::new(receiver)).await;
    progress.finish_and_clear();
    if reading.is_finished()
        && let Ok(Err(error)) = reading.await
    {
        return Err(cannot("read the stream", &error));
    }
    let snapshot = given(reply?.into_inner().snapshot)?;
    output.done(&snapshot_json(&snapshot), &format!("received snapshot {}", snapshot.name))
}
