//! Deterministic simulator of whole pools.
