//! Kills `cairnd` with SIGKILL at random moments under load and checks what it had promised.
//!
//! One run: a pool on files, writers over gRPC and NVMe/TCP, a kill, a restart, every promise
//! checked, fsck, the next load. Some kills hit the daemon while it recovers. The schedule follows
//! from the seed; the timing of the machine does not, so a seed makes a failure likely to return,
//! not certain. A failure leaves the pool and the daemon's log where they are.
//! What it cannot test: power loss. The kernel keeps what a killed process wrote; the simulator loses
//! it (engine/sim).
// A program that talks to people and measures its own time.
#![allow(clippy::print_stdout, clippy::disallowed_methods)]

mod content;
mod daemon;
mod model;
mod nvme;
mod rpc;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Parser;
use engine_base::random::Random;
use nvme_spec::Nqn;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;

use crate::content::BLOCK_BYTES;
use crate::daemon::{Daemon, Pool};
use crate::workload::{BLOCKS_PER_WORKER, Counts, Session, Worker};

/// Longest time that checking all promises, or ending the load after a kill, may take.
const PHASE_TIMEOUT: Duration = Duration::from_secs(60);
/// The load runs this long at least and at most before the kill.
const LOAD_MS: (u64, u64) = (20, 1500);
/// A start is interrupted after this long at most.
const START_MS_MAX: u64 = 200;
/// One start in so many is interrupted.
const INTERRUPTED_IN: u64 = 6;
/// One check in so many reads all data; the last one does.
const VERIFY_DATA_IN: u64 = 10;
/// Size of each of the two members.
const MEMBER_BYTES: u64 = 1 << 30;
const NQN: &str = "nqn.2014-08.org.nvmexpress:crash-test";
const VOLUME_WORKERS: u64 = 2;

/// Kills the daemon under load and checks what it promised.
#[derive(Parser)]
struct Args {
    /// The daemon
    #[arg(long)]
    daemon: PathBuf,
    /// The command line, to make the pool
    #[arg(long)]
    cli: PathBuf,
    /// How often to kill
    #[arg(long, default_value_t = 100)]
    kills: u64,
    /// Seed of the schedule; from the clock unless given
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
    });
    println!("crash test: {} kills, --seed {seed}", args.kills);
    let directory = tempfile::Builder::new().prefix("cairn-crash-").tempdir()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(run(&args, seed, directory.path()));
    if let Err(error) = result {
        let kept = directory.keep();
        println!("crash test FAILED, --seed {seed}: {error:?}");
        println!("the pool and the daemon's log are in {}", kept.display());
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

async fn run(args: &Args, seed: u64, directory: &std::path::Path) -> Result<()> {
    let started = Instant::now();
    let mut random = Random::new(seed);
    let pool = Pool::format(directory, &args.daemon, &args.cli, 2, MEMBER_BYTES).await?;
    let mut daemon = pool.start()?;
    let mut channel = pool.ready(&mut daemon).await?;
    let mut workers = set_up(channel.clone(), &mut random).await?;

    let (mut kills, mut interrupted) = (0, 0);
    while kills < args.kills {
        let round = kills + 1;
        let load = session(&channel, &pool);
        workers = load_and_kill(workers, load, daemon, &mut random)
            .await
            .with_context(|| format!("before kill {round}"))?;
        kills += 1;
        while kills < args.kills && random.chance(1, INTERRUPTED_IN) {
            let daemon = pool.start()?;
            sleep(Duration::from_millis(random.below(START_MS_MAX))).await;
            daemon.kill().await.context("during a start")?;
            kills += 1;
            interrupted += 1;
        }
        daemon = pool.start()?;
        channel = pool.ready(&mut daemon).await.with_context(|| format!("after kill {kills}"))?;
        workers = verify(workers, session(&channel, &pool))
            .await
            .with_context(|| format!("after kill {kills}"))?;
        let verify_data = kills >= args.kills || random.chance(1, VERIFY_DATA_IN);
        rpc::check(channel.clone(), verify_data)
            .await
            .with_context(|| format!("fsck after kill {kills}"))?;
        if kills % 10 == 0 || kills >= args.kills {
            println!("  {kills} kills, {} s", started.elapsed().as_secs());
        }
    }
    daemon.kill().await?;
    let mut counts = Counts::default();
    workers.iter().for_each(|worker| counts += worker.counts);
    println!(
        "crash test passed: {kills} kills ({interrupted} of them during a start), --seed {seed}, {} s",
        started.elapsed().as_secs()
    );
    println!(
        "  {} writes, {} flushes, {} reads; {} promises checked; of what was in doubt, {} is there \
         and {} is not",
        counts.writes, counts.flushes, counts.reads, counts.verified, counts.survived, counts.lost
    );
    Ok(())
}

fn session(channel: &Channel, pool: &Pool) -> Session {
    let killed = Arc::new(AtomicBool::new(false));
    Session { channel: channel.clone(), nvme: pool.nvme_address(), killed }
}

/// Creates what the workers write to, and the workers.
async fn set_up(channel: Channel, random: &mut Random) -> Result<Vec<Worker>> {
    let mut workers = Vec::new();
    for (number, tree) in ["tree-a", "tree-b"].into_iter().enumerate() {
        rpc::create_tree(channel.clone(), tree).await?;
        workers.push(Worker::tree(number as u64, tree, random.fork()));
    }
    rpc::create_tree(channel.clone(), "blocks").await?;
    workers.push(Worker::file(2, "blocks", random.fork()));
    let blocks = BLOCKS_PER_WORKER as u64;
    let bytes = VOLUME_WORKERS * blocks * BLOCK_BYTES as u64;
    rpc::create_volume(channel, "disk", bytes, NQN).await?;
    for part in 0..VOLUME_WORKERS {
        let nqn = Nqn::new(NQN)?;
        workers.push(Worker::volume(3 + part, nqn, part * blocks, random.fork()));
    }
    Ok(workers)
}

/// Lets all workers work, kills the daemon after a random time, and waits until they have ended.
async fn load_and_kill(
    workers: Vec<Worker>,
    session: Session,
    daemon: Daemon,
    random: &mut Random,
) -> Result<Vec<Worker>> {
    let mut tasks = JoinSet::new();
    for worker in workers {
        tasks.spawn(worker.work(session.clone()));
    }
    sleep(Duration::from_millis(random.range(LOAD_MS.0, LOAD_MS.1))).await;
    session.killed.store(true, Ordering::SeqCst);
    daemon.kill().await?;
    join(tasks).await.context("the load")
}

/// Checks every promise to every worker.
async fn verify(workers: Vec<Worker>, session: Session) -> Result<Vec<Worker>> {
    let mut tasks = JoinSet::new();
    for worker in workers {
        tasks.spawn(worker.verify(session.clone()));
    }
    join(tasks).await
}

async fn join(mut tasks: JoinSet<Result<Worker>>) -> Result<Vec<Worker>> {
    let all = async {
        let mut workers = Vec::new();
        while let Some(ended) = tasks.join_next().await {
            workers.push(ended.context("a worker panicked")??);
        }
        Ok(workers)
    };
    timeout(PHASE_TIMEOUT, all).await.context("a worker hangs")?
}
