//! The gRPC services, end to end, over sockets: one program, since each would link the whole server again.
#![allow(clippy::unwrap_used)] // in helpers of tests too a panic is a failed test

mod common;
mod errors;
mod files;
mod server;
mod snapshots;
mod streams;
mod time_stats;
mod tls;
mod volumes;
