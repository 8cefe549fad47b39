//! A real PostgreSQL: one that all tests of a process share, with a schema for each, and others for
//! tests that end or set up their server.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;
use tokio::sync::OnceCell;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::lasting;
use super::ports::free_port;
use super::process::Process;
use super::wait::{self, within};

/// How PostgreSQL comes onto the machine.
const INSTALL: &str = "apt-get install postgresql";

/// The account of all tests, and what proves it.
const USER: &str = "segue";
const PASSWORD: &str = "hunter2";

/// Schemas that this process has named.
static NAMED: AtomicU32 = AtomicU32::new(0);

/// A running server of one's own. Stopped, and its data removed, when dropped.
pub struct Postgres {
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

/// A new schema on the server that the tests of this process share: `postgres://…`.
pub async fn schema() -> String {
    static SHARED: OnceCell<Shared> = OnceCell::const_new();
    let shared = SHARED.get_or_init(start_shared).await;
    shared.place.schema()
}

async fn start_shared() -> Shared {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    // The shell that watches the server removes it.
    let place = Place::prepare(dir.keep());
    let ends = lasting::start_as(
        user(),
        "QUIT",
        &place.command(&[]),
        &place.dir,
        &place.log(),
    );
    place.ready(&mut || None).await.expect("PostgreSQL starts");
    Shared { place, _ends: ends }
}

impl Postgres {
    /// A server of one's own.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// A server with more arguments, such as `-cfsync=off`.
    pub async fn start_with(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let place = Place::prepare(dir.path().to_owned());
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

    /// A new schema on it: `postgres://…`.
    pub fn schema(&self) -> String {
        self.place.schema()
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.place.port
    }

    /// The process: to pause it, to resume it, to read what it wrote.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Ends the server without letting it finish anything. Its data and its port stay for
    /// [`Self::restart`].
    pub fn kill(&mut self) {
        // The immediate shutdown: as after a crash, but for the memory that is shared with the
        // system, which would be left behind.
        self.process.quit();
        self.process.wait();
    }

    /// Starts the server anew and waits until it serves.
    pub async fn restart(&mut self) {
        if self.process.ended().is_none() {
            self.kill();
        }
        self.process = self.place.start(&self.args);
        self.ready().await;
    }

    async fn ready(&mut self) {
        let process = &mut self.process;
        let ended = &mut || process.ended().map(|status| status.to_string());
        if let Err(complaint) = self.place.ready(ended).await {
            panic!("PostgreSQL does not start: {complaint}");
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.process.ended().is_none() {
            self.kill();
        }
    }
}

/// The schema that a URL names.
pub fn schema_of(url: &str) -> &str {
    let (_, schema) = url.split_once("schema=").expect("the URL has a schema");
    schema
}

/// A connection to the server of a URL, whose first schema is that of the URL.
pub async fn connect(url: &str) -> Client {
    let (server, _) = url.split_once('?').expect("the URL has a schema");
    let (client, connection) = tokio_postgres::connect(server, NoTls)
        .await
        .expect("the server answers");
    segue::tasks::spawn_owned(connection);
    let first = format!("SET search_path = \"{}\"", schema_of(url));
    client.batch_execute(&first).await.expect("a schema is set");
    client
}

/// Runs statements, and answers the first column of all rows.
pub async fn run(url: &str, text: &str) -> Vec<String> {
    let answers = connect(url).await.simple_query(text).await;
    let answers = answers.expect("the statement is right");
    let rows = answers.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    rows.collect()
}

impl Place {
    /// A place with the data of a new server.
    fn prepare(dir: PathBuf) -> Self {
        if let Some((uid, gid)) = user() {
            chown(&dir, Some(uid), Some(gid)).expect("root gives a directory away");
        }
        let password = dir.join("password");
        std::fs::write(&password, PASSWORD).expect("the directory can be written");
        let mut command = program("initdb");
        command
            .arg("--pgdata")
            .arg(dir.join("data"))
            .args(["--username", USER])
            .arg(format!("--pwfile={}", password.display()))
            .args(["--auth=scram-sha-256", "--encoding=UTF8", "--no-sync"]);
        if has_icu() {
            // Not the order of bytes, as on most machines: nothing may rely on it.
            command.args(["--locale-provider=icu", "--icu-locale=en"]);
        }
        let log = dir.join("initdb.log");
        let mut installing = Process::start(&mut command, &log, INSTALL);
        let status = installing.wait();
        assert!(status.success(), "{status}\n{}", installing.output());
        Self {
            dir,
            port: free_port(),
        }
    }

    fn log(&self) -> PathBuf {
        self.dir.join("postgres.log")
    }

    fn command(&self, args: &[String]) -> Command {
        let mut command = program("postgres");
        command
            .arg("-D")
            .arg(self.dir.join("data"))
            .arg(format!("-p{}", self.port))
            .arg(format!("-cunix_socket_directories={}", self.dir.display()))
            .args(["-clisten_addresses=127.0.0.1", "-cmax_connections=500"])
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
            let connected = tokio_postgres::connect(&self.server(), NoTls).await;
            connected.map(drop).map_err(|err| err.to_string())
        });
        let complaint = match (answers.await, status) {
            (Ok(()), None) => return Ok(()),
            (Ok(()), Some(status)) => status,
            (Err(last), _) => last,
        };
        let log = std::fs::read(self.log()).unwrap_or_default();
        Err(format!("{complaint}\n{}", String::from_utf8_lossy(&log)))
    }

    fn server(&self) -> String {
        format!(
            "postgres://{USER}:{PASSWORD}@127.0.0.1:{}/postgres",
            self.port
        )
    }

    fn schema(&self) -> String {
        let number = NAMED.fetch_add(1, Ordering::Relaxed);
        format!("{}?schema=test_{number}", self.server())
    }
}

/// Whether `initdb` can be told of an order of texts that is the same on all systems: since
/// PostgreSQL 15.
fn has_icu() -> bool {
    let help = program("initdb").arg("--help").output();
    help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains("--icu-locale"))
}

/// A program of PostgreSQL, run as a user that it agrees to.
fn program(name: &str) -> Command {
    let mut command = Command::new(find(name).unwrap_or_else(|| name.into()));
    if let Some((uid, gid)) = user() {
        command.uid(uid).gid(gid);
    }
    command.current_dir("/");
    // Settings from the environment would win.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command
}

/// Distributions keep the servers of several versions beside each other, outside of the path.
fn find(name: &str) -> Option<PathBuf> {
    let versions = |home: &str| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(home).into_iter().flatten().flatten();
        let mut versions: Vec<PathBuf> = entries.map(|entry| entry.path().join("bin")).collect();
        versions.sort();
        versions
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.extend(versions("/usr/lib/postgresql").into_iter().rev());
    places.extend(versions("/usr").into_iter().filter(|dir| {
        let dir = dir.to_string_lossy();
        dir.starts_with("/usr/pgsql-")
    }));
    let programs = places.into_iter().map(|place| place.join(name));
    programs.into_iter().find(|program| program.is_file())
}

/// The user and group to run the server as, if we are root: it refuses to run so.
fn user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").expect("there are users");
    let named = |wanted: &str| {
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let ids = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
            (name == wanted).then_some(ids)
        })
    };
    Some(
        named("postgres")
            .or_else(|| named("nobody"))
            .unwrap_or((65534, 65534)),
    )
}

/// Makes a file the server's own, for what it reads and nobody else may.
pub fn give_away(path: &Path) {
    if let Some((uid, gid)) = user() {
        chown(path, Some(uid), Some(gid)).expect("root gives a file away");
    }
}
