//! What operators get wrong: the built program says what to do, and has written nothing.

use std::path::Path;

use http::Method;

use crate::support::ports::free_port;
use crate::support::segue::{Segue, run};
use crate::support::{Etcd, V2};

/// Starts `segue serve ARGS`, which has to end by itself with this exit code and say each of `hints`.
async fn refused(args: &[&str], code: i32, hints: &[&str]) {
    let Err(said) = Segue::try_start(args).await else {
        panic!("{args:?} was taken");
    };
    assert!(
        said.starts_with(&format!("exit status: {code}")),
        "{args:?}: {said}"
    );
    for hint in hints {
        assert!(
            said.contains(hint),
            "{args:?} says not {hint:?} but: {said}"
        );
    }
    assert!(
        !said.contains("hunter2"),
        "{args:?} gives the password away: {said}"
    );
    assert!(!said.contains("panicked"), "{args:?}: {said}");
}

async fn etcd_revision(etcd: &Etcd) -> i64 {
    let mut client = etcd_client::Client::connect([etcd.endpoint()], None)
        .await
        .unwrap();
    let answer = client.get("x", None).await.unwrap();
    answer.header().unwrap().revision()
}

#[tokio::test]
async fn urls_that_are_none_are_told_what_to_write() {
    for (args, hint) in [
        (&[][..], "--new"),
        (&["--new", "nonsense"], "sqlite:PATH"),
        (&["--new", "http://localhost:2379"], "etcd://HOST:PORT"),
        (&["--new", "sqlite:"], "sqlite:PATH"),
        (
            &["--new", "postgres://u:hunter2@h"],
            "the database is missing",
        ),
        (&["--new", "etcd://root:hunter2@h:1:2"], "etcd://"),
        (&["--new", "memory:", "--old", "etcd2://:x"], "etcd2://"),
        (
            &["--new", "memory:", "--old", "mysql://u:hunter2@h/db?x=y"],
            "known are prefix=",
        ),
        (&["--new", "memory:", "--unheard-of"], "--unheard-of"),
        (
            &["--new", "memory:", "--old", "etcd://root@h"],
            "SEGUE_OLD_PASSWORD",
        ),
    ] {
        refused(args, 2, &[hint]).await;
    }
}

#[tokio::test]
async fn stores_that_cannot_be_used_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("new.db");
    let new = format!("sqlite:{}", file.display());
    let nothing = format!("127.0.0.1:{}", free_port());
    let v3_only = Etcd::start().await;
    let before = etcd_revision(&v3_only).await;

    for (old, hints) in [
        (
            format!("etcd2://{nothing}"),
            &["old store", nothing.as_str()][..],
        ),
        (
            format!("etcd://{nothing}"),
            &["old store", nothing.as_str()],
        ),
        (v3_only.v2_url(), &["--enable-v2"]),
        (
            format!("sqlite:{}/none.db", dir.path().display()),
            &["there is no file"],
        ),
    ] {
        refused(&["--old", &old, "--new", &new], 1, hints).await;
        assert!(
            !Path::new(&file).exists(),
            "{old}: a new store was made for nothing"
        );
    }
    for (new, code, hints) in [
        (
            format!("etcd://{nothing}"),
            1,
            &["new store", nothing.as_str()][..],
        ),
        (v3_only.v2_url(), 2, &["cannot be the new store"]),
        (
            format!("sqlite:{}/none/new.db", dir.path().display()),
            1,
            &["none"],
        ),
        (format!("sqlite:{}", dir.path().display()), 1, &[]),
    ] {
        refused(&["--old", &v3_only.url(), "--new", &new], code, hints).await;
    }
    assert_eq!(
        etcd_revision(&v3_only).await,
        before,
        "the old store was written"
    );
}

#[tokio::test]
async fn wrong_credentials_are_said_to_be_wrong_and_not_shown() {
    let etcd = Etcd::start_v2().await;
    let v2 = V2::of(&etcd);
    let user = r#"{"user":"root","password":"right"}"#;
    v2.must(Method::PUT, "/v2/auth/users/root", user).await;
    v2.must(Method::PUT, "/v2/auth/enable", "").await;
    let mut client = etcd_client::Client::connect([etcd.endpoint()], None)
        .await
        .unwrap();
    client.user_add("root", "right", None).await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.auth_enable().await.unwrap();

    let address = etcd.address();
    for scheme in ["etcd", "etcd2"] {
        let old = format!("{scheme}://root:hunter2@{address}");
        refused(
            &["--old", &old, "--new", "memory:"],
            1,
            &["refuses the credentials"],
        )
        .await;
    }
    let new = format!("etcd://root:hunter2@{address}");
    refused(&["--new", &new], 1, &["refuses the credentials"]).await;
    let new = format!("etcd://root:right@{address}");
    let segue = Segue::start(["--new", &new]).await;
    let status = segue.run(["status"]).await;
    assert!(!status.out.contains("right") && !segue.process().output().contains("right"));
}

#[tokio::test]
async fn a_store_is_not_migrated_to_itself_nor_to_one_that_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let (file, link) = (dir.path().join("a.db"), dir.path().join("b.db"));
    let url = |path: &Path| format!("sqlite:{}", path.display());
    drop(Segue::start(["--new", &url(&file)]).await);
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let args = ["--old", &url(&file), "--new", &url(&link)];
    refused(&args, 2, &["same store"]).await;

    let (one, other) = tokio::join!(Etcd::start(), Etcd::start());
    refused(
        &["--old", &one.url(), "--new", &one.url()],
        2,
        &["same store"],
    )
    .await;

    let mut client = etcd_client::Client::connect([other.endpoint()], None)
        .await
        .unwrap();
    client.put("mine", "x", None).await.unwrap();
    let before = etcd_revision(&other).await;
    let args = ["--old", &one.url(), "--new", &other.url()];
    refused(&args, 3, &["not empty", "--allow-nonempty"]).await;
    assert_eq!(
        etcd_revision(&other).await,
        before,
        "the new store was written"
    );
}

#[tokio::test]
async fn keys_that_a_nonempty_new_store_holds_win_whatever_store_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let file = format!("sqlite:{}", dir.path().join("new.db").display());
    let server = Etcd::start().await;
    for new in [server.url(), file] {
        let old = Etcd::start().await;
        let mut there_before = etcd_client::Client::connect([old.endpoint()], None)
            .await
            .unwrap();
        for key in ["both", "deleted", "old"] {
            there_before
                .put(key, "from the old store", None)
                .await
                .unwrap();
        }
        let alone = Segue::start(["--new", &new]).await;
        let mut there_before = etcd_client::Client::connect([alone.endpoint()], None)
            .await
            .unwrap();
        for key in ["both", "deleted", "new"] {
            there_before
                .put(key, "from the new store", None)
                .await
                .unwrap();
        }
        drop(alone);

        let segue = Segue::start(["--old", &old.url(), "--new", &new, "--allow-nonempty"]).await;
        let mut client = etcd_client::Client::connect([segue.endpoint()], None)
            .await
            .unwrap();
        client.delete("deleted", None).await.unwrap();
        check_that_the_new_one_won(&mut client).await;
        segue
            .until("verified", |status| status["verified"] == true)
            .await;
        check_that_the_new_one_won(&mut client).await;
        let switched = segue.run(["switch", "normal"]).await;
        assert_eq!(switched.code, 0, "{switched:?}");
        check_that_the_new_one_won(&mut client).await;
    }
}

/// What clients see of two stores that both hold `both`, and of which one holds `old` or `new`.
async fn check_that_the_new_one_won(client: &mut etcd_client::Client) {
    let all = etcd_client::GetOptions::new().with_all_keys();
    let found = client.get("", Some(all)).await.unwrap();
    let found: Vec<_> = found
        .kvs()
        .iter()
        .map(|kv| (kv.key_str().unwrap(), kv.value_str().unwrap()))
        .collect();
    let expected = [
        ("both", "from the new store"),
        ("new", "from the new store"),
        ("old", "from the old store"),
    ];
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_proxy_that_points_at_itself_says_so() {
    let port = free_port();
    let (listen, url) = (
        format!("127.0.0.1:{port}"),
        format!("etcd://127.0.0.1:{port}"),
    );
    // The last of two `--listen` would be an error: run as an operator does.
    for args in [
        ["--new", url.as_str(), "--old", "memory:"],
        ["--new", "memory:", "--old", url.as_str()],
    ] {
        let fixed = ["serve", "--listen", &listen, "--admin", "127.0.0.1:0"];
        let outcome = run(fixed.iter().chain(&args)).await;
        assert_eq!(outcome.code, 2, "{outcome:?}");
        assert!(outcome.err.contains("itself"), "{outcome:?}");
    }
}

#[tokio::test]
async fn commands_without_a_proxy_say_how_to_reach_one() {
    let nowhere = format!("127.0.0.1:{}", free_port());
    for command in [
        "status", "switch", "pause", "resume", "verify", "complete", "rejects",
    ] {
        let outcome = run([command, "--admin", &nowhere]).await;
        assert_eq!(outcome.code, 1, "{outcome:?}");
        assert!(outcome.err.contains(&nowhere), "{outcome:?}");
        assert!(outcome.err.contains("--admin"), "{outcome:?}");
    }
}

#[tokio::test]
async fn ports_that_are_taken_are_named() {
    let segue = Segue::start(["--new", "memory:"]).await;
    let taken = format!("127.0.0.1:{}", segue.port());
    let outcome = run([
        "serve",
        "--new",
        "memory:",
        "--listen",
        &taken,
        "--admin",
        "127.0.0.1:0",
    ]);
    let outcome = outcome.await;
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(
        outcome.err.contains(&taken) && outcome.err.contains("--listen"),
        "{outcome:?}"
    );
}
