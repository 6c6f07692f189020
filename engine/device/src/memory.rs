//! A device in memory: for tests, and as the null peer in measurements. Loses nothing and keeps
//! nothing.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{BlockDevice, Completion, DeviceError, DeviceInfo, DeviceQueue, Operation, Outcome};

/// A device of bytes in memory, shared by its queues.
#[derive(Clone)]
pub struct MemoryDevice {
    info: Arc<DeviceInfo>,
    content: Arc<Mutex<Content>>,
    size_bytes: Arc<AtomicU64>,
}

struct Content {
    bytes: Vec<u8>,
    traffic: Traffic,
}

/// What was asked of a device in memory so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Reads, writes, flushes, discards and zeroings.
    pub commands: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written, without those that were zeroed.
    pub written_bytes: u64,
}

impl MemoryDevice {
    /// A zeroed device of `size_bytes`, a multiple of `block_size`. Memory is taken as blocks are
    /// first written; the size may be as much as the system lets a process reserve at once (on Linux,
    /// about the machine's memory).
    ///
    /// # Panics
    /// When the size is not a multiple. Aborts when the system refuses to reserve so much.
    #[must_use]
    pub fn new(name: &str, size_bytes: u64, block_size: u32) -> Self {
        assert!(size_bytes.is_multiple_of(u64::from(block_size)));
        let info = DeviceInfo {
            name: name.to_owned(),
            size_bytes,
            block_size,
            atomic_write_bytes: block_size,
            volatile_write_cache: false,
            discard: true,
            write_zeroes: true,
            max_transfer_bytes: 1 << 20,
        };
        let content = Content { bytes: vec![0; size_bytes as usize], traffic: Traffic::default() };
        let (content, size_bytes) =
            (Arc::new(Mutex::new(content)), Arc::new(AtomicU64::new(size_bytes)));
        Self { info: Arc::new(info), content, size_bytes }
    }

    /// Makes the device larger, by zeroes at its end; nothing when it is as large already.
    ///
    /// # Panics
    /// When the size is not a multiple of the block size.
    pub fn extend(&self, size_bytes: u64) {
        assert!(size_bytes.is_multiple_of(u64::from(self.info.block_size)));
        self.with_bytes(|bytes| {
            if bytes.len() < size_bytes as usize {
                bytes.resize(size_bytes as usize, 0);
                self.size_bytes.store(size_bytes, Ordering::Release);
            }
        });
    }

    /// The whole content, for tests that look at or change what is "on disk".
    pub fn with_bytes<T>(&self, look: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        look(&mut self.content().bytes)
    }

    /// What all queues of the device were asked for: for counting what an operation costs.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.content().traffic
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlockDevice for MemoryDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn open_queue(&self, _depth: u32) -> Result<Rc<dyn DeviceQueue>, DeviceError> {
        Ok(Rc::new(MemoryQueue { device: self.clone(), waiting: RefCell::default() }))
    }
}

struct MemoryQueue {
    device: MemoryDevice,
    waiting: RefCell<VecDeque<(Operation, Completion)>>,
}

impl MemoryQueue {
    fn execute(&self, operation: Operation) -> Outcome {
        let mut buffer_back = None;
        let mut content = self.device.content();
        let Content { bytes, traffic } = &mut *content;
        traffic.commands += 1;
        match operation {
            Operation::Read { offset, mut buffer } => {
                let start = offset as usize;
                let end = start + buffer.len();
                buffer.copy_from_slice(&bytes[start..end]);
                traffic.read_bytes += buffer.len() as u64;
                buffer_back = Some(buffer);
            }
            Operation::Write { offset, data, .. } => {
                let mut at = offset as usize;
                for piece in &data {
                    bytes[at..at + piece.len()].copy_from_slice(piece);
                    at += piece.len();
                }
                traffic.written_bytes += at as u64 - offset;
            }
            Operation::Flush => {}
            Operation::Discard { offset, len } | Operation::WriteZeroes { offset, len } => {
                zero(&mut bytes[offset as usize..(offset + len) as usize]);
            }
        }
        Ok(buffer_back)
    }
}

impl DeviceQueue for MemoryQueue {
    fn info(&self) -> &DeviceInfo {
        &self.device.info
    }

    fn refresh_size(&self) -> Result<u64, DeviceError> {
        Ok(self.device.size_bytes.load(Ordering::Acquire))
    }

    fn submit(&self, operation: Operation, done: Completion) {
        let size_bytes = self.device.size_bytes.load(Ordering::Acquire);
        match self.device.info.check_within(&operation, size_bytes) {
            Ok(()) => self.waiting.borrow_mut().push_back((operation, done)),
            Err(error) => done.complete(Err(error)),
        }
    }

    fn poll(&self) -> usize {
        let mut answered = 0;
        // What is submitted meanwhile by those who are woken is for the next poll.
        let most = self.waiting.borrow().len();
        while answered < most {
            let next = self.waiting.borrow_mut().pop_front();
            let Some((operation, done)) = next else { break };
            done.complete(self.execute(operation));
            answered += 1;
        }
        answered
    }

    fn in_flight(&self) -> usize {
        self.waiting.borrow().len()
    }

    fn wake_fd(&self) -> Option<RawFd> {
        None
    }

    fn prepare_to_sleep(&self) -> bool {
        self.waiting.borrow().is_empty()
    }
}

/// Zeroes `bytes` without touching pages that are zero already: those may have no memory yet.
fn zero(bytes: &mut [u8]) {
    const PAGE: usize = 4096;
    for page in bytes.chunks_mut(PAGE) {
        if page.iter().any(|byte| *byte != 0) {
            page.fill(0);
        }
    }
}
