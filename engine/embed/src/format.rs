//! Making a pool on files and devices.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use engine_device::{
    Allocation, BlockDevice as _, DeviceQueue, Discard, FileDevice, QueueExt as _,
};
use engine_memory::Buffer;
use engine_shard::clock::Clock;
use engine_store::pool::FormatOptions;
use engine_store::superblock::{self, ProbeError, Superblock};

use crate::members::{on_reactor, open_alone, random_seed, uuid_text};

/// Bytes at the start of a device that are looked at for signatures of others.
const HEAD_BYTES: usize = 128 * 1024;

/// What to make a pool of.
#[derive(Clone, Debug, Default)]
pub struct FormatRequest {
    /// Devices or files, 1 to 255.
    pub devices: Vec<PathBuf>,
    /// Missing files are created with this size in bytes (a multiple of 4096).
    pub file_size_bytes: Option<u64>,
    /// Destroys what is there.
    pub force: bool,
    /// Geometry; time and seed are filled in here.
    pub options: FormatOptions,
}

/// Why no pool was made.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// A device already holds something.
    #[error("{path} holds {what}; its content would be lost")]
    InUse {
        /// The device.
        path: PathBuf,
        /// What was recognised on it.
        what: String,
    },
    /// Anything else, in words for people.
    #[error("{0}")]
    Failed(String),
}

/// Makes a pool. Refuses devices that hold something, unless forced.
///
/// # Errors
/// See [`FormatError`]; files created by a call that fails are left for the next try.
pub fn format(request: &FormatRequest) -> Result<Superblock, FormatError> {
    let failed = |text: String| FormatError::Failed(text);
    let mut devices = Vec::new();
    for path in &request.devices {
        devices.push(open_or_create(path, request.file_size_bytes)?);
    }
    let mut queues = Vec::new();
    for device in &devices {
        queues.push(device.open_queue(32).map_err(|error| failed(error.to_string()))?);
    }
    if !request.force {
        for (path, queue) in request.devices.iter().zip(&queues) {
            let probed = queue.clone();
            let found = on_reactor(vec![queue.clone()], async move { holds(&*probed).await });
            if let Some(what) = found.map_err(failed)? {
                return Err(FormatError::InUse { path: path.clone(), what });
            }
        }
    }
    #[expect(clippy::disallowed_methods, reason = "a tool: there is no runtime to ask")]
    let now = SystemTime::now();
    let created_ns = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let seed = || random_seed().map_err(|error| failed(format!("no randomness: {error}")));
    let options =
        FormatOptions { created_ns, uuid_seed: [seed()?, seed()?], ..request.options.clone() };
    on_reactor(queues.clone(), async move {
        engine_store::pool::format(&queues, &options).await.map_err(|error| error.to_string())
    })
    .map_err(failed)
}

fn open_or_create(path: &Path, size_bytes: Option<u64>) -> Result<FileDevice, FormatError> {
    let failed = |error: engine_device::DeviceError| FormatError::Failed(error.to_string());
    match (path.exists(), size_bytes) {
        (false, Some(size)) => {
            FileDevice::create(path, size, Allocation::Sparse).map_err(failed)?;
        }
        (false, None) => {
            let text = format!("{} does not exist; give a size to create a file", path.display());
            return Err(FormatError::Failed(text));
        }
        (true, _) => {}
    }
    open_alone(path, Discard::Auto, &Clock::new()).map_err(failed)
}

/// What a device holds, as far as its first blocks tell.
async fn holds(queue: &dyn DeviceQueue) -> Result<Option<String>, String> {
    match superblock::probe(queue).await {
        Ok((superblock, _)) => {
            let uuid = uuid_text(&superblock.pool_uuid);
            return Ok(Some(match superblock.image_tails {
                None => format!("a member of Cairn pool {uuid}"),
                Some(_) => format!("a metadata image of Cairn pool {uuid}"),
            }));
        }
        Err(ProbeError::NotMember { .. }) => {}
        Err(ProbeError::Store(error)) => return Err(error.to_string()),
    }
    let len = HEAD_BYTES.min(queue.info().size_bytes as usize);
    let buffer = Buffer::try_new(len).map_err(|error| error.to_string())?;
    let head = queue.read(0, buffer).await.map_err(|error| error.to_string())?;
    if let Some(name) = signature(&head) {
        return Ok(Some(name.to_owned()));
    }
    Ok(head.iter().any(|byte| *byte != 0).then(|| "data of an unknown kind".to_owned()))
}

/// Names what the usual signatures tell; places and values as in util-linux's libblkid.
fn signature(head: &[u8]) -> Option<&'static str> {
    let known: [(usize, &[u8], &str); 9] = [
        (0x438, &[0x53, 0xef], "an ext2, ext3 or ext4 file system"),
        (0, b"XFSB", "an XFS file system"),
        (0x1_0040, b"_BHRfS_M", "a btrfs file system"),
        (4096 + 24, &[0xc6, 0x85, 0x73, 0xf6], "a bcachefs member"),
        (512, b"EFI PART", "a GPT partition table"),
        (512, b"LABELONE", "an LVM physical volume"),
        (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "a Linux RAID member"),
        (0, b"LUKS\xba\xbe", "a LUKS container"),
        (510, &[0x55, 0xaa], "a boot sector or partition table"),
    ];
    known
        .iter()
        .find(|(at, bytes, _)| head.get(*at..at + bytes.len()) == Some(bytes))
        .map(|(_, _, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LocalPool;

    fn request(path: &Path, force: bool) -> FormatRequest {
        FormatRequest {
            devices: vec![path.to_owned()],
            file_size_bytes: Some(64 << 20),
            force,
            ..FormatRequest::default()
        }
    }

    #[test]
    fn a_pool_is_made_once_and_opens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let superblock = format(&request(&path, false)).unwrap();
        assert_eq!(superblock.shard_count(), 4);
        let again = format(&request(&path, false));
        assert!(matches!(again, Err(FormatError::InUse { .. })), "{again:?}");
        format(&request(&path, true)).unwrap();
        let mut pool = LocalPool::open(&[path]).unwrap();
        let report = pool
            .run(async |client, _| {
                let info = client.volume_create("v", 8 << 20, 4096).await.unwrap();
                assert_eq!(client.subvolume_get("v").await.unwrap(), info);
                client.fsck(engine_store::api::Verify::All).await.unwrap()
            })
            .unwrap();
        assert_eq!(report.problems, Vec::<String>::new());
        pool.close().unwrap();
    }

    #[test]
    fn foreign_content_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        for (at, bytes, words) in [
            (0x438, vec![0x53, 0xef], "ext4"),
            (0, b"XFSB".to_vec(), "XFS"),
            (100, b"x".to_vec(), "unknown"),
        ] {
            let path = folder.path().join(words);
            let mut content = vec![0; 64 << 20];
            content[at..at + bytes.len()].copy_from_slice(&bytes);
            std::fs::write(&path, &content).unwrap();
            let refused = format(&request(&path, false));
            let Err(error @ FormatError::InUse { .. }) = refused else { panic!("{refused:?}") };
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
