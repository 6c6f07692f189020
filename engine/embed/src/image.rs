//! Metadata images of pools on files, for bug reports.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use engine_device::{Allocation, BlockDevice as _, DeviceQueue, FileDevice, OpenOptions};
use engine_store::dump::{Item, View};

use crate::look::open_to_read;
use crate::members::{on_reactor, random_seed};

/// Operations in flight per file of an image.
const QUEUE_DEPTH: u32 = 32;

/// Why no image was made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The folder holds something.
    #[error("{folder} is not empty; an image goes to a new or empty directory")]
    NotEmpty {
        /// The folder.
        folder: PathBuf,
    },
    /// Anything else, in words for people.
    #[error("{0}")]
    Failed(String),
}

/// Writes a metadata image of the pool on `devices` into `folder`, which must be new or empty: for each
/// member that is given a sparse file `member-INDEX.img`. The devices are only read. Tells which files
/// there are, what they hold, and what was left out.
///
/// # Errors
/// See [`ImageError`]. The files of an image that was not finished are removed again.
pub fn image(devices: &[PathBuf], folder: &Path) -> Result<Vec<Item>, ImageError> {
    let is_new = !folder.exists();
    let failed = |error: std::io::Error| {
        ImageError::Failed(format!("directory {}: {error}", folder.display()))
    };
    if !is_new && std::fs::read_dir(folder).map_err(failed)?.next().is_some() {
        return Err(ImageError::NotEmpty { folder: folder.to_owned() });
    }
    let queues = open_to_read(devices).map_err(ImageError::Failed)?;
    let given = queues.clone();
    let view = on_reactor(queues.clone(), async move {
        View::open(&given).await.map_err(|error| error.to_string())
    })
    .map_err(ImageError::Failed)?;
    if is_new {
        std::fs::create_dir(folder).map_err(failed)?;
    }
    let mut files = Vec::new();
    let made = write(view, queues, folder, &mut files);
    if made.is_err() {
        // What cannot be removed is no image: it has no superblock.
        for file in &files {
            let _ = std::fs::remove_file(file);
        }
        if is_new {
            let _ = std::fs::remove_dir(folder);
        }
    }
    made.map_err(ImageError::Failed)
}

/// Adds to `files` what it creates.
fn write(
    view: View,
    mut queues: Vec<Rc<dyn DeviceQueue>>,
    folder: &Path,
    files: &mut Vec<PathBuf>,
) -> Result<Vec<Item>, String> {
    let (mut targets, mut items) = (Vec::new(), Vec::new());
    for (member, size) in view.image_sizes().into_iter().enumerate() {
        let Some(size) = size else {
            targets.push(None);
            continue;
        };
        let path = folder.join(format!("member-{member}.img"));
        FileDevice::create(&path, size, Allocation::Sparse).map_err(|error| error.to_string())?;
        files.push(path.clone());
        let opened = FileDevice::open(&path, &OpenOptions::default());
        let queue = opened.and_then(|file| file.open_queue(QUEUE_DEPTH));
        let queue = queue.map_err(|error| error.to_string())?;
        queues.push(Rc::clone(&queue));
        targets.push(Some(queue));
        items.push(Item::Map(vec![
            ("member", (member as u64).into()),
            ("file", Item::Text(path.display().to_string())),
            ("size", size.into()),
        ]));
    }
    let seed = || random_seed().map_err(|error| format!("no randomness: {error}"));
    let key = [seed()?, seed()?];
    let made = on_reactor(queues, async move {
        view.image(&targets, key).await.map_err(|error| error.to_string())
    });
    items.extend(made?);
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FormatError, FormatRequest, LocalPool, OpenError, format, members};
    use engine_store::engine::Opening;

    #[test]
    fn an_image_is_sparse_is_not_opened_and_is_formatted_only_by_force() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let request = |path: &Path, force| FormatRequest {
            devices: vec![path.to_owned()],
            file_size_bytes: Some(64 << 20),
            force,
            ..FormatRequest::default()
        };
        format(&request(&path, false)).unwrap();
        let out = folder.path().join("out");
        image(std::slice::from_ref(&path), &out).unwrap();
        let again = image(std::slice::from_ref(&path), &out);
        assert!(matches!(again, Err(ImageError::NotEmpty { .. })), "{again:?}");
        let file = out.join("member-0.img");
        let metadata = std::fs::metadata(&file).unwrap();
        assert_eq!(metadata.len(), 64 << 20);
        let blocks = std::os::unix::fs::MetadataExt::blocks(&metadata);
        assert!(blocks * 512 < 1 << 20, "{blocks}");
        let words = "is a metadata image of a pool, without its data: only `cairn dump` reads it";
        for opening in [Opening::Whole, Opening::Salvage] {
            match LocalPool::open_as(std::slice::from_ref(&file), opening) {
                Err(OpenError::Members(problems)) => assert!(problems[0].contains(words)),
                Err(error) => panic!("{error:?}"),
                Ok(_) => panic!("it was opened"),
            }
        }
        assert!(members::check(std::slice::from_ref(&file))[0].contains(words));
        match format(&request(&file, false)) {
            Err(FormatError::InUse { what, .. }) => assert!(what.contains("metadata image")),
            other => panic!("{other:?}"),
        }
        format(&request(&file, true)).unwrap();
        LocalPool::open(&[file]).unwrap().close().unwrap();
    }

    #[test]
    fn a_failed_image_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (path, out) = (folder.path().join("disk"), folder.path().join("out"));
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        let made = image(std::slice::from_ref(&path), &out);
        assert!(matches!(made, Err(ImageError::Failed(_))), "{made:?}");
        assert!(!out.exists());
        let file = folder.path().join("file");
        std::fs::write(&file, b"mine").unwrap();
        assert!(image(&[path], &file).is_err());
        assert_eq!(std::fs::read(file).unwrap(), b"mine");
    }
}
