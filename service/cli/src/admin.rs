//! Commands on the pool, volumes, file trees and exports.

use proto::v1;
use serde_json::{Value, json};

use crate::args::{ExportCommand, FsCommand, FsckArguments, PoolCommand, VolumeCommand};
use crate::connect::Session;
use crate::failure::{Failure, Result};
use crate::offline;
use crate::options::{options_json, ratio};
use crate::output::{Output, agree, time};
use crate::resize;
use crate::size::show;

/// Entries asked for at a time: the most that the server gives.
pub(crate) const PAGE_SIZE: u32 = 1000;

/// The part of an answer that the server always fills.
pub(crate) fn given<T>(part: Option<T>) -> Result<T> {
    part.ok_or_else(|| Failure::new("the daemon's answer is incomplete; compare versions"))
}

/// Collects all pages of a list call.
macro_rules! all_pages {
    ($client:expr, $call:ident, $request:expr, $field:ident) => {{
        let mut client = $client;
        let mut request = $request;
        let mut all = Vec::new();
        loop {
            let page = client.$call(request.clone()).await?.into_inner();
            all.extend(page.$field);
            if page.next_page_token.is_empty() {
                break all;
            }
            if page.next_page_token == request.page_token {
                return Err(Failure::new("the daemon's list does not end; compare versions"));
            }
            request.page_token = page.next_page_token;
        }
    }};
}
pub(crate) use all_pages;

/// `pool status` and `pool list`.
pub(crate) async fn pool(session: &Session, command: PoolCommand, output: &Output) -> Result<()> {
    match command {
        PoolCommand::Format(_) => Err(Failure::new("pool format does not use the daemon")),
        PoolCommand::Status => {
            let reply = session.pool().get_pool_status(v1::GetPoolStatusRequest {}).await?;
            let status = given(reply.into_inner().status)?;
            output.value(&pool_json(&status), || pool_text(&status))
        }
        PoolCommand::Resize { member, size, no_wait } => {
            resize::start(session, &member, size, no_wait, output).await
        }
        PoolCommand::ResizeStatus => resize::status(session, output).await,
        PoolCommand::ResizeCancel => resize::cancel(session, output).await,
        PoolCommand::List => {
            let members = members(session).await?;
            let rows = members.iter().map(|member| {
                let size = show(member.size_bytes);
                let block_size = member.block_size_bytes.to_string();
                vec![
                    member.index.to_string(),
                    member.path.clone(),
                    size,
                    block_size,
                    member.uuid.clone(),
                ]
            });
            let values = members.iter().map(|member| {
                json!({
                    "index": member.index,
                    "path": member.path,
                    "size_bytes": member.size_bytes,
                    "block_size_bytes": member.block_size_bytes,
                    "uuid": member.uuid,
                })
            });
            let header = ["INDEX", "DEVICE", "SIZE", "BLOCK", "UUID"];
            output.table(&header, rows, values.collect())
        }
    }
}

/// The devices of the pool.
pub(crate) async fn members(session: &Session) -> Result<Vec<v1::Member>> {
    let request = v1::ListMembersRequest { page_size: PAGE_SIZE, page_token: String::new() };
    Ok(all_pages!(session.pool(), list_members, request, members))
}

fn pool_json(status: &v1::PoolStatus) -> Value {
    json!({
        "uuid": status.uuid,
        "shard_count": status.shard_count,
        "member_count": status.member_count,
        "capacity_bytes": status.capacity_bytes,
        "data_bytes": status.data_bytes,
        "index_bytes": status.index_bytes,
        "journal_bytes": status.journal_bytes,
        "fragmented_bytes": status.fragmented_bytes,
        "available_bytes": status.available_bytes,
        "inodes": status.inodes,
    })
}

fn pool_text(status: &v1::PoolStatus) -> String {
    [
        format!("pool        {}", status.uuid),
        format!("devices     {}", status.member_count),
        format!("shards      {}", status.shard_count),
        format!("capacity    {}", show(status.capacity_bytes)),
        format!("available   {}", show(status.available_bytes)),
        format!("data        {}", show(status.data_bytes)),
        format!("index       {}", show(status.index_bytes)),
        format!("journal     {}", show(status.journal_bytes)),
        format!("fragmented  {}", show(status.fragmented_bytes)),
        format!("files       {}", status.inodes),
    ]
    .join("\n")
}

pub(crate) fn volume_json(volume: &v1::Volume) -> Value {
    json!({
        "name": volume.name,
        "size_bytes": volume.size_bytes,
        "block_size_bytes": volume.block_size_bytes,
        "used_bytes": volume.used_bytes,
        "saved_bytes": volume.saved_bytes,
        "options": options_json(volume.options.as_ref()),
        "created_ns": volume.created_ns,
        "uuid": volume.uuid,
        "receiving": receiving_json(volume.receiving.as_ref()),
    })
}

/// `volume ...`.
pub(crate) async fn volume(
    session: &Session,
    command: VolumeCommand,
    output: &Output,
) -> Result<()> {
    match command {
        VolumeCommand::Create { name, size, block_size, storage } => {
            let request = v1::CreateVolumeRequest {
                name,
                size_bytes: size,
                block_size_bytes: if block_size == "512" { 512 } else { 4096 },
                options: storage.options(),
            };
            let reply = session.volumes().create_volume(request).await?.into_inner();
            let volume = given(reply.volume)?;
            let sentence = format!("created volume {} of {}", volume.name, show(volume.size_bytes));
            output.done(&volume_json(&volume), &sentence)
        }
        VolumeCommand::List { usage } => list_volumes(session, usage, output).await,
        VolumeCommand::Resize { name, size, allow_shrink } => {
            let request = v1::ResizeVolumeRequest { name, size_bytes: size, allow_shrink };
            let reply = session.volumes().resize_volume(request).await?.into_inner();
            let volume = given(reply.volume)?;
            let sentence = format!("volume {} has {} now", volume.name, show(volume.size_bytes));
            output.done(&volume_json(&volume), &sentence)
        }
        VolumeCommand::Delete { name, yes } => {
            agree(yes, &format!("Delete volume {name} and its data?"))?;
            let request = v1::DeleteVolumeRequest { name: name.clone() };
            session.volumes().delete_volume(request).await?;
            output.done(&json!({ "deleted": name }), &format!("deleted volume {name}"))
        }
    }
}

async fn list_volumes(session: &Session, usage: bool, output: &Output) -> Result<()> {
    let request = v1::ListVolumesRequest {
        page_size: PAGE_SIZE,
        page_token: String::new(),
        include_usage: usage,
    };
    let volumes = all_pages!(session.volumes(), list_volumes, request, volumes);
    let rows = volumes.iter().map(|volume| {
        vec![
            listed_name(&volume.name, volume.receiving.as_ref()),
            show(volume.size_bytes),
            volume.block_size_bytes.to_string(),
            volume.used_bytes.map_or_else(|| "-".to_owned(), show),
            ratio(volume.used_bytes, volume.saved_bytes),
            time(volume.created_ns.cast_signed()),
        ]
    });
    let values = volumes.iter().map(volume_json).collect();
    output.table(&["NAME", "SIZE", "BLOCK", "USED", "RATIO", "CREATED"], rows, values)
}

fn receiving_json(receiving: Option<&v1::Receiving>) -> Option<Value> {
    receiving.map(|receiving| {
        json!({
            "resume_token": receiving.resume_token,
            "position_bytes": receiving.position_bytes,
        })
    })
}

/// A name as lists show it.
fn listed_name(name: &str, receiving: Option<&v1::Receiving>) -> String {
    let note = if receiving.is_some() { " (being received)" } else { "" };
    format!("{name}{note}")
}

pub(crate) fn tree_json(tree: &v1::Subvolume) -> Value {
    json!({
        "name": tree.name,
        "used_bytes": tree.used_bytes,
        "saved_bytes": tree.saved_bytes,
        "options": options_json(tree.options.as_ref()),
        "created_ns": tree.created_ns,
        "uuid": tree.uuid,
        "receiving": receiving_json(tree.receiving.as_ref()),
    })
}

/// `fs ...`.
pub(crate) async fn file_system(
    session: &Session,
    command: FsCommand,
    output: &Output,
) -> Result<()> {
    match command {
        FsCommand::Create { name, storage } => {
            let request = v1::CreateSubvolumeRequest { name, options: storage.options() };
            let reply = session.subvolumes().create_subvolume(request).await?.into_inner();
            let tree = given(reply.subvolume)?;
            output.done(&tree_json(&tree), &format!("created file tree {}", tree.name))
        }
        FsCommand::List { usage } => {
            let request = v1::ListSubvolumesRequest {
                page_size: PAGE_SIZE,
                page_token: String::new(),
                kind: v1::SubvolumeKind::FileTree.into(),
                include_usage: usage,
            };
            let trees = all_pages!(session.subvolumes(), list_subvolumes, request, subvolumes);
            // Snapshots are listed as such.
            let trees: Vec<_> = trees.into_iter().filter(|tree| !tree.read_only).collect();
            let rows = trees.iter().map(|tree| {
                let used = tree.used_bytes.map_or_else(|| "-".to_owned(), show);
                let ratio = ratio(tree.used_bytes, tree.saved_bytes);
                let name = listed_name(&tree.name, tree.receiving.as_ref());
                vec![name, used, ratio, time(tree.created_ns.cast_signed())]
            });
            let values = trees.iter().map(tree_json).collect();
            output.table(&["NAME", "USED", "RATIO", "CREATED"], rows, values)
        }
        FsCommand::Delete { name, yes } => {
            agree(yes, &format!("Delete file tree {name} and all files in it?"))?;
            let request = v1::DeleteSubvolumeRequest { name: name.clone() };
            session.subvolumes().delete_subvolume(request).await?;
            output.done(&json!({ "deleted": name }), &format!("deleted file tree {name}"))
        }
    }
}

fn export_json(export: &v1::Export) -> Value {
    let namespaces = export
        .namespaces
        .iter()
        .map(|namespace| json!({ "nsid": namespace.nsid, "volume": namespace.volume }));
    json!({
        "nqn": export.nqn,
        "namespaces": namespaces.collect::<Vec<_>>(),
        "allow_any_host": export.allow_any_host,
        "host_nqns": export.host_nqns,
        "listen_addresses": export.listen_addresses,
    })
}

/// `export ...`.
pub(crate) async fn export(
    session: &Session,
    command: ExportCommand,
    output: &Output,
) -> Result<()> {
    match command {
        ExportCommand::Create { nqn, volumes, allow_any_host, hosts } => {
            let namespaces = volumes
                .into_iter()
                .map(|(nsid, volume)| v1::ExportNamespace { nsid, volume })
                .collect();
            let request =
                v1::CreateExportRequest { nqn, namespaces, allow_any_host, host_nqns: hosts };
            let reply = session.exports().create_export(request).await?.into_inner();
            let export = given(reply.export)?;
            let at = export.listen_addresses.join(", ");
            output.done(&export_json(&export), &format!("exported {} at {at}", export.nqn))
        }
        ExportCommand::List => list_exports(session, output).await,
        ExportCommand::Delete { nqn, yes } => {
            agree(yes, &format!("Disconnect all hosts of {nqn} and delete it?"))?;
            let request = v1::DeleteExportRequest { nqn: nqn.clone() };
            session.exports().delete_export(request).await?;
            output.done(&json!({ "deleted": nqn }), &format!("deleted export {nqn}"))
        }
    }
}

async fn list_exports(session: &Session, output: &Output) -> Result<()> {
    let request = v1::ListExportsRequest { page_size: PAGE_SIZE, page_token: String::new() };
    let exports = all_pages!(session.exports(), list_exports, request, exports);
    let rows = exports.iter().map(|export| {
        let volumes: Vec<_> = export
            .namespaces
            .iter()
            .map(|namespace| format!("{}={}", namespace.nsid, namespace.volume))
            .collect();
        let hosts = match export.allow_any_host {
            true => "any".to_owned(),
            false => export.host_nqns.join(" "),
        };
        vec![export.nqn.clone(), volumes.join(" "), hosts, export.listen_addresses.join(" ")]
    });
    let values = exports.iter().map(export_json).collect();
    output.table(&["NQN", "VOLUMES", "HOSTS", "ADDRESSES"], rows, values)
}

/// `fsck --online`.
pub(crate) async fn check(
    session: &Session,
    arguments: &FsckArguments,
    output: &Output,
) -> Result<()> {
    let FsckArguments { verify_data, resume, .. } = *arguments;
    let request = v1::CheckPoolRequest { verify_data, resume };
    let mut reply = session.pool().check_pool(request).await?.into_inner();
    if arguments.repair && reply.problem_count > 0 {
        offline::agree_to_repair(&reply.problems, reply.problem_count, arguments.yes, output)?;
        let done = session.pool().repair_pool(v1::RepairPoolRequest {}).await?.into_inner();
        reply = session.pool().check_pool(request).await?.into_inner();
        reply.notes.extend(done.repairs);
    }
    let checked = reply.checked.iter().map(|entry| (entry.name.as_str(), entry.count));
    offline::report(&reply.problems, reply.problem_count, &reply.notes, checked, output)
}

/// `stats`.
pub(crate) async fn stats(session: &Session, output: &Output) -> Result<()> {
    let stats = session.stats().get_stats(v1::GetStatsRequest {}).await?.into_inner();
    let info = session.stats().get_server_info(v1::GetServerInfoRequest {}).await?.into_inner();
    let value = json!({
        "version": info.version,
        "pool_uuid": info.pool_uuid,
        "started_ns": info.started_ns,
        "shards": stats.shards.iter().map(shard_json).collect::<Vec<_>>(),
    });
    output.value(&value, || stats_text(&info, &stats.shards))
}

fn shard_json(shard: &v1::ShardStats) -> Value {
    let counters =
        shard.counters.iter().map(|counter| (counter.name.clone(), json!(counter.value)));
    json!({
        "shard": shard.shard,
        "capacity_bytes": shard.capacity_bytes,
        "data_bytes": shard.data_bytes,
        "index_bytes": shard.index_bytes,
        "journal_bytes": shard.journal_bytes,
        "fragmented_bytes": shard.fragmented_bytes,
        "available_bytes": shard.available_bytes,
        "unassigned_bytes": shard.unassigned_bytes,
        "inodes": shard.inodes,
        "counters": Value::Object(counters.collect()),
    })
}

fn stats_text(info: &v1::GetServerInfoResponse, shards: &[v1::ShardStats]) -> String {
    let mut lines = vec![
        format!("version  {}", info.version),
        format!("pool     {}", info.pool_uuid),
        format!("started  {}", time(info.started_ns.cast_signed())),
    ];
    for shard in shards {
        lines.push(String::new());
        lines.push(format!("shard {}", shard.shard));
        for (name, bytes) in [
            ("capacity", shard.capacity_bytes),
            ("available", shard.available_bytes),
            ("unassigned", shard.unassigned_bytes),
            ("data", shard.data_bytes),
            ("index", shard.index_bytes),
            ("journal", shard.journal_bytes),
            ("fragmented", shard.fragmented_bytes),
        ] {
            lines.push(format!("  {name:<32} {}", show(bytes)));
        }
        lines.push(format!("  {:<32} {}", "inodes", shard.inodes));
        for counter in &shard.counters {
            lines.push(format!("  {:<32} {}", counter.name, counter.value));
        }
    }
    lines.join("\n")
}
