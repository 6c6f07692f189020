//! The states of a SIX lock and the transitions between them.
//!
//! ```text
//!   holders = | exclusive (bit 63) | intent (bit 62) | number of shared holders (bits 0..62) |
//!
//!                 needs                     does
//!   share         not exclusive             one more shared holder
//!   intend        not intent                sets intent
//!   begin_change  not shared, not exclusive sets exclusive
//!   end_change    exclusive                 numbers the change, clears exclusive
//!   upgrade       shared, not intent        one shared holder fewer, sets intent
//!   downgrade     intent, not exclusive     clears intent, one more shared holder
//! ```
//! The word is kept in a [`Word`]: a plain cell on one core, which is what the engine runs, or an
//! atomic one, with which loom checks the very same transitions between threads. Waiting is left to
//! the lock around it.

use std::cell::Cell;

const SHARED_MAX: u64 = INTENT - 1;
const INTENT: u64 = 1 << 62;
const EXCLUSIVE: u64 = 1 << 63;

/// Where a number of the lock is kept.
pub(super) trait Word {
    /// A word that holds `value`.
    fn new(value: u64) -> Self;

    /// What it holds. Who sees what [`Word::set`] or [`Word::step`] left sees all that was done
    /// before these.
    fn get(&self) -> u64;

    /// Puts `value` in. For words with one writer at a time.
    fn set(&self, value: u64);

    /// Replaces what it holds by `step` of it, at once; `false` when `step` refuses. What the caller
    /// did before is seen by whoever steps after it, and the caller sees what was done before the
    /// steps before it.
    fn step(&self, step: impl Fn(u64) -> Option<u64>) -> bool;
}

/// For locks of one core.
impl Word for Cell<u64> {
    fn new(value: u64) -> Self {
        Self::new(value)
    }

    #[inline]
    fn get(&self) -> u64 {
        self.get()
    }

    #[inline]
    fn set(&self, value: u64) {
        self.set(value);
    }

    #[inline]
    fn step(&self, step: impl Fn(u64) -> Option<u64>) -> bool {
        let next = step(self.get());
        if let Some(next) = next {
            self.set(next);
        }
        next.is_some()
    }
}

/// Who holds a lock, and the number of its last change.
pub(super) struct State<W> {
    holders: W,
    sequence: W,
}

impl<W: Word> State<W> {
    /// Held by nobody.
    pub(super) fn new(sequence: u64) -> Self {
        Self { holders: W::new(0), sequence: W::new(sequence) }
    }

    /// Number of the last change. Who holds the lock shared reads the number of what it sees; who does
    /// not may see an older one than there is by now.
    #[inline]
    pub(super) fn sequence(&self) -> u64 {
        self.sequence.get()
    }

    /// One more shared holder, unless the lock is held exclusively.
    #[inline]
    pub(super) fn try_share(&self) -> bool {
        self.holders.step(|held| {
            assert!(held & SHARED_MAX < SHARED_MAX, "too many hold a lock shared");
            (held & EXCLUSIVE == 0).then(|| held + 1)
        })
    }

    /// One shared holder fewer.
    ///
    /// # Panics
    /// When there is none.
    #[inline]
    pub(super) fn unshare(&self) {
        let done = self.holders.step(|held| (held & SHARED_MAX > 0).then(|| held - 1));
        assert!(done, "a lock that nobody holds shared was released");
    }

    /// Takes intent, unless somebody has it.
    #[inline]
    pub(super) fn try_intend(&self) -> bool {
        self.holders.step(|held| (held & INTENT == 0).then_some(held | INTENT))
    }

    /// Gives intent back.
    ///
    /// # Panics
    /// When nobody has it.
    #[inline]
    pub(super) fn unintend(&self) {
        let done = self.holders.step(|held| (held & INTENT != 0).then_some(held & !INTENT));
        assert!(done, "intent that nobody has was given back");
    }

    /// Turns one shared hold into intent, unless somebody has it.
    #[cfg(test)]
    pub(super) fn try_upgrade(&self) -> bool {
        self.holders.step(|held| {
            assert!(held & SHARED_MAX > 0, "only a shared holder upgrades");
            (held & INTENT == 0).then(|| (held - 1) | INTENT)
        })
    }

    /// Turns intent into one shared hold, unless the lock is held exclusively.
    #[cfg(test)]
    pub(super) fn try_downgrade(&self) -> bool {
        self.holders.step(|held| {
            assert!(held & INTENT != 0, "only the holder of intent downgrades");
            (held & EXCLUSIVE == 0).then(|| (held & !INTENT) + 1)
        })
    }

    /// Whether somebody has intent.
    #[inline]
    pub(super) fn intent_held(&self) -> bool {
        self.holders.get() & INTENT != 0
    }

    /// Whether a change could begin now.
    #[inline]
    pub(super) fn can_change(&self) -> bool {
        self.holders.get() & !INTENT == 0
    }

    /// Takes the lock exclusively, unless somebody holds it shared or exclusively.
    #[inline]
    pub(super) fn try_begin_change(&self) -> bool {
        self.holders.step(|held| (held & !INTENT == 0).then_some(held | EXCLUSIVE))
    }

    /// Ends the change as number `sequence`.
    ///
    /// # Panics
    /// When numbers do not rise, or none was begun.
    #[inline]
    pub(super) fn end_change(&self, sequence: u64) {
        assert!(sequence > self.sequence.get(), "sequence numbers of changes must rise");
        // Before exclusive is given back, so there is one writer, and shared holders see the number of
        // what they see.
        self.sequence.set(sequence);
        let done = self.holders.step(|held| (held & EXCLUSIVE != 0).then_some(held & !EXCLUSIVE));
        assert!(done, "a change ends that was not begun");
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn with(held: u64) -> State<Cell<u64>> {
        State { holders: Cell::new(held), sequence: Cell::new(1) }
    }

    /// The table of the module's header, for every combination of holders with up to two shared.
    #[test]
    fn transitions_are_those_of_the_table() {
        for (shared, intent, exclusive) in
            (0..3).flat_map(|s| [(s, 0, 0), (s, 0, 1), (s, 1, 0), (s, 1, 1)])
        {
            let word = |shared: u64, intent: u64, exclusive: u64| {
                shared + intent * INTENT + exclusive * EXCLUSIVE
            };
            let held = word(shared, intent, exclusive);
            let expect = |name: &str, done: bool, state: &State<Cell<u64>>, then: u64| {
                let after = state.holders.get();
                assert_eq!(after, if done { then } else { held }, "{name} of {held:x}");
            };
            let state = with(held);
            let done = state.try_share();
            assert_eq!(done, exclusive == 0);
            expect("share", done, &state, held + 1);
            let state = with(held);
            let done = state.try_intend();
            assert_eq!(done, intent == 0);
            expect("intend", done, &state, held | INTENT);
            let state = with(held);
            let done = state.try_begin_change();
            assert_eq!(done, shared == 0 && exclusive == 0);
            assert_eq!(with(held).can_change(), done);
            expect("begin_change", done, &state, held | EXCLUSIVE);
            assert_eq!(with(held).intent_held(), intent == 1);
            if exclusive == 1 {
                let state = with(held);
                state.end_change(2);
                assert_eq!(state.sequence(), 2);
                expect("end_change", true, &state, word(shared, intent, 0));
            }
            if shared > 0 {
                let state = with(held);
                let done = state.try_upgrade();
                assert_eq!(done, intent == 0);
                expect("upgrade", done, &state, word(shared - 1, 1, exclusive));
                let state = with(held);
                state.unshare();
                expect("unshare", true, &state, held - 1);
            }
            if intent == 1 {
                let state = with(held);
                let done = state.try_downgrade();
                assert_eq!(done, exclusive == 0);
                expect("downgrade", done, &state, word(shared + 1, 0, 0));
                let state = with(held);
                state.unintend();
                expect("unintend", true, &state, word(shared, 0, exclusive));
            }
        }
    }

    #[test]
    #[should_panic(expected = "must rise")]
    fn a_number_is_used_once() {
        let state = with(0);
        assert!(state.try_begin_change());
        state.end_change(1);
    }

    #[test]
    #[should_panic(expected = "was not begun")]
    fn only_a_change_that_was_begun_ends() {
        with(INTENT).end_change(2);
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
