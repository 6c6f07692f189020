//! Who holds memory that it can do without gives it back before anybody is refused. A process of its own, for
//! its limit.

use std::cell::RefCell;
use std::rc::Rc;

use engine_memory::{Buffer, GiveBack, give_back_under_pressure, is_scarce, set_limit_bytes};

/// Holds buffers of 4 KiB.
#[derive(Default)]
struct Holder(RefCell<Vec<Buffer>>);

impl GiveBack for Holder {
    fn give_back(&self, bytes: usize) -> usize {
        let mut held = self.0.borrow_mut();
        let keep = held.len().saturating_sub(bytes.div_ceil(4096));
        (held.drain(keep..).count()) * 4096
    }
}

#[test]
fn a_holder_gives_back_before_anybody_is_refused() {
    set_limit_bytes(16 << 20).unwrap();
    let holder = Rc::new(Holder::default());
    let weak = Rc::downgrade(&holder);
    give_back_under_pressure(weak);
    let fill = || {
        while let Ok(buffer) = Buffer::try_new(4096) {
            holder.0.borrow_mut().push(buffer);
            if holder.0.borrow().len() == 4096 {
                break;
            }
        }
    };
    assert!(!is_scarce());
    fill();
    assert!(is_scarce());
    assert_eq!(holder.0.borrow().len(), 4096, "all of the limit");

    // One of the same size costs one; large ones are had as long as there is anything to give back.
    let small = Buffer::try_new(4096).unwrap();
    assert_eq!(holder.0.borrow().len(), 4095);
    drop(small);
    let large: Vec<Buffer> = (0..16).map(|_| Buffer::try_new(1 << 20).unwrap()).collect();
    assert_eq!(holder.0.borrow().len(), 0);
    assert!(Buffer::try_new(4096).is_err(), "nothing is left to give back");
    drop(large);

    // One that is gone is not asked.
    fill();
    drop(holder);
    assert!(Buffer::try_new(1 << 20).is_ok());
}
