//! Attributes, and with them the size of a file: shortening, growing, settling.

use std::rc::Rc;

use engine_base::units::align_up;
use engine_base::{BLOCK_SIZE, InodeNumber, SnapshotId};

use super::operation::Cut;
use super::{Inode, InodeRef, Namespace};
use crate::api::{Attributes, FileKind, Request, SIZE_BYTES_MAX, SetAttributes, TreeRef};
use crate::context::block_range;
use crate::data::{BlockRange, Prepared, punch_in};
use crate::error::{Result, StoreError};
use crate::lock::{Access, LockGuard};
use crate::logged::{self, Intent};
use crate::planted::{self, Bug};

impl Namespace {
    pub(super) async fn set_attributes(
        self: &Rc<Self>,
        tree: TreeRef,
        number: InodeNumber,
        set: SetAttributes,
    ) -> Result<Attributes> {
        if set.mode.is_some_and(|mode| mode > 0o7777) {
            return Err(StoreError::invalid("mode: permission bits (07777) only"));
        }
        if set.size.is_some_and(|size| size > SIZE_BYTES_MAX) {
            return Err(StoreError::invalid(format!("size: {SIZE_BYTES_MAX} at most")));
        }
        let (_pass, tree) = self.enter(tree).await?;
        // No reservation: it adds no keys, and a full pool must let files be shortened.
        let locks = self.lock([(number, Access::Exclusive)]).await?;
        let target = InodeRef::of(tree, number);
        let inode = match set.size {
            Some(_) => target.load_file(&mut self.context.engine.read()).await?,
            None => target.load(&mut self.context.engine.read()).await?,
        };
        if set.size.is_some_and(|size| size < inode.size) {
            if planted::is(Bug::UnloggedTruncate) {
                self.forget_past(target, set.size.unwrap_or(inode.size)).await?;
            }
            return self.shorten(target, inode, &set, locks).await;
        }
        if set.size.is_some_and(|size| size > inode.size) {
            self.settle(target, &inode).await?;
        }
        let now = self.context.now();
        self.context
            .engine
            .transact(async |transaction| {
                let mut inode = target.load(transaction).await?;
                apply(&mut inode, &set, now);
                target.store(transaction, &inode).await?;
                Ok(inode.attributes(number))
            })
            .await
    }

    /// Cuts off the end of a file. All in one transaction when this shard alone is concerned, else
    /// as a logged operation.
    async fn shorten(
        self: &Rc<Self>,
        target: InodeRef,
        inode: Inode,
        set: &SetAttributes,
        mut locks: Vec<LockGuard<u64>>,
    ) -> Result<Attributes> {
        let context = &self.context;
        let (number, snapshot) = (target.number, target.tree.snapshot);
        let size = set.size.unwrap_or(inode.size);
        let from = align_up(size, BLOCK_SIZE);
        let concerned = self.shards_of(number, engine_base::units::align_down(size, BLOCK_SIZE), {
            inode.data_limit.max(from)
        });
        let only_here = concerned.iter().all(|shard| *shard == context.shard());
        let prepared = match only_here {
            true => self.prepare_tail(number, snapshot, size).await?,
            false => None,
        };
        let now = context.now();
        let (first, last) = (from / BLOCK_SIZE, SIZE_BYTES_MAX / BLOCK_SIZE);
        let rest = BlockRange { inode: number, snapshot, from: first, to: last };
        // What is being merged goes first: it takes many transactions, and changes nothing that is seen.
        let rest = if only_here { context.data.written_as(rest).await? } else { rest };
        let (attributes, operation) = context
            .engine
            .transact(async |transaction| {
                let mut inode = target.load_file(transaction).await?;
                apply(&mut inode, set, now);
                let mut done = only_here;
                if only_here {
                    if let Some(prepared) = &prepared {
                        prepared.insert_last(transaction).await?;
                    }
                    done = punch_in(transaction, &rest).await?.is_none();
                }
                if done {
                    inode.data_limit = inode.data_limit.min(from);
                }
                let intent = Intent::Truncate { inode: number, snapshot, size };
                let operation = (!done).then(|| logged::put(transaction, &intent)).transpose()?;
                target.store(transaction, &inode).await?;
                Ok((inode.attributes(number), operation))
            })
            .await?;
        drop(prepared);
        if let Some(operation) = operation {
            let cut = Cut { operation, inode: number, snapshot, size };
            if self.cut_off(cut).await.is_err()
                && let Some(lock) = locks.pop()
            {
                // Decided; another shard does not answer now, so it is done later, with the file's lock:
                // the last one. That of the whole shard must not be kept from the check.
                self.start_cut(cut, lock);
            }
        }
        Ok(attributes)
    }

    /// The planted bug: the new size is durable before what lies past it is gone, and nothing says that it has to go.
    async fn forget_past(&self, target: InodeRef, size: u64) -> Result<()> {
        let engine = &self.context.engine;
        engine
            .transact(async |transaction| {
                let mut inode = target.load_file(transaction).await?;
                inode.size = size;
                inode.data_limit = inode.data_limit.min(align_up(size, BLOCK_SIZE));
                target.store(transaction, &inode).await?;
                Ok(())
            })
            .await?;
        engine.flush().await
    }

    /// Puts the last block of a file that is cut to `size` on the device, zeroed past it. `None`: there
    /// is nothing to zero.
    async fn prepare_tail(
        &self,
        number: InodeNumber,
        snapshot: SnapshotId,
        size: u64,
    ) -> Result<Option<Prepared>> {
        let Some((start, data)) = self.zeroed_tail(number, snapshot, size).await? else {
            return Ok(None);
        };
        let range = block_range(number, snapshot, start, BLOCK_SIZE)?;
        Ok(Some(self.context.data.prepare(range, &data).await?))
    }

    /// Sees to it that nothing but zeroes lies past the end of a file, before it grows for the first
    /// time since the shard was opened. The file's lock is held.
    pub(super) async fn settle(&self, target: InodeRef, inode: &Inode) -> Result<()> {
        let (number, snapshot) = (target.number, target.tree.snapshot);
        let versions = &self.context.engine.versions;
        let known = self.settled.borrow().get(target.key()).copied();
        // Taken back to a snapshot of before, it is another file.
        if known.is_some_and(|then| versions.sees(snapshot, then))
            || planted::is(Bug::UnsettledGrowth)
        {
            return Ok(());
        }
        let from = align_up(inode.size, BLOCK_SIZE);
        let mut touched = Vec::new();
        if inode.data_limit > from {
            touched = self.shards_of(number, from, inode.data_limit);
            let to = inode.data_limit;
            let version = self.context.known(snapshot);
            let request = Request::DataPunch { inode: number, version, from, to };
            self.context.ask_each(touched.iter().copied(), &request).await?;
        }
        touched.extend(self.zero_tail(number, snapshot, inode.size).await?);
        touched.retain(|shard| *shard != self.context.shard());
        // Durable there before the size here can be.
        self.context.ask_each(touched, &Request::Flush).await?;
        let mut settled = self.settled.borrow_mut();
        if let Some(oldest) = settled.overflow() {
            settled.remove(oldest);
        }
        settled.insert(target.key(), snapshot);
        Ok(())
    }
}

fn apply(inode: &mut Inode, set: &SetAttributes, now: i64) {
    inode.mode = set.mode.unwrap_or(inode.mode);
    inode.uid = set.uid.unwrap_or(inode.uid);
    inode.gid = set.gid.unwrap_or(inode.gid);
    if let Some(size) = set.size
        && inode.kind == FileKind::File
    {
        inode.size = size;
        inode.mtime = now;
    }
    inode.atime = set.atime_ns.unwrap_or(inode.atime);
    inode.mtime = set.mtime_ns.unwrap_or(inode.mtime);
    inode.ctime = now;
}
