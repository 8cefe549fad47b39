//! The one who runs the fleet: does one transition after another, with whichever proxy answers.

use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::plan::Transition;
use crate::support::etcd::http_get;
use crate::support::segue;
use crate::support::wait::within;

/// How long a command may take until another proxy is asked.
const PATIENCE: Duration = Duration::from_secs(4);

/// How long a proxy may take to tell its status.
const GLANCE: Duration = Duration::from_millis(500);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Operator {
    /// The proxies' admin APIs, `HOST:PORT`; the one to be asked next comes first.
    admins: Vec<String>,
    /// The epoch in which the latest transition was seen to be done.
    epoch: u64,
    dir: TempDir,
    tries: usize,
}

impl Operator {
    pub(super) fn of(admins: Vec<String>) -> Self {
        Self {
            admins,
            epoch: 0,
            dir: tempfile::tempdir().unwrap(),
            tries: 0,
        }
    }

    /// Does all of them, however often they have to be tried.
    pub(super) async fn carry_out(&mut self, transitions: &[(Duration, Transition)]) {
        self.until(|status| status["phase"] == "passthrough").await;
        for (wait, transition) in transitions {
            sleep(*wait).await;
            self.go(*transition).await;
        }
    }

    async fn go(&mut self, transition: Transition) {
        let begun = self.epoch;
        let (args, phase): (&[&str], _) = match transition {
            Transition::Start => (&["start"], "migration"),
            Transition::Normal => (&["switch", "normal"], "normal"),
            Transition::Migration => (&["switch", "migration"], "migration"),
            Transition::Back => (&["rollback"], "passthrough"),
        };
        loop {
            self.command(args).await;
            let done = self.see(|status| {
                let newer = status["epoch"].as_u64().is_some_and(|epoch| epoch > begun);
                newer && status["phase"] == phase && status["stage"] == "open"
            });
            if done.await {
                println!("{transition:?} is done in epoch {}", self.epoch);
                return;
            }
            sleep(PAUSE).await;
        }
    }

    /// Runs a command against the next proxy, whatever comes of it.
    async fn command(&mut self, args: &[&str]) {
        self.admins.rotate_left(1);
        let log = self.dir.path().join(format!("command-{}.log", self.tries));
        self.tries += 1;
        let admin = ["--admin", &self.admins[0]];
        let args = args.iter().copied().chain(admin);
        let mut process = segue::start(args, &log);
        // Ended when it is dropped, if it has not ended itself.
        let ended = within(PATIENCE, async || process.ended().ok_or(()));
        ended.await.ok();
    }

    /// Waits until some proxy shows such a status.
    async fn until(&mut self, is: impl Fn(&Value) -> bool + Copy) {
        while !self.see(is).await {
            sleep(PAUSE).await;
        }
    }

    /// Whether some proxy shows such a status.
    async fn see(&mut self, is: impl Fn(&Value) -> bool) -> bool {
        for admin in &self.admins {
            if let Some(status) = status(admin).await
                && is(&status)
            {
                self.epoch = self.epoch.max(status["epoch"].as_u64().unwrap_or_default());
                return true;
            }
        }
        false
    }

    /// Whether all proxies are open in the same epoch, which is the latest.
    pub(super) async fn all_agree(&self) -> Result<(), Vec<Option<Value>>> {
        let mut told = Vec::new();
        for admin in &self.admins {
            told.push(status(admin).await);
        }
        let agree = told.iter().all(|status| {
            let is = |status: &Value| status["epoch"] == self.epoch && status["stage"] == "open";
            status.as_ref().is_some_and(is)
        });
        if agree { Ok(()) } else { Err(told) }
    }
}

/// What the proxy with this admin API says, if it says something soon.
async fn status(admin: &str) -> Option<Value> {
    let (_, port) = admin.rsplit_once(':')?;
    let asked = http_get(port.parse().ok()?, "/status");
    let answer = timeout(GLANCE, asked).await.ok()?.ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    serde_json::from_str(body).ok()
}
