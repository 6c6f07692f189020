//! Paths: parsing, and walking them over the engine's lookup.
//!
//! Always holds: a walk starts at the root of one file tree and never leaves it; it takes at most
//! 40 symbolic links, so a bounded number of lookups. What a missing last component means is left
//! to the caller.

use engine_base::InodeNumber;
use engine_store::api::{Attributes, FileKind, Link, NAME_BYTES_MAX, TreeRef};
use engine_store::client::Client;
use engine_store::{Result as StoreResult, StoreError};
use proto::v1;
use tonic::Status;

use crate::limits::{PATH_BYTES_MAX, SYMLINKS_MAX};
use crate::status::bad_field;

/// A path as a client gave it, checked: absolute, no NUL, lengths within their limits.
#[derive(Debug)]
pub(crate) struct Path<'a> {
    /// Name of the file tree; checked where it is looked up.
    pub(crate) subvolume: &'a str,
    bytes: &'a [u8],
    /// Field of the request that it came in.
    pub(crate) field: &'static str,
}

impl<'a> Path<'a> {
    /// Checks the path in `field`.
    pub(crate) fn parse(
        field: &'static str,
        from: Option<&'a v1::FilePath>,
    ) -> Result<Self, Status> {
        let from = from.ok_or_else(|| bad_field(field, "must be given"))?;
        let bytes = from.path.as_slice();
        let why = if bytes.is_empty() {
            "is empty; the root is \"/\"".to_owned()
        } else if bytes.len() > PATH_BYTES_MAX {
            format!("is {} bytes long, {PATH_BYTES_MAX} are allowed", bytes.len())
        } else if bytes[0] != b'/' {
            "must start with '/'".to_owned()
        } else if bytes.contains(&0) {
            "must not have NUL bytes".to_owned()
        } else if bytes.split(|byte| *byte == b'/').any(|name| name.len() > NAME_BYTES_MAX) {
            format!("has a name over {NAME_BYTES_MAX} bytes")
        } else {
            return Ok(Self { subvolume: &from.subvolume, bytes, field });
        };
        Err(bad_field(&format!("{field}.path"), why))
    }

    /// The path within the subvolume.
    pub(crate) fn whole(&self) -> &'a [u8] {
        self.bytes
    }

    /// "subvolume:/path", for people and logs.
    pub(crate) fn display(&self) -> String {
        format!("{}:{}", self.subvolume, String::from_utf8_lossy(self.bytes))
    }
}

/// What "subvolume:/path" a request names, before it is checked; for the log.
pub(crate) fn describe(from: Option<&v1::FilePath>) -> String {
    let Some(from) = from else { return String::new() };
    let shown = &from.path[..from.path.len().min(PATH_BYTES_MAX)];
    let mut text = from.subvolume.chars().take(NAME_BYTES_MAX).collect::<String>();
    text.push(':');
    text.push_str(&String::from_utf8_lossy(shown));
    text
}

/// Whether a symbolic link at the end of a path is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Follow {
    /// Always.
    Always,
    /// Only when the path ends in '/'.
    WithSlash,
    /// Not even then: for what acts on names.
    Never,
}

/// Where a path leads.
#[derive(Debug)]
pub(crate) struct Walked {
    /// Directory that has or would have the last name.
    pub(crate) directory: InodeNumber,
    /// The last name; `None` for the root, and after a last "." or "..".
    pub(crate) name: Option<Vec<u8>>,
    /// What it names; `None` when nothing has that name.
    pub(crate) found: Option<Attributes>,
    /// The path ends in '/'.
    pub(crate) slash: bool,
}

impl Walked {
    /// What is there.
    pub(crate) fn existing(self) -> StoreResult<Attributes> {
        self.found.ok_or_else(|| StoreError::not_found("file or directory"))
    }

    /// Directory and name that can be created, removed or renamed.
    pub(crate) fn entry(&self) -> StoreResult<(InodeNumber, &[u8])> {
        match &self.name {
            Some(name) => Ok((self.directory, name)),
            None => Err(StoreError::invalid("the path ends in no name: it is '/', '.' or '..'")),
        }
    }
}

/// Walks `path` from the root of `tree`. An error when anything but its last name is missing, or
/// when it ends in '/' and leads to something that is not a directory.
pub(crate) async fn walk<L: Link>(
    client: &Client<L>,
    tree: TreeRef,
    path: &Path<'_>,
    follow: Follow,
) -> StoreResult<Walked> {
    let mut walk = Walk {
        pending: Vec::new(),
        directories: vec![tree.root],
        slash: path.bytes.ends_with(b"/"),
        symlinks: 0,
    };
    walk.push(path.bytes);
    while let Some(name) = walk.pending.pop() {
        if name == b"." {
            continue;
        }
        if name == b".." {
            walk.leave()?;
            continue;
        }
        let last = walk.pending.is_empty();
        let directory = walk.directory();
        let found = match client.lookup(tree, directory, &name).await {
            Ok(found) => found,
            Err(StoreError::NotFound { .. }) if last => {
                return Ok(Walked { directory, name: Some(name), found: None, slash: walk.slash });
            }
            Err(error) => return Err(error),
        };
        let follow_last = match follow {
            Follow::Always => true,
            Follow::WithSlash => walk.slash,
            Follow::Never => false,
        };
        match found.kind {
            FileKind::Symlink if !last || follow_last => {
                let target = client.read_link(tree, found.inode).await?;
                walk.follow(&target, last, path)?;
            }
            FileKind::Directory if !last => walk.directories.push(found.inode),
            kind if kind != FileKind::Directory && (!last || walk.slash) => {
                return Err(StoreError::NotDirectory {
                    what: String::from_utf8_lossy(&name).into_owned(),
                });
            }
            _ => {
                let (name, found) = (Some(name), Some(found));
                return Ok(Walked { directory, name, found, slash: walk.slash });
            }
        }
    }
    let directory = walk.directory();
    let found = Some(client.get_attributes(tree, directory).await?);
    Ok(Walked { directory, name: None, found, slash: walk.slash })
}

/// A walk on its way.
struct Walk {
    /// Names still to go, the next one last.
    pending: Vec<Vec<u8>>,
    /// The directories from the root to where the walk is; never empty.
    directories: Vec<InodeNumber>,
    slash: bool,
    symlinks: u32,
}

impl Walk {
    fn directory(&self) -> InodeNumber {
        *self.directories.last().expect("the root is never left")
    }

    fn push(&mut self, path: &[u8]) {
        let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
        self.pending.extend(names.rev().map(<[u8]>::to_vec));
    }

    fn leave(&mut self) -> StoreResult<()> {
        if self.directories.len() == 1 {
            return Err(StoreError::invalid("'..' leads out of the subvolume"));
        }
        self.directories.pop();
        Ok(())
    }

    fn follow(&mut self, target: &[u8], last: bool, path: &Path<'_>) -> StoreResult<()> {
        self.symlinks += 1;
        if self.symlinks > SYMLINKS_MAX {
            return Err(StoreError::TooManySymlinks { path: path.display() });
        }
        if target.starts_with(b"/") {
            self.directories.truncate(1);
        }
        if last && target.ends_with(b"/") {
            self.slash = true;
        }
        self.push(target);
        Ok(())
    }
}
