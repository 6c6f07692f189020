use super::*;

const OPERATIONS: u64 = 300;

fn report(seed: u64, plant: Option<Plant>) -> SeedReport {
    run(&Options::of_seed(seed, OPERATIONS, FaultMode::All, plant))
}

/// The first seed that finds `plant`.
fn seeds_until_found(plant: Plant) -> Option<u64> {
    (1..=40).find(|seed| report(*seed, Some(plant)).failure.is_some())
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 100..106 {
        let (once, again) = (report(seed, None), report(seed, None));
        assert_eq!(once, again, "seed {seed}");
        assert_ne!(once.event_digest, report(seed + 1000, None).event_digest);
    }
}

#[test]
fn promises_are_kept_under_crashes() {
    for seed in 1..=10 {
        let report = report(seed, None);
        assert_eq!(report.failure, None, "seed {seed}");
        assert!(report.operations >= OPERATIONS, "seed {seed}");
    }
}

#[test]
fn a_lying_disk_is_noticed() {
    use crate::disk::DiskLie;
    for lie in
        [DiskLie::IgnoresFlush, DiskLie::FlushesHalf, DiskLie::DropsWrites, DiskLie::Misdirects]
    {
        assert!(seeds_until_found(Plant::Disk(lie)).is_some(), "{lie:?}");
    }
}

#[test]
fn lying_messages_are_noticed() {
    use crate::mesh::MeshLie;
    for lie in
        [MeshLie::DropsWrites, MeshLie::DropsFlushes, MeshLie::DropsNames, MeshLie::LosesAnswers]
    {
        assert!(seeds_until_found(Plant::Mesh(lie)).is_some(), "{lie:?}");
    }
}

/// A panic of the engine is a failure with its seed, not the end of the simulator.
#[test]
fn a_run_reports_and_does_not_panic() {
    let mut options = Options::of_seed(1, OPERATIONS, FaultMode::Crash, None);
    // More shards than the disks have room for.
    options.shard_count = 4;
    options.members.truncate(1);
    options.members[0].size_bytes = 16 << 20;
    options.format.bucket_bytes = 1 << 20;
    options.format.journal_bytes = 4 << 20;
    let report = run(&options);
    let failure = report.failure.map(|failure| failure.what).unwrap_or_default();
    assert!(failure.contains("format"), "{failure}");
}

/// What a disk destroys is not served, and not passed over in silence; each kind of damage is met, by
/// runs that go on and by runs that are refused.
#[test]
fn damage_is_told_and_never_served() {
    let (mut kinds, mut marks) = (Vec::new(), BTreeMap::<&str, u64>::new());
    for seed in 1..=24 {
        let options = Options::of_seed(seed, OPERATIONS, FaultMode::Damage, None);
        let kind = options.damage.expect("runs of this kind have damage");
        let report = run(&options);
        assert_eq!(report.failure, None, "seed {seed}, {kind:?}");
        for (name, count) in report.marks {
            *marks.entry(name).or_default() += count;
        }
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    assert_eq!(kinds.len(), 4);
    for name in ["disk_damages", "damage_reported", "fsck_reported_damage", "open_refused"] {
        assert!(marks.get(name).is_some_and(|count| *count > 0), "{name} of {marks:?}");
    }
}

#[test]
fn members_that_vanish_cost_errors_and_no_data() {
    let mut vanished = 0;
    for seed in 1..=24 {
        let mut options = Options::of_seed(seed, OPERATIONS, FaultMode::Eio, None);
        options.vanishing = true;
        let report = run(&options);
        assert_eq!(report.failure, None, "seed {seed}");
        vanished += report.marks.get("vanishings_planned").copied().unwrap_or(0);
    }
    assert!(vanished > 0);
}

#[test]
fn only_some_seeds_destroy_and_stall() {
    let all: Vec<Options> =
        (1..=200).map(|seed| Options::of_seed(seed, 1, FaultMode::All, None)).collect();
    let damaging = all.iter().filter(|options| options.damage.is_some()).count();
    let stalling = all.iter().filter(|options| options.latency.stalls_ppm > 0).count();
    assert!((10..50).contains(&damaging), "{damaging}");
    assert!((20..70).contains(&stalling), "{stalling}");
}

#[test]
fn who_waits_for_ever_is_told_with_what_it_waits_for() {
    let lost = Some(Plant::Mesh(crate::mesh::MeshLie::LosesAnswers));
    // It may as well be the reading back that waits for ever.
    let of_a_client = |failure: &Failure| failure.what.contains("is at an operation for");
    let mut failures = (1..=40).filter_map(|seed| report(seed, lost).failure);
    let found = failures.find(of_a_client).expect("answers to clients get lost");
    assert!(found.what.starts_with("hang: "), "{}", found.what);
    for part in ["waits", "of shard", "tasks \"client\" on core 0"] {
        assert!(found.what.contains(part), "{part} in {}", found.what);
    }
}

/// A crash at some of the writes of short scripts, in all styles; `--exhaustive` does all of them.
#[test]
fn a_crash_at_any_write_keeps_all_promises() {
    let mut marks = BTreeMap::<&str, u64>::new();
    let mut runs = 0;
    for seed in 1..=8 {
        let report = exhaustive::run(&Options::short(seed, 40), 23);
        assert_eq!(report.failure, None, "seed {seed}");
        assert!(report.writes > 40, "seed {seed}: {} writes", report.writes);
        runs += report.runs;
        for (name, count) in report.whole.marks {
            *marks.entry(name).or_default() += count;
        }
    }
    assert!(runs > 40, "{runs}");
    for kind in ["write", "write fua", "discard", "create", "unlink", "rename", "file_write"]
        .iter()
        .chain(&["truncate", "punch", "mkdir", "symlink", "xattr_set", "subvolume_create"])
    {
        assert!(marks.contains_key(kind), "no {kind} in {marks:?}");
    }
}

#[test]
fn a_script_is_the_same_up_to_the_write_at_which_it_is_cut() {
    use crate::disk::CutStyle;
    let options = Options::short(3, 20);
    let (once, again) = (
        exhaustive::run_at(&options, 30, CutStyle::AllTorn),
        exhaustive::run_at(&options, 30, CutStyle::AllTorn),
    );
    assert_eq!(once, again);
    assert_eq!(once.failure, None);
    let past_the_end = exhaustive::run_at(&options, 1_000_000, CutStyle::AllTorn);
    assert!(past_the_end.failure.is_some());
}

/// What every recovery leaves is counted anew by fsck: space, names, references.
#[test]
fn space_is_counted_anew_after_every_recovery() {
    for seed in 1..=6 {
        let report = run(&Options::of_seed(seed, OPERATIONS, FaultMode::Crash, None));
        assert_eq!(report.failure, None, "seed {seed}");
        let mark = |name| report.marks.get(name).copied().unwrap_or(0);
        let recoveries = mark("power_loss_survived") + mark("process_crash_survived");
        // And twice at the end.
        assert_eq!(mark("fsck"), recoveries + 2, "seed {seed}");
    }
}
