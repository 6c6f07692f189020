//! The clients: each a task that does one operation after the other, keeps the model up to date and
//! checks every answer against it.

pub mod administration;
pub mod members;
pub mod options;
pub mod scrub;
pub mod snapshots;
mod transfers;
pub mod tree;
pub mod tree_reads;
pub mod tree_snapshots;
pub mod volume;

use std::cell::RefMut;

use engine_memory::{Buffer, Slice};
use engine_store::api::Data;

use crate::world::World;

/// Bytes as the engine takes them.
///
/// # Panics
/// When there is no memory for a buffer of the size the workload uses.
#[must_use]
pub fn slice_of(bytes: &[u8]) -> Slice {
    Buffer::try_copy_of(bytes).expect("the workload's buffers are small").freeze()
}

/// All pieces in one.
#[must_use]
pub fn joined(data: &Data) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(data.iter().map(|piece| piece.len()).sum());
    data.iter().for_each(|piece| bytes.extend_from_slice(piece));
    bytes
}

/// The part `pick` of the world.
fn part<'a, T>(world: RefMut<'a, World>, pick: impl FnOnce(&mut World) -> &mut T) -> RefMut<'a, T> {
    RefMut::map(world, pick)
}
