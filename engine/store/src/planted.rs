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
    /// Nobody waits for data that the index names and the device does not have yet.
    IndexBeforeData,
    /// Reads do not wait for data that is on its way.
    ReadBeforeData,
    /// A node append is forgotten by the parent pointer.
    LostNodeAppend,
    /// Live blocks of a bucket are not counted down on overwrite.
    AccountingDrift,
    /// Recovery replays entries after the newest flush entry without looking at what they name.
    ReplayPastFlush,
    /// Requests are answered before the journal has been written.
    EarlyAcknowledge,
    /// A node that is shorter than its parent says is taken as it is.
    StaleNodeAccepted,
    /// Blocks are given to clients whatever their checksums say.
    ChecksumNotVerified,
    /// A node's slot is given again before the transaction that freed it is durable.
    EarlySlotReuse,
    /// Freeing a node's slot frees its neighbour too.
    SlotFreedTwice,
    /// A rename puts the new name and leaves the old one.
    LostRenameHalf,
    /// Entries after the newest flush entry are taken without a look at the data they name.
    TailDataUnverified,
    /// A node being written no longer holds the journal entries that its changes are in.
    PinDroppedEarly,
    /// What recovery took of the tail is not decided for good by a flush entry.
    NoFlushAfterRecovery,
    /// The numbers of entries that recovery gave up are not noted.
    BlacklistForgotten,
    /// Of several tasks that wait for the same thing, the last is not woken.
    LostWakeup,
    /// A file is cut in two steps, and nothing says that the second is still to come.
    UnloggedTruncate,
    /// The tally of a region does not hold the journal entries that changed it.
    TallyNotPinned,
    /// Of what lies before dead blocks of a bucket in use, a block is written over with them.
    RunOverNamed,
    /// Of many versions that a subvolume sees, those farthest away are not looked at.
    FarVersionUnseen,
    /// What is dropped of a volume that has snapshots is not hidden: what they hold shows up.
    HoleForgotten,
    /// Writes go on on some shards while a snapshot is made.
    SnapshotNotHeld,
    /// Who began to read a version that is merged meanwhile finds nothing.
    MergeForgotten,
    /// What is removed of a tree that has snapshots is not hidden.
    WhiteoutForgotten,
    /// A file that was removed after a snapshot loses what the snapshot has of it.
    SnapshotDataForgotten,
    /// Nobody looks whether something lies past the end of a file before it grows.
    UnsettledGrowth,
    /// Of a frame that is cut, a part begins where the frame does.
    FrameOffsetForgotten,
    /// Copygc stores what a part of a frame has with the blocks of the frame's begin.
    FramePartMisread,
    /// A part of a frame counts for nothing when others are left.
    FramePartUncounted,
    /// Of three who refer to the same blocks, the third is not counted.
    ReferenceUncounted,
    /// Who no longer refers to a single block is still counted.
    ReferenceKept,
    /// When two versions become one, references keep the name of the younger.
    ReferenceNotRenamed,
    /// What came to be shared is moved as if it were not.
    HoldersForgotten,
    /// What is being received is there for all from the beginning.
    HalfReceived,
    /// How far receiving has come is noted before that is durable.
    ReceiveNotedEarly,
    /// Holes that a file has got since the base are not received.
    ReceivedHoleForgotten,
}

impl Bug {
    /// Every bug, with the name it is planted by.
    pub const ALL: [(&'static str, Self); 39] = [
        ("no-preflush", Self::NoPreflush),
        ("no-journal-fua", Self::NoJournalFua),
        ("early-bucket-reuse", Self::EarlyBucketReuse),
        ("index-before-data", Self::IndexBeforeData),
        ("read-before-data", Self::ReadBeforeData),
        ("lost-node-append", Self::LostNodeAppend),
        ("accounting-drift", Self::AccountingDrift),
        ("replay-past-flush", Self::ReplayPastFlush),
        ("early-acknowledge", Self::EarlyAcknowledge),
        ("stale-node-accepted", Self::StaleNodeAccepted),
        ("checksum-not-verified", Self::ChecksumNotVerified),
        ("early-slot-reuse", Self::EarlySlotReuse),
        ("slot-freed-twice", Self::SlotFreedTwice),
        ("lost-rename-half", Self::LostRenameHalf),
        ("tail-data-unverified", Self::TailDataUnverified),
        ("pin-dropped-early", Self::PinDroppedEarly),
        ("no-flush-after-recovery", Self::NoFlushAfterRecovery),
        ("blacklist-forgotten", Self::BlacklistForgotten),
        ("lost-wakeup", Self::LostWakeup),
        ("unlogged-truncate", Self::UnloggedTruncate),
        ("tally-not-pinned", Self::TallyNotPinned),
        ("run-over-named", Self::RunOverNamed),
        ("far-version-unseen", Self::FarVersionUnseen),
        ("hole-forgotten", Self::HoleForgotten),
        ("snapshot-not-held", Self::SnapshotNotHeld),
        ("merge-forgotten", Self::MergeForgotten),
        ("whiteout-forgotten", Self::WhiteoutForgotten),
        ("snapshot-data-forgotten", Self::SnapshotDataForgotten),
        ("unsettled-growth", Self::UnsettledGrowth),
        ("frame-offset-forgotten", Self::FrameOffsetForgotten),
        ("frame-part-misread", Self::FramePartMisread),
        ("frame-part-uncounted", Self::FramePartUncounted),
        ("reference-uncounted", Self::ReferenceUncounted),
        ("reference-kept", Self::ReferenceKept),
        ("reference-not-renamed", Self::ReferenceNotRenamed),
        ("holders-forgotten", Self::HoldersForgotten),
        ("half-received", Self::HalfReceived),
        ("receive-noted-early", Self::ReceiveNotedEarly),
        ("received-hole-forgotten", Self::ReceivedHoleForgotten),
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
