// SPDX-License-Identifier: Apache-2.0
//! Descriptions of keys and values as numbers, made at compile time: another layout has another number.

/// A key or value of a map, or a part of one.
pub trait Layout {
    /// Changes with size, alignment, and the names, places and types of the fields.
    const HASH: u64;
}

/// FNV-1a, 64 bits: layouts are told apart, nobody attacks them.
#[derive(Clone, Copy, Debug)]
pub struct Digest(u64);

impl Digest {
    /// Of nothing yet.
    pub const EMPTY: Self = Self(0xcbf2_9ce4_8422_2325);

    /// Of a type of that size and alignment.
    #[must_use]
    pub const fn of_type(size: usize, align: usize) -> Self {
        Self::EMPTY.number(size as u64).number(align as u64)
    }

    /// With a field: its name, its offset and its type's [`Layout::HASH`].
    #[must_use]
    pub const fn field(self, name: &str, offset: usize, hash: u64) -> Self {
        self.text(name).number(offset as u64).number(hash)
    }

    /// With a text and its length.
    #[must_use]
    pub const fn text(self, text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut digest = self.number(bytes.len() as u64);
        let mut index = 0;
        while index < bytes.len() {
            digest = digest.byte(bytes[index]);
            index += 1;
        }
        digest
    }

    /// With a number.
    #[must_use]
    pub const fn number(self, number: u64) -> Self {
        let bytes = number.to_le_bytes();
        let mut digest = self;
        let mut index = 0;
        while index < bytes.len() {
            digest = digest.byte(bytes[index]);
            index += 1;
        }
        digest
    }

    const fn byte(self, byte: u8) -> Self {
        Self((self.0 ^ byte as u64).wrapping_mul(0x0100_0000_01b3))
    }

    /// The number.
    #[must_use]
    pub const fn finish(self) -> u64 {
        self.0
    }
}

macro_rules! plain {
    ($($type:ty),+) => {
        $(
            impl Layout for $type {
                const HASH: u64 =
                    Digest::of_type(size_of::<$type>(), align_of::<$type>()).text(stringify!($type)).finish();
            }
        )+
    };
}

plain!((), u8, u16, u32, u64);

impl<T: Layout, const N: usize> Layout for [T; N] {
    const HASH: u64 = Digest::of_type(size_of::<Self>(), align_of::<Self>()).number(T::HASH).number(N as u64).finish();
}

/// Declares a struct and describes it: a field that is added, moved or changed is described with it. Names of structs do not
/// count, and what a number in a field means cannot.
macro_rules! layout {
    ($(#[$meta:meta])* pub struct $name:ident { $($body:tt)* }) => {
        $(#[$meta])*
        pub struct $name { $($body)* }

        $crate::layout!(@fields $name { $($body)* });
    };
    (@fields $name:ident { $($(#[$meta:meta])* pub $field:ident: $type:ty),* $(,)? }) => {
        impl $crate::Layout for $name {
            const HASH: u64 = $crate::Digest::of_type(size_of::<$name>(), align_of::<$name>())
                $(.field(stringify!($field), core::mem::offset_of!($name, $field), <$type as $crate::Layout>::HASH))*
                .finish();
        }
    };
}
pub(crate) use layout;

#[cfg(test)]
mod tests {
    use super::Layout;

    /// Declares variants of one struct, each in a module of its own.
    macro_rules! variants {
        ($($variant:ident { $($body:tt)* })+) => {
            $(
                mod $variant {
                    crate::layout! {
                        /// A variant.
                        #[repr(C)]
                        #[expect(unreachable_pub, reason = "the macro's structs are public")]
                        pub struct Record { $($body)* }
                    }
                }
            )+
            const ALL: &[(&str, u64)] = &[$((stringify!($variant), $variant::Record::HASH)),+];
        };
    }

    variants! {
        first { pub a: u32, pub b: u16, pub c: u16 }
        with_a_field_more { pub a: u32, pub b: u16, pub c: u16, pub d: u32 }
        with_a_field_in_the_padding { pub a: u32, pub b: u16, pub c: u8, pub d: u8 }
        with_a_field_less { pub a: u32, pub b: u16 }
        with_fields_in_another_order { pub a: u32, pub c: u16, pub b: u16 }
        with_a_field_renamed { pub a: u32, pub b: u16, pub d: u16 }
        with_a_field_of_another_type { pub a: [u16; 2], pub b: u16, pub c: u16 }
        with_a_longer_array { pub a: [u16; 4] }
        with_an_array_of_others { pub a: [u32; 2] }
        with_a_part { pub a: crate::FlowAccount }
        with_another_part { pub a: crate::RuleKey }
    }

    #[test]
    fn a_layout_that_differs_has_another_hash() {
        for (number, (name, hash)) in ALL.iter().enumerate() {
            let twin = ALL[..number].iter().find(|(_, earlier)| earlier == hash);
            assert_eq!(twin, None, "{name} has the hash of another one");
        }
    }

    #[test]
    fn the_same_layout_has_the_same_hash_under_another_name() {
        crate::layout! {
            /// As `first`.
            #[repr(C)]
            #[expect(unreachable_pub, reason = "the macro's structs are public")]
            pub struct Other { pub a: u32, pub b: u16, pub c: u16 }
        }
        assert_eq!(Other::HASH, first::Record::HASH);
    }
}
