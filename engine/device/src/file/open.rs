//! Opening and creating: every reason to refuse is found here, before the device is used.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::Errno;

use super::probe::{self, BLOCK_BYTES_MIN};
use super::ring::Ring;
use super::{FileDevice, Shared};
use crate::{DeviceError, DeviceInfo};

/// Largest block size in bytes: the alignment of our buffers.
const BLOCK_BYTES_MAX: u32 = engine_memory::ALIGNMENT as u32;

/// Block size in bytes of a file unless said otherwise, if its size allows.
const FILE_BLOCK_BYTES: u32 = 4096;

/// Largest transfer in bytes that is announced; the kernel cuts it to what the disk takes.
const TRANSFER_BYTES_MAX: u32 = 1 << 20;

/// Whether to go around the page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirectIo {
    /// Where the file system can; see [`FileDevice::buffered_because`].
    #[default]
    Auto,
    /// Refuse to open where it cannot.
    Require,
    /// Never.
    Off,
}

/// What is discarded, of what can be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Discard {
    /// Block devices. A file gives the space back, and what is written there later has to be allocated anew: its
    /// file system journals that at the next flush, and scatters the file.
    #[default]
    Auto,
    /// Files, too: their holes are other files' space.
    Always,
    /// Nothing.
    Never,
}

impl Discard {
    fn wanted(self, is_block: bool) -> bool {
        match self {
            Self::Auto => is_block,
            Self::Always => true,
            Self::Never => false,
        }
    }
}

/// Whether a new file's space is allocated at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// All of it, so that no write fails for want of space.
    Full,
    /// As it is written.
    Sparse,
}

/// How to open a file or block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// Refuse writes.
    pub read_only: bool,
    /// Refuse to open what is in use, and keep others who ask the same out. Read-only users of a
    /// file share it.
    pub exclusive: bool,
    /// Around the page cache.
    pub direct: DirectIo,
    /// Unit in bytes of offsets and lengths: a power of two from 512 to 4096 and at least what the
    /// device asks for. `None`: the logical block of a block device, 4096 for a file.
    pub block_size: Option<u32>,
    /// Whether discards are offered, where they can be had.
    pub discard: Discard,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            exclusive: true,
            direct: DirectIo::Auto,
            block_size: None,
            discard: Discard::Auto,
        }
    }
}

impl FileDevice {
    /// Opens a regular file or a block device.
    ///
    /// # Errors
    /// [`DeviceError::Open`] with the reason and a remedy: missing, of the wrong type, empty, not a
    /// multiple of the block size, in use, not permitted, or io_uring is not to be had.
    pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self, DeviceError> {
        let path = path.as_ref();
        open(path, options).map_err(|cause| refusal(path, cause))
    }

    /// Makes a new file of `size_bytes`, a multiple of 4096, for [`FileDevice::open`]. It survives a
    /// power loss when this returns.
    ///
    /// # Errors
    /// [`DeviceError::Open`] when it exists already, there is no room, or the file system cannot
    /// allocate ahead. A file that could not be made whole is removed.
    pub fn create(
        path: impl AsRef<Path>,
        size_bytes: u64,
        allocation: Allocation,
    ) -> Result<(), DeviceError> {
        let path = path.as_ref();
        create(path, size_bytes, allocation).map_err(|cause| refusal(path, cause))
    }
}

fn refusal(path: &Path, cause: String) -> DeviceError {
    DeviceError::Open { path: path.display().to_string(), cause }
}

/// Why a ring could not be had, in words that help.
pub(super) fn ring_error(path: &str, error: &io::Error) -> DeviceError {
    DeviceError::Open { path: path.to_owned(), cause: ring_cause(error) }
}

fn ring_cause(error: &io::Error) -> String {
    let forbidden = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
        .is_ok_and(|value| value.trim() != "0");
    match error.raw_os_error() {
        Some(libc::EPERM) if forbidden => {
            "io_uring is forbidden by the sysctl kernel.io_uring_disabled; set it to 0, or to 1 with \
             this user in kernel.io_uring_group"
                .to_owned()
        }
        Some(libc::EPERM | libc::EACCES) => {
            "io_uring is forbidden, most likely by a seccomp filter (container runtimes have one) or \
             a security module; allow io_uring_setup, io_uring_enter and io_uring_register"
                .to_owned()
        }
        Some(libc::ENOSYS) => "this kernel has no io_uring, or a seccomp filter hides it".to_owned(),
        Some(libc::ENOMEM) => {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
            let limit = limit.map_or("unlimited".to_owned(), |bytes| format!("{bytes} bytes"));
            format!(
                "no memory for an io_uring; the limit of locked memory (RLIMIT_MEMLOCK, ulimit -l, \
                 LimitMEMLOCK=) is {limit}"
            )
        }
        Some(libc::EMFILE | libc::ENFILE) => {
            "too many open files; raise the limit (ulimit -n, LimitNOFILE=)".to_owned()
        }
        _ => format!("cannot set up io_uring: {error}"),
    }
}

fn open(path: &Path, options: &OpenOptions) -> Result<FileDevice, String> {
    let is_block = is_block_device(&std::fs::metadata(path).map_err(|error| open_cause(&error))?)?;
    let (file, direct_refused) = open_file(path, options, is_block)?;
    // What was looked at above may have been replaced meanwhile.
    let metadata = file.metadata().map_err(|error| open_cause(&error))?;
    if is_block_device(&metadata)? != is_block {
        return Err("it was replaced while being opened".to_owned());
    }
    if options.exclusive {
        lock(&file, options.read_only)?;
    }
    let facts = if is_block {
        let facts = probe::block_facts(&file);
        Some(facts.map_err(|error| format!("cannot read its geometry: {error}"))?)
    } else {
        None
    };
    let logical = facts.as_ref().map_or(BLOCK_BYTES_MIN, |facts| facts.logical_block);
    let direct = match direct_refused {
        Some(reason) => Err(reason),
        None => probe::direct_alignment(&file, is_block, logical),
    };
    if let Err(reason) = &direct {
        if options.direct == DirectIo::Require {
            return Err(format!("direct I/O is not possible: {reason}"));
        }
        set_buffered(&file)?;
    }
    let size_bytes = probe::size_bytes(&file).map_err(|error| format!("its size: {error}"))?;
    let least = direct.as_ref().map_or(BLOCK_BYTES_MIN, |unit| unit.length).max(logical);
    let block_size = choose_block_size(options.block_size, is_block, least)?;
    check_size(size_bytes, block_size, is_block)?;
    // Whether io_uring can be had at all is found out now, and not when the first core starts.
    drop(Ring::new(file.as_fd(), 1).map_err(|error| ring_cause(&error))?);

    let writable = !options.read_only;
    let punch = writable
        && match &facts {
            Some(facts) => facts.discard,
            None => probe::can_punch(&file, size_bytes, block_size),
        };
    let info = DeviceInfo {
        name: path.display().to_string(),
        size_bytes,
        block_size,
        // A file may lie on anything: only its own unit is promised.
        atomic_write_bytes: facts
            .as_ref()
            .map_or(block_size, |facts| facts.physical_block.max(block_size)),
        volatile_write_cache: facts.as_ref().is_none_or(|facts| facts.volatile_write_cache),
        discard: punch && options.discard.wanted(is_block),
        write_zeroes: writable && facts.as_ref().map_or(punch, |facts| facts.write_zeroes),
        max_transfer_bytes: TRANSFER_BYTES_MAX,
    };
    Ok(FileDevice {
        shared: Arc::new(Shared {
            file,
            size_bytes: AtomicU64::new(info.size_bytes),
            info,
            read_only: options.read_only,
            buffered_because: direct.as_ref().err().cloned(),
            direct: direct.ok(),
            zero_by_punch: AtomicBool::new(false),
            flush_failed: AtomicBool::new(false),
        }),
    })
}

/// Opens with O_DIRECT if wanted and possible; the second part says why not.
fn open_file(
    path: &Path,
    options: &OpenOptions,
    is_block: bool,
) -> Result<(File, Option<String>), String> {
    // For block devices O_EXCL keeps file systems, other users with O_EXCL and md/dm out (open(2)).
    let exclusive = if is_block && options.exclusive { libc::O_EXCL } else { 0 };
    let attempt = |flags| {
        std::fs::OpenOptions::new()
            .read(true)
            .write(!options.read_only)
            .custom_flags(flags | exclusive)
            .open(path)
    };
    if options.direct == DirectIo::Off {
        let file = attempt(0).map_err(|error| open_cause(&error))?;
        return Ok((file, Some("it was asked for".to_owned())));
    }
    match attempt(libc::O_DIRECT) {
        Ok(file) => Ok((file, None)),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let file = attempt(0).map_err(|error| open_cause(&error))?;
            Ok((file, Some("the file system has no direct I/O".to_owned())))
        }
        Err(error) => Err(open_cause(&error)),
    }
}

fn set_buffered(file: &File) -> Result<(), String> {
    let flags = rustix::fs::fcntl_getfl(file).map_err(|error| error.to_string())?;
    rustix::fs::fcntl_setfl(file, flags - OFlags::DIRECT).map_err(|error| error.to_string())
}

fn is_block_device(metadata: &std::fs::Metadata) -> Result<bool, String> {
    let kind = metadata.file_type();
    let wrong = |what| Err(format!("it is {what}; a regular file or a block device is needed"));
    if kind.is_block_device() {
        Ok(true)
    } else if kind.is_file() {
        Ok(false)
    } else if kind.is_dir() {
        wrong("a directory")
    } else if kind.is_char_device() {
        wrong("a character device")
    } else {
        wrong("a pipe or socket")
    }
}

fn open_cause(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "there is no such file or device".to_owned(),
        Some(libc::EACCES | libc::EPERM) => {
            format!(
                "no permission ({error}); check its owner and mode and those of its directories"
            )
        }
        Some(libc::EBUSY) => {
            "it is in use: mounted, part of another device, or open in another process".to_owned()
        }
        Some(libc::EROFS) => "it is read-only; open it read-only".to_owned(),
        Some(libc::ENXIO | libc::ENODEV | libc::ENOMEDIUM) => {
            format!("there is no device behind it ({error})")
        }
        _ => error.to_string(),
    }
}

fn lock(file: &File, read_only: bool) -> Result<(), String> {
    let operation = if read_only {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    match rustix::fs::flock(file, operation) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => {
            Err("it is in use: this or another process has it open (flock)".to_owned())
        }
        Err(error) => Err(format!("cannot lock it: {error}")),
    }
}

fn choose_block_size(asked: Option<u32>, is_block: bool, least: u32) -> Result<u32, String> {
    if least > BLOCK_BYTES_MAX {
        return Err(format!("its blocks of {least} bytes are larger than {BLOCK_BYTES_MAX}"));
    }
    let usual = if is_block { least } else { FILE_BLOCK_BYTES };
    let block_size = asked.unwrap_or(usual);
    let valid = (BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block_size);
    if !valid || !block_size.is_power_of_two() {
        return Err(format!("a block size of {block_size} is not a power of two from 512 to 4096"));
    }
    if block_size < least {
        return Err(format!(
            "a block size of {block_size} is less than its blocks of {least} bytes"
        ));
    }
    Ok(block_size)
}

fn check_size(size_bytes: u64, block_size: u32, is_block: bool) -> Result<(), String> {
    if size_bytes == 0 {
        let remedy = if is_block { "has it a medium?" } else { "give it a size first" };
        return Err(format!("its size is 0; {remedy}"));
    }
    if !size_bytes.is_multiple_of(u64::from(block_size)) {
        return Err(format!("its size of {size_bytes} bytes is not a multiple of {block_size}"));
    }
    Ok(())
}

fn create(path: &Path, size_bytes: u64, allocation: Allocation) -> Result<(), String> {
    check_size(size_bytes, FILE_BLOCK_BYTES, false)?;
    let file = std::fs::OpenOptions::new().read(true).write(true).create_new(true).open(path);
    let file = match file {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err("it exists already".to_owned());
        }
        result => result.map_err(|error| open_cause(&error))?,
    };
    let filled = fill(&file, size_bytes, allocation).and_then(|()| {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let synced = file.sync_all().and_then(|()| File::open(directory)?.sync_all());
        synced.map_err(|error| format!("cannot make it durable: {error}"))
    });
    if filled.is_err() {
        // It is ours and useless; if it cannot be removed, the error to tell is the first one.
        let _ = std::fs::remove_file(path);
    }
    filled
}

fn fill(file: &File, size_bytes: u64, allocation: Allocation) -> Result<(), String> {
    if allocation == Allocation::Sparse {
        return file.set_len(size_bytes).map_err(|error| format!("cannot set its size: {error}"));
    }
    loop {
        return match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size_bytes) {
            Ok(()) => Ok(()),
            Err(Errno::INTR) => continue,
            Err(Errno::NOSPC | Errno::FBIG) => Err(format!(
                "no room for {size_bytes} bytes in the file system, or too large for it"
            )),
            Err(Errno::OPNOTSUPP) => {
                Err("the file system cannot allocate ahead; make it sparse".to_owned())
            }
            Err(error) => Err(format!("cannot allocate it: {error}")),
        };
    }
}
