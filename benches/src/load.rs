//! The load: operations of one size, a fixed number in flight, at random or in sequence.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::ValueEnum;
use engine_base::random::Random;
use futures::stream::{FuturesUnordered, Stream as _};

use crate::histogram::Histogram;

/// What is done, in fio's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub(crate) enum Pattern {
    /// Reads at random offsets
    RandRead,
    /// Writes at random offsets
    RandWrite,
    /// Reads in sequence
    Read,
    /// Writes in sequence
    Write,
}

impl Pattern {
    pub(crate) fn writes(self) -> bool {
        matches!(self, Self::RandWrite | Self::Write)
    }

    pub(crate) fn is_random(self) -> bool {
        matches!(self, Self::RandRead | Self::RandWrite)
    }
}

/// One measurement's settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) pattern: Pattern,
    pub(crate) block_bytes: u32,
    pub(crate) depth: u32,
    pub(crate) duration: Duration,
    /// Operations to start, instead of a duration.
    pub(crate) operations: Option<u64>,
    pub(crate) seed: u64,
    /// A write after which this many since the last flush have been started is flushed; 0: none is.
    pub(crate) flush_every: u64,
}

/// An operation under way.
pub(crate) type Running = Pin<Box<dyn Future<Output = Result<()>>>>;

type Timed<'a> = Pin<Box<dyn Future<Output = Result<Duration>> + 'a>>;

/// A layer that can be measured.
pub(crate) trait Subject {
    /// Bytes that may be read and written.
    fn size_bytes(&self) -> u64;
    /// Starts a read, or a write of data that the subject has ready.
    fn start(&self, write: bool, offset: u64, len: u32) -> Result<Running>;
    /// Makes what was written durable.
    fn flush(&self) -> Running;
    /// Lets the layer make progress: one turn of a reactor.
    fn turn(&self) -> Result<()>;
    /// Ends in order, if that is more than to end.
    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// What one part of a load came to.
#[derive(Default)]
pub(crate) struct Tally {
    operations: u64,
    elapsed: Duration,
    latency: Histogram,
}

impl Tally {
    /// An operation has ended that took so long.
    pub(crate) fn record(&mut self, took: Duration) {
        self.operations += 1;
        self.latency.record(took);
    }

    /// The part has ended, after so long.
    pub(crate) fn end(&mut self, elapsed: Duration) {
        self.elapsed = elapsed;
    }

    /// Takes in another part, which ran at the same time.
    pub(crate) fn add(&mut self, other: Self) {
        self.operations += other.operations;
        self.elapsed = self.elapsed.max(other.elapsed);
        self.latency.add(&other.latency);
    }

    /// All of it, in operations of `block_bytes`.
    pub(crate) fn over(self, block_bytes: u32) -> Measured {
        let Self { operations, elapsed, latency } = self;
        Measured { operations, elapsed, block_bytes, latency }
    }
}

/// What was measured.
pub(crate) struct Measured {
    operations: u64,
    elapsed: Duration,
    block_bytes: u32,
    latency: Histogram,
}

impl Measured {
    /// One line, in the names of fio's JSON where there is one.
    pub(crate) fn to_json(&self) -> String {
        let seconds = self.elapsed.as_secs_f64();
        let iops = self.operations as f64 / seconds;
        let mib = iops * f64::from(self.block_bytes) / f64::from(1 << 20);
        let micros = |per_mille| self.latency.quantile_ns(per_mille) as f64 / 1000.0;
        format!(
            "{{\"iops\":{iops:.0},\"mib_s\":{mib:.1},\"p50_us\":{:.1},\"p99_us\":{:.1},\
             \"operations\":{},\"seconds\":{seconds:.3}}}",
            micros(500),
            micros(990),
            self.operations
        )
    }
}

/// Puts `load` on `subject`.
pub(crate) fn measure(subject: &dyn Subject, load: &Load) -> Result<Measured> {
    let blocks = subject.size_bytes() / u64::from(load.block_bytes);
    ensure!(blocks >= u64::from(load.depth), "the file is too small for this load");
    let mut random = Random::new(load.seed);
    let mut position = 0;
    let mut next = || {
        let block = if load.pattern.is_random() { random.below(blocks) } else { position % blocks };
        position += 1;
        let offset = block * u64::from(load.block_bytes);
        let running = subject.start(load.pattern.writes(), offset, load.block_bytes)?;
        if load.flush_every > 0 && position % load.flush_every == 0 {
            return Ok::<_, anyhow::Error>(timed(then_flush(running, subject)));
        }
        Ok(timed(running))
    };
    let started = Instant::now();
    let mut tally = Tally::default();
    let mut running = FuturesUnordered::new();
    for _ in 0..load.depth {
        running.push(next()?);
    }
    let mut context = Context::from_waker(Waker::noop());
    let mut begun = u64::from(load.depth);
    // Operations still under way at the end are waited for and counted, with their time.
    while !running.is_empty() {
        subject.turn()?;
        while let Poll::Ready(Some(ended)) = Pin::new(&mut running).poll_next(&mut context) {
            tally.record(ended?);
            let goes_on = match load.operations {
                Some(most) => begun < most,
                None => started.elapsed() < load.duration,
            };
            if goes_on {
                begun += 1;
                running.push(next()?);
            }
        }
    }
    tally.end(started.elapsed());
    Ok(tally.over(load.block_bytes))
}

/// The time an operation takes, from its start.
fn timed<'a>(running: impl Future<Output = Result<()>> + 'a) -> Timed<'a> {
    let started = Instant::now();
    Box::pin(async move {
        running.await?;
        Ok(started.elapsed())
    })
}

async fn then_flush(running: Running, subject: &dyn Subject) -> Result<()> {
    running.await?;
    subject.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// Ends every operation at once and remembers the offsets.
    struct Instantly(RefCell<Vec<u64>>);

    impl Subject for Instantly {
        fn size_bytes(&self) -> u64 {
            16 * 4096
        }

        fn start(&self, _: bool, offset: u64, _: u32) -> Result<Running> {
            self.0.borrow_mut().push(offset);
            Ok(Box::pin(async { Ok(()) }))
        }

        fn flush(&self) -> Running {
            self.0.borrow_mut().push(u64::MAX);
            Box::pin(async { Ok(()) })
        }

        fn turn(&self) -> Result<()> {
            Ok(())
        }
    }

    fn offsets(pattern: Pattern, flush_every: u64) -> Vec<u64> {
        let subject = Instantly(RefCell::new(Vec::new()));
        let duration = Duration::ZERO;
        let load = Load {
            pattern,
            block_bytes: 4096,
            depth: 4,
            duration,
            operations: None,
            seed: 1,
            flush_every,
        };
        let measured = measure(&subject, &load).unwrap();
        assert_eq!(measured.operations, 4);
        subject.0.into_inner()
    }

    #[test]
    fn offsets_follow_the_pattern_and_stay_within() {
        assert_eq!(offsets(Pattern::Read, 0), [0, 4096, 8192, 12288]);
        let random = offsets(Pattern::RandWrite, 0);
        assert!(random.iter().all(|offset| offset.is_multiple_of(4096) && *offset < 16 * 4096));
        assert_eq!(random, offsets(Pattern::RandWrite, 0), "one seed, one sequence");
        let flushed = offsets(Pattern::Write, 2);
        assert_eq!(flushed.iter().filter(|offset| **offset == u64::MAX).count(), 2);
    }
}
