//! Copies by reference, as far as they can be: what lies on one shard and is to lie there again is shared; the rest is
//! read and written.

use engine_base::BLOCK_SIZE;
use engine_base::ids::CHUNK_SIZE_LOG2;

use super::{Client, VolumeRef, answer};
use crate::api::{
    COPY_BYTES_MAX, CopyMode, CopyStats, DATA_BYTES_MAX, DataPlace, FilePlace, Link, Reply,
    Request, Whose, data_len,
};
use crate::error::{Result, StoreError};

impl<L: Link> Client<L> {
    /// Lets a range of a volume hold what a range of the same or another one holds, by reference where both are on one
    /// shard; all multiples of 4096. Ranges of one volume do not overlap. Each block of the target holds what it did or
    /// what the source did at some moment meanwhile, also when it fails.
    ///
    /// # Errors
    /// Those of the shards.
    pub async fn volume_copy(
        &self,
        (source, from): (&VolumeRef, u64),
        (target, to): (&VolumeRef, u64),
        len: u64,
    ) -> Result<CopyStats> {
        let same = source.subvolume == target.subvolume;
        if same && from < to.saturating_add(len) && to < from.saturating_add(len) {
            return Err(StoreError::invalid("a copy within a volume: the ranges overlap"));
        }
        let place = |volume: &VolumeRef, offset| DataPlace {
            inode: volume.inode,
            of: Whose::Subvolume(volume.subvolume),
            offset,
        };
        let mut stats = CopyStats::default();
        for (from, to, len) in copy_parts(from, to, len, u64::MAX) {
            let shard = self.data_shard(target, to);
            if self.data_shard(source, from) == shard {
                let (source, target) = (place(source, from), place(target, to));
                let request = Request::DataCopy { source, target, len };
                stats = stats.with(answer!(self.link.call(shard, request), Copied)?);
                continue;
            }
            for (from, to, len) in copy_parts(from, to, len, DATA_BYTES_MAX) {
                let data = self.volume_read(source, from, len).await?;
                self.volume_write(target, to, data, false).await?;
                stats.copied_bytes += len;
            }
        }
        Ok(stats)
    }

    /// Whether blocks from one place on can be had by reference from another place on: both have the same home,
    /// are multiples of 4096, and lie in chunks of the same shard.
    #[must_use]
    pub fn can_share(&self, source: FilePlace, target: FilePlace) -> bool {
        let stripe = u64::from(self.link.shard_count()) << CHUNK_SIZE_LOG2;
        self.home(source.tree) == self.home(target.tree)
            && source.offset.is_multiple_of(BLOCK_SIZE)
            && source.offset.abs_diff(target.offset).is_multiple_of(stripe)
    }

    /// Lets a range of a file be what the same or another file has there, up to that one's end; as far as can be by
    /// reference: see [`Request::FileCopy`]. What is told is how much it was.
    ///
    /// # Errors
    /// Those of the shards. Some of it may have been copied then.
    pub async fn file_copy(
        &self,
        mut source: FilePlace,
        mut target: FilePlace,
        mut len: u64,
        mode: CopyMode,
    ) -> Result<CopyStats> {
        let mut stats = CopyStats::default();
        let same = (source.tree, source.inode) == (target.tree, target.inode);
        let ends = |at: u64| at.saturating_add(len);
        if same && source.offset < ends(target.offset) && target.offset < ends(source.offset) {
            return Err(StoreError::invalid("a copy within a file: the ranges overlap"));
        }
        let alike = mode != CopyMode::Never
            && source.offset % BLOCK_SIZE == target.offset % BLOCK_SIZE
            && self.home(source.tree) == self.home(target.tree);
        if mode == CopyMode::Always && !self.can_share(source, target) {
            return Err(StoreError::invalid("these blocks cannot be had by reference"));
        }
        while len > 0 {
            let within = source.offset % BLOCK_SIZE;
            let asked;
            let part = if alike && within == 0 {
                let part = len.min(COPY_BYTES_MAX);
                asked = part;
                let request = Request::FileCopy { source, target, len: part };
                answer!(self.link.call(self.home(target.tree), request), Copied)?
            } else {
                // Up to where blocks are alike.
                let most = if alike { BLOCK_SIZE - within } else { DATA_BYTES_MAX };
                let part = len.min(most) as u32;
                asked = u64::from(part);
                let data = self.file_read(source.tree, source.inode, source.offset, part).await?;
                let copied_bytes = data_len(&data);
                if copied_bytes > 0 {
                    self.file_write(target.tree, target.inode, target.offset, data).await?;
                }
                CopyStats { shared_bytes: 0, copied_bytes }
            };
            let done = part.shared_bytes + part.copied_bytes;
            stats = stats.with(part);
            // The end was seen; within one file it may have moved on by now.
            if done < asked {
                break;
            }
            source.offset += done;
            target.offset += done;
            len -= done;
        }
        Ok(stats)
    }
}

/// The parts of a copy from one offset to another of which each end lies in one chunk, `most` bytes at most: from, to,
/// length.
pub(crate) fn copy_parts(
    from: u64,
    to: u64,
    len: u64,
    most: u64,
) -> impl Iterator<Item = (u64, u64, u64)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done >= len {
            return None;
        }
        let rest_of_chunk = |offset: u64| (1 << CHUNK_SIZE_LOG2) - offset % (1 << CHUNK_SIZE_LOG2);
        let (source, target) = (from + done, to + done);
        let part = rest_of_chunk(source).min(rest_of_chunk(target)).min(len - done).min(most);
        done += part;
        Some((source, target, part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_end_where_a_chunk_of_either_does() {
        const CHUNK: u64 = 1 << CHUNK_SIZE_LOG2;
        let parts: Vec<_> = copy_parts(4096, CHUNK - 8192, CHUNK + 4096, u64::MAX).collect();
        let expected = [
            (4096, CHUNK - 8192, 8192),
            (12288, CHUNK, CHUNK - 12288),
            (CHUNK, 2 * CHUNK - 12288, 8192),
        ];
        assert_eq!(parts, expected);
        assert_eq!(copy_parts(0, CHUNK, 3 * CHUNK, CHUNK / 2).count(), 6);
        assert_eq!(copy_parts(5, 9, 0, 1).count(), 0);
    }
}
