//! Metrics: what is counted on the data path, and the page that Prometheus reads.

pub(crate) mod device;
pub(crate) mod engine;
pub(crate) mod families;
pub(crate) mod observed;
pub(crate) mod process;
pub(crate) mod scrape;
pub(crate) mod server;
