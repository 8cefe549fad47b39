//! Segue speaks the etcd v3 API and moves a running application from one key-value store to another,
//! so that no client can tell from any answer that a migration takes place.
//!
//! # The one rule
//!
//! ```text
//! view(key) = if new.claimed(key) { new.get(key) } else { old.get(key) }
//! ```
//!
//! A *claim* is the new store's durable note that it decides about a key, live or deleted. What has to
//! stay true for the rule to hold is listed in [`overlay`], and what each store does for it in
//! [`store::new`].
//!
//! # The way of a request
//!
//! ```text
//! client ──► api ──► migration::Router ──► overlay ──┬──► store (new), under its epoch's guard
//!            │       one load of the route           └──► store (old), above the frontier only
//!            └ wire format to types, validation, errors to etcd's codes
//! ```
//!
//! In the normal phase the router sends requests to the new store itself, still under a guard; when
//! the migration is settled, or where there is none, without one. A guard is compared inside the
//! store, in the transaction or snapshot that it guards: a member that is behind is told by the store,
//! whatever it believes. So nothing about safety hangs on members learning of a change in time.
//!
//! # The house, in reading order; each module uses only those below it
//!
//! | module | what is in it |
//! | --- | --- |
//! | [`cli`] | one file per command; they talk to a running proxy through its admin API. `segue demo` |
//! | [`server`], [`config`] | configuration in, running tasks out |
//! | [`admin`] | status, commands, metrics and a page for people, over HTTP |
//! | [`api`] | one file per service of etcd's; validation; errors |
//! | [`migration`] | phase machine (pure), controller, fleet, switch, backfill, verification, mirror, rollback |
//! | [`overlay`] | the one rule: read, merge, copy-up, transaction |
//! | [`store`] | the traits and their errors; memory, SQL (SQLite, PostgreSQL, MySQL), etcd v3, etcd v2, existing tables |
//! | [`wire`], [`proto`] | etcd's messages, and what they are in our types |
//! | [`tasks`], [`metrics`] | tasks with a name, an owner and an end; what is counted |
//! | [`types`] | keys, ranges, pairs, revisions, requests, events; no I/O |
//!
//! # Where the state is
//!
//! Nowhere but in the new store. The migration's *records* (state, shards of the backfill, members,
//! rejects, report) lie beside its keys, are never seen by clients, and change only by compare-and-put.
//! A cursor of the backfill is written in the transaction of the keys that it vouches for. The *line*
//! (epoch, claims, base revision) changes in the transaction that changes the state. A member can be
//! killed at any moment, and another one carries on from what it reads there. When the migration is settled
//! and everybody knows it, all of that goes, the state last ([`migration::ending`]): what is left is the
//! application's keys. In the old store the fence stays, for members that have slept through it all.
//!
//! # Revisions
//!
//! The new store's first change is the one after the *base*, the last revision of the old store.
//! Copied keys keep their numbers: in columns where the store is ours (SQL, memory), in claim records
//! where it assigns its own (etcd v3), whose revisions are shifted by a fixed offset. There, copy-ups
//! and records take revisions too, so that clients see gaps; and the offset stays behind when the
//! migration is settled, in a key of its own, or the revisions of an etcd that is younger than the old store
//! would go back. Where it is zero, that key goes with the rest.
//!
//! # How we know
//!
//! `tests/it/contract` asks the same of every store and of the overlay over pairs of them.
//! `tests/it/overlay` compares migrations, step by step, with a store that never migrates, and breaks
//! each fact of the rule to see that it is noticed. `tests/it/differential` puts the same requests to
//! etcd and to Segue, `tests/it/twin` a long script to an etcd that never migrates and to Segue in all
//! phases. `tests/it/history` checks what clients recorded while real servers migrated and proxies
//! were killed; in `tests/it/storm` whatever can go wrong does so all the time. `tests/model` is the
//! protocol as a specification that runs: a model checker tries every order of the steps of all actors,
//! and finds what goes wrong without each rule.

pub mod admin;
pub mod api;
pub mod cli;
pub mod config;
pub mod metrics;
pub mod migration;
pub mod overlay;
pub mod server;
pub mod store;
pub mod tasks;
pub mod types;
pub mod wire;

/// The etcd v3 API as generated from `proto/`.
#[allow(
    missing_docs,
    clippy::pedantic,
    reason = "generated code offends as its generator likes"
)]
pub mod proto {
    /// Keys, values and events.
    pub mod mvccpb {
        tonic::include_proto!("mvccpb");
    }
    /// Services and their messages.
    pub mod etcdserverpb {
        tonic::include_proto!("etcdserverpb");
    }
    /// Locks as a service.
    pub mod v3lockpb {
        tonic::include_proto!("v3lockpb");
    }
    /// Elections as a service.
    pub mod v3electionpb {
        tonic::include_proto!("v3electionpb");
    }
    /// Everything in `proto/` as descriptors, for server reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
