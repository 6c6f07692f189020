//! What a volume's client does with streams: receive a snapshot from one of its own, whole or as the difference to
//! another, cut off and gone on with, and given up.

use std::str::FromStr as _;

use engine_store::client::VolumeRef;
use engine_store::error::StoreError;
use engine_transfer::{Receiver, ResumeToken, Sender};

use super::snapshots;
use crate::world::{ClientContext, NameState, SnapshotSlot};

/// What is received of one volume at a time.
const RECEIVED_MAX: u64 = 2;
/// Bytes after which is noted how far it is: often, so that crashes come between.
const NOTE_BYTES: u64 = 16 << 10;

/// Whether something is received of a volume, and not whole yet.
pub(super) fn is_half(context: &ClientContext, volume: &str) -> bool {
    context.world.borrow().half_of(volume).is_some()
}

/// Receives something, or goes on with it; `false`: the client must stop.
pub(super) async fn work(context: &mut ClientContext, volume: &str) -> bool {
    let half = context.world.borrow().half_of(volume);
    let name = match half {
        Some(name) if context.random.chance(3, 4) => name,
        _ => format!("recv-{volume}-{}", context.random.below(RECEIVED_MAX)),
    };
    let half = context.world.borrow().snapshots.get(&name).map(|slot| (slot.half, slot.busy));
    match half {
        None => begin(context, volume, &name).await,
        Some((true, false)) => {
            set_busy(context, &name, true);
            let goes_on = match context.random.chance(3, 4) {
                true => resume(context, &name).await,
                false => give_up(context, &name).await,
            };
            set_busy(context, &name, false);
            goes_on
        }
        // It is whole: what snapshots are used for, it is used for, too.
        Some(_) => true,
    }
}

fn set_busy(context: &ClientContext, name: &str, busy: bool) {
    if let Some(slot) = context.world.borrow_mut().snapshots.get_mut(name) {
        slot.busy = busy;
    }
}

async fn begin(context: &mut ClientContext, volume: &str, name: &str) -> bool {
    let own: Vec<String> = {
        let world = context.world.borrow();
        let own = world.snapshots.iter().filter(|(_, slot)| {
            slot.volume == volume && slot.is_free() && !slot.received && !slot.unknown
        });
        own.map(|(name, _)| name.clone()).collect()
    };
    if own.is_empty() {
        return true;
    }
    let source = context.random.pick(&own).clone();
    let base = Some(context.random.pick(&own).clone()).filter(|base| *base != source);
    for one in base.iter().chain([&source]) {
        set_busy(context, one, true);
    }
    let goes_on = begin_of(context, volume, name, &source, base.as_deref()).await;
    for one in base.iter().chain([&source]) {
        set_busy(context, one, false);
    }
    goes_on
}

async fn begin_of(
    context: &mut ClientContext,
    volume: &str,
    name: &str,
    source: &str,
    base: Option<&str>,
) -> bool {
    // All of it is known then, and what is received must be the very same.
    if snapshots::look(context, source, true).await.is_none() {
        return false;
    }
    {
        let world = &mut *context.world.borrow_mut();
        let Some(model) = world.snapshots.get(source).and_then(|slot| slot.model.clone()) else {
            return true;
        };
        if world.snapshots.contains_key(name) {
            // Another client was faster.
            return true;
        }
        let started = world.promises.now();
        let slot = SnapshotSlot {
            model: Some(model),
            received: true,
            half: true,
            ..SnapshotSlot::begun(volume, started)
        };
        world.snapshots.insert(name.to_owned(), slot);
    }
    let client = context.client.clone();
    let goes_on = match Sender::start(&client, source, base).await {
        Ok(sender) => receive(context, sender, name).await,
        Err(error) => context.tolerates("send", &error),
    };
    set_busy(context, name, false);
    goes_on
}

async fn resume(context: &mut ClientContext, name: &str) -> bool {
    let client = context.client.clone();
    let info = match client.subvolume_get(name).await {
        Ok(info) => info,
        // It may still come, before it is deleted.
        Err(StoreError::NotFound { .. }) => return give_up(context, name).await,
        Err(error) => return context.tolerates("a look at what is received", &error),
    };
    let Some(token) = ResumeToken::of(&info) else {
        context.fail(format!("{name} is not being received any more"));
        return false;
    };
    let token = ResumeToken::from_str(&token.to_string());
    match Sender::resume(&client, token.expect("a token that was just written")).await {
        Ok(sender) => {
            context.world.borrow_mut().mark("receive_resumed");
            receive(context, sender, name).await
        }
        // What it was sent from is deleted.
        Err(StoreError::NotFound { .. }) => give_up(context, name).await,
        Err(error) => context.tolerates("send of the rest", &error),
    }
}

/// Deletes what is there, if anything is.
async fn give_up(context: &mut ClientContext, name: &str) -> bool {
    let result = context.client.subvolume_delete(name).await;
    context.event("receive given up", [u64::from(result.is_ok()), 0, 0]);
    match result {
        Ok(()) | Err(StoreError::NotFound { .. }) => {
            context.world.borrow_mut().snapshots.remove(name);
            true
        }
        Err(error) => context.tolerates("giving up what is received", &error),
    }
}

/// Receives what is sent, or a part of it.
async fn receive<L>(context: &mut ClientContext, mut sender: Sender<'_, L>, name: &str) -> bool
where
    L: engine_store::api::Link,
{
    let client = context.client.clone();
    let mut receiver = Receiver::new(&client, name).noting_every(NOTE_BYTES);
    let frames_max = match context.random.chance(1, 2) {
        true => context.random.range(1, 12),
        false => u64::MAX,
    };
    let mut frames = 0;
    let is_cut = loop {
        if frames == frames_max {
            break true;
        }
        let bytes = match sender.next().await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => break false,
            Err(StoreError::NotFound { .. }) => break true,
            Err(error) => return context.tolerates("send", &error),
        };
        frames += 1;
        if let Err(error) = receiver.feed(&bytes).await {
            return context.tolerates("receive", &error);
        }
    };
    let result = receiver.finish().await;
    context.event("receive", [frames, u64::from(is_cut), u64::from(result.is_ok())]);
    match result {
        Ok(info) => {
            {
                let world = &mut *context.world.borrow_mut();
                world.mark("received");
                if let Some(slot) = world.snapshots.get_mut(name) {
                    (slot.state, slot.half) = (NameState::Present, false);
                    slot.reference = Some(VolumeRef::from(&info));
                }
            }
            !context.random.chance(1, 2) || snapshots::look(context, name, true).await.is_some()
        }
        Err(StoreError::InvalidArgument { .. }) if is_cut => {
            context.world.borrow_mut().mark("receive_cut_off");
            true
        }
        Err(error) => context.tolerates("receive", &error),
    }
}
