//! Serving: requests from anywhere to the shards on these cores, and what serves hosts.

pub(crate) mod admission;
pub(crate) mod backend;
pub(crate) mod control;
pub(crate) mod core;
pub(crate) mod link;
pub(crate) mod pending;
pub(crate) mod pollers;
