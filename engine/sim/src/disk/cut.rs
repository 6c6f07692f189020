//! A crash at a chosen write: nothing of it is left to chance.

use std::cell::Cell;
use std::rc::Rc;

use super::{Image, PAGE_BYTES, Piece, SimDisk, State, Work, keep_some};

/// Counts the changes (writes, discards) that are submitted to the disks of a run, and says when the
/// chosen one is.
#[derive(Debug)]
pub struct CutPoint {
    at: u64,
    seen: Cell<u64>,
}

impl CutPoint {
    /// The change number `at`, from 1 on; 0 only counts.
    #[must_use]
    pub fn new(at: u64) -> Rc<Self> {
        Rc::new(Self { at, seen: Cell::new(0) })
    }

    /// Changes submitted so far.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.seen.get()
    }

    /// Whether the chosen change was submitted: it is in flight then.
    #[must_use]
    pub fn is_reached(&self) -> bool {
        self.at > 0 && self.seen.get() >= self.at
    }

    pub(super) fn count(&self) -> bool {
        self.seen.set(self.seen.get() + 1);
        self.seen.get() == self.at
    }
}

/// What is left when the chosen change is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutStyle {
    /// Power goes: nothing that was not flushed is left.
    OnlyDurable,
    /// Power goes: everything before the change is left, not the change.
    AllBefore,
    /// Power goes: everything before the change is left, and the change.
    AllWith,
    /// Power goes: everything before the change is left, and the first half of the change.
    AllTorn,
    /// Power goes: of what was not flushed, only the change is left.
    OnlyThis,
    /// The process ends, the change is not done.
    ProcessBefore,
    /// The process ends, the change is done and was not answered.
    ProcessAfter,
}

impl CutStyle {
    /// Every style.
    pub const ALL: [Self; 7] = [
        Self::OnlyDurable,
        Self::AllBefore,
        Self::AllWith,
        Self::AllTorn,
        Self::OnlyThis,
        Self::ProcessBefore,
        Self::ProcessAfter,
    ];

    /// Whether the power goes, too.
    #[must_use]
    pub fn takes_power(self) -> bool {
        !matches!(self, Self::ProcessBefore | Self::ProcessAfter)
    }
}

impl SimDisk {
    /// Counts the changes of this disk with `cut` from now on.
    pub fn set_cut(&self, cut: Option<Rc<CutPoint>>) {
        self.inner.state.borrow_mut().cut = cut;
    }

    /// The crash at the chosen change, on this disk. Call after the tasks are gone.
    pub fn settle_cut(&self, style: CutStyle) {
        let unit = u64::from(self.inner.info.atomic_write_bytes);
        let answered = {
            let state = &mut *self.inner.state.borrow_mut();
            let in_flight = std::mem::take(&mut state.in_flight);
            let cut_at = state.cut_at.take();
            (state.cut, state.flush_dead) = (None, false);
            let mut chosen = Vec::new();
            let mut answered = Vec::new();
            for (id, operation) in in_flight {
                operation.queue.set(operation.queue.get().saturating_sub(1));
                if let Work::Change { pieces, .. } = operation.work
                    && Some(id) == cut_at
                {
                    chosen = pieces;
                }
                answered.push(operation.done);
            }
            state.settle(style, chosen, unit);
            answered
        };
        drop(answered);
    }
}

impl State {
    fn settle(&mut self, style: CutStyle, chosen: Vec<Piece>, unit: u64) {
        let chosen = match style {
            CutStyle::OnlyDurable | CutStyle::AllBefore | CutStyle::ProcessBefore => Vec::new(),
            CutStyle::AllTorn => first_half(&chosen, unit),
            CutStyle::AllWith | CutStyle::OnlyThis | CutStyle::ProcessAfter => chosen,
        };
        if !style.takes_power() {
            self.enter_cache(chosen, false);
            return;
        }
        let keeps_cache = !matches!(style, CutStyle::OnlyDurable | CutStyle::OnlyThis);
        for write in std::mem::take(&mut self.cache) {
            if keeps_cache || write.durable {
                apply(&mut self.medium, &write.pieces);
            }
        }
        apply(&mut self.medium, &chosen);
        self.image = self.medium.clone();
    }
}

fn apply(image: &mut Image, pieces: &[Piece]) {
    pieces.iter().for_each(|piece| image.apply(piece));
}

/// The first half of the atomic units of a change.
fn first_half(pieces: &[Piece], unit: u64) -> Vec<Piece> {
    let place = |piece: &Piece, byte: u16| piece.page * PAGE_BYTES + u64::from(byte);
    let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else { return Vec::new() };
    let units = place(last, last.end).div_ceil(unit) - place(first, first.start) / unit;
    let mut left = units / 2;
    keep_some(pieces, unit, || {
        let keeps = left > 0;
        left = left.saturating_sub(1);
        keeps
    })
}
