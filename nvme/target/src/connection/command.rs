//! From a command capsule to its execution: which queue takes what, and where data come from.

use super::Connection;
use crate::backend::Backend;
use crate::connection::slot::{SlotState, Work};
use crate::stats::OperationKind;
use engine_memory::Buffer;
use nvme_spec::fabrics::{ConnectData, FabricsCommand};
use nvme_spec::pdu::{FatalError, PduError};
use nvme_spec::{AdminCommand, DataPointer, IoCommand, Sqe, Status};

/// What a command needs before it can be executed.
enum Plan {
    Nothing,
    HostData(DataPointer),
    /// Room for the bytes it reads.
    Room(u32),
}

impl<B: Backend> Connection<B> {
    /// Takes a command whose capsule carries `capsule_len` bytes of data; returns the slot that wants
    /// them.
    pub(super) fn begin_command(
        &mut self,
        sqe: &Sqe,
        capsule_len: u32,
    ) -> Result<Option<u16>, PduError> {
        // More commands than the queue has entries: the host broke its promise.
        let sequence = PduError::new(FatalError::SequenceError);
        let index = self.free_slots.pop().ok_or(sequence)?;
        self.slots[usize::from(index)].occupy(sqe.cid.get(), self.now_ns);
        if let Some(queue) = &mut self.queue {
            queue.head = (queue.head + 1) % queue.entries;
            queue.controller.note_traffic();
        }
        let plan = self.plan(index, sqe);
        Ok(self.follow(index, plan, capsule_len))
    }

    /// Parses a command and looks at what it needs.
    fn plan(&mut self, index: u16, sqe: &Sqe) -> Result<Plan, Status> {
        let queue_id = self.queue.as_ref().map(|queue| queue.id);
        if FabricsCommand::is_fabrics(sqe) {
            let command = FabricsCommand::parse(sqe)?;
            self.slots[usize::from(index)].work = Some(Work::Fabrics(command));
            return match command {
                FabricsCommand::Connect { .. } if queue_id.is_some() => {
                    Err(Status::COMMAND_SEQUENCE_ERROR)
                }
                FabricsCommand::Connect { data, .. } => {
                    if data.len() as usize != size_of::<ConnectData>() {
                        return Err(Status::DATA_SGL_LENGTH_INVALID);
                    }
                    Ok(Plan::HostData(data))
                }
                _ if queue_id == Some(0) => Ok(Plan::Nothing),
                _ => Err(Status::COMMAND_SEQUENCE_ERROR),
            };
        }
        match queue_id {
            None => Err(Status::COMMAND_SEQUENCE_ERROR),
            Some(0) => {
                let command = AdminCommand::parse(sqe)?;
                self.slots[usize::from(index)].work = Some(Work::Admin(command));
                // No admin command of ours takes data; what a capsule carries is dropped.
                Ok(Plan::Nothing)
            }
            Some(_) => {
                let command = IoCommand::parse(sqe)?;
                self.slots[usize::from(index)].work = Some(Work::Io(command));
                self.slots[usize::from(index)].kind = kind_of(&command);
                self.check_io(index, &command)?;
                Ok(match command {
                    IoCommand::Read { data, .. } => Plan::Room(data.len()),
                    IoCommand::Write { data, .. }
                    | IoCommand::DatasetManagement { data, .. }
                    | IoCommand::Copy { data, .. } => Plan::HostData(data),
                    IoCommand::Flush { .. } | IoCommand::WriteZeroes { .. } => Plan::Nothing,
                })
            }
        }
    }

    fn follow(&mut self, index: u16, plan: Result<Plan, Status>, capsule_len: u32) -> Option<u16> {
        match plan {
            Err(status) => self.complete(index, 0, status),
            Ok(Plan::Nothing) => self.execute(index),
            Ok(Plan::Room(len)) => {
                self.slots[usize::from(index)].data_len = len;
                self.await_budget(index);
            }
            Ok(Plan::HostData(DataPointer::InCapsule { offset, len })) => {
                match self.expect_capsule_data(index, offset, len, capsule_len) {
                    Ok(()) => return Some(index),
                    Err(status) => self.complete(index, 0, status),
                }
            }
            Ok(Plan::HostData(DataPointer::Transport { len })) => {
                // A command without a byte to move has no business with a transport SGL.
                if len == 0 || len > self.context.target.limits().transfer_len_max() {
                    self.complete(index, 0, Status::DATA_SGL_LENGTH_INVALID);
                } else {
                    self.slots[usize::from(index)].data_len = len;
                    self.await_budget(index);
                }
            }
        }
        None
    }

    fn expect_capsule_data(
        &mut self,
        index: u16,
        offset: u64,
        len: u32,
        capsule_len: u32,
    ) -> Result<(), Status> {
        let end = offset.checked_add(u64::from(len)).filter(|&end| end <= u64::from(capsule_len));
        if end.is_none() || len == 0 {
            return Err(Status::SGL_OFFSET_INVALID);
        }
        let buffer = Buffer::try_new(capsule_len as usize).map_err(|_| Status::INTERNAL_ERROR)?;
        let slot = &mut self.slots[usize::from(index)];
        slot.buffer = Some(buffer);
        slot.data_start = offset as usize;
        slot.data_len = len;
        slot.state = SlotState::ReceivingCapsule;
        Ok(())
    }

    /// Queues a command for room among the bytes in flight, and admits it if there is some.
    fn await_budget(&mut self, index: u16) {
        self.slots[usize::from(index)].state = SlotState::AwaitingBudget;
        self.awaiting_budget.push_back(index);
        self.admit_waiting();
    }

    /// Admits waiting commands in order, as far as there is room.
    pub(super) fn admit_waiting(&mut self) {
        while let Some(&index) = self.awaiting_budget.front() {
            let len = u64::from(self.slots[usize::from(index)].data_len);
            if !self.try_charge(index, len) {
                return;
            }
            self.awaiting_budget.pop_front();
            let reads = matches!(
                self.slots[usize::from(index)].work,
                Some(Work::Io(IoCommand::Read { .. }))
            );
            if reads {
                self.execute(index);
            } else {
                self.request_host_data(index);
            }
        }
    }

    fn request_host_data(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        match Buffer::try_new(slot.data_len as usize) {
            Ok(buffer) => {
                slot.buffer = Some(buffer);
                slot.state = SlotState::ReceivingData;
                self.receiver.expected_bytes += u64::from(slot.data_len);
                self.push_ready_to_transfer(index);
            }
            Err(_) => self.complete(index, 0, Status::INTERNAL_ERROR),
        }
    }

    /// All data of a command arrived.
    pub(super) fn host_data_complete(&mut self, index: u16) {
        if self.slots[usize::from(index)].digest_failed {
            // A data digest error is not fatal to the connection (TCP 1.0, section 3.5.1).
            self.complete(index, 0, Status::TRANSIENT_TRANSPORT_ERROR);
        } else {
            self.execute(index);
        }
    }

    fn execute(&mut self, index: u16) {
        let work = self.slots[usize::from(index)].work.expect("a planned command has its work");
        match work {
            Work::Fabrics(command) => self.execute_fabrics(index, command),
            Work::Admin(command) => self.execute_admin(index, command),
            Work::Io(command) => self.execute_io(index, command),
        }
    }

    fn execute_fabrics(&mut self, index: u16, command: FabricsCommand) {
        match command {
            FabricsCommand::Connect { .. } => self.execute_connect(index, command),
            FabricsCommand::PropertyGet { wide, offset } => {
                let (value, status) = match self.property_get(wide, offset) {
                    Ok(value) => (value, Status::SUCCESS),
                    Err(status) => (0, status),
                };
                self.complete(index, value, status);
            }
            FabricsCommand::PropertySet { wide, offset, value } => {
                let status = self.property_set(wide, offset, value).err();
                self.complete(index, 0, status.unwrap_or(Status::SUCCESS));
            }
        }
    }

    /// Takes the data that the host sent for a command.
    pub(super) fn take_host_data(&mut self, index: u16) -> engine_memory::Slice {
        let slot = &mut self.slots[usize::from(index)];
        let buffer = slot.buffer.take().expect("the command's data arrived");
        let (start, len) = (slot.data_start, slot.data_len as usize);
        let whole = buffer.freeze();
        if start == 0 && len == whole.len() { whole } else { whole.slice(start..start + len) }
    }
}

fn kind_of(command: &IoCommand) -> OperationKind {
    match command {
        IoCommand::Flush { .. } => OperationKind::Flush,
        IoCommand::Read { .. } => OperationKind::Read,
        IoCommand::Write { .. } => OperationKind::Write,
        IoCommand::WriteZeroes { .. } => OperationKind::WriteZeroes,
        IoCommand::DatasetManagement { .. } => OperationKind::Deallocate,
        IoCommand::Copy { .. } => OperationKind::Copy,
    }
}
