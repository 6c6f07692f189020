//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::dump::DumpArguments;
use crate::failure::EXIT_CODES;
use crate::size::{self, SizeOrMax};
use crate::target::Target;

/// Works with a Cairn storage pool.
#[derive(Debug, Parser)]
#[command(name = "cairn", version, about, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Args, Debug)]
pub(crate) struct Global {
    /// Unix socket of the daemon
    #[arg(long, global = true, value_name = "PATH", default_value = "/run/cairn/cairnd.sock")]
    pub(crate) socket: PathBuf,
    /// Address of the daemon instead of its socket: https://HOST:PORT, or http:// without TLS
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) endpoint: Option<String>,
    /// Certificate authority (PEM) that signed the daemon's certificate
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Certificate (PEM) to show to the daemon
    #[arg(long, global = true, value_name = "FILE", requires = "key")]
    pub(crate) cert: Option<PathBuf>,
    /// Private key (PEM) of --cert
    #[arg(long, global = true, value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
    /// Name in the daemon's certificate, when it is not the endpoint's host
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) server_name: Option<String>,
    /// Seconds that one call to the daemon may take; without it there is no limit
    #[arg(long, global = true, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) timeout: Option<u64>,
    /// Prints JSON, for programs
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Prints nothing but what was asked for, and errors
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The pool and its devices
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Block volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Snapshots of volumes and file trees
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Makes a volume or a file tree that holds what another, or a snapshot, holds now
    Clone {
        /// Name of a volume, a file tree or a snapshot
        source: String,
        /// Name of the new volume or tree
        name: String,
    },
    /// Writes a snapshot to standard output, as a stream for receive
    Send(SendArguments),
    /// Makes a snapshot of the stream on standard input; or of the rest of one, under the name of what came of it
    Receive {
        /// Name of the new snapshot
        name: String,
    },
    /// Options of volumes and file trees
    #[command(subcommand)]
    Option(OptionCommand),
    /// File trees
    #[command(subcommand)]
    Fs(FsCommand),
    /// Lists a directory, or shows a file
    Ls {
        /// NAME:/PATH
        #[arg(value_parser = Target::parser())]
        target: Target,
        /// Shows attributes
        #[arg(long, short)]
        long: bool,
    },
    /// Shows the attributes of a file
    Stat {
        /// NAME:/PATH
        #[arg(value_parser = Target::parser())]
        target: Target,
        /// Follows a symbolic link
        #[arg(long, short = 'L')]
        follow: bool,
    },
    /// Copies local files into a file tree
    Put(PutArguments),
    /// Copies files of a file tree to local ones
    Get(GetArguments),
    /// Copies files within the pool; by reference, so that both have the same blocks until one is written
    Cp(CpArguments),
    /// Writes a file to standard output
    Cat {
        /// NAME:/PATH
        #[arg(value_parser = Target::parser())]
        target: Target,
        /// First byte
        #[arg(long, value_parser = size::parse, default_value = "0")]
        offset: u64,
        /// Bytes at most
        #[arg(long, value_parser = size::parse)]
        length: Option<u64>,
    },
    /// Creates directories
    Mkdir {
        /// NAME:/PATH
        #[arg(value_parser = Target::parser(), required = true)]
        targets: Vec<Target>,
        /// Also creates missing parents; an existing directory is no error
        #[arg(long, short)]
        parents: bool,
        /// Permission bits, octal
        #[arg(long, short, value_parser = parse_mode, default_value = "755")]
        mode: u32,
    },
    /// Removes files, symbolic links and empty directories
    Rm {
        /// NAME:/PATH
        #[arg(value_parser = Target::parser(), required = true)]
        targets: Vec<Target>,
        /// Removes directories with all that is in them
        #[arg(long, short)]
        recursive: bool,
        /// What does not exist is no error
        #[arg(long, short)]
        force: bool,
        /// Agrees to a recursive removal
        #[arg(long, short)]
        yes: bool,
    },
    /// Renames within a file tree, replacing what is there
    Mv {
        /// NAME:/PATH
        #[arg(value_parser = Target::parser())]
        source: Target,
        /// NAME:/PATH
        #[arg(value_parser = Target::parser())]
        destination: Target,
        /// Fails if the destination exists
        #[arg(long, short, conflicts_with = "exchange")]
        no_replace: bool,
        /// Swaps source and destination
        #[arg(long)]
        exchange: bool,
    },
    /// Gives a file another name, or creates a symbolic link
    Ln {
        /// NAME:/PATH of the file; with -s any text
        source: std::ffi::OsString,
        /// NAME:/PATH of the new name
        #[arg(value_parser = Target::parser())]
        destination: Target,
        /// Creates a symbolic link
        #[arg(long, short)]
        symbolic: bool,
    },
    /// Volumes offered to hosts over NVMe/TCP
    #[command(subcommand)]
    Export(ExportCommand),
    /// Checks every invariant of a pool
    Fsck(FsckArguments),
    /// Shows structures as they are on devices, which may be damaged or in use; does not write to them
    Dump(DumpArguments),
    /// Reads all that the pool holds while it serves, to find what its devices have lost
    #[command(subcommand)]
    Scrub(ScrubCommand),
    /// What reads and checks have found to be lost
    #[command(subcommand)]
    Damage(DamageCommand),
    /// Space and counters of every shard
    Stats,
    /// How long requests, waits, devices and gRPC methods take, and how often they happen
    Timestats(TimestatsArguments),
    /// What goes on or waits now, the longest first
    Waits(WaitsArguments),
    /// What the daemon does, live; q ends it
    Top(TopArguments),
    /// Which part of the daemon holds how much memory, in the format of Linux's /proc/allocinfo
    Allocinfo(AllocinfoArguments),
    /// Shows or changes what the daemon logs, while it runs
    Debug {
        /// What to do; without it, shows the filter in force
        #[command(subcommand)]
        command: Option<DebugCommand>,
    },
    /// Prints the completion script of a shell
    Completion {
        /// Which shell
        shell: Shell,
    },
}

/// The pool.
#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// Creates a pool on devices or files that no daemon uses
    Format(FormatArguments),
    /// Space of the pool
    Status,
    /// Devices of the pool
    List,
    /// Grows or shrinks a device's share of the pool while it serves
    Resize {
        /// Index, path or UUID of the device, as pool list shows it
        member: String,
        /// New size, or max: all of the device. Shrinking moves away what is past the end
        #[arg(value_parser = size::parse_or_max)]
        size: SizeOrMax,
        /// Does not wait for the end of it
        #[arg(long)]
        no_wait: bool,
    },
    /// How the newest change of a device's share goes
    ResizeStatus,
    /// Gives up shrinking: the device keeps its share
    ResizeCancel,
}

/// The scrub.
#[derive(Debug, Subcommand)]
pub(crate) enum ScrubCommand {
    /// Starts to read all that the pool holds, and to compare it with its checksums
    Start {
        /// Bytes that it reads a second at most, as in 100MiB
        #[arg(long, value_name = "SIZE", value_parser = size::parse)]
        rate: Option<u64>,
        /// Waits for the end of it
        #[arg(long)]
        wait: bool,
    },
    /// How the newest one goes
    Status,
    /// Lets it wait, also over a restart of the daemon
    Pause,
    /// Lets it go on
    Resume,
    /// Gives it up
    Cancel,
}

/// The damage list.
#[derive(Debug, Subcommand)]
pub(crate) enum DamageCommand {
    /// Lists files and volumes with data that is lost; what was written again is left out
    List {
        /// Most entries
        #[arg(long, default_value = "1000", value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Forgets what is listed, until it is found again
    Clear {
        /// Of this inode only
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
        inode: Option<u64>,
        /// Does not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// `pool format`.
#[derive(Args, Debug)]
pub(crate) struct FormatArguments {
    /// Block devices or files
    #[arg(required = true, value_name = "DEVICE", num_args = 1..=255)]
    pub(crate) devices: Vec<PathBuf>,
    /// Number of shards, a power of two; fixed for the life of the pool
    #[arg(long, value_parser = parse_shards)]
    pub(crate) shards: Option<u16>,
    /// Label of the pool, at most 32 bytes
    #[arg(long, value_parser = parse_label, default_value = "")]
    pub(crate) label: String,
    /// Bucket size, a power of two from 64KiB to 64MiB
    #[arg(long, value_parser = parse_bucket)]
    pub(crate) bucket_size: Option<u32>,
    /// Creates missing files with this size
    #[arg(long, value_parser = size::parse)]
    pub(crate) file_size: Option<u64>,
    /// Destroys what is on the devices, even a file system or another pool
    #[arg(long)]
    pub(crate) force: bool,
}

/// Volumes.
#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Creates a volume
    Create {
        /// Its name
        name: String,
        /// Its size, as in 10G or 512MiB
        #[arg(long, short, value_parser = size::parse)]
        size: u64,
        /// Logical block size in bytes
        #[arg(long, default_value = "4096", value_parser = ["512", "4096"])]
        block_size: String,
        #[command(flatten)]
        storage: StorageArguments,
    },
    /// Lists volumes
    List {
        /// Also counts the data each holds
        #[arg(long)]
        usage: bool,
    },
    /// Grows or shrinks a volume
    Resize {
        /// Its name
        name: String,
        /// New size, as in 10G or 512MiB
        #[arg(value_parser = size::parse)]
        size: u64,
        /// Agrees that a smaller size drops what is cut off
        #[arg(long)]
        allow_shrink: bool,
    },
    /// Deletes a volume and its data
    Delete {
        /// Its name
        name: String,
        /// Does not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// How data of something new is stored.
#[derive(Debug, Args)]
pub(crate) struct StorageArguments {
    /// How its data is compressed: none, lz4, zstd[:1-19] or gzip[:1-9]
    #[arg(long, value_name = "HOW")]
    pub(crate) compression: Option<String>,
    /// Bytes that are compressed as one, 8KiB to 128KiB; 16KiB where nothing is said
    #[arg(long, value_name = "SIZE", value_parser = parse_frame)]
    pub(crate) compression_frame: Option<u32>,
}

/// Options of volumes and file trees.
#[derive(Debug, Subcommand)]
pub(crate) enum OptionCommand {
    /// Shows the options of a volume, a file tree or a snapshot
    Get {
        /// Its name
        name: String,
        /// This one only
        option: Option<String>,
    },
    /// Changes how new data of a volume or a file tree is stored; what is there already stays as it is
    Set {
        /// Its name
        name: String,
        /// compression=none|lz4|zstd[:1-19]|gzip[:1-9], compression_frame=8KiB..128KiB; several may be given
        #[arg(required = true, value_name = "OPTION=VALUE", value_parser = parse_option)]
        options: Vec<(String, String)>,
    },
}

/// Snapshots.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Makes snapshots, all of one instant
    Create {
        /// Volume or tree and name of its snapshot, as SOURCE=NAME; may be given again
        #[arg(required = true, value_name = "SOURCE=NAME", value_parser = parse_snapshot, num_args = 1..=64)]
        snapshots: Vec<(String, String)>,
    },
    /// Lists snapshots
    List {
        /// Those of this volume or tree only
        source: Option<String>,
        /// Also counts the data that each holds beside older ones
        #[arg(long)]
        usage: bool,
    },
    /// Tells what changed from one snapshot to another: of a volume offset, length, data or zeroes; of a tree + added,
    /// - removed, M modified
    Diff {
        /// Name of the snapshot to compare with; - for nothing, so that all is told
        base: String,
        /// Name of the snapshot to look at
        snapshot: String,
    },
    /// Deletes a snapshot
    Delete {
        /// Its name
        name: String,
        /// Does not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Makes a volume or tree what it was at a snapshot; what was written since is gone
    Rollback {
        /// Name of the volume or tree
        name: String,
        /// Name of the snapshot
        snapshot: String,
        /// Does not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// File trees.
#[derive(Debug, Subcommand)]
pub(crate) enum FsCommand {
    /// Creates an empty file tree
    Create {
        /// Its name
        name: String,
        #[command(flatten)]
        storage: StorageArguments,
    },
    /// Lists file trees
    List {
        /// Also counts the data each holds
        #[arg(long)]
        usage: bool,
    },
    /// Deletes a file tree and all in it
    Delete {
        /// Its name
        name: String,
        /// Does not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// Exports.
#[derive(Debug, Subcommand)]
pub(crate) enum ExportCommand {
    /// Offers volumes to hosts
    Create {
        /// NVMe qualified name, as in nqn.2026-01.org.example:backup
        nqn: String,
        /// Volume to offer, as NAME or NSID=NAME; may be given again
        #[arg(long = "volume", short, required = true, value_parser = parse_namespace)]
        volumes: Vec<(u32, String)>,
        /// Lets any host connect
        #[arg(long, conflicts_with = "hosts", required_unless_present = "hosts")]
        allow_any_host: bool,
        /// NQN of a host that may connect; may be given again
        #[arg(long = "host")]
        hosts: Vec<String>,
    },
    /// Lists exports
    List,
    /// Stops offering an export; its volumes stay
    Delete {
        /// Its NQN
        nqn: String,
        /// Does not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// `put`.
#[derive(Args, Debug)]
pub(crate) struct PutArguments {
    /// Local files; '-' is standard input
    #[arg(required = true, value_name = "SOURCE")]
    pub(crate) sources: Vec<PathBuf>,
    /// NAME:/PATH: an existing directory to put them into, or the new name of one
    #[arg(value_parser = Target::parser())]
    pub(crate) destination: Target,
    #[command(flatten)]
    pub(crate) copy: CopyArguments,
    /// Makes each file durable before the next
    #[arg(long)]
    pub(crate) sync: bool,
}

/// `cp`.
#[derive(Args, Debug)]
pub(crate) struct CpArguments {
    /// NAME:/PATH
    #[arg(value_parser = Target::parser(), required = true, value_name = "SOURCE")]
    pub(crate) sources: Vec<Target>,
    /// NAME:/PATH: an existing directory to copy them into, or the new name of one
    #[arg(value_parser = Target::parser())]
    pub(crate) destination: Target,
    /// Whether copies are by reference: always fails where blocks cannot be shared
    #[arg(long, value_enum, value_name = "WHEN", num_args = 0..=1, require_equals = true,
          default_value = "auto", default_missing_value = "always")]
    pub(crate) reflink: Reflink,
    #[command(flatten)]
    pub(crate) copy: CopyArguments,
    /// Makes each file durable before the next
    #[arg(long)]
    pub(crate) sync: bool,
}

/// What is sent.
#[derive(Args, Debug)]
pub(crate) struct SendArguments {
    /// Name of the snapshot
    #[arg(required_unless_present = "resume")]
    pub(crate) snapshot: Option<String>,
    /// Only how it differs from this snapshot of the same volume or file tree, which the receiver has
    #[arg(long, short, value_name = "SNAPSHOT")]
    pub(crate) base: Option<String>,
    /// The rest of a stream that was cut off: the token that receive told, or `--json` of `volume list` and `fs list`
    #[arg(long, value_name = "TOKEN", conflicts_with_all = ["snapshot", "base"])]
    pub(crate) resume: Option<String>,
}

/// Whether copies are by reference, as for cp(1).
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reflink {
    /// Where they can be
    Auto,
    /// They must be
    Always,
    /// They have blocks of their own
    Never,
}

/// `get`.
#[derive(Args, Debug)]
pub(crate) struct GetArguments {
    /// NAME:/PATH
    #[arg(value_parser = Target::parser())]
    pub(crate) source: Target,
    /// Local directory to get it into, or its new name
    pub(crate) destination: PathBuf,
    #[command(flatten)]
    pub(crate) copy: CopyArguments,
}

/// What `put`, `get` and `cp` share.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct CopyArguments {
    /// Copies directories with all that is in them
    #[arg(long, short)]
    pub(crate) recursive: bool,
    /// Also copies extended attributes of the namespace "user."
    #[arg(long)]
    pub(crate) xattrs: bool,
    /// Also copies owner and group
    #[arg(long)]
    pub(crate) owner: bool,
}

/// `timestats`.
#[derive(Args, Debug)]
pub(crate) struct TimestatsArguments {
    /// Part of the names to show, as in journal
    #[arg(default_value = "")]
    pub(crate) filter: String,
    /// Of this shard only
    #[arg(long, value_name = "NUMBER")]
    pub(crate) shard: Option<u32>,
    /// Of each shard, device queue and server by itself, not summed up
    #[arg(long, conflicts_with = "shard")]
    pub(crate) each: bool,
    /// Also what has not happened yet
    #[arg(long)]
    pub(crate) all: bool,
}

/// `waits`.
#[derive(Args, Debug)]
pub(crate) struct WaitsArguments {
    /// Part of the names to show, as in journal
    #[arg(default_value = "")]
    pub(crate) filter: String,
    /// Only what waits for longer than so many milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub(crate) longer_than_ms: u32,
    /// Lists at most so many, up to 1000
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) count: u32,
}

/// `top`.
#[derive(Args, Debug)]
pub(crate) struct TopArguments {
    /// Seconds between two looks, from 0.1 to 3600
    #[arg(long, short, value_name = "SECONDS", default_value = "1", value_parser = parse_interval)]
    pub(crate) interval: std::time::Duration,
    /// Looks twice, prints what happened between, and ends; so it does when the output is no terminal
    #[arg(long)]
    pub(crate) once: bool,
}

/// `allocinfo`.
#[derive(Args, Debug)]
pub(crate) struct AllocinfoArguments {
    /// Prints the largest first
    #[arg(long, short)]
    pub(crate) sort: bool,
    /// Prints the largest COUNT only, the largest first
    #[arg(long, short, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) top: Option<u32>,
    /// Switches counting instead of printing; after `never` only a restart switches it on again
    #[arg(long, value_name = "MODE", value_enum, conflicts_with_all = ["sort", "top"])]
    pub(crate) profiling: Option<Profiling>,
}

/// `debug`.
#[derive(Subcommand, Debug)]
pub(crate) enum DebugCommand {
    /// Logs by FILTER until the daemon ends, or for a time
    Set {
        /// Levels by module (off, error, warn, info, debug, trace): info,engine_store::journal=debug
        filter: String,
        /// Puts the filter of the configuration back after this time, at most a week: 90s, 10m, 2h
        #[arg(long = "for", value_name = "TIME", value_parser = parse_time)]
        time: Option<u32>,
    },
    /// Puts the filter of the configuration back
    Reset,
}

/// Whether the daemon counts allocations.
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
pub(crate) enum Profiling {
    On,
    Off,
    Never,
}

/// `fsck`.
#[derive(Args, Debug)]
pub(crate) struct FsckArguments {
    /// Checks the pool of the running daemon
    #[arg(long, conflicts_with = "devices", required_unless_present = "devices")]
    pub(crate) online: bool,
    /// Also reads all data and verifies its checksums
    #[arg(long)]
    pub(crate) verify_data: bool,
    /// Goes on where the last check of the data was cut short
    #[arg(long, requires = "verify_data")]
    pub(crate) resume: bool,
    /// Repairs what is found, as far as it can be; asks before
    #[arg(long)]
    pub(crate) repair: bool,
    /// Agrees to repairs beforehand
    #[arg(long, short, requires = "repair")]
    pub(crate) yes: bool,
    /// All devices of a pool that no daemon uses
    #[arg(value_name = "DEVICE", num_args = 0..=255)]
    pub(crate) devices: Vec<PathBuf>,
}

/// A time in whole seconds: "90", "90s", "10m", "2h" or "1d".
fn parse_time(text: &str) -> Result<u32, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return Err(format!("'{text}' is no time; write 90s, 10m or 2h")),
    };
    match digits.parse::<u32>().ok().and_then(|count| count.checked_mul(seconds)) {
        Some(0) | None => Err(format!("'{text}' is no time; write 90s, 10m or 2h")),
        Some(seconds) => Ok(seconds),
    }
}

fn parse_interval(text: &str) -> Result<std::time::Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => {
            Ok(std::time::Duration::from_secs_f64(seconds))
        }
        _ => Err(format!("'{text}' is no number of seconds from 0.1 to 3600")),
    }
}

fn parse_snapshot(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((volume, name)) if !volume.is_empty() && !name.is_empty() => {
            Ok((volume.to_owned(), name.to_owned()))
        }
        _ => Err("must be SOURCE=NAME, as in data=data-monday".to_owned()),
    }
}

fn parse_option(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((option, value)) if !option.is_empty() && !value.is_empty() => {
            Ok((option.to_owned(), value.to_owned()))
        }
        _ => Err("must be OPTION=VALUE, as in compression=zstd:3".to_owned()),
    }
}

fn parse_frame(text: &str) -> Result<u32, String> {
    let bytes = size::parse(text)?;
    u32::try_from(bytes).map_err(|_| format!("'{text}' is too large; write 8KiB to 128KiB"))
}

fn parse_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err(format!("'{text}' is no mode; write octal digits, as in 755")),
    }
}

fn parse_shards(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(count) if count.is_power_of_two() && count <= 256 => Ok(count),
        _ => Err(format!("'{text}' is not a power of two from 1 to 256")),
    }
}

fn parse_label(text: &str) -> Result<String, String> {
    if text.len() > 32 {
        return Err(format!("'{text}' has {} bytes, 32 are allowed", text.len()));
    }
    Ok(text.to_owned())
}

fn parse_bucket(text: &str) -> Result<u32, String> {
    match u32::try_from(size::parse(text)?) {
        Ok(size) if size.is_power_of_two() && (64 << 10..=64 << 20).contains(&size) => Ok(size),
        _ => Err(format!("'{text}' is not a power of two from 64KiB to 64MiB")),
    }
}

fn parse_namespace(text: &str) -> Result<(u32, String), String> {
    let Some((nsid, name)) = text.split_once('=') else { return Ok((0, text.to_owned())) };
    match nsid.parse() {
        Ok(nsid) if nsid > 0 => Ok((nsid, name.to_owned())),
        _ => Err(format!("'{text}' must be NAME or NSID=NAME, with an NSID of at least 1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn values_are_checked() {
        assert_eq!(parse_mode("0755"), Ok(0o755));
        assert!(parse_mode("10000").is_err() && parse_mode("9").is_err());
        assert_eq!(parse_interval("0.5"), Ok(std::time::Duration::from_millis(500)));
        assert!(["0", "-1", "NaN", "inf", "x"].iter().all(|bad| parse_interval(bad).is_err()));
        for (text, seconds) in
            [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("7d", 604_800)]
        {
            assert_eq!(parse_time(text), Ok(seconds));
        }
        assert!(
            ["", "0", "m", "1.5h", "-1", "1w", "99999d", "1 h"]
                .iter()
                .all(|t| parse_time(t).is_err())
        );
        assert_eq!(parse_shards("8"), Ok(8));
        assert!(["0", "3", "512", "x"].iter().all(|bad| parse_shards(bad).is_err()));
        assert_eq!(parse_bucket("1MiB"), Ok(1 << 20));
        assert!(["32KiB", "3MiB", "128MiB", "8G"].iter().all(|bad| parse_bucket(bad).is_err()));
        assert!(parse_label(&"x".repeat(33)).is_err());
        assert_eq!(parse_namespace("3=disk"), Ok((3, "disk".to_owned())));
        assert_eq!(parse_namespace("disk"), Ok((0, "disk".to_owned())));
        assert!(parse_namespace("0=disk").is_err() && parse_namespace("x=disk").is_err());
    }
}
