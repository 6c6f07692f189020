//! Comparisons with named peers.
