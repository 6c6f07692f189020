//! What is asked about the scrub, and the answers.

use crate::error::{Result, StoreError};

/// Asks for a change of a shard's scrub, or how it goes. -> `Scrub`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScrubRequest {
    /// Starts one. `Busy` while one goes on, or is paused.
    Start {
        /// Bytes that it reads a second at most; 0: as fast as it can.
        bytes_per_second: u64,
    },
    /// How the newest one goes.
    Status,
    /// Lets it wait, also over a restart. Nothing where none runs.
    Pause,
    /// Lets it go on. Nothing where none is paused.
    Resume,
    /// Gives it up. Nothing where none goes on.
    Cancel,
}

/// How far a scrub is. The numbers are on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ScrubState {
    /// There was none.
    #[default]
    Never = 0,
    /// It read everything.
    Done = 1,
    /// It was given up.
    Cancelled = 2,
    /// It waits to be told to go on.
    Paused = 3,
    /// It goes on.
    Running = 4,
}

impl ScrubState {
    pub(super) fn from_number(number: u64) -> Result<Self> {
        let all = [Self::Never, Self::Done, Self::Cancelled, Self::Paused, Self::Running];
        let known = all.into_iter().find(|state| *state as u64 == number);
        known.ok_or_else(|| StoreError::corrupt("scrub", format!("state {number} is not known")))
    }
}

/// How the newest scrub goes, or went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// How far it is; of several shards, as far as the one that is least far.
    pub state: ScrubState,
    /// When it began, nanoseconds since the Unix epoch; 0: never.
    pub began_ns: u64,
    /// When it ended; 0: it has not.
    pub ended_ns: u64,
    /// Bytes that it reads a second at most; 0: as fast as it can.
    pub bytes_per_second: u64,
    /// Bytes that were to be read when it began.
    pub total_bytes: u64,
    /// Bytes of these that are done.
    pub done_bytes: u64,
    /// Index nodes and extents that could not be read, or were not what they should be.
    pub problems: u64,
    /// Index nodes among these that were written anew, from memory.
    pub healed: u64,
    /// The newest of the problems, since the daemon was started.
    pub last_problem: Option<String>,
}

impl ScrubStatus {
    /// Adds that of another shard.
    pub fn merge(&mut self, other: Self) {
        let both_ended = self.ended_ns > 0 && other.ended_ns > 0;
        self.ended_ns = if both_ended { self.ended_ns.max(other.ended_ns) } else { 0 };
        self.began_ns = match (self.began_ns, other.began_ns) {
            (0, began) | (began, 0) => began,
            (one, two) => one.min(two),
        };
        self.state = self.state.max(other.state);
        self.bytes_per_second = self.bytes_per_second.saturating_add(other.bytes_per_second);
        self.total_bytes = self.total_bytes.saturating_add(other.total_bytes);
        self.done_bytes = self.done_bytes.saturating_add(other.done_bytes);
        self.problems = self.problems.saturating_add(other.problems);
        self.healed = self.healed.saturating_add(other.healed);
        self.last_problem = other.last_problem.or(self.last_problem.take());
    }
}
