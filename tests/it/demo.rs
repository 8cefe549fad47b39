//! `segue demo`, as a stranger runs it.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The demo with its temporary directory in `dir`.
fn demo(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_segue"));
    command.arg("demo").args(args).env("TMPDIR", dir);
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn run(dir: &Path, args: &[&str]) -> Output {
    demo(dir, args).output().unwrap()
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn every_promise_is_kept_and_told_in_one_object() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--json", "--keys", "2000", "--seconds", "1.5"];
    let output = run(dir.path(), &args);
    let errors = String::from_utf8_lossy(&output.stderr);
    let told: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("not one JSON object ({error}): {errors}"));
    assert!(output.status.success(), "{told:#}\n{errors}");
    for zero in [
        "failed_operations",
        "lost_keys",
        "resurrected_keys",
        "altered_keys",
        "wrong_answers",
        "wrong_sums",
        "lost_leases",
        "missed_watch_events",
        "repeated_watch_events",
        "wrong_watch_events",
    ] {
        assert_eq!(told[zero], 0, "{zero} in {told:#}");
    }
    assert_eq!(told["kept"], true, "{told:#}");
    assert_eq!(told["phase"], "settled", "{told:#}");
    let number = |pointer: &str| {
        let value = told.pointer(pointer).and_then(Value::as_f64);
        value.unwrap_or_else(|| panic!("{pointer} is missing in {told:#}"))
    };
    // The clients have made and deleted keys before the migration began.
    assert!(
        (1_900.0..4_000.0).contains(&number("/keys_moved")),
        "{told:#}"
    );
    assert!(number("/bytes_moved") > 500_000.0, "{told:#}");
    assert!(number("/operations") > 300.0, "{told:#}");
    assert!(number("/watch_events") > 100.0, "{told:#}");
    assert!(number("/longest_stall_ms") > 0.0, "{told:#}");
    for period in ["before", "during", "after"] {
        let of = |what: &str| number(&format!("/latency/{period}/{what}"));
        assert!(of("operations") > 50.0, "{told:#}");
        assert!(
            of("p50_ms") > 0.0 && of("p50_ms") <= of("p99_ms"),
            "{told:#}"
        );
        assert!(
            of("reads/p99_ms") > 0.0 && of("writes/p99_ms") > 0.0,
            "{told:#}"
        );
    }
    assert_eq!(files(dir.path()), Vec::<std::path::PathBuf>::new());
}

#[test]
fn the_files_of_a_show_can_be_kept_and_served_again() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--keep", "--keys", "200", "--seconds", "0.5"];
    let output = run(dir.path(), &args);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}");
    let kept = files(dir.path());
    assert_eq!(kept.len(), 1, "{kept:?}");
    let shown = kept[0].display().to_string();
    assert!(told.contains(&shown), "{shown} is not named in {told}");
    assert!(kept[0].join("old.db").exists() && kept[0].join("new.db").exists());
    // What was kept is data now, and not to be overwritten.
    let new = format!("sqlite:{}", kept[0].join("new.db").display());
    let again = run(dir.path(), &["--new", &new]);
    let complaint = String::from_utf8_lossy(&again.stderr);
    assert_eq!(again.status.code(), Some(2), "{complaint}");
    assert!(complaint.contains("is not empty"), "{complaint}");
}

#[test]
fn an_old_store_with_data_is_read_and_never_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let url = |name: &str| format!("sqlite:{}", dir.path().join(name).display());
    let (first, second, third) = (url("first.db"), url("second.db"), url("third.db"));
    let short = ["--json", "--keys", "300", "--seconds", "0.5"];
    let fill = [&short[..], &["--old", &first, "--new", &second]].concat();
    assert!(run(dir.path(), &fill).status.success());
    // The result of the first show is the old store of the second.
    let go_on = [&short[..], &["--old", &second, "--new", &third]].concat();
    let output = run(dir.path(), &go_on);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success(), "{told:#}");
    assert_eq!(told["latency"]["before"], Value::Null, "{told:#}");
    assert!(told["keys_moved"].as_u64().unwrap() >= 300, "{told:#}");
    // A third show finds it as the second one did: nothing was added.
    let fourth = url("fourth.db");
    let once_more = [&short[..], &["--old", &second, "--new", &fourth]].concat();
    let output = run(dir.path(), &once_more);
    let again: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(again["keys_moved"], told["keys_moved"]);
    assert_eq!(again["bytes_moved"], told["bytes_moved"]);
}

#[test]
fn an_interrupted_show_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    // From when the stores are being made, which threads of their own do, to the middle of the migration.
    let whiles = (0..40).map(|step| Duration::from_millis(2 * step));
    for after in whiles.chain([Duration::from_secs(2)]) {
        interrupt(dir.path(), after);
        let left = files(dir.path());
        assert_eq!(left, Vec::<std::path::PathBuf>::new(), "{after:?}");
    }
}

/// Interrupts a show in `dir` so long after it has begun to make its new store.
fn interrupt(dir: &Path, after: Duration) {
    let mut child = demo(dir, &["--keys", "500", "--seconds", "60"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_mins(1);
    while !files(dir).iter().any(|files| files.join("new.db").exists()) {
        assert!(Instant::now() < deadline, "the stores are not made");
        assert_eq!(child.try_wait().unwrap(), None, "it ended by itself");
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(after);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let asked = Instant::now();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(1));
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
}
