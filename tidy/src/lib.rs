//! The rules of this repository that no compiler checks, checked as a test (`cargo test -p tidy`).
//!
//! Each rule is a function from what it looks at to a list of [`Finding`]s, with tests beside it that
//! show it fail on a bad sample. `tests/repository.rs` runs all of them over the tree.
//! Left to others: formatting (rustfmt), and whatever a lint of rustc or clippy can say.

pub mod arrows;
pub mod calls;
pub mod functions;
pub mod layout;
pub mod leftovers;
pub mod mask;
pub mod tree;
pub mod unsafe_files;

use std::fmt;

/// One violation of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// File, relative to the root of the repository.
    pub path: String,
    /// Line, from 1; 0 when the whole file is meant.
    pub line: usize,
    /// What is wrong, and what to do instead.
    pub message: String,
}

impl Finding {
    /// A finding on a line, or on a file with line 0.
    pub fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.message),
            line => write!(f, "{}:{}: {}", self.path, line, self.message),
        }
    }
}
