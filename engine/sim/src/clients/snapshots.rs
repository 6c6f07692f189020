//! What a volume's client does with snapshots: make one, read one, delete one, take the volume back to one.

use std::collections::{BTreeMap, BTreeSet};

use engine_store::api::{NewSnapshot, SubvolumeInfo};
use engine_store::client::VolumeRef;
use engine_store::error::StoreError;

use super::volume::found_at;
use super::{transfers, tree_snapshots};
use crate::model::snapshot::SnapshotModel;
use crate::stamp::Found;
use crate::world::{ClientContext, NameState, Refusal, SnapshotSlot, World, bytes_of};

/// Snapshots of one volume at a time.
const SNAPSHOTS_MAX: usize = 6;
/// Blocks that one read asks for.
const READ_BLOCKS_MAX: u64 = 64;

/// Does something with snapshots of `volume`; `alone`: it has no other client. Gives the volume as it is reached from
/// now on if that changed; `None`: the client must stop.
pub async fn work(
    context: &mut ClientContext,
    volume: &str,
    alone: bool,
) -> Option<Option<VolumeRef>> {
    let is_half = context.world.borrow().half_of(volume).is_some();
    if context.random.chance(if is_half { 3 } else { 1 }, 6)
        && !transfers::work(context, volume).await
    {
        return None;
    }
    let names: Vec<String> = {
        let world = context.world.borrow();
        let own =
            world.snapshots.iter().filter(|(_, slot)| slot.volume == volume && slot.is_free());
        own.map(|(name, _)| name.clone()).collect()
    };
    let chance = context.random.below(8);
    if names.is_empty() || (chance < 3 && names.len() < SNAPSHOTS_MAX) {
        return create(context, volume).await.then_some(None);
    }
    let name = context.random.pick(&names).clone();
    let is_received = context.world.borrow().snapshots.get(&name).is_some_and(|slot| slot.received);
    context.world.borrow_mut().set_busy(&name, true);
    let done = match chance {
        0..=4 => look(context, &name, false).await.map(|_| None),
        5 if alone && !is_received => roll_back(context, volume, &name).await,
        _ => delete(context, &name).await.then_some(None),
    };
    context.world.borrow_mut().set_busy(&name, false);
    done
}

async fn create(context: &mut ClientContext, volume: &str) -> bool {
    let Some(name) = begin(context, volume) else { return true };
    let mut group = vec![new_snapshot(volume, &name)];
    // Now and then of a tree, too, whose client goes on meanwhile.
    let tree = match context.random.chance(1, 3) {
        true => tree_snapshots::some_tree(context),
        false => None,
    };
    let with = tree.and_then(|tree| Some((tree_snapshots::begin(context, &tree, true)?, tree)));
    if let Some((name, tree)) = &with {
        group.push(new_snapshot(tree, name));
    }
    let (started, result) = make(context, &group, true).await;
    let world = &mut *context.world.borrow_mut();
    if let Some((snapshot, tree)) = &with {
        world.mark("snapshot_of_busy_tree");
        let of_tree = result.as_ref().map(|infos| infos.get(1).cloned());
        tree_snapshots::made(world, tree, snapshot, of_tree.map_err(Clone::clone));
    }
    made(world, volume, &name, started, result.map(|infos| infos.into_iter().next()))
}

fn new_snapshot(source: &str, name: &str) -> NewSnapshot {
    NewSnapshot { source: source.to_owned(), name: name.to_owned(), writable: false }
}

/// Puts a snapshot of a volume that is to be made in the world; `None`: the name is taken.
pub(super) fn begin(context: &mut ClientContext, volume: &str) -> Option<String> {
    let name = format!("snap-{volume}-{}", context.random.below(SNAPSHOTS_MAX as u64));
    let world = &mut *context.world.borrow_mut();
    if world.snapshots.contains_key(&name) {
        return None;
    }
    // Before the instant at which making it starts: good enough for one that is cut off.
    let started = world.promises.now();
    world.snapshots.insert(name.clone(), SnapshotSlot::begun(volume, started));
    Some(name)
}

/// Makes snapshots of one instant; gives when that was begun. `live`: of what is written to, so that all is flushed.
pub(super) async fn make(
    context: &ClientContext,
    new: &[NewSnapshot],
    live: bool,
) -> (u64, Result<Vec<SubvolumeInfo>, StoreError>) {
    let started = context.world.borrow_mut().promises.start();
    let result = context.client.snapshot_create(new).await;
    let world = &mut *context.world.borrow_mut();
    world.promises.end(started);
    let now_ns = context.executor.now_ns();
    let numbers = [started, u64::from(result.is_ok()), new.len() as u64];
    world.event(now_ns, context.number, "snapshot create", numbers);
    if result.is_ok() {
        world.mark("snapshot_create");
        if live {
            // All that is in it is durable, and so is what else was acknowledged before it.
            world.all_durable(started, context.shard_count);
        }
    }
    (started, result)
}

/// What came of making a snapshot of a volume; `false`: the client must stop.
pub(super) fn made(
    world: &mut World,
    volume: &str,
    name: &str,
    started: u64,
    result: Result<Option<SubvolumeInfo>, StoreError>,
) -> bool {
    match result {
        Ok(info) => {
            let Some(model) = world.volumes.get(volume).map(|slot| &slot.model) else {
                return true;
            };
            let model = SnapshotModel::new(model, started);
            if let Some(slot) = world.snapshots.get_mut(name) {
                (slot.state, slot.model) = (NameState::Present, Some(model));
                slot.reference = info.as_ref().map(VolumeRef::from);
                slot.busy = false;
            }
            true
        }
        Err(error) => match world.judge(&error) {
            Refusal::NoRoom => {
                world.mark("no_space");
                world.snapshots.remove(name);
                true
            }
            Refusal::Device => {
                world.mark("device_error");
                if let Some(slot) = world.snapshots.get_mut(name) {
                    slot.unknown = true;
                }
                false
            }
            Refusal::Wrong => {
                world.fail(format!("snapshot {name} of {volume}: {error}"));
                false
            }
        },
    }
}

/// Reads all or a part of a snapshot and checks it.
pub(super) async fn look(context: &mut ClientContext, name: &str, all: bool) -> Option<()> {
    let (reference, blocks) = {
        let world = context.world.borrow();
        let slot = world.snapshots.get(name)?;
        let (reference, model) = (slot.reference.clone()?, slot.model.as_ref()?);
        (reference, model.touched().collect::<Vec<u64>>())
    };
    let (from, count) = match all {
        true => (0, blocks.len()),
        false => {
            let from = context.random.below(blocks.len().max(1) as u64) as usize;
            (from, (blocks.len() - from.min(blocks.len())).min(READ_BLOCKS_MAX as usize))
        }
    };
    let found = match read(context, &reference, blocks.get(from..from + count)?).await {
        Ok(found) => found,
        Err(error) => return context.tolerates("read of a snapshot", &error).then_some(()),
    };
    let numbers = [found.len() as u64, from as u64, u64::from(all)];
    context.event("snapshot read", numbers);
    let world = &mut *context.world.borrow_mut();
    world.mark("snapshot_read");
    let checked = world.snapshots.get_mut(name).and_then(|slot| slot.model.as_mut());
    if let Some(Err(broken)) = checked.map(|model| model.check(&found)) {
        world.fail(format!("{name}: {broken}"));
        return None;
    }
    Some(())
}

/// What these blocks, which rise, hold.
///
/// # Errors
/// Those of the engine.
pub async fn read(
    context: &ClientContext,
    reference: &VolumeRef,
    blocks: &[u64],
) -> Result<BTreeMap<u64, Found>, StoreError> {
    let tag = {
        let world = context.world.borrow();
        let of = world.snapshots.values().find(|slot| slot.reference.as_ref() == Some(reference));
        of.and_then(|slot| slot.model.as_ref()).map_or(0, |model| model.tag)
    };
    let mut found = BTreeMap::new();
    let mut rest = blocks;
    while let Some(first) = rest.first().copied() {
        let run = (0..READ_BLOCKS_MAX).zip(rest);
        let count = run.take_while(|(index, block)| first + index == **block).count();
        let (offset, len) = (bytes_of(first), bytes_of(count as u64));
        let data = context.client.volume_read(reference, offset, len).await?;
        for index in 0..count as u64 {
            found.insert(first + index, found_at(&data, index, tag, first + index));
        }
        rest = &rest[count..];
    }
    Ok(found)
}

pub(super) async fn delete(context: &mut ClientContext, name: &str) -> bool {
    if let Some(slot) = context.world.borrow_mut().snapshots.get_mut(name) {
        slot.state = NameState::InDoubt;
    }
    let result = context.client.subvolume_delete(name).await;
    context.event("snapshot delete", [u64::from(result.is_ok()), 0, 0]);
    match result {
        Ok(()) => {
            let world = &mut *context.world.borrow_mut();
            world.snapshots.remove(name);
            world.mark("snapshot_delete");
            true
        }
        Err(error) => context.tolerates("snapshot delete", &error),
    }
}

/// Takes a volume back to a snapshot, of which all is read first.
async fn roll_back(
    context: &mut ClientContext,
    volume: &str,
    name: &str,
) -> Option<Option<VolumeRef>> {
    look(context, name, true).await?;
    let (started, content, size_blocks) = {
        let world = &mut *context.world.borrow_mut();
        let snapshot = world.snapshots.get(name)?.model.as_ref()?;
        let slot = world.volumes.get_mut(volume)?;
        let blocks: BTreeSet<u64> = snapshot.touched().chain(slot.model.touched()).collect();
        let mut content = BTreeMap::new();
        for block in blocks {
            let held = (block < snapshot.size_blocks).then(|| snapshot.known(block));
            content.insert(block, held.unwrap_or(Some(0))?);
        }
        let size_blocks = snapshot.size_blocks;
        let started = world.promises.start();
        slot.resizing = Some((size_blocks, started));
        slot.model.rollback_in_doubt(&content, started);
        (started, content, size_blocks)
    };
    let result = context.client.subvolume_rollback(volume, name).await;
    let world = &mut *context.world.borrow_mut();
    let ended = world.promises.end(started);
    let numbers = [size_blocks, started, u64::from(result.is_ok())];
    world.event(context.executor.now_ns(), context.number, "rollback", numbers);
    match result {
        Ok(info) => {
            world.mark("rollback");
            let slot = world.volumes.get_mut(volume)?;
            slot.resizing = None;
            slot.model.rolled_back(&content, size_blocks, started, ended);
            slot.reference = VolumeRef::from(&info);
            Some(Some(slot.reference.clone()))
        }
        Err(error) => {
            if world.judge(&error) == Refusal::Wrong {
                world.fail(format!("rollback of {volume} to {name}: {error}"));
            }
            // What is left in doubt a crash settles.
            None
        }
    }
}
