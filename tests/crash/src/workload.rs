//! The load: writers that remember what they were promised, and check it after a restart.
//!
//! A worker does one thing at a time, so that it always knows what was acknowledged before what. It
//! ends when a call fails. After the kill that is how it should end; before, it is a finding.

use std::net::SocketAddr;
use std::ops::AddAssign;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use engine_base::random::Random;
use nvme_spec::Nqn;
use tonic::transport::Channel;

use crate::content::{BLOCK_BYTES, fill, version_of};
use crate::model::{Blocks, Files as FileVersions, Outcome, Tree};
use crate::nvme::Initiator;
use crate::rpc::{Files, Write};

/// Blocks that one block worker owns: 16 MiB, so four chunks of the engine.
pub(crate) const BLOCKS_PER_WORKER: usize = 4096;
/// Most blocks in one write: 64 KiB.
const RUN_BLOCKS_MAX: u64 = 16;
/// Files of one tree: few, so that most changes replace or remove one.
const FILES_PER_TREE: u64 = 8;
/// Longest replaced file: more than one message, and within the first chunk.
const FILE_BYTES_MAX: u64 = 300 << 10;
/// Blocks read at once when everything is verified.
const VERIFY_BLOCKS: usize = 64;

/// How to reach a daemon that runs, and whether it has been killed.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) channel: Channel,
    pub(crate) nvme: SocketAddr,
    pub(crate) killed: Arc<AtomicBool>,
}

/// What was done and found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) writes: u64,
    pub(crate) flushes: u64,
    pub(crate) reads: u64,
    pub(crate) verified: u64,
    pub(crate) survived: u64,
    pub(crate) lost: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.writes += other.writes;
        self.flushes += other.flushes;
        self.reads += other.reads;
        self.verified += other.verified;
        self.survived += other.survived;
        self.lost += other.lost;
    }
}

impl Counts {
    fn found(&mut self, outcome: Outcome) {
        self.verified += 1;
        match outcome {
            Outcome::Kept => {}
            Outcome::Survived => self.survived += 1,
            Outcome::Lost => self.lost += 1,
        }
    }
}

/// One writer.
pub(crate) struct Worker {
    name: String,
    random: Random,
    /// The last version handed out; versions are unique within a worker.
    version: u64,
    number: u64,
    kind: Kind,
    pub(crate) counts: Counts,
}

enum Kind {
    /// Replaces, removes and syncs files of a tree.
    Tree { tree: String, model: Tree },
    /// Overwrites blocks of one large file.
    File { tree: String, model: Blocks },
    /// Overwrites blocks of a part of a volume.
    Volume { nqn: Nqn, first: u64, model: Blocks },
}

impl Worker {
    pub(crate) fn tree(number: u64, tree: &str, random: Random) -> Self {
        Self::new(
            number,
            tree,
            random,
            Kind::Tree { tree: tree.to_owned(), model: Tree::default() },
        )
    }

    pub(crate) fn file(number: u64, tree: &str, random: Random) -> Self {
        let model = Blocks::new(BLOCKS_PER_WORKER);
        Self::new(number, tree, random, Kind::File { tree: tree.to_owned(), model })
    }

    pub(crate) fn volume(number: u64, nqn: Nqn, first: u64, random: Random) -> Self {
        let model = Blocks::new(BLOCKS_PER_WORKER);
        Self::new(number, &format!("volume-{number}"), random, Kind::Volume { nqn, first, model })
    }

    fn new(number: u64, name: &str, random: Random, kind: Kind) -> Self {
        let name = name.to_owned();
        Self { name, random, version: 0, number, kind, counts: Counts::default() }
    }

    /// After a restart: everything promised is there.
    pub(crate) async fn verify(mut self, session: Session) -> Result<Self> {
        let done = match &self.kind {
            Kind::Tree { .. } => self.verify_tree(&session).await,
            Kind::File { .. } | Kind::Volume { .. } => self.verify_blocks(&session).await,
        };
        done.with_context(|| format!("worker {} after a restart", self.name))?;
        Ok(self)
    }

    /// Works until a call fails, which it does when the daemon is killed.
    pub(crate) async fn work(mut self, session: Session) -> Result<Self> {
        let ended = match &self.kind {
            Kind::Tree { .. } => self.work_on_tree(&session).await,
            Kind::File { .. } | Kind::Volume { .. } => self.work_on_blocks(&session).await,
        };
        match ended {
            Err(error) if !session.killed.load(Ordering::SeqCst) => {
                Err(error.context(format!("worker {}, while the daemon ran", self.name)))
            }
            _ => Ok(self),
        }
    }

    async fn verify_tree(&mut self, session: &Session) -> Result<()> {
        let Kind::Tree { tree, model } = &mut self.kind else { return Ok(()) };
        let mut files = Files::new(session.channel.clone(), tree);
        let mut found = FileVersions::new();
        for file in 0..FILES_PER_TREE {
            let content = files.read(&path_of(file), 0, None).await?;
            if let Some(content) = content {
                let version = version_of(object(self.number, file), &content)
                    .with_context(|| format!("{} of {tree}", path_of(file)))?;
                ensure!(version != 0, "{} of {tree} is empty after a rename", path_of(file));
                found.insert(file, version);
            }
        }
        self.counts.found(model.recovered(&found)?);
        Ok(())
    }

    async fn work_on_tree(&mut self, session: &Session) -> Result<()> {
        let Kind::Tree { tree, model } = &mut self.kind else { return Ok(()) };
        let mut files = Files::new(session.channel.clone(), tree);
        loop {
            let file = self.random.below(FILES_PER_TREE);
            let exists = model.current().get(&file).copied();
            match (self.random.below(100), exists) {
                (0..55, _) => {
                    self.version += 1;
                    let len = random_length(&mut self.random);
                    let data = fill(object(self.number, file), self.version, len);
                    let how = Write { truncate: true, sync: false };
                    files.write("/new", 0, data, how).await?;
                    model.sent(file, self.version);
                    files.rename("/new", &path_of(file)).await?;
                    model.acknowledged();
                    self.counts.writes += 1;
                }
                (55..65, Some(_)) => {
                    model.sent(file, 0);
                    files.remove(&path_of(file)).await?;
                    model.acknowledged();
                    self.counts.writes += 1;
                }
                (65..80, _) => {
                    files.sync("/").await?;
                    self.counts.flushes += 1;
                }
                (_, expected) => {
                    let content = files.read(&path_of(file), 0, None).await?;
                    let found = content.map(|c| version_of(object(self.number, file), &c));
                    let found = found.transpose()?;
                    ensure!(found == expected, "{tree} {file}: {found:?}, not {expected:?}");
                    self.counts.reads += 1;
                }
            }
        }
    }

    async fn verify_blocks(&mut self, session: &Session) -> Result<()> {
        let mut target = Target::open(&self.kind, self.number, session).await?;
        let (Kind::File { model, .. } | Kind::Volume { model, .. }) = &mut self.kind else {
            return Ok(());
        };
        for first in (0..model.len()).step_by(VERIFY_BLOCKS) {
            let data = target.read(first, VERIFY_BLOCKS.min(model.len() - first)).await?;
            for (index, bytes) in data.chunks(BLOCK_BYTES).enumerate() {
                let block = first + index;
                let version = version_of(object(self.number, block as u64), bytes)
                    .with_context(|| format!("block {block}"))?;
                self.counts.found(model.recovered(block, version)?);
            }
        }
        Ok(())
    }

    async fn work_on_blocks(&mut self, session: &Session) -> Result<()> {
        let mut target = Target::open(&self.kind, self.number, session).await?;
        let (Kind::File { model, .. } | Kind::Volume { model, .. }) = &mut self.kind else {
            return Ok(());
        };
        loop {
            let first = self.random.below(model.len() as u64) as usize;
            let run = self.random.range(1, RUN_BLOCKS_MAX) as usize;
            let blocks = first..model.len().min(first + run);
            match self.random.below(100) {
                0..55 => {
                    let mut data = Vec::with_capacity(blocks.len() * BLOCK_BYTES);
                    for block in blocks.clone() {
                        self.version += 1;
                        model.sent(block, self.version);
                        let object = object(self.number, block as u64);
                        data.extend_from_slice(&fill(object, self.version, BLOCK_BYTES));
                    }
                    let durable = self.random.chance(15, 100);
                    target.write(first, data, durable).await?;
                    blocks.for_each(|block| model.acknowledged(block));
                    self.counts.writes += 1;
                }
                55..65 => {
                    target.flush().await?;
                    self.counts.flushes += 1;
                }
                _ => {
                    let data = target.read(first, blocks.len()).await?;
                    for (block, bytes) in blocks.zip(data.chunks(BLOCK_BYTES)) {
                        let found = version_of(object(self.number, block as u64), bytes)?;
                        let expected = model.expected(block);
                        ensure!(
                            expected.is_none_or(|version| version == found),
                            "block {block} shows version {found}, not {expected:?}"
                        );
                    }
                    self.counts.reads += 1;
                }
            }
        }
    }
}

/// Where blocks are written to.
enum Target {
    File(Files),
    Volume { initiator: Initiator, first: u64 },
}

/// The large file of a tree.
const BLOCK_FILE: &str = "/blocks";

impl Target {
    async fn open(kind: &Kind, number: u64, session: &Session) -> Result<Self> {
        match kind {
            Kind::Tree { tree, .. } | Kind::File { tree, .. } => {
                Ok(Self::File(Files::new(session.channel.clone(), tree)))
            }
            Kind::Volume { nqn, first, .. } => {
                let initiator = Initiator::connect(session.nvme, nqn, number as u8).await?;
                Ok(Self::Volume { initiator, first: *first })
            }
        }
    }

    async fn write(&mut self, block: usize, data: Vec<u8>, durable: bool) -> Result<()> {
        match self {
            Self::File(files) => {
                let offset = (block * BLOCK_BYTES) as u64;
                let how = Write { truncate: false, sync: durable };
                files.write(BLOCK_FILE, offset, data, how).await
            }
            Self::Volume { initiator, first } => {
                initiator.write(*first + block as u64, &data, durable).await
            }
        }
    }

    /// Reads `count` blocks; past the end of a file there are zeroes.
    async fn read(&mut self, block: usize, count: usize) -> Result<Vec<u8>> {
        let mut data = vec![0; count * BLOCK_BYTES];
        match self {
            Self::File(files) => {
                let offset = (block * BLOCK_BYTES) as u64;
                let read = files.read(BLOCK_FILE, offset, Some(data.len() as u64)).await?;
                let read = read.unwrap_or_default();
                let place = data.get_mut(..read.len()).context("more than was asked for")?;
                place.copy_from_slice(&read);
            }
            Self::Volume { initiator, first } => {
                initiator.read(*first + block as u64, &mut data).await?;
            }
        }
        Ok(data)
    }

    async fn flush(&mut self) -> Result<()> {
        match self {
            // Before the first write there is no file to sync.
            Self::File(files) => match files.read(BLOCK_FILE, 0, Some(1)).await? {
                Some(_) => files.sync(BLOCK_FILE).await,
                None => Ok(()),
            },
            Self::Volume { initiator, .. } => initiator.flush().await,
        }
    }
}

fn path_of(file: u64) -> String {
    format!("/file-{file}")
}

/// A number for a file or block that no other worker uses.
fn object(worker: u64, index: u64) -> u64 {
    worker << 32 | index
}

/// Mostly small files, some of several messages.
fn random_length(random: &mut Random) -> usize {
    let longest = *random.pick(&[4096, 20_000, FILE_BYTES_MAX]);
    random.range(32, longest) as usize
}
