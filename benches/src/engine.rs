//! The whole engine in process: a volume of a pool on the file, through shards, index, journal and
//! checksums.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context as _, Result, anyhow, bail};
use engine_base::MIB;
use engine_base::random::Random;
use engine_base::runtime::Runtime;
use engine_device::MemoryDevice;
use engine_embed::{FormatError, FormatRequest, LocalLink, LocalPool};
use engine_memory::{Buffer, Slice};
use engine_store::StoreError;
use engine_store::api::{Data, NewSnapshot, SubvolumeKind, SubvolumeOptions};
use engine_store::client::{Client, VolumeRef};
use engine_store::pool::FormatOptions;

use crate::load::{Running, Subject};

/// Largest operation the load asks for.
const DATA_BYTES: usize = 1 << 20;
/// The volume that the load is put on.
pub(crate) const VOLUME: &str = "bench";
/// A snapshot of it.
const SNAPSHOT: &str = "bench-snapshot";

/// The volume of a pool that has none yet, and what is written to it.
#[derive(Clone, Copy)]
pub(crate) struct NewVolume {
    /// Of what is free.
    pub(crate) fill_percent: u64,
    pub(crate) options: SubvolumeOptions,
    /// How much of each 512 bytes is always the same, as fio's buffer_compress_percentage.
    pub(crate) compressible_percent: u64,
}

impl NewVolume {
    /// Data to write.
    fn data(&self) -> Result<Slice> {
        let mut data = Buffer::try_new(DATA_BYTES)?;
        let (mut random, same) = (Random::new(1), 512 * self.compressible_percent as usize / 100);
        data.chunks_exact_mut(512).for_each(|chunk| random.fill(&mut chunk[same..]));
        Ok(data.freeze())
    }
}

/// A volume that fills a part of its pool, and data to write.
pub(crate) struct EngineSubject {
    pool: RefCell<LocalPool>,
    client: Client<LocalLink>,
    volume: VolumeRef,
    data: Slice,
}

impl EngineSubject {
    /// Opens the pool on the file, or makes one there with a volume that is written once in sequence.
    pub(crate) fn open(path: &Path, shards: Option<u16>, new: NewVolume) -> Result<Self> {
        let options = FormatOptions { shards, ..FormatOptions::default() };
        let devices = vec![path.to_owned()];
        let request = FormatRequest { devices, options, ..FormatRequest::default() };
        match engine_embed::format(&request) {
            Ok(_) => {}
            // Data of the other side: ours to destroy. A pool of ours is kept, aged as it is.
            Err(FormatError::InUse { what, .. }) if what.starts_with("a member of Cairn") => {}
            Err(FormatError::InUse { .. }) => {
                engine_embed::format(&FormatRequest { force: true, ..request })?;
            }
            Err(error) => return Err(error.into()),
        }
        let pool =
            LocalPool::open(&[path.to_owned()]).map_err(|problems| anyhow!(problems.join("; ")))?;
        Self::new(pool, new)
    }

    /// A pool of one shard in memory: a device that costs a copy, so that what is counted is the
    /// engine's.
    pub(crate) fn in_memory(size_bytes: u64, new: NewVolume) -> Result<Self> {
        let device = MemoryDevice::new("memory", size_bytes, 4096);
        let options = FormatOptions { shards: Some(1), ..FormatOptions::default() };
        let pool = LocalPool::in_memory(&[device], options)
            .map_err(|problems| anyhow!(problems.join("; ")))?;
        Self::new(pool, new)
    }

    /// Gives the pool memory for data; without this it has none, as its peers with O_DIRECT.
    pub(crate) fn set_data_cache(&self, mib: usize) {
        self.pool.borrow().set_data_cache_bytes(mib << 20);
    }

    /// Deletes the snapshot of a run before, and waits until nothing is left to do of that; then makes one if
    /// `make`.
    pub(crate) fn keep_snapshot(&self, make: bool) -> Result<()> {
        let work = async move |client: Client<LocalLink>, runtime: Rc<dyn Runtime>| -> Result<()> {
            match client.subvolume_delete(SNAPSHOT).await {
                Ok(()) | Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            while is_busy(&client).await? {
                runtime.sleep(10_000_000).await;
            }
            if make {
                let (source, name) = (VOLUME.to_owned(), SNAPSHOT.to_owned());
                client.snapshot_create(&[NewSnapshot { source, name, writable: false }]).await?;
            }
            Ok(())
        };
        self.pool.borrow_mut().run(work).map_err(|fault| anyhow!(fault))?
    }

    /// Bytes of the volume's data for each byte that they take on the device.
    pub(crate) fn ratio(&self) -> Result<f64> {
        let id = self.volume.subvolume;
        let usage = async move |client: Client<LocalLink>, _| client.subvolume_usage(id).await;
        let usage = self.pool.borrow_mut().run(usage).map_err(|fault| anyhow!(fault))??;
        let held = usage.own_bytes + usage.shared_bytes;
        Ok((held + usage.saved_bytes) as f64 / held.max(1) as f64)
    }

    fn new(mut pool: LocalPool, new: NewVolume) -> Result<Self> {
        let data = new.data()?;
        let fill = data.clone();
        let volume = pool
            .run(async move |client, _| open_volume(&client, &fill, new).await)
            .map_err(|fault| anyhow!(fault))??;
        let client = pool.client();
        Ok(Self { pool: RefCell::new(pool), client, volume, data })
    }
}

/// Whether versions are merged or deleted in the background.
async fn is_busy(client: &Client<LocalLink>) -> Result<bool> {
    let status = client.status().await?;
    let tasks = status.iter().flat_map(|shard| &shard.counters);
    Ok(tasks.filter(|(name, _)| *name == "background_tasks").any(|(_, count)| *count > 0))
}

async fn open_volume(
    client: &Client<LocalLink>,
    data: &Slice,
    new: NewVolume,
) -> Result<VolumeRef> {
    match client.subvolume_get(VOLUME).await {
        Ok(info) => return Ok(VolumeRef::from(&info)),
        Err(StoreError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let status = client.status().await?;
    let bytes: u64 = status.iter().map(|shard| shard.available_bytes).sum();
    let size = bytes / 100 * new.fill_percent / (4 * MIB) * (4 * MIB);
    if size == 0 {
        bail!("the file is too small for a volume");
    }
    let (kind, options) = (SubvolumeKind::Volume, new.options);
    let made = client.subvolume_create(VOLUME, kind, (size, 4096), options).await?;
    let volume = VolumeRef::from(&made);
    for offset in (0..size).step_by(DATA_BYTES) {
        let piece: Data = std::iter::once(data.clone()).collect();
        client.volume_write(&volume, offset, piece, false).await.context("filling the volume")?;
    }
    client.flush().await?;
    Ok(volume)
}

/// The time it takes to open the pool on the file.
pub(crate) fn open_seconds(path: &Path) -> Result<f64> {
    let started = std::time::Instant::now();
    let pool =
        LocalPool::open(&[path.to_owned()]).map_err(|problems| anyhow!(problems.join("; ")))?;
    let seconds = started.elapsed().as_secs_f64();
    drop(pool);
    Ok(seconds)
}

impl Subject for EngineSubject {
    fn size_bytes(&self) -> u64 {
        self.volume.size_bytes
    }

    fn start(&self, write: bool, offset: u64, len: u32) -> Result<Running> {
        let (client, volume) = (self.client.clone(), self.volume.clone());
        if write {
            let data: Data = std::iter::once(self.data.slice(0..len as usize)).collect();
            Ok(Box::pin(
                async move { Ok(client.volume_write(&volume, offset, data, false).await?) },
            ))
        } else {
            Ok(Box::pin(async move {
                client.volume_read(&volume, offset, u64::from(len)).await.map(drop)?;
                Ok(())
            }))
        }
    }

    fn flush(&self) -> Running {
        let (client, volume) = (self.client.clone(), self.volume.clone());
        Box::pin(async move { Ok(client.volume_flush(&volume).await?) })
    }

    fn turn(&self) -> Result<()> {
        self.pool.borrow_mut().turn().map_err(|fault| anyhow!(fault))
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.pool.into_inner().close().map_err(|fault| anyhow!(fault))
    }
}
