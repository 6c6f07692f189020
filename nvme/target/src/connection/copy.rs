//! Copy (NVM 1.0, section 3.2.2): how much one may ask for, and its source ranges.
//!
//! The ranges are copied in their order, one behind the other to the destination. A source range that
//! overlaps the destination, wherever it goes there, is refused with Invalid Field: the backend copies
//! by reference, and promises nothing of a source that changes under it.

use crate::limits::COPY_BYTES_MAX;
use nvme_spec::command::CopyRange;
use nvme_spec::{LbaRange, Status};
use smallvec::SmallVec;
use zerocopy::FromBytes;

/// How much one Copy may ask for, in logical blocks; Identify Namespace tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct CopyLimits {
    /// MSSRL: logical blocks of one source range.
    pub(super) range_blocks_max: u16,
    /// MCL: logical blocks of all source ranges.
    pub(super) blocks_max: u32,
}

impl CopyLimits {
    /// The limits for blocks of this size.
    pub(super) fn new(block_size_log2: u8) -> Self {
        let blocks_max = COPY_BYTES_MAX >> block_size_log2;
        let range_blocks_max = u16::try_from(blocks_max).unwrap_or(u16::MAX);
        Self { range_blocks_max, blocks_max }
    }
}

/// The source ranges that `descriptors` name, and the logical blocks of all. They are within the
/// limits and the namespace of `size_blocks`; so is the destination, which none of them overlaps.
pub(super) fn copy_sources(
    descriptors: &[u8],
    destination: u64,
    size_blocks: u64,
    limits: CopyLimits,
) -> Result<(SmallVec<[LbaRange; 4]>, u32), Status> {
    let mut sources = SmallVec::<[LbaRange; 4]>::new();
    let mut blocks = 0;
    for raw in descriptors.chunks_exact(size_of::<CopyRange>()) {
        let source = CopyRange::read_from_bytes(raw).expect("chunks have its size").range();
        // Both are checked for each range, so the sum cannot overflow.
        blocks += source.blocks;
        if source.blocks > u32::from(limits.range_blocks_max) || blocks > limits.blocks_max {
            return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED);
        }
        source.check_within(size_blocks)?;
        sources.push(source);
    }
    let end = LbaRange { first: destination, blocks }.check_within(size_blocks)?;
    // All ends lie within the namespace, as was just checked.
    let overlaps = |source: &LbaRange| {
        source.first < end && destination < source.first + u64::from(source.blocks)
    };
    if sources.iter().any(overlaps) {
        return Err(Status::INVALID_FIELD);
    }
    Ok((sources, blocks))
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    const LIMITS: CopyLimits = CopyLimits { range_blocks_max: 8, blocks_max: 12 };

    /// Of ranges `(first, blocks)` in a namespace of 100 blocks.
    fn sources(ranges: &[(u64, u16)], destination: u64) -> Result<u32, Status> {
        let mut bytes = Vec::new();
        for &(first, blocks) in ranges {
            let mut range = CopyRange::zeroed();
            range.first = first.into();
            range.blocks = (blocks - 1).into();
            bytes.extend_from_slice(range.as_bytes());
        }
        let (sources, blocks) = copy_sources(&bytes, destination, 100, LIMITS)?;
        let named = sources.iter().map(|source| (source.first, source.blocks as u16));
        assert!(named.eq(ranges.iter().copied()));
        Ok(blocks)
    }

    #[test]
    fn limits_follow_the_block_size() {
        let limits = CopyLimits { range_blocks_max: 16384, blocks_max: 16384 };
        assert_eq!(CopyLimits::new(12), limits);
        let limits = CopyLimits { range_blocks_max: 65535, blocks_max: 131_072 };
        assert_eq!(CopyLimits::new(9), limits);
    }

    #[test]
    fn sources_at_their_limits() {
        assert_eq!(sources(&[(0, 8), (8, 4)], 88), Ok(12));
        // The same twice, and such that touch the destination on either side.
        assert_eq!(sources(&[(2, 4), (2, 4)], 20), Ok(8));
        assert_eq!(sources(&[(4, 6), (22, 6)], 10), Ok(12));
    }

    #[test]
    fn sources_beyond_them() {
        type Case = (&'static [(u64, u16)], u64, Status);
        let cases: [Case; 9] = [
            (&[(0, 9)], 50, Status::COMMAND_SIZE_LIMIT_EXCEEDED),
            (&[(0, 8), (8, 5)], 50, Status::COMMAND_SIZE_LIMIT_EXCEEDED),
            (&[(0, 8), (93, 8)], 50, Status::COMMAND_SIZE_LIMIT_EXCEEDED),
            (&[(0, 1), (97, 4)], 50, Status::LBA_OUT_OF_RANGE),
            (&[(u64::MAX, 2)], 50, Status::LBA_OUT_OF_RANGE),
            (&[(0, 4), (4, 4)], 93, Status::LBA_OUT_OF_RANGE),
            (&[(0, 4)], u64::MAX, Status::LBA_OUT_OF_RANGE),
            // What is copied later goes where an earlier range is read from, and the reverse.
            (&[(16, 2), (0, 8)], 10, Status::INVALID_FIELD),
            (&[(0, 8), (9, 2)], 10, Status::INVALID_FIELD),
        ];
        for (ranges, destination, status) in cases {
            assert_eq!(sources(ranges, destination), Err(status), "{ranges:?} to {destination}");
        }
    }
}
