//! Blocks that several places have in common.
//!
//! What was copied by reference is a *shared* extent, at a key of its own in the extents tree, its [`Address`]; each
//! place that has it holds a *reference* to the address ([`crate::extent`]). A shared extent counts the references to
//! it, and goes with the last.
//!
//! Always true:
//! - A reference covers all of a shared extent or nothing of it: where one begins or ends, shared extents are cut.
//! - A shared extent has as many holders as references cover it, and is told apart from no holder by who they are
//!   ([`Holders`](crate::extent::Holders)): so of the last one is known where it is (`data/unshare.rs`).
//! - Both change in one transaction.
//! - A reference takes the very key of the extent that it replaces. So sweeps and merges of versions, which go through
//!   keys in order, never miss what came to be shared behind them.

use engine_base::{BLOCK_SIZE, InodeNumber, SnapshotId};

use super::layers;
use super::map::{BlockRange, Span, Spans, next_extent, own_spans};
use crate::engine::Engine;
use crate::error::{Result, StoreError};
use crate::extent::{Address, Extent, ExtentView, Holder, Holders, Sharing};
use crate::key::{Position, Tree, Value};
use crate::planted::{self, Bug};
use crate::transaction::Transaction;

/// So many blocks from an address on.
pub(super) fn range_at(address: Address, blocks: u64) -> BlockRange {
    BlockRange {
        inode: InodeNumber(address.space),
        snapshot: SnapshotId(0),
        from: address.block,
        to: address.block.saturating_add(blocks),
    }
}

/// What a reference from `block` of an inode on to `address` is to the extents there.
pub(super) fn holder(
    inode: InodeNumber,
    version: SnapshotId,
    block: u64,
    address: Address,
) -> Holder {
    Holder { inode: inode.0, version: version.0, shift: block.wrapping_sub(address.block) }
}

/// The parts of extents that cover the range, as [`lookup`](super::map::lookup), when there are references among them:
/// all at one instant.
pub(super) async fn lookup(engine: &Engine, range: &BlockRange) -> Result<Spans> {
    engine
        .transact(async |transaction| {
            let spans = match engine.versions.view(range.snapshot) {
                Some(view) => layers::spans(transaction, range, &view).await?,
                None => own_spans(transaction, range).await?,
            };
            let mut resolved = Spans::new();
            for span in spans {
                match span.extent.address() {
                    None => resolved.push(span),
                    Some(address) => {
                        resolve(transaction, range, &span, address, &mut resolved).await?
                    }
                }
            }
            Ok(resolved)
        })
        .await
}

/// Adds what a reference refers to, as spans of the range it is in.
async fn resolve(
    transaction: &mut Transaction<'_>,
    range: &BlockRange,
    reference: &Span,
    address: Address,
    resolved: &mut Spans,
) -> Result<()> {
    let mut at = reference.block;
    for span in own_spans(transaction, &range_at(address, reference.blocks())).await? {
        let block = reference.block + (span.block - address.block);
        if block != at || span.extent.address().is_some() {
            return Err(lost(range, at));
        }
        at = block + span.blocks();
        resolved.push(Span { block, extent: span.extent });
    }
    if at == reference.end() { Ok(()) } else { Err(lost(range, at)) }
}

fn lost(range: &BlockRange, block: u64) -> StoreError {
    let (inode, version, offset) = (range.inode, range.snapshot, block.saturating_mul(BLOCK_SIZE));
    let what =
        format!("inode {inode} version {version} offset {offset}: shared data that is not there");
    StoreError::DataLoss { what }
}

/// Adds a reference to all extents in a range of addresses.
///
/// # Errors
/// When there are as many to one of them as can be counted.
pub(super) async fn acquire(
    transaction: &mut Transaction<'_>,
    range: &BlockRange,
    holder: Holder,
) -> Result<()> {
    let mut fits = true;
    change(transaction, range, &mut |holders| {
        if planted::is(Bug::ReferenceUncounted) && holders.count == 2 {
            return;
        }
        fits &= holders.add(holder);
    })
    .await?;
    if fits {
        return Ok(());
    }
    Err(StoreError::invalid("shared by 4294967295 places already; copy one of these first"))
}

/// Takes a reference away from all extents in a range of addresses. Those that were referred to by nobody else go.
pub(super) async fn release(
    transaction: &mut Transaction<'_>,
    range: &BlockRange,
    holder: Holder,
) -> Result<()> {
    if planted::is(Bug::ReferenceKept) && range.to - range.from == 1 {
        return Ok(());
    }
    change(transaction, range, &mut |holders| holders.remove(holder)).await
}

/// Lets a reference be of another version.
pub(super) async fn rename(
    transaction: &mut Transaction<'_>,
    range: &BlockRange,
    from: Holder,
    to: Holder,
) -> Result<()> {
    if planted::is(Bug::ReferenceNotRenamed) {
        return Ok(());
    }
    let mut replace = |holders: &mut Holders| {
        holders.remove(from);
        let _as_many_as_before = holders.add(to);
    };
    change(transaction, range, &mut replace).await
}

/// Changes the holders of the extents in a range of addresses, cut where it begins and ends.
async fn change(
    transaction: &mut Transaction<'_>,
    range: &BlockRange,
    of: &mut dyn FnMut(&mut Holders),
) -> Result<()> {
    let whole = |view: ExtentView<'_>, start: u64, _| (start, view.cut(0, view.blocks()));
    let mut at = range.from;
    while at < range.to {
        // What is missing is told by the check, and by who reads it.
        let found = next_extent(transaction, range, range.first_key(at), whole).await?;
        let Some((position, (start, extent))) = found else { break };
        let end = position.offset;
        let (first, last) = (start.max(range.from), end.min(range.to));
        let part = |from: u64, to: u64| extent.cut((from - start) as u32, (to - from) as u32);
        if start < first {
            transaction.put(Tree::Extents, range.key(first), part(start, first).encode());
        }
        if last < end {
            transaction.put(Tree::Extents, position, part(last, end).encode());
        }
        let mut middle = part(first, last);
        let Sharing::Shared(holders) = &mut middle.sharing else {
            let name = format!("extent at {position:?}");
            return Err(StoreError::corrupt(name, "is referred to, and not shared"));
        };
        of(holders);
        match holders.count {
            0 if last == end => transaction.delete(Tree::Extents, position),
            // Cut off, and never put.
            0 => {}
            count => {
                if count == 1 {
                    transaction
                        .engine()
                        .unsharing
                        .want(Address { space: range.inode.0, block: first });
                }
                transaction.put(Tree::Extents, range.key(last), middle.encode());
            }
        }
        at = end;
    }
    Ok(())
}

/// Makes what a version itself holds of the blocks from `range.from` on shared, if it is not; where it is, and how
/// many blocks of the range are at hand there. `None`: its place has been given to something else that is shared.
pub(super) async fn shared_part(
    transaction: &mut Transaction<'_>,
    range: &BlockRange,
) -> Result<Option<(Address, u64)>> {
    let whole = |view: ExtentView<'_>, start: u64, _| (start, view.cut(0, view.blocks()));
    let found = next_extent(transaction, range, range.first_key(range.from), whole).await?;
    let Some((position, (start, extent))) = found.filter(|(_, (start, _))| *start <= range.from)
    else {
        return Err(StoreError::Restart);
    };
    let (within, blocks) = (range.from - start, position.offset.min(range.to) - range.from);
    if let Some(address) = extent.address() {
        return Ok(Some((address.after(within), blocks)));
    }
    if extent.is_hole() || extent.sharing != Sharing::Alone {
        return Err(StoreError::corrupt(format!("extent at {position:?}"), "cannot be shared"));
    }
    // What is on its way may have to go elsewhere, and is looked for where it was named.
    let (engine, pointer) = (transaction.engine(), extent.pointers[0]);
    let place = (pointer.member, pointer.block, u64::from(extent.disk_blocks()));
    if !engine.flights.settled(&engine.journal, &engine.waits, place).await? {
        return Err(StoreError::Restart);
    }
    let address = Address::of(&extent);
    let there = range_at(address, u64::from(extent.blocks));
    let taken = next_extent(transaction, &there, there.first_key(there.from), |_, _, _| ()).await?;
    if taken.is_some() {
        return Ok(None);
    }
    let own = holder(range.inode, range.snapshot, start, address);
    let reference = Extent::reference(address, extent.blocks);
    let shared = Extent { sharing: Sharing::Shared(Holders::one(own)), ..extent };
    transaction.put(Tree::Extents, there.key(there.to), shared.encode());
    transaction.put(Tree::Extents, position, reference.encode());
    Ok(Some((address.after(within), blocks)))
}

/// Deletes an extent of a version, as it was found.
pub(crate) async fn drop_extent(
    transaction: &mut Transaction<'_>,
    position: Position,
    value: &Value,
) -> Result<()> {
    let extent = ExtentView::parse(value)?;
    transaction.delete(Tree::Extents, position);
    let Some(address) = extent.address() else { return Ok(()) };
    let start = position.offset.saturating_sub(u64::from(extent.blocks()));
    let (inode, snapshot) = (InodeNumber(position.inode), SnapshotId(position.snapshot));
    let gone = BlockRange { inode, snapshot, from: start, to: position.offset };
    Box::pin(super::map::release(transaction, &gone, start, address)).await
}

/// The keys that all extents of a bucket have which came to be shared while they were in it.
pub(crate) fn keys_of_bucket(
    (member, generation): (u8, u32),
    first_block: u64,
    end_block: u64,
) -> [(Position, Position); 2] {
    let per_frame = Address::blocks_per_frame();
    [(0, 1), (Address::FRAMES, per_frame)].map(|(frames, each)| {
        let space = Address::space(frames, member, generation);
        (Position::new(space, first_block * each + 1, 0), Position::new(space, end_block * each, 0))
    })
}
