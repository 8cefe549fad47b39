//! A process that may not have many files open.

use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::etcd::http_get;
use crate::support::process::Process;
use crate::support::{eventually, ports};

const ONCE: Duration = Duration::from_secs(20);

struct Limited {
    process: Process,
    port: u16,
    /// Gone with the process.
    _dir: TempDir,
}

impl Limited {
    /// Starts the program behind `ulimit LIMIT`, and waits until it serves.
    async fn start(limit: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (port, admin) = (ports::free_port(), ports::free_port());
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!(r#"ulimit {limit} && exec "$0" "$@""#))
            .args([env!("CARGO_BIN_EXE_segue"), "serve", "--new", "memory:"])
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--admin", &format!("127.0.0.1:{admin}")]);
        let process = Process::start(&mut command, &dir.path().join("log"), "apt install dash");
        eventually("segue serves", async || {
            let output = process.output();
            let ready = output.contains("segue is ready");
            if ready { Ok(()) } else { Err(output) }
        })
        .await;
        Self {
            process,
            port,
            _dir: dir,
        }
    }

    async fn connect(&self, count: usize) -> Vec<TcpStream> {
        let mut streams = Vec::new();
        for _ in 0..count {
            streams.push(TcpStream::connect(("127.0.0.1", self.port)).await.unwrap());
        }
        streams
    }

    async fn is_healthy(&self) {
        let health = timeout(ONCE, http_get(self.port, "/health")).await;
        let health = health.expect("an answer in time").unwrap();
        assert!(health.contains("200 OK"), "{health}");
    }
}

#[tokio::test]
async fn as_many_clients_are_served_as_the_hard_limit_of_open_files_allows() {
    let segue = Limited::start("-S -n 64").await;
    let _clients = segue.connect(100).await;
    segue.is_healthy().await;
}

#[tokio::test]
async fn a_limit_that_is_reached_is_told_now_and_then_and_does_no_harm_later() {
    let begun = Instant::now();
    let segue = Limited::start("-n 64").await;
    let started = segue.process.output();
    assert!(
        started.contains("few files may be open at once"),
        "{started}"
    );
    assert!(started.contains("limit=64"), "{started}");
    let clients = segue.connect(100).await;
    let told = eventually("told of for the second time", async || {
        let output = segue.process.output();
        let told = output.matches("connections could not be accepted").count();
        if told > 1 { Ok(told) } else { Err(output) }
    })
    .await;
    let seconds = begun.elapsed().as_secs();
    assert!(told as u64 <= seconds + 1, "{told} times in {seconds} s");
    drop(clients);
    segue.is_healthy().await;
}
