//! Exports: records in the engine, subsystems of the running target.
//!
//! An export is a record of the collection [`COLLECTION`], named by its NQN. It is made durable
//! before it is served, and forgotten durably before it is served no more, so a restart brings back
//! what clients were told. Changes are made one at a time.
//!
//! What a client sends was checked by the gRPC front end; what the records hold is checked here, for
//! it comes from disk.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use api_grpc::{Export, ExportControl, ExportNamespace, ExportSpec};
use engine_base::ShardId;
use engine_store::api::{
    Link, PutMode, RECORD_BYTES_MAX, Reply, Request, SubvolumeInfo, SubvolumeKind,
};
use engine_store::client::{Client, VolumeRef};
use engine_store::{Result, StoreError};
use nvme_spec::Nqn;
use nvme_target::{ConfigError, NamespaceConfig, SubsystemConfig, Target, VolumeKey};
use serde::{Deserialize, Serialize};

/// Collection of the records.
const COLLECTION: &str = "exports";
/// Version of a record's form.
const RECORD_VERSION: u32 = 1;
/// log2 of the only logical block size that is served: the engine writes whole blocks of 4 KiB.
const BLOCK_SIZE_LOG2: u8 = 12;
/// Controller identifiers that one node gives out (NVMe Base Specification: 1 to FFEFh).
const CONTROLLER_IDS: std::ops::RangeInclusive<u16> = 1..=0xffef;

/// Volumes that the target may open, by their key; shared with the cores.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    volumes: Mutex<BTreeMap<VolumeKey, VolumeRef>>,
}

impl Volumes {
    /// The volume of this key.
    pub(crate) fn get(&self, key: VolumeKey) -> Option<VolumeRef> {
        self.lock().get(&key).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<VolumeKey, VolumeRef>> {
        // A map of plain values is whole even if its holder panicked.
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A record, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    serial: String,
    any_host: bool,
    hosts: Vec<String>,
    /// (NSID, name of the volume).
    namespaces: Vec<(u32, String)>,
}

/// Manages the exports of one target.
pub(crate) struct Exports<L> {
    client: Client<L>,
    /// `None`: the target is switched off.
    target: Option<Target>,
    volumes: Arc<Volumes>,
    /// By NQN. Held over a whole change.
    records: tokio::sync::Mutex<BTreeMap<String, Record>>,
}

impl<L> Exports<L>
where
    L: Link + Send + Sync + 'static,
    L::Call: Send,
{
    /// Manages exports of `target`; without one, exports are kept and not served.
    pub(crate) fn new(client: Client<L>, target: Option<Target>, volumes: Arc<Volumes>) -> Self {
        Self { client, target, volumes, records: tokio::sync::Mutex::default() }
    }

    /// Reads the records and serves them. An export that cannot be served is logged and stays in
    /// the records, so that it can be looked at and deleted. Returns how many are served.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub(crate) async fn restore(&self) -> Result<usize> {
        let request = Request::RecordList { collection: COLLECTION.to_owned() };
        let found = match self.client.link().call(ShardId(0), request).await? {
            Reply::Records(found) => found,
            other => return Err(other.mismatch("Records")),
        };
        let mut records = self.records.lock().await;
        let mut served = 0;
        for (nqn, bytes) in found {
            let record = match decode(&nqn, &bytes) {
                Ok(record) => record,
                Err(error) => {
                    tracing::error!(nqn, %error, "export is not served: its record is damaged");
                    continue;
                }
            };
            match self.volumes_of(&record).await {
                Ok(infos) => match self.serve(&nqn, &record, &infos) {
                    Ok(()) => served += usize::from(self.target.is_some()),
                    Err(error) => tracing::error!(nqn, %error, "export is not served"),
                },
                Err(error) => tracing::error!(nqn, %error, "export is not served"),
            }
            records.insert(nqn, record);
        }
        Ok(served)
    }

    /// Subsystem and namespace identifier of everything that is exported.
    pub(crate) async fn namespaces(&self) -> Vec<(Nqn, u32)> {
        let records = self.records.lock().await;
        let all = records.iter().filter_map(|(nqn, record)| Some((Nqn::new(nqn).ok()?, record)));
        all.flat_map(|(nqn, record)| {
            record.namespaces.iter().map(move |(nsid, _)| (nqn.clone(), *nsid))
        })
        .collect()
    }

    async fn volumes_of(&self, record: &Record) -> Result<Vec<SubvolumeInfo>> {
        let mut infos = Vec::with_capacity(record.namespaces.len());
        for (_, name) in &record.namespaces {
            let info = self.client.subvolume_get(name).await?;
            check_volume(&info)?;
            infos.push(info);
        }
        Ok(infos)
    }

    /// Adds the subsystem and its namespaces to the target: all or nothing.
    fn serve(&self, nqn: &str, record: &Record, infos: &[SubvolumeInfo]) -> Result<()> {
        let Some(target) = &self.target else { return Ok(()) };
        let name = parse_nqn(nqn)?;
        let mut hosts = Vec::with_capacity(record.hosts.len());
        for host in &record.hosts {
            hosts.push(parse_nqn(host)?);
        }
        let config = SubsystemConfig {
            nqn: name.clone(),
            serial: record.serial.clone(),
            controller_ids: CONTROLLER_IDS,
            allow_any_host: record.any_host,
            hosts,
        };
        // The volumes first: a host may connect as soon as the subsystem is there.
        for info in infos {
            self.volumes.lock().insert(key_of(info), VolumeRef::from(info));
        }
        let mut added = target.add_subsystem(config);
        for ((nsid, _), info) in record.namespaces.iter().zip(infos) {
            added = added.and_then(|()| target.add_namespace(&name, namespace(*nsid, info)));
        }
        added.map_err(|error| {
            if !matches!(error, ConfigError::Exists) {
                let _ = target.remove_subsystem(&name);
                self.forget(infos);
            }
            refused(nqn, &error)
        })
    }

    fn forget(&self, infos: &[SubvolumeInfo]) {
        let mut volumes = self.volumes.lock();
        for info in infos {
            volumes.remove(&key_of(info));
        }
    }

    fn export(&self, nqn: &str, record: &Record) -> Export {
        let listeners = self.target.as_ref().map(Target::listeners).unwrap_or_default();
        let namespaces = record
            .namespaces
            .iter()
            .map(|(nsid, volume)| ExportNamespace { nsid: *nsid, volume: volume.clone() });
        Export {
            spec: ExportSpec {
                nqn: nqn.to_owned(),
                namespaces: namespaces.collect(),
                allow_any_host: record.any_host,
                host_nqns: record.hosts.clone(),
            },
            listen_addresses: listeners.iter().map(ToString::to_string).collect(),
        }
    }

    async fn record_delete(&self, nqn: &str) -> Result<()> {
        let (collection, name) = (COLLECTION.to_owned(), nqn.to_owned());
        let request = Request::RecordDelete { collection, name };
        self.client.link().call(ShardId(0), request).await.map(drop)
    }
}

impl<L> Exports<L>
where
    L: Link + Send + Sync + 'static,
    L::Call: Send,
{
    /// Creates an export and serves it.
    ///
    /// # Errors
    /// `AlreadyExists`; `Unsupported` without a target; those of the engine.
    pub(crate) async fn create(&self, spec: ExportSpec) -> Result<Export> {
        if self.target.is_none() {
            let what = "exports: the NVMe/TCP target is off; set nvme.enable = true".to_owned();
            return Err(StoreError::Unsupported { what });
        }
        let mut records = self.records.lock().await;
        if records.contains_key(&spec.nqn) {
            return Err(StoreError::AlreadyExists { what: format!("export {}", spec.nqn) });
        }
        let mut record = Record {
            version: RECORD_VERSION,
            serial: String::new(),
            any_host: spec.allow_any_host,
            hosts: spec.host_nqns,
            namespaces: spec.namespaces.into_iter().map(|ns| (ns.nsid, ns.volume)).collect(),
        };
        let infos = self.volumes_of(&record).await?;
        record.serial = serial_of(&infos)?;
        let bytes = encode(&record)?;
        let put = Request::RecordPut {
            collection: COLLECTION.to_owned(),
            name: spec.nqn.clone(),
            bytes,
            mode: PutMode::Create,
        };
        self.client.link().call(ShardId(0), put).await?;
        if let Err(error) = self.serve(&spec.nqn, &record, &infos) {
            // It was never served: take it back, or a restart would try it again.
            self.record_delete(&spec.nqn).await?;
            return Err(error);
        }
        let export = self.export(&spec.nqn, &record);
        records.insert(spec.nqn, record);
        Ok(export)
    }

    /// All exports.
    pub(crate) async fn list(&self) -> Vec<Export> {
        let records = self.records.lock().await;
        records.iter().map(|(nqn, record)| self.export(nqn, record)).collect()
    }

    /// Forgets an export and serves it no more.
    ///
    /// # Errors
    /// `NotFound`; those of the engine.
    pub(crate) async fn delete(&self, nqn: &str) -> Result<()> {
        let mut records = self.records.lock().await;
        if !records.contains_key(nqn) {
            return Err(StoreError::not_found(format!("export {nqn}")));
        }
        self.record_delete(nqn).await?;
        let Some(record) = records.remove(nqn) else { return Ok(()) };
        if let Some(target) = &self.target
            && let Ok(name) = Nqn::new(nqn)
            && let Err(error) = target.remove_subsystem(&name)
        {
            // One that could not be served at start is not there.
            tracing::debug!(nqn, %error, "the subsystem was not served");
        }
        match self.volumes_of(&record).await {
            Ok(infos) => self.forget(&infos),
            Err(error) => tracing::warn!(nqn, %error, "volumes of a deleted export"),
        }
        Ok(())
    }

    /// The export that serves a volume.
    pub(crate) async fn volume_in_use(&self, volume: &str) -> Option<String> {
        let records = self.records.lock().await;
        let user = records
            .iter()
            .find(|(_, record)| record.namespaces.iter().any(|(_, name)| name == volume));
        user.map(|(nqn, _)| nqn.clone())
    }

    /// Tells hosts the new size of a volume.
    ///
    /// # Errors
    /// When the target refuses it.
    pub(crate) async fn volume_resized(&self, volume: &SubvolumeInfo) -> Result<()> {
        let records = self.records.lock().await;
        let Some(target) = &self.target else { return Ok(()) };
        for (nqn, record) in records.iter() {
            for (nsid, _) in record.namespaces.iter().filter(|(_, name)| *name == volume.name) {
                self.volumes.lock().insert(key_of(volume), VolumeRef::from(volume));
                let blocks = volume.size_bytes >> BLOCK_SIZE_LOG2;
                target
                    .resize_namespace(&parse_nqn(nqn)?, *nsid, blocks)
                    .map_err(|error| refused(nqn, &error))?;
            }
        }
        Ok(())
    }
}

/// Exports, shared by the gRPC front end and the metrics.
pub(crate) struct SharedExports<L>(pub(crate) Arc<Exports<L>>);

impl<L> ExportControl for SharedExports<L>
where
    L: Link + Send + Sync + 'static,
    L::Call: Send,
{
    async fn create(&self, spec: ExportSpec) -> Result<Export> {
        self.0.create(spec).await
    }

    async fn list(&self) -> Result<Vec<Export>> {
        Ok(self.0.list().await)
    }

    async fn delete(&self, nqn: &str) -> Result<()> {
        self.0.delete(nqn).await
    }

    async fn volume_in_use(&self, volume: &str) -> Result<Option<String>> {
        Ok(self.0.volume_in_use(volume).await)
    }

    async fn volume_resized(&self, volume: &SubvolumeInfo) -> Result<()> {
        self.0.volume_resized(volume).await
    }
}

fn key_of(info: &SubvolumeInfo) -> VolumeKey {
    VolumeKey(info.id.0)
}

/// Whether a volume can be served.
fn check_volume(info: &SubvolumeInfo) -> Result<()> {
    if info.kind != SubvolumeKind::Volume {
        return Err(StoreError::invalid(format!("{} is not a volume", info.name)));
    }
    if info.read_only {
        let what = format!("export of {}, which is a snapshot; make a clone of it", info.name);
        return Err(StoreError::Unsupported { what });
    }
    if info.receiving().is_some() {
        let what = format!("export of {}, which is being received", info.name);
        return Err(StoreError::Unsupported { what });
    }
    if info.block_size != 1 << BLOCK_SIZE_LOG2 {
        let what = format!(
            "export of volume {} with logical blocks of {} bytes; only 4096 are served",
            info.name, info.block_size
        );
        return Err(StoreError::Unsupported { what });
    }
    if info.size_bytes >> BLOCK_SIZE_LOG2 == 0 {
        return Err(StoreError::invalid(format!("volume {} is empty; resize it", info.name)));
    }
    Ok(())
}

fn namespace(nsid: u32, info: &SubvolumeInfo) -> NamespaceConfig {
    NamespaceConfig {
        nsid,
        volume: key_of(info),
        block_size_log2: BLOCK_SIZE_LOG2,
        size_blocks: info.size_bytes >> BLOCK_SIZE_LOG2,
        nguid: info.uuid,
        uuid: info.uuid,
        read_only: false,
        // The engine promises whole blocks of its own size, and these are the logical blocks.
        atomic_write_blocks: 1,
        preferred_io_blocks: 1,
    }
}

/// A serial number that stays the same for as long as the export lives: 20 hexadecimal digits of
/// its first volume's UUID.
fn serial_of(infos: &[SubvolumeInfo]) -> Result<String> {
    let first = infos.first().ok_or_else(|| StoreError::invalid("an export needs a volume"))?;
    Ok(first.uuid[..10].iter().map(|byte| format!("{byte:02x}")).collect())
}

fn parse_nqn(nqn: &str) -> Result<Nqn> {
    Nqn::new(nqn).map_err(|error| StoreError::invalid(format!("NQN {nqn}: {error}")))
}

fn refused(nqn: &str, error: &ConfigError) -> StoreError {
    StoreError::invalid(format!("the target refuses export {nqn}: {error}"))
}

fn encode(record: &Record) -> Result<Vec<u8>> {
    let bytes = serde_json::to_vec(record)
        .map_err(|error| StoreError::invalid(format!("export record: {error}")))?;
    if bytes.len() > RECORD_BYTES_MAX {
        return Err(StoreError::invalid(format!(
            "the export takes {} bytes as a record, {RECORD_BYTES_MAX} are allowed; use fewer \
             volumes or hosts in it, or shorter names",
            bytes.len()
        )));
    }
    Ok(bytes)
}

fn decode(nqn: &str, bytes: &[u8]) -> Result<Record> {
    let corrupt = |why: String| StoreError::corrupt(format!("record of export {nqn}"), why);
    let record: Record =
        serde_json::from_slice(bytes).map_err(|error| corrupt(error.to_string()))?;
    if record.version != RECORD_VERSION {
        return Err(corrupt(format!("version {}, not {RECORD_VERSION}", record.version)));
    }
    if record.namespaces.is_empty() {
        return Err(corrupt("no namespaces".to_owned()));
    }
    Ok(record)
}
