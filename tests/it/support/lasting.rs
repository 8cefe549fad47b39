//! A program that many tests share. It outlives each of them and ends with this process, however
//! that ends: a shell holds on to it for as long as a pipe to us is open.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Waits until the pipe is closed, then ends the program and removes its directory. Signals that the
/// terminal sends to all of us do not end the shell before that.
const WATCH: &str = r#"trap '' INT TERM HUP
dir=$1; shift
"$@" </dev/null & program=$!
cat >/dev/null
kill -KILL "$program"; wait "$program" 2>/dev/null
rm -rf -- "$dir""#;

/// Starts `command`, its output appended to the file `log`. `dir` is removed with it. Keep what is
/// answered: the program ends when it is gone.
pub fn start(command: &Command, dir: &Path, log: &Path) -> Child {
    let output = File::options()
        .create(true)
        .append(true)
        .open(log)
        .expect("the log file can be written");
    let errors = output.try_clone().expect("a file can be shared");
    Command::new("sh")
        .args(["-c", WATCH, "sh"])
        .arg(dir)
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::piped())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .expect("there is a shell")
}
