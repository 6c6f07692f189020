//! Changing the size of a member while the pool serves.
//!
//! Shard 0 does it, one change at a time. What is durable of it is the superblock alone, so a crash at any point
//! leaves a pool of the old size, of the new one, or one that goes on shrinking when it is opened.
//!
//! *Growing*: the superblock with the new size is written to all members; then every shard takes it over; then
//! shard 0 hands out the new regions. Nothing is placed in the new space before the superblock is durable.
//!
//! *Shrinking*:
//! 1. No region past the new end is given any more. Every shard gets itself enough regions before it, and stops
//!    placing anything past it, in memory ([`crate::space`]). A shard for which there is not enough refuses,
//!    and all is taken back.
//! 2. The superblock says that the member shrinks, and where to. From here on a restart goes on with it.
//! 3. Every shard empties what it has past the end. It can be given up until all is empty: then the superblock
//!    says so, and the shards use the space again.
//! 4. All shards have said that what is past the end is durably empty: the superblock with the new size is
//!    written. The place of its third copy is among what was emptied.
//! 5. The shards take it over and forget the regions that are gone; shard 0 forgets who had them.
//!
//! Each superblock that is written has a number of its own, also when the write failed: two of one number
//! never differ.

mod types;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use engine_base::ShardId;
use futures::channel::oneshot;

use crate::api::{Reply, Request};
use crate::context::Context;
use crate::error::{Result, StoreError};
use crate::superblock::{self, Superblock};
use crate::sync::Notify;

pub use types::{MemberSize, ResizeJob, ResizePhase, ResizeRequest, ResizeStatus, ShardLeft};

/// Number of the superblock of a pool whose members never changed.
const SEQUENCE_FORMATTED: u64 = 1;
/// Time between looks at how far the shards are.
const POLL_NS: u64 = 50_000_000;
/// Pauses after a step that failed: the first, and the longest.
const RETRY_NS_MIN: u64 = 10_000_000;
const RETRY_NS_MAX: u64 = 1_000_000_000;

/// The changes of size; on shard 0.
pub(crate) struct Resizer {
    context: Rc<Context>,
    job: RefCell<Option<ResizeJob>>,
    /// A change, or the end of one from before the pool was opened, goes on.
    active: Cell<bool>,
    cancel: Cell<bool>,
    /// The member is empty past its new end, and the superblock that says so is being written.
    ending: Cell<bool>,
    /// What a restart interrupted is looked into.
    opening: Cell<bool>,
    opened: Notify,
    /// Highest number of a superblock that was ever written, or tried to be.
    tried: Cell<u64>,
}

/// Why shrinking did not begin.
enum Refusal {
    /// Nothing was written.
    Before(StoreError),
    /// What is on the devices is not known.
    Writing(StoreError),
}

/// Ends the change when it is dropped.
struct Active(Rc<Resizer>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.set(false);
        self.0.ending.set(false);
        self.0.cancel.set(false);
    }
}

/// Carries out what concerns a shard itself.
pub(crate) async fn handle_step(context: &Context, request: ResizeRequest) -> Result<Reply> {
    let engine = &context.engine;
    match request {
        ResizeRequest::Needed => Ok(Reply::Count(engine.buckets_needed())),
        ResizeRequest::Expect { member, end } => {
            engine.expect_end(member, end);
            Ok(Reply::Unit)
        }
        ResizeRequest::Prepare { member, end } => {
            engine.prepare_end(member, end).await.map(|()| Reply::Unit)
        }
        ResizeRequest::Close { member, end } => {
            engine.close_end(member, end).await.map(|()| Reply::Unit)
        }
        ResizeRequest::Reopen => {
            engine.reopen_ends();
            Ok(Reply::Unit)
        }
        ResizeRequest::Adopt { superblock } => engine.adopt(&superblock).map(|()| Reply::Unit),
        ResizeRequest::Left => Ok(Reply::ResizeLeft(Box::new(engine.left_past_ends()))),
        ResizeRequest::Start { .. } | ResizeRequest::Status | ResizeRequest::Cancel => {
            Err(StoreError::invalid("sizes of members are the business of shard 0"))
        }
    }
}

impl Resizer {
    /// Goes on with what a restart interrupted.
    pub(crate) fn open(context: &Rc<Context>) -> Rc<Self> {
        let superblock = context.engine.superblock();
        let resizer = Rc::new(Self {
            context: Rc::clone(context),
            job: RefCell::default(),
            active: Cell::new(true),
            cancel: Cell::new(false),
            ending: Cell::new(false),
            opening: Cell::new(true),
            opened: Notify::default(),
            tried: Cell::new(superblock.sequence),
        });
        let shrinks = superblock.members.iter().position(|member| member.shrink_to_bytes != 0);
        if let Some(index) = shrinks {
            let member = &superblock.members[index];
            *resizer.job.borrow_mut() = Some(ResizeJob {
                member: index as u8,
                from_bytes: member.size_bytes,
                to_bytes: member.shrink_to_bytes,
                phase: ResizePhase::Running,
                left_bytes: 0,
                why: String::new(),
            });
        }
        let active = Active(Rc::clone(&resizer));
        if superblock.sequence <= SEQUENCE_FORMATTED {
            resizer.opening.set(false);
            return resizer;
        }
        let task = async move {
            let resizer = &active.0;
            // Another shard may have been opened with a copy that is older.
            let goes_on = resizer.take_over(&superblock).await && shrinks.is_some();
            if !goes_on {
                resizer.active.set(false);
            }
            resizer.opening.set(false);
            resizer.opened.notify_all();
            if goes_on {
                resizer.shrink().await;
            }
        };
        context.background.spawn("resize", Box::pin(task));
        resizer
    }

    /// Carries out a request.
    pub(crate) async fn handle(self: &Rc<Self>, request: ResizeRequest) -> Result<Reply> {
        match request {
            ResizeRequest::Start { member, size_bytes } => {
                self.start(member, size_bytes).await?;
            }
            ResizeRequest::Cancel => self.give_up()?,
            ResizeRequest::Status => {}
            step => return handle_step(&self.context, step).await,
        }
        Ok(Reply::Resize(Box::new(self.status())))
    }

    fn status(&self) -> ResizeStatus {
        let superblock = self.context.engine.superblock();
        let members = superblock
            .members
            .iter()
            .map(|member| MemberSize { uuid: member.uuid, size_bytes: member.size_bytes })
            .collect();
        ResizeStatus { members, job: self.job.borrow().clone() }
    }

    fn give_up(&self) -> Result<()> {
        let superblock = self.context.engine.superblock();
        if superblock.members.iter().all(|member| member.shrink_to_bytes == 0) {
            return Err(StoreError::NotFound { what: "a member that is being shrunk".to_owned() });
        }
        if self.ending.get() {
            return Err(busy("it is empty already, and about to get its new size"));
        }
        self.cancel.set(true);
        Ok(())
    }

    async fn start(self: &Rc<Self>, member: u8, size_bytes: Option<u64>) -> Result<()> {
        while self.opening.get() {
            let opened = self.opened.notified();
            self.context.background.unless_stopped(opened).await?;
        }
        if self.active.replace(true) {
            return Err(busy("another change of size goes on; wait for its end, or cancel it"));
        }
        let active = Active(Rc::clone(self));
        let (from, to) = self.sizes(member, size_bytes)?;
        let job = ResizeJob {
            member,
            from_bytes: from,
            to_bytes: to,
            phase: ResizePhase::Running,
            left_bytes: 0,
            why: String::new(),
        };
        if to < from {
            self.check_fits(member, to).await?;
        }
        // A task of its own: one that the shard waits for before it closes.
        let (answer, answered) = oneshot::channel();
        let task = async move {
            let resizer = &active.0;
            if to > from {
                resizer.job.replace(Some(job));
                // The asker may be gone; the work is done all the same.
                let _ = answer.send(Ok(()));
                resizer.grow(member, to).await;
            } else if to < from {
                match resizer.begin_shrink(job).await {
                    Ok(()) => {
                        let _ = answer.send(Ok(()));
                        resizer.shrink().await;
                    }
                    Err(Refusal::Before(error)) => {
                        resizer.reopen().await;
                        let _ = answer.send(Err(error));
                    }
                    Err(Refusal::Writing(error)) => {
                        let _ = answer.send(Err(error));
                        resizer.go_back().await;
                    }
                }
            } else {
                resizer.job.replace(Some(ResizeJob { phase: ResizePhase::Done, ..job }));
                let _ = answer.send(Ok(()));
            }
        };
        self.context.background.spawn("resize", Box::pin(task));
        answered.await.unwrap_or_else(|_| Err(busy("the shard is being closed")))
    }

    /// The size of a member now and the one that it is to get, in bytes.
    fn sizes(&self, member: u8, size_bytes: Option<u64>) -> Result<(u64, u64)> {
        let engine = &self.context.engine;
        let superblock = engine.superblock();
        let Some(known) = superblock.members.get(usize::from(member)) else {
            return Err(StoreError::NotFound { what: format!("member {member}") });
        };
        let queue = engine.member(member)?;
        let (bucket, has) = (u64::from(superblock.bucket_bytes), queue.refresh_size()?);
        let name = &queue.info().name;
        let wanted = size_bytes.unwrap_or(has);
        let to = wanted - wanted % bucket;
        if wanted > has {
            return Err(StoreError::invalid(format!(
                "{name} has {has} bytes, {wanted} are wanted: make the device larger first"
            )));
        }
        let least = superblock.size_for(member, 0);
        if to < least {
            return Err(StoreError::invalid(format!(
                "{to} bytes are too few for {name}: journals and superblock alone need {least}"
            )));
        }
        let mut planned = Superblock::clone(&superblock);
        planned.members[usize::from(member)].size_bytes = to;
        planned.validate().map_err(|error| {
            StoreError::invalid(format!("{name} cannot have {to} bytes: {error}"))
        })?;
        Ok((known.size_bytes, to))
    }

    /// Refuses a size that is too small for what is stored, with the reserves of each shard.
    async fn check_fits(&self, member: u8, to: u64) -> Result<()> {
        let superblock = self.context.engine.superblock();
        let region = u64::from(superblock.region_buckets);
        let mut needed = 0;
        for shard in self.context.shards() {
            match self.ask(shard, ResizeRequest::Needed).await? {
                // Whole regions, and one more: shards do not share one.
                Reply::Count(buckets) => needed += (buckets.div_ceil(region) + 1) * region,
                other => return Err(other.mismatch("Count")),
            }
        }
        let bucket = u64::from(superblock.bucket_bytes);
        let others: u64 = (0..superblock.members.len() as u8)
            .filter(|other| *other != member)
            .map(|other| {
                let least = superblock.size_for(other, 0);
                superblock.members[usize::from(other)].size_bytes.saturating_sub(least) / bucket
            })
            .sum();
        let least = superblock.size_for(member, needed.saturating_sub(others));
        if to >= least {
            return Ok(());
        }
        let now = superblock.members[usize::from(member)].size_bytes;
        Err(StoreError::invalid(if least < now {
            format!(
                "member {member} cannot be shrunk to {to} bytes: what is stored, with its reserves, \
                 needs {least} bytes of it: that is the smallest size possible now"
            )
        } else {
            format!(
                "member {member} cannot be shrunk to {to} bytes, nor at all: what is stored, with its \
                 reserves, needs all of it: {now} bytes is the smallest size possible now"
            )
        }))
    }

    async fn grow(&self, member: u8, to: u64) {
        let written = self
            .write_superblock(|superblock| {
                superblock.members[usize::from(member)].size_bytes = to;
            })
            .await;
        match written {
            Ok(superblock) => {
                if self.take_over(&superblock).await {
                    self.ended(ResizePhase::Done, String::new());
                }
            }
            Err(error) => self.ended(ResizePhase::Failed, error.to_string()),
        }
    }

    /// Steps 1 and 2.
    async fn begin_shrink(&self, job: ResizeJob) -> std::result::Result<(), Refusal> {
        let (member, to) = (job.member, job.to_bytes);
        let end = (to / u64::from(self.context.engine.superblock().bucket_bytes)) as u32 - 1;
        let steps = [
            ResizeRequest::Expect { member, end },
            ResizeRequest::Prepare { member, end },
            ResizeRequest::Close { member, end },
        ];
        for step in steps {
            self.step(step).await.map_err(|error| {
                Refusal::Before(match error {
                    StoreError::NoSpace { needed_bytes, available_bytes } => {
                        let more = needed_bytes.saturating_sub(available_bytes);
                        StoreError::invalid(format!(
                            "member {member} cannot be shrunk to {to} bytes now: a shard lacks \
                             {more} bytes; leave it more, or remove something"
                        ))
                    }
                    error => error,
                })
            })?;
        }
        self.job.replace(Some(job));
        let written = self
            .write_superblock(|superblock| {
                superblock.members[usize::from(member)].shrink_to_bytes = to;
            })
            .await;
        match written {
            Ok(superblock) if self.take_over(&superblock).await => Ok(()),
            Ok(_) => Err(Refusal::Writing(busy("the shard is being closed"))),
            Err(error) => Err(Refusal::Writing(error)),
        }
    }

    /// Takes back what was done in memory. A shard that does not answer forgets it when it is opened again.
    async fn reopen(&self) {
        for shard in self.context.shards() {
            let _ = self.ask(shard, ResizeRequest::Reopen).await;
        }
    }

    /// Steps 3 to 5, or the way back.
    async fn shrink(&self) {
        loop {
            if self.cancel.get() {
                return self.go_back().await;
            }
            match self.left().await {
                Ok(Some((left_bytes, why))) => {
                    let phase =
                        if why.is_empty() { ResizePhase::Running } else { ResizePhase::Blocked };
                    self.note(phase, left_bytes, why);
                }
                Ok(None) => {
                    self.ending.set(true);
                    match self.finish().await {
                        Ok(()) => return,
                        Err(error) => self.note(ResizePhase::Blocked, 0, error.to_string()),
                    }
                    self.ending.set(false);
                }
                Err(error) => {
                    let left_bytes = self.job.borrow().as_ref().map_or(0, |job| job.left_bytes);
                    self.note(ResizePhase::Blocked, left_bytes, error.to_string());
                }
            }
            if !self.pause(POLL_NS).await {
                return;
            }
        }
    }

    /// Bytes that all shards have left to move, and what keeps one of them; `None`: all is empty.
    async fn left(&self) -> Result<Option<(u64, String)>> {
        let sequence = self.context.engine.superblock().sequence;
        let (mut bytes, mut empty, mut why) = (0, true, String::new());
        for shard in self.context.shards() {
            let left = match self.ask(shard, ResizeRequest::Left).await? {
                Reply::ResizeLeft(left) => left,
                other => return Err(other.mismatch("ResizeLeft")),
            };
            bytes += left.bytes;
            empty &= left.empty && left.sequence == sequence;
            if let Some(reason) = left.why {
                why = format!("shard {shard}: {reason}");
            }
        }
        Ok((!empty).then_some((bytes, why)))
    }

    /// The member gets its new size.
    async fn finish(&self) -> Result<()> {
        let superblock = self
            .write_superblock(|superblock| {
                for member in &mut superblock.members {
                    if member.shrink_to_bytes != 0 {
                        member.size_bytes = std::mem::take(&mut member.shrink_to_bytes);
                    }
                }
            })
            .await?;
        if self.take_over(&superblock).await {
            self.ended(ResizePhase::Done, String::new());
        }
        Ok(())
    }

    /// The member keeps its size.
    async fn go_back(&self) {
        let mut pause_ns = RETRY_NS_MIN;
        loop {
            let written = self
                .write_superblock(|superblock| {
                    superblock.members.iter_mut().for_each(|member| member.shrink_to_bytes = 0);
                })
                .await;
            match written {
                Ok(superblock) => {
                    if self.take_over(&superblock).await {
                        self.ended(ResizePhase::Cancelled, String::new());
                    }
                    return;
                }
                Err(error) => self.note(ResizePhase::Blocked, 0, error.to_string()),
            }
            if !self.pause(pause_ns).await {
                return;
            }
            pause_ns = (pause_ns * 2).min(RETRY_NS_MAX);
        }
    }

    /// Writes a changed superblock to all members.
    async fn write_superblock(&self, change: impl FnOnce(&mut Superblock)) -> Result<Superblock> {
        let engine = &self.context.engine;
        if let Some(error) = engine.stopped() {
            return Err(error);
        }
        let mut superblock = Superblock::clone(&engine.superblock());
        change(&mut superblock);
        superblock.sequence = superblock.sequence.max(self.tried.get()) + 1;
        superblock.validate()?;
        self.tried.set(superblock.sequence);
        for index in 0..superblock.members.len() as u8 {
            superblock::write(&**engine.member(index)?, &superblock, index).await?;
        }
        Ok(superblock)
    }

    /// All shards take over a superblock that is durable, this one last; then regions past the ends are
    /// nobody's. False: the shard stops first.
    async fn take_over(&self, superblock: &Superblock) -> bool {
        let adopt = ResizeRequest::Adopt { superblock: Box::new(superblock.clone()) };
        let mut pause_ns = RETRY_NS_MIN;
        loop {
            let result = match self.step(adopt.clone()).await {
                Ok(()) => self.context.engine.drop_regions_past_ends().await,
                Err(error) => Err(error),
            };
            let Err(error) = result else { return true };
            if let Some(job) = self.job.borrow_mut().as_mut() {
                job.phase = ResizePhase::Blocked;
                job.why = error.to_string();
            }
            if !self.pause(pause_ns).await {
                return false;
            }
            pause_ns = (pause_ns * 2).min(RETRY_NS_MAX);
        }
    }

    /// All shards take a step, this one last.
    async fn step(&self, request: ResizeRequest) -> Result<()> {
        let request = Request::Resize(request);
        let others = self.context.shards().filter(|shard| *shard != self.context.shard());
        self.context.step_each(others, &request).await?;
        self.context.step_each([self.context.shard()], &request).await
    }

    async fn ask(&self, shard: ShardId, request: ResizeRequest) -> Result<Reply> {
        let call = self.context.call(shard, Request::Resize(request));
        self.context.background.unless_stopped(call).await?
    }

    /// False: the shard stops.
    async fn pause(&self, ns: u64) -> bool {
        let sleep = self.context.engine.runtime().sleep(ns);
        self.context.background.unless_stopped(sleep).await.is_ok()
            && self.context.engine.stopped().is_none()
    }

    fn note(&self, phase: ResizePhase, left_bytes: u64, why: String) {
        if let Some(job) = self.job.borrow_mut().as_mut() {
            (job.phase, job.left_bytes, job.why) = (phase, left_bytes, why);
        }
    }

    fn ended(&self, phase: ResizePhase, why: String) {
        self.note(phase, 0, why);
    }
}

fn busy(why: &str) -> StoreError {
    StoreError::Busy { what: "the size of a member".to_owned(), why: why.to_owned() }
}
