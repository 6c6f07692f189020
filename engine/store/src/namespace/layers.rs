//! Inodes, names and attributes in versions that see others ([`crate::version`]).
//!
//! What is changed is put in the version itself, in front of what older ones have. What is removed while an older
//! version has it leaves a whiteout. An inode says whether an older version has it, too: so the last of its names takes
//! it away or leaves a whiteout, and each inode is counted once, in the version in which it was made.

use engine_base::{InodeNumber, SnapshotId};

use super::format::{Entry, Hashed, Inode, Slot, Xattr};
use super::inode_position;
use super::table::NameTable;
use crate::error::{Result, StoreError};
use crate::key::{Counter, Position, Tree, Value};
use crate::transaction::Transaction;

impl Inode {
    /// The inode that a version sees.
    ///
    /// # Errors
    /// When a node cannot be read, or `Restart`.
    pub(crate) async fn seen(
        transaction: &mut Transaction<'_>,
        number: InodeNumber,
        version: SnapshotId,
    ) -> Result<Option<Self>> {
        let value = transaction.seen(Tree::Inodes, inode_position(number, version)).await?;
        entry_of(value)
    }

    /// Puts an inode that the version saw before in the version itself.
    ///
    /// # Errors
    /// When a node cannot be read, or `Restart`.
    pub(crate) async fn store(
        &self,
        transaction: &mut Transaction<'_>,
        number: InodeNumber,
        version: SnapshotId,
    ) -> Result<()> {
        let position = inode_position(number, version);
        let copied = is_copied(transaction, position).await?;
        let value = if copied == self.copied {
            self.encode()
        } else {
            Self { copied, ..self.clone() }.encode()
        };
        transaction.put_layered(Tree::Inodes, position, value);
        Ok(())
    }

    /// Takes an inode that the version saw away from it, with its attributes.
    ///
    /// # Errors
    /// When a node cannot be read, or `Restart`.
    pub(crate) async fn remove(
        transaction: &mut Transaction<'_>,
        number: InodeNumber,
        version: SnapshotId,
    ) -> Result<()> {
        let position = inode_position(number, version);
        if is_copied(transaction, position).await? {
            transaction.put_layered(Tree::Inodes, position, Self::whiteout());
        } else {
            transaction.delete_layered(Tree::Inodes, position);
            transaction.add(Counter::INODES, -1);
        }
        for id in transaction.engine().versions.written(version) {
            drop_xattrs(transaction, number, id).await?;
        }
        Ok(())
    }
}

fn entry_of(value: Option<Value>) -> Result<Option<Inode>> {
    let slot = value.map(|value| Inode::decode_slot(&value)).transpose()?;
    Ok(slot.and_then(Slot::entry))
}

/// Whether an older version than that of the position has the inode, which is seen there.
async fn is_copied(transaction: &mut Transaction<'_>, position: Position) -> Result<bool> {
    if !transaction.is_layered(position) {
        return Ok(false);
    }
    for id in transaction.engine().versions.written(SnapshotId(position.snapshot)) {
        let own = transaction.get(Tree::Inodes, Position { snapshot: id, ..position }).await?;
        if let Some(own) = entry_of(own)? {
            return Ok(own.copied);
        }
    }
    Ok(true)
}

/// Drops the attributes that a version has itself; there are few.
async fn drop_xattrs(
    transaction: &mut Transaction<'_>,
    number: InodeNumber,
    version: u32,
) -> Result<()> {
    let mut from = Position::new(number.0, 0, 0);
    let to = Position::new(number.0, u64::MAX, u32::MAX);
    let mut found = smallvec::SmallVec::<[Position; 8]>::new();
    let at = |position: Position, _: &Value| position;
    while let Some((position, _)) =
        transaction.next_of_version_as(Tree::Xattrs, Some(version), (from, to), at).await?
    {
        found.push(position);
        from = position.successor();
    }
    for position in found {
        transaction.delete(Tree::Xattrs, position);
    }
    Ok(())
}

/// Moves what a version that is being merged has at `position` to the version `into`, in front of what that has there.
///
/// # Errors
/// When it does not decode; when a node cannot be read, or `Restart`.
pub(crate) async fn absorb_key(
    transaction: &mut Transaction<'_>,
    tree: Tree,
    position: Position,
    value: &Value,
    into: SnapshotId,
) -> Result<()> {
    match tree {
        Tree::Inodes => absorb_inode(transaction, position, value, into).await,
        Tree::Dirents => absorb_slot::<Entry>(transaction, tree, position, value, into).await,
        Tree::Xattrs => absorb_slot::<Xattr>(transaction, tree, position, value, into).await,
        _ => Err(StoreError::invalid(format!("{tree:?} has no inodes, names or attributes"))),
    }
}

/// An older version than `into` has the inode if what `into` has itself says so, or else if the merged version says so.
async fn absorb_inode(
    transaction: &mut Transaction<'_>,
    position: Position,
    value: &Value,
    into: SnapshotId,
) -> Result<()> {
    let target = Position { snapshot: into.0, ..position };
    let own = entry_of(transaction.get(Tree::Inodes, target).await?)?;
    transaction.delete(Tree::Inodes, position);
    match Inode::decode_slot(value)? {
        Slot::Entry(inode) => {
            let copied = own.map_or(inode.copied, |own| own.copied);
            transaction.put(Tree::Inodes, target, Inode { copied, ..inode }.encode());
        }
        Slot::Whiteout => {
            if own.is_none_or(|own| own.copied) {
                transaction.put(Tree::Inodes, target, Inode::whiteout());
            } else {
                transaction.delete(Tree::Inodes, target);
                transaction.add(Counter::INODES, -1);
            }
            drop_xattrs(transaction, InodeNumber(position.inode), into.0).await?;
        }
    }
    Ok(())
}

async fn absorb_slot<T: Hashed>(
    transaction: &mut Transaction<'_>,
    tree: Tree,
    position: Position,
    value: &Value,
    into: SnapshotId,
) -> Result<()> {
    match T::decode(value)? {
        Slot::Entry(_) => {
            transaction.put(tree, Position { snapshot: into.0, ..position }, value.clone());
            transaction.delete(tree, position);
            Ok(())
        }
        Slot::Whiteout => {
            let inode = InodeNumber(position.inode);
            let table = NameTable { tree, inode, snapshot: into, hash_key: 0 };
            table.remove::<T>(transaction, position.offset).await
        }
    }
}
