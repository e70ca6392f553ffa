//! Decisions: facts in, plan out. No I/O, no clock, no state, so that a test can ask about any
//! situation, and what was decided can be explained afterwards.
//!
//! Which sectors get the copies of a blob ([`ReplicationPolicy`](crate::port::ReplicationPolicy)) is
//! decided by [`Random`], [`RackAware`] or [`CostOptimized`].
//!
//! ```
//! use graviton_engine::policy::RackAware;
//! use graviton_engine::port::{
//!     BinaryKey, Labels, Placement, ReplicationPolicy, SectorFacts, SectorState,
//! };
//!
//! let sector = |number, rack: &str| SectorFacts {
//!     number,
//!     labels: Labels { rack: Some(rack.to_owned()), ..Labels::default() },
//!     state: SectorState::Active,
//!     capacity: 1 << 30,
//!     free: 1 << 30,
//! };
//! let request = Placement {
//!     key: &BinaryKey::new("photos/2026/cat.jpg")?,
//!     copies: 2,
//!     holders: &[1],
//!     sectors: &[sector(1, "a"), sector(2, "a"), sector(3, "b")],
//!     needed: 4096,
//!     seed: 0,
//! };
//! let choice = RackAware::default().select_targets(&request)?;
//! assert_eq!(choice.chosen, [3]);
//! let why = choice.verdicts[1].to_string();
//! assert_eq!(why, "sector 2: left out, its rack has a copy already");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod choose;
mod cost_optimized;
mod rack_aware;
mod random;
#[cfg(test)]
mod tests;
mod topology;

pub use cost_optimized::{CostOptimized, Usage};
pub use rack_aware::RackAware;
pub use random::Random;
pub use topology::Topology;
