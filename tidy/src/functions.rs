//! Length of functions: a ratchet.
//!
//! A function fits a screen. Longer ones are named in `lists/long_functions.txt` with their length;
//! a new one, one that grew, and a line that is no longer true are findings. So the list only gets
//! shorter, unless somebody edits it in a commit where it can be seen.

use std::collections::BTreeMap;

use crate::Finding;
use crate::mask::{find, item_end, line_of};
use crate::tree::SourceFile;

/// Lines of a function before it must be on the list.
pub const FUNCTION_LINES_MAX: usize = 60;

/// A function over the limit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LongFunction {
    /// File.
    pub path: String,
    /// Name.
    pub name: String,
    /// Lines from `fn` to the closing brace.
    pub lines: usize,
}

/// The functions over the limit in one file; test code is not counted.
#[must_use]
pub fn long_functions(file: &SourceFile) -> Vec<LongFunction> {
    let chars: Vec<char> = file.code.chars().collect();
    let mut long = Vec::new();
    let mut from = 0;
    while let Some(at) = find(&chars, "fn ", from) {
        from = at + 3;
        let starts_word = at == 0 || !(chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
        let name: String =
            chars[from..].iter().take_while(|c| c.is_alphanumeric() || **c == '_').collect();
        if !starts_word || name.is_empty() {
            continue;
        }
        let first = line_of(&chars, at);
        let last = line_of(&chars, item_end(&chars, at).saturating_sub(1));
        let lines = last - first + 1;
        let is_test = file.test_lines.get(first).copied().unwrap_or(false);
        if lines > FUNCTION_LINES_MAX && !is_test {
            long.push(LongFunction { path: file.path.clone(), name, lines });
        }
    }
    long
}

/// Compares what is there with the list's text (`path name lines` a line; `#` starts a comment).
#[must_use]
pub fn check(found: &[LongFunction], list_path: &str, list: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut listed = BTreeMap::new();
    for (i, line) in list.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match parse(line) {
            Some(((path, name), lines)) => {
                listed.insert((path, name), (lines, i + 1));
            }
            None => findings.push(Finding::new(list_path, i + 1, "not `path name lines`")),
        }
    }
    for function in found {
        let key = (function.path.clone(), function.name.clone());
        let LongFunction { path, name, lines } = function;
        match listed.remove(&key) {
            None => findings.push(Finding::new(
                path,
                0,
                format!("{name} has {lines} lines, at most {FUNCTION_LINES_MAX}: split it"),
            )),
            Some((before, _)) if *lines > before => findings.push(Finding::new(
                path,
                0,
                format!("{name} has {lines} lines and was listed with {before}: it may not grow"),
            )),
            Some((before, line)) if *lines < before => findings.push(Finding::new(
                list_path,
                line,
                format!("{name} has become shorter: {lines} lines, lower the entry"),
            )),
            Some(_) => {}
        }
    }
    for ((path, name), (_, line)) in listed {
        let message = format!("{name} of {path} is gone or short now: remove the entry");
        findings.push(Finding::new(list_path, line, message));
    }
    findings
}

fn parse(line: &str) -> Option<((String, String), usize)> {
    let mut words = line.split_whitespace();
    let key = (words.next()?.to_owned(), words.next()?.to_owned());
    let lines = words.next()?.parse().ok()?;
    words.next().is_none().then_some((key, lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(lines: usize) -> SourceFile {
        let body = "    a();\n".repeat(lines - 2);
        SourceFile::new("a/src/x.rs", &format!("//! H.\npub fn long() {{\n{body}}}\nfn b() {{}}\n"))
    }

    #[test]
    fn only_functions_over_the_limit_are_long() {
        assert!(long_functions(&sample(FUNCTION_LINES_MAX)).is_empty());
        let long = long_functions(&sample(FUNCTION_LINES_MAX + 1));
        assert_eq!(long.len(), 1);
        assert_eq!((long[0].name.as_str(), long[0].lines), ("long", FUNCTION_LINES_MAX + 1));
    }

    #[test]
    fn declarations_and_function_types_are_no_functions() {
        let text = format!("//! H.\ntrait T {{ fn a(x: [u8; 4]); }}\n{}", "x();\n".repeat(100));
        assert!(long_functions(&SourceFile::new("a.rs", &text)).is_empty());
    }

    #[test]
    fn the_ratchet_only_turns_one_way() {
        let found = long_functions(&sample(70));
        let count = |list: &str| check(&found, "list", list).len();
        assert_eq!(count("# comment\na/src/x.rs long 70\n"), 0);
        assert_eq!(count(""), 1);
        assert_eq!(count("a/src/x.rs long 69\n"), 1);
        assert_eq!(count("a/src/x.rs long 71\n"), 1);
        assert_eq!(count("a/src/x.rs long 70\na/src/x.rs gone 80\n"), 1);
        assert_eq!(count("a/src/x.rs long 70\nnonsense\n"), 1);
    }
}
