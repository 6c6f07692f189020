//! `top`: what the daemon does, live.
//!
//! Two looks at the daemon's counters make one frame ([`frame`]); frames go to the terminal
//! ([`screen`]), or as one JSON value a line to programs. Without a terminal, or with `--once`, there
//! is one frame.

mod frame;
mod screen;

use std::io::IsTerminal as _;

use proto::v1;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::args::TopArguments;
use crate::connect::Session;
use crate::failure::{Failure, Result};
use crate::output::Output;
use frame::{Frame, Look};
use screen::Screen;

/// Waits listed in a frame.
const WAITS: u32 = 8;

/// `top`.
pub(crate) async fn run(
    session: &Session,
    arguments: &TopArguments,
    output: &Output,
) -> Result<()> {
    let once = arguments.once || !std::io::stdout().is_terminal();
    let mut end = End::new()?;
    let mut before = look(session).await?;
    let mut screen = match once || output.is_json() {
        true => None,
        false => Some(Screen::open()?),
    };
    loop {
        let rest = tokio::time::sleep(arguments.interval);
        let ended = match &mut screen {
            Some(screen) => tokio::select! {
                () = rest => false,
                () = end.told() => true,
                () = screen.left() => true,
            },
            None => tokio::select! {
                () = rest => false,
                () = end.told() => true,
            },
        };
        if ended {
            return Ok(());
        }
        let now = look(session).await?;
        let frame = Frame::between(&before, &now);
        match &mut screen {
            Some(screen) => screen.draw(&frame.lines())?,
            None if output.is_json() => output.bytes(format!("{}\n", frame.json()).as_bytes())?,
            None => output.bytes(format!("{}\n", frame.lines().join("\n")).as_bytes())?,
        }
        if once {
            return Ok(());
        }
        before = now;
    }
}

/// Signals that end it; in raw mode Ctrl-C is a key.
struct End {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl End {
    fn new() -> Result<Self> {
        let watch = |kind| {
            signal(kind).map_err(|error| Failure::new(format!("cannot watch signals: {error}")))
        };
        Ok(Self {
            interrupt: watch(SignalKind::interrupt())?,
            terminate: watch(SignalKind::terminate())?,
        })
    }

    async fn told(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Asks for all counters.
async fn look(session: &Session) -> Result<Look> {
    let stats = session.stats().get_stats(v1::GetStatsRequest {}).await?.into_inner();
    let request = v1::GetTimeStatsRequest {
        summed: true,
        include_buckets: true,
        ..v1::GetTimeStatsRequest::default()
    };
    let times = session.stats().get_time_stats(request).await?.into_inner();
    let request = v1::ListWaitsRequest { count_max: WAITS, ..v1::ListWaitsRequest::default() };
    let waits = session.stats().list_waits(request).await?.into_inner();
    Ok(Look { at: Instant::now(), stats, times: times.stats, waits })
}
