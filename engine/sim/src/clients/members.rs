//! Growing and shrinking members now and then, with whatever else goes on.
//!
//! The disks keep their sizes: a member is shrunk, and grows back into what it had. Nobody waits for the end
//! of it, so crashes meet it anywhere; the next look says how it went.

use engine_store::api::ResizePhase;
use engine_store::error::StoreError;

use crate::world::ClientContext;

/// Asks for one change of a member's size, or gives one up.
pub async fn resize(context: &mut ClientContext) -> bool {
    let status = match context.client.resize_status().await {
        Ok(status) => status,
        Err(error) => return context.tolerates("sizes of members", &error),
    };
    let phase = status.job.as_ref().map(|job| job.phase);
    let shrank = status.job.as_ref().is_some_and(|job| job.to_bytes < job.from_bytes);
    match (phase, shrank) {
        (Some(ResizePhase::Done), true) => context.world.borrow_mut().mark("member_shrunk"),
        (Some(ResizePhase::Done), false) => context.world.borrow_mut().mark("member_grown"),
        (Some(ResizePhase::Cancelled), _) => context.world.borrow_mut().mark("member_not_shrunk"),
        (Some(ResizePhase::Blocked), _) => context.world.borrow_mut().mark("member_blocked"),
        _ => {}
    }
    let goes_on = matches!(phase, Some(ResizePhase::Running | ResizePhase::Blocked));
    if goes_on && context.random.chance(3, 4) {
        return true;
    }
    let member = context.random.below(status.members.len() as u64) as u8;
    let size_bytes = status.members[usize::from(member)].size_bytes;
    let wanted = match context.random.below(3) {
        0 => None,
        _ => Some(size_bytes / 100 * context.random.range(30, 99)),
    };
    let result = match goes_on {
        true => context.client.resize_cancel().await,
        false => context.client.resize_member(member, wanted).await,
    };
    let wanted = wanted.unwrap_or(u64::MAX);
    let ok = u64::from(result.is_ok());
    context.event("member resize", [u64::from(member), wanted, ok]);
    match result {
        Ok(_) => {
            context.world.borrow_mut().mark("member_resize");
            true
        }
        // It does not fit; another change began or this one ended meanwhile.
        Err(
            StoreError::InvalidArgument { .. }
            | StoreError::Busy { .. }
            | StoreError::NotFound { .. },
        ) => {
            context.world.borrow_mut().mark("member_resize_refused");
            true
        }
        Err(error) => context.tolerates("resize of a member", &error),
    }
}
