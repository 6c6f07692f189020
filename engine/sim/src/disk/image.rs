//! A sparse image made of shared pages, and pieces of writes to it.
//!
//! Pages are shared between the image that reads see, the image that survives a power loss and the log of
//! unflushed writes, so a block written is copied once.

use std::rc::Rc;

use engine_base::hash::FastMap;
use engine_base::random::Random;

/// Bytes of a page.
pub(super) const PAGE_BYTES: u64 = 4096;

/// One page of content.
pub(super) type Page = [u8; PAGE_BYTES as usize];

/// A part of one page that an operation sets.
#[derive(Clone)]
pub(super) struct Piece {
    /// Which page of the device.
    pub(super) page: u64,
    /// First byte set, within the page.
    pub(super) start: u16,
    /// End of the bytes set, within the page.
    pub(super) end: u16,
    /// The bytes; only `start..end` of them count. `None`: zeroes.
    pub(super) bytes: Option<Rc<Page>>,
}

/// The content of a device. Pages never written are zeroes.
#[derive(Clone, Default)]
pub(super) struct Image {
    pages: FastMap<u64, Rc<Page>>,
}

impl Image {
    /// Sets what `piece` says.
    pub(super) fn apply(&mut self, piece: &Piece) {
        let (start, end) = (usize::from(piece.start), usize::from(piece.end));
        let whole = start == 0 && end == PAGE_BYTES as usize;
        match &piece.bytes {
            Some(bytes) if whole => {
                self.pages.insert(piece.page, Rc::clone(bytes));
            }
            None if whole => {
                self.pages.remove(&piece.page);
            }
            bytes => {
                let page = self
                    .pages
                    .entry(piece.page)
                    .or_insert_with(|| Rc::new([0; PAGE_BYTES as usize]));
                let page = Rc::make_mut(page);
                match bytes {
                    Some(bytes) => page[start..end].copy_from_slice(&bytes[start..end]),
                    None => page[start..end].fill(0),
                }
            }
        }
    }

    /// Copies `out.len()` bytes from byte `offset` on.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) {
        let mut at = offset;
        let mut rest = out;
        while !rest.is_empty() {
            let start = (at % PAGE_BYTES) as usize;
            let len = rest.len().min(PAGE_BYTES as usize - start);
            let (head, tail) = rest.split_at_mut(len);
            match self.pages.get(&(at / PAGE_BYTES)) {
                Some(page) => head.copy_from_slice(&page[start..start + len]),
                None => head.fill(0),
            }
            at += len as u64;
            rest = tail;
        }
    }

    /// Pages that hold something, in order.
    pub(super) fn written(&self) -> Vec<u64> {
        let mut written: Vec<u64> = self.pages.keys().copied().collect();
        written.sort_unstable();
        written
    }

    /// A bit of a page that holds something: its byte, and its number there.
    pub(super) fn some_bit(&self, random: &mut Random) -> Option<(u64, u8)> {
        let written = self.written();
        if written.is_empty() {
            return None;
        }
        let page = *random.pick(&written);
        Some((page * PAGE_BYTES + random.below(PAGE_BYTES), random.below(8) as u8))
    }

    /// A hash of the whole content, independent of the order of writes.
    pub(super) fn digest(&self) -> u64 {
        let mut pages: Vec<_> = self.pages.iter().collect();
        pages.sort_unstable_by_key(|(page, _)| **page);
        pages.into_iter().filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0)).fold(
            0,
            |hash: u64, (page, bytes)| {
                let sum = u64::from(engine_base::checksum::crc32c(&bytes[..]));
                hash.rotate_left(5).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (page << 32) ^ sum
            },
        )
    }
}

/// Cuts `offset..offset + len` at page boundaries: (page, start, end).
pub(super) fn page_parts(offset: u64, len: u64) -> impl Iterator<Item = (u64, u16, u16)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let page = at / PAGE_BYTES;
        let part_end = end.min((page + 1) * PAGE_BYTES);
        let part = (page, (at % PAGE_BYTES) as u16, (part_end - page * PAGE_BYTES) as u16);
        at = part_end;
        Some(part)
    })
}

/// The parts of `pieces` that a coin keeps, decided per aligned unit of `unit` bytes.
pub(super) fn keep_some(pieces: &[Piece], unit: u64, mut keep: impl FnMut() -> bool) -> Vec<Piece> {
    let mut kept = Vec::new();
    let mut decided: Option<(u64, bool)> = None;
    for piece in pieces {
        let base = piece.page * PAGE_BYTES;
        let mut at = base + u64::from(piece.start);
        let end = base + u64::from(piece.end);
        while at < end {
            let index = at / unit;
            let part_end = end.min((index + 1) * unit);
            let keeps = match decided {
                Some((known, keeps)) if known == index => keeps,
                _ => keep(),
            };
            decided = Some((index, keeps));
            if keeps {
                let (start, end) = ((at - base) as u16, (part_end - base) as u16);
                kept.push(Piece { start, end, ..piece.clone() });
            }
            at = part_end;
        }
    }
    kept
}
