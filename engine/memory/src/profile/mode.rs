//! Whether allocations are counted: on, off, or never again in this process.

use std::sync::atomic::{AtomicU8, Ordering};

/// Whether new allocations are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every allocation is charged to its site.
    On,
    /// New allocations are charged to nobody; what was charged is still given back when it is freed,
    /// so switching on again shows no wrong figure, only fewer allocations.
    Off,
    /// As `Off`, until the process ends: it cannot be switched on again.
    Never,
}

/// Counting was ruled out for the life of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("allocation profiling is set to `never`, which holds until the process ends")]
pub struct NeverMode;

/// Read with each allocation. Nothing else is published through it, so Relaxed is enough: a thread
/// may count a moment longer, and what it counts is consistent in itself.
static MODE: AtomicU8 = AtomicU8::new(Mode::On as u8);

/// The mode in force.
#[must_use]
pub fn mode() -> Mode {
    match MODE.load(Ordering::Relaxed) {
        0 => Mode::On,
        1 => Mode::Off,
        _ => Mode::Never,
    }
}

/// Changes the mode for all threads.
///
/// # Errors
/// When it is [`Mode::Never`] already and another one is asked for.
pub fn set_mode(mode: Mode) -> Result<(), NeverMode> {
    let change = |now| (now != Mode::Never as u8 || mode == Mode::Never).then_some(mode as u8);
    MODE.try_update(Ordering::Relaxed, Ordering::Relaxed, change).map(drop).map_err(|_| NeverMode)
}

/// Whether allocations are charged.
#[inline]
pub(crate) fn charges() -> bool {
    MODE.load(Ordering::Relaxed) == Mode::On as u8
}

const _: () = assert!(Mode::On as u8 == 0 && Mode::Off as u8 == 1);
