//! A target on loopback whose volumes are memory, driven by a plain poll loop.
//!
//! usage: memory_target [ADDRESS] [MIB]     (127.0.0.1:4420, 64)
//!
//! Two namespaces of `MIB` each: nsid 1 with 512-byte blocks, nsid 2 with 4096-byte blocks. Commands on
//! standard input: `grow MIB`, `remove`, `add` (nsid 2), `list`, `quit`.
#![allow(clippy::print_stdout, reason = "an example talks to its user")]

use nvme_spec::Nqn;
use nvme_target::testing::{HostRuntime, MemoryBackend};
use nvme_target::{Limits, NamespaceConfig, SubsystemConfig, Target, TargetCore, VolumeKey};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::BufRead;
use std::rc::Rc;
use std::sync::mpsc;

const NQN: &str = "nqn.2026-01.io.cairn:memory";

fn namespace(nsid: u32, block_size_log2: u8, bytes: u64) -> NamespaceConfig {
    NamespaceConfig {
        nsid,
        volume: VolumeKey(u64::from(nsid)),
        block_size_log2,
        size_blocks: bytes >> block_size_log2,
        nguid: [nsid as u8; 16],
        uuid: [0x40 + nsid as u8; 16],
        read_only: false,
        atomic_write_blocks: 1 << (12 - block_size_log2),
        preferred_io_blocks: 1 << (12 - block_size_log2),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:4420".into()).parse()?;
    let bytes = arguments.next().map_or(Ok(64), |mib| mib.parse::<u64>())? << 20;
    let backend = MemoryBackend::default();
    let volumes = [1, 2].map(|key| backend.add(VolumeKey(key), bytes as usize));
    let target = Target::new(Limits::default())?;
    let nqn = Nqn::new(NQN)?;
    target.add_subsystem(SubsystemConfig::open_to_all(nqn.clone(), "CAIRN0000001"))?;
    target.add_namespace(&nqn, namespace(1, 9, bytes))?;
    target.add_namespace(&nqn, namespace(2, 12, bytes))?;
    let mut core = TargetCore::new(&target, backend, Rc::new(HostRuntime::new()))?;
    println!("listening on {}", target.add_listener(address)?);
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let mut idle = 0;
    loop {
        idle = if core.poll() > 0 { 0 } else { idle + 1 };
        if idle < 2000 {
            continue;
        }
        if let Ok(line) = lines.try_recv() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["quit"] => return Ok(()),
                ["grow", mib] => {
                    let bytes = mib.parse::<u64>()? << 20;
                    volumes[1].resize(bytes as usize);
                    target.resize_namespace(&nqn, 2, bytes >> 12)?;
                }
                ["remove"] => target.remove_namespace(&nqn, 2)?,
                ["add"] => target.add_namespace(&nqn, namespace(2, 12, bytes))?,
                ["list"] => println!("{:#?}", target.controllers()),
                _ => println!("unknown command: {line}"),
            }
            continue;
        }
        if core.prepare_to_sleep() {
            let mut fds = [PollFd::from_borrowed_fd(core.wake_fd(), PollFlags::IN)];
            let timeout = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            poll(&mut fds, Some(&timeout))?;
        }
    }
}
