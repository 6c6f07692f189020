//! What the services share.

use std::sync::Arc;
use std::time::Duration;

use engine_store::api::{Link, NAME_BYTES_MAX, SubvolumeInfo, SubvolumeKind, TreeRef, Usage};
use engine_store::client::Client;
use tokio::sync::Mutex;
use tonic::{Request, Status};

use crate::gate::{Call, Gate};
use crate::info::ServerInfo;
use crate::limits::{PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX};
use crate::observe::Shown;
use crate::status::{OnResource, Resource, bad_field, precondition};

/// Types of resources in `google.rpc.ResourceInfo`.
pub(crate) mod kind {
    pub(crate) const EXPORT: &str = "cairn.v1.Export";
    pub(crate) const SERVER: &str = "cairn.v1.Server";
    pub(crate) const FILE: &str = "cairn.v1.File";
    pub(crate) const SNAPSHOT: &str = "cairn.v1.Snapshot";
    pub(crate) const SUBVOLUME: &str = "cairn.v1.Subvolume";
    pub(crate) const VOLUME: &str = "cairn.v1.Volume";
    pub(crate) const XATTR: &str = "cairn.v1.Xattr";
}

/// What the services share.
pub(crate) struct Core<L, E> {
    pub(crate) client: Client<L>,
    pub(crate) exports: E,
    pub(crate) info: ServerInfo,
    pub(crate) gate: Gate,
    pub(crate) shown: Shown,
    /// How long a stream waits for its client.
    pub(crate) idle_timeout: Duration,
    /// Held while something looks whether a volume is exported and acts on it, and while an export
    /// is created: so no volume is deleted or shrunk on its way into an export.
    pub(crate) exporting: Mutex<()>,
}

/// A service: the shared core under the name of what it serves.
pub(crate) struct Shared<L, E>(pub(crate) Arc<Core<L, E>>);

impl<L, E> Clone for Shared<L, E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<L, E> std::ops::Deref for Shared<L, E> {
    type Target = Core<L, E>;

    fn deref(&self) -> &Core<L, E> {
        &self.0
    }
}

impl<L: Link, E> Core<L, E> {
    /// Admits a call.
    pub(crate) fn admit<T>(
        &self,
        method: &'static str,
        request: &Request<T>,
    ) -> Result<Call, Status> {
        self.gate.admit(method, request)
    }

    /// The file tree of this name.
    pub(crate) async fn tree(&self, field: &str, name: &str) -> Result<TreeRef, Status> {
        let info = self.subvolume(field, name, SubvolumeKind::FileTree).await?;
        whole(kind::SUBVOLUME, &info)?;
        Ok(TreeRef::from(&info))
    }

    /// The subvolume of this name and kind.
    pub(crate) async fn subvolume(
        &self,
        field: &str,
        name: &str,
        kind: SubvolumeKind,
    ) -> Result<SubvolumeInfo, Status> {
        check_name(field, name)?;
        let resource_kind = match kind {
            SubvolumeKind::Volume => kind::VOLUME,
            SubvolumeKind::FileTree => kind::SUBVOLUME,
        };
        let info = self.client.subvolume_get(name).await.on(resource_kind, name)?;
        if info.kind == kind {
            return Ok(info);
        }
        let why = match kind {
            SubvolumeKind::Volume => "is a file tree, not a volume",
            SubvolumeKind::FileTree => "is a volume, not a file tree",
        };
        Err(precondition("WRONG_KIND", Resource { kind: resource_kind, name }, why))
    }

    /// The volume of this name, which is no snapshot.
    pub(crate) async fn volume(&self, field: &str, name: &str) -> Result<SubvolumeInfo, Status> {
        let info = self.subvolume(field, name, SubvolumeKind::Volume).await?;
        if !info.read_only {
            return Ok(info);
        }
        let resource = Resource { kind: kind::VOLUME, name };
        let why = "is a snapshot, not a volume; make a clone of it, or use the snapshot's calls";
        Err(precondition("WRONG_KIND", resource, why))
    }

    /// Data bytes of a subvolume, if asked for.
    pub(crate) async fn usage(
        &self,
        info: &SubvolumeInfo,
        wanted: bool,
    ) -> Result<Option<Usage>, Status> {
        if !wanted {
            return Ok(None);
        }
        let usage = self.client.subvolume_usage(info.id).await.on(kind::SUBVOLUME, &info.name)?;
        Ok(Some(usage))
    }
}

/// Refuses what is not there for anybody yet.
pub(crate) fn whole(kind: &'static str, info: &SubvolumeInfo) -> Result<(), Status> {
    if info.receiving().is_none() {
        return Ok(());
    }
    let why = "is being received: send the rest of it, or delete it";
    Err(precondition("BEING_RECEIVED", Resource { kind, name: &info.name }, why))
}

/// The page size that a client means.
pub(crate) fn page_size(asked: u32) -> usize {
    let size = if asked == 0 { PAGE_SIZE_DEFAULT } else { asked.min(PAGE_SIZE_MAX) };
    size as usize
}

/// Checks the name of a subvolume.
pub(crate) fn check_name(field: &str, name: &str) -> Result<(), Status> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let why = if name.is_empty() {
        "must not be empty".to_owned()
    } else if name.len() > NAME_BYTES_MAX {
        format!("is {} bytes long, {NAME_BYTES_MAX} are allowed", name.len())
    } else if !name.bytes().all(allowed) {
        "may have letters, digits, '.', '_' and '-' of ASCII only".to_owned()
    } else if name.starts_with(['.', '-']) {
        "must not start with '.' or '-'".to_owned()
    } else {
        return Ok(());
    };
    Err(bad_field(field, why))
}
