//! How many files the process may have open, connections among them.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Below this it is told in the log. Every client has a connection, and so has every request to a store
/// that is under way.
const ENOUGH: u64 = 4096;

/// Raises the limit as far as the process may by itself. Most systems start programs with 1024, for the
/// sake of those that use `select`. Programs in Go do the same, etcd among them.
pub(super) fn raise_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::info!(%error, "the limit of open files cannot be raised");
    }
    let limit = getrlimit(Resource::Nofile).current;
    if let Some(limit) = limit.filter(|limit| *limit < ENOUGH) {
        tracing::info!(
            limit,
            "few files may be open at once, and each client takes one: see `ulimit -n` or `LimitNOFILE=`"
        );
    }
}
