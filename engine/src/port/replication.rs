//! [`ReplicationPolicy`]: which sectors get the copies of a blob.

use std::fmt;

use super::error::PolicyError;
use super::key::BinaryKey;
use super::sector::{SectorFacts, SectorState};

/// What is asked of a [`ReplicationPolicy`]: where the copies of one blob are, and where they may go.
///
/// A copy counts if its sector is among `sectors` and [keeps copies](SectorState::keeps_copies).
/// Neither the order of `holders` and `sectors` matters nor whether one is named twice.
#[derive(Debug, Clone, Copy)]
pub struct Placement<'a> {
    /// The blob.
    pub key: &'a BinaryKey,
    /// How many copies there are to be in all, at least 1.
    pub copies: u8,
    /// The sectors that hold a healthy, whole copy.
    pub holders: &'a [u16],
    /// All sectors. Those that are named twice must have the same facts.
    pub sectors: &'a [SectorFacts],
    /// How many bytes must be free in a sector that is to take a copy.
    pub needed: u64,
    /// What chance goes by, with the key: another seed, another draw.
    pub seed: u64,
}

/// A copy that lacks bytes: some of its ranges were never written, or are damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PartialCopy {
    /// The sector it is in.
    pub sector: u16,
    /// How many bytes must be free there to make it whole.
    pub missing: u64,
}

/// What a policy chose, and why.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Choice {
    /// The sectors that are to take a copy, best first.
    pub chosen: Vec<u16>,
    /// Every sector that was looked at, by number.
    pub verdicts: Vec<Verdict>,
}

/// One line for each sector that was looked at.
impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.verdicts
            .iter()
            .try_for_each(|verdict| writeln!(f, "{verdict}"))
    }
}

/// Why a sector was chosen or left out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// Its number in the store.
    pub sector: u16,
    /// Why.
    pub reason: Reason,
}

/// `sector 3: left out, draining`.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sector, reason } = self;
        let outcome = if reason.is_choice() {
            "chosen"
        } else {
            "left out"
        };
        write!(f, "sector {sector}: {outcome}, {reason}")
    }
}

/// What made a sector be chosen or left out. A cost is per GiB and month; `None`: it has no price.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// Chosen: it has part of a copy.
    HasPart {
        /// How many bytes it lacks.
        missing: u64,
    },
    /// Chosen: no rack that can take a copy has fewer.
    FewestInRack {
        /// How many copies its rack had.
        copies: usize,
    },
    /// Chosen: the copies are to be in more racks, and it is the cheapest of another.
    AddsRack {
        /// What it costs.
        cost: Option<f64>,
    },
    /// Chosen: none is cheaper.
    Cheapest {
        /// What it costs.
        cost: Option<f64>,
    },
    /// Chosen: it was drawn, with its free space as its weight.
    Drawn {
        /// How many bytes are free in it.
        free: u64,
    },
    /// Left out: it takes no copies.
    State(SectorState),
    /// Left out: too few bytes are free.
    Full {
        /// How many are.
        free: u64,
        /// How many had to be.
        needed: u64,
    },
    /// Left out: it holds a copy.
    HoldsCopy,
    /// Left out: there are enough copies.
    Enough,
    /// Left out: sectors that have part of a copy come first.
    OthersHavePart,
    /// Left out: another rack has fewer copies, or another rack was called for.
    RackHasCopies {
        /// How many its rack has.
        copies: usize,
    },
    /// Left out: others are cheaper.
    Dearer {
        /// What it costs.
        cost: Option<f64>,
    },
    /// Left out: others are as cheap and have more space.
    LessFree {
        /// How many bytes are free in it.
        free: u64,
    },
    /// Left out: others were drawn.
    NotDrawn,
}

impl Reason {
    /// Whether it is one for being chosen.
    #[must_use]
    pub fn is_choice(&self) -> bool {
        matches!(
            self,
            Self::HasPart { .. }
                | Self::FewestInRack { .. }
                | Self::AddsRack { .. }
                | Self::Cheapest { .. }
                | Self::Drawn { .. }
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::HasPart { missing } => write!(f, "all but {missing} bytes are there"),
            Self::FewestInRack { copies: 0 } => f.write_str("its rack has no copy yet"),
            Self::FewestInRack { copies } => {
                write!(f, "no rack with room has fewer copies than its {copies}")
            }
            Self::AddsRack { cost } => {
                write!(f, "cheapest of the racks that have no copy: {}", Cost(cost))
            }
            Self::Cheapest { cost } => write!(f, "cheapest: {}", Cost(cost)),
            Self::Drawn { free } => write!(f, "drawn by its {free} bytes of free space"),
            Self::State(state) => state.fmt(f),
            Self::Full { free, needed } => {
                write!(f, "full: {free} bytes are free, {needed} needed")
            }
            Self::HoldsCopy => f.write_str("it holds a copy already"),
            Self::Enough => f.write_str("no more copies are needed"),
            Self::OthersHavePart => f.write_str("others have part of a copy"),
            Self::RackHasCopies { copies: 1 } => f.write_str("its rack has a copy already"),
            Self::RackHasCopies { copies } => write!(f, "its rack has {copies} copies already"),
            Self::Dearer { cost } => write!(f, "dearer: {}", Cost(cost)),
            Self::LessFree { free } => write!(f, "as cheap, but only {free} bytes are free"),
            Self::NotDrawn => f.write_str("others were drawn"),
        }
    }
}

struct Cost(Option<f64>);

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(cost) => write!(f, "{cost} per GiB and month"),
            None => f.write_str("no price"),
        }
    }
}

/// One step to a better placement. The copy is added and durable before the other is removed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rebalance {
    /// The sector that is to take a copy; `None` if there is one too many.
    pub add: Option<u16>,
    /// The sector whose copy is to be removed then.
    pub remove: u16,
    /// What is better after it.
    pub gain: Gain,
}

/// `add a copy to sector 4, then remove the one in sector 2: the sector is draining`.
impl fmt::Display for Rebalance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.add {
            Some(add) => write!(f, "add a copy to sector {add}, then remove the one in ")?,
            None => f.write_str("remove the copy in ")?,
        }
        write!(f, "sector {}: ", self.remove)?;
        match self.gain {
            Gain::Drained => f.write_str("the sector is draining"),
            Gain::Surplus { copies } => write!(f, "there are {copies}, more than wanted"),
            Gain::Spread => f.write_str("its rack has more copies than it need have"),
            Gain::Evened { before, after } => {
                write!(f, "it is fuller: {before} %, against {after} %")
            }
            Gain::Cheaper { before, after } => {
                write!(f, "it is dearer: {}, then {}", Cost(before), Cost(after))
            }
        }
    }
}

/// What a [`Rebalance`] is good for.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Gain {
    /// A copy leaves a draining sector.
    Drained,
    /// There are more copies than wanted.
    Surplus {
        /// How many there are.
        copies: usize,
    },
    /// The copies are in more racks, or spread over them more evenly.
    Spread,
    /// The sectors are filled more evenly. How full they are is in percent.
    Evened {
        /// How full the sector is whose copy is to be removed.
        before: f64,
        /// How full the one is that is to take it.
        after: f64,
    },
    /// A copy costs less, per GiB and month; `None`: its sector has no price.
    Cheaper {
        /// What it costs now.
        before: Option<f64>,
        /// What it costs then.
        after: Option<f64>,
    },
}

/// Decides which sectors get the copies of a blob. Every answer follows from the request alone.
///
/// Copies go to sectors that are active, have the space, and hold none: never are two in one
/// sector.
pub trait ReplicationPolicy: Send + Sync + fmt::Debug {
    /// Its name in settings, like `rack_aware`.
    fn name(&self) -> &'static str;

    /// The sectors that are to take new copies, so that there are as many as wanted. None, if there
    /// are already.
    ///
    /// # Errors
    /// `Insufficient` if too few sectors can take one: it has those that can, and whoever asks may do
    /// with them. `InvalidArgument` if no copies are wanted, or a sector is named with different
    /// facts.
    fn select_targets(&self, request: &Placement<'_>) -> Result<Choice, PolicyError>;

    /// As [`ReplicationPolicy::select_targets`], but sectors with part of a copy come first, and need
    /// room only for what is missing there. What is named in `partial` is no whole copy, whether it
    /// is among the holders or not. No copy is removed by a repair: that is for a rebalance, once
    /// the new ones are there.
    ///
    /// # Errors
    /// As there.
    fn select_repair_targets(
        &self,
        request: &Placement<'_>,
        partial: &[PartialCopy],
    ) -> Result<Choice, PolicyError>;

    /// The next step to a better placement, by this policy's own measure; `None` if the sectors do
    /// not allow a better one, or copies are missing, which is for a repair.
    ///
    /// Each step is a gain by that measure, so that taking one after another comes to an end as long
    /// as the sectors stay what they are. Free space decides nothing but whether a copy fits: it
    /// changes with every step.
    ///
    /// # Errors
    /// `InvalidArgument`, as there.
    fn needs_rebalance(&self, request: &Placement<'_>) -> Result<Option<Rebalance>, PolicyError>;
}
