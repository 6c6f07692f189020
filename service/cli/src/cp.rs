//! `cp`: copies within the pool, by reference where blocks can be shared. Nothing goes over the network but names.
//!
//! Keeps modes, times, symbolic links, and hard links among what is copied; with options also extended attributes and
//! owners. What is copied of a directory is what it held when it was come to.

use std::collections::BTreeMap;

use proto::v1;
use serde_json::json;

use crate::args::{CpArguments, Reflink};
use crate::connect::Session;
use crate::failure::{Failure, Result, exit};
use crate::files::{entries, own_identity, stat, stat_if_there};
use crate::output::Output;
use crate::target::Target;

/// Runs `cp`.
pub(crate) async fn run(session: &Session, arguments: &CpArguments, output: &Output) -> Result<()> {
    let destination = &arguments.destination;
    let there = stat_if_there(session, destination, true).await?;
    let into = there.is_some_and(|it| it.kind() == v1::FileKind::Directory);
    if !into && arguments.sources.len() > 1 {
        return Err(Failure::usage(format!("{destination} must be a directory for many sources")));
    }
    let mut copy =
        Copy { session, arguments, linked: BTreeMap::new(), made: None, done: Done::default() };
    for source in &arguments.sources {
        let target = match (into, source.name()) {
            (false, _) => destination.clone(),
            (true, Some(name)) => destination.join(name),
            (true, None) => {
                return Err(Failure::usage(format!("{source} has no name; name the destination")));
            }
        };
        copy.tree(source, &target).await?;
    }
    let Done { files, shared_bytes, copied_bytes } = copy.done;
    let value =
        json!({ "files": files, "shared_bytes": shared_bytes, "copied_bytes": copied_bytes });
    if output.is_json() { output.value(&value, String::new) } else { Ok(()) }
}

/// What was copied.
#[derive(Default)]
struct Done {
    files: u64,
    shared_bytes: u64,
    copied_bytes: u64,
}

/// A step of copying a tree.
enum Step {
    Copy(Target, Target, v1::FileAttributes),
    /// The attributes of a directory, after all in it is there.
    Finish(Target, Target, v1::FileAttributes),
}

struct Copy<'a> {
    session: &'a Session,
    arguments: &'a CpArguments,
    /// Copies of files with several names, by subvolume and inode.
    linked: BTreeMap<(String, u64), Target>,
    /// The directory that everything goes into: it is not to be copied into itself.
    made: Option<(String, u64)>,
    done: Done,
}

impl Copy<'_> {
    async fn tree(&mut self, source: &Target, target: &Target) -> Result<()> {
        self.made = None;
        // As cp(1) without -r does with what it is given by name.
        let follow = !self.arguments.copy.recursive;
        let attributes = stat(self.session, source, follow).await?;
        let mut steps = vec![Step::Copy(source.clone(), target.clone(), attributes)];
        while let Some(step) = steps.pop() {
            match step {
                Step::Finish(source, target, attributes) => {
                    self.attributes(&source, &target, &attributes).await?;
                }
                Step::Copy(source, target, attributes) => match attributes.kind() {
                    v1::FileKind::Directory => {
                        self.directory(&source, &target, &attributes).await?;
                        self.below(&source, &target, &mut steps, attributes).await?;
                    }
                    v1::FileKind::Symlink => self.symlink(&source, &target, &attributes).await?,
                    v1::FileKind::Regular => self.regular(&source, &target, &attributes).await?,
                    v1::FileKind::Unspecified => {
                        return Err(Failure::new(format!("{source}: of a kind unknown here")));
                    }
                },
            }
        }
        Ok(())
    }

    async fn directory(
        &mut self,
        source: &Target,
        target: &Target,
        attributes: &v1::FileAttributes,
    ) -> Result<()> {
        if !self.arguments.copy.recursive {
            return Err(Failure::usage(format!("{source} is a directory"))
                .hint("give --recursive to copy directories"));
        }
        if self.made == Some((source.subvolume.clone(), attributes.inode)) {
            return Err(Failure::usage(format!("{source} would be copied into itself")));
        }
        let (uid, gid) = own_identity();
        let new = Some(v1::CreateAttributes { mode: 0o700, uid, gid });
        let request = v1::CreateDirectoryRequest {
            directory: target.file(),
            attributes: new,
            parents: false,
        };
        if let Err(status) = self.session.files().create_directory(request).await {
            let failure = Failure::from(status);
            let there = stat_if_there(self.session, target, false).await?;
            if failure.code != exit::EXISTS
                || there.is_none_or(|it| it.kind() != v1::FileKind::Directory)
            {
                return Err(failure);
            }
        }
        if self.made.is_none() {
            let inode = stat(self.session, target, false).await?.inode;
            if inode == attributes.inode && source.subvolume == target.subvolume {
                return Err(Failure::usage(format!(
                    "{source} and {target} are the same directory"
                )));
            }
            self.made = Some((target.subvolume.clone(), inode));
        }
        Ok(())
    }

    /// What is in a directory goes on the list, and after it the directory itself.
    async fn below(
        &self,
        source: &Target,
        target: &Target,
        steps: &mut Vec<Step>,
        attributes: v1::FileAttributes,
    ) -> Result<()> {
        steps.push(Step::Finish(source.clone(), target.clone(), attributes));
        let mut stream = entries(self.session, source).await?;
        while let Some(message) = stream.message().await? {
            for entry in message.entries {
                let attributes = entry.attributes.unwrap_or_default();
                let (from, to) = (source.join(&entry.name), target.join(&entry.name));
                steps.push(Step::Copy(from, to, attributes));
            }
        }
        Ok(())
    }

    async fn symlink(
        &mut self,
        source: &Target,
        target: &Target,
        attributes: &v1::FileAttributes,
    ) -> Result<()> {
        let request = v1::ReadSymlinkRequest { link: source.file() };
        let to = self.session.files().read_symlink(request).await?.into_inner().target;
        let (uid, gid) = own_identity();
        let request =
            v1::CreateSymlinkRequest { link: target.file(), target: to.clone(), uid, gid };
        if let Err(status) = self.session.files().create_symlink(request).await {
            let failure = Failure::from(status);
            let request = v1::ReadSymlinkRequest { link: target.file() };
            let there = self.session.files().read_symlink(request).await;
            if failure.code != exit::EXISTS || there.is_ok_and(|reply| reply.get_ref().target != to)
            {
                return Err(failure);
            }
        }
        self.attributes(source, target, attributes).await
    }

    async fn regular(
        &mut self,
        source: &Target,
        target: &Target,
        attributes: &v1::FileAttributes,
    ) -> Result<()> {
        let identity = (source.subvolume.clone(), attributes.inode);
        if attributes.links > 1
            && let Some(first) = self.linked.get(&identity)
        {
            return self.hard_link(first, target).await;
        }
        let (uid, gid) = own_identity();
        let mode = match self.arguments.reflink {
            Reflink::Auto => v1::ReferenceMode::Auto,
            Reflink::Always => v1::ReferenceMode::Always,
            Reflink::Never => v1::ReferenceMode::Never,
        };
        let request = v1::CopyFileRequest {
            source: source.file(),
            destination: target.file(),
            create: Some(v1::CreateAttributes { mode: 0o600, uid, gid }),
            truncate: true,
            sync: self.arguments.sync,
            mode: mode.into(),
            ..v1::CopyFileRequest::default()
        };
        let reply = self.session.files().copy_file(request).await?.into_inner();
        self.done.files += 1;
        self.done.shared_bytes += reply.shared_bytes;
        self.done.copied_bytes += reply.copied_bytes;
        self.attributes(source, target, attributes).await?;
        if attributes.links > 1 {
            self.linked.insert(identity, target.clone());
        }
        Ok(())
    }

    async fn hard_link(&self, first: &Target, target: &Target) -> Result<()> {
        if let Some(old) = stat_if_there(self.session, target, false).await? {
            if old.inode == stat(self.session, first, false).await?.inode {
                return Ok(());
            }
            let request = v1::RemoveFileRequest { file: target.file(), recursive: false };
            self.session.files().remove_file(request).await?;
        }
        let request = v1::CreateLinkRequest { source: first.file(), destination: target.file() };
        self.session.files().create_link(request).await?;
        Ok(())
    }

    async fn attributes(
        &self,
        source: &Target,
        target: &Target,
        attributes: &v1::FileAttributes,
    ) -> Result<()> {
        if self.arguments.copy.xattrs {
            self.xattrs(source, target).await?;
        }
        let symlink = attributes.kind() == v1::FileKind::Symlink;
        let request = v1::SetFileAttributesRequest {
            file: target.file(),
            follow_symlink: false,
            mode: (!symlink).then_some(attributes.mode),
            uid: self.arguments.copy.owner.then_some(attributes.uid),
            gid: self.arguments.copy.owner.then_some(attributes.gid),
            atime_ns: Some(attributes.atime_ns),
            mtime_ns: Some(attributes.mtime_ns),
        };
        self.session.files().set_file_attributes(request).await?;
        Ok(())
    }

    async fn xattrs(&self, source: &Target, target: &Target) -> Result<()> {
        let mut files = self.session.files();
        let request = v1::ListXattrsRequest { file: source.file() };
        let names = files.list_xattrs(request).await?.into_inner().names;
        for name in names.into_iter().filter(|name| name.starts_with(b"user.")) {
            let request = v1::GetXattrRequest { file: source.file(), name: name.clone() };
            let value = files.get_xattr(request).await?.into_inner().value;
            let mode = v1::XattrMode::Unspecified.into();
            let request = v1::SetXattrRequest { file: target.file(), name, value, mode };
            files.set_xattr(request).await?;
        }
        Ok(())
    }
}
