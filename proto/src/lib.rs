//! The gRPC interface `cairn.v1`: messages, clients and servers generated from the .proto files,
//! which are its documentation, and the descriptors for reflection. Knows nothing of the engine.

/// Package `cairn.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("cairn.v1");

    /// The package's name.
    pub const PACKAGE: &str = "cairn.v1";

    /// The encoded `google.protobuf.FileDescriptorSet` of the package, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

/// Longest piece of data in one message of a read or write stream, in bytes. A stream of such
/// pieces keeps connections fair to each other, and small beside [`MESSAGE_BYTES_MAX`].
pub const CHUNK_BYTES_MAX: usize = 256 << 10;

/// Longest message that a server or client takes, in bytes: a page of 1000 directory entries with
/// names of 255 bytes is about 370 KiB, a chunk 256 KiB; what is longer is no message of ours.
pub const MESSAGE_BYTES_MAX: usize = 2 << 20;
