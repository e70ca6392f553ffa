//! [`Topology`]: which sectors fail together.

use std::collections::BTreeMap;

use crate::port::sector::check_name;
use crate::port::{PolicyError, SectorFacts};

/// Which rack each sector is in: what its label says, unless it is named here. A sector of which
/// neither says it is in a rack of its own. The default names none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Topology {
    racks: BTreeMap<u16, String>,
}

impl Topology {
    /// Puts sectors, by their numbers, into racks, whatever their labels say. Of a sector that is
    /// named twice the last counts.
    ///
    /// # Errors
    /// [`PolicyError::InvalidArgument`] if a name is not one that a
    /// [label](crate::port::Labels::check) may have.
    pub fn new<S: Into<String>>(
        racks: impl IntoIterator<Item = (u16, S)>,
    ) -> Result<Self, PolicyError> {
        let checked = racks.into_iter().map(|(sector, rack)| {
            let rack = rack.into();
            check_name("rack", &rack)?;
            Ok((sector, rack))
        });
        Ok(Self {
            racks: checked.collect::<Result<_, PolicyError>>()?,
        })
    }

    pub(super) fn rack<'a>(&'a self, sector: &'a SectorFacts) -> Rack<'a> {
        let named = self.racks.get(&sector.number);
        match named.or(sector.labels.rack.as_ref()) {
            Some(name) => Rack::Named(name),
            None => Rack::OwnOf(sector.number),
        }
    }
}

/// Sectors that fail together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rack<'a> {
    Named(&'a str),
    /// Nothing is known of it but one sector that is in it.
    OwnOf(u16),
}

/// How many copies there are in each rack that has any.
#[derive(Debug, Default)]
pub(super) struct Racks<'a> {
    copies: BTreeMap<Rack<'a>, usize>,
}

impl<'a> Racks<'a> {
    /// How many racks have a copy.
    pub(super) fn len(&self) -> usize {
        self.copies.len()
    }

    /// How many copies are in one.
    pub(super) fn copies(&self, rack: Rack<'a>) -> usize {
        self.copies.get(&rack).copied().unwrap_or(0)
    }

    pub(super) fn add(&mut self, rack: Rack<'a>) {
        *self.copies.entry(rack).or_default() += 1;
    }

    pub(super) fn remove(&mut self, rack: Rack<'a>) {
        match self.copies(rack) {
            0 | 1 => self.copies.remove(&rack),
            more => self.copies.insert(rack, more - 1),
        };
    }
}
