//! The end of a migration: nothing of it is left, and nobody brings anything back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use segue::config::Settings;
use segue::migration::phase::Phase;
use segue::migration::records::{MEMBERS, Outcome, SHARDS, STATE, SURVEY};
use segue::migration::switch::Request;
use segue::migration::{OpenError, Options};
use segue::server::{self, Server};
use segue::store::memory::Memory;
use segue::store::{AsOld, Guard, NewStore, StoreError, StoreUrl, open_new};
use segue::types::{Delete, KeyRange, Put, Range, Reserved, Revision};

use super::fleet::{Member, Stores, TIMING, get, grant, key, put, put_leased};
use super::gate::{Gate, Mode};
use crate::support::{Etcd, eventually};

const NORMAL: Request = Request {
    to: Phase::Normal,
    when_ready: true,
};

/// Brings the members' fleet to the normal phase.
async fn to_normal(members: &[&Member]) {
    for member in members {
        let all = members.len();
        member
            .until("all are there", |status| status.members.len() == all)
            .await;
    }
    members[0].controller.switch(NORMAL).await.unwrap();
    for member in members {
        member.until_phase(Phase::Normal).await;
    }
}

/// Completes the migration, as soon as everybody who lives has acknowledged the phase before.
async fn complete(member: &Member) {
    eventually("it may be completed", async || {
        member.controller.complete().await.unwrap()
    })
    .await;
}

async fn until_over(member: &Member) {
    let over = member.until("over", |status| status.complete).await;
    assert_eq!(over.owner, None);
}

/// Names of records, and all reserved keys.
async fn left_in(new: &Arc<dyn NewStore>) -> Vec<String> {
    let records = new.records("").await.unwrap();
    let reserved = Range::of(KeyRange::prefix("segue/"));
    let keys = new.guarded(Guard::None).range(reserved).await.unwrap();
    let keys = keys
        .reply
        .kvs
        .into_iter()
        .map(|kv| kv.key.escape_ascii().to_string());
    records.into_iter().map(|it| it.name).chain(keys).collect()
}

async fn revision(new: &Arc<dyn NewStore>) -> Revision {
    new.guarded(Guard::None).status().await.unwrap().revision
}

fn allowed(options: &mut Options) {
    options.allow_nonempty = true;
}

async fn sqlite() -> (tempfile::TempDir, Arc<dyn NewStore>) {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", dir.path().join("new.db").display());
    let url: StoreUrl = url.parse().unwrap();
    let store = open_new(&url, &Reserved::default()).await.unwrap();
    (dir, store)
}

/// A fleet of two goes through a whole migration to `new`, with clients at work; the revision stands still
/// while it is being removed if the store is `gapless`. Answers the stores.
async fn goes_to_its_end(new: Arc<dyn NewStore>, keys: usize, gapless: bool) -> Stores {
    let stores = Stores::to(new).await;
    stores.fill(keys).await;
    let (a, b) = (
        stores.join("a").await.unwrap(),
        stores.join("b").await.unwrap(),
    );
    to_normal(&[&a, &b]).await;
    let delete = Delete {
        keys: KeyRange::One(key(0).into()),
        prev_kv: false,
    };
    a.store().delete(delete).await.unwrap();
    put(&*b.store(), "kept", "x").await;
    assert!(!left_in(&stores.new).await.is_empty());
    let before = revision(&stores.new).await;
    complete(&a).await;
    for member in [&a, &b] {
        until_over(member).await;
        let status = member.status().await;
        assert_eq!((&*status.phase, status.trouble), ("settled", None));
        // Clients that look for other endpoints still find them.
        assert_eq!(member.controller.members().len(), 2);
    }
    if gapless {
        assert_eq!(revision(&stores.new).await, before);
    }
    assert_eq!(left_in(&stores.new).await, [""; 0]);
    assert_eq!(stores.new.line().await.unwrap(), None);
    // Both serve on, and nobody writes records any more.
    for member in [&a, &b] {
        put(&*member.store(), "after", "y").await;
        assert_eq!(get(&*member.store(), &key(0)).await, None);
        assert_eq!(get(&*member.store(), "kept").await.unwrap().value, "x");
        asked_in_vain(member).await;
    }
    let (left, right) = tokio::join!(
        a.tasks.shut_down(Duration::from_secs(10)),
        b.tasks.shut_down(Duration::from_secs(10))
    );
    assert!(left.is_empty() && right.is_empty());
    assert_eq!(left_in(&stores.new).await, [""; 0]);
    stores
}

/// What is asked of a migration that is complete is refused, and changes nothing.
async fn asked_in_vain(member: &Member) {
    let controller = &member.controller;
    let switched = controller.switch(NORMAL).await.unwrap();
    assert_eq!(switched.outcome, Outcome::Refused);
    let refusals = [
        switched.reason,
        controller.complete().await.unwrap().unwrap_err(),
        controller.rollback().await.unwrap().unwrap_err(),
        controller.rehearse().await.unwrap().unwrap_err(),
        controller.preview(Phase::Settled).await.unwrap().why,
    ];
    for refusal in refusals {
        assert!(refusal.contains("complete"), "{refusal}");
    }
    controller
        .steer(|control| control.paused = true)
        .await
        .unwrap();
    assert_eq!(controller.rejects().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_applications_keys_are_left_and_a_second_migration_is_refused() {
    let (_dir, file) = sqlite().await;
    for new in [Arc::new(Memory::new()), file] {
        let stores = goes_to_its_end(new, 300, true).await;
        let refused = stores.join("c").await.err();
        assert!(matches!(refused, Some(OpenError::NotEmpty)), "{refused:?}");
        assert_eq!(left_in(&stores.new).await, [""; 0]);
        // What was the new store is the old one of the next migration.
        let source = stores.new.guarded(Guard::None);
        let old = segue::store::AsOld::of(stores.new.clone()).await.unwrap();
        let next = Stores {
            source: source.clone(),
            old: Arc::new(old),
            new: Arc::new(Memory::new()),
        };
        let member = next.join("d").await.unwrap();
        to_normal(&[&member]).await;
        complete(&member).await;
        until_over(&member).await;
        assert_eq!(next.content().await, next.old_content().await);
        // The fence stays where it is.
        let records = next
            .old
            .fenceable()
            .unwrap()
            .records("fence")
            .await
            .unwrap();
        assert_eq!(records.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_holds_the_applications_keys_and_what_clients_numbers_hang_on() {
    const KEYS: usize = 300;
    let etcd = Etcd::start().await;
    let url: StoreUrl = etcd.url().parse().unwrap();
    let new = open_new(&url, &Reserved::default()).await.unwrap();
    goes_to_its_end(new, KEYS, false).await;
    let mut expected: Vec<_> = (1..KEYS).map(key).collect();
    expected.extend(["after", "kept"].map(str::to_owned));
    expected.push("segue/_/line".to_owned());
    let copied = (0..KEYS).map(|number| format!("segue/_/claim/{}", key(number)));
    expected.extend(copied);
    expected.sort();
    assert_eq!(etcd.raw_keys().await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_member_carries_the_end_on_whenever_the_owner_dies() {
    // Before the records are closed, while they are removed, and the same with nobody else there.
    for (stops_at, alone) in [(STATE, false), (SHARDS, false), (SHARDS, true)] {
        let stores = Stores::in_memory().await;
        stores.fill(50).await;
        let gate = Gate::before(stores.new.clone());
        let behind = Stores {
            new: gate.clone(),
            ..stores.clone()
        };
        let owner = behind.join("a").await.unwrap();
        owner
            .until("owner", |status| status.owner.as_deref() == Some("a"))
            .await;
        let heir = stores.join("b").await.unwrap();
        to_normal(&[&owner, &heir]).await;
        if alone {
            heir.kill().await;
            owner
                .until("alone", |status| status.members.len() == 1)
                .await;
        }
        gate.set(Mode::Hold(stops_at));
        complete(if alone { &owner } else { &heir }).await;
        if alone {
            gate.holds().await;
        } else {
            // Whoever sees first that the records are closed removes them.
            tokio::select! {
                () = gate.holds() => {}
                () = until_over(&heir) => {}
            }
        }
        gate.set(Mode::Cut);
        owner.kill().await;
        let heir = if alone {
            let left = left_in(&stores.new).await;
            assert!(left.contains(&STATE.to_owned()) && left.contains(&SURVEY.to_owned()));
            // What is left is no new migration's, so it is joined.
            stores.join("c").await.unwrap()
        } else {
            heir
        };
        until_over(&heir).await;
        assert_eq!(left_in(&stores.new).await, [""; 0], "{stops_at} {alone}");
        assert_eq!(get(&*heir.store(), &key(7)).await.unwrap().value, "old");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clients_notice_nothing_of_the_end() {
    let stores = Stores::both_ways().await;
    stores.fill(100).await;
    let (a, b) = (
        stores.join("a").await.unwrap(),
        stores.join("b").await.unwrap(),
    );
    to_normal(&[&a, &b]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = [&a, &b]
        .map(|member| {
            let (store, stop) = (member.store(), stop.clone());
            segue::tasks::spawn_owned(async move {
                let mut last = Revision(0);
                while !stop.load(Ordering::Relaxed) {
                    let put = store.put(Put::new("busy", "x")).await.unwrap();
                    let read = store.range(Range::key(key(1))).await.unwrap();
                    assert!(last < put.revision && put.revision <= read.revision);
                    assert_eq!(read.reply.kvs[0].value, "old");
                    last = put.revision;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            })
        })
        .into();
    complete(&b).await;
    until_over(&a).await;
    until_over(&b).await;
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(left_in(&stores.new).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_cut_off_ends_when_the_migration_is_gone() {
    for (phase, mode) in [
        (Phase::Migration, Mode::Cut),
        (Phase::Normal, Mode::Cut),
        // In the middle of a turn that began when there were records: with its beat on the way.
        (Phase::Normal, Mode::Hold(MEMBERS)),
    ] {
        let stores = Stores::both_ways().await;
        stores.fill(20).await;
        let gate = Gate::before(stores.new.clone());
        let behind = Stores {
            new: gate.clone(),
            ..stores.clone()
        };
        let member = stores.join("a").await.unwrap();
        let lost = behind
            .join_as("lost", |options| {
                options.timing.patience = Duration::from_millis(200);
            })
            .await
            .unwrap();
        lost.until_verified().await;
        if phase == Phase::Migration {
            gate.set(mode);
            member
                .until("let go", |status| status.members.len() == 1)
                .await;
            member.controller.switch(NORMAL).await.unwrap();
        } else {
            to_normal(&[&member, &lost]).await;
            gate.set(mode);
            if mode != Mode::Cut {
                gate.holds().await;
            }
        }
        member.until_phase(Phase::Normal).await;
        complete(&member).await;
        until_over(&member).await;
        assert_eq!(left_in(&stores.new).await, [""; 0]);
        put(&*member.store(), &key(1), "since").await;

        // While it is cut off the store refuses it, and when it comes back it gives up by itself.
        let refused = lost.store().put(Put::new("late", "x")).await;
        assert!(
            matches!(refused, Err(StoreError::Unavailable(_))),
            "{refused:?}"
        );
        gate.set(Mode::Open);
        lost.controller.gone().await;
        let trouble = lost.status().await.trouble.unwrap();
        assert!(
            trouble.contains("`segue serve --new URL` without --old"),
            "{trouble}"
        );
        let refused = lost.store().range(Range::key(key(1))).await;
        assert!(
            matches!(refused, Err(StoreError::Unavailable(_))),
            "{refused:?}"
        );
        lost.kill().await;
        assert_eq!(left_in(&stores.new).await, [""; 0], "{phase} {mode:?}");
        assert_eq!(get(&*member.store(), "late").await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_does_not_follow_another_migration_in_the_same_store() {
    let stores = Stores::in_memory().await;
    stores.fill(20).await;
    let gate = Gate::before(stores.new.clone());
    let behind = Stores {
        new: gate.clone(),
        ..stores.clone()
    };
    let lost = behind.join("lost").await.unwrap();
    lost.until_verified().await;
    gate.set(Mode::Cut);
    stores.new.clear().await.unwrap();
    let other = Stores::to(stores.new.clone()).await;
    other.fill(5).await;
    let member = other.join("a").await.unwrap();
    member.until_verified().await;
    gate.set(Mode::Open);
    lost.controller.gone().await;
    lost.kill().await;
    let members = stores.new.records(MEMBERS).await.unwrap();
    let names: Vec<_> = members.iter().map(|record| &*record.name).collect();
    assert_eq!(names, ["members/a"]);
}

/// Takes `store` through a migration as the old store, and through one back to it.
async fn leaves_and_comes_back(store: Arc<dyn NewStore>) {
    let plain = store.guarded(Guard::None);
    let away = Stores {
        source: plain.clone(),
        old: Arc::new(AsOld::of(store.clone()).await.unwrap()),
        new: Arc::new(Memory::new()),
    };
    away.fill(3).await;
    let member = away.join("a").await.unwrap();
    to_normal(&[&member]).await;
    put(&*member.store(), "moved", "x").await;
    member
        .until("mirrored", |status| {
            status.way_back.is_some_and(|standing| standing.behind == 0)
        })
        .await;
    complete(&member).await;
    until_over(&member).await;
    member.kill().await;
    assert_eq!(left_in(&away.old.fenceable().unwrap()).await[0], "fence");

    // What it does not hold any more comes from the other one again.
    for gone in ["moved", &key(0)] {
        let delete = Delete {
            keys: KeyRange::One(gone.to_owned().into()),
            prev_kv: false,
        };
        assert_eq!(plain.delete(delete).await.unwrap().reply.deleted, 1);
    }
    let back = Stores {
        source: away.new.guarded(Guard::None),
        old: Arc::new(AsOld::of(away.new.clone()).await.unwrap()),
        new: store,
    };
    let member = back.join_as("b", allowed).await.unwrap();
    to_normal(&[&member]).await;
    for (name, value) in [("moved", "x"), (&key(0), "old"), (&key(1), "old")] {
        let found = get(&*member.store(), name).await;
        assert_eq!(found.map(|kv| kv.value), Some(value.into()), "{name}");
    }
    complete(&member).await;
    until_over(&member).await;
    let left = left_in(&back.new).await;
    assert!(!left.iter().any(|name| name.contains("fence")), "{left:?}");

    let store = member.store();
    grant(&*store, 7, 1).await;
    put_leased(&*store, "leased", 7).await;
    eventually("the lease ends", async || {
        match get(&*store, "leased").await {
            None => Ok(()),
            still => Err(still),
        }
    })
    .await;
    member.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_store_of_a_migration_becomes_a_new_one_like_any_other() {
    let (_dir, file) = sqlite().await;
    let etcd = Etcd::start().await;
    let url: StoreUrl = etcd.url().parse().unwrap();
    let served = open_new(&url, &Reserved::default()).await.unwrap();
    tokio::join!(
        leaves_and_comes_back(Arc::new(Memory::new())),
        leaves_and_comes_back(file),
        leaves_and_comes_back(served),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_command_begins_no_second_migration_whatever_it_allows() {
    // Told by the fence of the old store, or by the state, which stays then.
    for stores in [Stores::both_ways().await, Stores::in_memory().await] {
        stores.fill(20).await;
        put(&*stores.new.guarded(Guard::None), "before", "x").await;
        let member = stores.join_as("a", allowed).await.unwrap();
        to_normal(&[&member]).await;
        let fenced = member.status().await.mirror;
        complete(&member).await;
        until_over(&member).await;
        let delete = Delete {
            keys: KeyRange::One(key(1).into()),
            prev_kv: false,
        };
        member.store().delete(delete).await.unwrap();
        member.kill().await;
        let expected: &[&str] = if fenced { &[] } else { &["state"] };
        assert_eq!(left_in(&stores.new).await, expected);
        match (fenced, stores.join_as("b", allowed).await) {
            (true, Err(OpenError::Fenced)) => {}
            (false, Ok(again)) => {
                until_over(&again).await;
                assert_eq!(get(&*again.store(), &key(1)).await, None);
            }
            (_, other) => panic!("{fenced}: {:?}", other.err()),
        }
        assert_eq!(left_in(&stores.new).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_does_not_serve_on_without_the_loop_that_follows_the_migration() {
    let stores = Stores::in_memory().await;
    let gate = Gate::before(stores.new.clone());
    let anywhere = || Some("127.0.0.1:0".to_owned());
    let settings = Settings {
        new: Some("memory:".into()),
        listen: anywhere(),
        admin: anywhere(),
        ..Settings::default()
    };
    let behind = server::Stores {
        old: Some(stores.old.clone()),
        new: gate.clone(),
    };
    let config = settings.complete().unwrap();
    let server = Server::over(behind, config, TIMING).await.unwrap();
    server.ready().await;
    gate.set(Mode::Fault);
    let why = tokio::time::timeout(Duration::from_secs(30), server.gone()).await;
    assert!(why.expect("it gives up").contains("Start it again"));
    gate.set(Mode::Open);
    assert_eq!(server.stop().await, Vec::<String>::new());
}
