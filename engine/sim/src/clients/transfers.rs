//! What a client of a volume or a tree does with streams: receive a snapshot from one of its own, whole or as the
//! difference to another, cut off and gone on with, and given up.

use std::str::FromStr as _;

use engine_store::api::SubvolumeKind;
use engine_store::error::StoreError;
use engine_transfer::{Receiver, ResumeToken, Sender};

use super::{snapshots, tree_snapshots};
use crate::world::ClientContext;

/// What is received of one volume or tree at a time.
const RECEIVED_MAX: u64 = 2;
/// Bytes after which is noted how far it is: often, so that crashes come between.
const NOTE_BYTES: u64 = 16 << 10;

/// Receives something of a volume or a tree, or goes on with it; `false`: the client must stop.
pub(super) async fn work(context: &mut ClientContext, of: &str) -> bool {
    let half = context.world.borrow().half_of(of);
    let name = match half {
        Some(name) if context.random.chance(3, 4) => name,
        _ => format!("recv-{of}-{}", context.random.below(RECEIVED_MAX)),
    };
    let there = context.world.borrow().received(&name);
    match there {
        None => begin(context, of, &name).await,
        Some((true, false)) => {
            set_busy(context, &name, true);
            let goes_on = match context.random.chance(3, 4) {
                true => resume(context, &name).await,
                false => give_up(context, &name).await,
            };
            set_busy(context, &name, !goes_on);
            goes_on
        }
        // It is whole: what snapshots are used for, it is used for, too.
        Some(_) => true,
    }
}

fn set_busy(context: &ClientContext, name: &str, busy: bool) {
    context.world.borrow_mut().set_busy(name, busy);
}

/// Reads all of a snapshot and checks it; `false`: the client must stop.
async fn look(context: &mut ClientContext, name: &str) -> bool {
    let is_tree = context.world.borrow().tree_snapshots.contains_key(name);
    match is_tree {
        true => tree_snapshots::look(context, name).await,
        false => snapshots::look(context, name, true).await.is_some(),
    }
}

async fn begin(context: &mut ClientContext, of: &str, name: &str) -> bool {
    let own = context.world.borrow().sources_of(of);
    if own.is_empty() {
        return true;
    }
    let source = context.random.pick(&own).clone();
    let base = Some(context.random.pick(&own).clone()).filter(|base| *base != source);
    for one in base.iter().chain([&source]) {
        set_busy(context, one, true);
    }
    let goes_on = begin_of(context, name, &source, base.as_deref()).await;
    for one in base.iter().chain([&source]) {
        set_busy(context, one, false);
    }
    goes_on
}

async fn begin_of(
    context: &mut ClientContext,
    name: &str,
    source: &str,
    base: Option<&str>,
) -> bool {
    // All of it is known then, and what is received must be the very same.
    if !look(context, source).await {
        return false;
    }
    if !context.world.borrow_mut().begin_received(name, source) {
        return true;
    }
    let client = context.client.clone();
    let goes_on = match Sender::start(&client, source, base).await {
        Ok(sender) => receive(context, sender, name).await,
        Err(error) => context.tolerates("send", &error),
    };
    // After an error of a device it may come with the next start: nobody gives it up before that.
    set_busy(context, name, !goes_on);
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
            let is_tree = context.world.borrow().tree_snapshots.contains_key(name);
            context.world.borrow_mut().mark(match is_tree {
                true => "tree_receive_resumed",
                false => "receive_resumed",
            });
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
            context.world.borrow_mut().forget_snapshot(name);
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
                world.mark(match info.kind {
                    SubvolumeKind::Volume => "received",
                    SubvolumeKind::FileTree => "tree_received",
                });
                world.end_received(name, &info);
            }
            !context.random.chance(1, 2) || look(context, name).await
        }
        Err(StoreError::InvalidArgument { .. }) if is_cut => {
            context.world.borrow_mut().mark("receive_cut_off");
            true
        }
        Err(error) => context.tolerates("receive", &error),
    }
}
