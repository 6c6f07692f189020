//! What the server logs: shown, changed while it runs, and put back after a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use engine_store::StoreError;
use proto::v1;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tonic::Status;

use crate::limits::{LOG_FILTER_BYTES_MAX, LOG_FILTER_SECONDS_MAX};
use crate::status::{bad_field, of_store};

/// The log of the program around the server.
pub trait LogControl: Send + Sync + 'static {
    /// The filter of the configuration.
    fn configured(&self) -> &str;

    /// Logs by `filter` from now on, in all threads.
    ///
    /// # Errors
    /// What is wrong with the filter, for a person; nothing has changed then.
    fn apply(&self, filter: &str) -> Result<(), String>;
}

/// The filter in force. Clones are the same one.
#[derive(Clone)]
pub(crate) struct LogFilter {
    control: Arc<dyn LogControl>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// The filter that was set, and when it goes by itself.
    set: Option<(String, Option<Instant>)>,
    /// Counts changes: who wants to undo one looks whether it was the last.
    changes: u64,
    /// The task that will undo the last one.
    undoing: Option<AbortHandle>,
}

impl LogFilter {
    pub(crate) fn new(control: Arc<dyn LogControl>) -> Self {
        Self { control, state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn show(&self) -> v1::GetLogFilterResponse {
        let configured = self.control.configured().to_owned();
        let state = self.state();
        let Some((filter, until)) = &state.set else {
            let filter = configured.clone();
            return v1::GetLogFilterResponse { filter, configured, changed: false, remaining_s: 0 };
        };
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // Rounded up: 0 means for ever.
        let remaining_s = left.map_or(0, |left| left.as_millis().div_ceil(1000).max(1) as u32);
        v1::GetLogFilterResponse { filter: filter.clone(), configured, changed: true, remaining_s }
    }

    /// Sets a filter, or puts that of the configuration back. Needs a tokio runtime.
    pub(crate) fn set(&self, asked: &v1::SetLogFilterRequest) -> Result<(), Status> {
        let Some(filter) = &asked.filter else {
            if asked.for_s != 0 {
                return Err(bad_field(
                    "for_s",
                    "is for a filter that is set, not for putting back",
                ));
            }
            return self.change(self.control.configured(), None);
        };
        if filter.len() > LOG_FILTER_BYTES_MAX {
            let why = format!("is {} bytes long, {LOG_FILTER_BYTES_MAX} are allowed", filter.len());
            return Err(bad_field("filter", why));
        }
        if asked.for_s > LOG_FILTER_SECONDS_MAX {
            let why = format!("must be at most {LOG_FILTER_SECONDS_MAX}, a week; or 0, for ever");
            return Err(bad_field("for_s", why));
        }
        let lasts = (asked.for_s != 0).then(|| Duration::from_secs(asked.for_s.into()));
        self.change(filter, Some(lasts))
    }

    /// `set`: it is another filter than that of the configuration, and how long it lasts.
    fn change(&self, filter: &str, set: Option<Option<Duration>>) -> Result<(), Status> {
        let mut state = self.state();
        self.control.apply(filter).map_err(|why| bad_field("filter", why))?;
        state.changes += 1;
        if let Some(undoing) = state.undoing.take() {
            undoing.abort();
        }
        let lasts = set.flatten();
        state.set = set.map(|lasts| (filter.to_owned(), lasts.map(|time| Instant::now() + time)));
        state.undoing = lasts.map(|time| {
            let (this, change) = (self.clone(), state.changes);
            let undoing = async move {
                tokio::time::sleep(time).await;
                this.undo(change);
            };
            tokio::spawn(undoing).abort_handle()
        });
        Ok(())
    }

    /// Undoes a change, if it was the last one.
    fn undo(&self, change: u64) {
        let mut state = self.state();
        if state.changes != change {
            return;
        }
        match self.control.apply(self.control.configured()) {
            Ok(()) => {
                state.set = None;
                tracing::info!(filter = self.control.configured(), "the log's filter is back");
            }
            Err(why) => tracing::error!(why, "the log's filter of the configuration is refused"),
        }
    }
}

/// The status when the program's log cannot be changed.
pub(crate) fn fixed() -> Status {
    let what = "changing the log of this server".to_owned();
    of_store(&StoreError::Unsupported { what }, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Knows the filters that were applied; refuses "bad".
    #[derive(Default)]
    struct Log(Mutex<Vec<String>>);

    impl LogControl for Log {
        fn configured(&self) -> &str {
            "info"
        }

        fn apply(&self, filter: &str) -> Result<(), String> {
            if filter == "bad" {
                return Err("is none".to_owned());
            }
            self.0.lock().unwrap().push(filter.to_owned());
            Ok(())
        }
    }

    fn new() -> (Arc<Log>, LogFilter) {
        let log = Arc::<Log>::default();
        (Arc::clone(&log), LogFilter::new(log))
    }

    fn asked(filter: &str, for_s: u32) -> v1::SetLogFilterRequest {
        v1::SetLogFilterRequest { filter: Some(filter.to_owned()), for_s }
    }

    fn shown(filter: &LogFilter) -> (String, bool, u32) {
        let shown = filter.show();
        assert_eq!(shown.configured, "info");
        (shown.filter, shown.changed, shown.remaining_s)
    }

    #[tokio::test]
    async fn a_filter_with_a_time_goes_by_itself() {
        let (log, filter) = new();
        assert_eq!(shown(&filter), ("info".to_owned(), false, 0));
        filter.set(&asked("debug", LOG_FILTER_SECONDS_MAX)).unwrap();
        let (now, changed, remaining_s) = shown(&filter);
        assert_eq!((now.as_str(), changed), ("debug", true));
        assert!(remaining_s > 0 && remaining_s <= LOG_FILTER_SECONDS_MAX);
        filter.set(&asked("trace", 1)).unwrap();
        while filter.show().changed {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(shown(&filter), ("info".to_owned(), false, 0));
        assert_eq!(*log.0.lock().unwrap(), ["debug", "trace", "info"]);
    }

    /// The end of the first one's time does not undo the second.
    #[tokio::test]
    async fn a_later_filter_is_not_undone_by_an_earlier_ones_time() {
        let (log, filter) = new();
        filter.set(&asked("debug", 10)).unwrap();
        let first = filter.state().changes;
        filter.set(&asked("trace", 0)).unwrap();
        filter.undo(first);
        assert_eq!(shown(&filter), ("trace".to_owned(), true, 0));
        filter.set(&v1::SetLogFilterRequest { filter: None, for_s: 0 }).unwrap();
        assert_eq!(shown(&filter), ("info".to_owned(), false, 0));
        assert_eq!(*log.0.lock().unwrap(), ["debug", "trace", "info"]);
    }

    #[tokio::test]
    async fn what_is_no_filter_changes_nothing() {
        let (log, filter) = new();
        filter.set(&asked("debug", 0)).unwrap();
        let too_long = "x".repeat(LOG_FILTER_BYTES_MAX + 1);
        let back_later = v1::SetLogFilterRequest { filter: None, for_s: 1 };
        let week = asked("debug", LOG_FILTER_SECONDS_MAX + 1);
        for bad in [asked("bad", 0), asked(&too_long, 0), back_later, week] {
            let refused = filter.set(&bad).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        }
        assert_eq!(shown(&filter), ("debug".to_owned(), true, 0));
        assert_eq!(*log.0.lock().unwrap(), ["debug"]);
    }
}
