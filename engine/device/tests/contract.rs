//! Every device of this crate keeps the contract.
//!
//! `CONTRACT_SEED` chooses the seed, `CONTRACT_ROUNDS` how many rounds of random operations.
// Everything here is a test or a part of one.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use engine_device::contract::{self, Plan};
use engine_device::{
    Allocation, BlockDevice, DirectIo, Discard, FaultyDevice, FileDevice, MemoryDevice,
    OpenOptions, QueueExt,
};

const DEVICE_BYTES: u64 = 16 << 20;

fn plan() -> Plan {
    let number = |name| std::env::var(name).ok().map(|text: String| text.parse::<u64>().unwrap());
    let default = Plan::default();
    let plan = Plan {
        seed: number("CONTRACT_SEED").unwrap_or(default.seed),
        rounds: number("CONTRACT_ROUNDS").map_or(default.rounds, |rounds| rounds as u32),
    };
    println!("seed {}, {} rounds", plan.seed, plan.rounds);
    plan
}

fn check_file(directory: &Path, options: &OpenOptions, allocation: Allocation) -> FileDevice {
    let directory = tempfile::tempdir_in(directory).unwrap();
    let path = directory.path().join("device");
    FileDevice::create(&path, DEVICE_BYTES, allocation).unwrap();
    let options = OpenOptions { discard: Discard::Always, ..options.clone() };
    let device = FileDevice::open(&path, &options).unwrap();
    println!("{:?}, buffered because: {:?}", device.info(), device.buffered_because());
    contract::check(&device, plan());
    device
}

#[test]
fn memory() {
    for block_size in [512, 4096] {
        contract::check(&MemoryDevice::new("memory", DEVICE_BYTES, block_size), plan());
    }
}

#[test]
fn faulty_without_faults() {
    let memory = Arc::new(MemoryDevice::new("memory", DEVICE_BYTES, 4096));
    contract::check(&FaultyDevice::new(memory, 1), plan());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device");
    FileDevice::create(&path, DEVICE_BYTES, Allocation::Full).unwrap();
    let file = Arc::new(FileDevice::open(&path, &OpenOptions::default()).unwrap());
    contract::check(&FaultyDevice::new(file, 1), plan());
}

#[test]
fn file() {
    check_file(&std::env::temp_dir(), &OpenOptions::default(), Allocation::Full);
}

#[test]
fn sparse_file_of_512_byte_blocks() {
    let options = OpenOptions { block_size: Some(512), ..OpenOptions::default() };
    check_file(&std::env::temp_dir(), &options, Allocation::Sparse);
}

#[test]
fn buffered_file() {
    let options = OpenOptions { direct: DirectIo::Off, ..OpenOptions::default() };
    let device = check_file(&std::env::temp_dir(), &options, Allocation::Full);
    assert!(device.buffered_because().is_some());
}

#[test]
fn file_in_memory() {
    let directory = Path::new("/dev/shm");
    if !directory.is_dir() {
        println!("skipped: this system has no tmpfs at /dev/shm");
        return;
    }
    let device = check_file(directory, &OpenOptions::default(), Allocation::Full);
    assert!(device.buffered_because().is_some(), "tmpfs has no direct I/O, and that is said");
}

/// A loop device on a file, detached at the end.
struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Why there is none, if there is none.
    fn attach(file: &Path) -> Result<Self, String> {
        let output = Command::new("losetup")
            .args(["--find", "--show", "--direct-io=on"])
            .arg(file)
            .output()
            .map_err(|error| format!("losetup: {error}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        Ok(Self { path: PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()) })
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let status = Command::new("losetup").arg("--detach").arg(&self.path).status();
        println!("detached {}: {status:?}", self.path.display());
    }
}

#[test]
fn block_device() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("backing");
    FileDevice::create(&file, DEVICE_BYTES, Allocation::Full).unwrap();
    let attached = match LoopDevice::attach(&file) {
        Ok(attached) => attached,
        Err(cause) => {
            println!("skipped: no loop device can be made here (needs root): {cause}");
            return;
        }
    };
    let device = FileDevice::open(&attached.path, &OpenOptions::default()).unwrap();
    println!("{:?}, buffered because: {:?}", device.info(), device.buffered_because());
    assert_eq!(device.info().size_bytes, DEVICE_BYTES);
    assert_eq!(device.buffered_because(), None);
    let second = FileDevice::open(&attached.path, &OpenOptions::default()).err().unwrap();
    assert!(second.to_string().contains("in use"), "{second}");
    contract::check(&device, plan());
    drop(device);
    for _ in 0..20 {
        let again = FileDevice::open(&attached.path, &OpenOptions::default());
        let again = again.expect("a closed device is free at once");
        let queue = again.open_queue(4).unwrap();
        contract::block_on(&*queue, queue.flush()).unwrap();
    }
}
