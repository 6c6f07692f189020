//! The engine as the storage of the NVMe/TCP target: one [`EngineBackend`] per core.
//!
//! Only translation: which volume a key names, requests to calls of the client, causes to causes.

use std::rc::Rc;
use std::sync::Arc;

use engine_base::runtime::LocalBoxFuture;
use engine_memory::Slice;
use engine_store::api::{Data, Link};
use engine_store::client::{Client, VolumeRef};
use engine_store::{Result, StoreError};
use nvme_target::{
    Backend, BackendError, ByteRange, IoOutput, IoRequest, IoResult, Namespace, VolumeKey,
};

use crate::exports::Volumes;

/// The engine as one core reaches it.
pub(crate) struct EngineBackend<L> {
    client: Rc<Client<L>>,
    volumes: Arc<Volumes>,
}

/// A volume, opened on one core.
pub(crate) struct EngineNamespace<L> {
    client: Rc<Client<L>>,
    volume: Rc<VolumeRef>,
}

impl<L: Link + 'static> EngineBackend<L> {
    /// Storage over `link` for the volumes in `volumes`.
    pub(crate) fn new(link: L, volumes: Arc<Volumes>) -> Self {
        Self { client: Rc::new(Client::new(link)), volumes }
    }
}

impl<L: Link + 'static> Backend for EngineBackend<L> {
    type Namespace = EngineNamespace<L>;

    fn open(&self, volume: VolumeKey) -> std::result::Result<Self::Namespace, BackendError> {
        let volume = self.volumes.get(volume).ok_or(BackendError::Gone)?;
        Ok(EngineNamespace { client: Rc::clone(&self.client), volume: Rc::new(volume) })
    }
}

impl<L: Link + 'static> Namespace for EngineNamespace<L> {
    type Future = LocalBoxFuture<'static, IoResult>;

    fn submit(&self, request: IoRequest) -> Self::Future {
        let (client, volume) = (Rc::clone(&self.client), Rc::clone(&self.volume));
        Box::pin(async move {
            let write = !matches!(request, IoRequest::Read { .. });
            let result = perform(&client, &volume, request).await;
            result.map_err(|error| refused(&volume, &error, write))
        })
    }
}

async fn perform<L: Link>(
    client: &Client<L>,
    volume: &VolumeRef,
    request: IoRequest,
) -> Result<IoOutput> {
    match request {
        IoRequest::Read { offset, len } => {
            client.volume_read(volume, offset, u64::from(len)).await.map(IoOutput::Data)
        }
        IoRequest::Write { offset, data, fua } => {
            let data: Data = std::iter::once::<Slice>(data).collect();
            client.volume_write(volume, offset, data, fua).await.map(|()| IoOutput::Done)
        }
        IoRequest::Flush => client.volume_flush(volume).await.map(|()| IoOutput::Done),
        IoRequest::Deallocate { ranges } => {
            for range in ranges {
                client.volume_discard(volume, range.offset, range.len).await?;
            }
            Ok(IoOutput::Done)
        }
        // A discarded range reads as zeroes, so this is the same with or without `deallocate`.
        IoRequest::WriteZeroes { range, deallocate: _, fua } => {
            client.volume_discard(volume, range.offset, range.len).await?;
            if fua {
                client.volume_flush(volume).await?;
            }
            Ok(IoOutput::Done)
        }
        IoRequest::Copy { sources, offset, fua } => {
            let end = copy(client, volume, &sources, offset).await;
            if fua && matches!(end, IoOutput::Done) {
                client.volume_flush(volume).await?;
            }
            Ok(end)
        }
    }
}

/// Copies the sources in their order, one behind the other, up to the first that fails.
async fn copy<L: Link>(
    client: &Client<L>,
    volume: &VolumeRef,
    sources: &[ByteRange],
    offset: u64,
) -> IoOutput {
    let mut to = offset;
    for (copied, source) in (0..).zip(sources) {
        let done = client.volume_copy((volume, source.offset), (volume, to), source.len).await;
        if let Err(error) = done {
            // What is lost or damaged is the source; a device may have failed at either.
            let write = matches!(error, StoreError::Device(_));
            return IoOutput::Stopped { copied, cause: refused(volume, &error, write) };
        }
        to += source.len;
    }
    IoOutput::Done
}

/// What the target is told of an error, which is logged.
fn refused(volume: &VolumeRef, error: &StoreError, write: bool) -> BackendError {
    let cause = cause(error, write);
    log(volume, error, cause);
    cause
}

/// The target's cause for the engine's. `write`: the operation changes something.
fn cause(error: &StoreError, write: bool) -> BackendError {
    match error {
        StoreError::NoSpace { .. } => BackendError::NoSpace,
        StoreError::ReadOnly { .. } => BackendError::ReadOnly,
        StoreError::NotFound { .. } => BackendError::Gone,
        StoreError::Overloaded { .. }
        | StoreError::OutOfMemory { .. }
        | StoreError::Busy { .. } => BackendError::Busy,
        StoreError::ShuttingDown { .. } => BackendError::ShuttingDown,
        StoreError::Unsupported { .. } => BackendError::Unsupported,
        // The target checked the range against the size it knows, so the volume has shrunk.
        StoreError::InvalidArgument { .. } => BackendError::OutOfRange,
        StoreError::DataLoss { .. } | StoreError::Corrupt { .. } | StoreError::Device(_) => {
            if write { BackendError::Write } else { BackendError::Read }
        }
        StoreError::AlreadyExists { .. }
        | StoreError::NotEmpty { .. }
        | StoreError::NotDirectory { .. }
        | StoreError::IsDirectory { .. }
        | StoreError::CrossSubvolume
        | StoreError::TooManySymlinks { .. }
        | StoreError::TooManyLinks { .. }
        | StoreError::Restart
        | StoreError::TransactionFull(_) => BackendError::Internal,
    }
}

/// What an administrator must see goes to the log; what a host sees anyway does not.
fn log(volume: &VolumeRef, error: &StoreError, cause: BackendError) {
    let subvolume = volume.subvolume.0;
    match cause {
        BackendError::Read | BackendError::Write | BackendError::Internal => {
            tracing::error!(subvolume, %error, "NVMe command failed");
        }
        _ => tracing::debug!(subvolume, %error, "NVMe command refused"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_base::ids::CHUNK_SIZE_LOG2;
    use engine_device::MemoryDevice;
    use engine_embed::{LocalLink, LocalPool};
    use engine_memory::Buffer;
    use engine_store::pool::FormatOptions;

    const BLOCK: u64 = 4096;
    const CHUNK: u64 = 1 << CHUNK_SIZE_LOG2;
    const SIZE: u64 = 8 * CHUNK;

    /// Runs `work` on a new volume of [`SIZE`] bytes, spread over four shards.
    fn on_volume(work: impl AsyncFnOnce(EngineNamespace<LocalLink>) + 'static) {
        let device = MemoryDevice::new("memory", 512 << 20, 4096);
        let options = FormatOptions { shards: Some(4), uuid_seed: [1, 2], ..Default::default() };
        let mut pool = LocalPool::in_memory(&[device], options).unwrap();
        let ran = pool.run(async move |client, _| {
            let info = client.volume_create("v", SIZE, 4096).await.unwrap();
            let volume = Rc::new(VolumeRef::from(&info));
            work(EngineNamespace { client: Rc::new(client), volume }).await;
        });
        ran.unwrap();
    }

    async fn write(volume: &EngineNamespace<LocalLink>, offset: u64, bytes: &[u8]) {
        let data = Buffer::try_copy_of(bytes).unwrap().freeze();
        volume.submit(IoRequest::Write { offset, data, fua: false }).await.unwrap();
    }

    async fn read(volume: &EngineNamespace<LocalLink>, offset: u64, len: u64) -> Vec<u8> {
        let request = IoRequest::Read { offset, len: len as u32 };
        match volume.submit(request).await.unwrap() {
            IoOutput::Data(parts) => parts.iter().flat_map(|part| part.to_vec()).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn request(sources: &[(u64, u64)], offset: u64, fua: bool) -> IoRequest {
        let range = |&(offset, len): &(u64, u64)| ByteRange { offset, len };
        IoRequest::Copy { sources: sources.iter().map(range).collect(), offset, fua }
    }

    /// Sources of one shard and of another, over the end of a chunk, and never written.
    #[test]
    fn copies_hold_what_their_sources_do() {
        on_volume(async |volume| {
            let at = CHUNK - 8 * BLOCK;
            let data: Vec<u8> = (0..16 * BLOCK).map(|i| (i / BLOCK * 7 + i % 251) as u8).collect();
            write(&volume, at, &data).await;
            write(&volume, 4 * CHUNK + at, &[0xee; 40 * BLOCK as usize]).await;
            let sources =
                [(at, 16 * BLOCK), (3 * CHUNK, 4 * BLOCK), (CHUNK, BLOCK), (at, 2 * BLOCK)];
            let expected: Vec<u8> = [
                &data[..],
                &[0; 4 * BLOCK as usize],
                &data[8 * BLOCK as usize..9 * BLOCK as usize],
                &data[..2 * BLOCK as usize],
            ]
            .concat();
            for (to, fua) in [(4 * CHUNK + at, true), (5 * CHUNK + 4 * BLOCK, false)] {
                let output = volume.submit(request(&sources, to, fua)).await.unwrap();
                assert!(matches!(output, IoOutput::Done), "{output:?}");
                assert!(read(&volume, to, expected.len() as u64).await == expected, "to {to}");
            }
            // What is written to either later is not seen by the other.
            write(&volume, at, &[9; BLOCK as usize]).await;
            assert!(read(&volume, 4 * CHUNK + at, BLOCK).await == expected[..BLOCK as usize]);
        });
    }

    /// The target knows the size from before the volume shrank.
    #[test]
    fn a_copy_that_fails_tells_how_far_it_came() {
        on_volume(async |volume| {
            write(&volume, 0, &[5; 2 * BLOCK as usize]).await;
            let (sources, to) = ([(0, BLOCK), (BLOCK, BLOCK), (0, BLOCK)], SIZE - 2 * BLOCK);
            for fua in [false, true] {
                let output = volume.submit(request(&sources, to, fua)).await.unwrap();
                let IoOutput::Stopped { copied, cause } = output else { panic!("{output:?}") };
                assert_eq!((copied, cause), (2, BackendError::OutOfRange));
            }
            assert!(read(&volume, to, 2 * BLOCK).await == [5; 2 * BLOCK as usize]);
        });
    }
}
