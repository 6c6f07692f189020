//! The ways to run that are not seed after seed: crashes at every write, and a long day.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use engine_memory::profile;
use engine_sim::options::Options;
use engine_sim::simulation::{SeedReport, exhaustive, long, mutated};

/// Adds the counts of a run to those of all.
pub(crate) fn add_branches(sum: &mut Vec<(&'static str, u64)>, more: &[(&'static str, u64)]) {
    if sum.is_empty() {
        sum.extend_from_slice(more);
        return;
    }
    for (total, (_, count)) in sum.iter_mut().zip(more) {
        total.1 += count;
    }
}

/// Which branches of recovery were reached, how often.
pub(crate) fn print_branches(branches: &[(&'static str, u64)]) {
    let reached = branches.iter().filter(|(_, count)| *count > 0).count();
    println!("branches of recovery reached: {reached} of {}", branches.len());
    for (words, count) in branches {
        println!("  {count:>10}  {words}");
    }
}

/// Crashes at every write of the scripts of some seeds; whether all promises were kept.
pub(crate) fn exhaustive(
    seeds: RangeInclusive<u64>,
    ops: u64,
    every: u64,
    started: Instant,
) -> bool {
    let (mut runs, mut failed, mut branches) = (0, 0, Vec::new());
    for seed in seeds {
        let report = exhaustive::run(&Options::short(seed, ops), every);
        runs += report.runs;
        add_branches(&mut branches, &report.branches);
        let (writes, cut) = (report.writes, report.runs);
        match report.failure {
            None => println!("seed {seed} ok: {writes} writes, {cut} runs"),
            Some((write, style, failure)) => {
                failed += 1;
                println!("seed {seed} FAILED at write {write} of {writes}, {style:?}");
                println!("  {}", failure.what);
                println!(
                    "  replay: cargo run --profile sim -p engine-sim -- --exhaustive --seed {seed} \
                     --ops {ops}"
                );
                failure.events.iter().for_each(|event| println!("    {event}"));
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{runs} runs with a crash, {failed} scripts failed; {seconds:.1} s");
    print_branches(&branches);
    failed == 0
}

/// A little load over virtual hours; whether memory stayed flat and all promises were kept.
pub(crate) fn long(seeds: RangeInclusive<u64>, ops: u64, hours: u64, started: Instant) -> bool {
    let mut passed = true;
    for seed in seeds {
        let options = Options::long(seed, ops, hours.saturating_mul(3_600_000_000_000));
        let (report, gauges) = long::run(&options, || profile::report().live_bytes());
        let virtual_hours = report.virtual_ns as f64 / 3.6e12;
        println!("seed {seed}: {} operations, {virtual_hours:.2} virtual hours", report.operations);
        for (name, values) in gauges {
            let (first, last) = (values.first(), values.last());
            let most = values.iter().max();
            if let (Some(first), Some(last), Some(most)) = (first, last, most) {
                println!("  {name}: {first} at first, {most} at most, {last} at last");
            }
        }
        if let Some(failure) = report.failure {
            passed = false;
            println!("seed {seed} FAILED: {}", failure.what);
            failure.events.iter().for_each(|event| println!("    {event}"));
        }
    }
    println!("{:.1} s", started.elapsed().as_secs_f64());
    passed
}

/// Real time after which a case counts as hanging: usual ones take milliseconds.
const CASE_SECONDS_MAX: u64 = 60;
/// Most memory that cases may have taken together at their peaks: a pool of this size needs 50 MB.
const PEAK_BYTES_MAX: u64 = 1 << 30;

/// Cases of changed pools; whether none panicked, hung or took memory without bound.
pub(crate) fn mutate(
    seeds: &RangeInclusive<u64>,
    jobs: u16,
    limit_seconds: Option<u64>,
    started: Instant,
) -> bool {
    let next = AtomicU64::new(*seeds.start());
    let limit = limit_seconds.map(Duration::from_secs);
    let (done, ended) = mpsc::channel::<()>();
    let results = Mutex::new((0_u64, Vec::new(), Vec::new()));
    // The case of each thread, and when it began: seconds since the start, and 1.
    let running: Vec<[AtomicU64; 2]> = (0..jobs).map(|_| Default::default()).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| watch(&running, ended, started));
        let threads: Vec<_> = running
            .iter()
            .map(|slot| {
                scope.spawn(|| {
                    let bases = bases();
                    while limit.is_none_or(|limit| started.elapsed() < limit) {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if !seeds.contains(&seed) {
                            return;
                        }
                        slot[0].store(seed, Ordering::Relaxed);
                        slot[1].store(started.elapsed().as_secs() + 1, Ordering::Relaxed);
                        let report = mutated::run(&bases[(seed % mutated::BASES) as usize], seed);
                        slot[1].store(0, Ordering::Relaxed);
                        let mut results = results.lock().expect("no case panics with it");
                        tell(&report, &mut results.1);
                        results.0 += 1;
                        add_branches(&mut results.2, &report.branches);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("cases catch their panics");
        }
        drop(done);
    });
    let (cases, failed, branches) = results.into_inner().expect("no case panics with it");
    print_branches(&branches);
    let peak: u64 = profile::report().holdings.iter().map(|holding| holding.peak_bytes).sum();
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{cases} cases, {} failed; peak of memory {} MB; {seconds:.1} s",
        failed.len(),
        peak >> 20
    );
    if peak > PEAK_BYTES_MAX {
        println!("FAILED: some case took memory without bound");
    }
    failed.is_empty() && peak <= PEAK_BYTES_MAX
}

fn bases() -> Vec<mutated::Base> {
    let made = (1..=mutated::BASES).map(mutated::base);
    made.collect::<Result<_, _>>().expect("the pools to start from are made without faults")
}

fn tell(report: &SeedReport, failed: &mut Vec<u64>) {
    let Some(failure) = &report.failure else { return };
    failed.push(report.seed);
    println!("case {} FAILED: {}", report.seed, failure.what);
    println!("  replay: cargo run --profile sim -p engine-sim -- --mutate --seed {}", report.seed);
    failure.events.iter().take(8).for_each(|event| println!("    {event}"));
}

/// Ends the program when a case does not end: a loop without a wait cannot be stopped otherwise.
fn watch(running: &[[AtomicU64; 2]], ended: mpsc::Receiver<()>, started: Instant) {
    let pause = Duration::from_millis(200);
    while ended.recv_timeout(pause) == Err(mpsc::RecvTimeoutError::Timeout) {
        for [seed, since] in running {
            let since = since.load(Ordering::Relaxed);
            if since > 0 && started.elapsed().as_secs() + 1 > since + CASE_SECONDS_MAX {
                println!("case {} FAILED: hangs", seed.load(Ordering::Relaxed));
                std::process::exit(2);
            }
        }
    }
}
