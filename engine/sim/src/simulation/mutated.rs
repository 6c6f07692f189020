//! Pools whose disks hold something else than the engine wrote: opened, checked, read, used.
//!
//! Whatever the change, an error is a good answer at any point, and so is the content that is there.
//! A panic, a hang and memory without bound are not. Each case is a seed; the pool that it starts
//! from is one of a few.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use engine_base::random::Random;
use engine_store::api::{
    CreateAttributes, Data, FileKind, PutMode, SetAttributes, TreeRef, Verify,
};
use engine_store::client::VolumeRef;

use super::mutation::Mutator;
use super::{Process, SeedReport, Simulation, run_with};
use crate::clients::administration::COLLECTION;
use crate::clients::slice_of;
use crate::disk::{DiskContent, SimDisk};
#[cfg(test)]
use crate::executor::Executor;
use crate::options::Options;
use crate::world::ClientContext;

/// Pools that cases start from: case `n` from number `n % BASES + 1`.
pub const BASES: u64 = 4;

/// Operations that make the pool a case starts from.
const BASE_OPERATIONS: u64 = 250;

/// What is read and written of each thing, at most: a damaged size may be anything.
const BYTES_MAX: u64 = 2 << 20;
/// Inodes that are looked at in a tree.
const INODES_MAX: usize = 200;
/// Subvolumes that are looked at.
const SUBVOLUMES_MAX: usize = 8;

/// The content of a pool's disks.
pub struct Base {
    options: Options,
    contents: Vec<DiskContent>,
    pub(super) journals: Vec<(usize, Range<u64>)>,
}

/// Makes the pool number `seed`: used, then stopped in good order or not.
///
/// # Errors
/// When its making breaks a promise.
pub fn base(seed: u64) -> Result<Base, String> {
    let options = Options::short(seed, BASE_OPERATIONS);
    let mut made = (Vec::new(), Vec::new());
    let report = run_with(&options, |simulation| {
        made = simulation.make_base()?;
        Ok(())
    });
    match report.failure {
        Some(failure) => Err(failure.what),
        None => Ok(Base { options, contents: made.0, journals: made.1 }),
    }
}

/// Runs case number `seed` on `base`; the report's failure is a panic or a hang.
#[must_use]
pub fn run(base: &Base, seed: u64) -> SeedReport {
    let mut options = base.options.clone();
    options.seed = seed;
    run_with(&options, |simulation| simulation.run_mutated(base, seed))
}

impl Base {
    #[cfg(test)]
    pub(super) fn disks_for_tests(&self) -> (Executor, Vec<SimDisk>) {
        let executor = Executor::new(1, self.options.schedule);
        let options = &self.options;
        let disks = options.members.iter().zip(&self.contents).map(|(geometry, content)| {
            let disk = SimDisk::new(&executor, "disk", *geometry, options.latency);
            disk.set_content(content);
            disk
        });
        let disks = disks.collect();
        (executor, disks)
    }
}

type Made = (Vec<DiskContent>, Vec<(usize, Range<u64>)>);

impl Simulation<'_> {
    fn make_base(&mut self) -> Result<Made, String> {
        self.format()?;
        self.start_process();
        self.until_open()?;
        self.set_up()?;
        self.work(self.options.operations, false)?;
        if self.random.chance(1, 2) {
            self.stop_in_order(|| false)?;
        }
        self.end_process();
        self.disks.iter().for_each(SimDisk::process_crash);
        let contents = self.disks.iter().map(SimDisk::content).collect();
        Ok((contents, std::mem::take(&mut self.journals)))
    }

    fn run_mutated(&mut self, base: &Base, seed: u64) -> Result<(), String> {
        for (disk, content) in self.disks.iter().zip(&base.contents) {
            disk.set_content(content);
        }
        let mut random = Random::new(seed ^ 0x6d75_7461);
        let mutator = Mutator { disks: &self.disks, journals: &base.journals };
        for _ in 0..random.range(1, 3) {
            let words = mutator.mutate(&mut random);
            self.world.borrow_mut().note(words);
        }
        self.world.borrow_mut().anything_goes = true;
        self.start_process();
        let process = || self.process.as_ref();
        self.drive(u64::MAX, || {
            process().is_some_and(|process| process.is_open() || process.is_refused())
        })?;
        if process().is_some_and(Process::is_refused) {
            self.world.borrow_mut().mark("refused");
            return Ok(());
        }
        self.world.borrow_mut().mark("opened");
        let Some(context) = self.context(1) else { return Ok(()) };
        let used = Rc::new(Cell::new(false));
        let flag = Rc::clone(&used);
        let task = async move {
            use_everything(context).await;
            flag.set(true);
        };
        self.executor.spawn(0, "user", Box::pin(task));
        self.drive(u64::MAX, || used.get())?;
        self.stop_in_order(|| false)
    }
}

/// Asks for everything that there is, and changes some of it. No answer is wrong.
async fn use_everything(context: ClientContext) {
    let client = &context.client;
    if let Ok(report) = client.fsck(Verify::All).await {
        let marks = if report.problems.is_empty() { "fsck" } else { "fsck_reported_damage" };
        context.world.borrow_mut().mark(marks);
    }
    context.event("fsck", [0; 3]);
    drop(client.status().await);
    let listed = client.subvolume_list("", 100).await.unwrap_or_default();
    for info in listed.iter().take(SUBVOLUMES_MAX) {
        if info.size_bytes > 0 {
            use_volume(&context, &VolumeRef::from(info), &info.name).await;
        } else {
            use_tree(&context, TreeRef::from(info)).await;
        }
        drop(client.subvolume_usage(info.id).await);
        context.event("subvolume", [info.id.0, 0, 0]);
    }
    drop(client.record_list(COLLECTION).await);
    drop(client.record_put(COLLECTION, "one-more", vec![1; 100], PutMode::Any).await);
    drop(client.volume_create("one-more", 1 << 20, 4096).await);
    if let Some(info) = listed.last() {
        drop(client.subvolume_delete(&info.name).await);
    }
    drop(client.flush().await);
    drop(client.fsck(Verify::Nothing).await);
}

async fn use_volume(context: &ClientContext, volume: &VolumeRef, name: &str) {
    let client = &context.client;
    let size = volume.size_bytes / 4096 * 4096;
    let mut at = 0;
    while at < size.min(BYTES_MAX) {
        let len = (64 << 10).min(size - at);
        drop(client.volume_read(volume, at, len).await);
        at += len;
    }
    for offset in [0, size / 8192 * 4096, size.saturating_sub(4096)] {
        let data = Data::from_iter([slice_of(&[7; 4096])]);
        drop(client.volume_write(volume, offset, data, false).await);
        drop(client.volume_read(volume, offset, 4096).await);
    }
    drop(client.volume_discard(volume, 0, size.min(BYTES_MAX)).await);
    drop(client.volume_resize(name, 4096).await);
    context.event("volume", [size, 0, 0]);
}

async fn use_tree(context: &ClientContext, tree: TreeRef) {
    let client = &context.client;
    let mut waiting = VecDeque::from([tree.root]);
    let mut seen = Vec::new();
    while let Some(directory) = waiting.pop_front() {
        let mut cookie = 0;
        while seen.len() < INODES_MAX {
            let Ok(page) = client.read_directory(tree, directory, cookie, 50).await else { break };
            let Some(last) = page.last() else { break };
            cookie = last.cookie;
            for entry in page {
                if !seen.contains(&entry.attributes.inode) {
                    seen.push(entry.attributes.inode);
                    waiting.push_back(entry.attributes.inode);
                }
                drop(client.lookup(tree, directory, &entry.name).await);
            }
        }
        if let Ok(attributes) = client.get_attributes(tree, directory).await
            && attributes.kind == FileKind::File
        {
            for offset in [0, attributes.size.saturating_sub(100_000)] {
                let len = attributes.size.min(BYTES_MAX) as u32;
                drop(client.file_read(tree, directory, offset, len.min(1 << 20)).await);
            }
        }
        drop(client.read_link(tree, directory).await);
        for name in client.xattr_list(tree, directory).await.unwrap_or_default() {
            drop(client.xattr_get(tree, directory, &name).await);
        }
        context.event("inode", [directory.0, 0, 0]);
    }
    change_tree(context, tree, &seen).await;
}

async fn change_tree(context: &ClientContext, tree: TreeRef, seen: &[engine_base::InodeNumber]) {
    let client = &context.client;
    let attributes = CreateAttributes { mode: 0o644, uid: 0, gid: 0 };
    drop(client.create(tree, tree.root, b"one-more", FileKind::File, attributes).await);
    for (index, inode) in seen.iter().enumerate() {
        match index % 4 {
            0 => {
                let data = Data::from_iter([slice_of(&[5; 5000])]);
                drop(client.file_write(tree, *inode, 3000, data).await);
            }
            1 => {
                let set = SetAttributes { size: Some(100), ..SetAttributes::default() };
                drop(client.set_attributes(tree, *inode, set).await);
            }
            2 => drop(client.file_punch(tree, *inode, 0, 8192).await),
            _ => drop(client.xattr_set(tree, *inode, b"user.one", b"more", PutMode::Any).await),
        }
        context.event("changed", [inode.0, 0, 0]);
    }
    let entries = client.read_directory(tree, tree.root, 0, 50).await.unwrap_or_default();
    for entry in entries {
        let directory = entry.attributes.kind == FileKind::Directory;
        drop(client.remove(tree, tree.root, &entry.name, directory).await);
        context.event("removed", [entry.attributes.inode.0, 0, 0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each of these once panicked: an extent whose block or end was past what a byte offset can tell
    /// (reading, fsck), a region or bucket of a member that there is not (status), a counter past all bounds (usage),
    /// a free bucket that held something (opening it).
    const PANICKED: [u64; 5] = [1711, 1747, 1882, 4667, 3450];

    /// `--mutate` does as many as are wanted. MUTATE_SEED=n does one.
    #[test]
    fn a_changed_pool_gives_errors_and_never_panics_or_hangs() {
        let one = std::env::var("MUTATE_SEED").ok().and_then(|text| text.parse::<u64>().ok());
        let (mut opened, mut refused) = (0, 0);
        let bases: Vec<Base> = (1..=BASES).map(|seed| base(seed).unwrap()).collect();
        let seeds = (1..=300).chain(PANICKED);
        for seed in one.map_or(seeds.collect(), |seed| vec![seed]) {
            let report = run(&bases[(seed % BASES) as usize], seed);
            assert_eq!(report.failure, None, "MUTATE_SEED={seed}");
            opened += report.marks.get("opened").copied().unwrap_or(0);
            refused += report.marks.get("refused").copied().unwrap_or(0);
        }
        assert!(
            one.is_some() || (opened > 50 && refused > 20),
            "{opened} opened, {refused} refused"
        );
    }
}
