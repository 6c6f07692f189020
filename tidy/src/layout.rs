//! The shape of files: length, width, header.

use crate::Finding;
use crate::tree::{SourceFile, has_extension};

/// Most lines of a source file. Past 500, look for the second idea; past this, it is two files.
pub const FILE_LINES_MAX: usize = 1000;
/// Most characters in a line. Code is kept to 100 by rustfmt, which wraps no comments or literals.
pub const COLUMNS_MAX: usize = 120;

/// Checks one file.
#[must_use]
pub fn check(file: &SourceFile) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(length(file));
    findings.extend(header(file));
    findings.extend(width(file));
    findings
}

fn length(file: &SourceFile) -> Option<Finding> {
    let counted = ["rs", "sh", "proto"].iter().any(|e| has_extension(&file.path, e));
    let lines = file.text.lines().count();
    (counted && lines > FILE_LINES_MAX).then(|| {
        let message = format!("{lines} lines, at most {FILE_LINES_MAX}: find the second idea");
        Finding::new(&file.path, 0, message)
    })
}

/// A module says what it is for before anything else: `//!`, after attributes of the crate at most.
/// A `tests.rs` need not: it tests the module it lies beside.
fn header(file: &SourceFile) -> Option<Finding> {
    if !file.is_rust() || file.path.ends_with("/tests.rs") {
        return None;
    }
    let first = file.text.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!["));
    let has_header = first.is_some_and(|line| line.starts_with("//!"));
    (!has_header).then(|| {
        Finding::new(&file.path, 1, "no `//!` header: say what it is for, and what always holds")
    })
}

fn width(file: &SourceFile) -> Vec<Finding> {
    if !["rs", "md", "sh", "proto"].iter().any(|e| has_extension(&file.path, e)) {
        return Vec::new();
    }
    let lines = file.text.lines().enumerate();
    lines
        .filter(|(i, line)| line.chars().count() > COLUMNS_MAX && !may_be_wide(file, *i, line))
        .map(|(i, line)| {
            let columns = line.chars().count();
            Finding::new(&file.path, i + 1, format!("{columns} columns, at most {COLUMNS_MAX}"))
        })
        .collect()
}

/// Rows of tables in documentation cannot be broken, nor can a link; samples in tests may stay whole.
fn may_be_wide(file: &SourceFile, index: usize, line: &str) -> bool {
    let is_table_row = has_extension(&file.path, "md") && line.trim_start().starts_with('|');
    let is_test = file.test_lines.get(index).copied().unwrap_or(false);
    is_table_row || is_test || line.contains("https://")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(path: &str, text: &str) -> Vec<String> {
        check(&SourceFile::new(path, text)).into_iter().map(|f| f.message).collect()
    }

    #[test]
    fn a_long_file_is_found() {
        let text = format!("//! Header.\n{}", "\n".repeat(FILE_LINES_MAX));
        assert_eq!(messages("a.rs", &text).len(), 1);
        let text = format!("//! Header.\n{}", "\n".repeat(FILE_LINES_MAX - 1));
        assert!(messages("a.rs", &text).is_empty());
        assert!(messages("a.md", &"\n".repeat(FILE_LINES_MAX + 1)).is_empty());
    }

    #[test]
    fn a_missing_header_is_found() {
        assert_eq!(messages("a.rs", "use std::io;\n").len(), 1);
        assert_eq!(messages("a.rs", "// A comment is no header.\n").len(), 1);
        assert_eq!(messages("a.rs", "").len(), 1);
        assert!(messages("a.rs", "#![no_std]\n//! Header.\n").is_empty());
        assert!(messages("a/tests.rs", "use super::*;\n").is_empty());
    }

    #[test]
    fn a_wide_line_is_found() {
        let wide = format!("// {}", "x".repeat(118));
        assert_eq!(messages("a.rs", &format!("//! Header.\n{wide}\n")).len(), 1);
        assert!(
            messages("a.rs", &format!("//! Header.\n#[cfg(test)]\nfn f() {{\n{wide}\n}}\n"))
                .is_empty()
        );
        assert_eq!(messages("a.md", &"x".repeat(121)).len(), 1);
        assert!(messages("a.md", &format!("| {}", "x".repeat(200))).is_empty());
        // Characters count, not bytes.
        assert!(messages("a.md", &"é".repeat(120)).is_empty());
    }
}
