//! Tables that an application has made itself, as old store, in every database.

mod rejects;

use std::time::Duration;

use bytes::Bytes;
use segue::store::{OldStore, PageSize};
use segue::tasks::spawn_owned;
use segue::types::{Content, KeyRange, KeyValue};

use crate::contract::page::{holds_to_sizes, uneven};
use crate::support::segue::{Segue, run};
use crate::support::tables::Kind::{MariaDb, Postgres, Sqlite};
use crate::support::tables::{ALL, Home};
use crate::support::wait::{eventually, within};

/// Everything in a range, page by page.
async fn all(
    store: &dyn OldStore,
    keys: KeyRange,
    limit: usize,
) -> (Vec<KeyValue>, Vec<(Bytes, String)>) {
    let (mut kvs, mut rejects) = (Vec::new(), Vec::new());
    let mut rest = Some(keys);
    while let Some(keys) = rest.take() {
        let page = store
            .scan(keys.clone(), PageSize::pairs(limit), Content::Full)
            .await
            .unwrap();
        rest = page.rest(&keys).unwrap();
        kvs.extend(page.kvs);
        rejects.extend(page.rejects);
    }
    (kvs, rejects)
}

fn pairs(kvs: &[KeyValue]) -> Vec<(&[u8], &[u8])> {
    kvs.iter().map(|kv| (&kv.key[..], &kv.value[..])).collect()
}

fn hex(bytes: &[u8]) -> String {
    segue::migration::records::hex::encode(bytes)
}

#[tokio::test]
async fn text_comes_in_byte_order_and_is_told_apart_by_bytes_whatever_its_collation() {
    for kind in ALL {
        let home = Home::new(kind).await;
        home.run(
            "CREATE TABLE kv (k {text COLLATE \"und-x-icu\"|varchar(80) CHARACTER SET utf8mb4 \
             COLLATE utf8mb4_general_ci|TEXT COLLATE NOCASE}, v {text|text|TEXT});\n\
             CREATE INDEX kv_k ON kv (k)",
        )
        .await;
        let mut keys = vec![
            "a",
            "A",
            "b",
            "B",
            "ä",
            "Ä",
            "a b",
            "a-b",
            "ab",
            "é",
            "e",
            "z",
            "日本",
            "key/1",
            "key/10",
            "key/2",
            "segue/own",
            "a\u{301}",
            "😀",
            "%",
            "_",
            "\\",
            "'",
            "\"",
        ];
        for key in &keys {
            let literal = format!(
                "{{convert_from(decode('{0}', 'hex'), 'UTF8')|_utf8mb4 x'{0}'|CAST(x'{0}' AS TEXT)}}",
                hex(key.as_bytes())
            );
            home.run(&format!("INSERT INTO kv VALUES ({literal}, 'v')"))
                .await;
        }
        keys.retain(|key| *key != "segue/own");
        keys.sort_unstable();
        let store = home.open("kv", "key=k&value=v").await;
        for limit in [1, 2, 7, 1000] {
            let (kvs, rejects) = all(&*store, KeyRange::all(), limit).await;
            let found: Vec<&[u8]> = kvs.iter().map(|kv| &kv.key[..]).collect();
            let expected: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes()).collect();
            assert_eq!(found, expected, "{kind:?}");
            assert_eq!(rejects, []);
        }
        let asked: Vec<Bytes> = keys.iter().map(|key| Bytes::from(*key)).collect();
        let found = store.get(asked.clone()).await.unwrap();
        let found: Vec<Bytes> = found.into_iter().map(|kv| kv.unwrap().key).collect();
        assert_eq!(found, asked, "{kind:?}");
        let missing = ["E", "Z", "Key/1", "a ", "", "segue/own", "b\0"];
        let missing = missing
            .map(Bytes::from)
            .into_iter()
            .chain([Bytes::from_static(&[0xff])]);
        let found = store.get(missing.collect()).await.unwrap();
        assert!(found.iter().all(Option::is_none), "{kind:?}: {found:?}");
        let range = KeyRange::span("B", Some("b".into()));
        let (kvs, _) = all(&*store, range.clone(), 3).await;
        let expected = keys.iter().filter(|key| range.contains(key.as_bytes()));
        let expected = expected.count();
        assert_eq!(kvs.len(), expected, "{kind:?}: {kvs:?}");
        assert_eq!(store.count(range).await.unwrap(), expected);
        assert_eq!(
            store
                .scan(KeyRange::One("b".into()), PageSize::pairs(1), Content::Full)
                .await
                .unwrap()
                .kvs
                .len(),
            1
        );
    }
}

#[tokio::test]
async fn a_page_ends_where_its_bytes_are_reached() {
    for kind in ALL {
        let home = Home::new(kind).await;
        home.run(
            "CREATE TABLE kv (k {text|varchar(80)|TEXT} PRIMARY KEY, v {text|mediumtext|TEXT})",
        )
        .await;
        let pairs = uneven("k");
        for (key, value) in &pairs {
            let value = std::str::from_utf8(value).unwrap();
            home.run(&format!("INSERT INTO kv VALUES ('{key}', '{value}')"))
                .await;
        }
        let store = home.open("kv", "key=k&value=v").await;
        holds_to_sizes(&*store, &pairs).await;
    }
}

#[tokio::test]
async fn text_in_another_encoding_is_read_as_utf8() {
    let home = Home::new(MariaDb).await;
    home.run(
        "CREATE TABLE kv (k varchar(50) CHARACTER SET latin1 PRIMARY KEY, v text CHARACTER SET latin1);\n\
         INSERT INTO kv VALUES (x'e9', x'e4'), ('plain', 'x')",
    )
    .await;
    let store = home.open("kv", "key=k&value=v").await;
    let (kvs, _) = all(&*store, KeyRange::all(), 10).await;
    assert_eq!(
        pairs(&kvs),
        [(&b"plain"[..], &b"x"[..]), ("é".as_bytes(), "ä".as_bytes())]
    );
    // One of them is in no text of this encoding.
    let asked = ["é", "日", "plain"].map(Bytes::from).to_vec();
    let found = store.get(asked).await.unwrap();
    assert_eq!(found, [Some(kvs[1].clone()), None, Some(kvs[0].clone())]);
}

#[tokio::test]
async fn keys_and_values_are_any_bytes() {
    for kind in ALL {
        let home = Home::new(kind).await;
        home.run(
            "CREATE TABLE kv (k {bytea|varbinary(300)|BLOB} PRIMARY KEY, v {bytea|longblob|BLOB})",
        )
        .await;
        let mut expected: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for byte in 0..=255_u8 {
            expected.push((vec![b'k', byte], vec![byte; 3]));
            expected.push((vec![byte], Vec::new()));
        }
        let rows = expected.iter().map(|(key, value)| {
            let bytes = |bytes| format!("{{decode('{0}', 'hex')|x'{0}'|x'{0}'}}", hex(bytes));
            format!("({}, {})", bytes(key), bytes(value))
        });
        let rows: Vec<String> = rows.collect();
        home.run(&format!("INSERT INTO kv VALUES {}", rows.join(", ")))
            .await;
        expected.sort_unstable();
        let store = home.open("kv", "key=k&value=v").await;
        let (kvs, rejects) = all(&*store, KeyRange::all(), 100).await;
        let wanted: Vec<_> = expected.iter().map(|(k, v)| (&k[..], &v[..])).collect();
        assert_eq!(pairs(&kvs), wanted, "{kind:?}");
        assert_eq!(rejects, []);
        let asked = expected.iter().map(|(key, _)| key.clone().into()).collect();
        let got: Vec<_> = store
            .get(asked)
            .await
            .unwrap()
            .into_iter()
            .flatten()
            .collect();
        assert_eq!(got, kvs);
    }
}

#[tokio::test]
async fn keys_that_are_alike_for_long_come_in_their_order() {
    const KEYS: u32 = 300;
    for kind in ALL {
        let home = Home::new(kind).await;
        home.run("CREATE TABLE kv (k {bytea|varbinary(9000)|BLOB}, v {text|text|TEXT})")
            .await;
        // Longer than MariaDB looks at by itself, and in another order than that of the keys.
        let alike = "61".repeat(1100);
        let bytes = |hex: String| format!("{{decode('{hex}', 'hex')|x'{hex}'|x'{hex}'}}");
        let row = |n: u32| format!("({}, 'v')", bytes(format!("{alike}{n:04x}")));
        let rows: Vec<String> = (0..KEYS).map(|n| row(n * 7 % KEYS)).collect();
        home.run(&format!("INSERT INTO kv VALUES {}", rows.join(", ")))
            .await;
        let store = home.open("kv", "key=k&value=v").await;
        for limit in [7, 100] {
            let (kvs, rejects) = all(&*store, KeyRange::all(), limit).await;
            assert_eq!(rejects, []);
            assert_eq!(kvs.len(), KEYS as usize, "{kind:?} {limit}");
            assert!(kvs.is_sorted_by(|a, b| a.key < b.key), "{kind:?} {limit}");
        }
        // What is too long to be put in order is told, and not skipped.
        let longer = |last| format!("({}, 'v')", bytes(format!("{}{last}", "62".repeat(5000))));
        home.run(&format!(
            "INSERT INTO kv VALUES {}, {}",
            longer("00"),
            longer("01")
        ))
        .await;
        let (kvs, rejects) = all(&*store, KeyRange::all(), 100).await;
        let found = kvs.len() - KEYS as usize;
        if kind != MariaDb {
            assert_eq!((found, rejects.len()), (2, 0), "{kind:?}");
            continue;
        }
        assert_eq!((found, rejects.len()), (0, 1), "{rejects:?}");
        let why = "2 rows have a key of more than 4096 bytes";
        assert!(rejects[0].1.contains(why), "{rejects:?}");
        let mut long = vec![0x62; 5000];
        long.push(0);
        let error = store.get(vec![long.into()]).await.unwrap_err();
        assert!(error.to_string().contains("4096 bytes"), "{error}");
    }
}

#[tokio::test]
async fn a_servers_own_defaults_change_nothing_about_what_is_read() {
    let server = crate::support::MariaDb::start().await;
    let home = Home::on(&server).await;
    home.run(
        "CREATE TABLE kv (k varchar(50) PRIMARY KEY, v text, e bigint);\n\
         SET GLOBAL autocommit = 0;\n\
         SET GLOBAL sql_select_limit = 7;\n\
         SET GLOBAL max_sort_length = 64",
    )
    .await;
    let rows = |numbers: std::ops::Range<u32>| {
        let rows = numbers.map(|n| format!("('{n:04}', '{n}', 4000000000)"));
        format!(
            "BEGIN; INSERT INTO kv VALUES {}; COMMIT",
            rows.collect::<Vec<_>>().join(", ")
        )
    };
    home.run(&rows(0..20)).await;
    let store = home.open("kv", "key=k&value=v&expires=e").await;
    assert_eq!(store.leases().await.unwrap().len(), 20);
    let keys = (0..20).map(|n| Bytes::from(format!("{n:04}")));
    let found = store.get(keys.collect()).await.unwrap();
    assert!(found.iter().all(Option::is_some), "{found:?}");
    // No transaction is left open, in which nothing new would be seen.
    home.run(&rows(20..30)).await;
    assert_eq!(store.count(KeyRange::all()).await.unwrap(), 30);
}

#[tokio::test]
async fn what_is_neither_text_nor_a_number_is_read_as_its_bytes() {
    let home = Home::new(MariaDb).await;
    home.run(
        "CREATE TABLE kv (k bit(12) PRIMARY KEY, b bit(20), p point, g geometry, u uuid);\n\
         INSERT INTO kv VALUES (b'100011111010', b'11111000000011111111', ST_GeomFromText('POINT(1 2)'), \
         ST_GeomFromText('LINESTRING(0 0, 300 -5)'), '123e4567-e89b-12d3-a456-426655440000')",
    )
    .await;
    let mut point = vec![0, 0, 0, 0, 1, 1, 0, 0, 0];
    point.extend(1f64.to_le_bytes());
    point.extend(2f64.to_le_bytes());
    let mut line = vec![0, 0, 0, 0, 1, 2, 0, 0, 0, 2, 0, 0, 0];
    for at in [0f64, 0.0, 300.0, -5.0] {
        line.extend(at.to_le_bytes());
    }
    let uuid = b"123e4567-e89b-12d3-a456-426655440000".to_vec();
    for (column, value) in [
        ("b", vec![0x0f, 0x80, 0xff]),
        ("p", point),
        ("g", line),
        ("u", uuid),
    ] {
        let store = home.open("kv", &format!("key=k&value={column}")).await;
        let (kvs, rejects) = all(&*store, KeyRange::all(), 10).await;
        assert_eq!(pairs(&kvs), [(&[0x08, 0xfa][..], &value[..])], "{column}");
        assert_eq!(rejects, []);
        let found = store.get(vec![kvs[0].key.clone()]).await.unwrap();
        assert_eq!(found, [Some(kvs[0].clone())]);
    }
}

#[tokio::test]
async fn a_domain_is_read_as_what_it_is_made_of_in_the_end() {
    let home = Home::new(Postgres).await;
    home.run(
        "CREATE DOMAIN inner_bytes AS bytea; CREATE DOMAIN outer_bytes AS inner_bytes; \
         CREATE DOMAIN inner_number AS bigint; CREATE DOMAIN outer_number AS inner_number; \
         CREATE TABLE kv (k outer_bytes PRIMARY KEY, v outer_bytes, r outer_number); \
         INSERT INTO kv VALUES ('\\x6b00', '\\xff', 7)",
    )
    .await;
    let store = home.open("kv", "key=k&value=v&revision=r").await;
    let (kvs, rejects) = all(&*store, KeyRange::all(), 10).await;
    assert_eq!(pairs(&kvs), [(&b"k\0"[..], &b"\xff"[..])]);
    assert_eq!((kvs[0].mod_revision.0, rejects), (7, vec![]));
    let found = store.get(vec![kvs[0].key.clone()]).await.unwrap();
    assert_eq!(found, [Some(kvs[0].clone())]);
}

#[tokio::test]
async fn values_of_other_types_are_their_text_and_numbers_can_be_keys() {
    for kind in ALL {
        let home = Home::new(kind).await;
        home.run(
            "CREATE TABLE kv (id {bigint|bigint|INTEGER} PRIMARY KEY, c {char(5)|char(5)|CHAR(5)}, \
             j {json|json|TEXT}, n {integer|integer|INTEGER});\n\
             INSERT INTO kv VALUES (7, 'abc', '{\"a\": 1}', 12), (10, 'x', '[]', -3)"
                .replace("'{\"a\": 1}'", "'[1, 2]'")
                .as_str(),
        )
        .await;
        for (column, first) in [("c", "abc"), ("j", "[1, 2]"), ("n", "12")] {
            let store = home.open("kv", &format!("key=id&value={column}")).await;
            let (kvs, _) = all(&*store, KeyRange::all(), 1).await;
            let keys: Vec<&[u8]> = kvs.iter().map(|kv| &kv.key[..]).collect();
            assert_eq!(keys, [b"10", &b"7"[..]], "{kind:?}");
            assert_eq!(kvs[1].value, first, "{kind:?} {column}");
            let one = store.get(vec!["7".into(), "07".into()]).await.unwrap();
            assert_eq!(one, [Some(kvs[1].clone()), None]);
        }
    }
}

#[tokio::test]
async fn several_columns_are_one_key() {
    for kind in ALL {
        let home = Home::new(kind).await;
        home.run(
            "CREATE TABLE kv (tenant varchar(50), name varchar(50), v text, PRIMARY KEY (tenant, name));\n\
             INSERT INTO kv VALUES ('a', 'x', '1'), ('a', 'y/z', '2'), ('a/y', 'w', '3'), ('', 'e', '4'), \
             ('t', '', '5'), ('d', 'd/d', '6'), ('d/d', 'd', '7')",
        )
        .await;
        let store = home.open("kv", "key=tenant,name&value=v").await;
        let (kvs, rejects) = all(&*store, KeyRange::all(), 2).await;
        let expected: [(&[u8], &[u8]); 5] = [
            (b"/e", b"4"),
            (b"a/x", b"1"),
            (b"a/y/w", b"3"),
            (b"a/y/z", b"2"),
            (b"t/", b"5"),
        ];
        assert_eq!(pairs(&kvs), expected, "{kind:?}");
        assert_eq!(rejects.len(), 1);
        assert_eq!(rejects[0].0, "d/d/d");
        assert!(rejects[0].1.contains("more than one row"), "{rejects:?}");
        let asked = kvs.iter().map(|kv| kv.key.clone()).collect();
        let got: Vec<_> = store
            .get(asked)
            .await
            .unwrap()
            .into_iter()
            .flatten()
            .collect();
        assert_eq!(got, kvs);
        let error = store.get(vec!["d/d/d".into()]).await.unwrap_err();
        assert!(error.to_string().contains("more than one row"), "{error}");
        assert_eq!(store.get(vec!["a".into()]).await.unwrap(), [None]);
    }
}

#[tokio::test]
async fn an_infinite_time_of_expiry_is_none() {
    let home = Home::new(Postgres).await;
    for of in ["timestamptz", "timestamp", "date"] {
        home.run(&format!(
            "DROP TABLE IF EXISTS kv;\n\
             CREATE TABLE kv (k text PRIMARY KEY, v text, e {of});\n\
             INSERT INTO kv VALUES ('a', '1', 'infinity'), ('b', '2', '-infinity'), ('c', '3', NULL), \
             ('d', '4', '2100-01-01')"
        ))
        .await;
        let store = home.open("kv", "key=k&value=v&expires=e").await;
        let (kvs, rejects) = all(&*store, KeyRange::all(), 10).await;
        assert_eq!(rejects, [], "{of}");
        let found: Vec<_> = kvs
            .iter()
            .map(|kv| (&kv.key[..], kv.lease.is_some()))
            .collect();
        let expected: [(&[u8], bool); 3] = [(b"a", false), (b"c", false), (b"d", true)];
        assert_eq!(found, expected, "{of}");
        assert_eq!(store.leases().await.unwrap().len(), 1, "{of}");
        assert_eq!(store.count(KeyRange::all()).await.unwrap(), 3, "{of}");
        assert!(store.mark(None).await.unwrap().is_some(), "{of}");
    }
}

#[tokio::test]
async fn revisions_and_leases_come_from_their_columns() {
    for kind in ALL {
        for (of, soon, past) in [
            (
                "{timestamptz|datetime|TEXT}",
                "{now() + interval '100 s'|UTC_TIMESTAMP() + INTERVAL 100 SECOND|datetime('now', '+100 seconds')}",
                "{now() - interval '1 s'|UTC_TIMESTAMP() - INTERVAL 1 SECOND|datetime('now', '-1 seconds')}",
            ),
            (
                "{bigint|bigint|INTEGER}",
                "{extract(epoch from now())::bigint + 100|UNIX_TIMESTAMP() + 100|strftime('%s', 'now') + 100}",
                "1000",
            ),
        ] {
            let home = Home::new(kind).await;
            home.run(&format!(
                "CREATE TABLE kv (k varchar(50) PRIMARY KEY, v text, r {{int|int|INTEGER}}, e {of});\n\
                 INSERT INTO kv VALUES ('a', '1', 7, NULL), ('b', '2', 9, {soon}), ('c', '3', 8, {past})"
            ))
            .await;
            let store = home.open("kv", "key=k&value=v&revision=r&expires=e").await;
            let (kvs, rejects) = all(&*store, KeyRange::all(), 10).await;
            assert_eq!(rejects, []);
            let keys: Vec<&[u8]> = kvs.iter().map(|kv| &kv.key[..]).collect();
            assert_eq!(keys, [b"a", b"b"], "{kind:?} {of}");
            let numbers = kvs
                .iter()
                .map(|kv| (kv.create_revision.0, kv.mod_revision.0, kv.version));
            assert_eq!(numbers.collect::<Vec<_>>(), [(7, 7, 1), (9, 9, 1)]);
            assert!(!kvs[0].lease.is_some());
            let leases = store.leases().await.unwrap();
            assert_eq!(leases.len(), 1, "{kind:?} {of}");
            assert_eq!(leases[0].id, kvs[1].lease);
            assert_eq!(leases[0].keys, ["b"]);
            // PostgreSQL rounds what was written, up to half a second.
            assert!((90..=101).contains(&leases[0].ttl_s), "{leases:?}");
            assert_eq!(store.get(vec!["c".into()]).await.unwrap(), [None]);
            assert_eq!(store.count(KeyRange::all()).await.unwrap(), 2);
            assert_eq!(store.revision().await.unwrap().0, 9);
        }
    }
    let home = Home::new(Sqlite).await;
    home.run(
        "CREATE TABLE kv (k TEXT, v TEXT, e);\n\
         INSERT INTO kv VALUES ('a', '1', 'soon'), ('b', '1', 1900000000000)",
    )
    .await;
    let store = home.open("kv", "key=k&value=v&expires=e").await;
    let (kvs, rejects) = all(&*store, KeyRange::all(), 10).await;
    assert_eq!((kvs.len(), rejects.len()), (0, 2));
    assert!(rejects[1].1.contains("not milliseconds"), "{rejects:?}");
}

#[tokio::test]
async fn a_server_does_not_work_on_for_a_read_that_nobody_waits_for() {
    for kind in [Postgres, MariaDb] {
        let home = Home::new(kind).await;
        home.run(
            "CREATE TABLE kv (k {text|varchar(80)} PRIMARY KEY, v text);\n\
             CREATE VIEW slow AS SELECT k, v FROM kv \
             WHERE k <> 'slow' OR {pg_sleep(600) IS NULL|SLEEP(600) = 2}",
        )
        .await;
        let store = home.open("slow", "key=k&value=v").await;
        home.run("INSERT INTO kv VALUES ('slow', ''), ('quick', '')")
            .await;
        // As many as there are connections.
        let scans: Vec<_> = (0..4)
            .map(|_| {
                let store = store.clone();
                spawn_owned(async move {
                    store
                        .scan(KeyRange::all(), PageSize::pairs(10), Content::Full)
                        .await
                })
            })
            .collect();
        eventually("scans are under way", async || match home.asleep().await {
            4 => Ok(()),
            count => Err(count),
        })
        .await;
        for scan in &scans {
            scan.abort();
        }
        let soon = Duration::from_secs(20);
        let quick = store.get(vec!["quick".into()]);
        let found = tokio::time::timeout(soon, quick).await.unwrap().unwrap();
        assert!(found[0].is_some(), "{kind:?}");
        let left = within(soon, async || match home.asleep().await {
            0 => Ok(()),
            count => Err(count),
        });
        left.await.unwrap();
    }
}

#[tokio::test]
async fn names_are_looked_up_and_never_run() {
    for kind in ALL {
        let home = Home::new(kind).await;
        home.run(
            "CREATE TABLE {\"odd \"\" `name`;\"|`odd \" ``name``;`|\"odd \"\" `name`;\"} \
             ({\"the key\"|`the key`|\"the key\"} varchar(50), {\"va\"\"l\"|`va\"l`|\"va\"\"l\"} text);\n\
             INSERT INTO {\"odd \"\" `name`;\"|`odd \" ``name``;`|\"odd \"\" `name`;\"} VALUES ('a', '1')",
        )
        .await;
        let name = "odd%20%22%20%60name%60%3B";
        let store = home.open(name, "key=the%20key&value=va%22l").await;
        let (kvs, _) = all(&*store, KeyRange::all(), 10).await;
        assert_eq!(pairs(&kvs), [(&b"a"[..], &b"1"[..])], "{kind:?}");
        let one = store.get(vec!["a".into()]).await.unwrap();
        assert!(one[0].is_some());
        for (table, parameters, hint) in [
            ("kv", "key=k&value=v", "there is no such table"),
            (
                "kv%22;DROP%20TABLE%20x",
                "key=k&value=v",
                "there is no such table",
            ),
            (
                name,
                "key=k&value=va%22l",
                "no such column; it has the key, va\"l",
            ),
            (
                name,
                "key=the%20key&value=1",
                "value=1: the table has no such column",
            ),
            (name, "key=the%20key&value=va%22l&revision=r", "revision=r"),
        ] {
            let error = home.try_open(table, parameters).await.err().unwrap();
            assert!(error.to_string().contains(hint), "{kind:?}: {error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        if kind != Sqlite {
            let of = "key=the%20key&value=va%22l&revision=the%20key";
            let error = home.try_open(name, of).await.err().unwrap();
            assert!(
                error.to_string().contains("has to be an integer"),
                "{error}"
            );
        }
    }
}

#[tokio::test]
async fn an_application_moves_off_its_table_while_it_works() {
    for kind in ALL {
        let home = Home::new(kind).await;
        home.run("CREATE TABLE kv (k varchar(50) PRIMARY KEY, v text)")
            .await;
        let rows: Vec<String> = (0..3000)
            .map(|n| format!("('key/{n:04}', '{n}')"))
            .collect();
        home.run(&format!("INSERT INTO kv VALUES {}", rows.join(", ")))
            .await;
        let old = home.table("kv", "key=k&value=v");
        let new = format!("sqlite:{}", home.path("new.db"));
        let segue = Segue::start(["--old", &old, "--new", &new, "--rate-keys", "2000"]).await;
        // Counters that clients add to while the backfill passes: each starts from the table's row.
        let clients = (0..4).map(|client| {
            let endpoint = segue.endpoint();
            segue::tasks::spawn_owned(async move {
                let mut etcd = etcd_client::Client::connect([endpoint], None)
                    .await
                    .unwrap();
                for n in (client..3000).step_by(40) {
                    let key = format!("key/{n:04}");
                    let found = etcd.get(key.clone(), None).await.unwrap();
                    assert_eq!(found.kvs()[0].value_str().unwrap(), n.to_string());
                    etcd.put(key.clone(), format!("new {n}"), None)
                        .await
                        .unwrap();
                    let found = etcd.get(key, None).await.unwrap();
                    assert_eq!(found.kvs()[0].value_str().unwrap(), format!("new {n}"));
                }
            })
        });
        for client in clients.collect::<Vec<_>>() {
            client.await.unwrap();
        }
        segue
            .until("it is verified", |status| status["verified"] == true)
            .await;
        for command in [vec!["switch", "normal", "--wait"], vec!["complete"]] {
            let outcome = segue.run(command).await;
            assert_eq!(outcome.code, 0, "{kind:?}: {outcome:?}");
        }
        let mut etcd = etcd_client::Client::connect([segue.endpoint()], None)
            .await
            .unwrap();
        let all = etcd_client::GetOptions::new().with_prefix();
        let found = etcd.get("key/", Some(all)).await.unwrap();
        assert_eq!(found.kvs().len(), 3000);
        for (n, kv) in found.kvs().iter().enumerate() {
            let changed = n % 40 < 4;
            let expected = if changed {
                format!("new {n}")
            } else {
                n.to_string()
            };
            assert_eq!(kv.value_str().unwrap(), expected, "{kind:?}");
        }
    }
}

#[tokio::test]
async fn a_table_is_copied_offline_with_its_leases() {
    for kind in ALL {
        let home = Home::new(kind).await;
        home.run(
            "CREATE TABLE kv (k varchar(50), v text, e {bigint|bigint|INTEGER});\n\
             INSERT INTO kv VALUES ('a', '1', NULL), ('b', '2', 4000000000)",
        )
        .await;
        let old = home.table("kv", "key=k&value=v&expires=e");
        let new = format!("sqlite:{}", home.path("new.db"));
        let outcome = run(["copy", "--old", &old, "--new", &new]).await;
        assert_eq!(outcome.code, 0, "{kind:?}: {outcome:?}");
        assert!(outcome.out.contains("2 keys"), "{outcome:?}");
        assert!(outcome.out.contains("1 leases"), "{outcome:?}");
        assert!(!outcome.out.contains("hunter2"), "{outcome:?}");
        home.run("INSERT INTO kv VALUES ('a', '3', NULL), (NULL, '1', NULL)")
            .await;
        let outcome = run(["copy", "--old", &old, "--new", &new, "--force"]).await;
        assert_eq!(outcome.code, 1, "{kind:?}: {outcome:?}");
        for hint in ["a: more than one row", ": one row has no key"] {
            assert!(outcome.err.contains(hint), "{outcome:?}");
        }
        // Nothing can go into an application's table.
        let outcome = run(["copy", "--old", &new, "--new", &old]).await;
        assert_eq!(outcome.code, 2, "{outcome:?}");
        assert!(
            outcome.err.contains("cannot be the new store"),
            "{outcome:?}"
        );
    }
}
