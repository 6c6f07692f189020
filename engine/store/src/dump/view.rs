//! The members of a pool, seen from outside.

use std::os::fd::RawFd;
use std::rc::Rc;

use engine_device::{Completion, DeviceError, DeviceInfo, DeviceQueue, Operation};

use super::shard::ShardView;
use crate::error::{Result, StoreError};
use crate::superblock::{Superblock, inspect};

/// A pool on devices that nobody here has opened.
pub struct View {
    /// By member index; absent members answer errors.
    pub(super) members: Vec<Rc<dyn DeviceQueue>>,
    /// The newest superblock found.
    pub superblock: Rc<Superblock>,
    /// What is wrong with the members, a line each.
    pub notes: Vec<String>,
}

impl View {
    /// Finds out which device is which member. One good superblock on one of them is enough.
    ///
    /// # Errors
    /// When there is none, or when devices are of several pools.
    pub async fn open(devices: &[Rc<dyn DeviceQueue>]) -> Result<Self> {
        let mut notes = Vec::new();
        let mut found = Vec::new();
        for device in devices {
            match inspect(&**device).await {
                Ok(inspection) => found.push((Rc::clone(device), inspection)),
                Err(error) => notes.push(error.to_string()),
            }
        }
        let newest = found.iter().map(|(_, it)| &it.newest).max_by_key(|it| it.sequence).cloned();
        let Some(superblock) = newest else {
            let why = format!("no device has a good superblock: {}", notes.join("; "));
            return Err(StoreError::corrupt("pool", why));
        };
        let mut members = Vec::new();
        for (index, member) in superblock.members.iter().enumerate() {
            let mut same = found.iter().filter(|(_, it)| {
                (it.newest.pool_uuid, it.member_uuid) == (superblock.pool_uuid, member.uuid)
            });
            let queue = same.next().map(|(queue, _)| Rc::clone(queue));
            if same.next().is_some() {
                notes.push(format!("member {index} is given twice; the first is used"));
            }
            members.push(queue.unwrap_or_else(|| {
                notes.push(format!("member {index} is not given, or not to be recognised"));
                Rc::new(Absent::new(index, member.size_bytes))
            }));
        }
        if found.iter().any(|(_, it)| it.newest.pool_uuid != superblock.pool_uuid) {
            return Err(StoreError::invalid("the devices are of several pools"));
        }
        Ok(Self { members, superblock: Rc::new(superblock), notes })
    }

    /// The device that is member `index`; one that is absent answers errors.
    ///
    /// # Panics
    /// When the pool has no such member.
    #[must_use]
    pub fn member(&self, index: u8) -> Rc<dyn DeviceQueue> {
        Rc::clone(&self.members[usize::from(index)])
    }

    /// Looks at a shard: reads its journal.
    ///
    /// # Errors
    /// `InvalidArgument` when there is no such shard; when not even roots are found.
    pub async fn shard(&self, shard: u16) -> Result<ShardView<'_>> {
        if shard >= self.superblock.shard_count() {
            let count = self.superblock.shard_count();
            return Err(StoreError::invalid(format!("shard {shard}: the pool has {count}")));
        }
        ShardView::open(self, shard).await
    }
}

/// A member that is not there.
struct Absent(DeviceInfo);

impl Absent {
    fn new(index: usize, size_bytes: u64) -> Self {
        Self(DeviceInfo {
            name: format!("member {index} (absent)"),
            size_bytes,
            block_size: 4096,
            atomic_write_bytes: 4096,
            volatile_write_cache: false,
            discard: false,
            write_zeroes: false,
            max_transfer_bytes: 1 << 20,
        })
    }
}

impl DeviceQueue for Absent {
    fn info(&self) -> &DeviceInfo {
        &self.0
    }

    fn refresh_size(&self) -> std::result::Result<u64, DeviceError> {
        Err(DeviceError::Gone { device: self.0.name.clone() })
    }

    fn submit(&self, _operation: Operation, done: Completion) {
        done.complete(Err(DeviceError::Gone { device: self.0.name.clone() }));
    }

    fn poll(&self) -> usize {
        0
    }

    fn in_flight(&self) -> usize {
        0
    }

    fn wake_fd(&self) -> Option<RawFd> {
        None
    }

    fn prepare_to_sleep(&self) -> bool {
        true
    }
}
