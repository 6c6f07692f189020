//! `dump`: what is on the devices of a pool, for people who look for a fault. Only reads them, needs no
//! daemon, and goes as far as the devices can be read.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use engine_embed::ImageError;
use engine_store::dump::{self, Item, Range, View};
use engine_store::key::{Position, Tree};
use serde_json::{Map, Value, json};

use crate::failure::{Failure, Result, exit};
use crate::output::{Output, name_fields, printable};
use crate::target::Target;

/// `dump ...`.
#[derive(Args, Debug)]
pub(crate) struct DumpArguments {
    #[command(subcommand)]
    what: What,
    /// Most entries to show
    #[arg(long, global = true, default_value = "1000", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
}

/// Which structure.
#[derive(Clone, Debug, Subcommand)]
enum What {
    /// Superblock copies of each device, and what they say
    Superblock {
        /// Devices or files
        #[arg(required = true, value_name = "DEVICE")]
        devices: Vec<PathBuf>,
    },
    /// Journal entries of a shard
    Journal {
        #[command(flatten)]
        shard: OfShard,
        /// First entry number
        #[arg(long, default_value = "0")]
        from: u64,
        /// Last entry number
        #[arg(long, default_value_t = u64::MAX)]
        to: u64,
        /// Also shows what each entry says
        #[arg(long)]
        records: bool,
    },
    /// Roots of a shard's trees
    Roots {
        #[command(flatten)]
        shard: OfShard,
    },
    /// Keys of a tree, as they are after recovery
    Tree {
        /// extents, inodes, dirents, xattrs, subvolumes, names, operations, buckets, counters,
        /// regions or damage
        #[arg(value_parser = tree)]
        tree: Tree,
        #[command(flatten)]
        shard: OfShard,
        /// Level: 0 for leaves
        #[arg(long, default_value = "0")]
        level: u8,
        /// First position: INODE[:OFFSET[:VERSION]]
        #[arg(long, value_parser = first_position, default_value = "0")]
        from: Position,
        /// Last position: INODE[:OFFSET[:VERSION]]
        #[arg(long, value_parser = last_position, default_value = "max")]
        to: Position,
        /// Shows the nodes of the level instead of their keys
        #[arg(long)]
        nodes: bool,
    },
    /// The node at a block of a device, without looking at anything else
    Node {
        /// Device or file
        device: PathBuf,
        /// Block of 4096 bytes where it begins
        #[arg(long)]
        block: u64,
    },
    /// The summary of a bucket of a device
    Summary {
        /// Device or file
        device: PathBuf,
        /// Number of the bucket
        #[arg(long)]
        bucket: u32,
    },
    /// Buckets of a shard: checkpoints and what the journal says after them
    Buckets {
        #[command(flatten)]
        shard: OfShard,
    },
    /// Counters of a shard
    Counters {
        #[command(flatten)]
        shard: OfShard,
    },
    /// Which shard has which region
    Regions {
        /// Devices or files of the pool
        #[arg(required = true, value_name = "DEVICE")]
        devices: Vec<PathBuf>,
    },
    /// Logged operations of all shards that are not done
    Operations {
        /// Devices or files of the pool
        #[arg(required = true, value_name = "DEVICE")]
        devices: Vec<PathBuf>,
    },
    /// An inode and its extents
    Inode {
        /// Its number
        inode: u64,
        /// Devices or files of the pool
        #[arg(required = true, value_name = "DEVICE")]
        devices: Vec<PathBuf>,
        /// Only this version of it
        #[arg(long)]
        version: Option<u32>,
    },
    /// Writes a metadata image of the pool for a bug report: without data, names scrubbed
    Image {
        /// New or empty directory for it: a sparse file member-INDEX.img for each member
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Devices or files of the pool
        #[arg(required = true, value_name = "DEVICE")]
        devices: Vec<PathBuf>,
    },
    /// The way from a path to its inode, and the inode; NAME:/ for a volume
    Path {
        /// NAME:/PATH
        #[arg(value_parser = Target::parser())]
        target: Target,
        /// Devices or files of the pool
        #[arg(required = true, value_name = "DEVICE")]
        devices: Vec<PathBuf>,
    },
}

/// A shard of a pool.
#[derive(Args, Clone, Debug)]
struct OfShard {
    /// Shard
    #[arg(long, default_value = "0")]
    shard: u16,
    /// Devices or files of the pool; as many of them as there are
    #[arg(required = true, value_name = "DEVICE")]
    devices: Vec<PathBuf>,
}

impl What {
    fn devices(&self) -> Vec<PathBuf> {
        match self {
            Self::Superblock { devices }
            | Self::Regions { devices }
            | Self::Operations { devices }
            | Self::Inode { devices, .. }
            | Self::Image { devices, .. }
            | Self::Path { devices, .. } => devices.clone(),
            Self::Journal { shard, .. }
            | Self::Roots { shard }
            | Self::Tree { shard, .. }
            | Self::Buckets { shard }
            | Self::Counters { shard } => shard.devices.clone(),
            Self::Node { device, .. } | Self::Summary { device, .. } => vec![device.clone()],
        }
    }
}

/// `dump`.
pub(crate) fn run(arguments: &DumpArguments, output: &Output) -> Result<u8> {
    if let What::Image { out, devices } = &arguments.what {
        let items = engine_embed::image(devices, out).map_err(|error| match error {
            ImageError::NotEmpty { .. } => Failure::new(error.to_string()).code(exit::REFUSED),
            ImageError::Failed(text) => Failure::new(text),
        })?;
        return print(&items, output);
    }
    let (what, limit) = (arguments.what.clone(), arguments.limit as usize);
    let items = engine_embed::look(&what.devices(), async move |queues| {
        let found = match &what {
            What::Superblock { .. } => {
                let mut items = Vec::new();
                for queue in &queues {
                    items.push(dump::superblock(&**queue).await);
                }
                Ok(items)
            }
            What::Node { block, .. } => dump::node(&*queues[0], *block, limit).await,
            What::Summary { bucket, .. } => dump::summary(&*queues[0], *bucket, limit).await,
            other => match View::open(&queues).await {
                Ok(view) => of_pool(&view, other, limit).await,
                Err(error) => Err(error),
            },
        };
        found.map_err(|error| error.to_string())
    })
    .map_err(Failure::new)?;
    print(&items, output)
}

fn print(items: &[Item], output: &Output) -> Result<u8> {
    let value = Value::Array(items.iter().map(to_json).collect());
    output.value(&value, || {
        items.iter().map(|item| to_text(item, 0)).collect::<Vec<_>>().join("\n")
    })?;
    Ok(exit::OK)
}

async fn of_pool(view: &View, what: &What, limit: usize) -> engine_store::Result<Vec<Item>> {
    let mut items: Vec<Item> = view.notes.iter().map(|text| note(text)).collect();
    match what {
        What::Journal { shard, from, to, records } => {
            items.extend(view.journal(shard.shard, (*from, *to), *records, limit).await?);
        }
        What::Operations { .. } => {
            for shard in 0..view.superblock.shard_count() {
                match view.shard(shard).await {
                    Ok(found) => {
                        items.extend(found.notes.iter().map(|text| note(text)));
                        items.extend(found.operations(limit).await?);
                    }
                    Err(error) => items.push(note(&format!("shard {shard}: {error}"))),
                }
            }
        }
        What::Inode { inode, version, .. } => {
            items.extend(view.inode(*inode, *version, limit).await?);
        }
        What::Path { target, .. } => {
            items.extend(view.path(&target.subvolume, &target.path, limit).await?);
        }
        other => items.extend(of_shard(view, other, limit).await?),
    }
    Ok(items)
}

async fn of_shard(view: &View, what: &What, limit: usize) -> engine_store::Result<Vec<Item>> {
    let number = match what {
        What::Roots { shard }
        | What::Tree { shard, .. }
        | What::Buckets { shard }
        | What::Counters { shard } => shard.shard,
        _ => 0,
    };
    let shard = view.shard(number).await?;
    let mut items: Vec<Item> = shard.notes.iter().map(|text| note(text)).collect();
    items.extend(match what {
        What::Roots { .. } => shard.roots(),
        What::Tree { tree, level, from, to, nodes, .. } => {
            let range = Range { from: *from, to: *to };
            match nodes {
                true => shard.nodes(*tree, *level, range, limit).await?,
                false => shard.tree(*tree, *level, range, limit).await?,
            }
        }
        What::Buckets { .. } => shard.buckets(limit).await?,
        What::Counters { .. } => shard.counters(limit).await?,
        _ => shard.tree(Tree::Regions, 0, Range::ALL, limit).await?,
    });
    Ok(items)
}

fn note(text: &str) -> Item {
    Item::Map(vec![("note", Item::Text(text.to_owned()))])
}

fn tree(name: &str) -> std::result::Result<Tree, String> {
    dump::tree_of(name).map_err(|error| error.to_string())
}

fn position(text: &str, rest: Position) -> std::result::Result<Position, String> {
    if text == "max" {
        return Ok(Position::MAX);
    }
    let wrong = || format!("'{text}' must be INODE[:OFFSET[:VERSION]], as in 12:0:1");
    let parts: Vec<&str> = text.split(':').collect();
    if parts.len() > 3 {
        return Err(wrong());
    }
    let part = |index: usize| parts.get(index).map(|part| part.parse::<u64>()).transpose();
    let snapshot = match parts.get(2) {
        Some(part) => part.parse::<u32>().map_err(|_| wrong())?,
        None => rest.snapshot,
    };
    Ok(Position {
        inode: part(0).map_err(|_| wrong())?.ok_or_else(wrong)?,
        offset: part(1).map_err(|_| wrong())?.unwrap_or(rest.offset),
        snapshot,
    })
}

fn first_position(text: &str) -> std::result::Result<Position, String> {
    position(text, Position::MIN)
}

fn last_position(text: &str) -> std::result::Result<Position, String> {
    position(text, Position::MAX)
}

fn to_json(item: &Item) -> Value {
    match item {
        Item::Number(number) => json!(number),
        Item::Signed(number) => json!(number),
        Item::Flag(flag) => json!(flag),
        Item::Text(text) => json!(text),
        Item::Name(name) => match name_fields(name) {
            (text, None) => json!(text),
            (text, Some(hex)) => json!({ "text": text, "hex": hex }),
        },
        Item::Uuid(uuid) => json!(engine_embed::members::uuid_text(uuid)),
        Item::List(items) => Value::Array(items.iter().map(to_json).collect()),
        Item::Map(fields) => {
            let pairs = fields.iter().map(|(name, item)| ((*name).to_owned(), to_json(item)));
            Value::Object(pairs.collect::<Map<_, _>>())
        }
    }
}

/// One line for what is simple, and one more, indented, for each entry of a list in it.
fn to_text(item: &Item, indent: usize) -> String {
    let mut line = " ".repeat(indent);
    let mut below = Vec::new();
    inline(item, &mut line, &mut below);
    for (name, items) in below {
        line.push_str(&format!("\n{}{name}:", " ".repeat(indent + 2)));
        for item in items {
            line.push('\n');
            line.push_str(&to_text(item, indent + 4));
        }
    }
    line
}

fn inline<'i>(item: &'i Item, line: &mut String, below: &mut Vec<(&'static str, &'i [Item])>) {
    match item {
        Item::Number(number) => line.push_str(&number.to_string()),
        Item::Signed(number) => line.push_str(&number.to_string()),
        Item::Flag(flag) => line.push_str(if *flag { "yes" } else { "no" }),
        Item::Text(text) => line.push_str(&printable(text.as_bytes())),
        Item::Name(name) => line.push_str(&format!("{:?}", printable(name))),
        Item::Uuid(uuid) => line.push_str(&engine_embed::members::uuid_text(uuid)),
        Item::List(items) => below.push(("entries", items)),
        Item::Map(fields) => {
            let mut first = true;
            for (name, field) in fields {
                if let Item::List(items) = field {
                    below.push((name, items));
                    continue;
                }
                if !std::mem::replace(&mut first, false) {
                    line.push(' ');
                }
                line.push_str(name);
                match field {
                    Item::Map(_) => {
                        line.push('(');
                        inline(field, line, below);
                        line.push(')');
                    }
                    _ => {
                        line.push('=');
                        inline(field, line, below);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_parsed() {
        assert_eq!(first_position("7"), Ok(Position::new(7, 0, 0)));
        assert_eq!(last_position("7:2"), Ok(Position::new(7, 2, u32::MAX)));
        assert_eq!(last_position("max"), Ok(Position::MAX));
        for bad in ["", "a", "1:2:3:4", "1:b", "1:2:4294967296"] {
            assert!(first_position(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn items_are_lines_and_json() {
        let item = Item::Map(vec![
            ("inode", 5_u64.into()),
            ("name", Item::Name(b"a\x1b\xff".to_vec())),
            ("pointer", Item::Map(vec![("min", "0:0:0".into())])),
            ("copies", Item::List(vec![Item::Map(vec![("state", "good".into())])])),
        ]);
        let text =
            "inode=5 name=\"a\u{fffd}\u{fffd}\" pointer(min=0:0:0)\n  copies:\n    state=good";
        assert_eq!(to_text(&item, 0), text);
        assert_eq!(to_json(&item)["name"]["hex"], "611bff");
    }
}
