//! A target, without sockets, with hosts on the other ends of its connections.

use super::host::{Answer, HostOptions, TestHost};
use super::memory::{MemoryBackend, MemoryVolume};
use crate::backend::VolumeKey;
use crate::connection::{Connection, CoreContext};
use crate::limits::Limits;
use crate::signal::{ConnectionSignal, CoreSignal};
use crate::subsystem::{NamespaceConfig, SubsystemConfig};
use crate::target::Target;
use engine_base::random::Random;
use nvme_spec::{Nqn, register};
use std::rc::Rc;
use std::sync::Arc;

/// The value of CC that enables a controller as Linux does.
pub const CC_ENABLE: u32 = 0x0046_0001;

/// A connection and its host.
pub struct Link {
    /// The target's end.
    pub connection: Connection<MemoryBackend>,
    /// The host's end.
    pub host: TestHost,
}

/// A target with one subsystem, one namespace (nsid 1) and connections that move bytes when told.
pub struct InProcess {
    /// The control handle.
    pub target: Target,
    /// The name of the subsystem.
    pub nqn: Nqn,
    /// The hosts' name.
    pub host_nqn: Nqn,
    /// The volume behind nsid 1.
    pub volume: MemoryVolume,
    /// All volumes.
    pub backend: MemoryBackend,
    /// What the connections share.
    pub context: Rc<CoreContext<MemoryBackend>>,
    /// The connections.
    pub links: Vec<Link>,
    /// Virtual time.
    pub now_ns: u64,
    signal: Arc<CoreSignal>,
    random: Option<Random>,
}

impl InProcess {
    /// `blocks` blocks of `1 << block_size_log2` bytes. With a seed the byte streams are cut at random
    /// places, else they travel whole.
    #[must_use]
    pub fn new(limits: Limits, block_size_log2: u8, blocks: u64, seed: Option<u64>) -> Self {
        let target = Target::new(limits).expect("the test's limits fit");
        let nqn = Nqn::new("nqn.2026-01.io.cairn:test").expect("a name");
        let backend = MemoryBackend::default();
        let volume = backend.add(VolumeKey(1), (blocks << block_size_log2) as usize);
        let config = SubsystemConfig::open_to_all(nqn.clone(), "TEST");
        target.add_subsystem(config).expect("a new subsystem");
        let namespace = test_namespace(1, VolumeKey(1), block_size_log2, blocks);
        target.add_namespace(&nqn, namespace).expect("a new namespace");
        Self {
            context: CoreContext::new(target.clone(), backend.clone()),
            target,
            nqn,
            host_nqn: Nqn::new("nqn.2026-01.io.cairn:host").expect("a name"),
            volume,
            backend,
            links: Vec::new(),
            now_ns: 1,
            signal: Arc::new(CoreSignal::new(64, None)),
            random: seed.map(Random::new),
        }
    }

    /// Adds a connection; returns its index.
    pub fn open(&mut self, host: TestHost) -> usize {
        let index = self.links.len();
        let slots = usize::from(self.target.limits().queue_entries_max);
        let signal = ConnectionSignal::new(Arc::clone(&self.signal), index, slots);
        let connection = Connection::new(Rc::clone(&self.context), signal, None, self.now_ns);
        self.links.push(Link { connection, host });
        index
    }

    /// Moves bytes and lets commands go on until nothing moves.
    pub fn pump(&mut self) {
        loop {
            let mut moved = false;
            for link in &mut self.links {
                let output = link.host.take_output();
                link.connection.set_now(self.now_ns);
                if !output.is_empty() {
                    moved = true;
                    feed_in_parts(&mut link.connection, &output, self.random.as_mut());
                }
                link.connection.turn(self.now_ns);
                while link.connection.has_output() {
                    moved = true;
                    let parts = link.connection.gather();
                    let bytes: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
                    drop(parts);
                    let len = cut(bytes.len(), self.random.as_mut());
                    link.host.feed(&bytes[..len]);
                    link.connection.transmitted(len);
                }
            }
            moved |= self.signal.take(|_| ());
            if !moved {
                return;
            }
        }
    }

    /// Moves the time and pumps.
    pub fn advance_ms(&mut self, ms: u64) {
        self.now_ns += ms * 1_000_000;
        self.pump();
    }

    /// Pumps and takes the answer of a command.
    ///
    /// # Panics
    /// When there is none.
    pub fn answer(&mut self, link: usize, cid: u16) -> Answer {
        self.pump();
        let host = &mut self.links[link].host;
        host.take_answer(cid).expect("the command was answered")
    }

    /// Runs a command to its end.
    pub fn run(&mut self, link: usize, submit: impl FnOnce(&mut TestHost) -> u16) -> Answer {
        let cid = submit(&mut self.links[link].host);
        self.answer(link, cid)
    }

    /// Connects an admin queue and enables the controller; returns the link and the controller id.
    pub fn connect_admin(&mut self, options: HostOptions, keep_alive_ms: u32) -> (usize, u16) {
        let (nqn, host_nqn) = (self.nqn.clone(), self.host_nqn.clone());
        let admin = self.open(TestHost::new(options));
        let answer = self.run(admin, |host| host.connect(0, None, &nqn, &host_nqn, keep_alive_ms));
        assert!(answer.status().is_success(), "{answer:?}");
        let id = answer.cqe.result.get() as u16;
        let enabled = self.run(admin, |host| host.property_set(register::CC, CC_ENABLE));
        assert!(enabled.status().is_success());
        (admin, id)
    }

    /// Connects I/O queue `queue_id` of controller `id`; returns the link.
    pub fn connect_io(&mut self, options: HostOptions, id: u16, queue_id: u16) -> usize {
        let (nqn, host_nqn) = (self.nqn.clone(), self.host_nqn.clone());
        let io = self.open(TestHost::new(options));
        let answer = self.run(io, |host| host.connect(queue_id, Some(id), &nqn, &host_nqn, 0));
        assert!(answer.status().is_success(), "{answer:?}");
        io
    }

    /// An admin queue and an I/O queue; returns both links.
    pub fn connect(&mut self, options: HostOptions) -> (usize, usize) {
        let (admin, id) = self.connect_admin(options, 0);
        let io = self.connect_io(options, id, 1);
        (admin, io)
    }
}

/// A namespace for tests.
#[must_use]
pub fn test_namespace(
    nsid: u32,
    volume: VolumeKey,
    block_size_log2: u8,
    size_blocks: u64,
) -> NamespaceConfig {
    NamespaceConfig {
        nsid,
        volume,
        block_size_log2,
        size_blocks,
        nguid: [nsid as u8; 16],
        uuid: [nsid as u8 ^ 0xff; 16],
        read_only: false,
        atomic_write_blocks: 1,
        preferred_io_blocks: 1,
    }
}

fn cut(len: usize, random: Option<&mut Random>) -> usize {
    random.map_or(len, |random| match random.below(4) {
        0 => random.range(1, (len as u64).min(9)) as usize,
        1 => random.range(1, (len as u64).min(200)) as usize,
        _ => random.range(1, len as u64) as usize,
    })
}

fn feed_in_parts(
    connection: &mut Connection<MemoryBackend>,
    bytes: &[u8],
    mut random: Option<&mut Random>,
) {
    let mut rest = bytes;
    while !rest.is_empty() {
        let len = cut(rest.len(), random.as_deref_mut());
        connection.feed(&rest[..len]);
        rest = &rest[len..];
    }
}
