//! Options of the subvolumes under test: changed while their clients work, and what was answered must stay.

use engine_base::random::Random;
use engine_store::api::{Compression, SetOptions, SubvolumeOptions};

use crate::world::{ClientContext, Refusal};

/// Options of some subvolume: half of them compress.
pub fn draw(random: &mut Random) -> SubvolumeOptions {
    let compression = match random.below(8) {
        0..=3 => Compression::None,
        4 | 5 => Compression::Lz4,
        6 => Compression::Zstd(*random.pick(&[1, 3])),
        _ => Compression::Gzip(1),
    };
    SubvolumeOptions {
        compression,
        frame_bytes: SubvolumeOptions::FRAME_BYTES_MIN << random.below(5),
    }
}

/// Changes how new data of `name` is stored; false: the client must stop.
pub async fn change(context: &mut ClientContext, name: &str) -> bool {
    let new = draw(&mut context.random);
    if let Some(held) = context.world.borrow_mut().options.get_mut(name) {
        held.push(new);
    }
    let set = SetOptions { compression: Some(new.compression), frame_bytes: Some(new.frame_bytes) };
    let result = context.client.subvolume_set(name, set).await;
    context.event("set options", [u64::from(result.is_ok()), u64::from(new.frame_bytes), 0]);
    let error = match result {
        Ok(info) => {
            if info.options != new {
                context
                    .fail(format!("{name} has {:?} after they were set to {new:?}", info.options));
            }
            let world = &mut *context.world.borrow_mut();
            world.options.insert(name.to_owned(), vec![new]);
            world.mark("set options");
            return true;
        }
        Err(error) => error,
    };
    let goes_on = context.tolerates("set options", &error);
    let world = &mut *context.world.borrow_mut();
    if world.judge(&error) == Refusal::NoRoom
        && let Some(held) = world.options.get_mut(name)
    {
        held.pop();
    }
    goes_on
}

/// The options of a subvolume are what they were set to, before the session and from now on.
pub async fn check(context: &ClientContext, name: &str) {
    // Whoever asks for more meets the error.
    let Ok(info) = context.client.subvolume_get(name).await else { return };
    let world = &mut *context.world.borrow_mut();
    let Some(held) = world.options.get_mut(name) else { return };
    if held.contains(&info.options) {
        *held = vec![info.options];
    } else {
        let held = held.clone();
        world.fail(format!("{name} has {:?}, and was given {held:?}", info.options));
    }
}
