//! Snapshots and clones over gRPC.

use crate::common::Stand;
use bytes::Bytes;
use proto::v1;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

const MIB: u64 = 1 << 20;

fn reason(status: &Status) -> String {
    status.get_details_error_info().expect("every error has an ErrorInfo").reason
}

async fn volume(stand: &Stand, name: &str) -> v1::Volume {
    let request = v1::CreateVolumeRequest {
        name: name.to_owned(),
        size_bytes: 64 * MIB,
        block_size_bytes: 0,
        options: None,
    };
    stand.volumes().create_volume(request).await.unwrap().into_inner().volume.unwrap()
}

fn of(snapshots: &[(&str, &str)]) -> v1::CreateSnapshotsRequest {
    let new = |(source, name): &(&str, &str)| v1::NewSnapshot {
        source: (*source).to_owned(),
        name: (*name).to_owned(),
    };
    v1::CreateSnapshotsRequest { snapshots: snapshots.iter().map(new).collect() }
}

async fn list(stand: &Stand, source: &str) -> Vec<(String, String)> {
    let request = v1::ListSnapshotsRequest {
        source: source.to_owned(),
        include_usage: true,
        ..Default::default()
    };
    let page = stand.snapshots().list_snapshots(request).await.unwrap().into_inner();
    assert_eq!(page.next_page_token, "");
    let bytes = |one: &v1::Snapshot| (one.own_bytes, one.freed_bytes);
    assert!(page.snapshots.iter().all(|one| bytes(one) == (Some(2 * 4096), Some(2 * 4096))));
    page.snapshots.into_iter().map(|one| (one.name, one.source)).collect()
}

#[tokio::test]
async fn snapshots_are_made_listed_and_deleted() {
    let stand = Stand::new().await;
    let disk = volume(&stand, "disk").await;
    volume(&stand, "log").await;
    let made = stand.snapshots().create_snapshots(of(&[("disk", "d1"), ("log", "l1")])).await;
    let made = made.unwrap().into_inner().snapshots;
    assert_eq!((made.len(), made[0].source_id, made[0].size_bytes), (2, disk.id, 64 * MIB));
    assert_eq!((made[0].source.as_str(), made[1].source.as_str()), ("disk", "log"));
    let pair = |name: &str, source: &str| (name.to_owned(), source.to_owned());
    assert_eq!(list(&stand, "").await, [pair("d1", "disk"), pair("l1", "log")]);
    assert_eq!(list(&stand, "disk").await, [pair("d1", "disk")]);
    // They are no volumes, and volumes are no snapshots.
    let volumes = stand.volumes().list_volumes(v1::ListVolumesRequest::default()).await.unwrap();
    assert_eq!(volumes.into_inner().volumes.len(), 2);
    let get = v1::GetVolumeRequest { name: "d1".to_owned(), include_usage: false };
    let status = stand.volumes().get_volume(get).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "WRONG_KIND"));
    let get = v1::GetSnapshotRequest { name: "disk".to_owned(), include_usage: false };
    let status = stand.snapshots().get_snapshot(get).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "WRONG_KIND"));
    // One whose volume is gone is still there.
    let delete = v1::DeleteVolumeRequest { name: "disk".to_owned() };
    stand.volumes().delete_volume(delete).await.unwrap();
    assert_eq!(list(&stand, "").await, [pair("d1", ""), pair("l1", "log")]);
    let delete = v1::DeleteSnapshotRequest { name: "d1".to_owned() };
    stand.snapshots().delete_snapshot(delete.clone()).await.unwrap();
    let status = stand.snapshots().delete_snapshot(delete).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let resource = status.get_details_resource_info().unwrap();
    assert_eq!(resource.resource_type, "cairn.v1.Snapshot");
}

#[tokio::test]
async fn wrong_requests_name_the_field() {
    let stand = Stand::new().await;
    volume(&stand, "disk").await;
    let many = vec![("disk", "x"); 65];
    for (request, field) in [
        (of(&[]), "snapshots"),
        (of(&many), "snapshots"),
        (of(&[("disk", "")]), "snapshots.name"),
        (of(&[("di/sk", "x")]), "snapshots.source"),
    ] {
        let status = stand.snapshots().create_snapshots(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        let bad = status.get_details_bad_request().unwrap();
        assert_eq!(bad.field_violations[0].field, field);
    }
}

#[tokio::test]
async fn a_clone_is_a_volume_and_rollback_needs_one_that_is_not_exported() {
    let stand = Stand::new().await;
    volume(&stand, "disk").await;
    stand.snapshots().create_snapshots(of(&[("disk", "d1")])).await.unwrap();
    let clone = v1::CreateCloneRequest { source: "d1".to_owned(), name: "copy".to_owned() };
    let made = stand.snapshots().create_clone(clone).await.unwrap().into_inner().subvolume.unwrap();
    assert_eq!((made.name.as_str(), made.kind()), ("copy", v1::SubvolumeKind::Volume));
    let get = v1::GetVolumeRequest { name: "copy".to_owned(), include_usage: false };
    let copy = stand.volumes().get_volume(get).await.unwrap().into_inner().volume.unwrap();
    assert_eq!(copy.size_bytes, 64 * MIB);

    let rollback = v1::RollbackRequest { name: "disk".to_owned(), snapshot: "d1".to_owned() };
    stand.snapshots().rollback(rollback.clone()).await.unwrap();
    let to_volume = v1::RollbackRequest { snapshot: "copy".to_owned(), ..rollback.clone() };
    let status = stand.snapshots().rollback(to_volume).await.unwrap_err();
    assert_eq!(reason(&status), "WRONG_KIND");
    let nqn = "nqn.2014-08.org.nvmexpress:disk";
    let export = |volume: &str| v1::CreateExportRequest {
        nqn: nqn.to_owned(),
        namespaces: vec![v1::ExportNamespace { nsid: 0, volume: volume.to_owned() }],
        allow_any_host: true,
        host_nqns: vec![],
    };
    let status = stand.exports().create_export(export("d1")).await.unwrap_err();
    assert_eq!(reason(&status), "WRONG_KIND", "a snapshot is not exported");
    stand.exports().create_export(export("disk")).await.unwrap();
    let status = stand.snapshots().rollback(rollback).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::FailedPrecondition, "VOLUME_EXPORTED")
    );
}

#[tokio::test]
async fn a_diff_is_for_snapshots_of_one_volume() {
    let stand = Stand::new().await;
    volume(&stand, "disk").await;
    let make = of(&[("disk", "d1")]);
    stand.snapshots().create_snapshots(make).await.unwrap();
    stand.snapshots().create_snapshots(of(&[("disk", "d2")])).await.unwrap();
    let diff = async |base: &str, snapshot: &str| {
        let request = v1::DiffSnapshotsRequest {
            base: base.to_owned(),
            snapshot: snapshot.to_owned(),
            page_token: String::new(),
        };
        let mut stream = stand.snapshots().diff_snapshots(request).await?.into_inner();
        let mut ranges = Vec::new();
        while let Some(message) = stream.message().await? {
            ranges.extend(message.ranges);
        }
        Ok::<_, Status>(ranges)
    };
    let told = diff("", "d1").await.unwrap();
    let expected = v1::ChangedRange { offset_bytes: 4096, length_bytes: 8192, has_data: true };
    assert_eq!(told, [expected]);
    for (base, snapshot) in [("disk", "d1"), ("d1", "disk")] {
        assert_eq!(reason(&diff(base, snapshot).await.unwrap_err()), "WRONG_KIND");
    }
    assert_eq!(diff("d1", "none").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn trees_have_snapshots_and_clones() {
    let stand = Stand::new().await;
    volume(&stand, "disk").await;
    let create = v1::CreateSubvolumeRequest { name: "home".to_owned(), ..Default::default() };
    stand.subvolumes().create_subvolume(create).await.unwrap();
    let made = stand.snapshots().create_snapshots(of(&[("home", "h1"), ("disk", "d1")])).await;
    let kinds: Vec<_> = made.unwrap().into_inner().snapshots.iter().map(|one| one.kind()).collect();
    assert_eq!(kinds, [v1::SubvolumeKind::FileTree, v1::SubvolumeKind::Volume]);
    let clone = v1::CreateCloneRequest { source: "h1".to_owned(), name: "copy".to_owned() };
    let copy = stand.snapshots().create_clone(clone).await.unwrap().into_inner().subvolume.unwrap();
    assert_eq!((copy.kind(), copy.read_only), (v1::SubvolumeKind::FileTree, false));
    let rollback = v1::RollbackRequest { name: "home".to_owned(), snapshot: "h1".to_owned() };
    stand.snapshots().rollback(rollback.clone()).await.unwrap();
    let of_snapshot = v1::RollbackRequest { name: "h1".to_owned(), ..rollback };
    let status = stand.snapshots().rollback(of_snapshot).await.unwrap_err();
    assert_eq!(reason(&status), "WRONG_KIND");
    let list = v1::ListSubvolumesRequest {
        kind: v1::SubvolumeKind::FileTree.into(),
        ..Default::default()
    };
    let trees = stand.subvolumes().list_subvolumes(list).await.unwrap().into_inner().subvolumes;
    let shown: Vec<_> = trees.iter().map(|tree| (tree.name.as_str(), tree.read_only)).collect();
    assert_eq!(shown, [("copy", false), ("h1", true), ("home", false)]);
    let diff = v1::DiffSnapshotsRequest { snapshot: "h1".to_owned(), ..Default::default() };
    let mut told = stand.snapshots().diff_snapshots(diff).await.unwrap().into_inner();
    let first = told.message().await.unwrap().unwrap();
    assert_eq!(
        (first.paths[0].kind(), &first.paths[0].path[..]),
        (v1::ChangeKind::Added, &b"/a"[..])
    );
    // It is told in two parts; the second may be asked for again.
    let page_token = first.next_page_token;
    let diff =
        v1::DiffSnapshotsRequest { snapshot: "h1".to_owned(), page_token, ..Default::default() };
    let mut rest = stand.snapshots().diff_snapshots(diff.clone()).await.unwrap().into_inner();
    let second = told.message().await.unwrap().unwrap();
    assert_eq!(rest.message().await.unwrap().unwrap(), second);
    assert_eq!((&second.paths[0].path[..], second.next_page_token.as_str()), (&b"/b"[..], ""));
    let other = v1::DiffSnapshotsRequest { snapshot: "d1".to_owned(), ..diff };
    let mut wrong = stand.snapshots().diff_snapshots(other).await.unwrap().into_inner();
    assert_eq!(wrong.message().await.unwrap_err().code(), Code::InvalidArgument);
    // A snapshot is deleted as one.
    let delete = v1::DeleteSubvolumeRequest { name: "h1".to_owned() };
    let status = stand.subvolumes().delete_subvolume(delete).await.unwrap_err();
    assert_eq!(reason(&status), "WRONG_KIND");
    let delete = v1::DeleteSnapshotRequest { name: "h1".to_owned() };
    stand.snapshots().delete_snapshot(delete).await.unwrap();
}

/// The parts of a stream.
async fn sent(stand: &Stand, request: v1::SendSnapshotRequest) -> Result<Vec<Bytes>, Status> {
    let mut stream = stand.snapshots().send_snapshot(request).await?.into_inner();
    let mut parts = Vec::new();
    while let Some(message) = stream.message().await? {
        parts.push(message.data);
    }
    Ok(parts)
}

async fn receive(stand: &Stand, name: &str, parts: &[Bytes]) -> Result<v1::Snapshot, Status> {
    let first = v1::ReceiveSnapshotRequest { name: name.to_owned(), data: Bytes::new() };
    let rest = parts.iter().map(|data| {
        let (name, data) = (String::new(), data.clone());
        v1::ReceiveSnapshotRequest { name, data }
    });
    let messages: Vec<_> = [first].into_iter().chain(rest).collect();
    let reply = stand.snapshots().receive_snapshot(tokio_stream::iter(messages)).await?;
    Ok(reply.into_inner().snapshot.expect("a snapshot"))
}

#[tokio::test]
async fn a_snapshot_is_sent_and_received_also_in_two_parts() {
    let stand = Stand::new().await;
    volume(&stand, "disk").await;
    let made = stand.snapshots().create_snapshots(of(&[("disk", "d1")])).await.unwrap();
    let uuid = made.into_inner().snapshots[0].uuid.clone();
    let whole = v1::SendSnapshotRequest { snapshot: "d1".to_owned(), ..Default::default() };
    let parts = sent(&stand, whole.clone()).await.unwrap();
    let copy = receive(&stand, "copy", &parts).await.unwrap();
    assert_eq!((copy.name.as_str(), copy.size_bytes, copy.received_uuid), ("copy", 64 * MIB, uuid));
    let status = receive(&stand, "copy", &parts).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    // Cut off: what came is a volume that nobody else uses, and shows how to go on.
    let bytes = Bytes::from(parts.concat());
    let cut = bytes.slice(..bytes.len() - 10);
    let status = receive(&stand, "half", &[cut]).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("resume token"), "{}", status.message());
    let get = v1::GetVolumeRequest { name: "half".to_owned(), include_usage: false };
    let half = stand.volumes().get_volume(get).await.unwrap().into_inner().volume.unwrap();
    let receiving = half.receiving.unwrap();
    assert_eq!(receiving.position_bytes, Some(12288));
    let resize = v1::ResizeVolumeRequest {
        name: "half".to_owned(),
        size_bytes: 128 * MIB,
        ..Default::default()
    };
    let status = stand.volumes().resize_volume(resize).await.unwrap_err();
    assert_eq!(reason(&status), "BEING_RECEIVED");
    let export = v1::CreateExportRequest {
        nqn: "nqn.2014-08.org.nvmexpress:half".to_owned(),
        namespaces: vec![v1::ExportNamespace { nsid: 0, volume: "half".to_owned() }],
        allow_any_host: true,
        host_nqns: vec![],
    };
    let status = stand.exports().create_export(export).await.unwrap_err();
    assert_eq!(reason(&status), "BEING_RECEIVED");
    let resume_token = receiving.resume_token;
    let rest = v1::SendSnapshotRequest { resume_token, ..Default::default() };
    let rest = sent(&stand, rest).await.unwrap();
    assert!(rest.concat().len() < bytes.len());
    assert_eq!(receive(&stand, "half", &rest).await.unwrap().name, "half");
}

#[tokio::test]
async fn wrong_streams_and_wrong_wishes_are_refused() {
    let stand = Stand::new().await;
    volume(&stand, "disk").await;
    stand.snapshots().create_snapshots(of(&[("disk", "d1")])).await.unwrap();
    let wish = |snapshot: &str, base: &str, resume_token: &str| v1::SendSnapshotRequest {
        snapshot: snapshot.to_owned(),
        base: base.to_owned(),
        resume_token: resume_token.to_owned(),
    };
    let refusals = [
        (wish("", "", ""), Code::InvalidArgument),
        (wish("none", "", ""), Code::NotFound),
        (wish("disk", "", ""), Code::InvalidArgument),
        (wish("d1", "d1", ""), Code::InvalidArgument),
        (wish("d1", "-", ""), Code::InvalidArgument),
        (wish("", "", "12"), Code::InvalidArgument),
        (wish("d1", "", "12"), Code::InvalidArgument),
    ];
    for (wish, code) in refusals {
        let told = format!("{wish:?}");
        assert_eq!(sent(&stand, wish).await.unwrap_err().code(), code, "{told}");
    }
    let parts = sent(&stand, wish("d1", "", "")).await.unwrap();
    let mut damaged = parts.concat();
    damaged[200] ^= 1;
    for (name, bytes, why) in [
        ("x", Bytes::from(damaged), "is damaged"),
        ("x", Bytes::from_static(b"#!/bin/sh"), "not one that cairn sent"),
        ("y", Bytes::new(), "nothing of it came"),
        ("", Bytes::new(), "must not be empty"),
        ("y", Bytes::from(vec![0; (1 << 20) + 1]), "is over"),
    ] {
        let status = receive(&stand, name, &[bytes]).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(why), "{}", status.message());
    }
    let twice = ["z", "z"].map(|name| {
        let (name, data) = (name.to_owned(), Bytes::new());
        v1::ReceiveSnapshotRequest { name, data }
    });
    let status = stand.snapshots().receive_snapshot(tokio_stream::iter(twice)).await.unwrap_err();
    assert!(status.message().contains("a second time"), "{}", status.message());
}
