//! The file device, through its queue: what everything above it is built on.

use std::path::Path;
use std::rc::Rc;

use anyhow::{Context as _, Result};
use engine_base::random::Random;
use engine_device::{
    BlockDevice as _, DeviceQueue, FileDevice, OpenOptions, Operation, completion_pair,
};
use engine_memory::{Buffer, Slice};

use crate::load::{Running, Subject};

/// Largest operation the load asks for.
const DATA_BYTES: usize = 1 << 20;

/// A queue to a file device, and data to write.
pub(crate) struct DeviceSubject {
    queue: Rc<dyn DeviceQueue>,
    data: Slice,
}

impl DeviceSubject {
    pub(crate) fn open(path: &Path, depth: u32) -> Result<Self> {
        let device = FileDevice::open(path, &OpenOptions::default())?;
        let queue = device.open_queue(depth)?;
        let mut data = Buffer::try_new(DATA_BYTES)?;
        // Not zeroes: a device below might treat those in a way of its own.
        Random::new(1).fill(&mut data);
        Ok(Self { queue, data: data.freeze() })
    }
}

impl Subject for DeviceSubject {
    fn size_bytes(&self) -> u64 {
        self.queue.info().size_bytes
    }

    fn start(&self, write: bool, offset: u64, len: u32) -> Result<Running> {
        let (done, future) = completion_pair();
        let operation = if write {
            let data = smallvec::smallvec![self.data.slice(0..len as usize)];
            Operation::Write { offset, data, fua: false }
        } else {
            Operation::Read { offset, buffer: Buffer::try_new(len as usize)? }
        };
        self.queue.submit(operation, done);
        Ok(Box::pin(async move { future.await.map(drop).context("the device failed") }))
    }

    fn flush(&self) -> Running {
        let (done, future) = completion_pair();
        self.queue.submit(Operation::Flush, done);
        Box::pin(async move { future.await.map(drop).context("the device failed") })
    }

    fn turn(&self) -> Result<()> {
        self.queue.poll();
        Ok(())
    }
}
