//! Copies of one file by reference: the first, for which its extents come to be shared, and the second.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, anyhow, ensure};
use engine_base::random::Random;
use engine_base::{InodeNumber, KIB, MIB};
use engine_embed::{FormatRequest, LocalLink, LocalPool};
use engine_memory::Buffer;
use engine_store::api::{CopyMode, CreateAttributes, Data, FileKind, FilePlace, TreeRef};
use engine_store::client::Client;
use engine_store::pool::FormatOptions;

/// Blocks of a file of `mib` MiB, written in sequence, then overwritten at random in pieces of 4 KiB, so many of a
/// thousand of them; copied twice, and both copies removed. Milliseconds of each, as JSON.
pub(crate) fn engine(path: &Path, mib: u64, overwritten: u64, seed: u64) -> Result<String> {
    let devices = vec![path.to_owned()];
    let request = FormatRequest {
        devices,
        force: true,
        options: FormatOptions::default(),
        ..FormatRequest::default()
    };
    engine_embed::format(&request)?;
    let mut pool =
        LocalPool::open(&[path.to_owned()]).map_err(|problems| anyhow!(problems.join("; ")))?;
    let told = pool
        .run(async move |client, _| in_engine(&client, mib, overwritten, seed).await)
        .map_err(|fault| anyhow!(fault))??;
    pool.close().map_err(|problem| anyhow!(problem))?;
    Ok(told)
}

async fn in_engine(
    client: &Client<LocalLink>,
    mib: u64,
    overwritten: u64,
    seed: u64,
) -> Result<String> {
    let tree = TreeRef::from(&client.tree_create("bench-copies").await?);
    let source = create(client, tree, b"source").await?;
    let mut random = Random::new(seed);
    let mut buffer = Buffer::try_new(MIB as usize)?;
    random.fill(&mut buffer);
    let data = buffer.freeze();
    for at in 0..mib {
        client.file_write(tree, source, at * MIB, Data::from_iter([data.clone()])).await?;
    }
    let piece = data.slice(0..4096);
    for _ in 0..mib * 256 * overwritten / 1000 {
        let at = random.below(mib * 256) * 4 * KIB;
        client.file_write(tree, source, at, Data::from_iter([piece.clone()])).await?;
    }
    client.flush().await?;
    let place = |inode| FilePlace { tree, inode, offset: 0 };
    let mut times = Vec::new();
    for name in [b"first".as_slice(), b"second"] {
        let target = create(client, tree, name).await?;
        let began = Instant::now();
        let stats =
            client.file_copy(place(source), place(target), mib * MIB, CopyMode::Auto).await?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        ensure!(stats.copied_bytes == 0, "{stats:?}");
    }
    let began = Instant::now();
    for name in [b"second".as_slice(), b"first"] {
        client.remove(tree, tree.root, name, false).await?;
    }
    times.push(began.elapsed().as_secs_f64() * 1e3);
    let (first, second, remove) = (times[0], times[1], times[2]);
    Ok(format!("{{\"first_ms\":{first:.2},\"second_ms\":{second:.2},\"remove_ms\":{remove:.2}}}"))
}

async fn create(client: &Client<LocalLink>, tree: TreeRef, name: &[u8]) -> Result<InodeNumber> {
    let attributes = CreateAttributes { mode: 0o644, uid: 0, gid: 0 };
    Ok(client.create(tree, tree.root, name, FileKind::File, attributes).await?.inode)
}
