//! What went wrong, for people and for the exit code.

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Result of a command.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// Exit codes. Also told by `cairn --help`.
pub(crate) mod exit {
    pub(crate) const OK: u8 = 0;
    pub(crate) const FAILURE: u8 = 1;
    /// As clap's.
    pub(crate) const USAGE: u8 = 2;
    pub(crate) const NOT_FOUND: u8 = 3;
    pub(crate) const EXISTS: u8 = 4;
    pub(crate) const REFUSED: u8 = 5;
    pub(crate) const NO_SPACE: u8 = 6;
    pub(crate) const UNREACHABLE: u8 = 7;
    pub(crate) const DAMAGED: u8 = 8;
}

/// The exit codes, for the help text.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed for another reason
  2  the command line is wrong
  3  what was named does not exist
  4  what was to be created exists
  5  refused in the present state (in use, not empty, of the wrong kind, not agreed to)
  6  no space, or too much in progress
  7  the daemon cannot be reached, or is stopping
  8  data is damaged, or a check found problems";

/// A command that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Exit code.
    pub(crate) code: u8,
    /// What failed, on what.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
    /// Reason for programs, as the server gave it.
    pub(crate) reason: Option<String>,
}

impl Failure {
    /// A failure without a code of its own.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { code: exit::FAILURE, message: message.into(), hint: None, reason: None }
    }

    /// A wrong command line.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(message).code(exit::USAGE)
    }

    /// The same with another exit code.
    pub(crate) fn code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// The same with advice.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// A local file that could not be worked on.
    pub(crate) fn local(path: &std::path::Path, what: &str, error: &std::io::Error) -> Self {
        let code = match error.kind() {
            std::io::ErrorKind::NotFound => exit::NOT_FOUND,
            std::io::ErrorKind::AlreadyExists => exit::EXISTS,
            std::io::ErrorKind::StorageFull => exit::NO_SPACE,
            _ => exit::FAILURE,
        };
        Self::new(format!("{}: {what}: {error}", path.display())).code(code)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let reason = status.get_details_error_info().map(|info| info.reason);
        let code = match status.code() {
            Code::NotFound => exit::NOT_FOUND,
            Code::AlreadyExists => exit::EXISTS,
            Code::FailedPrecondition => exit::REFUSED,
            Code::ResourceExhausted => exit::NO_SPACE,
            Code::Unavailable => exit::UNREACHABLE,
            Code::DataLoss => exit::DAMAGED,
            Code::InvalidArgument => exit::USAGE,
            _ => exit::FAILURE,
        };
        let hint = match (status.code(), reason.as_deref()) {
            (Code::Unavailable, _) => Some("check that cairnd runs, and try again"),
            (Code::DeadlineExceeded, _) => Some("give more time with --timeout"),
            (_, Some("NOT_EMPTY")) => Some("remove what is in it, or use rm -r"),
            (_, Some("CROSS_SUBVOLUME")) => Some("copy with get and put instead"),
            (_, Some("NO_SPACE")) => Some("delete something, or add space to the pool"),
            (_, Some("TOO_MANY_CALLS" | "OVERLOADED")) => Some("try again in a moment"),
            (_, Some("DATA_LOSS" | "CORRUPT")) => Some("run cairn fsck --online --verify-data"),
            (Code::Unimplemented, _) => Some("the daemon does not have this; compare versions"),
            _ => None,
        };
        let message = match status.message() {
            "" => format!("the daemon answered {}", status.code()),
            message => message.to_owned(),
        };
        Self { code, message, hint: hint.map(str::to_owned), reason }
    }
}
