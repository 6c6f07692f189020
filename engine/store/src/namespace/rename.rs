//! Renaming: moving, replacing, exchanging.

use std::rc::Rc;

use engine_base::InodeNumber;

use super::format::Entry;
use super::names::{Dropped, drop_name, overtaken};
use super::{InodeRef, Namespace, check_name, shown};
use crate::api::{FileKind, RenameMode, TreeRef};
use crate::error::{Result, StoreError};
use crate::key::Tree;
use crate::limits::{DIRECTORY_DEPTH_MAX, NAME_RETRIES_MAX};
use crate::lock::Access;
use crate::planted::{self, Bug};
use crate::transaction::Transaction;

/// What was found by the two names before their inodes were locked.
struct Rename {
    from: InodeRef,
    to: InodeRef,
    to_name: Vec<u8>,
    source: Entry,
    destination: Option<Entry>,
    mode: RenameMode,
    now: i64,
}

/// What a rename came to.
enum Renamed {
    Done(Option<Dropped>),
    /// The names are not what they were when the inodes were locked.
    Overtaken,
}

impl Namespace {
    pub(super) async fn rename(
        self: &Rc<Self>,
        tree: TreeRef,
        from: (InodeNumber, Vec<u8>),
        to: (InodeNumber, Vec<u8>),
        mode: RenameMode,
    ) -> Result<()> {
        check_name(&from.1)?;
        check_name(&to.1)?;
        self.wait_for_removals().await?;
        let (_pass, tree) = self.enter(tree).await?;
        let _reservation = self.context.engine.reserve(0).await?;
        let (from_directory, to_directory) = (InodeRef::of(tree, from.0), InodeRef::of(tree, to.0));
        for _ in 0..NAME_RETRIES_MAX {
            let Some(source) = self.peek(from_directory, &from.1).await? else {
                return Err(StoreError::not_found(shown(&from.1)));
            };
            let destination = self.peek(to_directory, &to.1).await?;
            let mut wanted = vec![
                (from.0, Access::Exclusive),
                (to.0, Access::Exclusive),
                (source.inode, Access::Exclusive),
            ];
            wanted.extend(destination.iter().map(|entry| (entry.inode, Access::Exclusive)));
            let _locks = self.lock(wanted).await?;
            if mode == RenameMode::Replace && destination.is_some() {
                // Write, rename over the old file, crash: whoever finds the new file finds its data.
                self.sync_data((tree.subvolume, source.inode)).await?;
            }
            let rename = Rename {
                from: from_directory,
                to: to_directory,
                to_name: to.1.clone(),
                source,
                destination,
                mode,
                now: self.context.now(),
            };
            let result =
                self.context.engine.transact(async |transaction| rename.apply(transaction).await);
            if let Renamed::Done(dropped) = result.await? {
                if let (Some(dropped), Some(entry)) = (dropped, &rename.destination) {
                    self.after_drop(&[(InodeRef::of(tree, entry.inode), dropped)]);
                }
                return Ok(());
            }
        }
        Err(overtaken(&from.1))
    }
}

impl Rename {
    async fn apply(&self, transaction: &mut Transaction<'_>) -> Result<Renamed> {
        let from = self.from.load_directory(transaction).await?;
        let to = self.to.load_directory(transaction).await?;
        let from_table = self.from.table(Tree::Dirents, &from);
        let to_table = self.to.table(Tree::Dirents, &to);
        let source = from_table.find::<Entry>(transaction, &self.source.name).await?;
        let destination = to_table.find::<Entry>(transaction, &self.to_name).await?;
        let as_locked =
            source.entry.as_ref() == Some(&self.source) && destination.entry == self.destination;
        if !as_locked {
            return Ok(Renamed::Overtaken);
        }
        match (self.mode, &self.destination) {
            (RenameMode::NoReplace, Some(_)) => {
                return Err(StoreError::AlreadyExists { what: shown(&self.to_name) });
            }
            (RenameMode::Exchange, None) => {
                return Err(StoreError::not_found(shown(&self.to_name)));
            }
            // rename(2): two names of one file stay as they are.
            (_, Some(entry)) if entry.inode == self.source.inode => {
                return Ok(Renamed::Done(None));
            }
            _ => {}
        }
        self.check_loops(transaction).await?;
        if self.mode == RenameMode::Exchange {
            self.exchange(transaction, source.place, destination.place).await?;
            return Ok(Renamed::Done(None));
        }
        self.replace(transaction, source.place).await.map(Renamed::Done)
    }

    /// No directory moves below itself.
    async fn check_loops(&self, transaction: &mut Transaction<'_>) -> Result<()> {
        if self.source.kind == FileKind::Directory {
            check_not_below(transaction, self.to, self.source.inode).await?;
        }
        match &self.destination {
            Some(entry)
                if self.mode == RenameMode::Exchange && entry.kind == FileKind::Directory =>
            {
                check_not_below(transaction, self.from, entry.inode).await
            }
            _ => Ok(()),
        }
    }

    async fn exchange(
        &self,
        transaction: &mut Transaction<'_>,
        source_place: u64,
        destination_place: u64,
    ) -> Result<()> {
        let Some(other) = &self.destination else { return Ok(()) };
        self.put_entry(transaction, self.from, source_place, other, &self.source.name).await?;
        self.put_entry(transaction, self.to, destination_place, &self.source, &self.to_name)
            .await?;
        self.moved(transaction, &self.source, self.to).await?;
        self.moved(transaction, other, self.from).await?;
        self.resize_directory(transaction, self.from, 0).await?;
        self.resize_directory(transaction, self.to, 0).await
    }

    /// Moves the source, over the destination if there is one.
    async fn replace(
        &self,
        transaction: &mut Transaction<'_>,
        source_place: u64,
    ) -> Result<Option<Dropped>> {
        let mut dropped = None;
        if let Some(entry) = &self.destination {
            let victim = InodeRef::of(self.to.tree, entry.inode);
            let inode = victim.load(transaction).await?;
            match (self.source.kind == FileKind::Directory, inode.kind == FileKind::Directory) {
                (false, true) => {
                    return Err(StoreError::IsDirectory { what: shown(&self.to_name) });
                }
                (true, false) => {
                    return Err(StoreError::NotDirectory { what: shown(&self.to_name) });
                }
                (true, true) if inode.size > 0 => {
                    return Err(StoreError::NotEmpty { what: shown(&self.to_name) });
                }
                _ => {}
            }
            dropped = Some(drop_name(transaction, victim, inode, self.now).await?);
        }
        let from = self.from.load_directory(transaction).await?;
        let from_table = self.from.table(Tree::Dirents, &from);
        if !planted::is(Bug::LostRenameHalf) {
            from_table.remove::<Entry>(transaction, source_place).await?;
        }
        // Searched again: taking the source away may have freed places.
        let to = self.to.load_directory(transaction).await?;
        let to_table = self.to.table(Tree::Dirents, &to);
        let place = to_table.find::<Entry>(transaction, &self.to_name).await?.place;
        self.put_entry(transaction, self.to, place, &self.source, &self.to_name).await?;
        self.moved(transaction, &self.source, self.to).await?;
        self.resize_directory(transaction, self.from, -1).await?;
        let added = if self.destination.is_some() { 0 } else { 1 };
        self.resize_directory(transaction, self.to, added).await?;
        Ok(dropped)
    }

    async fn put_entry(
        &self,
        transaction: &mut Transaction<'_>,
        directory: InodeRef,
        place: u64,
        entry: &Entry,
        name: &[u8],
    ) -> Result<()> {
        let inode = directory.load_directory(transaction).await?;
        let entry = Entry { name: name.to_vec(), ..entry.clone() };
        directory.table(Tree::Dirents, &inode).put(transaction, place, &entry);
        Ok(())
    }

    async fn moved(
        &self,
        transaction: &mut Transaction<'_>,
        entry: &Entry,
        directory: InodeRef,
    ) -> Result<()> {
        let moved = InodeRef::of(directory.tree, entry.inode);
        let mut inode = moved.load(transaction).await?;
        inode.ctime = self.now;
        inode.parent = directory.number;
        moved.store(transaction, &inode).await
    }

    async fn resize_directory(
        &self,
        transaction: &mut Transaction<'_>,
        directory: InodeRef,
        entries: i64,
    ) -> Result<()> {
        let mut inode = directory.load_directory(transaction).await?;
        inode.size = inode.size.saturating_add_signed(entries);
        inode.touch(self.now);
        directory.store(transaction, &inode).await
    }
}

/// Fails when `directory` is `above` or lies below it.
async fn check_not_below(
    transaction: &mut Transaction<'_>,
    directory: InodeRef,
    above: InodeNumber,
) -> Result<()> {
    let mut at = directory;
    for _ in 0..DIRECTORY_DEPTH_MAX {
        if at.number == above {
            return Err(StoreError::invalid("a directory cannot be moved below itself"));
        }
        if at.number == directory.tree.root {
            return Ok(());
        }
        let inode = at.load_directory(transaction).await?;
        at = InodeRef::of(directory.tree, inode.parent);
    }
    Err(StoreError::invalid(format!("directories nested deeper than {DIRECTORY_DEPTH_MAX}")))
}
