//! SnapshotService.

use std::collections::BTreeMap;

use engine_base::SubvolumeId;
use engine_store::api::{
    Link, NewSnapshot, SNAPSHOT_GROUP_MAX, SubvolumeInfo, SubvolumeKind, TreeDiffCursor,
};
use proto::v1;
use proto::v1::snapshot_service_server::SnapshotService;
use tonic::{Request, Response, Status, Streaming};

use crate::core::{Shared, check_name, kind};
use crate::export::ExportControl;
use crate::limits::PAGE_SIZE_MAX;
use crate::outgoing::{self, Outgoing, Sender};
use crate::status::{OnResource, Resource, bad_field, precondition};
use crate::{convert, token, transfer};

const SCOPE: &[u8] = b"snapshots";

/// Two snapshots, or one and nothing.
struct Compared {
    base: Option<SubvolumeInfo>,
    snapshot: SubvolumeInfo,
}

impl Compared {
    /// What a page token is for.
    fn scope(&self) -> Vec<u8> {
        let base = self.base.as_ref().map_or(0, |base| base.id.0);
        [b"diff:".as_slice(), &base.to_le_bytes(), &self.snapshot.id.0.to_le_bytes()].concat()
    }
}

fn damaged<T>(_: T) -> Status {
    bad_field("page_token", "is not a token of this diff; start again without one")
}

/// Names of subvolumes that are there.
type Names = BTreeMap<SubvolumeId, String>;

impl<L, E> Shared<L, E>
where
    L: Link + Send + Sync + 'static,
    L::Call: Send,
    E: ExportControl,
{
    /// The snapshot of this name.
    async fn snapshot(&self, field: &str, name: &str) -> Result<SubvolumeInfo, Status> {
        check_name(field, name)?;
        let info = self.client.subvolume_get(name).await.on(kind::SNAPSHOT, name)?;
        if info.read_only {
            return Ok(info);
        }
        let resource = Resource { kind: kind::SNAPSHOT, name };
        Err(precondition("WRONG_KIND", resource, "is no snapshot"))
    }

    /// The names of all subvolumes, which is how a snapshot is told what it was made of.
    async fn names(&self) -> Result<Names, Status> {
        let mut names = Names::new();
        let mut after = String::new();
        loop {
            let batch = self.client.subvolume_list(&after, PAGE_SIZE_MAX).await.plain()?;
            let exhausted = batch.len() < PAGE_SIZE_MAX as usize;
            if let Some(last) = batch.last() {
                after.clone_from(&last.name);
            }
            names.extend(batch.into_iter().map(|info| (info.id, info.name)));
            if exhausted {
                return Ok(names);
            }
        }
    }

    async fn show_snapshot(
        &self,
        info: &SubvolumeInfo,
        names: &Names,
        include_usage: bool,
    ) -> Result<v1::Snapshot, Status> {
        let source = info.origin.and_then(|origin| names.get(&origin));
        let mut shown = convert::snapshot(info, source.map(String::as_str));
        if include_usage {
            let usage = self.client.subvolume_usage(info.id).await;
            shown.own_bytes = Some(usage.on(kind::SNAPSHOT, &info.name)?.own_bytes);
            let freed = self.client.freed_by_delete(info.id).await;
            shown.freed_bytes = Some(freed.on(kind::SNAPSHOT, &info.name)?);
        }
        Ok(shown)
    }

    async fn create_snapshots_now(
        &self,
        request: v1::CreateSnapshotsRequest,
    ) -> Result<v1::CreateSnapshotsResponse, Status> {
        let count = request.snapshots.len();
        if !(1..=SNAPSHOT_GROUP_MAX).contains(&count) {
            return Err(bad_field("snapshots", format!("1 to {SNAPSHOT_GROUP_MAX}, not {count}")));
        }
        let mut new = Vec::with_capacity(count);
        for one in &request.snapshots {
            check_name("snapshots.source", &one.source)?;
            check_name("snapshots.name", &one.name)?;
            let (source, name) = (one.source.clone(), one.name.clone());
            new.push(NewSnapshot { source, name, writable: false });
        }
        let all: Vec<&str> = new.iter().map(|one| one.name.as_str()).collect();
        let made = self.client.snapshot_create(&new).await.on(kind::SNAPSHOT, &all.join(", "))?;
        let sources = made.iter().zip(&new);
        let shown = sources.map(|(info, one)| convert::snapshot(info, Some(&one.source)));
        Ok(v1::CreateSnapshotsResponse { snapshots: shown.collect() })
    }

    /// Produces the messages of a diff.
    async fn diff(
        &self,
        request: v1::DiffSnapshotsRequest,
        sender: Sender<v1::DiffSnapshotsResponse>,
    ) -> Result<(), Status> {
        let snapshot = self.snapshot("snapshot", &request.snapshot).await?;
        let base = match request.base.as_str() {
            "" => None,
            name => Some(self.snapshot("base", name).await?),
        };
        let compared = Compared { base, snapshot };
        let scope = compared.scope();
        let mut position = token::decode(&scope, &request.page_token)?;
        loop {
            let (mut part, next) = match compared.snapshot.kind {
                SubvolumeKind::Volume => self.changed_ranges(&compared, position).await?,
                SubvolumeKind::FileTree => self.changed_paths(&compared, position).await?,
            };
            if let Some(next) = &next {
                part.next_page_token = token::encode(&scope, next);
            }
            sender.send(part).await?;
            // Each step ends past where it began.
            if next.is_none() {
                return Ok(());
            }
            position = next;
        }
    }

    /// Some of what has changed in a volume from `position` on, and where to go on.
    async fn changed_ranges(
        &self,
        Compared { base, snapshot }: &Compared,
        position: Option<Vec<u8>>,
    ) -> Result<(v1::DiffSnapshotsResponse, Option<Vec<u8>>), Status> {
        let from = match position {
            None => 0,
            Some(position) => u64::from_le_bytes(position.try_into().map_err(damaged)?),
        };
        let batch = self.client.snapshot_diff(base.as_ref(), snapshot, from).await;
        let (ranges, next) = batch.on(kind::SNAPSHOT, &snapshot.name)?;
        let ranges = ranges.into_iter().map(|range| v1::ChangedRange {
            offset_bytes: range.offset,
            length_bytes: range.len,
            has_data: range.has_data,
        });
        let part = v1::DiffSnapshotsResponse { ranges: ranges.collect(), ..Default::default() };
        Ok((part, next.map(|next| next.to_le_bytes().to_vec())))
    }

    /// The same of a file tree.
    async fn changed_paths(
        &self,
        Compared { base, snapshot }: &Compared,
        position: Option<Vec<u8>>,
    ) -> Result<(v1::DiffSnapshotsResponse, Option<Vec<u8>>), Status> {
        let from = match position {
            None => TreeDiffCursor::default(),
            Some(position) => {
                let (inode, place) = position.split_first_chunk().ok_or_else(|| damaged(()))?;
                let place = place.try_into().map_err(damaged)?;
                TreeDiffCursor {
                    inode: u64::from_le_bytes(*inode),
                    place: u64::from_le_bytes(place),
                }
            }
        };
        let batch = self.client.tree_diff(base.as_ref(), snapshot, from).await;
        let (paths, next) = batch.on(kind::SNAPSHOT, &snapshot.name)?;
        let paths = paths.into_iter().map(convert::changed_path).collect();
        let part = v1::DiffSnapshotsResponse { paths, ..Default::default() };
        let bytes =
            |next: TreeDiffCursor| [next.inode.to_le_bytes(), next.place.to_le_bytes()].concat();
        Ok((part, next.map(bytes)))
    }

    async fn roll_back(&self, name: &str, snapshot: &str) -> Result<v1::Subvolume, Status> {
        let _exporting = self.exporting.lock().await;
        check_name("name", name)?;
        let info = self.client.subvolume_get(name).await.on(kind::SUBVOLUME, name)?;
        if info.read_only {
            let resource = Resource { kind: kind::SUBVOLUME, name };
            return Err(precondition("WRONG_KIND", resource, "is itself a snapshot"));
        }
        self.snapshot("snapshot", snapshot).await?;
        if info.kind == SubvolumeKind::Volume {
            self.refuse_exported(name, "take the volume back").await?;
        }
        let done = self.client.subvolume_rollback(name, snapshot).await;
        Ok(convert::subvolume(&done.on(kind::SUBVOLUME, name)?, None))
    }
}

#[tonic::async_trait]
impl<L, E> SnapshotService for Shared<L, E>
where
    L: Link + Send + Sync + 'static,
    L::Call: Send,
    E: ExportControl,
{
    type DiffSnapshotsStream = Outgoing<v1::DiffSnapshotsResponse>;
    type SendSnapshotStream = Outgoing<v1::SendSnapshotResponse>;

    async fn send_snapshot(
        &self,
        request: Request<v1::SendSnapshotRequest>,
    ) -> Result<Response<Self::SendSnapshotStream>, Status> {
        let call = self.admit("SendSnapshot", &request)?;
        let (shared, message) = (self.clone(), request.into_inner());
        let produce = |sender| async move { transfer::send(&shared.0, message, sender).await };
        Ok(Response::new(outgoing::start(call, self.idle_timeout, produce)))
    }

    async fn receive_snapshot(
        &self,
        request: Request<Streaming<v1::ReceiveSnapshotRequest>>,
    ) -> Result<Response<v1::ReceiveSnapshotResponse>, Status> {
        let call = self.admit("ReceiveSnapshot", &request)?;
        let mut stream = request.into_inner();
        let target = std::sync::OnceLock::new();
        let work = async {
            let (name, first) = transfer::first(&mut stream, self.idle_timeout).await?;
            let _ = target.set(name.clone());
            let info = transfer::receive(&self.0, &name, first, stream).await?;
            let snapshot = self.show_snapshot(&info, &self.names().await?, false).await?;
            Ok(v1::ReceiveSnapshotResponse { snapshot: Some(snapshot) })
        };
        let name = || target.get().map_or("", String::as_str);
        call.change_of(name, work).await
    }

    async fn create_snapshots(
        &self,
        request: Request<v1::CreateSnapshotsRequest>,
    ) -> Result<Response<v1::CreateSnapshotsResponse>, Status> {
        let call = self.admit("CreateSnapshots", &request)?;
        let request = request.into_inner();
        let about = request.snapshots.first().map_or_else(String::new, |one| one.name.clone());
        call.change(&about, self.create_snapshots_now(request)).await
    }

    async fn get_snapshot(
        &self,
        request: Request<v1::GetSnapshotRequest>,
    ) -> Result<Response<v1::GetSnapshotResponse>, Status> {
        let call = self.admit("GetSnapshot", &request)?;
        let request = request.into_inner();
        let work = async {
            let info = self.snapshot("name", &request.name).await?;
            let names = self.names().await?;
            let snapshot = self.show_snapshot(&info, &names, request.include_usage).await?;
            Ok(v1::GetSnapshotResponse { snapshot: Some(snapshot) })
        };
        call.run(work).await.map(Response::new)
    }

    async fn list_snapshots(
        &self,
        request: Request<v1::ListSnapshotsRequest>,
    ) -> Result<Response<v1::ListSnapshotsResponse>, Status> {
        let call = self.admit("ListSnapshots", &request)?;
        let request = request.into_inner();
        let work = async {
            let source = match request.source.as_str() {
                "" => None,
                name => {
                    check_name("source", name)?;
                    Some(self.client.subvolume_get(name).await.on(kind::SUBVOLUME, name)?.id)
                }
            };
            let wanted = |info: &SubvolumeInfo| {
                info.read_only && source.is_none_or(|source| info.origin == Some(source))
            };
            let page = self.subvolume_page(SCOPE, wanted, request.page_size, &request.page_token);
            let (page, next_page_token) = page.await?;
            let names = self.names().await?;
            let mut snapshots = Vec::with_capacity(page.len());
            for info in &page {
                snapshots.push(self.show_snapshot(info, &names, request.include_usage).await?);
            }
            Ok(v1::ListSnapshotsResponse { snapshots, next_page_token })
        };
        call.run(work).await.map(Response::new)
    }

    async fn diff_snapshots(
        &self,
        request: Request<v1::DiffSnapshotsRequest>,
    ) -> Result<Response<Self::DiffSnapshotsStream>, Status> {
        let call = self.admit("DiffSnapshots", &request)?;
        let (shared, message) = (self.clone(), request.into_inner());
        let produce = |sender| async move { shared.diff(message, sender).await };
        Ok(Response::new(outgoing::start(call, self.idle_timeout, produce)))
    }

    async fn delete_snapshot(
        &self,
        request: Request<v1::DeleteSnapshotRequest>,
    ) -> Result<Response<v1::DeleteSnapshotResponse>, Status> {
        let call = self.admit("DeleteSnapshot", &request)?;
        let name = request.into_inner().name;
        let work = async {
            self.snapshot("name", &name).await?;
            self.client.subvolume_delete(&name).await.on(kind::SNAPSHOT, &name)?;
            Ok(v1::DeleteSnapshotResponse {})
        };
        call.change(&name, work).await
    }

    async fn create_clone(
        &self,
        request: Request<v1::CreateCloneRequest>,
    ) -> Result<Response<v1::CreateCloneResponse>, Status> {
        let call = self.admit("CreateClone", &request)?;
        let request = request.into_inner();
        let work = async {
            check_name("source", &request.source)?;
            check_name("name", &request.name)?;
            let (source, name) = (request.source.clone(), request.name.clone());
            let new = [NewSnapshot { source, name, writable: true }];
            let made = self.client.snapshot_create(&new).await;
            let made = made.on(kind::SUBVOLUME, &request.name)?;
            let subvolume = made.first().map(|info| convert::subvolume(info, None));
            Ok(v1::CreateCloneResponse { subvolume })
        };
        call.change(&request.name, work).await
    }

    async fn rollback(
        &self,
        request: Request<v1::RollbackRequest>,
    ) -> Result<Response<v1::RollbackResponse>, Status> {
        let call = self.admit("Rollback", &request)?;
        let request = request.into_inner();
        let name = request.name.clone();
        // A task of its own: when the client gives up, the volume must not be exported before it is over.
        let shared = self.clone();
        let task =
            tokio::spawn(async move { shared.roll_back(&request.name, &request.snapshot).await });
        let work = async {
            let done = task.await.map_err(|error| Status::internal(error.to_string()))?;
            Ok(v1::RollbackResponse { subvolume: Some(done?) })
        };
        call.change(&name, work).await
    }
}
