//! Planted bugs: ways to break a promise on purpose, so that the simulator can show that it notices.
//!
//! Only with the feature `planted-bugs`, which no released program has; without it every question here
//! is a constant `false`.

/// A bug that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Flush entries are written without flushing the members before.
    NoPreflush,
    /// Flush entries are written without FUA.
    NoJournalFua,
    /// An emptied bucket is reused before the transaction that emptied it is durable.
    EarlyBucketReuse,
    /// The index names data before the device has it.
    IndexBeforeData,
    /// A node append is forgotten by the parent pointer.
    LostNodeAppend,
    /// Live blocks of a bucket are not counted down on overwrite.
    AccountingDrift,
    /// Recovery replays entries after the newest flush entry without looking at what they name.
    ReplayPastFlush,
    /// Requests are answered before the journal has been written.
    EarlyAcknowledge,
}

impl Bug {
    /// Every bug, with the name it is planted by.
    pub const ALL: [(&'static str, Self); 8] = [
        ("no-preflush", Self::NoPreflush),
        ("no-journal-fua", Self::NoJournalFua),
        ("early-bucket-reuse", Self::EarlyBucketReuse),
        ("index-before-data", Self::IndexBeforeData),
        ("lost-node-append", Self::LostNodeAppend),
        ("accounting-drift", Self::AccountingDrift),
        ("replay-past-flush", Self::ReplayPastFlush),
        ("early-acknowledge", Self::EarlyAcknowledge),
    ];
}

#[cfg(feature = "planted-bugs")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants `bug` on this thread, or none.
#[cfg(feature = "planted-bugs")]
pub fn set(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether `bug` is planted on this thread.
#[cfg(feature = "planted-bugs")]
#[must_use]
pub fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether `bug` is planted: never.
#[cfg(not(feature = "planted-bugs"))]
#[inline]
#[must_use]
pub const fn is(_bug: Bug) -> bool {
    false
}
