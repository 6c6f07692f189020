//! Commands on devices that no daemon uses, on files: what they print and how they end.
#![allow(clippy::unwrap_used)] // in helpers of tests too a panic is a failed test

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use engine_store::api::{CreateAttributes, FileKind, TreeRef};

fn run(arguments: &[&str], devices: &[PathBuf]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cairn")).args(arguments).args(devices).output().unwrap()
}

#[track_caller]
fn json(arguments: &[&str], devices: &[PathBuf]) -> serde_json::Value {
    let output = run(&[&["--json"], arguments].concat(), devices);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn fails(code: i32, arguments: &[&str], devices: &[PathBuf]) -> String {
    let output = run(arguments, devices);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// A pool on two files.
fn pool(folder: &Path) -> Vec<PathBuf> {
    let devices = vec![folder.join("a"), folder.join("b")];
    let made = run(&["pool", "format", "--file-size", "64MiB", "--shards", "2"], &devices);
    assert!(made.status.success(), "{made:?}");
    devices
}

#[test]
fn dumps_show_structures_of_devices() {
    let folder = tempfile::tempdir().unwrap();
    let devices = pool(folder.path());
    let superblocks = json(&["dump", "superblock"], &devices);
    assert_eq!(superblocks[1]["shards"], 2);
    assert_eq!(superblocks[0]["copies"][2]["state"], "good");
    let journal = json(&["dump", "journal", "--shard", "1", "--records"], &devices);
    assert_eq!(journal[0]["flush"], true);
    assert_eq!(journal[0]["contents"].as_array().unwrap().len(), 14);
    assert_eq!(json(&["dump", "tree", "inodes"], &devices), serde_json::json!([]));
    assert_eq!(json(&["dump", "roots", "--shard", "1"], &devices).as_array().unwrap().len(), 14);
    let text = run(&["dump", "superblock"], &devices[..1]).stdout;
    assert!(String::from_utf8(text).unwrap().contains("    device_byte=65536 state=good\n"));
    assert!(fails(2, &["dump", "tree", "things"], &devices).contains("extents, inodes"));
    assert!(fails(1, &["dump", "roots", "--shard", "2"], &devices).contains("the pool has 2"));
    assert!(fails(1, &["dump", "path", "t:/"], &devices).contains("not found"));
    // One member is enough for what lies on it.
    let alone = json(&["dump", "roots"], &devices[..1]);
    assert!(alone[0]["note"].as_str().unwrap().contains("member 1 is not given"));
    assert!(fails(1, &["dump", "roots", "--shard", "1"], &devices[..1]).contains("absent"));
}

#[test]
fn a_metadata_image_is_dumped_like_its_pool_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let devices = pool(folder.path());
    let mut open = engine_embed::LocalPool::open(&devices).unwrap();
    open.run(async |client, _| {
        let tree = TreeRef::from(&client.tree_create("tree-secret7").await.unwrap());
        let attributes = CreateAttributes::default();
        let created = client.create(tree, tree.root, b"file-secret7", FileKind::File, attributes);
        created.await.unwrap();
    })
    .unwrap();
    open.close().unwrap();
    let before: Vec<_> = devices.iter().map(|device| std::fs::read(device).unwrap()).collect();
    // This process may still have the files locked, as a daemon would.
    let out = folder.path().join("out");
    let image = ["dump", "image", "--out", out.to_str().unwrap()];
    let said = json(&image, &devices);
    let files: Vec<_> = (0..2).map(|member| out.join(format!("member-{member}.img"))).collect();
    assert_eq!(said[1]["file"], files[1].to_str().unwrap());
    assert_eq!(
        (&said[2]["superblock_copies"], &said[3]["nodes"]),
        (&6.into(), &0.into()),
        "{said}"
    );
    for file in &files {
        let bytes = std::fs::read(file).unwrap();
        assert!(!bytes.windows(7).any(|part| part == b"secret7"), "{}", file.display());
    }
    let entries = |devices: &[PathBuf]| {
        let found = json(&["dump", "tree", "dirents", "--shard", "1"], devices);
        let value = &found[0]["value"];
        let name = value["name"].as_str().unwrap().to_owned();
        (name.len(), found[0]["position"].clone(), value["inode"].clone(), name)
    };
    let (own, scrubbed) = (entries(&devices), entries(&files));
    assert_eq!((own.0, own.1, own.2), (scrubbed.0, scrubbed.1, scrubbed.2));
    assert_eq!((own.3.as_str(), own.3 == scrubbed.3), ("file-secret7", false));
    let words = "is a metadata image of a pool, without its data: only `cairn dump` reads it";
    assert!(fails(1, &["fsck"], &files).contains(words));
    assert!(fails(1, &["fsck", "--repair", "--yes"], &files).contains(words));
    assert!(fails(5, &["pool", "format"], &files[..1]).contains("metadata image"));
    // Wrong use leaves what is there.
    assert!(fails(5, &image, &devices).contains("is not empty"));
    assert!(fails(2, &["dump", "image"], &devices).contains("--out"));
    let fresh = folder.path().join("fresh");
    assert_eq!(
        run(&["dump", "image", "--out", fresh.to_str().unwrap()], &[]).status.code(),
        Some(2)
    );
    assert!(!fresh.exists());
    let after = devices.iter().map(|device| std::fs::read(device).unwrap());
    assert!(before.into_iter().eq(after), "the devices are only read");
}

#[test]
fn a_damaged_superblock_copy_is_shown_mended_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let devices = pool(folder.path());
    let file = std::fs::OpenOptions::new().write(true).open(&devices[0]).unwrap();
    file.write_all_at(&[0xff; 16], 65536 + 300).unwrap();
    let shown = json(&["dump", "superblock"], &devices);
    let state = shown[0]["copies"][0]["state"].as_str().unwrap();
    assert!(state.starts_with("bad: checksum"), "{state}");
    let report = json(&["fsck"], &devices);
    let note = report["notes"][0].as_str().unwrap();
    assert!(note.contains("written anew") && note.contains("65536"), "{note}");
    let shown = json(&["dump", "superblock"], &devices);
    assert_eq!(shown[0]["copies"][0]["state"], "good");
    assert_eq!(json(&["fsck"], &devices)["notes"], serde_json::json!([]));
}

#[test]
fn swapped_and_copied_files_are_sorted_out_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let devices = pool(folder.path());
    let swapped = vec![devices[1].clone(), devices[0].clone()];
    assert_eq!(json(&["fsck"], &swapped)["problem_count"], 0);
    let copy = folder.path().join("copy");
    std::fs::copy(&devices[0], &copy).unwrap();
    let both = [devices.clone(), vec![copy.clone()]].concat();
    assert!(fails(1, &["fsck"], &both).contains("one is a copy of the other"));
    assert!(fails(1, &["fsck"], &[devices[0].clone(), copy]).contains("member 1"));
}

#[test]
fn a_whole_pool_needs_no_repair() {
    let folder = tempfile::tempdir().unwrap();
    let devices = pool(folder.path());
    let report = json(&["fsck", "--repair"], &devices);
    assert_eq!((&report["problem_count"], &report["notes"]), (&0.into(), &serde_json::json!([])));
    assert_eq!(run(&["fsck", "--yes"], &devices).status.code(), Some(2), "--yes needs --repair");
}

#[test]
fn a_lost_node_is_given_up_only_when_agreed_to() {
    let folder = tempfile::tempdir().unwrap();
    let devices = pool(folder.path());
    let mut open = engine_embed::LocalPool::open(&devices).unwrap();
    let names = ["a", "b", "c"];
    open.run(async move |client, _| {
        let tree = TreeRef::from(&client.tree_create("t").await.unwrap());
        for name in names {
            let attributes = CreateAttributes::default();
            let created =
                client.create(tree, tree.root, name.as_bytes(), FileKind::File, attributes);
            created.await.unwrap();
        }
    })
    .unwrap();
    open.close().unwrap();
    // Copies, which this process does not have open.
    let devices: Vec<PathBuf> = devices
        .iter()
        .map(|device| {
            let copy = device.with_extension("copy");
            std::fs::copy(device, &copy).unwrap();
            copy
        })
        .collect();
    // The first subvolume is at home on shard 1.
    let root = &json(&["dump", "roots", "--shard", "1"], &devices)[2];
    assert_eq!(root["tree"], "dirents");
    let (member, block) = (&root["pointer"]["member"], &root["pointer"]["block"]);
    let device = &devices[member.as_u64().unwrap() as usize];
    let file = std::fs::OpenOptions::new().write(true).open(device).unwrap();
    file.write_all_at(&[0xff; 64], block.as_u64().unwrap() * 4096 + 100).unwrap();
    assert!(fails(8, &["fsck"], &devices).contains("--repair"));
    assert!(fails(5, &["fsck", "--repair"], &devices).contains("--yes"));
    let report = json(&["fsck", "--repair", "--yes"], &devices);
    assert_eq!(report["problem_count"], 0, "{report}");
    assert!(report["notes"].to_string().contains("is lost"), "{report}");
    let found = json(&["dump", "path", "t:/lost+found"], &devices);
    assert_eq!(found.as_array().unwrap().last().unwrap()["value"]["size"], 3, "{found}");
    assert_eq!(json(&["fsck"], &devices)["problem_count"], 0);
}
