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
use nvme_target::{Backend, BackendError, IoOutput, IoRequest, IoResult, Namespace, VolumeKey};

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
            result.map_err(|error| {
                let cause = cause(&error, write);
                log(&volume, &error, cause);
                cause
            })
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
    }
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
