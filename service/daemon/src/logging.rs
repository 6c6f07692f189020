//! Logging to standard error, as text or as JSON lines, by a filter that can be changed meanwhile.

use std::io::IsTerminal as _;

use api_grpc::LogControl;
use tracing_subscriber::filter::{Directive, LevelFilter};
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::config::{Log, LogFormat};

/// The log of this process.
pub(crate) struct Logging {
    configured: String,
    filter: reload::Handle<EnvFilter, Registry>,
}

impl LogControl for Logging {
    fn configured(&self) -> &str {
        &self.configured
    }

    fn apply(&self, filter: &str) -> Result<(), String> {
        let filter = parse(filter)?;
        self.filter.reload(filter).map_err(|error| format!("the log does not take it: {error}"))
    }
}

/// The filter that `text` means.
///
/// # Errors
/// Which part of it is none, for a person.
pub(crate) fn parse(text: &str) -> Result<EnvFilter, String> {
    if text.trim().is_empty() {
        return Err("must not be empty; \"off\" logs nothing".to_owned());
    }
    if text.contains(['[', '{']) {
        return Err(
            "filters go by module and level, not by span: '[' and '{' have no use".to_owned()
        );
    }
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    for part in &parts {
        // A name alone would mean everything of that module, so a level with a slip of the pen would be
        // taken for a module that does not exist, and nothing logged.
        if !part.contains('=') && part.parse::<LevelFilter>().is_err() {
            return Err(format!(
                "{part:?} is no level (off, error, warn, info, debug, trace); for a module write \
                 {part}=debug"
            ));
        }
        if part.parse::<Directive>().is_err() {
            return Err(format!(
                "{part:?} is no directive; write MODULE=LEVEL, as engine_store::journal=debug"
            ));
        }
    }
    EnvFilter::builder()
        .parse(parts.join(","))
        .map_err(|error| format!("{text:?} is no filter: {error}"))
}

/// Installs the log for the whole process.
///
/// # Errors
/// When the filter does not parse (the configuration has checked that) or a log is installed already.
pub(crate) fn start(log: &Log) -> Result<Logging, String> {
    let filter = parse(&log.filter).map_err(|error| format!("log.filter: {error}"))?;
    let (filter, handle) = reload::Layer::new(filter);
    let layer = fmt::layer().with_writer(std::io::stderr);
    let layer = match log.format {
        LogFormat::Json => layer.json().with_timer(SystemTime).flatten_event(true).boxed(),
        LogFormat::Text => {
            let layer = layer.with_ansi(std::io::stderr().is_terminal());
            if under_journal() {
                // The journal has its own time stamps.
                layer.without_time().boxed()
            } else {
                layer.with_timer(SystemTime).boxed()
            }
        }
    };
    let installed = tracing_subscriber::registry().with(filter).with(layer).try_init();
    installed.map_err(|error| format!("cannot start the log: {error}"))?;
    Ok(Logging { configured: log.filter.clone(), filter: handle })
}

/// Whether standard error goes to the systemd journal (systemd.exec(5), $JOURNAL_STREAM).
fn under_journal() -> bool {
    let Some(stream) = std::env::var("JOURNAL_STREAM").ok() else { return false };
    let Ok(stat) = rustix::fs::fstat(std::io::stderr()) else { return false };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use tracing::{Event, Subscriber};
    use tracing_subscriber::layer::{Context, Layer};

    use super::*;

    #[test]
    fn what_is_no_filter_is_told_with_the_part_that_is_wrong() {
        for good in ["info", "OFF", "warn, engine_store::journal=debug", "0"] {
            parse(good).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        for (bad, part) in [
            ("", "empty"),
            (" ", "empty"),
            ("debgu", "debgu"),
            ("info,engine_store", "engine_store=debug"),
            ("info,engine_store=loud", "engine_store=loud"),
            ("info,,debug", "\"\""),
            ("a[b{c=d,e=f}]=trace", "span"),
        ] {
            let Err(error) = parse(bad) else { panic!("{bad:?} is taken for a filter") };
            assert!(error.contains(part), "{bad}: {error}");
        }
    }

    #[derive(Clone, Default)]
    struct Count(Arc<AtomicU64>);

    impl<S: Subscriber> Layer<S> for Count {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_filter_that_is_changed_holds_at_once() {
        let (filter, handle) = reload::Layer::new(parse("info").unwrap());
        let log = Logging { configured: "info".to_owned(), filter: handle };
        let count = Count::default();
        let seen = || count.0.swap(0, Ordering::Relaxed);
        let subscriber = tracing_subscriber::registry().with(filter).with(count.clone());
        tracing::subscriber::with_default(subscriber, || {
            let events = || {
                tracing::debug!(target: "engine_store::journal", "one");
                tracing::debug!(target: "engine_store::btree", "another");
                tracing::info!("a third");
                seen()
            };
            assert_eq!(events(), 1);
            log.apply("info,engine_store::journal=debug").unwrap();
            assert_eq!(events(), 2);
            log.apply("engine_store=loud").unwrap_err();
            assert_eq!(events(), 2, "what is refused changes nothing");
            log.apply("debug").unwrap();
            assert_eq!(events(), 3);
            log.apply("off").unwrap();
            assert_eq!(events(), 0);
            log.apply(log.configured()).unwrap();
            assert_eq!(events(), 1);
        });
    }
}
