//! Sites: static records of places in the code, numbered when they are first used.

use std::fmt;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Sites that are told apart; those first used after these share one. Each costs 64 bytes for each
/// thread that uses it. There are some fifty in the whole program.
pub const SITES_MAX: usize = 256;

/// Number of a site that means: charged to nobody.
pub(crate) const NOBODY: u16 = 0;
/// Number of [`UNSCOPED`].
pub(crate) const UNSCOPED_NUMBER: u16 = 1;
/// Number of [`OVERFLOW`].
const OVERFLOW_NUMBER: u16 = 2;
const FIRST_FREE: usize = 3;

/// What no scope covers: start-up, and threads of libraries.
static UNSCOPED: Site =
    Site::new("unscoped", file!(), line!(), module_path!(), || "unscoped", UNSCOPED_NUMBER);
/// Sites past [`SITES_MAX`].
static OVERFLOW: Site =
    Site::new("overflow", file!(), line!(), module_path!(), || "overflow", OVERFLOW_NUMBER);

/// A place in the code that memory is charged to. Made by [`alloc_scope!`](crate::alloc_scope) and
/// [`alloc_site!`](crate::alloc_site).
pub struct Site {
    name: &'static str,
    file: &'static str,
    line: u32,
    module: &'static str,
    /// The type name of an item in the function; a const cannot hold it yet.
    function: fn() -> &'static str,
    /// Index in the registry, from 1; 0 until first used.
    number: AtomicU16,
}

impl Site {
    /// For the macros only, which know file, line and function.
    #[doc(hidden)]
    #[must_use]
    pub const fn new(
        name: &'static str,
        file: &'static str,
        line: u32,
        module: &'static str,
        function: fn() -> &'static str,
        number: u16,
    ) -> Self {
        Self { name, file, line, module, function, number: AtomicU16::new(number) }
    }

    /// What memory of this site is for, as a person calls it. Several sites may have one name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Source file, relative to the workspace.
    #[must_use]
    pub fn file(&self) -> &'static str {
        self.file
    }

    /// Line in it.
    #[must_use]
    pub fn line(&self) -> u32 {
        self.line
    }

    /// Path of the module.
    #[must_use]
    pub fn module(&self) -> &'static str {
        self.module
    }

    /// The function, with the type or trait it belongs to; without the module's path.
    #[must_use]
    pub fn function(&self) -> &'static str {
        let mut path = (self.function)();
        path = path.strip_suffix("::here").unwrap_or(path);
        while let Some(outer) = path.strip_suffix("::{{closure}}") {
            path = outer;
        }
        let inner = path.strip_prefix(self.module).and_then(|rest| rest.strip_prefix("::"));
        inner.unwrap_or(path)
    }

    /// Its number, given at the first use.
    #[inline]
    pub(crate) fn number(&'static self) -> u16 {
        match self.number.load(Ordering::Relaxed) {
            NOBODY => self.register(),
            number => number,
        }
    }

    #[cold]
    fn register(&'static self) -> u16 {
        // Not the allocator's path: a scope is entered outside of it. The lock keeps two threads
        // from numbering one site twice.
        let _registering = REGISTERING.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.number.load(Ordering::Relaxed);
        if known != NOBODY {
            return known;
        }
        let next = COUNT.load(Ordering::Relaxed);
        let number = if next < SITES_MAX {
            let _ = SITES[next].set(self);
            COUNT.store(next + 1, Ordering::Release);
            next as u16
        } else {
            OVERFLOW_NUMBER
        };
        self.number.store(number, Ordering::Relaxed);
        number
    }
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Site({} {}:{})", self.name, self.file, self.line)
    }
}

static REGISTERING: Mutex<()> = Mutex::new(());
static SITES: [OnceLock<&'static Site>; SITES_MAX] = [const { OnceLock::new() }; SITES_MAX];
/// Entries of `SITES` that are set, the fixed ones included.
static COUNT: AtomicUsize = AtomicUsize::new(FIRST_FREE);

/// Every site used so far, with its number.
pub(crate) fn sites() -> impl Iterator<Item = (u16, &'static Site)> {
    let fixed = [(UNSCOPED_NUMBER, &UNSCOPED), (OVERFLOW_NUMBER, &OVERFLOW)];
    let used = COUNT.load(Ordering::Acquire);
    let others = SITES[FIRST_FREE..used].iter().enumerate();
    let others =
        others.filter_map(|(index, site)| Some(((FIRST_FREE + index) as u16, *site.get()?)));
    fixed.into_iter().chain(others)
}

/// What kind of memory a site holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Memory of the global allocator.
    Heap,
    /// I/O buffers ([`Buffer`](crate::Buffer)), with the size of their class.
    Buffers,
    /// Free blocks of the buffer pool.
    Free,
}

/// A site and a kind, as an allocation remembers them: twice the site's number, plus 1 for buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag(pub(crate) u16);

/// Number of different tags.
pub(crate) const TAGS: usize = 2 * SITES_MAX;

impl Tag {
    /// Charged to nobody.
    pub(crate) const NOBODY: Self = Self(2 * NOBODY);

    pub(crate) const fn heap(site: u16) -> Self {
        Self(2 * site)
    }

    pub(crate) const fn buffers(site: u16) -> Self {
        Self(2 * site + 1)
    }

    /// The buffers of the site whose heap this is.
    pub(crate) const fn to_buffers(self) -> Self {
        Self(self.0 | 1)
    }
}

const _: () = assert!(TAGS <= u16::MAX as usize);

/// A static [`Site`] here, with the name that is given: `alloc_site!("journal")`. The value is a
/// `&'static Site`.
#[macro_export]
macro_rules! alloc_site {
    ($name:expr) => {{
        fn here() {}
        static SITE: $crate::profile::Site = $crate::profile::Site::new(
            $name,
            ::core::file!(),
            ::core::line!(),
            ::core::module_path!(),
            || ::core::any::type_name_of_val(&here),
            0,
        );
        &SITE
    }};
}

/// Charges what this thread allocates, until the guard is dropped, to this place:
/// `let _scope = alloc_scope!("journal");`. Not across an await: see
/// [`Scoped`](crate::profile::Scoped).
#[macro_export]
macro_rules! alloc_scope {
    ($name:expr) => {
        $crate::profile::enter($crate::alloc_site!($name))
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Cache;

    impl Cache {
        fn site(&self) -> &'static Site {
            let inside = || alloc_site!("cache");
            inside()
        }
    }

    #[test]
    fn a_site_knows_where_it_stands() {
        let site = Cache.site();
        assert_eq!(site.name(), "cache");
        assert_eq!(site.file(), file!());
        assert!(site.line() > 100);
        assert_eq!(site.module(), module_path!());
        assert_eq!(site.function(), "Cache::site");
        assert!(std::ptr::eq(site, Cache.site()));
    }

    #[test]
    fn one_site_has_one_number_on_all_threads() {
        let site = alloc_site!("numbered");
        let numbers: Vec<u16> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| site.number())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(numbers.iter().all(|number| *number == numbers[0] && *number != NOBODY));
        let found: Vec<_> = sites().filter(|(_, other)| std::ptr::eq(*other, site)).collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, numbers[0]);
    }
}
