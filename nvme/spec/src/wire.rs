//! The macro that declares a wire structure: fields with their byte offsets, checked at compile time.

/// Declares a structure as it lies on the wire. Every field states its offset in bytes and the
/// structure its size, and the build fails when either is wrong.
macro_rules! wire {
    ($(#[$meta:meta])* pub struct $name:ident : $size:literal {
        $( $(#[$field_meta:meta])* $offset:literal => $field:ident : $kind:ty ),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout,
            zerocopy::Immutable, zerocopy::Unaligned,
        )]
        #[repr(C)]
        pub struct $name { $( $(#[$field_meta])* pub $field: $kind ),* }

        impl $name {
            /// All bytes zero, which is how the specification asks reserved fields to be sent.
            #[must_use]
            pub fn zeroed() -> Self {
                <Self as zerocopy::FromZeros>::new_zeroed()
            }
        }

        const _: () = assert!(core::mem::size_of::<$name>() == $size);
        $( const _: () = assert!(core::mem::offset_of!($name, $field) == $offset); )*
    };
}
