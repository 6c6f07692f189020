//! Streams of snapshots: SendSnapshot and ReceiveSnapshot.

use std::time::Duration;

use bytes::Bytes;
use engine_store::StoreError;
use engine_store::api::{Link, SubvolumeInfo};
use engine_transfer::{FRAME_DATA_MAX, Receiver, Sender as Stream};
use proto::{CHUNK_BYTES_MAX, v1};
use tonic::{Status, Streaming};

use crate::core::{Core, check_name, kind};
use crate::outgoing::Sender;
use crate::status::{OnResource, bad_field, deadline};

/// Produces the messages of a stream.
pub(crate) async fn send<L, E>(
    core: &Core<L, E>,
    request: v1::SendSnapshotRequest,
    sender: Sender<v1::SendSnapshotResponse>,
) -> Result<(), Status>
where
    L: Link + Send + Sync + 'static,
    L::Call: Send,
{
    let v1::SendSnapshotRequest { snapshot, base, resume_token } = request;
    let mut stream = match resume_token.as_str() {
        "" => {
            check_name("snapshot", &snapshot)?;
            let base = Some(base.as_str()).filter(|base| !base.is_empty());
            base.map_or(Ok(()), |base| check_name("base", base))?;
            Stream::start(&core.client, &snapshot, base).await.on(kind::SNAPSHOT, &snapshot)?
        }
        token => {
            if !snapshot.is_empty() || !base.is_empty() {
                let why = "names snapshots itself: give neither `snapshot` nor `base` with it";
                return Err(bad_field("resume_token", why));
            }
            let token = token
                .parse()
                .map_err(|error: StoreError| bad_field("resume_token", error.to_string()))?;
            Stream::resume(&core.client, token).await.on(kind::SNAPSHOT, "of the resume token")?
        }
    };
    while let Some(bytes) = stream.next().await.on(kind::SNAPSHOT, &snapshot)? {
        let mut rest = Bytes::from(bytes);
        while !rest.is_empty() {
            let data = rest.split_to(rest.len().min(CHUNK_BYTES_MAX));
            sender.send(v1::SendSnapshotResponse { data }).await?;
        }
    }
    Ok(())
}

/// The first message: the name, and the first bytes of the stream.
pub(crate) async fn first(
    stream: &mut Streaming<v1::ReceiveSnapshotRequest>,
    idle_timeout: Duration,
) -> Result<(String, Bytes), Status> {
    let Some(first) = next(stream, idle_timeout).await? else {
        return Err(bad_field("name", "is missing: the stream ended before it"));
    };
    check_name("name", &first.name)?;
    Ok((first.name, first.data))
}

async fn next(
    stream: &mut Streaming<v1::ReceiveSnapshotRequest>,
    idle_timeout: Duration,
) -> Result<Option<v1::ReceiveSnapshotRequest>, Status> {
    tokio::time::timeout(idle_timeout, stream.message()).await.map_err(|_| {
        deadline("STREAM_IDLE", "the client sent nothing for longer than the server waits")
    })?
}

/// Receives what `stream` brings after its first bytes.
pub(crate) async fn receive<L, E>(
    core: &Core<L, E>,
    name: &str,
    first: Bytes,
    mut stream: Streaming<v1::ReceiveSnapshotRequest>,
) -> Result<SubvolumeInfo, Status>
where
    L: Link + Send + Sync + 'static,
    L::Call: Send,
{
    let mut receiver = Receiver::new(&core.client, name);
    let mut bytes = first;
    loop {
        if bytes.len() > FRAME_DATA_MAX {
            return Err(bad_field("data", format!("is over {FRAME_DATA_MAX} bytes")));
        }
        receiver.feed(&bytes).await.on(kind::SNAPSHOT, name)?;
        match next(&mut stream, core.idle_timeout).await? {
            None => return receiver.finish().await.on(kind::SNAPSHOT, name),
            Some(message) if message.name.is_empty() => bytes = message.data,
            Some(_) => return Err(bad_field("name", "came a second time")),
        }
    }
}
