//! PostgreSQL.

use std::fmt;
use std::future::poll_fn;
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres::{AsyncMessage, CancelToken, Client, Config, Connection, Error, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;
use tracing::debug;

use crate::store::url::{Database, Host, Secret, Tls};
use crate::store::{Result, tls};
use crate::tasks::spawn_owned;

/// How long making a connection may take, TLS and login included.
pub(in crate::store) const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// A server, and the account there.
pub(in crate::store) struct Login {
    config: Config,
    tls: Option<MakeRustlsConnect>,
}

/// Why there is no connection.
pub(in crate::store) enum Refused {
    /// The server or the way there, for this reason.
    By(Error),
    /// Nobody said anything in time.
    Silent,
}

impl From<Error> for Refused {
    fn from(err: Error) -> Self {
        Self::By(err)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::By(err) => f.write_str(&told(err)),
            Self::Silent => write!(f, "no answer within {CONNECT_WITHIN:?}"),
        }
    }
}

impl Login {
    /// Reads certificates, but does not connect yet.
    pub(in crate::store) async fn new(database: &Database) -> Result<Self> {
        let mut config = Config::new();
        config
            .user(&database.account.user)
            .dbname(&database.name)
            .port(database.port)
            .application_name("segue")
            .connect_timeout(CONNECT_WITHIN)
            // A server that has vanished is noticed by then, also while an answer is waited for.
            .tcp_user_timeout(Duration::from_secs(20))
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(2);
        if let Some(password) = &database.account.password {
            config.password(Secret::expose(password));
        }
        match &database.host {
            Host::Name(host) => config.host(host),
            Host::Socket(path) => config.host_path(path),
        };
        let tls = match &database.tls {
            Tls::Off => {
                config.ssl_mode(SslMode::Disable);
                None
            }
            Tls::Verify(file) => {
                config.ssl_mode(SslMode::Require);
                let client = tls::client_config(file.as_deref()).await?;
                Some(MakeRustlsConnect::new(client))
            }
        };
        Ok(Self { config, tls })
    }

    /// The same, if the server takes writes. Others are not logged in to.
    pub(in crate::store) fn that_takes_writes(mut self) -> Self {
        let primary = TargetSessionAttrs::ReadWrite;
        self.config.target_session_attrs(primary);
        self
    }

    /// A session that calls `hears` with the payload of each notification, until the client is
    /// dropped or the session ends; then the handle is done.
    pub(in crate::store) async fn log_in(
        &self,
        hears: impl Fn(&str) + Send + Sync + 'static,
    ) -> std::result::Result<(Client, JoinHandle<()>), Refused> {
        let connecting = async {
            Ok::<_, Error>(match &self.tls {
                None => {
                    let (client, connection) = Box::pin(self.config.connect(NoTls)).await?;
                    (client, spawn_owned(carry(connection, hears)))
                }
                Some(tls) => {
                    let (client, connection) = Box::pin(self.config.connect(tls.clone())).await?;
                    (client, spawn_owned(carry(connection, hears)))
                }
            })
        };
        // The driver's own deadline is for the way there alone, not for what is said there.
        let connected = timeout(CONNECT_WITHIN, connecting).await;
        Ok(connected.map_err(|_| Refused::Silent)??)
    }

    /// Has the server cancel what it does in a session: when this is done it has been told so. Answers
    /// whether it was.
    pub(in crate::store) async fn cancel(&self, session: CancelToken) -> bool {
        let telling = async {
            match &self.tls {
                None => session.cancel_query(NoTls).await,
                Some(tls) => session.cancel_query(tls.clone()).await,
            }
        };
        let told = timeout(CONNECT_WITHIN, telling).await;
        matches!(told, Ok(Ok(())))
    }
}

/// Moves a connection's bytes until it ends, and tells the payload of each notification. The client
/// notices by itself when it has ended.
async fn carry<S, T>(mut connection: Connection<S, T>, hears: impl Fn(&str))
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let moving = poll_fn(|cx| {
        loop {
            match ready!(connection.poll_message(cx)) {
                Some(Ok(AsyncMessage::Notification(news))) => hears(news.payload()),
                Some(Ok(_)) => {}
                Some(Err(err)) => return Poll::Ready(Err(err)),
                None => return Poll::Ready(Ok(())),
            }
        }
    });
    if let Err(err) = moving.await {
        debug!("a connection to PostgreSQL ended: {}", told(&err));
    }
}

/// The error and what is behind it, in one line. Drivers' errors hold no passwords, and of the
/// server's the detail is left out, which may quote what is in the tables.
pub(in crate::store) fn told(err: &Error) -> String {
    if let Some(db) = err.as_db_error() {
        return format!("{} ({})", db.message(), db.code().code());
    }
    let mut text = err.to_string();
    let mut source = std::error::Error::source(err);
    while let Some(err) = source {
        let more = err.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = err.source();
    }
    text
}
