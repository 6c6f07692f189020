//! What a tree's client does with snapshots: make one, alone or together with one of a volume, read one, delete one,
//! take the tree back to one, work in a clone of one.

use engine_base::InodeNumber;
use engine_store::api::{NewSnapshot, SubvolumeInfo, TreeRef};
use engine_store::error::StoreError;

use super::tree::TreeClient;
use super::tree_reads::read_back;
use super::{snapshots, transfers};
use crate::model::tree::TreeModel;
use crate::world::{ClientContext, NameState, Refusal, TreeSlot, TreeSnapshotSlot, World};

/// Snapshots of one tree at a time.
const SNAPSHOTS_MAX: usize = 5;
/// Operations in a clone, at most.
const CLONE_OPERATIONS_MAX: u64 = 40;
/// Names of clones begin with this.
const CLONE: &str = "clone-";

impl TreeClient {
    /// Does something with snapshots; `false`: stop.
    pub(super) async fn snapshots(&self, context: &mut ClientContext) -> bool {
        if let Some(left) = self.left_behind(context) {
            return delete(context, &left).await;
        }
        let is_half = context.world.borrow().half_of(&self.name).is_some();
        if context.random.chance(if is_half { 4 } else { 2 }, 6)
            && !transfers::work(context, &self.name).await
        {
            return false;
        }
        let names: Vec<String> = {
            let world = context.world.borrow();
            let own = world
                .tree_snapshots
                .iter()
                .filter(|(_, slot)| slot.tree == self.name && slot.is_free());
            own.map(|(name, _)| name.clone()).collect()
        };
        let chance = context.random.below(8);
        if names.is_empty() || (chance < 3 && names.len() < SNAPSHOTS_MAX) {
            return self.make_snapshot(context).await;
        }
        let name = context.random.pick(&names).clone();
        context.world.borrow_mut().set_busy(&name, true);
        let is_known_here = {
            let world = context.world.borrow();
            let slot = world.tree_snapshots.get(&name).filter(|slot| !slot.received);
            let copy = slot.and_then(|slot| slot.copy.as_ref());
            copy.is_some_and(|copy| copy.known().is_some())
        };
        let goes_on = match chance {
            4 | 5 if !is_known_here => look(context, &name).await,
            0..=3 => look(context, &name).await,
            4 => self.roll_back(context, &name).await,
            5 => self.work_in_clone(context, &name).await,
            _ => delete(context, &name).await,
        };
        context.world.borrow_mut().set_busy(&name, false);
        goes_on
    }

    /// A clone whose deletion a crash has cut off.
    fn left_behind(&self, context: &ClientContext) -> Option<String> {
        let world = context.world.borrow();
        let mut slots = world.tree_snapshots.iter();
        let left = slots.find(|(_, slot)| {
            let here = slot.tree == self.name && slot.state == NameState::Present;
            here && slot.copy.is_none() && !slot.busy
        });
        left.map(|(name, _)| name.clone())
    }

    async fn make_snapshot(&self, context: &mut ClientContext) -> bool {
        let Some(name) = begin(context, &self.name, false) else { return true };
        let new = |source: &str, name: &str| NewSnapshot {
            source: source.to_owned(),
            name: name.to_owned(),
            writable: false,
        };
        let mut group = vec![new(&self.name, &name)];
        let volumes: Vec<String> = context.world.borrow().volumes.keys().cloned().collect();
        let volume = match context.random.chance(1, 3) && !volumes.is_empty() {
            true => Some(context.random.pick(&volumes).clone()),
            false => None,
        };
        let with = volume.and_then(|volume| Some((snapshots::begin(context, &volume)?, volume)));
        if let Some((name, volume)) = &with {
            group.push(new(volume, name));
        }
        let (started, result) = snapshots::make(context, &group, true).await;
        let world = &mut *context.world.borrow_mut();
        if let Some((snapshot, volume)) = &with {
            world.mark("snapshot_group");
            let of_volume = result.as_ref().map(|infos| infos.get(1).cloned());
            let of_volume = of_volume.map_err(Clone::clone);
            snapshots::made(world, volume, snapshot, started, of_volume);
        }
        made(world, &self.name, &name, result.map(|infos| infos.into_iter().next()))
    }

    async fn roll_back(&self, context: &mut ClientContext, name: &str) -> bool {
        {
            let world = &mut *context.world.borrow_mut();
            let Some(slot) = world.tree_snapshots.get(name) else { return true };
            let (Some(copy), false) = (slot.copy.clone(), slot.writable) else { return true };
            let tree = world.trees.get_mut(&self.name).expect("fixed for the session");
            tree.model.start_rollback(&mut world.promises, &copy);
        }
        let result = context.client.subvolume_rollback(&self.name, name).await;
        let world = &mut *context.world.borrow_mut();
        let numbers = [u64::from(result.is_ok()), 0, 0];
        world.event(context.executor.now_ns(), context.number, "tree rollback", numbers);
        let refusal = result.as_ref().err().map(|error| world.judge(error));
        let tree = world.trees.get_mut(&self.name).expect("fixed for the session");
        match (result, refusal) {
            (Ok(_), _) => {
                tree.model.rolled_back(&mut world.promises);
                world.tree_changed(&self.name);
                world.mark("tree_rollback");
                true
            }
            (Err(_), Some(Refusal::NoRoom)) => {
                tree.model.refused(&mut world.promises);
                world.mark("no_space");
                true
            }
            (Err(error), refusal) => {
                tree.model.unknown(&mut world.promises);
                if refusal == Some(Refusal::Wrong) {
                    world.fail(format!("rollback of {} to {name}: {error}", self.name));
                }
                false
            }
        }
    }

    /// Makes a clone, works in it, and deletes it, or leaves it to the next session.
    async fn work_in_clone(&self, context: &mut ClientContext, snapshot: &str) -> bool {
        let name = format!("{CLONE}{}", self.name);
        let copy = {
            let world = &mut *context.world.borrow_mut();
            let known = world.trees.contains_key(&name) || world.tree_snapshots.contains_key(&name);
            let copy = world.tree_snapshots.get(snapshot).and_then(|slot| slot.copy.clone());
            let (Some(copy), false, false) = (copy, known, self.name.starts_with(CLONE)) else {
                return true;
            };
            let slot = TreeSnapshotSlot::in_doubt(&self.name, Some(copy.clone()), true);
            world.tree_snapshots.insert(name.clone(), slot);
            copy
        };
        let source = snapshot.to_owned();
        let new = NewSnapshot { source, name: name.clone(), writable: true };
        let reference = match snapshots::make(context, &[new], false).await.1 {
            Ok(infos) => infos.first().map(TreeRef::from),
            Err(error) => {
                if context.world.borrow().judge(&error) == Refusal::NoRoom {
                    context.world.borrow_mut().tree_snapshots.remove(&name);
                }
                return context.tolerates("clone", &error);
            }
        };
        let Some(reference) = reference else { return true };
        {
            let world = &mut *context.world.borrow_mut();
            world.mark("clone");
            world.tree_snapshots.remove(&name);
            let InodeNumber(root) = reference.root;
            let home = InodeNumber(root).home(context.shard_count);
            let number = context.random.below(1 << 20) + 1;
            let model = TreeModel::of(&copy, home, context.shard_count, number);
            world.trees.insert(name.clone(), TreeSlot { reference, model, lost: false });
        }
        let clone = TreeClient { name: name.clone(), reference, mix: self.mix.clone() };
        for _ in 0..context.random.below(CLONE_OPERATIONS_MAX) {
            if !context.next_operation().await {
                return true;
            }
            let kind = context.random.below(6) as usize;
            let goes_on = match clone.draw(context, kind) {
                Some(op) => clone.perform(context, op).await,
                None => clone.look(context).await,
            };
            if !goes_on {
                return false;
            }
        }
        if context.random.chance(1, 4) {
            return true;
        }
        {
            let world = &mut *context.world.borrow_mut();
            world.trees.remove(&name);
            let slot = TreeSnapshotSlot::in_doubt(&self.name, None, true);
            world.tree_snapshots.insert(name.clone(), slot);
        }
        delete(context, &name).await
    }
}

/// Reads all of a snapshot and checks it.
pub(super) async fn look(context: &mut ClientContext, name: &str) -> bool {
    let reference = {
        let world = context.world.borrow();
        world.tree_snapshots.get(name).and_then(|slot| slot.reference)
    };
    let Some(reference) = reference else { return true };
    let found = match read_back(&context.client, reference).await {
        Ok(found) => found,
        Err(error) => return context.tolerates("read of a snapshot", &error),
    };
    context.event("tree snapshot read", [found.ids().count() as u64, 0, 0]);
    let world = &mut *context.world.borrow_mut();
    world.mark("tree_snapshot_read");
    let copy = world.tree_snapshots.get_mut(name).and_then(|slot| slot.copy.as_mut());
    if let Some(Err(wrong)) = copy.map(|copy| copy.check(&found)) {
        world.fail(format!("{name}: {wrong}"));
        return false;
    }
    true
}

/// Puts a snapshot of a tree that is to be made in the world; `None`: the name is taken. `growing`: the tree's own
/// client works meanwhile.
pub(super) fn begin(context: &mut ClientContext, tree: &str, growing: bool) -> Option<String> {
    let name = format!("snap-{tree}-{}", context.random.below(SNAPSHOTS_MAX as u64));
    let world = &mut *context.world.borrow_mut();
    if world.tree_snapshots.contains_key(&name) {
        return None;
    }
    let model = &world.trees.get(tree)?.model;
    // What holds a part of an operation is nothing that could be told.
    let copy = (!model.is_torn()).then(|| model.copy());
    let slot = TreeSnapshotSlot::in_doubt(tree, copy, false);
    world.tree_snapshots.insert(name.clone(), TreeSnapshotSlot { growing, ..slot });
    Some(name)
}

/// A tree of which another client may make a snapshot.
pub(super) fn some_tree(context: &mut ClientContext) -> Option<String> {
    let names: Vec<String> = {
        let world = context.world.borrow();
        let whole =
            world.trees.iter().filter(|(name, slot)| !slot.lost && !name.starts_with(CLONE));
        whole.map(|(name, _)| name.clone()).collect()
    };
    if names.is_empty() { None } else { Some(context.random.pick(&names).clone()) }
}

/// What came of making a snapshot of a tree; `false`: the client must stop.
pub(super) fn made(
    world: &mut World,
    tree: &str,
    name: &str,
    result: Result<Option<SubvolumeInfo>, StoreError>,
) -> bool {
    world.tree_snapshot_ends(name);
    match result {
        Ok(info) => {
            if let Some(slot) = world.tree_snapshots.get_mut(name) {
                (slot.state, slot.busy) = (NameState::Present, false);
                slot.reference = info.as_ref().map(TreeRef::from);
            }
            true
        }
        Err(error) => match world.judge(&error) {
            Refusal::NoRoom => {
                world.mark("no_space");
                world.tree_snapshots.remove(name);
                true
            }
            Refusal::Device => false,
            Refusal::Wrong => {
                world.fail(format!("snapshot {name} of {tree}: {error}"));
                false
            }
        },
    }
}

async fn delete(context: &mut ClientContext, name: &str) -> bool {
    if let Some(slot) = context.world.borrow_mut().tree_snapshots.get_mut(name) {
        slot.state = NameState::InDoubt;
    }
    let result = context.client.subvolume_delete(name).await;
    context.event("tree snapshot delete", [u64::from(result.is_ok()), 0, 0]);
    match result {
        Ok(()) => {
            let world = &mut *context.world.borrow_mut();
            world.tree_snapshots.remove(name);
            world.mark("tree_snapshot_delete");
            true
        }
        Err(error) => context.tolerates("snapshot delete", &error),
    }
}
