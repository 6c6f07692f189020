//! Places of names in the `Names` tree, and what names may be.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use super::format::{COLLECTION_BYTES_MAX, PoolName};
use crate::api::NAME_BYTES_MAX;
use crate::error::{Result, StoreError};
use crate::key::{Position, Tree};
use crate::transaction::Transaction;

/// First place of a name. The key of the hash is fixed: names are found by the table in memory, so
/// collisions, even chosen ones, cost a little space in the tree and nothing else.
fn hash(collection: &str, name: &str) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(collection.as_bytes());
    hasher.write_u8(0);
    hasher.write(name.as_bytes());
    hasher.finish()
}

/// The place of a name, or the first free one that it could have.
async fn place(
    transaction: &mut Transaction<'_>,
    collection: &str,
    name: &str,
) -> Result<(Position, Option<PoolName>)> {
    let hash = hash(collection, name);
    let (first, last) = (Position::new(hash, 0, 0), Position::new(hash, u64::MAX, 0));
    let (mut free, mut from) = (None, first);
    let mut expected = 0;
    while let Some((position, value)) = transaction.next(Tree::Names, from, last).await? {
        let found = PoolName::decode(&value)?;
        if found.key() == (collection, name) {
            return Ok((position, Some(found)));
        }
        if position.offset != expected && free.is_none() {
            free = Some(expected);
        }
        expected = position.offset + 1;
        from = Position::new(hash, expected, 0);
    }
    Ok((Position::new(hash, free.unwrap_or(expected), 0), None))
}

/// The stored name.
pub(super) async fn get(
    transaction: &mut Transaction<'_>,
    collection: &str,
    name: &str,
) -> Result<Option<PoolName>> {
    Ok(place(transaction, collection, name).await?.1)
}

/// Stores a name, in place of what it was.
pub(super) async fn put(transaction: &mut Transaction<'_>, name: &PoolName) -> Result<()> {
    let (collection, text) = name.key();
    let (position, _) = place(transaction, collection, text).await?;
    transaction.put(Tree::Names, position, name.encode());
    Ok(())
}

/// Removes a name if it is there.
pub(super) async fn delete(
    transaction: &mut Transaction<'_>,
    collection: &str,
    name: &str,
) -> Result<()> {
    let (position, found) = place(transaction, collection, name).await?;
    if found.is_some() {
        transaction.delete(Tree::Names, position);
    }
    Ok(())
}

fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Whether `name` may be the name of a subvolume.
pub(super) fn check_subvolume_name(name: &str) -> Result<()> {
    let good = (1..=NAME_BYTES_MAX).contains(&name.len())
        && is_plain(name)
        && !name.starts_with(['.', '-']);
    if good {
        return Ok(());
    }
    Err(StoreError::invalid(format!(
        "subvolume name: 1 to {NAME_BYTES_MAX} of A-Z a-z 0-9 . _ - and neither . nor - first"
    )))
}

/// Whether a record may have this collection and name.
pub(super) fn check_record_name(collection: &str, name: &str) -> Result<()> {
    if !(1..=COLLECTION_BYTES_MAX).contains(&collection.len()) || !is_plain(collection) {
        return Err(StoreError::invalid(format!(
            "collection: 1 to {COLLECTION_BYTES_MAX} of A-Z a-z 0-9 . _ -"
        )));
    }
    if !(1..=NAME_BYTES_MAX).contains(&name.len()) || name.chars().any(char::is_control) {
        return Err(StoreError::invalid(format!(
            "record name: 1 to {NAME_BYTES_MAX} bytes without control characters"
        )));
    }
    Ok(())
}
