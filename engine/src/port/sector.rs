//! [`SectorFacts`]: what is known of a sector when it is decided where copies go.

use std::fmt;
use std::str::FromStr;

use super::error::PolicyError;

/// What a sector can be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum SectorState {
    /// Takes copies and keeps them.
    Active,
    /// Takes no copies; those that it has count, and are to move elsewhere.
    Draining,
    /// Takes no copies; those that it has count, and can't be removed.
    ReadOnly,
    /// Its disk failed. Its copies do not count.
    Failed,
    /// It was not found. Its copies do not count.
    Absent,
}

impl SectorState {
    const ALL: [Self; 5] = [
        Self::Active,
        Self::Draining,
        Self::ReadOnly,
        Self::Failed,
        Self::Absent,
    ];

    /// Its name in the text form.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::ReadOnly => "read-only",
            Self::Failed => "failed",
            Self::Absent => "absent",
        }
    }

    /// Whether the copies that it has count.
    #[must_use]
    pub fn keeps_copies(self) -> bool {
        matches!(self, Self::Active | Self::Draining | Self::ReadOnly)
    }
}

impl fmt::Display for SectorState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for SectorState {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let known = Self::ALL.into_iter().find(|state| state.name() == text);
        known.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            PolicyError::invalid(format!("sector state {text:?}, expected one of {names}"))
        })
    }
}

/// What a sector's space and traffic cost, in any currency that is the same for all sectors. No part
/// is negative, infinite or NaN.
///
/// ```
/// use graviton_engine::port::Price;
///
/// let price = Price::new(0.023, 0.0, 0.005)?;
/// assert_eq!(price.storage(), 0.023);
/// assert!(Price::new(f64::NAN, 0.0, 0.0).is_err());
/// # Ok::<(), graviton_engine::port::PolicyError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Price {
    storage: f64,
    read: f64,
    write: f64,
}

impl Price {
    /// `storage` is per GiB and month, `read` per GiB read, `write` per GiB written.
    ///
    /// # Errors
    /// [`PolicyError::InvalidPrice`] if one is negative, infinite or NaN.
    pub fn new(storage: f64, read: f64, write: f64) -> Result<Self, PolicyError> {
        let checked = |what, value: f64| {
            if value.is_finite() && value >= 0.0 {
                // No negative zero: costs are compared by their bits.
                Ok(value.abs())
            } else {
                Err(PolicyError::InvalidPrice { what, value })
            }
        };
        Ok(Self {
            storage: checked("storage", storage)?,
            read: checked("read", read)?,
            write: checked("write", write)?,
        })
    }

    /// Per GiB and month.
    #[must_use]
    pub fn storage(self) -> f64 {
        self.storage
    }

    /// Per GiB read.
    #[must_use]
    pub fn read(self) -> f64 {
        self.read
    }

    /// Per GiB written.
    #[must_use]
    pub fn write(self) -> f64 {
        self.write
    }
}

/// What an operator says of a sector. The default: nothing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Labels {
    /// What fails together with it: a rack, an enclosure, a power supply. A name.
    pub rack: Option<String>,
    /// What kind of storage it is: `nvme`, `archive`. A name.
    pub tier: Option<String>,
    /// What it costs.
    pub price: Option<Price>,
}

impl Labels {
    /// The longest name, in bytes.
    pub const NAME_MAX_LEN: usize = 64;

    /// Checks the names.
    ///
    /// # Errors
    /// [`PolicyError::InvalidArgument`] if one is empty, longer than [`Self::NAME_MAX_LEN`], or has
    /// control characters.
    pub fn check(&self) -> Result<(), PolicyError> {
        let names = [("rack", &self.rack), ("tier", &self.tier)];
        names
            .into_iter()
            .filter_map(|(what, name)| Some((what, name.as_deref()?)))
            .try_for_each(|(what, name)| check_name(what, name))
    }
}

/// Checks the name of a rack or a tier.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), PolicyError> {
    let is_good = (1..=Labels::NAME_MAX_LEN).contains(&name.len())
        && !name.chars().any(|character| character.is_control());
    if is_good {
        return Ok(());
    }
    Err(PolicyError::invalid(format!(
        "{what} {name:?}, must be 1 to {} bytes without control characters",
        Labels::NAME_MAX_LEN
    )))
}

/// What is known of a sector.
#[derive(Debug, Clone, PartialEq)]
pub struct SectorFacts {
    /// Its number in the store.
    pub number: u16,
    /// What its operator says of it.
    pub labels: Labels,
    /// What it can be used for.
    pub state: SectorState,
    /// How many bytes it can hold.
    pub capacity: u64,
    /// How many bytes of them can still be written.
    pub free: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_of_a_state_is_its_name() {
        for state in SectorState::ALL {
            assert_eq!(state.to_string().parse::<SectorState>().unwrap(), state);
        }
        assert_eq!(SectorState::ReadOnly.to_string(), "read-only");
        let error = "Active".parse::<SectorState>().unwrap_err().to_string();
        assert!(error.contains("\"Active\"") && error.contains("draining, read-only"));
    }

    #[test]
    fn prices_are_checked() {
        let free = Price::new(0.0, -0.0, f64::MAX).unwrap();
        assert!(free.read().is_sign_positive());
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.01] {
            for (place, name) in ["storage", "read", "write"].into_iter().enumerate() {
                let mut parts = [1.0; 3];
                parts[place] = bad;
                let refused = Price::new(parts[0], parts[1], parts[2]);
                assert!(
                    matches!(refused, Err(PolicyError::InvalidPrice { what, value })
                        if what == name && value.to_bits() == bad.to_bits()),
                    "{refused:?}"
                );
            }
        }
    }

    #[test]
    fn names_are_checked() {
        let of_rack = |name: &str| Labels {
            rack: Some(name.to_owned()),
            ..Labels::default()
        };
        let of_tier = |name: &str| Labels {
            tier: Some(name.to_owned()),
            ..Labels::default()
        };
        assert!(Labels::default().check().is_ok());
        for good in ["a", "Gestell 3, oben", "機架", &"x".repeat(64)] {
            assert!(of_rack(good).check().is_ok() && of_tier(good).check().is_ok());
        }
        for bad in [
            "",
            "a\n",
            "\u{7f}",
            "\u{85}",
            &"x".repeat(65),
            &"é".repeat(33),
        ] {
            assert!(of_rack(bad).check().is_err() && of_tier(bad).check().is_err());
        }
    }
}
