//! Finding and writing superblocks.

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

/// Reads the newest valid superblock of a device and the UUID of the member that the device is.
///
/// # Errors
/// [`ProbeError::NotMember`] when there is none; others when the device fails or holds a format this
/// program does not know.
pub async fn probe(
    device: &dyn DeviceQueue,
) -> std::result::Result<(Superblock, [u8; 16]), ProbeError> {
    let info = device.info();
    let mut newest: Option<(Superblock, [u8; 16])> = None;
    let mut reasons = Vec::new();
    let mut consider = |found: Result<(Superblock, [u8; 16])>| match found {
        Ok(found) if newest.as_ref().is_none_or(|(old, _)| old.sequence < found.0.sequence) => {
            newest = Some(found);
            Ok(())
        }
        Ok(_) => Ok(()),
        Err(error @ (StoreError::Unsupported { .. } | StoreError::Device(_))) => Err(error),
        Err(error) => {
            reasons.push(error.to_string());
            Ok(())
        }
    };
    for offset in places(info.size_bytes) {
        let buffer = Buffer::try_new(SUPERBLOCK_BYTES).map_err(StoreError::from)?;
        let found = match device.read(offset, buffer).await {
            Ok(bytes) => Superblock::decode(&bytes, offset),
            Err(error) => Err(StoreError::corrupt("superblock", error.to_string())),
        };
        consider(found)?;
    }
    reasons.dedup();
    newest.ok_or_else(|| ProbeError::NotMember {
        device: info.name.clone(),
        why: reasons.into_iter().next().unwrap_or_else(|| "too small".to_owned()),
    })
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
    for offset in places(device.info().size_bytes) {
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
        let copy = Buffer::try_copy_of(&superblock.encode(index, offset))?;
        device.write(offset, IoVec::from_iter([copy.freeze()]), false).await?;
        device.flush().await?;
    }
    Ok(())
}
