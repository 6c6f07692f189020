//! What commands print: results to standard output, the rest to standard error.

use std::io::{self, IsTerminal as _, Write as _};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use tabled::Table;
use tabled::builder::Builder;
use tabled::settings::{Padding, Style};

use crate::failure::{Failure, Result, exit};

/// How results are shown.
#[derive(Debug)]
pub(crate) struct Output {
    json: bool,
    quiet: bool,
}

impl Output {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet }
    }

    /// Whether JSON is asked for.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Raw bytes, as `cat` and `completion` print them.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<()> {
        match io::stdout().lock().write_all(bytes) {
            Ok(()) => Ok(()),
            Err(error) => Err(Failure::new(format!("standard output: {error}"))),
        }
    }

    fn line(&self, text: &str) -> Result<()> {
        self.bytes(format!("{text}\n").as_bytes())
    }

    /// One value: JSON for programs, `text` for people.
    pub(crate) fn value(&self, value: &Value, text: impl FnOnce() -> String) -> Result<()> {
        if self.json { self.line(&format!("{value:#}")) } else { self.line(&text()) }
    }

    /// A list: a JSON array for programs, a table for people.
    pub(crate) fn table<R>(&self, header: &[&str], rows: R, values: Vec<Value>) -> Result<()>
    where
        R: IntoIterator<Item = Vec<String>>,
    {
        if self.json {
            return self.line(&format!("{:#}", Value::Array(values)));
        }
        let mut builder = Builder::default();
        if !self.quiet {
            builder.push_record(header.iter().copied());
        }
        for row in rows {
            builder.push_record(row);
        }
        let mut table: Table = builder.build();
        table.with(Style::empty()).with(Padding::new(0, 2, 0, 0));
        let text = table.to_string();
        for line in text.lines() {
            self.line(line.trim_end())?;
        }
        Ok(())
    }

    /// One of many values that come one after the other: a line of JSON, or a line of text.
    pub(crate) fn item(&self, value: &Value, text: &str) -> Result<()> {
        if self.json { self.line(&value.to_string()) } else { self.line(text) }
    }

    /// That something was done: the object as JSON, or a sentence unless quiet.
    pub(crate) fn done(&self, value: &Value, sentence: &str) -> Result<()> {
        if self.json {
            self.line(&format!("{value:#}"))
        } else if self.quiet {
            Ok(())
        } else {
            self.line(sentence)
        }
    }

    /// That something was done, where standard output is for other things.
    pub(crate) fn note(&self, sentence: &str) {
        if !self.quiet && !self.json {
            let _ = writeln!(io::stderr(), "{sentence}");
        }
    }

    /// Something that people should know but that fails nothing yet.
    pub(crate) fn warning(&self, text: &str) {
        // Nothing is left to tell it to when standard error is gone.
        let _ = writeln!(io::stderr(), "cairn: {text}");
    }

    /// Why the command failed.
    pub(crate) fn failure(&self, failure: &Failure) {
        if self.json {
            let value = json!({
                "error": {
                    "message": failure.message,
                    "hint": failure.hint,
                    "reason": failure.reason,
                    "exit_code": failure.code,
                }
            });
            let _ = writeln!(io::stderr(), "{value:#}");
            return;
        }
        self.warning(&failure.message);
        if let Some(hint) = &failure.hint {
            let _ = writeln!(io::stderr(), "  {hint}");
        }
    }

    /// A progress bar for bytes; hidden unless somebody looks at it.
    pub(crate) fn progress(&self) -> ProgressBar {
        if self.quiet || self.json || !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let template = "{bytes:>11} of {total_bytes:11} {bytes_per_sec:>13} {wide_msg}";
        match ProgressStyle::with_template(template) {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }
    }
}

/// Asks before something is destroyed, unless `yes` was given.
pub(crate) fn agree(yes: bool, question: &str) -> Result<()> {
    if yes {
        return Ok(());
    }
    let refused = |why: &str| {
        Failure::new(format!("{question} {why}"))
            .code(exit::REFUSED)
            .hint("give --yes to agree beforehand")
    };
    if !io::stdin().is_terminal() {
        return Err(refused("Not agreed to."));
    }
    let _ = write!(io::stderr(), "{question} [y/N] ");
    let mut answer = String::new();
    match io::stdin().read_line(&mut answer) {
        Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        _ => Err(refused("Not agreed to.")),
    }
}

/// A name that may not be UTF-8, in JSON: the readable form, and the bytes in hexadecimal when
/// that form does not tell them.
pub(crate) fn name_fields(name: &[u8]) -> (String, Option<String>) {
    match std::str::from_utf8(name) {
        Ok(text) => (text.to_owned(), None),
        Err(_) => {
            let hex = name.iter().map(|byte| format!("{byte:02x}")).collect();
            (String::from_utf8_lossy(name).into_owned(), Some(hex))
        }
    }
}

/// Text without what could steer a terminal.
pub(crate) fn printable(text: &[u8]) -> String {
    String::from_utf8_lossy(text)
        .chars()
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

/// A point in time for people: UTC, to the second (RFC 3339).
pub(crate) fn time(ns: i64) -> String {
    let seconds = ns.div_euclid(1_000_000_000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to civil date: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z", second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        assert_eq!(time(-1), "1969-12-31T23:59:59Z");
        assert_eq!(time(951_827_696_000_000_000), "2000-02-29T12:34:56Z");
        assert_eq!(time(1_798_761_599_000_000_000), "2026-12-31T23:59:59Z");
        assert_eq!(time(i64::MAX), "2262-04-11T23:47:16Z");
        assert_eq!(time(i64::MIN), "1677-09-21T00:12:43Z");
    }

    #[test]
    fn names_do_not_steer_the_terminal() {
        assert_eq!(printable(b"a\x1b[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
        assert_eq!(name_fields(b"a\xff"), ("a\u{fffd}".to_owned(), Some("61ff".to_owned())));
        assert_eq!(name_fields(b"ab"), ("ab".to_owned(), None));
    }
}
