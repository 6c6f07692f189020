//! Extended attributes.

use engine_base::InodeNumber;

use super::format::Xattr;
use super::table::NameTable;
use super::{InodeRef, Namespace, shown};
use crate::api::{NAME_BYTES_MAX, PutMode, TreeRef, XATTR_VALUE_BYTES_MAX};
use crate::error::{Result, StoreError};
use crate::key::Tree;
use crate::limits::XATTRS_MAX;
use crate::lock::Access;
use crate::transaction::Transaction;

impl Namespace {
    pub(super) async fn xattr_get(
        &self,
        tree: TreeRef,
        number: InodeNumber,
        name: &[u8],
    ) -> Result<Vec<u8>> {
        self.reading(tree, async |tree| {
            let target = InodeRef::of(tree, number);
            let mut transaction = self.context.engine.read();
            let inode = target.load(&mut transaction).await?;
            let table = target.table(Tree::Xattrs, &inode);
            match table.find::<Xattr>(&mut transaction, name).await?.entry {
                Some(xattr) => Ok(xattr.value),
                None => Err(missing(name)),
            }
        })
        .await
    }

    pub(super) async fn xattr_set(
        &self,
        tree: TreeRef,
        number: InodeNumber,
        name: Vec<u8>,
        value: Vec<u8>,
        mode: PutMode,
    ) -> Result<()> {
        if !(1..=NAME_BYTES_MAX).contains(&name.len()) || name.contains(&0) {
            return Err(StoreError::invalid(format!(
                "xattr name: 1 to {NAME_BYTES_MAX} bytes without NUL"
            )));
        }
        if value.len() > XATTR_VALUE_BYTES_MAX {
            let len = value.len();
            return Err(StoreError::invalid(format!(
                "xattr value of {len} bytes: {XATTR_VALUE_BYTES_MAX} at most"
            )));
        }
        let (_pass, tree) = self.enter(tree).await?;
        let _reservation = self.context.engine.reserve(0).await?;
        let _locks = self.lock([(number, Access::Exclusive)]).await?;
        let (now, target) = (self.context.now(), InodeRef::of(tree, number));
        let xattr = Xattr { name, value };
        self.context
            .engine
            .transact(async |transaction| {
                let mut inode = target.load(transaction).await?;
                let table = target.table(Tree::Xattrs, &inode);
                let found = table.find::<Xattr>(transaction, &xattr.name).await?;
                match (&found.entry, mode) {
                    (Some(_), PutMode::Create) => {
                        let what = format!("xattr {}", shown(&xattr.name));
                        return Err(StoreError::AlreadyExists { what });
                    }
                    (None, PutMode::Replace) => return Err(missing(&xattr.name)),
                    (None, _) if all(transaction, &table).await?.len() >= XATTRS_MAX => {
                        return Err(StoreError::Overloaded {
                            what: format!("xattrs of inode {number}: {XATTRS_MAX} at most"),
                        });
                    }
                    _ => {}
                }
                table.put(transaction, found.place, &xattr);
                inode.ctime = now;
                target.store(transaction, &inode).await?;
                Ok(())
            })
            .await
    }

    pub(super) async fn xattr_list(
        &self,
        tree: TreeRef,
        number: InodeNumber,
    ) -> Result<Vec<Vec<u8>>> {
        self.reading(tree, async |tree| {
            let target = InodeRef::of(tree, number);
            let mut transaction = self.context.engine.read();
            let inode = target.load(&mut transaction).await?;
            all(&mut transaction, &target.table(Tree::Xattrs, &inode)).await
        })
        .await
    }

    pub(super) async fn xattr_remove(
        &self,
        tree: TreeRef,
        number: InodeNumber,
        name: &[u8],
    ) -> Result<()> {
        let (_pass, tree) = self.enter(tree).await?;
        let _locks = self.lock([(number, Access::Exclusive)]).await?;
        let (now, target) = (self.context.now(), InodeRef::of(tree, number));
        self.context
            .engine
            .transact(async |transaction| {
                let mut inode = target.load(transaction).await?;
                let table = target.table(Tree::Xattrs, &inode);
                let found = table.find::<Xattr>(transaction, name).await?;
                if found.entry.is_none() {
                    return Err(missing(name));
                }
                table.remove::<Xattr>(transaction, found.place).await?;
                inode.ctime = now;
                target.store(transaction, &inode).await?;
                Ok(())
            })
            .await
    }
}

/// All names; there are at most [`XATTRS_MAX`].
async fn all(transaction: &mut Transaction<'_>, table: &NameTable) -> Result<Vec<Vec<u8>>> {
    let (mut names, mut place) = (Vec::new(), 0);
    while let Some((at, xattr)) = table.next::<Xattr>(transaction, place).await? {
        names.push(xattr.name);
        place = at;
    }
    Ok(names)
}

fn missing(name: &[u8]) -> StoreError {
    StoreError::not_found(format!("xattr {}", shown(name)))
}
