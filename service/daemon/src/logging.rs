//! Logging to standard error, as text or as JSON lines.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

use crate::config::{Log, LogFormat};

/// Installs the log for the whole process.
///
/// # Errors
/// When the filter does not parse (the configuration has checked that) or a log is installed already.
pub(crate) fn start(log: &Log) -> Result<(), String> {
    let filter: EnvFilter = log.filter.parse().map_err(|error| format!("log.filter: {error}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let installed = match log.format {
        LogFormat::Json => builder.json().with_timer(SystemTime).flatten_event(true).try_init(),
        LogFormat::Text => {
            let builder = builder.with_ansi(std::io::stderr().is_terminal());
            if under_journal() {
                // The journal has its own time stamps.
                builder.without_time().try_init()
            } else {
                builder.with_timer(SystemTime).try_init()
            }
        }
    };
    installed.map_err(|error| format!("cannot start the log: {error}"))
}

/// Whether standard error goes to the systemd journal (systemd.exec(5), $JOURNAL_STREAM).
fn under_journal() -> bool {
    let Some(stream) = std::env::var("JOURNAL_STREAM").ok() else { return false };
    let Ok(stat) = rustix::fs::fstat(std::io::stderr()) else { return false };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}
