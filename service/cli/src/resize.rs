//! `cairn pool resize` and what belongs to it: starts a change of a device's share, and watches it.

use std::time::Duration;

use proto::v1;
use serde_json::{Value, json};

use crate::admin::{given, members};
use crate::connect::Session;
use crate::failure::{Failure, Result, exit};
use crate::output::Output;
use crate::size::{SizeOrMax, show};

/// Time between looks at how far it is.
const POLL: Duration = Duration::from_millis(200);

/// `pool resize`.
pub(crate) async fn start(
    session: &Session,
    member: &str,
    size: SizeOrMax,
    no_wait: bool,
    output: &Output,
) -> Result<()> {
    let known = members(session).await?;
    let named = known.iter().find(|known| {
        known.index.to_string() == member || known.path == member || known.uuid == member
    });
    let Some(named) = named else {
        let what = format!("the pool has no device {member}");
        return Err(Failure::new(what).code(exit::NOT_FOUND).hint("see cairn pool list"));
    };
    let size_bytes = match size {
        SizeOrMax::Bytes(bytes) => Some(bytes),
        SizeOrMax::Max => None,
    };
    let request = v1::ResizeMemberRequest { member_index: named.index, size_bytes };
    let reply = session.pool().resize_member(request).await?.into_inner();
    let mut job = given(reply.resize)?;
    if !no_wait {
        job = watch(session, job, output).await?;
    }
    match job.phase() {
        v1::ResizePhase::Cancelled => {
            Err(Failure::new(format!("it was cancelled: {}", sentence(&job))))
        }
        v1::ResizePhase::Failed => Err(Failure::new(sentence(&job))),
        _ => output.done(&value(&job), &sentence(&job)),
    }
}

/// Looks until it has ended.
async fn watch(
    session: &Session,
    mut job: v1::MemberResize,
    output: &Output,
) -> Result<v1::MemberResize> {
    let progress = output.progress();
    let mut told = String::new();
    loop {
        match job.phase() {
            v1::ResizePhase::Running | v1::ResizePhase::Blocked => {}
            _ => {
                progress.finish_and_clear();
                return Ok(job);
            }
        }
        let length = progress.length().unwrap_or(0).max(job.left_bytes);
        progress.set_length(length);
        progress.set_position(length - job.left_bytes);
        if job.phase() == v1::ResizePhase::Blocked && job.reason != told {
            told.clone_from(&job.reason);
            progress.suspend(|| output.warning(&format!("it waits: {told}")));
        }
        tokio::time::sleep(POLL).await;
        let request = v1::GetMemberResizeRequest {};
        let reply = session.pool().get_member_resize(request).await?.into_inner();
        let Some(now) = reply.resize else {
            return Err(Failure::new("the daemon was started anew; see cairn pool list"));
        };
        job = now;
    }
}

/// `pool resize-status`.
pub(crate) async fn status(session: &Session, output: &Output) -> Result<()> {
    let request = v1::GetMemberResizeRequest {};
    let reply = session.pool().get_member_resize(request).await?.into_inner();
    match reply.resize {
        Some(job) => output.value(&value(&job), || sentence(&job)),
        None => output.value(&json!({ "phase": "none" }), || "none since the start".to_owned()),
    }
}

/// `pool resize-cancel`.
pub(crate) async fn cancel(session: &Session, output: &Output) -> Result<()> {
    let request = v1::CancelMemberResizeRequest {};
    let reply = session.pool().cancel_member_resize(request).await?.into_inner();
    let job = watch(session, given(reply.resize)?, output).await?;
    match job.phase() {
        v1::ResizePhase::Cancelled => output.done(&value(&job), &sentence(&job)),
        _ => Err(Failure::new(format!("it was too late: {}", sentence(&job)))),
    }
}

fn phase(job: &v1::MemberResize) -> &'static str {
    match job.phase() {
        v1::ResizePhase::Unspecified => "unknown",
        v1::ResizePhase::Running => "running",
        v1::ResizePhase::Blocked => "blocked",
        v1::ResizePhase::Done => "done",
        v1::ResizePhase::Cancelled => "cancelled",
        v1::ResizePhase::Failed => "failed",
    }
}

fn value(job: &v1::MemberResize) -> Value {
    json!({
        "member_index": job.member_index,
        "from_bytes": job.from_bytes,
        "to_bytes": job.to_bytes,
        "phase": phase(job),
        "left_bytes": job.left_bytes,
        "reason": job.reason,
    })
}

fn sentence(job: &v1::MemberResize) -> String {
    let (index, from, to) = (job.member_index, show(job.from_bytes), show(job.to_bytes));
    let left = show(job.left_bytes);
    match job.phase() {
        v1::ResizePhase::Done => format!("device {index} has {to} now"),
        v1::ResizePhase::Cancelled => format!("device {index} keeps its {from}"),
        v1::ResizePhase::Failed => format!("device {index} keeps its {from}: {}", job.reason),
        v1::ResizePhase::Blocked => {
            format!("device {index}, {from} to {to}: {left} left, blocked: {}", job.reason)
        }
        _ => format!("device {index}, {from} to {to}: {left} left"),
    }
}
