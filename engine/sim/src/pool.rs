//! One process of a pool: shards on cores, over disks that outlive it.

use std::cell::Cell;
use std::rc::Rc;

use engine_base::ShardId;
use engine_base::random::Random;
use engine_store::engine::EngineConfig;
use engine_store::limits::Limits;
use engine_store::pool::FormatOptions;
use engine_store::shard::{Shard, ShardConfig};
use engine_store::superblock::Superblock;

use crate::disk::SimDisk;
use crate::executor::Executor;
use crate::mesh::{Mesh, MeshLie};
use crate::options::{FormatSizes, Options, Plant};
use crate::world::{Refusal, Shared};

/// A running process.
pub struct Process {
    /// Its messages.
    pub mesh: Mesh,
    shard_count: u16,
    open: Rc<Cell<u16>>,
    refused: Rc<Cell<bool>>,
}

impl Process {
    /// Starts to open every shard, each on a core of its own.
    #[must_use]
    pub fn start(
        executor: &Executor,
        disks: &[SimDisk],
        options: &Options,
        world: &Shared,
    ) -> Self {
        let lie = match options.plant {
            Some(Plant::Mesh(lie)) => Some(lie),
            _ => None::<MeshLie>,
        };
        let (shard_count, cache_bytes) = (options.shard_count, options.cache_bytes);
        let data_cache_bytes = options.data_cache_bytes;
        let (region_tables, discard_delay_ns) = (options.region_tables, options.discard_delay_ns);
        let fills_runs_first = options.fills_runs_first;
        let mesh = Mesh::new(executor, shard_count, options.message_ns_max, lie);
        let process = Self { mesh, shard_count, open: Rc::default(), refused: Rc::default() };
        for shard in (0..shard_count).map(ShardId) {
            let config = ShardConfig {
                engine: EngineConfig {
                    shard,
                    shard_count,
                    runtime: executor.core(shard.0),
                    members: disks.iter().map(SimDisk::queue).collect(),
                },
                peers: process.mesh.peer(shard),
                // Few blocks, so that a check that a crash cuts short has noted a place.
                limits: Limits { fsck_note_blocks: 16, ..Limits::default() },
            };
            let (mesh, world) = (process.mesh.clone(), Rc::clone(world));
            let (open, refused) = (Rc::clone(&process.open), Rc::clone(&process.refused));
            let task = Box::pin(async move {
                match Shard::open(config).await {
                    Ok(opened) => {
                        opened.engine().set_cache_bytes(cache_bytes);
                        opened.set_data_cache_bytes(data_cache_bytes);
                        opened.engine().set_region_tables_max(region_tables);
                        opened.engine().set_discard_delay_ns(discard_delay_ns);
                        opened.engine().set_fills_runs_first(fills_runs_first);
                        mesh.opened(shard, opened);
                        open.set(open.get() + 1);
                    }
                    Err(error) => {
                        refused.set(true);
                        let world = &mut *world.borrow_mut();
                        // A failed write may leave its blocks unreadable, those of the journal too.
                        match world.judge(&error) {
                            Refusal::Device => world.mark("open_refused"),
                            _ => world.fail(format!("shard {shard} does not open: {error}")),
                        }
                    }
                }
            });
            executor.spawn(shard.0, "open", task);
        }
        process
    }

    /// Whether every shard is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open.get() == self.shard_count
    }

    /// Whether a shard did not open because a device failed or damage was found.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.refused.get()
    }

    /// Stops every shard in good order; `finished` becomes true.
    pub fn shut_down(&self, executor: &Executor, world: &Shared, finished: &Rc<Cell<bool>>) {
        let (shards, world, finished) = (self.mesh.shards(), Rc::clone(world), Rc::clone(finished));
        let task = Box::pin(async move {
            // Shard 0 last: writing out what is left may need a region from it.
            for shard in shards.iter().rev() {
                if let Err(error) = shard.shutdown().await {
                    let world = &mut *world.borrow_mut();
                    match world.judge(&error) {
                        Refusal::Device => world.mark("shutdown_refused"),
                        _ => world.fail(format!("shutdown: {error}")),
                    }
                }
            }
            finished.set(true);
        });
        executor.spawn(0, "shutdown", task);
    }
}

/// Formats the disks as one pool.
///
/// # Errors
/// Those of the engine.
pub async fn format(
    disks: &[SimDisk],
    shard_count: u16,
    sizes: FormatSizes,
    random: &mut Random,
) -> engine_store::Result<Superblock> {
    let queues: Vec<_> = disks.iter().map(SimDisk::queue).collect();
    let options = FormatOptions {
        label: "simulated".to_owned(),
        shards: Some(shard_count),
        bucket_bytes: Some(sizes.bucket_bytes),
        node_bytes: Some(sizes.node_bytes),
        journal_bytes: Some(sizes.journal_bytes),
        created_ns: 1,
        uuid_seed: [random.next_u64(), random.next_u64()],
        ..FormatOptions::default()
    };
    engine_store::pool::format(&queues, &options).await
}
