//! The limit of the whole process. A process of its own, as the limit can be set once only.

use std::sync::atomic::{AtomicUsize, Ordering};

use engine_memory::{Buffer, LimitRefused, OutOfMemory, set_limit_bytes, set_refusal_hook, usage};

static REFUSED: AtomicUsize = AtomicUsize::new(0);

#[test]
fn past_the_limit_there_is_an_error_and_freeing_helps() {
    const LIMIT: u64 = 8 << 20;
    set_limit_bytes(LIMIT).unwrap();
    assert_eq!(set_limit_bytes(1 << 40), Err(LimitRefused::SetAlready { limit_bytes: LIMIT }));

    set_refusal_hook(|refused| {
        REFUSED.fetch_add(refused.bytes, Ordering::Relaxed);
    });
    let mut held = Vec::new();
    let error = loop {
        match Buffer::try_new(4096) {
            Ok(buffer) => held.push(buffer),
            Err(error) => break error,
        }
    };
    assert_eq!(error, OutOfMemory { bytes: 4096 });
    assert_eq!(held.len(), 2048, "all of the limit can be had in small buffers");
    assert_eq!(usage().live_bytes, LIMIT);
    assert_eq!(usage().failures, 1);
    assert_eq!(REFUSED.load(Ordering::Relaxed), 4096, "the hook was called once");
    assert!(Buffer::try_new(1 << 20).is_err());
    assert!(Buffer::try_new(2 << 20).is_err());

    // What another thread frees, and what this one keeps for itself, serves other sizes again.
    let half = held.split_off(1024);
    std::thread::spawn(move || drop(half)).join().unwrap();
    drop(held);
    let held: Vec<Buffer> = (0..8).map(|_| Buffer::try_new(1 << 20).unwrap()).collect();
    assert!(Buffer::try_new(1).is_err());
    assert_eq!(usage().mapped_bytes, LIMIT);
    drop(held);
    assert_eq!(usage().live_bytes, 0);
    assert_eq!(usage().peak_bytes, LIMIT);
}
