//! The side that receives.

use engine_base::BLOCK_SIZE;
use engine_memory::Buffer;
use engine_store::StoreError;
use engine_store::api::{Data, Link, NewReceived, SubvolumeInfo, SubvolumeKind};
use engine_store::client::{Client, VolumeRef};

use crate::format::{Begin, Decoder, Frame, bad};
use crate::{BATCH_BYTES, ResumeToken, find};

/// Bytes after which it is noted how far all is durable.
const NOTE_BYTES: u64 = 64 << 20;

/// Makes a snapshot of a stream.
pub struct Receiver<'c, L> {
    client: &'c Client<L>,
    name: String,
    decoder: Decoder,
    state: State,
    note_bytes: u64,
}

/// How far it is.
enum State {
    /// Nothing was told yet.
    Waiting,
    /// The subvolume is there.
    Open(Open),
    /// It is a snapshot.
    Ended(SubvolumeInfo),
}

struct Open {
    volume: VolumeRef,
    /// Where its blocks end.
    end: u64,
    /// What was told next begins here, or later.
    next: u64,
    /// All before this is there already.
    there: u64,
    /// What is to be written, together.
    batch: Vec<Change>,
    batch_bytes: u64,
    /// Bytes written since it was noted how far it is.
    since_note: u64,
}

enum Change {
    Write { offset: u64, data: Data },
    Discard { offset: u64, len: u64 },
}

impl<'c, L: Link> Receiver<'c, L> {
    /// Receives a snapshot that is to be called `name`, or the rest of one.
    #[must_use]
    pub fn new(client: &'c Client<L>, name: &str) -> Self {
        let (name, decoder) = (name.to_owned(), Decoder::default());
        Self { client, name, decoder, state: State::Waiting, note_bytes: NOTE_BYTES }
    }

    /// Notes how far all is durable after every so many bytes of data, in place of 64 MiB: more often costs flushes,
    /// and less is sent again when the stream is cut off.
    #[must_use]
    pub fn noting_every(mut self, bytes: u64) -> Self {
        self.note_bytes = bytes;
        self
    }

    /// Takes the next bytes of the stream, in pieces of any size.
    ///
    /// # Errors
    /// `InvalidArgument` when the stream is damaged, or is not what is being received under this name; `AlreadyExists`;
    /// `NotFound` when what it tells the difference to is not here; and what the engine says. The subvolume stays: the
    /// stream may go on later.
    pub async fn feed(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.decoder.feed(bytes);
        while let Some(frame) = self.decoder.next_frame()? {
            self.apply(frame).await?;
        }
        Ok(())
    }

    /// The stream is over.
    ///
    /// # Errors
    /// When it was cut off; the message tells how to go on.
    pub async fn finish(mut self) -> Result<SubvolumeInfo, StoreError> {
        if let State::Open(open) = &mut self.state {
            open.write(self.client).await?;
            open.note(self.client, &self.name).await?;
        }
        match self.state {
            State::Ended(info) => Ok(info),
            State::Waiting => Err(bad("nothing of it came")),
            State::Open(_) => {
                let info = self.client.subvolume_get(&self.name).await?;
                let token = ResumeToken::of(&info).map(|token| token.to_string());
                Err(bad(format!(
                    "was cut off; {:?} holds what came. Send the rest with the resume token {}, or delete it",
                    self.name,
                    token.unwrap_or_default()
                )))
            }
        }
    }

    async fn apply(&mut self, frame: Frame) -> Result<(), StoreError> {
        let state = std::mem::replace(&mut self.state, State::Waiting);
        let mut open = match (frame, state) {
            (Frame::Begin(begin), _) => {
                self.state = State::Open(self.begin(begin).await?);
                return Ok(());
            }
            (Frame::Data { offset, bytes }, State::Open(mut open)) => {
                let len = bytes.len() as u64;
                if open.take(offset, len)? {
                    let data = Data::from_iter([Buffer::try_copy_of(&bytes)?.freeze()]);
                    open.add(Change::Write { offset, data }, len);
                }
                open
            }
            (Frame::Hole { offset, len }, State::Open(mut open)) => {
                if open.take(offset, len)? {
                    open.add(Change::Discard { offset, len }, BLOCK_SIZE);
                }
                open
            }
            (Frame::End, State::Open(mut open)) => {
                open.write(self.client).await?;
                self.state = State::Ended(self.client.receive_end(&self.name).await?);
                return Ok(());
            }
            // The decoder lets nothing come before the beginning, nor after the end.
            (_, State::Waiting | State::Ended(_)) => return Err(bad("is out of order")),
        };
        if open.batch_bytes >= BATCH_BYTES.min(self.note_bytes) {
            open.write(self.client).await?;
            if open.since_note >= self.note_bytes {
                open.note(self.client, &self.name).await?;
            }
        }
        self.state = State::Open(open);
        Ok(())
    }

    /// Makes the subvolume, or finds it.
    async fn begin(&self, begin: Begin) -> Result<Open, StoreError> {
        if begin.kind == SubvolumeKind::FileTree {
            let what = "receive of a file tree; a volume can be received".to_owned();
            return Err(StoreError::Unsupported { what });
        }
        let base = match begin.base {
            None => None,
            Some(content) => {
                let found = find(self.client, content).await?.pop();
                let there = self.client.subvolume_get(&self.name).await;
                match (found, there) {
                    (Some(found), _) => Some((content, found.name)),
                    // What is there of it does not need the base any more.
                    (None, Ok(there)) if there.receiving().is_some() => {
                        Some((content, self.name.clone()))
                    }
                    (None, _) => {
                        return Err(StoreError::not_found(
                            "the snapshot to which the stream tells the difference; \
                             receive that one first, or send all of it (without a base)",
                        ));
                    }
                }
            }
        };
        let new = NewReceived {
            name: self.name.clone(),
            source: begin.source,
            base,
            kind: begin.kind,
            size_bytes: begin.size_bytes,
            block_size: begin.block_size,
            options: begin.options,
        };
        let mut info = self.client.receive_begin(new).await?;
        let there = info.receiving().map_or(0, |receiving| receiving.position);
        if there < begin.from {
            let token = ResumeToken::of(&info).map(|token| token.to_string());
            return Err(bad(format!(
                "begins at {}, and {:?} has only what is before {there}; send with the resume token {}",
                begin.from,
                self.name,
                token.unwrap_or_default()
            )));
        }
        if info.size_bytes != begin.size_bytes {
            info = self.client.volume_resize(&self.name, begin.size_bytes).await?;
        }
        Ok(Open {
            volume: VolumeRef::from(&info),
            end: begin.size_bytes.next_multiple_of(BLOCK_SIZE),
            next: begin.from,
            there,
            batch: Vec::new(),
            batch_bytes: 0,
            since_note: 0,
        })
    }
}

impl Open {
    /// Whether what is told of `offset` is to be written.
    fn take(&mut self, offset: u64, len: u64) -> Result<bool, StoreError> {
        let end = offset + len;
        if offset < self.next || end > self.end {
            return Err(bad(format!("{len} bytes at {offset}, which is out of order or too far")));
        }
        self.next = end;
        Ok(end > self.there)
    }

    fn add(&mut self, change: Change, bytes: u64) {
        self.batch.push(change);
        self.batch_bytes += bytes;
    }

    /// Writes what is gathered.
    async fn write<L: Link>(&mut self, client: &Client<L>) -> Result<(), StoreError> {
        let volume = &self.volume;
        let changes =
            std::mem::take(&mut self.batch).into_iter().map(async |change| match change {
                Change::Write { offset, data } => {
                    client.volume_write(volume, offset, data, false).await
                }
                Change::Discard { offset, len } => client.volume_discard(volume, offset, len).await,
            });
        for done in futures::future::join_all(changes).await {
            done?;
        }
        self.since_note += std::mem::take(&mut self.batch_bytes);
        Ok(())
    }

    /// Notes how far it is; all of it is written.
    async fn note<L: Link>(&mut self, client: &Client<L>, name: &str) -> Result<(), StoreError> {
        if self.next > self.there {
            client.receive_note(name, self.next).await?;
            self.there = self.next;
        }
        self.since_note = 0;
        Ok(())
    }
}
