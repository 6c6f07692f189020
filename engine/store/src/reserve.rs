//! Memory kept back for writing out what is in memory: the journal, and index nodes.
//!
//! Writing out a node also frees its old place, and so may have to read the table of a region: a
//! [`ReadReserve`] is for that.
//!
//! Two contexts ask for buffers. *Normal* is everybody who calls `Buffer::try_new`: clients' data,
//! reads, the cache. They are refused at once when the limit is reached; nothing waits, and nothing
//! is written to make room, so there is no need for a context that forbids either. *Critical* is
//! whoever holds a [`Reserve`]: what must end for memory or space to become free again. When it is
//! refused ordinary memory it takes the buffer of the reserve, and if that is out, waits for it.
//!
//! What always holds:
//! * A wait for a reserve ends: its buffer is out only while one device write is under way, and whoever
//!   has it asks for nothing else meanwhile.
//! * The buffer comes back when its [`Lent`] is dropped; were it still with a device then, the next
//!   user finds that out, and is refused instead of waiting for ever.

use std::cell::{Cell, RefCell};

use engine_memory::{Buffer, OutOfMemory, Slice, alloc_scope};

use crate::sync::Notify;

/// One buffer for one kind of critical work.
pub(crate) struct Reserve {
    bytes: usize,
    kept: RefCell<Kept>,
    returned: Notify,
    uses: Cell<u64>,
}

enum Kept {
    Here(Buffer),
    Lent,
    /// It came back while something else held a part of it.
    Shared(Slice),
}

/// Data on its way to a device: ordinary memory, or lent by a reserve.
pub(crate) struct Lent<'r> {
    data: Option<Slice>,
    /// The reserve and all of its buffer.
    from: Option<(&'r Reserve, Slice)>,
}

impl Reserve {
    /// A reserve for writes of at most `bytes`.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(crate) fn try_new(bytes: usize) -> Result<Self, OutOfMemory> {
        let _scope = alloc_scope!("write-out reserve");
        // Not zeroed: nobody sees more of it than was copied into it.
        let buffer = Buffer::try_new_dirty(bytes)?;
        Ok(Self {
            bytes,
            kept: RefCell::new(Kept::Here(buffer)),
            returned: Notify::default(),
            uses: Cell::new(0),
        })
    }

    /// A copy of `bytes`, in ordinary memory if there is some, else in the reserve.
    ///
    /// # Errors
    /// When ordinary memory is refused and `bytes` are more than the reserve is for.
    pub(crate) async fn copy_of(&self, bytes: &[u8]) -> Result<Lent<'_>, OutOfMemory> {
        loop {
            let refused = match Buffer::try_copy_of(bytes) {
                Ok(buffer) => return Ok(Lent { data: Some(buffer.freeze()), from: None }),
                Err(refused) => refused,
            };
            if bytes.len() > self.bytes {
                return Err(refused);
            }
            let returned = self.returned.notified();
            match self.take(refused)? {
                Some(buffer) => return Ok(self.lend(buffer, bytes)),
                None => returned.await,
            }
        }
    }

    /// How often the reserve was used.
    pub(crate) fn uses(&self) -> u64 {
        self.uses.get()
    }

    /// The buffer; `None` while it is lent.
    fn take(&self, refused: OutOfMemory) -> Result<Option<Buffer>, OutOfMemory> {
        let kept = std::mem::replace(&mut *self.kept.borrow_mut(), Kept::Lent);
        match kept {
            Kept::Here(buffer) => Ok(Some(buffer)),
            Kept::Lent => Ok(None),
            Kept::Shared(whole) => whole.try_into_buffer().map(Some).map_err(|whole| {
                *self.kept.borrow_mut() = Kept::Shared(whole);
                refused
            }),
        }
    }

    fn lend(&self, mut buffer: Buffer, bytes: &[u8]) -> Lent<'_> {
        self.uses.set(self.uses.get() + 1);
        buffer[..bytes.len()].copy_from_slice(bytes);
        let whole = buffer.freeze();
        Lent { data: Some(whole.slice(0..bytes.len())), from: Some((self, whole)) }
    }

    fn give_back(&self, whole: Slice) {
        *self.kept.borrow_mut() = match whole.try_into_buffer() {
            Ok(buffer) => Kept::Here(buffer),
            Err(whole) => Kept::Shared(whole),
        };
        self.returned.notify_all();
    }
}

impl Lent<'_> {
    /// What is to be written.
    pub(crate) fn data(&self) -> Slice {
        self.data.as_ref().expect("taken when this is dropped").clone()
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        // First, so that nothing but a device can still share the buffer.
        self.data = None;
        if let Some((reserve, whole)) = self.from.take() {
            reserve.give_back(whole);
        }
    }
}

/// One buffer for reads without which nothing can be written out. Who finds it in use is refused, and tries
/// again later.
pub(crate) struct ReadReserve {
    bytes: usize,
    kept: RefCell<Option<Buffer>>,
}

impl ReadReserve {
    /// A reserve for reads of at most `bytes`.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(crate) fn try_new(bytes: usize) -> Result<Self, OutOfMemory> {
        let _scope = alloc_scope!("write-out reserve");
        Ok(Self { bytes, kept: RefCell::new(Some(Buffer::try_new_dirty(bytes)?)) })
    }

    /// A buffer for a read of `len` bytes: ordinary memory if there is some, else that of the reserve,
    /// which is longer. To be given back after the read, wherever it came from.
    ///
    /// # Errors
    /// When ordinary memory is refused, and the reserve is out or too small.
    pub(crate) fn buffer(&self, len: usize) -> Result<Buffer, OutOfMemory> {
        match Buffer::try_new(len) {
            Ok(buffer) => {
                let mut kept = self.kept.borrow_mut();
                if kept.is_none() {
                    // It is out, or was lost in a read that failed.
                    *kept = Buffer::try_new_dirty(self.bytes).ok();
                }
                Ok(buffer)
            }
            Err(refused) if len > self.bytes => Err(refused),
            Err(refused) => self.kept.borrow_mut().take().ok_or(refused),
        }
    }

    /// Takes a buffer back, if it is one of the reserve.
    pub(crate) fn give_back(&self, buffer: Buffer) {
        if buffer.len() == self.bytes {
            *self.kept.borrow_mut() = Some(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use engine_memory::refuse;
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn tables_are_read_when_memory_is_refused() {
        let reserve = ReadReserve::try_new(8192).unwrap();
        let ordinary = reserve.buffer(4096).unwrap();
        assert_eq!(ordinary.len(), 4096);
        reserve.give_back(ordinary);
        let lost = {
            let _refusing = refuse(0, u64::MAX);
            let kept = reserve.buffer(4096).unwrap();
            assert_eq!(kept.len(), 8192);
            assert!(reserve.buffer(4096).is_err(), "it is out");
            reserve.give_back(kept);
            assert!(reserve.buffer(8193).is_err(), "more than it is for");
            reserve.buffer(8192).unwrap()
        };
        // One that does not come back is replaced when there is memory.
        drop(lost);
        reserve.buffer(4096).unwrap();
        let _refusing = refuse(0, u64::MAX);
        assert_eq!(reserve.buffer(4096).unwrap().len(), 8192);
    }

    #[test]
    fn critical_work_goes_on_when_memory_is_refused() {
        let reserve = Reserve::try_new(8192).unwrap();
        let ordinary = reserve.copy_of(&[1; 5000]).now_or_never().unwrap().unwrap();
        assert_eq!((ordinary.data()[4999], reserve.uses()), (1, 0));
        let _refusing = refuse(0, u64::MAX);
        let first = reserve.copy_of(&[2; 5000]).now_or_never().unwrap().unwrap();
        assert_eq!((first.data().len(), first.data()[4999], reserve.uses()), (5000, 2, 1));
        assert!(
            reserve.copy_of(&[3; 8193]).now_or_never().unwrap().is_err(),
            "more than it is for"
        );

        // It is out: the next one waits, and gets it when it is back.
        let mut next = Box::pin(reserve.copy_of(&[4; 8192]));
        assert!((&mut next).now_or_never().is_none());
        drop(first);
        let next = next.now_or_never().unwrap().unwrap();
        assert_eq!((next.data().len(), next.data()[8191], reserve.uses()), (8192, 4, 2));

        // Dropped while a device still has it: refused, not waited for.
        let with_device = next.data();
        drop(next);
        assert!(reserve.copy_of(&[5; 10]).now_or_never().unwrap().is_err());
        drop(with_device);
        assert!(reserve.copy_of(&[6; 10]).now_or_never().unwrap().is_ok());
    }
}
