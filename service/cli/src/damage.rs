//! `damage`: the list of what is lost.

use proto::v1;
use serde_json::json;

use crate::args::DamageCommand;
use crate::connect::Session;
use crate::failure::Result;
use crate::output::{Output, agree, name_fields, printable, time};
use crate::size::show;

/// `damage ...`.
pub(crate) async fn run(session: &Session, command: DamageCommand, output: &Output) -> Result<()> {
    match command {
        DamageCommand::List { limit } => {
            let request = v1::ListDamageRequest { limit };
            let entries = session.pool().list_damage(request).await?.into_inner().entries;
            let rows = entries.iter().map(|entry| {
                let lost = match entry.length_bytes {
                    0 => String::new(),
                    bytes => format!("{} at {}", show(bytes), entry.offset_bytes),
                };
                vec![
                    named(entry),
                    lost,
                    entry.inode.to_string(),
                    time(entry.found_ns.cast_signed()),
                    printable(entry.what.as_bytes()),
                ]
            });
            let values = entries.iter().map(|entry| {
                let (path, path_hex) = name_fields(&entry.path);
                json!({
                    "subvolume": entry.subvolume,
                    "path": path,
                    "path_hex": path_hex,
                    "offset_bytes": entry.offset_bytes,
                    "length_bytes": entry.length_bytes,
                    "inode": entry.inode,
                    "version": entry.version,
                    "found_ns": entry.found_ns,
                    "what": entry.what,
                    "shard": entry.shard,
                })
            });
            output.table(&["FILE", "LOST", "INODE", "FOUND", "WHAT"], rows, values.collect())
        }
        DamageCommand::Clear { inode, yes } => {
            agree(yes, "Forget the list of what is lost?")?;
            let request = v1::ClearDamageRequest { inode: inode.unwrap_or(0) };
            let cleared = session.pool().clear_damage(request).await?.into_inner().cleared;
            output.done(&json!({ "cleared": cleared }), &format!("forgot {cleared} entries"))
        }
    }
}

/// The file or volume, as commands name it.
fn named(entry: &v1::DamageEntry) -> String {
    match (entry.subvolume.as_str(), entry.path.as_slice()) {
        ("", path) => printable(path),
        (name, []) => name.to_owned(),
        (name, path) => format!("{name}:{}", printable(path)),
    }
}
