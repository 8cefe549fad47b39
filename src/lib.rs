//! Segue speaks the etcd v3 API and moves a running application from one key-value store to another.

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
    /// Everything in `proto/` as descriptors, for server reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
