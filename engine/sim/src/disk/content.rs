//! The content of a disk from outside: copied, looked at and changed behind the engine's back.

use super::{Image, PAGE_BYTES, Piece, SimDisk, page_parts};

/// What a disk holds. Cheap to copy.
#[derive(Clone)]
pub struct DiskContent(Image);

impl SimDisk {
    /// What reads see.
    #[must_use]
    pub fn content(&self) -> DiskContent {
        DiskContent(self.inner.state.borrow().image.clone())
    }

    /// The disk holds this, durably, and nothing else. Nothing may be in flight.
    pub fn set_content(&self, content: &DiskContent) {
        let state = &mut *self.inner.state.borrow_mut();
        assert!(state.in_flight.is_empty());
        state.cache.clear();
        (state.image, state.medium) = (content.0.clone(), content.0.clone());
    }

    /// Pages of 4096 bytes that hold something, in order.
    #[must_use]
    pub fn written_pages(&self) -> Vec<u64> {
        self.inner.state.borrow().image.written()
    }

    /// `len` bytes from `offset` on; zeroes past the end.
    #[must_use]
    pub fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.inner.state.borrow().image.read(offset, &mut bytes);
        bytes
    }

    /// Puts bytes at `offset` behind the engine's back: counts as damage.
    pub fn poke(&self, offset: u64, bytes: &[u8]) {
        let state = &mut *self.inner.state.borrow_mut();
        state.statistics.damages += 1;
        let mut rest = bytes;
        for (page, start, end) in page_parts(offset, bytes.len() as u64) {
            let (part, after) = rest.split_at(usize::from(end - start));
            rest = after;
            let mut content = Box::new([0; PAGE_BYTES as usize]);
            content[usize::from(start)..usize::from(end)].copy_from_slice(part);
            let piece = Piece { page, start, end, bytes: Some(std::rc::Rc::from(content)) };
            state.image.apply(&piece);
            state.medium.apply(&piece);
            state.damaged.push(page);
        }
    }
}
