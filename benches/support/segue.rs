//! The real `segue` program, as operators start it and talk to it.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::servers::etcd::http_get;
use super::servers::eventually;
use super::servers::ports::free_port;
use super::servers::process::Process;

/// Between two questions how the migration stands.
const INTERVAL: Duration = Duration::from_millis(100);
/// A million keys take a minute or two.
const DEADLINE: Duration = Duration::from_mins(15);

const PROGRAM: &str = env!("CARGO_BIN_EXE_segue");

/// A running proxy. Stopped when dropped.
pub struct Segue {
    process: Process,
    port: u16,
    admin: u16,
    _dir: TempDir,
}

impl Segue {
    /// `segue serve` with these arguments, healthy.
    pub async fn serve(args: &[&str]) -> Self {
        Self::serve_with(Path::new(PROGRAM), args).await
    }

    /// The same with another build of the program.
    pub async fn serve_with(program: &Path, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let (port, admin) = (free_port(), free_port());
        let mut command = Command::new(program);
        command
            .arg("serve")
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--admin", &format!("127.0.0.1:{admin}")])
            .args(args);
        let mut process = Process::start(&mut command, &dir.path().join("segue.log"), "cargo");
        eventually("segue is healthy", async || {
            if let Some(status) = process.ended() {
                panic!("segue ended, {status}: {}", process.output());
            }
            match http_get(port, "/health").await {
                Ok(answer) if answer.contains("true") => Ok(()),
                Ok(answer) => Err(answer),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
        Self {
            process,
            port,
            admin,
            _dir: dir,
        }
    }

    /// Host and port that clients use.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Has it end by itself, which leaves its stores tidy. Dropping kills it.
    pub fn stop(mut self) {
        self.process.terminate();
        let status = self.process.wait();
        assert!(status.success(), "{status}: {}", self.process.output());
    }

    /// `segue ARGS`, told where this proxy's admin API is. Answers what it prints.
    pub async fn command(&self, args: &[&str]) -> String {
        let mut command = Command::new(PROGRAM);
        command
            .args(args)
            .args(["--admin", &format!("127.0.0.1:{}", self.admin)]);
        let output = tokio::task::spawn_blocking(move || command.output())
            .await
            .expect("it does not panic")
            .expect("it can be started");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "segue {args:?}: {said}{complained}"
        );
        said
    }

    /// What `segue status --json` would print, without starting a program for it.
    pub async fn status(&self) -> Value {
        let answer = http_get(self.admin, "/status")
            .await
            .expect("the admin API answers");
        let (_, body) = answer.split_once("\r\n\r\n").expect("head and body");
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
    }

    /// Waits until everything is copied.
    pub async fn until_copied(&self) {
        self.until("everything is copied", |status| {
            status["backfill_complete"] == Value::Bool(true)
        })
        .await;
    }

    /// Waits for a phase.
    pub async fn until_phase(&self, phase: &str) {
        self.until(phase, |status| {
            let now = status["phase"].as_str();
            now.is_some_and(|now| now.eq_ignore_ascii_case(phase))
        })
        .await;
    }

    /// Waits until the mirror is so many changes behind, or less.
    pub async fn until_mirrored(&self, behind: u64) {
        self.until("the mirror is close behind", |status| {
            let now = status["way_back"]["behind"].as_u64();
            now.is_some_and(|now| now <= behind)
        })
        .await;
    }

    /// Verifies, and flips the switch to the normal phase.
    pub async fn to_normal(&self) {
        self.command(&["verify"]).await;
        self.command(&["switch", "normal"]).await;
        self.until_phase("normal").await;
    }

    /// Asks for the status now and then, since asking takes processor time from what is measured.
    async fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) {
        let start = Instant::now();
        loop {
            let status = self.status().await;
            if holds(&status) {
                return;
            }
            assert!(start.elapsed() < DEADLINE, "{what}: still {status}");
            tokio::time::sleep(INTERVAL).await;
        }
    }
}
