//! What a switch would cost, measured without one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use segue::migration::phase::Phase;
use segue::migration::switch::Request;
use segue::store::StoreError;
use segue::types::{Put, Range};

use super::fleet::{Member, Stores, key};
use crate::support::eventually;

/// Rehearses a switch, and checks what is told of it: how long a client had to wait, in milliseconds.
async fn rehearse(stores: &Stores, members: &[Member; 2], phase: Phase) -> u64 {
    let before = members[0].controller.view().state.value.clone();
    let earlier = stores.new.guarded(before.guard());
    let rehearsal = members[0].controller.rehearse().await.unwrap().unwrap();
    let late = earlier.put(Put::new("late", "x")).await;
    assert_eq!(late.unwrap_err(), StoreError::StaleEpoch);
    assert_eq!(rehearsal.phase, phase.to_string());
    assert_eq!(rehearsal.epoch, before.epoch.0 + 1);
    let names: Vec<_> = rehearsal.members.iter().map(|it| &*it.name).collect();
    assert_eq!(names, ["a", "b"]);
    let most = |of: fn(&segue::migration::rehearsal::Rehearsed) -> u64| {
        rehearsal.members.iter().map(of).max().unwrap()
    };
    assert_eq!(rehearsal.pause_ms, most(|it| it.stall_ms));
    assert_eq!(rehearsal.acknowledged_ms, most(|it| it.acknowledged_ms));

    let after = members[0].until_phase(phase).await;
    assert!(after.verified && after.backfill_complete, "{after:?}");
    members[0]
        .until("the stalls are shown", |status| {
            let shown = status.members.iter().map(|it| (&it.name, it.stall_ms));
            shown.eq(rehearsal.members.iter().map(|it| (&it.name, it.stall_ms)))
        })
        .await;
    let state = members[0].controller.view().state.value.clone();
    assert_eq!(state, before.rehearsed(state.changed_ms));
    rehearsal.pause_ms
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rehearsal_goes_through_the_whole_fleet_and_changes_nothing_but_the_epoch() {
    let stores = Stores::in_memory().await;
    stores.fill(100).await;
    let members = [
        stores.join("a").await.unwrap(),
        stores.join("b").await.unwrap(),
    ];
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = members
        .iter()
        .map(|member| {
            let (store, stop) = (member.store(), stop.clone());
            segue::tasks::spawn_owned(async move {
                while !stop.load(Ordering::Relaxed) {
                    store.put(Put::new("busy", "x")).await.unwrap();
                    store.range(Range::key(key(1))).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            })
        })
        .collect();
    for member in &members {
        member
            .until("both there, and verified", |status| {
                status.members.len() == 2 && status.verified
            })
            .await;
    }
    for phase in [Phase::Migration, Phase::Normal] {
        if phase == Phase::Normal {
            let request = Request {
                to: phase,
                when_ready: true,
            };
            members[0].controller.switch(request).await.unwrap();
        }
        for member in &members {
            member.until_phase(phase).await;
        }
        // Clients write all the time, so one of them is refused and waits, unless none comes just then.
        let mut tries = 0;
        while rehearse(&stores, &members, phase).await == 0 {
            tries += 1;
            assert!(tries < 20, "nobody ever waits");
        }
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_is_refused_where_a_switch_would_wait_and_waits_for_the_dead_as_one_would() {
    let stores = Stores::in_memory().await;
    stores.fill(10).await;
    let member = stores.join("a").await.unwrap();
    let dead = stores.join("b").await.unwrap();
    member.until_verified().await;
    member
        .until("both there", |status| status.members.len() == 2)
        .await;
    member.until_phase(Phase::Migration).await;
    dead.kill().await;
    let request = Request {
        to: Phase::Normal,
        when_ready: false,
    };
    member.controller.switch(request).await.unwrap();
    let refused = member.controller.rehearse().await.unwrap().unwrap_err();
    assert!(
        refused.contains("not acknowledged epoch 3 yet"),
        "{refused}"
    );
    assert!(refused.ends_with('b'), "{refused}");
    eventually("the dead member lapses", async || {
        member.controller.rehearse().await.unwrap()
    })
    .await;

    let second = stores.join("c").await.unwrap();
    member
        .until("there", |status| status.members.len() == 2)
        .await;
    member.until_phase(Phase::Normal).await;
    second.kill().await;
    // It has acknowledged the present epoch, so the rehearsal begins, and sees it lapse.
    let rehearsal = member.controller.rehearse().await.unwrap().unwrap();
    let names: Vec<_> = rehearsal.members.iter().map(|it| &*it.name).collect();
    assert_eq!(names, ["a"], "{rehearsal:?}");

    member.controller.complete().await.unwrap().unwrap();
    member.until_phase(Phase::Settled).await;
    let refused = member.controller.rehearse().await.unwrap().unwrap_err();
    assert!(refused.contains("settled"), "{refused}");
}
