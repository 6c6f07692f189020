//! The engine alone, against a map: small nodes, a small journal and a small cache, so that splits,
//! joins, eviction, reclaim and replay happen all the time.

use std::collections::BTreeMap;
use std::rc::Rc;

use engine_base::ShardId;
use engine_base::random::Random;
use engine_base::runtime::{LocalBoxFuture, Runtime};
use engine_device::{BlockDevice, MemoryDevice};

use super::{TestRuntime, with_seeds};
use crate::RegionSource;
use crate::api::{FsckReport, Region};
use crate::engine::{Engine, EngineConfig};
use crate::error::Result;
use crate::key::{Counter, Position, Tree, Value};
use crate::pool::FormatOptions;

/// Regions straight from the engine itself, which is shard 0.
pub(super) struct OwnRegions(pub(super) std::rc::Weak<Engine>);

impl RegionSource for OwnRegions {
    fn acquire(&self, _short: Option<u64>) -> LocalBoxFuture<'static, Result<Option<Region>>> {
        let engine = self.0.upgrade().expect("the engine asks");
        Box::pin(async move { engine.region_acquire(ShardId(0)).await })
    }

    fn list(&self) -> LocalBoxFuture<'static, Result<Vec<Region>>> {
        let engine = self.0.upgrade().expect("the engine asks");
        Box::pin(async move { engine.region_list(ShardId(0)).await })
    }
}

pub(super) async fn open(
    runtime: &Rc<TestRuntime>,
    device: &MemoryDevice,
    cache_bytes: usize,
) -> Rc<Engine> {
    let queue = device.open_queue(32).unwrap();
    runtime.add_queue(Rc::clone(&queue));
    let config = EngineConfig {
        shard: ShardId(0),
        shard_count: 1,
        runtime: Rc::clone(runtime) as Rc<dyn Runtime>,
        members: vec![queue],
    };
    let engine = Engine::open(config).await.unwrap();
    engine.set_cache_bytes(cache_bytes);
    engine.set_region_source(Rc::new(OwnRegions(Rc::downgrade(&engine))));
    engine
}

pub(super) fn small_pool(runtime: &Rc<TestRuntime>, mib: u64) -> MemoryDevice {
    let device = MemoryDevice::new("memory", mib << 20, 4096);
    let formatted = device.clone();
    let inner = Rc::clone(runtime);
    runtime.block_on(async move {
        let queue = formatted.open_queue(32).unwrap();
        inner.add_queue(Rc::clone(&queue));
        let options = FormatOptions {
            shards: Some(1),
            bucket_bytes: Some(64 << 10),
            node_bytes: Some(16 << 10),
            journal_bytes: Some(1 << 20),
            ..FormatOptions::default()
        };
        crate::pool::format(&[queue], &options).await.unwrap();
    });
    device
}

type Model = BTreeMap<Position, Vec<u8>>;

async fn churn(engine: &Engine, random: &mut Random, model: &mut Model, steps: u32) {
    for _ in 0..steps {
        let count = *random.pick(&[1, 1, 3, 40]);
        let base = random.below(4000);
        let delete = random.chance(2, 5);
        let mut changes = Vec::new();
        for step in 0..count {
            let position = Position::new(base / 100, (base * 7 + step * 3) % 5000, 1);
            let mut bytes = vec![0; random.range(1, 120) as usize];
            random.fill(&mut bytes);
            changes.push((position, (!delete).then_some(bytes)));
        }
        engine
            .transact(async |transaction| {
                for (position, bytes) in &changes {
                    match bytes {
                        Some(bytes) => {
                            let value = Value::from_slice(bytes);
                            transaction.put(Tree::Xattrs, *position, value);
                        }
                        None => transaction.delete(Tree::Xattrs, *position),
                    }
                }
                transaction.add(Counter(99), 1);
                Ok(())
            })
            .await
            .unwrap();
        for (position, bytes) in changes {
            match bytes {
                Some(bytes) => model.insert(position, bytes),
                None => model.remove(&position),
            };
        }
    }
}

async fn compare(engine: &Engine, model: &Model) {
    let mut transaction = engine.read();
    let mut from = Position::MIN;
    let mut found = Model::new();
    while let Some((position, value)) =
        transaction.next(Tree::Xattrs, from, Position::MAX).await.unwrap()
    {
        found.insert(position, value.to_vec());
        from = position.successor();
    }
    assert_eq!(found.len(), model.len());
    assert!(found == *model);
    let mut report = FsckReport::default();
    engine.check(&mut report).await.unwrap();
    assert_eq!(report.problems, Vec::<String>::new());
}

#[test]
fn keys_survive_churn_and_reopening() {
    with_seeds(|seed| {
        let runtime = TestRuntime::new(seed);
        let device = small_pool(&runtime, 32);
        let mut random = Random::new(seed);
        let mut model = Model::new();
        let mut rounds = 0;
        for _ in 0..8 {
            let (inner, disk) = (Rc::clone(&runtime), device.clone());
            let (mut own, mut dice) = (std::mem::take(&mut model), random.fork());
            let done = rounds;
            (model, rounds) = runtime.block_on(async move {
                let engine = open(&inner, &disk, 200 << 10).await;
                compare(&engine, &own).await;
                assert_eq!(engine.counter(Counter(99)), done);
                let steps = dice.range(20, 900) as u32;
                churn(&engine, &mut dice, &mut own, steps).await;
                compare(&engine, &own).await;
                engine.flush().await.unwrap();
                let counters: BTreeMap<_, _> = engine.counters().into_iter().collect();
                println!("{counters:?}");
                (own, done + u64::from(steps))
            });
            runtime.crash();
        }
    });
}
