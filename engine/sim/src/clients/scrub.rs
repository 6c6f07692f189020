//! Scrubs, started, paused and given up now and then; crashes meet them anywhere.

use engine_store::api::{ScrubRequest, ScrubState};
use engine_store::error::StoreError;

use crate::world::ClientContext;

/// Looks how the newest scrub went, and asks for a change.
pub async fn work(context: &mut ClientContext) -> bool {
    let status = match context.client.scrub(ScrubRequest::Status).await {
        Ok(status) => status,
        Err(error) => return context.tolerates("scrub status", &error),
    };
    {
        let world = &mut *context.world.borrow_mut();
        // Where devices hold what they were given, there is nothing to be found.
        let sound = !world.may_fail();
        if sound && status.problems > 0 {
            world.fail(format!("a scrub found {:?}", status.last_problem));
        }
        match status.state {
            ScrubState::Done => world.mark("scrub_done"),
            ScrubState::Running if status.done_bytes > 0 => world.mark("scrub_under_way"),
            _ => {}
        }
    }
    let rate = *context.random.pick(&[0, 0, 1 << 20, 100 << 20]);
    let result = match (status.state, context.random.below(4)) {
        (ScrubState::Running, 0) => context.client.scrub(ScrubRequest::Pause).await,
        (ScrubState::Paused, 0 | 1) => context.client.scrub(ScrubRequest::Resume).await,
        (ScrubState::Running | ScrubState::Paused, 3) => {
            context.client.scrub(ScrubRequest::Cancel).await
        }
        (ScrubState::Running | ScrubState::Paused, _) => return true,
        _ => context.client.scrub_start(rate).await,
    };
    match result {
        Ok(_) => true,
        // After a crash one shard may know more of it than another.
        Err(StoreError::Busy { .. }) => true,
        Err(error) => context.tolerates("scrub", &error),
    }
}
