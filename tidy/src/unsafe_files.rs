//! Unsafe code lives in listed files only (`lists/unsafe_files.txt`), and the list is exact: a file
//! that is not on it may not use `unsafe`, and one that is on it and does not need it comes off.

use std::collections::BTreeSet;

use crate::Finding;
use crate::tree::SourceFile;

/// Does the code of a file use the keyword?
#[must_use]
pub fn uses_unsafe(file: &SourceFile) -> bool {
    file.code_lines().any(|(_, line, _)| {
        line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe")
    })
}

/// Compares the tree with the list's text (a path a line; `#` starts a comment).
#[must_use]
pub fn check(files: &[SourceFile], list_path: &str, list: &str) -> Vec<Finding> {
    let listed: BTreeSet<&str> =
        list.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let using: BTreeSet<&str> =
        files.iter().filter(|file| uses_unsafe(file)).map(|file| file.path.as_str()).collect();
    let unlisted = using.difference(&listed).map(|path| {
        Finding::new(path, 0, format!("unsafe code in a file that is not in {list_path}"))
    });
    let unneeded = listed
        .difference(&using)
        .map(|path| Finding::new(list_path, 0, format!("{path} has no unsafe code: take it off")));
    unlisted.chain(unneeded).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_exact_both_ways() {
        let files = [
            SourceFile::new("a.rs", "//! H.\nfn f() { unsafe { g() } }\n"),
            SourceFile::new("b.rs", "//! Nothing unsafe.\n#![forbid(unsafe_code)]\nfn f() {}\n"),
        ];
        assert!(check(&files, "list", "# why\na.rs\n").is_empty());
        assert_eq!(check(&files, "list", "").len(), 1);
        assert_eq!(check(&files, "list", "a.rs\nb.rs\n").len(), 1);
        assert_eq!(check(&files, "list", "a.rs\ngone.rs\n").len(), 1);
    }
}
