//! How work is announced to a core: bits for commands, connections and the core itself.
//!
//! A wake sets the bit of a command slot, then of its connection, then of the core, and writes the
//! core's event descriptor only if the core said that it is going to sleep. The core clears in the
//! opposite order, so a bit set while it looks is seen in this round or announced again.
//! Check-then-sleep: "pending" and "sleeping" are bits of one word, so that announcements and the
//! decision to sleep stand in one order, whatever the processor. `loom_tests` checks it.

use std::sync::Arc;
use std::task::{Wake, Waker};

use rustix::fd::OwnedFd;

use crate::signal::sync::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// The atomics of this module: those of the standard library, or loom's under `--cfg loom`, so that
/// the code that runs is the code that is checked.
mod sync {
    #[cfg(loom)]
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
    #[cfg(not(loom))]
    pub(super) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
}

/// Something is announced and not yet taken.
const PENDING: u8 = 1;
/// The core sleeps or is about to.
const SLEEPING: u8 = 2;

/// Announces work to one core. Any thread may set, only the core takes.
#[derive(Debug)]
pub struct CoreSignal {
    announced: Announced,
    event: Option<OwnedFd>,
}

/// What is announced to a core, without what wakes it.
///
/// The state is changed by read-modify-writes only. So the takes and announcements of it stand in one
/// order, and a take that follows several announcements synchronises with each of them, not with the
/// last alone (a release sequence): it sees the bits of all. A plain store would break that chain.
#[derive(Debug)]
struct Announced {
    state: AtomicU8,
    connections: BitSet,
}

/// Bits that many set and one takes.
#[derive(Debug)]
struct BitSet {
    words: Box<[AtomicU64]>,
}

impl BitSet {
    fn new(bits: usize) -> Self {
        Self { words: (0..bits.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Release: who takes the bit sees what was done before it was set.
    fn set(&self, bit: usize) {
        if let Some(word) = self.words.get(bit / 64) {
            word.fetch_or(1 << (bit % 64), Ordering::AcqRel);
        }
    }

    /// To be called after the flag that announces the bits was taken: that makes the bits visible to
    /// the relaxed look.
    fn take(&self, mut each: impl FnMut(usize)) {
        for (index, word) in self.words.iter().enumerate() {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = word.swap(0, Ordering::AcqRel);
            while bits != 0 {
                each(index * 64 + bits.trailing_zeros() as usize);
                bits &= bits - 1;
            }
        }
    }
}

impl Announced {
    fn new(connections: usize) -> Self {
        Self { state: AtomicU8::new(0), connections: BitSet::new(connections) }
    }

    /// Announces; true: the caller must wake the core.
    fn announce(&self) -> bool {
        self.state.fetch_or(PENDING, Ordering::AcqRel) & SLEEPING != 0
            // Of several who found it asleep, one wakes it.
            && self.state.fetch_and(!SLEEPING, Ordering::AcqRel) & SLEEPING != 0
    }

    fn take(&self, each: impl FnMut(usize)) -> bool {
        // The relaxed look may miss what is being announced: the look before sleep does not.
        if self.state.load(Ordering::Relaxed) & PENDING == 0 {
            return false;
        }
        self.state.fetch_and(!PENDING, Ordering::AcqRel);
        self.connections.take(each);
        true
    }

    /// Says in one step that nothing is pending and that the core sleeps. Whoever announces before it
    /// keeps the core awake; whoever announces after it finds the core asleep.
    fn prepare_to_sleep(&self) -> bool {
        let asleep = |state| (state & PENDING == 0).then_some(state | SLEEPING);
        self.state.fetch_update(Ordering::AcqRel, Ordering::Relaxed, asleep).is_ok()
    }

    fn awake(&self) {
        if self.state.load(Ordering::Relaxed) & SLEEPING != 0 {
            self.state.fetch_and(!SLEEPING, Ordering::AcqRel);
        }
    }
}

impl CoreSignal {
    /// For `connections` connections. `event` is an eventfd that wakes the sleeping core; without
    /// one, the core is driven by calls only.
    #[must_use]
    pub fn new(connections: usize, event: Option<OwnedFd>) -> Self {
        Self { announced: Announced::new(connections), event }
    }

    /// Says that there is something to do on the core.
    pub fn notify(&self) {
        if self.announced.announce()
            && let Some(event) = &self.event
        {
            // A full counter (EAGAIN) means that the core is already due to wake.
            let _ = rustix::io::write(event, &1_u64.to_le_bytes());
        }
    }

    fn notify_connection(&self, index: usize) {
        self.announced.connections.set(index);
        self.notify();
    }

    /// Takes what was announced: true when anything was; calls `each` with connections.
    pub(crate) fn take(&self, each: impl FnMut(usize)) -> bool {
        self.announced.take(each)
    }

    /// Says that the core is going to sleep. False: something is pending, do not sleep.
    pub(crate) fn prepare_to_sleep(&self) -> bool {
        self.announced.prepare_to_sleep()
    }

    /// Says that the core is awake.
    pub(crate) fn awake(&self) {
        self.announced.awake();
    }

    pub(crate) fn event(&self) -> Option<&OwnedFd> {
        self.event.as_ref()
    }
}

/// Announces work to one connection.
#[derive(Debug)]
pub struct ConnectionSignal {
    core: Arc<CoreSignal>,
    index: usize,
    control: AtomicBool,
    slots: BitSet,
}

impl ConnectionSignal {
    /// For the connection with `index` on its core, with up to `slots` commands.
    #[must_use]
    pub fn new(core: Arc<CoreSignal>, index: usize, slots: usize) -> Arc<Self> {
        let slots = BitSet::new(slots);
        Arc::new(Self { core, index, control: AtomicBool::new(false), slots })
    }

    /// Tells the connection to look at its controller and subsystem.
    pub fn notify_control(&self) {
        // Changed by read-modify-writes only, as the state of `Announced`.
        self.control.swap(true, Ordering::AcqRel);
        self.core.notify_connection(self.index);
    }

    pub(crate) fn take_control(&self) -> bool {
        self.control.load(Ordering::Relaxed) && self.control.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn take_slots(&self, each: impl FnMut(usize)) {
        self.slots.take(each);
    }

    pub(crate) fn waker(self: &Arc<Self>, slot: usize) -> Waker {
        Waker::from(Arc::new(SlotWaker { connection: Arc::clone(self), slot }))
    }

    pub(crate) fn control_waker(self: &Arc<Self>) -> Waker {
        Waker::from(Arc::new(ControlWaker { connection: Arc::clone(self) }))
    }
}

struct SlotWaker {
    connection: Arc<ConnectionSignal>,
    slot: usize,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.connection.slots.set(self.slot);
        self.connection.core.notify_connection(self.connection.index);
    }
}

struct ControlWaker {
    connection: Arc<ConnectionSignal>,
}

impl Wake for ControlWaker {
    fn wake(self: Arc<Self>) {
        self.connection.notify_control();
    }
}

#[cfg(all(test, loom))]
mod loom_tests;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn bits_travel_from_slot_to_core() {
        let core = Arc::new(CoreSignal::new(100, None));
        let connection = ConnectionSignal::new(Arc::clone(&core), 70, 200);
        assert!(core.prepare_to_sleep());
        connection.waker(130).wake();
        assert!(!core.prepare_to_sleep());
        let mut connections = Vec::new();
        assert!(core.take(|index| connections.push(index)));
        assert_eq!(connections, [70]);
        let mut slots = Vec::new();
        connection.take_slots(|slot| slots.push(slot));
        assert_eq!(slots, [130]);
        assert!(!core.take(|_| panic!("nothing is pending")));
        assert!(!connection.take_control());
        connection.control_waker().wake_by_ref();
        assert!(connection.take_control() && !connection.take_control());
    }
}
