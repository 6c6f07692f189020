//! `put`: local files into a file tree.
//!
//! Keeps modes, times, symbolic links, holes, and hard links among what is put; with options also
//! extended attributes and owners. Reads of local files are ahead of the network by a few chunks,
//! never by more.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use indicatif::ProgressBar;
use proto::v1::write_file_request::Message;
use proto::{CHUNK_BYTES_MAX, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::args::{CopyArguments, PutArguments};
use crate::connect::Session;
use crate::failure::{Failure, Result, exit};
use crate::files::{own_identity, stat, stat_if_there};
use crate::output::Output;
use crate::target::Target;

/// Chunks read ahead of the network.
const READ_AHEAD_CHUNKS: usize = 8;

/// Runs `put`.
pub(crate) async fn run(
    session: &Session,
    arguments: &PutArguments,
    output: &Output,
) -> Result<()> {
    let destination = &arguments.destination;
    let there = stat_if_there(session, destination, true).await?;
    let into = there.is_some_and(|it| it.kind() == v1::FileKind::Directory);
    if !into && arguments.sources.len() > 1 {
        return Err(Failure::usage(format!("{destination} must be a directory for many sources")));
    }
    let mut put = Put {
        session,
        copy: arguments.copy,
        sync: arguments.sync,
        output,
        progress: output.progress(),
        linked: BTreeMap::new(),
        skipped: 0,
    };
    for source in &arguments.sources {
        if source.as_os_str() == "-" {
            if into {
                return Err(Failure::usage("standard input needs the name of a file to put it to"));
            }
            put.standard_input(destination).await?;
            continue;
        }
        let target = if into {
            let name = source.file_name().ok_or_else(|| {
                let why = format!("{} has no name; name the destination", source.display());
                Failure::usage(why)
            })?;
            destination.join(name.as_bytes())
        } else {
            destination.clone()
        };
        put.tree(source, &target).await?;
    }
    put.progress.finish_and_clear();
    match put.skipped {
        0 => Ok(()),
        count => Err(Failure::new(format!("{count} special files were left out"))),
    }
}

/// A step of copying a tree.
enum Step {
    Copy(PathBuf, Target),
    /// The attributes of a directory, after all in it is there.
    Finish(PathBuf, Target, Box<Metadata>),
}

struct Put<'a> {
    session: &'a Session,
    copy: CopyArguments,
    sync: bool,
    output: &'a Output,
    progress: ProgressBar,
    /// What was put of files with several names, by device and inode.
    linked: BTreeMap<(u64, u64), Target>,
    skipped: u64,
}

impl Put<'_> {
    async fn tree(&mut self, source: &Path, target: &Target) -> Result<()> {
        let mut steps = vec![Step::Copy(source.to_owned(), target.clone())];
        while let Some(step) = steps.pop() {
            match step {
                Step::Finish(path, target, metadata) => {
                    self.attributes(&path, &target, &metadata).await?;
                }
                Step::Copy(path, target) => {
                    let metadata = std::fs::symlink_metadata(&path)
                        .map_err(|error| Failure::local(&path, "cannot stat", &error))?;
                    if metadata.is_dir() {
                        self.directory(&path, &target).await?;
                        steps.push(Step::Finish(path.clone(), target.clone(), Box::new(metadata)));
                        for name in names(&path)? {
                            let below = target.join(name.as_bytes());
                            steps.push(Step::Copy(path.join(name), below));
                        }
                    } else {
                        self.one(&path, &target, &metadata).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn directory(&self, path: &Path, target: &Target) -> Result<()> {
        if !self.copy.recursive {
            return Err(Failure::usage(format!("{} is a directory", path.display()))
                .hint("give --recursive to copy directories"));
        }
        let (uid, gid) = own_identity();
        let attributes = Some(v1::CreateAttributes { mode: 0o700, uid, gid });
        let request =
            v1::CreateDirectoryRequest { directory: target.file(), attributes, parents: false };
        let Err(status) = self.session.files().create_directory(request).await else {
            return Ok(());
        };
        let failure = Failure::from(status);
        if failure.code != exit::EXISTS {
            return Err(failure);
        }
        match stat(self.session, target, false).await?.kind() {
            v1::FileKind::Directory => Ok(()),
            _ => Err(failure),
        }
    }

    /// Anything but a directory.
    async fn one(&mut self, path: &Path, target: &Target, metadata: &Metadata) -> Result<()> {
        let kind = metadata.file_type();
        if !kind.is_file() && !kind.is_symlink() {
            self.output.warning(&format!("{}: special file, left out", path.display()));
            self.skipped += 1;
            return Ok(());
        }
        let identity = (metadata.dev(), metadata.ino());
        if metadata.nlink() > 1
            && let Some(first) = self.linked.get(&identity)
        {
            return self.hard_link(first, target).await;
        }
        if kind.is_symlink() {
            self.symlink(path, target).await?;
        } else {
            self.file(path, target, metadata).await?;
        }
        self.attributes(path, target, metadata).await?;
        if metadata.nlink() > 1 {
            self.linked.insert(identity, target.clone());
        }
        Ok(())
    }

    async fn hard_link(&self, first: &Target, target: &Target) -> Result<()> {
        self.replace(target, first).await?;
        let request = v1::CreateLinkRequest { source: first.file(), destination: target.file() };
        match self.session.files().create_link(request).await.map_err(Failure::from) {
            // Left by an earlier put: a name of the same file already.
            Err(failure) if failure.code == exit::EXISTS => Ok(()),
            other => other.map(drop),
        }
    }

    /// Removes an older file at `target` that is to become another name of `first`.
    async fn replace(&self, target: &Target, first: &Target) -> Result<()> {
        let Some(old) = stat_if_there(self.session, target, false).await? else { return Ok(()) };
        if old.inode == stat(self.session, first, false).await?.inode {
            return Ok(());
        }
        let request = v1::RemoveFileRequest { file: target.file(), recursive: false };
        self.session.files().remove_file(request).await?;
        Ok(())
    }

    async fn symlink(&self, path: &Path, target: &Target) -> Result<()> {
        let to = std::fs::read_link(path)
            .map_err(|error| Failure::local(path, "cannot read the link", &error))?;
        let to = to.as_os_str().as_bytes().to_vec();
        let (uid, gid) = own_identity();
        let request =
            v1::CreateSymlinkRequest { link: target.file(), target: to.clone(), uid, gid };
        let Err(status) = self.session.files().create_symlink(request).await else {
            return Ok(());
        };
        let failure = Failure::from(status);
        if failure.code != exit::EXISTS {
            return Err(failure);
        }
        let request = v1::ReadSymlinkRequest { link: target.file() };
        match self.session.files().read_symlink(request).await {
            Ok(reply) if reply.get_ref().target == to => Ok(()),
            _ => Err(failure),
        }
    }

    async fn file(&self, path: &Path, target: &Target, metadata: &Metadata) -> Result<()> {
        let file = File::open(path).map_err(|error| Failure::local(path, "cannot open", &error))?;
        self.progress.inc_length(metadata.len());
        self.progress.set_message(path.display().to_string());
        let mut header = self.header(target);
        header.final_size_bytes = Some(metadata.len());
        self.stream(path, header, move |sink| send_file(&file, sink)).await
    }

    async fn standard_input(&self, target: &Target) -> Result<()> {
        let header = self.header(target);
        let path = Path::new("standard input");
        self.stream(path, header, |sink| send_sequential(io::stdin().lock(), sink)).await
    }

    fn header(&self, target: &Target) -> v1::WriteFileHeader {
        let (uid, gid) = own_identity();
        v1::WriteFileHeader {
            file: target.file(),
            create: Some(v1::CreateAttributes { mode: 0o644, uid, gid }),
            exclusive: false,
            truncate: true,
            sync: self.sync,
            final_size_bytes: None,
        }
    }

    /// Sends what `producer` reads, on a thread of its own, to the file of `header`.
    async fn stream<P>(&self, path: &Path, header: v1::WriteFileHeader, producer: P) -> Result<()>
    where
        P: FnOnce(&Sink) -> io::Result<()> + Send + 'static,
    {
        let (messages, receiver) = mpsc::channel(READ_AHEAD_CHUNKS);
        let sink = Sink { messages, progress: self.progress.clone() };
        let first = v1::WriteFileRequest { message: Some(Message::Header(header)) };
        // The queue is empty: there is room.
        let _ = sink.messages.try_send(Some(first));
        let reading = tokio::task::spawn_blocking(move || {
            let result = producer(&sink);
            if result.is_ok() {
                // The end, told apart from a reader that failed.
                let _ = sink.messages.blocking_send(None);
            }
            result
        });
        let (failed, failure) = tokio::sync::oneshot::channel::<()>();
        let requests = until_end(receiver, failed);
        let mut files = self.session.files();
        let call = files.write_file(requests);
        // A failed reader must not look like the end of the file: the call is dropped then, which
        // cancels it, and the file is left unfinished.
        let reply = tokio::select! {
            reply = call => Some(reply),
            Ok(()) = failure => None,
        };
        match reply {
            Some(Err(status)) => Err(status.into()),
            Some(Ok(_)) => Ok(()),
            None => match reading.await {
                Ok(Err(error)) => Err(Failure::local(path, "cannot read", &error)),
                _ => Err(Failure::new(format!("{}: reading stopped", path.display()))),
            },
        }
    }

    async fn attributes(&self, path: &Path, target: &Target, metadata: &Metadata) -> Result<()> {
        if self.copy.xattrs {
            self.xattrs(path, target).await?;
        }
        let nanoseconds =
            |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        let symlink = metadata.file_type().is_symlink();
        let request = v1::SetFileAttributesRequest {
            file: target.file(),
            follow_symlink: false,
            mode: (!symlink).then_some(metadata.mode() & 0o7777),
            uid: self.copy.owner.then_some(metadata.uid()),
            gid: self.copy.owner.then_some(metadata.gid()),
            atime_ns: Some(nanoseconds(metadata.atime(), metadata.atime_nsec())),
            mtime_ns: Some(nanoseconds(metadata.mtime(), metadata.mtime_nsec())),
        };
        self.session.files().set_file_attributes(request).await?;
        Ok(())
    }

    async fn xattrs(&self, path: &Path, target: &Target) -> Result<()> {
        let failed = |error: rustix::io::Errno| {
            Failure::local(path, "cannot read extended attributes", &error.into())
        };
        for name in local_xattr_names(path).map_err(failed)? {
            let mut value = vec![0; LOCAL_XATTR_BYTES_MAX];
            let len = rustix::fs::lgetxattr(path, name.as_slice(), value.as_mut_slice());
            value.truncate(len.map_err(failed)?);
            let request = v1::SetXattrRequest {
                file: target.file(),
                name,
                value,
                mode: v1::XattrMode::Unspecified.into(),
            };
            self.session.files().set_xattr(request).await?;
        }
        Ok(())
    }
}

/// Largest value, and largest list of names, of extended attributes on Linux (XATTR_SIZE_MAX).
const LOCAL_XATTR_BYTES_MAX: usize = 64 << 10;

/// Names in the namespace "user."; others belong to the system that they come from.
fn local_xattr_names(path: &Path) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut list = vec![0; LOCAL_XATTR_BYTES_MAX];
    let len = match rustix::fs::llistxattr(path, list.as_mut_slice()) {
        Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
        other => other?,
    };
    list.truncate(len);
    let names = list.split(|byte| *byte == 0).filter(|name| name.starts_with(b"user."));
    Ok(names.map(<[u8]>::to_vec).collect())
}

fn names(path: &Path) -> Result<Vec<std::ffi::OsString>> {
    let failed = |error| Failure::local(path, "cannot list", &error);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name());
    }
    // Steps are taken from the end: reverse order here is alphabetical order there.
    names.sort_by(|a, b| b.cmp(a));
    Ok(names)
}

/// The messages up to the end mark. When the sender goes away without one, `failed` is told and the
/// stream stays open, so that nobody takes what there is for the whole.
fn until_end(
    receiver: mpsc::Receiver<Option<v1::WriteFileRequest>>,
    failed: tokio::sync::oneshot::Sender<()>,
) -> impl tokio_stream::Stream<Item = v1::WriteFileRequest> {
    let mut failed = Some(failed);
    let (messages, rest) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut receiver = receiver;
        loop {
            match receiver.recv().await {
                Some(Some(message)) => {
                    if messages.send(message).await.is_err() {
                        return;
                    }
                }
                Some(None) => return,
                None => {
                    if let Some(failed) = failed.take() {
                        let _ = failed.send(());
                    }
                    messages.closed().await;
                    return;
                }
            }
        }
    });
    ReceiverStream::new(rest)
}

/// Where a reader puts its chunks.
struct Sink {
    messages: mpsc::Sender<Option<v1::WriteFileRequest>>,
    progress: ProgressBar,
}

impl Sink {
    /// Hands on a chunk; waits while the network is behind.
    fn send(&self, offset_bytes: u64, data: Vec<u8>) -> io::Result<()> {
        self.progress.inc(data.len() as u64);
        let crc32c = crc32c::crc32c(&data);
        let chunk = v1::WriteFileChunk { offset_bytes, data: Bytes::from(data), crc32c };
        let message = v1::WriteFileRequest { message: Some(Message::Chunk(chunk)) };
        self.messages
            .blocking_send(Some(message))
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the daemon ended the write"))
    }
}

/// Sends the data of a file and leaves out its holes.
fn send_file(file: &File, sink: &Sink) -> io::Result<()> {
    let mut at = 0;
    loop {
        let data = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            // No data up to the end.
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            // The file system does not know holes: all is data.
            Err(rustix::io::Errno::INVAL) => at,
            Err(error) => return Err(error.into()),
        };
        let hole = match rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(data)) {
            Ok(hole) => hole,
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(rustix::io::Errno::INVAL) => u64::MAX,
            Err(error) => return Err(error.into()),
        };
        if send_range(file, data, hole, sink)? {
            return Ok(());
        }
        at = hole;
    }
}

/// Sends `start .. end`; true at the end of the file. Chunks end at multiples of their greatest
/// size, which the engine likes best.
fn send_range(mut file: &File, start: u64, end: u64, sink: &Sink) -> io::Result<bool> {
    file.seek(SeekFrom::Start(start))?;
    let most = CHUNK_BYTES_MAX as u64;
    let mut at = start;
    while at < end {
        let room = (most - at % most).min(end - at);
        let data = read_full(&mut file, room as usize)?;
        let len = data.len() as u64;
        if len > 0 {
            sink.send(at, data)?;
        }
        at += len;
        if len < room {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Sends a stream of unknown length.
fn send_sequential(mut source: impl io::Read, sink: &Sink) -> io::Result<()> {
    let mut at = 0;
    loop {
        let data = read_full(&mut source, CHUNK_BYTES_MAX)?;
        let len = data.len();
        if len > 0 {
            sink.send(at, data)?;
        }
        at += len as u64;
        if len < CHUNK_BYTES_MAX {
            return Ok(());
        }
    }
}

/// Reads `len` bytes, or fewer at the end.
fn read_full(source: &mut impl io::Read, len: usize) -> io::Result<Vec<u8>> {
    let mut data = Vec::with_capacity(len);
    source.by_ref().take(len as u64).read_to_end(&mut data)?;
    Ok(data)
}
