//! Snapshots from one pool to another and on: whole, as differences, and cut off everywhere.
#![allow(clippy::unwrap_used)] // helpers of tests, which the configuration does not take for tests

mod trees;
mod volumes;

use engine_device::MemoryDevice;
use engine_embed::{LocalLink, LocalPool};
use engine_store::StoreError;
use engine_store::api::{NewSnapshot, SubvolumeInfo, Verify};
use engine_store::client::Client;
use engine_store::pool::FormatOptions;
use engine_transfer::{Receiver, ResumeToken, Sender};

/// A pool with methods that are over when they return.
struct Node(LocalPool);

impl Node {
    fn new(seed: u64, shards: u16) -> Self {
        let device = MemoryDevice::new("memory", 512 << 20, 4096);
        let (shards, uuid_seed) = (Some(shards), [seed, 2]);
        let options = FormatOptions { shards, uuid_seed, ..Default::default() };
        Self(LocalPool::in_memory(&[device], options).unwrap())
    }

    fn run<T: 'static>(&mut self, work: impl AsyncFnOnce(Client<LocalLink>) -> T + 'static) -> T {
        self.0.run(async move |client, _| work(client).await).unwrap()
    }

    fn snapshot(&mut self, source: &str, name: &str) -> SubvolumeInfo {
        let (source, name) = (source.to_owned(), name.to_owned());
        let new = NewSnapshot { source, name, writable: false };
        self.run(async move |client| client.snapshot_create(&[new]).await.unwrap().remove(0))
    }

    fn get(&mut self, name: &str) -> Result<SubvolumeInfo, StoreError> {
        let name = name.to_owned();
        self.run(async move |client| client.subvolume_get(&name).await)
    }

    fn send(&mut self, snapshot: &str, base: Option<&str>) -> Result<Vec<u8>, StoreError> {
        let (snapshot, base) = (snapshot.to_owned(), base.map(str::to_owned));
        self.run(async move |client| {
            let sender = Sender::start(&client, &snapshot, base.as_deref()).await?;
            all_of(sender).await
        })
    }

    fn send_rest(&mut self, token: ResumeToken) -> Result<Vec<u8>, StoreError> {
        self.run(async move |client| all_of(Sender::resume(&client, token).await?).await)
    }

    fn receive(&mut self, name: &str, stream: &[u8]) -> Result<SubvolumeInfo, StoreError> {
        let (name, stream) = (name.to_owned(), stream.to_vec());
        self.run(async move |client| {
            let mut receiver = Receiver::new(&client, &name);
            for piece in stream.chunks(100_000) {
                receiver.feed(piece).await?;
            }
            receiver.finish().await
        })
    }

    fn check(&mut self) {
        let report = self.run(async |client| client.fsck(Verify::All).await.unwrap());
        assert_eq!(report.problems, Vec::<String>::new());
    }
}

async fn all_of(mut sender: Sender<'_, LocalLink>) -> Result<Vec<u8>, StoreError> {
    let mut stream = Vec::new();
    while let Some(bytes) = sender.next().await? {
        stream.extend(bytes);
    }
    Ok(stream)
}
