//! Receiving a subvolume: it has its name from the beginning, is nobody's to use until all is there, and becomes a
//! snapshot in one transaction.

use std::rc::Rc;

use super::format::{encode_subvolume, subvolume_position};
use super::snapshots::{Plan, next_version};
use super::tables::{Shape, Tables, uuid_v4};
use crate::api::{NewReceived, ReceiveRequest, Received, Receiving, Reply, SubvolumeInfo};
use crate::error::{Result, StoreError};
use crate::key::{Counter, Tree};
use crate::planted::{self, Bug};

impl Tables {
    /// Carries out what receiving takes.
    pub(super) async fn receive(self: &Rc<Self>, request: ReceiveRequest) -> Result<Reply> {
        let subvolume = |info| Reply::Subvolume(Box::new(info));
        match request {
            ReceiveRequest::Begin(new) => self.receive_begin(*new).await.map(subvolume),
            ReceiveRequest::Note { name, position } => {
                self.receive_note(&name, position).await.map(|()| Reply::Unit)
            }
            ReceiveRequest::End { name } => self.receive_end(&name).await.map(subvolume),
        }
    }

    /// Makes the subvolume: empty, or a clone of the base; or finds what is already there of it.
    async fn receive_begin(self: &Rc<Self>, new: NewReceived) -> Result<SubvolumeInfo> {
        super::names::check_subvolume_name(&new.name)?;
        if new.source == [0; 16] || new.base.as_ref().is_some_and(|(uuid, _)| *uuid == [0; 16]) {
            return Err(StoreError::invalid("a stream without the UUID of its snapshot"));
        }
        let _names = match &new.base {
            Some((_, base)) => self.lock_names([new.name.as_str(), base]).await?,
            None => self.lock_names([new.name.as_str()]).await?,
        };
        if let Ok(there) = self.get(&new.name) {
            return same(there, &new);
        }
        match new.base {
            None => {
                let NewReceived { name, source, kind, size_bytes, block_size, options, .. } = new;
                let shape = Shape { kind, size_bytes, block_size };
                self.create(name, shape, options, Some(source)).await
            }
            Some((base, local)) => self.receive_clone(new.name, new.source, base, &local).await,
        }
    }

    async fn receive_clone(
        self: &Rc<Self>,
        name: String,
        source: [u8; 16],
        base: [u8; 16],
        local: &str,
    ) -> Result<SubvolumeInfo> {
        let most = self.context.limits.subvolumes_max;
        if self.all().len() >= most {
            return Err(StoreError::Overloaded { what: format!("subvolumes: {most} at most") });
        }
        let runtime = self.context.engine.runtime();
        let plan = self
            .at_one_instant(Vec::new(), async |transaction| {
                let from = self.get(local)?;
                let holds = [Some(from.uuid), from.received.map(|received| received.source)];
                if !from.read_only || from.receiving().is_some() || !holds.contains(&Some(base)) {
                    return Err(StoreError::invalid(format!(
                        "{local:?} is not the snapshot to which the stream tells the difference"
                    )));
                }
                let version = next_version(transaction)?;
                let receiving = Some(Receiving { base: Some(base), position: 0 })
                    .filter(|_| !planted::is(Bug::HalfReceived));
                let info = SubvolumeInfo {
                    id: engine_base::SubvolumeId(transaction.take(Counter::NEXT_SUBVOLUME)?),
                    name: name.clone(),
                    snapshot: version,
                    read_only: false,
                    origin: Some(from.id),
                    created_ns: runtime.wall_clock_ns(),
                    uuid: uuid_v4(runtime.random_u64(), runtime.random_u64()),
                    received: Some(Received { source, receiving }),
                    ..from.clone()
                };
                Ok(Plan {
                    new: vec![info],
                    changed: Vec::new(),
                    nodes: vec![(version, from.snapshot)],
                })
            })
            .await?;
        plan.new.into_iter().next().ok_or_else(|| StoreError::not_found(name))
    }

    /// Notes that all before `position` is durable.
    async fn receive_note(&self, name: &str, position: u64) -> Result<()> {
        let _lock = self.lock_name(name).await?;
        let _versions = self.lock_versions().await;
        let mut info = self.get(name)?;
        let (received, receiving) = being_received(&info)?;
        let receiving = Some(Receiving { position, ..receiving });
        info.received = Some(Received { receiving, ..received });
        self.context
            .engine
            .transact(async |transaction| {
                let position = subvolume_position(info.id);
                transaction.put(Tree::Subvolumes, position, encode_subvolume(&info));
                Ok(())
            })
            .await?;
        self.subvolumes.borrow_mut().insert(info.name.clone(), info);
        // What is done next may rely on not being told again what was before.
        self.context.engine.flush().await
    }

    /// Makes it a snapshot: from now on nobody writes to it, and all may read it.
    async fn receive_end(self: &Rc<Self>, name: &str) -> Result<SubvolumeInfo> {
        let _names = self.lock_names([name]).await?;
        let info = self.get(name)?;
        being_received(&info)?;
        let plan = self
            .at_one_instant(vec![info.id], async |_| {
                let info = self.get(name)?;
                let (received, _) = being_received(&info)?;
                let received = Some(Received { receiving: None, ..received });
                let changed = vec![SubvolumeInfo { read_only: true, received, ..info }];
                Ok(Plan { changed, ..Plan::default() })
            })
            .await?;
        self.tidy();
        plan.changed.into_iter().next().ok_or_else(|| StoreError::not_found(name.to_owned()))
    }
}

fn being_received(info: &SubvolumeInfo) -> Result<(Received, Receiving)> {
    let received = info.received.and_then(|received| Some((received, received.receiving?)));
    received.ok_or_else(|| StoreError::invalid(format!("{:?} is not being received", info.name)))
}

/// What is there of `new` already.
fn same(there: SubvolumeInfo, new: &NewReceived) -> Result<SubvolumeInfo> {
    let what = format!("subvolume {:?}", there.name);
    let Ok((received, receiving)) = being_received(&there) else {
        return Err(StoreError::AlreadyExists { what });
    };
    let base = new.base.as_ref().map(|(uuid, _)| *uuid);
    if (received.source, receiving.base, there.kind) != (new.source, base, new.kind) {
        return Err(StoreError::invalid(format!(
            "{what} is being received from another snapshot: send the rest of that, or delete it"
        )));
    }
    Ok(there)
}
