//! Commands on files and directories, save `put` and `get`.

use std::os::unix::ffi::OsStrExt as _;

use proto::v1;
use serde_json::{Value, json};

use crate::args::Command;
use crate::connect::Session;
use crate::failure::{Failure, Result, exit};
use crate::output::{Output, agree, name_fields, printable, time};
use crate::target::Target;

/// Runs one of the commands of this module.
pub(crate) async fn run(session: &Session, command: Command, output: &Output) -> Result<()> {
    match command {
        Command::Ls { target, long } => list(session, &target, long, output).await,
        Command::Stat { target, follow } => {
            let attributes = stat(session, &target, follow).await?;
            let value = attributes_json(&attributes);
            output.value(&value, || stat_text(&target, &attributes))
        }
        Command::Cat { target, offset, length } => {
            cat(session, &target, offset, length, output).await
        }
        Command::Mkdir { targets, parents, mode } => {
            for target in &targets {
                make_directory(session, target, mode, parents).await?;
            }
            Ok(())
        }
        Command::Rm { targets, recursive, force, yes } => {
            if recursive {
                let shown: Vec<_> = targets.iter().map(Target::to_string).collect();
                agree(yes, &format!("Remove {} with all in it?", shown.join(", ")))?;
            }
            remove(session, &targets, recursive, force).await
        }
        Command::Mv { source, destination, no_replace, exchange } => {
            let mode = match (no_replace, exchange) {
                (true, _) => v1::RenameMode::NoReplace,
                (_, true) => v1::RenameMode::Exchange,
                _ => v1::RenameMode::Replace,
            };
            rename(session, &source, &destination, mode).await
        }
        Command::Ln { source, destination, symbolic } => {
            link(session, &source, &destination, symbolic).await
        }
        other => Err(Failure::new(format!("{other:?} is no command on files"))),
    }
}

/// Attributes of what `target` names.
pub(crate) async fn stat(
    session: &Session,
    target: &Target,
    follow_symlink: bool,
) -> Result<v1::FileAttributes> {
    let request = v1::StatFileRequest { file: target.file(), follow_symlink };
    let reply = session.files().stat_file(request).await?.into_inner();
    reply.attributes.ok_or_else(|| Failure::new("the daemon's answer is incomplete"))
}

/// As [`stat`], where nothing being there is an answer.
pub(crate) async fn stat_if_there(
    session: &Session,
    target: &Target,
    follow_symlink: bool,
) -> Result<Option<v1::FileAttributes>> {
    match stat(session, target, follow_symlink).await {
        Ok(attributes) => Ok(Some(attributes)),
        Err(failure) if failure.code == exit::NOT_FOUND => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// User and group of this process, for what it creates.
pub(crate) fn own_identity() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// Creates a directory for the caller.
pub(crate) async fn make_directory(
    session: &Session,
    target: &Target,
    mode: u32,
    parents: bool,
) -> Result<()> {
    let (uid, gid) = own_identity();
    let attributes = Some(v1::CreateAttributes { mode, uid, gid });
    let request = v1::CreateDirectoryRequest { directory: target.file(), attributes, parents };
    session.files().create_directory(request).await?;
    Ok(())
}

/// The next entries of a directory, from `page_token` on, and the token after them.
pub(crate) async fn entries(
    session: &Session,
    directory: &Target,
) -> Result<tonic::Streaming<v1::ListDirectoryResponse>> {
    let request = v1::ListDirectoryRequest { directory: directory.file(), ..Default::default() };
    Ok(session.files().list_directory(request).await?.into_inner())
}

pub(crate) fn kind_name(kind: v1::FileKind) -> &'static str {
    match kind {
        v1::FileKind::Regular => "file",
        v1::FileKind::Directory => "directory",
        v1::FileKind::Symlink => "symlink",
        v1::FileKind::Unspecified => "unknown",
    }
}

fn attributes_json(attributes: &v1::FileAttributes) -> Value {
    json!({
        "inode": attributes.inode,
        "kind": kind_name(attributes.kind()),
        "mode": attributes.mode,
        "uid": attributes.uid,
        "gid": attributes.gid,
        "links": attributes.links,
        "size_bytes": attributes.size_bytes,
        "atime_ns": attributes.atime_ns,
        "mtime_ns": attributes.mtime_ns,
        "ctime_ns": attributes.ctime_ns,
        "btime_ns": attributes.btime_ns,
    })
}

fn stat_text(target: &Target, attributes: &v1::FileAttributes) -> String {
    [
        format!("path    {}", printable(target.to_string().as_bytes())),
        format!("kind    {}", kind_name(attributes.kind())),
        format!("size    {}", attributes.size_bytes),
        format!("mode    {}", mode_text(attributes)),
        format!("owner   {}:{}", attributes.uid, attributes.gid),
        format!("links   {}", attributes.links),
        format!("inode   {}", attributes.inode),
        format!("access  {}", time(attributes.atime_ns)),
        format!("modify  {}", time(attributes.mtime_ns)),
        format!("change  {}", time(attributes.ctime_ns)),
        format!("birth   {}", time(attributes.btime_ns)),
    ]
    .join("\n")
}

/// "drwxr-xr-x", as ls(1) shows it, without the letters for set-id and sticky: those come as octal.
fn mode_text(attributes: &v1::FileAttributes) -> String {
    let kind = match attributes.kind() {
        v1::FileKind::Directory => 'd',
        v1::FileKind::Symlink => 'l',
        _ => '-',
    };
    let bits = (0..9).rev().map(|bit| match attributes.mode >> bit & 1 {
        0 => '-',
        _ => ['x', 'w', 'r'][bit % 3],
    });
    let special = match attributes.mode >> 9 & 7 {
        0 => String::new(),
        special => format!("({special}...)"),
    };
    format!("{kind}{}{special}", bits.collect::<String>())
}

async fn list(session: &Session, target: &Target, long: bool, output: &Output) -> Result<()> {
    let attributes = stat(session, target, true).await?;
    let mut all = Vec::new();
    if attributes.kind() == v1::FileKind::Directory {
        let mut stream = entries(session, target).await?;
        while let Some(message) = stream.message().await? {
            all.extend(message.entries);
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
    } else {
        let name = target.name().unwrap_or_default().to_vec();
        all.push(v1::DirectoryEntry { name, attributes: Some(attributes) });
    }
    let row = |entry: &v1::DirectoryEntry| {
        let attributes = entry.attributes.unwrap_or_default();
        let name = printable(&entry.name);
        if !long {
            return vec![name];
        }
        vec![
            mode_text(&attributes),
            attributes.links.to_string(),
            format!("{}:{}", attributes.uid, attributes.gid),
            attributes.size_bytes.to_string(),
            time(attributes.mtime_ns),
            name,
        ]
    };
    let value = |entry: &v1::DirectoryEntry| {
        let (name, name_hex) = name_fields(&entry.name);
        let mut value = attributes_json(&entry.attributes.unwrap_or_default());
        value["name"] = json!(name);
        value["name_hex"] = json!(name_hex);
        value
    };
    let values = all.iter().map(value).collect();
    if long {
        let header = ["MODE", "LINKS", "OWNER", "SIZE", "MODIFIED", "NAME"];
        return output.table(&header, all.iter().map(row), values);
    }
    if all.is_empty() || all.iter().all(|entry| entry.name.is_empty()) {
        return output.table(&[], [], values);
    }
    output.value(&Value::Array(values), || {
        all.iter().map(|entry| printable(&entry.name)).collect::<Vec<_>>().join("\n")
    })
}

async fn cat(
    session: &Session,
    target: &Target,
    offset_bytes: u64,
    length_bytes: Option<u64>,
    output: &Output,
) -> Result<()> {
    let request = v1::ReadFileRequest { file: target.file(), offset_bytes, length_bytes };
    let mut stream = session.files().read_file(request).await?.into_inner();
    while let Some(message) = stream.message().await? {
        verify(target, &message)?;
        output.bytes(&message.data)?;
    }
    Ok(())
}

/// Checks the checksum of a part of a file.
pub(crate) fn verify(target: &Target, message: &v1::ReadFileResponse) -> Result<()> {
    if message.data.is_empty() || crc32c::crc32c(&message.data) == message.crc32c {
        return Ok(());
    }
    let at = message.offset_bytes;
    Err(Failure::new(format!("{target}: data at offset {at} was damaged on its way"))
        .code(exit::DAMAGED)
        .hint("try again"))
}

async fn remove(session: &Session, targets: &[Target], recursive: bool, force: bool) -> Result<()> {
    for target in targets {
        let request = v1::RemoveFileRequest { file: target.file(), recursive };
        match session.files().remove_file(request).await.map_err(Failure::from) {
            Err(failure) if force && failure.code == exit::NOT_FOUND => {}
            other => drop(other?),
        }
    }
    Ok(())
}

async fn rename(
    session: &Session,
    source: &Target,
    destination: &Target,
    mode: v1::RenameMode,
) -> Result<()> {
    let request = v1::RenameFileRequest {
        source: source.file(),
        destination: destination.file(),
        mode: mode.into(),
    };
    session.files().rename_file(request).await?;
    Ok(())
}

async fn link(
    session: &Session,
    source: &std::ffi::OsStr,
    destination: &Target,
    symbolic: bool,
) -> Result<()> {
    if symbolic {
        let (uid, gid) = own_identity();
        let target = source.as_bytes().to_vec();
        let request = v1::CreateSymlinkRequest { link: destination.file(), target, uid, gid };
        session.files().create_symlink(request).await?;
        return Ok(());
    }
    let source = Target::parse(source.to_owned()).map_err(Failure::usage)?;
    let request = v1::CreateLinkRequest { source: source.file(), destination: destination.file() };
    session.files().create_link(request).await?;
    Ok(())
}
