//! Watchers: one for everything, one for a prefix, one for a key, one without the pairs before.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{Event, EventType, KeyValue, WatchOptions, WatchResponse, WatchStream};

use super::Actor;
use crate::cli::demo::ledger::{Facts, Seen, Watched};
use crate::cli::demo::stage::{Show, Stage, reason};
use crate::types::KeyRange;

/// Before a watch that was ended is opened again.
const AGAIN: Duration = Duration::from_millis(100);

/// Watches, and goes on behind the last event it has seen whenever it has to start anew.
pub(super) struct Watcher {
    name: String,
    page: usize,
    keys: KeyRange,
    prev_kv: bool,
    next: i64,
}

/// All watchers of a show.
pub(super) fn all(show: &Show) -> Vec<Watcher> {
    let props = &show.props;
    let root = KeyRange::prefix(props.root.clone());
    let users = KeyRange::prefix(props.key("users/"));
    let queue = KeyRange::prefix(props.key("queue/"));
    let counter = KeyRange::One(props.key("counters/orders"));
    let wanted = [
        ("everything", root, true),
        ("users", users, true),
        ("the queue", queue, false),
        ("the counter", counter, false),
    ];
    let watcher = |(name, keys, prev_kv)| Watcher::new(show, name, keys, prev_kv);
    wanted.map(watcher).into()
}

impl Watcher {
    fn new(show: &Show, name: &str, keys: KeyRange, prev_kv: bool) -> Self {
        let from = show.ledger.entries().opened + 1;
        let page = show.ledger.watch(Watched {
            name: name.into(),
            keys: keys.clone(),
            prev_kv,
            from,
            events: Vec::new(),
        });
        Self {
            name: name.into(),
            page,
            keys,
            prev_kv,
            next: from,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    async fn open(&self, stage: &Stage) -> anyhow::Result<WatchStream> {
        let (key, end) = self.keys.to_etcd();
        let mut options = WatchOptions::new().with_start_revision(self.next);
        if !end.is_empty() {
            options = options.with_range(end);
        }
        if self.prev_kv {
            options = options.with_prev_key();
        }
        let client = stage.address.connect().await?;
        let mut watches = client.watch_client();
        let opened = watches.watch(key, Some(options)).await;
        opened.map_err(|error| anyhow::anyhow!("{}", reason(&error)))
    }

    /// Notes what a message brings; an error if it ends the watch.
    fn take(&mut self, stage: &Stage, message: &WatchResponse) -> Result<(), String> {
        if message.canceled() {
            return Err(message.cancel_reason().into());
        }
        let events = message.events();
        stage
            .show
            .ledger
            .saw(self.page, events.iter().filter_map(seen));
        if let Some(last) = events.last().and_then(Event::kv) {
            self.next = self.next.max(last.mod_revision() + 1);
        }
        Ok(())
    }

    /// Watches until the curtain falls; an error if it falls early.
    async fn watch(&mut self, stage: &Stage) -> Result<(), String> {
        let mut stream = self.open(stage).await.map_err(|error| error.to_string())?;
        loop {
            let message = tokio::select! {
                () = stage.curtain.cancelled() => return Ok(()),
                message = stream.message() => message,
            };
            match message {
                Ok(Some(message)) => self.take(stage, &message)?,
                Ok(None) => return Err("the stream ended".into()),
                Err(error) => return Err(reason(&error)),
            }
        }
    }
}

fn seen(event: &Event) -> Option<Seen> {
    let kv = event.kv()?;
    let deleted = event.event_type() == EventType::Delete;
    Some(Seen {
        key: Bytes::copy_from_slice(kv.key()),
        revision: KeyValue::mod_revision(kv),
        put: (!deleted).then(|| Facts::from(kv)),
        prev: event.prev_kv().map(Facts::from),
    })
}

#[async_trait]
impl Actor for Watcher {
    async fn perform(&mut self, stage: &Stage) -> anyhow::Result<()> {
        while let Err(why) = self.watch(stage).await {
            stage.failed(format!("the watch of {} was ended: {why}", self.name));
            tokio::select! {
                () = stage.curtain.cancelled() => break,
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
        Ok(())
    }
}
