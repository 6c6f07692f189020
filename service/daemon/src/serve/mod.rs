//! Serving: requests from anywhere to the shards on these cores, and what serves hosts.

pub(crate) mod admission;
