//! The scrub: all that a shard holds is read from its devices and compared with its checksums, index nodes first, then
//! data in the order in which it lies there. It goes on over restarts, at a rate, and can be paused.
//!
//! How far it is are counters of the shard, changed in one transaction, now and then: after a crash a little is read
//! again. What is lost goes on the damage list. A node that cannot be read and is cached is written anew.
//!
//! At most one scrub of a shard goes on; each time it is started or resumed it has another *turn*, and what was going
//! on ends when it notices.

mod nodes;
mod types;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use engine_base::BLOCK_SIZE;
use futures::future::select;

use crate::api::Reply;
use crate::check::{Problems, read_blocks};
use crate::context::Context;
use crate::data::BlockRange;
use crate::error::{Result, StoreError};
use crate::key::Counter;
use crate::reached::{Branch, mark};
use crate::sync::Notify;

pub use types::{ScrubRequest, ScrubState, ScrubStatus};

/// Longest pause between two looks at whether it should go on.
const PAUSE_NS_MAX: u64 = 500_000_000;
const SECOND_NS: u64 = 1_000_000_000;
/// Where it is while it reads index nodes; then one more than the bucket, under the member.
const AT_NODES: u64 = 0;

/// The scrub of a shard.
pub(crate) struct Scrubber {
    context: Rc<Context>,
    job: RefCell<ScrubStatus>,
    /// What is to be read next.
    place: Cell<u64>,
    turn: Cell<u64>,
    changed: Notify,
    /// Done when it was noted last.
    noted_bytes: Cell<u64>,
}

/// Whether a scrub goes on.
type GoesOn = std::result::Result<(), Stop>;

/// Why it does not.
enum Stop {
    /// Somebody said so.
    Told,
    /// The shard is closed or has failed.
    Failed,
}

impl Scrubber {
    /// Takes up what was going on.
    ///
    /// # Errors
    /// When its state is none that is known.
    pub(crate) fn open(context: &Rc<Context>) -> Result<Rc<Self>> {
        let of = |counter| context.engine.counter(counter);
        let job = ScrubStatus {
            state: ScrubState::from_number(of(Counter::SCRUB_STATE))?,
            began_ns: of(Counter::SCRUB_BEGAN),
            ended_ns: of(Counter::SCRUB_ENDED),
            bytes_per_second: of(Counter::SCRUB_RATE),
            total_bytes: of(Counter::SCRUB_TOTAL),
            done_bytes: of(Counter::SCRUB_DONE),
            problems: of(Counter::SCRUB_PROBLEMS),
            healed: of(Counter::SCRUB_HEALED),
            last_problem: None,
        };
        let scrubber = Rc::new(Self {
            context: Rc::clone(context),
            noted_bytes: Cell::new(job.done_bytes),
            place: Cell::new(of(Counter::SCRUB_PLACE)),
            turn: Cell::new(0),
            changed: Notify::default(),
            job: RefCell::new(job),
        });
        if scrubber.job.borrow().state == ScrubState::Running {
            mark(Branch::ScrubGoesOn);
            scrubber.start();
        }
        Ok(scrubber)
    }

    pub(crate) async fn handle(self: &Rc<Self>, request: ScrubRequest) -> Result<Reply> {
        let state = self.job.borrow().state;
        match (request, state) {
            (ScrubRequest::Start { .. }, ScrubState::Running | ScrubState::Paused) => {
                let what = format!("scrub of shard {}", self.context.shard());
                let why = "one is running or paused: let it end, or cancel it".to_owned();
                return Err(StoreError::Busy { what, why });
            }
            (ScrubRequest::Start { bytes_per_second }, _) => {
                let now = self.context.engine.runtime().wall_clock_ns();
                *self.job.borrow_mut() = ScrubStatus {
                    state: ScrubState::Running,
                    began_ns: now.max(1),
                    bytes_per_second,
                    total_bytes: self.context.engine.bytes_to_scrub(),
                    ..ScrubStatus::default()
                };
                self.place.set(AT_NODES);
                self.change_to(ScrubState::Running).await?;
            }
            (ScrubRequest::Pause, ScrubState::Running) => {
                self.change_to(ScrubState::Paused).await?;
            }
            (ScrubRequest::Resume, ScrubState::Paused) => {
                self.change_to(ScrubState::Running).await?;
            }
            (ScrubRequest::Cancel, ScrubState::Running | ScrubState::Paused) => {
                self.job.borrow_mut().ended_ns = self.context.engine.runtime().wall_clock_ns();
                self.change_to(ScrubState::Cancelled).await?;
            }
            _ => {}
        }
        Ok(Reply::Scrub(Box::new(self.job.borrow().clone())))
    }

    /// What goes on ends, and goes on where it should. Durable.
    async fn change_to(self: &Rc<Self>, state: ScrubState) -> Result<()> {
        self.job.borrow_mut().state = state;
        let turn = self.turn.get() + 1;
        self.turn.set(turn);
        self.changed.notify_all();
        self.note().await?;
        self.context.engine.flush().await?;
        // Somebody may have said something else meanwhile.
        if state == ScrubState::Running && self.turn.get() == turn {
            self.start();
        }
        Ok(())
    }

    fn start(self: &Rc<Self>) {
        let (scrubber, turn) = (Rc::clone(self), self.turn.get());
        let work = async move {
            if let Err(Stop::Failed) = scrubber.run(turn).await {
                let shard = scrubber.context.shard().0;
                tracing::debug!(shard, "the scrub goes on when the shard is opened again");
            }
        };
        self.context.background.spawn("scrub", Box::pin(work));
    }

    /// Notes in the index how far it is.
    async fn note(&self) -> Result<()> {
        let job = self.job.borrow().clone();
        self.noted_bytes.set(job.done_bytes);
        let now = [
            (Counter::SCRUB_STATE, job.state as u64),
            (Counter::SCRUB_BEGAN, job.began_ns),
            (Counter::SCRUB_ENDED, job.ended_ns),
            (Counter::SCRUB_RATE, job.bytes_per_second),
            (Counter::SCRUB_TOTAL, job.total_bytes),
            (Counter::SCRUB_DONE, job.done_bytes),
            (Counter::SCRUB_PROBLEMS, job.problems),
            (Counter::SCRUB_HEALED, job.healed),
            (Counter::SCRUB_PLACE, self.place.get()),
        ];
        self.context
            .engine
            .transact(async |transaction| {
                for (counter, value) in now {
                    let before = transaction.engine().counter(counter);
                    transaction.add(counter, value.wrapping_sub(before).cast_signed());
                }
                Ok(())
            })
            .await
    }

    async fn run(&self, turn: u64) -> GoesOn {
        let engine = &self.context.engine;
        if self.place.get() == AT_NODES {
            self.nodes(turn).await?;
            self.place.set(1);
        }
        loop {
            let from = bucket_at(self.place.get());
            let next = match engine.next_data_bucket(from).await {
                Ok(next) => next,
                Err((after, error)) => {
                    self.problem(turn, error.to_string())?;
                    self.place.set(place_of(after));
                    continue;
                }
            };
            let Some((bucket, _pin)) = next else { break };
            let bytes = match engine.scrub_bucket(bucket).await {
                Ok(found) => {
                    for range in found.unread {
                        self.read_again(turn, range).await?;
                    }
                    found.blocks * BLOCK_SIZE
                }
                Err(error) => {
                    self.problem(turn, format!("bucket {bucket:?}: {error}"))?;
                    0
                }
            };
            self.place.set(place_of((bucket.0, bucket.1 + 1)));
            self.done(turn, bytes).await?;
        }
        self.end(turn).await.map_err(|_| Stop::Failed)
    }

    /// Everything is read.
    async fn end(&self, turn: u64) -> Result<()> {
        if self.turn.get() != turn {
            return Ok(());
        }
        let engine = &self.context.engine;
        engine.save_damage().await?;
        {
            let mut job = self.job.borrow_mut();
            job.state = ScrubState::Done;
            job.ended_ns = engine.runtime().wall_clock_ns();
            // What was deleted meanwhile needs not be read, and what was written is.
            job.total_bytes = job.done_bytes;
        }
        self.note().await?;
        engine.flush().await
    }

    /// Reads blocks that could not be read along with others: once more, as a client would, so that what is lost
    /// goes on the damage list.
    async fn read_again(&self, turn: u64, range: BlockRange) -> GoesOn {
        let mut problems = Problems::new(&self.context);
        let read = read_blocks(&self.context, range, &mut problems).await;
        let lines = problems.into_report().problems;
        lines.into_iter().try_for_each(|line| self.problem(turn, line))?;
        match read {
            Ok(()) => Ok(()),
            Err(error) => self.problem(turn, format!("inode {}: {error}", range.inode)),
        }
    }

    fn problem(&self, turn: u64, text: String) -> GoesOn {
        self.goes_on(turn)?;
        tracing::warn!(shard = self.context.shard().0, problem = text, "scrub");
        let mut job = self.job.borrow_mut();
        job.problems += 1;
        job.last_problem = Some(text);
        Ok(())
    }

    fn goes_on(&self, turn: u64) -> GoesOn {
        if self.context.background.check().is_err() || self.context.engine.stopped().is_some() {
            return Err(Stop::Failed);
        }
        if self.turn.get() == turn { Ok(()) } else { Err(Stop::Told) }
    }

    /// So many bytes were read: notes that now and then, and waits as long as the rate asks for.
    async fn done(&self, turn: u64, bytes: u64) -> GoesOn {
        self.goes_on(turn)?;
        let (rate, noted) = {
            let mut job = self.job.borrow_mut();
            job.done_bytes += bytes;
            let since = job.done_bytes - self.noted_bytes.get();
            (job.bytes_per_second, since < self.context.limits.fsck_note_blocks * BLOCK_SIZE)
        };
        if !noted {
            self.context.engine.save_damage().await.map_err(|_| Stop::Failed)?;
            self.note().await.map_err(|_| Stop::Failed)?;
        }
        let runtime = self.context.engine.runtime();
        let mut left = match rate {
            0 => 0,
            rate => (u128::from(bytes) * u128::from(SECOND_NS) / u128::from(rate)) as u64,
        };
        while left > 0 {
            let changed = self.changed.notified();
            let pause = left.min(PAUSE_NS_MAX);
            select(runtime.sleep(pause), std::pin::pin!(changed)).await;
            left -= pause;
            self.goes_on(turn)?;
        }
        runtime.yield_now().await;
        self.goes_on(turn)
    }
}

fn place_of((member, bucket): (u8, u32)) -> u64 {
    u64::from(member) << 32 | (u64::from(bucket) + 1)
}

fn bucket_at(place: u64) -> (u8, u32) {
    ((place >> 32) as u8, (place as u32).saturating_sub(1))
}
