//! The commands in the hands of people and scripts: outputs that cannot be written, progress, exit codes.

use std::path::Path;

use ::segue::migration::status::Status;
use ::segue::tasks::spawn_owned;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::etcd::http_get;
use crate::support::process::Process;
use crate::support::segue::{self, Segue, run};
use crate::support::{Etcd, eventually, ports};

fn sqlite(dir: &TempDir, name: &str) -> String {
    format!("sqlite:{}", dir.path().join(name).display())
}

/// A `SQLite` store that has held so many keys for clients.
async fn filled(dir: &TempDir, name: &str, keys: usize) -> String {
    let url = sqlite(dir, name);
    let segue = Segue::start(["--new", &url]).await;
    let endpoint = [segue.endpoint()];
    let mut client = etcd_client::Client::connect(endpoint, None).await.unwrap();
    for key in 0..keys {
        let key = format!("key/{key:05}");
        client.put(key, "old", None).await.unwrap();
    }
    url
}

/// The body that the admin API answers with, as JSON.
async fn ask(port: u16, path: &str) -> Result<Value, String> {
    let answer = http_get(port, path).await.map_err(|e| e.to_string())?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).map_err(|error| format!("{error}: {answer}"))
}

/// Starts `segue ARGS` with an errors' output that takes nothing; the other one goes to `log`.
#[cfg(target_os = "linux")]
fn with_full_disk(args: &[&str], log: &Path) -> Process {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", r#"exec "$0" "$@" 2> /dev/full"#]);
    command.arg(env!("CARGO_BIN_EXE_segue")).args(args);
    Process::start(&mut command, log, "apt install dash")
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_log_that_cannot_be_written_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (filled(&dir, "old.db", 20).await, sqlite(&dir, "new.db"));
    let port = ports::free_port();
    let admin = format!("127.0.0.1:{port}");
    let listen = format!("127.0.0.1:{}", ports::free_port());
    let mut args = vec!["serve", "--old", &old, "--new", &new];
    args.extend(["--listen", &listen, "--admin", &admin]);
    let mut process = with_full_disk(&args, &dir.path().join("log"));
    eventually("the migration goes on", async || {
        match ask(port, "/status").await {
            Ok(status) if status["verified"] == true => Ok(()),
            other => Err((other, process.output())),
        }
    })
    .await;
    assert!(process.output().contains("segue is ready"));
    process.terminate();
    let ended = eventually("ended", async || process.ended().ok_or("runs")).await;
    assert!(ended.success(), "{ended:?}: {}", process.output());

    // What a command has to say is lost, and its exit code is not.
    let mut process = with_full_disk(&["status", "--admin", &admin], &dir.path().join("log"));
    let ended = eventually("ended", async || process.ended().ok_or("runs")).await;
    assert_eq!(ended.code(), Some(1));
}

#[tokio::test]
async fn a_migration_that_has_begun_is_not_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (filled(&dir, "old.db", 20).await, sqlite(&dir, "new.db"));
    let args = ["--old", &old, "--new", &new, "--start", "passthrough"];
    let segue = Segue::start(args).await;
    let foreseen = segue.run(["start", "--dry-run"]).await;
    assert_eq!(foreseen.code, 0, "{foreseen:?}");
    let started = segue.run(["start"]).await;
    assert_eq!(started.code, 0, "{started:?}");
    assert!(started.out.contains("has begun"), "{started:?}");
    for (phase, hint) in [
        ("migration", "`segue status` shows"),
        ("normal", "`segue switch migration` goes back"),
    ] {
        if phase == "normal" {
            let switched = segue.run(["switch", "--when-ready", "--wait"]).await;
            assert_eq!(switched.code, 0, "{switched:?}");
        }
        let before = segue.status().await.unwrap();
        assert_eq!(before["phase"], phase);
        for args in [vec!["start", "--dry-run"], vec!["start"]] {
            let refused = segue.run(&args).await;
            assert_eq!(refused.code, 3, "{args:?}: {refused:?}");
            assert!(refused.err.contains(hint), "{args:?}: {refused:?}");
        }
        let now = segue.status().await.unwrap();
        assert_eq!(now["epoch"], before["epoch"], "{now}");
    }
}

/// What is answered to `POST PATH` with these headers.
async fn post(port: u16, path: &str, headers: &[(&str, &str)]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut request = format!("POST {path} HTTP/1.0\r\nContent-Length: 0\r\n");
    for (name, value) in headers {
        request.extend([*name, ": ", *value, "\r\n"]);
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_web_page_of_others_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (filled(&dir, "old.db", 3).await, sqlite(&dir, "new.db"));
    let segue = Segue::start(["--old", &old, "--new", &new]).await;
    let host = segue.admin();
    let port = host.rsplit_once(':').unwrap().1.parse().unwrap();
    let own = format!("http://{host}");
    for headers in [
        [("Host", &*host), ("Origin", "https://evil.example")],
        [("Host", &host), ("Sec-Fetch-Site", "cross-site")],
        [("Host", "evil.example"), ("Origin", "http://evil.example")],
    ] {
        for path in ["/pause", "/switch", "/complete", "/rollback", "/start"] {
            let answer = post(port, path, &headers).await;
            assert!(answer.starts_with("HTTP/1.0 403"), "{path}: {answer}");
            assert!(answer.contains("another origin"), "{path}: {answer}");
        }
    }
    assert_eq!(segue.status().await.unwrap()["paused"], false);
    for headers in [
        [("Host", &*host), ("Origin", &*own)],
        [("Host", &host), ("Sec-Fetch-Site", "none")],
        [("Host", &host), ("Accept", "*/*")],
    ] {
        let answer = post(port, "/pause", &headers).await;
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    }
}

/// The value of a gauge, if it is there.
async fn gauge(port: u16, name: &str) -> Option<u64> {
    let metrics = http_get(port, "/metrics").await.unwrap();
    let lines = metrics.lines().filter_map(|line| line.split_once(' '));
    let mut values = lines.filter(|(found, _)| *found == name);
    values.next().map(|(_, value)| value.parse().unwrap())
}

#[tokio::test]
async fn metrics_tell_of_trouble_with_a_job_and_of_the_mirror() {
    let dir = tempfile::tempdir().unwrap();
    let mut old = Etcd::start().await;
    let new = sqlite(&dir, "new.db");
    let segue = Segue::start(["--old", &old.url(), "--new", &new]).await;
    let admin: u16 = segue.admin().rsplit_once(':').unwrap().1.parse().unwrap();
    segue
        .until("verified", |status| status["verified"] == true)
        .await;
    eventually("the mirror has caught up, on both ports", async || {
        let found = (
            gauge(admin, "segue_mirror_behind").await,
            gauge(segue.port(), "segue_mirror_behind").await,
        );
        if found == (Some(0), Some(0)) {
            Ok(())
        } else {
            Err(found)
        }
    })
    .await;
    assert_eq!(gauge(admin, "segue_trouble").await, Some(0));

    old.kill();
    let mut client = etcd_client::Client::connect([segue.endpoint()], None)
        .await
        .unwrap();
    client.put("a", "b", None).await.unwrap();
    eventually("trouble is told", async || {
        let found = (
            gauge(admin, "segue_trouble").await,
            gauge(admin, "segue_mirror_behind").await,
        );
        if found == (Some(1), None) {
            Ok(())
        } else {
            Err(found)
        }
    })
    .await;

    old.restart().await;
    eventually("the trouble is over", async || {
        let found = (
            gauge(admin, "segue_trouble").await,
            gauge(admin, "segue_mirror_behind").await,
        );
        if found == (Some(0), Some(0)) {
            Ok(())
        } else {
            Err(found)
        }
    })
    .await;
    assert_eq!(segue.status().await.unwrap()["trouble"], Value::Null);
}

#[tokio::test]
async fn an_old_store_that_cannot_be_opened_is_told_of_beside_a_new_one_that_is_not_empty() {
    let dir = tempfile::tempdir().unwrap();
    let used = filled(&dir, "used.db", 1).await;
    let missing = sqlite(&dir, "missing.db");
    let stores = ["--old", &missing, "--new", &used];
    let copied = run(["copy"].iter().chain(&stores).copied()).await;
    assert_eq!(copied.code, 1, "{copied:?}");
    assert!(copied.err.contains("the old store"), "{copied:?}");
    assert!(copied.err.contains("there is no file"), "{copied:?}");
    assert!(!copied.err.contains("--allow-nonempty"), "{copied:?}");

    let complaint = Segue::try_start(stores).await.err().expect("it is refused");
    for part in ["is not empty", "And the old store", "there is no file"] {
        assert!(complaint.contains(part), "{part:?}: {complaint}");
    }
}

#[tokio::test]
async fn a_way_back_that_would_be_refused_is_not_told_to_be_open() {
    let dir = tempfile::tempdir().unwrap();
    let old = Etcd::start().await;
    let mut direct = etcd_client::Client::connect([old.endpoint()], None)
        .await
        .unwrap();
    direct.put("a", "old", None).await.unwrap();
    let new = sqlite(&dir, "new.db");
    let segue = Segue::start(["--old", &old.url(), "--new", &new]).await;
    let mut client = etcd_client::Client::connect([segue.endpoint()], None)
        .await
        .unwrap();
    client.put("a", "new", None).await.unwrap();
    segue
        .until("mirrored", |status| {
            status["verified"] == true && status["way_back"]["behind"] == 0
        })
        .await;
    let verified = segue.run(["verify"]).await;
    assert_eq!(verified.code, 0, "{verified:?}");
    assert!(verified.out.ends_with("the stores agree\n"), "{verified:?}");
    assert!(
        verified.out.contains(" 1 are in the old store as they"),
        "{verified:?}"
    );
    let told = segue.run(["status"]).await.out;
    assert!(told.contains("way back    open"), "{told}");

    direct.put("a", "foreign", None).await.unwrap();
    let verified = segue.run(["verify"]).await;
    assert_eq!(verified.code, 1, "{verified:?}");
    assert!(verified.out.contains("Unmirrored a"), "{verified:?}");
    assert!(
        verified.err.contains("a rollback would be refused"),
        "{verified:?}"
    );
    let told = segue.run(["status"]).await.out;
    assert!(told.contains("way back    closed: the verif"), "{told}");
    let refused = segue.run(["rollback"]).await;
    assert_eq!(refused.code, 3, "{refused:?}");

    // The mirror replays it again, and a verification finds that.
    client.put("a", "newer", None).await.unwrap();
    eventually("the way back is open again", async || {
        segue.run(["verify"]).await;
        match segue.run(["rollback", "--dry-run"]).await {
            foreseen if foreseen.code == 0 => Ok(()),
            foreseen => Err(foreseen),
        }
    })
    .await;
}

#[tokio::test]
async fn a_start_without_the_old_store_is_foreseen_and_waits_without_chatter() {
    let dir = tempfile::tempdir().unwrap();
    let mut old = Etcd::start().await;
    let new = sqlite(&dir, "new.db");
    let url = old.url();
    let args = ["--old", &url, "--new", &new, "--start", "passthrough"];
    let segue = Segue::start(args).await;
    let foreseen = segue.run(["start", "--dry-run"]).await;
    assert_eq!(foreseen.code, 0, "{foreseen:?}");

    old.kill();
    let foreseen = segue.run(["start", "--dry-run"]).await;
    assert_eq!(foreseen.code, 3, "{foreseen:?}");
    assert!(foreseen.err.contains("the old store: "), "{foreseen:?}");
    assert_eq!(segue.status().await.unwrap()["phase"], "passthrough");

    let log = dir.path().join("start.log");
    let mut start = segue::start(["start", "--admin", &segue.admin()], &log);
    let waits = |output: &str| {
        output
            .lines()
            .filter(|l| l.starts_with("waiting: "))
            .count()
    };
    eventually("it says what it waits for", async || {
        let output = start.output();
        if waits(&output) > 0 {
            Ok(())
        } else {
            Err(output)
        }
    })
    .await;
    // Long enough for a dozen looks.
    for _ in 0..5 {
        segue.status().await.unwrap();
    }
    old.restart().await;
    let ended = eventually("it has begun", async || start.ended().ok_or(start.output())).await;
    assert!(ended.success(), "{}", start.output());
    let output = start.output();
    let lines: Vec<_> = output.lines().collect();
    assert!(lines.windows(2).all(|two| two[0] != two[1]), "{output}");
}

#[tokio::test]
async fn the_status_is_told_as_it_was_last_seen_when_the_new_store_is_down() {
    let dir = tempfile::tempdir().unwrap();
    let old = filled(&dir, "old.db", 20).await;
    let mut new = Etcd::start().await;
    let mut segue = Segue::start(["--old", &old, "--new", &new.url()]).await;
    segue
        .until("verified", |status| status["verified"] == true)
        .await;
    let log = dir.path().join("watch.log");
    let args = ["status", "--watch", "--json", "--admin", &segue.admin()];
    let watch = segue::start(args, &log);
    let latest = || {
        let output = watch.output();
        let line = output.lines().last().unwrap_or_default();
        serde_json::from_str::<Value>(line).unwrap_or_default()
    };

    new.kill();
    let status = segue
        .until("trouble is told", |status| status["trouble"].is_string())
        .await;
    let trouble = status["trouble"].as_str().unwrap();
    assert!(trouble.starts_with("the new store: "), "{trouble}");
    assert_eq!(status["phase"], "migration", "{status}");
    assert_eq!(status["keys_copied"], 20, "{status}");
    let told = segue.run(["status"]).await;
    assert_eq!(told.code, 0, "{told:?}");
    for line in [
        "trouble     the new store: ",
        "switch      not yet: the new store: ",
        "way back    not now (the new store: ",
    ] {
        assert!(told.out.contains(line), "{line}: {told:?}");
    }
    new.restart().await;

    segue.kill();
    eventually("the proxy is missed", async || {
        let latest = latest();
        match latest["trouble"].as_str() {
            Some(why) if why.contains("no proxy answers") => Ok(()),
            _ => Err(latest),
        }
    })
    .await;
    segue.restart().await;
    eventually("it is seen again", async || {
        let latest = latest();
        if latest["phase"] == "migration" {
            Ok(())
        } else {
            Err(latest)
        }
    })
    .await;
}

#[tokio::test]
async fn what_has_begun_is_said_to_go_on_when_the_proxy_that_was_asked_dies() {
    let status = || serde_json::to_string(&Status::default()).unwrap();
    for (command, answers) in [
        ("rollback", vec![status(), "{}".into()]),
        ("start", vec![r#"{"epoch":3}"#.to_owned()]),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = listener.local_addr().unwrap().to_string();
        let proxy = spawn_owned(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 4096];
                assert_ne!(stream.read(&mut request).await.unwrap(), 0);
                let length = answer.len();
                let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n");
                stream.write_all((head + &answer).as_bytes()).await.unwrap();
            }
        });
        let outcome = run([command, "--admin", &admin]).await;
        proxy.await.unwrap();
        assert_eq!(outcome.code, 1, "{outcome:?}");
        assert!(
            outcome.err.contains("has begun, and goes on"),
            "{outcome:?}"
        );
    }
}

#[tokio::test]
async fn a_copy_says_what_it_waits_for() {
    let dir = tempfile::tempdir().unwrap();
    let old = filled(&dir, "old.db", 200).await;
    let mut new = Etcd::start().await;
    let url = new.url();
    let args = ["copy", "--old", &old, "--new", &url, "--rate-keys", "20"];
    let mut copy = segue::start(args, &dir.path().join("copy.log"));
    let says = async |what: &str| {
        eventually(what, async || {
            let output = copy.output();
            if output.contains(what) {
                Ok(())
            } else {
                Err(output)
            }
        })
        .await;
    };
    says(" of 200 keys").await;
    new.kill();
    says("; trying again: the new store: ").await;
    new.restart().await;
    let ended = eventually("it is done", async || copy.ended().ok_or(copy.output())).await;
    assert!(ended.success(), "{}", copy.output());
}

#[tokio::test]
async fn a_live_status_in_a_file_is_plain_text() {
    let dir = tempfile::tempdir().unwrap();
    let segue = Segue::start(["--new", &sqlite(&dir, "alone.db")]).await;
    let args = ["status", "--watch", "--admin", &segue.admin()];
    let watch = segue::start(args, &dir.path().join("watch.log"));
    let output = eventually("it was shown twice", async || {
        let output = watch.output();
        if output.matches("stores ").count() > 1 {
            Ok(output)
        } else {
            Err(output)
        }
    })
    .await;
    assert!(!output.contains('\x1b'), "{output:?}");
    assert!(output.contains("\n\nstores "), "{output:?}");
}
