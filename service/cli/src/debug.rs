//! `debug`: what the daemon logs.

use proto::v1;
use serde_json::json;

use crate::args::DebugCommand;
use crate::connect::Session;
use crate::failure::Result;
use crate::output::{Output, printable};

/// Runs the command.
pub(crate) async fn run(
    session: &Session,
    command: Option<DebugCommand>,
    output: &Output,
) -> Result<()> {
    let request = match command {
        None => return show(session, output).await,
        Some(DebugCommand::Set { filter, time }) => {
            v1::SetLogFilterRequest { filter: Some(filter), for_s: time.unwrap_or(0) }
        }
        Some(DebugCommand::Reset) => v1::SetLogFilterRequest { filter: None, for_s: 0 },
    };
    session.stats().set_log_filter(request).await?;
    let now = session.stats().get_log_filter(v1::GetLogFilterRequest {}).await?.into_inner();
    output.done(&value(&now), &sentence(&now))
}

async fn show(session: &Session, output: &Output) -> Result<()> {
    let now = session.stats().get_log_filter(v1::GetLogFilterRequest {}).await?.into_inner();
    output.value(&value(&now), || sentence(&now))
}

fn value(now: &v1::GetLogFilterResponse) -> serde_json::Value {
    json!({
        "filter": now.filter,
        "configured": now.configured,
        "changed": now.changed,
        "remaining_seconds": (now.remaining_s > 0).then_some(now.remaining_s),
    })
}

fn sentence(now: &v1::GetLogFilterResponse) -> String {
    let filter = printable(now.filter.as_bytes());
    let configured = printable(now.configured.as_bytes());
    match (now.changed, now.remaining_s) {
        (false, _) => format!("{filter}  (as configured)"),
        (true, 0) => format!("{filter}  (until it is changed; configured: {configured})"),
        (true, left) => format!("{filter}  (for another {left} s, then {configured})"),
    }
}
