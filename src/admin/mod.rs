//! The admin API: HTTP on a listener of its own, for the commands, for scripts and for Prometheus.
//!
//! | request | does |
//! | --- | --- |
//! | `GET /status` | everything about the migration, as JSON |
//! | `POST /start` | begins the migration; with 202, not yet: it is to be asked for again |
//! | `POST /switch` `{"to": "normal", "when_ready": false}` | writes the switch key and answers what became of it |
//! | `POST /pause`, `POST /resume` | the backfill |
//! | `POST /rates` `{"keys": 5000, "bytes": null}` | its limits |
//! | `POST /verify`, `GET /verify` | starts a verification; its report, or how far it is |
//! | `POST /complete` | settles the migration |
//! | `POST /rehearse` | has the fleet do all that it does in a switch, but stay in its phase; answers what it cost |
//! | `POST /rollback` | begins the way back |
//! | `GET /preview/start`, `GET /preview/PHASE` | whether it would begin, or go to that phase, now; why, and what would come of it |
//! | `GET /rejects` | keys that the new store cannot take |
//! | `GET /metrics` | for Prometheus |
//! | `GET /` | the same for a browser |
//!
//! An error is `{"message": "…"}` with a status of 409 where something is refused because it is not
//! safe, 503 where a store does not answer, and 403 where a web page of others asks for a change.

mod metrics;
mod origin;
mod routes;

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::migration::Controller;

/// What the admin API knows.
#[derive(Clone)]
pub struct Facts {
    /// Where the etcd API is served.
    pub listen: String,
    /// Where the admin API is served.
    pub admin: String,
    /// The old store, without secrets.
    pub old: Option<String>,
    /// The new store, without secrets.
    pub new: String,
    /// The migration, if there is one.
    pub controller: Option<Arc<Controller>>,
    /// What was counted.
    pub metrics: Arc<Metrics>,
    /// When the server was started.
    pub started: Instant,
}

/// Serves the admin API until `shutdown` is cancelled.
pub async fn serve(listener: TcpListener, facts: Facts, shutdown: CancellationToken) {
    if let Some(controller) = &facts.controller {
        let migration = Box::new(metrics::Migration(Arc::clone(controller)));
        facts
            .metrics
            .register(|registry| registry.register_collector(migration));
        let controller = Arc::clone(controller);
        facts.metrics.look_up(move || {
            let controller = Arc::clone(&controller);
            Box::pin(async move { controller.look_at_mirror().await })
        });
    }
    let routes = routes::all(facts);
    let stop = async move { shutdown.cancelled().await };
    let served = axum::serve(listener, routes).with_graceful_shutdown(stop);
    if let Err(error) = served.await {
        tracing::error!(%error, "the admin API has stopped");
    }
}
