//! Each rule of the contract in the module header, over many seeds.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::Future;
use std::rc::Rc;

use engine_device::QueueExt;

use super::*;
use crate::executor::{RunEnd, Schedule};

const SEEDS: u64 = 200;
const QUICK: Latency = Latency {
    least_ns: 1_000,
    usual_ns_max: 50_000,
    spikes_ppm: 10_000,
    spike_ns_max: 5_000_000,
    stalls_ppm: 0,
    stall_ns_max: 0,
};

fn disk(seed: u64, block_size: u32, atomic_write_bytes: u32) -> (Executor, SimDisk) {
    let executor = Executor::new(seed, Schedule::Random);
    let geometry = DiskGeometry { size_bytes: 1 << 20, block_size, atomic_write_bytes };
    let disk = SimDisk::new(&executor, "disk", geometry, QUICK);
    (executor, disk)
}

fn block(fill: u8, len: usize) -> IoVec {
    let mut buffer = Buffer::try_new(len).unwrap();
    buffer.fill(fill);
    IoVec::from_iter([buffer.freeze()])
}

/// Runs one future to its end.
fn wait<T: 'static>(executor: &Executor, future: impl Future<Output = T> + 'static) -> T {
    let result = Rc::new(RefCell::new(None));
    let slot = Rc::clone(&result);
    let task = Box::pin(async move { *slot.borrow_mut() = Some(future.await) });
    executor.spawn(0, "test", task);
    assert_eq!(executor.run(1_000_000, || result.borrow().is_some()), RunEnd::Done);
    result.take().unwrap()
}

fn write(executor: &Executor, disk: &SimDisk, offset: u64, fill: u8, len: usize, fua: bool) {
    let queue = disk.queue();
    wait(executor, async move { queue.write(offset, block(fill, len), fua).await }).unwrap();
}

fn flush(executor: &Executor, disk: &SimDisk) {
    let queue = disk.queue();
    wait(executor, async move { queue.flush().await }).unwrap();
}

fn read(executor: &Executor, disk: &SimDisk, offset: u64, len: usize) -> Vec<u8> {
    let queue = disk.queue();
    let buffer = Buffer::try_new(len).unwrap();
    wait(executor, async move { queue.read(offset, buffer).await }).unwrap().to_vec()
}

#[test]
fn a_completed_write_is_read_and_a_flushed_one_survives() {
    for seed in 0..SEEDS {
        let (executor, disk) = disk(seed, 4096, 4096);
        write(&executor, &disk, 8192, 7, 12288, false);
        assert!(read(&executor, &disk, 8192, 12288).iter().all(|byte| *byte == 7));
        flush(&executor, &disk);
        disk.power_loss();
        assert!(read(&executor, &disk, 8192, 12288).iter().all(|byte| *byte == 7), "seed {seed}");
    }
}

#[test]
fn an_unflushed_block_is_old_or_new_and_both_happen() {
    let (mut kept, mut lost, mut torn) = (0, 0, 0);
    for seed in 0..SEEDS {
        let (executor, disk) = disk(seed, 4096, 4096);
        write(&executor, &disk, 0, 1, 32768, false);
        flush(&executor, &disk);
        write(&executor, &disk, 0, 2, 32768, false);
        disk.power_loss();
        let bytes = read(&executor, &disk, 0, 32768);
        let mut seen = BTreeSet::new();
        for page in bytes.chunks(4096) {
            assert!(page.iter().all(|byte| *byte == page[0]), "seed {seed}: torn in a unit");
            seen.insert(page[0]);
        }
        assert!(seen.is_subset(&BTreeSet::from([1, 2])), "seed {seed}");
        match seen.len() {
            2 => torn += 1,
            _ if seen.contains(&2) => kept += 1,
            _ => lost += 1,
        }
    }
    assert!(kept > 10 && lost > 10 && torn > 10, "{kept} kept, {lost} lost, {torn} torn");
}

#[test]
fn tears_fall_on_512_bytes_when_the_device_says_so() {
    let mut torn = 0;
    for seed in 0..SEEDS {
        let (executor, disk) = disk(seed, 512, 512);
        write(&executor, &disk, 4096, 9, 4096, false);
        disk.power_loss();
        let bytes = read(&executor, &disk, 4096, 4096);
        let mut seen = BTreeSet::new();
        for sector in bytes.chunks(512) {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "seed {seed}");
            seen.insert(sector[0]);
        }
        torn += usize::from(seen.len() == 2);
    }
    assert!(torn > 10, "{torn}");
}

#[test]
fn an_aligned_atomic_unit_larger_than_a_page_is_never_torn() {
    for seed in 0..SEEDS {
        let (executor, disk) = disk(seed, 4096, 16384);
        write(&executor, &disk, 16384, 3, 16384, false);
        disk.power_loss();
        let bytes = read(&executor, &disk, 16384, 16384);
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "seed {seed}");
    }
}

#[test]
fn fua_makes_its_own_write_durable_and_no_other() {
    let mut others_lost = 0;
    for seed in 0..SEEDS {
        let (executor, disk) = disk(seed, 4096, 4096);
        write(&executor, &disk, 0, 1, 4096, false);
        write(&executor, &disk, 4096, 2, 4096, true);
        disk.power_loss();
        assert_eq!(read(&executor, &disk, 4096, 4096)[0], 2, "seed {seed}");
        others_lost += usize::from(read(&executor, &disk, 0, 4096)[0] == 0);
    }
    assert!(others_lost > 10, "{others_lost}");
}

#[test]
fn an_older_write_never_lands_on_a_durable_newer_one() {
    for seed in 0..SEEDS {
        let (executor, disk) = disk(seed, 4096, 4096);
        write(&executor, &disk, 0, 1, 8192, false);
        write(&executor, &disk, 0, 2, 4096, true);
        disk.power_loss();
        assert_eq!(read(&executor, &disk, 0, 4096)[0], 2, "seed {seed}");
    }
}

#[test]
fn a_flush_covers_only_what_completed_before_it_was_submitted() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let (executor, disk) = disk(seed, 4096, 4096);
        let queue = disk.queue();
        wait(&executor, async move {
            let writing = queue.write(0, block(1, 4096), false);
            let flushing = queue.flush();
            let both = futures_join(writing, flushing).await;
            both.0.unwrap();
            both.1.unwrap();
        });
        disk.power_loss();
        lost += usize::from(read(&executor, &disk, 0, 4096)[0] == 0);
    }
    assert!(lost > 10, "{lost}");
}

/// Polls both until both have ended.
async fn futures_join<A: Future, B: Future>(a: A, b: B) -> (A::Output, B::Output) {
    let (mut a, mut b) = (Box::pin(a), Box::pin(b));
    let (mut a_out, mut b_out) = (None, None);
    std::future::poll_fn(move |context| {
        use std::task::Poll;
        if a_out.is_none()
            && let Poll::Ready(value) = a.as_mut().poll(context)
        {
            a_out = Some(value);
        }
        if b_out.is_none()
            && let Poll::Ready(value) = b.as_mut().poll(context)
        {
            b_out = Some(value);
        }
        match (a_out.take(), b_out.take()) {
            (Some(a), Some(b)) => Poll::Ready((a, b)),
            (a, b) => {
                (a_out, b_out) = (a, b);
                Poll::Pending
            }
        }
    })
    .await
}

#[test]
fn operations_in_flight_end_in_any_order() {
    let mut orders = BTreeSet::new();
    for seed in 0..50 {
        let (executor, disk) = disk(seed, 4096, 4096);
        let order = Rc::new(RefCell::new(Vec::new()));
        for index in 0..3_u8 {
            let (queue, order) = (disk.queue(), Rc::clone(&order));
            let task = async move {
                queue.write(u64::from(index) * 4096, block(index, 4096), false).await.unwrap();
                order.borrow_mut().push(index);
            };
            executor.spawn(0, "write", Box::pin(task));
        }
        assert_eq!(executor.run(10_000, || false), RunEnd::Idle);
        orders.insert(order.borrow().clone());
    }
    assert_eq!(orders.len(), 6);
}

#[test]
fn in_flight_writes_may_survive_and_their_waiters_are_gone() {
    let mut kept = 0;
    for seed in 0..SEEDS {
        let (executor, disk) = disk(seed, 4096, 4096);
        let queue = disk.queue();
        let task = async move {
            let _ = queue.write(0, block(5, 4096), false).await;
            panic!("the process is dead");
        };
        executor.spawn(0, "write", Box::pin(task));
        // One poll starts the write; none is long enough for it to end.
        executor.run(1, || false);
        executor.crash(|| {});
        disk.power_loss();
        kept += usize::from(read(&executor, &disk, 0, 4096)[0] == 5);
    }
    assert!(kept > 10 && kept < 190, "{kept}");
}

#[test]
fn a_process_crash_keeps_the_cache() {
    for seed in 0..20 {
        let (executor, disk) = disk(seed, 4096, 4096);
        write(&executor, &disk, 0, 4, 65536, false);
        executor.crash(|| {});
        disk.process_crash();
        assert!(read(&executor, &disk, 0, 65536).iter().all(|byte| *byte == 4));
    }
}

#[test]
fn discards_and_zeroes() {
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let (executor, disk) = disk(seed, 4096, 4096);
        write(&executor, &disk, 0, 1, 16384, false);
        let queue = disk.queue();
        wait(&executor, async move {
            queue.discard(4096, 4096).await.unwrap();
            queue.write_zeroes(8192, 4096).await.unwrap();
            queue.flush().await.unwrap();
        });
        disk.power_loss();
        let bytes = read(&executor, &disk, 0, 16384);
        assert!(bytes[..4096].iter().chain(&bytes[12288..]).all(|byte| *byte == 1), "seed {seed}");
        assert!(bytes[8192..12288].iter().all(|byte| *byte == 0), "seed {seed}");
        seen.insert(match bytes[4096..8192].iter().collect::<BTreeSet<_>>().len() {
            1 => bytes[4096],
            _ => 255,
        });
    }
    assert_eq!(seen, BTreeSet::from([0, 1, 255]));
}

#[test]
fn injected_errors_leave_old_new_or_unreadable() {
    let mut kinds = BTreeSet::new();
    for seed in 0..SEEDS {
        let (executor, disk) = disk(seed, 4096, 4096);
        write(&executor, &disk, 0, 1, 4096, false);
        disk.set_faults(FaultRates { write_error_ppm: 1_000_000, ..FaultRates::default() });
        let queue = disk.queue();
        let failed = wait(&executor, async move { queue.write(0, block(2, 4096), false).await });
        assert!(matches!(failed, Err(DeviceError::Io { .. })));
        disk.set_faults(FaultRates::default());
        let (queue, buffer) = (disk.queue(), Buffer::try_new(4096).unwrap());
        kinds.insert(match wait(&executor, async move { queue.read(0, buffer).await }) {
            Ok(bytes) => {
                assert!(bytes.iter().all(|byte| *byte == bytes[0]));
                u32::from(bytes[0])
            }
            Err(_) => 1000,
        });
    }
    assert_eq!(kinds, BTreeSet::from([1, 2, 1000]));
}

#[test]
fn a_failed_flush_is_never_followed_by_a_good_one_that_lies() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let (executor, disk) = disk(seed, 4096, 4096);
        write(&executor, &disk, 0, 1, 4096, false);
        disk.set_faults(FaultRates { flush_error_ppm: 1_000_000, ..FaultRates::default() });
        let queue = disk.queue();
        assert!(wait(&executor, async move { queue.flush().await }).is_err());
        disk.set_faults(FaultRates::default());
        let queue = disk.queue();
        let good = wait(&executor, async move { queue.flush().await }).is_ok();
        assert_eq!(read(&executor, &disk, 0, 4096)[0], 1);
        if seed % 2 == 0 {
            executor.crash(|| {});
            disk.process_crash();
        } else {
            disk.power_loss();
        }
        let there = read(&executor, &disk, 0, 4096)[0] == 1;
        assert!(there || !good, "seed {seed}");
        lost += usize::from(!there);
    }
    assert!(lost > 10, "{lost}");
}

#[test]
fn misaligned_out_of_range_and_too_long_operations_are_refused() {
    let (executor, disk) = disk(1, 4096, 4096);
    let queue = disk.queue();
    wait(&executor, async move {
        let misaligned = queue.write(512, block(1, 4096), false).await;
        assert!(matches!(misaligned, Err(DeviceError::Misaligned { .. })));
        let past = queue.write(1 << 20, block(1, 4096), false).await;
        assert!(matches!(past, Err(DeviceError::OutOfRange { .. })));
        assert_eq!(queue.in_flight(), 0);
    });
    assert_eq!(disk.statistics().writes, 0);
}

#[test]
fn every_lie_breaks_the_rule_it_is_about() {
    let mut broken = [0; 3];
    for seed in 0..SEEDS {
        for (lie, count) in [DiskLie::IgnoresFlush, DiskLie::FlushesHalf, DiskLie::TearsFlushed]
            .iter()
            .zip(&mut broken)
        {
            let (executor, disk) = disk(seed, 4096, 4096);
            disk.set_lie(Some(*lie));
            for at in 0..16 {
                write(&executor, &disk, at * 4096, 1, 4096, false);
            }
            if *lie == DiskLie::TearsFlushed {
                // Keeps the cache from writing back: the front is not durable.
                let queue = disk.queue();
                wait(&executor, async move { queue.write(65536, block(1, 4096), false).await })
                    .unwrap();
            } else {
                flush(&executor, &disk);
            }
            disk.power_loss();
            let bytes = read(&executor, &disk, 0, 65536);
            *count += usize::from(bytes.contains(&0));
        }
    }
    assert!(broken.iter().all(|count| *count > 0), "{broken:?}");
}

#[test]
fn the_same_seed_gives_the_same_disk() {
    let run = |seed| {
        let (executor, disk) = disk(seed, 512, 512);
        for at in 0..20 {
            write(&executor, &disk, at * 8192, at as u8 + 1, 8192, at % 5 == 0);
        }
        disk.power_loss();
        (disk.digest(), executor.now_ns())
    };
    for seed in 0..10 {
        assert_eq!(run(seed), run(seed));
    }
    assert_ne!(run(1), run(2));
}

#[test]
fn rot_changes_one_bit_for_good_and_says_where() {
    for seed in 0..20 {
        let (executor, disk) = disk(seed, 4096, 4096);
        assert_eq!(disk.rot(), None);
        write(&executor, &disk, 8192, 7, 8192, true);
        let at = disk.rot().unwrap();
        assert!((8192..16384).contains(&at), "seed {seed}");
        assert_eq!(disk.damaged_pages(), [at / 4096]);
        disk.power_loss();
        let bytes = read(&executor, &disk, 8192, 8192);
        let wrong: Vec<_> = bytes.iter().enumerate().filter(|(_, byte)| **byte != 7).collect();
        assert_eq!(wrong.len(), 1, "seed {seed}");
        assert_eq!(wrong[0].0 as u64, at - 8192);
        assert_eq!((wrong[0].1 ^ 7).count_ones(), 1);
    }
}

#[test]
fn a_misdirected_write_leaves_its_place_and_changes_another_and_both_are_known() {
    for seed in 0..50 {
        let (executor, disk) = disk(seed, 4096, 4096);
        write(&executor, &disk, 0, 1, 65536, true);
        disk.set_lie(Some(DiskLie::Misdirects));
        disk.set_lie_rate(1);
        write(&executor, &disk, 16384, 2, 4096, true);
        let bytes = read(&executor, &disk, 0, 1 << 20);
        let changed: Vec<u64> = (0..256).filter(|page| bytes[*page as usize * 4096] == 2).collect();
        let damaged = disk.damaged_pages();
        assert_eq!(damaged.len(), 2, "seed {seed}");
        assert_eq!((damaged[0], vec![damaged[1]]), (4, changed), "seed {seed}");
    }
}

#[test]
fn a_vanished_device_answers_gone_until_it_is_back() {
    for seed in 0..20 {
        let (executor, disk) = disk(seed, 4096, 4096);
        write(&executor, &disk, 0, 1, 4096, false);
        let gone = |loses_cache| {
            disk.vanish(loses_cache);
            let queue = disk.queue();
            let flushed = wait(&executor, async move { queue.flush().await });
            assert!(matches!(flushed, Err(DeviceError::Gone { .. })));
            disk.come_back();
        };
        gone(false);
        assert_eq!(read(&executor, &disk, 0, 4096)[0], 1);
        // Without its cache it is not back before the process is new: no flush may succeed after.
        gone(true);
        let queue = disk.queue();
        assert!(wait(&executor, async move { queue.flush().await }).is_err());
        executor.crash(|| {});
        disk.process_crash();
        flush(&executor, &disk);
    }
}

#[test]
fn stalled_operations_take_long_and_end_well() {
    let executor = Executor::new(1, Schedule::Random);
    let geometry = DiskGeometry { size_bytes: 1 << 20, block_size: 4096, atomic_write_bytes: 4096 };
    let stall_ns_max = 30_000_000_000;
    let latency = Latency { stalls_ppm: 1_000_000, stall_ns_max, ..QUICK };
    assert_eq!(latency.longest_ns(), stall_ns_max);
    let disk = SimDisk::new(&executor, "disk", geometry, latency);
    write(&executor, &disk, 0, 1, 4096, false);
    assert!((stall_ns_max / 2..stall_ns_max + 1_000_000).contains(&executor.now_ns()));
    assert_eq!(disk.statistics().stalls, 1);
}

#[test]
fn a_cut_leaves_exactly_what_its_style_says() {
    for (style, kept) in [
        (CutStyle::OnlyDurable, [1, 0, 0, 0]),
        (CutStyle::AllBefore, [1, 2, 0, 0]),
        (CutStyle::AllWith, [1, 2, 3, 3]),
        (CutStyle::AllTorn, [1, 2, 3, 0]),
        (CutStyle::OnlyThis, [1, 0, 3, 3]),
        (CutStyle::ProcessBefore, [1, 2, 0, 0]),
        (CutStyle::ProcessAfter, [1, 2, 3, 3]),
    ] {
        let (executor, disk) = disk(1, 4096, 4096);
        let cut = CutPoint::new(3);
        disk.set_cut(Some(Rc::clone(&cut)));
        write(&executor, &disk, 0, 1, 4096, true);
        write(&executor, &disk, 4096, 2, 4096, false);
        assert!(!cut.is_reached());
        let queue = disk.queue();
        let task = async move { drop(queue.write(8192, block(3, 8192), false).await) };
        executor.spawn(0, "write", Box::pin(task));
        executor.run(1, || false);
        assert!(cut.is_reached());
        executor.crash(|| {});
        disk.settle_cut(style);
        let bytes = read(&executor, &disk, 0, 16384);
        let found: Vec<u8> = bytes.chunks(4096).map(|page| page[0]).collect();
        assert_eq!(found, kept, "{style:?}");
    }
}
