//! The side that receives.

mod tree;
mod volume;

use engine_store::StoreError;
use engine_store::api::{Link, NewReceived, SubvolumeInfo, SubvolumeKind};
use engine_store::client::Client;

use crate::format::{Begin, Decoder, Frame, bad};
use crate::{ResumeToken, find};
use tree::TreeTarget;
use volume::VolumeTarget;

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
    Volume(VolumeTarget),
    /// The same of a file tree.
    Tree(Box<TreeTarget>),
    /// It is a snapshot.
    Ended(SubvolumeInfo),
}

/// How far what is received is durable, and noted so.
struct Progress {
    name: String,
    /// All before this is there already.
    there: u64,
    /// Bytes written since that was noted.
    since_note: u64,
    note_bytes: u64,
}

impl Progress {
    fn is_due(&self) -> bool {
        self.since_note >= self.note_bytes
    }

    /// Notes that all before `place` is written.
    async fn note<L: Link>(&mut self, client: &Client<L>, place: u64) -> Result<(), StoreError> {
        if place > self.there {
            client.receive_note(&self.name, place).await?;
            self.there = place;
        }
        self.since_note = 0;
        Ok(())
    }
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
        match &mut self.state {
            State::Volume(volume) => volume.cut_off(self.client).await?,
            State::Tree(tree) => tree.cut_off(self.client).await?,
            State::Waiting | State::Ended(_) => {}
        }
        match self.state {
            State::Ended(info) => Ok(info),
            State::Waiting => Err(bad("nothing of it came")),
            State::Volume(_) | State::Tree(_) => {
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
        match (frame, &mut self.state) {
            (Frame::Begin(begin), _) => self.state = self.begin(begin).await?,
            (Frame::End, State::Volume(volume)) => {
                volume.write(self.client).await?;
                self.state = State::Ended(self.client.receive_end(&self.name).await?);
            }
            (Frame::End, State::Tree(tree)) => {
                tree.end(self.client).await?;
                self.state = State::Ended(self.client.receive_end(&self.name).await?);
            }
            (frame, State::Volume(volume)) => volume.apply(self.client, frame).await?,
            (frame, State::Tree(tree)) => tree.apply(self.client, frame).await?,
            // The decoder lets nothing come before the beginning, nor after the end.
            (_, State::Waiting | State::Ended(_)) => return Err(bad("is out of order")),
        }
        Ok(())
    }

    /// Makes the subvolume, or finds it.
    async fn begin(&self, begin: Begin) -> Result<State, StoreError> {
        let base = match begin.base {
            None => None,
            Some(content) => Some((content, self.base(&begin, content).await?)),
        };
        let new = NewReceived {
            name: self.name.clone(),
            source: begin.source,
            base: base.as_ref().map(|(content, base)| (*content, base.name.clone())),
            kind: begin.kind,
            size_bytes: begin.size_bytes,
            block_size: begin.block_size,
            options: begin.options,
        };
        let info = self.client.receive_begin(new).await?;
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
        let (name, note_bytes) = (self.name.clone(), self.note_bytes);
        let progress = Progress { name, there, since_note: 0, note_bytes };
        match begin.kind {
            SubvolumeKind::Volume => {
                let target = VolumeTarget::open(self.client, info, &begin, progress).await?;
                Ok(State::Volume(target))
            }
            SubvolumeKind::FileTree => {
                let base = base.map(|(_, base)| base);
                let target = TreeTarget::open(self.client, &info, base, &begin, progress).await?;
                Ok(State::Tree(Box::new(target)))
            }
        }
    }

    /// A snapshot here that holds what the stream tells the difference to.
    async fn base(&self, begin: &Begin, content: [u8; 16]) -> Result<SubvolumeInfo, StoreError> {
        let there = self.client.subvolume_get(&self.name).await.ok();
        let there = there.filter(|there| there.receiving().is_some());
        let mut found = find(self.client, content).await?;
        if let Some(there) = there {
            // What it was cloned from, if that is still there: inodes have the same numbers in it.
            let of_it = found.iter().position(|base| base.root == there.root);
            return match (of_it, begin.kind) {
                (Some(at), _) => Ok(found.swap_remove(at)),
                // What is there of a volume does not need the base any more.
                (None, SubvolumeKind::Volume) => Ok(there),
                (None, SubvolumeKind::FileTree) => Err(no_base()),
            };
        }
        found.pop().ok_or_else(no_base)
    }
}

fn no_base() -> StoreError {
    StoreError::not_found(
        "the snapshot to which the stream tells the difference; receive that one first, or send all of it (without a \
         base)",
    )
}
