//! A real MariaDB: one that all tests of a process share, with a database for each, and others for
//! tests that end or set up their server.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, OptsBuilder};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::lasting;
use super::ports::free_port;
use super::process::Process;
use super::wait::{self, within};

/// How MariaDB comes onto the machine.
const INSTALL: &str = "apt-get install mariadb-server";

/// The account of all tests, and what proves it.
const USER: &str = "segue";
const PASSWORD: &str = "hunter2";

/// Databases that this process has made.
static MADE: AtomicU32 = AtomicU32::new(0);

/// A running server of one's own. Stopped, and its data removed, when dropped.
pub struct MariaDb {
    process: Process,
    args: Vec<String>,
    place: Place,
    _dir: TempDir,
}

/// Where a server is.
#[derive(Clone)]
struct Place {
    dir: PathBuf,
    port: u16,
}

/// The server that tests share.
struct Shared {
    place: Place,
    _ends: Child,
}

/// A new database on the server that the tests of this process share: `mysql://…`.
pub async fn database() -> String {
    static SHARED: OnceCell<Shared> = OnceCell::const_new();
    let shared = SHARED.get_or_init(start_shared).await;
    shared.place.database().await
}

async fn start_shared() -> Shared {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    // The shell that watches the server removes it.
    let dir = dir.keep();
    let place = Place::prepare(dir.clone()).await;
    let ends = lasting::start(&place.command(&[]), &dir, &place.log());
    place.ready(&mut || None).await.expect("MariaDB starts");
    Shared { place, _ends: ends }
}

impl MariaDb {
    /// A server of one's own.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// A server with more arguments, such as `--innodb-flush-log-at-trx-commit=2`.
    pub async fn start_with(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let place = Place::prepare(dir.path().to_owned()).await;
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let mut server = Self {
            process: place.start(&args),
            args,
            place,
            _dir: dir,
        };
        server.ready().await;
        server
    }

    /// A new database on it: `mysql://…`.
    pub async fn database(&self) -> String {
        self.place.database().await
    }

    /// The process: to pause it, to resume it, to read what it wrote.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Ends the server at once (SIGKILL). Its data and its port stay for [`Self::restart`].
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts the server anew (after killing it, if it runs) and waits until it serves.
    pub async fn restart(&mut self) {
        self.process.kill();
        self.process = self.place.start(&self.args);
        self.ready().await;
    }

    async fn ready(&mut self) {
        let process = &mut self.process;
        let ended = &mut || process.ended().map(|status| status.to_string());
        if let Err(complaint) = self.place.ready(ended).await {
            panic!("MariaDB does not start: {complaint}");
        }
    }
}

/// Runs statements, and answers the first column of the last one's rows.
pub async fn run(url: &str, text: &str) -> Vec<String> {
    try_run(url, text).await.expect("the statement is right")
}

/// Runs statements that may fail.
pub async fn try_run(url: &str, text: &str) -> mysql_async::Result<Vec<String>> {
    let url = url.split('?').next().expect("there is a first part");
    let mut conn = Conn::from_url(url).await?;
    let mut result = conn.query_iter(text).await?;
    let mut rows = Vec::new();
    while !result.is_empty() {
        rows = result.collect::<Option<String>>().await?;
    }
    result.drop_result().await?;
    conn.disconnect().await?;
    Ok(rows.into_iter().flatten().collect())
}

impl Place {
    /// A place with the data of a new server, which is made once and then copied.
    async fn prepare(dir: PathBuf) -> Self {
        static TEMPLATE: OnceCell<(Child, PathBuf)> = OnceCell::const_new();
        let (_, template) = TEMPLATE.get_or_init(async || install()).await;
        copy(template, &dir.join("data"));
        Self {
            dir,
            port: free_port(),
        }
    }

    fn log(&self) -> PathBuf {
        self.dir.join("mariadb.log")
    }

    fn command(&self, args: &[String]) -> Command {
        let mut command = Command::new("mariadbd");
        command
            .arg("--no-defaults")
            .arg(format!("--datadir={}", self.dir.join("data").display()))
            .arg(format!(
                "--init-file={}",
                self.dir.join("data/init.sql").display()
            ))
            .arg(format!("--socket={}", self.dir.join("socket").display()))
            .arg(format!("--pid-file={}", self.dir.join("pid").display()))
            // A server that starts deletes whatever tables another one has left there, or has yet.
            .arg(format!("--tmpdir={}", self.dir.display()))
            .arg(format!("--port={}", self.port))
            .args(as_root())
            .args([
                "--bind-address=127.0.0.1",
                "--skip-name-resolve",
                "--max-connections=1000",
                "--innodb-buffer-pool-size=128M",
                "--innodb-log-file-size=32M",
                "--performance-schema=off",
            ])
            .args(args);
        command
    }

    fn start(&self, args: &[String]) -> Process {
        Process::start(&mut self.command(args), &self.log(), INSTALL)
    }

    /// Waits until the server answers, or says why it will not.
    async fn ready(&self, ended: &mut dyn FnMut() -> Option<String>) -> Result<(), String> {
        let mut status = None;
        let answers = within(wait::DEADLINE, async || {
            status = ended();
            if status.is_some() {
                return Ok(());
            }
            let opts = OptsBuilder::default()
                .ip_or_hostname("127.0.0.1")
                .tcp_port(self.port)
                .prefer_socket(false)
                .user(Some(USER))
                .pass(Some(PASSWORD));
            let conn = Conn::new(opts).await.map_err(|err| err.to_string())?;
            conn.disconnect().await.map_err(|err| err.to_string())
        });
        let complaint = match (answers.await, status) {
            (Ok(()), None) => return Ok(()),
            (Ok(()), Some(status)) => status,
            (Err(last), _) => last,
        };
        let log = std::fs::read(self.log()).unwrap_or_default();
        Err(format!("{complaint}\n{}", String::from_utf8_lossy(&log)))
    }

    async fn database(&self) -> String {
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let server = format!("mysql://{USER}:{PASSWORD}@127.0.0.1:{}", self.port);
        run(
            &format!("{server}/mysql"),
            &format!("CREATE DATABASE test{number}"),
        )
        .await;
        format!("{server}/test{number}")
    }
}

/// Makes the data of a new server, in a directory that is removed when the child is gone.
fn install() -> (Child, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let dir = dir.keep();
    // Nothing runs in it, but it ends with this process.
    let ends = lasting::start(&Command::new("true"), &dir, Path::new("/dev/null"));
    let data = dir.join("data");
    let mut command = Command::new("mariadb-install-db");
    command
        .arg("--no-defaults")
        .arg(format!("--datadir={}", data.display()))
        .args(as_root())
        .args([
            "--skip-test-db",
            "--auth-root-authentication-method=normal",
            "--innodb-log-file-size=32M",
        ])
        .stdin(Stdio::null());
    let log = dir.join("install.log");
    let mut installing = Process::start(&mut command, &log, INSTALL);
    let status = installing.wait();
    assert!(status.success(), "{status}\n{}", installing.output());
    // Read whenever the server starts.
    let grant = format!(
        "CREATE USER IF NOT EXISTS '{USER}'@'127.0.0.1' IDENTIFIED BY '{PASSWORD}';\n\
         GRANT ALL ON *.* TO '{USER}'@'127.0.0.1' WITH GRANT OPTION;\n"
    );
    std::fs::write(data.join("init.sql"), grant).expect("the directory can be written");
    (ends, data)
}

/// The server does not run as root unless it is told to.
fn as_root() -> Option<&'static str> {
    rustix::process::geteuid()
        .is_root()
        .then_some("--user=root")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory can be made");
    for entry in std::fs::read_dir(from).expect("a directory can be read") {
        let entry = entry.expect("a directory can be read");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a file has a type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("a file can be copied");
        }
    }
}
