//! Copying from file to file by reference ([`crate::data`]).
//!
//! Stages: lock both, settle and raise the limit when the target grows, let each part be shared on the shard that has
//! it (what would change its shard is read and written), then size and times of the target.

use engine_base::units::{align_down, align_up, is_aligned};
use engine_base::{BLOCK_SIZE, InodeNumber};
use futures::stream::{self, TryStreamExt};
use smallvec::SmallVec;

use super::{Inode, InodeRef, Namespace};
use crate::api::{
    COPY_BYTES_MAX, CopyStats, DATA_BYTES_MAX, DataPlace, FilePlace, Reply, Request,
    SIZE_BYTES_MAX, Whose,
};
use crate::client::copy_parts;
use crate::error::{Result, StoreError};
use crate::lock::Access;

/// Parts that are copied side by side.
const PARTS_MAX: usize = 4;

/// What is copied, within two files that are locked.
#[derive(Clone, Copy)]
struct Span {
    from: u64,
    to: u64,
    len: u64,
}

impl Namespace {
    pub(super) async fn file_copy(
        &self,
        source: FilePlace,
        target: FilePlace,
        len: u64,
    ) -> Result<CopyStats> {
        let ends = [source.offset, target.offset].map(|offset| offset.checked_add(len));
        if len > COPY_BYTES_MAX || ends.iter().any(|end| end.is_none_or(|end| end > SIZE_BYTES_MAX))
        {
            return Err(StoreError::invalid(format!(
                "copy of {len} bytes: {COPY_BYTES_MAX} at a time, up to byte {SIZE_BYTES_MAX}"
            )));
        }
        if !is_aligned(source.offset, BLOCK_SIZE) || !is_aligned(target.offset, BLOCK_SIZE) {
            return Err(StoreError::invalid(format!("a copy begins at multiples of {BLOCK_SIZE}")));
        }
        let (_pass, target_tree) = self.enter(target.tree).await?;
        let source_tree = self.to_read(source.tree).await?;
        // What is read must not be swept meanwhile.
        let _source_pass = self.context.gate.enter(source_tree.snapshot)?;
        let (from, to) =
            (InodeRef::of(source_tree, source.inode), InodeRef::of(target_tree, target.inode));
        let mut wanted: SmallVec<[(InodeNumber, Access); 2]> = SmallVec::new();
        wanted.push((to.number, Access::Exclusive));
        if from.number != to.number {
            wanted.push((from.number, Access::Shared));
            wanted.sort_unstable_by_key(|(inode, _)| *inode);
        }
        let _locks = self.lock(wanted).await?;
        let size = from.load_file(&mut self.context.engine.read()).await?.size;
        let len = len.min(size.saturating_sub(source.offset));
        let same = source.inode == target.inode && source.tree.subvolume == target.tree.subvolume;
        if same && source.offset < target.offset + len && target.offset < source.offset + len {
            return Err(StoreError::invalid("a copy within a file: the ranges overlap"));
        }
        if len == 0 {
            to.load_file(&mut self.context.engine.read()).await?;
            return Ok(CopyStats::default());
        }
        let span = Span { from: source.offset, to: target.offset, len };
        let copied = self.copy_locked(from, to, span, size).await;
        if copied.is_err() {
            // Parts of it may lie past the end now.
            self.settled.borrow_mut().remove(to.key());
        }
        copied
    }

    async fn copy_locked(
        &self,
        from: InodeRef,
        to: InodeRef,
        span: Span,
        source_size: u64,
    ) -> Result<CopyStats> {
        let inode = to.load_file(&mut self.context.engine.read()).await?;
        let end = span.to + span.len;
        if end > inode.size {
            self.settle(to, &inode).await?;
        }
        // The last block of a file is zeroes past its end, and may be the last of another.
        let reaches_end = span.from + span.len == source_size && end >= inode.size;
        let whole = match reaches_end {
            true => align_up(span.len, BLOCK_SIZE),
            false => align_down(span.len, BLOCK_SIZE),
        };
        let limit = align_up(end, BLOCK_SIZE);
        self.raise_limit(to, &inode, limit).await?;
        self.note_limit(to, limit).await?;
        let mut stats = self.copy_blocks(from, to, Span { len: whole, ..span }).await?;
        if whole < span.len {
            let rest = Span { from: span.from + whole, to: span.to + whole, len: span.len - whole };
            self.copy_rest(from, to, &inode, rest).await?;
            stats.copied_bytes += rest.len;
        } else {
            // What lies past the end is not counted.
            let past = whole - span.len;
            let shared = past.min(stats.shared_bytes);
            stats.shared_bytes -= shared;
            stats.copied_bytes -= past - shared;
        }
        let now = self.context.now();
        self.context
            .engine
            .transact(async |transaction| {
                let mut inode = to.load_file(transaction).await?;
                inode.size = inode.size.max(end);
                inode.touch(now);
                to.store(transaction, &inode).await?;
                Ok(())
            })
            .await?;
        Ok(stats)
    }

    /// Copies the beginning of a block: the last one. What the target has behind it stays; past its end are zeroes.
    async fn copy_rest(
        &self,
        from: InodeRef,
        to: InodeRef,
        inode: &Inode,
        rest: Span,
    ) -> Result<()> {
        let (context, len) = (&self.context, rest.len);
        let block =
            context.read_blocks(from.number, from.tree.snapshot, rest.from, BLOCK_SIZE).await?;
        let mut data = crate::client::cut(&block, 0, len as usize);
        if rest.to + len < inode.size {
            return self.write_locked(to, inode, rest.to, &data).await.map(drop);
        }
        context.data.push_zeroes(&mut data, BLOCK_SIZE - len);
        let shard = to.number.data_shard(rest.to, context.engine.shard_count());
        if shard != context.shard() {
            self.mark_dirty(to.key(), shard).await?;
        }
        context.write_blocks(to.number, to.tree.snapshot, rest.to, data).await
    }

    /// The limit of a file goes first: what a crash leaves past the end is known then.
    async fn note_limit(&self, target: InodeRef, end: u64) -> Result<()> {
        self.context
            .engine
            .transact(async |transaction| {
                let mut inode = target.load_file(transaction).await?;
                if end > inode.data_limit {
                    inode.data_limit = end;
                    target.store(transaction, &inode).await?;
                }
                Ok(())
            })
            .await
    }

    /// Copies whole blocks.
    async fn copy_blocks(&self, from: InodeRef, to: InodeRef, span: Span) -> Result<CopyStats> {
        let shards = self.context.engine.shard_count();
        for (_, at, _) in copy_parts(span.from, span.to, span.len, u64::MAX) {
            let shard = to.number.data_shard(at, shards);
            if shard != self.context.shard() {
                self.mark_dirty(to.key(), shard).await?;
            }
        }
        let parts = copy_parts(span.from, span.to, span.len, u64::MAX).map(Ok);
        let whose = |inode: InodeRef| Whose::Version(self.context.known(inode.tree.snapshot));
        stream::iter(parts)
            .map_ok(|(source, target, len)| async move {
                let shard = to.number.data_shard(target, shards);
                if from.number.data_shard(source, shards) != shard {
                    return self
                        .copy_across(from, to, Span { from: source, to: target, len })
                        .await;
                }
                let source = DataPlace { inode: from.number, of: whose(from), offset: source };
                let target = DataPlace { inode: to.number, of: whose(to), offset: target };
                match self.context.call(shard, Request::DataCopy { source, target, len }).await? {
                    Reply::Copied(stats) => Ok(stats),
                    other => Err(other.mismatch("Copied")),
                }
            })
            .try_buffer_unordered(PARTS_MAX)
            .try_fold(CopyStats::default(), async |sum, part| Ok(sum.with(part)))
            .await
    }

    /// Reads and writes what would have to be shared by two shards.
    async fn copy_across(&self, from: InodeRef, to: InodeRef, span: Span) -> Result<CopyStats> {
        for (source, target, len) in copy_parts(span.from, span.to, span.len, DATA_BYTES_MAX) {
            let data =
                self.context.read_blocks(from.number, from.tree.snapshot, source, len).await?;
            self.context.write_blocks(to.number, to.tree.snapshot, target, data).await?;
        }
        Ok(CopyStats { shared_bytes: 0, copied_bytes: span.len })
    }
}
