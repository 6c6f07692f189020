//! Measures this crate's queue on a file, and whether registering buffers with io_uring would help.
//!
//! `device_rates PATH [SECONDS]` reads an existing file (nothing is written) at random, with one
//! thread, in these ways, taking turns:
//! * `queue`: the [`FileDevice`] of this crate;
//! * `plain`: an io_uring by hand, as the queue uses it;
//! * `fixed`: the same with registered buffers (IORING_OP_READ_FIXED).
//!
//! It prints operations a second, and processor time of the thread for each operation.
#![allow(unsafe_code, clippy::unwrap_used, clippy::print_stdout)]
// A measurement reads the clock; nothing of it is part of the engine.
#![allow(clippy::disallowed_methods)]

use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use engine_base::random::Random;
use engine_device::{BlockDevice, FileDevice, OpenOptions, Operation, completion_pair};
use engine_memory::Buffer;
use io_uring::{IoUring, opcode, types};

struct Measured {
    operations: u64,
    elapsed: Duration,
    thread_time: Duration,
}

fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn measure(duration: Duration, mut turn: impl FnMut() -> u64) -> Measured {
    let (start, cpu_start) = (Instant::now(), thread_time());
    let mut operations = 0;
    while start.elapsed() < duration {
        for _ in 0..64 {
            operations += turn();
        }
    }
    Measured { operations, elapsed: start.elapsed(), thread_time: thread_time() - cpu_start }
}

fn by_queue(path: &Path, bytes: u64, depth: u32, duration: Duration) -> Measured {
    let options = OpenOptions { read_only: true, exclusive: false, ..OpenOptions::default() };
    let device = FileDevice::open(path, &options).unwrap();
    let queue = device.open_queue(depth).unwrap();
    let blocks = device.info().size_bytes / bytes;
    let mut random = Random::new(1);
    let mut start = |buffer| {
        let (done, future) = completion_pair();
        queue.submit(Operation::Read { offset: random.below(blocks) * bytes, buffer }, done);
        future
    };
    let mut futures: Vec<_> =
        (0..depth).map(|_| start(Buffer::try_new(bytes as usize).unwrap())).collect();
    measure(duration, || {
        if queue.poll() == 0 {
            return 0;
        }
        let mut answered = 0;
        let mut context = Context::from_waker(Waker::noop());
        for future in &mut futures {
            if let Poll::Ready(outcome) = Pin::new(&mut *future).poll(&mut context) {
                *future = start(outcome.unwrap().unwrap());
                answered += 1;
            }
        }
        answered
    })
}

fn by_hand(path: &Path, bytes: u64, depth: u32, duration: Duration, fixed: bool) -> Measured {
    let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path);
    let file = file.unwrap();
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(depth)
        .unwrap();
    ring.submitter().register_files(&[file.as_raw_fd()]).unwrap();
    let mut buffers: Vec<Buffer> =
        (0..depth).map(|_| Buffer::try_new(bytes as usize).unwrap()).collect();
    let pieces: Vec<libc::iovec> = buffers
        .iter_mut()
        .map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() })
        .collect();
    if fixed {
        // SAFETY: the buffers live until the ring is dropped, which is before them.
        unsafe { ring.submitter().register_buffers(&pieces) }.unwrap();
    }
    let blocks = file.metadata().unwrap().len() / bytes;
    let mut random = Random::new(1);
    let mut entry = |index: usize| {
        let (at, offset) = (pieces[index].iov_base.cast(), random.below(blocks) * bytes);
        let (file, len) = (types::Fixed(0), bytes as u32);
        let entry = if fixed {
            opcode::ReadFixed::new(file, at, len, index as u16).offset(offset).build()
        } else {
            opcode::Read::new(file, at, len).offset(offset).build()
        };
        entry.user_data(index as u64)
    };
    for index in 0..depth as usize {
        // SAFETY: each buffer is used by one operation at a time and outlives the ring.
        unsafe { ring.submission().push(&entry(index)) }.unwrap();
    }
    let mut in_flight = depth;
    let measured = measure(duration, || {
        let to_do = {
            let submission = ring.submission();
            !submission.is_empty() || submission.taskrun()
        };
        if to_do {
            ring.submit().unwrap();
        }
        let mut answered = 0;
        loop {
            let completion = ring.completion().next();
            let Some(completion) = completion else { break };
            assert_eq!(completion.result() as u64, bytes);
            // SAFETY: as above; the operation that used this buffer has ended.
            unsafe { ring.submission().push(&entry(completion.user_data() as usize)) }.unwrap();
            answered += 1;
        }
        answered
    });
    while in_flight > 0 {
        ring.submit_and_wait(1).unwrap();
        while ring.completion().next().is_some() {
            in_flight -= 1;
        }
    }
    drop(ring);
    drop(buffers);
    measured
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().expect("usage: device_rates PATH [SECONDS]");
    let seconds: f64 = arguments.next().map_or(1.0, |text| text.parse().unwrap());
    let (path, duration) = (Path::new(&path), Duration::from_secs_f64(seconds));
    println!("bytes depth way    ops/s      ns of CPU/op");
    for (bytes, depth) in [(4096, 1), (4096, 32), (4096, 128), (131_072, 16)] {
        for _ in 0..3 {
            for way in ["queue", "plain", "fixed"] {
                let measured = match way {
                    "queue" => by_queue(path, bytes, depth, duration),
                    way => by_hand(path, bytes, depth, duration, way == "fixed"),
                };
                let rate = measured.operations as f64 / measured.elapsed.as_secs_f64();
                let cost = measured.thread_time.as_nanos() / u128::from(measured.operations.max(1));
                println!("{bytes:>6} {depth:>5} {way:<6} {rate:>9.0} {cost:>9}");
            }
        }
    }
}
