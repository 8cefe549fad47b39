//! A rollback that cannot be carried to its end.

use std::sync::Arc;
use std::time::Duration;

use segue::migration::Timing;
use segue::migration::mirror::{MIRROR, Position};
use segue::migration::phase::Phase;
use segue::migration::status::Status;
use segue::store::memory::Memory;
use segue::store::{AsOld, Line, NewStore, Record, RecordTxn, RecordWrite};
use segue::types::{Epoch, LeaseId};

use super::fleet::{Stores, TIMING, get, grant, key, put, put_leased};
use super::gate::{Gate, Mode};
use super::rollback::roll_back;
use crate::support::eventually;

/// What a member writes that lets the old store in, if the position is as it was.
fn opening(position: &Record, epoch: u64) -> RecordTxn {
    let said: Position = serde_json::from_slice(&position.value).unwrap();
    RecordTxn {
        expect: vec![(MIRROR.into(), position.version)],
        writes: vec![RecordWrite {
            name: MIRROR.into(),
            value: Some(position.value.clone()),
        }],
        line: Some(Some(Line {
            epoch: Epoch(epoch),
            claims: false,
            base: said.through,
        })),
        ..RecordTxn::default()
    }
}

fn is_called_off(status: &Status) -> bool {
    status.phase == "migration" && status.stage == "open" && status.called_off.is_some()
}

async fn position(old: &Memory) -> Record {
    old.records(MIRROR).await.unwrap().remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_in_which_the_old_store_fails_is_called_off_and_works_when_it_is_back() {
    let source = Arc::new(Memory::new());
    let gate = Gate::before(source.clone());
    let stores = Stores {
        old: Arc::new(AsOld::of(gate.clone()).await.unwrap()),
        source: source.clone(),
        new: Arc::new(Memory::new()),
    };
    stores.fill(20).await;
    grant(&*source, 77, 600).await;
    put_leased(&*source, "leased", 77).await;
    let hasty = |options: &mut segue::migration::Options| {
        options.timing = Timing {
            rollback: Duration::from_millis(500),
            ..TIMING
        };
    };
    let member = stores.join_as("a", hasty).await.unwrap();
    member.until_verified().await;
    let store = member.store();
    put(&*store, "before", "1").await;
    let follows = |status: &Status| {
        status.way_back.is_some_and(|standing| standing.behind == 0)
            && status.way_back_waits.is_none()
    };
    member.until("mirrored", follows).await;

    // Gone when the rollback has just begun.
    let draining = member.controller.view().state.value.epoch.next();
    gate.set(Mode::Hold(MIRROR));
    member.controller.rollback().await.unwrap().unwrap();
    gate.holds().await;
    gate.set(Mode::Cut);
    member.until("called off", is_called_off).await;
    put(&*store, "behind", "1").await;
    assert_eq!(get(&*store, &key(3)).await.unwrap().value, "old");

    let waits = |status: &Status| {
        let why = status.way_back_waits.as_deref().unwrap_or_default();
        why.contains("the mirror does not get on: ")
    };
    member.until("the mirror is in trouble", waits).await;
    let refused = member.controller.rollback().await.unwrap().unwrap_err();
    assert!(refused.contains("does not get on"), "{refused}");
    let seen = member.controller.preview(Phase::Passthrough).await.unwrap();
    assert!(
        !seen.done && seen.why.contains("does not get on"),
        "{seen:?}"
    );

    // Whoever has not heard that it was called off opens the old store, or would a moment later.
    let before = position(&source).await;
    let late = opening(&before, draining.next().0);
    assert!(source.write_records(late.clone()).await.unwrap());
    let between = position(&source).await;
    gate.set(Mode::Open);
    member.until("mirrored again", follows).await;
    assert_eq!(source.line().await.unwrap(), None);
    for late in [late, opening(&between, draining.next().0)] {
        assert!(!source.write_records(late).await.unwrap());
    }
    let now: Position = serde_json::from_slice(&position(&source).await.value).unwrap();
    assert!(now.epoch > draining, "{now:?}");
    assert_eq!(get(&*source, "behind").await.unwrap().value, "1");
    assert_eq!(get(&*source, "leased").await.unwrap().lease, LeaseId::NONE);

    roll_back(&member).await;
    assert_eq!(stores.old_content().await.len(), 23);
    assert_eq!(get(&*store, "leased").await.unwrap().lease, LeaseId(77));
    put(&*store, "at last", "1").await;
    eventually("the old store serves", async || {
        get(&*source, "at last").await.ok_or(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_that_the_old_store_never_answers_is_called_off() {
    let source = Arc::new(Memory::new());
    let gate = Gate::before(source.clone());
    let stores = Stores {
        old: Arc::new(AsOld::of(gate.clone()).await.unwrap()),
        source,
        new: Arc::new(Memory::new()),
    };
    stores.fill(5).await;
    let hasty = |options: &mut segue::migration::Options| {
        options.timing = Timing {
            rollback: Duration::from_millis(200),
            ..TIMING
        };
    };
    let member = stores.join_as("a", hasty).await.unwrap();
    member
        .until("mirrored", |status| {
            status.backfill_complete && status.way_back.is_some()
        })
        .await;
    gate.set(Mode::Hold(MIRROR));
    member.controller.rollback().await.unwrap().unwrap();
    let status = member.until("called off", is_called_off).await;
    let why = status.called_off.unwrap();
    assert!(why.contains("it was not done within 200ms"), "{why}");
    put(&*member.store(), "behind", "1").await;
    gate.set(Mode::Open);
    roll_back(&member).await;
    assert_eq!(stores.old_content().await.len(), 6);
}
