//! What every site holds, and its text in the format of the kernel's /proc/allocinfo.

use std::fmt::Write as _;

use super::counts::sum;
use super::mode::{Mode, mode};
use super::site::{Kind, Tag, sites};
use crate::{alloc_site, usage};

/// The first two lines of the text.
pub const HEADER: &str = "allocinfo - version: 1.0\n#     <size>  <calls> <tag info>\n";

/// What one site holds of one kind of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// What it is for, as a person calls it.
    pub name: &'static str,
    /// Source file, relative to the workspace.
    pub file: &'static str,
    /// Line in it.
    pub line: u32,
    /// Path of the module.
    pub module: &'static str,
    /// The function.
    pub function: &'static str,
    /// Which memory.
    pub kind: Kind,
    /// Bytes held now.
    pub live_bytes: u64,
    /// Allocations held now.
    pub live_objects: u64,
    /// Allocations since the start.
    pub allocations: u64,
    /// The most bytes held at one time, to 64 KiB for each thread.
    pub peak_bytes: u64,
    /// Allocations that were refused.
    pub failures: u64,
}

/// What all sites hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whether allocations are counted now.
    pub mode: Mode,
    /// Sites that ever held memory, in the order of their first use; free blocks of the pool last.
    pub holdings: Vec<Holding>,
}

/// Reads all counters. Walks every thread's row: for people and metrics, not for every operation.
#[must_use]
pub fn report() -> Report {
    let mut holdings = Vec::new();
    for (number, site) in sites() {
        let kinds = [(Kind::Heap, Tag::heap(number)), (Kind::Buffers, Tag::buffers(number))];
        for (kind, tag) in kinds {
            let sum = sum(tag);
            if sum.allocations == 0 && sum.failures == 0 {
                continue;
            }
            holdings.push(Holding {
                name: site.name(),
                file: site.file(),
                line: site.line(),
                module: site.module(),
                function: site.function(),
                kind,
                live_bytes: sum.live_bytes,
                live_objects: sum.live_objects,
                allocations: sum.allocations,
                peak_bytes: sum.peak_bytes,
                failures: sum.failures,
            });
        }
    }
    holdings.extend(free_memory());
    Report { mode: mode(), holdings }
}

/// The memory of the pool that no buffer uses: kept by threads, and common.
fn free_memory() -> [Holding; 2] {
    let usage = usage();
    let cached_blocks = usage.classes.iter().map(|class| class.cached_blocks).sum();
    let free_bytes = usage.mapped_bytes.saturating_sub(usage.live_bytes + usage.cached_bytes);
    let (cached, free) = (alloc_site!("free buffers of threads"), alloc_site!("free buffers"));
    [(cached, usage.cached_bytes, cached_blocks), (free, free_bytes, 0)].map(
        |(site, live_bytes, live_objects)| Holding {
            name: site.name(),
            file: site.file(),
            line: site.line(),
            module: site.module(),
            function: site.function(),
            kind: Kind::Free,
            live_bytes,
            live_objects,
            allocations: 0,
            peak_bytes: live_bytes,
            failures: 0,
        },
    )
}

impl Report {
    /// The same with the largest first, and of these only `count`.
    #[must_use]
    pub fn largest(mut self, count: usize) -> Self {
        self.holdings.sort_by_key(|holding| std::cmp::Reverse(holding.live_bytes));
        self.holdings.truncate(count);
        self
    }

    /// Bytes of all holdings.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.holdings.iter().map(|holding| holding.live_bytes).sum()
    }

    /// The text, with [`HEADER`].
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = HEADER.to_owned();
        for holding in &self.holdings {
            let place = (holding.file, holding.line, holding.function);
            let module = module_of(holding.module, holding.kind.name());
            text.push_str(&line(holding.live_bytes, holding.live_objects, place, &module));
        }
        text
    }
}

impl Kind {
    /// The word for it in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Heap => "heap",
            Self::Buffers => "buffers",
            Self::Free => "free",
        }
    }
}

/// What stands in brackets: the module, and for memory that is not of the heap also the name of its
/// kind.
#[must_use]
pub fn module_of(module: &str, kind: &str) -> String {
    if kind == Kind::Heap.name() { module.to_owned() } else { format!("{module}/{kind}") }
}

/// One line of the text, its end included: bytes and allocations held now, (file, line, function),
/// and what stands in brackets.
#[must_use]
pub fn line(bytes: u64, calls: u64, place: (&str, u32, &str), module: &str) -> String {
    let (file, line, function) = place;
    let mut text = String::new();
    // The kernel's widths, and its blank before the end (lib/alloc_tag.c).
    writeln!(text, "{bytes:>12} {calls:>8} {file}:{line} [{module}] func:{function} ")
        .expect("a String takes any text");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_shape_of_the_kernels() {
        assert_eq!(
            line(55_000_000, 4887, ("mm/slub.c", 2259, "alloc_slab_page"), "ext4"),
            "    55000000     4887 mm/slub.c:2259 [ext4] func:alloc_slab_page \n"
        );
        let report = report();
        let text = report.to_text();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("allocinfo - version: 1.0"));
        assert_eq!(lines.next(), Some("#     <size>  <calls> <tag info>"));
        let mut bytes = 0;
        for line in lines {
            let words: Vec<&str> = line.split_whitespace().collect();
            assert_eq!(words.len(), 5, "{line}");
            bytes += words[0].parse::<u64>().unwrap();
            assert!(words[1].parse::<u64>().is_ok(), "{line}");
            assert!(words[2].contains(".rs:"), "{line}");
            assert!(words[3].starts_with('[') && words[3].ends_with(']'), "{line}");
            assert!(words[4].starts_with("func:") && words[4].len() > 5, "{line}");
        }
        assert_eq!(bytes, report.live_bytes());
    }

    #[test]
    fn the_largest_come_first() {
        let report = report();
        let most = report.holdings.iter().map(|holding| holding.live_bytes).max().unwrap();
        let largest = report.largest(1);
        assert_eq!(largest.holdings.len(), 1);
        assert_eq!(largest.holdings[0].live_bytes, most);
    }
}
