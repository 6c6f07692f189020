//! Property Get and Set (Base 2.0, sections 6.4 and 6.5), and what CC makes a controller do.

use super::Connection;
use crate::backend::{Backend, IoRequest, Namespace};
use nvme_spec::Status;
use nvme_spec::register::{self, Capabilities, Configuration};
use std::task::Context;

/// CAP.TO in units of 500 ms: becoming ready takes no time, 15 s leave room for a loaded machine.
const READY_TIMEOUT_500MS: u8 = 30;

impl<B: Backend> Connection<B> {
    pub(super) fn property_get(&self, wide: bool, offset: u32) -> Result<u64, Status> {
        let queue = self.queue.as_ref().ok_or(Status::COMMAND_SEQUENCE_ERROR)?;
        match (wide, offset) {
            (true, register::CAP) => {
                let queue_entries_max = u32::from(self.context.target.limits().queue_entries_max);
                let capabilities =
                    Capabilities { queue_entries_max, timeout_500ms: READY_TIMEOUT_500MS };
                Ok(capabilities.to_bits())
            }
            (false, register::VS) => Ok(u64::from(register::VERSION_2_0)),
            (false, register::CC) => Ok(u64::from(queue.controller.configuration().0)),
            (false, register::CSTS) => Ok(u64::from(queue.controller.status())),
            // CRTO: CRWMT in the lower half, in 500 ms as CAP.TO.
            (false, register::CRTO) => Ok(u64::from(READY_TIMEOUT_500MS)),
            _ => Err(Status::INVALID_FIELD),
        }
    }

    pub(super) fn property_set(
        &mut self,
        wide: bool,
        offset: u32,
        value: u64,
    ) -> Result<(), Status> {
        if wide || offset != register::CC {
            return Err(Status::INVALID_FIELD);
        }
        let queue = self.queue.as_ref().ok_or(Status::COMMAND_SEQUENCE_ERROR)?;
        let controller = queue.controller.clone();
        let (old, new) = (controller.configuration(), Configuration(value as u32));
        controller.set_configuration(new);
        if new.enabled() && !old.enabled() {
            let supported = matches!(new.command_sets(), 0 | 6)
                && new.page_size_log2() == 12
                && new.sqe_size_log2() == 6
                && new.cqe_size_log2() == 4;
            let status = if supported { register::CSTS_READY } else { register::CSTS_FATAL };
            controller.set_status(status);
        }
        if !new.enabled() && old.enabled() {
            controller.close_io_queues();
            controller.set_status(0);
            self.reset_admin_state();
        }
        if new.shutdown() && !old.shutdown() {
            let status = controller.status() & !register::CSTS_SHUTDOWN_MASK;
            controller.set_status(status | register::CSTS_SHUTDOWN_PROCESSING);
            self.begin_shutdown();
        }
        if !new.shutdown() && old.shutdown() {
            controller.set_status(controller.status() & !register::CSTS_SHUTDOWN_MASK);
        }
        Ok(())
    }

    /// Flushes all namespaces before a shutdown is reported complete (Base 2.0, section 3.6.1). A
    /// namespace that cannot be flushed does not hold the shutdown up: its host was told that the
    /// cache is volatile, and the error is logged.
    fn begin_shutdown(&mut self) {
        self.refresh_namespaces();
        let Some(queue) = &self.queue else { return };
        let mut flushes = Vec::new();
        for shared in queue.controller.subsystem.namespaces() {
            match self.context.open(&shared) {
                Ok(namespace) => flushes.push(Box::pin(namespace.backend.submit(IoRequest::Flush))),
                Err(error) => {
                    tracing::warn!(nsid = shared.config.nsid, %error, "cannot flush at shutdown");
                }
            }
        }
        if let Some(admin) = &mut self.admin {
            admin.shutdown_flushes = flushes;
            admin.shutting_down = true;
        }
        self.poll_shutdown();
    }

    /// Lets the flushes of a shutdown go on.
    pub(super) fn poll_shutdown(&mut self) {
        let (Some(admin), Some(queue)) = (&mut self.admin, &self.queue) else { return };
        if !admin.shutting_down {
            return;
        }
        let waker = self.signal.control_waker();
        let mut context = Context::from_waker(&waker);
        admin.shutdown_flushes.retain_mut(|flush| match flush.as_mut().poll(&mut context) {
            std::task::Poll::Pending => true,
            std::task::Poll::Ready(result) => {
                if let Err(error) = result {
                    tracing::warn!(%error, "flush at shutdown failed");
                }
                false
            }
        });
        if admin.shutdown_flushes.is_empty() {
            admin.shutting_down = false;
            let status = queue.controller.status() & !register::CSTS_SHUTDOWN_MASK;
            queue.controller.set_status(status | register::CSTS_SHUTDOWN_COMPLETE);
        }
    }
}
