//! The side that sends.

mod ranges;
mod tree;

pub(crate) use tree::PASS_BIT;

use std::collections::VecDeque;

use engine_base::BLOCK_SIZE;
use engine_store::StoreError;
use engine_store::api::{Link, SubvolumeInfo, SubvolumeKind, TreeDiffCursor};
use engine_store::client::Client;

use crate::format::{Begin, Encoder, Frame};
use crate::{ResumeToken, content_of, find};
use ranges::Ranges;
use tree::TreeSource;

/// Tells a snapshot, or how it differs from an older or younger one, as a stream.
pub struct Sender<'c, L> {
    source: Source<'c, L>,
    out: Out,
    has_ended: bool,
}

/// What is told.
enum Source<'c, L> {
    Volume(Box<Ranges<'c, L>>),
    Tree(Box<TreeSource<'c, L>>),
}

/// What is ready to be sent.
#[derive(Default)]
struct Out {
    encoder: Encoder,
    frames: VecDeque<Vec<u8>>,
}

impl Out {
    fn push(&mut self, frame: &Frame) {
        let bytes = self.encoder.frame(frame);
        self.frames.push_back(bytes);
    }
}

/// Two snapshots of one subvolume, or one and nothing.
struct Compared<'c, L> {
    client: &'c Client<L>,
    snapshot: SubvolumeInfo,
    base: Option<SubvolumeInfo>,
}

impl<L> Clone for Compared<'_, L> {
    fn clone(&self) -> Self {
        let (snapshot, base) = (self.snapshot.clone(), self.base.clone());
        Self { client: self.client, snapshot, base }
    }
}

impl<'c, L: Link> Sender<'c, L> {
    /// A stream of `snapshot`; with `base`, of the difference.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` when one is no snapshot, or they are not of the same volume or tree.
    pub async fn start(
        client: &'c Client<L>,
        snapshot: &str,
        base: Option<&str>,
    ) -> Result<Self, StoreError> {
        let snapshot = client.subvolume_get(snapshot).await?;
        let base = match base {
            Some(name) => Some(client.subvolume_get(name).await?),
            None => None,
        };
        Self::new(client, snapshot, base, 0).await
    }

    /// The rest of a stream that was cut off.
    ///
    /// # Errors
    /// `NotFound` when a snapshot of it is not there any more; else as [`Sender::start`].
    pub async fn resume(client: &'c Client<L>, token: ResumeToken) -> Result<Self, StoreError> {
        let gone = |which: &str| {
            let what = format!("{which} that the resume token names; send anew from another");
            StoreError::not_found(what)
        };
        let mut snapshots = find(client, token.source).await?;
        let Some(base) = token.base else {
            let snapshot = snapshots.pop().ok_or_else(|| gone("the snapshot"))?;
            return Self::new(client, snapshot, None, token.position).await;
        };
        let bases = find(client, base).await?;
        // Each may be there several times, sent here from elsewhere: two of one volume are wanted.
        let base_of = |of: &SubvolumeInfo| bases.iter().find(|base| base.root == of.root).cloned();
        let pair = snapshots.into_iter().find_map(|one| Some((base_of(&one)?, one)));
        let (base, snapshot) = pair.ok_or_else(|| gone("the snapshot, or the base"))?;
        Self::new(client, snapshot, Some(base), token.position).await
    }

    async fn new(
        client: &'c Client<L>,
        snapshot: SubvolumeInfo,
        base: Option<SubvolumeInfo>,
        from: u64,
    ) -> Result<Self, StoreError> {
        if base.as_ref().is_some_and(|base| content_of(base) == content_of(&snapshot)) {
            let why = format!("{:?} holds what its base holds: nothing to send", snapshot.name);
            return Err(StoreError::invalid(why));
        }
        let begin = Begin {
            name: snapshot.name.clone(),
            kind: snapshot.kind,
            source: content_of(&snapshot),
            base: base.as_ref().map(content_of),
            size_bytes: snapshot.size_bytes,
            block_size: snapshot.block_size,
            options: snapshot.options,
            from,
            created_ns: snapshot.created_ns,
        };
        let kind = snapshot.kind;
        let compared = Compared { client, snapshot, base };
        let source = match kind {
            SubvolumeKind::Volume => {
                let ranges = Ranges::of_volume(compared, from);
                // Whether the two can be compared shows in an answer.
                ranges.probe().await?;
                Source::Volume(Box::new(ranges))
            }
            SubvolumeKind::FileTree => {
                let (base, snapshot) = (compared.base.as_ref(), &compared.snapshot);
                client.tree_diff(base, snapshot, TreeDiffCursor::default()).await?;
                Source::Tree(Box::new(TreeSource::new(compared, from)))
            }
        };
        let mut out = Out::default();
        out.push(&Frame::Begin(begin));
        Ok(Self { source, out, has_ended: false })
    }

    /// The next bytes of the stream, some MiB at most; `None`: that was all.
    ///
    /// # Errors
    /// When the snapshot cannot be read; it may be deleted meanwhile.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        loop {
            if let Some(ready) = self.out.frames.pop_front() {
                return Ok(Some(ready));
            }
            if self.has_ended {
                return Ok(None);
            }
            let goes_on = match &mut self.source {
                Source::Volume(ranges) => ranges.more(&mut self.out).await?,
                Source::Tree(tree) => tree.more(&mut self.out).await?,
            };
            if !goes_on {
                self.out.push(&Frame::End);
                self.has_ended = true;
            }
        }
    }
}

/// Where the blocks of a volume or a file of that size end.
fn end_of(size_bytes: u64) -> u64 {
    size_bytes.next_multiple_of(BLOCK_SIZE)
}
