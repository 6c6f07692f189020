//! Writes that arrive together leave together: one place on the device, one command, one transaction
//! of the index, one wait for the journal.
//!
//! The first write that finds nobody gathering leads: it lets the other tasks of the turn run, takes
//! what has come by then, and carries it out for all. Who comes meanwhile is led by the first of those.
//! So a lone write waits for nobody, and under load a batch grows by itself to what arrives while
//! the ones before are on their way. Batches run side by side.
//!
//! Always true:
//! - Writes of one batch do not overlap: one that does waits for the next. An extent inserted in a
//!   transaction is not cut in the same one, so recovery finds its blocks under the checksums they were
//!   written with ([`crate::tail`]).
//! - Data and journal entry travel side by side ([`crate::flight`]), unless a device may have to copy the data.
//! - Each write is all or nothing as far as one transaction holds it, and is refused for itself when
//!   there is no space. A device error fails all that went with the command; an error of the index
//!   only the writes it concerns.
//! - A write is answered when it is as safe as it asked for ([`Until`]).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use engine_base::runtime::LocalBoxFuture;
use engine_memory::ALIGNMENT;

use super::DataPath;
use smallvec::{SmallVec, smallvec};

use super::map::BlockRange;
use super::pack::{Frames, Stored, Whole};
use super::place::Placed;
use super::write::{Checksums, Replacement};

use crate::api::Data;
use crate::engine::{Reservation, WritePoint};
use crate::error::{Result, StoreError};
use crate::flight::Flight;
use crate::limits::INSERTS_PER_TRANSACTION_MAX;
use crate::times::Timed;

/// Blocks of one batch, unless it is a single write: what the transaction replaces must fit it.
const BATCH_BLOCKS_MAX: u64 = 128;
/// Writes of one batch: each may cut two extents and add one.
const BATCH_WRITES_MAX: usize = 64;

/// How safe a write is when it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Until {
    /// Committed: whoever asked waits for more.
    Committed,
    /// It outlives the process.
    Written,
    /// It outlives a loss of power.
    Flushed,
}

/// Writes that wait for their batch.
#[derive(Default)]
pub(super) struct Batches {
    waiting: RefCell<VecDeque<Piece>>,
    /// Writes and batches so far.
    writes: Cell<u64>,
    batches: Cell<u64>,
}

/// A write that waits for its batch.
struct Piece {
    range: BlockRange,
    stored: Stored,
    reservation: Reservation,
    until: Until,
    slot: Rc<Slot>,
}

/// Writes side by side in one inode, as one.
struct Run {
    range: BlockRange,
    /// Of each block that is stored.
    checksums: Checksums,
    frames: Frames,
    members: SmallVec<[(Until, Rc<Slot>); 1]>,
}

/// Where a write waits for its turn to lead, or for its answer.
#[derive(Default)]
struct Slot {
    turn: Cell<Option<Turn>>,
    waker: Cell<Option<Waker>>,
}

enum Turn {
    Lead,
    Answer(Result<()>),
}

impl Slot {
    fn give(&self, turn: Turn) {
        self.turn.set(Some(turn));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    async fn turn(&self) -> Turn {
        poll_fn(|context| match self.turn.take() {
            Some(turn) => Poll::Ready(turn),
            None => {
                self.waker.set(Some(context.waker().clone()));
                Poll::Pending
            }
        })
        .await
    }
}

impl Batches {
    /// Named counters for metrics.
    pub(super) fn counters(&self, out: &mut Vec<(&'static str, u64)>) {
        out.push(("data_writes", self.writes.get()));
        out.push(("data_write_batches", self.batches.get()));
    }

    /// The next batch, in the order of places. The first of those that are left leads theirs.
    fn take(&self) -> Vec<Piece> {
        let mut waiting = self.waiting.borrow_mut();
        let (mut batch, mut blocks) = (Vec::with_capacity(waiting.len()), 0);
        while let Some(piece) = waiting.front() {
            blocks += piece.range.to - piece.range.from;
            let full = batch.len() == BATCH_WRITES_MAX || blocks > BATCH_BLOCKS_MAX;
            if full && !batch.is_empty() {
                break;
            }
            batch.extend(waiting.pop_front());
        }
        // Stable: of two that overlap the later one waits.
        batch.sort_by_key(|piece| place(&piece.range));
        let taken = if batch.is_sorted_by(|first, later| !overlaps(&first.range, &later.range)) {
            batch
        } else {
            let (taken, late) = without_overlaps(batch);
            for piece in late.into_iter().rev() {
                waiting.push_front(piece);
            }
            taken
        };
        if let Some(first) = waiting.front() {
            first.slot.give(Turn::Lead);
        }
        self.writes.set(self.writes.get() + taken.len() as u64);
        self.batches.set(self.batches.get() + 1);
        taken
    }
}

/// Of a sorted batch the pieces that overlap none before them, and the others.
fn without_overlaps(batch: Vec<Piece>) -> (Vec<Piece>, Vec<Piece>) {
    let (mut taken, mut late) = (Vec::<Piece>::with_capacity(batch.len()), Vec::new());
    for piece in batch {
        match taken.last() {
            Some(last) if overlaps(&last.range, &piece.range) => late.push(piece),
            _ => taken.push(piece),
        }
    }
    (taken, late)
}

fn place(range: &BlockRange) -> (u64, u32, u64) {
    (range.inode.0, range.snapshot.0, range.from)
}

/// Whether `later`, which does not begin before `first`, shares a block with it.
fn overlaps(first: &BlockRange, later: &BlockRange) -> bool {
    (first.inode, first.snapshot) == (later.inode, later.snapshot) && later.from < first.to
}

fn follows(first: &BlockRange, later: &BlockRange) -> bool {
    (first.inode, first.snapshot) == (later.inode, later.snapshot) && later.from == first.to
}

impl DataPath {
    /// Writes the range and waits until that is as safe as `until` says.
    ///
    /// # Errors
    /// `NoSpace`, at once; those of devices and of the index.
    pub(crate) async fn write(&self, range: BlockRange, data: Data, until: Until) -> Result<()> {
        let range = self.written_as(range).await?;
        let blocks = range.to - range.from;
        let len = crate::api::data_len(&data);
        assert!(len == blocks * engine_base::BLOCK_SIZE, "data does not fit its range");
        let reservation = self.reserve(&range).await?;
        let stored = self.engine.pack(&range, data).await;
        let slot = Rc::new(Slot::default());
        let piece = Piece { range, stored, reservation, until, slot: Rc::clone(&slot) };
        let leads = {
            let mut waiting = self.batches.waiting.borrow_mut();
            waiting.push_back(piece);
            waiting.len() == 1
        };
        if leads {
            after_others().await;
            self.lead_boxed().await;
        }
        loop {
            match self.engine.waits.on(Timed::BlockedWriteBatch, slot.turn()).await {
                Turn::Lead => self.lead_boxed().await,
                Turn::Answer(result) => return result,
            }
        }
    }

    /// On the heap, once for the batch: what leads is large, and each write that waits would have room for it.
    fn lead_boxed(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(self.lead())
    }

    /// Carries out the next batch.
    async fn lead(&self) {
        let batch = self.batches.take();
        let (runs, data, reservation) = join(batch);
        let Some(reservation) = reservation else { return };
        let blocks = crate::api::data_len(&data) / engine_base::BLOCK_SIZE;
        let wholes = wholes_of(&runs);
        let placed = self.engine.find_place(WritePoint::Data, blocks, &wholes, reservation).await;
        let placed = match placed {
            Ok(placed) => placed,
            Err(error) => return answer(runs, &Err(error)),
        };
        let mut runs = self.write_and_commit(runs, &placed, &data, &wholes).await;
        drop(data);
        drop(placed);
        answer(runs.extract_if(.., |run| run.until() == Until::Committed), &Ok(()));
        if runs.is_empty() {
            return;
        }
        let flushes = runs.iter().any(|run| run.until() == Until::Flushed);
        let result = if flushes { self.engine.flush().await } else { self.engine.written().await };
        answer(runs, &result);
    }

    /// Writes the data of runs where it was given a place, and names it in the index meanwhile. Answers those that
    /// fail and gives back the others.
    async fn write_and_commit(
        &self,
        runs: Vec<Run>,
        placed: &Placed,
        data: &Data,
        wholes: &[Whole],
    ) -> Vec<Run> {
        let flight = self.engine.begin_flight(placed);
        let ranges: SmallVec<[BlockRange; 4]> = runs.iter().map(|run| run.range).collect();
        let landing = async {
            let written = self.engine.write_there(placed, data).await;
            match &written {
                Ok(()) => flight.land(),
                Err(error) => flight.fail(error),
            }
            written
        };
        let commit = async {
            let runs = self.commit_runs(runs, placed, &flight).await;
            match runs.iter().map(Run::until).max() {
                Some(Until::Written) => self.engine.journal.begin_write(),
                Some(Until::Flushed) => drop(self.engine.journal.begin_flush()),
                Some(Until::Committed) | None => {}
            }
            runs
        };
        let (landed, runs) = if is_aligned(data) {
            futures::future::join(landing, commit).await
        } else {
            // A device may have to copy it, and may have no memory for that: then nothing should name it yet.
            let landed = landing.await;
            (landed, commit.await)
        };
        if let Err(error) = landed
            && let Err(error) = self.rescue(&flight, placed, &ranges, (data, wholes), error).await
        {
            answer(runs, &Err(error));
            return Vec::new();
        }
        runs
    }

    /// Names what was placed in the index: all in one transaction, or, when that fails, each run for
    /// itself. Answers those that fail and gives back the others.
    async fn commit_runs(&self, runs: Vec<Run>, placed: &Placed, flight: &Rc<Flight>) -> Vec<Run> {
        let mut replacements = Vec::with_capacity(runs.len());
        let mut done = 0;
        for run in &runs {
            let new = Replacement::new(placed, run.range, done, &run.checksums, &run.frames);
            replacements.push(new);
            done += run.checksums.len() as u64;
        }
        let inserts: usize = replacements.iter().map(Replacement::inserts).sum();
        if inserts <= INSERTS_PER_TRANSACTION_MAX {
            let together = self
                .engine
                .transact(async |transaction| {
                    transaction.names(flight);
                    for replacement in &replacements {
                        replacement.insert_last(transaction).await?;
                    }
                    Ok(())
                })
                .await;
            match together {
                Ok(()) => return runs,
                // What is cut may be more than a transaction takes, where much of it is shared.
                Err(StoreError::TransactionFull(_)) => {}
                Err(error) if runs.len() == 1 || self.engine.stopped().is_some() => {
                    answer(runs, &Err(error));
                    return Vec::new();
                }
                Err(_) => {}
            }
        }
        let mut committed = Vec::with_capacity(runs.len());
        for (run, replacement) in runs.into_iter().zip(&replacements) {
            match self.commit_alone(replacement, flight).await {
                Ok(()) => committed.push(run),
                Err(error) => answer([run], &Err(error)),
            }
        }
        committed
    }
}

impl Run {
    /// What the most demanding of its writes waits for.
    fn until(&self) -> Until {
        self.members.iter().map(|(until, _)| *until).max().unwrap_or(Until::Committed)
    }
}

/// Runs of a sorted batch, their data in order, and what was reserved for all.
fn join(batch: Vec<Piece>) -> (Vec<Run>, Data, Option<Reservation>) {
    let (mut runs, mut data) = (Vec::<Run>::with_capacity(batch.len()), Data::new());
    let mut all: Option<Reservation> = None;
    for piece in batch {
        let Stored { data: stored, checksums, frames } = piece.stored;
        data.extend(stored);
        match &mut all {
            Some(all) => all.absorb(piece.reservation),
            None => all = Some(piece.reservation),
        }
        let member = (piece.until, piece.slot);
        match runs.last_mut() {
            Some(run) if follows(&run.range, &piece.range) => {
                let (before, disk) = (run.range.to - run.range.from, run.checksums.len() as u64);
                run.frames.extend(frames.into_iter().map(|frame| frame.after(before, disk)));
                run.range.to = piece.range.to;
                run.checksums.extend(checksums);
                run.members.push(member);
            }
            _ => {
                let (range, members) = (piece.range, smallvec![member]);
                runs.push(Run { range, checksums, frames, members });
            }
        }
    }
    (runs, data, all)
}

/// What of all that runs store must lie in one piece.
fn wholes_of(runs: &[Run]) -> SmallVec<[Whole; 4]> {
    let (mut wholes, mut done) = (SmallVec::new(), 0);
    for run in runs {
        wholes.extend(run.frames.iter().map(|frame| frame.after(0, done)).map(|it| it.whole()));
        done += run.checksums.len() as u64;
    }
    wholes
}

/// Whether any device can take the data from where it is.
fn is_aligned(data: &Data) -> bool {
    data.iter().all(|piece| {
        piece.as_ptr().addr().is_multiple_of(ALIGNMENT) && piece.len().is_multiple_of(ALIGNMENT)
    })
}

fn answer(runs: impl IntoIterator<Item = Run>, result: &Result<()>) {
    for (_, slot) in runs.into_iter().flat_map(|run| run.members) {
        slot.give(Turn::Answer(result.clone()));
    }
}

/// Lets the tasks run that are ready now.
async fn after_others() {
    let mut polled = false;
    poll_fn(|context| {
        if std::mem::replace(&mut polled, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
