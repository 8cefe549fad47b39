//! `etcdctl`, which is written in Go on etcd's own client library, against Segue.

use std::process::Command;
use std::sync::Arc;

use segue::store::memory::Memory;

use crate::support::api::Api;
use crate::support::eventually;
use crate::support::process::Process;

const INSTALL: &str = "apt-get install etcd-client";

fn command(api: &Api, args: &[&str]) -> Command {
    let mut command = Command::new("etcdctl");
    command
        .env("ETCDCTL_API", "3")
        .arg("--endpoints")
        .arg(api.address())
        .args(args);
    command
}

/// Runs etcdctl to its end: whether it succeeded, and what it wrote.
async fn run(api: &Api, args: &[&str]) -> (bool, String) {
    run_with(api, args, "").await
}

async fn run_with(api: &Api, args: &[&str], input: &str) -> (bool, String) {
    let dir = tempfile::tempdir().unwrap();
    let typed = dir.path().join("input");
    std::fs::write(&typed, input).unwrap();
    let mut command = command(api, args);
    command.stdin(std::fs::File::open(typed).unwrap());
    let output = tokio::task::spawn_blocking(move || command.output());
    let output = output.await.unwrap().expect(INSTALL);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout) + &text(&output.stderr);
    (output.status.success(), said)
}

/// Runs etcdctl, which has to succeed and to write just `said`.
async fn check(api: &Api, args: &[&str], said: &str) {
    assert_eq!(run(api, args).await, (true, said.to_owned()), "{args:?}");
}

async fn over_memory() -> Api {
    Api::start(Arc::new(Memory::new())).await
}

#[tokio::test]
async fn keys_are_written_read_and_deleted() {
    let api = over_memory().await;
    check(&api, &["put", "a", "1"], "OK\n").await;
    check(&api, &["put", "a", "2", "--prev-kv"], "OK\na\n1\n").await;
    check(&api, &["put", "b", "3"], "OK\n").await;
    check(&api, &["get", "a"], "a\n2\n").await;
    // A user name is of no use here, and no fault; the client notes that it could not log in.
    let (good, said) = run(&api, &["--user=somebody:secret", "get", "a"]).await;
    assert!(good && said.starts_with("a\n2\n"), "{said}");
    check(&api, &["get", "", "--prefix", "--keys-only"], "a\n\nb\n\n").await;
    check(&api, &["get", "", "--from-key", "--limit=1"], "a\n2\n").await;
    check(&api, &["get", "a", "--rev=2"], "a\n1\n").await;
    check(
        &api,
        &[
            "get",
            "",
            "--prefix",
            "--order=DESCEND",
            "--print-value-only",
        ],
        "3\n2\n",
    )
    .await;
    check(
        &api,
        &["del", "", "--prefix", "--prev-kv"],
        "2\na\n2\nb\n3\n",
    )
    .await;
    check(&api, &["get", "a"], "").await;
    let (good, said) = run(&api, &["get", "a", "--rev=99"]).await;
    assert!(
        !good && said.contains("required revision is a future revision"),
        "{said}"
    );
    let (good, said) = run(&api, &["put", "a", "--ignore-value"]).await;
    assert!(
        !good && said.contains("etcdserver: key not found"),
        "{said}"
    );
}

#[tokio::test]
async fn transactions_and_compactions_are_carried_out() {
    let api = over_memory().await;
    check(&api, &["put", "a", "1"], "OK\n").await;
    let txn = "value(\"a\") = \"1\"\n\nput a 2\nget a\n\nput a 3\n\n";
    let said = run_with(&api, &["txn"], txn).await;
    assert_eq!(said, (true, "SUCCESS\n\nOK\n\na\n2\n".to_owned()));
    let said = run_with(&api, &["txn"], txn).await;
    assert_eq!(said, (true, "FAILURE\n\nOK\n".to_owned()));
    check(&api, &["compaction", "4"], "compacted revision 4\n").await;
    let (good, said) = run(&api, &["compaction", "4"]).await;
    assert!(
        !good && said.contains("required revision has been compacted"),
        "{said}"
    );
}

#[tokio::test]
async fn changes_are_watched() {
    let api = over_memory().await;
    check(&api, &["put", "a", "1"], "OK\n").await;
    let dir = tempfile::tempdir().unwrap();
    let mut watch = command(&api, &["watch", "--prefix", "a", "--rev=2", "--prev-kv"]);
    let watch = Process::start(&mut watch, &dir.path().join("watch"), INSTALL);
    check(&api, &["put", "a/1", "2"], "OK\n").await;
    check(&api, &["del", "a"], "1\n").await;
    let all = "PUT\na\n1\nPUT\na/1\n2\nDELETE\na\n1\na\n\n";
    eventually("all changes are shown", async || {
        let said = watch.output();
        if said == all { Ok(()) } else { Err(said) }
    })
    .await;
}

#[tokio::test]
async fn leases_are_granted_kept_and_revoked() {
    let api = over_memory().await;
    let (_, said) = run(&api, &["lease", "grant", "600"]).await;
    let id = said.split(' ').nth(1).expect("its number").to_owned();
    assert!(said.ends_with("granted with TTL(600s)\n"), "{said}");
    check(&api, &["put", "a", "1", &format!("--lease={id}")], "OK\n").await;
    let (_, said) = run(&api, &["lease", "timetolive", &id, "--keys"]).await;
    assert!(
        said.contains("granted with TTL(600s), remaining(") && said.contains("[a]"),
        "{said}"
    );
    let (_, said) = run(&api, &["lease", "keep-alive", "--once", &id]).await;
    assert_eq!(said, format!("lease {id} keepalived with TTL(600)\n"));
    check(&api, &["lease", "list"], &format!("found 1 leases\n{id}\n")).await;
    check(
        &api,
        &["lease", "revoke", &id],
        &format!("lease {id} revoked\n"),
    )
    .await;
    check(&api, &["get", "a"], "").await;
    let (good, said) = run(&api, &["lease", "revoke", &id]).await;
    assert!(
        !good && said.contains("requested lease not found"),
        "{said}"
    );
}

#[tokio::test]
async fn locks_are_taken_in_turn_and_leaders_are_elected() {
    let api = over_memory().await;
    let dir = tempfile::tempdir().unwrap();
    let mut holder = command(&api, &["lock", "the lock"]);
    let holder = Process::start(&mut holder, &dir.path().join("holder"), INSTALL);
    eventually("the lock is held", async || {
        let said = holder.output();
        if said.starts_with("the lock/") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;
    let mut second = command(&api, &["lock", "the lock", "echo", "my turn"]);
    let second = Process::start(&mut second, &dir.path().join("second"), INSTALL);
    // Both wait in the queue before the first goes.
    eventually("the second waits", async || {
        let (_, said) = run(
            &api,
            &["get", "the lock", "--prefix", "--keys-only", "-w=fields"],
        )
        .await;
        if said.contains("\"Count\" : 2") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;
    assert_eq!(second.output(), "");
    holder.terminate();
    eventually("the second has its turn", async || {
        let said = second.output();
        if said.contains("my turn") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;

    let mut leader = command(&api, &["elect", "the election", "me"]);
    let leader = Process::start(&mut leader, &dir.path().join("leader"), INSTALL);
    eventually("it is elected", async || {
        let said = leader.output();
        if said.contains("\nme\n") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;
    let mut observer = command(&api, &["elect", "-l", "the election"]);
    let observer = Process::start(&mut observer, &dir.path().join("observer"), INSTALL);
    eventually("the leader is seen", async || {
        let said = observer.output();
        if said.contains("\nme\n") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;
}

#[tokio::test]
async fn operators_see_how_it_is() {
    let api = over_memory().await;
    let (good, said) = run(&api, &["endpoint", "health"]).await;
    assert!(good && said.contains("is healthy"), "{said}");
    let (good, said) = run(&api, &["endpoint", "status", "-w=json"]).await;
    assert!(good && said.contains(r#""version":"3.5.21""#), "{said}");
    assert!(said.contains(r#""leader":1"#), "{said}");
    let (good, said) = run(&api, &["endpoint", "hashkv"]).await;
    assert!(good && said.contains(&api.address()), "{said}");
    let (good, said) = run(&api, &["member", "list"]).await;
    let member = format!("1, started, segue-1, , {}, false\n", api.endpoint());
    assert_eq!((good, said), (true, member));
    check(&api, &["alarm", "list"], "").await;
    let (good, said) = run(&api, &["defrag"]).await;
    assert!(good && said.contains("Finished defragmenting"), "{said}");
    let (good, said) = run(&api, &["snapshot", "save", "/dev/null"]).await;
    assert!(
        !good && said.contains("a proxy has no database file"),
        "{said}"
    );
    check(&api, &["user", "list"], "").await;
    let (good, said) = run(&api, &["user", "add", "somebody:secret"]).await;
    assert!(
        !good && said.contains("a proxy has no users and roles"),
        "{said}"
    );
}
