//! The admin queue: features, asynchronous events, abort, keep alive.

use super::Connection;
use crate::backend::{Backend, Namespace};
use crate::connection::slot::SlotState;
use crate::controller::{AbortRequest, ControllerKind, EVENT_DISCOVERY, EVENT_NAMESPACES};
use crate::limits::{ABORTS_MAX, ASYNC_EVENTS_MAX, KEEP_ALIVE_MS_MAX};
use nvme_spec::feature::{
    AEC_CRITICAL_WARNINGS, AEC_DISCOVERY_CHANGE, AEC_NAMESPACE_ATTRIBUTE, AsyncEvent, FeatureId,
};
use nvme_spec::{AdminCommand, DataPointer, Feature, Status};
use std::collections::VecDeque;
use std::pin::Pin;

type FutureOf<B> = <<B as Backend>::Namespace as Namespace>::Future;

/// What the admin queue's connection keeps for its controller.
pub(super) struct AdminState<B: Backend> {
    keep_alive_ms: u32,
    keep_alive_deadline_ns: Option<u64>,
    /// Slots of Asynchronous Event Requests, oldest first.
    event_slots: VecDeque<u16>,
    event_config: u32,
    /// Events that were told and whose log page was not read since.
    events_masked: u32,
    /// Slots of Aborts that wait for another queue.
    abort_slots: Vec<u16>,
    pub(super) shutting_down: bool,
    pub(super) shutdown_flushes: Vec<Pin<Box<FutureOf<B>>>>,
}

impl<B: Backend> AdminState<B> {
    pub(super) fn new(keep_alive_ms: u32, now_ns: u64) -> Self {
        let mut state = Self {
            keep_alive_ms: 0,
            keep_alive_deadline_ns: None,
            event_slots: VecDeque::new(),
            event_config: 0,
            events_masked: 0,
            abort_slots: Vec::new(),
            shutting_down: false,
            shutdown_flushes: Vec::new(),
        };
        state.set_keep_alive(keep_alive_ms.min(KEEP_ALIVE_MS_MAX), now_ns);
        state
    }

    /// Sets the timeout, rounded up to the granularity told in KAS, and starts the timer anew.
    fn set_keep_alive(&mut self, ms: u32, now_ns: u64) {
        self.keep_alive_ms = ms.div_ceil(1000) * 1000;
        let timeout_ns = u64::from(self.keep_alive_ms) * 1_000_000;
        self.keep_alive_deadline_ns = (ms > 0).then_some(now_ns + timeout_ns);
    }

    pub(super) fn keep_alive_deadline_ns(&self) -> Option<u64> {
        self.keep_alive_deadline_ns
    }
}

impl<B: Backend> Connection<B> {
    pub(super) fn execute_admin(&mut self, index: u16, command: AdminCommand) {
        let (result, status) = match command {
            AdminCommand::Identify { .. } => return self.execute_identify(index, command),
            AdminCommand::GetLogPage { .. } => return self.execute_get_log_page(index, command),
            AdminCommand::AsyncEventRequest => return self.execute_event_request(index),
            AdminCommand::Abort { sqid, cid } => return self.execute_abort(index, sqid, cid),
            AdminCommand::GetFeatures { id, select, data, .. } => {
                if id == FeatureId::HOST_IDENTIFIER && select == 0 {
                    return self.get_host_identifier(index, data);
                }
                self.get_feature(id, select)
            }
            AdminCommand::SetFeatures { feature, save, .. } => self.set_feature(feature, save),
            AdminCommand::KeepAlive => (0, self.keep_alive()),
        };
        self.complete(index, result, status);
    }

    fn keep_alive(&mut self) -> Status {
        let now_ns = self.now_ns;
        if let Some(admin) = &mut self.admin {
            let ms = admin.keep_alive_ms;
            admin.set_keep_alive(ms, now_ns);
            self.deadline_ns = admin.keep_alive_deadline_ns;
        }
        Status::SUCCESS
    }

    /// The keep alive timer ran out: any command since it started counts as a sign of life (TBKAS);
    /// else the controller is given up (Base 2.0, section 3.9).
    pub(super) fn keep_alive_due(&mut self) {
        let (Some(admin), Some(queue)) = (&mut self.admin, &self.queue) else {
            self.deadline_ns = None;
            return;
        };
        if queue.controller.take_traffic() {
            let ms = admin.keep_alive_ms;
            admin.set_keep_alive(ms, self.now_ns);
            self.deadline_ns = admin.keep_alive_deadline_ns;
            return;
        }
        tracing::warn!(
            subsystem = %queue.controller.subsystem.nqn, controller = queue.controller.id,
            timeout_ms = admin.keep_alive_ms, "keep alive timeout, controller given up"
        );
        queue.controller.set_status(nvme_spec::register::CSTS_FATAL);
        self.disconnected();
    }

    fn is_discovery(&self) -> bool {
        self.queue.as_ref().is_some_and(|q| q.controller.kind == ControllerKind::Discovery)
    }

    fn get_feature(&self, id: u8, select: u8) -> (u64, Status) {
        if select != 0 {
            // The select field is not announced in ONCS.
            return (0, Status::INVALID_FIELD);
        }
        let Some(admin) = &self.admin else { return (0, Status::INTERNAL_ERROR) };
        let io = !self.is_discovery();
        let value = match id {
            FeatureId::ASYNC_EVENT_CONFIG => admin.event_config,
            FeatureId::KEEP_ALIVE_TIMER => admin.keep_alive_ms,
            FeatureId::ARBITRATION
            | FeatureId::POWER_MANAGEMENT
            | FeatureId::ERROR_RECOVERY
            | FeatureId::WRITE_ATOMICITY
            | FeatureId::COMMAND_SET_PROFILE
                if io =>
            {
                0
            }
            FeatureId::TEMPERATURE_THRESHOLD if io => 0xffff,
            FeatureId::VOLATILE_WRITE_CACHE if io => 1,
            FeatureId::NUMBER_OF_QUEUES if io => self.queue_counts(),
            _ => return (0, Status::INVALID_FIELD),
        };
        (u64::from(value), Status::SUCCESS)
    }

    /// Number of I/O queues, submission and completion, 0-based.
    fn queue_counts(&self) -> u32 {
        let count = u32::from(self.context.target.limits().io_queues_max) - 1;
        count | count << 16
    }

    fn set_feature(&mut self, feature: Feature, save: bool) -> (u64, Status) {
        if save {
            return (0, Status::FEATURE_NOT_SAVEABLE);
        }
        let (io, now_ns) = (!self.is_discovery(), self.now_ns);
        let counts = u64::from(self.queue_counts());
        let Some(admin) = &mut self.admin else { return (0, Status::INTERNAL_ERROR) };
        let status = match feature.id {
            FeatureId::ASYNC_EVENT_CONFIG => {
                // There is nothing to warn of, but the bits are kept: they are not optional.
                let supported = if io {
                    AEC_CRITICAL_WARNINGS | AEC_NAMESPACE_ATTRIBUTE
                } else {
                    AEC_DISCOVERY_CHANGE
                };
                if feature.cdw11 & !supported != 0 {
                    Status::INVALID_FIELD
                } else {
                    admin.event_config = feature.cdw11;
                    self.deliver_events();
                    Status::SUCCESS
                }
            }
            FeatureId::KEEP_ALIVE_TIMER if feature.cdw11 > KEEP_ALIVE_MS_MAX => {
                Status::KEEP_ALIVE_INVALID
            }
            FeatureId::KEEP_ALIVE_TIMER => {
                admin.set_keep_alive(feature.cdw11, now_ns);
                self.deadline_ns = admin.keep_alive_deadline_ns;
                Status::SUCCESS
            }
            FeatureId::NUMBER_OF_QUEUES if io => {
                // 65535 is not allowed in either half (Base 2.0, section 5.27.1.5).
                if feature.cdw11 & 0xffff == 0xffff || feature.cdw11 >> 16 == 0xffff {
                    Status::INVALID_FIELD
                } else {
                    return (counts, Status::SUCCESS);
                }
            }
            FeatureId::POWER_MANAGEMENT | FeatureId::COMMAND_SET_PROFILE if io => {
                if feature.cdw11 == 0 { Status::SUCCESS } else { Status::INVALID_FIELD }
            }
            FeatureId::VOLATILE_WRITE_CACHE if io && feature.cdw11 & 1 == 1 => Status::SUCCESS,
            FeatureId::VOLATILE_WRITE_CACHE
            | FeatureId::ARBITRATION
            | FeatureId::TEMPERATURE_THRESHOLD
            | FeatureId::ERROR_RECOVERY
            | FeatureId::WRITE_ATOMICITY
                if io =>
            {
                Status::FEATURE_NOT_CHANGEABLE
            }
            // On Fabrics, Connect sets it.
            FeatureId::HOST_IDENTIFIER => Status::COMMAND_SEQUENCE_ERROR,
            _ => Status::INVALID_FIELD,
        };
        (0, status)
    }

    fn get_host_identifier(&mut self, index: u16, data: Option<DataPointer>) {
        let Some(queue) = &self.queue else { return };
        let host_id = queue.controller.host_id;
        match data {
            Some(wanted) if wanted.len() >= 16 => self.complete_with_bytes(index, wanted, &host_id),
            _ => self.complete(index, 0, Status::DATA_SGL_LENGTH_INVALID),
        }
    }

    fn execute_event_request(&mut self, index: u16) {
        let Some(admin) = &mut self.admin else { return };
        if admin.event_slots.len() >= ASYNC_EVENTS_MAX {
            return self.complete(index, 0, Status::AER_LIMIT_EXCEEDED);
        }
        admin.event_slots.push_back(index);
        self.slots[usize::from(index)].state = SlotState::Parked;
        self.deliver_events();
    }

    /// Events, answers to aborts or flushes of a shutdown may wait for the admin queue.
    pub(super) fn look_at_events(&mut self) {
        self.deliver_events();
        let Some(queue) = &self.queue else { return };
        for reply in queue.controller.take_abort_replies() {
            let Some(admin) = &mut self.admin else { return };
            let Some(place) = admin.abort_slots.iter().position(|&s| s == reply.admin_slot) else {
                continue;
            };
            admin.abort_slots.swap_remove(place);
            self.complete(reply.admin_slot, u64::from(!reply.aborted), Status::SUCCESS);
        }
        self.poll_shutdown();
    }

    fn deliver_events(&mut self) {
        let kinds = [
            (EVENT_NAMESPACES, AEC_NAMESPACE_ATTRIBUTE, AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED),
            (EVENT_DISCOVERY, AEC_DISCOVERY_CHANGE, AsyncEvent::DISCOVERY_CHANGED),
        ];
        for (bit, config, event) in kinds {
            let (Some(admin), Some(queue)) = (&mut self.admin, &self.queue) else { return };
            let due = queue.controller.events() & bit & !admin.events_masked != 0;
            if !due || admin.event_config & config == 0 {
                continue;
            }
            let Some(slot) = admin.event_slots.pop_front() else { return };
            admin.events_masked |= bit;
            queue.controller.clear_event(bit);
            self.complete(slot, u64::from(event.to_bits()), Status::SUCCESS);
        }
    }

    /// The log page of an event was read: the event may be told again.
    pub(super) fn rearm_event(&mut self, bit: u32) {
        if let (Some(admin), Some(queue)) = (&mut self.admin, &self.queue) {
            admin.events_masked &= !bit;
            queue.controller.clear_event(bit);
        }
    }

    fn execute_abort(&mut self, index: u16, queue_id: u16, cid: u16) {
        const NOT_ABORTED: u64 = 1;
        let Some(admin) = &mut self.admin else { return };
        if queue_id == 0 {
            let slots = &self.slots;
            let place = admin.event_slots.iter().position(|&s| slots[usize::from(s)].cid == cid);
            let event_slot = place.and_then(|place| admin.event_slots.remove(place));
            if let Some(slot) = event_slot {
                self.complete(slot, 0, Status::ABORTED_BY_REQUEST);
            }
            return self.complete(index, u64::from(event_slot.is_none()), Status::SUCCESS);
        }
        if admin.abort_slots.len() >= ABORTS_MAX {
            return self.complete(index, NOT_ABORTED, Status::ABORT_LIMIT_EXCEEDED);
        }
        let Some(queue) = &self.queue else { return };
        let request = AbortRequest { cid, admin_slot: index };
        if queue.controller.request_abort(queue_id, request) {
            admin.abort_slots.push(index);
            self.slots[usize::from(index)].state = SlotState::Parked;
        } else {
            self.complete(index, NOT_ABORTED, Status::SUCCESS);
        }
    }

    /// A controller reset: event requests end without an answer, features get their defaults.
    pub(super) fn reset_admin_state(&mut self) {
        let Some(admin) = &mut self.admin else { return };
        let parked: Vec<u16> =
            admin.event_slots.drain(..).chain(admin.abort_slots.drain(..)).collect();
        admin.event_config = 0;
        admin.events_masked = 0;
        for slot in parked {
            self.free_slot(slot);
        }
    }
}
