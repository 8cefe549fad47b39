//! The built program, as an operator runs it.

use std::process::{Command, ExitStatus};

use serde_json::Value;
use tempfile::TempDir;

use super::ports::free_port;
use super::process::Process;
use super::wait::{self, within};

/// A running `segue serve`. Killed when dropped.
pub struct Segue {
    process: Process,
    args: Vec<String>,
    api_port: u16,
    admin_port: u16,
    dir: TempDir,
    starts: usize,
}

impl Segue {
    /// Starts `segue serve ARGS` on free ports and waits until it says that it is ready.
    pub async fn start<S: AsRef<str>>(args: impl IntoIterator<Item = S>) -> Self {
        match Self::try_start(args).await {
            Ok(segue) => segue,
            Err(complaint) => panic!("segue does not start: {complaint}"),
        }
    }

    /// The same, but gives back what the program wrote if it ends instead.
    pub async fn try_start<S: AsRef<str>>(
        args: impl IntoIterator<Item = S>,
    ) -> Result<Self, String> {
        let args: Vec<_> = args
            .into_iter()
            .map(|arg| arg.as_ref().to_owned())
            .collect();
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let (api_port, admin_port) = (free_port(), free_port());
        let mut process = spawn(&args, api_port, admin_port, &dir, 0);
        ready(&mut process, api_port).await?;
        Ok(Self {
            process,
            args,
            api_port,
            admin_port,
            dir,
            starts: 1,
        })
    }

    /// For etcd clients: `http://127.0.0.1:12345`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.api_port)
    }

    /// The port of the etcd API.
    pub fn port(&self) -> u16 {
        self.api_port
    }

    /// Where the admin API is: `127.0.0.1:12346`.
    pub fn admin(&self) -> String {
        format!("127.0.0.1:{}", self.admin_port)
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Ends the proxy at once (SIGKILL).
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it anew on its ports, and waits until it is ready.
    pub async fn restart(&mut self) {
        if let Err(complaint) = self.try_restart().await {
            panic!("segue does not restart: {complaint}");
        }
    }

    /// The same, but gives back what the program wrote if it does not start.
    pub async fn try_restart(&mut self) -> Result<(), String> {
        self.restart_soon();
        ready(&mut self.process, self.api_port).await
    }

    /// How the process ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.ended()
    }

    /// Everything that it wrote, over all its starts.
    pub fn output(&self) -> String {
        let logs = (0..self.starts).map(|number| self.dir.path().join(log_name(number)));
        let texts = logs.map(|log| std::fs::read(log).unwrap_or_default());
        texts
            .map(|text| String::from_utf8_lossy(&text).into_owned())
            .collect()
    }

    /// Starts it anew without waiting until it is ready.
    pub fn restart_soon(&mut self) {
        self.process.kill();
        let number = self.starts;
        self.starts += 1;
        self.process = spawn(
            &self.args,
            self.api_port,
            self.admin_port,
            &self.dir,
            number,
        );
    }

    /// Runs `segue COMMAND` against this proxy: exit code, and what it wrote to both outputs.
    pub async fn run<S: AsRef<str>>(&self, command: impl IntoIterator<Item = S>) -> Outcome {
        let args: Vec<_> = command
            .into_iter()
            .map(|arg| arg.as_ref().to_owned())
            .chain(["--admin".to_owned(), self.admin()])
            .collect();
        run(args).await
    }

    /// What `segue status --json` says; an error while it says nothing.
    pub async fn status(&self) -> Result<Value, String> {
        let outcome = self.run(["status", "--json"]).await;
        serde_json::from_str(&outcome.out)
            .map_err(|error| format!("{error}: {} {}", outcome.out, outcome.err))
    }

    /// Waits until the status fulfils `condition`.
    pub async fn until(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        wait::eventually(what, async || match self.status().await {
            Ok(status) if condition(&status) => Ok(status),
            Ok(status) => Err(status.to_string()),
            Err(complaint) => Err(complaint),
        })
        .await
    }
}

/// What a command did.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit code.
    pub code: i32,
    /// What it wrote to its standard output.
    pub out: String,
    /// What it wrote to its standard error.
    pub err: String,
}

/// Runs `segue ARGS` to its end.
pub async fn run<S: AsRef<str>>(args: impl IntoIterator<Item = S>) -> Outcome {
    let mut command = program();
    command.args(args.into_iter().map(|arg| arg.as_ref().to_owned()));
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .expect("the command does not panic")
        .expect("the built program can be run");
    Outcome {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Starts `segue ARGS` in the background; what it writes goes to the file `log`.
pub fn start<S: AsRef<str>>(args: impl IntoIterator<Item = S>, log: &std::path::Path) -> Process {
    let mut command = program();
    command.args(args.into_iter().map(|arg| arg.as_ref().to_owned()));
    Process::start(&mut command, log, "cargo build")
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_segue"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SEGUE_") {
            command.env_remove(name);
        }
    }
    command
}

fn spawn(args: &[String], api_port: u16, admin_port: u16, dir: &TempDir, number: usize) -> Process {
    let mut command = program();
    command
        .arg("serve")
        .args(["--listen", &format!("127.0.0.1:{api_port}")])
        .args(["--admin", &format!("127.0.0.1:{admin_port}")])
        .args(args)
        .current_dir(dir.path());
    let log = dir.path().join(log_name(number));
    Process::start(&mut command, &log, "cargo build")
}

fn log_name(number: usize) -> String {
    format!("segue-{number}.log")
}

/// Waits for the line that says that the proxy is ready, or says why it does not come.
async fn ready(process: &mut Process, api_port: u16) -> Result<(), String> {
    let sentence = format!("segue is ready: etcd API on 127.0.0.1:{api_port}");
    let mut ended = None;
    let said = within(wait::DEADLINE, async || {
        // Asked before the output is read, so that nothing of it is missed.
        ended = process.ended();
        let output = process.output();
        let is_ready = output.lines().any(|line| line.starts_with(&sentence));
        if is_ready || ended.is_some() {
            return Ok(());
        }
        Err(output)
    });
    match (said.await, ended) {
        (Ok(()), None) => Ok(()),
        (Ok(()), Some(status)) => Err(format!("{status}\n{}", process.output())),
        (Err(output), _) => Err(format!("not ready in time:\n{output}")),
    }
}
