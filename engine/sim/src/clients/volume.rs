//! A client of a block volume.

use engine_base::BLOCK_SIZE;
use engine_memory::Buffer;
use engine_store::api::{Data, data_len};
use engine_store::client::{VolumeRef, cut};

use crate::model::volume::{Ending, Origin, WriteTicket};
use crate::options::VolumeMix;
use crate::stamp;
use crate::world::{ClientContext, Refusal, VolumeSlot, World, bytes_of};

/// Works on the volume `name` until the session's operations are used up.
pub async fn run(mut context: ClientContext, name: String, mix: VolumeMix) {
    let (reference, clients) = {
        let world = context.world.borrow();
        let Some(slot) = world.volumes.get(&name) else { return };
        (slot.reference.clone(), slot.clients)
    };
    let resize = if clients == 1 { mix.resize } else { 0 };
    let options = if clients == 1 { mix.options } else { 0 };
    let copy = if clients == 1 { mix.copy } else { 0 };
    let weights =
        [mix.write, mix.read, mix.discard, mix.flush, mix.fua, resize, mix.snapshot, options, copy];
    super::options::check(&context, &name).await;
    let mut client = VolumeClient { name, reference, mix };
    while context.next_operation().await {
        let goes_on = match context.choose(&weights) {
            0 => client.write(&mut context, false).await,
            1 => client.read(&mut context).await,
            2 => client.discard(&mut context).await,
            3 if context.random.chance(1, 2) => context.flush().await,
            3 => {
                let shard = context.random.below(u64::from(context.shard_count)) as u16;
                context.flush_shard(shard).await
            }
            4 => client.write(&mut context, true).await,
            5 => client.resize(&mut context).await,
            6 => client.snapshots(&mut context, clients == 1).await,
            8 => client.copy(&mut context).await,
            _ => super::options::change(&mut context, &client.name).await,
        };
        if !goes_on {
            return;
        }
    }
}

struct VolumeClient {
    name: String,
    reference: VolumeRef,
    mix: VolumeMix,
}

impl VolumeClient {
    fn slot<'a>(&self, world: &'a mut World) -> &'a mut VolumeSlot {
        world.volumes.get_mut(&self.name).expect("the volumes of a session do not change")
    }

    /// A range of blocks: (first, count).
    fn range(&self, context: &mut ClientContext, blocks_max: u64) -> (u64, u64) {
        let size = self.slot(&mut context.world.borrow_mut()).model.size_blocks;
        let random = &mut context.random;
        let count = match random.below(4) {
            0 => random.range(1, blocks_max),
            _ => random.range(1, blocks_max.min(4)),
        };
        let count = count.min(size);
        let hot = random.chance(self.mix.hot_eighths, 8);
        let room = if hot { (size - count).min(24) } else { size - count };
        (random.range(0, room), count)
    }

    /// Content for a write, in one piece or several.
    fn content(
        &self,
        context: &mut ClientContext,
        ticket: &WriteTicket,
        first: u64,
        count: u64,
    ) -> Data {
        let tag = self.slot(&mut context.world.borrow_mut()).model.tag;
        let mut buffer =
            Buffer::try_new(bytes_of(count) as usize).expect("the workload's buffers are small");
        for (index, block) in buffer.chunks_exact_mut(BLOCK_SIZE as usize).enumerate() {
            stamp::write(block, tag, first + index as u64, ticket.version);
        }
        let whole = Data::from_iter([buffer.freeze()]);
        if count < 2 || context.random.chance(3, 4) {
            return whole;
        }
        let len = bytes_of(count) as usize;
        // Network front ends cut where packets end, not where blocks do.
        let at = 1 + context.random.below(len as u64 - 1) as usize;
        let mut data = cut(&whole, 0, at);
        data.extend(cut(&whole, at, len - at));
        data
    }

    async fn write(&mut self, context: &mut ClientContext, fua: bool) -> bool {
        let (first, count) = self.range(context, self.mix.blocks_max);
        let ticket = {
            let world = &mut *context.world.borrow_mut();
            let slot = world.volumes.get_mut(&self.name).expect("fixed for the session");
            slot.model.start_write(&mut world.promises, first, count, false)
        };
        let data = self.content(context, &ticket, first, count);
        debug_assert_eq!(data_len(&data), bytes_of(count));
        let result = context.client.volume_write(&self.reference, bytes_of(first), data, fua).await;
        let what = if fua { "write fua" } else { "write" };
        self.end(context, ticket, (what, first, count), result, fua)
    }

    async fn discard(&mut self, context: &mut ClientContext) -> bool {
        let (first, count) = self.range(context, self.mix.blocks_max * 8);
        let ticket = {
            let world = &mut *context.world.borrow_mut();
            let slot = world.volumes.get_mut(&self.name).expect("fixed for the session");
            slot.model.start_write(&mut world.promises, first, count, true)
        };
        let (offset, len) = (bytes_of(first), bytes_of(count));
        let result = context.client.volume_discard(&self.reference, offset, len).await;
        self.end(context, ticket, ("discard", first, count), result, false)
    }

    fn end(
        &self,
        context: &ClientContext,
        ticket: WriteTicket,
        (what, first, count): (&'static str, u64, u64),
        result: engine_store::Result<()>,
        durable: bool,
    ) -> bool {
        let chunk = |block: u64| bytes_of(block) >> engine_base::ids::CHUNK_SIZE_LOG2;
        let world = &mut *context.world.borrow_mut();
        let mut goes_on = true;
        let ending = match &result {
            Ok(()) => Ending::Done,
            Err(error) => match world.judge(error) {
                // Several requests: the parts on other chunks may be done.
                Refusal::NoRoom if chunk(first) != chunk(first + count - 1) => Ending::Unknown,
                // A discard works in steps, and so does a copy.
                Refusal::NoRoom if matches!(ticket.version, 0 | u64::MAX) => Ending::Unknown,
                Refusal::NoRoom => Ending::Refused,
                Refusal::Device => {
                    goes_on = false;
                    Ending::Unknown
                }
                Refusal::Wrong => {
                    world.fail(format!(
                        "{what} of {count} blocks at {first} of {}: {error}",
                        self.name
                    ));
                    Ending::Unknown
                }
            },
        };
        match ending {
            Ending::Done => world.mark(what),
            _ => world.mark("write_refused"),
        }
        let slot = world.volumes.get_mut(&self.name).expect("fixed for the session");
        slot.model.end_write(&mut world.promises, ticket, ending, durable);
        let numbers = [first, count, ticket.version];
        world.event(context.executor.now_ns(), context.number, what, numbers);
        goes_on
    }

    /// Copies a range within the volume. Nobody else works in it, so it is known what the range holds.
    async fn copy(&mut self, context: &mut ClientContext) -> bool {
        let (first, count) = self.range(context, self.mix.blocks_max * 2);
        let size = self.slot(&mut context.world.borrow_mut()).model.size_blocks;
        let chunk = (1 << engine_base::ids::CHUNK_SIZE_LOG2) / BLOCK_SIZE;
        let stripe = chunk * u64::from(context.shard_count);
        let to = match context.random.below(4) {
            // The same place of another chunk of the shard.
            0 if first + stripe + count <= size => first + stripe,
            0 if first >= stripe => first - stripe,
            _ => context.random.range(0, size - count),
        };
        if to < first + count && first < to + count {
            return true;
        }
        let (offset, len) = (bytes_of(first), bytes_of(count));
        let data = match context.client.volume_read(&self.reference, offset, len).await {
            Ok(data) => data,
            Err(error) => return context.tolerates("read before a copy", &error),
        };
        let ticket = {
            let world = &mut *context.world.borrow_mut();
            let slot = world.volumes.get_mut(&self.name).expect("fixed for the session");
            let tag = slot.model.tag;
            let origins: Vec<Option<Origin>> = (0..count)
                .map(|index| match found_at(&data, index, tag, first + index) {
                    stamp::Found::Version(version) => Some((tag, first + index, version)),
                    stamp::Found::Misplaced { volume, block, version } => {
                        Some((volume, block, version))
                    }
                    // What is wrong is told by who reads it.
                    _ => None,
                })
                .collect();
            slot.model.start_copy(&mut world.promises, to, &origins)
        };
        let (from, there) = ((&self.reference, offset), (&self.reference, bytes_of(to)));
        let result = context.client.volume_copy(from, there, len).await;
        if let Ok(stats) = &result
            && stats.shared_bytes > 0
        {
            context.world.borrow_mut().mark("copy_shared");
        }
        self.end(context, ticket, ("copy", to, count), result.map(drop), false)
    }

    async fn read(&mut self, context: &mut ClientContext) -> bool {
        let (first, count) = self.range(context, self.mix.blocks_max);
        let started = context.world.borrow_mut().promises.start();
        let (offset, len) = (bytes_of(first), bytes_of(count));
        let result = context.client.volume_read(&self.reference, offset, len).await;
        let world = &mut *context.world.borrow_mut();
        let model = &self.slot(world).model;
        let checked = match &result {
            Ok(data) => check_read(model, data, (first, count), started),
            Err(_) => Ok(()),
        };
        world.promises.end(started);
        world.event(context.executor.now_ns(), context.number, "read", [first, count, 0]);
        if let Err(broken) = checked {
            world.fail(broken);
        }
        match result {
            Ok(_) => {
                world.mark("read");
                true
            }
            Err(error) => match world.judge(&error) {
                Refusal::Device => {
                    world.mark("device_error");
                    true
                }
                _ => {
                    world.fail(format!(
                        "read of {count} blocks at {first} of {}: {error}",
                        self.name
                    ));
                    false
                }
            },
        }
    }

    async fn snapshots(&mut self, context: &mut ClientContext, alone: bool) -> bool {
        match super::snapshots::work(context, &self.name, alone).await {
            Some(Some(reference)) => self.reference = reference,
            Some(None) => {}
            None => return false,
        }
        true
    }

    async fn resize(&mut self, context: &mut ClientContext) -> bool {
        let size_blocks = {
            let old = self.slot(&mut context.world.borrow_mut()).model.size_blocks;
            let least = old / 2 + 1;
            context.random.range(least.max(16), (old + old / 2).clamp(16, 8192))
        };
        let started = {
            let world = &mut *context.world.borrow_mut();
            let started = world.promises.start();
            let slot = self.slot(world);
            slot.resizing = Some((size_blocks, started));
            slot.model.resize_in_doubt(size_blocks, started);
            started
        };
        let result = context.client.volume_resize(&self.name, bytes_of(size_blocks)).await;
        let world = &mut *context.world.borrow_mut();
        let ended = world.promises.end(started);
        let numbers = [size_blocks, started, u64::from(result.is_ok())];
        world.event(context.executor.now_ns(), context.number, "resize", numbers);
        match result {
            Ok(info) => {
                if info.size_bytes != bytes_of(size_blocks) {
                    world.fail(format!("resize of {} answered {}", self.name, info.size_bytes));
                }
                world.mark("resize");
                let slot = self.slot(world);
                slot.resizing = None;
                slot.model.resized(size_blocks, started, ended);
                self.reference.size_bytes = bytes_of(size_blocks);
                true
            }
            Err(error) => match world.judge(&error) {
                Refusal::Wrong => {
                    world.fail(format!("resize of {} to {size_blocks}: {error}", self.name));
                    false
                }
                // What is left in doubt a crash settles.
                _ => false,
            },
        }
    }
}

/// Checks every block of a read.
///
/// # Errors
/// The first block that holds what it may not.
pub fn check_read(
    model: &crate::model::volume::VolumeModel,
    data: &Data,
    (first, count): (u64, u64),
    started: u64,
) -> Result<(), String> {
    if data_len(data) != bytes_of(count) {
        return Err(format!("read of {count} blocks answered {} bytes", data_len(data)));
    }
    for index in 0..count {
        let block = first + index;
        let found = found_at(data, index, model.tag, block);
        model.check_read(block, found, started)?;
    }
    Ok(())
}

/// What the block at `index` of `data` is.
#[must_use]
pub fn found_at(data: &Data, index: u64, tag: u64, block: u64) -> stamp::Found {
    let part = cut(data, bytes_of(index) as usize, BLOCK_SIZE as usize);
    match part.as_slice() {
        [whole] => stamp::read(whole, tag, block),
        _ => stamp::read(&super::joined(&part), tag, block),
    }
}
