//! WriteFile: a header, then chunks, gathered into engine requests of up to 1 MiB.
//!
//! Always holds: at most [`WRITE_REQUESTS_MAX`] requests are in flight, no two of them on the same
//! 4 KiB block; offsets only grow; nothing is written before its checksum has been verified.

use std::time::Duration;

use engine_memory::Buffer;
use engine_store::StoreError;
use engine_store::api::{
    Attributes, CreateAttributes, DATA_BYTES_MAX, Data, FileKind, Link, SIZE_BYTES_MAX,
    SetAttributes, TreeRef,
};
use engine_store::client::Client;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use proto::v1::write_file_request::Message;
use proto::{CHUNK_BYTES_MAX, v1};
use tonic::{Status, Streaming};

use super::read::{Started, regular, started};
use crate::convert;
use crate::core::{Core, kind};
use crate::limits::WRITE_REQUESTS_MAX;
use crate::path::{Follow, Path};
use crate::status::{OnResource, bad_field, chunk_damaged, deadline};

/// The engine's unit of data: two unaligned writes to one block depend on each other.
const BLOCK_BYTES: u64 = 4096;

/// The header of a stream: its first message.
pub(super) async fn header(
    stream: &mut Streaming<v1::WriteFileRequest>,
    idle_timeout: Duration,
) -> Result<v1::WriteFileHeader, Status> {
    match next(stream, idle_timeout).await? {
        Some(Message::Header(header)) => Ok(header),
        Some(Message::Chunk(_)) => Err(bad_field("chunk", "came before the header")),
        None => Err(bad_field("header", "is missing: the stream ended before it")),
    }
}

async fn next(
    stream: &mut Streaming<v1::WriteFileRequest>,
    idle_timeout: Duration,
) -> Result<Option<Message>, Status> {
    let message = tokio::time::timeout(idle_timeout, stream.message()).await.map_err(|_| {
        deadline("STREAM_IDLE", "the client sent nothing for longer than the server waits")
    })??;
    match message {
        None => Ok(None),
        Some(request) => match request.message {
            Some(message) => Ok(Some(message)),
            None => Err(bad_field("message", "has neither a header nor a chunk")),
        },
    }
}

/// Writes what `stream` brings after its `header`.
pub(super) async fn write<L, E>(
    core: &Core<L, E>,
    header: v1::WriteFileHeader,
    mut stream: Streaming<v1::WriteFileRequest>,
) -> Result<v1::WriteFileResponse, Status>
where
    L: Link + Send + Sync + 'static,
    L::Call: Send,
{
    let path = Path::parse("header.file", header.file.as_ref())?;
    let name = path.display();
    if header.final_size_bytes.is_some_and(|size| size > SIZE_BYTES_MAX) {
        return Err(bad_field("header.final_size_bytes", "is over 2^60"));
    }
    let (tree, file) = open(core, &Opening::of(&header), &path).await?;
    let mut writer = Writer {
        client: &core.client,
        tree,
        file,
        gathered: Data::new(),
        gathered_at: 0,
        gathered_bytes: 0,
        next_offset: 0,
        written_bytes: 0,
        last_block: None,
        in_flight: FuturesUnordered::new(),
    };
    loop {
        // Requests in flight make progress, and fail the call, while the client is awaited.
        let message = tokio::select! {
            message = next(&mut stream, core.idle_timeout) => message?,
            Some(written) = writer.in_flight.next() => {
                written.on(kind::FILE, &name)?;
                continue;
            }
        };
        let chunk = match message {
            None => break,
            Some(Message::Chunk(chunk)) => chunk,
            Some(Message::Header(_)) => return Err(bad_field("header", "came a second time")),
        };
        writer.check(&chunk)?;
        writer.take(&chunk).await.on(kind::FILE, &name)?;
    }
    writer.submit().await.on(kind::FILE, &name)?;
    writer.drain().await.on(kind::FILE, &name)?;
    let written_bytes = writer.written_bytes;
    let file = writer.file.inode;
    let attributes = async {
        let attributes = match header.final_size_bytes {
            Some(size) => {
                let set = SetAttributes { size: Some(size), ..SetAttributes::default() };
                core.client.set_attributes(tree, file, set).await?
            }
            None => core.client.get_attributes(tree, file).await?,
        };
        if header.sync {
            core.client.file_sync(tree, file).await?;
        }
        Ok(attributes)
    };
    let attributes = attributes.await.on(kind::FILE, &name)?;
    let attributes = Some(convert::attributes(&attributes));
    Ok(v1::WriteFileResponse { attributes, written_bytes })
}

/// How a file that is written is found or created.
pub(super) struct Opening<'a> {
    pub(super) create: Option<&'a v1::CreateAttributes>,
    pub(super) exclusive: bool,
    pub(super) truncate: bool,
    /// What stands before these names in the request.
    pub(super) fields: &'static str,
}

impl<'a> Opening<'a> {
    fn of(header: &'a v1::WriteFileHeader) -> Self {
        let (exclusive, truncate) = (header.exclusive, header.truncate);
        Self { create: header.create.as_ref(), exclusive, truncate, fields: "header." }
    }

    /// With which attributes it is created, if it is.
    pub(super) fn check(&self) -> Result<Option<CreateAttributes>, Status> {
        let field = |name: &str| format!("{}{name}", self.fields);
        if self.exclusive && self.create.is_none() {
            let why = format!("needs {}", field("create"));
            return Err(bad_field(&field("exclusive"), why));
        }
        self.create.map(|it| convert::create_attributes(&field("create"), Some(it))).transpose()
    }

    pub(super) fn follow(&self) -> Follow {
        if self.exclusive { Follow::Never } else { Follow::Always }
    }
}

/// Finds or creates a file to be written.
pub(super) async fn open<L: Link, E>(
    core: &Core<L, E>,
    header: &Opening<'_>,
    path: &Path<'_>,
) -> Result<(TreeRef, Attributes), Status> {
    let (create, follow) = (header.check()?, header.follow());
    let (tree, walked) = core.walk(path, follow).await?;
    let open = async {
        let Some(file) = walked.found.clone() else {
            let create = create.ok_or_else(|| StoreError::not_found("file"))?;
            if walked.slash {
                return Err(StoreError::IsDirectory { what: "the path ends in '/'".to_owned() });
            }
            let (directory, name) = walked.entry()?;
            return core.client.create(tree, directory, name, FileKind::File, create).await;
        };
        if header.exclusive {
            return Err(StoreError::AlreadyExists { what: "file".to_owned() });
        }
        regular(&file)?;
        if !header.truncate {
            return Ok(file);
        }
        let set = SetAttributes { size: Some(0), ..SetAttributes::default() };
        core.client.set_attributes(tree, file.inode, set).await
    };
    Ok((tree, open.await.on(kind::FILE, &path.display())?))
}

type Pending<'a> = Started<BoxFuture<'a, Result<(), StoreError>>>;

/// Gathers chunks into requests and keeps some of them in flight.
struct Writer<'a, L> {
    client: &'a Client<L>,
    tree: TreeRef,
    file: Attributes,
    /// Chunks not yet submitted: adjoining, within one aligned MiB.
    gathered: Data,
    gathered_at: u64,
    gathered_bytes: u64,
    /// Where the last chunk ended.
    next_offset: u64,
    written_bytes: u64,
    /// The last block of the last request in flight.
    last_block: Option<u64>,
    in_flight: FuturesUnordered<Pending<'a>>,
}

impl<'a, L> Writer<'a, L>
where
    L: Link + Send + Sync + 'static,
    L::Call: Send,
{
    /// Checks a chunk: length, offset, checksum.
    fn check(&self, chunk: &v1::WriteFileChunk) -> Result<(), Status> {
        let (at, len) = (chunk.offset_bytes, chunk.data.len());
        if len == 0 || len > CHUNK_BYTES_MAX {
            let why = format!("must have 1 to {CHUNK_BYTES_MAX} bytes, not {len}");
            return Err(bad_field("chunk.data", why));
        }
        if at < self.next_offset {
            let why = format!("is {at}, before {}, where the last chunk ended", self.next_offset);
            return Err(bad_field("chunk.offset_bytes", why));
        }
        if at > SIZE_BYTES_MAX - CHUNK_BYTES_MAX as u64 {
            return Err(bad_field("chunk.offset_bytes", "reaches past 2^60"));
        }
        let found = crc32c::crc32c(&chunk.data);
        if found != chunk.crc32c {
            return Err(chunk_damaged(at, chunk.crc32c, found));
        }
        Ok(())
    }

    /// Takes a checked chunk.
    async fn take(&mut self, chunk: &v1::WriteFileChunk) -> Result<(), StoreError> {
        let mut at = chunk.offset_bytes;
        let mut rest: &[u8] = &chunk.data;
        if at != self.next_offset {
            self.submit().await?;
        }
        while !rest.is_empty() {
            let room = DATA_BYTES_MAX - at % DATA_BYTES_MAX;
            let (piece, after) = rest.split_at(rest.len().min(room as usize));
            if self.gathered.is_empty() {
                self.gathered_at = at;
            }
            self.gathered.push(Buffer::try_copy_of(piece)?.freeze());
            self.gathered_bytes += piece.len() as u64;
            at += piece.len() as u64;
            rest = after;
            // Full, or in as many pieces as a request holds without an allocation of its own.
            if at.is_multiple_of(DATA_BYTES_MAX) || self.gathered.len() == 4 {
                self.submit().await?;
            }
        }
        self.next_offset = at;
        Ok(())
    }

    /// Sends what was gathered, when there is room for one more request.
    async fn submit(&mut self) -> Result<(), StoreError> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let (offset, len) = (self.gathered_at, self.gathered_bytes);
        if self.last_block == Some(offset / BLOCK_BYTES) {
            self.drain().await?;
        }
        while self.in_flight.len() >= WRITE_REQUESTS_MAX {
            self.complete_one().await?;
        }
        let data = std::mem::take(&mut self.gathered);
        self.gathered_bytes = 0;
        self.written_bytes += len;
        self.last_block = Some((offset + len - 1) / BLOCK_BYTES);
        let (client, tree, inode) = (self.client, self.tree, self.file.inode);
        let write: BoxFuture<'a, _> =
            Box::pin(async move { client.file_write(tree, inode, offset, data).await.map(drop) });
        let write = started(write).await;
        self.in_flight.push(write);
        Ok(())
    }

    async fn complete_one(&mut self) -> Result<(), StoreError> {
        self.in_flight.next().await.unwrap_or(Ok(()))
    }

    async fn drain(&mut self) -> Result<(), StoreError> {
        while !self.in_flight.is_empty() {
            self.complete_one().await?;
        }
        Ok(())
    }
}
