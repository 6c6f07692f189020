//! The ways to run that are not seed after seed: crashes at every write, and a long day.

use std::ops::RangeInclusive;
use std::time::Instant;

use engine_memory::profile;
use engine_sim::options::Options;
use engine_sim::simulation::{exhaustive, long};

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
