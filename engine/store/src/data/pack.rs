//! What is put on devices in place of blocks: frames, where that saves any ([`crate::codec`]).

use engine_base::BLOCK_SIZE;
use engine_memory::{Buffer, Slice};
use smallvec::SmallVec;

use super::map::BlockRange;
use super::write::{Checksums, block_checksums};
use crate::api::{Data, SubvolumeOptions, data_len};
use crate::client::cut;
use crate::codec::{Algorithm, Compression};
use crate::engine::Engine;
use crate::error::{Result, StoreError};
use crate::extent::{Extent, FramePart};
use crate::reached::{Branch, mark};

/// Blocks that lie in one piece: the first, counted in what is placed, and their number.
pub(crate) type Whole = (u64, u32);

/// A frame among blocks that are to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Its first block among those that were given, and their number.
    pub(crate) from: u64,
    pub(crate) blocks: u32,
    /// The same of what is stored.
    pub(crate) disk_from: u64,
    pub(crate) disk_blocks: u32,
    pub(crate) algorithm: Algorithm,
}

/// Frames in order; between them blocks are stored as they are.
pub(crate) type Frames = SmallVec<[Frame; 1]>;

/// Blocks as they are to be stored.
pub(crate) struct Stored {
    pub(crate) data: Data,
    /// Of each block of `data`.
    pub(crate) checksums: Checksums,
    pub(crate) frames: Frames,
}

impl Frame {
    /// The frame, so many blocks later.
    pub(crate) fn after(self, blocks: u64, disk_blocks: u64) -> Self {
        Self { from: self.from + blocks, disk_from: self.disk_from + disk_blocks, ..self }
    }

    /// What must not be placed in pieces.
    pub(crate) fn whole(&self) -> Whole {
        (self.disk_from, self.disk_blocks)
    }

    /// What an extent of all its blocks says of it.
    pub(crate) fn part(&self) -> FramePart {
        FramePart { algorithm: self.algorithm, blocks: self.blocks, offset: 0 }
    }
}

/// How many of `blocks` blocks, the first of which is number `done`, can be placed without a frame in two pieces.
pub(crate) fn fitting(wholes: &[Whole], done: u64, blocks: u32) -> u32 {
    let end = done + u64::from(blocks);
    let cut = wholes.iter().find(|(from, len)| *from < end && end < from + u64::from(*len));
    cut.map_or(blocks, |(from, _)| from.saturating_sub(done) as u32)
}

impl Engine {
    /// What is to be stored for the blocks of a range, as the options of its subvolume say. Memory that is refused
    /// leaves blocks as they are.
    pub(crate) async fn pack(&self, range: &BlockRange, data: Data) -> Stored {
        match self.versions.write_options(range.snapshot) {
            Some(options) if range.to - range.from > 1 => self.pack_as(range, data, options).await,
            _ => {
                let checksums = block_checksums(&data);
                Stored { data, checksums, frames: Frames::new() }
            }
        }
    }

    /// Cut at multiples of a frame's blocks in the inode, so that what is written again replaces whole frames.
    async fn pack_as(&self, range: &BlockRange, data: Data, options: SubvolumeOptions) -> Stored {
        // Of more blocks than may be on disk only what shrinks a lot would be kept as a frame.
        let most = u64::from(self.space.frame_blocks_max()) + 1;
        let per_frame = options.frame_blocks().min(most.next_power_of_two());
        let (mut stored, mut frames, mut disk_from) = (Data::new(), Frames::new(), 0);
        let mut at = range.from;
        while at < range.to {
            let end = range.to.min((at / per_frame + 1) * per_frame);
            let (from, blocks) = (at - range.from, (end - at) as u32);
            let (start, len) = (from * BLOCK_SIZE, (end - at) * BLOCK_SIZE);
            let piece = cut(&data, start as usize, len as usize);
            match self.compress(&piece, options.compression) {
                Some((frame, algorithm)) => {
                    let disk_blocks = (frame.len() as u64 / BLOCK_SIZE) as u32;
                    frames.push(Frame { from, blocks, disk_from, disk_blocks, algorithm });
                    disk_from += u64::from(disk_blocks);
                    stored.push(frame);
                }
                None => {
                    disk_from += u64::from(blocks);
                    stored.extend(piece);
                }
            }
            if blocks > 1 && end < range.to {
                // Compression takes its time: others have their turn between two frames.
                self.runtime().yield_now().await;
            }
            at = end;
        }
        let checksums = block_checksums(&stored);
        Stored { data: stored, checksums, frames }
    }

    /// A frame of these blocks, if that saves any.
    pub(crate) fn compress(
        &self,
        data: &Data,
        compression: Compression,
    ) -> Option<(Slice, Algorithm)> {
        let algorithm = compression.algorithm()?;
        let len = data_len(data) as usize;
        let blocks = (len as u64 / BLOCK_SIZE) as u32;
        if blocks < 2 {
            return None;
        }
        // A frame lies in one bucket, whose end stays unused when the next does not fit.
        let most = u64::from((blocks - 1).min(self.space.frame_blocks_max())) * BLOCK_SIZE;
        let mut output = Buffer::try_new_dirty(most as usize).ok()?;
        let stored = match data.as_slice() {
            [input] => self.codec.encode(compression, input, &mut output)?,
            pieces => {
                let mut input = Buffer::try_new_dirty(len).ok()?;
                let mut at = 0;
                for piece in pieces {
                    input[at..at + piece.len()].copy_from_slice(piece);
                    at += piece.len();
                }
                self.codec.encode(compression, &input, &mut output)?
            }
        };
        output.truncate(stored * BLOCK_SIZE as usize);
        mark(Branch::FrameStored);
        Some((output.freeze(), algorithm))
    }

    /// The blocks of an extent in what is on disk for it, which verified.
    ///
    /// # Errors
    /// `DataLoss` when it cannot be decoded; `OutOfMemory`.
    pub(crate) fn decoded(&self, extent: &Extent, disk: Slice) -> Result<Slice> {
        let Some(frame) = extent.frame else { return Ok(disk) };
        let mut output = Buffer::try_new_dirty(frame.blocks as usize * BLOCK_SIZE as usize)?;
        self.codec.decode(frame.algorithm, &disk, &mut output).map_err(|error| {
            let pointer = extent.pointers.first();
            StoreError::DataLoss { what: format!("{error}, at {pointer:?}") }
        })?;
        let block = BLOCK_SIZE as usize;
        let start = frame.offset as usize * block;
        mark(Branch::FrameDecoded);
        Ok(output.freeze().slice(start..start + extent.blocks as usize * block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_frame_is_placed_in_two_pieces() {
        let wholes = [(2, 3), (5, 1), (10, 7)];
        let fits = |done, blocks| fitting(&wholes, done, blocks);
        assert_eq!((fits(0, 1), fits(0, 2), fits(0, 3), fits(0, 4), fits(0, 5)), (1, 2, 2, 2, 5));
        assert_eq!((fits(2, 2), fits(2, 3), fits(5, 1), fits(6, 4)), (0, 3, 1, 4));
        assert_eq!((fits(6, 5), fits(10, 6), fits(10, 7), fits(10, 100)), (4, 0, 7, 100));
        assert_eq!(fitting(&[], 5, 9), 9);
    }
}
