//! Reads the whole pool back and compares it with the model: after every crash, and at the end.

use std::collections::BTreeMap;

use engine_base::ids::CHUNK_SIZE_LOG2;
use engine_store::api::{SubvolumeInfo, TreeRef, Verify};
use engine_store::client::VolumeRef;
use engine_store::error::StoreError;

use crate::clients::administration::{COLLECTION, check_names, check_records, present};
use crate::clients::snapshots;
use crate::clients::tree_reads::read_back;
use crate::clients::volume::found_at;
use crate::model::snapshot::SnapshotModel;
use crate::model::tree::TreeState;
use crate::stamp::Found;
use crate::world::{ClientContext, NameState, Refusal, World, bytes_of};

/// Everything that was read back.
#[derive(Default)]
struct Findings {
    volumes: BTreeMap<String, (SubvolumeInfo, BTreeMap<u64, Found>)>,
    trees: BTreeMap<String, TreeState>,
    snapshots: BTreeMap<String, (SubvolumeInfo, BTreeMap<u64, Found>)>,
    tree_snapshots: BTreeMap<String, (TreeRef, Option<TreeState>)>,
    names: Vec<String>,
    records: Vec<(String, Vec<u8>)>,
    /// What could not be read, because a disk had destroyed it.
    lost: Vec<String>,
}

/// Reads everything back and, when nothing is wrong, settles the model on what was found. Nothing of
/// the model changes before that: a crash in the middle does no harm. `crash`: whether one came
/// before, and whether it took the power.
pub async fn run(mut context: ClientContext, crash: Option<bool>, verify: Verify) {
    let lost = match gather(&mut context).await {
        Ok(findings) => {
            let lost = findings.lost.clone();
            judge(&context, findings, crash);
            lost
        }
        Err(error) => {
            // Where a write has failed, blocks may be unreadable for good.
            if !context.tolerates("reading everything back", &error) {
                context.world.borrow_mut().unreadable = true;
            }
            return;
        }
    };
    if context.world.borrow().failure.is_some() {
        return;
    }
    check_whole(&context, verify, &lost).await;
}

/// fsck: finds nothing where nothing was destroyed, and something where `lost` could not be read.
async fn check_whole(context: &ClientContext, verify: Verify, lost: &[String]) {
    let checked = context.client.fsck(verify).await;
    // The check writes how far it is, and a disk may destroy something then.
    let damaged = context.world.borrow().damaged();
    match checked {
        Ok(report) if report.problems.is_empty() => match lost.first() {
            Some(lost) if verify == Verify::All => {
                context.fail(format!("fsck finds nothing, but could not be read: {lost}"));
            }
            _ => context.world.borrow_mut().mark("fsck"),
        },
        Ok(_) if damaged => context.world.borrow_mut().mark("fsck_reported_damage"),
        Ok(report) => {
            let count = report.problems.len();
            let shown: Vec<_> = report.problems.into_iter().take(5).collect();
            context.fail(format!("fsck found {count} problems: {shown:?}"));
        }
        // Not every engine under test has it yet; a report says how often it ran.
        Err(StoreError::Unsupported { .. }) => context.world.borrow_mut().mark("fsck_unsupported"),
        Err(error) if damaged && context.world.borrow().judge(&error) == Refusal::Device => {
            context.world.borrow_mut().mark("fsck_refused_damage");
        }
        Err(error) => context.fail(format!("fsck: {error}")),
    }
}

async fn gather(context: &mut ClientContext) -> Result<Findings, StoreError> {
    let mut findings = Findings::default();
    let listed = context.client.subvolume_list("", 1000).await?;
    findings.names = listed.into_iter().map(|info| info.name).collect();
    if !context.world.borrow().records.is_empty() {
        findings.records = context.client.record_list(COLLECTION).await?;
    }
    let volumes: Vec<String> = context.world.borrow().volumes.keys().cloned().collect();
    for name in volumes {
        let found = volume(context, &name, &mut findings.lost).await;
        match found {
            Ok(found) => drop(findings.volumes.insert(name, found)),
            Err(error) => lose(context, &mut findings.lost, format!("volume {name}"), error)?,
        }
    }
    gather_snapshots(context, &mut findings).await?;
    gather_tree_snapshots(context, &mut findings).await?;
    let trees: Vec<_> = {
        let world = context.world.borrow();
        let whole = world.trees.iter().filter(|(_, slot)| !slot.lost);
        whole.map(|(n, s)| (n.clone(), s.reference)).collect()
    };
    for (name, reference) in trees {
        match read_back(&context.client, reference).await {
            Ok(state) => {
                context.event("tree read back", [state.ids().count() as u64, 0, 0]);
                findings.trees.insert(name, state);
            }
            Err(error) => {
                lose(context, &mut findings.lost, format!("tree {name}"), error)?;
                if let Some(slot) = context.world.borrow_mut().trees.get_mut(&name) {
                    slot.lost = true;
                }
            }
        }
    }
    Ok(findings)
}

/// All that each snapshot holds.
async fn gather_snapshots(
    context: &mut ClientContext,
    findings: &mut Findings,
) -> Result<(), StoreError> {
    let names: Vec<String> = context.world.borrow().snapshots.keys().cloned().collect();
    for name in names.into_iter().filter(|name| findings.names.contains(name)) {
        let info = context.client.subvolume_get(&name).await?;
        let blocks: Vec<u64> = {
            let world = &mut *context.world.borrow_mut();
            let Some(slot) = world.snapshots.get_mut(&name) else { continue };
            if slot.received {
                slot.half = info.receiving().is_some();
                if slot.half && slot.state == NameState::Present {
                    world.fail(format!("{name} was received, and is half there now"));
                    continue;
                }
            }
            if slot.unknown {
                findings.snapshots.insert(name, (info, BTreeMap::new()));
                continue;
            }
            let Some(volume) = world.volumes.get(&slot.volume) else { continue };
            let started = slot.started;
            // One whose making was cut off is of an instant before the crash.
            let model =
                slot.model.get_or_insert_with(|| SnapshotModel::new(&volume.model, started));
            slot.reference = Some(VolumeRef::from(&info));
            model.size_blocks = info.size_bytes / 4096;
            // Of one that is half there, all is there before the place that was noted.
            let end = info.receiving().map_or(u64::MAX, |receiving| receiving.position / 4096);
            model.touched().filter(|block| *block < end).collect()
        };
        let found = snapshots::read(context, &VolumeRef::from(&info), &blocks).await?;
        context.event("snapshot read back", [found.len() as u64, 0, 0]);
        findings.snapshots.insert(name, (info, found));
    }
    Ok(())
}

/// The same of trees.
async fn gather_tree_snapshots(
    context: &mut ClientContext,
    findings: &mut Findings,
) -> Result<(), StoreError> {
    let slots: Vec<(String, bool)> = {
        let world = &mut *context.world.borrow_mut();
        let names: Vec<String> = world.tree_snapshots.keys().cloned().collect();
        names.iter().for_each(|name| world.tree_snapshot_ends(name));
        let slots = world.tree_snapshots.iter();
        slots.map(|(name, slot)| (name.clone(), slot.copy.is_some())).collect()
    };
    for (name, known) in slots.into_iter().filter(|(name, _)| findings.names.contains(name)) {
        let info = context.client.subvolume_get(&name).await?;
        let reference = TreeRef::from(&info);
        let is_half = {
            let world = &mut *context.world.borrow_mut();
            let Some(slot) = world.tree_snapshots.get_mut(&name) else { continue };
            slot.half = slot.received && info.receiving().is_some();
            if slot.half && slot.state == NameState::Present {
                world.fail(format!("{name} was received, and is half there now"));
                continue;
            }
            slot.half
        };
        let found = match known && !is_half {
            true => Some(read_back(&context.client, reference).await?),
            false => None,
        };
        context.event("tree snapshot read back", [u64::from(known), 0, 0]);
        findings.tree_snapshots.insert(name, (reference, found));
    }
    Ok(())
}

fn judge_tree_snapshots(
    world: &mut World,
    findings: &Findings,
    durable: bool,
) -> Result<(), String> {
    for (name, (reference, found)) in &findings.tree_snapshots {
        let Some(slot) = world.tree_snapshots.get_mut(name) else { continue };
        if let (Some(copy), Some(found)) = (&mut slot.copy, found) {
            copy.check(found).map_err(|wrong| format!("{name}: {wrong}"))?;
        }
        (slot.busy, slot.reference) = (false, Some(*reference));
        if durable && !slot.half {
            slot.state = NameState::Present;
        }
    }
    world.tree_snapshots.retain(|name, slot| {
        // A creation that was cut off may still be on its way, and come later.
        let may_come = slot.half && slot.state == NameState::InDoubt;
        slot.busy &= !may_come;
        may_come || findings.tree_snapshots.contains_key(name)
    });
    Ok(())
}

/// Snapshots are what they were, and those that are not there are forgotten.
fn judge_snapshots(world: &mut World, findings: &Findings, durable: bool) -> Result<(), String> {
    for (name, (_, found)) in &findings.snapshots {
        let Some(slot) = world.snapshots.get_mut(name) else { continue };
        if let Some(model) = &mut slot.model {
            model.check(found).map_err(|wrong| format!("{name}: {wrong}"))?;
        }
        slot.busy = false;
        if durable && !slot.half {
            slot.state = NameState::Present;
        }
    }
    world.snapshots.retain(|name, slot| {
        // A creation that was cut off may still be on its way, and come later.
        let may_come = slot.half && slot.state == NameState::InDoubt;
        slot.busy &= !may_come;
        may_come || findings.snapshots.contains_key(name)
    });
    Ok(())
}

/// What cannot be read because a disk destroyed it, and the engine says so.
///
/// # Errors
/// Any other error.
fn lose(
    context: &ClientContext,
    lost: &mut Vec<String>,
    what: String,
    error: StoreError,
) -> Result<(), StoreError> {
    let says_so = matches!(error, StoreError::DataLoss { .. } | StoreError::Corrupt { .. });
    if !context.world.borrow().damaged() || !says_so {
        return Err(error);
    }
    context.world.borrow_mut().mark("damage_reported");
    lost.push(format!("{what}: {error}"));
    Ok(())
}

/// What every block that was ever written holds, and some that never were.
async fn volume(
    context: &mut ClientContext,
    name: &str,
    lost: &mut Vec<String>,
) -> Result<(SubvolumeInfo, BTreeMap<u64, Found>), StoreError> {
    let info = context.client.subvolume_get(name).await?;
    let reference = VolumeRef::from(&info);
    let size_blocks = info.size_bytes / 4096;
    let (tag, mut wanted) = {
        let world = context.world.borrow();
        match world.volumes.get(name) {
            Some(slot) => {
                let touched = slot.model.touched().filter(|block| *block < size_blocks);
                (slot.model.tag, touched.collect::<Vec<u64>>())
            }
            None => return Err(StoreError::not_found(name)),
        }
    };
    for _ in 0..4 {
        wanted.push(context.random.below(size_blocks.max(1)));
    }
    wanted.sort_unstable();
    wanted.dedup();
    let mut found = BTreeMap::new();
    for (first, count) in runs(&wanted) {
        let (offset, len) = (bytes_of(first), bytes_of(count));
        match context.client.volume_read(&reference, offset, len).await {
            Ok(data) => {
                for index in 0..count {
                    let block = first + index;
                    found.insert(block, found_at(&data, index, tag, block));
                }
            }
            Err(error) => {
                lose(context, lost, format!("{count} blocks at {first} of {name}"), error)?;
                // One by one, those that are whole must be right.
                for block in first..first + count {
                    let read = context.client.volume_read(&reference, bytes_of(block), 4096);
                    match read.await {
                        Ok(data) => drop(found.insert(block, found_at(&data, 0, tag, block))),
                        Err(error) => lose(context, lost, format!("block {block}"), error)?,
                    }
                }
            }
        }
    }
    context.event("volume read back", [tag, found.len() as u64, size_blocks]);
    Ok((info, found))
}

/// Adjacent blocks as ranges (first, count) of at most 256 blocks within a chunk.
fn runs(blocks: &[u64]) -> Vec<(u64, u64)> {
    let chunk = |block: u64| block >> (CHUNK_SIZE_LOG2 - 12);
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &block in blocks {
        match runs.last_mut() {
            Some((first, count))
                if *first + *count == block && *count < 256 && chunk(*first) == chunk(block) =>
            {
                *count += 1;
            }
            _ => runs.push((block, 1)),
        }
    }
    runs
}

fn judge(context: &ClientContext, findings: Findings, crash: Option<bool>) {
    let before = present(&context.world.borrow());
    check_names(context, &findings.names, &before);
    // Recovery flushes what it found.
    let keeps_history = context.world.borrow().promises.keeps_history();
    let durable = !keeps_history
        && (crash == Some(true) || (crash.is_some() && !context.world.borrow().may_fail()));
    check_records(context, &findings.records, durable);
    let snapshots = {
        let world = &mut *context.world.borrow_mut();
        judge_snapshots(world, &findings, durable)
            .and_then(|()| judge_tree_snapshots(world, &findings, durable))
    };
    if let Err(broken) = snapshots {
        context.fail(broken);
        return;
    }
    let result = match crash {
        Some(power_loss) => after_crash(context, findings, power_loss, durable),
        None => without_crash(context, &findings),
    };
    if let Err(broken) = result {
        context.fail(broken);
    }
}

/// Nothing happened: everything must be as the last answers said.
fn without_crash(context: &ClientContext, findings: &Findings) -> Result<(), String> {
    let world = &mut *context.world.borrow_mut();
    let started = world.promises.start();
    for (name, (info, found)) in &findings.volumes {
        let Some(slot) = world.volumes.get(name) else { continue };
        if slot.resizing.is_none() && bytes_of(slot.model.size_blocks) != info.size_bytes {
            return Err(format!("volume {name} has {} bytes", info.size_bytes));
        }
        for (&block, &found) in found {
            slot.model.check_read(block, found, started)?;
        }
    }
    for (name, state) in &findings.trees {
        let Some(slot) = world.trees.get(name) else { continue };
        slot.model.check_now(state).map_err(|wrong| format!("tree {name}: {wrong}"))?;
    }
    world.promises.end(started);
    Ok(())
}

fn after_crash(
    context: &ClientContext,
    findings: Findings,
    power_loss: bool,
    durable: bool,
) -> Result<(), String> {
    let world = &mut *context.world.borrow_mut();
    let shard_count = context.shard_count;
    let mut reached: Vec<u64> = vec![0; usize::from(shard_count)];
    for (name, (info, found)) in &findings.volumes {
        let Some(slot) = world.volumes.get(name) else { continue };
        let size = info.size_bytes;
        let resizing = slot.resizing.is_some_and(|(blocks, _)| bytes_of(blocks) == size);
        if bytes_of(slot.model.size_blocks) != size && !resizing {
            return Err(format!("after the crash volume {name} has {size} bytes"));
        }
        slot.model.check_crash(&world.promises, found, &mut reached)?;
    }
    // A tree may prove more about its shard than was known when another was looked at: the trees
    // go first, then all are checked against what all have proven.
    for (name, state) in &findings.trees {
        let Some(slot) = world.trees.get(name) else { continue };
        let recovered = slot
            .model
            .check_crash(&world.promises, state, 0)
            .map_err(|wrong| format!("after the crash, tree {name}: {wrong}"))?;
        let reached = &mut reached[usize::from(slot.model.home.0)];
        *reached = (*reached).max(recovered.reached);
    }
    for (_, (slot, found)) in
        findings.volumes.iter().filter_map(|(n, (_, f))| Some((n, (world.volumes.get(n)?, f))))
    {
        slot.model.check_prefix(&world.promises, found, &reached)?;
    }
    for (name, state) in &findings.trees {
        let Some(slot) = world.trees.get(name) else { continue };
        let reached = reached[usize::from(slot.model.home.0)];
        slot.model
            .check_crash(&world.promises, state, reached)
            .map_err(|wrong| format!("tree {name} is older than its shard: {wrong}"))?;
    }
    world.promises.recovered();
    settle(context, world, findings, durable);
    if world.promises.keeps_history() {
        // Recovery flushed what it found, as far as the disk keeps to it.
        let instant = world.promises.now() + 1;
        world.all_durable(instant, shard_count);
    }
    world.mark(if power_loss { "power_loss_survived" } else { "process_crash_survived" });
    Ok(())
}

/// What was found is so from now on; `durable`, also after a loss of power.
fn settle(
    context: &ClientContext,
    world: &mut crate::world::World,
    findings: Findings,
    durable: bool,
) {
    let lived = world.promises.now();
    for (name, (info, found)) in findings.volumes {
        let Some(slot) = world.volumes.get_mut(&name) else { continue };
        slot.model.settle(&mut world.promises, &found, durable);
        let size_blocks = info.size_bytes / 4096;
        let before = slot.model.size_blocks;
        if slot.resizing.take().is_some() && size_blocks != before {
            if durable {
                let started = world.promises.start();
                let ended = world.promises.end(started);
                slot.model.resized(size_blocks, started, ended);
            } else {
                // Not known to be durable: a loss of power may bring the old size back.
                slot.model.size_blocks = size_blocks;
                slot.resizing = Some((before, lived));
            }
        }
        slot.reference = VolumeRef::from(&info);
    }
    for (name, state) in findings.trees {
        let Some(slot) = world.trees.get_mut(&name) else { continue };
        slot.model.settle(&mut world.promises, state, durable);
    }
    let names = findings.names;
    if durable {
        // A creation that was cut off may still be on its way, and come later.
        for (name, state) in &mut world.passing {
            if names.contains(name) {
                *state = NameState::Present;
            }
        }
    }
    world.event(context.executor.now_ns(), context.number, "settled", [lived, 0, 0]);
}
