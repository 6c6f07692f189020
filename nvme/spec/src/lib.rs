//! Structures of the NVMe specifications.
