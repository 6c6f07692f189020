//! The process's own figures, from /proc/self (proc(5)), under the names that Prometheus clients use.

use engine_memory::profile::{Mode, report};
use engine_memory::usage;

use super::families::Families;

/// Ticks per second of the times in /proc: USER_HZ is 100 on every Linux port that Rust supports.
const TICKS_PER_SECOND: f64 = 100.0;

/// Adds memory, processor time, threads and open files. A figure that cannot be read is left out.
pub(crate) fn collect(families: &mut Families) {
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        for (field, name, help) in [
            ("VmRSS:", "process_resident_memory_bytes", "Memory in RAM."),
            ("VmHWM:", "process_resident_memory_max_bytes", "Most memory in RAM so far."),
            ("VmSize:", "process_virtual_memory_bytes", "Address space."),
            ("VmLck:", "process_locked_memory_bytes", "Memory locked in RAM."),
        ] {
            if let Some(kib) = field_of(&status, field) {
                families.gauge(name, help, &[], kib * 1024.0);
            }
        }
        if let Some(threads) = field_of(&status, "Threads:") {
            families.gauge("process_threads", "Threads.", &[], threads);
        }
    }
    if let Some(seconds) = std::fs::read_to_string("/proc/self/stat").ok().and_then(cpu_seconds) {
        let help = "Processor time in user and kernel mode.";
        families.counter("process_cpu_seconds_total", help, &[], seconds);
    }
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        families.gauge("process_open_fds", "Open file descriptors.", &[], entries.count() as f64);
    }
}

/// Sites shown one by one; what the others hold is summed up.
const SITES_MAX: usize = 32;

/// Adds who holds most memory.
pub(crate) fn allocations(families: &mut Families) {
    let report = report();
    let is_on = f64::from(u8::from(report.mode == Mode::On));
    let help = "Whether allocations are counted.";
    families.gauge("cairn_allocation_profiling", help, &[], is_on);
    let all_bytes = report.live_bytes();
    let largest = report.largest(SITES_MAX);
    let others = all_bytes.saturating_sub(largest.live_bytes());
    for one in &largest.holdings {
        let place = format!("{}:{}", one.file, one.line);
        let labels = [("name", one.name), ("site", place.as_str()), ("kind", one.kind.name())];
        let help = "Memory held now, by the place that asked for it; the largest only.";
        families.gauge("cairn_allocation_bytes", help, &labels, one.live_bytes as f64);
        let help = "Allocations held now.";
        families.gauge("cairn_allocation_objects", help, &labels, one.live_objects as f64);
        let help = "The most memory held at one time.";
        families.gauge("cairn_allocation_bytes_max", help, &labels, one.peak_bytes as f64);
    }
    let help = "Memory held now by places that are not shown one by one.";
    families.gauge("cairn_allocation_bytes_others", help, &[], others as f64);
    let usage = usage();
    let help = "Requests for buffer memory that were refused.";
    families.counter("cairn_buffer_failures_total", help, &[], usage.failures as f64);
    for (kind, bytes) in [
        ("live", usage.live_bytes),
        ("cached", usage.cached_bytes),
        ("mapped", usage.mapped_bytes),
        ("peak", usage.peak_bytes),
        ("limit", usage.limit_bytes),
    ] {
        let help = "Memory of I/O buffers.";
        families.gauge("cairn_buffer_bytes", help, &[("kind", kind)], bytes as f64);
    }
}

/// The number behind `field` of /proc/self/status.
fn field_of(status: &str, field: &str) -> Option<f64> {
    let line = status.lines().find(|line| line.starts_with(field))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// utime + stime of /proc/self/stat: fields 14 and 15. The second, the name, may hold blanks.
fn cpu_seconds(stat: String) -> Option<f64> {
    let after_name = &stat[stat.rfind(')')? + 1..];
    let mut fields = after_name.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_blanks_and_brackets_do_not_shift_the_fields() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 0 0 20 0 3 0 9 9".to_owned();
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds("7 (a) S 1".to_owned()), None);
        assert_eq!(cpu_seconds(String::new()), None);
    }

    #[test]
    fn the_largest_holders_are_shown() {
        let mut families = Families::default();
        allocations(&mut families);
        let text = String::from_utf8(families.encode().unwrap()).unwrap();
        assert!(text.contains("cairn_allocation_bytes{name=\"unscoped\","), "{text}");
        assert!(text.contains("cairn_buffer_bytes{kind=\"limit\"}"), "{text}");
        let sites = text.lines().filter(|line| line.starts_with("cairn_allocation_bytes{")).count();
        assert!(sites <= SITES_MAX);
    }

    #[test]
    fn this_process_has_memory_and_files() {
        let mut families = Families::default();
        collect(&mut families);
        let text = String::from_utf8(families.encode().unwrap()).unwrap();
        for name in ["process_resident_memory_bytes", "process_open_fds", "process_threads"] {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            let value: f64 = line.split(' ').nth(1).unwrap().parse().unwrap();
            assert!(value > 0.0, "{line}");
        }
    }
}
