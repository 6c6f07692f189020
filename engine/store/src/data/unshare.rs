//! What is shared with nobody any more becomes an ordinary extent again.
//!
//! When one holder is left of a shared extent, it is looked at in the background: if all that the holder's reference
//! covers is its alone, and lies in one piece, the extent takes the place of the reference. What was cut meanwhile and
//! moved apart stays shared by one; so does what is forgotten when the process ends, until it is moved.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use engine_base::{InodeNumber, SnapshotId};

use super::map::{BlockRange, next_extent, own_spans};
use super::shared::{holder, range_at};
use crate::engine::Engine;
use crate::error::Result;
use crate::extent::{Address, Extent, ExtentView, Holder, Sharing};
use crate::key::Tree;
use crate::reached::{Branch, mark};
use crate::sync::Notify;
use crate::transaction::Transaction;

/// Extents that wait to be looked at; more are forgotten.
const WAITING_MAX: usize = 4096;

/// Shared extents with one holder left.
#[derive(Default)]
pub(crate) struct Unsharing {
    waiting: RefCell<VecDeque<Address>>,
    pub(crate) more: Notify,
    done: Cell<u64>,
    forgotten: Cell<u64>,
}

impl Unsharing {
    /// One may have one holder left.
    pub(crate) fn want(&self, address: Address) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.back() == Some(&address) {
            return;
        }
        if waiting.len() == WAITING_MAX {
            self.forgotten.set(self.forgotten.get() + 1);
            return;
        }
        waiting.push_back(address);
        drop(waiting);
        self.more.notify_all();
    }

    /// Named counters for metrics.
    pub(crate) fn counters(&self, out: &mut Vec<(&'static str, u64)>) {
        out.push(("shared_extents_unshared", self.done.get()));
        out.push(("shared_extents_forgotten", self.forgotten.get()));
    }
}

impl Engine {
    /// Looks at what may have one holder left, until the engine stops.
    pub(crate) async fn unshare_loop(self: Rc<Self>) {
        loop {
            let more = self.unsharing.more.notified();
            if self.stopped().is_some() {
                return;
            }
            let next = self.unsharing.waiting.borrow_mut().pop_front();
            let Some(address) = next else {
                more.await;
                continue;
            };
            // An error concerns what reads and writes will meet as well; it stays shared.
            let unshared =
                self.transact(async |transaction| unshare(transaction, address).await).await;
            if unshared.unwrap_or(false) {
                mark(Branch::Unshared);
                self.unsharing.done.set(self.unsharing.done.get() + 1);
            }
        }
    }
}

/// Makes what the last holder of a shared extent has an ordinary extent, if it is all its own.
async fn unshare(transaction: &mut Transaction<'_>, address: Address) -> Result<bool> {
    let Some(holder) = last_holder(transaction, address).await? else { return Ok(false) };
    let block = address.block.wrapping_add(holder.shift);
    let (inode, snapshot) = (InodeNumber(holder.inode), SnapshotId(holder.version));
    let own = BlockRange { inode, snapshot, from: block, to: block.saturating_add(1) };
    let seen = |extent: ExtentView<'_>, start: u64, _| (start, extent.address());
    let found = next_extent(transaction, &own, own.first_key(block), seen).await?;
    let Some((position, (start, Some(first)))) = found.filter(|(_, (start, _))| *start <= block)
    else {
        return Ok(false);
    };
    let all = own_spans(transaction, &range_at(first, position.offset - start)).await?;
    let is_own = |extent: &Extent| match extent.sharing {
        Sharing::Shared(holders) => {
            holders.only() == Some(self::holder(inode, snapshot, start, first))
        }
        Sharing::Alone | Sharing::Reference(_) => false,
    };
    let mut whole: Option<Extent> = None;
    for span in &all {
        if !is_own(&span.extent) {
            return Ok(false);
        }
        whole = match whole {
            None => Some(span.extent.clone()),
            Some(before) => match before.joined(&span.extent) {
                Some(joined) => Some(joined),
                None => return Ok(false),
            },
        };
    }
    let Some(whole) = whole.filter(|it| u64::from(it.blocks) == position.offset - start) else {
        return Ok(false);
    };
    for span in &all {
        let there = range_at(Address { block: span.block, ..first }, span.blocks());
        transaction.delete(Tree::Extents, there.key(there.to));
    }
    let alone = Extent { sharing: Sharing::Alone, ..whole };
    transaction.put(Tree::Extents, position, alone.encode());
    Ok(true)
}

/// Who alone is left to refer to what is at an address.
async fn last_holder(
    transaction: &mut Transaction<'_>,
    address: Address,
) -> Result<Option<Holder>> {
    let there = range_at(address, 1);
    let seen = |extent: ExtentView<'_>, start: u64, _| (start, extent.holders());
    let found = next_extent(transaction, &there, there.first_key(there.from), seen).await?;
    let found = found.filter(|(_, (start, _))| *start <= address.block);
    Ok(found.and_then(|(_, (_, holders))| holders?.only()))
}
