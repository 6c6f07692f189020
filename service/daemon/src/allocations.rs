//! Counting the daemon's memory, and telling who holds it when some is refused.

use std::sync::atomic::{AtomicU64, Ordering};

use engine_memory::profile::{Mode, Profiler, report, set_mode};
use engine_memory::{OutOfMemory, limit_bytes, set_refusal_hook};
use engine_shard::clock::Clock;

use crate::config::Profiling;

/// Counts the heap by who uses it; `cairn allocinfo` shows it.
#[global_allocator]
static HEAP: Profiler = Profiler;

/// Sites in the report about a refusal: what matters is among the first few.
const SITES_LOGGED: usize = 20;
/// Time between two such reports. Refusals come in thousands, and a report is twenty lines.
const REPORT_PERIOD_NS: u64 = 60_000_000_000;

/// Sets the mode of the configuration, and watches for refusals.
pub(crate) fn start(profiling: Profiling) {
    let mode = match profiling {
        Profiling::On => Mode::On,
        Profiling::Off => Mode::Off,
        Profiling::Never => Mode::Never,
    };
    set_mode(mode).expect("nobody sets `never` before this, at the start");
    set_refusal_hook(tell);
}

/// Logs who holds most memory, once in a while.
fn tell(refused: OutOfMemory) {
    static LAST_NS: AtomicU64 = AtomicU64::new(0);
    let now_ns = Clock::new().wall_clock_ns();
    let is_due = |last: u64| {
        (last == 0 || now_ns.saturating_sub(last) >= REPORT_PERIOD_NS).then_some(now_ns)
    };
    if LAST_NS.try_update(Ordering::Relaxed, Ordering::Relaxed, is_due).is_ok() {
        tracing::error!(
            bytes = refused.bytes,
            limit_bytes = limit_bytes(),
            "buffer memory is refused; the largest holders follow\n{}",
            report().largest(SITES_LOGGED).to_text().trim_end()
        );
    }
}

#[cfg(test)]
mod tests {
    use engine_memory::alloc_scope;
    use engine_memory::profile::Kind;

    use super::*;

    #[test]
    fn the_heap_of_this_program_is_counted() {
        let held = {
            let _scope = alloc_scope!("a test of the daemon");
            std::hint::black_box(vec![0_u8; 123_457])
        };
        let report = report();
        let of = |name| {
            let mut all = report.holdings.iter();
            all.find(|one| one.name == name && one.kind == Kind::Heap).map(|one| one.live_bytes)
        };
        assert_eq!(of("a test of the daemon"), Some(held.len() as u64));
        assert!(of("unscoped").is_some());
    }
}
