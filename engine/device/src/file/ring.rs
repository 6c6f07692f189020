//! One io_uring, and the operations the kernel has hold of.
//!
//! What always holds: the buffers and address lists of a request that the kernel was told of stay in
//! their slot, untouched, until its completion was seen. Dropping the ring waits for the kernel; if
//! that cannot be done the memory is leaked rather than freed under it.
//!
//! What to do with results is for `queue`.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use engine_memory::Buffer;
use io_uring::types::{Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, opcode, squeue};

use crate::{Completion, Operation};

/// Pieces of one vectored write that the kernel takes (UIO_MAXIOV); the rest follows in a second one.
const PIECES_MAX: usize = 1024;

/// Bytes asked for in one go: below the kernel's MAX_RW_COUNT of 2 GiB less a page, and aligned.
const TRANSFER_BYTES_MAX: usize = 1 << 30;

/// Seconds that dropping a ring waits for the kernel: longer than the 30 s after which Linux's block
/// layer gives up on a request by default (`queue/io_timeout`).
const DRAIN_SECONDS_MAX: u32 = 60;

/// `off_t` flags of fallocate for each purpose (fallocate(2)).
const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// An operation on its way.
pub(super) struct Request {
    pub(super) operation: Operation,
    pub(super) done: Completion,
    /// Bytes of a read or write that are done.
    pub(super) progress: usize,
    /// How often it was begun anew.
    pub(super) attempts: u32,
    /// An aligned copy of a write whose pieces are not.
    pub(super) bounce: Option<Buffer>,
    /// Zero by punching a hole, where the file system has no other way.
    pub(super) zero_by_punch: bool,
}

#[derive(Default)]
struct Slot {
    request: Option<Request>,
    /// What the kernel reads while the request is in flight; kept to be filled again.
    pieces: Vec<libc::iovec>,
}

pub(super) struct Ring {
    ring: IoUring,
    wake: OwnedFd,
    /// As many as the depth; never moved or resized.
    slots: Box<[Slot]>,
    free: Vec<u32>,
    /// How often the kernel was entered to hand over or collect.
    #[cfg(test)]
    enters: u64,
    /// Everything in flight was given up; the ring is not used any more.
    abandoned: bool,
}

/// Opcodes this device needs.
const OPCODES: [(u8, &str); 5] = [
    (opcode::Read::CODE, "read"),
    (opcode::Write::CODE, "write"),
    (opcode::Writev::CODE, "writev"),
    (opcode::Fsync::CODE, "fsync"),
    (opcode::Fallocate::CODE, "fallocate"),
];

thread_local! {
    static ENTRIES: Cell<u64> = const { Cell::new(0) };
}

/// How often this thread has entered the kernel to hand operations of file devices over or to collect
/// them: one system call each. For counting what an operation costs.
#[must_use]
pub fn kernel_entries() -> u64 {
    ENTRIES.get()
}

impl Ring {
    /// A ring for `depth` operations on `file`, to be used by the calling thread only.
    pub(super) fn new(file: BorrowedFd<'_>, depth: u32) -> io::Result<Self> {
        let ring = build(depth)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        for (code, name) in OPCODES {
            if !probe.is_supported(code) {
                let what = format!("the kernel's io_uring has no {name}");
                return Err(io::Error::new(io::ErrorKind::Unsupported, what));
            }
        }
        // A registered file spares the kernel two atomic operations for every request.
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let wake = rustix::event::eventfd(0, flags)?;
        ring.submitter().register_eventfd(wake.as_raw_fd())?;
        let mut this = Self {
            ring,
            wake,
            slots: (0..depth).map(|_| Slot::default()).collect(),
            free: (0..depth).rev().collect(),
            #[cfg(test)]
            enters: 0,
            abandoned: false,
        };
        this.ring.completion().disable_eventfd();
        Ok(this)
    }

    pub(super) fn wake_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    pub(super) fn in_flight(&self) -> usize {
        if self.abandoned { 0 } else { self.slots.len() - self.free.len() }
    }

    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    #[cfg(test)]
    pub(super) fn enters(&self) -> u64 {
        self.enters
    }

    /// Puts a request into the submission queue; the next `enter` hands it over.
    ///
    /// # Panics
    /// When the ring is full.
    pub(super) fn start(&mut self, request: Request) {
        let index = self.free.pop().expect("the caller asked is_full");
        let slot = &mut self.slots[index as usize];
        let slot_request = slot.request.insert(request);
        let entry = entry(slot_request, &mut slot.pieces).user_data(u64::from(index));
        // SAFETY: the addresses in the entry are of memory owned by the slot's request (buffers and
        // slices, which do not move) and of its `pieces`; `next` takes them out only after the
        // kernel's completion, and Drop waits for it. The file is registered.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        // The submission queue has at least as many entries as there are slots, and entries that are
        // not yet handed over belong to slots that are in use.
        assert!(pushed.is_ok(), "room in the submission queue for every slot");
    }

    /// Whether the kernel must be entered: something is to be submitted, or it has completions that
    /// it posts only when entered.
    pub(super) fn needs_enter(&mut self) -> bool {
        let submission = self.ring.submission();
        !submission.is_empty() || submission.taskrun() || submission.cq_overflow()
    }

    /// Hands over what was started and lets the kernel post completions. Does not wait.
    pub(super) fn enter(&mut self) -> io::Result<()> {
        #[cfg(test)]
        {
            self.enters += 1;
        }
        ENTRIES.set(ENTRIES.get() + 1);
        self.ring.submit().map(drop)
    }

    /// The next request that has ended, with the kernel's result.
    pub(super) fn next(&mut self) -> Option<(Request, i32)> {
        let completion = self.ring.completion().next()?;
        let index = completion.user_data();
        let slot = usize::try_from(index).ok().and_then(|index| self.slots.get_mut(index));
        let request = slot.and_then(|slot| slot.request.take());
        let request = request.expect("the kernel completes each submitted entry once");
        self.free.push(index as u32);
        Some((request, completion.result()))
    }

    /// Lets the kernel signal the wake descriptor from now on. Returns false when there is something
    /// to do already.
    pub(super) fn arm(&mut self) -> bool {
        self.ring.completion().enable_eventfd();
        // The kernel posts, then looks whether to signal; we allow signals, then look what is posted.
        // The fence keeps our two steps in order, so that one of the sides sees the other.
        fence(Ordering::SeqCst);
        let idle = self.ring.completion().is_empty() && !self.needs_enter();
        if !idle {
            self.disarm();
        }
        idle
    }

    /// Stops signals and clears those that came.
    pub(super) fn disarm(&mut self) {
        self.ring.completion().disable_eventfd();
        let mut count = [0; 8];
        // Fails with EAGAIN when there was no signal.
        let _ = rustix::io::read(&self.wake, &mut count);
    }

    /// Gives up on everything in flight: returns the obligations, leaks the memory that the kernel
    /// may still use.
    pub(super) fn abandon(&mut self) -> Vec<(Completion, &'static Operation)> {
        self.abandoned = true;
        let mut obligations = Vec::new();
        for slot in &mut self.slots {
            if let Some(Request { operation, done, bounce, .. }) = slot.request.take() {
                let _pieces = std::mem::take(&mut slot.pieces).leak();
                let (operation, _bounce) = Box::leak(Box::new((operation, bounce)));
                obligations.push((done, &*operation));
            }
        }
        obligations
    }

    /// Waits until the kernel is done with everything, or for a time bounded by [`DRAIN_SECONDS_MAX`]
    /// waits.
    fn drain(&mut self) {
        for _ in 0..DRAIN_SECONDS_MAX {
            while self.in_flight() > 0 && self.next().is_some() {}
            if self.in_flight() == 0 {
                return;
            }
            let second = Timespec::from(Duration::from_secs(1));
            let arguments = SubmitArgs::new().timespec(&second);
            // ETIME and EINTR: look again. Any other error repeats and ends with the loop.
            let _ = self.ring.submitter().submit_with_args(1, &arguments);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.drain();
        // Nothing is left here unless the kernel did not answer in time.
        drop(self.abandon());
        // The kernel takes a closed ring apart later, in the background, and would keep the file open
        // until then: whoever reopens it at once would find it in use.
        let _ = self.ring.submitter().unregister_files();
    }
}

/// A ring with the cheapest notification that the kernel has. Task work on demand (Linux 6.1), or
/// without interrupting the thread (5.19), or as it comes.
fn build(depth: u32) -> io::Result<IoUring> {
    let mut last = io::Error::from_raw_os_error(libc::EINVAL);
    for attempt in 0..3 {
        let mut builder = IoUring::builder();
        builder.dontfork();
        match attempt {
            0 => {
                builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
            }
            1 => {
                builder.setup_coop_taskrun().setup_taskrun_flag();
            }
            _ => {}
        }
        match builder.build(depth) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = error,
            result => return result,
        }
    }
    Err(last)
}

/// The submission of what is left of a request. Its addresses are those of the request's buffers and
/// of `pieces`.
fn entry(request: &mut Request, pieces: &mut Vec<libc::iovec>) -> squeue::Entry {
    let file = Fixed(0);
    let progress = request.progress;
    match &mut request.operation {
        Operation::Read { offset, buffer } => {
            let rest = &mut buffer[progress..];
            let len = rest.len().min(TRANSFER_BYTES_MAX) as u32;
            let at = *offset + progress as u64;
            opcode::Read::new(file, rest.as_mut_ptr(), len).offset(at).build()
        }
        Operation::Write { offset, data, fua } => {
            let flags = if *fua { libc::RWF_DSYNC } else { 0 };
            let at = *offset + progress as u64;
            match &request.bounce {
                Some(copy) => list_pieces([&copy[..]].into_iter(), progress, pieces),
                None => list_pieces(data.iter().map(|piece| &piece[..]), progress, pieces),
            }
            if let [only] = pieces[..] {
                return opcode::Write::new(file, only.iov_base.cast(), only.iov_len as u32)
                    .offset(at)
                    .rw_flags(flags)
                    .build();
            }
            opcode::Writev::new(file, pieces.as_ptr(), pieces.len() as u32)
                .offset(at)
                .rw_flags(flags)
                .build()
        }
        Operation::Flush => opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build(),
        Operation::Discard { offset, len } => {
            opcode::Fallocate::new(file, *len).offset(*offset).mode(PUNCH_HOLE).build()
        }
        Operation::WriteZeroes { offset, len } => {
            let mode = if request.zero_by_punch { PUNCH_HOLE } else { ZERO_RANGE };
            opcode::Fallocate::new(file, *len).offset(*offset).mode(mode).build()
        }
    }
}

/// Lists what follows the first `skip` bytes of `data`, as far as one write can take it.
fn list_pieces<'a>(
    data: impl Iterator<Item = &'a [u8]>,
    mut skip: usize,
    pieces: &mut Vec<libc::iovec>,
) {
    pieces.clear();
    let mut room = TRANSFER_BYTES_MAX;
    for piece in data {
        let skipped = skip.min(piece.len());
        skip -= skipped;
        let rest = &piece[skipped..];
        let len = rest.len().min(room);
        if len > 0 {
            // The kernel only reads from it: the `mut` is of the C type.
            pieces.push(libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: len });
            room -= len;
        }
        if room == 0 || pieces.len() == PIECES_MAX {
            return;
        }
    }
}
