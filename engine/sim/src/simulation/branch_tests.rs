//! A fixed set of seeds comes through every branch of recovery, but those that are listed.

use super::*;

/// Seeds that are tried until all branches are reached; it is fewer, as the engine is now.
const SEEDS: u64 = 300;

/// Runs with what the rare branches need: operations over several shards, all the time, many
/// crashes, and few flushes.
fn busy(seed: u64, faults: FaultMode) -> Options {
    let mut options = Options::short(seed, 400);
    (options.faults, options.shard_count) = (faults, 2);
    options.damage = (faults == FaultMode::Damage)
        .then(|| Options::of_seed(seed, 1, FaultMode::Damage, None).damage)
        .flatten();
    options.administration = faults != FaultMode::Damage;
    options.fills_runs_first = seed.is_multiple_of(2);
    (options.operations_per_crash, options.crash_in_recovery_eighths) = (20, 4);
    (options.power_loss_eighths, options.error_ppm) = (4, 20_000);
    options.tree_mix.size_max = 10 * engine_base::MIB;
    (options.volume_mix.flush, options.volume_mix.fua) = (1, 0);
    if faults == FaultMode::Damage {
        options.volume_mix.resize = 0;
    }
    options
}

/// Branches that these runs cannot come through, or only by rare chance, and why.
const NOT_REACHED: [(&str, &str); 4] = [
    (
        "copy: its place names something else that is shared, so read and written",
        "needs a bucket whose generations began anew when its region moved, and what was shared in it then; a test of \
         the engine has it",
    ),
    (
        "journal: no flush entry, refused",
        "every ring keeps several flush entries, and no disk here destroys them all",
    ),
    (
        "tables: a bucket holds what it cannot, refused",
        "needs a record or checkpoint that is wrong and has a right checksum",
    ),
    (
        "tail: entries that do not follow the newest flush entry",
        "needs the newest flush entry destroyed while the one that its run had skipped to is left",
    ),
];

/// The same with nobody who flushes, so that nodes are written between two flush entries because the
/// journal fills up.
fn quiet(seed: u64, faults: FaultMode) -> Options {
    let mut options = busy(seed, faults);
    (options.operations, options.operations_per_crash) = (900, 400);
    (options.administration, options.power_loss_eighths) = (false, 8);
    (options.volume_mix.flush, options.volume_mix.resize, options.tree_mix.sync) = (0, 0, 0);
    (options.volume_mix.blocks_max, options.tree_mix.bytes_max) = (4, 5_000);
    (options.latency.usual_ns_max, options.latency.spikes_ppm) = (2_000, 0);
    options.message_ns_max = 200;
    options
}

/// A pool that gets full, so that copygc has work to do.
fn full(seed: u64, faults: FaultMode) -> Options {
    let mut options = Options::of_seed(seed, 1200, faults, None);
    options.damage = None;
    options.fill_up();
    options.fills_runs_first = seed.is_multiple_of(2);
    options
}

#[test]
fn every_branch_of_recovery_is_reached() {
    let names: Vec<&str> = reached::Branch::ALL.iter().map(|(_, words)| *words).collect();
    for (name, _) in NOT_REACHED {
        assert!(names.contains(&name), "{name} is not a branch any more");
    }
    let kinds = [FaultMode::Crash, FaultMode::Eio, FaultMode::Damage];
    let runs = (1..=SEEDS).flat_map(|seed| {
        kinds.map(|kind| match (seed % 3, kind) {
            (0, FaultMode::Crash) => full(seed, kind),
            (0, kind) => Options::of_seed(seed, 300, kind, None),
            (1, kind) => busy(seed, kind),
            (_, kind) => quiet(seed, kind),
        })
    });
    let mut missing = names;
    missing.retain(|name| NOT_REACHED.iter().all(|(other, _)| other != name));
    for options in runs {
        if missing.is_empty() {
            break;
        }
        let report = run(&options);
        let (seed, faults) = (options.seed, options.faults);
        assert_eq!(report.failure, None, "seed {seed}, {faults:?}");
        let seen: Vec<_> = report.branches.into_iter().filter(|(_, count)| *count > 0).collect();
        missing.retain(|name| seen.iter().all(|(seen, _)| seen != name));
    }
    assert!(missing.is_empty(), "not reached: {missing:?}");
}
