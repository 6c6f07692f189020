//! A volume that is received.

use engine_base::BLOCK_SIZE;
use engine_memory::Buffer;
use engine_store::StoreError;
use engine_store::api::{Data, Link, SubvolumeInfo};
use engine_store::client::{Client, VolumeRef};

use super::Progress;
use crate::BATCH_BYTES;
use crate::format::{Begin, Frame, bad};

pub(super) struct VolumeTarget {
    volume: VolumeRef,
    /// Where its blocks end.
    end: u64,
    /// What was told next begins here, or later.
    next: u64,
    progress: Progress,
    /// What is to be written, together.
    batch: Vec<Change>,
    batch_bytes: u64,
}

enum Change {
    Write { offset: u64, data: Data },
    Discard { offset: u64, len: u64 },
}

impl VolumeTarget {
    pub(super) async fn open<L: Link>(
        client: &Client<L>,
        info: SubvolumeInfo,
        begin: &Begin,
        progress: Progress,
    ) -> Result<Self, StoreError> {
        let info = match info.size_bytes == begin.size_bytes {
            true => info,
            false => client.volume_resize(&info.name, begin.size_bytes).await?,
        };
        Ok(Self {
            volume: VolumeRef::from(&info),
            end: begin.size_bytes.next_multiple_of(BLOCK_SIZE),
            next: begin.from,
            progress,
            batch: Vec::new(),
            batch_bytes: 0,
        })
    }

    pub(super) async fn apply<L: Link>(
        &mut self,
        client: &Client<L>,
        frame: Frame,
    ) -> Result<(), StoreError> {
        match frame {
            Frame::Data { offset, bytes } => {
                let len = bytes.len() as u64;
                if self.take(offset, len)? {
                    let data = Data::from_iter([Buffer::try_copy_of(&bytes)?.freeze()]);
                    self.add(Change::Write { offset, data }, len);
                }
            }
            Frame::Hole { offset, len } => {
                if self.take(offset, len)? {
                    self.add(Change::Discard { offset, len }, BLOCK_SIZE);
                }
            }
            _ => return Err(bad("of a volume, with something that is not of one")),
        }
        if self.batch_bytes >= BATCH_BYTES.min(self.progress.note_bytes) {
            self.write(client).await?;
            if self.progress.is_due() {
                self.progress.note(client, self.next).await?;
            }
        }
        Ok(())
    }

    /// Whether what is told of `offset` is to be written.
    fn take(&mut self, offset: u64, len: u64) -> Result<bool, StoreError> {
        let end = offset + len;
        if offset < self.next || end > self.end || !len.is_multiple_of(BLOCK_SIZE) {
            return Err(bad(format!("{len} bytes at {offset}, which is out of order or too far")));
        }
        self.next = end;
        Ok(end > self.progress.there)
    }

    fn add(&mut self, change: Change, bytes: u64) {
        self.batch.push(change);
        self.batch_bytes += bytes;
    }

    /// Writes what is gathered.
    pub(super) async fn write<L: Link>(&mut self, client: &Client<L>) -> Result<(), StoreError> {
        let volume = &self.volume;
        let changes =
            std::mem::take(&mut self.batch).into_iter().map(async |change| match change {
                Change::Write { offset, data } => {
                    client.volume_write(volume, offset, data, false).await
                }
                Change::Discard { offset, len } => client.volume_discard(volume, offset, len).await,
            });
        for done in futures::future::join_all(changes).await {
            done?;
        }
        self.progress.since_note += std::mem::take(&mut self.batch_bytes);
        Ok(())
    }

    /// No more comes now: all that came is kept.
    pub(super) async fn cut_off<L: Link>(&mut self, client: &Client<L>) -> Result<(), StoreError> {
        self.write(client).await?;
        self.progress.note(client, self.next).await
    }
}
