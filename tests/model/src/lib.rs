//! The protocol of a migration as code that a model checker explores: a specification that runs.
//!
//! Two members of the fleet, two keys, two stores. Each [step](model) of an actor is at most one
//! transaction of one store, and between any two steps any other actor may come in: so a member that
//! stops, is cut off or is slow is one whose next step comes late. Every order of all steps is tried,
//! within the bounds of a [scenario]. What clients are told is compared with a store that
//! never migrates ([`spec`]), at each step; and what both stores hold together must at any time be
//! what that one holds ([`state`]).
//!
//! In reading order:
//!
//! | module | what is in it |
//! | --- | --- |
//! | [`spec`] | requests, answers, and the store that never migrates |
//! | [`record`] | phases, and the state record that moves by compare-and-put |
//! | [`old`] | the old store: pairs, fence, position of the mirror, a lease that nothing stops |
//! | [`new`] | the new store: claims, whiteouts, frontier, log; and the one rule |
//! | [`member`] | a client's request, in as many steps as it takes in each phase |
//! | [`transition`] | start, switch, rollback, settle: step by step, by any member |
//! | [`backfill`], [`mirror`] | the two copiers |
//! | [`rules`] | what makes it safe; each can be switched off |
//! | [`state`], [`model`], [`reached`] | what must hold, who may do what, what must be come by |
//! | [`scenario`], [`scenarios`], [`check`] | the bounds, and the run |
//!
//! The migration and normal phases, their overlay, backfill, claims and epochs are as the code has
//! them. Passthrough, the fence in the old store, the mirror and the way back are modelled as they
//! are designed.
//!
//! Simplified: a pair is its revision, which stands for value, create revision and version; every
//! write is unlike all others. Verification is taken for granted when the backfill is complete, and
//! keys that the new store cannot take do not occur. Removing what a migration left behind is one
//! step. A lease may end at any time after it was granted: deadlines and keep-alives are not
//! modelled, nor are watchers themselves, compaction, commits that a store forgets, stores without
//! transactions, and clients that write past the proxy.

pub mod check;
pub mod rules;
pub mod scenario;
pub mod scenarios;

mod backfill;
mod member;
mod mirror;
mod model;
mod new;
mod old;
mod reached;
mod record;
mod spec;
mod state;
mod transition;

pub use check::{Explored, Problem, explore, explore_without};
pub use rules::Rule;
pub use scenario::Scenario;
pub use scenarios::SCENARIOS;
