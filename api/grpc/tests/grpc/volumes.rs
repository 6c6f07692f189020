//! Subvolumes, volumes, exports, pool and statistics, end to end.

use crate::common::{Stand, bad_field};
use proto::v1;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

const MIB: u64 = 1 << 20;

fn reason(status: &Status) -> String {
    let info = status.get_details_error_info().expect("every error has an ErrorInfo");
    assert_eq!(info.domain, "cairn");
    info.reason
}

async fn create_volume(stand: &Stand, name: &str, size_bytes: u64) -> Result<v1::Volume, Status> {
    let request =
        v1::CreateVolumeRequest { name: name.to_owned(), size_bytes, ..Default::default() };
    let reply = stand.volumes().create_volume(request).await?;
    Ok(reply.into_inner().volume.unwrap())
}

/// How data is stored is said when something is made, changed later, and told.
#[tokio::test]
async fn options_of_volumes_and_trees() {
    let stand = Stand::new().await;
    let options = |compression: &str, compression_frame_bytes| v1::SubvolumeOptions {
        compression: compression.to_owned(),
        compression_frame_bytes,
    };
    let create = |name: &str, options| v1::CreateVolumeRequest {
        name: name.to_owned(),
        size_bytes: MIB,
        block_size_bytes: 0,
        options,
    };
    for (asked, expected) in [
        (None, options("none", 16384)),
        (Some(options("", 0)), options("none", 16384)),
        (Some(options("zstd", 0)), options("zstd:3", 16384)),
        (Some(options("gzip:9", 8192)), options("gzip:9", 8192)),
    ] {
        let made = stand.volumes().create_volume(create("v", asked)).await.unwrap().into_inner();
        assert_eq!(made.volume.unwrap().options, Some(expected));
        let delete = v1::DeleteVolumeRequest { name: "v".to_owned() };
        stand.volumes().delete_volume(delete).await.unwrap();
    }
    for (asked, field) in [
        (options("zstd:99", 0), "options.compression"),
        (options("best", 0), "options.compression"),
        (options("lz4", 4096), "options.compression_frame_bytes"),
        (options("lz4", 12288), "options.compression_frame_bytes"),
    ] {
        let refused = stand.volumes().create_volume(create("v", Some(asked.clone()))).await;
        bad_field(field, refused);
        let tree = v1::CreateSubvolumeRequest { name: "t".to_owned(), options: Some(asked) };
        bad_field(field, stand.subvolumes().create_subvolume(tree).await);
    }
    let tree =
        v1::CreateSubvolumeRequest { name: "t".to_owned(), options: Some(options("lz4", 32768)) };
    let made = stand.subvolumes().create_subvolume(tree).await.unwrap().into_inner();
    assert_eq!(made.subvolume.unwrap().options, Some(options("lz4", 32768)));
    let set = |name: &str, compression: Option<&str>, frame| v1::SetSubvolumeOptionsRequest {
        name: name.to_owned(),
        compression: compression.map(str::to_owned),
        compression_frame_bytes: frame,
    };
    let now = async |request| {
        let reply = stand.subvolumes().set_subvolume_options(request).await.unwrap().into_inner();
        reply.subvolume.unwrap().options.unwrap()
    };
    assert_eq!(now(set("t", Some("zstd:7"), None)).await, options("zstd:7", 32768));
    assert_eq!(now(set("t", None, Some(131_072))).await, options("zstd:7", 131_072));
    assert_eq!(now(set("t", None, None)).await, options("zstd:7", 131_072));
    let wrong = stand.subvolumes().set_subvolume_options(set("t", Some(""), None)).await;
    bad_field("compression", wrong);
    let wrong = stand.subvolumes().set_subvolume_options(set("t", None, Some(0))).await;
    bad_field("compression_frame_bytes", wrong);
    let nobody = stand.subvolumes().set_subvolume_options(set("nobody", None, None)).await;
    assert_eq!(nobody.unwrap_err().code(), Code::NotFound);
    let get = v1::GetSubvolumeRequest { name: "t".to_owned(), include_usage: true };
    let found = stand.subvolumes().get_subvolume(get).await.unwrap().into_inner();
    let found = found.subvolume.unwrap();
    assert_eq!((found.used_bytes, found.saved_bytes), (Some(8192), Some(16384)));
}

/// Both shards of the pool are told, and tell.
#[tokio::test]
async fn a_scrub_is_started_watched_and_given_up() {
    let stand = Stand::new().await;
    let mut scrubs = stand.scrubs();
    let now = scrubs.get_scrub(v1::GetScrubRequest {}).await.unwrap().into_inner().scrub.unwrap();
    assert_eq!(now, v1::Scrub::default());
    let start = v1::StartScrubRequest { bytes_per_second: 1001 };
    let now = scrubs.start_scrub(start).await.unwrap().into_inner().scrub.unwrap();
    assert_eq!((now.state(), now.bytes_per_second), (v1::ScrubState::Running, 1002));
    assert_eq!((now.began_ns, now.total_bytes, now.done_bytes), (5, 8192, 2048));
    let again = scrubs.start_scrub(start).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition, "{again:?}");
    let pause = v1::PauseScrubRequest {};
    let now = scrubs.pause_scrub(pause).await.unwrap().into_inner().scrub.unwrap();
    assert_eq!(now.state(), v1::ScrubState::Paused);
    let resume = v1::ResumeScrubRequest {};
    let now = scrubs.resume_scrub(resume).await.unwrap().into_inner().scrub.unwrap();
    assert_eq!(now.state(), v1::ScrubState::Running);
    let cancel = v1::CancelScrubRequest {};
    let now = scrubs.cancel_scrub(cancel).await.unwrap().into_inner().scrub.unwrap();
    assert_eq!((now.state(), now.ended_ns), (v1::ScrubState::Cancelled, 9));
    assert_eq!((now.problem_count, now.last_problem.as_str()), (2, "a block"));
}

fn export_of(nqn: &str, volumes: &[&str]) -> v1::CreateExportRequest {
    let namespaces = volumes
        .iter()
        .map(|volume| v1::ExportNamespace { nsid: 0, volume: (*volume).to_owned() })
        .collect();
    v1::CreateExportRequest {
        nqn: nqn.to_owned(),
        namespaces,
        allow_any_host: true,
        host_nqns: vec![],
    }
}

#[tokio::test]
async fn a_volume_lives_its_life() {
    let stand = Stand::new().await;
    let volume = create_volume(&stand, "disk", 64 * MIB).await.unwrap();
    assert_eq!((volume.size_bytes, volume.block_size_bytes), (64 * MIB, 4096));
    assert_eq!(volume.uuid.len(), 36);
    assert_eq!(volume.used_bytes, None);

    let again = create_volume(&stand, "disk", 64 * MIB).await.unwrap_err();
    assert_eq!((again.code(), reason(&again).as_str()), (Code::AlreadyExists, "ALREADY_EXISTS"));
    let resource = again.get_details_resource_info().unwrap();
    assert_eq!(
        (resource.resource_type.as_str(), resource.resource_name.as_str()),
        ("cairn.v1.Volume", "disk")
    );

    let get = v1::GetVolumeRequest { name: "disk".to_owned(), include_usage: true };
    let got = stand.volumes().get_volume(get).await.unwrap().into_inner().volume.unwrap();
    assert_eq!(got.used_bytes, Some(2 * 4096));
    assert_eq!(got.exported_by, "");

    let resize = |size_bytes, allow_shrink| v1::ResizeVolumeRequest {
        name: "disk".to_owned(),
        size_bytes,
        allow_shrink,
    };
    let grown = stand.volumes().resize_volume(resize(128 * MIB, false)).await.unwrap();
    assert_eq!(grown.into_inner().volume.unwrap().size_bytes, 128 * MIB);
    assert_eq!(stand.exports.resized(), [("disk".to_owned(), 128 * MIB)]);
    let refused = stand.volumes().resize_volume(resize(MIB, false)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let shrunk = stand.volumes().resize_volume(resize(MIB, true)).await.unwrap();
    assert_eq!(shrunk.into_inner().volume.unwrap().size_bytes, MIB);

    let delete = v1::DeleteVolumeRequest { name: "disk".to_owned() };
    stand.volumes().delete_volume(delete.clone()).await.unwrap();
    let gone = stand.volumes().delete_volume(delete).await.unwrap_err();
    assert_eq!((gone.code(), reason(&gone).as_str()), (Code::NotFound, "NOT_FOUND"));
}

#[tokio::test]
async fn kinds_are_not_confused() {
    let stand = Stand::new().await;
    create_volume(&stand, "disk", MIB).await.unwrap();
    let create = v1::CreateSubvolumeRequest { name: "tree".to_owned(), ..Default::default() };
    let tree = stand.subvolumes().create_subvolume(create).await.unwrap().into_inner();
    assert_eq!(tree.subvolume.unwrap().kind(), v1::SubvolumeKind::FileTree);

    let delete = v1::DeleteVolumeRequest { name: "tree".to_owned() };
    let status = stand.volumes().delete_volume(delete).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "WRONG_KIND"));
    let delete = v1::DeleteSubvolumeRequest { name: "disk".to_owned() };
    let status = stand.subvolumes().delete_subvolume(delete).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "WRONG_KIND"));
    let file = Some(v1::FilePath { subvolume: "disk".to_owned(), path: b"/".to_vec() });
    let stat = v1::StatFileRequest { file, follow_symlink: false };
    let status = stand.files().stat_file(stat).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "WRONG_KIND"));

    let get = v1::GetSubvolumeRequest { name: "disk".to_owned(), include_usage: true };
    let got = stand.subvolumes().get_subvolume(get).await.unwrap().into_inner().subvolume.unwrap();
    assert_eq!((got.kind(), got.used_bytes), (v1::SubvolumeKind::Volume, Some(8192)));
    let delete = v1::DeleteSubvolumeRequest { name: "tree".to_owned() };
    stand.subvolumes().delete_subvolume(delete).await.unwrap();
}

#[tokio::test]
async fn lists_come_in_pages_and_lose_nothing() {
    let stand = Stand::new().await;
    for index in 0..23 {
        create_volume(&stand, &format!("v{index:02}"), MIB).await.unwrap();
        let create =
            v1::CreateSubvolumeRequest { name: format!("t{index:02}"), ..Default::default() };
        stand.subvolumes().create_subvolume(create).await.unwrap();
    }
    for page_size in [1, 7, 23, 24, 5000] {
        let mut names = Vec::new();
        let mut request = v1::ListVolumesRequest { page_size, ..Default::default() };
        loop {
            let page = stand.volumes().list_volumes(request.clone()).await.unwrap().into_inner();
            assert!(page.volumes.len() <= page_size as usize);
            names.extend(page.volumes.into_iter().map(|volume| volume.name));
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        let expected: Vec<_> = (0..23).map(|index| format!("v{index:02}")).collect();
        assert_eq!(names, expected, "page size {page_size}");
    }
    let list = v1::ListSubvolumesRequest { include_usage: true, ..Default::default() };
    let all = stand.subvolumes().list_subvolumes(list).await.unwrap().into_inner().subvolumes;
    assert_eq!(all.len(), 46);
    assert!(all.iter().all(|it| it.used_bytes == Some(8192)));
    let list = v1::ListSubvolumesRequest {
        kind: v1::SubvolumeKind::FileTree.into(),
        ..Default::default()
    };
    let trees = stand.subvolumes().list_subvolumes(list).await.unwrap().into_inner().subvolumes;
    assert_eq!(trees.len(), 23);
}

#[tokio::test]
async fn an_exported_volume_is_neither_deleted_nor_shrunk() {
    let stand = Stand::new().await;
    for name in ["a", "b", "c"] {
        create_volume(&stand, name, 8 * MIB).await.unwrap();
    }
    let nqn = "nqn.2026-01.org.example:one";
    let mut request = export_of(nqn, &["a", "b"]);
    request.namespaces[0].nsid = 2;
    let export = stand.exports().create_export(request).await.unwrap().into_inner().export.unwrap();
    let nsids: Vec<_> = export.namespaces.iter().map(|n| (n.nsid, n.volume.as_str())).collect();
    assert_eq!(nsids, [(1, "b"), (2, "a")]);
    assert_eq!(export.listen_addresses, ["127.0.0.1:4420"]);

    let delete = v1::DeleteVolumeRequest { name: "a".to_owned() };
    let status = stand.volumes().delete_volume(delete.clone()).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::FailedPrecondition, "VOLUME_EXPORTED")
    );
    assert!(status.message().contains(nqn), "{}", status.message());
    let violations = status.get_details_precondition_failure().unwrap().violations;
    assert_eq!(violations[0].subject, "a");
    let shrink =
        v1::ResizeVolumeRequest { name: "a".to_owned(), size_bytes: MIB, allow_shrink: true };
    let status = stand.volumes().resize_volume(shrink).await.unwrap_err();
    assert_eq!(reason(&status), "VOLUME_EXPORTED");
    let grow =
        v1::ResizeVolumeRequest { name: "a".to_owned(), size_bytes: 16 * MIB, allow_shrink: false };
    stand.volumes().resize_volume(grow).await.unwrap();
    let get = v1::GetVolumeRequest { name: "a".to_owned(), include_usage: false };
    let got = stand.volumes().get_volume(get).await.unwrap().into_inner().volume.unwrap();
    assert_eq!(got.exported_by, nqn);

    let other = export_of("nqn.2026-01.org.example:two", &["c", "b"]);
    let status = stand.exports().create_export(other).await.unwrap_err();
    assert_eq!(reason(&status), "VOLUME_EXPORTED");
    let status = stand.exports().create_export(export_of(nqn, &["a"])).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    let missing = export_of("nqn.2026-01.org.example:two", &["zzz"]);
    assert_eq!(stand.exports().create_export(missing).await.unwrap_err().code(), Code::NotFound);

    let get = v1::GetExportRequest { nqn: nqn.to_owned() };
    assert!(stand.exports().get_export(get.clone()).await.unwrap().into_inner().export.is_some());
    let remove = v1::DeleteExportRequest { nqn: nqn.to_owned() };
    stand.exports().delete_export(remove.clone()).await.unwrap();
    assert_eq!(stand.exports().delete_export(remove).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(stand.exports().get_export(get).await.unwrap_err().code(), Code::NotFound);
    stand.volumes().delete_volume(delete).await.unwrap();
}

#[tokio::test]
async fn exports_are_listed_in_pages() {
    let stand = Stand::new().await;
    for index in 0..5 {
        let name = format!("v{index}");
        create_volume(&stand, &name, MIB).await.unwrap();
        let export = export_of(&format!("nqn.2026-01.org.example:{index}"), &[&name]);
        stand.exports().create_export(export).await.unwrap();
    }
    let mut seen = Vec::new();
    let mut request = v1::ListExportsRequest { page_size: 2, page_token: String::new() };
    loop {
        let page = stand.exports().list_exports(request.clone()).await.unwrap().into_inner();
        seen.extend(page.exports.into_iter().map(|export| export.nqn));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    let expected: Vec<_> = (0..5).map(|index| format!("nqn.2026-01.org.example:{index}")).collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn pool_and_statistics_are_shown() {
    let stand = Stand::new().await;
    let status = stand.pool().get_pool_status(v1::GetPoolStatusRequest {}).await.unwrap();
    let status = status.into_inner().status.unwrap();
    assert_eq!((status.shard_count, status.member_count), (2, 3));
    assert_eq!(status.capacity_bytes, (2 << 30) + (1 << 28));
    assert_eq!(status.available_bytes, 1 << 30);
    assert_eq!(status.uuid, "abababab-abab-abab-abab-abababababab");

    let mut request = v1::ListMembersRequest { page_size: 2, page_token: String::new() };
    let first = stand.pool().list_members(request.clone()).await.unwrap().into_inner();
    assert_eq!(first.members.len(), 2);
    request.page_token = first.next_page_token;
    let second = stand.pool().list_members(request).await.unwrap().into_inner();
    assert_eq!((second.members.len(), second.members[0].index), (1, 2));
    assert_eq!(second.next_page_token, "");

    for (resume, blocks) in [(false, 14), (true, 6)] {
        let check = v1::CheckPoolRequest { verify_data: true, resume };
        let report = stand.pool().check_pool(check).await.unwrap().into_inner();
        assert_eq!(report.problem_count, 0);
        assert_eq!((report.checked[1].name.as_str(), report.checked[1].count), ("blocks", blocks));
    }
    let check = v1::CheckPoolRequest { verify_data: false, resume: true };
    let refused = stand.pool().check_pool(check).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);

    let stats = stand.stats().get_stats(v1::GetStatsRequest {}).await.unwrap().into_inner();
    assert_eq!(stats.shards.len(), 2);
    assert_eq!(stats.shards[1].shard, 1);
    assert_eq!(
        (stats.shards[0].counters[0].name.as_str(), stats.shards[0].counters[0].value),
        ("journal_entries", 11)
    );
    let wanted = v1::GetAllocationsRequest { largest: 1 };
    let largest = stand.stats().get_allocations(wanted).await.unwrap().into_inner();
    assert_eq!(largest.sites.len(), 1);
    assert_eq!(largest.profiling(), v1::AllocationProfiling::On);
    let all = v1::GetAllocationsRequest { largest: 0 };
    let all = stand.stats().get_allocations(all).await.unwrap().into_inner();
    assert!(all.sites.iter().any(|site| site.name == "free buffers"), "{all:?}");
    let unset = v1::SetAllocationProfilingRequest { profiling: 0 };
    let refused = stand.stats().set_allocation_profiling(unset).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    let info = stand.stats().get_server_info(v1::GetServerInfoRequest {}).await.unwrap();
    let info = info.into_inner();
    assert_eq!((info.version.as_str(), info.started_ns), ("1.2.3", 42));
    assert_eq!((info.chunk_bytes_max, info.message_bytes_max), (256 << 10, 2 << 20));
}
