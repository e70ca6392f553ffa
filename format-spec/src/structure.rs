//! One declaration per on-disk structure: `on_disk!` yields the struct, the assertion of its
//! size, its field table, and with them the dump and the tables of `SPEC.md`. Integers are
//! little-endian, and no structure has padding \[F-5\].

use zerocopy::little_endian::{U16, U32, U64};

/// One field of a structure.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Its offset in the structure, in bytes.
    pub offset: usize,
    /// Its size in bytes.
    pub size: usize,
    /// Its type: `u8`, `u16`, `u32`, `u64` (little-endian) or `bytes`.
    pub kind: &'static str,
    /// What it means.
    pub doc: &'static str,
    render: fn(&[u8]) -> String,
}

/// One decoded field of a dump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The field's absolute offset, in bytes.
    pub offset: u64,
    /// Its name.
    pub name: &'static str,
    /// Its bytes, as hex digits.
    pub hex: String,
    /// Its value, as text.
    pub value: String,
}

/// A fixed-size on-disk structure with a field table.
pub trait Structure {
    /// Its name.
    const NAME: &'static str;
    /// Its size in bytes.
    const SIZE: usize;
    /// Its fields, in order, without gaps.
    const FIELDS: &'static [Field];

    /// Decodes the fields of the structure that lies at `base` for a human reader, right or wrong
    /// as they are. Fields past the end of `bytes` are left out.
    #[must_use]
    fn rows(bytes: &[u8], base: u64) -> Vec<Row> {
        let row = |field: &Field| {
            let raw = bytes.get(field.offset..field.offset + field.size)?;
            Some(Row {
                offset: base.saturating_add(field.offset as u64),
                name: field.name,
                hex: hex(raw),
                value: (field.render)(raw),
            })
        };
        Self::FIELDS.iter().filter_map(row).collect()
    }
}

/// `bytes` as hex digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A type a field can have.
pub trait FieldType {
    /// Its name in tables.
    const KIND: &'static str;
    /// Its value as text.
    fn render(bytes: &[u8]) -> String;
}

fn little_endian(bytes: &[u8]) -> String {
    let value = bytes
        .iter()
        .rev()
        .fold(0_u64, |value, &byte| value << 8 | u64::from(byte));
    if value > 9 {
        format!("{value} ({value:#x})")
    } else {
        value.to_string()
    }
}

macro_rules! integer_fields {
    ($($ty:ty => $kind:literal),+) => {$(
        impl FieldType for $ty {
            const KIND: &'static str = $kind;
            fn render(bytes: &[u8]) -> String {
                little_endian(bytes)
            }
        }
    )+};
}

integer_fields!(u8 => "u8", U16 => "u16", U32 => "u32", U64 => "u64");

impl<const N: usize> FieldType for [u8; N] {
    const KIND: &'static str = "bytes";

    fn render(bytes: &[u8]) -> String {
        if bytes.iter().all(|&byte| byte == 0) {
            return "zeros".to_owned();
        }
        match std::str::from_utf8(bytes) {
            Ok(text) if text.bytes().all(|byte| byte.is_ascii_graphic()) => format!("{text:?}"),
            _ => hex(bytes),
        }
    }
}

/// Makes the table entry of a field; used by `on_disk!`.
#[doc(hidden)]
#[must_use]
pub const fn field<T: FieldType>(name: &'static str, offset: usize, doc: &'static str) -> Field {
    Field {
        name,
        offset,
        size: size_of::<T>(),
        kind: T::KIND,
        doc,
        render: T::render,
    }
}

/// Declares an on-disk structure: `Name: size { /// doc field: type, ... }`.
macro_rules! on_disk {
    ($(#[$attribute:meta])* $name:ident: $size:literal {
        $($(#[doc = $doc:literal])+ $field:ident: $ty:ty,)+
    }) => {
        $(#[$attribute])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, zerocopy::FromBytes, zerocopy::IntoBytes,
            zerocopy::KnownLayout, zerocopy::Immutable, zerocopy::Unaligned,
        )]
        #[repr(C)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $field: $ty,)+
        }

        const _: () = assert!(size_of::<$name>() == $size);

        impl $crate::structure::Structure for $name {
            const NAME: &'static str = stringify!($name);
            const SIZE: usize = $size;
            const FIELDS: &'static [$crate::structure::Field] = &[
                $($crate::structure::field::<$ty>(
                    stringify!($field),
                    std::mem::offset_of!($name, $field),
                    concat!($($doc),+).trim_ascii(),
                ),)+
            ];
        }

        impl $name {
            /// Its bytes.
            #[must_use]
            pub fn bytes(&self) -> &[u8] {
                zerocopy::IntoBytes::as_bytes(self)
            }

            /// The structure at the start of `bytes`, taken as it is.
            ///
            /// # Errors
            /// [`FormatError::Truncated`](crate::FormatError) if `bytes` is shorter than it.
            pub fn view(bytes: &[u8]) -> Result<&Self, $crate::FormatError> {
                zerocopy::FromBytes::ref_from_prefix(bytes)
                    .map(|(structure, _)| structure)
                    .map_err(|_| $crate::FormatError::Truncated {
                        structure: stringify!($name),
                        needed: $size,
                        found: bytes.len(),
                    })
            }
        }
    };
}

pub(crate) use on_disk;
