//! The binary against a server over a pool in memory: every command, its output and exit code.
#![allow(clippy::unwrap_used)] // in helpers of tests too a panic is a failed test

#[path = "../../../api/grpc/tests/grpc/common/exports.rs"]
#[allow(dead_code, unreachable_pub)] // shared with the server's own tests
mod exports;
#[path = "../../../api/grpc/tests/grpc/common/fake.rs"]
#[allow(dead_code, unreachable_pub)] // shared with the server's own tests
mod fake;

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use std::sync::Arc;

use api_grpc::{
    CoreTime, LogControl, MemberInfo, Observe, Scope, Server, ServerConfig, ServerInfo, Timing,
    UnixConfig, WaitingNow,
};
use engine_base::time_stats::TimeStats;
use engine_store::client::Client;

/// Two statistics of two shards, and 120 waits.
struct Daemon;

impl Observe for Daemon {
    fn timings(&self) -> Vec<Timing> {
        let timing = |shard, ns| {
            let times = TimeStats::default();
            times.record(1, ns);
            let times = times.snapshot(1);
            Timing { name: "node_read".to_owned(), scope: Scope::Shard(shard), times }
        };
        vec![timing(0, 1000), timing(1, 3000)]
    }

    fn waiting(&self) -> Vec<WaitingNow> {
        let (name, scope) = ("blocked_allocate", Scope::Shard(1));
        (1..=120).map(|ms| WaitingNow { name, scope, waited_ns: ms * 1_000_000 }).collect()
    }

    fn cores(&self) -> Vec<CoreTime> {
        vec![CoreTime::default()]
    }
}

/// A log that takes every filter but one.
struct Log;

impl LogControl for Log {
    fn configured(&self) -> &str {
        "info"
    }

    fn apply(&self, filter: &str) -> Result<(), String> {
        if filter == "loud" { Err("\"loud\" is no level".to_owned()) } else { Ok(()) }
    }
}

/// A server in threads of its own, and a directory for it and for local files.
struct Stand {
    directory: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Stand {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let unix = Some(UnixConfig::new(directory.path().join("sock")));
        let config = ServerConfig { unix, ..ServerConfig::default() };
        let server = runtime.block_on(Server::bind(&config)).unwrap();
        let server = server.showing(Arc::new(Daemon)).changing_log(Arc::new(Log));
        let info = ServerInfo {
            version: "1.2.3".to_owned(),
            pool_uuid: [1; 16],
            started_ns: 0,
            members: vec![MemberInfo {
                index: 0,
                uuid: [2; 16],
                path: "/dev/one".to_owned(),
                size_bytes: 3 << 30,
                block_size: 512,
            }],
        };
        let client = Client::new(fake::Fake::new());
        let exports = exports::Exports::default();
        runtime.spawn(server.serve(client, exports, info, std::future::pending()));
        Self { directory, _runtime: runtime }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cairn"));
        command.arg("--socket").arg(self.path("sock")).stdin(Stdio::null());
        command
    }

    fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Output {
        self.command().args(arguments).output().unwrap()
    }

    /// Runs a command that must succeed, and returns what it printed.
    #[track_caller]
    fn ok<S: AsRef<OsStr>>(&self, arguments: &[S]) -> String {
        let output = self.run(arguments);
        let shown: Vec<_> = arguments.iter().map(|it| it.as_ref().to_string_lossy()).collect();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{shown:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must fail with `code`, and returns what it said.
    #[track_caller]
    fn fails<S: AsRef<OsStr>>(&self, code: i32, arguments: &[S]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{errors}");
        assert!(output.stdout.is_empty(), "errors go to standard error only");
        assert!(!errors.is_empty(), "errors are told");
        errors
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let text = self.ok(&[&["--json"], arguments].concat());
        serde_json::from_str(&text).unwrap()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The only test that switches the server's counting, which is that of this process.
#[test]
fn allocinfo_has_the_shape_of_the_kernels() {
    let stand = Stand::new();
    let _kept = engine_memory::Buffer::try_new(100_000).unwrap();
    let text = stand.ok(&["allocinfo", "--sort"]);
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("allocinfo - version: 1.0"));
    assert_eq!(lines.next(), Some("#     <size>  <calls> <tag info>"));
    let mut previous = u64::MAX;
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words.len(), 5, "{line}");
        let bytes = words[0].parse().unwrap();
        assert!(bytes <= previous, "{text}");
        previous = bytes;
        assert!(words[2].contains(".rs:") && words[4].starts_with("func:"), "{line}");
    }
    let json = stand.json(&["allocinfo", "--top", "2"]);
    assert_eq!(json["profiling"], "on");
    assert_eq!(json["sites"].as_array().unwrap().len(), 2);
    assert!(json["sites"][0]["live_bytes"].as_u64() >= json["sites"][1]["live_bytes"].as_u64());
    stand.fails(2, &["allocinfo", "--top", "0"]);
    stand.fails(2, &["allocinfo", "--profiling", "sometimes"]);

    assert_eq!(stand.ok(&["allocinfo", "--profiling", "off"]), "allocation profiling is off\n");
    assert_eq!(stand.json(&["allocinfo"])["profiling"], "off");
    stand.ok(&["allocinfo", "--profiling", "on"]);
    stand.ok(&["allocinfo", "--profiling", "never"]);
    let errors = stand.fails(5, &["allocinfo", "--profiling", "on"]);
    assert!(errors.contains("until the process ends"), "{errors}");
}

#[test]
fn debug_shows_and_changes_what_is_logged() {
    let stand = Stand::new();
    assert_eq!(stand.ok(&["debug"]), "info  (as configured)\n");
    let filter = "info,engine_store::journal=debug";
    let set = stand.ok(&["debug", "set", filter]);
    assert_eq!(set, format!("{filter}  (until it is changed; configured: info)\n"));
    let refused = stand.fails(2, &["debug", "set", "loud"]);
    assert!(refused.contains("\"loud\" is no level"), "{refused}");
    let json = stand.json(&["debug"]);
    assert_eq!((&json["filter"], &json["changed"]), (&filter.into(), &true.into()));
    assert_eq!(json["remaining_seconds"], serde_json::Value::Null);
    let json = stand.json(&["debug", "set", "debug", "--for", "2h"]);
    assert!((7000..=7200).contains(&json["remaining_seconds"].as_u64().unwrap()), "{json}");
    stand.fails(2, &["debug", "set", "debug", "--for", "8d"]);
    stand.fails(2, &["debug", "set", "debug", "--for", "soon"]);
    assert_eq!(stand.ok(&["debug", "reset"]), "info  (as configured)\n");
    assert_eq!(stand.json(&["debug"])["changed"], false);
}

#[test]
fn time_statistics_waits_and_the_live_view() {
    let stand = Stand::new();
    let summed = stand.json(&["timestats", "node"]);
    assert_eq!(summed.as_array().unwrap().len(), 1);
    assert_eq!((&summed[0]["count"], &summed[0]["mean_ns"]), (&2.into(), &2000.into()));
    let each = stand.json(&["timestats", "node", "--each"]);
    assert_eq!((&each[1]["scope"], &each[1]["max_ns"]), (&"shard 1".into(), &3000.into()));
    let one = stand.ok(&["timestats", "--shard", "0"]);
    assert!(one.contains("node_read  shard 0  1") && !one.contains("shard 1"), "{one}");
    assert!(stand.ok(&["timestats", "grpc"]).contains("grpc_GetTimeStats  all"));
    stand.fails(2, &["timestats", "--shard", "0", "--each"]);
    stand.fails(2, &["timestats", &"x".repeat(200)]);

    let waits = stand.json(&["waits", "--count", "2"]);
    assert_eq!(waits.as_array().unwrap().len(), 2);
    assert_eq!(waits[0]["waited_ns"], 120_000_000);
    let output = stand.run(&["waits"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("120 wait, the longest 100 are shown"), "{told}");
    let long = stand.ok(&["waits", "alloc", "--longer-than-ms", "119"]);
    assert!(long.contains("blocked_allocate  shard 1  120 ms"), "{long}");
    assert_eq!(long.lines().count(), 2);

    let frame = stand.json(&["top", "--once", "--interval", "0.1"]);
    assert_eq!(frame["waiting_count"], 120);
    assert_eq!(frame["cores_busy"][0], 0.0);
    assert!(frame["requests"]["write"]["per_second"].is_number());
    // Its output is no terminal, so it ends by itself.
    let text = stand.ok(&["top", "--interval", "0.1"]);
    assert!(text.contains("WAITING NOW") && text.contains("blocked_allocate"), "{text}");
    stand.fails(2, &["top", "--interval", "0"]);
}

#[test]
fn snapshots_and_clones() {
    let stand = Stand::new();
    stand.ok(&["volume", "create", "disk", "--size", "1GiB"]);
    assert_eq!(stand.ok(&["snapshot", "create", "disk=monday"]), "made snapshot monday of disk\n");
    stand.fails(4, &["snapshot", "create", "disk=monday"]);
    stand.fails(3, &["snapshot", "create", "none=x"]);
    stand.fails(2, &["snapshot", "create", "disk"]);
    let list = stand.json(&["snapshot", "list", "--usage"]);
    assert_eq!(list[0]["name"], "monday");
    assert_eq!((&list[0]["source"], &list[0]["own_bytes"]), (&"disk".into(), &8192.into()));
    assert!(stand.ok(&["snapshot", "list", "disk"]).contains("monday"));
    assert_eq!(stand.ok(&["clone", "monday", "copy"]), "made volume copy of monday\n");
    assert_eq!(stand.json(&["volume", "list"]).as_array().unwrap().len(), 2);
    let back = stand.ok(&["snapshot", "rollback", "disk", "monday", "--yes"]);
    assert_eq!(back, "volume disk is what it was at monday\n");
    assert_eq!(stand.ok(&["snapshot", "delete", "monday", "--yes"]), "deleted snapshot monday\n");
    assert_eq!(stand.json(&["snapshot", "list"]), serde_json::json!([]));
}

#[test]
fn options_are_shown_and_changed() {
    let stand = Stand::new();
    let small = ["--compression", "zstd", "--compression-frame", "8KiB"];
    stand.ok(&[&["volume", "create", "disk", "--size", "1GiB"][..], &small].concat());
    assert_eq!(
        stand.ok(&["option", "get", "disk"]),
        "compression        zstd:3\ncompression_frame  8 KiB\n"
    );
    stand.ok(&["fs", "create", "home", "--compression", "lz4"]);
    assert_eq!(stand.ok(&["option", "get", "home", "compression"]), "compression        lz4\n");
    let set =
        stand.json(&["option", "set", "home", "compression=gzip:9", "compression_frame=64KiB"]);
    assert_eq!(set, serde_json::json!({ "compression": "gzip:9", "compression_frame": 65536 }));
    assert_eq!(stand.json(&["option", "get", "home"]), set);
    assert_eq!(stand.json(&["fs", "list"])[0]["options"], set);
    assert!(stand.ok(&["volume", "list", "--usage"]).contains("3.00x"));
    let errors = stand.fails(2, &["option", "set", "disk", "compression=best"]);
    assert!(errors.contains("none, lz4, zstd"), "{errors}");
    let errors = stand.fails(2, &["option", "set", "disk", "cheese=1"]);
    assert!(errors.contains("compression_frame"), "{errors}");
    stand.fails(2, &["option", "set", "disk", "compression"]);
    stand.fails(2, &["option", "set", "disk"]);
    stand.fails(2, &["option", "set", "disk", "compression_frame=1G"]);
    stand.fails(2, &["option", "get", "disk", "cheese"]);
    stand.fails(3, &["option", "set", "nobody", "compression=lz4"]);
}

#[test]
fn scrubs() {
    let stand = Stand::new();
    assert_eq!(stand.ok(&["scrub", "status"]), "the pool was never scrubbed\n");
    let started = stand.ok(&["scrub", "start", "--rate", "1MiB"]);
    assert!(started.contains("running") && started.contains("(25 %)"), "{started}");
    assert!(started.contains("1 MiB a second at most"), "{started}");
    stand.fails(5, &["scrub", "start"]);
    assert!(stand.ok(&["scrub", "pause"]).contains("paused"));
    assert_eq!(stand.json(&["scrub", "resume"])["state"], "running");
    // What it found is an error of its own.
    let output = stand.run(&["scrub", "cancel"]);
    assert_eq!(output.status.code(), Some(8));
    assert!(String::from_utf8_lossy(&output.stdout).contains("a block"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cairn damage list"));
}

#[test]
fn volumes_and_exports() {
    let stand = Stand::new();
    assert_eq!(
        stand.ok(&["volume", "create", "disk", "--size", "1GiB"]),
        "created volume disk of 1 GiB\n"
    );
    stand.fails(4, &["volume", "create", "disk", "--size", "1GiB"]);
    let errors = stand.fails(2, &["volume", "create", "odd", "--size", "1000B"]);
    assert!(errors.contains("multiple of the block size"), "{errors}");
    stand.fails(2, &["volume", "create", "x", "--size", "1.5G"]);
    let list = stand.json(&["volume", "list", "--usage"]);
    assert_eq!(list[0]["name"], "disk");
    assert_eq!(list[0]["size_bytes"], 1 << 30);
    assert_eq!(list[0]["used_bytes"], 8192);
    let table = stand.ok(&["volume", "list"]);
    assert!(table.starts_with("NAME") && table.contains("1 GiB"), "{table}");
    stand.ok(&["volume", "resize", "disk", "2G"]);
    stand.fails(2, &["volume", "resize", "disk", "1G"]);

    let nqn = "nqn.2026-01.org.example:one";
    stand.fails(2, &["export", "create", nqn, "--volume", "disk"]);
    stand.fails(3, &["export", "create", nqn, "--volume", "none", "--allow-any-host"]);
    let made = stand.ok(&["export", "create", nqn, "--volume", "5=disk", "--allow-any-host"]);
    assert_eq!(made, format!("exported {nqn} at 127.0.0.1:4420\n"));
    let exports = stand.json(&["export", "list"]);
    assert_eq!(exports[0]["namespaces"][0]["nsid"], 5);
    assert!(stand.ok(&["export", "list"]).contains("5=disk"));
    let errors = stand.fails(5, &["volume", "delete", "disk", "--yes"]);
    assert!(errors.contains(nqn), "{errors}");
    let errors = stand.fails(5, &["export", "delete", nqn]);
    assert!(errors.contains("--yes"), "{errors}");
    stand.ok(&["export", "delete", nqn, "--yes"]);
    stand.ok(&["volume", "delete", "disk", "--yes"]);
    assert_eq!(stand.json(&["volume", "list"]), serde_json::json!([]));
}

#[test]
fn the_pool_is_shown_and_checked() {
    let stand = Stand::new();
    assert_eq!(stand.json(&["pool", "status"])["shard_count"], 2);
    assert!(stand.ok(&["pool", "status"]).contains("available"));
    assert_eq!(stand.json(&["pool", "list"])[0]["path"], "/dev/one");
    assert!(stand.ok(&["pool", "list"]).contains("3 GiB"));
    assert!(stand.ok(&["fsck", "--online"]).contains("no problems found"));
    let mut verify = vec!["fsck", "--online", "--verify-data"];
    assert_eq!(stand.json(&verify)["checked"]["blocks"], 14);
    verify.push("--resume");
    assert_eq!(stand.json(&verify)["checked"]["blocks"], 6);
    assert!(stand.ok(&["fsck", "--online", "--repair"]).contains("no problems found"));
    let damage = stand.json(&["damage", "list"]);
    assert_eq!((&damage[0]["path"], &damage[0]["length_bytes"]), (&"/a".into(), &8192.into()));
    assert!(stand.ok(&["damage", "list"]).contains("8 KiB at 4096"));
    stand.fails(5, &["damage", "clear"]);
    assert_eq!(stand.json(&["damage", "clear", "--yes"])["cleared"], 2);
    assert_eq!(stand.json(&["damage", "clear", "--inode", "8", "--yes"])["cleared"], 0);
    let stats = stand.json(&["stats"]);
    assert_eq!(stats["shards"][1]["counters"]["journal_entries"], 11);
    assert!(stand.ok(&["stats"]).contains("journal_entries"));
}

#[test]
fn command_lines_are_checked() {
    let stand = Stand::new();
    let device = stand.path("device");
    std::fs::write(&device, b"").unwrap();
    stand.fails(2, &["pool", "format"]);
    stand.fails(2, &["pool", "format", text(&device), "--shards", "3"]);
    stand.fails(2, &["pool", "format", text(&device), text(&device)]);
    let errors = stand.fails(3, &["pool", "format", text(&stand.path("none"))]);
    assert!(errors.contains("--file-size"), "{errors}");
    stand.fails(2, &["fsck"]);
    stand.fails(2, &["fsck", "--online", "--resume"]);
    stand.fails(2, &["fsck", "--online", text(&device)]);
    stand.fails(2, &["ls", "no-colon"]);
    stand.fails(2, &["ls", "tree:relative"]);
    stand.fails(2, &["--ca", "x.pem", "--endpoint", "http://127.0.0.1:1", "stats"]);
    stand.fails(2, &["--endpoint", "https://127.0.0.1:1", "stats"]);
    assert!(stand.ok(&["completion", "bash"]).contains("_cairn"));
    assert!(stand.ok(&["--help"]).contains("Exit codes:"));

    let mut lost = Command::new(env!("CARGO_BIN_EXE_cairn"));
    let output =
        lost.arg("--socket").arg(stand.path("nobody")).args(["--json", "stats"]).output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"]["exit_code"], 7);
    assert!(error["error"]["hint"].as_str().unwrap().contains("cairnd"));
}

#[test]
fn files_are_worked_on() {
    let stand = Stand::new();
    assert_eq!(stand.ok(&["fs", "create", "t"]), "created file tree t\n");
    stand.ok(&["mkdir", "-p", "t:/a/b", "t:/c"]);
    stand.fails(4, &["mkdir", "t:/a"]);
    let local = stand.path("local");
    std::fs::write(&local, b"some text").unwrap();
    stand.ok(&["put", text(&local), "t:/a/b"]);
    assert_eq!(stand.ok(&["cat", "t:/a/b/local"]), "some text");
    assert_eq!(stand.ok(&["cat", "t:/a/b/local", "--offset", "5", "--length", "2"]), "te");
    assert_eq!(stand.ok(&["ls", "t:/"]), "a\nc\n");
    assert_eq!(stand.ok(&["ls", "t:/c"]), "");
    assert_eq!(stand.json(&["ls", "t:/c"]), serde_json::json!([]));
    let long = stand.ok(&["ls", "-l", "t:/a"]);
    assert!(long.contains("drwxr-xr-x"), "{long}");
    assert_eq!(stand.json(&["ls", "t:/a/b"])[0]["name"], "local");
    assert_eq!(stand.json(&["stat", "t:/a/b/local"])["size_bytes"], 9);
    assert!(stand.ok(&["stat", "t:/a"]).contains("directory"));
    stand.fails(3, &["stat", "t:/none"]);
    stand.fails(3, &["ls", "none:/"]);

    stand.ok(&["ln", "t:/a/b/local", "t:/hard"]);
    stand.ok(&["ln", "-s", "a/b", "t:/soft"]);
    assert_eq!(stand.ok(&["cat", "t:/soft/local"]), "some text");
    assert_eq!(stand.json(&["stat", "t:/hard"])["links"], 2);
    stand.fails(4, &["mv", "-n", "t:/hard", "t:/soft"]);
    stand.ok(&["mv", "t:/hard", "t:/moved"]);
    stand.ok(&["mv", "--exchange", "t:/moved", "t:/c"]);
    assert_eq!(stand.json(&["stat", "t:/c"])["kind"], "file");

    let errors = stand.fails(5, &["rm", "t:/a"]);
    assert!(errors.contains("rm -r"), "{errors}");
    stand.fails(5, &["rm", "-r", "t:/a"]);
    stand.ok(&["rm", "-r", "-y", "t:/a"]);
    stand.fails(3, &["rm", "t:/a"]);
    stand.ok(&["rm", "-f", "t:/a"]);
    assert_eq!(stand.json(&["fs", "list"])[0]["name"], "t");
    stand.fails(5, &["fs", "delete", "t"]);
    stand.ok(&["fs", "delete", "t", "--yes"]);
}

#[test]
fn files_are_copied_by_reference() {
    let stand = Stand::new();
    let local = stand.directory.path().join("local");
    std::fs::create_dir_all(local.join("d/e")).unwrap();
    std::fs::write(local.join("d/a"), vec![7; 100_000]).unwrap();
    std::fs::set_permissions(local.join("d/a"), std::fs::Permissions::from_mode(0o640)).unwrap();
    std::fs::hard_link(local.join("d/a"), local.join("d/e/again")).unwrap();
    std::fs::write(local.join("d/e/small"), b"small").unwrap();
    symlink("e/small", local.join("d/link")).unwrap();
    stand.ok(&["fs", "create", "t"]);
    stand.ok(&["put", "-r", text(&local.join("d")), "t:/"]);
    let copy = |arguments: &[&str]| stand.json(&[&["cp"], arguments].concat());
    let told = copy(&["t:/d/a", "t:/copy"]);
    assert_eq!(told["shared_bytes"], 100_000);
    assert_eq!((told["files"].as_u64(), told["copied_bytes"].as_u64()), (Some(1), Some(0)));
    assert_eq!(copy(&["--reflink=never", "t:/d/a", "t:/own"])["copied_bytes"], 100_000);
    assert_eq!(copy(&["--reflink", "t:/d/a", "t:/always"])["shared_bytes"], 100_000);
    // A tree with all that is in it, its hard links among themselves.
    assert_eq!(copy(&["-r", "t:/d", "t:/tree"])["files"], 2);
    let back = stand.directory.path().join("back");
    stand.ok(&["get", "-r", "t:/tree", text(&back)]);
    assert_eq!(snapshot(&local.join("d")), snapshot(&back));
    assert_eq!(stand.ok(&["cat", "t:/copy"]).len(), 100_000);
    for (arguments, why) in [
        (["cp", "t:/d", "t:/e"].as_slice(), "--recursive"),
        (&["cp", "-r", "t:/d", "t:/d/e"], "into itself"),
        (&["cp", "-r", "t:/d", "t:/d"], "into itself"),
        (&["cp", "t:/d/a", "t:/d/a"], "the source"),
        (&["cp", "t:/nothing", "t:/there"], "not found"),
        (&["cp", "t:/d/a", "t:/d/link", "t:/not-there"], "must be a directory"),
        (&["cp", "--reflink=maybe", "t:/d/a", "t:/b"], "maybe"),
    ] {
        let output = stand.run(arguments);
        assert!(!output.status.success(), "{arguments:?}");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains(why), "{arguments:?}: {told}");
    }
}

#[test]
fn standard_input_is_put() {
    let stand = Stand::new();
    stand.ok(&["fs", "create", "t"]);
    let data = vec![b'z'; 1_000_003];
    let mut command = stand.command();
    let command = command.args(["put", "-", "t:/piped"]).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(&data).unwrap();
    assert!(child.wait().unwrap().success());
    let got = stand.run(&["cat", "t:/piped"]);
    assert!(got.stdout == data);
    stand.fails(2, &["put", "-", "t:/"]);
}

/// A tree of everything that put and get keep: modes, times, odd names, symbolic links, hard links,
/// holes, several chunks.
fn build(root: &Path) {
    std::fs::create_dir_all(root.join("sub/deep")).unwrap();
    let big: Vec<u8> = (0..3_000_001_u32).map(|index| (index % 251) as u8 + 1).collect();
    std::fs::write(root.join("big"), &big).unwrap();
    std::fs::write(root.join("sub/empty"), b"").unwrap();
    std::fs::write(root.join(OsStr::from_bytes(b"sub/odd \xff name")), b"odd").unwrap();
    std::fs::hard_link(root.join("big"), root.join("sub/deep/same")).unwrap();
    symlink("../big", root.join("sub/link")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    let sparse = std::fs::File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(b"middle", 40 << 20).unwrap();
    sparse.set_len(64 << 20).unwrap();
    std::fs::set_permissions(root.join("big"), PermissionsExt::from_mode(0o604)).unwrap();
    std::fs::set_permissions(root.join("sub"), PermissionsExt::from_mode(0o750)).unwrap();
    for (name, seconds) in
        [("big", 1_000_000_000), ("sub/deep", 1_100_000_000), ("sub", 1_200_000_000)]
    {
        let time =
            std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(seconds, 123_456_789);
        let times = std::fs::FileTimes::new().set_modified(time);
        std::fs::File::open(root.join(name)).unwrap().set_times(times).unwrap();
    }
}

/// Every path below `root` with what must be kept of it.
fn snapshot(root: &Path) -> std::collections::BTreeMap<PathBuf, String> {
    let mut all = std::collections::BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        let kind = metadata.file_type();
        let content = if kind.is_symlink() {
            format!("-> {}", std::fs::read_link(&path).unwrap().display())
        } else if kind.is_file() {
            let data = std::fs::read(&path).unwrap();
            let sum = crc32c::crc32c(&data);
            format!("{:o} {} {sum:08x}", metadata.mode(), metadata.nlink())
        } else {
            todo.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            format!("{:o}", metadata.mode())
        };
        let size = if kind.is_dir() { 0 } else { metadata.len() };
        let (seconds, rest) = (metadata.mtime(), metadata.mtime_nsec());
        let told = format!("{content} {size} {seconds}.{rest}");
        all.insert(path.strip_prefix(root).unwrap().to_owned(), told);
    }
    all
}

#[test]
fn trees_come_back_as_they_went() {
    let stand = Stand::new();
    stand.ok(&["fs", "create", "t"]);
    let (here, back) = (stand.path("here"), stand.path("back"));
    std::fs::create_dir(&here).unwrap();
    build(&here);
    stand.fails(2, &["put", text(&here), "t:/copy"]);
    stand.ok(&["put", "-r", text(&here), "t:/copy"]);
    assert_eq!(stand.json(&["stat", "t:/copy/big"])["links"], 2);
    stand.fails(2, &["get", "t:/copy", text(&back)]);
    stand.ok(&["get", "-r", "t:/copy", text(&back)]);
    let (before, after) = (snapshot(&here), snapshot(&back));
    assert_eq!(before.len(), 10);
    assert_eq!(before, after);
    // 64 MiB long, a few blocks held (512-byte units).
    let blocks = std::fs::metadata(back.join("sparse")).unwrap().blocks();
    assert!(blocks < 1024, "{blocks} blocks");
    let (one, two) = (back.join("big"), back.join("sub/deep/same"));
    assert_eq!(std::fs::metadata(one).unwrap().ino(), std::fs::metadata(two).unwrap().ino());

    // Again over what is there: the same.
    stand.ok(&["put", "-r", text(&here.join("sub")), "t:/copy"]);
    stand.ok(&["put", "-r", text(&here), "t:/copy"]);
    stand.ok(&["get", "-r", "t:/copy/here", text(&stand.path("again"))]);
    assert_eq!(snapshot(&stand.path("again")), before);
}

#[test]
fn get_replaces_files_whole_and_never_through_links() {
    let stand = Stand::new();
    stand.ok(&["fs", "create", "t"]);
    let local = stand.path("local");
    std::fs::write(&local, b"new").unwrap();
    stand.ok(&["mkdir", "t:/d"]);
    stand.ok(&["put", text(&local), "t:/d/f"]);
    let into = stand.path("into");
    std::fs::create_dir_all(into.join("other")).unwrap();
    std::fs::write(into.join("precious"), b"old").unwrap();
    // A name that is a symbolic link is replaced itself; what it points to stays.
    symlink("precious", into.join("f")).unwrap();
    stand.ok(&["get", "t:/d/f", text(&into)]);
    assert_eq!(std::fs::read(into.join("f")).unwrap(), b"new");
    assert_eq!(std::fs::read(into.join("precious")).unwrap(), b"old");
    // A directory is not made through one.
    symlink("other", into.join("d")).unwrap();
    stand.fails(4, &["get", "-r", "t:/d", text(&into)]);
    assert!(!into.join("other/f").exists());
}

#[test]
fn members_are_resized_watched_and_left_as_they_were() {
    let stand = Stand::new();
    assert!(stand.ok(&["pool", "resize-status"]).contains("none"));
    stand.fails(2, &["pool", "resize", "0", "much"]);
    stand.fails(3, &["pool", "resize", "/dev/two", "max"]);
    let errors = stand.fails(2, &["pool", "resize", "0", "10M"]);
    assert!(errors.contains("smallest size"), "{errors}");
    let grown = stand.json(&["pool", "resize", "/dev/one", "max"]);
    assert_eq!((&grown["phase"], &grown["to_bytes"]), (&"done".into(), &(4_u64 << 30).into()));
    stand.fails(3, &["pool", "resize-cancel"]);
    let shrinks = stand.json(&["pool", "resize", "0", "2G", "--no-wait"]);
    assert_eq!((&shrinks["phase"], &shrinks["left_bytes"]), (&"running".into(), &4096.into()));
    assert!(stand.ok(&["pool", "resize-status"]).contains("4 KiB"));
    assert_eq!(stand.json(&["pool", "resize-cancel"])["phase"], "cancelled");
    assert_eq!(stand.json(&["pool", "resize-status"])["phase"], "cancelled");
}
