//! Connect: a connection becomes the admin queue of a new controller or an I/O queue of an existing
//! one (Base 2.0, section 6.3).

use super::admin::AdminState;
use super::{Connection, Phase, Queue};
use crate::backend::Backend;
use crate::connection::slot::Slot;
use crate::controller::{Controller, ControllerKind, QueueLink};
use crate::subsystem::Refusal;
use nvme_spec::fabrics::{CONTROLLER_ID_DYNAMIC, ConnectData, FabricsCommand, InvalidParameter};
use nvme_spec::{Cqe, Nqn, Status};
use std::sync::{Arc, Mutex};
use zerocopy::FromBytes;
use zerocopy::little_endian::U16;

/// Why a Connect fails: a status and the result that goes with it.
type ConnectError = (Status, u64);

fn invalid(parameter: InvalidParameter) -> ConnectError {
    (Status::CONNECT_INVALID_PARAMETERS, parameter.to_result())
}

/// The parameters of a Connect, checked one by one.
struct Request {
    queue_id: u16,
    entries: u16,
    disable_flow_control: bool,
    keep_alive_ms: u32,
    controller_id: u16,
    host_id: [u8; 16],
    host_nqn: Nqn,
}

impl<B: Backend> Connection<B> {
    pub(super) fn execute_connect(&mut self, index: u16, command: FabricsCommand) {
        let data = self.take_host_data(index);
        let data = ConnectData::read_from_bytes(&data).expect("the length was checked");
        match self.connect(&command, &data) {
            Ok(controller_id) => {
                let queue = self.queue.as_mut().expect("Connect just made the queue");
                // Connect was the queue's first entry.
                queue.head = 1;
                if queue.flow_control_disabled {
                    // SQHD FFFFh confirms that flow control is off (Base 2.0, figure 385).
                    let cid = self.slots[usize::from(index)].cid;
                    let mut cqe = Cqe::new(cid, u64::from(controller_id), Status::SUCCESS);
                    cqe.sqhd = U16::new(0xffff);
                    self.push_completion(cqe);
                    self.slots[usize::from(index)].state =
                        crate::connection::slot::SlotState::Responding;
                    self.slots[usize::from(index)].clear();
                    self.transmitter.mark(index);
                } else {
                    self.complete(index, u64::from(controller_id), Status::SUCCESS);
                }
            }
            Err((status, result)) => {
                tracing::info!(peer = ?self.peer, ?status, result, "Connect refused");
                self.complete(index, result, status);
            }
        }
    }

    fn connect(
        &mut self,
        command: &FabricsCommand,
        data: &ConnectData,
    ) -> Result<u16, ConnectError> {
        let FabricsCommand::Connect {
            record_format,
            queue_id,
            sq_size,
            disable_flow_control,
            keep_alive_ms,
            ..
        } = *command
        else {
            return Err((Status::INTERNAL_ERROR, 0));
        };
        if record_format != 0 {
            return Err((Status::CONNECT_INCOMPATIBLE_FORMAT, 0));
        }
        let limits = self.context.target.limits();
        if sq_size == 0 || sq_size >= limits.queue_entries_max {
            return Err(invalid(InvalidParameter::SQ_SIZE));
        }
        let subsystem_nqn = Nqn::from_field(&data.subsystem_nqn)
            .map_err(|_| invalid(InvalidParameter::SUBSYSTEM_NQN))?;
        let host_nqn =
            Nqn::from_field(&data.host_nqn).map_err(|_| invalid(InvalidParameter::HOST_NQN))?;
        let subsystem = self
            .context
            .target
            .subsystem(&subsystem_nqn)
            .ok_or(invalid(InvalidParameter::SUBSYSTEM_NQN))?;
        let request = Request {
            queue_id,
            entries: sq_size + 1,
            disable_flow_control,
            keep_alive_ms,
            controller_id: data.controller_id.get(),
            host_id: data.host_id,
            host_nqn,
        };
        if queue_id == 0 {
            if request.controller_id != CONTROLLER_ID_DYNAMIC {
                return Err(invalid(InvalidParameter::CONTROLLER_ID));
            }
            let controller = subsystem
                .create_controller(&request.host_nqn, request.host_id)
                .map_err(refusal_status)?;
            self.connect_admin(controller, &request)
        } else {
            let controller = subsystem
                .controller(request.controller_id)
                .ok_or(invalid(InvalidParameter::CONTROLLER_ID))?;
            self.connect_io(controller, &request)
        }
    }

    fn connect_admin(
        &mut self,
        controller: Arc<Controller>,
        request: &Request,
    ) -> Result<u16, ConnectError> {
        let id = controller.id;
        tracing::info!(
            subsystem = %controller.subsystem.nqn, controller = id, host = %request.host_nqn,
            peer = ?self.peer, "controller created"
        );
        self.become_queue(controller, request)?;
        self.admin = Some(Box::new(AdminState::new(request.keep_alive_ms, self.now_ns)));
        self.deadline_ns = self.admin.as_ref().and_then(|admin| admin.keep_alive_deadline_ns());
        Ok(id)
    }

    fn connect_io(
        &mut self,
        controller: Arc<Controller>,
        request: &Request,
    ) -> Result<u16, ConnectError> {
        if request.host_nqn != controller.host_nqn {
            return Err(invalid(InvalidParameter::HOST_NQN));
        }
        if request.host_id != controller.host_id {
            return Err(invalid(InvalidParameter::HOST_ID));
        }
        let queues = self.context.target.limits().io_queues_max;
        if controller.kind == ControllerKind::Discovery || request.queue_id > queues {
            return Err(invalid(InvalidParameter::QUEUE_ID));
        }
        if !controller.is_ready() {
            return Err((Status::COMMAND_SEQUENCE_ERROR, 0));
        }
        let id = controller.id;
        self.become_queue(controller, request)?;
        self.deadline_ns = None;
        Ok(id)
    }

    fn become_queue(
        &mut self,
        controller: Arc<Controller>,
        request: &Request,
    ) -> Result<(), ConnectError> {
        let link = Arc::new(QueueLink {
            queue_id: request.queue_id,
            signal: Arc::clone(&self.signal),
            stats: Arc::clone(&self.stats),
            peer: self.peer,
            aborts: Mutex::default(),
        });
        if !controller.add_queue(Arc::clone(&link)) {
            return Err((Status::COMMAND_SEQUENCE_ERROR, 0));
        }
        for index in self.slots.len()..usize::from(request.entries) {
            self.slots.push(Slot::new(self.signal.waker(index)));
            self.free_slots.push(index as u16);
        }
        self.queue = Some(Queue {
            id: request.queue_id,
            entries: request.entries,
            flow_control_disabled: request.disable_flow_control,
            head: 0,
            controller,
            link,
        });
        self.phase = Phase::Live;
        // The controller may have been closed between its look-up and the link.
        self.signal.notify_control();
        Ok(())
    }
}

fn refusal_status(refusal: Refusal) -> ConnectError {
    match refusal {
        Refusal::HostNotAllowed => {
            (Status::CONNECT_INVALID_HOST, InvalidParameter::HOST_NQN.to_result())
        }
        Refusal::NoController => (Status::CONNECT_CONTROLLER_BUSY, 0),
        Refusal::Removed => invalid(InvalidParameter::SUBSYSTEM_NQN),
    }
}
