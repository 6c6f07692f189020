//! What the system tells about a file or block device: geometry, caches, what it can do.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FallocateFlags, StatxFlags};
use rustix::io::Errno;

use super::Alignment;

/// `f_type` of file systems that live in memory (linux/magic.h): they accept O_DIRECT and ignore it.
const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;

/// Smallest block in bytes: the sector of Linux's block layer.
pub(super) const BLOCK_BYTES_MIN: u32 = 512;

/// Facts about a block device.
pub(super) struct BlockFacts {
    pub(super) logical_block: u32,
    pub(super) physical_block: u32,
    pub(super) volatile_write_cache: bool,
    /// Whether the device drops and zeroes ranges without the zeroes being sent.
    pub(super) write_zeroes: bool,
    pub(super) discard: bool,
}

/// Size in bytes of a file or block device.
pub(super) fn size_bytes(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

pub(super) fn block_facts(file: &File) -> io::Result<BlockFacts> {
    let logical_block = rustix::fs::ioctl_blksszget(file)?;
    let physical_block = rustix::fs::ioctl_blkpbszget(file)?;
    let queue = SysfsQueue::of(file.metadata()?.rdev());
    let discard = queue.number("discard_max_bytes") > 0;
    let write_zeroes = queue.number("write_zeroes_max_bytes") > 0;
    Ok(BlockFacts {
        logical_block,
        physical_block: physical_block.max(logical_block),
        // Unknown counts as volatile: the safe side.
        volatile_write_cache: queue.text("write_cache").is_none_or(|mode| mode != "write through"),
        write_zeroes,
        // A hole is punched with the device's write zeroes command (blkdev_fallocate in Linux), so
        // discard without that cannot be asked for.
        discard: discard && write_zeroes,
    })
}

/// The queue directory in sysfs of a block device or of the disk it is a partition of.
struct SysfsQueue(Vec<PathBuf>);

impl SysfsQueue {
    fn of(device: u64) -> Self {
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let base = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        Self(vec![base.join("queue"), base.join("../queue")])
    }

    fn text(&self, name: &str) -> Option<String> {
        let text = self.0.iter().find_map(|queue| std::fs::read_to_string(queue.join(name)).ok());
        text.map(|text| text.trim().to_owned())
    }

    fn number(&self, name: &str) -> u64 {
        self.text(name).and_then(|text| text.parse().ok()).unwrap_or(0)
    }
}

/// Units of direct I/O of a file opened with O_DIRECT, or why there is none.
pub(super) fn direct_alignment(
    file: &File,
    is_block: bool,
    logical_block: u32,
) -> Result<Alignment, String> {
    // The node of a block device may lie in a file system in memory (devtmpfs): that says nothing.
    if !is_block && let Ok(status) = rustix::fs::fstatfs(file) {
        // The type of f_type differs between architectures; the magic numbers have 32 bits.
        let kind = status.f_type as u64 & 0xffff_ffff;
        if kind == TMPFS_MAGIC || kind == RAMFS_MAGIC {
            return Err("the file system keeps its files in memory".to_owned());
        }
    }
    let fallback = Alignment { memory: logical_block, length: logical_block };
    let Ok(status) = rustix::fs::statx(file.as_fd(), "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
    else {
        return Ok(fallback);
    };
    if status.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        // Before Linux 6.1, or a file system that does not tell: O_DIRECT was accepted, and the
        // logical block is what open(2) asks for.
        return Ok(fallback);
    }
    match (status.stx_dio_mem_align, status.stx_dio_offset_align) {
        (0, _) | (_, 0) => Err("the file system has no direct I/O for this file".to_owned()),
        (memory, length) => Ok(Alignment { memory, length }),
    }
}

/// Whether holes can be punched into a regular file. Asks for one past its end, where nothing is.
pub(super) fn can_punch(file: &File, size_bytes: u64, block_size: u32) -> bool {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    loop {
        match rustix::fs::fallocate(file, flags, size_bytes, u64::from(block_size)) {
            Err(Errno::INTR) => {}
            result => return result.is_ok(),
        }
    }
}
