//! Records of front ends: small named bytes in collections.

use super::format::PoolName;
use super::names;
use super::tables::Tables;
use crate::api::{PutMode, RECORD_BYTES_MAX};
use crate::error::{Result, StoreError};

impl Tables {
    pub(super) async fn record_put(
        &self,
        collection: String,
        name: String,
        bytes: Vec<u8>,
        mode: PutMode,
    ) -> Result<()> {
        names::check_record_name(&collection, &name)?;
        if bytes.len() > RECORD_BYTES_MAX {
            let len = bytes.len();
            return Err(StoreError::invalid(format!(
                "record of {len} bytes: {RECORD_BYTES_MAX} at most"
            )));
        }
        let key = (collection.clone(), name.clone());
        let _lock = self.lock_record(key.clone()).await;
        let what = || format!("record {}/{}", key.0, key.1);
        let exists = self.records.borrow().contains(&key);
        match mode {
            PutMode::Create if exists => return Err(StoreError::AlreadyExists { what: what() }),
            PutMode::Replace if !exists => return Err(StoreError::not_found(what())),
            _ => {}
        }
        let most = self.context.limits.records_max;
        if !exists && self.records.borrow().len() >= most {
            return Err(StoreError::Overloaded { what: format!("records: {most} at most") });
        }
        let _reservation = self.context.engine.reserve(0).await?;
        let record = PoolName::Record { collection, name, bytes };
        self.context
            .engine
            .transact(async |transaction| names::put(transaction, &record).await)
            .await?;
        self.records.borrow_mut().insert(key);
        self.context.engine.flush().await
    }

    pub(super) async fn record_list(&self, collection: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let keys: Vec<(String, String)> = {
            let records = self.records.borrow();
            let from = (collection.to_owned(), String::new());
            records.range(from..).take_while(|key| key.0 == collection).cloned().collect()
        };
        let mut transaction = self.context.engine.read();
        let mut list = Vec::with_capacity(keys.len());
        for (collection, name) in keys {
            // Gone meanwhile: it is not listed.
            if let Some(PoolName::Record { bytes, .. }) =
                names::get(&mut transaction, &collection, &name).await?
            {
                list.push((name, bytes));
            }
        }
        Ok(list)
    }

    pub(super) async fn record_delete(&self, collection: String, name: String) -> Result<()> {
        let key = (collection, name);
        let _lock = self.lock_record(key.clone()).await;
        if !self.records.borrow().contains(&key) {
            return Err(StoreError::not_found(format!("record {}/{}", key.0, key.1)));
        }
        self.context
            .engine
            .transact(async |transaction| names::delete(transaction, &key.0, &key.1).await)
            .await?;
        self.records.borrow_mut().remove(&key);
        self.context.engine.flush().await
    }
}
