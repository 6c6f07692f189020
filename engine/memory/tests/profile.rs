//! The heap of a program that counts it. A process of its own, as the counts and the mode are the
//! process's; one test, as others would allocate meanwhile.
#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::mpsc;

use engine_base::random::Random;
use engine_memory::profile::{Holding, Kind, Mode, Profiler, Report, report, set_mode};
use engine_memory::{Buffer, alloc_scope};

#[global_allocator]
static ALLOCATOR: Profiler = Profiler;

fn held(name: &str, kind: Kind) -> (u64, u64) {
    let of = |one: &&Holding| one.name == name && one.kind == kind;
    let report: Report = report();
    report.holdings.iter().find(of).map_or((0, 0), |one| (one.live_bytes, one.live_objects))
}

#[test]
fn what_is_held_is_known_by_site_whoever_frees_it() {
    assert!(Profiler::is_installed());
    what_is_too_long_is_refused();
    blocks_of_all_shapes_keep_their_bytes();
    growing_stays_with_the_site_that_paid();
    frees_elsewhere_are_credited_here();
    buffers_are_charged_as_buffers();
    the_mode_changes_what_is_charged_and_not_what_is_credited();
}

/// Where the tag would not fit any more, too.
fn what_is_too_long_is_refused() {
    for less in 0..4 {
        let len = isize::MAX as usize - less;
        assert!(Vec::<u8>::new().try_reserve_exact(len).is_err());
        let mut grows = vec![1_u8; 100];
        assert!(grows.try_reserve_exact(len - 100).is_err());
        assert_eq!(grows, [1; 100]);
    }
}

/// Random sizes and lifetimes against a model, so that a tag written at a wrong place shows.
fn blocks_of_all_shapes_keep_their_bytes() {
    for seed in 0..4 {
        let mut random = Random::new(seed);
        let mut live: Vec<Vec<u8>> = Vec::with_capacity(200);
        let (before, _) = held("shapes", Kind::Heap);
        let scope = alloc_scope!("shapes");
        for step in 0..20_000_usize {
            let mark = step as u8;
            if live.len() < 200 && random.chance(1, 2) {
                let len = 1 << random.range(0, 14);
                let len = len + random.below(64) as usize;
                let zeroed = random.chance(1, 2);
                let mut block = if zeroed { vec![0; len] } else { Vec::with_capacity(len) };
                assert!(block.iter().all(|byte| *byte == 0), "seed {seed}");
                block.clear();
                block.resize(len, mark);
                live.push(block);
            } else if !live.is_empty() {
                let index = random.below(live.len() as u64) as usize;
                let mark = live[index][0];
                assert!(live[index].iter().all(|byte| *byte == mark), "seed {seed} step {step}");
                if random.chance(1, 3) {
                    let more = random.below(5000) as usize;
                    let len = live[index].len() + more;
                    live[index].resize(len, mark);
                    live[index].shrink_to_fit();
                } else {
                    live.swap_remove(index);
                }
            }
        }
        drop(scope);
        let capacity: u64 = live.iter().map(|block| block.capacity() as u64).sum();
        let (now, objects) = held("shapes", Kind::Heap);
        assert_eq!(now - before, capacity, "seed {seed}");
        assert_eq!(objects, live.len() as u64, "seed {seed}");
        drop(live);
        assert_eq!(held("shapes", Kind::Heap), (before, 0), "seed {seed}");
    }
}

fn growing_stays_with_the_site_that_paid() {
    let mut grows = {
        let _scope = alloc_scope!("grows");
        Vec::<u64>::with_capacity(4)
    };
    {
        let _scope = alloc_scope!("somebody else");
        grows.reserve_exact(100_000);
    }
    assert_eq!(held("grows", Kind::Heap), (8 * grows.capacity() as u64, 1));
    assert_eq!(held("somebody else", Kind::Heap), (0, 0));
    drop(grows);
    assert_eq!(held("grows", Kind::Heap), (0, 0));
}

fn frees_elsewhere_are_credited_here() {
    let (to_other, from_here) = mpsc::sync_channel::<Box<[u8; 1000]>>(8);
    let other = std::thread::spawn(move || {
        let _scope = alloc_scope!("the other thread");
        from_here.iter().count()
    });
    for _ in 0..1000 {
        let one = {
            let _scope = alloc_scope!("sent away");
            Box::new([7; 1000])
        };
        to_other.send(one).unwrap();
    }
    let kept = {
        let _scope = alloc_scope!("sent away");
        black_box(Box::new([1_u8; 10]))
    };
    drop(to_other);
    assert_eq!(other.join().unwrap(), 1000);
    assert_eq!(held("the other thread", Kind::Heap), (0, 0));
    let sent = report().holdings.into_iter().filter(|one| one.name == "sent away");
    let sent: Vec<Holding> = sent.collect();
    let live: u64 = sent.iter().map(|one| one.live_bytes).sum();
    assert_eq!(live, kept.len() as u64);
    assert!(sent.iter().any(|one| one.allocations == 1000 && one.live_objects == 0));
}

fn buffers_are_charged_as_buffers() {
    let (small, large) = {
        let _scope = alloc_scope!("buffers");
        (Buffer::try_new(5000).unwrap(), Buffer::try_new(3 << 20).unwrap())
    };
    let slice = small.freeze();
    let part = slice.slice(10..20);
    drop(slice);
    // A class of 8 KiB; 3 MiB and a page for the descriptor.
    assert_eq!(held("buffers", Kind::Buffers), (8192 + (3 << 20) + 4096, 2));
    assert_eq!(held("buffers", Kind::Heap), (0, 0), "the pool's own memory is the pool's");
    assert!(held("buffer pool", Kind::Heap).0 > 0);
    std::thread::spawn(move || drop((part, large))).join().unwrap();
    assert_eq!(held("buffers", Kind::Buffers), (0, 0));
}

fn the_mode_changes_what_is_charged_and_not_what_is_credited() {
    let take = || {
        let _scope = alloc_scope!("mode");
        (black_box(Box::new([0_u8; 500])), Buffer::try_new(4096).unwrap())
    };
    let both = || (held("mode", Kind::Heap), held("mode", Kind::Buffers));
    let first = take();
    assert_eq!(both(), ((500, 1), (4096, 1)));
    set_mode(Mode::Off).unwrap();
    assert_eq!(report().mode, Mode::Off);
    let second = take();
    assert_eq!(both(), ((500, 1), (4096, 1)));
    drop(first);
    assert_eq!(both(), ((0, 0), (0, 0)));
    set_mode(Mode::On).unwrap();
    drop(second);
    assert_eq!(both(), ((0, 0), (0, 0)));
    let third = take();
    assert_eq!(both(), ((500, 1), (4096, 1)));
    set_mode(Mode::Never).unwrap();
    let fourth = take();
    drop((third, fourth));
    assert_eq!(both(), ((0, 0), (0, 0)));
    assert!(set_mode(Mode::On).is_err());
    assert!(set_mode(Mode::Off).is_err());
    set_mode(Mode::Never).unwrap();
}
