//! What can go wrong with reactors, by cause.

use std::io;

/// Why a poller was not registered or a task not spawned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// As many pollers as a reactor may have.
    #[error("the reactor has {max} pollers already, which is the most it may have")]
    Pollers {
        /// The limit.
        max: usize,
    },
    /// As many tasks as the reactor may have.
    #[error("task {task} not spawned: the reactor has {max} tasks already, the most it may have")]
    Tasks {
        /// The task that was refused, and dropped.
        task: &'static str,
        /// The limit.
        max: usize,
    },
}

/// Why a reactor stopped for good. A task that panicked may have left any structure of its shard half
/// changed, so nothing else runs on that core afterwards.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReactorFault {
    /// A task panicked.
    #[error("task {task} panicked: {message}; its core has stopped")]
    TaskPanicked {
        /// The name of the task.
        task: &'static str,
        /// The message of the panic.
        message: String,
    },
    /// A poller, or the reactor itself, panicked.
    #[error("the reactor panicked: {message}; its core has stopped")]
    Panicked {
        /// The message of the panic.
        message: String,
    },
    /// The kernel refused to wait.
    #[error("cannot wait for events: {message}; the core has stopped")]
    Wait {
        /// The kernel's reason.
        message: String,
    },
}

/// Why a core did not start or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    /// The configuration cannot be met.
    #[error("cores cannot be started: {0}")]
    Config(String),
    /// The operating system refused a thread or a descriptor.
    #[error("core {core} cannot be started: {source}")]
    Start {
        /// The core.
        core: usize,
        /// The reason.
        source: io::Error,
    },
    /// The host refused, in its words.
    #[error("core {core} cannot be started on host {host}: {message}")]
    Host {
        /// The core.
        core: usize,
        /// [`crate::host::Host::name`].
        host: &'static str,
        /// What is wrong and what helps.
        message: String,
    },
    /// The initialisation of the core's work failed.
    #[error("core {core} was not initialised: {message}")]
    Init {
        /// The core.
        core: usize,
        /// What the initialisation answered.
        message: String,
    },
    /// The core stopped by itself.
    #[error("core {core}: {fault}")]
    Fault {
        /// The core.
        core: usize,
        /// The cause.
        fault: ReactorFault,
    },
}
