//! What changed between two snapshots, and what receiving a snapshot takes.

use engine_base::{BLOCK_SIZE, InodeNumber, ShardId, SubvolumeId};

use super::{Client, answer};
use crate::api::{
    ChangedPath, ChangedRange, Link, NewReceived, ReceiveRequest, Reply, Request, SubvolumeInfo,
    SubvolumeKind, TreeDiffCursor, TreeRef,
};
use crate::error::{Result, StoreError};
use crate::limits::LIST_ENTRIES_MAX;
use crate::planted::{self, Bug};

impl<L: Link> Client<L> {
    /// Begins to receive a subvolume, or finds what is there of it: its `receiving` tells where the stream may go on.
    ///
    /// # Errors
    /// `AlreadyExists` when the name is taken; `InvalidArgument` when something else is being received under it, or
    /// the base does not hold what the stream tells the difference to.
    pub async fn receive_begin(&self, new: NewReceived) -> Result<SubvolumeInfo> {
        let request = Request::Receive(ReceiveRequest::Begin(Box::new(new)));
        answer!(self.link.call(ShardId(0), request), Subvolume).map(|info| *info)
    }

    /// Makes all that was written durable, and notes that the stream may go on at `position`.
    pub async fn receive_note(&self, name: &str, position: u64) -> Result<()> {
        if !planted::is(Bug::ReceiveNotedEarly) {
            self.flush().await?;
        }
        let note = ReceiveRequest::Note { name: name.to_owned(), position };
        let request = Request::Receive(note);
        self.unit(ShardId(0), request).await
    }

    /// Makes what was received a snapshot, durably.
    pub async fn receive_end(&self, name: &str) -> Result<SubvolumeInfo> {
        let request = Request::Receive(ReceiveRequest::End { name: name.to_owned() });
        answer!(self.link.call(ShardId(0), request), Subvolume).map(|info| *info)
    }

    /// The ranges in which a snapshot of a volume does not hold the same blocks as another of the same volume does, or
    /// as nothing does, from byte `from` on, in order, some of them; and where to go on. What is told as changed may
    /// hold the same bytes, written anew.
    ///
    /// # Errors
    /// `InvalidArgument` when one is no snapshot of a volume, or they are not of the same.
    pub async fn snapshot_diff(
        &self,
        base: Option<&SubvolumeInfo>,
        snapshot: &SubvolumeInfo,
        from: u64,
    ) -> Result<(Vec<ChangedRange>, Option<u64>)> {
        check_compared(base, snapshot, SubvolumeKind::Volume)?;
        let size = base.map_or(0, |base| base.size_bytes).max(snapshot.size_bytes);
        let base = base.map(|base| base.id);
        self.changed_ranges(snapshot.root, (base, snapshot.id), (from, size)).await
    }

    /// As [`Client::snapshot_diff`], of a file that two snapshots of a tree have, or one, up to byte `to`.
    pub async fn file_diff(
        &self,
        base: Option<&SubvolumeInfo>,
        snapshot: &SubvolumeInfo,
        file: InodeNumber,
        (from, to): (u64, u64),
    ) -> Result<(Vec<ChangedRange>, Option<u64>)> {
        check_compared(base, snapshot, SubvolumeKind::FileTree)?;
        self.changed_ranges(file, (base.map(|base| base.id), snapshot.id), (from, to)).await
    }

    async fn changed_ranges(
        &self,
        inode: InodeNumber,
        (base, subvolume): (Option<SubvolumeId>, SubvolumeId),
        (from, to): (u64, u64),
    ) -> Result<(Vec<ChangedRange>, Option<u64>)> {
        let to = to.next_multiple_of(BLOCK_SIZE);
        let calls = self.shards().map(|shard| {
            let limit = LIST_ENTRIES_MAX;
            let request = Request::DataDiff { inode, base, subvolume, from, to, limit };
            self.link.call(shard, request)
        });
        let (mut all, mut next) = (Vec::new(), None::<u64>);
        for reply in futures::future::join_all(calls).await {
            match reply? {
                Reply::Changed(ranges, rest) => {
                    all.extend(ranges);
                    next = [next, rest].into_iter().flatten().min();
                }
                other => return Err(other.mismatch("Changed")),
            }
        }
        // What lies past the place where one shard stopped is told again.
        all.retain(|range| next.is_none_or(|next| range.offset < next));
        all.sort_unstable_by_key(|range| range.offset);
        Ok((joined(all), next))
    }

    /// The paths in which a snapshot of a file tree differs from another of the same tree, or from nothing, from `from`
    /// on, some of them; and where to go on.
    ///
    /// # Errors
    /// `InvalidArgument` when one is no snapshot of a tree, or they are not of the same.
    pub async fn tree_diff(
        &self,
        base: Option<&SubvolumeInfo>,
        snapshot: &SubvolumeInfo,
        from: TreeDiffCursor,
    ) -> Result<(Vec<ChangedPath>, Option<TreeDiffCursor>)> {
        self.tree_changes(base, snapshot, false, from).await
    }

    /// As [`Client::tree_diff`]; `in_base`: with the paths that inodes and directories have in the base.
    pub async fn tree_changes(
        &self,
        base: Option<&SubvolumeInfo>,
        snapshot: &SubvolumeInfo,
        in_base: bool,
        from: TreeDiffCursor,
    ) -> Result<(Vec<ChangedPath>, Option<TreeDiffCursor>)> {
        check_compared(base, snapshot, SubvolumeKind::FileTree)?;
        let (tree, base) = (TreeRef::from(snapshot), base.map(|base| base.id));
        let request = Request::TreeDiff { tree, base, in_base, from };
        match self.link.call(self.home(tree), request).await? {
            Reply::ChangedPaths(paths, next) => Ok((paths, next)),
            other => Err(other.mismatch("ChangedPaths")),
        }
    }
}

/// Whether both are snapshots of one subvolume of a kind.
fn check_compared(
    base: Option<&SubvolumeInfo>,
    snapshot: &SubvolumeInfo,
    kind: SubvolumeKind,
) -> Result<()> {
    let what = match kind {
        SubvolumeKind::Volume => "volume",
        SubvolumeKind::FileTree => "file tree",
    };
    for one in base.into_iter().chain([snapshot]) {
        if one.kind != kind || !one.read_only {
            return Err(StoreError::invalid(format!("{:?} is no snapshot of a {what}", one.name)));
        }
    }
    if let Some(base) = base.filter(|base| base.root != snapshot.root) {
        let (base, name) = (&base.name, &snapshot.name);
        let why = format!("{base:?} and {name:?} are not snapshots of the same {what}");
        return Err(StoreError::invalid(why));
    }
    Ok(())
}

/// Ranges in order, those that follow each other as one.
fn joined(ranges: Vec<ChangedRange>) -> Vec<ChangedRange> {
    let mut whole: Vec<ChangedRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match whole.last_mut() {
            Some(last)
                if last.offset + last.len == range.offset && last.has_data == range.has_data =>
            {
                last.len += range.len;
            }
            _ => whole.push(range),
        }
    }
    whole
}
