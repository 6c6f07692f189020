//! How far a check of the data got, noted in a record of each shard, so that one that was cut short
//! need not read everything again.
//!
//! What was found lost before is durable on the damage list by the time that a place behind it is noted:
//! the check that goes on tells it again. Notes are a help: one that cannot be written or read costs
//! reading again, and fails no check.

use engine_base::ShardId;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Problems;
use crate::api::{PutMode, Reply, Request, Verify};
use crate::context::Context;
use crate::damage::DAMAGE_MAX;
use crate::error::{Result, StoreError};
use crate::journal::format::DiskPosition;
use crate::key::Position;
use crate::reached::{Branch, mark};

/// Collection of the records; one a shard, see [`name`].
const COLLECTION: &str = "fsck";
const VERSION: u8 = 1;

/// The record; drawn in docs/format.md.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct DiskVerified {
    version: u8,
    zero: [u8; 3],
    upto: DiskPosition,
    began: U64,
    blocks: U64,
}

const _: () = assert!(size_of::<DiskVerified>() == 40);

/// How far a check got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verified {
    /// Key of the last extent that was verified, as were all before it.
    pub(crate) upto: Position,
    /// When the check began that verified the first of them, in nanoseconds since the epoch.
    pub(crate) began_ns: u64,
    /// Blocks read.
    pub(crate) blocks: u64,
}

impl Verified {
    fn encode(&self) -> Vec<u8> {
        let disk = DiskVerified {
            version: VERSION,
            zero: [0; 3],
            upto: self.upto.into(),
            began: U64::new(self.began_ns),
            blocks: U64::new(self.blocks),
        };
        disk.as_bytes().to_vec()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let bad = |why: &str| StoreError::corrupt("progress of a check", why);
        let disk = DiskVerified::read_from_bytes(bytes).map_err(|_| bad("length is wrong"))?;
        if disk.version != VERSION || disk.zero != [0; 3] {
            return Err(bad("version is not known"));
        }
        let (upto, began_ns) = (disk.upto.into(), disk.began.get());
        Ok(Self { upto, began_ns, blocks: disk.blocks.get() })
    }
}

/// Name of a shard's record.
fn name(shard: ShardId) -> String {
    format!("verified-{shard}")
}

/// A check of the data under way.
pub(super) struct Progress<'a> {
    context: &'a Context,
    /// Its number among those that this shard began.
    turn: u64,
    now: Verified,
    /// Blocks at the last note.
    noted_blocks: u64,
    /// Whether there is a record.
    noted: bool,
    /// Whether it is told that notes fail.
    told: bool,
}

impl<'a> Progress<'a> {
    /// Begins what `verify` says; `None` when that is nothing.
    pub(super) async fn begin(
        context: &'a Context,
        verify: Verify,
        problems: &mut Problems,
    ) -> Result<Option<Self>> {
        if verify == Verify::Nothing {
            return Ok(None);
        }
        let turn = context.verifying.get() + 1;
        context.verifying.set(turn);
        let began_ns = context.engine.runtime().wall_clock_ns();
        let now = Verified { upto: Position::MIN, began_ns, blocks: 0 };
        let mut this = Self { context, turn, now, noted_blocks: 0, noted: false, told: false };
        match this.load().await {
            Ok(None) => {}
            Ok(Some(bytes)) => {
                this.noted = true;
                match Verified::decode(&bytes) {
                    Ok(before) if verify == Verify::Resume => this.go_on(before, problems).await?,
                    Ok(_) => this.forget(problems).await,
                    Err(error) => {
                        problems.note(format!("all data is verified: {error}"));
                        this.forget(problems).await;
                    }
                }
            }
            Err(error) => this.tell(problems, "read", &error),
        }
        Ok(Some(this))
    }

    async fn load(&self) -> Result<Option<Vec<u8>>> {
        let request = Request::RecordList { collection: COLLECTION.to_owned() };
        match self.context.call(ShardId(0), request).await? {
            Reply::Records(records) => {
                let name = name(self.context.shard());
                Ok(records.into_iter().find(|record| record.0 == name).map(|record| record.1))
            }
            other => Err(other.mismatch("Records")),
        }
    }

    /// Goes on after `before`, and tells what was found lost until there.
    async fn go_on(&mut self, before: Verified, problems: &mut Problems) -> Result<()> {
        let engine = &self.context.engine;
        let now_ns = engine.runtime().wall_clock_ns();
        let seconds = now_ns.saturating_sub(before.began_ns) / 1_000_000_000;
        problems.note(format!(
            "{} blocks, up to inode {}, were verified by a check that began {seconds} s ago",
            before.blocks, before.upto.inode
        ));
        for entry in engine.damage(DAMAGE_MAX).await? {
            let block = Position::new(
                entry.inode.0,
                entry.offset / engine_base::BLOCK_SIZE + 1,
                entry.snapshot.0,
            );
            if entry.len > 0 && block <= before.upto {
                problems.add(format!(
                    "data lost: inode {} bytes {} to {}, found before: {}",
                    entry.inode,
                    entry.offset,
                    entry.offset + entry.len,
                    entry.what
                ));
            }
        }
        (self.now, self.noted_blocks) = (before, before.blocks);
        mark(Branch::CheckGoesOn);
        Ok(())
    }

    /// Whether the extent at `position` was verified before.
    pub(super) fn is_done(&self, position: Position) -> bool {
        position <= self.now.upto
    }

    /// Remembers that the extent at `position` is verified, and notes it now and then.
    ///
    /// # Errors
    /// `Busy` when another check of this shard's data has begun: this one ends.
    pub(super) async fn verified(
        &mut self,
        position: Position,
        blocks: u64,
        problems: &mut Problems,
    ) -> Result<()> {
        if self.context.verifying.get() != self.turn {
            let what = format!("data of shard {}", self.context.shard());
            let why = "another check of it began, which goes on".to_owned();
            return Err(StoreError::Busy { what, why });
        }
        self.now.upto = position;
        self.now.blocks += blocks;
        if self.now.blocks - self.noted_blocks >= self.context.limits.fsck_note_blocks {
            self.noted_blocks = self.now.blocks;
            match self.note().await {
                Ok(()) => self.noted = true,
                Err(error) => self.tell(problems, "noted", &error),
            }
        }
        Ok(())
    }

    async fn note(&self) -> Result<()> {
        let engine = &self.context.engine;
        engine.save_damage().await?;
        engine.flush().await?;
        let request = Request::RecordPut {
            collection: COLLECTION.to_owned(),
            name: name(self.context.shard()),
            bytes: self.now.encode(),
            mode: PutMode::Any,
        };
        self.context.ask_unit(ShardId(0), request).await
    }

    /// The check is at its end: what it found is made durable, and the next one begins anew.
    pub(super) async fn finish(mut self, problems: &mut Problems) -> Result<()> {
        if self.noted {
            let engine = &self.context.engine;
            engine.save_damage().await?;
            engine.flush().await?;
            self.forget(problems).await;
        }
        Ok(())
    }

    /// Removes the record.
    async fn forget(&mut self, problems: &mut Problems) {
        let (collection, name) = (COLLECTION.to_owned(), name(self.context.shard()));
        let request = Request::RecordDelete { collection, name };
        match self.context.ask_unit(ShardId(0), request).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => self.noted = false,
            Err(error) => self.tell(problems, "forgotten", &error),
        }
    }

    fn tell(&mut self, problems: &mut Problems, what: &str, error: &StoreError) {
        if !self.told {
            self.told = true;
            problems.note(format!("how far data is verified cannot be {what}: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_round_trip() {
        let verified = Verified { upto: Position::new(1, 2, 3), began_ns: 4, blocks: 5 };
        let bytes = verified.encode();
        assert_eq!(Verified::decode(&bytes), Ok(verified));
        for (at, byte) in [(0, 2), (3, 1)] {
            let mut other = bytes.clone();
            other[at] = byte;
            assert!(Verified::decode(&other).is_err());
        }
        assert!(Verified::decode(&bytes[1..]).is_err());
    }
}
