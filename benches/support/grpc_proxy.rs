//! etcd's own proxy, the peer that Segue has to beat.

use std::process::Command;

use tempfile::TempDir;

use super::servers::eventually;
use super::servers::ports::free_port;
use super::servers::process::Process;

/// A running `etcd grpc-proxy`. Stopped when dropped.
pub struct GrpcProxy {
    process: Process,
    port: u16,
    _dir: TempDir,
}

impl GrpcProxy {
    /// In front of the etcd at `address`, ready to serve.
    pub async fn start(address: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let port = free_port();
        let mut command = Command::new("etcd");
        command
            .args(["grpc-proxy", "start", "--endpoints", address])
            .args(["--listen-addr", &format!("127.0.0.1:{port}")])
            .arg("--data-dir")
            .arg(dir.path().join("data"));
        let install = "apt-get install etcd-server";
        let process = Process::start(&mut command, &dir.path().join("proxy.log"), install);
        eventually("etcd grpc-proxy listens", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .map_err(|e| e.to_string())
        })
        .await;
        Self {
            process,
            port,
            _dir: dir,
        }
    }

    /// Host and port.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }
}
