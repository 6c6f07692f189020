//! An index larger than the memory for it: what it holds, what it reads, and what stays cached.

use std::collections::BTreeMap;
use std::rc::Rc;

use engine_base::random::Random;
use futures::future::join_all;

use super::engine::{open, small_pool};
use super::{TestRuntime, with_seeds};
use crate::api::FsckReport;
use crate::engine::Engine;
use crate::key::{Position, Tree, Value};
use crate::times::Timed;

/// Nodes of the pools here are 16 KiB on disk; their index takes ten times this and more.
const CACHE_BYTES: usize = 512 << 10;
/// Keys there can be. Each task of a test has those that are its own number modulo [`TASKS`].
const KEYS: u64 = 60_000;
const TASKS: u64 = 8;
const WINDOWS: usize = 8;
const WINDOW_OPERATIONS: u64 = 250;

type Model = BTreeMap<u64, Vec<u8>>;

fn position(key: u64) -> Position {
    Position::new(key / 1000, key % 1000, 1)
}

fn bytes_for(random: &mut Random) -> Vec<u8> {
    let mut bytes = vec![0; random.range(1, 120) as usize];
    random.fill(&mut bytes);
    bytes
}

async fn put(engine: &Engine, key: u64, bytes: Option<&[u8]>) {
    let put = engine.transact(async |transaction| {
        match bytes {
            Some(bytes) => transaction.put(Tree::Xattrs, position(key), Value::from_slice(bytes)),
            None => transaction.delete(Tree::Xattrs, position(key)),
        }
        Ok(())
    });
    put.await.unwrap();
}

async fn get(engine: &Engine, key: u64) -> Option<Vec<u8>> {
    let found = engine.read().get(Tree::Xattrs, position(key)).await.unwrap();
    found.map(|value| value.to_vec())
}

/// Puts every third key, many in one transaction.
async fn fill(engine: &Engine, random: &mut Random, model: &mut Model) {
    let keys: Vec<u64> = (0..KEYS).filter(|key| key % 3 != 1).collect();
    for keys in keys.chunks(100) {
        let new: Vec<_> = keys.iter().map(|key| (*key, bytes_for(random))).collect();
        let put = engine.transact(async |transaction| {
            for (key, bytes) in &new {
                let value = Value::from_slice(bytes);
                transaction.put(Tree::Xattrs, position(*key), value);
            }
            Ok(())
        });
        put.await.unwrap();
        model.extend(new);
    }
}

/// Inserts, overwrites, deletes and reads at random among the keys of one task, and checks what it reads.
async fn churn(engine: &Engine, task: u64, mut random: Random, model: &mut Model) {
    for _ in 0..WINDOW_OPERATIONS {
        let key = random.below(KEYS / TASKS) * TASKS + task;
        match random.below(5) {
            0 => {
                model.remove(&key);
                put(engine, key, None).await;
            }
            1 | 2 => {
                let bytes = bytes_for(&mut random);
                put(engine, key, Some(&bytes)).await;
                model.insert(key, bytes);
            }
            _ => assert_eq!(get(engine, key).await.as_ref(), model.get(&key)),
        }
    }
}

fn counter(engine: &Engine, name: &str) -> u64 {
    engine.counters().into_iter().find(|(known, _)| *known == name).unwrap().1
}

fn count(engine: &Engine, kind: Timed) -> u64 {
    engine.waits().times().snapshot(kind, engine.runtime().now_ns()).count
}

fn check_memory(engine: &Engine) {
    let peak = counter(engine, "btree_cache_peak_bytes") as usize;
    // A write-out may need the table of a region when nothing can be evicted: a node in memory.
    let most = CACHE_BYTES + (32 << 10);
    assert!(peak <= most, "{peak} bytes of index in memory, {most} allowed");
}

async fn compare(engine: &Engine, models: &[Model]) {
    let mut expected: Model = models.iter().flatten().map(|(k, v)| (*k, v.clone())).collect();
    let mut transaction = engine.read();
    let mut from = Position::MIN;
    let next = async |from| {
        let mut transaction = engine.read();
        transaction.next(Tree::Xattrs, from, Position::MAX).await.unwrap()
    };
    while let Some((at, value)) = next(from).await {
        let key = at.inode * 1000 + at.offset;
        assert_eq!(expected.remove(&key).as_deref(), Some(&value[..]), "key {key}");
        from = at.successor();
    }
    assert!(expected.is_empty(), "{} keys are lost", expected.len());
    assert!(transaction.get(Tree::Xattrs, Position::MAX).await.unwrap().is_none());
}

#[test]
fn an_index_ten_times_the_cache_works_with_steady_throughput() {
    with_seeds(|seed| {
        let runtime = TestRuntime::new(seed);
        let device = small_pool(&runtime, 64);
        let (inner, disk) = (Rc::clone(&runtime), device.clone());
        let models = runtime.block_on(async move {
            let mut random = Random::new(seed);
            let engine = open(&inner, &disk, CACHE_BYTES).await;
            let mut all = Model::new();
            fill(&engine, &mut random, &mut all).await;
            let mut models = vec![Model::new(); TASKS as usize];
            for (key, bytes) in all {
                models[(key % TASKS) as usize].insert(key, bytes);
            }
            let mut rates = Vec::new();
            for _ in 0..WINDOWS {
                let before = (count(&engine, Timed::NodeRead), count(&engine, Timed::NodeWrite));
                let tasks = models.iter_mut().zip(0..TASKS);
                let tasks = tasks.map(|(model, task)| {
                    let dice = random.fork();
                    churn(&engine, task, dice, model)
                });
                join_all(tasks).await;
                let operations = (WINDOW_OPERATIONS * TASKS) as f64;
                let reads = (count(&engine, Timed::NodeRead) - before.0) as f64 / operations;
                let writes = (count(&engine, Timed::NodeWrite) - before.1) as f64 / operations;
                rates.push((reads, writes));
            }
            println!("reads and writes of nodes for an operation: {rates:.2?}");
            let index = counter(&engine, "space_index_slots_used") * (16 << 10);
            assert!(index >= 10 * CACHE_BYTES as u64, "an index of {index} bytes");
            check_memory(&engine);
            // The first window begins with whatever the filling left behind.
            for rate in [|rate: &(f64, f64)| rate.0, |rate: &(f64, f64)| rate.1] {
                let rates = rates[1..].iter().map(rate);
                let (least, most) = rates.fold((f64::MAX, 0.0), |(least, most): (f64, f64), it| {
                    (least.min(it), most.max(it))
                });
                assert!(most <= least * 1.25, "from {least} to {most} an operation");
                assert!(most < 2.0, "{most} an operation");
            }
            engine.flush().await.unwrap();
            models
        });
        runtime.crash();
        let inner = Rc::clone(&runtime);
        runtime.block_on(async move {
            let engine = open(&inner, &device, CACHE_BYTES).await;
            compare(&engine, &models).await;
            let mut report = FsckReport::default();
            engine.check(&mut report).await.unwrap();
            assert_eq!(report.problems, Vec::<String>::new());
            engine.close().await.unwrap();
        });
        runtime.crash();
    });
}

/// A full iteration between two rounds over some keys that are used all the time.
#[test]
fn an_iteration_leaves_in_the_cache_what_is_used_again_and_again() {
    with_seeds(|seed| {
        let runtime = TestRuntime::new(seed);
        let device = small_pool(&runtime, 64);
        let inner = Rc::clone(&runtime);
        runtime.block_on(async move {
            let mut random = Random::new(seed);
            let engine = open(&inner, &device, 2 * CACHE_BYTES).await;
            let mut model = Model::new();
            fill(&engine, &mut random, &mut model).await;
            engine.write_out_all().await.unwrap();
            let hot: Vec<u64> = (0..6).map(|number| number * 9_000 + 300).collect();
            for _ in 0..20 {
                for key in &hot {
                    assert_eq!(get(&engine, *key).await.as_ref(), model.get(key));
                    // And others that are used once.
                    get(&engine, random.below(KEYS)).await;
                }
            }
            let before = count(&engine, Timed::NodeRead);
            compare(&engine, std::slice::from_ref(&model)).await;
            let scanned = count(&engine, Timed::NodeRead) - before;
            assert!(scanned > 100, "{scanned} nodes are read by an iteration");
            let before = count(&engine, Timed::NodeRead);
            for key in &hot {
                get(&engine, *key).await;
            }
            let missed = count(&engine, Timed::NodeRead) - before;
            assert!(missed <= 1, "{missed} of {} were thrown out", hot.len());
        });
        runtime.crash();
    });
}

#[test]
fn an_iteration_reads_ahead_and_lookups_do_not() {
    with_seeds(|seed| {
        let runtime = TestRuntime::new(seed);
        let device = small_pool(&runtime, 64);
        let inner = Rc::clone(&runtime);
        runtime.block_on(async move {
            let mut random = Random::new(seed);
            let engine = open(&inner, &device, CACHE_BYTES).await;
            let mut model = Model::new();
            fill(&engine, &mut random, &mut model).await;
            engine.write_out_all().await.unwrap();
            let reads = || (count(&engine, Timed::NodeRead), counter(&engine, "btree_reads_ahead"));
            let before = reads();
            for _ in 0..500 {
                let key = random.below(KEYS);
                assert_eq!(get(&engine, key).await.as_ref(), model.get(&key));
            }
            assert_eq!(reads().1, before.1, "lookups here and there read nothing ahead");
            let before = reads();
            compare(&engine, std::slice::from_ref(&model)).await;
            let (all, ahead) = (reads().0 - before.0, reads().1 - before.1);
            assert!(ahead * 10 >= all * 8, "{ahead} of {all} reads were ahead");
            assert!(all < 2 * KEYS / 100, "{all} reads: nothing is read twice");
            check_memory(&engine);
        });
        runtime.crash();
    });
}

#[test]
fn the_leaves_of_one_transaction_are_read_side_by_side() {
    let runtime = TestRuntime::new(5);
    let device = small_pool(&runtime, 64);
    let inner = Rc::clone(&runtime);
    runtime.block_on(async move {
        let engine = open(&inner, &device, 2 << 20).await;
        let mut model = Model::new();
        fill(&engine, &mut Random::new(5), &mut model).await;
        engine.write_out_all().await.unwrap();
        engine.set_cache_bytes(1 << 19);
        get(&engine, 0).await;
        engine.cache.evict(1 << 18);
        let (writer, done) = (Rc::clone(&engine), Rc::new(std::cell::Cell::new(false)));
        let ended = Rc::clone(&done);
        let write = async move {
            let put = writer.transact(async |transaction| {
                for key in (0..KEYS).step_by(KEYS as usize / 8) {
                    transaction.put(Tree::Xattrs, position(key), Value::from_slice(b"new"));
                }
                Ok(())
            });
            put.await.unwrap();
            ended.set(true);
        };
        engine.runtime().spawn("write", Box::pin(write));
        let mut most = 0;
        while !done.get() {
            let waiting = engine.waits().times().waiting();
            most = most.max(waiting.filter(|(kind, _)| *kind == Timed::NodeRead).count());
            engine.runtime().yield_now().await;
        }
        assert!(most >= 3, "{most} reads at a time");
    });
    runtime.crash();
}
