//! Every rule of this crate over the whole repository.
//!
//! `TIDY_UPDATE=1 cargo test -p tidy` writes both lists anew; what changed is then seen in the diff.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::{env, fs};

use tidy::tree::{SourceFile, read_tree, repository_root};
use tidy::{Finding, arrows, calls, functions, layout, leftovers, unsafe_files};

const UNSAFE_FILES: &str = "tidy/lists/unsafe_files.txt";
const LONG_FUNCTIONS: &str = "tidy/lists/long_functions.txt";

fn files() -> Vec<SourceFile> {
    let files = read_tree(&repository_root()).expect("the repository is readable");
    assert!(files.iter().any(|file| file.path == "tidy/tests/repository.rs"), "not the repository");
    files
}

fn list(path: &str) -> String {
    fs::read_to_string(repository_root().join(path)).unwrap_or_default()
}

fn write_list(path: &str, header: &str, lines: impl Iterator<Item = String>) {
    let mut text = header.to_owned();
    for line in lines {
        writeln!(text, "{line}").expect("a String takes any text");
    }
    fs::write(repository_root().join(path), text).expect("the list is writable");
}

fn wants_update() -> bool {
    env::var_os("TIDY_UPDATE").is_some()
}

fn report(mut findings: Vec<Finding>) {
    findings.sort();
    let text: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(text.is_empty(), "{} findings:\n{}", text.len(), text.join("\n"));
}

#[test]
fn files_have_a_header_and_a_bounded_size() {
    report(files().iter().flat_map(layout::check).collect());
}

#[test]
fn nothing_unfinished_is_left() {
    report(files().iter().flat_map(leftovers::check).collect());
}

#[test]
fn no_banned_call_is_made() {
    report(files().iter().flat_map(calls::check).collect());
}

#[test]
fn unsafe_code_is_where_the_list_says() {
    let files = files();
    if wants_update() {
        let using = files.iter().filter(|file| unsafe_files::uses_unsafe(file));
        let header = "# The only files that may contain unsafe code, and all of them do.\n";
        write_list(UNSAFE_FILES, header, using.map(|file| file.path.clone()));
    }
    report(unsafe_files::check(&files, UNSAFE_FILES, &list(UNSAFE_FILES)));
}

#[test]
fn functions_do_not_grow() {
    let mut found: Vec<_> = files().iter().flat_map(functions::long_functions).collect();
    found.sort();
    if wants_update() {
        let header = "# Functions over 60 lines: path, name, lines. A ratchet: see functions.rs.\n";
        let lines = found.iter().map(|f| format!("{} {} {}", f.path, f.name, f.lines));
        write_list(LONG_FUNCTIONS, header, lines);
    }
    report(functions::check(&found, LONG_FUNCTIONS, &list(LONG_FUNCTIONS)));
}

#[test]
fn dependencies_point_down() {
    let files = files();
    let manifests: Vec<_> =
        files.iter().filter(|file| file.path.ends_with("/Cargo.toml")).collect();
    let names: BTreeSet<String> =
        manifests.iter().filter_map(|file| arrows::package_name(&file.text)).collect();
    assert!(names.len() >= 14, "only {} packages found", names.len());
    report(manifests.iter().flat_map(|f| arrows::check(&f.path, &f.text, &names)).collect());
}
