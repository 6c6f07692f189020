//! Buffers as users see them: alignment, content, sharing, and memory that returns from any thread.

use std::collections::BTreeSet;
use std::sync::mpsc;

use engine_base::random::Random;
use engine_memory::{ALIGNMENT, Buffer, LARGEST_POOLED_BYTES, Slice, regions, usage};

fn lengths() -> Vec<usize> {
    if cfg!(miri) {
        // Looking at each byte is slow there.
        return vec![0, 1, 4096, 4097];
    }
    let mut lengths = vec![0, 1, 511, 4095, 4096, 4097, 8192, 12_288, 65_536, 131_072, 131_073];
    lengths.extend([LARGEST_POOLED_BYTES - 1, LARGEST_POOLED_BYTES]);
    lengths.extend([LARGEST_POOLED_BYTES + 1, 3 * LARGEST_POOLED_BYTES + 5]);
    lengths
}

#[test]
fn buffers_are_aligned_zeroed_and_within_regions() {
    for len in lengths() {
        // Twice, so that the second may be recycled memory that held something else.
        for _ in 0..2 {
            let mut buffer = Buffer::try_new(len).unwrap();
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr().addr() % ALIGNMENT, 0, "{len} bytes");
            assert!(buffer.iter().all(|byte| *byte == 0), "{len} bytes");
            buffer.fill(0xa5);
            let (start, end) = (buffer.as_ptr().addr(), buffer.as_ptr().addr() + len);
            let within = regions()
                .iter()
                .any(|region| region.address <= start && end <= region.address + region.bytes);
            assert_eq!(within, len <= LARGEST_POOLED_BYTES, "{len} bytes");
        }
    }
}

#[test]
fn an_absurd_length_is_an_error() {
    assert!(Buffer::try_new(usize::MAX).is_err());
    assert!(Buffer::try_new(usize::MAX - 4096).is_err());
    assert!(Buffer::try_new(isize::MAX as usize).is_err());
}

#[test]
fn a_thread_gets_its_freed_memory_again() {
    let first = Buffer::try_new_dirty(65_536).unwrap();
    let address = first.as_ptr();
    drop(first);
    assert_eq!(Buffer::try_new_dirty(60_000).unwrap().as_ptr(), address);
}

#[test]
fn slices_share_and_return_the_buffer_when_alone() {
    let mut buffer = Buffer::try_new(8192).unwrap();
    buffer[4096] = 7;
    let whole = buffer.freeze();
    let part = whole.slice(4096..8192);
    assert_eq!(part[0], 7);
    let whole = whole.try_into_buffer().unwrap_err();
    drop(part);
    let tail = whole.slice(1..2);
    drop(whole);
    let tail = tail.try_into_buffer().unwrap_err();
    assert_eq!(tail.len(), 1);
    drop(tail);

    let mut again = Buffer::try_copy_of(b"hello").unwrap();
    again.truncate(4);
    let slice = again.freeze();
    assert_eq!(&slice.clone()[..], b"hell");
    assert_eq!(&slice.try_into_buffer().unwrap()[..], b"hell");
}

#[test]
fn large_buffers_are_shared_and_freed_like_the_others() {
    let mut buffer = Buffer::try_new(LARGEST_POOLED_BYTES + 4096).unwrap();
    buffer[LARGEST_POOLED_BYTES] = 3;
    let slice = buffer.freeze();
    let part = slice.slice(LARGEST_POOLED_BYTES..LARGEST_POOLED_BYTES + 1);
    drop(slice);
    let freed = std::thread::spawn(move || part[0]).join().unwrap();
    assert_eq!(freed, 3);
}

/// Buffers made on one thread and dropped on another, both ways at once, with slices of one buffer
/// dropped on both: contents stay what their maker wrote, and nothing stays live.
#[test]
fn buffers_are_freed_on_any_thread() {
    let rounds = if cfg!(miri) { 40 } else { 4000 };
    let (to_other, from_main) = mpsc::sync_channel::<Slice>(64);
    let (to_main, from_other) = mpsc::sync_channel::<Slice>(64);
    let other = std::thread::spawn(move || {
        for slice in from_main {
            let expected = slice[0];
            assert!(slice.iter().all(|byte| *byte == expected));
            let Ok(mut mine) = Buffer::try_new(slice.len()) else { panic!("no memory") };
            mine.fill(expected.wrapping_add(1));
            if to_main.send(mine.freeze()).is_err() {
                return;
            }
        }
    });
    let mut random = Random::new(11);
    for round in 0..rounds {
        let len = random.range(1, if cfg!(miri) { 300 } else { 20_000 }) as usize;
        let mut buffer = Buffer::try_new_dirty(len).unwrap();
        buffer.fill(round as u8);
        let mine = buffer.freeze();
        to_other.send(mine.clone()).unwrap();
        assert!(mine.iter().all(|byte| *byte == round as u8));
        let answer = from_other.recv().unwrap();
        assert!(answer.iter().all(|byte| *byte == (round as u8).wrapping_add(1)));
    }
    drop(to_other);
    other.join().unwrap();
}

/// Random lifetimes against a model: every live buffer keeps the bytes written to it, and no two
/// live buffers share memory.
#[test]
fn live_buffers_never_share_memory() {
    let steps = if cfg!(miri) { 200 } else { 5000 };
    for seed in 1..=if cfg!(miri) { 1 } else { 4 } {
        let mut random = Random::new(seed);
        let mut live: Vec<(u8, Slice)> = Vec::new();
        for step in 0..steps {
            if random.chance(1, 2) || live.is_empty() {
                let len = 1 << random.range(0, if cfg!(miri) { 10 } else { 18 });
                let mut buffer = Buffer::try_new_dirty(len).unwrap();
                buffer.fill(step as u8);
                live.push((step as u8, buffer.freeze()));
            } else {
                let (mark, slice) = live.swap_remove(random.below(live.len() as u64) as usize);
                assert!(slice.iter().all(|byte| *byte == mark), "seed {seed} step {step}");
            }
        }
        let starts: BTreeSet<usize> = live.iter().map(|(_, slice)| slice.as_ptr().addr()).collect();
        assert_eq!(starts.len(), live.len(), "seed {seed}");
    }
}

#[test]
fn usage_counts_what_lives() {
    // Other tests of this process run at the same time: only what cannot be less is asserted.
    let held: Vec<Buffer> = (0..10).map(|_| Buffer::try_new(1 << 19).unwrap()).collect();
    let now = usage();
    assert!(now.classes[7].live_blocks >= 10);
    assert_eq!(now.classes[7].block_bytes, 1 << 19);
    assert!(now.live_bytes >= 10 << 19);
    assert!(now.peak_bytes >= now.live_bytes);
    assert!(now.mapped_bytes <= now.limit_bytes);
    drop(held);
}
