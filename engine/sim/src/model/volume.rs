//! Model of a block volume: for each block, the writes that it may hold.
//!
//! - Without a crash a read sees a write that no other write, ended before the read started, came
//!   after.
//! - After a crash a block holds a write that no *durable* write came after. Durable is what was
//!   flushed, what asked for it, and (the prefix) what came before anything that is there.
//! - A block is always wholly one write.
//! - A copy is a write of what was read at the source: its blocks say where they were written first. What such a block
//!   holds has a version of its own where it was copied to.

use std::collections::BTreeMap;

use engine_base::InodeNumber;

use crate::model::Promises;
use crate::stamp::Found;

/// One write, or discard (version 0), of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    version: u64,
    started: u64,
    /// `None` while in progress, and for ever when a crash cut it off.
    ended: Option<u64>,
    /// Ended with success.
    acknowledged: bool,
    /// Durable by itself (FUA, resize).
    durable: bool,
}

impl Write {
    const NEVER_WRITTEN: Self =
        Self { version: 0, started: 0, ended: Some(0), acknowledged: true, durable: true };

    /// Whether this write certainly came after `older` and took effect.
    fn supersedes(&self, older: &Self) -> bool {
        self.acknowledged && older.ended.is_some_and(|ended| self.started > ended)
    }

    /// Whether it must be there when all that ended before `floor` must, and, with `kept`, what was written
    /// durably.
    fn is_durable(&self, floor: u64, kept: bool) -> bool {
        let by_itself = self.durable && kept;
        self.acknowledged && (by_itself || self.ended.is_some_and(|ended| ended < floor))
    }
}

/// The writes that a block may hold.
pub type History = Vec<Write>;

/// A write that a snapshot shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// When it began.
    pub began: u64,
}

impl Shown {
    /// The write of `version` that a block may show at an instant not before `instant`; `None`: none.
    #[must_use]
    pub fn of(history: Option<&History>, version: u64, instant: u64) -> Option<Self> {
        let never = [Write::NEVER_WRITTEN];
        let history = history.map_or(&never[..], |history| &history[..]);
        let allowed = |write: &&Write| {
            !history.iter().any(|newer| {
                newer.supersedes(write) && newer.ended.is_some_and(|ended| ended < instant)
            })
        };
        let of_version = history.iter().filter(|write| write.version == version).filter(allowed);
        of_version.map(|write| Self { began: write.started }).min_by_key(|shown| shown.began)
    }
}

/// A write in progress; hand it back to [`VolumeModel::end_write`].
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct WriteTicket {
    /// When it started.
    pub started: u64,
    /// The version of its blocks; 0 for a discard.
    pub version: u64,
    first: u64,
    blocks: u64,
}

/// How an operation ended, as far as the model cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It took effect.
    Done,
    /// It certainly had no effect.
    Refused,
    /// It may have had any part of its effect.
    Unknown,
}

/// Model of one volume.
#[derive(Debug)]
pub struct VolumeModel {
    /// Tag in the stamps of its blocks, unique in a run.
    pub tag: u64,
    /// Its inode.
    pub inode: InodeNumber,
    /// Size in blocks.
    pub size_blocks: u64,
    shard_count: u16,
    next_version: u64,
    blocks: BTreeMap<u64, History>,
    copied: Copied,
}

/// Where a block was written first: volume, block, version.
pub type Origin = (u64, u64, u64);

/// What was copied from elsewhere, and the version that it has here.
pub type Copied = BTreeMap<Origin, u64>;

/// The version of what was found in a block.
///
/// # Errors
/// When nobody wrote it there.
pub fn version_of(copied: &Copied, found: Found) -> Result<u64, Found> {
    match found {
        Found::Zeroes => Ok(0),
        Found::Version(version) => Ok(version),
        Found::Misplaced { volume, block, version } => {
            copied.get(&(volume, block, version)).copied().ok_or(found)
        }
        Found::Mixed { .. } | Found::Garbage => Err(found),
    }
}

/// A promise that was broken.
pub type Broken = String;

impl VolumeModel {
    /// A new volume, all zeroes.
    #[must_use]
    pub fn new(tag: u64, inode: InodeNumber, size_blocks: u64, shard_count: u16) -> Self {
        let (blocks, copied) = (BTreeMap::new(), Copied::new());
        Self { tag, inode, size_blocks, shard_count, next_version: 1, blocks, copied }
    }

    /// What was copied from elsewhere.
    #[must_use]
    pub fn copied(&self) -> &Copied {
        &self.copied
    }

    /// The shard that holds a block.
    #[must_use]
    pub fn shard_of(&self, block: u64) -> u16 {
        self.inode.data_shard(block * engine_base::BLOCK_SIZE, self.shard_count).0
    }

    /// Blocks that were ever written or discarded.
    pub fn touched(&self) -> impl Iterator<Item = u64> {
        self.blocks.keys().copied()
    }

    /// What each block that was ever touched may hold.
    #[must_use]
    pub fn histories(&self) -> BTreeMap<u64, History> {
        self.blocks
            .range(..self.size_blocks)
            .map(|(block, known)| (*block, known.clone()))
            .collect()
    }

    /// The volume became what a snapshot of it is, by an operation from `started` to `ended`, durably. `content`: of
    /// all blocks that the volume or the snapshot ever held.
    pub fn rolled_back(
        &mut self,
        content: &BTreeMap<u64, u64>,
        size_blocks: u64,
        started: u64,
        ended: u64,
    ) {
        self.size_blocks = size_blocks;
        for (&block, &version) in content {
            let write =
                Write { version, started, ended: Some(ended), acknowledged: true, durable: true };
            let history = self.history(block);
            history.retain(|write| {
                write.started != started && write.ended.is_none_or(|ended| ended > started)
            });
            history.push(write);
        }
    }

    /// That was cut off: it may have happened.
    pub fn rollback_in_doubt(&mut self, content: &BTreeMap<u64, u64>, started: u64) {
        for (&block, &version) in content {
            self.history(block).push(Write {
                version,
                started,
                ended: None,
                acknowledged: false,
                durable: false,
            });
        }
    }

    fn history(&mut self, block: u64) -> &mut History {
        self.blocks.entry(block).or_insert_with(|| vec![Write::NEVER_WRITTEN])
    }

    /// A write (or with `discard` a discard) of `blocks` blocks from `first` starts.
    pub fn start_write(
        &mut self,
        promises: &mut Promises,
        first: u64,
        blocks: u64,
        discard: bool,
    ) -> WriteTicket {
        let version = if discard { 0 } else { self.next_version };
        self.next_version += u64::from(!discard);
        let started = self.start_of(promises, first, (0..blocks).map(|_| version));
        WriteTicket { started, version, first, blocks }
    }

    /// A copy of blocks that hold this to `first` and the following starts.
    pub fn start_copy(
        &mut self,
        promises: &mut Promises,
        first: u64,
        origins: &[Option<Origin>],
    ) -> WriteTicket {
        let versions: Vec<u64> = (first..)
            .zip(origins)
            .map(|(block, origin)| match *origin {
                None => 0,
                Some((tag, at, version)) if (tag, at) == (self.tag, block) => version,
                Some(origin) => *self.copied.entry(origin).or_insert_with(|| {
                    self.next_version += 1;
                    self.next_version - 1
                }),
            })
            .collect();
        let started = self.start_of(promises, first, versions.iter().copied());
        WriteTicket { started, version: u64::MAX, first, blocks: origins.len() as u64 }
    }

    fn start_of(
        &mut self,
        promises: &mut Promises,
        first: u64,
        versions: impl Iterator<Item = u64>,
    ) -> u64 {
        let started = promises.start();
        let oldest = promises.oldest_active();
        for (block, version) in (first..).zip(versions) {
            let floor = promises.floor(self.shard_of(block));
            let history = self.history(block);
            prune(history, oldest, floor);
            history.push(Write {
                version,
                started,
                ended: None,
                acknowledged: false,
                durable: false,
            });
        }
        started
    }

    /// That write has ended. `durable`: it asked to be.
    pub fn end_write(
        &mut self,
        promises: &mut Promises,
        ticket: WriteTicket,
        ending: Ending,
        durable: bool,
    ) {
        let ended = promises.end(ticket.started);
        for block in ticket.first..ticket.first + ticket.blocks {
            let history = self.history(block);
            let found = history.iter().position(|write| write.started == ticket.started);
            let Some(at) = found else { continue };
            match ending {
                Ending::Refused => drop(history.remove(at)),
                Ending::Unknown => history[at].ended = Some(ended),
                Ending::Done => {
                    let write = &mut history[at];
                    write.ended = Some(ended);
                    write.acknowledged = true;
                    write.durable = durable;
                }
            }
            if ending == Ending::Done && durable {
                // A durable write on a shard takes all that came before it there along.
                promises.raise_floor(self.shard_of(block), ticket.started);
            }
        }
    }

    /// Checks a block that was read by an operation that started at `started` and has not ended.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_read(&self, block: u64, found: Found, started: u64) -> Result<(), Broken> {
        let version = self.version_of(block, found)?;
        let never = [Write::NEVER_WRITTEN];
        let history = self.blocks.get(&block).map_or(&never[..], |history| &history[..]);
        let allowed = |write: &Write| {
            !history.iter().any(|newer| {
                newer.supersedes(write) && newer.ended.is_some_and(|ended| ended < started)
            })
        };
        if history.iter().any(|write| write.version == version && allowed(write)) {
            return Ok(());
        }
        let expected: Vec<u64> =
            history.iter().filter(|write| allowed(write)).map(|write| write.version).collect();
        Err(format!(
            "volume {} block {block} (shard {}): read version {version}, expected one of \
             {expected:?}",
            self.tag,
            self.shard_of(block)
        ))
    }

    fn version_of(&self, block: u64, found: Found) -> Result<u64, Broken> {
        version_of(&self.copied, found).map_err(|other| {
            format!(
                "volume {} block {block} (shard {}) holds {other:?}",
                self.tag,
                self.shard_of(block)
            )
        })
    }

    /// After a crash: what the blocks hold proves that these shards recovered at least to these
    /// instants. First of two passes; checks against what is known to be durable already.
    ///
    /// # Errors
    /// The first block that holds what it may not.
    pub fn check_crash(
        &self,
        promises: &Promises,
        found: &BTreeMap<u64, Found>,
        reached: &mut [u64],
    ) -> Result<(), Broken> {
        for (&block, &found) in found {
            let version = self.version_of(block, found)?;
            let shard = self.shard_of(block);
            let floor = promises.present(shard);
            let earliest = self.allowed_after_crash(block, floor, floor > 0, version).min();
            let Some(earliest) = earliest else {
                return Err(self.crash_message(block, version, floor, "it is not durable"));
            };
            let reached = &mut reached[usize::from(shard)];
            *reached = (*reached).max(earliest);
        }
        Ok(())
    }

    /// Second pass: the prefix. What came before `reached` on a shard must be there.
    ///
    /// # Errors
    /// The first block that is older than its shard.
    pub fn check_prefix(
        &self,
        promises: &Promises,
        found: &BTreeMap<u64, Found>,
        reached: &[u64],
    ) -> Result<(), Broken> {
        for (&block, &found) in found {
            let version = self.version_of(block, found)?;
            let shard = self.shard_of(block);
            // What a lying disk has rolled back is not there, however durably it was written: only what
            // comes before what survived.
            let kept = promises.present(shard) > 0;
            let floor = promises.present(shard).max(reached[usize::from(shard)]);
            if self.allowed_after_crash(block, floor, kept, version).next().is_none() {
                let why = "a later write of the same shard survived: not a prefix";
                return Err(self.crash_message(block, version, floor, why));
            }
        }
        Ok(())
    }

    /// Starts of the writes of `version` that may be there when all that ended before `floor` is
    /// durable; `kept`: as in [`Write::is_durable`].
    fn allowed_after_crash(
        &self,
        block: u64,
        floor: u64,
        kept: bool,
        version: u64,
    ) -> impl Iterator<Item = u64> {
        let history = self.blocks.get(&block);
        let never = history.is_none() && version == 0;
        let known = history.into_iter().flat_map(move |history| {
            history
                .iter()
                .filter(move |write| write.version == version)
                .filter(move |write| {
                    !history
                        .iter()
                        .any(|newer| newer.supersedes(write) && newer.is_durable(floor, kept))
                })
                .map(|write| write.started)
        });
        known.chain(never.then_some(0))
    }

    fn crash_message(&self, block: u64, version: u64, floor: u64, why: &str) -> Broken {
        let history = self.blocks.get(&block);
        let tail: Vec<&Write> =
            history.into_iter().flat_map(|history| history.iter().rev().take(6)).collect();
        format!(
            "after the crash volume {} block {block} (shard {}) holds version {version}: {why}; \
             durable before {floor}; newest writes {tail:?}",
            self.tag,
            self.shard_of(block)
        )
    }

    /// After the checks: each block is what was found. With `durable`, also after a loss of power; else
    /// that may still bring older writes back.
    pub fn settle(&mut self, promises: &mut Promises, found: &BTreeMap<u64, Found>, durable: bool) {
        let started = promises.start();
        let ended = promises.end(started);
        for (&block, &found) in found {
            let Ok(version) = self.version_of(block, found) else { continue };
            let settled =
                Write { version, started, ended: Some(ended), acknowledged: true, durable };
            let floor = promises.floor(self.shard_of(block));
            let history = self.history(block);
            if durable {
                *history = vec![settled];
                continue;
            }
            prune(history, started, floor);
            for write in history.iter_mut() {
                // What the crash cut off came before the recovery.
                write.ended.get_or_insert(started - 1);
            }
            history.push(settled);
        }
    }

    /// The volume was cut to `size_blocks` by an operation from `started` to now and that is
    /// durable: what lay past the end reads as zeroes should it grow again.
    pub fn resized(&mut self, size_blocks: u64, started: u64, ended: u64) {
        self.size_blocks = size_blocks;
        let zeroes =
            Write { version: 0, started, ended: Some(ended), acknowledged: true, durable: true };
        for (_, history) in self.blocks.range_mut(size_blocks..) {
            history.retain(|write| write.ended.is_none_or(|ended| ended > started));
            history.push(zeroes);
        }
    }

    /// A shrink that was cut off: what lies past `size_blocks` may be zeroes.
    pub fn resize_in_doubt(&mut self, size_blocks: u64, started: u64) {
        let zeroes =
            Write { version: 0, started, ended: None, acknowledged: false, durable: false };
        for (_, history) in self.blocks.range_mut(size_blocks..) {
            history.push(zeroes);
        }
    }
}

/// Forgets writes that neither a read in progress nor a crash can bring back.
fn prune(history: &mut History, oldest_active: u64, floor: u64) {
    if history.len() < 2 {
        return;
    }
    let keep: Vec<bool> = history
        .iter()
        .map(|write| {
            !history.iter().any(|newer| {
                newer.supersedes(write)
                    && newer.is_durable(floor, floor > 0)
                    && newer.ended.is_some_and(|ended| ended < oldest_active)
            })
        })
        .collect();
    let mut at = 0;
    history.retain(|_| {
        at += 1;
        keep[at - 1]
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> (Promises, VolumeModel) {
        (Promises::new(2), VolumeModel::new(1, InodeNumber(2), 4096, 2))
    }

    fn write(promises: &mut Promises, model: &mut VolumeModel, block: u64) -> u64 {
        let ticket = model.start_write(promises, block, 1, false);
        model.end_write(promises, ticket, Ending::Done, false);
        ticket.version
    }

    fn after_crash(
        promises: &Promises,
        model: &VolumeModel,
        found: &[(u64, Found)],
    ) -> Result<(), Broken> {
        let found = found.iter().copied().collect();
        let mut reached = [0; 2];
        model.check_crash(promises, &found, &mut reached)?;
        model.check_prefix(promises, &found, &reached)
    }

    #[test]
    fn a_read_sees_the_last_write_or_one_in_progress() {
        let (mut promises, mut model) = model();
        let first = write(&mut promises, &mut model, 5);
        let second = write(&mut promises, &mut model, 5);
        let ticket = model.start_write(&mut promises, 5, 1, false);
        let read = promises.start();
        assert!(model.check_read(5, Found::Version(first), read).is_err());
        assert!(model.check_read(5, Found::Version(second), read).is_ok());
        assert!(model.check_read(5, Found::Version(ticket.version), read).is_ok());
        assert!(model.check_read(5, Found::Zeroes, read).is_err());
        assert!(model.check_read(6, Found::Zeroes, read).is_ok());
        assert!(model.check_read(6, Found::Version(1), read).is_err());
        // The read goes on while the write ends and another comes: both may be seen.
        model.end_write(&mut promises, ticket, Ending::Done, false);
        let last = write(&mut promises, &mut model, 5);
        for version in [second, ticket.version, last] {
            assert!(model.check_read(5, Found::Version(version), read).is_ok());
        }
    }

    #[test]
    fn what_was_flushed_survives() {
        let (mut promises, mut model) = model();
        let first = write(&mut promises, &mut model, 5);
        let flush = promises.start();
        promises.end(flush);
        promises.raise_floor(0, flush);
        let second = write(&mut promises, &mut model, 5);
        for version in [first, second] {
            assert!(after_crash(&promises, &model, &[(5, Found::Version(version))]).is_ok());
        }
        assert!(after_crash(&promises, &model, &[(5, Found::Zeroes)]).is_err());
    }

    #[test]
    fn what_survives_is_a_prefix_within_a_shard_only() {
        let (mut promises, mut model) = model();
        let first = write(&mut promises, &mut model, 1);
        let second = write(&mut promises, &mut model, 2);
        let far = write(&mut promises, &mut model, 1024);
        assert_ne!(model.shard_of(1), model.shard_of(1024));
        let (zero, one, two) = (Found::Zeroes, Found::Version(first), Found::Version(second));
        assert!(after_crash(&promises, &model, &[(1, zero), (2, zero)]).is_ok());
        assert!(after_crash(&promises, &model, &[(1, one), (2, zero)]).is_ok());
        assert!(after_crash(&promises, &model, &[(1, one), (2, two)]).is_ok());
        let error = after_crash(&promises, &model, &[(1, zero), (2, two)]).unwrap_err();
        assert!(error.contains("not a prefix"), "{error}");
        let found = [(1, zero), (2, zero), (1024, Found::Version(far))];
        assert!(after_crash(&promises, &model, &found).is_ok());
    }

    #[test]
    fn fua_takes_what_came_before_along() {
        let (mut promises, mut model) = model();
        let first = write(&mut promises, &mut model, 1);
        let ticket = model.start_write(&mut promises, 2, 1, false);
        model.end_write(&mut promises, ticket, Ending::Done, true);
        let (one, two) = (Found::Version(first), Found::Version(ticket.version));
        assert!(after_crash(&promises, &model, &[(1, one), (2, two)]).is_ok());
        assert!(after_crash(&promises, &model, &[(1, one), (2, Found::Zeroes)]).is_err());
        assert!(after_crash(&promises, &model, &[(1, Found::Zeroes)]).is_err());
    }

    #[test]
    fn a_copy_holds_what_was_written_elsewhere() {
        let (mut promises, mut model) = model();
        let first = write(&mut promises, &mut model, 1);
        let origin = (1, 1, first);
        let copied = Found::Misplaced { volume: 1, block: 1, version: first };
        let read = |promises: &mut Promises, model: &VolumeModel, block, found| {
            model.check_read(block, found, promises.start())
        };
        assert!(read(&mut promises, &model, 5, copied).is_err());
        let ticket = model.start_copy(&mut promises, 5, &[Some(origin), None, Some((1, 7, 99))]);
        model.end_write(&mut promises, ticket, Ending::Done, false);
        assert!(read(&mut promises, &model, 5, copied).is_ok());
        assert!(read(&mut promises, &model, 5, Found::Zeroes).is_err());
        assert!(read(&mut promises, &model, 6, Found::Zeroes).is_ok());
        // Where it was written first it is what it was, also when it comes back.
        assert!(read(&mut promises, &model, 7, Found::Version(99)).is_ok());
        let second = write(&mut promises, &mut model, 5);
        assert!(read(&mut promises, &model, 5, copied).is_err());
        promises.crash(false);
        assert!(after_crash(&promises, &model, &[(5, copied)]).is_ok());
        assert!(after_crash(&promises, &model, &[(5, Found::Version(second))]).is_ok());
    }

    #[test]
    fn a_settled_block_stays() {
        let (mut promises, mut model) = model();
        let first = write(&mut promises, &mut model, 1);
        let second = write(&mut promises, &mut model, 1);
        promises.crash(false);
        let found = BTreeMap::from([(1, Found::Version(first))]);
        model.settle(&mut promises, &found, false);
        let read = promises.start();
        assert!(model.check_read(1, Found::Version(first), read).is_ok());
        assert!(model.check_read(1, Found::Version(second), read).is_err());
        // Not flushed yet, so a loss of power may still bring back what was there before.
        assert!(after_crash(&promises, &model, &[(1, Found::Zeroes)]).is_ok());
        model.settle(&mut promises, &found, true);
        assert!(after_crash(&promises, &model, &[(1, Found::Zeroes)]).is_err());
        assert!(after_crash(&promises, &model, &[(1, Found::Version(first))]).is_ok());
    }

    #[test]
    fn torn_and_misplaced_blocks_are_never_allowed() {
        let (promises, model) = model();
        for found in [
            Found::Garbage,
            Found::Mixed { version: 1, at: 512 },
            Found::Misplaced { volume: 1, block: 9, version: 1 },
        ] {
            assert!(after_crash(&promises, &model, &[(3, found)]).is_err());
            assert!(model.check_read(3, found, 1).is_err());
        }
    }

    #[test]
    fn a_shrink_leaves_zeroes_behind_the_end() {
        let (mut promises, mut model) = model();
        let version = write(&mut promises, &mut model, 100);
        let started = promises.start();
        let ended = promises.end(started);
        model.resized(50, started, ended);
        assert!(model.check_read(100, Found::Version(version), promises.start()).is_err());
        assert!(after_crash(&promises, &model, &[(100, Found::Zeroes)]).is_ok());
        assert!(after_crash(&promises, &model, &[(100, Found::Version(version))]).is_err());
    }
}
