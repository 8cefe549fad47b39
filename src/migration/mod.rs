//! The migration: its phases, and everything that moves it from one to the next.
//!
//! - [`phase`]: the state machine, pure.
//! - [`records`], [`ledger`]: what is kept in the new store, and how it is read and written.
//! - [`controller`]: one member's view of the migration; [`joining`]: how it comes to be one; [`asking`]: what
//!   people ask of it.
//! - `driver`: the loop that keeps the member in step with the fleet and runs the jobs.
//! - [`router`]: the way of every request to the store that the phase says.
//! - [`crossing`]: watches that go over from one store to the other.
//! - [`fence`], `passthrough`: the old store alone, and how that ends.
//! - [`opening`], [`held`]: leases and their keys; [`survey`], [`backfill`], [`copier`], [`rate`], [`rejects`]: moving
//!   the data.
//! - `at_base`: the pairs of the old store as all of these read them.
//! - [`verify`]: comparing it; [`foreign`]: what others change in the old store.
//! - [`mirror`], [`tail`], `rollback`, `clearing`: the way back; [`ending`]: the end.
//! - [`switch`], [`fleet`]: what operators want, and who else is there; [`rehearsal`], `stalls`: what a
//!   switch costs.
//! - [`offline`]: all of it at once, while the application is stopped.
//! - [`status`], [`troubles`]: all of it for people to see; [`preview`]: what is going to be, if they ask for it.

pub mod asking;
mod at_base;
pub mod backfill;
mod clearing;
pub mod controller;
pub mod copier;
pub mod crossing;
mod driver;
pub mod ending;
pub mod fence;
pub mod fleet;
pub mod foreign;
pub mod held;
mod jobs;
pub mod joining;
pub mod later;
pub mod ledger;
pub mod mirror;
pub mod offline;
pub mod opening;
mod passthrough;
pub mod phase;
pub mod preview;
pub mod rate;
mod reach;
pub mod records;
pub mod rehearsal;
pub mod rejects;
mod rollback;
pub mod router;
mod stalls;
pub mod status;
pub mod survey;
pub mod switch;
pub mod tail;
pub mod troubles;
pub mod verify;

pub use controller::Controller;
pub use joining::{OpenError, Options, Timing};
pub use later::OldLater;
pub use router::Router;
