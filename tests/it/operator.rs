//! What an operator does with the built program, right and wrong.

use serde_json::Value;
use tempfile::TempDir;

use crate::support::segue::{Outcome, Segue, run};
use crate::support::{Etcd, V2, eventually, ports};

const NORMAL: &str = "normal";

/// `segue serve ARGS`, which is to end by itself.
async fn serve(args: &[&str]) -> Outcome {
    let admin = format!("127.0.0.1:{}", ports::free_port());
    let listen = format!("127.0.0.1:{}", ports::free_port());
    let mut all = vec!["serve", "--admin", &admin];
    if !args.contains(&"--listen") {
        all.extend(["--listen", &listen]);
    }
    run(all.iter().chain(args).copied()).await
}

fn sqlite(dir: &TempDir, name: &str) -> String {
    format!("sqlite:{}", dir.path().join(name).display())
}

/// A `SQLite` store that has held something for clients.
async fn filled(dir: &TempDir, name: &str, keys: usize) -> String {
    let url = sqlite(dir, name);
    let segue = Segue::start(["--new", &url]).await;
    let mut client = client(&segue).await;
    for key in 0..keys {
        client
            .put(format!("key/{key:05}"), "old", None)
            .await
            .unwrap();
    }
    url
}

/// An etcd that asks for a password, and not for the one that the test gives.
async fn locked_etcd() -> Etcd {
    let etcd = Etcd::start().await;
    let mut client = etcd_client::Client::connect([etcd.endpoint()], None)
        .await
        .unwrap();
    client.user_add("root", "right", None).await.unwrap();
    client.role_add("root").await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.auth_enable().await.unwrap();
    etcd
}

async fn client(segue: &Segue) -> etcd_client::Client {
    etcd_client::Client::connect([segue.endpoint()], None)
        .await
        .unwrap()
}

#[tokio::test]
async fn bad_input_is_refused_with_what_to_do_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let old = filled(&dir, "old.db", 1).await;
    let used = filled(&dir, "used.db", 1).await;
    let etcd = Etcd::start().await;
    let nobody = format!("etcd://127.0.0.1:{}", ports::free_port());
    let own_port = ports::free_port().to_string();
    let own_listen = format!("127.0.0.1:{own_port}");
    let own_url = format!("etcd://localhost:{own_port}");
    let fresh = sqlite(&dir, "fresh.db");
    let taken = format!("127.0.0.1:{}", etcd.port());
    let locked = locked_etcd().await;
    let with_password = locked.url().replace("etcd://", "etcd://root:hunter2@");
    let v2_off = etcd.v2_url();
    for (args, code, hint) in [
        (vec![], 2, "--new URL"),
        (vec!["--new", "nonsense"], 2, "write one of"),
        (
            vec!["--new", &fresh, "--old", "http://h:1"],
            2,
            "etcd2://HOST:PORT",
        ),
        (vec!["--new", &fresh, "--listen", "here"], 2, "IP:PORT"),
        (
            vec!["--new", &fresh, "--config", "/no/such/file"],
            2,
            "cannot be read",
        ),
        (
            vec!["--new", "etcd://root@127.0.0.1:1"],
            2,
            "--new-password-file",
        ),
        (vec!["--new", &nobody], 1, "the new store"),
        (vec!["--old", &nobody, "--new", &fresh], 1, "the old store"),
        (
            vec!["--old", "sqlite:/no/such.db", "--new", &fresh],
            1,
            "there is no file",
        ),
        (vec!["--old", &v2_off, "--new", &fresh], 1, "--enable-v2"),
        (vec!["--old", &old, "--new", &old], 2, "the same store"),
        (vec!["--old", &old, "--new", &used], 3, "--allow-nonempty"),
        (
            vec!["--old", &old, "--new", &with_password],
            1,
            "the new store",
        ),
        (
            vec!["--new", &fresh, "--listen", &taken],
            1,
            "choose another",
        ),
        (
            vec!["--old", &old, "--new", &own_url, "--listen", &own_listen],
            2,
            "its own store",
        ),
        (
            vec!["--old", &own_url, "--new", &fresh, "--listen", &own_listen],
            2,
            "its own store",
        ),
    ] {
        let outcome = serve(&args).await;
        assert_eq!(outcome.code, code, "{args:?}: {outcome:?}");
        assert!(outcome.err.contains(hint), "{args:?}: {outcome:?}");
        let said = format!("{}{}", outcome.out, outcome.err);
        assert!(!said.contains("hunter2"), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
    let mut direct = etcd_client::Client::connect([etcd.endpoint()], None)
        .await
        .unwrap();
    let all = etcd_client::GetOptions::new().with_all_keys();
    assert_eq!(direct.get("", Some(all)).await.unwrap().count(), 0);
    // The refused new store can still be served alone: nothing of a migration is in it.
    Segue::start(["--new", &used]).await;
}

#[tokio::test]
async fn commands_say_when_nobody_answers() {
    let admin = format!("127.0.0.1:{}", ports::free_port());
    for command in [
        "status", "switch", "pause", "resume", "verify", "complete", "rejects",
    ] {
        let outcome = run([command, "--admin", &admin]).await;
        assert_eq!(outcome.code, 1, "{outcome:?}");
        assert!(
            outcome.err.contains("is `segue serve` running there?"),
            "{outcome:?}"
        );
    }
    let outcome = run(["switch", "sideways"]).await;
    assert_eq!(outcome.code, 2, "{outcome:?}");
}

#[tokio::test]
async fn a_store_that_is_served_alone_has_no_migration() {
    let dir = tempfile::tempdir().unwrap();
    let segue = Segue::start(["--new", &sqlite(&dir, "alone.db")]).await;
    let status = segue.status().await.unwrap();
    assert_eq!(
        (&status["phase"], &status["epoch"]),
        (&"settled".into(), &0.into())
    );
    let outcome = segue.run(["switch"]).await;
    assert_eq!(outcome.code, 3, "{outcome:?}");
    assert!(outcome.err.contains("there is no migration"), "{outcome:?}");
}

fn ok(outcome: &Outcome) {
    assert_eq!(outcome.code, 0, "{outcome:?}");
}

#[tokio::test]
async fn an_operator_takes_a_migration_through_all_its_steps() {
    let dir = tempfile::tempdir().unwrap();
    let old = filled(&dir, "old.db", 300).await;
    let new = sqlite(&dir, "new.db");
    let mut segue = Segue::start(["--old", &old, "--new", &new, "--rate-keys", "20"]).await;
    ok(&segue.run(["pause"]).await);
    let status = segue
        .until("paused", |status| status["paused"] == true)
        .await;
    assert_eq!(status["backfill_complete"], false);
    let refused = segue.run(["switch"]).await;
    assert_eq!(refused.code, 3, "{refused:?}");
    assert!(
        refused.err.contains("the backfill is not complete"),
        "{refused:?}"
    );
    let foreseen = segue.run(["switch", "--dry-run"]).await;
    assert_eq!(foreseen.code, 3, "{foreseen:?}");
    assert!(
        foreseen.err.contains("the backfill is not complete"),
        "{foreseen:?}"
    );
    let verified = segue.run(["verify"]).await;
    assert_eq!(verified.code, 3, "{verified:?}");
    assert!(
        verified.err.contains("keys are not copied yet"),
        "{verified:?}"
    );
    assert!(!verified.out.contains("Missing"), "{verified:?}");
    ok(&segue.run(["rates", "--keys", "0", "--bytes", "0"]).await);
    ok(&segue.run(["resume"]).await);
    segue
        .until("verified", |status| status["verified"] == true)
        .await;

    // It holds after a restart.
    segue.restart().await;
    let status = segue
        .until("verified", |status| status["verified"] == true)
        .await;
    for (field, value) in [
        ("phase", Value::from("migration")),
        ("backfill_complete", true.into()),
        ("keys_copied", 300.into()),
        ("keys_left", 0.into()),
        ("rejects", 0.into()),
    ] {
        assert_eq!(status[field], value, "{field}: {status}");
    }
    let report = segue.run(["verify", "--json"]).await;
    ok(&report);
    let report: Value = serde_json::from_str(&report.out).unwrap();
    assert_eq!(
        (&report["good"], &report["equal"]),
        (&true.into(), &300.into())
    );

    // What would be done is told, and not done.
    for (command, code, part) in [
        ("switch", 0, "the normal phase, epoch 4"),
        ("start", 3, "the phase is migration already"),
        ("complete", 3, "switch first"),
    ] {
        let foreseen = segue.run([command, "--dry-run"]).await;
        assert_eq!(foreseen.code, code, "{foreseen:?}");
        assert!(foreseen.out.contains(part), "{foreseen:?}");
        assert!(foreseen.out.contains("nothing was changed"), "{foreseen:?}");
    }
    let now = segue.status().await.unwrap();
    for field in ["phase", "epoch", "switch"] {
        assert_eq!(now[field], status[field], "{now}");
    }

    let mut client = client(&segue).await;
    client.put("segue/switch", "true", None).await.unwrap();
    segue
        .until("switched", |status| status["phase"] == NORMAL)
        .await;
    // The old store is not needed any more.
    std::fs::rename(dir.path().join("old.db"), dir.path().join("gone.db")).unwrap();
    segue.restart().await;
    assert_eq!(
        client.get("key/00007", None).await.unwrap().kvs()[0].value(),
        b"old"
    );
    let foreseen = segue.run(["complete", "--dry-run"]).await;
    ok(&foreseen);
    assert!(foreseen.out.contains("all claims"), "{foreseen:?}");
    ok(&segue.run(["complete"]).await);
    let settled = segue
        .until("settled", |status| status["phase"] == "settled")
        .await;
    assert_eq!(settled["verified"], true);
    assert_eq!(segue.run(["complete"]).await.code, 3);
    let text = segue.run(["status"]).await.out;
    assert!(text.contains("phase       settled"), "{text}");

    drop(segue);
    let alone = Segue::start(["--new", &new]).await;
    assert_eq!(alone.status().await.unwrap()["phase"], "settled");
}

#[tokio::test]
async fn an_unfinished_migration_is_not_served_without_its_old_store() {
    let dir = tempfile::tempdir().unwrap();
    let old = filled(&dir, "old.db", 3).await;
    let other = filled(&dir, "other.db", 3).await;
    let new = sqlite(&dir, "new.db");
    drop(Segue::start(["--old", &old, "--new", &new]).await);
    for (args, hint) in [
        (vec!["--new", &new], "name its old store with --old"),
        (
            vec!["--old", &other, "--new", &new],
            "from another old store",
        ),
        (vec!["--new", &old], "this is the old store of a migration"),
        (
            vec!["--old", &old, "--new", &new, "--reserved-prefix", "s/"],
            "give --reserved-prefix segue/",
        ),
    ] {
        let outcome = serve(&args).await;
        let code = if args.contains(&"--reserved-prefix") {
            2
        } else {
            3
        };
        assert_eq!(outcome.code, code, "{outcome:?}");
        assert!(outcome.err.contains(hint), "{outcome:?}");
    }
}

#[tokio::test]
async fn everything_carries_on_when_a_store_that_went_away_is_back() {
    let mut old = Etcd::start_v2().await;
    let v2 = V2::of(&old);
    v2.fill((0..3_000).map(|n| (format!("/k/{n:04}"), format!("{n}"))))
        .await;
    let mut new = Etcd::start().await;
    let args = [
        "--old",
        &old.v2_url(),
        "--new",
        &new.url(),
        "--rate-keys",
        "300",
    ];
    let segue = Segue::start(args).await;
    let mut client = client(&segue).await;
    let copied = |least: u64| {
        move |status: &Value| {
            status["keys_copied"]
                .as_u64()
                .is_some_and(|copied| copied >= least)
        }
    };
    segue.until("begun", copied(1)).await;

    old.kill();
    eventually("the old store is missed", async || {
        match client.get("/k/2999", None).await {
            Err(etcd_client::Error::GRpcStatus(status))
                if status.code() == tonic::Code::Unavailable =>
            {
                Ok(())
            }
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    segue
        .until("trouble is told", |status| status["trouble"].is_string())
        .await;
    old.restart().await;
    segue.until("on again", copied(500)).await;

    new.kill();
    let put = client.put("during", "the outage", None).await;
    assert!(put.is_err());
    new.restart().await;
    eventually("writes again", async || {
        client.put("after", "it", None).await
    })
    .await;
    ok(&segue.run(["rates", "--keys", "0", "--bytes", "0"]).await);
    segue
        .until("verified", |status| status["verified"] == true)
        .await;
    assert_eq!(
        client.get("/k/2999", None).await.unwrap().kvs()[0].value(),
        b"2999"
    );
}

#[tokio::test]
async fn two_proxies_agree_and_one_carries_on_when_the_other_is_killed() {
    let old = Etcd::start_v2().await;
    let v2 = V2::of(&old);
    v2.fill((0..3_000).map(|n| (format!("/k/{n:04}"), format!("{n}"))))
        .await;
    let new = Etcd::start().await;
    let (old_url, new_url) = (old.v2_url(), new.url());
    let args = ["--old", &old_url, "--new", &new_url, "--rate-keys", "200"];
    let mut owner = Segue::start(args).await;
    let begun = |status: &Value| status["keys_copied"].as_u64() > Some(0);
    owner.until("begun", begun).await;
    let name = owner.endpoint();
    let namesake = ["--no-mirror", "--name", &name];
    let heir = Segue::start(args.iter().copied().chain(namesake)).await;
    // There is none with etcd's v2 API, so that it says nothing more than is true.
    assert!(!heir.output().contains("--no-mirror has no effect"));
    eventually("it has seen its namesake", async || {
        let output = heir.output();
        if output.contains("another member has this name") {
            Ok(())
        } else {
            Err(output)
        }
    })
    .await;
    let both = |status: &Value| status["members"].as_array().map(Vec::len) == Some(2);
    for proxy in [&owner, &heir] {
        proxy.until("both are there", both).await;
    }
    let mut client = client(&heir).await;
    let members = client.member_list().await.unwrap();
    let mut urls: Vec<_> = members
        .members()
        .iter()
        .flat_map(|member| member.client_urls().to_vec())
        .collect();
    urls.sort();
    let mut expected = vec![owner.endpoint(), heir.endpoint()];
    expected.sort();
    assert_eq!(urls, expected);

    owner.kill();
    let status = heir.status().await.unwrap();
    assert_eq!(status["backfill_complete"], false, "it was killed too late");
    ok(&heir.run(["rates", "--keys", "0", "--bytes", "0"]).await);
    heir.until("verified by the heir", |status| status["verified"] == true)
        .await;
    ok(&heir.run(["switch", "--wait"]).await);
    // Who comes back is in the phase that the fleet is in.
    owner.restart().await;
    let status = owner.status().await.unwrap();
    assert_eq!(
        (&status["phase"], &status["keys_copied"]),
        (&NORMAL.into(), &3_000.into())
    );
    assert_eq!(
        client.get("/k/2999", None).await.unwrap().kvs()[0].value(),
        b"2999"
    );
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_a_command_without_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let segue = Segue::start(["--new", &sqlite(&dir, "alone.db")]).await;
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_segue"));
    command.args(["status", "--admin", &segue.admin()]);
    command.stdout(std::process::Stdio::piped());
    command.stderr(std::process::Stdio::piped());
    let mut process = command.spawn().unwrap();
    drop(process.stdout.take());
    let ended = tokio::task::spawn_blocking(|| process.wait_with_output().unwrap());
    let ended = ended.await.unwrap();
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
    // As a shell tells of a program that SIGPIPE has ended.
    assert_eq!(ended.status.code(), Some(141));
}

#[tokio::test]
async fn a_signal_ends_the_proxy_cleanly() {
    let dir = tempfile::tempdir().unwrap();
    let old = filled(&dir, "old.db", 3).await;
    let new = sqlite(&dir, "new.db");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_segue"));
    let address = || format!("127.0.0.1:{}", ports::free_port());
    command.args(["serve", "--old", &old, "--new", &new]);
    command.args(["--listen", &address(), "--admin", &address()]);
    let log = dir.path().join("log");
    let mut process = crate::support::process::Process::start(&mut command, &log, "cargo build");
    eventually("ready", async || {
        let said = process.output();
        if said.contains("segue is ready") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;
    process.terminate();
    let ended = eventually("ended", async || process.ended().ok_or("runs")).await;
    assert!(ended.success(), "{ended:?}: {}", process.output());
}
