//! Causes of failure as gRPC statuses: one table, and the `google.rpc` details that go with each.
//!
//! Every status made here carries an `ErrorInfo` with domain "cairn" and a reason that programs can
//! rely on; messages are for people.

use std::collections::HashMap;
use std::time::Duration;

use engine_store::StoreError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::limits::MESSAGE_TEXT_BYTES_MAX;

/// Domain of every `ErrorInfo`.
pub const DOMAIN: &str = "cairn";

/// When to try again after UNAVAILABLE or an overload: longer than a burst, shorter than patience.
pub const RETRY_DELAY: Duration = Duration::from_millis(500);

/// The code and the reason of a cause.
#[must_use]
pub fn row(error: &StoreError) -> (Code, &'static str) {
    match error {
        StoreError::NotFound { .. } => (Code::NotFound, "NOT_FOUND"),
        StoreError::AlreadyExists { .. } => (Code::AlreadyExists, "ALREADY_EXISTS"),
        StoreError::NotEmpty { .. } => (Code::FailedPrecondition, "NOT_EMPTY"),
        StoreError::NotDirectory { .. } => (Code::FailedPrecondition, "NOT_DIRECTORY"),
        StoreError::IsDirectory { .. } => (Code::FailedPrecondition, "IS_DIRECTORY"),
        StoreError::CrossSubvolume => (Code::FailedPrecondition, "CROSS_SUBVOLUME"),
        StoreError::InvalidArgument { .. } => (Code::InvalidArgument, "INVALID_ARGUMENT"),
        StoreError::TooManySymlinks { .. } => (Code::FailedPrecondition, "TOO_MANY_SYMLINKS"),
        StoreError::TooManyLinks { .. } => (Code::FailedPrecondition, "TOO_MANY_LINKS"),
        StoreError::NoSpace { .. } => (Code::ResourceExhausted, "NO_SPACE"),
        StoreError::Busy { .. } => (Code::FailedPrecondition, "BUSY"),
        StoreError::ReadOnly { .. } => (Code::FailedPrecondition, "READ_ONLY"),
        StoreError::DataLoss { .. } => (Code::DataLoss, "DATA_LOSS"),
        StoreError::Corrupt { .. } => (Code::DataLoss, "CORRUPT"),
        StoreError::Device(_) => (Code::Internal, "DEVICE_FAILED"),
        StoreError::OutOfMemory { .. } => (Code::ResourceExhausted, "OUT_OF_MEMORY"),
        StoreError::Overloaded { .. } => (Code::ResourceExhausted, "OVERLOADED"),
        StoreError::Unsupported { .. } => (Code::Unimplemented, "UNSUPPORTED"),
        StoreError::ShuttingDown { .. } => (Code::Unavailable, "SHUTTING_DOWN"),
        StoreError::Restart => (Code::Internal, "RESTART"),
        StoreError::TransactionFull(_) => (Code::Internal, "TRANSACTION_FULL"),
    }
}

/// What a call was about, for `ResourceInfo`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resource<'a> {
    /// Type, such as "cairn.v1.Volume".
    pub(crate) kind: &'static str,
    /// Name, such as "backup" or "home:/a/b".
    pub(crate) name: &'a str,
}

/// The status for an engine error on `resource`.
pub(crate) fn of_store(error: &StoreError, resource: Option<Resource<'_>>) -> Status {
    let (code, reason) = row(error);
    let mut details = details(reason);
    if let Some(resource) = resource {
        details.set_resource_info(resource.kind, cut(resource.name), "", cut(&error.to_string()));
    }
    match code {
        Code::ResourceExhausted => {
            details.add_quota_failure_violation(quota_subject(error), cut(&error.to_string()));
            if matches!(error, StoreError::Overloaded { .. }) {
                details.set_retry_info(Some(RETRY_DELAY));
            }
        }
        Code::Unavailable => {
            details.set_retry_info(Some(RETRY_DELAY));
        }
        Code::FailedPrecondition => {
            let subject = resource.map_or("", |resource| resource.name);
            details.add_precondition_failure_violation(
                reason,
                cut(subject),
                cut(&error.to_string()),
            );
        }
        Code::InvalidArgument => {
            details.add_bad_request_violation("request", cut(&error.to_string()));
        }
        _ => {}
    }
    let message = match resource {
        Some(resource) => format!("{}: {error}", resource.name),
        None => error.to_string(),
    };
    Status::with_error_details(code, cut(&message), details)
}

fn quota_subject(error: &StoreError) -> &'static str {
    match error {
        StoreError::NoSpace { .. } => "pool:space",
        StoreError::OutOfMemory { .. } => "server:memory",
        _ => "server:requests",
    }
}

/// The status for a field of a request that is not as it must be.
pub(crate) fn bad_field(field: &str, why: impl Into<String>) -> Status {
    let why = why.into();
    let mut details = details("INVALID_ARGUMENT");
    details.add_bad_request_violation(field, cut(&why));
    Status::with_error_details(Code::InvalidArgument, cut(&format!("{field}: {why}")), details)
}

/// The status for an object whose state or kind forbids the call.
pub(crate) fn precondition(reason: &'static str, resource: Resource<'_>, why: &str) -> Status {
    let mut details = details(reason);
    details.add_precondition_failure_violation(reason, cut(resource.name), cut(why));
    details.set_resource_info(resource.kind, cut(resource.name), "", cut(why));
    let message = format!("{}: {why}", resource.name);
    Status::with_error_details(Code::FailedPrecondition, cut(&message), details)
}

/// The status for a call over the server's bound on concurrent calls.
pub(crate) fn too_many_calls(calls_max: usize) -> Status {
    let why = format!("{calls_max} calls are in progress, the configured most; try again");
    let mut details = details("TOO_MANY_CALLS");
    details.add_quota_failure_violation("server:calls", &why);
    details.set_retry_info(Some(RETRY_DELAY));
    Status::with_error_details(Code::ResourceExhausted, why, details)
}

/// The status for calls that a stopping server gives up.
pub(crate) fn stopping() -> Status {
    let mut details = details("SHUTTING_DOWN");
    details.set_retry_info(Some(RETRY_DELAY));
    Status::with_error_details(Code::Unavailable, "the server is shutting down", details)
}

/// The status for a deadline that has passed; `why` says whose.
pub(crate) fn deadline(reason: &'static str, why: &str) -> Status {
    Status::with_error_details(Code::DeadlineExceeded, why, details(reason))
}

/// The status for a chunk whose checksum does not match.
pub(crate) fn chunk_damaged(offset: u64, expected: u32, found: u32) -> Status {
    let message = format!(
        "chunk at offset {offset} was damaged on its way: crc32c is {found:#010x}, the client sent \
         {expected:#010x}; send it again"
    );
    Status::with_error_details(Code::DataLoss, message, details("CHUNK_CHECKSUM"))
}

fn details(reason: &str) -> ErrorDetails {
    ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new())
}

/// `text`, cut to what a status may carry.
pub(crate) fn cut(text: &str) -> String {
    if text.len() <= MESSAGE_TEXT_BYTES_MAX {
        return text.to_owned();
    }
    let mut end = MESSAGE_TEXT_BYTES_MAX - "...".len();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...", &text[..end])
}

/// Engine results as results of a call.
pub(crate) trait OnResource<T> {
    /// Names what the call was about.
    fn on(self, kind: &'static str, name: &str) -> Result<T, Status>;
    /// For calls that are about nothing in particular.
    fn plain(self) -> Result<T, Status>;
}

impl<T> OnResource<T> for Result<T, StoreError> {
    fn on(self, kind: &'static str, name: &str) -> Result<T, Status> {
        self.map_err(|error| of_store(&error, Some(Resource { kind, name })))
    }

    fn plain(self) -> Result<T, Status> {
        self.map_err(|error| of_store(&error, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_store::StoreError as E;

    /// One of every variant. A new variant breaks `index`, and so cannot be left out here.
    fn all() -> Vec<E> {
        let text = || "x".to_owned();
        vec![
            E::not_found("x"),
            E::AlreadyExists { what: text() },
            E::NotEmpty { what: text() },
            E::NotDirectory { what: text() },
            E::IsDirectory { what: text() },
            E::CrossSubvolume,
            E::invalid("x"),
            E::TooManySymlinks { path: text() },
            E::TooManyLinks { inode: 1 },
            E::NoSpace { needed_bytes: 2, available_bytes: 1 },
            E::Busy { what: text(), why: text() },
            E::ReadOnly { why: text() },
            E::DataLoss { what: text() },
            E::corrupt("x", "y"),
            E::Device(engine_device::DeviceError::Gone { device: text() }),
            E::OutOfMemory { what: text() },
            E::Overloaded { what: text() },
            E::Unsupported { what: text() },
            E::ShuttingDown { why: text() },
            E::Restart,
            E::TransactionFull(9),
        ]
    }

    fn index(error: &E) -> usize {
        match error {
            E::NotFound { .. } => 0,
            E::AlreadyExists { .. } => 1,
            E::NotEmpty { .. } => 2,
            E::NotDirectory { .. } => 3,
            E::IsDirectory { .. } => 4,
            E::CrossSubvolume => 5,
            E::InvalidArgument { .. } => 6,
            E::TooManySymlinks { .. } => 7,
            E::TooManyLinks { .. } => 8,
            E::NoSpace { .. } => 9,
            E::Busy { .. } => 10,
            E::ReadOnly { .. } => 11,
            E::DataLoss { .. } => 12,
            E::Corrupt { .. } => 13,
            E::Device(_) => 14,
            E::OutOfMemory { .. } => 15,
            E::Overloaded { .. } => 16,
            E::Unsupported { .. } => 17,
            E::ShuttingDown { .. } => 18,
            E::Restart => 19,
            E::TransactionFull(_) => 20,
        }
    }

    #[test]
    fn every_cause_has_a_code_a_reason_and_its_details() {
        let mut reasons = std::collections::BTreeSet::new();
        for (at, error) in all().iter().enumerate() {
            assert_eq!(index(error), at);
            let (code, reason) = row(error);
            assert!(code != Code::Ok && code != Code::Unknown, "{error:?}");
            assert!(reasons.insert(reason), "{reason} is used twice");
            let status = of_store(error, Some(Resource { kind: "cairn.v1.File", name: "t:/a" }));
            assert_eq!(status.code(), code);
            assert!(status.message().starts_with("t:/a: "), "{}", status.message());
            let details = status.check_error_details().unwrap();
            let info = details.error_info().unwrap();
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason, DOMAIN));
            assert_eq!(details.resource_info().unwrap().resource_name, "t:/a");
            assert_eq!(details.quota_failure().is_some(), code == Code::ResourceExhausted);
            assert_eq!(details.precondition_failure().is_some(), code == Code::FailedPrecondition);
            assert_eq!(details.bad_request().is_some(), code == Code::InvalidArgument);
            let overloaded = matches!(error, E::Overloaded { .. });
            assert_eq!(details.retry_info().is_some(), code == Code::Unavailable || overloaded);
        }
        assert_eq!(all().len(), 21);
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        for lead in 0..4 {
            let long = format!("{}{}", "a".repeat(lead), "\u{1f4be}".repeat(1000));
            let status = of_store(&E::not_found(long), None);
            assert!(status.message().len() <= MESSAGE_TEXT_BYTES_MAX);
            assert!(status.message().ends_with("..."));
        }
        assert_eq!(cut("short"), "short");
    }
}
