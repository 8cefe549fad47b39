//! Which URLs are read as what.

use super::*;

fn etcd(hosts: &[&str], account: Option<(&str, Option<&str>)>) -> Cluster {
    Cluster {
        hosts: hosts.iter().map(ToString::to_string).collect(),
        account: account.map(|(user, password)| Account {
            user: user.into(),
            password: password.map(Secret::new),
        }),
    }
}

#[test]
fn right_urls_are_read() {
    use StoreUrl::{Etcd, Etcd2, Memory, Sqlite};
    for (text, url, shown) in [
        ("memory:", Memory, "memory:"),
        ("sqlite:new.db", Sqlite("new.db".into()), "sqlite:new.db"),
        ("sqlite:///var/x", Sqlite("/var/x".into()), "sqlite:/var/x"),
        ("sqlite:a b@c:d", Sqlite("a b@c:d".into()), "sqlite:a b@c:d"),
        (
            "etcd://h1:1,h2:2/",
            Etcd(etcd(&["h1:1", "h2:2"], None)),
            "etcd://h1:1,h2:2",
        ),
        (
            "ETCD2://h",
            Etcd2(etcd(&["h:2379"], None)),
            "etcd2://h:2379",
        ),
        (
            "etcd://[::1],[::2]:9",
            Etcd(etcd(&["[::1]:2379", "[::2]:9"], None)),
            "etcd://[::1]:2379,[::2]:9",
        ),
        (
            "etcd2://root:pa%40ss:w@rd/x@h:1",
            Etcd2(etcd(&["h:1"], Some(("root", Some("pa@ss:w@rd/x"))))),
            "etcd2://root@h:1",
        ),
        (
            "etcd://root:@h:1",
            Etcd(etcd(&["h:1"], Some(("root", None)))),
            "etcd://root@h:1",
        ),
    ] {
        let parsed: StoreUrl = text.parse().unwrap();
        assert_eq!(parsed, url, "{text}");
        assert_eq!(parsed.to_string(), shown, "{text}");
    }
}

#[test]
fn wrong_urls_are_told_what_to_write() {
    for (text, hint) in [
        ("", "write one of"),
        ("localhost:2379", "write one of"),
        ("memory:x", "write one of"),
        ("http://h:2379", "etcd2://HOST:PORT"),
        ("https://h:2379", "not supported by this version yet"),
        ("postgres://h/db", "the user is missing"),
        ("postgres:u@h/db", "no `//`"),
        ("postgres://u@h", "the database is missing"),
        ("postgres://u@h/", "the database is missing"),
        ("postgres://@h/db", "empty user name"),
        ("postgres://u@/db", "name is missing"),
        ("postgres://u@h:x/db", "port"),
        ("postgres://u@h,i/db", "more than one host"),
        ("postgres://u@%2Frun:0/db", "port"),
        ("postgres://u@h/%ff", "UTF-8"),
        ("postgres://u@h/db?host=/run", "both a host and a socket"),
        ("postgres://u@/db?host=run", "absolute path"),
        ("postgres://u@h/db?sslmode=require", "sslmode=verify-full"),
        ("postgres://u@h/db?sslmode=on", "verify-full or disable"),
        ("postgres://u@h/db?sslmode=disable&sslrootcert=/x", "no use"),
        ("postgres://u@/db?host=/run&sslmode=verify-full", "no TLS"),
        ("postgres://u@h/db?schema=A", "lower-case"),
        ("postgres://u@h/db?prefix=1a", "no digit first"),
        ("postgres://u@h/db?prefix=", "no value"),
        ("postgres://u@h/db?prefix=a&prefix=b", "twice"),
        ("postgres://u@h/db?timeout=3", "`timeout=` behind its `?`"),
        ("postgres://u@h/db?timeout=3", "schema=, prefix=, sslmode="),
        ("postgres://u@h/db?ssl-mode=DISABLED", "not known"),
        ("postgres://u@h/db?key=k", "key= without table="),
        ("postgres://u@h/db?table=t&key=k", "without key= or value="),
        (
            "postgres://u@h/db?table=a.b.c&key=k&value=v",
            "more than one",
        ),
        (
            "postgres://u@h/db?table=t&key=k,&value=v",
            "empty in a part",
        ),
        (
            "postgres://u@h/db?table=t&key=k&value=v&prefix=p",
            "table=SCHEMA.TABLE",
        ),
        ("mysql://u@h/db?schema=s", "known are prefix=, ssl-mode="),
        (
            "mysql://u@h/db?ssl-mode=required",
            "ssl-mode=VERIFY_IDENTITY",
        ),
        ("sqlite:x?prefix=p", "known are table="),
        ("sqlite:?table=t", "sqlite:PATH"),
        ("sqlite:", "sqlite:PATH"),
        ("sqlite::memory:", "memory:"),
        ("etcd:h:1", "etcd://HOST:PORT"),
        ("etcd://", "a host is missing"),
        ("etcd://u:p@", "a host is missing"),
        ("etcd://h:1,", "host 2"),
        ("etcd://h:0", "port"),
        ("etcd://h:99999", "port"),
        ("etcd://::1", "brackets"),
        ("etcd://[h]:1", "brackets"),
        ("etcd://h x:1", "characters"),
        ("etcd2://h:1/v2/keys", "nothing may follow"),
        ("etcd2://h:1?x=y", "nothing may follow"),
        ("etcd://:p@h", "empty user name"),
        ("etcd://%ff:p@h", "UTF-8"),
    ] {
        let complaint = text.parse::<StoreUrl>().unwrap_err().to_string();
        assert!(complaint.contains(hint), "{text}: {complaint}");
    }
}

#[test]
fn a_password_is_never_shown() {
    for text in [
        "etcd://root:hunter2@h:1",
        "etcd2://root:hunter2@h:1,",
        "etcd://root:hunter2",
        "etcd://hunter2@:x",
        "etcd2://:hunter2@h",
        "hunter2://h",
        "root:hunter2@h:2379",
        "etcd:root:hunter2@h",
        "etcd://root:hunter2%ff@h",
        "http://root:hunter2@h",
        "postgres://root:hunter2@h",
        "postgres://root:hunter2@h/db",
        "postgres:root:hunter2@h/db",
        "postgres://root:a?hunter2@h/db",
        "postgres://root:a@b?hunter2=@h/db",
        "postgres://root:a@b/c?hunter2=@h/db",
        "postgres://root:hunter2%ff@h/db",
        "mysql://root:hunter2/x@h:1/db?prefix=a",
        "mysql://root:hunter2",
        "mariadb://root:hunter2@h/db?table=t&key=k&value=v",
    ] {
        let parsed = text.parse::<StoreUrl>();
        let shown = match &parsed {
            Ok(url) => format!("{url} {url:?} {:?} {:#?}", url.account(), parsed),
            Err(error) => format!("{error} {error:?}"),
        };
        assert!(!shown.contains("hunter2"), "{text}: {shown}");
    }
}

#[test]
fn a_password_from_elsewhere_goes_where_one_is_missing() {
    for (text, lacks, password) in [
        ("etcd://root:@h", Some("root"), Some("given")),
        ("etcd2://root@h", Some("root"), Some("given")),
        ("etcd2://root:own@h", None, Some("own")),
        ("etcd2://h", None, None),
        ("sqlite:x", None, None),
        ("postgres://root@h/d", None, Some("given")),
        ("mysql://root:own@h/d", None, Some("own")),
        (
            "mysql://root@h/d?table=t&key=k&value=v",
            None,
            Some("given"),
        ),
    ] {
        let mut url: StoreUrl = text.parse().unwrap();
        assert_eq!(url.lacks_password(), lacks, "{text}");
        url.supply_password(Secret::new("given"));
        let now = url.account().and_then(|a| a.password.as_ref());
        assert_eq!(now.map(Secret::expose), password, "{text}");
    }
}

#[test]
fn a_password_file_ends_at_its_first_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("password");
    std::fs::write(&path, "hunter2\n").unwrap();
    assert_eq!(password_file(&path).unwrap().expose(), "hunter2");
    assert!(password_file(&dir.path().join("none")).is_err());
}

fn database(text: &str) -> Database {
    match text.parse().unwrap() {
        StoreUrl::Postgres(database) | StoreUrl::Mysql(database) => database,
        other => panic!("{other} is no database"),
    }
}

#[test]
fn databases_are_found_where_they_are() {
    let name = |name: &str| Host::Name(name.into());
    let socket = |path: &str| Host::Socket(path.into());
    for (text, host, port, db) in [
        ("postgres://u@h/db", name("h"), 5432, "db"),
        (
            "postgresql://u:p@10.0.0.1:1/a%2Fb",
            name("10.0.0.1"),
            1,
            "a/b",
        ),
        ("POSTGRES://u@[::1]/db", name("::1"), 5432, "db"),
        ("postgres://u@[::1]:9/db", name("::1"), 9, "db"),
        ("postgres://u@/db?host=/run/x", socket("/run/x"), 5432, "db"),
        ("postgres://u@%2Frun%2Fx:7/db", socket("/run/x"), 7, "db"),
        (
            "postgres://u@localhost:7/db?host=%2Frun",
            socket("/run"),
            7,
            "db",
        ),
        ("mysql://u@h/db", name("h"), 3306, "db"),
        ("mariadb://u@h:8/db", name("h"), 8, "db"),
        ("mysql://u@localhost/db?socket=/s", socket("/s"), 3306, "db"),
    ] {
        let found = database(text);
        assert_eq!(found.host, host, "{text}");
        assert_eq!((found.port, found.name.as_str()), (port, db), "{text}");
        assert_eq!(found.account.user, "u", "{text}");
    }
}

#[test]
fn what_is_segues_in_a_database_can_be_named() {
    for (text, schema, prefix) in [
        ("postgres://u@h/db", "segue", "segue_"),
        ("postgres://u@h/db?schema=a1&prefix=b_", "a1", "b_"),
        ("mysql://u@h/db", "", "segue_"),
        ("mysql://u@h/db?&prefix=x", "", "x"),
    ] {
        let found = database(text);
        let names = (found.schema.as_str(), found.prefix.as_str());
        assert_eq!(names, (schema, prefix), "{text}");
    }
}

#[test]
fn what_leaves_the_machine_is_encrypted_and_verified_unless_told_otherwise() {
    let file = || Tls::Verify(Some("/ca.pem".into()));
    for (text, tls) in [
        ("postgres://u@h/db", Tls::Verify(None)),
        ("postgres://u@localhost/db", Tls::Off),
        ("postgres://u@127.0.0.1/db", Tls::Off),
        ("postgres://u@[::1]/db", Tls::Off),
        ("postgres://u@/db?host=/run", Tls::Off),
        ("postgres://u@h/db?sslmode=disable", Tls::Off),
        ("postgres://u@h/db?sslmode=verify-full", Tls::Verify(None)),
        ("postgres://u@h/db?sslrootcert=system", Tls::Verify(None)),
        ("postgres://u@localhost/db?sslrootcert=/ca.pem", file()),
        ("mysql://u@h/db", Tls::Verify(None)),
        ("mysql://u@127.0.0.1/db", Tls::Off),
        ("mysql://u@h/db?ssl-mode=disabled", Tls::Off),
        (
            "mysql://u@h/db?ssl-mode=VERIFY_IDENTITY&ssl-ca=/ca.pem",
            file(),
        ),
    ] {
        assert_eq!(database(text).tls, tls, "{text}");
    }
}

#[test]
fn a_table_names_its_columns() {
    let text = "postgres://u@h/db?table=app.kv%2Ex&key=a,b%2Cc&value=v&expires=e&revision=r";
    let StoreUrl::Table(table) = text.parse().unwrap() else {
        panic!("no table");
    };
    assert!(matches!(table.within, Within::Postgres(_)));
    let columns = Columns {
        schema: Some("app".into()),
        table: "kv.x".into(),
        key: vec!["a".into(), "b,c".into()],
        value: "v".into(),
        revision: Some("r".into()),
        expires: Some("e".into()),
    };
    assert_eq!(table.columns, columns);
    let StoreUrl::Table(table) = "sqlite:a b@c:d?table=t&key=k&value=v".parse().unwrap() else {
        panic!("no table");
    };
    assert!(matches!(table.within, Within::Sqlite(path) if path == Path::new("a b@c:d")));
    assert_eq!(table.columns.schema, None);
}

#[test]
fn a_url_that_is_shown_can_be_given_again() {
    for (text, shown) in [
        ("postgres://u@h/db", "postgres://u@h:5432/db"),
        (
            "postgres://u%40x@[::1]/a%20b?sslmode=verify-full&prefix=p&schema=s",
            "postgres://u%40x@[::1]:5432/a%20b?schema=s&prefix=p&sslmode=verify-full",
        ),
        (
            "postgres://u@%2Frun%2Fx.y:7/db",
            "postgres://u@localhost:7/db?host=/run/x.y",
        ),
        (
            "mysql://u@h/db?ssl-mode=disabled",
            "mysql://u@h:3306/db?ssl-mode=DISABLED",
        ),
        (
            "mariadb://u@/db?socket=/s&table=a.b&key=k,l%2C&value=v%2E&revision=r&expires=e",
            "mysql://u@/db?socket=/s&table=a.b&key=k,l%2C&value=v%2E&revision=r&expires=e",
        ),
        (
            "sqlite:/x/y.db?value=v&key=k&table=t",
            "sqlite:/x/y.db?table=t&key=k&value=v",
        ),
    ] {
        let url: StoreUrl = text.parse().unwrap();
        assert_eq!(url.to_string(), shown);
        assert_eq!(shown.parse(), Ok(url), "{shown}");
    }
}

#[test]
fn the_same_tables_are_known_by_their_place() {
    let url = "postgres://u:p@h/db?schema=s";
    for (other, same) in [
        ("postgres://v@h:5432/db?schema=s&sslmode=disable", true),
        ("postgres://u:p@h/db", false),
        ("postgres://u:p@i/db?schema=s", false),
        ("postgres://u:p@h/dc?schema=s", false),
        ("postgres://u:p@h/db?schema=s&prefix=x", false),
    ] {
        assert_eq!(
            database(url).is_same_place(&database(other)),
            same,
            "{other}"
        );
    }
}
