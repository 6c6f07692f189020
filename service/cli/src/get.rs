//! `get`: files of a file tree as local ones.
//!
//! Always holds: nothing is written outside the destination, whatever names the daemon sends; a
//! file has its name only when all of it is there and verified. Blocks of zeroes become holes.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{File, FileTimes, Permissions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use indicatif::ProgressBar;
use proto::v1;

use crate::args::{CopyArguments, GetArguments};
use crate::connect::Session;
use crate::failure::{Failure, Result, exit};
use crate::files::{entries, stat, verify};
use crate::output::Output;
use crate::target::Target;

/// Unit in which zeroes are left out.
const HOLE_BYTES: usize = 4096;

/// Runs `get`.
pub(crate) async fn run(
    session: &Session,
    arguments: &GetArguments,
    output: &Output,
) -> Result<()> {
    let (source, destination) = (&arguments.source, &arguments.destination);
    let attributes = stat(session, source, true).await?;
    let path = if destination.is_dir() {
        match source.name() {
            Some(name) => destination.join(OsStr::from_bytes(name)),
            // All in the root, not the root itself, goes into an existing directory.
            None => destination.clone(),
        }
    } else {
        destination.clone()
    };
    let progress = output.progress();
    let copy = arguments.copy;
    let mut get = Get { session, copy, progress, linked: BTreeMap::new() };
    get.tree(source, &path, attributes).await?;
    get.progress.finish_and_clear();
    Ok(())
}

/// A step of copying a tree.
enum Step {
    Copy(Target, PathBuf, v1::FileAttributes),
    /// The attributes of a directory, after all in it is there.
    Finish(Target, PathBuf, v1::FileAttributes),
}

struct Get<'a> {
    session: &'a Session,
    copy: CopyArguments,
    progress: ProgressBar,
    /// Where files with several names are, by inode.
    linked: BTreeMap<u64, PathBuf>,
}

impl Get<'_> {
    async fn tree(
        &mut self,
        source: &Target,
        path: &Path,
        attributes: v1::FileAttributes,
    ) -> Result<()> {
        let mut steps = vec![Step::Copy(source.clone(), path.to_owned(), attributes)];
        while let Some(step) = steps.pop() {
            match step {
                Step::Finish(source, path, attributes) => {
                    self.attributes(&source, &path, &attributes).await?;
                }
                Step::Copy(source, path, attributes) => match attributes.kind() {
                    v1::FileKind::Directory => {
                        self.directory(&source, &path)?;
                        steps.push(Step::Finish(source.clone(), path.clone(), attributes));
                        self.below(&source, &path, &mut steps).await?;
                    }
                    v1::FileKind::Symlink => {
                        self.symlink(&source, &path, &attributes).await?;
                    }
                    v1::FileKind::Regular => self.regular(&source, &path, &attributes).await?,
                    v1::FileKind::Unspecified => {
                        return Err(Failure::new(format!("{source}: of a kind unknown here")));
                    }
                },
            }
        }
        Ok(())
    }

    fn directory(&self, source: &Target, path: &Path) -> Result<()> {
        if !self.copy.recursive {
            return Err(Failure::usage(format!("{source} is a directory"))
                .hint("give --recursive to copy directories"));
        }
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            // A real one only: through a symbolic link we would write somewhere else. The
            // destination itself was chosen by the caller and is resolved already.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let there = std::fs::symlink_metadata(path)
                    .map_err(|error| Failure::local(path, "cannot stat", &error))?;
                if there.is_dir() {
                    return Ok(());
                }
                Err(Failure::local(path, "cannot create the directory", &error))
            }
            other => other.map_err(|error| Failure::local(path, "cannot create", &error)),
        }
    }

    async fn below(&self, source: &Target, path: &Path, steps: &mut Vec<Step>) -> Result<()> {
        let mut stream = entries(self.session, source).await?;
        let mut seen = BTreeSet::new();
        while let Some(message) = stream.message().await? {
            for entry in message.entries {
                let name = entry.name;
                let sound = !name.is_empty() && name != b"." && name != b"..";
                if !sound || name.contains(&b'/') || name.contains(&0) {
                    return Err(Failure::new(format!("{source}: the daemon sent an unsafe name")));
                }
                let attributes = entry.attributes.unwrap_or_default();
                if !seen.insert(name.clone()) {
                    return Err(Failure::new(format!("{source}: the daemon sent a name twice")));
                }
                let below = path.join(OsStr::from_bytes(&name));
                steps.push(Step::Copy(source.join(&name), below, attributes));
            }
        }
        Ok(())
    }

    async fn symlink(
        &self,
        source: &Target,
        path: &Path,
        attributes: &v1::FileAttributes,
    ) -> Result<()> {
        let request = v1::ReadSymlinkRequest { link: source.file() };
        let to = self.session.files().read_symlink(request).await?.into_inner().target;
        let to = PathBuf::from(OsStr::from_bytes(&to));
        match std::os::unix::fs::symlink(&to, path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                if std::fs::read_link(path).is_ok_and(|old| old == to) {
                    return Ok(());
                }
                return Err(Failure::local(path, "cannot create the symbolic link", &error));
            }
            other => other.map_err(|error| Failure::local(path, "cannot create", &error))?,
        }
        if self.copy.owner {
            std::os::unix::fs::lchown(path, Some(attributes.uid), Some(attributes.gid))
                .map_err(|error| Failure::local(path, "cannot change the owner", &error))?;
        }
        let time = |ns: i64| rustix::fs::Timespec {
            tv_sec: ns.div_euclid(1_000_000_000),
            tv_nsec: ns.rem_euclid(1_000_000_000),
        };
        let times = rustix::fs::Timestamps {
            last_access: time(attributes.atime_ns),
            last_modification: time(attributes.mtime_ns),
        };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags)
            .map_err(|error| Failure::local(path, "cannot set times", &error.into()))
    }

    async fn regular(
        &mut self,
        source: &Target,
        path: &Path,
        attributes: &v1::FileAttributes,
    ) -> Result<()> {
        if attributes.links > 1
            && let Some(first) = self.linked.get(&attributes.inode)
        {
            // An older file may be there; what else is there makes the next step fail.
            let _ = std::fs::remove_file(path);
            return std::fs::hard_link(first, path)
                .map_err(|error| Failure::local(path, "cannot link", &error));
        }
        self.progress.inc_length(attributes.size_bytes);
        self.progress.set_message(source.to_string());
        let partial = partial_name(path)?;
        let file = File::options().write(true).create_new(true).open(&partial);
        let file = file.map_err(|error| {
            Failure::local(&partial, "cannot create", &error)
                .hint("remove it if no other cairn get is writing it")
        })?;
        let fetched = self.fetch(source, &file, &partial).await;
        let placed = match fetched {
            Ok(()) => std::fs::rename(&partial, path)
                .map_err(|error| Failure::local(path, "cannot replace", &error)),
            Err(failure) => Err(failure),
        };
        if let Err(failure) = placed {
            let _ = std::fs::remove_file(&partial);
            return Err(failure);
        }
        self.attributes(source, path, attributes).await?;
        if attributes.links > 1 {
            self.linked.insert(attributes.inode, path.to_owned());
        }
        Ok(())
    }

    /// Fetches all of a file.
    async fn fetch(&self, source: &Target, file: &File, path: &Path) -> Result<()> {
        let request = v1::ReadFileRequest { file: source.file(), ..Default::default() };
        let mut stream = self.session.files().read_file(request).await?.into_inner();
        let failed = |error: std::io::Error| Failure::local(path, "cannot write", &error);
        let mut end = 0;
        while let Some(message) = stream.message().await? {
            verify(source, &message)?;
            if message.data.is_empty() {
                continue;
            }
            if message.offset_bytes != end {
                let why = format!("{source}: the daemon sent data out of order");
                return Err(Failure::new(why).code(exit::DAMAGED));
            }
            write_sparse(file, &message.data, end).map_err(failed)?;
            end += message.data.len() as u64;
            self.progress.inc(message.data.len() as u64);
        }
        file.set_len(end).map_err(failed)
    }

    async fn attributes(
        &self,
        source: &Target,
        path: &Path,
        attributes: &v1::FileAttributes,
    ) -> Result<()> {
        let failed =
            |what: &'static str| move |error: std::io::Error| Failure::local(path, what, &error);
        if self.copy.xattrs {
            self.xattrs(source, path).await?;
        }
        if self.copy.owner {
            std::os::unix::fs::chown(path, Some(attributes.uid), Some(attributes.gid))
                .map_err(failed("cannot change the owner"))?;
        }
        let file = File::open(path).map_err(failed("cannot open"))?;
        file.set_permissions(Permissions::from_mode(attributes.mode & 0o7777))
            .map_err(failed("cannot set the mode"))?;
        let times = FileTimes::new()
            .set_accessed(system_time(attributes.atime_ns))
            .set_modified(system_time(attributes.mtime_ns));
        file.set_times(times).map_err(failed("cannot set times"))
    }

    async fn xattrs(&self, source: &Target, path: &Path) -> Result<()> {
        let request = v1::ListXattrsRequest { file: source.file() };
        let names = self.session.files().list_xattrs(request).await?.into_inner().names;
        for name in names.into_iter().filter(|name| name.starts_with(b"user.")) {
            let request = v1::GetXattrRequest { file: source.file(), name: name.clone() };
            let value = self.session.files().get_xattr(request).await?.into_inner().value;
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::lsetxattr(path, name.as_slice(), &value, flags).map_err(|error| {
                Failure::local(path, "cannot set an extended attribute", &error.into())
            })?;
        }
        Ok(())
    }
}

/// Name beside `path` for what is not complete yet.
fn partial_name(path: &Path) -> Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| Failure::usage(format!("{} names no file", path.display())))?;
    // Cut, so that a long name leaves room for what is added.
    let kept = &name.as_bytes()[..name.len().min(200)];
    let mut partial = b".".to_vec();
    partial.extend_from_slice(kept);
    partial.extend_from_slice(b".cairn-part");
    Ok(path.with_file_name(OsStr::from_bytes(&partial)))
}

/// Writes `data` at `offset`, leaving out blocks of zeroes.
fn write_sparse(file: &File, data: &[u8], offset: u64) -> std::io::Result<()> {
    let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
    let mut at = 0;
    while at < data.len() {
        let rest = &data[at..];
        let zero = is_zero(&rest[..rest.len().min(HOLE_BYTES)]);
        let run: usize = rest
            .chunks(HOLE_BYTES)
            .take_while(|block| is_zero(block) == zero)
            .map(<[u8]>::len)
            .sum();
        if !zero {
            file.write_all_at(&rest[..run], offset + at as u64)?;
        }
        at += run;
    }
    Ok(())
}

fn system_time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    if ns >= 0 { SystemTime::UNIX_EPOCH + distance } else { SystemTime::UNIX_EPOCH - distance }
}
