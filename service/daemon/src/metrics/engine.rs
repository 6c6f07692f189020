//! What one core counts of the requests to its shards. Written by that core alone.

use std::sync::atomic::{AtomicU64, Ordering};

use engine_store::api::Request;
use engine_store::times::Timed;

use engine_base::histogram::Histogram;

/// Kinds of requests that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestKind {
    /// Data of volumes and files is read.
    Read,
    /// Data is written.
    Write,
    /// Data is dropped.
    Discard,
    /// What was acknowledged is made durable.
    Flush,
    /// Everything else: names, attributes, tables, checks.
    Metadata,
}

impl RequestKind {
    /// All kinds, in the order of their numbers, with their names in metrics.
    pub(crate) const ALL: [(Self, &'static str); 5] = [
        (Self::Read, "read"),
        (Self::Write, "write"),
        (Self::Discard, "discard"),
        (Self::Flush, "flush"),
        (Self::Metadata, "metadata"),
    ];

    /// What its time statistics are called.
    pub(crate) fn timed(self) -> Timed {
        match self {
            Self::Read => Timed::RequestRead,
            Self::Write => Timed::RequestWrite,
            Self::Discard => Timed::RequestDiscard,
            Self::Flush => Timed::RequestFlush,
            Self::Metadata => Timed::RequestMetadata,
        }
    }

    /// The kind of a request.
    pub(crate) fn of(request: &Request) -> Self {
        match request {
            Request::DataRead { .. } | Request::FileRead { .. } => Self::Read,
            Request::DataWrite { .. } | Request::FileWrite { .. } => Self::Write,
            Request::DataDiscard { .. } | Request::FilePunch { .. } => Self::Discard,
            Request::Flush | Request::FileSync { .. } => Self::Flush,
            _ => Self::Metadata,
        }
    }
}

/// How much a shard has to do.
#[derive(Debug, Default)]
pub(crate) struct ShardLoad {
    /// Requests of front ends that run.
    pub(crate) running: AtomicU64,
    /// Their data in bytes.
    pub(crate) bytes: AtomicU64,
    /// Requests that wait to be admitted.
    pub(crate) waiting: AtomicU64,
}

/// The counters of one core.
#[derive(Debug)]
pub(crate) struct CoreStats {
    /// Latencies from arrival on the core to the answer, in the order of [`RequestKind::ALL`].
    pub(crate) latencies: [Histogram; RequestKind::ALL.len()],
    /// Requests that failed, in the same order.
    pub(crate) errors: [AtomicU64; RequestKind::ALL.len()],
    /// By shard of the pool; those of other cores stay 0.
    pub(crate) loads: Box<[ShardLoad]>,
}

impl CoreStats {
    /// Counters for a pool of `shard_count` shards.
    pub(crate) fn new(shard_count: u16) -> Self {
        Self {
            latencies: Default::default(),
            errors: Default::default(),
            loads: (0..shard_count).map(|_| ShardLoad::default()).collect(),
        }
    }

    /// Counts one request.
    pub(crate) fn record(&self, kind: RequestKind, ns: u64, good: bool) {
        self.latencies[kind as usize].record(ns);
        if !good {
            let errors = &self.errors[kind as usize];
            errors.store(errors.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
    }

    /// Notes the load of a shard.
    pub(crate) fn set_load(&self, shard: usize, running: usize, bytes: u64, waiting: usize) {
        let load = &self.loads[shard];
        load.running.store(running as u64, Ordering::Relaxed);
        load.bytes.store(bytes, Ordering::Relaxed);
        load.waiting.store(waiting as u64, Ordering::Relaxed);
    }
}
