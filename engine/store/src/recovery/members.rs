//! The superblock of a pool, and whether the members are those it names, in its order.
//!
//! Shard 0 also writes bad and old copies anew: the others of the pool only read.

use engine_device::DeviceQueue;

use crate::engine::EngineConfig;
use crate::error::{Result, StoreError};
use crate::reached::{Branch, mark};
use crate::superblock::{CopyState, Inspection, ProbeError, Superblock, inspect, repair};

/// Reads the superblock; gives also what was found wrong and mended, a line each.
pub(super) async fn superblock(config: &EngineConfig) -> Result<(Superblock, Vec<String>)> {
    let mut found = Vec::new();
    for member in &config.members {
        match inspect(&**member).await {
            Ok(inspection) => {
                inspection.newest.refuse_image(&member.info().name)?;
                found.push(inspection);
            }
            Err(ProbeError::Store(error)) => return Err(error),
            Err(error) => return Err(StoreError::corrupt("pool", error.to_string())),
        }
    }
    let newest = found.iter().map(|inspection| &inspection.newest).max_by_key(|sb| sb.sequence);
    let Some(newest) = newest.cloned() else {
        return Err(StoreError::invalid("a pool needs a member"));
    };
    let name = |index: usize| &config.members[index].info().name;
    if let Some(other) =
        found.iter().position(|it| it.newest.pool_uuid != found[0].newest.pool_uuid)
    {
        let why = format!("{} is of another pool than {}", name(other), name(0));
        return Err(StoreError::corrupt("pool", format!("{why}; nothing was changed")));
    }
    for (index, (member, inspection)) in config.members.iter().zip(&found).enumerate() {
        check_member(index, &**member, inspection, &newest)?;
    }
    if newest.members.len() != config.members.len() {
        let (want, have) = (newest.members.len(), config.members.len());
        return Err(StoreError::corrupt("pool", format!("has {want} members, {have} are given")));
    }
    if newest.shard_count() != config.shard_count || config.shard.0 >= config.shard_count {
        let (shards, asked) = (newest.shard_count(), config.shard_count);
        return Err(StoreError::invalid(format!("the pool has {shards} shards, not {asked}")));
    }
    let mut notes = Vec::new();
    if config.shard.0 == 0 {
        for (index, (member, inspection)) in config.members.iter().zip(&mut found).enumerate() {
            let sequence = inspection.newest.sequence;
            if inspection.newest != newest {
                for (_, state) in &mut inspection.copies {
                    if *state == CopyState::Good {
                        *state = CopyState::Old { sequence };
                    }
                }
            }
            let mended = repair(&**member, &newest, index as u8, &inspection.copies).await;
            if !mended.is_empty() {
                mark(Branch::SuperblockMended);
            }
            notes.extend(mended);
        }
    }
    Ok((newest, notes))
}

/// A device is the member at its place in the list, and has not shrunk.
fn check_member(
    index: usize,
    device: &dyn DeviceQueue,
    inspection: &Inspection,
    newest: &Superblock,
) -> Result<()> {
    let name = &device.info().name;
    let bad = |why: String| Err(StoreError::corrupt("pool", why));
    let Some(member) = newest.members.get(index).filter(|it| it.uuid == inspection.member_uuid)
    else {
        return bad(format!(
            "{name} is not member {index} of its pool: another device of the pool, or one that was \
             removed; nothing was changed: give the devices in the order of the member table"
        ));
    };
    let (size, has) = (member.size_bytes, device.refresh_size()?);
    if size > has {
        return bad(format!(
            "{name} has shrunk to {has} bytes, the pool uses {size}; nothing was changed: give it \
             its size back"
        ));
    }
    Ok(())
}
