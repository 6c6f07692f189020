//! Bad input: each case with the code and, for a bad field, the field that the answer must name.

use crate::common::{Stand, bad_field};
use proto::v1;
use proto::v1::write_file_request::Message;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

const MIB: u64 = 1 << 20;

fn path(subvolume: &str, path: impl AsRef<[u8]>) -> Option<v1::FilePath> {
    Some(v1::FilePath { subvolume: subvolume.to_owned(), path: path.as_ref().to_vec() })
}

#[track_caller]
fn fails<T: std::fmt::Debug>(code: Code, reason: &str, result: Result<T, Status>) {
    let status = result.expect_err(reason);
    assert_eq!(status.code(), code, "{status:?}");
    assert_eq!(status.get_details_error_info().unwrap().reason, reason);
}

async fn stand() -> Stand {
    let stand = Stand::new().await;
    let create = v1::CreateSubvolumeRequest { name: "tree".to_owned(), ..Default::default() };
    stand.subvolumes().create_subvolume(create).await.unwrap();
    let create = v1::CreateVolumeRequest {
        name: "disk".to_owned(),
        size_bytes: 8 * MIB,
        block_size_bytes: 512,
        options: None,
    };
    stand.volumes().create_volume(create).await.unwrap();
    stand
}

#[tokio::test]
async fn names_of_subvolumes() {
    let stand = stand().await;
    let long = "x".repeat(256);
    for name in ["", ".", "..", ".hidden", "-dash", "a/b", "a b", "a\0b", "\u{e9}", long.as_str()] {
        let create = v1::CreateSubvolumeRequest { name: name.to_owned(), ..Default::default() };
        bad_field("name", stand.subvolumes().create_subvolume(create).await);
        let delete = v1::DeleteVolumeRequest { name: name.to_owned() };
        bad_field("name", stand.volumes().delete_volume(delete).await);
        let stat = v1::StatFileRequest { file: path(name, "/"), follow_symlink: false };
        bad_field("file.subvolume", stand.files().stat_file(stat).await);
    }
    let create = v1::CreateSubvolumeRequest { name: "x".repeat(255), ..Default::default() };
    stand.subvolumes().create_subvolume(create).await.unwrap();
}

#[tokio::test]
async fn sizes_of_volumes() {
    let stand = stand().await;
    let create = |size_bytes, block_size_bytes| {
        let name = "new".to_owned();
        v1::CreateVolumeRequest { name, size_bytes, block_size_bytes, options: None }
    };
    for (size, block, field) in [
        (0, 0, "size_bytes"),
        (4095, 0, "size_bytes"),
        (4096 + 512, 4096, "size_bytes"),
        (513, 512, "size_bytes"),
        ((1 << 60) + 4096, 4096, "size_bytes"),
        (u64::MAX, 512, "size_bytes"),
        (MIB, 1, "block_size_bytes"),
        (MIB, 8192, "block_size_bytes"),
    ] {
        bad_field(field, stand.volumes().create_volume(create(size, block)).await);
    }
    let resize = |size_bytes| {
        let name = "disk".to_owned();
        v1::ResizeVolumeRequest { name, size_bytes, allow_shrink: true }
    };
    for size in [0, 511, (1 << 60) + 512] {
        bad_field("size_bytes", stand.volumes().resize_volume(resize(size)).await);
    }
}

#[tokio::test]
async fn exports() {
    let stand = stand().await;
    let nqn = "nqn.2026-01.org.example:x";
    let good = v1::CreateExportRequest {
        nqn: nqn.to_owned(),
        namespaces: vec![v1::ExportNamespace { nsid: 1, volume: "disk".to_owned() }],
        allow_any_host: true,
        host_nqns: vec![],
    };
    let long = format!("nqn.{}", "x".repeat(220));
    for bad in
        ["", "nqn.", "iqn.x", "nqn.a b", "nqn.a\nb", &long, "nqn.2014-08.org.nvmexpress.discovery"]
    {
        let request = v1::CreateExportRequest { nqn: bad.to_owned(), ..good.clone() };
        bad_field("nqn", stand.exports().create_export(request).await);
    }
    let hosts = |allow_any_host, hosts: &[&str]| v1::CreateExportRequest {
        allow_any_host,
        host_nqns: hosts.iter().map(|host| (*host).to_owned()).collect(),
        ..good.clone()
    };
    for (field, request) in [
        ("host_nqns", hosts(false, &[])),
        ("host_nqns", hosts(true, &["nqn.h"])),
        ("host_nqns[1]", hosts(false, &["nqn.h", "h"])),
        ("host_nqns", hosts(false, &["nqn.h", "nqn.h"])),
        ("host_nqns", hosts(false, &["nqn.h"; 129])),
    ] {
        bad_field(field, stand.exports().create_export(request).await);
    }
    let volumes = |volumes: &[(u32, &str)]| v1::CreateExportRequest {
        namespaces: volumes
            .iter()
            .map(|(nsid, volume)| v1::ExportNamespace { nsid: *nsid, volume: (*volume).to_owned() })
            .collect(),
        ..good.clone()
    };
    for (field, request) in [
        ("namespaces", volumes(&[])),
        ("namespaces", volumes(&[(0, "disk"); 129])),
        ("namespaces[0].nsid", volumes(&[(1025, "disk")])),
        ("namespaces[1].nsid", volumes(&[(1, "disk"), (1, "other")])),
        ("namespaces[1].volume", volumes(&[(1, "disk"), (2, "disk")])),
        ("namespaces.volume", volumes(&[(1, "a/b")])),
    ] {
        bad_field(field, stand.exports().create_export(request).await);
    }
    let request = volumes(&[(1, "tree")]);
    let result = stand.exports().create_export(request).await;
    fails(Code::FailedPrecondition, "WRONG_KIND", result);
    stand.exports().create_export(good).await.unwrap();
}

#[tokio::test]
async fn page_tokens() {
    let stand = stand().await;
    let one = v1::ListSubvolumesRequest { page_size: 1, ..Default::default() };
    let page = stand.subvolumes().list_subvolumes(one).await.unwrap().into_inner();
    let foreign = page.next_page_token;
    assert!(!foreign.is_empty());
    for token in ["x", "zz", "0011223344556677", "\u{e9}", foreign.as_str()] {
        let page_token = token.to_owned();
        let list = v1::ListVolumesRequest { page_token: page_token.clone(), ..Default::default() };
        bad_field("page_token", stand.volumes().list_volumes(list).await);
        let list = v1::ListExportsRequest { page_token: page_token.clone(), page_size: 0 };
        bad_field("page_token", stand.exports().list_exports(list).await);
        let list = v1::ListMembersRequest { page_token: page_token.clone(), page_size: 0 };
        bad_field("page_token", stand.pool().list_members(list).await);
        let directory = path("tree", "/");
        let list = v1::ListDirectoryRequest { directory, page_token, page_size: 0 };
        let mut stream = stand.files().list_directory(list).await.unwrap().into_inner();
        bad_field("page_token", stream.message().await);
    }
    let list = v1::ListSubvolumesRequest { kind: 9, ..Default::default() };
    bad_field("kind", stand.subvolumes().list_subvolumes(list).await);
}

#[tokio::test]
async fn paths() {
    let stand = stand().await;
    let stat = async |file| {
        stand.files().stat_file(v1::StatFileRequest { file, follow_symlink: true }).await
    };
    bad_field("file", stat(None).await);
    let long_name = format!("/{}", "n".repeat(256));
    let long_path = "/p".repeat(2048);
    for bad in ["", "relative", "a/b", "/nul\0", long_name.as_str(), long_path.as_str()] {
        bad_field("file.path", stat(path("tree", bad)).await);
    }
    let directory = path("tree", "/d");
    let attributes = Some(v1::CreateAttributes { mode: 0o755, uid: 0, gid: 0 });
    let create = v1::CreateDirectoryRequest { directory, attributes, parents: false };
    stand.files().create_directory(create.clone()).await.unwrap();
    for escape in ["/..", "/../etc", "/d/../..", "/./../x", "/d/../../d"] {
        bad_field("request", stat(path("tree", escape)).await);
    }
    // Out of the tree through a symbolic link.
    let link = path("tree", "/out");
    let target = b"../../etc".to_vec();
    let symlink = v1::CreateSymlinkRequest { link, target, uid: 0, gid: 0 };
    stand.files().create_symlink(symlink.clone()).await.unwrap();
    bad_field("request", stat(path("tree", "/out")).await);
    for target in [vec![], vec![b'x'; 1024], b"a\0b".to_vec()] {
        let symlink = v1::CreateSymlinkRequest { target, ..symlink.clone() };
        bad_field("target", stand.files().create_symlink(symlink).await);
    }
    // Longest names and paths that are allowed are only not found.
    fails(Code::NotFound, "NOT_FOUND", stat(path("tree", format!("/{}", "n".repeat(255)))).await);
    fails(
        Code::NotFound,
        "NOT_FOUND",
        stat(path("tree", format!("/{}xy", "./".repeat(2046)))).await,
    );
    fails(Code::NotFound, "NOT_FOUND", stat(path("none", "/")).await);
    fails(Code::FailedPrecondition, "WRONG_KIND", stat(path("disk", "/")).await);

    for name in ["/", "/.", "/d/..", "/d/."] {
        let remove = v1::RemoveFileRequest { file: path("tree", name), recursive: true };
        bad_field("request", stand.files().remove_file(remove).await);
    }
    let no_attributes = v1::CreateDirectoryRequest { attributes: None, ..create.clone() };
    bad_field("attributes", stand.files().create_directory(no_attributes).await);
    let attributes = Some(v1::CreateAttributes { mode: 0o10000, uid: 0, gid: 0 });
    let bad_mode = v1::CreateDirectoryRequest { attributes, ..create };
    bad_field("attributes.mode", stand.files().create_directory(bad_mode).await);
}

#[tokio::test]
async fn arguments_of_file_calls() {
    let stand = stand().await;
    let mut files = stand.files();
    let file = || path("tree", "/f");
    let header = v1::WriteFileHeader {
        file: file(),
        create: Some(v1::CreateAttributes { mode: 0o644, uid: 0, gid: 0 }),
        ..Default::default()
    };
    let message = Some(Message::Header(header));
    files.write_file(tokio_stream::iter([v1::WriteFileRequest { message }])).await.unwrap();

    let set = v1::SetFileAttributesRequest { file: file(), ..Default::default() };
    bad_field("request", files.set_file_attributes(set.clone()).await);
    let set = v1::SetFileAttributesRequest { mode: Some(0o170_644), ..set };
    bad_field("mode", files.set_file_attributes(set).await);
    let cut = v1::TruncateFileRequest { file: file(), size_bytes: (1 << 60) + 1 };
    bad_field("size_bytes", files.truncate_file(cut).await);
    for (offset_bytes, length_bytes) in [(0, 0), (1 << 60, 1), (u64::MAX, 2)] {
        let punch = v1::PunchHoleRequest { file: file(), offset_bytes, length_bytes };
        bad_field("length_bytes", files.punch_hole(punch).await);
    }
    for name in [vec![], vec![b'x'; 256], b"user.\0".to_vec()] {
        let get = v1::GetXattrRequest { file: file(), name: name.clone() };
        bad_field("name", files.get_xattr(get).await);
        let remove = v1::RemoveXattrRequest { file: file(), name };
        bad_field("name", files.remove_xattr(remove).await);
    }
    let name = b"user.x".to_vec();
    let set = v1::SetXattrRequest { file: file(), name, value: vec![0; 1537], mode: 0 };
    bad_field("value", files.set_xattr(set.clone()).await);
    let set = v1::SetXattrRequest { value: vec![], mode: 7, ..set };
    bad_field("mode", files.set_xattr(set).await);
    let rename = v1::RenameFileRequest { source: file(), destination: file(), mode: 9 };
    bad_field("mode", files.rename_file(rename).await);
    let read =
        v1::ReadFileRequest { file: file(), offset_bytes: (1 << 60) + 1, length_bytes: None };
    let mut stream = files.read_file(read).await.unwrap().into_inner();
    bad_field("offset_bytes", stream.message().await);
    let directory = v1::ReadFileRequest { file: path("tree", "/"), ..Default::default() };
    let mut stream = files.read_file(directory).await.unwrap().into_inner();
    fails(Code::FailedPrecondition, "IS_DIRECTORY", stream.message().await);
    let list = v1::ListDirectoryRequest { directory: file(), ..Default::default() };
    let mut stream = files.list_directory(list).await.unwrap().into_inner();
    fails(Code::FailedPrecondition, "NOT_DIRECTORY", stream.message().await);
    let punch = v1::PunchHoleRequest { file: path("tree", "/"), offset_bytes: 0, length_bytes: 1 };
    fails(Code::FailedPrecondition, "IS_DIRECTORY", files.punch_hole(punch).await);
}

#[tokio::test]
async fn write_streams() {
    let stand = stand().await;
    let write = async |messages: Vec<Option<Message>>| {
        let messages = messages.into_iter().map(|message| v1::WriteFileRequest { message });
        stand.files().write_file(tokio_stream::iter(messages.collect::<Vec<_>>())).await
    };
    let good = v1::WriteFileHeader {
        file: path("tree", "/f"),
        create: Some(v1::CreateAttributes { mode: 0o644, uid: 0, gid: 0 }),
        ..Default::default()
    };
    let header = |header: &v1::WriteFileHeader| Some(Message::Header(header.clone()));
    let chunk = |offset_bytes: u64, data: &[u8]| {
        let crc32c = crc32c::crc32c(data);
        Some(Message::Chunk(v1::WriteFileChunk {
            offset_bytes,
            data: data.to_vec().into(),
            crc32c,
        }))
    };
    bad_field("header", write(vec![]).await);
    bad_field("chunk", write(vec![chunk(0, b"x"), header(&good)]).await);
    bad_field("message", write(vec![None]).await);
    bad_field("header", write(vec![header(&good), header(&good)]).await);
    bad_field("message", write(vec![header(&good), None]).await);
    bad_field("chunk.data", write(vec![header(&good), chunk(0, b"")]).await);
    let large = vec![1; (256 << 10) + 1];
    bad_field("chunk.data", write(vec![header(&good), chunk(0, &large)]).await);
    let back = vec![header(&good), chunk(100, b"abc"), chunk(102, b"d")];
    bad_field("chunk.offset_bytes", write(back).await);
    for offset in [1 << 60, u64::MAX] {
        bad_field("chunk.offset_bytes", write(vec![header(&good), chunk(offset, b"x")]).await);
    }
    let exclusive = v1::WriteFileHeader { create: None, exclusive: true, ..good.clone() };
    bad_field("header.exclusive", write(vec![header(&exclusive)]).await);
    let size = v1::WriteFileHeader { final_size_bytes: Some((1 << 60) + 1), ..good.clone() };
    bad_field("header.final_size_bytes", write(vec![header(&size)]).await);
    let mode = Some(v1::CreateAttributes { mode: u32::MAX, uid: 0, gid: 0 });
    let mode = v1::WriteFileHeader { create: mode, ..good.clone() };
    bad_field("header.create.mode", write(vec![header(&mode)]).await);
    let missing = v1::WriteFileHeader { file: None, ..good.clone() };
    bad_field("header.file", write(vec![header(&missing)]).await);
    let absent = v1::WriteFileHeader { file: path("tree", "/no"), create: None, ..good.clone() };
    fails(Code::NotFound, "NOT_FOUND", write(vec![header(&absent)]).await);
    let slash = v1::WriteFileHeader { file: path("tree", "/new/"), ..good.clone() };
    fails(Code::FailedPrecondition, "IS_DIRECTORY", write(vec![header(&slash)]).await);
    let root = v1::WriteFileHeader { file: path("tree", "/"), ..good.clone() };
    fails(Code::FailedPrecondition, "IS_DIRECTORY", write(vec![header(&root)]).await);

    let data = b"damaged on its way".to_vec();
    let crc32c = crc32c::crc32c(&data) ^ 1;
    let damaged = v1::WriteFileChunk { offset_bytes: 4096, data: data.into(), crc32c };
    let messages = vec![header(&good), chunk(0, b"x"), Some(Message::Chunk(damaged))];
    fails(Code::DataLoss, "CHUNK_CHECKSUM", write(messages).await);

    // Longer than any message may be: refused by the transport before it is decoded.
    let huge = vec![7; 3 << 20];
    let status = write(vec![header(&good), chunk(0, &huge)]).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
}
