//! Scopes: making a site the current one, for a stretch of code or for each poll of a future.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::counts::replace_current;
use super::site::{Site, Tag};

/// While it lives, what its thread allocates is charged to its site. Guards are dropped in the order
/// opposite to their making; clippy refuses one that is held across an await.
#[must_use = "the scope ends when the guard is dropped"]
#[derive(Debug)]
pub struct ScopeGuard {
    previous: Tag,
    /// It belongs to its thread.
    _not_send: PhantomData<*const ()>,
}

/// Makes `site` the current one of this thread. [`alloc_scope!`](crate::alloc_scope) is shorter.
#[inline]
pub fn enter(site: &'static Site) -> ScopeGuard {
    ScopeGuard { previous: replace_current(Tag::heap(site.number())), _not_send: PhantomData }
}

/// Charges to `site` what this thread allocates from now on where no scope covers it. For the start of
/// a thread.
pub fn set_thread_site(site: &'static Site) {
    replace_current(Tag::heap(site.number()));
}

impl Drop for ScopeGuard {
    #[inline]
    fn drop(&mut self) {
        replace_current(self.previous);
    }
}

/// A future whose allocations are charged to a site: the site is the current one while the future is
/// polled or dropped, and nobody else's.
#[must_use = "futures do nothing unless polled"]
#[derive(Debug)]
pub struct Scoped<F> {
    site: &'static Site,
    future: F,
}

impl<F> Scoped<F> {
    /// Charges what `future` allocates to `site`.
    pub const fn new(site: &'static Site, future: F) -> Self {
        Self { site, future }
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let _scope = enter(self.site);
        // SAFETY: the field is pinned with its struct: nothing moves out of it, Scoped has no Drop,
        // and it is Unpin only when the future is.
        let future = unsafe { self.map_unchecked_mut(|scoped| &mut scoped.future) };
        future.poll(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Waker;

    use super::super::counts::current;
    use super::*;
    use crate::alloc_site;

    #[test]
    fn scopes_nest_and_end() {
        let outside = current();
        let (outer, inner) = (alloc_site!("outer"), alloc_site!("inner"));
        {
            let _outer = enter(outer);
            assert_eq!(current(), Tag::heap(outer.number()));
            {
                let _inner = enter(inner);
                assert_eq!(current(), Tag::heap(inner.number()));
            }
            assert_eq!(current(), Tag::heap(outer.number()));
        }
        assert_eq!(current(), outside);
    }

    #[test]
    fn a_panic_ends_its_scopes() {
        let outside = current();
        let caught = std::panic::catch_unwind(|| {
            let _scope = crate::alloc_scope!("panics");
            panic!("as intended");
        });
        assert!(caught.is_err());
        assert_eq!(current(), outside);
    }

    /// Two futures that take turns, each waiting in the middle of its scope: neither sees the
    /// other's site, and between polls there is none.
    #[test]
    fn a_waiting_future_does_not_leak_its_scope() {
        async fn work(site: &'static Site) {
            for _ in 0..3 {
                assert_eq!(current(), Tag::heap(site.number()));
                let mut first = true;
                poll_fn(
                    |_| if std::mem::take(&mut first) { Poll::Pending } else { Poll::Ready(()) },
                )
                .await;
            }
        }
        let (a, b) = (alloc_site!("a"), alloc_site!("b"));
        let outside = current();
        let (mut first, mut second) =
            (pin!(Scoped::new(a, work(a))), pin!(Scoped::new(b, work(b))));
        let mut context = Context::from_waker(Waker::noop());
        for turn in 0..4 {
            assert_eq!(first.as_mut().poll(&mut context).is_ready(), turn == 3);
            assert_eq!(current(), outside);
            assert_eq!(second.as_mut().poll(&mut context).is_ready(), turn == 3);
            assert_eq!(current(), outside);
        }
    }
}
