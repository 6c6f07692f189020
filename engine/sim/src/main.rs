//! The simulator's command line. A seed is a run; the same seed gives the same run.

#![allow(clippy::print_stdout)] // This program's output is its purpose.

mod modes;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use engine_memory::profile::Profiler;
use engine_sim::options::{FaultMode, Options, Plant};
use engine_sim::simulation::{self, SeedReport};

/// Counts the heap, to see whether it grows.
#[global_allocator]
static ALLOCATOR: Profiler = Profiler;

/// Deterministic simulator of whole Cairn pools: finds broken promises and names the seed that
/// replays them.
#[derive(Parser, Debug)]
#[command(name = "engine-sim", version)]
struct Arguments {
    /// Runs one seed.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Runs the seeds A to B, both included.
    #[arg(long, value_name = "A..B", value_parser = parse_seeds, default_value = "1..20")]
    seeds: RangeInclusive<u64>,
    /// Operations of clients per seed.
    #[arg(long, default_value_t = 2000)]
    ops: u64,
    /// Threads, each with a seed of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,
    /// What goes wrong.
    #[arg(long, value_enum, default_value = "all")]
    faults: Faults,
    /// Plants a bug, to see that it is found: the exit status is 0 if a seed finds it.
    #[arg(long, value_name = "NAME", value_parser = parse_plant)]
    plant: Option<PlantName>,
    /// Repeats a short script of --ops operations of each seed with a crash at each of its writes, in
    /// each way in which writes may be left.
    #[arg(long, conflicts_with_all = ["plant", "canary"])]
    exhaustive: bool,
    /// With --exhaustive: one in so many of these crashes.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
    /// Runs a little load of --ops operations over so many virtual hours and demands that memory stays flat.
    #[arg(long, value_name = "HOURS", conflicts_with_all = ["plant", "canary", "exhaustive"],
          value_parser = clap::value_parser!(u64).range(1..=1000))]
    long: Option<u64>,
    /// Changes what lies on the disks of a pool, a case for each seed, then opens and uses it: errors
    /// are right, panics, hangs and memory without bound are not.
    #[arg(long, conflicts_with_all = ["plant", "canary", "exhaustive", "long"])]
    mutate: bool,
    /// Plants every bug, one after the other, until each is found; the exit status is 0 if all are.
    #[arg(long, conflicts_with_all = ["plant", "seed"])]
    canary: bool,
    /// Starts no further seed after so many seconds of real time.
    #[arg(long, value_name = "SECONDS")]
    time_limit: Option<u64>,
    /// Events printed with a failure.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    events: u32,
    /// Prints the options and counts of every seed.
    #[arg(long)]
    verbose: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Faults {
    /// Delays only.
    None,
    /// Crashes and power losses.
    Crash,
    /// Device errors too.
    Eio,
    /// A device that destroys what it holds.
    Damage,
    /// Each seed its own.
    All,
}

#[derive(Clone, Copy, Debug)]
struct PlantName(&'static str, Plant);

fn parse_seeds(text: &str) -> Result<RangeInclusive<u64>, String> {
    let (first, last) = text.split_once("..").ok_or("expected A..B")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text:?}: {error}"));
    let (first, last) = (number(first)?, number(last.trim_start_matches('='))?);
    if first > last {
        return Err(format!("{first} is after {last}"));
    }
    Ok(first..=last)
}

fn parse_plant(text: &str) -> Result<PlantName, String> {
    let all = Plant::all();
    all.iter()
        .find(|(name, _)| *name == text)
        .map(|(name, plant)| PlantName(name, *plant))
        .ok_or_else(|| {
            let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
            format!("not a bug that can be planted; there are: {}", names.join(", "))
        })
}

impl Arguments {
    fn seeds(&self) -> RangeInclusive<u64> {
        self.seed.map_or(self.seeds.clone(), |seed| seed..=seed)
    }

    fn options(&self, seed: u64, plant: Option<Plant>) -> Options {
        let faults = match self.faults {
            Faults::None => FaultMode::None,
            Faults::Crash => FaultMode::Crash,
            Faults::Eio => FaultMode::Eio,
            Faults::Damage => FaultMode::Damage,
            Faults::All => plant.and_then(Plant::needs).unwrap_or(FaultMode::All),
        };
        let mut options = Options::of_seed(seed, self.ops, faults, plant);
        options.events_kept = self.events as usize;
        options
    }

    fn replay(&self, seed: u64) -> String {
        let faults = self.faults.to_possible_value();
        let faults = faults.map_or("all".to_owned(), |value| value.get_name().to_owned());
        let plant = self.plant.map_or(String::new(), |plant| format!(" --plant {}", plant.0));
        format!(
            "cargo run --profile sim -p engine-sim -- --seed {seed} --ops {} --faults {faults}{plant}",
            self.ops
        )
    }
}

/// What all seeds came to.
#[derive(Default)]
struct Summary {
    seeds: u64,
    failed: Vec<u64>,
    operations: u64,
    crashes: u64,
    virtual_ns: u64,
    marks: BTreeMap<&'static str, u64>,
    branches: Vec<(&'static str, u64)>,
}

impl Summary {
    fn add(&mut self, report: &SeedReport) {
        self.seeds += 1;
        self.operations += report.operations;
        self.crashes += report.crashes;
        self.virtual_ns += report.virtual_ns;
        if report.failure.is_some() {
            self.failed.push(report.seed);
        }
        modes::add_branches(&mut self.branches, &report.branches);
        for (name, count) in &report.marks {
            let total = self.marks.entry(name).or_default();
            // The longest of all; the rest are numbers of events.
            *total =
                if name.starts_with("slowest") { (*total).max(*count) } else { *total + count };
        }
    }

    fn print(&self, seconds: f64) {
        let rate = self.operations as f64 / seconds.max(1e-9);
        println!(
            "{} seeds, {} failed; {} operations, {} crashes, {:.1} virtual seconds; \
             {seconds:.1} s, {rate:.0} operations/s",
            self.seeds,
            self.failed.len(),
            self.operations,
            self.crashes,
            self.virtual_ns as f64 / 1e9
        );
        for (name, count) in &self.marks {
            println!("  {count:>10}  {name}");
        }
        modes::print_branches(&self.branches);
    }
}

fn print_report(arguments: &Arguments, report: &SeedReport) {
    let verdict = if report.failure.is_some() { "FAILED" } else { "ok" };
    println!(
        "seed {} {verdict}: {} operations, {} crashes, {:.3} virtual s, events {:016x}, state {:016x}",
        report.seed,
        report.operations,
        report.crashes,
        report.virtual_ns as f64 / 1e9,
        report.event_digest,
        report.state_digest
    );
    if arguments.verbose {
        let plant = arguments.plant.map(|plant| plant.1);
        println!("  {:?}", arguments.options(report.seed, plant));
        println!("  {:?}", report.marks);
        let branches = report.branches.iter().filter(|(_, count)| *count > 0);
        println!("  {:?}", branches.collect::<Vec<_>>());
    }
    if let Some(failure) = &report.failure {
        println!("  {}", failure.what);
        println!("  replay: {}", arguments.replay(report.seed));
        for event in &failure.events {
            println!("    {event}");
        }
    }
}

/// Runs the seeds on as many threads as asked for and hands the reports over in order. `more` says
/// after each whether to go on.
fn run_seeds(
    arguments: &Arguments,
    plant: Option<Plant>,
    started: Instant,
    mut more: impl FnMut(&SeedReport) -> bool,
) {
    let seeds = arguments.seeds();
    let next = AtomicU64::new(*seeds.start());
    let stop = AtomicBool::new(false);
    let limit = arguments.time_limit.map(Duration::from_secs);
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            let (sender, next, stop, seeds) = (sender.clone(), &next, &stop, &seeds);
            scope.spawn(move || {
                loop {
                    let late = limit.is_some_and(|limit| started.elapsed() >= limit);
                    if late || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if !seeds.contains(&seed) {
                        return;
                    }
                    let report = simulation::run(&arguments.options(seed, plant));
                    if sender.send(report).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut waiting = BTreeMap::new();
        let mut expected = *seeds.start();
        for report in receiver {
            waiting.insert(report.seed, report);
            while let Some(report) = waiting.remove(&expected) {
                expected += 1;
                if !stop.load(Ordering::Relaxed) && !more(&report) {
                    stop.store(true, Ordering::Relaxed);
                }
            }
        }
    });
}

/// Plants each bug in turn; `true` when every one was found.
fn canary(arguments: &Arguments, bugs: &[(&'static str, Plant)], started: Instant) -> bool {
    let mut all_found = true;
    for (name, plant) in bugs {
        let mut tried = 0;
        let mut found = None;
        run_seeds(arguments, Some(*plant), started, |report| {
            tried += 1;
            if let Some(failure) = &report.failure {
                found = Some((report.seed, failure.what.clone()));
            }
            found.is_none()
        });
        match found {
            Some((seed, what)) => {
                let what: String = what.chars().take(160).collect();
                println!("{name}: found by seed {seed}, after {tried} seeds: {what}");
            }
            None => {
                all_found = false;
                println!("{name}: NOT FOUND in {tried} seeds");
            }
        }
    }
    all_found
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // The only clock here: for the time limit and the rate, never for what a run does.
    #[allow(clippy::disallowed_methods)]
    let started = Instant::now();
    simulation::capture_panics();
    let passed = if let Some(hours) = arguments.long {
        modes::long(arguments.seeds(), arguments.ops, hours, started)
    } else if arguments.mutate {
        modes::mutate(&arguments.seeds(), arguments.jobs, arguments.time_limit, started)
    } else if arguments.exhaustive {
        modes::exhaustive(arguments.seeds(), arguments.ops, arguments.every, started)
    } else if arguments.canary {
        canary(&arguments, &Plant::all(), started)
    } else if let Some(PlantName(name, plant)) = arguments.plant {
        canary(&arguments, &[(name, plant)], started)
    } else {
        let mut summary = Summary::default();
        run_seeds(&arguments, None, started, |report| {
            print_report(&arguments, report);
            summary.add(report);
            true
        });
        summary.print(started.elapsed().as_secs_f64());
        summary.failed.is_empty()
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
