//! Segue itself, in this process and on free ports. It is asked and told as `segue status` and
//! `segue complete` do it, and switched as an operator with an etcd client does it.

use std::time::Duration;

use etcd_client::Client as Etcd;
use tokio::time::Instant;

use super::RELEASE;
use super::stage::{Address, reason};
use crate::cli::client::Client;
use crate::cli::{Admin, Failure};
use crate::config::Config;
use crate::migration::Timing;
use crate::migration::records::Outcome;
use crate::migration::status::Status;
use crate::server::{Server, StartError};
use crate::store::StoreError;

/// How long the members may take to switch, or to settle.
const TRANSITION: Duration = Duration::from_secs(30);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);

/// A proxy that runs.
pub(super) struct Proxy {
    server: Server,
    admin: Client,
}

impl Proxy {
    /// Starts it and waits until it serves clients.
    pub(super) async fn start(config: Config) -> Result<Self, Failure> {
        let deadline = Instant::now() + RELEASE;
        let server = loop {
            match Server::start(config.clone(), Timing::default()).await {
                Err(StartError::Store {
                    error: StoreError::Unavailable(_),
                    ..
                }) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                started => break started.map_err(|error| Failure::Failed(error.to_string()))?,
            }
        };
        server.ready().await;
        let admin = Client::new(&Admin {
            admin: server.admin.to_string(),
        });
        Ok(Self { server, admin })
    }

    /// Where clients find it.
    pub(super) fn address(&self) -> Address {
        Address {
            endpoints: vec![format!("http://{}", self.server.api)],
            account: None,
        }
    }

    /// How the migration stands.
    pub(super) async fn status(&self) -> Result<Status, Failure> {
        self.admin.get("/status").await
    }

    /// Writes the switch key and waits until all members are in the normal phase.
    pub(super) async fn switch(&self) -> Result<(), Failure> {
        let failed = |error: &etcd_client::Error| {
            Failure::Failed(format!(
                "the switch key cannot be written: {}",
                reason(error)
            ))
        };
        let endpoints = self.address().endpoints;
        let client = Etcd::connect(endpoints, None).await;
        let mut client = client.map_err(|error| failed(&error))?;
        let written = client.put("segue/switch", "normal", None).await;
        written.map_err(|error| failed(&error))?;
        self.wait_for("normal", |status| status.switch.outcome == Outcome::Refused)
            .await
    }

    /// Settles the migration.
    pub(super) async fn complete(&self) -> Result<(), Failure> {
        let _: serde_json::Value = self.admin.post("/complete", None).await?;
        self.wait_for("settled", |_| false).await?;
        let deadline = Instant::now() + TRANSITION;
        while !self.status().await?.complete {
            if Instant::now() > deadline {
                return Err(Failure::Failed(
                    "what is left of the migration in the new store is not removed".into(),
                ));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    async fn wait_for(
        &self,
        phase: &str,
        refused: impl Fn(&Status) -> bool,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + TRANSITION;
        loop {
            let status = self.status().await?;
            let acknowledged =
                |of: &crate::migration::status::MemberStatus| of.acknowledged >= status.epoch;
            if status.phase == phase && status.members.iter().all(acknowledged) {
                return Ok(());
            }
            if refused(&status) {
                let why = &status.switch.reason;
                return Err(Failure::Failed(format!("the switch was refused: {why}")));
            }
            if Instant::now() > deadline {
                let seconds = TRANSITION.as_secs();
                return Err(Failure::Failed(format!(
                    "the {phase} phase was not reached within {seconds} s: {}",
                    trouble(&status)
                )));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Lets requests finish and stops.
    pub(super) async fn stop(self) -> Result<(), Failure> {
        match self.server.stop().await.as_slice() {
            [] => Ok(()),
            left => Err(Failure::Failed(format!(
                "these parts of segue did not end in time: {}",
                left.join(", ")
            ))),
        }
    }
}

/// What keeps the migration from going on, as far as it knows.
pub(super) fn trouble(status: &Status) -> String {
    let trouble = status.trouble.as_ref().or(status.blocked.as_ref());
    trouble.map_or("it does not say why".into(), Clone::clone)
}
