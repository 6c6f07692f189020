//! Which branches of recovery and of rare errors a process came through: named points that count, for the simulator's
//! report and the test that says which of them a set of seeds reaches.
//!
//! Counters of the thread, never read by the engine. Only what is rare has such points: a handful of
//! additions at each open.

use std::cell::Cell;

/// A branch of recovery, or of what is done about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // Each has its words in `ALL`.
pub enum Branch {
    SuperblockMended,
    JournalWithoutFlush,
    JournalEntryLost,
    JournalReadByBlocks,
    JournalSkipsGivenUp,
    TailNone,
    TailAfterJump,
    TailUnconnected,
    TailWhole,
    TailCut,
    TailExtentMissing,
    TailNodeMissing,
    TailNodeUnwritten,
    GivenUpBefore,
    RootEmpty,
    RootRead,
    ReplayLeaf,
    ReplayInterior,
    ReplayDelete,
    DeltaOfBucket,
    DeltaOfBucketStamped,
    DeltaOfCounter,
    DeltaOfCounterStamped,
    BucketsContradict,
    FlushedAgain,
    FlushEntryWritten,
    FlushedLost,
    ResumeCreate,
    ResumeDelete,
    ResumeMerge,
    ResumeResize,
    ResumeTruncate,
    ResumeRemove,
    DataElsewhere,
    RunFilled,
    CheckGoesOn,
    FrameStored,
    FrameDecoded,
    FramePartMoved,
    ScrubGoesOn,
    CopiedNotShared,
    SharedMoved,
    Unshared,
}

impl Branch {
    /// Every branch, with what it is in words.
    pub const ALL: [(Self, &'static str); 43] = [
        (Self::SuperblockMended, "superblock: a bad or old copy written anew"),
        (Self::JournalWithoutFlush, "journal: no flush entry, refused"),
        (Self::JournalEntryLost, "journal: a flushed entry missing, refused"),
        (Self::JournalReadByBlocks, "journal: read block by block after an error"),
        (Self::JournalSkipsGivenUp, "journal: numbers skipped that an older recovery gave up"),
        (Self::TailNone, "tail: nothing after the newest flush entry"),
        (Self::TailAfterJump, "tail: begins after the numbers that a recovery gave up"),
        (Self::TailUnconnected, "tail: entries that do not follow the newest flush entry"),
        (Self::TailWhole, "tail: all of it taken"),
        (Self::TailCut, "tail: cut at an entry that is not whole"),
        (Self::TailExtentMissing, "tail: blocks of an extent missing"),
        (Self::TailNodeMissing, "tail: a node or a part of it missing"),
        (Self::TailNodeUnwritten, "tail: names a node that was never written"),
        (Self::GivenUpBefore, "tail: taken after numbers that an older recovery gave up"),
        (Self::RootEmpty, "root: never written"),
        (Self::RootRead, "root: read from its place"),
        (Self::ReplayLeaf, "replay: a key of a leaf"),
        (Self::ReplayInterior, "replay: a key of an interior node"),
        (Self::ReplayDelete, "replay: a key deleted"),
        (Self::DeltaOfBucket, "replay: a delta of a bucket"),
        (Self::DeltaOfBucketStamped, "replay: a delta of a bucket that its checkpoint holds"),
        (Self::DeltaOfCounter, "replay: a delta of a counter"),
        (Self::DeltaOfCounterStamped, "replay: a delta of a counter that its checkpoint holds"),
        (Self::BucketsContradict, "tables: a bucket holds what it cannot, refused"),
        (Self::FlushedAgain, "end: members flushed, nothing was unflushed"),
        (Self::FlushEntryWritten, "end: a flush entry written for what was taken"),
        (Self::FlushedLost, "end: what a flush covered is missing, told"),
        (Self::ResumeCreate, "resume: creation of a subvolume"),
        (Self::ResumeDelete, "resume: deletion of a version"),
        (Self::ResumeMerge, "resume: two versions become one"),
        (Self::ResumeResize, "resume: resize of a volume"),
        (Self::ResumeTruncate, "resume: truncation of a file"),
        (Self::ResumeRemove, "resume: removal of a file's data"),
        (Self::DataElsewhere, "write: put elsewhere, its place was named already"),
        (Self::RunFilled, "space: no free bucket, moved between live blocks"),
        (Self::CheckGoesOn, "check: gone on with where it was cut short"),
        (Self::FrameStored, "compression: blocks stored as a frame"),
        (Self::FrameDecoded, "compression: a frame decoded"),
        (Self::FramePartMoved, "compression: a part of a frame stored anew by copygc"),
        (Self::ScrubGoesOn, "scrub: gone on with after a restart"),
        (
            Self::CopiedNotShared,
            "copy: its place names something else that is shared, so read and written",
        ),
        (Self::SharedMoved, "copygc: what came to be shared in the bucket, found by its address"),
        (Self::Unshared, "copy: what is shared with nobody any more made ordinary again"),
    ];
}

const COUNT: usize = Branch::ALL.len();

thread_local! {
    static COUNTS: [Cell<u64>; COUNT] = const { [const { Cell::new(0) }; COUNT] };
}

/// This thread comes through `branch`.
pub(crate) fn mark(branch: Branch) {
    COUNTS.with(|counts| {
        let count = &counts[branch as usize];
        count.set(count.get() + 1);
    });
}

/// Takes the counts of this thread, in the order of [`Branch::ALL`].
#[must_use]
pub fn take() -> Vec<(&'static str, u64)> {
    let words = Branch::ALL.iter().map(|(branch, words)| (*branch as usize, *words));
    COUNTS.with(|counts| words.map(|(index, words)| (words, counts[index].take())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_are_in_the_order_of_their_numbers() {
        let numbers: Vec<usize> = Branch::ALL.iter().map(|(branch, _)| *branch as usize).collect();
        assert_eq!(numbers, (0..COUNT).collect::<Vec<_>>());
        drop(take());
        mark(Branch::RootEmpty);
        let counted: Vec<_> = take().into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [("root: never written", 1)]);
        assert!(take().iter().all(|(_, count)| *count == 0));
    }
}
