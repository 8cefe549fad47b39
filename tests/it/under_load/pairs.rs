//! Every kind of old store to every kind of new store: with the application stopped, and with a load
//! on it. Keys and values of all shapes come over unchanged.

use bytes::Bytes;
use etcd_client::{Client, GetOptions, KvClient};
use serde_json::Value;

use super::load::Load;
use super::old::{everything, fill, fill_v3, old_key};
use super::{assert_good, switch_when_ready};
use crate::history::Pair;
use crate::history::client::pair;
use crate::support::segue::{self, Segue};
use crate::support::stores::{Kind, Running};
use crate::support::{Etcd, V2, eventually, mariadb, postgres};

/// Keys to begin with.
const KEYS: usize = 400;

/// What the backfill may copy per second: slow enough for the load to come in between.
const RATE: &str = "400";

/// Requests that are done before the migration may end.
const REQUESTS: usize = 400;

/// Longest key that every store takes: `InnoDB`'s longest index entry.
const LONG_KEY: usize = 3072;

/// A value as large as etcd takes them by default, with room for the rest of the request.
const LARGE_VALUE: usize = 1_400_000;

/// Where an application's data is.
enum Old {
    Sqlite,
    Postgres,
    Mariadb,
    Etcd,
    Etcd2,
    PostgresTable,
    MariadbTable,
    SqliteTable,
}

/// An old store with something in it.
struct Filled {
    store: Running,
    /// Revision and pairs below `/`, if they could be read by other means than a migration's.
    known: Option<(i64, Vec<Pair>)>,
    odd: Vec<(Bytes, Bytes)>,
}

impl Old {
    async fn start(&self) -> Filled {
        match self {
            Self::Sqlite => filled_alone(Running::file()).await,
            Self::Postgres => filled_alone(Kind::Postgres.start().await).await,
            Self::Mariadb => filled_alone(Kind::Mariadb.start().await).await,
            Self::Etcd => {
                let store = Kind::Etcd.start().await;
                let endpoint = store.url.replace("etcd:", "http:");
                filled(store, &endpoint).await
            }
            Self::Etcd2 => {
                let etcd = Etcd::start_v2().await;
                let v2 = V2::of(&etcd);
                fill(&v2, KEYS).await;
                let known = everything(&v2).await;
                let url = etcd.v2_url();
                Filled {
                    store: Running::etcd(etcd, url),
                    known: Some(known),
                    // Keys are paths of text here.
                    odd: Vec::new(),
                }
            }
            Self::PostgresTable => {
                let odd = odd_pairs();
                let url = postgres::schema().await;
                let create = format!(
                    "CREATE SCHEMA {}; CREATE TABLE app (name bytea PRIMARY KEY, data bytea)",
                    postgres::schema_of(&url)
                );
                postgres::run(&url, &create).await;
                for rows in inserts(&odd, |hex| format!(r"'\x{hex}'::bytea")) {
                    postgres::run(&url, &rows).await;
                }
                let schema = format!("{}.", postgres::schema_of(&url));
                table(&url, &schema, odd)
            }
            Self::MariadbTable => {
                let odd = odd_pairs();
                let url = mariadb::database().await;
                let create = "CREATE TABLE app (name VARBINARY(3072) PRIMARY KEY, data LONGBLOB)";
                mariadb::run(&url, create).await;
                for rows in inserts(&odd, |hex| format!("X'{hex}'")) {
                    mariadb::run(&url, &rows).await;
                }
                table(&url, "", odd)
            }
            Self::SqliteTable => {
                let odd = odd_pairs();
                let mut store = Running::file();
                let path = store.url.trim_start_matches("sqlite:").to_owned();
                let conn = rusqlite::Connection::open(path).unwrap();
                conn.execute_batch("CREATE TABLE app (name BLOB PRIMARY KEY, data BLOB)")
                    .unwrap();
                for rows in inserts(&odd, |hex| format!("X'{hex}'")) {
                    conn.execute_batch(&rows).unwrap();
                }
                store.url = format!("{}?table=app&{COLUMNS}", store.url);
                Filled {
                    store,
                    known: None,
                    odd,
                }
            }
        }
    }
}

/// The parameters that name the table's columns.
const COLUMNS: &str = "key=name&value=data";

fn table(url: &str, schema: &str, odd: Vec<(Bytes, Bytes)>) -> Filled {
    let server = url.split('?').next().expect("there is a first part");
    Filled {
        store: Running::at(format!("{server}?table={schema}app&{COLUMNS}")),
        known: None,
        odd,
    }
}

/// Statements that put the usual keys and the odd ones into the table.
fn inserts(odd: &[(Bytes, Bytes)], literal: impl Fn(&str) -> String) -> Vec<String> {
    let usual = (0..KEYS).map(|n| (old_key(n).into(), format!("old value {n}").into()));
    let all: Vec<(Bytes, Bytes)> = usual.chain(odd.iter().cloned()).collect();
    let hex = |bytes: &Bytes| {
        let digits = |text: String, byte: &u8| text + &format!("{byte:02x}");
        bytes.iter().fold(String::new(), digits)
    };
    all.chunks(100)
        .map(|pairs| {
            let rows: Vec<_> = pairs
                .iter()
                .map(|(key, value)| format!("({}, {})", literal(&hex(key)), literal(&hex(value))))
                .collect();
            format!("INSERT INTO app (name, data) VALUES {}", rows.join(", "))
        })
        .collect()
}

/// Keys and values of every shape, outside of what the load works on.
fn odd_pairs() -> Vec<(Bytes, Bytes)> {
    let every_byte: Vec<u8> = (0..=255).collect();
    let long: Vec<u8> = [0xff]
        .into_iter()
        .chain(every_byte.iter().copied().cycle())
        .take(LONG_KEY)
        .collect();
    let large: Vec<u8> = (0..LARGE_VALUE)
        .map(|n| (n * 7 + n / 251).to_le_bytes()[0])
        .collect();
    let mut pairs: Vec<(Bytes, Bytes)> = (0..=255u8)
        .map(|byte| (vec![b'o', byte].into(), vec![byte; 3].into()))
        .collect();
    pairs.push((vec![0xff, 0xff].into(), every_byte.into()));
    pairs.push((long.into(), large.into()));
    pairs.push(("odd/empty".into(), Bytes::new()));
    pairs
}

async fn filled_alone(store: Running) -> Filled {
    let alone = Segue::start(["--new", store.url.as_str()]).await;
    filled(store, &alone.endpoint()).await
}

async fn filled(store: Running, endpoint: &str) -> Filled {
    let odd = odd_pairs();
    let mut client = kv(endpoint).await;
    for (key, value) in &odd {
        client.put(&key[..], &value[..], None).await.unwrap();
    }
    let known = fill_v3(endpoint, KEYS).await;
    Filled {
        store,
        known: Some(known),
        odd,
    }
}

async fn kv(endpoint: &str) -> KvClient {
    let client = eventually("a client connects", async || {
        Client::connect([endpoint], None)
            .await
            .map_err(|error| error.to_string())
    });
    client.await.kv_client().max_decoding_message_size(64 << 20)
}

/// Revision and pairs below `/`.
async fn list(endpoint: &str) -> (i64, Vec<Pair>) {
    let options = GetOptions::new().with_prefix();
    let answer = kv(endpoint).await.get("/", Some(options)).await.unwrap();
    let revision = answer.header().unwrap().revision();
    (revision, answer.kvs().iter().map(pair).collect())
}

async fn assert_odd(endpoint: &str, odd: &[(Bytes, Bytes)]) {
    let mut client = kv(endpoint).await;
    for (key, value) in odd {
        let answer = client.get(&key[..], None).await.unwrap();
        let [kv] = answer.kvs() else {
            panic!(
                "{} bytes of key {:?} are not there",
                key.len(),
                &key[..key.len().min(20)]
            );
        };
        assert!(
            kv.value() == &value[..],
            "the value of {:?} has changed",
            &key[..key.len().min(20)]
        );
    }
    // And in their places: the range has them all, in the order of bytes.
    let options = GetOptions::new().with_range(b"p".to_vec()).with_keys_only();
    let answer = client.get("o", Some(options)).await.unwrap();
    let keys: Vec<_> = answer
        .kvs()
        .iter()
        .map(etcd_client::KeyValue::key)
        .collect();
    let mut expected: Vec<_> = odd
        .iter()
        .map(|(key, _)| &key[..])
        .filter(|key| key[0] == b'o')
        .collect();
    expected.sort_unstable();
    assert_eq!(keys, expected);
}

/// `segue copy`, then the new store alone.
async fn copied_offline(old: &Filled, new: Kind) {
    let new = new.start().await;
    let args = ["copy", "--old", &old.store.url, "--new", &new.url, "--json"];
    let outcome = segue::run(args).await;
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let receipt: Value = serde_json::from_str(&outcome.out).unwrap();
    let alone = Segue::start(["--new", new.url.as_str()]).await;
    let (_, pairs) = list(&alone.endpoint()).await;
    assert!(!pairs.is_empty(), "{receipt}");
    if let Some((_, known)) = &old.known {
        let numbered = !new.url.starts_with("etcd:");
        assert_same(&pairs, known, numbered);
    } else {
        assert_eq!(pairs.len(), KEYS);
    }
    assert_odd(&alone.endpoint(), &old.odd).await;
}

/// etcd gives copied keys numbers of its own once the migration is over.
fn assert_same(is: &[Pair], should: &[Pair], numbered: bool) {
    let bare = |pair: &Pair| Pair {
        created: 0,
        modified: 0,
        version: 0,
        ..pair.clone()
    };
    if numbered {
        assert_eq!(is, should);
    } else {
        let bared = |pairs: &[Pair]| pairs.iter().map(bare).collect::<Vec<_>>();
        assert_eq!(bared(is), bared(should));
    }
}

/// A whole migration with a load on it.
async fn migrated_live(old: Filled, new: Kind) {
    let new = new.start().await;
    let args = [
        "--old",
        &old.store.url,
        "--new",
        &new.url,
        "--rate-keys",
        RATE,
    ];
    let segue = Segue::start(args).await;
    let endpoint = segue.endpoint();
    let (base, initial) = match old.known {
        Some(known) => known,
        None => list(&endpoint).await,
    };
    assert!(initial.len() >= KEYS - KEYS / 50 - 1, "{}", initial.len());
    let load = Load::start(std::slice::from_ref(&endpoint), base, KEYS).await;
    load.round(REQUESTS).await;
    switch_when_ready(&segue).await;
    let recorder = load.recorder.clone();
    let history = load.finish(&endpoint, base, initial).await;
    let (done, failed, unknown) = recorder.counts();
    println!("{done} requests");
    assert_eq!((failed, unknown), (0, 0), "no request may fail");
    assert_good(&history);
    assert_odd(&endpoint, &old.odd).await;
    let completed = segue.run(["complete"]).await;
    assert_eq!(completed.code, 0, "{completed:?}");
    segue
        .until("the migration is settled", |status| {
            status["phase"] == "settled"
        })
        .await;
    assert_odd(&endpoint, &old.odd).await;
}

async fn come_over(old: Old, new: Kind) {
    let old = old.start().await;
    copied_offline(&old, new).await;
    migrated_live(old, new).await;
}

macro_rules! pairs {
    ($($module:ident: $old:ident { $($name:ident: $new:ident)* })*) => {
        $(mod $module {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    super::come_over(super::Old::$old, super::Kind::$new).await;
                }
            )*
        })*
    };
}

macro_rules! matrix {
    ($($module:ident: $old:ident)*) => {
        pairs! {
            $($module: $old {
                to_sqlite: Sqlite
                to_postgres: Postgres
                to_mariadb: Mariadb
                to_etcd: Etcd
            })*
        }
    };
}

matrix! {
    from_sqlite: Sqlite
    from_postgres: Postgres
    from_mariadb: Mariadb
    from_etcd: Etcd
    from_etcd2: Etcd2
    from_a_table_in_postgres: PostgresTable
    from_a_table_in_mariadb: MariadbTable
    from_a_table_in_sqlite: SqliteTable
}
