//! [`FormatError`]: why bytes are not what the format says.

/// Why bytes do not decode. Names the structure and the rule of `SPEC.md` that is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Fewer bytes than the structure has.
    #[error("{structure}: {found} bytes, {needed} needed")]
    Truncated {
        /// The structure.
        structure: &'static str,
        /// Bytes it needs.
        needed: usize,
        /// Bytes there are.
        found: usize,
    },
    /// The structure does not begin with its magic: something else lies here.
    #[error("{structure}: no magic (found {found:#x})")]
    Magic {
        /// The structure expected.
        structure: &'static str,
        /// What was found in its place.
        found: u64,
    },
    /// The format version is unknown.
    #[error("format version {found}, newest known here is {supported}")]
    Version {
        /// The version found.
        found: u32,
        /// The newest version this crate knows.
        supported: u32,
    },
    /// The checksum does not match: damaged, torn, misplaced, or of another store.
    #[error("{structure}: checksum mismatch (stored {stored:#x}, computed {computed:#x})")]
    Checksum {
        /// The structure.
        structure: &'static str,
        /// The checksum found.
        stored: u64,
        /// The checksum of what was found.
        computed: u64,
    },
    /// A field has a value the format does not allow.
    #[error("{structure}: {field} {what} [{rule}]")]
    Field {
        /// The structure.
        structure: &'static str,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        what: String,
        /// The rule of `SPEC.md`.
        rule: &'static str,
    },
}

impl FormatError {
    /// Short for [`FormatError::Field`].
    pub(crate) fn field(
        structure: &'static str,
        field: &'static str,
        rule: &'static str,
        what: impl Into<String>,
    ) -> Self {
        Self::Field {
            structure,
            field,
            what: what.into(),
            rule,
        }
    }
}

/// Fails with [`FormatError::Field`] unless `holds`.
pub(crate) fn require(
    holds: bool,
    structure: &'static str,
    field: &'static str,
    rule: &'static str,
    what: impl FnOnce() -> String,
) -> Result<(), FormatError> {
    if holds {
        Ok(())
    } else {
        Err(FormatError::field(structure, field, rule, what()))
    }
}
