//! Arrows point only downward: reads what each file uses and fails when one points up.

use std::path::{Path, PathBuf};

/// The modules of the crate from the top of the house to its ground. Each may use those below it.
const LAYERS: &[&str] = &[
    "main",
    "cli",
    "server",
    "config",
    "admin",
    "api",
    "migration",
    "overlay",
    "store",
    "metrics",
    "wire",
    "tasks",
    "types",
    "proto",
];

/// Kinds of stores, and of the databases of one of them: none knows anything of another.
const KINDS: &[&[&str]] = &[
    &[
        "store::memory",
        "store::sql",
        "store::table",
        "store::etcd3",
        "store::etcd2",
    ],
    &[
        "store::sql::sqlite",
        "store::sql::postgres",
        "store::sql::mysql",
    ],
    &[
        "store::table::sqlite",
        "store::table::postgres",
        "store::table::mysql",
    ],
];

/// What must not be used besides: where, what, why.
const NEVER: &[(&str, &str, &str)] = &[
    ("store::eval", "tokio", "evaluation is pure"),
    ("migration::phase", "tokio", PURE_PHASES),
    ("migration::phase", "std::time", PURE_PHASES),
    ("migration::verify", "migration::backfill", OWN_EYES),
    ("migration::verify", "migration::copier", OWN_EYES),
    ("migration", "tonic", ONE_FACE),
    ("migration", "axum", ONE_FACE),
    ("migration", "proto", ONE_FACE),
    ("overlay", "tonic", ONE_FACE),
    ("overlay", "proto", ONE_FACE),
    ("types", "tokio", NO_IO),
    ("types", "tonic", NO_IO),
    ("types", "hyper", NO_IO),
    ("types", "std::fs", NO_IO),
    ("types", "std::net", NO_IO),
    ("types", "proto", "types know no wire format"),
];

const PURE_PHASES: &str = "the phase machine knows neither a runtime nor a clock";
const OWN_EYES: &str = "verification shares nothing with what it verifies";
const ONE_FACE: &str = "wire formats end at the edges of the house";
const NO_IO: &str = "types do no I/O";

/// Crates that only these places may know.
const DRIVERS: &[(&str, &[&str])] = &[
    ("rusqlite", &["store::sql::sqlite", "store::table::sqlite"]),
    (
        "mysql_async",
        &[
            "store::sql::mysql",
            "store::table::mysql",
            "store::login::mysql",
        ],
    ),
    (
        "tokio_postgres",
        &[
            "store::sql::postgres",
            "store::table::postgres",
            "store::login::postgres",
        ],
    ),
    ("etcd_client", &["cli::demo"]),
    ("axum", &["admin"]),
    ("clap", &["cli", "config"]),
    ("anyhow", &["cli"]),
];

#[test]
fn arrows_point_only_downward() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    assert!(files.len() > 20, "the sources are not where they should be");
    let mut complaints = Vec::new();
    for file in files {
        let module = module_of(file.strip_prefix(&src).unwrap());
        let text = std::fs::read_to_string(&file).unwrap();
        complaints.extend(check(&module, &text));
    }
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn an_arrow_that_points_up_is_noticed() {
    for (module, text, complains) in [
        (
            "store::memory",
            "use crate::types::{KeyValue, LeaseId};",
            false,
        ),
        ("types::kv", "use crate::store::Store;", true),
        ("types::kv", "use crate::{types::Epoch, store};", true),
        (
            "types::kv",
            "use crate::{\n    types::{Epoch, LeaseId},\n};",
            false,
        ),
        ("types::kv", "fn f() -> crate::api::Api {}", true),
        ("types::kv", "// use crate::store::Store;", false),
        ("types::kv", "/// See [`crate::store::Store`].", false),
        ("types::kv", "use super::super::overlay::Overlay;", true),
        ("types::kv", "use std::{net::TcpStream, fmt};", true),
        ("overlay::read", "use crate::migration::Phase;", true),
        (
            "overlay",
            "pub(crate) use crate::store::{Store, new::{Line, Claim}};",
            false,
        ),
        ("migration::router", "use crate::api::serve;", true),
        ("migration::phase", "use tokio::time::Instant;", true),
        ("migration::phase", "use std::time::Duration;", true),
        ("migration::verify", "use super::backfill::Backfill;", true),
        (
            "store::etcd3::client",
            "use crate::store::{etcd2::Etcd2, Store};",
            true,
        ),
        ("store::etcd3", "use super::memory;", true),
        ("store::table", "use super::etcd2::Etcd2;", true),
        (
            "store::sql::mysql::writer",
            "use crate::store::sql::postgres::PostgresStore;",
            true,
        ),
        ("store::sql::sqlite", "use super::text;", false),
        ("store::open", "use super::memory::{self, Memory};", false),
        ("store::feed", "use rusqlite::Connection;", true),
        (
            "store::sql::sqlite::fetch",
            "use rusqlite::Connection;",
            false,
        ),
        ("api", "mod server;\npub use server::serve;", false),
        ("api", "use segue::server::serve;", true),
        ("main", "use segue::cli;", false),
        ("unheard_of", "use crate::types::Epoch;", true),
    ] {
        let complaints = check(module, text);
        assert_eq!(
            !complaints.is_empty(),
            complains,
            "{module}: {text}: {complaints:?}"
        );
    }
}

/// What is wrong with the file of `module` that says `text`.
fn check(module: &str, text: &str) -> Vec<String> {
    let layer = |path: &str| LAYERS.iter().position(|layer| within(path, layer));
    let mut complaints = Vec::new();
    if !module.is_empty() && layer(module).is_none() {
        complaints.push(format!(
            "{module} has no place in the house: give it one here"
        ));
    }
    for used in uses(module, text) {
        if let (Some(from), Some(to)) = (layer(module), layer(&used))
            && to < from
        {
            complaints.push(format!("{module} uses {used}, which lies above it"));
        }
        for (place, what, why) in NEVER {
            if within(module, place) && within(&used, what) {
                complaints.push(format!("{module} uses {used}: {why}"));
            }
        }
        for kinds in KINDS {
            let of = |path: &str| kinds.iter().find(|kind| within(path, kind));
            if let (Some(own), Some(other)) = (of(module), of(&used))
                && own != other
            {
                complaints.push(format!(
                    "{module} uses {used}: one kind of store knows nothing of another"
                ));
            }
        }
        for (driver, places) in DRIVERS {
            let may = matches!(module, "main" | "") || places.iter().any(|at| within(module, at));
            if within(&used, driver) && !may {
                complaints.push(format!(
                    "{module} uses {driver}, which only {places:?} know"
                ));
            }
        }
    }
    complaints
}

/// Whether `path` is `place` or lies below it.
fn within(path: &str, place: &str) -> bool {
    path.strip_prefix(place)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Everything that the file uses: paths from the root of the crate, or of another one.
fn uses(module: &str, text: &str) -> Vec<String> {
    let code: String = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n");
    let mut paths = Vec::new();
    for (at, _) in code.match_indices("use ") {
        let starts_word = code[..at]
            .chars()
            .next_back()
            .is_none_or(char::is_whitespace);
        if let (true, Some(end)) = (starts_word, code[at..].find(';')) {
            expand("", &code[at + 4..at + end], &mut paths);
        }
    }
    // Paths in the midst of code.
    for root in ["crate::", "segue::"] {
        for (at, _) in code.match_indices(root) {
            let is_path = |c: char| c.is_alphanumeric() || matches!(c, '_' | ':');
            let path: String = code[at..].chars().take_while(|c| is_path(*c)).collect();
            paths.push(path.trim_end_matches(':').to_owned());
        }
    }
    let is_local = |path: &str| {
        let name = path.split("::").next().unwrap_or_default();
        code.contains(&format!("mod {name};"))
    };
    paths
        .iter()
        .map(|path| {
            if is_local(path) {
                resolve(module, &format!("self::{path}"))
            } else {
                resolve(module, path)
            }
        })
        .collect()
}

/// The paths that a tree of uses stands for.
fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let mut depth = 0;
    let mut start = 0;
    let parts = tree.char_indices().filter_map(|(at, c)| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => return Some(at),
            _ => {}
        }
        None
    });
    for end in parts.chain([tree.len()]).collect::<Vec<_>>() {
        let part = tree[start..end].trim();
        start = (end + 1).min(tree.len());
        match part.split_once('{') {
            Some((stem, rest)) => {
                let inner = rest.strip_suffix('}').unwrap_or(rest);
                expand(&format!("{prefix}{}", stem.trim()), inner, paths);
            }
            None if part.is_empty() => {}
            None => {
                let name = part.split(" as ").next().unwrap_or_default().trim();
                paths.push(format!("{prefix}{name}"));
            }
        }
    }
}

/// A path as seen from the root.
fn resolve(module: &str, path: &str) -> String {
    let mut at: Vec<&str> = module.split("::").filter(|name| !name.is_empty()).collect();
    let mut names = path.split("::").peekable();
    match names.peek() {
        Some(&("crate" | "segue")) => {
            names.next();
            at.clear();
        }
        Some(&"self") => {
            names.next();
        }
        Some(&"super") => {
            while names.next_if_eq(&"super").is_some() {
                at.pop();
            }
        }
        _ => at.clear(),
    }
    at.extend(names);
    at.join("::")
}

/// The module that a file below `src` holds.
fn module_of(file: &Path) -> String {
    let path = file.with_extension("");
    let names: Vec<_> = path
        .iter()
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| !matches!(name.as_str(), "mod" | "lib"))
        .collect();
    names.join("::")
}

fn rust_files(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}
