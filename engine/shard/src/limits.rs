//! Every bound of the reactor, with its reason.

/// Tasks of one reactor at the same time: what a three-level set of 64-bit words can name
/// ([`crate::wake_set::WakeSet`]).
pub const TASKS_MAX: usize = crate::wake_set::WakeSet::CAPACITY_MAX;

/// Tasks run in one turn. At the 100 ns of a short task that is 25 us between two looks at devices
/// and sockets.
pub const TASKS_PER_TURN_MAX: usize = 256;

/// Nanoseconds after which a turn starts no further task, so that devices and sockets are polled
/// at least that often however long the tasks run.
pub const TASKS_PER_TURN_NS: u64 = 200_000;

/// Timers fired in one turn.
pub const TIMERS_PER_TURN_MAX: usize = 256;

/// Pollers of one reactor: a queue per device and a few for sockets; far below what makes a turn
/// long (10 ns each).
pub const POLLERS_MAX: usize = 1024;

/// Messages taken from all rings of a core in one turn.
pub const MESSAGES_PER_TURN_MAX: usize = 512;

/// Messages taken from one ring before the next ring's turn.
pub const MESSAGES_PER_RING_MAX: usize = 64;

/// Messages a ring holds unless configured otherwise. Two turns of a full ring's budget times two.
pub const RING_CAPACITY: usize = 256;

/// Cores plus control ports of one mesh. Their rings grow with the square: 64 endpoints with 256
/// messages of 64 bytes are 64 MiB.
pub const ENDPOINTS_MAX: usize = 1024;

/// Default nanoseconds of polling without work before a reactor sleeps.
pub const IDLE_WINDOW_NS: u64 = 50_000;

/// Default nanoseconds of one poll of a task above which it counts as a stall.
pub const STALL_NS: u64 = 10_000_000;
