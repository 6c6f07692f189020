//! Names: create empty files in one directory, look at each, remove each.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow};
use engine_embed::{LocalLink, LocalPool};
use engine_store::StoreError;
use engine_store::api::{CreateAttributes, FileKind, TreeRef};
use engine_store::client::Client;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};

const TREE: &str = "bench-files";

/// Operations per second of each kind, as JSON.
struct Rates {
    create: f64,
    stat: f64,
    unlink: f64,
}

impl Rates {
    fn to_json(&self) -> String {
        let Self { create, stat, unlink } = self;
        format!("{{\"create\":{create:.0},\"stat\":{stat:.0},\"unlink\":{unlink:.0}}}")
    }
}

fn name(index: u64) -> String {
    format!("file-{index:08}")
}

/// Through the engine, `depth` operations in flight. What is created is acknowledged as it is to any
/// client: it outlives the process.
pub(crate) fn engine(path: &Path, count: u64, depth: u32) -> Result<String> {
    let mut pool =
        LocalPool::open(&[path.to_owned()]).map_err(|problems| anyhow!(problems.join("; ")))?;
    let rates = pool
        .run(async move |client, _| in_engine(&client, count, depth as usize).await)
        .map_err(|fault| anyhow!(fault))??;
    pool.close().map_err(|problem| anyhow!(problem))?;
    Ok(rates.to_json())
}

async fn in_engine(client: &Client<LocalLink>, count: u64, depth: usize) -> Result<Rates> {
    let info = match client.subvolume_get(TREE).await {
        Err(StoreError::NotFound { .. }) => client.tree_create(TREE).await?,
        found => found?,
    };
    let tree = TreeRef::from(&info);
    let root = tree.root;
    let create = timed(count, async {
        let attributes = CreateAttributes { mode: 0o644, uid: 0, gid: 0 };
        let create = |index| async move {
            let name = name(index);
            client.create(tree, root, name.as_bytes(), FileKind::File, attributes).await.map(drop)
        };
        all(count, depth, create).await
    });
    let create = create.await?;
    let stat = timed(count, async {
        let stat = |index| async move {
            client.lookup(tree, root, name(index).as_bytes()).await.map(drop)
        };
        all(count, depth, stat).await
    });
    let stat = stat.await?;
    let unlink = timed(count, async {
        let unlink =
            |index| async move { client.remove(tree, root, name(index).as_bytes(), false).await };
        all(count, depth, unlink).await
    });
    Ok(Rates { create, stat, unlink: unlink.await? })
}

async fn all<F: Future<Output = Result<(), StoreError>>>(
    count: u64,
    depth: usize,
    operation: impl Fn(u64) -> F,
) -> Result<()> {
    let mut running = stream::iter(0..count).map(operation).buffer_unordered(depth);
    while running.try_next().await?.is_some() {}
    Ok(())
}

/// Operations per second of `count` that `work` does.
async fn timed(count: u64, work: impl Future<Output = Result<()>>) -> Result<f64> {
    let started = Instant::now();
    work.await?;
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

/// Through the kernel, in a directory of a mounted file system, one after the other.
pub(crate) fn kernel(directory: &Path, count: u64) -> Result<String> {
    let directory = directory.join("files");
    std::fs::create_dir(&directory).with_context(|| format!("{}", directory.display()))?;
    let rate = |operation: &dyn Fn(&Path) -> std::io::Result<()>| -> Result<f64> {
        let started = Instant::now();
        for index in 0..count {
            operation(&directory.join(name(index)))?;
        }
        Ok(count as f64 / started.elapsed().as_secs_f64())
    };
    let create = rate(&|path| std::fs::File::create_new(path).map(drop))?;
    // Inodes and names come from the file system, not from the kernel's cache of names, as ours do.
    std::fs::write("/proc/sys/vm/drop_caches", "2").context("dropping the cache of names")?;
    let stat = rate(&|path| std::fs::metadata(path).map(drop))?;
    let unlink = rate(&|path| std::fs::remove_file(path))?;
    std::fs::remove_dir(&directory)?;
    Ok(Rates { create, stat, unlink }.to_json())
}
