//! What a new store leaves behind while a migration runs.

use segue::store::{Claim, Guard, Line, PageSize, Read, ReadReply, StoreError};
use segue::types::{CompareResult, CompareTarget, Epoch, KeyRange, Put, Revision};

use super::NewFixture;
use super::dsl::*;

pub async fn written_keys_are_claimed(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    assert_eq!(subject.claims(KeyRange::all()).await, [""; 0]);
    subject.store.put("b", "1").await;
    subject.store.put("a", "1").await;
    subject.copy_up(vec![old("c", "0")]).await;
    assert_eq!(subject.claims(KeyRange::all()).await, ["a=1", "b=1", "c=0"]);
    assert_eq!(subject.claims(one("b")).await, ["b=1"]);
    assert_eq!(subject.claims(span("b", "c")).await, ["b=1"]);
}

pub async fn deleted_keys_leave_whiteouts(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    for key in ["a", "b/1", "b/2", "c"] {
        subject.store.put(key, "1").await;
    }
    subject.store.delete(one("a")).await;
    subject.store.delete(prefix("b/")).await;
    let expected = ["a whiteout", "b/1 whiteout", "b/2 whiteout", "c=1"];
    assert_eq!(subject.claims(KeyRange::all()).await, expected);
    assert_eq!(subject.claims(one("a")).await, ["a whiteout"]);
    assert_eq!(subject.store.all().await, ["c"]);
}

pub async fn revoking_and_expiry_leave_whiteouts(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    let revoked = subject.store.grant(60).await;
    let expires = subject.store.grant(3).await;
    subject.store.put_leased("revoked", "", revoked).await;
    subject.store.put_leased("expired", "", expires).await;
    let leased = segue::types::KeyValue {
        lease: expires,
        ..old("copied", "")
    };
    subject.copy_up(vec![leased]).await;
    let mut watched = subject.store.watch(KeyRange::all(), None).await;
    subject.store.store.revoke(revoked).await.unwrap();
    assert_eq!(watched.words().await, ["delete revoked"]);
    assert_eq!(watched.words().await, ["delete copied", "delete expired"]);
    let expected = ["copied whiteout", "expired whiteout", "revoked whiteout"];
    assert_eq!(subject.claims(KeyRange::all()).await, expected);
    let copies = ["copied", "expired", "revoked"].map(|key| old(key, "back"));
    assert_eq!(subject.copy_up(copies.to_vec()).await, 0);
    assert_eq!(subject.store.all().await, [""; 0]);
}

pub async fn a_whiteout_is_lifted_by_a_put_and_no_key_to_clients(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    subject.store.put("a", "1").await;
    subject.store.delete(one("a")).await;
    let before = subject.store.revision().await;
    assert_eq!(subject.store.get("a").await, None);
    assert_eq!(subject.store.delete(one("a")).await.deleted, 0);
    assert_eq!(subject.store.delete(KeyRange::all()).await.deleted, 0);
    assert_eq!(subject.store.revision().await, before);
    let txn = segue::types::Txn {
        compares: vec![missing("a")],
        ..segue::types::Txn::of(vec![put_op("a", "2")])
    };
    assert!(subject.store.txn(txn).await.succeeded);
    let kv = subject.store.get("a").await.unwrap();
    assert_eq!((kv.create_revision, kv.version), (kv.mod_revision, 1));
    assert_eq!(subject.claims(KeyRange::all()).await, ["a=2"]);
}

pub async fn claims_come_with_as_many_values_as_asked_for(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    for key in ["a", "b", "c", "d"] {
        subject.store.put(key, "1").await;
    }
    subject.store.delete(one("b")).await;
    for (values, expected) in [
        (0, ["a=", "b whiteout", "c=", "d="]),
        (2, ["a=1", "b whiteout", "c=1", "d="]),
        (9, ["a=1", "b whiteout", "c=1", "d=1"]),
    ] {
        let claims = claims(&*subject.handle, None, KeyRange::all(), values).await;
        assert_eq!(claims, expected, "{values} values");
    }
}

pub async fn claims_come_in_pages_of_which_none_is_too_large(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    let large = "v".repeat(5_000);
    for number in 0..20 {
        let value = if number < 10 { "v" } else { &large };
        subject.store.put(&format!("a{number:02}"), value).await;
    }
    subject.store.delete(span("a03", "a06")).await;
    subject.copy_up(vec![old("b", "copied")]).await;
    let guarded = &subject.handle;
    let expected = guarded.claims(KeyRange::all(), usize::MAX).await.unwrap();
    for (pairs, bytes) in [(1, 1 << 20), (4, 1 << 20), (100, 12_000), (100, 1 << 20)] {
        let mut rest = Some(KeyRange::all());
        let mut seen = Vec::new();
        while let Some(keys) = rest {
            let size = PageSize { pairs, bytes };
            let (claims, end) = guarded.first_claims(keys, size).await.unwrap();
            let live: Vec<_> = claims.iter().filter_map(Claim::live).collect();
            assert!(live.len() <= pairs, "{size:?}");
            rest = end.map(|end| KeyRange::span(end, None));
            seen.extend(claims);
        }
        assert_eq!(seen, expected, "{pairs} {bytes}");
    }
}

pub async fn reserved_keys_are_hidden_from_claims_that_cross_them(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    subject.store.put("segue/switch", "").await;
    subject.store.put("z", "").await;
    assert_eq!(subject.claims(KeyRange::all()).await, ["z="]);
}

pub async fn dropping_claims_removes_whiteouts_and_keeps_keys(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    subject.store.put("a", "1").await;
    subject.store.put("b", "1").await;
    subject.copy_up(vec![old("c", "0"), old("d", "0")]).await;
    subject.store.delete(one("a")).await;
    subject.store.delete(one("d")).await;
    let before = ["a whiteout", "b=1", "c=0", "d whiteout"];
    let too_early = subject.new.drop_claims().await;
    assert_eq!(too_early, Err(StoreError::StaleEpoch));
    assert_eq!(subject.claims(KeyRange::all()).await, before);
    set_line(&*subject.new, None).await;
    subject.new.drop_claims().await.unwrap();
    subject.new.drop_claims().await.unwrap();
    let plain = Subject::new(subject.new.guarded(Guard::None), fixture.gapless());
    assert_eq!(plain.all().await, ["b", "c"]);
    plain.put("e", "1").await;
    plain.delete(one("b")).await;
    assert_eq!(plain.all().await, ["c", "e"]);
}

pub async fn keys_that_were_there_before_win(fixture: &dyn NewFixture) {
    // Enough for several transactions.
    const KEYS: usize = 150;
    let new = fixture.new_store().await;
    let plain = new.guarded(Guard::None);
    let key = |number: usize| format!("key/{number:03}");
    for number in 0..KEYS {
        plain.put(Put::new(key(number), "before")).await.unwrap();
    }
    // An old store that was used less, so that its numbers are no room for those.
    let line = Line {
        base: Revision(3),
        ..line(1)
    };
    set_line(&*new, Some(line)).await;
    let subject = NewSubject::with(new, 1, fixture.gapless());
    subject.copy_up(vec![old("copied", "")]).await;
    for _ in 0..2 {
        subject.handle.claim_present().await.unwrap();
    }
    let claims = Read::Claims {
        keys: KeyRange::all(),
        values: 0,
    };
    let mut replies = subject.handle.snapshot(None, vec![claims]).await.unwrap();
    let Some(ReadReply::Claims(claims)) = replies.reply.pop() else {
        panic!("claims are answered with claims");
    };
    assert_eq!(claims.len(), KEYS + 1);
    for claim in &claims {
        let is_copy = matches!(claim, Claim::Copied(_));
        assert_eq!(is_copy, claim.key() == "copied", "{claim:?}");
    }

    let copies = (0..KEYS).map(|number| old(&key(number), "old")).collect();
    assert_eq!(subject.copy_up(copies).await, 0);
    let kv = subject.store.get(&key(7)).await.unwrap();
    assert_eq!((&kv.value[..], kv.version), (&b"before"[..], 1));
    assert!(kv.create_revision > Revision(0), "{kv:?}");
    assert_eq!(kv.create_revision, kv.mod_revision);
    assert!(kv.mod_revision <= subject.store.revision().await);
    let swap = segue::types::Txn {
        compares: vec![compare(
            one(&key(7)),
            CompareResult::Equal,
            CompareTarget::Mod(kv.mod_revision),
        )],
        ..segue::types::Txn::of(vec![put_op(&key(7), "swapped")])
    };
    assert!(subject.store.txn(swap).await.succeeded);

    subject.store.delete(one(&key(8))).await;
    assert_eq!(subject.copy_up(vec![old(&key(8), "old")]).await, 0);
    assert_eq!(subject.claims(one(&key(8))).await, ["key/008 whiteout"]);
}

pub async fn what_an_earlier_migration_has_copied_is_the_stores_own_in_the_next(
    fixture: &dyn NewFixture,
) {
    let earlier = NewSubject::of(fixture).await;
    earlier.copy_up(vec![old("a", "1"), old("b", "1")]).await;
    set_line(&*earlier.new, None).await;
    earlier.new.settle_claims().await.unwrap();
    let line = Line {
        base: Revision(2000),
        ..line(2)
    };
    set_line(&*earlier.new, Some(line)).await;
    let subject = NewSubject::with(earlier.new, 2, fixture.gapless());
    subject.handle.claim_present().await.unwrap();
    let copies = ["a", "b", "c"].map(|key| old(key, "2"));
    assert_eq!(subject.copy_up(copies.to_vec()).await, 1);
    // As behind the next transition.
    let line = Line {
        epoch: Epoch(3),
        ..line
    };
    set_line(&*subject.new, Some(line)).await;
    let subject = NewSubject::with(subject.new, 3, fixture.gapless());
    let claims = subject.handle.claims(KeyRange::all(), usize::MAX).await;
    let claims = claims.unwrap();
    let of_this_one = claims.iter().map(|claim| matches!(claim, Claim::Copied(_)));
    assert_eq!(
        of_this_one.collect::<Vec<_>>(),
        [false, false, true],
        "{claims:?}"
    );
    assert_eq!(subject.claims(KeyRange::all()).await, ["a=1", "b=1", "c=2"]);

    // The past has what was there before its first change.
    let before = subject.store.revision().await;
    subject.store.put("a", "3").await;
    let deleted = subject.store.delete(one("b")).await;
    assert_eq!(deleted.prev_kvs[0].value, "1");
    let past = subject.store.range(at(before, KeyRange::all())).await;
    let past: Vec<_> = past.kvs.iter().map(|kv| &kv.value[..]).collect();
    assert_eq!(past, [b"1", b"1", b"2"]);
}

pub async fn a_line_without_claims_leaves_no_whiteouts(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    subject.store.put("a", "1").await;
    subject.store.put("b", "1").await;
    subject.store.delete(one("a")).await;
    let line = Line {
        claims: false,
        ..line(2)
    };
    set_line(&*subject.new, Some(line)).await;
    let handle = subject.new.guarded(Guard::Epoch {
        epoch: Epoch(2),
        claims: false,
    });
    handle.put(Put::new("c", "1")).await.unwrap();
    let delete = segue::types::Delete {
        keys: prefix("b"),
        prev_kv: false,
    };
    assert_eq!(handle.delete(delete).await.unwrap().reply.deleted, 1);
    let range = segue::types::Range::of(KeyRange::all());
    let left = handle.range(range).await.unwrap().reply;
    assert_eq!(keys_of(&left), ["c"]);
}
