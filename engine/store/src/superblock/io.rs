//! Finding, repairing and writing superblocks.

use engine_device::{DeviceQueue, IoVec, QueueExt};
use engine_memory::Buffer;

use super::format::{SUPERBLOCK_BYTES, Superblock};
use crate::error::{Result, StoreError};

/// Why a device is not a member.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No valid superblock: the words of each copy.
    #[error("{device} is not a Cairn member: {why}")]
    NotMember {
        /// Name of the device.
        device: String,
        /// What was found.
        why: String,
    },
    /// The device failed, or the format is not known.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What lies at one place of a superblock copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// The newest superblock.
    Good,
    /// A valid one with an older sequence number.
    Old {
        /// Its number.
        sequence: u64,
    },
    /// No valid one, and why.
    Bad {
        /// In words for people.
        why: String,
    },
}

/// What the places for superblocks on a device hold.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// The newest valid copy.
    pub newest: Superblock,
    /// The member that the device is.
    pub member_uuid: [u8; 16],
    /// Byte offset and state of each of the three copies of this member.
    pub copies: Vec<(u64, CopyState)>,
}

/// One place, as read.
enum Found {
    Valid(Box<Superblock>, [u8; 16]),
    /// The magic is there, or the place cannot be read: there was a copy once.
    Damaged(String),
    Nothing,
}

/// Reads every place for a superblock of a device.
///
/// # Errors
/// [`ProbeError::NotMember`] when there is no valid copy; others when the device holds a format this
/// program does not know.
pub async fn inspect(device: &dyn DeviceQueue) -> std::result::Result<Inspection, ProbeError> {
    let device_bytes = device.refresh_size().map_err(StoreError::from)?;
    let mut places = Vec::new();
    for offset in self::places(device_bytes) {
        places.push((offset, look(device, offset).await?));
    }
    // Of a device that is larger than the member the first two copies tell where the third is.
    for offset in told_places(&places) {
        if offset + SUPERBLOCK_BYTES as u64 <= device_bytes {
            places.push((offset, look(device, offset).await?));
        }
    }
    let Some((newest, member_uuid)) = newest_of(&places) else {
        let device = device.info().name.clone();
        return Err(ProbeError::NotMember { device, why: no_copy(&places) });
    };
    let size_bytes = own_size(newest, member_uuid).unwrap_or(device_bytes);
    let state =
        |offset: u64| match places.iter().find(|(at, _)| *at == offset).map(|place| &place.1) {
            Some(Found::Valid(superblock, uuid))
                if (&**superblock, *uuid) == (newest, member_uuid) =>
            {
                CopyState::Good
            }
            Some(Found::Valid(superblock, _)) => CopyState::Old { sequence: superblock.sequence },
            Some(Found::Damaged(why)) => CopyState::Bad { why: why.clone() },
            Some(Found::Nothing) => CopyState::Bad { why: "no superblock is there".to_owned() },
            None => CopyState::Bad { why: "the device ends before it".to_owned() },
        };
    let copies = Superblock::copy_offsets(size_bytes).map(|offset| (offset, state(offset)));
    Ok(Inspection { newest: newest.clone(), member_uuid, copies: copies.to_vec() })
}

/// Reads the newest valid superblock of a device and the UUID of the member that the device is.
///
/// # Errors
/// As [`inspect`].
pub async fn probe(
    device: &dyn DeviceQueue,
) -> std::result::Result<(Superblock, [u8; 16]), ProbeError> {
    inspect(device).await.map(|found| (found.newest, found.member_uuid))
}

/// The newest copy of the member of which the first valid copy is: the end of a device that grew may
/// hold one of a former use.
fn newest_of(places: &[(u64, Found)]) -> Option<(&Superblock, [u8; 16])> {
    let mut newest: Option<(&Superblock, [u8; 16])> = None;
    for (_, found) in places {
        let Found::Valid(superblock, uuid) = found else { continue };
        if newest.is_none_or(|(old, member)| {
            (old.pool_uuid, member) == (superblock.pool_uuid, *uuid)
                && old.sequence < superblock.sequence
        }) {
            newest = Some((superblock, *uuid));
        }
    }
    newest
}

/// Size in bytes of the member itself, by its own copy.
fn own_size(superblock: &Superblock, member_uuid: [u8; 16]) -> Option<u64> {
    let member = superblock.members.iter().find(|member| member.uuid == member_uuid);
    member.map(|member| member.size_bytes)
}

/// Where the valid copies say that a copy lies and nobody looked yet.
fn told_places(places: &[(u64, Found)]) -> Vec<u64> {
    let mut told = Vec::new();
    for (_, found) in places {
        if let Found::Valid(superblock, uuid) = found
            && let Some(size_bytes) = own_size(superblock, *uuid)
        {
            let known = |offset: &u64| places.iter().any(|(at, _)| at == offset);
            for offset in Superblock::copy_offsets(size_bytes) {
                if !known(&offset) && !told.contains(&offset) {
                    told.push(offset);
                }
            }
        }
    }
    told
}

async fn look(device: &dyn DeviceQueue, offset: u64) -> Result<Found> {
    let bytes = match device.read(offset, Buffer::try_new(SUPERBLOCK_BYTES)?).await {
        Ok(bytes) => bytes,
        Err(error) => return Ok(Found::Damaged(error.to_string())),
    };
    match Superblock::decode(&bytes, offset) {
        Ok((superblock, uuid)) => Ok(Found::Valid(Box::new(superblock), uuid)),
        Err(error @ StoreError::Unsupported { .. }) => Err(error),
        Err(StoreError::Corrupt { why, .. }) if Superblock::has_magic(&bytes) => {
            Ok(Found::Damaged(why))
        }
        Err(_) => Ok(Found::Nothing),
    }
}

/// Words for a device without a valid copy.
fn no_copy(places: &[(u64, Found)]) -> String {
    let damaged: Vec<String> = places
        .iter()
        .filter_map(|(offset, found)| match found {
            Found::Damaged(why) => Some(format!("at byte {offset}: {why}")),
            Found::Valid(..) | Found::Nothing => None,
        })
        .collect();
    if places.is_empty() {
        "it is too small".to_owned()
    } else if damaged.is_empty() {
        "no superblock is there".to_owned()
    } else {
        format!(
            "every copy of its superblock is damaged or gone ({}); nothing was changed: restore the \
             first {} KiB from a copy of the device",
            damaged.join("; "),
            3 * SUPERBLOCK_BYTES / 1024
        )
    }
}

/// Every place where a copy may lie. The last copy lies at the end of the part in use, which only a
/// valid copy tells: a device is used in whole buckets, so each bucket size gives one place.
fn places(size_bytes: u64) -> Vec<u64> {
    let copy = SUPERBLOCK_BYTES as u64;
    let mut offsets = vec![copy, 2 * copy];
    for bucket_log2 in 16..=26 {
        let last = (size_bytes >> bucket_log2 << bucket_log2).saturating_sub(copy);
        if !offsets.contains(&last) {
            offsets.push(last);
        }
    }
    offsets.retain(|offset| *offset > 0 && offset + copy <= size_bytes);
    offsets
}

/// Makes every copy on a device unreadable, durably: before it becomes a member anew.
///
/// # Errors
/// When the device fails.
pub async fn erase(device: &dyn DeviceQueue) -> Result<()> {
    let zeroes = Buffer::try_new(SUPERBLOCK_BYTES)?.freeze();
    for offset in places(device.refresh_size()?) {
        device.write(offset, IoVec::from_iter([zeroes.clone()]), false).await?;
    }
    Ok(device.flush().await?)
}

/// Writes all copies of `superblock` to member `index`, each durable before the next is touched.
///
/// # Errors
/// When the device fails.
pub async fn write(device: &dyn DeviceQueue, superblock: &Superblock, index: u8) -> Result<()> {
    superblock.validate()?;
    let size_bytes = superblock.members[usize::from(index)].size_bytes;
    for offset in Superblock::copy_offsets(size_bytes) {
        write_copy(device, superblock, index, offset).await?;
    }
    Ok(())
}

async fn write_copy(
    device: &dyn DeviceQueue,
    superblock: &Superblock,
    index: u8,
    offset: u64,
) -> Result<()> {
    let copy = Buffer::try_copy_of(&superblock.encode(index, offset))?;
    device.write(offset, IoVec::from_iter([copy.freeze()]), false).await?;
    Ok(device.flush().await?)
}

/// The valid copy at `offset` and the UUID of the member it was written for, if one is there.
///
/// # Errors
/// As [`inspect`].
pub(crate) async fn copy_at(
    device: &dyn DeviceQueue,
    offset: u64,
) -> Result<Option<(Superblock, [u8; 16])>> {
    match look(device, offset).await? {
        Found::Valid(superblock, member_uuid) => Ok(Some((*superblock, member_uuid))),
        Found::Damaged(_) | Found::Nothing => Ok(None),
    }
}

/// Writes `superblock` over the copies of member `index` that are not the newest, and looks at each
/// again. Gives a line for each: what it was, and what was done. The good copies are not touched, so
/// there is no moment without one.
pub async fn repair(
    device: &dyn DeviceQueue,
    superblock: &Superblock,
    index: u8,
    copies: &[(u64, CopyState)],
) -> Vec<String> {
    let name = &device.info().name;
    let mut lines = Vec::new();
    for (offset, state) in copies {
        let what = match state {
            CopyState::Good => continue,
            CopyState::Old { sequence } => format!("is old (number {sequence})"),
            CopyState::Bad { why } => format!("is bad: {why}"),
        };
        let done = match write_copy(device, superblock, index, *offset).await {
            Ok(()) => match look(device, *offset).await {
                Ok(Found::Valid(again, _)) if *again == *superblock => {
                    "it was written anew from another copy".to_owned()
                }
                _ => "it does not keep what is written: replace the device".to_owned(),
            },
            Err(error) => format!("it cannot be written: {error}"),
        };
        lines.push(format!("{name}: the superblock copy at byte {offset} {what}; {done}"));
    }
    lines
}
