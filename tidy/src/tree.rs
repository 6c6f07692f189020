//! The files of the repository, read once.
//!
//! Left out: what git does not keep either (build outputs, caches), by directory name. A file that is
//! not UTF-8 is not text and no rule looks at it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::mask::{mask, test_lines};

/// A text file of the repository.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// Path relative to the root, with `/`.
    pub path: String,
    /// The text as it is.
    pub text: String,
    /// For Rust: the text with comments and literals blanked; else empty.
    pub code: String,
    /// For Rust: which lines are test code; else empty.
    pub test_lines: Vec<bool>,
}

impl SourceFile {
    /// A file from its text. Rust files are masked, and those in a directory for tests are test code
    /// from the first line to the last.
    #[must_use]
    pub fn new(path: &str, text: &str) -> Self {
        let is_rust = has_extension(path, "rs");
        let code = if is_rust { mask(text) } else { String::new() };
        let mut test_lines = test_lines(&code);
        if is_test_path(path) {
            test_lines.fill(true);
        }
        Self { path: path.to_owned(), text: text.to_owned(), code, test_lines }
    }

    /// Is it Rust?
    #[must_use]
    pub fn is_rust(&self) -> bool {
        has_extension(&self.path, "rs")
    }

    /// Lines of masked code with their number, from 1, and whether they are test code.
    pub fn code_lines(&self) -> impl Iterator<Item = (usize, &str, bool)> {
        self.code
            .lines()
            .enumerate()
            .map(|(i, line)| (i + 1, line, self.test_lines.get(i).copied().unwrap_or(false)))
    }
}

/// Does the path end in `.extension`?
#[must_use]
pub fn has_extension(path: &str, extension: &str) -> bool {
    Path::new(path).extension().is_some_and(|e| e == extension)
}

/// Test code by its place: a `tests` directory of a crate, a module file named for tests, or what a
/// crate offers to the tests of others (`testing`, behind a feature).
fn is_test_path(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let in_tests_of_crate = path.contains("/tests/") && !path.starts_with("tests/");
    let for_other_tests = path.contains("/src/testing/") || name == "testing.rs";
    in_tests_of_crate
        || for_other_tests
        || name == "tests.rs"
        || name.ends_with("_tests.rs")
        || name == "test_util.rs"
}

/// The root of the repository this crate was built in.
#[must_use]
pub fn repository_root() -> PathBuf {
    let crate_directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_directory.parent().unwrap_or(crate_directory).to_path_buf()
}

/// Reads every text file under `root`, in order of path.
pub fn read_tree(root: &Path) -> io::Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let path = entry.path();
            let kind = entry.file_type()?;
            let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy();
            if is_left_out(&relative) {
                continue;
            }
            if kind.is_dir() {
                directories.push(path);
            } else if kind.is_file()
                && let Ok(text) = fs::read_to_string(&path)
            {
                files.push(SourceFile::new(&relative, &text));
            }
        }
    }
    mark_test_modules(&mut files);
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// What is not part of the repository, as .gitignore has it. `.git` is a directory, or in a linked work
/// tree a file that names one of this machine.
fn is_left_out(path: &str) -> bool {
    const PATHS: [&str; 7] =
        [".git", ".cache", "demo-pool", "target", "fuzz/target", "fuzz/corpus", "fuzz/artifacts"];
    PATHS.contains(&path) || path.starts_with("target-")
}

/// Marks the files of modules that are declared as `#[cfg(test)] mod name;`, and those of the modules
/// in them.
fn mark_test_modules(files: &mut [SourceFile]) {
    let mut known = 0;
    loop {
        let mut test_modules = BTreeSet::new();
        for file in files.iter().filter(|file| file.is_rust()) {
            for (_, line, is_test) in file.code_lines() {
                if is_test && let Some(name) = declared_module(line) {
                    test_modules.extend(module_files(&file.path, name));
                }
            }
        }
        for file in files.iter_mut().filter(|file| test_modules.contains(&file.path)) {
            file.test_lines.fill(true);
        }
        // Each round goes one level deeper; a round that finds nothing new was the last.
        if test_modules.len() == known {
            return;
        }
        known = test_modules.len();
    }
}

/// The name in a line such as `pub(crate) mod name;`.
fn declared_module(line: &str) -> Option<&str> {
    let mut words = line.trim().strip_suffix(';')?.split_whitespace();
    let name = words.next_back()?;
    (words.next_back()? == "mod").then_some(name)
}

/// The files in which a module declared in `path` may be.
fn module_files(path: &str, name: &str) -> [String; 2] {
    let (directory, file) = path.rsplit_once('/').unwrap_or(("", path));
    let base = match file {
        "lib.rs" | "main.rs" | "mod.rs" => directory.to_owned(),
        other => format!("{directory}/{}", other.trim_end_matches(".rs")),
    };
    [format!("{base}/{name}.rs"), format!("{base}/{name}/mod.rs")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_modules_in_files_of_their_own_are_found() {
        let mut files = vec![
            SourceFile::new("a/src/lib.rs", "#[cfg(test)]\nmod model;\nmod code;\n"),
            SourceFile::new("a/src/model.rs", "fn f() {}\n"),
            SourceFile::new("a/src/code.rs", "#[cfg(test)]\nmod cases;\n"),
            SourceFile::new("a/src/code/cases.rs", "mod deep;\n"),
            SourceFile::new("a/src/code/cases/deep.rs", "fn f() {}\n"),
        ];
        mark_test_modules(&mut files);
        assert_eq!(files[1].test_lines, [true]);
        assert_eq!(files[2].test_lines, [true, true]);
        assert_eq!(files[3].test_lines, [true]);
        assert_eq!(files[4].test_lines, [true], "a module of a test module");
        assert_eq!(files[0].test_lines, [true, true, false]);
    }

    #[test]
    fn only_build_outputs_are_left_out() {
        assert!(is_left_out("target"));
        assert!(is_left_out("target-other"));
        assert!(is_left_out("fuzz/target"));
        assert!(!is_left_out("nvme/target"));
    }

    #[test]
    fn tests_by_place() {
        assert!(is_test_path("engine/store/tests/model.rs"));
        assert!(is_test_path("engine/store/src/index/tests.rs"));
        assert!(is_test_path("nvme/target/src/testing/host.rs"));
        assert!(!is_test_path("tests/crash/src/main.rs"));
        assert!(!is_test_path("engine/store/src/index.rs"));
    }
}
