//! A device that fails by script, around any other: for tests of everything above.
//!
//! Which operation is hit is decided when it is submitted, by rules in order; the first that fires
//! wins. All chance comes from one seed, so one thread's run repeats exactly. Delays count polls of
//! the queue and not time. Without rules it is the device inside.
//!
//! It forgets nothing by itself: a flush that is lost does no harm until the test also loses what the
//! device had not made durable, which is for the device inside.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use engine_base::random::Random;

use crate::{
    BlockDevice, Completion, DeviceError, DeviceInfo, DeviceQueue, IoFuture, IoVec, Operation,
    Outcome, completion_pair,
};

/// Kind of an operation, for rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// [`Operation::Read`].
    Read,
    /// [`Operation::Write`].
    Write,
    /// [`Operation::Flush`].
    Flush,
    /// [`Operation::Discard`].
    Discard,
    /// [`Operation::WriteZeroes`].
    WriteZeroes,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done, an I/O error is answered.
    Error,
    /// It is done, and an I/O error is answered all the same.
    ErrorAfterwards,
    /// It is done, and answered only after so many polls of its queue.
    Delay {
        /// Polls from the submission on.
        polls: u64,
    },
    /// Writes only: a random number of blocks from the beginning is written, not all of them.
    Torn {
        /// Whether an I/O error is answered, or success.
        reported: bool,
    },
    /// All but reads: nothing is done, success is answered. A lost flush is a lying device.
    Lost,
    /// Reads only: one random bit of the data is wrong.
    CorruptRead,
    /// The device is gone: this and all later operations answer [`DeviceError::Gone`].
    Gone,
}

/// When something goes wrong, and what. Starts from [`Rule::always`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Kinds of operations it looks at; of those the ones its fault can happen to.
    pub kinds: Vec<OperationKind>,
    /// Bytes an operation must touch; `None`: any. With a range, flushes are never meant.
    pub range: Option<Range<u64>>,
    /// How many matching operations pass before the first is hit.
    pub skip: u64,
    /// How often it fires at most.
    pub times: u64,
    /// Probability that a matching operation is hit: numerator and denominator.
    pub chance: (u64, u64),
    /// What goes wrong.
    pub fault: Fault,
}

/// Names a rule of one [`Faults`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleId(usize);

impl Rule {
    /// `fault` for every operation of `kinds`.
    #[must_use]
    pub fn always(kinds: &[OperationKind], fault: Fault) -> Self {
        Self { kinds: kinds.to_vec(), range: None, skip: 0, times: u64::MAX, chance: (1, 1), fault }
    }

    /// `fault` for the `nth` (from 1) operation of `kinds` only.
    ///
    /// # Panics
    /// When `nth` is 0.
    #[must_use]
    pub fn nth(kinds: &[OperationKind], nth: u64, fault: Fault) -> Self {
        assert!(nth > 0, "the first is 1");
        Self { skip: nth - 1, times: 1, ..Self::always(kinds, fault) }
    }

    fn matches(&self, operation: &Operation) -> bool {
        let kind = kind(operation);
        let touches = match (&self.range, extent(operation)) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(range), Some(touched)) => touched.start < range.end && range.start < touched.end,
        };
        touches && self.kinds.contains(&kind) && self.fault.can_happen_to(kind)
    }
}

impl OperationKind {
    /// All kinds.
    pub const ALL: [Self; 5] =
        [Self::Read, Self::Write, Self::Flush, Self::Discard, Self::WriteZeroes];
}

impl Fault {
    fn can_happen_to(self, kind: OperationKind) -> bool {
        match self {
            Self::Torn { .. } => kind == OperationKind::Write,
            Self::CorruptRead => kind == OperationKind::Read,
            Self::Lost => kind != OperationKind::Read,
            Self::Error | Self::ErrorAfterwards | Self::Delay { .. } | Self::Gone => true,
        }
    }
}

/// The script of a [`FaultyDevice`]; shared, to be changed while the device is used.
#[derive(Clone)]
pub struct Faults {
    state: Arc<Mutex<State>>,
}

struct State {
    random: Random,
    rules: Vec<Armed>,
    gone: bool,
}

struct Armed {
    rule: Rule,
    matched: u64,
    fired: u64,
    removed: bool,
}

/// A fault that was decided on, with its random part.
enum Decision {
    Nothing,
    Fault(Fault, u64),
    Gone,
}

impl Faults {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a rule, to be asked after those there are.
    ///
    /// # Panics
    /// When it could never fire: its chance has a zero denominator, or its fault cannot happen to
    /// any of its kinds.
    pub fn add(&self, rule: Rule) -> RuleId {
        assert!(rule.chance.1 > 0, "a probability");
        assert!(rule.kinds.iter().any(|kind| rule.fault.can_happen_to(*kind)), "{rule:?}");
        let mut state = self.state();
        state.rules.push(Armed { rule, matched: 0, fired: 0, removed: false });
        RuleId(state.rules.len() - 1)
    }

    /// Takes a rule out. Its count stays.
    pub fn remove(&self, rule: RuleId) {
        self.state().rules[rule.0].removed = true;
    }

    /// How often a rule has fired.
    #[must_use]
    pub fn fired(&self, rule: RuleId) -> u64 {
        self.state().rules[rule.0].fired
    }

    /// Takes the device away, or brings it back.
    pub fn set_gone(&self, gone: bool) {
        self.state().gone = gone;
    }

    /// Whether the device is gone.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.state().gone
    }

    fn decide(&self, operation: &Operation) -> Decision {
        let state = &mut *self.state();
        if state.gone {
            return Decision::Gone;
        }
        for armed in &mut state.rules {
            if armed.removed || !armed.rule.matches(operation) {
                continue;
            }
            armed.matched += 1;
            let (numerator, denominator) = armed.rule.chance;
            if armed.matched <= armed.rule.skip
                || armed.fired == armed.rule.times
                || !state.random.chance(numerator, denominator)
            {
                continue;
            }
            armed.fired += 1;
            if armed.rule.fault == Fault::Gone {
                state.gone = true;
                return Decision::Gone;
            }
            return Decision::Fault(armed.rule.fault, state.random.next_u64());
        }
        Decision::Nothing
    }
}

/// A device around another that fails by script.
#[derive(Clone)]
pub struct FaultyDevice {
    inner: Arc<dyn BlockDevice>,
    faults: Faults,
}

impl FaultyDevice {
    /// `inner` without faults yet; chance comes from `seed`.
    #[must_use]
    pub fn new(inner: Arc<dyn BlockDevice>, seed: u64) -> Self {
        let state = State { random: Random::new(seed), rules: Vec::new(), gone: false };
        Self { inner, faults: Faults { state: Arc::new(Mutex::new(state)) } }
    }

    /// The script.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }
}

impl BlockDevice for FaultyDevice {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn open_queue(&self, depth: u32) -> Result<Rc<dyn DeviceQueue>, DeviceError> {
        if self.faults.is_gone() {
            return Err(DeviceError::Gone { device: self.info().name.clone() });
        }
        Ok(Rc::new(FaultyQueue {
            inner: self.inner.open_queue(depth)?,
            faults: self.faults.clone(),
            size_bytes: Cell::new(self.info().size_bytes),
            entries: RefCell::default(),
            polls: Cell::new(0),
        }))
    }
}

struct FaultyQueue {
    /// Dropped before the entries, so that nothing is in flight when those are answered.
    inner: Rc<dyn DeviceQueue>,
    faults: Faults,
    /// Bytes of the device as far as is known by now.
    size_bytes: Cell<u64>,
    entries: RefCell<VecDeque<Entry>>,
    polls: Cell<u64>,
}

struct Entry {
    stage: Stage,
    done: Completion,
    /// Number of the poll from which on it may be answered.
    not_before: u64,
    /// Answered instead of success.
    error: Option<DeviceError>,
    /// Picks the bit of a read that will be wrong.
    corrupt: Option<u64>,
}

enum Stage {
    Inside(IoFuture),
    Ended(Outcome),
}

impl FaultyQueue {
    fn error(&self, operation: &Operation) -> DeviceError {
        DeviceError::Io {
            device: self.info().name.clone(),
            what: match kind(operation) {
                OperationKind::Read => "read",
                OperationKind::Write => "write",
                OperationKind::Flush => "flush",
                OperationKind::Discard => "discard",
                OperationKind::WriteZeroes => "write zeroes",
            },
            offset: extent(operation).map_or(0, |touched| touched.start),
            cause: "injected fault".to_owned(),
        }
    }

    fn gone(&self) -> DeviceError {
        DeviceError::Gone { device: self.info().name.clone() }
    }

    fn start(&self, operation: Operation) -> Stage {
        let (done, future) = completion_pair();
        self.inner.submit(operation, done);
        Stage::Inside(future)
    }

    /// Begins an operation as its fault demands.
    fn begin(&self, operation: Operation, done: Completion, fault: Fault, random: u64) -> Entry {
        let failure = self.error(&operation);
        let mut entry = Entry {
            stage: Stage::Ended(Ok(None)),
            done,
            not_before: 0,
            error: None,
            corrupt: None,
        };
        match fault {
            Fault::Error => entry.stage = Stage::Ended(Err(failure)),
            Fault::Gone => entry.stage = Stage::Ended(Err(self.gone())),
            Fault::Lost => {}
            Fault::ErrorAfterwards => {
                entry.error = Some(failure);
                entry.stage = self.start(operation);
            }
            Fault::Delay { polls } => {
                entry.not_before = self.polls.get().saturating_add(polls);
                entry.stage = self.start(operation);
            }
            Fault::CorruptRead => {
                entry.corrupt = Some(random);
                entry.stage = self.start(operation);
            }
            Fault::Torn { reported } => {
                entry.error = reported.then_some(failure);
                entry.stage = self.start(self.tear(operation, random));
            }
        }
        entry
    }

    /// The beginning of a write: at least one block less than all of it.
    fn tear(&self, operation: Operation, random: u64) -> Operation {
        let Operation::Write { offset, data, fua } = operation else { return operation };
        let block = self.info().block_size as usize;
        let blocks = data.iter().map(|piece| piece.len()).sum::<usize>() / block;
        let mut room = (random % blocks.max(1) as u64) as usize * block;
        let mut kept = IoVec::new();
        for piece in &data {
            let len = piece.len().min(room);
            kept.push(piece.slice(0..len));
            room -= len;
        }
        Operation::Write { offset, data: kept, fua }
    }

    /// Takes one entry that can be answered.
    fn next_ended(&self) -> Option<(Completion, Outcome)> {
        let gone = self.faults.is_gone();
        let mut entries = self.entries.borrow_mut();
        let index = entries.iter_mut().position(|entry| entry.has_ended(self.polls.get(), gone))?;
        let entry = entries.remove(index)?;
        let Stage::Ended(outcome) = entry.stage else { return None };
        let outcome = match (outcome, entry.error) {
            _ if gone => Err(self.gone()),
            (Ok(_), Some(error)) => Err(error),
            (Ok(Some(mut buffer)), None) => {
                if let (Some(random), false) = (entry.corrupt, buffer.is_empty()) {
                    let bit = random % (buffer.len() as u64 * 8);
                    buffer[(bit / 8) as usize] ^= 1 << (bit % 8);
                }
                Ok(Some(buffer))
            }
            (outcome, _) => outcome,
        };
        Some((entry.done, outcome))
    }
}

impl Entry {
    /// Whether it may be answered now. Takes the inner answer when it is there.
    fn has_ended(&mut self, polls: u64, gone: bool) -> bool {
        if let Stage::Inside(future) = &mut self.stage {
            let mut context = Context::from_waker(Waker::noop());
            if let Poll::Ready(outcome) = Pin::new(future).poll(&mut context) {
                self.stage = Stage::Ended(outcome);
            }
        }
        matches!(self.stage, Stage::Ended(_)) && (gone || polls >= self.not_before)
    }
}

impl DeviceQueue for FaultyQueue {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn refresh_size(&self) -> Result<u64, DeviceError> {
        if self.faults.is_gone() {
            return Err(DeviceError::Gone { device: self.info().name.clone() });
        }
        let size_bytes = self.inner.refresh_size()?;
        self.size_bytes.set(self.size_bytes.get().max(size_bytes));
        Ok(size_bytes)
    }

    fn submit(&self, operation: Operation, done: Completion) {
        if let Err(error) = self.info().check_within(&operation, self.size_bytes.get()) {
            done.complete(Err(error));
            return;
        }
        let entry = match self.faults.decide(&operation) {
            Decision::Gone => self.begin(operation, done, Fault::Gone, 0),
            Decision::Fault(fault, random) => self.begin(operation, done, fault, random),
            Decision::Nothing => {
                let stage = self.start(operation);
                Entry { stage, done, not_before: 0, error: None, corrupt: None }
            }
        };
        self.entries.borrow_mut().push_back(entry);
    }

    fn poll(&self) -> usize {
        self.polls.set(self.polls.get() + 1);
        self.inner.poll();
        let mut answered = 0;
        let most = self.entries.borrow().len();
        while answered < most
            && let Some((done, outcome)) = self.next_ended()
        {
            done.complete(outcome);
            answered += 1;
        }
        answered
    }

    fn in_flight(&self) -> usize {
        self.entries.borrow().len()
    }

    fn wake_fd(&self) -> Option<RawFd> {
        self.inner.wake_fd()
    }

    /// No sleep while an answer is only held back: polls are what it waits for.
    fn prepare_to_sleep(&self) -> bool {
        // Inner answers that `submit` gave arrive in no poll, so they are looked for here.
        let mut entries = self.entries.borrow_mut();
        let held = entries.iter_mut().any(|entry| entry.has_ended(u64::MAX, false));
        !held && self.inner.prepare_to_sleep()
    }
}

fn kind(operation: &Operation) -> OperationKind {
    match operation {
        Operation::Read { .. } => OperationKind::Read,
        Operation::Write { .. } => OperationKind::Write,
        Operation::Flush => OperationKind::Flush,
        Operation::Discard { .. } => OperationKind::Discard,
        Operation::WriteZeroes { .. } => OperationKind::WriteZeroes,
    }
}

/// Bytes an operation touches; its end was checked against the device's. `None` for a flush.
fn extent(operation: &Operation) -> Option<Range<u64>> {
    let (offset, len) = match operation {
        Operation::Read { offset, buffer } => (*offset, buffer.len() as u64),
        Operation::Write { offset, data, .. } => {
            (*offset, data.iter().map(|piece| piece.len() as u64).sum())
        }
        Operation::Discard { offset, len } | Operation::WriteZeroes { offset, len } => {
            (*offset, *len)
        }
        Operation::Flush => return None,
    };
    Some(offset..offset + len)
}
