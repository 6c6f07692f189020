//! Putting data on the device: adjacent where there is room, by as few commands as it takes. The index is
//! somebody else's business: clients' writes ([`super::write`]) and copygc.

use std::rc::Rc;

use engine_base::BLOCK_SIZE;
use engine_device::{IoVec, QueueExt};
use smallvec::SmallVec;

use super::pack::{Whole, fitting};
use crate::api::Data;
use crate::client::cut;
use crate::engine::{Allocation, Engine, Reservation, WritePoint};
use crate::error::Result;
use crate::extent::Pointer;
use crate::flight::Flight;
use crate::planted::{self, Bug};
use crate::times::Timed;

/// Where data was put. Hold it until the transaction that names it has committed.
pub(crate) struct Placed {
    allocations: SmallVec<[Allocation; 2]>,
    _reservation: Reservation,
}

impl Placed {
    /// Where `blocks` blocks of the data lie, from block `done` of it on: adjacent pieces, in order.
    ///
    /// # Panics
    /// When less was placed.
    pub(crate) fn parts(&self, done: u64, blocks: u64) -> SmallVec<[(Pointer, u32); 2]> {
        let mut parts = SmallVec::new();
        let (mut skip, mut left) = (done, blocks);
        for allocation in &self.allocations {
            let there = u64::from(allocation.blocks);
            if skip >= there {
                skip -= there;
                continue;
            }
            let take = left.min(there - skip);
            if take > 0 {
                let block = allocation.pointer.block + skip;
                parts.push((Pointer { block, ..allocation.pointer }, take as u32));
            }
            (skip, left) = (0, left - take);
        }
        assert!(left == 0, "less was placed than is asked for");
        parts
    }

    /// The pieces as they were allocated.
    pub(crate) fn allocations(&self) -> &[Allocation] {
        &self.allocations
    }

    /// After how many blocks of the data comes what lies at `pointer`, if it is here.
    pub(crate) fn find(&self, pointer: &Pointer) -> Option<u64> {
        let mut done = 0;
        for allocation in &self.allocations {
            let (first, blocks) = (allocation.pointer.block, u64::from(allocation.blocks));
            if (allocation.pointer.member, allocation.pointer.generation)
                == (pointer.member, pointer.generation)
                && (first..first + blocks).contains(&pointer.block)
            {
                return Some(done + pointer.block - first);
            }
            done += blocks;
        }
        None
    }
}

impl Engine {
    /// Allocates blocks for `data`, whole ones, out of `reservation` and writes it there; each of `wholes` lies in
    /// one piece.
    pub(crate) async fn place(
        &self,
        point: WritePoint,
        data: &Data,
        wholes: &[Whole],
        reservation: Reservation,
    ) -> Result<Placed> {
        let blocks = crate::api::data_len(data) / BLOCK_SIZE;
        let placed = self.find_place(point, blocks, wholes, reservation).await?;
        self.write_there(&placed, data).await?;
        Ok(placed)
    }

    /// Allocates `blocks` blocks out of `reservation`, each of `wholes` in one piece.
    pub(crate) async fn find_place(
        &self,
        point: WritePoint,
        blocks: u64,
        wholes: &[Whole],
        mut reservation: Reservation,
    ) -> Result<Placed> {
        let mut allocations: SmallVec<[Allocation; 2]> = SmallVec::new();
        let mut allocated = 0;
        while allocated < blocks {
            let want = (blocks - allocated) as u32;
            let fits = |room: u32| fitting(wholes, allocated, room);
            let allocation = self.allocate(point, want, &fits, &mut reservation).await?;
            assert!(allocation.blocks >= 1 && allocation.blocks <= want);
            allocated += u64::from(allocation.blocks);
            allocations.push(allocation);
        }
        Ok(Placed { allocations, _reservation: reservation })
    }

    /// One or more device commands per allocation, all at the same time. Waits for all of them, also
    /// when one fails: the space must not be given back under a command in flight.
    pub(crate) async fn write_there(&self, placed: &Placed, data: &Data) -> Result<()> {
        let allocations = &placed.allocations;
        if planted::is(Bug::IndexBeforeData) {
            self.write_later(allocations, data)?;
            return Ok(());
        }
        let _timed = self.waits.start(Timed::DataWrite);
        if let [only] = allocations.as_slice() {
            let queue = self.member(only.pointer.member)?;
            if u64::from(queue.info().max_transfer_bytes) >= u64::from(only.blocks) * BLOCK_SIZE {
                let offset = only.pointer.block * BLOCK_SIZE;
                queue.write(offset, IoVec::from(data.as_slice()), false).await?;
                self.journal.note_written(only.pointer.member);
                return Ok(());
            }
        }
        let mut commands = Vec::new();
        let mut done = 0_usize;
        for allocation in allocations {
            let queue = self.member(allocation.pointer.member)?;
            let transfer = u64::from(queue.info().max_transfer_bytes).max(BLOCK_SIZE);
            let len = u64::from(allocation.blocks) * BLOCK_SIZE;
            let mut at = 0;
            while at < len {
                let part = (len - at).min(transfer / BLOCK_SIZE * BLOCK_SIZE);
                let pieces = cut(data, done, part as usize);
                let offset = allocation.pointer.block * BLOCK_SIZE + at;
                commands.push(queue.write(offset, pieces, false));
                done += part as usize;
                at += part;
            }
        }
        for result in futures::future::join_all(commands).await {
            result?;
        }
        for allocation in allocations {
            self.journal.note_written(allocation.pointer.member);
        }
        Ok(())
    }

    /// Notes that what is to be written to `placed` may be named from now on. [`Engine::write_there`] follows, and
    /// the end of the flight.
    pub(crate) fn begin_flight(&self, placed: &Placed) -> Rc<Flight> {
        let parts = placed.allocations.iter().map(|allocation| {
            let Pointer { member, block, .. } = allocation.pointer;
            (member, block, block + u64::from(allocation.blocks))
        });
        self.flights.begin(&self.journal, parts)
    }

    /// The planted bug: nobody waits for the blocks that are on their way.
    fn write_later(&self, allocations: &[Allocation], data: &Data) -> Result<()> {
        let mut done = 0;
        for allocation in allocations {
            let queue = Rc::clone(self.member(allocation.pointer.member)?);
            let len = allocation.blocks as usize * BLOCK_SIZE as usize;
            let pieces = cut(data, done, len);
            let offset = allocation.pointer.block * BLOCK_SIZE;
            done += len;
            let late = async move {
                let _ = queue.write(offset, pieces, false).await;
            };
            self.runtime().spawn("planted bug", Box::pin(late));
        }
        Ok(())
    }
}
