//! A backend whose volumes are pieces of memory, with switches for what a test wants to happen.

use crate::backend::{
    Backend, BackendError, ByteRange, IoOutput, IoRequest, IoResult, Namespace, VolumeKey,
};
use engine_memory::Buffer;
use smallvec::SmallVec;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// A volume in memory, shared by all cores.
#[derive(Clone, Debug, Default)]
pub struct MemoryVolume {
    state: Arc<Mutex<VolumeState>>,
}

#[derive(Debug, Default)]
struct VolumeState {
    bytes: Vec<u8>,
    /// Operations wait until they are let go.
    held: bool,
    waiting: VecDeque<Waker>,
    /// The next operations fail so.
    failures: VecDeque<BackendError>,
    flushes: u64,
    deallocated: Vec<ByteRange>,
}

impl MemoryVolume {
    /// A volume of `len` zero bytes.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let volume = Self::default();
        volume.state().bytes = vec![0; len];
        volume
    }

    fn state(&self) -> MutexGuard<'_, VolumeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes `offset .. offset + len`.
    #[must_use]
    pub fn bytes(&self, offset: usize, len: usize) -> Vec<u8> {
        self.state().bytes[offset..offset + len].to_vec()
    }

    /// Grows or shrinks the volume.
    pub fn resize(&self, len: usize) {
        self.state().bytes.resize(len, 0);
    }

    /// Makes operations wait (or lets them go on).
    pub fn hold(&self, held: bool) {
        let waiting = {
            let mut state = self.state();
            state.held = held;
            if held { VecDeque::new() } else { std::mem::take(&mut state.waiting) }
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Lets the next operation fail.
    pub fn fail_next(&self, error: BackendError) {
        self.state().failures.push_back(error);
    }

    /// Flushes so far.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.state().flushes
    }

    /// Ranges that were deallocated.
    #[must_use]
    pub fn deallocated(&self) -> Vec<ByteRange> {
        self.state().deallocated.clone()
    }

    fn perform(&self, request: &IoRequest) -> IoResult {
        let mut state = self.state();
        if let Some(error) = state.failures.pop_front() {
            return Err(error);
        }
        let len = state.bytes.len() as u64;
        let within = |offset: u64, bytes: u64| {
            let end = offset.checked_add(bytes).filter(|&end| end <= len);
            end.map(|end| offset as usize..end as usize).ok_or(BackendError::OutOfRange)
        };
        match request {
            IoRequest::Read { offset, len } => {
                let range = within(*offset, u64::from(*len))?;
                let buffer = Buffer::try_copy_of(&state.bytes[range]);
                let slice = buffer.map_err(|_| BackendError::Busy)?.freeze();
                // Two parts, as an engine that reads two extents would return them.
                let middle = slice.len() / 2;
                let parts = [slice.slice(0..middle), slice.slice(middle..slice.len())];
                Ok(IoOutput::Data(SmallVec::from_iter(parts)))
            }
            IoRequest::Write { offset, data, .. } => {
                let range = within(*offset, data.len() as u64)?;
                state.bytes[range].copy_from_slice(data);
                Ok(IoOutput::Done)
            }
            IoRequest::Flush => {
                state.flushes += 1;
                Ok(IoOutput::Done)
            }
            IoRequest::Deallocate { ranges } => {
                for range in ranges {
                    let bytes = within(range.offset, range.len)?;
                    state.bytes[bytes].fill(0);
                    state.deallocated.push(*range);
                }
                Ok(IoOutput::Done)
            }
            IoRequest::WriteZeroes { range, .. } => {
                let bytes = within(range.offset, range.len)?;
                state.bytes[bytes].fill(0);
                Ok(IoOutput::Done)
            }
            IoRequest::Copy { sources, offset, .. } => {
                let mut to = *offset;
                for (copied, source) in (0..).zip(sources) {
                    let ends = (within(source.offset, source.len), within(to, source.len));
                    let (Ok(from), Ok(into)) = ends else {
                        return Ok(IoOutput::Stopped { copied, cause: BackendError::OutOfRange });
                    };
                    state.bytes.copy_within(from, into.start);
                    to += source.len;
                }
                Ok(IoOutput::Done)
            }
        }
    }
}

/// An operation on a [`MemoryVolume`].
#[derive(Debug)]
pub struct MemoryOperation {
    volume: MemoryVolume,
    request: IoRequest,
}

impl Future for MemoryOperation {
    type Output = IoResult;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<IoResult> {
        {
            let mut state = self.volume.state();
            if state.held {
                state.waiting.push_back(context.waker().clone());
                return Poll::Pending;
            }
        }
        Poll::Ready(self.volume.perform(&self.request))
    }
}

impl Namespace for MemoryVolume {
    type Future = MemoryOperation;

    fn submit(&self, request: IoRequest) -> MemoryOperation {
        MemoryOperation { volume: self.clone(), request }
    }

    fn used_bytes(&self) -> Option<u64> {
        Some(self.state().bytes.iter().filter(|&&byte| byte != 0).count() as u64)
    }
}

/// Volumes by key. Clones, also those of other threads, name the same volumes.
#[derive(Clone, Debug, Default)]
pub struct MemoryBackend {
    volumes: Arc<Mutex<BTreeMap<VolumeKey, MemoryVolume>>>,
}

impl MemoryBackend {
    /// Adds a volume of `len` zero bytes.
    pub fn add(&self, key: VolumeKey, len: usize) -> MemoryVolume {
        let volume = MemoryVolume::new(len);
        let mut volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        volumes.insert(key, volume.clone());
        volume
    }
}

impl Backend for MemoryBackend {
    type Namespace = MemoryVolume;

    fn open(&self, volume: VolumeKey) -> Result<MemoryVolume, BackendError> {
        let volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        volumes.get(&volume).cloned().ok_or(BackendError::Gone)
    }
}
