//! The members of a pool: opened, recognised, put in order.
//!
//! The pool's member table is that of the newest superblock found; a member is recognised by its
//! UUID, never by its path. What does not fit ends the start: nothing is served from half a pool.

use std::fs::File;
use std::future::Future;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine_device::{BlockDevice as _, DeviceError, DeviceQueue, Discard, FileDevice, OpenOptions};
use engine_shard::clock::Clock;
use engine_shard::doorbell::Doorbell;
use engine_shard::{Reactor, ReactorConfig};
use engine_store::superblock;

use crate::poller::QueuePoller;

/// Operations in flight per device while a pool is recognised.
const QUEUE_DEPTH: u32 = 32;

/// How long devices may be in use when the daemon starts, in nanoseconds. The kernel takes the rings of
/// a process down some time after it has ended, and its locks with them, so a daemon that starts where
/// another was just stopped or killed would be refused without cause.
const RELEASE_NS_MAX: u64 = 3_000_000_000;

/// A UUID as bytes.
pub type Uuid = [u8; 16];

/// A pool whose members are all there.
pub struct Pool {
    /// UUID of the pool.
    pub uuid: Uuid,
    /// Shards.
    pub shard_count: u16,
    /// Members by index.
    pub members: Vec<Member>,
}

/// An open member.
pub struct Member {
    /// Its UUID.
    pub uuid: Uuid,
    /// Where it was opened.
    pub path: PathBuf,
    /// The device.
    pub device: FileDevice,
}

/// What a device says it is.
#[derive(Clone, Debug)]
struct Found {
    path: PathBuf,
    pool: Uuid,
    member: Uuid,
    sequence: u64,
    shard_count: u16,
    /// UUID and label of every member of the pool.
    table: Vec<(Uuid, String)>,
}

/// Opens the pool on `paths` for this process alone. `discard`: on which of them what becomes free is discarded.
///
/// # Errors
/// Every problem, in words for people: devices that are missing, in use, not members, of two pools;
/// members that no device was given for.
pub fn open(paths: &[PathBuf], discard: Discard) -> Result<Pool, Vec<String>> {
    let mut found = Vec::new();
    let mut devices = Vec::new();
    let mut problems = Vec::new();
    let clock = Clock::new();
    for path in paths {
        match open_alone(path, discard, &clock)
            .map_err(|error| error.to_string())
            .and_then(|device| Ok((identify(path, &device)?, device)))
        {
            Ok((this, device)) => {
                found.push(this);
                devices.push(device);
            }
            Err(problem) => problems.push(problem),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let order = arrange(&found)?;
    let newest = found.iter().max_by_key(|device| device.sequence);
    let Some(newest) = newest else { return Err(vec!["no devices".to_owned()]) };
    let members = order.iter().map(|index| Member {
        uuid: found[*index].member,
        path: found[*index].path.clone(),
        device: devices[*index].clone(),
    });
    Ok(Pool { uuid: newest.pool, shard_count: newest.shard_count, members: members.collect() })
}

/// Opens a device for this process alone. One that is in use is tried again until `clock`, made when
/// the first was tried, shows [`RELEASE_NS_MAX`].
pub(crate) fn open_alone(
    path: &Path,
    discard: Discard,
    clock: &Clock,
) -> Result<FileDevice, DeviceError> {
    let options = OpenOptions { exclusive: true, discard, ..OpenOptions::default() };
    loop {
        match FileDevice::open(path, &options) {
            Err(DeviceError::Open { cause, .. })
                if cause.contains("in use") && clock.now_ns() < RELEASE_NS_MAX =>
            {
                pause();
            }
            opened => return opened,
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the thread that opens the pool, before any task runs"
)]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}

/// What is wrong with the pool on `paths`, as far as reading tells; somebody else may have it open.
#[must_use]
pub fn check(paths: &[PathBuf]) -> Vec<String> {
    let options = OpenOptions { read_only: true, exclusive: false, ..OpenOptions::default() };
    let mut found = Vec::new();
    let mut problems = Vec::new();
    for path in paths {
        let device = FileDevice::open(path, &options).map_err(|error| error.to_string());
        match device.and_then(|device| identify(path, &device)) {
            Ok(this) => found.push(this),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty()
        && let Err(more) = arrange(&found)
    {
        problems.extend(more);
    }
    problems
}

/// Reads what a device says it is.
fn identify(path: &Path, device: &FileDevice) -> Result<Found, String> {
    let queue = device.open_queue(QUEUE_DEPTH).map_err(|error| error.to_string())?;
    let probed = on_reactor(vec![Rc::clone(&queue)], async move {
        superblock::probe(&*queue).await.map_err(|error| error.to_string())
    });
    let (superblock, member) = probed?;
    let name = path.display().to_string();
    superblock.refuse_image(&name).map_err(|error| error.to_string())?;
    let table = superblock.members.iter().map(|member| (member.uuid, member.label.clone()));
    Ok(Found {
        path: path.to_owned(),
        pool: superblock.pool_uuid,
        member,
        sequence: superblock.sequence,
        shard_count: superblock.shard_count(),
        table: table.collect(),
    })
}

/// Runs `work` on a reactor of its own on this thread, which polls `queues`.
pub(crate) fn on_reactor<T: 'static>(
    queues: Vec<Rc<dyn DeviceQueue>>,
    work: impl Future<Output = Result<T, String>> + 'static,
) -> Result<T, String> {
    let doorbell = Doorbell::new().map_err(|error| format!("no descriptor: {error}"))?;
    let mut reactor = Reactor::new(&ReactorConfig::default(), Arc::new(doorbell));
    for queue in queues {
        let poller = Rc::new(QueuePoller(queue));
        reactor.handle().register_poller("device", poller).map_err(|error| error.to_string())?;
    }
    reactor.block_on(work).map_err(|fault| fault.to_string())?
}

/// 64 bits from the kernel.
///
/// # Errors
/// When the kernel gives none.
pub fn random_seed() -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// For every member by index, which of `found` it is.
fn arrange(found: &[Found]) -> Result<Vec<usize>, Vec<String>> {
    let Some(newest) = found.iter().max_by_key(|device| device.sequence) else {
        return Err(vec!["no devices".to_owned()]);
    };
    let mut problems = Vec::new();
    for device in found.iter().filter(|device| device.pool != newest.pool) {
        problems.push(format!(
            "{} is of pool {} and {} of pool {}; a daemon serves one pool: list the devices of one",
            newest.path.display(),
            uuid_text(&newest.pool),
            device.path.display(),
            uuid_text(&device.pool),
        ));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    for device in found {
        if !newest.table.iter().any(|(uuid, _)| *uuid == device.member) {
            problems.push(format!(
                "{} is no longer a member of pool {}; take it off the list",
                device.path.display(),
                uuid_text(&newest.pool),
            ));
        }
    }
    let mut order = Vec::with_capacity(newest.table.len());
    for (index, (uuid, label)) in newest.table.iter().enumerate() {
        let mut same = found.iter().enumerate().filter(|(_, device)| device.member == *uuid);
        match (same.next(), same.next()) {
            (Some((at, _)), None) => order.push(at),
            (Some((_, one)), Some((_, other))) => problems.push(format!(
                "{} and {} are both member {index}; one is a copy of the other: use one",
                one.path.display(),
                other.path.display(),
            )),
            (None, _) => problems.push(format!(
                "member {index} ({}{}{}) of pool {} is missing; add its device to pool.devices",
                label,
                if label.is_empty() { "" } else { ", " },
                uuid_text(uuid),
                uuid_text(&newest.pool),
            )),
        }
    }
    if problems.is_empty() { Ok(order) } else { Err(problems) }
}

/// The usual form of a UUID (RFC 9562, section 4).
#[must_use]
pub fn uuid_text(uuid: &Uuid) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(path: &str, pool: u8, member: u8, sequence: u64, members: &[u8]) -> Found {
        let table = members.iter().map(|member| ([*member; 16], format!("disk{member}")));
        Found {
            path: PathBuf::from(path),
            pool: [pool; 16],
            member: [member; 16],
            sequence,
            shard_count: 4,
            table: table.collect(),
        }
    }

    #[test]
    fn members_are_put_in_order_whatever_the_list() {
        let found = [device("/b", 1, 2, 5, &[1, 2]), device("/a", 1, 1, 5, &[1, 2])];
        assert_eq!(arrange(&found), Ok(vec![1, 0]));
    }

    #[test]
    fn the_newest_table_counts() {
        let found = [device("/a", 1, 1, 4, &[1, 2, 3]), device("/b", 1, 2, 5, &[1, 2])];
        assert_eq!(arrange(&found), Ok(vec![0, 1]));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let uuid = |byte: u8| uuid_text(&[byte; 16]);
        let two = [device("/a", 1, 1, 5, &[1]), device("/b", 2, 1, 4, &[1])];
        let wanted = format!(
            "/a is of pool {} and /b of pool {}; a daemon serves one pool: list the devices of one",
            uuid(1),
            uuid(2)
        );
        assert_eq!(arrange(&two), Err(vec![wanted]));
        let missing = [device("/a", 1, 1, 5, &[1, 2])];
        let wanted = format!(
            "member 1 (disk2, {}) of pool {} is missing; add its device to pool.devices",
            uuid(2),
            uuid(1)
        );
        assert_eq!(arrange(&missing), Err(vec![wanted]));
        let removed = [device("/a", 1, 1, 5, &[1]), device("/b", 1, 2, 4, &[1, 2])];
        let wanted = format!("/b is no longer a member of pool {}; take it off the list", uuid(1));
        assert_eq!(arrange(&removed), Err(vec![wanted]));
        let copy = [device("/a", 1, 1, 5, &[1]), device("/b", 1, 1, 5, &[1])];
        let wanted = "/a and /b are both member 0; one is a copy of the other: use one".to_owned();
        assert_eq!(arrange(&copy), Err(vec![wanted]));
        assert_eq!(arrange(&[]), Err(vec!["no devices".to_owned()]));
    }

    #[test]
    fn uuids_look_as_usual() {
        let uuid: Uuid = std::array::from_fn(|index| index as u8 * 17);
        assert_eq!(uuid_text(&uuid), "00112233-4455-6677-8899-aabbccddeeff");
    }
}
