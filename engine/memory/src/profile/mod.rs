//! Allocation profiling: which part of the program holds how much memory, counted always.
//!
//! A [`Site`] is a static record of a place in the code. [`alloc_scope!`](crate::alloc_scope) makes
//! the place where it stands the current site of the thread until its guard is dropped; what is
//! allocated meanwhile, by ourselves or in libraries, is charged to that site. A future sets its site
//! for each poll with [`Scoped`], so that tasks which take turns on a thread do not pay for each
//! other. [`Profiler`] counts the heap when a program installs it; I/O buffers are counted in every
//! program.
//!
//! What always holds:
//! * Every allocation remembers its site (two bytes behind it, or a field of a buffer's descriptor),
//!   so it is given back to the site that paid, on whatever thread it is freed and whatever the mode
//!   is by then. Summed over threads the counts are exact once the threads rest.
//! * Counting takes no lock and allocates nothing. A thread writes a row of counters of its own. What it
//!   costs is measured in docs/benchmarks.md.
//! * Sites and rows are bounded ([`SITES_MAX`], `THREADS_MAX`); past the bounds counts go to a common
//!   site or row and stay exact.
//!
//! Left to others: who shows the report, and to whom.

pub(crate) mod buffers;
mod counts;
mod heap;
mod mode;
mod report;
mod scope;
mod site;

pub use heap::Profiler;
pub use mode::{Mode, NeverMode, mode, set_mode};
pub use report::{HEADER, Holding, Report, line, module_of, report};
pub use scope::{ScopeGuard, Scoped, enter, set_thread_site};
pub use site::{Kind, SITES_MAX, Site};

pub(crate) use site::Tag;
