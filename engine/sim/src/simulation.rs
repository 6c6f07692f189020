//! A run of one seed: format, work, crash, recover, check, and again.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use engine_base::random::Random;
use engine_store::api::{SubvolumeInfo, SubvolumeKind, TreeRef, Verify};
use engine_store::client::{Client, VolumeRef};
use engine_store::reached;

use self::damage::journal_pages;
use crate::clients;
use crate::disk::{FaultRates, SimDisk};
use crate::executor::{Executor, RunEnd};
use crate::model::tree::TreeModel;
use crate::model::volume::VolumeModel;
use crate::options::{FaultMode, Options, Plant};
use crate::pool::{self, Process};
use crate::verify;
use crate::world::{ClientContext, Running, Shared, TreeSlot, VolumeSlot, World, bytes_of};

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeedReport {
    /// The seed.
    pub seed: u64,
    /// Operations of clients.
    pub operations: u64,
    /// Crashes, of whatever kind.
    pub crashes: u64,
    /// Virtual nanoseconds.
    pub virtual_ns: u64,
    /// Hash of everything that happened, in order.
    pub event_digest: u64,
    /// Hash of what is on the disks in the end.
    pub state_digest: u64,
    /// How often each named thing happened.
    pub marks: BTreeMap<&'static str, u64>,
    /// How often recovery came through each of its branches.
    pub branches: Vec<(&'static str, u64)>,
    /// The broken promise, with the last events.
    pub failure: Option<Failure>,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What is wrong.
    pub what: String,
    /// What happened last, oldest first.
    pub events: Vec<String>,
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps the words of panics for the report, instead of printing them. Call once per process.
pub fn capture_panics() {
    std::panic::set_hook(Box::new(|info| {
        let words = format!("panic: {info}");
        PANIC.with(|slot| {
            slot.borrow_mut().get_or_insert(words);
        });
    }));
}

/// Runs one seed. Never panics: a panic of the engine is a failure in the report.
#[must_use]
pub fn run(options: &Options) -> SeedReport {
    run_with(options, |simulation| simulation.run())
}

/// Runs what `script` makes of a simulation.
fn run_with(
    options: &Options,
    script: impl FnOnce(&mut Simulation<'_>) -> Result<(), String>,
) -> SeedReport {
    drop(reached::take());
    PANIC.with(|slot| slot.borrow_mut().take());
    plant_engine(options.plant);
    let world = World::new(options.shard_count, options.faults, options.events_kept);
    let world: Shared = Rc::new(RefCell::new(world));
    let executor = Executor::new(options.seed, options.schedule);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut simulation = Simulation::new(options, &executor, &world);
        let result = script(&mut simulation);
        let digest =
            simulation.disks.iter().fold(0, |hash: u64, disk| hash.rotate_left(7) ^ disk.digest());
        executor.crash(|| simulation.process = None);
        (result, digest)
    }));
    let state_digest = match outcome {
        Ok((Ok(()), digest)) => digest,
        Ok((Err(what), digest)) => {
            world.borrow_mut().fail(what);
            digest
        }
        Err(_) => {
            let words = PANIC.with(|slot| slot.borrow_mut().take());
            world.borrow_mut().fail(words.unwrap_or_else(|| "panic".to_owned()));
            0
        }
    };
    plant_engine(None);
    let world = world.borrow();
    let failure = world
        .failure
        .as_ref()
        .map(|what| Failure { what: what.clone(), events: world.last_events() });
    SeedReport {
        seed: options.seed,
        operations: world.operations,
        crashes: world.crashes,
        virtual_ns: executor.now_ns(),
        event_digest: world.digest(),
        state_digest,
        marks: world.marks.clone(),
        branches: reached::take(),
        failure,
    }
}

#[cfg(feature = "planted-bugs")]
fn plant_engine(plant: Option<Plant>) {
    engine_store::planted::set(match plant {
        Some(Plant::Engine(bug)) => Some(bug),
        _ => None,
    });
}

#[cfg(not(feature = "planted-bugs"))]
fn plant_engine(_plant: Option<Plant>) {}

struct Simulation<'a> {
    options: &'a Options,
    executor: &'a Executor,
    world: &'a Shared,
    random: Random,
    disks: Vec<SimDisk>,
    process: Option<Process>,
    /// When a disk was last seen to be faulty.
    faulty_ns: Cell<u64>,
    /// Longest time of an answer.
    slowest_ns: u64,
    /// Where the journals lie: member and pages.
    journals: Vec<(usize, Range<u64>)>,
}

/// Polls without any event after which a run counts as stuck.
const POLLS_WITHOUT_EVENT_MAX: u64 = 3_000_000;

/// Polls between two looks at how long operations have been waiting.
const POLLS_BETWEEN_LOOKS: u64 = 20_000;

/// The end of a step: its condition came true, or it was cut off at the given number of polls.
#[derive(PartialEq, Eq)]
enum Step {
    Done,
    CutOff,
}

impl<'a> Simulation<'a> {
    fn new(options: &'a Options, executor: &'a Executor, world: &'a Shared) -> Self {
        let disks: Vec<SimDisk> = options
            .members
            .iter()
            .enumerate()
            .map(|(index, geometry)| {
                SimDisk::new(executor, &format!("disk{index}"), *geometry, options.latency)
            })
            .collect();
        let random = executor.fork_random();
        Self {
            options,
            executor,
            world,
            random,
            disks,
            process: None,
            faulty_ns: Cell::new(0),
            slowest_ns: 0,
            journals: Vec::new(),
        }
    }

    fn run(&mut self) -> Result<(), String> {
        self.format()?;
        if let Some(Plant::Disk(lie)) = self.options.plant {
            self.disks.iter().for_each(|disk| disk.set_lie(Some(lie)));
        }
        self.world.borrow_mut().disks = self.disks.clone();
        self.start_process();
        self.until_open()?;
        self.set_up()?;
        self.start_damage();
        let crashing = self.options.faults != FaultMode::None;
        while self.goes_on() && self.left() > 0 {
            let all = self.options.operations_per_crash;
            let target = if crashing { self.random.range(1, all) } else { self.left() };
            let last = target >= self.left();
            let before = self.left();
            self.work(target.min(self.left()), crashing && !last)?;
            // Without any operation: nothing is left that damage has not taken.
            if !self.goes_on() || last || self.left() == before {
                break;
            }
            self.crash_and_recover()?;
        }
        if self.goes_on() {
            self.finish()?;
        }
        self.count_disks();
        Ok(())
    }

    fn failure(&self) -> Option<String> {
        self.world.borrow().failure.clone()
    }

    /// Whether no promise is broken and no device has taken the pool away.
    fn goes_on(&self) -> bool {
        let refused = self.process.as_ref().is_some_and(Process::is_refused);
        self.failure().is_none() && !refused && !self.world.borrow().unreadable
    }

    /// Operations still to do in the whole run.
    fn left(&self) -> u64 {
        self.options.operations.saturating_sub(self.world.borrow().operations)
    }

    /// Runs until `done` or a broken promise, at most `polls_max` polls.
    fn drive(&self, polls_max: u64, mut done: impl FnMut() -> bool) -> Result<Step, String> {
        let mut left = polls_max;
        let (mut quiet, mut digest) = (0, self.world.borrow().digest());
        while left > 0 {
            let some = left.min(POLLS_BETWEEN_LOOKS);
            left -= some;
            let end = self.executor.run(some, || done() || self.world.borrow().failure.is_some());
            match end {
                RunEnd::Done => return Ok(Step::Done),
                RunEnd::PollsSpent => self.check_liveness()?,
                RunEnd::Idle => return Err(self.stuck("nothing can happen any more")),
            }
            let now = self.world.borrow().digest();
            quiet = if now == digest { quiet + some } else { 0 };
            digest = now;
            if quiet > POLLS_WITHOUT_EVENT_MAX {
                return Err(self.stuck("tasks run, but no operation ends"));
            }
        }
        Ok(Step::CutOff)
    }

    fn format(&mut self) -> Result<(), String> {
        let finished = Rc::new(Cell::new(false));
        let (flag, world) = (Rc::clone(&finished), Rc::clone(self.world));
        let disks = self.disks.clone();
        let (shard_count, sizes) = (self.options.shard_count, self.options.format);
        let mut random = self.random.fork();
        let superblock = Rc::new(RefCell::new(None));
        let made = Rc::clone(&superblock);
        let task = Box::pin(async move {
            match pool::format(&disks, shard_count, sizes, &mut random).await {
                Ok(superblock) => *made.borrow_mut() = Some(superblock),
                Err(error) => world.borrow_mut().fail(format!("format: {error}")),
            }
            flag.set(true);
        });
        self.executor.spawn(0, "format", task);
        self.drive(u64::MAX, || finished.get())?;
        self.journals = superblock.take().map_or_else(Vec::new, |made| journal_pages(&made));
        Ok(())
    }

    fn start_process(&mut self) {
        self.process = Some(Process::start(self.executor, &self.disks, self.options, self.world));
    }

    fn until_open(&self) -> Result<(), String> {
        self.drive(u64::MAX, || self.process.as_ref().is_some_and(Process::is_open)).map(drop)
    }

    fn context(&mut self, number: u32) -> Option<ClientContext> {
        let link = self.process.as_ref()?.mesh.client(number);
        Some(ClientContext {
            world: Rc::clone(self.world),
            client: Client::new(link),
            number,
            executor: self.executor.clone(),
            random: self.random.fork(),
            shard_count: self.options.shard_count,
            pause_ns_max: self.options.pause_ns_max,
        })
    }

    /// Creates the volumes and trees.
    fn set_up(&mut self) -> Result<(), String> {
        let Some(context) = self.context(0) else { return Ok(()) };
        let (volumes, trees) = (self.options.volumes.clone(), self.options.trees);
        let running = Running::new(self.world);
        let seed = self.options.seed;
        let task = Box::pin(async move {
            let _running = running;
            if let Err(error) = create_subjects(&context, seed, &volumes, trees).await {
                context.fail(format!("set-up: {error}"));
            }
        });
        self.executor.spawn(0, "set-up", task);
        self.drive(u64::MAX, || self.world.borrow().clients_running == 0).map(drop)
    }

    /// Lets clients do `target` operations; with `cut`, stops them in the middle of some.
    fn work(&mut self, target: u64, cut: bool) -> Result<(), String> {
        let before = self.world.borrow().operations;
        // Enough that all are busy at the instant of the crash: an operation takes a poll at least.
        let polls_max = *self.random.pick(&[1, 10, 100, 1000, 10_000]);
        self.world.borrow_mut().operations_left = if cut { target + polls_max } else { target };
        if self.options.faults == FaultMode::Eio {
            let ppm = self.options.error_ppm;
            let mut faults = || if self.random.chance(1, 2) { ppm } else { 0 };
            let faults = FaultRates {
                read_error_ppm: faults(),
                write_error_ppm: faults(),
                flush_error_ppm: faults(),
            };
            let last = self.disks.len() as u64 - 1;
            let disk = self.random.range(0, last) as usize;
            if cut {
                self.disks[disk].set_faults(faults);
                self.plan_vanishing(disk);
            }
        }
        self.rot_a_little();
        self.start_clients();
        let world = self.world;
        self.drive(u64::MAX, || {
            let world = world.borrow();
            world.clients_running == 0 || (cut && world.operations >= before + target)
        })?;
        if cut && self.world.borrow().failure.is_none() {
            let polls = self.random.range(0, polls_max);
            // Clients that met an error have stopped: then nothing may be left to happen.
            self.drive(polls, || self.world.borrow().clients_running == 0)?;
        }
        self.world.borrow_mut().operations_left = 0;
        if cut && self.random.chance(1, 3) {
            self.let_all_end()?;
        }
        Ok(())
    }

    fn start_clients(&mut self) {
        let mut number = 1;
        let volumes: Vec<(String, u32)> =
            self.world.borrow().volumes.iter().map(|(n, s)| (n.clone(), s.clients)).collect();
        for (name, clients) in volumes {
            for _ in 0..clients {
                let Some(context) = self.context(number) else { return };
                let (name, mix) = (name.clone(), self.options.volume_mix.clone());
                self.start_client(clients::volume::run(context, name, mix));
                number += 1;
            }
        }
        let trees: Vec<String> = {
            let world = self.world.borrow();
            world.trees.iter().filter(|(_, slot)| !slot.lost).map(|(n, _)| n.clone()).collect()
        };
        for name in trees {
            let Some(context) = self.context(number) else { return };
            self.start_client(clients::tree::run(context, name, self.options.tree_mix.clone()));
            number += 1;
        }
        if self.options.administration {
            let Some(context) = self.context(number) else { return };
            self.start_client(clients::administration::run(context));
        }
    }

    fn start_client(&self, client: impl Future<Output = ()> + 'static) {
        let running = Running::new(self.world);
        let task = Box::pin(async move {
            client.await;
            drop(running);
        });
        self.executor.spawn(0, "client", task);
    }

    /// Ends the process here and now. What happens to the disks is to follow.
    fn end_process(&mut self) {
        let process = self.process.take();
        self.note_slowest(process.as_ref());
        self.executor.crash(|| {
            if let Some(process) = process {
                process.mesh.close();
            }
        });
    }

    /// Ends the process here and now; `true`: the power went, too.
    fn crash(&mut self) -> bool {
        self.end_process();
        let power_loss = self.random.chance(self.options.power_loss_eighths, 8);
        for disk in &self.disks {
            disk.set_faults(FaultRates::default());
            if power_loss {
                disk.power_loss();
            } else {
                disk.process_crash();
            }
        }
        self.rot_at_rest();
        self.note_damage(power_loss);
        self.note_crash(power_loss);
        power_loss
    }

    /// Tells the model what a crash took.
    fn note_crash(&mut self, power_loss: bool) {
        let world = &mut *self.world.borrow_mut();
        // A device that fails may lose what it was given and not asked to keep.
        let instant = world.promises.crash(!power_loss && !world.may_fail());
        world.crashes += 1;
        let crashes = world.crashes;
        let now_ns = self.executor.now_ns();
        world.event(now_ns, 0, "crash", [instant, u64::from(power_loss), crashes]);
        world.mark(if power_loss { "power_loss" } else { "process_crash" });
    }

    /// Crashes, opens again (perhaps crashing on the way), reads everything back and checks it.
    fn crash_and_recover(&mut self) -> Result<(), String> {
        let mut power_loss = self.crash();
        // At most a few times, then it must come up.
        for attempt in 0..4 {
            self.start_process();
            let again =
                attempt < 3 && self.random.chance(self.options.crash_in_recovery_eighths, 8);
            let polls_max = if again {
                let most = *self.random.pick(&[10, 100, 1_000, 10_000]);
                self.random.range(0, most)
            } else {
                u64::MAX
            };
            if self.verify(Some(power_loss), polls_max)? == Step::Done {
                return Ok(());
            }
            self.world.borrow_mut().mark("crash_in_recovery");
            power_loss = self.crash();
        }
        Ok(())
    }

    fn verify(&mut self, crash: Option<bool>, polls_max: u64) -> Result<Step, String> {
        // Whether damage is told, only a look at everything shows.
        let verify = match self.options.damage {
            Some(_) => Verify::All,
            None if self.random.chance(1, 4) => *self.random.pick(&[Verify::All, Verify::Resume]),
            None => Verify::Nothing,
        };
        let Some(context) = self.context(0) else { return Ok(Step::Done) };
        self.start_client(verify::run(context, crash, verify));
        self.drive(polls_max, || {
            let refused = self.process.as_ref().is_some_and(Process::is_refused);
            self.world.borrow().clients_running == 0 || refused
        })
    }

    /// The end: everything is as the last answers said, before and after an orderly stop.
    fn finish(&mut self) -> Result<(), String> {
        self.verify(None, u64::MAX)?;
        if !self.goes_on() {
            return Ok(());
        }
        self.stop_in_order(|| false)?;
        self.end_process();
        for disk in &self.disks {
            disk.power_loss();
        }
        self.rot_at_rest();
        self.note_damage(true);
        self.start_process();
        // A disk that destroys what it holds may have lost what the stop had flushed.
        let crash = self.options.damage.map(|_| true);
        self.verify(crash, u64::MAX).map(drop)
    }

    /// An orderly stop, to its end or until `cut`.
    fn stop_in_order(&mut self, cut: impl Fn() -> bool) -> Result<(), String> {
        let finished = Rc::new(Cell::new(false));
        if let Some(process) = &self.process {
            process.shut_down(self.executor, self.world, &finished);
        }
        self.drive(u64::MAX, || finished.get() || cut()).map(drop)
    }

    fn count_disks(&self) {
        let world = &mut *self.world.borrow_mut();
        world.marks.insert("slowest_answer_ms", self.slowest_ns / 1_000_000);
        for disk in &self.disks {
            let counts = disk.statistics();
            for (name, count) in [
                ("disk_reads", counts.reads),
                ("disk_writes", counts.writes),
                ("disk_flushes", counts.flushes),
                ("disk_discards", counts.discards),
                ("disk_errors", counts.errors),
                ("disk_writes_lost", counts.lost),
                ("disk_stalls", counts.stalls),
                ("disk_damages", counts.damages),
            ] {
                *world.marks.entry(name).or_default() += count;
            }
        }
    }
}

async fn create_subjects(
    context: &ClientContext,
    seed: u64,
    volumes: &[(u64, u32)],
    trees: u32,
) -> engine_store::Result<()> {
    for (index, (blocks, clients)) in volumes.iter().enumerate() {
        let name = format!("volume-{index}");
        let size = (bytes_of(*blocks), 4096);
        let info = create(context, seed, (&name, SubvolumeKind::Volume), size).await?;
        let tag = index as u64 + 1;
        let model = VolumeModel::new(tag, info.root, *blocks, context.shard_count);
        let reference = VolumeRef::from(&info);
        let slot = VolumeSlot { reference, model, resizing: None, clients: *clients };
        context.world.borrow_mut().volumes.insert(name, slot);
    }
    for index in 0..trees {
        let name = format!("tree-{index}");
        let info = create(context, seed, (&name, SubvolumeKind::FileTree), (0, 0)).await?;
        let model = TreeModel::new(info.root, context.shard_count);
        let slot = TreeSlot { reference: TreeRef::from(&info), model, lost: false };
        context.world.borrow_mut().trees.insert(name, slot);
    }
    Ok(())
}

/// Creates a subvolume with options of its own: a stream of its own, too.
async fn create(
    context: &ClientContext,
    seed: u64,
    (name, kind): (&str, SubvolumeKind),
    size: (u64, u32),
) -> engine_store::Result<SubvolumeInfo> {
    let seed = context.world.borrow().options.len() as u64 ^ seed.rotate_left(17);
    let options = clients::options::draw(&mut Random::new(seed ^ 0x636f_6d70));
    let info = context.client.subvolume_create(name, kind, size, options).await?;
    context.world.borrow_mut().options.insert(name.to_owned(), vec![options]);
    Ok(info)
}

#[cfg(test)]
mod branch_tests;
mod damage;
pub mod exhaustive;
mod liveness;
pub mod long;
pub mod mutated;
mod mutation;
#[cfg(test)]
mod tests;
