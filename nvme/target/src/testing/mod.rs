//! What tests, examples and fuzz targets share: a memory backend and a host in a few hundred lines.

mod fuzz;
mod host;
mod in_process;
mod memory;
mod runtime;

pub use fuzz::{connection_stream, connection_stream_corpus, pdu_header, sqe_parse};
pub use host::{
    Answer, HostOptions, TestHost, connect_entry, copy_ranges, entry, fabrics, io_entry,
};
pub use in_process::{CC_ENABLE, InProcess, Link, test_namespace};
pub use memory::{MemoryBackend, MemoryOperation, MemoryVolume};
pub use runtime::{HostRuntime, VirtualRuntime};
