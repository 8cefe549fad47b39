//! Hearing of what other proxies commit: by notification, and by looking where that fails.
//!
//! Each batch notifies a channel in its own transaction, so that a notification is delivered exactly
//! if the batch is committed. But it is only what makes it fast: a listening connection may be dead
//! for a while without knowing, and engines that merely speak the protocol have no `LISTEN` at all.
//! So the caller is told to look from time to time in any case.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::conn::Conn;
use super::server::Server;
use crate::store::login::postgres::{Refused, told};
use crate::tasks::spawn_owned;
use crate::types::Revision;

/// How often to look while notifications come.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How often to look without them, when somebody waits for changes and when nobody does.
const POLL_EAGER: Duration = Duration::from_millis(20);
const POLL_IDLE: Duration = Duration::from_millis(500);

/// The pause before listening again.
const PAUSE: Duration = Duration::from_millis(200);

/// What was heard.
#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    /// The highest revision that another proxy told of.
    revision: Revision,
    /// Notifications come.
    listening: bool,
    /// How often listening began: what came before then was not heard.
    begun: u64,
}

/// Listens in the background for as long as it lives.
pub(super) struct Listener {
    heard: watch::Receiver<Heard>,
    task: JoinHandle<()>,
}

/// The channel of a store.
pub(super) fn channel(identity: &str) -> String {
    format!("segue_{identity}")
}

/// What the proxy `id` says when it has committed `revision`.
pub(super) fn payload(id: &str, revision: Revision) -> String {
    format!("{id} {}", revision.0)
}

impl Listener {
    /// Begins to listen to `channel`; what `own` says there is known already.
    pub(super) fn start(server: Arc<Server>, channel: String, own: String) -> Self {
        let (tell, heard) = watch::channel(Heard::default());
        let tell = Arc::new(tell);
        let task = spawn_owned(async move {
            loop {
                if let Err(why) = listen(&server, &channel, &own, &tell).await {
                    debug!("cannot listen to PostgreSQL: {why}");
                }
                tell.send_modify(|heard| heard.listening = false);
                sleep(PAUSE).await;
            }
        });
        Self { heard, task }
    }

    /// See [`crate::store::sql::backend::Backend::moved`].
    pub(super) async fn moved(&self, known: impl Fn() -> Revision, eager: bool) {
        let mut heard = self.heard.clone();
        let begun = heard.borrow().begun;
        let listening = heard.borrow().listening;
        let look = match (listening, eager) {
            (true, _) => LOOK_EVERY,
            (false, true) => POLL_EAGER,
            (false, false) => POLL_IDLE,
        };
        let told = async {
            let news = |heard: &Heard| heard.revision > known() || heard.begun != begun;
            heard.wait_for(news).await.is_ok()
        };
        tokio::select! {
            told = told => if !told {
                // The listening task is gone, which it is only in the end.
                sleep(POLL_IDLE).await;
            },
            () = sleep(look) => {}
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Listens until the connection ends.
async fn listen(
    server: &Server,
    channel: &str,
    own: &str,
    tell: &Arc<watch::Sender<Heard>>,
) -> Result<(), Refused> {
    let hears = {
        let (tell, own) = (tell.clone(), own.to_owned());
        move |payload: &str| {
            let Some((id, revision)) = payload.split_once(' ') else {
                return;
            };
            if let Ok(revision) = revision.parse()
                && id != own
            {
                tell.send_if_modified(|heard| {
                    let news = heard.revision < Revision(revision);
                    heard.revision = heard.revision.max(Revision(revision));
                    news
                });
            }
        }
    };
    let (client, ended) = server.log_in(hears).await?;
    let conn = Conn::new(client, ended.abort_handle());
    if let Err(err) = conn.run(&format!("LISTEN {channel}")).await {
        if err.as_db_error().is_some() {
            warn!(
                "PostgreSQL does not notify, polling instead: {}",
                told(&err)
            );
            // It will not learn it soon.
            sleep(Duration::from_mins(1)).await;
        }
        return Err(err.into());
    }
    tell.send_modify(|heard| {
        heard.listening = true;
        heard.begun += 1;
    });
    // An aborted task or a lost connection.
    ended.await.ok();
    Ok(())
}
