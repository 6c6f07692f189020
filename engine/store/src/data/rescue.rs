//! Data that could not be written where the index says already that it is: it is written elsewhere, and the index
//! follows. Until then who reads it waits, and no answer and no flush passes it.

use std::rc::Rc;

use engine_base::BLOCK_SIZE;
use engine_device::DeviceError;
use futures::future::{Either, select};

use super::DataPath;
use super::map::BlockRange;
use super::pack::Whole;
use super::place::Placed;
use crate::api::Data;
use crate::engine::{Engine, WritePoint};
use crate::error::{Result, StoreError};
use crate::extent::Extent;
use crate::flight::Flight;
use crate::journal::Class;
use crate::key::{Position, Tree};
use crate::limits::INSERTS_PER_TRANSACTION_MAX;
use crate::reached::{Branch, mark};

/// Other places that are tried.
const PLACES_MAX: u32 = 3;
/// Time after which it is given up: what it waits for may wait for it.
const RESCUE_NS_MAX: u64 = 10_000_000_000;
/// Pause when memory is refused.
const PAUSE_NS: u64 = 1_000_000;

impl DataPath {
    /// Ends a flight whose data could not be written. What it should have held is at another place then, or the
    /// journal takes no more writes.
    pub(super) async fn rescue(
        &self,
        flight: &Rc<Flight>,
        placed: &Placed,
        ranges: &[BlockRange],
        data: (&Data, &[Whole]),
        error: StoreError,
    ) -> Result<()> {
        if !flight.is_named() {
            flight.forget();
            return Ok(());
        }
        let engine = &self.engine;
        tracing::warn!(shard = engine.shard().0, %error, "data is written to another place");
        let elsewhere = std::pin::pin!(engine.write_elsewhere(placed, ranges, data, error));
        let late = engine.runtime().sleep(RESCUE_NS_MAX);
        let result = match select(elsewhere, late).await {
            Either::Left((result, _)) => result,
            Either::Right((_, elsewhere)) => {
                engine
                    .journal
                    .fail("data could not be written, and no other place was found for it");
                elsewhere.await
            }
        };
        match &result {
            Ok(()) => flight.divert(),
            Err(error) => {
                engine.journal.fail(&format!("data could not be written: {error}"));
                flight.lose();
            }
        }
        result
    }
}

impl Engine {
    async fn write_elsewhere(
        &self,
        placed: &Placed,
        ranges: &[BlockRange],
        (data, wholes): (&Data, &[Whole]),
        mut error: StoreError,
    ) -> Result<()> {
        let blocks = crate::api::data_len(data) / BLOCK_SIZE;
        let mut places = 0;
        while places < PLACES_MAX && self.stopped().is_none() {
            let reservation = self.reserve_for_move(blocks as u32);
            match self.place(WritePoint::Moved, data, wholes, reservation).await {
                Ok(there) => {
                    for range in ranges {
                        self.name_elsewhere(placed, &there, range).await?;
                    }
                    mark(Branch::DataElsewhere);
                    return Ok(());
                }
                // Others give theirs back.
                Err(
                    StoreError::OutOfMemory { .. }
                    | StoreError::Device(DeviceError::OutOfMemory { .. }),
                ) => self.runtime().sleep(PAUSE_NS).await,
                Err(other) => (error, places) = (other, places + 1),
            }
        }
        Err(error)
    }

    /// Lets what names `placed` in the range name the same data in `there`.
    async fn name_elsewhere(
        &self,
        placed: &Placed,
        there: &Placed,
        range: &BlockRange,
    ) -> Result<()> {
        let mut next = Some(range.first_key(range.from));
        while let Some(first) = next {
            next = self
                .transact_as(Class::Reclaim, async |transaction| {
                    let mut from = first;
                    while transaction.update_count() < INSERTS_PER_TRANSACTION_MAX {
                        let found = transaction.next(Tree::Extents, from, range.last_key()).await?;
                        let Some((position, value)) = found else { return Ok(None) };
                        let extent = Extent::decode(&value)?;
                        if let Some(done) = extent.pointers.first().and_then(|it| placed.find(it)) {
                            let parts = there.parts(done, u64::from(extent.disk_blocks()));
                            for (position, value) in extent.moved_to(position, &parts) {
                                transaction.put_fresh_extent(position, value);
                            }
                        }
                        if position == Position::MAX {
                            return Ok(None);
                        }
                        from = position.successor();
                    }
                    Ok(Some(from))
                })
                .await?;
        }
        Ok(())
    }
}
