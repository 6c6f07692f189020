//! One shard of the storage engine.
