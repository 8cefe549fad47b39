//! A child process that does not outlive its test.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// A running program. Killed by its process id when dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, its output appended to the file `log`. `install` is the command that
    /// installs the program: the test fails with it when the program is missing.
    pub fn start(command: &mut Command, log: &Path, install: &str) -> Self {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .expect("the log file can be written");
        let errors = output.try_clone().expect("a file can be shared");
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn();
        match child {
            Ok(child) => Self {
                child,
                log: log.to_owned(),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => panic!(
                "this test needs the program `{}`, which is not installed. Install it with:\n\n    {install}\n",
                command.get_program().display()
            ),
            Err(error) => {
                panic!(
                    "{} cannot be started: {error}",
                    command.get_program().display()
                )
            }
        }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How the process ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits until the process has ended by itself.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("a child can be waited for")
    }

    /// Ends the process at once (SIGKILL) and waits until it is gone.
    pub fn kill(&mut self) {
        // It may have ended already; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks the process to end (SIGTERM).
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Tells the process to end without finishing anything (SIGQUIT), if it makes something of that.
    pub fn quit(&self) {
        self.signal(Signal::QUIT);
    }

    /// Stops the process without ending it (SIGSTOP): connections stay open, nothing answers.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets a paused process go on (SIGCONT).
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Everything that the process wrote.
    pub fn output(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the process runs");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
