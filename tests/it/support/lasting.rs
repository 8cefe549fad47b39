//! A program that many tests share. It outlives each of them and ends with this process, however
//! that ends: a shell holds on to it for as long as a pipe to us is open.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Waits until the pipe is closed, then ends the program and removes its directory. Signals that the
/// terminal sends to all of us do not end the shell before that.
const WATCH: &str = r#"trap '' INT TERM HUP
dir=$1 signal=$2; shift 2
"$@" </dev/null & program=$!
cat >/dev/null
kill -"$signal" "$program"; wait "$program" 2>/dev/null
rm -rf -- "$dir""#;

/// Starts `command`, its output appended to the file `log`. `dir` is removed with it. Keep what is
/// answered: the program ends when it is gone.
pub fn start(command: &Command, dir: &Path, log: &Path) -> Child {
    start_as(None, "KILL", command, dir, log)
}

/// The same for a program that runs as another user and group, and ends on `signal`.
pub fn start_as(
    user: Option<(u32, u32)>,
    signal: &str,
    command: &Command,
    dir: &Path,
    log: &Path,
) -> Child {
    let output = File::options()
        .create(true)
        .append(true)
        .open(log)
        .expect("the log file can be written");
    let errors = output.try_clone().expect("a file can be shared");
    let mut shell = Command::new("sh");
    if let Some((uid, gid)) = user {
        shell.uid(uid).gid(gid);
    }
    shell
        .current_dir("/")
        .args(["-c", WATCH, "sh"])
        .arg(dir)
        .arg(signal)
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::piped())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .expect("there is a shell")
}
