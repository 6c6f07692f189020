//! Data that the index names already while it is on its way to its device.
//!
//! A write gives its data to the device and commits at once: data and journal entry travel side by side. What
//! makes that safe:
//!
//! - Recovery takes an entry only if the data it names is there ([`crate::tail`]).
//! - An entry counts as written, for those who wait to answer, when its data is there, too, and that of all
//!   entries before it; a flush entry is written after all of that ([`crate::journal`]).
//! - Who reads such blocks waits for them ([`Flights::settled`]).
//! - Their bucket is pinned by the allocation, so it is not reused under the write.
//!
//! Data that cannot be written is put elsewhere (`data/rescue.rs`) while it is held here. When that fails, too, the
//! journal takes no more writes: the next recovery takes what was committed before.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use smallvec::SmallVec;

use crate::error::{Result, StoreError};
use crate::journal::Journal;
use crate::planted::{self, Bug};
use crate::sync::Notify;
use crate::times::{Timed, Waits};

/// What is on its way: its end, by member and first block, and whether it never will arrive.
type Places = BTreeMap<(u8, u64), (u64, bool)>;

/// All data of a shard that is on its way and may be named.
#[derive(Default)]
pub(crate) struct Flights {
    places: RefCell<Places>,
    /// Writes that ended elsewhere, or nowhere.
    diverted: Cell<u64>,
    /// Something landed.
    landed: Notify,
}

/// How a write stands.
enum State {
    OnTheWay,
    Landed,
    Failed(StoreError),
}

/// One write. Its places are held until [`Flight::land`] or [`Flight::divert`].
pub(crate) struct Flight {
    flights: Rc<Flights>,
    journal: Rc<Journal>,
    places: SmallVec<[(u8, u64); 2]>,
    state: RefCell<State>,
    /// Journal entries that name some of it.
    named_in: RefCell<SmallVec<[u64; 1]>>,
}

impl Flights {
    /// Notes a write of blocks: (member, first, end) each.
    pub(crate) fn begin(
        self: &Rc<Self>,
        journal: &Rc<Journal>,
        parts: impl Iterator<Item = (u8, u64, u64)>,
    ) -> Rc<Flight> {
        let mut places = SmallVec::new();
        for (member, first, end) in parts {
            let before = self.places.borrow_mut().insert((member, first), (end, false));
            assert!(before.is_none(), "blocks are given to one write at a time");
            places.push((member, first));
        }
        Rc::new(Flight {
            flights: Rc::clone(self),
            journal: Rc::clone(journal),
            places,
            state: RefCell::new(State::OnTheWay),
            named_in: RefCell::default(),
        })
    }

    /// Waits until none of these blocks is on its way. False: some of what was ended elsewhere, and who asks
    /// should look its blocks up again.
    ///
    /// # Errors
    /// When the journal has failed: what did not land never will.
    pub(crate) async fn settled(
        &self,
        journal: &Journal,
        waits: &Rc<Waits>,
        (member, block, blocks): (u8, u64, u64),
    ) -> Result<bool> {
        let before = self.diverted.get();
        while let Some(lost) = self.covering(member, block, blocks) {
            if let Some(error) = journal.failure().filter(|_| lost) {
                return Err(error);
            }
            if planted::is(Bug::ReadBeforeData) {
                break;
            }
            waits.on(Timed::BlockedDataInFlight, self.landed.notified()).await;
        }
        Ok(self.diverted.get() == before)
    }

    /// Named counters for metrics.
    pub(crate) fn counters(&self, out: &mut Vec<(&'static str, u64)>) {
        out.push(("data_writes_on_the_way", self.places.borrow().len() as u64));
        out.push(("data_writes_diverted", self.diverted.get()));
    }

    /// Whether any of these blocks is on its way; if so, whether it is lost.
    fn covering(&self, member: u8, block: u64, blocks: u64) -> Option<bool> {
        let places = self.places.borrow();
        let ((on, _), (end, lost)) = places.range(..(member, block + blocks)).next_back()?;
        (*on == member && *end > block).then_some(*lost)
    }
}

impl Flight {
    /// Whether it may still be named.
    ///
    /// # Errors
    /// When it is known that the data could not be written.
    pub(crate) fn check(&self) -> Result<()> {
        match &*self.state.borrow() {
            State::Failed(error) => Err(error.clone()),
            State::OnTheWay | State::Landed => Ok(()),
        }
    }

    /// The entry being filled names some of it.
    pub(crate) fn name(&self) {
        let seq = self.journal.seq();
        let mut named_in = self.named_in.borrow_mut();
        let on_the_way = matches!(*self.state.borrow(), State::OnTheWay);
        if on_the_way && named_in.last() != Some(&seq) && !planted::is(Bug::IndexBeforeData) {
            named_in.push(seq);
            self.journal.expect_data();
        }
    }

    /// Whether anything names it.
    pub(crate) fn is_named(&self) -> bool {
        !self.named_in.borrow().is_empty()
    }

    /// It is on its device, and noted as written there.
    pub(crate) fn land(&self) {
        *self.state.borrow_mut() = State::Landed;
        self.release();
        for seq in self.named_in.take() {
            self.journal.data_landed(seq);
        }
    }

    /// It could not be written. Nothing will name it from now on; what does waits.
    pub(crate) fn fail(&self, error: &StoreError) {
        *self.state.borrow_mut() = State::Failed(error.clone());
    }

    /// What named it names another place by now, or nothing.
    pub(crate) fn divert(&self) {
        self.flights.diverted.set(self.flights.diverted.get() + 1);
        self.release();
        for seq in self.named_in.take() {
            self.journal.data_moved(seq);
        }
    }

    /// It could not be written, and nothing named it.
    pub(crate) fn forget(&self) {
        self.release();
    }

    /// It is lost, and the journal has failed: who reads it is told so from now on.
    pub(crate) fn lose(&self) {
        let mut places = self.flights.places.borrow_mut();
        for place in &self.places {
            if let Some((_, lost)) = places.get_mut(place) {
                *lost = true;
            }
        }
        drop(places);
        self.flights.landed.notify_all();
    }

    fn release(&self) {
        let mut places = self.flights.places.borrow_mut();
        for place in &self.places {
            places.remove(place);
        }
        drop(places);
        self.flights.landed.notify_all();
    }
}
