//! Compiles the .proto files in Rust alone: no protoc is needed on the machine.
#![allow(clippy::print_stdout)] // how a build script talks to cargo

use std::error::Error;
use std::path::PathBuf;

use prost::Message;

const FILES: [&str; 8] = [
    "cairn/v1/export.proto",
    "cairn/v1/file.proto",
    "cairn/v1/pool.proto",
    "cairn/v1/scrub.proto",
    "cairn/v1/snapshot.proto",
    "cairn/v1/stats.proto",
    "cairn/v1/subvolume.proto",
    "cairn/v1/volume.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=cairn");
    println!("cargo:rerun-if-changed=build.rs");
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Data travels as `Bytes`: a received chunk is a part of the received message, not a copy.
        .bytes(".cairn.v1.ReadFileResponse.data")
        .bytes(".cairn.v1.WriteFileChunk.data")
        .bytes(".cairn.v1.SendSnapshotResponse.data")
        .bytes(".cairn.v1.ReceiveSnapshotRequest.data")
        .compile_fds(descriptors)?;
    Ok(())
}
