//! How work is announced to a core: bits for commands, connections and the core itself.
//!
//! A wake sets the bit of a command slot, then of its connection, then of the core, and writes the
//! core's event descriptor only if the core said that it is going to sleep. The core clears in the
//! opposite order, so a bit set while it looks is seen in this round or announced again.
//! Check-then-sleep: the core stores `sleeping`, then looks at `pending`; a waker stores `pending`,
//! then looks at `sleeping`; all four sequentially consistent, so one of the two sees the other.

use rustix::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Wake, Waker};

/// Announces work to one core. Any thread may set, only the core takes.
#[derive(Debug)]
pub struct CoreSignal {
    pending: AtomicBool,
    sleeping: AtomicBool,
    connections: BitSet,
    event: Option<OwnedFd>,
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

    fn set(&self, bit: usize) {
        if let Some(word) = self.words.get(bit / 64) {
            word.fetch_or(1 << (bit % 64), Ordering::AcqRel);
        }
    }

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

impl CoreSignal {
    /// For `connections` connections. `event` is an eventfd that wakes the sleeping core; without
    /// one, the core is driven by calls only.
    #[must_use]
    pub fn new(connections: usize, event: Option<OwnedFd>) -> Self {
        Self {
            pending: AtomicBool::new(false),
            sleeping: AtomicBool::new(false),
            connections: BitSet::new(connections),
            event,
        }
    }

    /// Says that there is something to do on the core.
    pub fn notify(&self) {
        self.pending.store(true, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst)
            && self.sleeping.swap(false, Ordering::SeqCst)
            && let Some(event) = &self.event
        {
            // A full counter (EAGAIN) means that the core is already due to wake.
            let _ = rustix::io::write(event, &1_u64.to_le_bytes());
        }
    }

    fn notify_connection(&self, index: usize) {
        self.connections.set(index);
        self.notify();
    }

    /// Takes what was announced: true when anything was; calls `each` with connections.
    pub(crate) fn take(&self, each: impl FnMut(usize)) -> bool {
        if !self.pending.load(Ordering::Relaxed) || !self.pending.swap(false, Ordering::SeqCst) {
            return false;
        }
        self.connections.take(each);
        true
    }

    /// Says that the core is going to sleep. False: something is pending, do not sleep.
    pub(crate) fn prepare_to_sleep(&self) -> bool {
        self.sleeping.store(true, Ordering::SeqCst);
        if self.pending.load(Ordering::SeqCst) {
            self.sleeping.store(false, Ordering::SeqCst);
            return false;
        }
        true
    }

    /// Says that the core is awake, and empties its event descriptor.
    pub(crate) fn awake(&self) {
        if self.sleeping.load(Ordering::Relaxed) {
            self.sleeping.store(false, Ordering::SeqCst);
        }
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
        self.control.store(true, Ordering::SeqCst);
        self.core.notify_connection(self.index);
    }

    pub(crate) fn take_control(&self) -> bool {
        self.control.load(Ordering::Relaxed) && self.control.swap(false, Ordering::SeqCst)
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

#[cfg(test)]
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
