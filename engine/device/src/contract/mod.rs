//! The contract of [`BlockDevice`] and [`DeviceQueue`] as a test, one for all devices.
//!
//! [`check`] overwrites the device. It panics where the contract is broken, with the seed in the
//! message; the same seed repeats the same operations (not the device's timing). It waits for
//! operations as a core does: poll, then arm and sleep on the wake descriptor, so a lost wake-up
//! shows as a time-out.
//!
//! What it cannot see is whether data survives a power loss: that is for tests with a device whose
//! cache they control; [`crate::FaultyDevice`] can lose its flushes.

mod descriptor;
mod drive;
mod random;
mod rules;

use crate::BlockDevice;

pub use drive::{Drive, block_on};

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Seed of everything random.
    pub seed: u64,
    /// Rounds of random operations; a round is up to some dozens of them.
    pub rounds: u32,
}

impl Default for Plan {
    fn default() -> Self {
        Self { seed: 1, rounds: 200 }
    }
}

/// Bytes of the device that are used; it must be at least [`DEVICE_BYTES_MIN`] long.
const AREA_BYTES_MAX: u64 = 8 << 20;

/// The shortest device that can be checked, in bytes.
pub const DEVICE_BYTES_MIN: u64 = 1 << 20;

/// Checks that a device keeps the contract. Its content is lost.
///
/// # Panics
/// Where the contract is broken.
pub fn check(device: &dyn BlockDevice, plan: Plan) {
    let info = device.info().clone();
    let context = Context {
        device,
        seed: plan.seed,
        block: u64::from(info.block_size),
        area: info.size_bytes.min(AREA_BYTES_MAX),
    };
    rules::geometry(&context);
    rules::invalid_operations_change_nothing(&context);
    rules::empty_operations_succeed(&context);
    rules::vectored_writes_are_in_order(&context);
    rules::more_than_the_depth_waits(&context);
    rules::overlapping_writes_leave_one_of_them_in_each_block(&context);
    rules::queues_see_each_others_writes(&context);
    rules::flush_and_fua_answer(&context);
    rules::discard_and_zeroes(&context);
    rules::sleep_is_ended_by_a_completion(&context);
    rules::dropping_a_queue_answers_gone(&context);
    random::operations_agree_with_a_model(&context, plan.rounds);
}

/// What every rule needs.
struct Context<'a> {
    device: &'a dyn BlockDevice,
    seed: u64,
    /// Bytes of a block.
    block: u64,
    /// Bytes of the device that may be used.
    area: u64,
}

impl Context<'_> {
    fn open(&self, depth: u32) -> Drive {
        match self.device.open_queue(depth) {
            Ok(queue) => Drive::new(queue, self.seed),
            Err(error) => panic!("seed {}: a queue of depth {depth}: {error}", self.seed),
        }
    }
}
