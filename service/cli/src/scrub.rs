//! `cairn scrub`.

use std::time::{Duration, SystemTime};

use proto::v1;
use serde_json::{Value, json};

use crate::admin::given;
use crate::args::ScrubCommand;
use crate::connect::Session;
use crate::failure::{Failure, Result, exit};
use crate::output::{Output, time};
use crate::size::show;

/// Time between looks at how far it is.
const POLL: Duration = Duration::from_millis(200);

/// `scrub ...`.
pub(crate) async fn run(session: &Session, command: ScrubCommand, output: &Output) -> Result<()> {
    let mut client = session.scrubs();
    let scrub = match command {
        ScrubCommand::Start { rate, wait } => {
            let request = v1::StartScrubRequest { bytes_per_second: rate.unwrap_or(0) };
            let scrub = given(client.start_scrub(request).await?.into_inner().scrub)?;
            if wait { watch(session, scrub, output).await? } else { scrub }
        }
        ScrubCommand::Status => status(session).await?,
        ScrubCommand::Pause => {
            given(client.pause_scrub(v1::PauseScrubRequest {}).await?.into_inner().scrub)?
        }
        ScrubCommand::Resume => {
            given(client.resume_scrub(v1::ResumeScrubRequest {}).await?.into_inner().scrub)?
        }
        ScrubCommand::Cancel => {
            given(client.cancel_scrub(v1::CancelScrubRequest {}).await?.into_inner().scrub)?
        }
    };
    output.value(&value(&scrub), || text(&scrub, now_ns()))?;
    if scrub.problem_count > scrub.healed_count {
        let lost = scrub.problem_count - scrub.healed_count;
        let why = format!("{lost} things could not be read");
        return Err(Failure::new(why).code(exit::DAMAGED).hint("see cairn damage list"));
    }
    Ok(())
}

async fn status(session: &Session) -> Result<v1::Scrub> {
    given(session.scrubs().get_scrub(v1::GetScrubRequest {}).await?.into_inner().scrub)
}

/// Looks until it no longer runs.
async fn watch(session: &Session, mut scrub: v1::Scrub, output: &Output) -> Result<v1::Scrub> {
    let progress = output.progress();
    while scrub.state() == v1::ScrubState::Running {
        progress.set_length(scrub.total_bytes.max(scrub.done_bytes));
        progress.set_position(scrub.done_bytes);
        tokio::time::sleep(POLL).await;
        scrub = status(session).await?;
    }
    progress.finish_and_clear();
    Ok(scrub)
}

#[allow(clippy::disallowed_methods)] // A program for people tells how long it will take.
fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}

fn state(scrub: &v1::Scrub) -> &'static str {
    match scrub.state() {
        v1::ScrubState::Unspecified => "never",
        v1::ScrubState::Done => "done",
        v1::ScrubState::Cancelled => "cancelled",
        v1::ScrubState::Paused => "paused",
        v1::ScrubState::Running => "running",
    }
}

fn value(scrub: &v1::Scrub) -> Value {
    json!({
        "state": state(scrub),
        "began_ns": scrub.began_ns,
        "ended_ns": scrub.ended_ns,
        "bytes_per_second": scrub.bytes_per_second,
        "total_bytes": scrub.total_bytes,
        "done_bytes": scrub.done_bytes,
        "problem_count": scrub.problem_count,
        "healed_count": scrub.healed_count,
        "last_problem": scrub.last_problem,
    })
}

fn text(scrub: &v1::Scrub, now_ns: u64) -> String {
    if scrub.state() == v1::ScrubState::Unspecified {
        return "the pool was never scrubbed".to_owned();
    }
    let (done, total) = (scrub.done_bytes, scrub.total_bytes.max(scrub.done_bytes));
    let percent = (u128::from(done) * 100).checked_div(u128::from(total)).unwrap_or(100);
    let mut lines = vec![
        format!("state     {}", state(scrub)),
        format!("began     {}", time(scrub.began_ns.cast_signed())),
        format!("done      {} of {} ({percent} %)", show(done), show(total)),
        format!("problems  {}, of which healed {}", scrub.problem_count, scrub.healed_count),
    ];
    if scrub.ended_ns > 0 {
        lines.insert(2, format!("ended     {}", time(scrub.ended_ns.cast_signed())));
    }
    if scrub.bytes_per_second > 0 {
        lines.push(format!("rate      {} a second at most", show(scrub.bytes_per_second)));
    }
    if let (v1::ScrubState::Running, Some(left)) = (scrub.state(), seconds_left(scrub, now_ns)) {
        lines.push(format!("left      about {left} s"));
    }
    if !scrub.last_problem.is_empty() {
        lines.push(format!("newest    {}", scrub.last_problem));
    }
    lines.join("\n")
}

/// As it went so far, or as its rate allows.
fn seconds_left(scrub: &v1::Scrub, now_ns: u64) -> Option<u64> {
    let left = u128::from(scrub.total_bytes.saturating_sub(scrub.done_bytes));
    let spent = u128::from(now_ns.saturating_sub(scrub.began_ns));
    let as_before = (left * spent).checked_div(u128::from(scrub.done_bytes) * 1_000_000_000)?;
    let as_allowed = left.checked_div(u128::from(scrub.bytes_per_second)).unwrap_or(0);
    u64::try_from(as_before.max(as_allowed)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told() {
        let mut scrub = v1::Scrub {
            state: v1::ScrubState::Running.into(),
            began_ns: 5_000_000_000,
            total_bytes: 3 << 20,
            done_bytes: 1 << 20,
            ..Default::default()
        };
        let now = 15_000_000_000;
        assert_eq!(seconds_left(&scrub, now), Some(20));
        assert!(text(&scrub, now).contains("(33 %)"));
        scrub.bytes_per_second = 1 << 16;
        assert_eq!(seconds_left(&scrub, now), Some(32));
        scrub.done_bytes = 0;
        assert_eq!(seconds_left(&scrub, now), None);
        assert_eq!(text(&v1::Scrub::default(), now), "the pool was never scrubbed");
    }
}
