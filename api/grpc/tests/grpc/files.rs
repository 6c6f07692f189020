//! FileService, end to end: every call, paths and symbolic links.

use crate::common::Stand;
use proto::v1;
use proto::v1::file_service_client::FileServiceClient;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Shorthands over the generated client, for one tree.
struct Tree {
    files: FileServiceClient<Channel>,
}

fn at(path: impl AsRef<[u8]>) -> Option<v1::FilePath> {
    Some(v1::FilePath { subvolume: "tree".to_owned(), path: path.as_ref().to_vec() })
}

fn create() -> Option<v1::CreateAttributes> {
    Some(v1::CreateAttributes { mode: 0o640, uid: 7, gid: 8 })
}

impl Tree {
    async fn new(stand: &Stand) -> Self {
        for name in ["tree", "other"] {
            let request =
                v1::CreateSubvolumeRequest { name: name.to_owned(), ..Default::default() };
            stand.subvolumes().create_subvolume(request).await.unwrap();
        }
        Self { files: stand.files() }
    }

    async fn mkdir(&mut self, path: &str, parents: bool) -> Result<v1::FileAttributes, Status> {
        let request =
            v1::CreateDirectoryRequest { directory: at(path), attributes: create(), parents };
        let reply = self.files.create_directory(request).await?;
        Ok(reply.into_inner().attributes.unwrap())
    }

    async fn symlink(&mut self, target: &str, path: &str) -> Result<v1::FileAttributes, Status> {
        let target = target.as_bytes().to_vec();
        let request = v1::CreateSymlinkRequest { link: at(path), target, uid: 1, gid: 2 };
        let reply = self.files.create_symlink(request).await?;
        Ok(reply.into_inner().attributes.unwrap())
    }

    async fn stat(&mut self, path: impl AsRef<[u8]>) -> Result<v1::FileAttributes, Status> {
        let request = v1::StatFileRequest { file: at(path), follow_symlink: false };
        Ok(self.files.stat_file(request).await?.into_inner().attributes.unwrap())
    }

    async fn follow(&mut self, path: &str) -> Result<v1::FileAttributes, Status> {
        let request = v1::StatFileRequest { file: at(path), follow_symlink: true };
        Ok(self.files.stat_file(request).await?.into_inner().attributes.unwrap())
    }

    async fn write(
        &mut self,
        header: v1::WriteFileHeader,
        chunks: &[(u64, &[u8])],
    ) -> Result<v1::WriteFileResponse, Status> {
        let header = v1::write_file_request::Message::Header(header);
        let chunks = chunks.iter().map(|(offset_bytes, data)| {
            v1::write_file_request::Message::Chunk(v1::WriteFileChunk {
                offset_bytes: *offset_bytes,
                data: data.to_vec().into(),
                crc32c: crc32c::crc32c(data),
            })
        });
        let messages: Vec<_> = std::iter::once(header)
            .chain(chunks)
            .map(|message| v1::WriteFileRequest { message: Some(message) })
            .collect();
        Ok(self.files.write_file(tokio_stream::iter(messages)).await?.into_inner())
    }

    async fn put(&mut self, path: impl AsRef<[u8]>, data: &[u8]) -> v1::FileAttributes {
        let header = v1::WriteFileHeader { file: at(path), create: create(), ..Default::default() };
        self.write(header, &[(0, data)]).await.unwrap().attributes.unwrap()
    }

    async fn read(&mut self, path: impl AsRef<[u8]>) -> Result<Vec<u8>, Status> {
        let request = v1::ReadFileRequest { file: at(path), ..Default::default() };
        let mut stream = self.files.read_file(request).await?.into_inner();
        let mut data = Vec::new();
        while let Some(message) = stream.message().await? {
            data.extend_from_slice(&message.data);
        }
        Ok(data)
    }

    async fn list(&mut self, path: &str) -> Result<Vec<Vec<u8>>, Status> {
        let request = v1::ListDirectoryRequest { directory: at(path), ..Default::default() };
        let mut stream = self.files.list_directory(request).await?.into_inner();
        let mut names = Vec::new();
        while let Some(message) = stream.message().await? {
            names.extend(message.entries.into_iter().map(|entry| entry.name));
        }
        names.sort();
        Ok(names)
    }

    async fn remove(&mut self, path: &str, recursive: bool) -> Result<u64, Status> {
        let request = v1::RemoveFileRequest { file: at(path), recursive };
        Ok(self.files.remove_file(request).await?.into_inner().removed_count)
    }

    async fn rename(&mut self, from: &str, to: &str, mode: v1::RenameMode) -> Result<(), Status> {
        let request =
            v1::RenameFileRequest { source: at(from), destination: at(to), mode: mode.into() };
        self.files.rename_file(request).await.map(drop)
    }
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().expect("every error has an ErrorInfo").reason
}

#[tokio::test]
async fn directories_are_made_listed_and_removed() {
    let stand = Stand::new().await;
    let mut tree = Tree::new(&stand).await;
    let made = tree.mkdir("/a", false).await.unwrap();
    assert_eq!(
        (made.kind(), made.mode, made.uid, made.gid),
        (v1::FileKind::Directory, 0o640, 7, 8)
    );
    assert_eq!(tree.mkdir("/a", false).await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(tree.mkdir("/x/y", false).await.unwrap_err().code(), Code::NotFound);
    tree.mkdir("/x/y/z/", true).await.unwrap();
    tree.mkdir("/x/y/z", true).await.unwrap();
    tree.put("/x/file", b"1").await;
    assert_eq!(tree.mkdir("/x/file", true).await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(reason(&tree.mkdir("/x/file/z", true).await.unwrap_err()), "NOT_DIRECTORY");
    assert_eq!(tree.list("/").await.unwrap(), [b"a", b"x"]);
    assert_eq!(tree.list("/x/").await.unwrap(), [b"file".to_vec(), b"y".to_vec()]);

    assert_eq!(reason(&tree.remove("/x", false).await.unwrap_err()), "NOT_EMPTY");
    assert_eq!(tree.remove("/a", false).await.unwrap(), 1);
    assert_eq!(tree.remove("/x", true).await.unwrap(), 4);
    assert_eq!(tree.remove("/x", true).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(tree.list("/").await.unwrap(), Vec::<Vec<u8>>::new());
}

#[tokio::test]
async fn files_are_written_in_pieces_and_read_in_ranges() {
    let stand = Stand::new().await;
    let mut tree = Tree::new(&stand).await;
    let header = v1::WriteFileHeader {
        file: at("/f"),
        create: create(),
        sync: true,
        final_size_bytes: Some(20_000),
        ..Default::default()
    };
    let reply = tree.write(header, &[(0, b"head"), (100, b"middle"), (106, b"!"), (9000, b"tail")]);
    let reply = reply.await.unwrap();
    assert_eq!(reply.written_bytes, 15);
    assert_eq!(reply.attributes.unwrap().size_bytes, 20_000);
    assert_eq!(stand.fake.syncs(), 1);
    let data = tree.read("/f").await.unwrap();
    assert_eq!(data.len(), 20_000);
    assert_eq!(
        (&data[..4], &data[100..107], &data[9000..9004]),
        (&b"head"[..], &b"middle!"[..], &b"tail"[..])
    );
    assert!(data[4..100].iter().chain(&data[9004..]).all(|byte| *byte == 0));

    let range = v1::ReadFileRequest { file: at("/f"), offset_bytes: 98, length_bytes: Some(10) };
    let mut stream = tree.files.read_file(range).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!(first.attributes.unwrap().size_bytes, 20_000);
    let part = stream.message().await.unwrap().unwrap();
    assert_eq!((part.offset_bytes, &part.data[..]), (98, &b"\0\0middle!\0"[..]));
    assert_eq!(part.crc32c, crc32c::crc32c(&part.data));
    assert!(stream.message().await.unwrap().is_none());
    for (offset_bytes, length_bytes) in [(20_000, None), (1 << 60, None), (5, Some(0))] {
        let range = v1::ReadFileRequest { file: at("/f"), offset_bytes, length_bytes };
        let mut stream = tree.files.read_file(range).await.unwrap().into_inner();
        assert!(stream.message().await.unwrap().unwrap().attributes.is_some());
        assert!(stream.message().await.unwrap().is_none());
    }

    let punch = v1::PunchHoleRequest { file: at("/f"), offset_bytes: 101, length_bytes: 3 };
    tree.files.punch_hole(punch).await.unwrap();
    assert_eq!(tree.read("/f").await.unwrap()[100..107], *b"m\0\0\0le!");
    let cut = v1::TruncateFileRequest { file: at("/f"), size_bytes: 104 };
    let cut = tree.files.truncate_file(cut).await.unwrap().into_inner();
    assert_eq!(cut.attributes.unwrap().size_bytes, 104);
    let sync = v1::SyncFileRequest { file: at("/f") };
    tree.files.sync_file(sync).await.unwrap();
    assert_eq!(stand.fake.syncs(), 2);

    let keep = v1::WriteFileHeader { file: at("/f"), ..Default::default() };
    tree.write(keep.clone(), &[(1, b"EA")]).await.unwrap();
    assert_eq!(tree.read("/f").await.unwrap()[..4], *b"hEAd");
    let truncate = v1::WriteFileHeader { truncate: true, ..keep.clone() };
    tree.write(truncate, &[(0, b"new")]).await.unwrap();
    assert_eq!(tree.read("/f").await.unwrap(), b"new");
    let exclusive = v1::WriteFileHeader { create: create(), exclusive: true, ..keep };
    let status = tree.write(exclusive, &[]).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
}

#[tokio::test]
async fn symbolic_links_are_followed_where_they_should_be() {
    let stand = Stand::new().await;
    let mut tree = Tree::new(&stand).await;
    tree.mkdir("/d/e", true).await.unwrap();
    tree.put("/d/e/f", b"deep").await;
    tree.symlink("d", "/relative").await.unwrap();
    tree.symlink("/d/e", "/absolute").await.unwrap();
    tree.symlink("../relative/e/f", "/d/up").await.unwrap();
    tree.symlink("new", "/d/dangling").await.unwrap();
    tree.symlink("/d/e/f/", "/d/slash").await.unwrap();

    for path in
        ["/relative/e/f", "/absolute/f", "/d/up", "/d/./e/../up", "//d///e//f", "/absolute/../e/f"]
    {
        assert_eq!(tree.read(path).await.unwrap(), b"deep", "{path}");
    }
    assert_eq!(tree.stat("/absolute").await.unwrap().kind(), v1::FileKind::Symlink);
    assert_eq!(tree.stat("/absolute/").await.unwrap().kind(), v1::FileKind::Directory);
    assert_eq!(tree.follow("/absolute").await.unwrap().kind(), v1::FileKind::Directory);
    assert_eq!(reason(&tree.stat("/d/e/f/").await.unwrap_err()), "NOT_DIRECTORY");
    assert_eq!(reason(&tree.follow("/d/slash").await.unwrap_err()), "NOT_DIRECTORY");
    assert_eq!(reason(&tree.stat("/d/e/f/g").await.unwrap_err()), "NOT_DIRECTORY");
    assert_eq!(tree.follow("/d/dangling").await.unwrap_err().code(), Code::NotFound);
    let read = v1::ReadSymlinkRequest { link: at("/absolute") };
    assert_eq!(tree.files.read_symlink(read).await.unwrap().into_inner().target, b"/d/e");
    let read = v1::ReadSymlinkRequest { link: at("/d") };
    let status = tree.files.read_symlink(read).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);

    // A write through a dangling link creates what it points to, as open(2) with O_CREAT does.
    tree.put("/d/dangling", b"made").await;
    assert_eq!(tree.read("/d/new").await.unwrap(), b"made");
    // Names are removed and renamed themselves, not what they point to.
    assert_eq!(tree.remove("/absolute", true).await.unwrap(), 1);
    assert_eq!(tree.read("/d/e/f").await.unwrap(), b"deep");
    assert_eq!(reason(&tree.remove("/relative/", false).await.unwrap_err()), "NOT_DIRECTORY");

    tree.symlink("loop", "/loop").await.unwrap();
    assert_eq!(reason(&tree.follow("/loop").await.unwrap_err()), "TOO_MANY_SYMLINKS");
    assert_eq!(reason(&tree.stat("/loop/x").await.unwrap_err()), "TOO_MANY_SYMLINKS");
    assert_eq!(tree.stat("/loop").await.unwrap().kind(), v1::FileKind::Symlink);
    for index in 0..41 {
        let target = if index == 0 { "d".to_owned() } else { format!("chain{}", index - 1) };
        tree.symlink(&target, &format!("/chain{index}")).await.unwrap();
    }
    assert!(tree.follow("/chain39").await.is_ok());
    assert_eq!(reason(&tree.follow("/chain40").await.unwrap_err()), "TOO_MANY_SYMLINKS");
}

#[tokio::test]
async fn renames_replace_refuse_or_exchange() {
    let stand = Stand::new().await;
    let mut tree = Tree::new(&stand).await;
    use v1::RenameMode as Mode;
    tree.put("/a", b"a").await;
    tree.put("/b", b"b").await;
    tree.mkdir("/d", false).await.unwrap();
    let status = tree.rename("/a", "/b", Mode::NoReplace).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    tree.rename("/a", "/b", Mode::Exchange).await.unwrap();
    assert_eq!(tree.read("/a").await.unwrap(), b"b");
    tree.rename("/a", "/b", Mode::Unspecified).await.unwrap();
    assert_eq!(tree.read("/b").await.unwrap(), b"b");
    tree.rename("/b", "/d/c", Mode::NoReplace).await.unwrap();
    assert_eq!(tree.list("/").await.unwrap(), [b"d"]);
    assert_eq!(tree.rename("/gone", "/x", Mode::Replace).await.unwrap_err().code(), Code::NotFound);
    let status = tree.rename("/d/c", "/x", Mode::Exchange).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(
        reason(&tree.rename("/d/c", "/x/", Mode::Replace).await.unwrap_err()),
        "NOT_DIRECTORY"
    );
    let status = tree.rename("/d", "/d/below", Mode::Replace).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let status = tree.rename("/", "/x", Mode::Replace).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);

    let destination = Some(v1::FilePath { subvolume: "other".to_owned(), path: b"/x".to_vec() });
    let across =
        v1::RenameFileRequest { source: at("/d/c"), destination: destination.clone(), mode: 0 };
    let status = tree.files.rename_file(across).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::FailedPrecondition, "CROSS_SUBVOLUME")
    );
    let across = v1::CreateLinkRequest { source: at("/d/c"), destination };
    assert_eq!(reason(&tree.files.create_link(across).await.unwrap_err()), "CROSS_SUBVOLUME");
}

#[tokio::test]
async fn links_attributes_and_xattrs() {
    let stand = Stand::new().await;
    let mut tree = Tree::new(&stand).await;
    tree.put("/f", b"one").await;
    tree.mkdir("/d", false).await.unwrap();
    let link =
        |source: &str, to: &str| v1::CreateLinkRequest { source: at(source), destination: at(to) };
    let linked = tree.files.create_link(link("/f", "/d/g")).await.unwrap().into_inner();
    assert_eq!(linked.attributes.unwrap().links, 2);
    assert_eq!(tree.read("/d/g").await.unwrap(), b"one");
    let status = tree.files.create_link(link("/f", "/d/g")).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    assert_eq!(
        reason(&tree.files.create_link(link("/d", "/h")).await.unwrap_err()),
        "IS_DIRECTORY"
    );

    let set = v1::SetFileAttributesRequest {
        file: at("/f"),
        mode: Some(0o4755),
        mtime_ns: Some(-5),
        ..Default::default()
    };
    let set = tree.files.set_file_attributes(set).await.unwrap().into_inner().attributes.unwrap();
    assert_eq!((set.mode, set.mtime_ns, set.uid, set.gid), (0o4755, -5, 7, 8));

    let xattr = |name: &[u8], value: &[u8], mode: v1::XattrMode| v1::SetXattrRequest {
        file: at("/f"),
        name: name.to_vec(),
        value: value.to_vec(),
        mode: mode.into(),
    };
    use v1::XattrMode as Mode;
    let name = b"user.\xff";
    let status = tree.files.set_xattr(xattr(name, b"1", Mode::Replace)).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    tree.files.set_xattr(xattr(name, &[9; 1536], Mode::Create)).await.unwrap();
    let status = tree.files.set_xattr(xattr(name, b"1", Mode::Create)).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    tree.files.set_xattr(xattr(name, b"", Mode::Unspecified)).await.unwrap();
    let get = v1::GetXattrRequest { file: at("/f"), name: name.to_vec() };
    assert_eq!(tree.files.get_xattr(get.clone()).await.unwrap().into_inner().value, b"");
    let list = v1::ListXattrsRequest { file: at("/f") };
    assert_eq!(tree.files.list_xattrs(list).await.unwrap().into_inner().names, [name]);
    let remove = v1::RemoveXattrRequest { file: at("/f"), name: name.to_vec() };
    tree.files.remove_xattr(remove.clone()).await.unwrap();
    assert_eq!(tree.files.remove_xattr(remove).await.unwrap_err().code(), Code::NotFound);
    let status = tree.files.get_xattr(get).await.unwrap_err();
    let resource = status.get_details_resource_info().unwrap();
    assert_eq!(resource.resource_type, "cairn.v1.Xattr");
}

#[tokio::test]
async fn files_are_copied_by_reference_where_they_can_be() {
    let stand = Stand::new().await;
    let mut tree = Tree::new(&stand).await;
    let bytes: Vec<u8> = (0..250_000_u32).map(|at| (at % 251) as u8).collect();
    tree.put("/a", &bytes).await;
    let create = create();
    let path = |name: &str| at(name);
    let request = |to: &str| v1::CopyFileRequest {
        source: path("/a"),
        destination: path(to),
        create,
        ..v1::CopyFileRequest::default()
    };
    let reply = tree.files.copy_file(request("/b")).await.unwrap().into_inner();
    let attributes = reply.attributes.unwrap();
    assert_eq!((reply.shared_bytes, reply.copied_bytes), (250_000, 0));
    assert_eq!((attributes.mode, attributes.uid, attributes.size_bytes), (0o640, 7, 250_000));
    assert_eq!(tree.read("/b").await.unwrap(), bytes);
    // A range, which begins in the middle of a block: that is read and written.
    let range = v1::CopyFileRequest {
        source_offset_bytes: 5000,
        destination_offset_bytes: 5000,
        length_bytes: Some(100_000),
        sync: true,
        ..request("/c")
    };
    let reply = tree.files.copy_file(range).await.unwrap().into_inner();
    assert_eq!(reply.shared_bytes + reply.copied_bytes, 100_000);
    assert!(reply.copied_bytes > 0 && reply.shared_bytes > 90_000, "{reply:?}");
    let mut expected = vec![0; 5000];
    expected.extend_from_slice(&bytes[5000..105_000]);
    assert_eq!(tree.read("/c").await.unwrap(), expected);
    let never = v1::CopyFileRequest { mode: v1::ReferenceMode::Never.into(), ..request("/d") };
    let reply = tree.files.copy_file(never).await.unwrap().into_inner();
    assert_eq!((reply.shared_bytes, reply.copied_bytes), (0, 250_000));

    let always = v1::ReferenceMode::Always.into();
    for (wrong, code, why) in [
        (v1::CopyFileRequest { exclusive: true, ..request("/b") }, Code::AlreadyExists, "exists"),
        (v1::CopyFileRequest { create: None, ..request("/new") }, Code::NotFound, "not found"),
        (
            v1::CopyFileRequest { create: None, exclusive: true, ..request("/new") },
            Code::InvalidArgument,
            "create",
        ),
        (v1::CopyFileRequest { truncate: true, ..request("/a") }, Code::InvalidArgument, "source"),
        (v1::CopyFileRequest { mode: 9, ..request("/b") }, Code::InvalidArgument, "mode"),
        (
            v1::CopyFileRequest { source_offset_bytes: 1 << 61, ..request("/b") },
            Code::InvalidArgument,
            "2^60",
        ),
        (
            v1::CopyFileRequest { destination_offset_bytes: 1 << 60, ..request("/b") },
            Code::InvalidArgument,
            "2^60",
        ),
        (
            v1::CopyFileRequest { mode: always, source_offset_bytes: 1, ..request("/b") },
            Code::FailedPrecondition,
            "reference",
        ),
        (
            v1::CopyFileRequest { source: path("/"), ..request("/b") },
            Code::FailedPrecondition,
            "file",
        ),
    ] {
        let refused = tree.files.copy_file(wrong).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused:?}");
        assert!(refused.message().contains(why), "{refused:?}");
    }
    // Nothing was cut for it.
    assert_eq!(tree.read("/a").await.unwrap(), bytes);
}

#[tokio::test]
async fn names_are_bytes() {
    let stand = Stand::new().await;
    let mut tree = Tree::new(&stand).await;
    let name: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    let path = [b"/".as_slice(), &name].concat();
    tree.put(&path, b"odd").await;
    assert_eq!(tree.read(&path).await.unwrap(), b"odd");
    assert_eq!(tree.list("/").await.unwrap(), [name]);
}

#[tokio::test]
async fn five_thousand_entries_are_listed_once_each() {
    let stand = Stand::new().await;
    let mut tree = Tree::new(&stand).await;
    tree.mkdir("/big", false).await.unwrap();
    for index in 0..5000 {
        tree.symlink("x", &format!("/big/{index:04}")).await.unwrap();
    }
    let names = tree.list("/big").await.unwrap();
    assert_eq!(names.len(), 5000);
    assert!(names.windows(2).all(|pair| pair[0] < pair[1]));

    // In pages, with tokens that work from one call to the next.
    let mut paged = Vec::new();
    let mut request =
        v1::ListDirectoryRequest { directory: at("/big"), page_size: 1700, ..Default::default() };
    loop {
        let mut stream = tree.files.list_directory(request.clone()).await.unwrap().into_inner();
        let mut page = 0;
        while let Some(message) = stream.message().await.unwrap() {
            assert!(message.entries.len() <= 1000);
            page += message.entries.len();
            paged.extend(message.entries.into_iter().map(|entry| entry.name));
            request.page_token = message.next_page_token;
        }
        assert!(page <= 1700);
        if request.page_token.is_empty() {
            break;
        }
    }
    paged.sort();
    assert_eq!(paged, names);
    assert_eq!(tree.remove("/big", true).await.unwrap(), 5001);
}
