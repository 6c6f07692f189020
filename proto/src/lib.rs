//! cairn.v1 protocol definitions.
