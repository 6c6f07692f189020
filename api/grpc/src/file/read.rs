//! ReadFile.

use std::future::{Future, Ready, ready};
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use engine_base::InodeNumber;
use engine_memory::Slice;
use engine_store::StoreError;
use engine_store::api::{
    Attributes, DATA_BYTES_MAX, Data, FileKind, Link, SIZE_BYTES_MAX, TreeRef,
};
use engine_store::client::Client;
use futures::StreamExt as _;
use futures::future::Either;
use futures::stream::FuturesOrdered;
use proto::{CHUNK_BYTES_MAX, v1};
use tonic::Status;

use crate::convert;
use crate::core::{Core, kind};
use crate::limits::READ_REQUESTS_MAX;
use crate::outgoing::Sender;
use crate::path::{Follow, Path};
use crate::status::{OnResource, bad_field};

/// A slice of the engine's as the bytes of a message, without a copy.
struct Shared(Slice);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Produces the messages of a read stream.
pub(super) async fn produce<L, E>(
    core: Arc<Core<L, E>>,
    request: v1::ReadFileRequest,
    sender: Sender<v1::ReadFileResponse>,
) -> Result<(), Status>
where
    L: Link + Send + Sync + 'static,
    L::Call: Send,
{
    let path = Path::parse("file", request.file.as_ref())?;
    if request.offset_bytes > SIZE_BYTES_MAX {
        return Err(bad_field("offset_bytes", "is over 2^60"));
    }
    let (tree, walked) = core.walk(&path, Follow::Always).await?;
    let name = path.display();
    let file = walked.existing().on(kind::FILE, &name)?;
    regular(&file).on(kind::FILE, &name)?;
    let first = v1::ReadFileResponse {
        attributes: Some(convert::attributes(&file)),
        offset_bytes: request.offset_bytes,
        ..v1::ReadFileResponse::default()
    };
    sender.send(first).await?;
    let length = request.length_bytes.unwrap_or(u64::MAX);
    let end = request.offset_bytes.saturating_add(length).min(file.size);
    send_range(&core.client, tree, &file, (request.offset_bytes, end), &sender, &name).await
}

/// An error unless `file` is a regular file.
pub(super) fn regular(file: &Attributes) -> Result<(), StoreError> {
    match file.kind {
        FileKind::File => Ok(()),
        FileKind::Directory => Err(StoreError::IsDirectory { what: "a file is needed".to_owned() }),
        FileKind::Symlink => Err(StoreError::invalid("is a symbolic link, a file is needed")),
    }
}

/// Sends `start .. end` of a file, with up to [`READ_REQUESTS_MAX`] engine requests ahead.
async fn send_range<L: Link>(
    client: &Client<L>,
    tree: TreeRef,
    file: &Attributes,
    (start, end): (u64, u64),
    sender: &Sender<v1::ReadFileResponse>,
    name: &str,
) -> Result<(), Status> {
    let mut next = start;
    let mut sent = start;
    let mut ahead = FuturesOrdered::new();
    loop {
        while ahead.len() < READ_REQUESTS_MAX && next < end {
            let (offset, len) = request_at(next, end);
            let read = Box::pin(read_one(client, tree, file.inode, offset, len));
            ahead.push_back(started(read).await);
            next += u64::from(len);
        }
        let Some((len, result)) = ahead.next().await else { return Ok(()) };
        let data = result.on(kind::FILE, name)?;
        let got: u64 = data.iter().map(|piece| piece.len() as u64).sum();
        send_data(data, sent, sender).await?;
        sent += got;
        if got < u64::from(len) {
            // The file was cut off meanwhile; what it had is what the client gets.
            return Ok(());
        }
    }
}

/// A future that has been polled once.
pub(super) type Started<F> = Either<Ready<<F as Future>::Output>, F>;

/// Polls `future` once, so that its request is on its way before anything waits for it.
pub(super) async fn started<F: Future + Unpin>(mut future: F) -> Started<F> {
    match futures::poll!(&mut future) {
        Poll::Ready(output) => Either::Left(ready(output)),
        Poll::Pending => Either::Right(future),
    }
}

async fn read_one<L: Link>(
    client: &Client<L>,
    tree: TreeRef,
    inode: InodeNumber,
    offset: u64,
    len: u32,
) -> (u32, Result<Data, StoreError>) {
    (len, client.file_read(tree, inode, offset, len).await)
}

/// The request that starts at `offset`: up to the next multiple of its greatest size, so that
/// later ones are aligned.
fn request_at(offset: u64, end: u64) -> (u64, u32) {
    let aligned_end = (offset / DATA_BYTES_MAX + 1) * DATA_BYTES_MAX;
    // At most DATA_BYTES_MAX, 1 MiB.
    (offset, (aligned_end.min(end) - offset) as u32)
}

/// Sends what one request read, in chunks.
async fn send_data(
    data: Data,
    mut offset: u64,
    sender: &Sender<v1::ReadFileResponse>,
) -> Result<(), Status> {
    for piece in data {
        let mut rest = Bytes::from_owner(Shared(piece));
        while !rest.is_empty() {
            let data = rest.split_to(rest.len().min(CHUNK_BYTES_MAX));
            let crc32c = crc32c::crc32c(&data);
            let len = data.len() as u64;
            let message =
                v1::ReadFileResponse { attributes: None, offset_bytes: offset, data, crc32c };
            sender.send(message).await?;
            offset += len;
        }
    }
    Ok(())
}
