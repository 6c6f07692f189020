//! Exports: what the daemon implements, and the service over it.

use std::collections::BTreeSet;
use std::future::Future;

use engine_store::Result as StoreResult;
use engine_store::api::{Link, SubvolumeInfo};
use proto::v1;
use proto::v1::export_service_server::ExportService;
use tonic::{Request, Response, Status};

use crate::core::{Shared, kind, page_size, whole};
use crate::limits::{EXPORT_HOSTS_MAX, EXPORT_NAMESPACES_MAX, NQN_BYTES_MAX, NSID_MAX};
use crate::status::{OnResource, Resource, bad_field, precondition};
use crate::token;

/// One volume in an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportNamespace {
    /// Namespace identifier, 1 to [`NSID_MAX`], unique in its export.
    pub nsid: u32,
    /// Name of the volume.
    pub volume: String,
}

/// What an export is to be. Checked before [`ExportControl::create`] sees it: lengths, counts,
/// unique NSIDs, each volume exists and is in this export only, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportSpec {
    /// NVMe qualified name, 1 to [`NQN_BYTES_MAX`] bytes.
    pub nqn: String,
    /// Volumes, by NSID, at least one.
    pub namespaces: Vec<ExportNamespace>,
    /// Any host may connect; `host_nqns` is empty then.
    pub allow_any_host: bool,
    /// Hosts that may connect; not empty unless `allow_any_host`.
    pub host_nqns: Vec<String>,
}

/// An export that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// What it is.
    pub spec: ExportSpec,
    /// Where hosts reach it, "address:port".
    pub listen_addresses: Vec<String>,
}

/// Control of the NVMe/TCP target, implemented by the daemon. Answers to `create` and `delete` are
/// durable: the daemon keeps a record and serves the same exports after a restart.
pub trait ExportControl: Send + Sync + 'static {
    /// Creates an export and starts to serve it. `AlreadyExists` when the NQN is taken.
    fn create(&self, spec: ExportSpec) -> impl Future<Output = StoreResult<Export>> + Send;

    /// All exports, in any order.
    fn list(&self) -> impl Future<Output = StoreResult<Vec<Export>>> + Send;

    /// Stops serving an export, disconnects its hosts and forgets it. `NotFound` when there is none.
    fn delete(&self, nqn: &str) -> impl Future<Output = StoreResult<()>> + Send;

    /// The NQN of the export that serves this volume, if any.
    fn volume_in_use(
        &self,
        volume: &str,
    ) -> impl Future<Output = StoreResult<Option<String>>> + Send;

    /// Called after a volume was resized, so that hosts that use it learn its new size.
    fn volume_resized(
        &self,
        volume: &SubvolumeInfo,
    ) -> impl Future<Output = StoreResult<()>> + Send;
}

const SCOPE: &[u8] = b"exports";

fn message(export: Export) -> v1::Export {
    let Export { spec, listen_addresses } = export;
    let namespaces = spec.namespaces.into_iter();
    v1::Export {
        nqn: spec.nqn,
        namespaces: namespaces
            .map(|namespace| v1::ExportNamespace { nsid: namespace.nsid, volume: namespace.volume })
            .collect(),
        allow_any_host: spec.allow_any_host,
        host_nqns: spec.host_nqns,
        listen_addresses,
    }
}

/// Checks the form of an NQN (NVMe Base Specification 2.1, 4.7): "nqn.", then printable UTF-8.
fn check_nqn(field: &str, nqn: &str) -> Result<(), Status> {
    let why = if nqn.is_empty() {
        "must not be empty".to_owned()
    } else if nqn.len() > NQN_BYTES_MAX {
        format!("is {} bytes long, {NQN_BYTES_MAX} are allowed", nqn.len())
    } else if !nqn.starts_with("nqn.") || nqn.len() == "nqn.".len() {
        "must start with \"nqn.\", as in nqn.2026-01.org.example:backup".to_owned()
    } else if nqn.chars().any(|c| c.is_control() || c.is_whitespace()) {
        "must not have spaces or control characters".to_owned()
    } else if nqn == "nqn.2014-08.org.nvmexpress.discovery" {
        "is the NQN of the discovery subsystem".to_owned()
    } else {
        return Ok(());
    };
    Err(bad_field(field, why))
}

fn check_hosts(request: &v1::CreateExportRequest) -> Result<(), Status> {
    let hosts = &request.host_nqns;
    if request.allow_any_host != hosts.is_empty() {
        return Err(bad_field("host_nqns", "give either hosts or allow_any_host"));
    }
    if hosts.len() > EXPORT_HOSTS_MAX {
        let why = format!("{} hosts, {EXPORT_HOSTS_MAX} are allowed", hosts.len());
        return Err(bad_field("host_nqns", why));
    }
    for (at, host) in hosts.iter().enumerate() {
        check_nqn(&format!("host_nqns[{at}]"), host)?;
    }
    if hosts.iter().collect::<BTreeSet<_>>().len() != hosts.len() {
        return Err(bad_field("host_nqns", "names a host twice"));
    }
    Ok(())
}

/// The namespaces by NSID, with numbers for those that have none.
fn namespaces(asked: &[v1::ExportNamespace]) -> Result<Vec<ExportNamespace>, Status> {
    if asked.is_empty() || asked.len() > EXPORT_NAMESPACES_MAX {
        let why = format!("must be 1 to {EXPORT_NAMESPACES_MAX}, not {}", asked.len());
        return Err(bad_field("namespaces", why));
    }
    let mut taken = BTreeSet::new();
    let mut volumes = BTreeSet::new();
    for (at, namespace) in asked.iter().enumerate() {
        if namespace.nsid > NSID_MAX {
            let why = format!("is over {NSID_MAX}");
            return Err(bad_field(&format!("namespaces[{at}].nsid"), why));
        }
        if namespace.nsid != 0 && !taken.insert(namespace.nsid) {
            return Err(bad_field(&format!("namespaces[{at}].nsid"), "is given twice"));
        }
        if !volumes.insert(&namespace.volume) {
            return Err(bad_field(&format!("namespaces[{at}].volume"), "is given twice"));
        }
    }
    let mut free = (1..=NSID_MAX).filter(|nsid| !taken.contains(nsid));
    let mut all = Vec::with_capacity(asked.len());
    for namespace in asked {
        let nsid = match namespace.nsid {
            // More numbers than namespaces: there is always a free one.
            0 => free.next().ok_or_else(|| bad_field("namespaces", "no NSID is free"))?,
            nsid => nsid,
        };
        all.push(ExportNamespace { nsid, volume: namespace.volume.clone() });
    }
    all.sort_by_key(|namespace| namespace.nsid);
    Ok(all)
}

impl<L, E> Shared<L, E>
where
    L: Link + Send + Sync + 'static,
    L::Call: Send,
    E: ExportControl,
{
    async fn create(&self, request: v1::CreateExportRequest) -> Result<v1::Export, Status> {
        check_nqn("nqn", &request.nqn)?;
        check_hosts(&request)?;
        let namespaces = namespaces(&request.namespaces)?;
        let _exporting = self.exporting.lock().await;
        for namespace in &namespaces {
            let name = &namespace.volume;
            whole(kind::VOLUME, &self.volume("namespaces.volume", name).await?)?;
            if let Some(nqn) = self.exports.volume_in_use(name).await.on(kind::VOLUME, name)? {
                // The same NQN again is its own error, from `create`.
                if nqn != request.nqn {
                    let why = format!("is exported by {nqn} already");
                    return Err(precondition(
                        "VOLUME_EXPORTED",
                        Resource { kind: kind::VOLUME, name },
                        &why,
                    ));
                }
            }
        }
        let spec = ExportSpec {
            nqn: request.nqn.clone(),
            namespaces,
            allow_any_host: request.allow_any_host,
            host_nqns: request.host_nqns,
        };
        self.exports.create(spec).await.on(kind::EXPORT, &request.nqn).map(message)
    }

    async fn sorted(&self) -> Result<Vec<Export>, Status> {
        let mut all = self.exports.list().await.plain()?;
        all.sort_by(|a, b| a.spec.nqn.cmp(&b.spec.nqn));
        Ok(all)
    }

    async fn page(
        &self,
        request: v1::ListExportsRequest,
    ) -> Result<v1::ListExportsResponse, Status> {
        let after = token::decode(SCOPE, &request.page_token)?;
        let page_size = page_size(request.page_size);
        let mut rest = self.sorted().await?;
        if let Some(after) = after {
            rest.retain(|export| export.spec.nqn.as_bytes() > after.as_slice());
        }
        let more = rest.len() > page_size;
        rest.truncate(page_size);
        let next_page_token = match rest.last() {
            Some(last) if more => token::encode(SCOPE, last.spec.nqn.as_bytes()),
            _ => String::new(),
        };
        let exports = rest.into_iter().map(message).collect();
        Ok(v1::ListExportsResponse { exports, next_page_token })
    }
}

#[tonic::async_trait]
impl<L, E> ExportService for Shared<L, E>
where
    L: Link + Send + Sync + 'static,
    L::Call: Send,
    E: ExportControl,
{
    async fn create_export(
        &self,
        request: Request<v1::CreateExportRequest>,
    ) -> Result<Response<v1::CreateExportResponse>, Status> {
        let call = self.admit("CreateExport", &request)?;
        let request = request.into_inner();
        let target = request.nqn.clone();
        let work = async {
            let export = Some(self.create(request).await?);
            Ok(v1::CreateExportResponse { export })
        };
        call.change(&target, work).await
    }

    async fn get_export(
        &self,
        request: Request<v1::GetExportRequest>,
    ) -> Result<Response<v1::GetExportResponse>, Status> {
        let call = self.admit("GetExport", &request)?;
        let nqn = request.into_inner().nqn;
        let work = async {
            check_nqn("nqn", &nqn)?;
            let all = self.exports.list().await.on(kind::EXPORT, &nqn)?;
            let found = all.into_iter().find(|export| export.spec.nqn == nqn);
            let missing = || engine_store::StoreError::not_found("export");
            let export = found.ok_or_else(missing).on(kind::EXPORT, &nqn)?;
            Ok(v1::GetExportResponse { export: Some(message(export)) })
        };
        call.run(work).await.map(Response::new)
    }

    async fn list_exports(
        &self,
        request: Request<v1::ListExportsRequest>,
    ) -> Result<Response<v1::ListExportsResponse>, Status> {
        let call = self.admit("ListExports", &request)?;
        call.run(self.page(request.into_inner())).await.map(Response::new)
    }

    async fn delete_export(
        &self,
        request: Request<v1::DeleteExportRequest>,
    ) -> Result<Response<v1::DeleteExportResponse>, Status> {
        let call = self.admit("DeleteExport", &request)?;
        let nqn = request.into_inner().nqn;
        let work = async {
            check_nqn("nqn", &nqn)?;
            let _exporting = self.exporting.lock().await;
            self.exports.delete(&nqn).await.on(kind::EXPORT, &nqn)?;
            Ok(v1::DeleteExportResponse {})
        };
        call.change(&nqn, work).await
    }
}
