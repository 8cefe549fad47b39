//! MySQL and MariaDB.

use std::time::Duration;

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Opts, OptsBuilder, SslOpts};
use tokio::time::timeout;
use tracing::debug;

use crate::store::url::{Database, Host, Secret, Tls};
use crate::store::{Result, tls};

/// Between the system's own questions whether a silent server is still there.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// The protocol's own limit; the server's is its own matter.
const PACKET_BYTES_MAX: usize = 1 << 30;

/// How long the server lets a connection be idle, in seconds: they are used until they break.
const IDLE_S: usize = 28_800;

/// How long it may take to end a connection by another one.
const KILL_WITHIN: Duration = Duration::from_secs(5);

/// What a connection is made with. Statements are not kept prepared.
pub(in crate::store) async fn options(database: &Database) -> Result<OptsBuilder> {
    let mut options = OptsBuilder::default()
        .user(Some(database.account.user.clone()))
        .pass(database.account.password.as_ref().map(Secret::expose))
        .db_name(Some(database.name.clone()))
        .prefer_socket(false)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(KEEPALIVE))
        .max_allowed_packet(Some(PACKET_BYTES_MAX))
        .wait_timeout(Some(IDLE_S))
        .stmt_cache_size(0);
    options = match &database.host {
        Host::Name(name) => options.ip_or_hostname(name).tcp_port(database.port),
        Host::Socket(path) => options.socket(Some(path.to_string_lossy())),
    };
    if let Tls::Verify(file) = &database.tls {
        let roots = tls::readable(tls::roots(file.as_deref()).await?);
        let tls = SslOpts::default()
            .with_root_certs(roots.map(|root| root.to_vec().into()).collect())
            .with_disable_built_in_roots(true);
        options = options.ssl_opts(Some(tls));
    }
    Ok(options)
}

/// Has the server end a connection, by its number, and what it does there: it does not notice by itself that
/// nobody waits for it any more.
pub(in crate::store) async fn kill(options: Opts, number: u32) {
    let killing = async {
        let mut conn = Conn::new(options).await?;
        conn.query_drop(format!("KILL {number}")).await?;
        conn.disconnect().await
    };
    match timeout(KILL_WITHIN, killing).await {
        Ok(Ok(())) => {}
        // It may have ended.
        Ok(Err(err)) => debug!("a connection was not ended: {err}"),
        Err(_) => debug!("a connection was not ended within {KILL_WITHIN:?}"),
    }
}
