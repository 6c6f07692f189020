//! Word to systemd (sd_notify(3)); silent where there is no systemd.

use std::time::Duration;

use sd_notify::NotifyState;

/// Longest time between two keep-alives to the watchdog. systemd.service(5) advises half of
/// WatchdogSec; a third leaves room for one that failed.
const WATCHDOG_SHARE: u32 = 3;
/// Shortest time between two keep-alives: nothing on an idle daemon runs more often than this.
const WATCHDOG_PERIOD_MIN: Duration = Duration::from_secs(1);

/// Start-up is finished.
pub(crate) fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Shutdown has begun.
pub(crate) fn stopping(status: &str) {
    send(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// A line for `systemctl status`.
pub(crate) fn status(status: &str) {
    send(&[NotifyState::Status(status)]);
}

/// All cores turn.
pub(crate) fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// How often [`alive`] is expected; `None` without a watchdog.
pub(crate) fn alive_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| (limit / WATCHDOG_SHARE).max(WATCHDOG_PERIOD_MIN))
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}
