//! What a run does, drawn from its seed: each seed has a character of its own ("swarm testing", Groce
//! et al. 2012), so that rare combinations come up that a mix of everything would drown.

use engine_base::random::Random;
use engine_base::{KIB, MIB};

use crate::disk::{DiskGeometry, DiskLie, Latency};
use crate::executor::Schedule;
use crate::mesh::MeshLie;

/// Which faults a run injects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultMode {
    /// None: delays only.
    None,
    /// Crashes and power losses. All promises must be kept.
    Crash,
    /// Device errors, with crashes between. Errors are allowed, wrong data is not.
    Eio,
    /// A device destroys what it holds ([`Damage`]), with crashes between. Refusals are allowed, wrong
    /// data is not.
    Damage,
    /// Each seed one of these.
    All,
}

/// How a device of a run destroys what it was given. There is no second copy to repair from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Bits flip at rest.
    Rot,
    /// Now and then a write goes elsewhere.
    Misdirected,
    /// Now and then a write is answered and not made.
    LostWrites,
    /// Flushes cover nothing, or only a part of what they must.
    LyingFlushes,
}

/// A bug that is planted to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// In the disk.
    Disk(DiskLie),
    /// In the messages.
    Mesh(MeshLie),
    /// In the engine (needs the feature `planted-bugs`).
    #[cfg(feature = "planted-bugs")]
    Engine(engine_store::planted::Bug),
}

impl Plant {
    /// All bugs, by name.
    #[must_use]
    pub fn all() -> Vec<(&'static str, Self)> {
        #[allow(unused_mut)]
        let mut all = vec![
            ("disk-ignores-flush", Self::Disk(DiskLie::IgnoresFlush)),
            ("disk-flushes-half", Self::Disk(DiskLie::FlushesHalf)),
            ("disk-drops-writes", Self::Disk(DiskLie::DropsWrites)),
            ("disk-misdirects", Self::Disk(DiskLie::Misdirects)),
            ("mesh-drops-writes", Self::Mesh(MeshLie::DropsWrites)),
            ("mesh-drops-flushes", Self::Mesh(MeshLie::DropsFlushes)),
            ("mesh-drops-names", Self::Mesh(MeshLie::DropsNames)),
            ("mesh-loses-answers", Self::Mesh(MeshLie::LosesAnswers)),
        ];
        #[cfg(feature = "planted-bugs")]
        all.extend(
            engine_store::planted::Bug::ALL.iter().map(|(name, bug)| (*name, Self::Engine(*bug))),
        );
        all
    }

    /// Whether this bug shows only when a write of an index node is lost and the node is read again.
    fn needs_lost_nodes(self) -> bool {
        #[cfg(feature = "planted-bugs")]
        {
            use engine_store::planted::Bug;
            if matches!(self, Self::Engine(Bug::StaleNodeAccepted)) {
                return true;
            }
        }
        false
    }

    /// The faults that a run needs in which this bug can show, where ordinary runs have them rarely.
    #[must_use]
    pub fn needs(self) -> Option<FaultMode> {
        #[cfg(feature = "planted-bugs")]
        {
            use engine_store::planted::Bug;
            if matches!(self, Self::Engine(Bug::StaleNodeAccepted | Bug::ChecksumNotVerified)) {
                return Some(FaultMode::Damage);
            }
        }
        None
    }
}

/// Chances of the operations of a volume's client, relative to each other.
#[derive(Clone, Debug)]
pub struct VolumeMix {
    /// Plain writes.
    pub write: u64,
    /// Reads.
    pub read: u64,
    /// Discards.
    pub discard: u64,
    /// Flushes.
    pub flush: u64,
    /// Durable writes.
    pub fua: u64,
    /// Resizes, where a volume has one client.
    pub resize: u64,
    /// Snapshots: made, read, deleted, and where a volume has one client, returned to.
    pub snapshot: u64,
    /// How new data is stored, where a volume has one client.
    pub options: u64,
    /// Copies within it, where a volume has one client.
    pub copy: u64,
    /// Most blocks of one write.
    pub blocks_max: u64,
    /// Chance in 8 that an operation falls on the hot spot.
    pub hot_eighths: u64,
}

/// Chances of the operations of a tree's client, relative to each other.
#[derive(Clone, Debug)]
pub struct TreeMix {
    /// Create, symlink, mkdir.
    pub create: u64,
    /// Unlink, rmdir.
    pub remove: u64,
    /// Rename and link.
    pub rename: u64,
    /// Writes and appends.
    pub write: u64,
    /// Truncate and punch.
    pub cut: u64,
    /// Attributes and xattrs.
    pub attributes: u64,
    /// Reads of every kind, listings among them.
    pub look: u64,
    /// fsync and flush.
    pub sync: u64,
    /// Snapshots: made, read, deleted, returned to, cloned.
    pub snapshot: u64,
    /// How new data is stored.
    pub options: u64,
    /// Copies from file to file.
    pub copy: u64,
    /// Most nodes of a tree.
    pub nodes_max: u64,
    /// Most bytes of one write.
    pub bytes_max: u64,
    /// Most bytes of a file.
    pub size_max: u64,
}

/// Sizes chosen at format time, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatSizes {
    /// A bucket.
    pub bucket_bytes: u32,
    /// An index node.
    pub node_bytes: u32,
    /// A shard's journal.
    pub journal_bytes: u64,
}

/// Everything a run is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// The seed.
    pub seed: u64,
    /// Operations of clients in the whole run.
    pub operations: u64,
    /// Faults; never `All`.
    pub faults: FaultMode,
    /// The planted bug.
    pub plant: Option<Plant>,
    /// Shards of the pool.
    pub shard_count: u16,
    /// Its members.
    pub members: Vec<DiskGeometry>,
    /// Bytes of a bucket, of an index node, and of each shard's journal: small, so that nodes split,
    /// the journal wraps and space is collected.
    pub format: FormatSizes,
    /// Memory for index nodes of a shard in bytes.
    pub cache_bytes: usize,
    /// Memory for data of a shard in bytes; 0: none.
    pub data_cache_bytes: usize,
    /// Nanoseconds for which emptied buckets stay free before they are discarded.
    pub discard_delay_ns: u64,
    /// Tables of regions that a shard keeps in memory when they are idle.
    pub region_tables: usize,
    /// What copygc moves goes between live blocks also while there are free buckets.
    pub fills_runs_first: bool,
    /// How fast they are.
    pub latency: Latency,
    /// Longest time of a message in nanoseconds.
    pub message_ns_max: u64,
    /// Order of tasks.
    pub schedule: Schedule,
    /// Size in blocks of each volume, and its clients.
    pub volumes: Vec<(u64, u32)>,
    /// Trees, with one client each.
    pub trees: u32,
    /// Whether subvolumes and records come and go.
    pub administration: bool,
    /// Mix of the volumes' clients.
    pub volume_mix: VolumeMix,
    /// Mix of the trees' clients.
    pub tree_mix: TreeMix,
    /// Most operations between two crashes.
    pub operations_per_crash: u64,
    /// Chance in 8 that a crash takes the power too.
    pub power_loss_eighths: u64,
    /// Chance in 8 of another crash while the pool opens again.
    pub crash_in_recovery_eighths: u64,
    /// Longest pause of a client before an operation in nanoseconds.
    pub pause_ns_max: u64,
    /// Errors per million device operations, in runs that have errors.
    pub error_ppm: u32,
    /// In runs that have errors: whether members vanish, too, and come back.
    pub vanishing: bool,
    /// What a device destroys, in runs of that kind.
    pub damage: Option<Damage>,
    /// Events kept for the report of a failure; changes nothing else.
    pub events_kept: usize,
}

impl Options {
    /// The options of `seed`.
    #[must_use]
    pub fn of_seed(seed: u64, operations: u64, faults: FaultMode, plant: Option<Plant>) -> Self {
        let mut options = Self::drawn(seed, operations, faults, plant);
        // A stream of its own, too.
        let full = Random::new(seed ^ 0x6675_6c6c).chance(1, 8);
        if full && options.damage.is_none() && plant.is_none() {
            options.fill_up();
        }
        if plant.is_some_and(Plant::needs_lost_nodes) && options.damage.is_some() {
            options.damage = Some(Damage::LostWrites);
            options.cache_bytes = 1 << 18;
        }
        options
    }

    /// Makes a pool that gets full: its volumes are larger than it is, and written widely. So admission
    /// refuses, copygc works at its limit, and shards need each other's regions.
    pub(crate) fn fill_up(&mut self) {
        let shards = u64::from(self.shard_count);
        let size_bytes = 24 * MIB * shards;
        self.members.truncate(1);
        for member in &mut self.members {
            member.size_bytes = size_bytes;
        }
        self.format.bucket_bytes = self.format.bucket_bytes.min(256 << 10);
        self.format.node_bytes = self.format.node_bytes.min(self.format.bucket_bytes);
        self.volumes = vec![(6 * 1024, 1); 1 + usize::from(self.shard_count)];
        let mix = &mut self.volume_mix;
        (mix.write, mix.blocks_max, mix.hot_eighths) = (mix.write.max(20), 256, 0);
    }

    fn drawn(seed: u64, operations: u64, faults: FaultMode, plant: Option<Plant>) -> Self {
        let random = &mut Random::new(seed ^ 0x7365_6564);
        // A stream of its own: a switch added here leaves the rest of every seed as it was.
        let mut switches = Random::new(seed ^ 0x7377_6974);
        let faults = choose_faults(random, &mut switches, faults, plant);
        let damage = damage(&mut switches, faults);
        let shard_count = *random.pick(&[1, 2, 4]);
        let members = members(random, shard_count);
        let total: u64 = members.iter().map(|member| member.size_bytes).sum();
        let volumes = volumes(random, total);
        let least_trees = u64::from(volumes.is_empty());
        let operations_per_crash = *random.pick(&[20, 100, 400, 2000]);
        let (mut volume_mix, mut tree_mix) = (volume_mix(random), tree_mix(random));
        // Nobody flushes: the journal goes on for long without a flush entry.
        let quiet = random.chance(1, 5);
        if quiet {
            (volume_mix.flush, volume_mix.fua, volume_mix.resize, tree_mix.sync) = (0, 0, 0, 0);
        }
        if damage.is_some() {
            // What is answered when it is durable has no history to compare with.
            volume_mix.resize = 0;
        }
        let durable = !quiet && damage.is_none();
        rare_work(seed, durable, &mut volume_mix, &mut tree_mix);
        Self {
            seed,
            operations,
            faults,
            plant,
            shard_count,
            members,
            format: format_sizes(random, total / u64::from(shard_count)),
            cache_bytes: *random.pick(&[1 << 18, 1 << 20, 64 << 20]),
            data_cache_bytes: Self::data_cache_bytes(seed),
            discard_delay_ns: Self::discard_delay_ns(seed),
            region_tables: *Random::new(seed ^ 0x7461_6273).pick(&[1, 4, 1000]),
            fills_runs_first: Random::new(seed ^ 0x7275_6e73).chance(1, 6),
            latency: with_stalls(&mut switches, latency(random)),
            message_ns_max: *random.pick(&[200, 2_000, 200_000]),
            schedule: *random.pick(&[
                Schedule::Random,
                Schedule::Random,
                Schedule::Fifo,
                Schedule::Bursts,
            ]),
            volumes,
            trees: random.range(least_trees, 3) as u32,
            administration: !quiet && random.chance(1, 2) && durable,
            volume_mix,
            tree_mix,
            operations_per_crash,
            power_loss_eighths: *random.pick(&[4, 6, 8]),
            crash_in_recovery_eighths: *random.pick(&[0, 1, 4]),
            pause_ns_max: 0,
            error_ppm: *random.pick(&[100, 1_000, 20_000]),
            vanishing: switches.chance(1, 3),
            damage,
            events_kept: 60,
        }
    }

    /// A small pool with all kinds of clients, one of each, for a run that is repeated with a crash at
    /// each of its writes. Small buckets and nodes: as much as possible happens in few operations.
    #[must_use]
    pub fn short(seed: u64, operations: u64) -> Self {
        let mut options = Self::of_seed(seed, operations, FaultMode::Crash, None);
        let random = &mut Random::new(seed ^ 0x7368_6f72);
        options.shard_count = *random.pick(&[1, 2]);
        options.members.truncate(2);
        options.members.iter_mut().for_each(|member| member.size_bytes = 64 * MIB);
        options.format = FormatSizes {
            bucket_bytes: 64 * KIB as u32,
            node_bytes: 16 * KIB as u32,
            journal_bytes: MIB,
        };
        options.cache_bytes = 1 << 18;
        options.region_tables = 1;
        options.latency.stalls_ppm = 0;
        options.volumes = vec![(*random.pick(&[64, 1500]), 1)];
        (options.trees, options.administration) = (1, true);
        options.volume_mix = VolumeMix {
            write: 6,
            read: 1,
            discard: 2,
            flush: 1,
            fua: 2,
            resize: 1,
            snapshot: 1,
            options: 1,
            copy: 2,
            blocks_max: *random.pick(&[4, 64]),
            hot_eighths: 4,
        };
        options.tree_mix = TreeMix {
            create: 6,
            remove: 2,
            rename: 3,
            write: 6,
            cut: 3,
            attributes: 2,
            look: 1,
            sync: 1,
            snapshot: 1,
            options: 1,
            copy: 2,
            nodes_max: 20,
            bytes_max: *random.pick(&[5_000, 130_000]),
            size_max: *random.pick(&[64 * KIB, 10 * MIB]),
        };
        options
    }

    /// From a stream of its own: a seed does the same with a cache and without.
    fn data_cache_bytes(seed: u64) -> usize {
        *Random::new(seed ^ 0x6461_7461).pick(&[0, 1 << 18, 1 << 20, 16 << 20])
    }

    /// As above.
    fn discard_delay_ns(seed: u64) -> u64 {
        *Random::new(seed ^ 0x6469_7363).pick(&[1_000_000, 5_000_000, 1_000_000_000])
    }

    /// A pool that is used a little, for long: `operations` with pauses, so that they take about
    /// `virtual_ns`, without faults.
    #[must_use]
    pub fn long(seed: u64, operations: u64, virtual_ns: u64) -> Self {
        let mut options = Self::short(seed, operations);
        options.faults = FaultMode::None;
        options.volumes = vec![(1500, 2)];
        (options.volume_mix.resize, options.tree_mix.size_max) = (1, 256 * KIB);
        // Four clients; a pause is half of the longest on average.
        options.pause_ns_max = (virtual_ns / operations.max(1)).saturating_mul(2 * 4);
        options
    }
}

fn choose_faults(
    random: &mut Random,
    switches: &mut Random,
    faults: FaultMode,
    plant: Option<Plant>,
) -> FaultMode {
    // Where a lie is planted, every promise is asked for.
    let lying = matches!(plant, Some(Plant::Disk(_) | Plant::Mesh(_)));
    let damaging = switches.chance(1, 6) && !lying;
    match faults {
        FaultMode::All if random.chance(1, 4) => FaultMode::Eio,
        FaultMode::All if damaging => FaultMode::Damage,
        FaultMode::All => FaultMode::Crash,
        other => other,
    }
}

/// Sizes in blocks and clients.
fn volumes(random: &mut Random, total_bytes: u64) -> Vec<(u64, u32)> {
    // Up to twice the pool in all: some pools get full.
    let most = (total_bytes / 4096 / 2).min(6 * 1024);
    let count = random.range(0, 3);
    (0..count).map(|_| (random.range(16, most), random.range(1, 3) as u32)).collect()
}

fn members(random: &mut Random, shard_count: u16) -> Vec<DiskGeometry> {
    let count = *random.pick(&[1, 1, 1, 2, 3]);
    let least = 32 * u64::from(shard_count);
    let size_bytes = *random.pick(&[least, least * 2, 256]) * MIB;
    let block_size = *random.pick(&[4096, 4096, 512]);
    let atomic_write_bytes = match block_size {
        512 => *random.pick(&[512, 512, 4096]),
        _ => *random.pick(&[4096, 4096, 16384]),
    };
    let geometry = DiskGeometry { size_bytes, block_size, atomic_write_bytes };
    vec![geometry; count]
}

/// `share_bytes`: what each shard has of the pool; it needs some hundred buckets.
fn format_sizes(random: &mut Random, share_bytes: u64) -> FormatSizes {
    let bucket_most = (share_bytes / 128).next_power_of_two().clamp(64 * KIB, MIB);
    let bucket_bytes = ((64 * KIB) << random.below(5)).min(bucket_most);
    let node_bytes = ((16 * KIB) << random.below(3)).min(bucket_bytes);
    let journal_bytes = *random.pick(&[MIB, MIB, 2 * MIB, 4 * MIB]);
    FormatSizes { bucket_bytes: bucket_bytes as u32, node_bytes: node_bytes as u32, journal_bytes }
}

fn latency(random: &mut Random) -> Latency {
    Latency {
        least_ns: 1_000,
        usual_ns_max: *random.pick(&[2_000, 20_000, 200_000]),
        spikes_ppm: *random.pick(&[0, 100, 10_000]),
        spike_ns_max: 50_000_000,
        stalls_ppm: 0,
        stall_ns_max: 0,
    }
}

/// One seed in five has disks that stall: as long as a controller that is reset, and longer.
fn with_stalls(random: &mut Random, latency: Latency) -> Latency {
    let stalls_ppm = if random.chance(1, 5) { *random.pick(&[20, 500]) } else { 0 };
    let stall_ns_max = *random.pick(&[2, 30, 90]) * 1_000_000_000;
    Latency { stalls_ppm, stall_ns_max, ..latency }
}

fn damage(random: &mut Random, faults: FaultMode) -> Option<Damage> {
    let damage =
        *random.pick(&[Damage::Rot, Damage::Misdirected, Damage::LostWrites, Damage::LyingFlushes]);
    (faults == FaultMode::Damage).then_some(damage)
}

/// A weight: often ordinary, sometimes nothing, sometimes dominant.
fn weight(random: &mut Random, usual: u64) -> u64 {
    match random.below(8) {
        0 => 0,
        1 => usual * 8,
        _ => usual,
    }
}

/// How often clients work with what is durable at once: snapshots, options.
fn rare_work(seed: u64, durable: bool, volumes: &mut VolumeMix, trees: &mut TreeMix) {
    (volumes.snapshot, trees.snapshot) = snapshots(seed, durable);
    (volumes.options, trees.options) = options(seed, durable);
}

/// How often clients of volumes and of trees work with snapshots.
fn snapshots(seed: u64, any: bool) -> (u64, u64) {
    let mut random = Random::new(seed ^ 0x736e_6170);
    if !any {
        return (0, 0);
    }
    (*random.pick(&[0, 0, 1, 4]), *random.pick(&[0, 0, 1, 4]))
}

/// How often clients change how new data is stored.
fn options(seed: u64, any: bool) -> (u64, u64) {
    let often = if any { *Random::new(seed ^ 0x6f70_7469).pick(&[0, 0, 1]) } else { 0 };
    (often, often)
}

fn volume_mix(random: &mut Random) -> VolumeMix {
    VolumeMix {
        write: weight(random, 40).max(1),
        read: weight(random, 30).max(1),
        discard: weight(random, 4),
        flush: weight(random, 4),
        fua: weight(random, 4),
        resize: weight(random, 1),
        snapshot: 0,
        options: 0,
        copy: weight(random, 6),
        blocks_max: *random.pick(&[1, 4, 16, 64]),
        hot_eighths: *random.pick(&[0, 4, 7]),
    }
}

fn tree_mix(random: &mut Random) -> TreeMix {
    TreeMix {
        create: weight(random, 12).max(2),
        remove: weight(random, 8).max(1),
        rename: weight(random, 8),
        write: weight(random, 30).max(1),
        cut: weight(random, 8),
        attributes: weight(random, 8),
        look: weight(random, 30).max(1),
        sync: weight(random, 4),
        snapshot: 0,
        options: 0,
        copy: weight(random, 6),
        nodes_max: *random.pick(&[8, 40, 150]),
        bytes_max: *random.pick(&[100, 5_000, 40_000, 130_000]),
        size_max: *random.pick(&[16 * KIB, 256 * KIB, MIB, 10 * MIB]),
    }
}
