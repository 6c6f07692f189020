//! I/O commands: checks, the way to the backend and back.

use super::Connection;
use super::namespace::CoreNamespace;
use crate::backend::{Backend, ByteRange, IoOutput, IoRequest, IoResult, Namespace};
use crate::connection::copy::{CopyLimits, copy_sources};
use crate::connection::slot::SlotState;
use crate::controller::AbortReply;
use crate::limits::COPY_RANGES_MAX;
use crate::stats::OperationKind;
use crate::subsystem::lock;
use nvme_spec::command::{CopyRange, DSM_RANGES_MAX, DsmRange};
use nvme_spec::{DataPointer, IoCommand, LbaRange, Status};
use smallvec::SmallVec;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use zerocopy::FromBytes;

impl<B: Backend> Connection<B> {
    /// The namespace `nsid`, opened on this core.
    pub(super) fn namespace(&mut self, nsid: u32) -> Result<Rc<CoreNamespace<B>>, Status> {
        let queue = self.queue.as_ref().ok_or(Status::COMMAND_SEQUENCE_ERROR)?;
        let subsystem = &queue.controller.subsystem;
        if subsystem.generation() != self.namespaces_generation {
            let subsystem = std::sync::Arc::clone(subsystem);
            self.namespaces_generation = subsystem.generation();
            let valid: Vec<_> = subsystem.namespaces();
            self.namespaces
                .retain(|(_, open)| valid.iter().any(|shared| shared.uid == open.shared.uid));
        }
        if let Some((_, open)) = self.namespaces.iter().find(|(id, _)| *id == nsid) {
            return Ok(Rc::clone(open));
        }
        let queue = self.queue.as_ref().ok_or(Status::COMMAND_SEQUENCE_ERROR)?;
        let shared = queue.controller.subsystem.namespace(nsid).ok_or(Status::INVALID_NAMESPACE)?;
        let open = self.context.open(&shared).map_err(|error| error.to_status())?;
        self.namespaces.push((nsid, Rc::clone(&open)));
        Ok(open)
    }

    /// Drops namespaces that were removed, so that the backend can let go of them.
    pub(super) fn refresh_namespaces(&mut self) {
        let Some(queue) = &self.queue else { return };
        let subsystem = &queue.controller.subsystem;
        if subsystem.generation() == self.namespaces_generation {
            return;
        }
        self.namespaces_generation = subsystem.generation();
        let valid = subsystem.namespaces();
        self.namespaces
            .retain(|(_, open)| valid.iter().any(|shared| shared.uid == open.shared.uid));
    }

    /// Checks an I/O command against its namespace, and keeps the namespace in the slot.
    pub(super) fn check_io(&mut self, index: u16, command: &IoCommand) -> Result<(), Status> {
        let queue = self.queue.as_ref().ok_or(Status::COMMAND_SEQUENCE_ERROR)?;
        if !queue.controller.is_ready() {
            return Err(Status::COMMAND_SEQUENCE_ERROR);
        }
        let namespace = self.namespace(command.nsid())?;
        let shared = &namespace.shared;
        let size_blocks = shared.size_blocks.load(Ordering::Acquire);
        let block_size_log2 = u32::from(shared.config.block_size_log2);
        let check_transfer = |range: LbaRange, data: DataPointer| {
            let bytes = u64::from(range.blocks) << block_size_log2;
            if bytes > u64::from(self.context.target.limits().transfer_len_max()) {
                return Err(Status::INVALID_FIELD);
            }
            if bytes != u64::from(data.len()) {
                return Err(Status::DATA_SGL_LENGTH_INVALID);
            }
            range.check_within(size_blocks).map(|_| ())
        };
        match *command {
            IoCommand::Read { range, data, .. } => {
                if !matches!(data, DataPointer::Transport { .. }) {
                    return Err(Status::SGL_TYPE_INVALID);
                }
                check_transfer(range, data)?;
            }
            IoCommand::Write { range, data, .. } => check_transfer(range, data)?,
            IoCommand::WriteZeroes { range, .. } => {
                range.check_within(size_blocks)?;
            }
            IoCommand::DatasetManagement { range_count, data, .. } => {
                check_ranges_len(data, range_count, (DSM_RANGES_MAX, size_of::<DsmRange>()))?;
            }
            IoCommand::Copy { range_count, data, .. } => {
                if usize::from(range_count) > COPY_RANGES_MAX {
                    return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED);
                }
                check_ranges_len(data, range_count, (COPY_RANGES_MAX, size_of::<CopyRange>()))?;
            }
            IoCommand::Flush { .. } => {}
        }
        let writes = !matches!(command, IoCommand::Read { .. } | IoCommand::Flush { .. });
        if writes && shared.read_only.load(Ordering::Acquire) {
            return Err(Status::NAMESPACE_WRITE_PROTECTED);
        }
        self.slots[usize::from(index)].namespace = Some(namespace);
        Ok(())
    }

    pub(super) fn execute_io(&mut self, index: u16, command: IoCommand) {
        let request = match self.io_request(index, command) {
            Ok(Some(request)) => request,
            Ok(None) => return self.complete(index, 0, Status::SUCCESS),
            Err(status) => return self.complete(index, 0, status),
        };
        let slot = &mut self.slots[usize::from(index)];
        let namespace = slot.namespace.as_ref().expect("check_io put the namespace there");
        let future = namespace.backend.submit(request);
        slot.future.set(Some(future));
        slot.state = SlotState::Running;
        self.running += 1;
        self.poll_slot(usize::from(index));
    }

    /// The request for the backend; `None` when there is nothing to do.
    fn io_request(&mut self, index: u16, command: IoCommand) -> Result<Option<IoRequest>, Status> {
        let slot = &self.slots[usize::from(index)];
        let namespace = slot.namespace.as_ref().expect("check_io put the namespace there");
        let shift = u32::from(namespace.shared.config.block_size_log2);
        let bytes = |range: LbaRange| ByteRange {
            offset: range.first << shift,
            len: u64::from(range.blocks) << shift,
        };
        Ok(Some(match command {
            IoCommand::Flush { .. } => IoRequest::Flush,
            IoCommand::Read { range, data, .. } => {
                IoRequest::Read { offset: bytes(range).offset, len: data.len() }
            }
            IoCommand::Write { range, fua, .. } => {
                let offset = bytes(range).offset;
                IoRequest::Write { offset, data: self.take_host_data(index), fua }
            }
            IoCommand::WriteZeroes { range, deallocate, fua, .. } => {
                IoRequest::WriteZeroes { range: bytes(range), deallocate, fua }
            }
            IoCommand::DatasetManagement { range_count, deallocate, .. } => {
                let size_blocks = namespace.shared.size_blocks.load(Ordering::Acquire);
                let data = self.take_host_data(index);
                let mut ranges = SmallVec::new();
                let mut sum = 0;
                for raw in data.chunks_exact(size_of::<DsmRange>()).take(usize::from(range_count)) {
                    let raw = DsmRange::read_from_bytes(raw).expect("chunks have its size");
                    let range = LbaRange { first: raw.first.get(), blocks: raw.blocks.get() };
                    range.check_within(size_blocks)?;
                    if range.blocks > 0 {
                        sum += bytes(range).len;
                        ranges.push(bytes(range));
                    }
                }
                if !deallocate || ranges.is_empty() {
                    return Ok(None);
                }
                self.slots[usize::from(index)].data_len = u32::try_from(sum).unwrap_or(u32::MAX);
                IoRequest::Deallocate { ranges }
            }
            IoCommand::Copy { destination, range_count, fua, .. } => {
                let limits = CopyLimits::new(namespace.shared.config.block_size_log2);
                let size_blocks = namespace.shared.size_blocks.load(Ordering::Acquire);
                let data = self.take_host_data(index);
                let descriptors = &data[..usize::from(range_count) * size_of::<CopyRange>()];
                let (sources, blocks) =
                    copy_sources(descriptors, destination, size_blocks, limits)?;
                self.slots[usize::from(index)].data_len = blocks << shift;
                let sources = sources.into_iter().map(bytes).collect();
                IoRequest::Copy { sources, offset: destination << shift, fua }
            }
        }))
    }

    /// Polls the backend's operation in a slot, if there is one.
    pub(super) fn poll_slot(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        let Some(future) = slot.future.as_mut().as_pin_mut() else { return };
        let mut context = Context::from_waker(&slot.waker);
        if let Poll::Ready(result) = future.poll(&mut context) {
            slot.future.set(None);
            self.running -= 1;
            self.finish_io(index as u16, result);
        }
    }

    fn finish_io(&mut self, index: u16, result: IoResult) {
        if !self.answers() {
            return self.free_slot(index);
        }
        let slot = &self.slots[usize::from(index)];
        let reads = slot.kind == OperationKind::Read;
        let copies = slot.kind == OperationKind::Copy;
        match result {
            Ok(IoOutput::Data(data)) if reads => {
                let len: usize = data.iter().map(|slice| slice.len()).sum();
                if len == slot.data_len as usize {
                    self.complete_with_data(index, data);
                } else {
                    tracing::error!(len, wanted = slot.data_len, "the backend read too few bytes");
                    self.complete(index, 0, Status::INTERNAL_ERROR);
                }
            }
            Ok(IoOutput::Done) if !reads => {
                let charged = std::mem::take(&mut self.slots[usize::from(index)].charged);
                self.release(charged);
                self.complete(index, 0, Status::SUCCESS);
            }
            Ok(IoOutput::Stopped { copied, cause }) if copies => {
                tracing::warn!(%cause, copied, "a copy ended early");
                // The lowest range that was not copied (NVM 1.0, section 3.2.2).
                self.complete(index, u64::from(copied), cause.to_status());
            }
            Ok(_) => {
                tracing::error!("the backend answered with the wrong kind of output");
                self.complete(index, 0, Status::INTERNAL_ERROR);
            }
            Err(error) => {
                tracing::warn!(%error, "backend operation failed");
                self.complete(index, 0, error.to_status());
            }
        }
    }

    /// Answers the aborts that the admin queue passed on. A command that waits for room is aborted;
    /// one that the backend or the network works on is not: it will end by itself.
    pub(super) fn answer_aborts(&mut self) {
        let Some(queue) = &self.queue else { return };
        let controller = queue.controller.clone();
        let requests = std::mem::take(&mut *lock(&queue.link.aborts));
        for request in requests {
            let aborted = self.abort_waiting(request.cid);
            let reply = AbortReply { admin_slot: request.admin_slot, aborted };
            controller.reply_abort(reply);
        }
    }

    fn abort_waiting(&mut self, cid: u16) -> bool {
        let slots = &self.slots;
        let place = self.awaiting_budget.iter().position(|&i| slots[usize::from(i)].cid == cid);
        let Some(index) = place.and_then(|place| self.awaiting_budget.remove(place)) else {
            return false;
        };
        self.complete(index, 0, Status::ABORTED_BY_REQUEST);
        true
    }
}

/// Checks the data of a command that names ranges: `most` at most, of `range_bytes` each. There may be
/// more than it needs: Linux always hands over a whole page, however few ranges it names.
fn check_ranges_len(
    data: DataPointer,
    range_count: u16,
    (most, range_bytes): (usize, usize),
) -> Result<(), Status> {
    let allowed = usize::from(range_count) * range_bytes..=most * range_bytes;
    if allowed.contains(&(data.len() as usize)) {
        Ok(())
    } else {
        Err(Status::DATA_SGL_LENGTH_INVALID)
    }
}
