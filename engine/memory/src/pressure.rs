//! Who gives memory back before a request for a buffer is refused.
//!
//! Caches fill what is free of the limit, and must not be the reason why somebody else gets nothing. So each
//! registers with the thread it lives on; when that thread is about to refuse a buffer, they give back what
//! they hold, piece by piece, until there is one or they hold nothing.

use std::cell::RefCell;
use std::rc::Weak;

/// Something that holds memory that it can do without.
pub trait GiveBack {
    /// Gives back about `bytes` or more, and tells how many bytes that was; 0 when it has none. It asks for no
    /// buffer meanwhile.
    fn give_back(&self, bytes: usize) -> usize;
}

thread_local! {
    static HOLDERS: RefCell<Vec<Weak<dyn GiveBack>>> = const { RefCell::new(Vec::new()) };
}

/// Has `holder` asked when memory runs out on this thread, for as long as it exists.
pub fn give_back_under_pressure(holder: Weak<dyn GiveBack>) {
    HOLDERS.with_borrow_mut(|holders| {
        holders.retain(|known| known.strong_count() > 0);
        holders.push(holder);
    });
}

/// Asks those of this thread for `bytes`. Whether anything came back: then it is worth another try.
#[cold]
pub(crate) fn relieve(bytes: usize) -> bool {
    let asked = HOLDERS.try_with(|holders| {
        // In use: whoever is asked asks for memory itself, and is refused.
        let Ok(holders) = holders.try_borrow() else { return 0 };
        holders.iter().filter_map(Weak::upgrade).map(|holder| holder.give_back(bytes)).sum()
    });
    asked.unwrap_or(0) > 0
}
