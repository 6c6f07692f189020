//! Disks of a run that destroy what they hold, and members that vanish.
//!
//! There is one copy of everything, so nothing can be repaired. What is asked of the engine: never wrong
//! bytes, never a loss in silence. What no engine can see on one device is that the end of the journal
//! is gone, flushed or not: then a shard may be back at an older state, as a whole, and everything but
//! the newest part of the promises still holds ([`Promises::allow_roll_back`]).
//!
//! [`Promises::allow_roll_back`]: crate::model::Promises::allow_roll_back

use std::ops::Range;

use engine_base::BLOCK_SIZE;
use engine_store::superblock::Superblock;

use super::Simulation;
use crate::disk::DiskLie;
use crate::options::Damage;

impl Simulation<'_> {
    /// Lets one disk begin, where the run has such disks.
    pub(super) fn start_damage(&mut self) {
        let Some(damage) = self.options.damage else { return };
        let lie = match damage {
            Damage::Rot => return,
            Damage::Misdirected => DiskLie::Misdirects,
            Damage::LostWrites => DiskLie::DropsWrites,
            Damage::LyingFlushes if self.random.chance(1, 2) => DiskLie::IgnoresFlush,
            Damage::LyingFlushes => DiskLie::FlushesHalf,
        };
        let disk = self.some_disk();
        self.disks[disk].set_lie_rate(*self.random.pick(&[200, 1_000, 5_000]));
        self.disks[disk].set_lie(Some(lie));
    }

    /// Between two lives of the process.
    pub(super) fn rot_at_rest(&mut self) {
        if self.options.damage == Some(Damage::Rot) && self.random.chance(1, 2) {
            self.rot(4);
        }
    }

    /// While nobody works.
    pub(super) fn rot_a_little(&mut self) {
        if self.options.damage == Some(Damage::Rot) && self.random.chance(1, 4) {
            self.rot(1);
        }
    }

    fn rot(&mut self, bits_max: u64) {
        for _ in 0..self.random.range(1, bits_max) {
            let disk = self.some_disk();
            self.disks[disk].rot();
        }
    }

    fn some_disk(&mut self) -> usize {
        self.random.below(self.disks.len() as u64) as usize
    }

    /// Takes note of what the disks have destroyed, before anybody looks.
    pub(super) fn note_damage(&mut self, power_loss: bool) {
        let Some(damage) = self.options.damage else { return };
        let journal_hit = self.journals.iter().any(|(member, pages)| {
            self.disks[*member].damaged_pages().iter().any(|page| pages.contains(page))
        });
        if journal_hit || (damage == Damage::LyingFlushes && power_loss) {
            let world = &mut *self.world.borrow_mut();
            world.promises.allow_roll_back();
            world.mark("roll_back_possible");
        }
    }

    /// Lets a disk vanish in the session that begins, and perhaps come back in it.
    pub(super) fn plan_vanishing(&mut self, disk: usize) {
        if !self.options.vanishing || !self.random.chance(1, 2) {
            return;
        }
        let disk = self.disks[disk].clone();
        let loses_cache = self.random.chance(1, 2);
        let within_ns = *self.random.pick(&[1 << 20, 1 << 28]);
        let leaves_ns = self.executor.now_ns() + self.random.below(within_ns);
        let returns_ns = leaves_ns + self.random.below(1 << 24);
        let leaving = disk.clone();
        self.executor.call_at(leaves_ns, move || leaving.vanish(loses_cache));
        self.executor.call_at(returns_ns, move || disk.come_back());
        self.world.borrow_mut().mark("vanishings_planned");
    }
}

/// The pages of each journal, with its member.
pub(super) fn journal_pages(superblock: &Superblock) -> Vec<(usize, Range<u64>)> {
    let bucket_pages = u64::from(superblock.bucket_bytes) / BLOCK_SIZE;
    let pages = |bucket: u32| u64::from(bucket) * bucket_pages;
    let journals = superblock.journals.iter();
    journals
        .map(|area| {
            let end = area.first_bucket + area.buckets;
            (usize::from(area.member), pages(area.first_bucket)..pages(end))
        })
        .collect()
}
