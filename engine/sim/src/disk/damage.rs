//! What a disk does beside its contract: bits rot, writes go elsewhere or nowhere, the device leaves.

use super::{DiskLie, Image, PAGE_BYTES, Page, Piece, Presence, SimDisk, State, Work};

impl SimDisk {
    /// Makes the disk lie from now on.
    pub fn set_lie(&self, lie: Option<DiskLie>) {
        self.inner.state.borrow_mut().lie = lie;
    }

    /// Lies about writes are told once in `one_in` writes.
    pub fn set_lie_rate(&self, one_in: u64) {
        assert!(one_in > 0);
        self.inner.state.borrow_mut().lie_one_in = one_in;
    }

    /// Flips a bit somewhere in what was written; returns the byte, `None` on an empty disk.
    pub fn rot(&self) -> Option<u64> {
        let state = &mut *self.inner.state.borrow_mut();
        let (at, bit) = state.image.some_bit(&mut state.random)?;
        state.image.flip(at, bit);
        // Rot is on the medium; what the cache holds may still be written over it.
        state.medium.flip(at, bit);
        state.damaged.push(at / PAGE_BYTES);
        state.statistics.damages += 1;
        Some(at)
    }

    /// Pages (4096 bytes each) that rotted, or that a lie left with another content than they should
    /// have, in the order of damage.
    #[must_use]
    pub fn damaged_pages(&self) -> Vec<u64> {
        self.inner.state.borrow().damaged.clone()
    }

    /// The device vanishes: everything is answered `Gone`, also what is in flight. With `loses_cache` it
    /// lost its power: it is back for the next process only.
    pub fn vanish(&self, loses_cache: bool) {
        let state = &mut *self.inner.state.borrow_mut();
        if state.presence != Presence::Here {
            return;
        }
        if loses_cache {
            let loss = state.draw_loss();
            state.lose_cache(loss, u64::from(self.inner.info.atomic_write_bytes));
            state.image = state.medium.clone();
            state.presence = Presence::AwayForProcess;
        } else {
            state.presence = Presence::Away;
        }
    }

    /// The device is there again, with all that it held, unless it is back for the next process only.
    pub fn come_back(&self) {
        let state = &mut *self.inner.state.borrow_mut();
        if state.presence == Presence::Away {
            state.presence = Presence::Here;
        }
    }
}

impl State {
    /// An operation ends on a device that is not there: a change of it may have been made before.
    pub(super) fn finish_unseen(&mut self, work: Work) {
        if let Work::Change { pieces, .. } = work
            && self.random.chance(1, 2)
        {
            self.enter_cache(pieces, false);
        }
    }

    /// A write that is answered and not made.
    pub(super) fn drop_write(&mut self, pieces: &[Piece]) {
        self.damaged.extend(pieces.iter().map(|piece| piece.page));
        self.statistics.damages += 1;
    }

    /// Sends a write elsewhere. `pages`: of the device.
    pub(super) fn misdirect(&mut self, pieces: &mut [Piece], pages: u64) {
        let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else { return };
        let (first, last) = (first.page, last.page);
        let span = last - first + 1;
        let onto = match self.image.some_bit(&mut self.random) {
            Some((at, _)) if self.random.chance(1, 2) => at / PAGE_BYTES,
            _ => first + 1,
        };
        let onto = onto.min(pages.saturating_sub(span));
        self.statistics.damages += 1;
        for piece in pieces {
            self.damaged.push(piece.page);
            piece.page = onto + (piece.page - first);
            self.damaged.push(piece.page);
        }
    }
}

impl Image {
    /// Inverts one bit. Of a page that was never written too: it is zeroes, and can rot.
    pub(super) fn flip(&mut self, at: u64, bit: u8) {
        let mut page: Box<Page> = Box::new([0; PAGE_BYTES as usize]);
        let number = at / PAGE_BYTES;
        self.read(number * PAGE_BYTES, &mut page[..]);
        page[(at % PAGE_BYTES) as usize] ^= 1 << bit;
        let bytes = Some(std::rc::Rc::from(page));
        self.apply(&Piece { page: number, start: 0, end: PAGE_BYTES as u16, bytes });
    }
}
