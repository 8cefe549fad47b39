//! A real etcd server with one member.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::ports::free_port;
use super::process::Process;
use super::wait::{self, within};

/// How etcd comes onto the machine.
const INSTALL: &str = "apt-get install etcd-server   (called `etcd` on older releases)";

/// How often another pair of ports is tried when somebody else was faster.
const TRIES: usize = 5;

/// A running etcd. Stopped, and its data removed, when dropped.
pub struct Etcd {
    process: Process,
    options: Options,
    client_port: u16,
    peer_port: u16,
    dir: PathBuf,
    /// Keeps the directory for as long as the server, unless the caller chose one.
    _temporary: Option<TempDir>,
}

/// How an etcd is to be started.
#[derive(Clone, Default)]
pub struct Options {
    v2: bool,
    args: Vec<String>,
    dir: Option<PathBuf>,
}

impl Options {
    /// Serves the v2 HTTP keys API as well.
    #[must_use]
    pub fn enable_v2(mut self) -> Self {
        self.v2 = true;
        self
    }

    /// Adds command line arguments.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Keeps the data in `dir`, which is left alone when the server is dropped.
    #[must_use]
    pub fn data_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Starts the server and waits until it is healthy.
    pub async fn start(self) -> Etcd {
        let temporary = match self.dir {
            Some(_) => None,
            None => Some(tempfile::tempdir().expect("a temporary directory can be made")),
        };
        let dir = match (&self.dir, &temporary) {
            (Some(dir), _) => dir.clone(),
            (None, temporary) => temporary.as_ref().expect("just made").path().to_owned(),
        };
        let mut complaint = String::new();
        for _ in 0..TRIES {
            let (client_port, peer_port) = (free_port(), free_port());
            let mut process = spawn(&self, &dir, client_port, peer_port);
            match ready(&mut process, client_port).await {
                Ok(()) => {
                    return Etcd {
                        process,
                        options: self,
                        client_port,
                        peer_port,
                        dir,
                        _temporary: temporary,
                    };
                }
                Err(why) => complaint = why,
            }
            if !complaint.contains("address already in use") {
                break;
            }
        }
        panic!("etcd does not start: {complaint}");
    }
}

impl Etcd {
    /// An empty etcd v3 that is ready to serve.
    pub async fn start() -> Self {
        Options::default().start().await
    }

    /// An empty etcd that serves the v2 HTTP keys API too.
    pub async fn start_v2() -> Self {
        Options::default().enable_v2().start().await
    }

    /// For everything that is to be set: `Etcd::with().args(["--max-txn-ops=256"]).start().await`.
    pub fn with() -> Options {
        Options::default()
    }

    /// Host and port, as in `127.0.0.1:12345`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }

    /// The client port.
    pub fn port(&self) -> u16 {
        self.client_port
    }

    /// For clients: `http://127.0.0.1:12345`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// For Segue, over the v3 API: `etcd://127.0.0.1:12345`.
    pub fn url(&self) -> String {
        format!("etcd://{}", self.address())
    }

    /// For Segue, over the v2 keys API: `etcd2://127.0.0.1:12345`.
    pub fn v2_url(&self) -> String {
        format!("etcd2://{}", self.address())
    }

    /// All keys as it holds them.
    pub async fn raw_keys(&self) -> Vec<String> {
        let mut client = etcd_client::Client::connect([self.endpoint()], None)
            .await
            .unwrap();
        let all = etcd_client::GetOptions::new().with_all_keys();
        let found = client.get("", Some(all)).await.unwrap();
        let keys = found
            .kvs()
            .iter()
            .map(|kv| kv.key_str().unwrap().to_owned());
        keys.collect()
    }

    /// The process: to pause it, to resume it, to read what it wrote.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Ends the server at once (SIGKILL). Its data and its port stay for [`Self::restart`].
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts the server anew (after killing it, if it runs) with its data and on its port, and
    /// waits until it is healthy.
    pub async fn restart(&mut self) {
        self.process.kill();
        self.process = spawn(&self.options, &self.dir, self.client_port, self.peer_port);
        if let Err(complaint) = ready(&mut self.process, self.client_port).await {
            panic!("etcd does not restart: {complaint}");
        }
    }

    /// SIGSTOP: connections stay open, nothing answers.
    pub fn pause(&self) {
        self.process.pause();
    }

    /// SIGCONT, after [`Self::pause`].
    pub fn resume(&self) {
        self.process.resume();
    }
}

/// Starts the program on these ports.
fn spawn(options: &Options, dir: &Path, client_port: u16, peer_port: u16) -> Process {
    let client = format!("http://127.0.0.1:{client_port}");
    let peer = format!("http://127.0.0.1:{peer_port}");
    let mut command = Command::new("etcd");
    // Settings from the environment, as distributions' service files use them, would win.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ETCD_") {
            command.env_remove(name);
        }
    }
    command
        .args(["--name", "test", "--logger", "zap", "--log-level", "warn"])
        .args(["--initial-cluster", &format!("test={peer}")])
        .args(["--initial-advertise-peer-urls", &peer])
        .args(["--listen-peer-urls", &peer])
        .args(["--listen-client-urls", &client])
        .args(["--advertise-client-urls", &client])
        .arg("--data-dir")
        .arg(dir.join("data"));
    if options.v2 {
        command.arg("--enable-v2");
    }
    command.args(&options.args);
    Process::start(&mut command, &dir.join("etcd.log"), INSTALL)
}

/// Waits until the server is healthy, or says why it will not be.
async fn ready(process: &mut Process, port: u16) -> Result<(), String> {
    let mut ended = None;
    let healthy = within(wait::DEADLINE, async || {
        if let Some(status) = process.ended() {
            ended = Some(status);
            return Ok(());
        }
        let answer = http_get(port, "/health").await.map_err(|e| e.to_string())?;
        if answer.contains(r#""health":"true""#) {
            Ok(())
        } else {
            Err(answer)
        }
    });
    match (healthy.await, ended) {
        (Ok(()), None) => Ok(()),
        (Ok(()), Some(status)) => Err(format!("{status}\n{}", process.output())),
        (Err(last), _) => Err(format!("{last}\n{}", process.output())),
    }
}

/// The answer to a plain HTTP request, head and body.
pub async fn http_get(port: u16, path: &str) -> io::Result<String> {
    http_request(port, "GET", path).await
}

/// The same with any method.
pub async fn http_request(port: u16, method: &str, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = format!("{method} {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
