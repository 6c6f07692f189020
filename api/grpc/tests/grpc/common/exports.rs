//! An NVMe/TCP target that only remembers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use api_grpc::{Export, ExportControl, ExportSpec};
use engine_store::api::SubvolumeInfo;
use engine_store::{Result, StoreError};

/// Exports by NQN, and the resizes told of.
#[derive(Clone, Default)]
pub struct Exports {
    all: Arc<Mutex<BTreeMap<String, Export>>>,
    resized: Arc<Mutex<Vec<(String, u64)>>>,
}

impl Exports {
    pub fn resized(&self) -> Vec<(String, u64)> {
        self.resized.lock().unwrap().clone()
    }
}

impl ExportControl for Exports {
    async fn create(&self, spec: ExportSpec) -> Result<Export> {
        let mut all = self.all.lock().unwrap();
        if all.contains_key(&spec.nqn) {
            return Err(StoreError::AlreadyExists { what: format!("export {}", spec.nqn) });
        }
        let export = Export { spec, listen_addresses: vec!["127.0.0.1:4420".to_owned()] };
        all.insert(export.spec.nqn.clone(), export.clone());
        Ok(export)
    }

    async fn list(&self) -> Result<Vec<Export>> {
        Ok(self.all.lock().unwrap().values().cloned().collect())
    }

    async fn delete(&self, nqn: &str) -> Result<()> {
        let removed = self.all.lock().unwrap().remove(nqn);
        removed.map(drop).ok_or_else(|| StoreError::not_found(format!("export {nqn}")))
    }

    async fn volume_in_use(&self, volume: &str) -> Result<Option<String>> {
        let all = self.all.lock().unwrap();
        let serves = |export: &&Export| export.spec.namespaces.iter().any(|n| n.volume == volume);
        Ok(all.values().find(serves).map(|export| export.spec.nqn.clone()))
    }

    async fn volume_resized(&self, volume: &SubvolumeInfo) -> Result<()> {
        self.resized.lock().unwrap().push((volume.name.clone(), volume.size_bytes));
        Ok(())
    }
}
