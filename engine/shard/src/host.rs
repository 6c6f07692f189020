//! What a reactor runs on: a bare pinned thread, or an executor of glommio's (feature `glommio`).
//!
//! A host gives a core a thread in its place and calls it step by step until it ends. It never parks
//! for the core, which blocks by itself when idle. docs/decisions/0002-reactor-host.md compares the two.

use std::io;
use std::thread::JoinHandle;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

#[cfg(feature = "glommio")]
pub use crate::host_glommio::GlommioHost;

/// Where a core's thread runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// On this CPU only.
    Pinned {
        /// The CPU.
        cpu: usize,
    },
    /// Wherever the kernel puts it, because nobody asked for more or because pinning was refused.
    Floating {
        /// Why it is not pinned, if it should be.
        refused: Option<String>,
    },
}

/// The work of one core, on its thread.
pub trait Driven {
    /// One turn and, if idle, one rest. False: the core has ended, and this is not called again.
    fn step(&mut self) -> bool;
}

/// Makes the work of a core, on the core's thread, which need not be `Send` from then on.
pub type BuildDriven = Box<dyn FnOnce(Placement) -> Option<Box<dyn Driven>> + Send>;

/// Gives cores their threads.
pub trait Host: Send + Sync {
    /// Name for people.
    fn name(&self) -> &'static str;

    /// Starts a thread named `thread`, pins it to `cpu` if given, and drives what `build` makes there
    /// until it ends (`None` from `build`: at once). That pinning is refused is no error.
    ///
    /// # Errors
    /// What keeps the host from running at all, in words for people.
    fn start(
        &self,
        thread: String,
        cpu: Option<usize>,
        build: BuildDriven,
    ) -> Result<JoinHandle<()>, String>;
}

/// A thread of the standard library, pinned with sched_setaffinity(2).
#[derive(Clone, Copy, Debug, Default)]
pub struct ThreadHost;

impl Host for ThreadHost {
    fn name(&self) -> &'static str {
        "thread"
    }

    fn start(
        &self,
        thread: String,
        cpu: Option<usize>,
        build: BuildDriven,
    ) -> Result<JoinHandle<()>, String> {
        std::thread::Builder::new()
            .name(thread)
            .spawn(move || {
                let placement = place(cpu);
                let Some(mut driven) = build(placement) else { return };
                while driven.step() {}
            })
            .map_err(|error| format!("cannot start a thread: {error}"))
    }
}

/// Pins the calling thread, if it may be pinned, and makes its timers exact.
pub(crate) fn place(cpu: Option<usize>) -> Placement {
    // By default the kernel may be 50 us late. A refusal costs precision only.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
    let Some(cpu) = cpu else { return Placement::Floating { refused: None } };
    match pin(cpu) {
        Ok(()) => Placement::Pinned { cpu },
        Err(error) => Placement::Floating { refused: Some(format!("CPU {cpu}: {error}")) },
    }
}

fn pin(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        let text = format!("numbers end at {}", CpuSet::MAX_CPU - 1);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set)?;
    Ok(())
}

/// The CPUs this process may run on; empty when the kernel does not tell.
#[must_use]
pub fn allowed_cpus() -> Vec<usize> {
    sched_getaffinity(None).map_or_else(
        |_| Vec::new(),
        |set| (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
    )
}
