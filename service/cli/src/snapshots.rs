//! Snapshots and clones of volumes and file trees.

use proto::v1;
use serde_json::{Value, json};

use crate::admin::{PAGE_SIZE, all_pages, given, tree_json, volume_json};
use crate::args::SnapshotCommand;
use crate::connect::Session;
use crate::failure::{Failure, Result};
use crate::files;
use crate::output::{Output, agree, name_fields, printable, time};
use crate::size::show;

pub(crate) fn snapshot_json(snapshot: &v1::Snapshot) -> Value {
    json!({
        "name": snapshot.name,
        "source": snapshot.source,
        "kind": kind_name(snapshot.kind()),
        "size_bytes": snapshot.size_bytes,
        "block_size_bytes": snapshot.block_size_bytes,
        "own_bytes": snapshot.own_bytes,
        "freed_bytes": snapshot.freed_bytes,
        "created_ns": snapshot.created_ns,
        "uuid": snapshot.uuid,
        "received_uuid": Some(&snapshot.received_uuid).filter(|uuid| !uuid.is_empty()),
    })
}

/// `snapshot ...`.
pub(crate) async fn run(
    session: &Session,
    command: SnapshotCommand,
    output: &Output,
) -> Result<()> {
    match command {
        SnapshotCommand::Create { snapshots } => create(session, snapshots, output).await,
        SnapshotCommand::List { source, usage } => list(session, source, usage, output).await,
        SnapshotCommand::Diff { base, snapshot } => diff(session, base, snapshot, output).await,
        SnapshotCommand::Delete { name, yes } => {
            agree(yes, &format!("Delete snapshot {name}?"))?;
            let request = v1::DeleteSnapshotRequest { name: name.clone() };
            session.snapshots().delete_snapshot(request).await?;
            output.done(&json!({ "deleted": name }), &format!("deleted snapshot {name}"))
        }
        SnapshotCommand::Rollback { name, snapshot, yes } => {
            agree(
                yes,
                &format!("Take {name} back to {snapshot}? What was written since is lost."),
            )?;
            let request = v1::RollbackRequest { name: name.clone(), snapshot: snapshot.clone() };
            let reply = session.snapshots().rollback(request).await?.into_inner();
            let now = given(reply.subvolume)?;
            let sentence = format!("{} {name} is what it was at {snapshot}", kind_name(now.kind()));
            output.done(&subvolume_json(session, &now).await?, &sentence)
        }
    }
}

async fn create(
    session: &Session,
    snapshots: Vec<(String, String)>,
    output: &Output,
) -> Result<()> {
    let snapshots =
        snapshots.into_iter().map(|(source, name)| v1::NewSnapshot { source, name }).collect();
    let request = v1::CreateSnapshotsRequest { snapshots };
    let made = session.snapshots().create_snapshots(request).await?.into_inner().snapshots;
    let sentences: Vec<String> =
        made.iter().map(|one| format!("made snapshot {} of {}", one.name, one.source)).collect();
    let values: Vec<Value> = made.iter().map(snapshot_json).collect();
    output.done(&Value::Array(values), &sentences.join("\n"))
}

async fn list(
    session: &Session,
    source: Option<String>,
    usage: bool,
    output: &Output,
) -> Result<()> {
    let request = v1::ListSnapshotsRequest {
        page_size: PAGE_SIZE,
        page_token: String::new(),
        source: source.unwrap_or_default(),
        include_usage: usage,
    };
    let snapshots = all_pages!(session.snapshots(), list_snapshots, request, snapshots);
    let rows = snapshots.iter().map(|one| {
        let source = if one.source.is_empty() { "-" } else { &one.source };
        vec![
            one.name.clone(),
            source.to_owned(),
            kind_name(one.kind()).to_owned(),
            match one.kind() {
                v1::SubvolumeKind::FileTree => "-".to_owned(),
                _ => show(one.size_bytes),
            },
            one.own_bytes.map_or_else(|| "-".to_owned(), show),
            one.freed_bytes.map_or_else(|| "-".to_owned(), show),
            time(one.created_ns.cast_signed()),
        ]
    });
    let values = snapshots.iter().map(snapshot_json).collect();
    output.table(&["NAME", "SOURCE", "KIND", "SIZE", "OWN", "FREES", "CREATED"], rows, values)
}

/// A line for each range or path, as they come.
async fn diff(session: &Session, base: String, snapshot: String, output: &Output) -> Result<()> {
    let base = if base == "-" { String::new() } else { base };
    let request = v1::DiffSnapshotsRequest { base, snapshot, page_token: String::new() };
    let mut stream = session.snapshots().diff_snapshots(request).await?.into_inner();
    while let Some(message) = stream.message().await? {
        for range in message.ranges {
            let what = if range.has_data { "data" } else { "zeroes" };
            let value = json!({
                "offset_bytes": range.offset_bytes,
                "length_bytes": range.length_bytes,
                "has_data": range.has_data,
            });
            let line = format!("{} {} {what}", range.offset_bytes, range.length_bytes);
            output.item(&value, &line)?;
        }
        for path in message.paths {
            let (sign, change) = match path.kind() {
                v1::ChangeKind::Added => ("+", "added"),
                v1::ChangeKind::Removed => ("-", "removed"),
                v1::ChangeKind::Modified | v1::ChangeKind::Unspecified => ("M", "modified"),
            };
            let (name, hex) = name_fields(&path.path);
            let value = json!({
                "change": change,
                "path": name,
                "path_hex": hex,
                "inode": path.inode,
                "kind": files::kind_name(path.file_kind()),
            });
            output.item(&value, &format!("{sign} {}", printable(&path.path)))?;
        }
    }
    Ok(())
}

/// `clone`.
pub(crate) async fn clone(
    session: &Session,
    source: String,
    name: String,
    output: &Output,
) -> Result<()> {
    let request = v1::CreateCloneRequest { source: source.clone(), name };
    let reply = session.snapshots().create_clone(request).await?.into_inner();
    let made = given(reply.subvolume)?;
    let sentence = format!("made {} {} of {source}", kind_name(made.kind()), made.name);
    output.done(&subvolume_json(session, &made).await?, &sentence)
}

fn kind_name(kind: v1::SubvolumeKind) -> &'static str {
    match kind {
        v1::SubvolumeKind::FileTree => "file tree",
        v1::SubvolumeKind::Volume | v1::SubvolumeKind::Unspecified => "volume",
    }
}

/// As `volume show` and `fs list` tell it.
async fn subvolume_json(session: &Session, made: &v1::Subvolume) -> Result<Value> {
    if made.kind() == v1::SubvolumeKind::FileTree {
        return Ok(tree_json(made));
    }
    let request = v1::GetVolumeRequest { name: made.name.clone(), include_usage: false };
    let reply = session.volumes().get_volume(request).await?.into_inner();
    Ok(volume_json(&given(reply.volume)?))
}
