//! Units of size and position. A *block* is the engine's unit of allocation and checksumming.

/// Bytes in a kibibyte.
pub const KIB: u64 = 1024;
/// Bytes in a mebibyte.
pub const MIB: u64 = 1024 * KIB;
/// Bytes in a gibibyte.
pub const GIB: u64 = 1024 * MIB;

/// Bytes in one engine block: the unit of allocation, of checksums and of torn-write safety.
/// 4096 is the page size of the hosts we run on and the physical block of the devices we serve.
pub const BLOCK_SIZE: u64 = 1 << BLOCK_SIZE_LOG2;
/// Binary logarithm of [`BLOCK_SIZE`].
pub const BLOCK_SIZE_LOG2: u32 = 12;

/// Blocks needed to hold `bytes`, rounded up.
#[must_use]
pub const fn blocks_of_bytes_ceil(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_SIZE)
}

/// `value` rounded down to a multiple of `unit`, which must be a power of two.
#[must_use]
pub const fn align_down(value: u64, unit: u64) -> u64 {
    assert!(unit.is_power_of_two());
    value & !(unit - 1)
}

/// `value` rounded up to a multiple of `unit`, which must be a power of two.
///
/// # Panics
/// When the result does not fit 64 bits; sizes from outside are bounded before they come here.
#[must_use]
pub const fn align_up(value: u64, unit: u64) -> u64 {
    assert!(unit.is_power_of_two());
    align_down(value + (unit - 1), unit)
}

/// Whether `value` is a multiple of `unit`, which must be a power of two.
#[must_use]
pub const fn is_aligned(value: u64, unit: u64) -> bool {
    assert!(unit.is_power_of_two());
    value & (unit - 1) == 0
}
