//! A client of the pool's tables: subvolumes and records that come and go, all of it durable when answered;
//! of the sizes of its members, and of the scrub.

use std::collections::BTreeSet;

use engine_store::api::PutMode;
use engine_store::error::StoreError;

use crate::world::{ClientContext, NameState, Refusal, World};

/// The collection in which the records lie.
pub const COLLECTION: &str = "simulated";

/// Names of subvolumes of this client start with this.
pub const PASSING: &str = "passing-";

/// Works on the tables until the session's operations are used up.
pub async fn run(mut context: ClientContext) {
    while context.next_operation().await {
        let goes_on = match context.random.below(10) {
            0 | 1 => create(&mut context).await,
            2 => delete(&mut context).await,
            3 => list(&context).await,
            4 | 5 => put(&mut context).await,
            6 => remove_record(&mut context).await,
            7 => super::members::resize(&mut context).await,
            8 => super::scrub::work(&mut context).await,
            _ => records(&context).await,
        };
        if !goes_on {
            return;
        }
        // These are rare beside reads and writes.
        let pause_ns = context.random.below(20_000_000);
        pause(&context, pause_ns).await;
    }
}

async fn pause(context: &ClientContext, ns: u64) {
    use engine_base::runtime::Runtime;
    context.executor.core(0).sleep(ns).await;
}

fn some_name(context: &mut ClientContext) -> String {
    format!("{PASSING}{}", context.random.below(5))
}

/// Creates a subvolume and writes a little into it, so that its deletion has work to do.
async fn create(context: &mut ClientContext) -> bool {
    let name = some_name(context);
    let before = {
        let passing = &mut context.world.borrow_mut().passing;
        let before = passing.get(&name).copied();
        if before.is_none() {
            passing.insert(name.clone(), NameState::InDoubt);
        }
        before
    };
    let tree = context.random.chance(1, 3);
    let result = if tree {
        context.client.tree_create(&name).await
    } else {
        let blocks = context.random.range(1, 3000);
        context.client.volume_create(&name, crate::world::bytes_of(blocks), 4096).await
    };
    context.event("subvolume create", [u64::from(tree), u64::from(result.is_ok()), 0]);
    match (before, result) {
        (None | Some(NameState::InDoubt), Ok(_)) => {
            let world = &mut *context.world.borrow_mut();
            world.passing.insert(name, NameState::Present);
            world.mark("subvolume_create");
        }
        (Some(_), Err(StoreError::AlreadyExists { .. })) => return true,
        (Some(NameState::Present), Ok(_)) => context.fail(format!("{name} was created twice")),
        (before, Err(error)) => {
            return refused(context, "subvolume create", &error, || Some((name, before)));
        }
    }
    if tree { true } else { fill(context).await }
}

/// Writes into whichever passing volume is listed first.
async fn fill(context: &mut ClientContext) -> bool {
    let Ok(listed) = context.client.subvolume_list(PASSING, 10).await else { return true };
    let volumes: Vec<_> = listed
        .iter()
        .filter(|info| info.name.starts_with(PASSING) && info.size_bytes > 0)
        .collect();
    if volumes.is_empty() {
        return true;
    }
    let info = *context.random.pick(&volumes);
    let reference = engine_store::client::VolumeRef::from(info);
    let blocks = context.random.range(1, (info.size_bytes / 4096).min(64));
    let first = context.random.range(0, info.size_bytes / 4096 - blocks);
    let bytes = vec![0xa5; crate::world::bytes_of(blocks) as usize];
    let data = engine_store::api::Data::from_iter([super::slice_of(&bytes)]);
    let offset = crate::world::bytes_of(first);
    match context.client.volume_write(&reference, offset, data, false).await {
        Ok(()) => true,
        Err(error) => context.tolerates("write to a passing volume", &error),
    }
}

async fn delete(context: &mut ClientContext) -> bool {
    let name = some_name(context);
    let before = {
        let passing = &mut context.world.borrow_mut().passing;
        let before = passing.get(&name).copied();
        if before.is_some() {
            passing.insert(name.clone(), NameState::InDoubt);
        }
        before
    };
    let result = context.client.subvolume_delete(&name).await;
    context.event("subvolume delete", [u64::from(result.is_ok()), 0, 0]);
    match (before, result) {
        (Some(_), Ok(())) => {
            let world = &mut *context.world.borrow_mut();
            world.passing.remove(&name);
            world.mark("subvolume_delete");
            true
        }
        // In doubt it stays: what another crash took need not be durable.
        (None | Some(NameState::InDoubt), Err(StoreError::NotFound { .. })) => true,
        (None, Ok(())) => {
            context.fail(format!("{name} was deleted and did not exist"));
            false
        }
        (before, Err(error)) => refused(context, "subvolume delete", &error, || {
            before.map(|before| (name, Some(before)))
        }),
    }
}

/// An error: when nothing was done, `undo` says what the name is again.
fn refused(
    context: &ClientContext,
    what: &str,
    error: &StoreError,
    undo: impl FnOnce() -> Option<(String, Option<NameState>)>,
) -> bool {
    let goes_on = context.tolerates(what, error);
    let world = &mut *context.world.borrow_mut();
    if world.judge(error) == Refusal::NoRoom {
        match undo() {
            Some((name, Some(state))) => drop(world.passing.insert(name, state)),
            Some((name, None)) => drop(world.passing.remove(&name)),
            None => {}
        }
    }
    goes_on
}

async fn list(context: &ClientContext) -> bool {
    // What others make while the answer is on its way need not be in it.
    let before = present(&context.world.borrow());
    let result = context.client.subvolume_list("", 1000).await;
    match result {
        Ok(listed) => {
            let names: Vec<String> = listed.into_iter().map(|info| info.name).collect();
            check_names(context, &names, &before);
            true
        }
        Err(error) => context.tolerates("subvolume list", &error),
    }
}

/// The names of subvolumes that are there for certain.
#[must_use]
pub fn present(world: &World) -> BTreeSet<String> {
    let passing = world.passing.iter().filter(|(_, state)| **state == NameState::Present);
    let snapshots = world.snapshots.iter().filter(|(_, slot)| slot.state == NameState::Present);
    let of_trees = world.tree_snapshots.iter().filter(|(_, slot)| slot.state == NameState::Present);
    let fixed = world.volumes.keys().chain(world.trees.keys());
    let others = passing.map(|(name, _)| name).chain(snapshots.map(|(name, _)| name));
    fixed.chain(others).chain(of_trees.map(|(name, _)| name)).cloned().collect()
}

/// Compares the names of all subvolumes with what must be there: what was `before` they were asked for, and still is.
pub fn check_names(context: &ClientContext, names: &[String], before: &BTreeSet<String>) {
    if !names.is_sorted() {
        context.fail(format!("subvolumes are not listed in order: {names:?}"));
    }
    let mut world = context.world.borrow_mut();
    let expected = present(&world);
    let missing = expected.intersection(before).find(|name| !names.contains(*name)).cloned();
    let stranger = names.iter().find(|name| {
        !expected.contains(*name)
            && !before.contains(*name)
            && world.passing.get(*name) != Some(&NameState::InDoubt)
            && !world.snapshots.contains_key(*name)
            && !world.tree_snapshots.contains_key(*name)
    });
    if let Some(name) = missing {
        world.fail(format!("subvolume {name} is gone"));
    } else if let Some(name) = stranger {
        world.fail(format!("subvolume {name} should not be there"));
    }
}

async fn put(context: &mut ClientContext) -> bool {
    let name = format!("record-{}", context.random.below(6));
    let len = context.random.range(0, 300) as usize;
    let mut bytes = vec![0; len];
    context.random.fill(&mut bytes);
    let before = begin_record(context, &name, Some(bytes.clone()));
    let result = context.client.record_put(COLLECTION, &name, bytes.clone(), PutMode::Any).await;
    end_record(context, "record put", &name, before, Some(bytes), result)
}

async fn remove_record(context: &mut ClientContext) -> bool {
    let name = format!("record-{}", context.random.below(6));
    let before = begin_record(context, &name, None);
    let result = context.client.record_delete(COLLECTION, &name).await;
    let result = match result {
        Err(StoreError::NotFound { .. }) if before.contains(&None) => Ok(()),
        other => other,
    };
    end_record(context, "record delete", &name, before, None, result)
}

/// A change of a record starts: it may hold the old or the new from now on.
fn begin_record(context: &ClientContext, name: &str, new: Option<Vec<u8>>) -> Vec<Option<Vec<u8>>> {
    let mut world = context.world.borrow_mut();
    let held = world.records.entry(name.to_owned()).or_insert_with(|| vec![None]);
    let before = held.clone();
    held.push(new);
    before
}

fn end_record(
    context: &ClientContext,
    what: &'static str,
    name: &str,
    before: Vec<Option<Vec<u8>>>,
    new: Option<Vec<u8>>,
    result: engine_store::Result<()>,
) -> bool {
    context.event(what, [u64::from(result.is_ok()), 0, 0]);
    match result {
        Ok(()) => {
            let mut world = context.world.borrow_mut();
            world.records.insert(name.to_owned(), vec![new]);
            world.mark(what);
            true
        }
        Err(error) => {
            let goes_on = context.tolerates(what, &error);
            let mut world = context.world.borrow_mut();
            if world.judge(&error) == Refusal::NoRoom {
                world.records.insert(name.to_owned(), before);
            }
            goes_on
        }
    }
}

async fn records(context: &ClientContext) -> bool {
    match context.client.record_list(COLLECTION).await {
        Ok(found) => {
            check_records(context, &found, false);
            true
        }
        Err(error) => context.tolerates("record list", &error),
    }
}

/// Compares records with what they may hold; with `settle`, what was found is so from now on.
pub fn check_records(context: &ClientContext, found: &[(String, Vec<u8>)], settle: bool) {
    let mut world = context.world.borrow_mut();
    let mut wrong = None;
    for (name, held) in &mut world.records {
        let bytes = found.iter().find(|(found, _)| found == name).map(|(_, bytes)| bytes.clone());
        if !held.contains(&bytes) {
            let len = bytes.as_ref().map(Vec::len);
            wrong = Some(format!("record {name} holds {len:?} bytes, none of what it may hold"));
        } else if settle {
            *held = vec![bytes];
        }
    }
    if let Some((name, _)) = found.iter().find(|(name, _)| !world.records.contains_key(name)) {
        wrong = Some(format!("record {name} was never put"));
    }
    if let Some(wrong) = wrong {
        world.fail(wrong);
    }
}
