//! Charging I/O buffers: their site stands in the descriptor of their block.

use super::counts::{allocated, current, failed, freed};
use super::mode::charges;
use super::site::Tag;

/// Charges a new buffer of `bytes` to the current site, and returns what to remember of that.
pub(crate) fn charge(bytes: usize) -> Tag {
    if !charges() {
        return Tag::NOBODY;
    }
    let tag = current().to_buffers();
    allocated(tag, bytes);
    tag
}

/// Gives a buffer that is freed back to the site that was charged.
pub(crate) fn credit(tag: Tag, bytes: usize) {
    if tag != Tag::NOBODY {
        freed(tag, bytes);
    }
}

/// Counts a buffer that the current site could not have.
pub(crate) fn refuse() {
    failed(current().to_buffers());
}
