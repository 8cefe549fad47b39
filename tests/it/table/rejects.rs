//! Rows of an application's table that are no pairs.

use bytes::Bytes;
use segue::overlay::Overlay;
use segue::store::memory::Memory;
use segue::store::{NewStore as _, PageSize, Store as _};
use segue::types::{Content, KeyRange, KeyValue, Range, Reserved, Txn};

use super::{all, pairs};
use crate::contract::dsl::{delete_op, guard, line, set_line};
use crate::support::tables::{ALL, Home};

#[tokio::test]
async fn rows_that_are_no_pairs_are_rejects_with_the_reason() {
    for kind in ALL {
        let home = Home::new(kind).await;
        home.run(
            "CREATE TABLE kv (k varchar(50), v text, r {bigint|bigint|INTEGER});\n\
             INSERT INTO kv VALUES (NULL, '1', 1), (NULL, '2', 1), ('', '3', 1), ('null', NULL, 1), \
             ('twice', '1', 1), ('twice', '2', 1), ('r0', '1', 0), ('rn', '1', NULL), ('good', '1', 5), \
             ('zzz', '1', 4)",
        )
        .await;
        let store = home.open("kv", "key=k&value=v&revision=r").await;
        for limit in [1, 2, 100] {
            let (kvs, rejects) = all(&*store, KeyRange::all(), limit).await;
            assert_eq!(pairs(&kvs), [(&b"good"[..], &b"1"[..]), (b"zzz", b"1")]);
            let said: Vec<String> = rejects
                .iter()
                .map(|(key, why)| format!("{}: {why}", key.escape_ascii()))
                .collect();
            let expected = [
                ": 3 rows have no key: NULL or empty",
                "null: its value is NULL",
                "r0: its revision is not a number from 1 to 4611686018427387904",
                "rn: its revision is not a number from 1 to 4611686018427387904",
                "twice: more than one row has this key",
            ];
            assert_eq!(said, expected, "{kind:?} {limit}");
        }
        assert_eq!(store.revision().await.unwrap().0, 5);
        // So they do where only keys are asked for.
        let size = PageSize::pairs(100);
        let scan = |content| store.scan(KeyRange::all(), size, content);
        let (full, bare) = tokio::join!(scan(Content::Full), scan(Content::KeysOnly));
        let (full, bare) = (full.unwrap(), bare.unwrap());
        assert_eq!(bare.rejects, full.rejects, "{kind:?}");
        let keys = |kvs: &[KeyValue]| kvs.iter().map(|kv| kv.key.clone()).collect::<Vec<_>>();
        assert_eq!(keys(&bare.kvs), keys(&full.kvs), "{kind:?}");
        assert!(bare.kvs.iter().all(|kv| kv.value.is_empty()), "{kind:?}");
        // Asked for one by one they say the same.
        let one = |key: &str| KeyRange::One(Bytes::copy_from_slice(key.as_bytes()));
        for (key, rejects) in [("", 1), ("twice", 1), ("good", 0)] {
            let page = store
                .scan(one(key), PageSize::pairs(1), Content::Full)
                .await
                .unwrap();
            assert_eq!(page.rejects.len(), rejects, "{kind:?} {key}");
        }
    }
}

#[tokio::test]
async fn a_row_that_expires_and_has_no_value_is_a_reject_and_no_lease() {
    for kind in ALL {
        let home = Home::new(kind).await;
        home.run(
            "CREATE TABLE kv (k varchar(50), v text, e {bigint|bigint|INTEGER});\n\
             INSERT INTO kv VALUES ('a', '1', NULL), ('b', NULL, 4000000000), ('c', '2', 4000000000)",
        )
        .await;
        let store = home.open("kv", "key=k&value=v&expires=e").await;
        let leases = store.leases().await.unwrap();
        assert_eq!(leases.len(), 1, "{kind:?}: {leases:?}");
        assert_eq!(leases[0].keys, ["c"], "{kind:?}");
    }
}

#[tokio::test]
async fn a_revision_that_leaves_no_room_behind_it_is_a_reject() {
    for kind in ALL {
        let home = Home::new(kind).await;
        home.run(
            "CREATE TABLE kv (k varchar(50) PRIMARY KEY, v text, \
             r {bigint|bigint unsigned|INTEGER});\n\
             INSERT INTO kv VALUES ('good', '1', 5), ('high', '1', 4611686018427387905), \
             ('highest', '1', {9223372036854775807|18446744073709551615|9223372036854775807})",
        )
        .await;
        let store = home.open("kv", "key=k&value=v&revision=r").await;
        let (kvs, rejects) = all(&*store, KeyRange::all(), 10).await;
        assert_eq!(pairs(&kvs), [(&b"good"[..], &b"1"[..])], "{kind:?}");
        assert_eq!(rejects.len(), 2, "{kind:?}");
        for (key, why) in rejects {
            let range = "its revision is not a number from 1 to 4611686018427387904";
            assert_eq!(why, range, "{kind:?} {key:?}");
        }
        assert_eq!(store.revision().await.unwrap().0, 5, "{kind:?}");
        home.run("UPDATE kv SET r = 4611686018427387904 WHERE k = 'good'")
            .await;
        assert_eq!(store.revision().await.unwrap().0, 1 << 62, "{kind:?}");
    }
}

#[tokio::test]
async fn clients_find_what_lies_behind_rows_that_are_no_pairs() {
    // More than any page holds.
    const REJECTS: usize = 1200;
    for kind in ALL {
        let home = Home::new(kind).await;
        let rejects: Vec<String> = (0..REJECTS).map(|n| format!("('a{n:04}', NULL)")).collect();
        home.run(&format!(
            "CREATE TABLE kv (k varchar(50) PRIMARY KEY, v text);\n\
             INSERT INTO kv VALUES {}, ('b', '1'), ('c', '2')",
            rejects.join(", ")
        ))
        .await;
        let old = home.open("kv", "key=k&value=v").await;
        let new = Memory::new();
        set_line(&new, Some(line(1))).await;
        let overlay = Overlay::new(old, new.guarded(guard(1)), Reserved::default());
        for (limit, seen) in [(1, 1), (2, 2), (0, 2)] {
            let request = Range {
                limit,
                ..Range::of(KeyRange::all())
            };
            let found = overlay.range(request).await.unwrap().reply;
            let expected = [(&b"b"[..], &b"1"[..]), (b"c", b"2")];
            assert_eq!(pairs(&found.kvs), expected[..seen], "{kind:?} {limit}");
            assert_eq!(found.count, 2, "{kind:?} {limit}");
        }
        // Without values they are as little there.
        for content in [Content::KeysOnly, Content::CountOnly] {
            let request = Range {
                content,
                ..Range::of(KeyRange::all())
            };
            let found = overlay.range(request).await.unwrap().reply;
            assert_eq!(found.count, 2, "{kind:?} {content:?}");
        }
        // Deleting them all leaves no pair of the old store to be seen, in a transaction either.
        let delete = Txn::of(vec![delete_op(KeyRange::all())]);
        overlay.txn(delete).await.unwrap();
        let left = overlay.range(Range::of(KeyRange::all())).await.unwrap();
        assert_eq!(pairs(&left.reply.kvs), [], "{kind:?}");
    }
}
