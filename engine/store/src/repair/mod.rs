//! Repair of a shard: what fsck finds wrong in its structures is put right, as far as it can be.
//!
//! Every repair is a transaction, or a change of keys that leaves the shard in a state which fsck
//! handles: a crash in the middle loses nothing but the rest of the repair, which is taken up by the
//! next. The order matters, since each step stands on the one before:
//!
//! 1. [`nodes`]: nodes that cannot be read give way to empty ones; their keys are lost and listed.
//! 2. [`extents`]: extents that cannot be are dropped or cut.
//! 3. [`sharing`]: shared extents are set to what the references say, references to nothing are cut.
//! 4. [`space`]: buckets and counters are set to what the index says. From here on transactions work.
//! 5. [`names`]: names, links, sizes of directories; what has no name goes to lost+found.
//! 6. [`owners`], when all shards have done the above: extents of inodes that are gone.

mod extents;
mod names;
mod nodes;
mod owners;
mod sharing;
mod space;

pub(crate) use nodes::MENDABLE;

use std::rc::Rc;

use crate::api::FsckReport;
use crate::context::Context;
use crate::error::{Result, StoreError};
use crate::namespace::Namespace;

/// Lines that a shard's repair tells; more are counted.
const LINES_MAX: usize = 1000;

/// What was repaired, bounded.
pub(crate) struct Repairs {
    shard: u16,
    lines: Vec<String>,
    count: u64,
}

impl Repairs {
    pub(crate) fn add(&mut self, text: impl Into<String>) {
        self.count += 1;
        if self.lines.len() < LINES_MAX {
            self.lines.push(format!("shard {}: repaired: {}", self.shard, text.into()));
        }
    }
}

/// Repairs this shard; with `owners`, what depends on the names of other shards, which these must have
/// repaired before. The report's notes say what was done.
pub(crate) async fn repair(
    context: &Rc<Context>,
    namespace: &Rc<Namespace>,
    owners: bool,
) -> Result<FsckReport> {
    let mut repairs = Repairs { shard: context.shard().0, lines: Vec::new(), count: 0 };
    if owners {
        self::owners::repair(context, &mut repairs).await?;
    } else {
        let engine = &context.engine;
        let (_keep, _unreadable) = engine.load_all().await?;
        engine.mend_nodes(&mut repairs).await?;
        engine.mend_extents(&mut repairs).await?;
        engine.mend_sharing(&mut repairs).await?;
        engine.mend_space(&mut repairs).await?;
        let lost = engine.note_missing_areas().await?;
        if lost > 0 {
            repairs.add(format!("{lost} areas of versions noted again"));
        }
        names::repair(context, namespace, &mut repairs).await?;
    }
    context.engine.save_damage().await?;
    context.engine.flush().await?;
    let more = repairs.count - repairs.lines.len() as u64;
    if more > 0 {
        repairs.lines.push(format!("shard {}: and {more} more repairs", repairs.shard));
    }
    let checked = vec![("repairs", repairs.count)];
    Ok(FsckReport { notes: repairs.lines, checked, ..FsckReport::default() })
}

/// Whether an error says that keys are lost, rather than that the work cannot go on.
pub(crate) fn is_loss(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Corrupt { .. } | StoreError::Device(engine_device::DeviceError::Io { .. })
    )
}
