//! Random histories of a store on a simulated machine, compared with the model step by step, with
//! reopenings, kills, power losses, maintenance and full disks in between.
//!
//! A history is a list of [`Action`]s that its seed alone determines; it begins on a [`Ground`], a
//! machine that was used before. [`run`] does the actions one by one; [`explore`] records them and
//! looks at the images that a power loss at each moment could have left. Whatever fails is made
//! short and told with what runs it again: see [`Trials`].

mod action;
mod explore;
mod ground;
mod machine;
mod record;
mod run;
mod trial;

pub use action::{Action, Maintenance, actions, actions_given};
pub use explore::{Exploration, Played, explore};
pub use ground::{Ground, Plan};
pub use machine::{Host, Machine, PATH};
pub use record::{Done, Record, difference};
pub use run::{
    Tally, check_contents, check_store, do_all, do_and_note, open, perform, reopen, run,
    run_beside, used,
};
pub use trial::{Trials, seeds};
