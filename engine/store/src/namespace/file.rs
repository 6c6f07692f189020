//! Reading and writing files at any offset and length.
//!
//! Stages of a write: lock (shared when it replaces whole blocks within size and limit, else alone),
//! settle and raise the limit when the file grows, complete the first and last block from what is
//! there, write the parts on other shards, then this shard's part with size and times in one
//! transaction.

use engine_base::ids::CHUNK_SIZE_LOG2;
use engine_base::units::{align_down, align_up, is_aligned};
use engine_base::{BLOCK_SIZE, InodeNumber, MIB};
use engine_memory::Buffer;

use super::{Inode, InodeRef, Namespace, TreeAt};
use crate::api::{Attributes, DATA_BYTES_MAX, Data, Request, SIZE_BYTES_MAX, TreeRef, data_len};
use crate::background::Held;
use crate::client::cut;
use crate::context::block_range;
use crate::data::Prepared;
use crate::error::{Result, StoreError};
use crate::lock::Access;
use crate::times::Timed;

/// Steps in which the limit of a growing file is raised: each costs a flush, so not too small; what
/// lies between size and limit is looked at when a file first grows after a restart, which is cheap.
const LIMIT_STEP_BYTES: u64 = 64 * MIB;

impl Namespace {
    pub(super) async fn file_read(
        &self,
        tree: TreeRef,
        number: InodeNumber,
        offset: u64,
        len: u64,
    ) -> Result<Data> {
        if len > DATA_BYTES_MAX {
            return Err(StoreError::invalid(format!(
                "read of {len} bytes: {DATA_BYTES_MAX} at most"
            )));
        }
        self.reading(tree, async |tree| self.read_at(tree, number, offset, len).await).await
    }

    async fn read_at(
        &self,
        tree: TreeAt,
        number: InodeNumber,
        offset: u64,
        len: u64,
    ) -> Result<Data> {
        let lock = self.locks.lock(number.0, Access::Shared);
        let lock = self.context.engine.waits.on(Timed::BlockedInodeLock, lock);
        let _lock = self.context.background.unless_stalled(&[Held::Inode(number.0)], lock).await?;
        let inode = InodeRef::of(tree, number).load_file(&mut self.context.engine.read()).await?;
        let end = offset.saturating_add(len).min(inode.size);
        if offset >= end {
            return Ok(Data::new());
        }
        let (start, stop) = (align_down(offset, BLOCK_SIZE), align_up(end, BLOCK_SIZE));
        let reads = chunk_parts(start, stop)
            .map(|(from, to)| self.context.read_blocks(number, tree.snapshot, from, to - from));
        let mut data = Data::new();
        for part in futures::future::join_all(reads).await {
            data.extend(part?);
        }
        Ok(cut(&data, (offset - start) as usize, (end - offset) as usize))
    }

    pub(super) async fn file_write(
        &self,
        tree: TreeRef,
        number: InodeNumber,
        offset: u64,
        data: &Data,
    ) -> Result<Attributes> {
        let len = data_len(data);
        if len > DATA_BYTES_MAX {
            return Err(StoreError::invalid(format!(
                "write of {len} bytes: {DATA_BYTES_MAX} at most"
            )));
        }
        let end = offset.checked_add(len).filter(|end| *end <= SIZE_BYTES_MAX);
        let Some(end) = end else {
            return Err(StoreError::invalid(format!("a file has {SIZE_BYTES_MAX} bytes at most")));
        };
        let (_pass, tree) = self.enter(tree).await?;
        let target = InodeRef::of(tree, number);
        let inode = target.load_file(&mut self.context.engine.read()).await?;
        if len == 0 {
            return Ok(inode.attributes(number));
        }
        let whole_blocks = is_aligned(offset, BLOCK_SIZE) && is_aligned(end, BLOCK_SIZE);
        // What raises the limit is alone until it is durable: size and limit must both suffice.
        let within = |inode: &Inode| end <= inode.size.min(inode.data_limit);
        if whole_blocks && within(&inode) {
            let _locks = self.lock([(number, Access::Shared)]).await?;
            let inode = target.load_file(&mut self.context.engine.read()).await?;
            if within(&inode) {
                return self.write_locked(target, &inode, offset, data).await;
            }
        }
        let _locks = self.lock([(number, Access::Exclusive)]).await?;
        let inode = target.load_file(&mut self.context.engine.read()).await?;
        self.write_locked(target, &inode, offset, data).await
    }

    /// Writes to a file whose lock is held: alone, unless only whole blocks are replaced.
    pub(super) async fn write_locked(
        &self,
        target: InodeRef,
        inode: &Inode,
        offset: u64,
        data: &Data,
    ) -> Result<Attributes> {
        let end = offset + data_len(data);
        if end > inode.size {
            self.settle(target, inode).await?;
        }
        self.raise_limit(target, inode, end).await?;
        let blocks = self.complete_blocks(target, inode, offset, data).await?;
        let written = self.write_parts(target, align_down(offset, BLOCK_SIZE), &blocks, end).await;
        if written.is_err() && end > inode.size {
            // Parts of it may lie past the end now.
            self.settled.borrow_mut().remove(target.key());
        }
        written
    }

    /// Makes it durable that other shards may hold blocks up to the end of this write. The file is
    /// locked alone if the limit changes.
    pub(super) async fn raise_limit(
        &self,
        target: InodeRef,
        inode: &Inode,
        end: u64,
    ) -> Result<()> {
        let end = align_up(end, BLOCK_SIZE);
        if end <= inode.data_limit {
            return Ok(());
        }
        let engine = &self.context.engine;
        if self.shards_of(target.number, 0, end).iter().all(|shard| *shard == engine.shard()) {
            // Data and limit change in one transaction, see `write_parts`. Not so past a chunk of
            // another shard, even if this write is only for this one: a later write to that chunk
            // would find the limit high enough, and not know that it is not durable.
            return Ok(());
        }
        let limit = align_up(end, LIMIT_STEP_BYTES).min(SIZE_BYTES_MAX);
        let _reservation = engine.reserve(0).await?;
        engine
            .transact(async |transaction| {
                let mut inode = target.load_file(transaction).await?;
                inode.data_limit = inode.data_limit.max(limit);
                target.store(transaction, &inode).await?;
                Ok(())
            })
            .await?;
        engine.flush().await
    }

    /// The data with its first and last block completed to whole ones.
    async fn complete_blocks(
        &self,
        target: InodeRef,
        inode: &Inode,
        offset: u64,
        data: &Data,
    ) -> Result<Data> {
        let len = data_len(data);
        let (start, stop) = (align_down(offset, BLOCK_SIZE), align_up(offset + len, BLOCK_SIZE));
        let (head, tail) = (offset - start, stop - (offset + len));
        if head == 0 && tail == 0 {
            return Ok(data.clone());
        }
        if stop - start == BLOCK_SIZE {
            let mut block = self.present_block(target, inode, start).await?;
            copy_out(data, 0, &mut block[head as usize..(head + len) as usize]);
            return Ok(Data::from_iter([block.freeze()]));
        }
        let mut whole = Data::new();
        let mut taken = 0;
        if head > 0 {
            let mut block = self.present_block(target, inode, start).await?;
            copy_out(data, 0, &mut block[head as usize..]);
            taken = BLOCK_SIZE - head;
            whole.push(block.freeze());
        }
        let in_last = if tail > 0 { BLOCK_SIZE - tail } else { 0 };
        let middle = len - taken - in_last;
        whole.extend(cut(data, taken as usize, middle as usize));
        if tail > 0 {
            let mut block = self.present_block(target, inode, stop - BLOCK_SIZE).await?;
            copy_out(data, (taken + middle) as usize, &mut block[..in_last as usize]);
            whole.push(block.freeze());
        }
        Ok(whole)
    }

    /// What a block of a file holds now; zeroes past the end.
    async fn present_block(&self, target: InodeRef, inode: &Inode, start: u64) -> Result<Buffer> {
        let mut block = Buffer::try_new(BLOCK_SIZE as usize)?;
        if start < inode.size {
            let (number, snapshot) = (target.number, target.tree.snapshot);
            let data = self.context.read_blocks(number, snapshot, start, BLOCK_SIZE).await?;
            let kept = (inode.size - start).min(BLOCK_SIZE) as usize;
            copy_out(&data, 0, &mut block[..kept]);
        }
        Ok(block)
    }

    /// Writes whole blocks: the parts on other shards first, then this shard's part together with
    /// the new size, so that the size never promises what was not written here.
    async fn write_parts(
        &self,
        target: InodeRef,
        start: u64,
        blocks: &Data,
        end: u64,
    ) -> Result<Attributes> {
        let (number, snapshot) = (target.number, target.tree.snapshot);
        let context = &self.context;
        let stop = start + data_len(blocks);
        let mut here: Option<(u64, u64)> = None;
        let mut remote = Vec::new();
        for (from, to) in chunk_parts(start, stop) {
            if context.is_here(number, from) {
                here = Some((here.map_or(from, |part| part.0), to));
                continue;
            }
            let shard = number.data_shard(from, context.engine.shard_count());
            self.mark_dirty(target.key(), shard).await?;
            let data = cut(blocks, (from - start) as usize, (to - from) as usize);
            remote.push(context.write_blocks(number, snapshot, from, data));
        }
        for result in futures::future::join_all(remote).await {
            result?;
        }
        let prepared = match here {
            Some((from, to)) => {
                let data = cut(blocks, (from - start) as usize, (to - from) as usize);
                let range = block_range(number, snapshot, from, to - from)?;
                Some((context.data.prepare(range, &data).await?, to))
            }
            None => None,
        };
        loop {
            match self.commit_write(target, &prepared, end).await {
                Err(StoreError::TransactionFull(_))
                    if prepared.as_ref().is_some_and(|(prepared, _)| prepared.cut_smaller()) => {}
                result => return result,
            }
        }
    }

    /// Commits this shard's part of a write, with the new size.
    async fn commit_write(
        &self,
        target: InodeRef,
        prepared: &Option<(Prepared, u64)>,
        end: u64,
    ) -> Result<Attributes> {
        if let Some((prepared, to)) = prepared {
            self.commit_early(target, prepared, *to).await?;
        }
        // What is reserved for the data covers the inode too; without data here, no key is added.
        let now = self.context.now();
        self.context
            .engine
            .transact(async |transaction| {
                let mut inode = target.load_file(transaction).await?;
                inode.size = inode.size.max(end);
                inode.touch(now);
                if let Some((prepared, to)) = prepared {
                    prepared.insert_last(transaction).await?;
                    inode.data_limit = inode.data_limit.max(*to);
                }
                target.store(transaction, &inode).await?;
                Ok(inode.attributes(target.number))
            })
            .await
    }

    /// A write scattered over so many pieces that one transaction does not hold them: the limit goes
    /// first, so that what a crash leaves past the end is known.
    async fn commit_early(&self, target: InodeRef, prepared: &Prepared, to: u64) -> Result<()> {
        if prepared.is_one_transaction() {
            return Ok(());
        }
        self.context
            .engine
            .transact(async |transaction| {
                let mut inode = target.load_file(transaction).await?;
                inode.data_limit = inode.data_limit.max(to);
                target.store(transaction, &inode).await?;
                Ok(())
            })
            .await?;
        self.context.data.commit_all_but_last(prepared).await
    }

    pub(super) async fn file_punch(
        &self,
        tree: TreeRef,
        number: InodeNumber,
        offset: u64,
        len: u64,
    ) -> Result<()> {
        let (_pass, tree) = self.enter(tree).await?;
        let _locks = self.lock([(number, Access::Exclusive)]).await?;
        let target = InodeRef::of(tree, number);
        let inode = target.load_file(&mut self.context.engine.read()).await?;
        let end = offset.saturating_add(len).min(inode.size);
        if offset >= end {
            return Ok(());
        }
        let from = align_up(offset, BLOCK_SIZE);
        // The rest of the last block is zeroes already: it goes as a whole.
        let reaches_end = end == inode.size;
        let to = if reaches_end { align_up(end, BLOCK_SIZE) } else { align_down(end, BLOCK_SIZE) };
        if offset < from {
            self.zero_part(target, &inode, offset, end.min(from)).await?;
        }
        if !reaches_end && to >= from && to < end {
            self.zero_part(target, &inode, to, end).await?;
        }
        if from < to {
            let shards = self.shards_of(number, from, to.min(inode.data_limit));
            for shard in &shards {
                self.mark_dirty(target.key(), *shard).await?;
            }
            let version = self.context.known(tree.snapshot);
            let request = Request::DataPunch { inode: number, version, from, to };
            self.context.ask_each(shards, &request).await?;
        }
        let now = self.context.now();
        self.context
            .engine
            .transact(async |transaction| {
                let mut inode = target.load_file(transaction).await?;
                inode.touch(now);
                target.store(transaction, &inode).await?;
                Ok(())
            })
            .await
    }

    /// Zeroes a part of one block, unless it is zeroes.
    async fn zero_part(&self, target: InodeRef, inode: &Inode, from: u64, to: u64) -> Result<()> {
        let start = align_down(from, BLOCK_SIZE);
        let block = self.present_block(target, inode, start).await?;
        if block[(from - start) as usize..(to - start) as usize].iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        let mut zeroes = Data::new();
        self.context.data.push_zeroes(&mut zeroes, to - from);
        self.write_locked(target, inode, from, &zeroes).await.map(drop)
    }
}

/// Copies from `data`, from byte `start` on, as much as `out` holds.
pub(super) fn copy_out(data: &Data, start: usize, out: &mut [u8]) {
    let mut at = 0;
    for piece in cut(data, start, out.len()) {
        out[at..at + piece.len()].copy_from_slice(&piece);
        at += piece.len();
    }
}

/// The parts of `from .. to` that lie in one chunk each, and are not longer than one request is for: a megabyte that
/// begins in the middle of a block touches one block more.
fn chunk_parts(from: u64, to: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut at = from;
    std::iter::from_fn(move || {
        if at >= to {
            return None;
        }
        let chunk_end = ((at >> CHUNK_SIZE_LOG2) + 1) << CHUNK_SIZE_LOG2;
        let part = (at, chunk_end.min(to).min(at + DATA_BYTES_MAX));
        at = part.1;
        Some(part)
    })
}
