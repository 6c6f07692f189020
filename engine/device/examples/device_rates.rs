//! Measures this crate's queue on a file, and whether registering buffers with io_uring would help.
//!
//! `device_rates PATH [SECONDS]` reads an existing file (nothing is written) at random, with one
//! thread, in these ways, taking turns:
//! * `queue`: the [`FileDevice`] of this crate;
//! * `plain`: an io_uring by hand, as the queue uses it;
//! * `fixed`: the same with registered buffers (IORING_OP_READ_FIXED).
//!
//! It prints operations a second, and processor time of the thread for each operation.
#![allow(unsafe_code, clippy::print_stdout)]
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

/// What goes wrong ends the measurement and is told.
type Failure = Box<dyn std::error::Error>;

struct Measured {
    operations: u64,
    elapsed: Duration,
    thread_time: Duration,
}

fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn measure(
    duration: Duration,
    mut turn: impl FnMut() -> Result<u64, Failure>,
) -> Result<Measured, Failure> {
    let (start, cpu_start) = (Instant::now(), thread_time());
    let mut operations = 0;
    while start.elapsed() < duration {
        for _ in 0..64 {
            operations += turn()?;
        }
    }
    Ok(Measured { operations, elapsed: start.elapsed(), thread_time: thread_time() - cpu_start })
}

fn by_queue(path: &Path, bytes: u64, depth: u32, time: Duration) -> Result<Measured, Failure> {
    let options = OpenOptions { read_only: true, exclusive: false, ..OpenOptions::default() };
    let device = FileDevice::open(path, &options)?;
    let queue = device.open_queue(depth)?;
    let blocks = device.info().size_bytes / bytes;
    let mut random = Random::new(1);
    let mut start = |buffer| {
        let (done, future) = completion_pair();
        queue.submit(Operation::Read { offset: random.below(blocks) * bytes, buffer }, done);
        future
    };
    let mut futures = Vec::new();
    for _ in 0..depth {
        futures.push(start(Buffer::try_new(bytes as usize)?));
    }
    measure(time, || {
        if queue.poll() == 0 {
            return Ok(0);
        }
        let mut answered = 0;
        let mut context = Context::from_waker(Waker::noop());
        for future in &mut futures {
            if let Poll::Ready(outcome) = Pin::new(&mut *future).poll(&mut context) {
                *future = start(outcome?.ok_or("a read without its buffer")?);
                answered += 1;
            }
        }
        Ok(answered)
    })
}

/// An io_uring by hand. The ring is dropped, and has nothing in flight, before the buffers go.
struct ByHand {
    ring: IoUring,
    in_flight: u32,
    buffers: Vec<Buffer>,
    random: Random,
    blocks: u64,
    fixed: bool,
    _file: std::fs::File,
}

impl ByHand {
    fn open(path: &Path, bytes: u64, depth: u32, fixed: bool) -> Result<Self, Failure> {
        let file =
            std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)?;
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
        let ring: IoUring = builder.build(depth)?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        let buffers: Result<Vec<_>, _> =
            (0..depth).map(|_| Buffer::try_new(bytes as usize)).collect();
        let mut buffers = buffers?;
        let pieces = buffers.iter_mut().map(|buffer| libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        });
        let pieces: Vec<_> = pieces.collect();
        if fixed {
            // SAFETY: the buffers outlive the ring (order of the fields).
            unsafe { ring.submitter().register_buffers(&pieces) }?;
        }
        let blocks = file.metadata()?.len() / bytes;
        let random = Random::new(1);
        Ok(Self { ring, in_flight: 0, buffers, random, blocks, fixed, _file: file })
    }

    /// Starts a read into a buffer that no other read in flight uses.
    fn start(&mut self, index: usize) -> Result<(), Failure> {
        let buffer = &mut self.buffers[index];
        let (at, len) = (buffer.as_mut_ptr(), buffer.len() as u32);
        let offset = self.random.below(self.blocks) * u64::from(len);
        let file = types::Fixed(0);
        let entry = if self.fixed {
            opcode::ReadFixed::new(file, at, len, index as u16).offset(offset).build()
        } else {
            opcode::Read::new(file, at, len).offset(offset).build()
        };
        // SAFETY: each buffer is used by one read at a time (the callers), and Drop waits for all
        // before the buffers go.
        unsafe { self.ring.submission().push(&entry.user_data(index as u64)) }?;
        self.in_flight += 1;
        Ok(())
    }

    fn turn(&mut self) -> Result<u64, Failure> {
        let to_do = {
            let submission = self.ring.submission();
            !submission.is_empty() || submission.taskrun()
        };
        if to_do {
            self.ring.submit()?;
        }
        let mut answered = 0;
        loop {
            let completion = self.ring.completion().next();
            let Some(completion) = completion else { return Ok(answered) };
            self.in_flight -= 1;
            let index = completion.user_data() as usize;
            if completion.result() as usize != self.buffers[index].len() {
                return Err(format!("a read gave {}", completion.result()).into());
            }
            self.start(index)?;
            answered += 1;
        }
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        while self.in_flight > 0 {
            self.ring.submit_and_wait(1).expect("reads that were started can be waited for");
            self.in_flight -= self.ring.completion().count() as u32;
        }
    }
}

fn by_hand(
    path: &Path,
    bytes: u64,
    depth: u32,
    time: Duration,
    fixed: bool,
) -> Result<Measured, Failure> {
    let mut by_hand = ByHand::open(path, bytes, depth, fixed)?;
    for index in 0..depth as usize {
        by_hand.start(index)?;
    }
    measure(time, || by_hand.turn())
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: device_rates PATH [SECONDS]")?;
    let seconds: f64 = arguments.next().map_or(Ok(1.0), |text| text.parse())?;
    let (path, duration) = (Path::new(&path), Duration::try_from_secs_f64(seconds)?);
    println!("bytes depth way    ops/s      ns of CPU/op");
    for (bytes, depth) in [(4096, 1), (4096, 32), (4096, 128), (131_072, 16)] {
        for _ in 0..3 {
            for way in ["queue", "plain", "fixed"] {
                let measured = match way {
                    "queue" => by_queue(path, bytes, depth, duration)?,
                    way => by_hand(path, bytes, depth, duration, way == "fixed")?,
                };
                let rate = measured.operations as f64 / measured.elapsed.as_secs_f64();
                let cost = measured.thread_time.as_nanos() / u128::from(measured.operations.max(1));
                println!("{bytes:>6} {depth:>5} {way:<6} {rate:>9.0} {cost:>9}");
            }
        }
    }
    Ok(())
}
