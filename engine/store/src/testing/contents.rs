//! Volumes whose blocks are noise, text or nothing, and a model of what each holds.

use engine_base::BLOCK_SIZE;
use engine_base::random::Random;

use super::{Pool, bytes_of, data_of};
use crate::api::{Compression, SetOptions, SubvolumeKind, SubvolumeOptions, Usage};
use crate::client::VolumeRef;
use crate::error::StoreError;

pub(super) const BLOCK: usize = BLOCK_SIZE as usize;

/// What a block holds: 0 nothing, of the others a third noise and the rest text.
pub(super) type Stamp = u32;

pub(super) fn block_of(stamp: Stamp) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    match stamp {
        0 => {}
        _ if stamp.is_multiple_of(3) => Random::new(u64::from(stamp)).fill(&mut bytes),
        _ => {
            let mut random = Random::new(u64::from(stamp));
            let text = random.next_u64().to_string();
            bytes.iter_mut().zip(text.bytes().cycle()).for_each(|(to, from)| *to = from);
            random.fill(&mut bytes[..64]);
        }
    }
    bytes
}

/// A volume and what is in it.
pub(super) struct Volume {
    pub(super) pool: Pool,
    pub(super) name: String,
    pub(super) volume: VolumeRef,
    pub(super) blocks: Vec<Stamp>,
}

impl Volume {
    pub(super) async fn new(
        pool: &Pool,
        name: &str,
        bytes: u64,
        options: SubvolumeOptions,
    ) -> Self {
        let kind = SubvolumeKind::Volume;
        let made = pool.client().subvolume_create(name, kind, (bytes, 4096), options).await;
        let volume = VolumeRef::from(&made.unwrap());
        let blocks = vec![0; (bytes / BLOCK_SIZE) as usize];
        Self { pool: pool.clone(), name: name.to_owned(), volume, blocks }
    }

    pub(super) async fn write(
        &mut self,
        from: usize,
        stamps: &[Stamp],
        random: &mut Random,
    ) -> Result<(), StoreError> {
        let bytes: Vec<u8> = stamps.iter().flat_map(|stamp| block_of(*stamp)).collect();
        let (offset, data) = ((from * BLOCK) as u64, data_of(&bytes, random));
        self.pool.client().volume_write(&self.volume, offset, data, false).await?;
        self.blocks[from..from + stamps.len()].copy_from_slice(stamps);
        Ok(())
    }

    pub(super) async fn discard(&mut self, from: usize, count: usize) {
        let (offset, len) = ((from * BLOCK) as u64, (count * BLOCK) as u64);
        self.pool.client().volume_discard(&self.volume, offset, len).await.unwrap();
        self.blocks[from..from + count].fill(0);
    }

    pub(super) async fn verify(&self, from: usize, count: usize) {
        let (offset, len) = ((from * BLOCK) as u64, (count * BLOCK) as u64);
        let data = self.pool.client().volume_read(&self.volume, offset, len).await.unwrap();
        let blocks = self.blocks[from..from + count].iter();
        for (at, (block, stamp)) in bytes_of(&data).chunks_exact(BLOCK).zip(blocks).enumerate() {
            assert!(*block == block_of(*stamp), "{} block {}: not {stamp}", self.name, from + at);
        }
    }

    pub(super) async fn verify_all(&self) {
        for from in (0..self.blocks.len()).step_by(200) {
            self.verify(from, 200.min(self.blocks.len() - from)).await;
        }
    }

    pub(super) async fn usage(&self) -> Usage {
        self.pool.client().subvolume_usage(self.volume.subvolume).await.unwrap()
    }

    pub(super) async fn set(&self, compression: Compression, frame_bytes: u32) {
        let set = SetOptions { compression: Some(compression), frame_bytes: Some(frame_bytes) };
        let info = self.pool.client().subvolume_set(&self.name, set).await.unwrap();
        assert_eq!(info.options, SubvolumeOptions { compression, frame_bytes });
    }
}

pub(super) fn zstd() -> SubvolumeOptions {
    SubvolumeOptions { compression: Compression::Zstd(3), ..SubvolumeOptions::default() }
}
