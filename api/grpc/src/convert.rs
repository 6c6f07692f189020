//! Engine types as messages.

use std::fmt::Write as _;

use engine_store::api::{
    Attributes, ChangeKind, ChangedPath, CreateAttributes, FileKind, SetOptions, SubvolumeInfo,
    SubvolumeKind, SubvolumeOptions, Usage,
};
use engine_store::error::StoreError;
use engine_transfer::ResumeToken;
use proto::v1;
use tonic::Status;

use crate::status::bad_field;

fn file_kind(from: FileKind) -> v1::FileKind {
    match from {
        FileKind::File => v1::FileKind::Regular,
        FileKind::Directory => v1::FileKind::Directory,
        FileKind::Symlink => v1::FileKind::Symlink,
    }
}

pub(crate) fn changed_path(from: ChangedPath) -> v1::ChangedPath {
    let kind = match from.kind {
        ChangeKind::Added => v1::ChangeKind::Added,
        ChangeKind::Removed => v1::ChangeKind::Removed,
        ChangeKind::Modified => v1::ChangeKind::Modified,
    };
    v1::ChangedPath {
        kind: kind.into(),
        path: from.path,
        inode: from.inode.0,
        file_kind: file_kind(from.file_kind).into(),
    }
}

pub(crate) fn attributes(from: &Attributes) -> v1::FileAttributes {
    v1::FileAttributes {
        inode: from.inode.0,
        kind: file_kind(from.kind).into(),
        mode: from.mode,
        uid: from.uid,
        gid: from.gid,
        links: from.links,
        size_bytes: from.size,
        atime_ns: from.atime_ns,
        mtime_ns: from.mtime_ns,
        ctime_ns: from.ctime_ns,
        btime_ns: from.btime_ns,
    }
}

/// Attributes of something new, checked.
pub(crate) fn create_attributes(
    field: &str,
    from: Option<&v1::CreateAttributes>,
) -> Result<CreateAttributes, Status> {
    let from = from.ok_or_else(|| bad_field(field, "must be given"))?;
    check_mode(&format!("{field}.mode"), from.mode)?;
    Ok(CreateAttributes { mode: from.mode, uid: from.uid, gid: from.gid })
}

/// Checks permission bits.
pub(crate) fn check_mode(field: &str, mode: u32) -> Result<(), Status> {
    if mode <= 0o7777 {
        return Ok(());
    }
    Err(bad_field(field, format!("{mode:#o} is more than permission bits, 0 to 0o7777")))
}

/// The options that a client asks for.
pub(crate) fn options_asked(
    asked: Option<v1::SubvolumeOptions>,
) -> Result<SubvolumeOptions, Status> {
    let asked = asked.unwrap_or_default();
    let given = |set: bool| set.then_some(());
    let set = set_options(
        given(!asked.compression.is_empty()).map(|()| asked.compression.as_str()),
        given(asked.compression_frame_bytes != 0).map(|()| asked.compression_frame_bytes),
        "options.",
    )?;
    Ok(set.apply(SubvolumeOptions::default()))
}

/// The change of options that a client asks for, in fields that begin with `prefix`.
pub(crate) fn set_options(
    compression: Option<&str>,
    frame_bytes: Option<u32>,
    prefix: &str,
) -> Result<SetOptions, Status> {
    let bad = |field: &str, error: StoreError| {
        let why = error.to_string();
        let why = why.strip_prefix("invalid argument: ").unwrap_or(&why);
        bad_field(&format!("{prefix}{field}"), why)
    };
    let parsed = compression.map(str::parse).transpose();
    let set =
        SetOptions { compression: parsed.map_err(|error| bad("compression", error))?, frame_bytes };
    let checked = set.apply(SubvolumeOptions::default()).check();
    checked.map_err(|error| bad("compression_frame_bytes", error))?;
    Ok(set)
}

fn options(from: SubvolumeOptions) -> v1::SubvolumeOptions {
    v1::SubvolumeOptions {
        compression: from.compression.to_string(),
        compression_frame_bytes: from.frame_bytes,
    }
}

fn used_bytes(usage: Usage) -> u64 {
    usage.own_bytes.saturating_add(usage.shared_bytes)
}

pub(crate) fn volume(from: &SubvolumeInfo, usage: Option<Usage>) -> v1::Volume {
    v1::Volume {
        id: from.id.0,
        name: from.name.clone(),
        size_bytes: from.size_bytes,
        block_size_bytes: from.block_size,
        created_ns: from.created_ns,
        uuid: uuid(&from.uuid),
        used_bytes: usage.map(used_bytes),
        exported_by: String::new(),
        saved_bytes: usage.map(|usage| usage.saved_bytes),
        options: Some(options(from.options)),
        receiving: receiving(from),
    }
}

fn receiving(from: &SubvolumeInfo) -> Option<v1::Receiving> {
    let token = ResumeToken::of(from)?;
    // Of a tree it is a place among its inodes, which tells nobody anything.
    let position_bytes = (from.kind == SubvolumeKind::Volume).then_some(token.position);
    Some(v1::Receiving { resume_token: token.to_string(), position_bytes })
}

/// `source`: the name of what it was made of, if that is there.
pub(crate) fn snapshot(from: &SubvolumeInfo, source: Option<&str>) -> v1::Snapshot {
    v1::Snapshot {
        id: from.id.0,
        name: from.name.clone(),
        source_id: from.origin.map_or(0, |origin| origin.0),
        source: source.unwrap_or_default().to_owned(),
        size_bytes: from.size_bytes,
        block_size_bytes: from.block_size,
        created_ns: from.created_ns,
        uuid: uuid(&from.uuid),
        own_bytes: None,
        freed_bytes: None,
        kind: kind(from.kind).into(),
        received_uuid: from.received.map(|received| uuid(&received.source)).unwrap_or_default(),
    }
}

fn kind(from: SubvolumeKind) -> v1::SubvolumeKind {
    match from {
        SubvolumeKind::Volume => v1::SubvolumeKind::Volume,
        SubvolumeKind::FileTree => v1::SubvolumeKind::FileTree,
    }
}

pub(crate) fn subvolume(from: &SubvolumeInfo, usage: Option<Usage>) -> v1::Subvolume {
    v1::Subvolume {
        id: from.id.0,
        name: from.name.clone(),
        kind: kind(from.kind).into(),
        created_ns: from.created_ns,
        uuid: uuid(&from.uuid),
        used_bytes: usage.map(used_bytes),
        read_only: from.read_only,
        saved_bytes: usage.map(|usage| usage.saved_bytes),
        options: Some(options(from.options)),
        receiving: receiving(from),
    }
}

/// The text form of a UUID (RFC 9562, section 4).
pub(crate) fn uuid(bytes: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_has_its_text_form() {
        let bytes = std::array::from_fn(|at| at as u8 * 17);
        assert_eq!(uuid(&bytes), "00112233-4455-6677-8899-aabbccddeeff");
    }
}
