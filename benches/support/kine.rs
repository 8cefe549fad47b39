//! kine, the peer that serves Kubernetes' part of etcd's API on SQL databases.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;
use tokio::net::TcpStream;

use super::servers::eventually;
use super::servers::ports::free_port;
use super::servers::process::Process;

/// The Go module.
const MODULE: &str = "github.com/k3s-io/kine";
/// The version that figures are about.
pub const VERSION: &str = "v0.17.5";

/// How kine uses its database.
#[derive(Clone, Copy, Debug)]
pub enum Pool {
    /// As it comes: it keeps twenty connections, and under more requests at once opens others for one use.
    /// A server in another process has to be made for each of them in PostgreSQL.
    AsItComes,
    /// It keeps as many as it ever opens. To limit how many it opens is no help: with a limit of 32, 128
    /// requests in flight wait for each other forever, since some of them need a second connection
    /// while they hold one.
    Large,
}

impl Pool {
    /// Both.
    pub const ALL: [Self; 2] = [Self::AsItComes, Self::Large];

    /// What kine is called that uses it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AsItComes => "kine",
            Self::Large => "kine, large pool",
        }
    }

    const fn args(self) -> &'static [&'static str] {
        match self {
            Self::AsItComes => &[],
            Self::Large => &["--datastore-max-idle-connections", "300"],
        }
    }
}

/// The built program: in the target directory, built if it is not there. Or why there is none.
pub fn program() -> Result<PathBuf, String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("target/bench")
        .join(format!("kine-{VERSION}"));
    let program = dir.join("kine");
    if program.exists() {
        return Ok(program);
    }
    let version = Command::new("go")
        .arg("version")
        .stderr(Stdio::null())
        .output();
    if !version.is_ok_and(|output| output.status.success()) {
        return Err("there is no Go toolchain to build it with".into());
    }
    println!("  building kine {VERSION}, which takes some minutes, once");
    std::fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
    let built = Command::new("go")
        .arg("install")
        .arg(format!("{MODULE}@{VERSION}"))
        .current_dir(&dir)
        .env("GOBIN", &dir)
        // Its SQLite is C.
        .env("CGO_ENABLED", "1")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if program.exists() {
        Ok(program)
    } else {
        let complaint = String::from_utf8_lossy(&built.stderr);
        let lines: Vec<&str> = complaint.trim().lines().collect();
        let last = lines.len().saturating_sub(5);
        Err(format!("it does not build: {}", lines[last..].join("; ")))
    }
}

/// A running kine. Stopped when dropped.
pub struct Kine {
    _process: Process,
    port: u16,
    _dir: TempDir,
}

impl Kine {
    /// On the database at `endpoint`, ready to serve.
    pub async fn start(program: &Path, endpoint: &str, pool: Pool) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let port = free_port();
        let mut command = Command::new(program);
        command
            .args(["--listen-address", &format!("127.0.0.1:{port}")])
            .args(["--metrics-bind-address", "0"])
            .args(pool.args())
            .args(["--endpoint", endpoint])
            .current_dir(dir.path());
        let install = "go install github.com/k3s-io/kine@latest";
        let mut process = Process::start(&mut command, &dir.path().join("kine.log"), install);
        eventually("kine listens", async || {
            if let Some(status) = process.ended() {
                panic!("kine ended, {status}: {}", process.output());
            }
            TcpStream::connect(("127.0.0.1", port))
                .await
                .map_err(|error| error.to_string())
        })
        .await;
        Self {
            _process: process,
            port,
            _dir: dir,
        }
    }

    /// Host and port.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}
