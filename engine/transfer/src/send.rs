//! The side that sends.

use std::collections::VecDeque;

use engine_base::BLOCK_SIZE;
use engine_store::StoreError;
use engine_store::api::{ChangedRange, Data, Link, SubvolumeInfo, SubvolumeKind};
use engine_store::client::{Client, VolumeRef};

use crate::format::{Begin, Encoder, Frame};
use crate::{BATCH_BYTES, FRAME_DATA_MAX, ResumeToken, content_of, find};

/// Tells a snapshot of a volume, or how it differs from an older or younger one, as a stream.
pub struct Sender<'c, L> {
    client: &'c Client<L>,
    snapshot: SubvolumeInfo,
    base: Option<SubvolumeInfo>,
    encoder: Encoder,
    /// Ranges that are still to be told, in order.
    ranges: VecDeque<ChangedRange>,
    /// Where to look for more; `None`: these are all.
    look_from: Option<u64>,
    /// Frames that are ready.
    ready: VecDeque<Vec<u8>>,
    has_ended: bool,
}

impl<'c, L: Link> Sender<'c, L> {
    /// A stream of `snapshot`; with `base`, of the difference.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` when one is no snapshot, or they are not of the same volume; `Unsupported` when
    /// it is of a file tree.
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
        if snapshot.kind == SubvolumeKind::FileTree {
            let what = "send of a file tree; a snapshot of a volume can be sent".to_owned();
            return Err(StoreError::Unsupported { what });
        }
        // Whether the two can be compared shows in the first answer.
        client.snapshot_diff(base.as_ref(), &snapshot, end_of(&snapshot)).await?;
        if base.as_ref().is_some_and(|base| content_of(base) == content_of(&snapshot)) {
            let why = format!("{:?} holds what its base holds: nothing to send", snapshot.name);
            return Err(StoreError::invalid(why));
        }
        let mut encoder = Encoder::default();
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
        let ready = VecDeque::from([encoder.frame(&Frame::Begin(begin))]);
        let (ranges, look_from) = (VecDeque::new(), Some(from));
        Ok(Self { client, snapshot, base, encoder, ranges, look_from, ready, has_ended: false })
    }

    /// The next bytes of the stream, some MiB at most; `None`: that was all.
    ///
    /// # Errors
    /// When the snapshot cannot be read; it may be deleted meanwhile.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Ok(Some(ready));
            }
            if self.has_ended {
                return Ok(None);
            }
            self.more().await?;
        }
    }

    /// Makes at least one frame, or learns of more ranges.
    async fn more(&mut self) -> Result<(), StoreError> {
        if self.ranges.is_empty() {
            let Some(from) = self.look_from else {
                self.ready.push_back(self.encoder.frame(&Frame::End));
                self.has_ended = true;
                return Ok(());
            };
            let base = self.base.as_ref();
            let (ranges, next) = self.client.snapshot_diff(base, &self.snapshot, from).await?;
            self.look_from = next;
            let end = end_of(&self.snapshot);
            let within = ranges.into_iter().filter_map(|range| {
                // Past the end of a snapshot that is smaller than its base there is nothing to tell.
                let to = (range.offset + range.len).min(end);
                let offset = range.offset.max(from);
                (offset < to).then(|| ChangedRange { offset, len: to - offset, ..range })
            });
            // Without a base all that is not told reads as zeroes.
            let wanted = within.filter(|range| range.has_data || base.is_some());
            self.ranges = wanted.collect();
            return Ok(());
        }
        self.read_some().await
    }

    /// Reads what one batch takes, in order.
    async fn read_some(&mut self) -> Result<(), StoreError> {
        let mut parts = Vec::new();
        let mut bytes = 0;
        while let Some(range) = self.ranges.front_mut()
            && bytes < BATCH_BYTES
        {
            let len = match range.has_data {
                true => range.len.min(FRAME_DATA_MAX as u64),
                false => range.len,
            };
            parts.push(ChangedRange { len, ..*range });
            bytes += if range.has_data { len } else { BLOCK_SIZE };
            range.offset += len;
            range.len -= len;
            if range.len == 0 {
                self.ranges.pop_front();
            }
        }
        let volume = VolumeRef::from(&self.snapshot);
        let reads = parts.iter().map(async |part| match part.has_data {
            true => self.client.volume_read(&volume, part.offset, part.len).await.map(Some),
            false => Ok(None),
        });
        let read = futures::future::join_all(reads).await;
        for (part, data) in parts.iter().zip(read) {
            let frame = match data? {
                Some(data) => self.encoder.data(part.offset, &pieces(&data)),
                None => self.encoder.frame(&Frame::Hole { offset: part.offset, len: part.len }),
            };
            self.ready.push_back(frame);
        }
        Ok(())
    }
}

fn pieces(data: &Data) -> Vec<&[u8]> {
    data.iter().map(|piece| &piece[..]).collect()
}

/// Where the blocks of a volume end.
fn end_of(info: &SubvolumeInfo) -> u64 {
    info.size_bytes.next_multiple_of(BLOCK_SIZE)
}
