//! What must not stay: notes to oneself, tests that are switched off in silence, paths of one machine.
//!
//! This crate is exempt from the rules about text: it names what it looks for.

use crate::Finding;
use crate::tree::SourceFile;

/// Words that mark unfinished work.
const NOTES: [&str; 3] = ["TODO", "FIXME", "XXX"];
/// Starts of paths that exist on one person's machine only.
const MACHINE_PATHS: [&str; 4] = ["/work/", "/home/", "/Users/", "/root/"];

/// Checks one file.
#[must_use]
pub fn check(file: &SourceFile) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !file.path.starts_with("tidy/") {
        for (i, line) in file.text.lines().enumerate() {
            findings.extend(notes(file, i + 1, line));
            findings.extend(machine_paths(file, i + 1, line));
        }
    }
    // Literals are blanked in the masked code, and a reason is a literal: look at the text of a
    // line that is an attribute in the code.
    for (number, code, _) in file.code_lines() {
        if code.trim_start().starts_with("#[ignore]") {
            findings.push(Finding::new(
                &file.path,
                number,
                "a test switched off without a reason: #[ignore = \"why\"]",
            ));
        }
    }
    findings
}

fn notes(file: &SourceFile, number: usize, line: &str) -> Option<Finding> {
    let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
    let note = words.find(|word| NOTES.contains(word))?;
    Some(Finding::new(&file.path, number, format!("{note}: do it, or file it as an issue")))
}

fn machine_paths(file: &SourceFile, number: usize, line: &str) -> Option<Finding> {
    for prefix in MACHINE_PATHS {
        for (at, _) in line.match_indices(prefix) {
            let is_start = line[..at].chars().next_back().is_none_or(|c| {
                !c.is_alphanumeric() && !matches!(c, '.' | '_' | '-' | '}' | ')' | '$' | '~' | '*')
            });
            let goes_on =
                line[at + prefix.len()..].chars().next().is_some_and(|c| c.is_alphanumeric());
            if is_start && goes_on {
                let message = format!("a path of one machine ({prefix}…)");
                return Some(Finding::new(&file.path, number, message));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        check(&SourceFile::new(path, text)).len()
    }

    #[test]
    fn notes_are_found_in_any_text() {
        assert_eq!(count("a.rs", "// TODO: more\n"), 1);
        assert_eq!(count("a.sh", "# FIXME\n"), 1);
        assert_eq!(count("a.md", "XXX\n"), 1);
        assert_eq!(count("a.sh", "mktemp /tmp/a.XXXXXX\n"), 0);
        assert_eq!(count("a.rs", "const TODO_LIST: u8 = 1;\n"), 0);
    }

    #[test]
    fn paths_of_one_machine_are_found() {
        assert_eq!(count("a.md", "see /work/main/x\n"), 1);
        assert_eq!(count("a.rs", "let p = \"/home/me/x\";\n"), 1);
        assert_eq!(count("a.sh", "cp x \"$dir/home/me\"\n"), 0);
        assert_eq!(count("a.md", "ProtectHome=, /home/ itself\n"), 0);
    }

    #[test]
    fn an_ignored_test_needs_a_reason() {
        assert_eq!(count("a.rs", "#[ignore]\nfn f() {}\n"), 1);
        assert_eq!(count("a.rs", "#[ignore = \"needs hardware\"]\nfn f() {}\n"), 0);
        assert_eq!(count("a.rs", "// #[ignore]\n"), 0);
    }
}
