//! What two snapshots of a volume, or of a file in a tree, do not share, and what the younger one holds there.

use std::collections::VecDeque;

use engine_base::{BLOCK_SIZE, InodeNumber};
use engine_store::StoreError;
use engine_store::api::{ChangedRange, Data, Link, TreeRef};
use engine_store::client::VolumeRef;

use super::{Compared, Out, end_of};
use crate::format::Frame;
use crate::{BATCH_BYTES, FRAME_DATA_MAX};

/// Tells ranges, in order.
pub(super) struct Ranges<'c, L> {
    compared: Compared<'c, L>,
    /// `None`: of the volume.
    file: Option<InodeNumber>,
    /// Where its blocks end.
    end: u64,
    /// All before is left out.
    from: u64,
    /// Ranges that are still to be told, in order.
    ranges: VecDeque<ChangedRange>,
    /// Where to look for more; `None`: these are all.
    look_from: Option<u64>,
}

impl<'c, L: Link> Ranges<'c, L> {
    pub(super) fn of_volume(compared: Compared<'c, L>, from: u64) -> Self {
        let end = end_of(compared.snapshot.size_bytes);
        let (ranges, look_from) = (VecDeque::new(), Some(from));
        Self { compared, file: None, end, from, ranges, look_from }
    }

    /// Of a file of `size` bytes; without a base in `compared` all of it.
    pub(super) fn of_file(compared: Compared<'c, L>, file: InodeNumber, size: u64) -> Self {
        let (ranges, look_from) = (VecDeque::new(), Some(0));
        Self { compared, file: Some(file), end: end_of(size), from: 0, ranges, look_from }
    }

    /// # Errors
    /// When the two cannot be compared.
    pub(super) async fn probe(&self) -> Result<(), StoreError> {
        self.look(self.end).await.map(drop)
    }

    async fn look(&self, from: u64) -> Result<(Vec<ChangedRange>, Option<u64>), StoreError> {
        let Compared { client, snapshot, base } = &self.compared;
        match self.file {
            None => client.snapshot_diff(base.as_ref(), snapshot, from).await,
            Some(file) => client.file_diff(base.as_ref(), snapshot, file, (from, self.end)).await,
        }
    }

    /// Makes some frames, or learns of more ranges; `false`: all was told.
    pub(super) async fn more(&mut self, out: &mut Out) -> Result<bool, StoreError> {
        if !self.ranges.is_empty() {
            self.read_some(out).await?;
            return Ok(true);
        }
        let Some(from) = self.look_from.filter(|from| *from < self.end) else { return Ok(false) };
        let (ranges, next) = self.look(from).await?;
        self.look_from = next;
        let (end, first) = (self.end, self.from.max(from));
        let within = ranges.into_iter().filter_map(|range| {
            // Past the end of a snapshot that is smaller than its base there is nothing to tell.
            let to = (range.offset + range.len).min(end);
            let offset = range.offset.max(first);
            (offset < to).then(|| ChangedRange { offset, len: to - offset, ..range })
        });
        // Without a base all that is not told reads as zeroes.
        let has_base = self.compared.base.is_some();
        self.ranges = within.filter(|range| range.has_data || has_base).collect();
        Ok(true)
    }

    /// Reads what one batch takes, in order.
    async fn read_some(&mut self, out: &mut Out) -> Result<(), StoreError> {
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
        let reads = parts.iter().map(async |part| match part.has_data {
            true => self.read(part.offset, part.len).await.map(Some),
            false => Ok(None),
        });
        let read = futures::future::join_all(reads).await;
        for (part, data) in parts.iter().zip(read) {
            match data? {
                Some(data) => {
                    let pieces: Vec<&[u8]> = data.iter().map(|piece| &piece[..]).collect();
                    out.frames.push_back(out.encoder.data(part.offset, &pieces));
                }
                None => out.push(&Frame::Hole { offset: part.offset, len: part.len }),
            }
        }
        Ok(())
    }

    async fn read(&self, offset: u64, len: u64) -> Result<Data, StoreError> {
        let Compared { client, snapshot, .. } = &self.compared;
        match self.file {
            None => client.volume_read(&VolumeRef::from(snapshot), offset, len).await,
            Some(file) => client.file_read(TreeRef::from(snapshot), file, offset, len as u32).await,
        }
    }
}
