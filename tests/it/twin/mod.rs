//! One script, put to a real etcd that never migrates and to Segue, which goes through all phases
//! meanwhile: every answer, every error and every event has to be the same.
//!
//! Revisions may have gaps: at each transition, and with etcd as the new store everywhere, since
//! copy-ups take revisions there. They are told by the changes that they belong to; what is left out is
//! counted.

mod lines;
mod stores;
mod watching;

use std::env::var;

use segue::proto::etcdserverpb as pb;
use segue::tasks::spawn_owned;

use self::lines::Lines;
use self::stores::{Bare, start_old};
use self::watching::Watches;
use crate::differential::ask::{Ask, Client};
use crate::differential::random::{Random, revision_of};
use crate::differential::script::{put, range};
use crate::support::Etcd;
use crate::support::segue::{Segue, run};
use crate::support::stores::Kind;

/// Requests in each phase, unless the environment names another number in `TWIN_ASKS`.
const ASKS: usize = 40;

/// The seed, unless the environment names another one in `SEED`.
const SEED: u64 = 1;

/// Requests between two looks at the watches.
const UNWATCHED: usize = 15;

/// Keys that stand between the busy ones, so that the backfill takes a while.
const QUIET: usize = 28;

/// What the backfill may copy per second.
const RATE: &str = "20";

/// A lease that a migration has given its full time again counts like one that was left alone.
const SLACK_S: i64 = 600;

/// Most requests that a transition may take.
const PATIENCE: usize = 20_000;

/// More revisions than a transition takes.
const AHEAD: i64 = 1_000_000;

/// A transition: the command, and the phase that it leads to.
type Transition = (&'static [&'static str], &'static str);

const START: Transition = (&["start"], "migration");
const NORMAL: Transition = (&["switch", "normal", "--when-ready", "--wait"], "normal");
const MIGRATION: Transition = (&["switch", "migration", "--wait"], "migration");
const BACK: Transition = (&["rollback"], "passthrough");
const COMPLETE: Transition = (&["complete"], "settled");

/// The way of every migration: rolled back from either phase, and begun anew.
const WAY: [Transition; 9] = [
    START, BACK, START, NORMAL, BACK, START, NORMAL, MIGRATION, NORMAL,
];

/// The way of a migration that there is no way back from.
const NO_WAY_BACK: [Transition; 3] = [NORMAL, MIGRATION, NORMAL];

/// The one that never migrates, and Segue.
struct Twins {
    twin: Client,
    segue: Client,
    proxy: Segue,
    random: Random,
    lines: Lines,
    watches: Watches,
    /// The twin's compacted revision.
    compacted: i64,
    /// What lies before this one is the old store's to tell.
    base: i64,
    /// The oldest revision that a watch begins at.
    oldest_watch: i64,
    /// Segue may leave out revisions now.
    may_leave_out: bool,
    left_out: i64,
    asked: Vec<String>,
    asked_for: usize,
    phase: String,
}

impl Twins {
    /// Asks both and compares.
    async fn ask(&mut self, ask: impl Into<Ask>) {
        let ask = ask.into();
        let to_segue = self.lines.ask(ask.clone());
        let (twin, segue) = tokio::join!(self.twin.ask(&ask), self.segue.ask(&to_segue));
        self.asked.push(format!("{ask:?}\n    {twin}"));
        if let (Some(twin), Some(segue)) = (revision_of(&twin), revision_of(&segue)) {
            let left_out = self.lines.note(twin, segue);
            assert!(
                left_out == 0 || self.may_leave_out,
                "{left_out} revisions are missing before {segue}\n{}",
                self.context()
            );
            self.left_out += left_out;
            self.random.revision = twin;
        }
        let said = self.lines.to_twin(&segue);
        assert_eq!(
            twin,
            said,
            "etcd on the left, segue on the right (it said {segue})\n{}",
            self.context()
        );
        if let Ask::Compact(request) = ask
            && twin.starts_with("CompactionResponse")
        {
            self.compacted = request.revision;
        }
    }

    /// What one has to know to understand a difference.
    fn context(&self) -> String {
        let last = self.asked.len().saturating_sub(4);
        format!(
            "{}, after {} requests, the last of them\n{}",
            self.phase,
            self.asked.len(),
            self.asked[last..].join("\n")
        )
    }

    /// Asks so many random things.
    async fn ask_around(&mut self, asks: usize) {
        for number in 1..=asks {
            let mut ask = self.random.ask();
            ask.visit_ranges(&mut sort_few);
            self.ask(ask).await;
            if number % UNWATCHED == 0 {
                self.compare_watches().await;
            }
        }
    }

    /// Asks for nothing that was before `revision` from now on.
    fn forget_before(&mut self, revision: i64) {
        self.random.floor = revision;
        self.oldest_watch = revision + 1;
    }

    /// Goes to another phase, while requests go on.
    async fn go(&mut self, (command, phase): Transition) {
        self.phase = format!("on the way to {phase}");
        let could = std::mem::replace(&mut self.may_leave_out, true);
        if command == BACK.0 {
            // Where it will end is not known yet.
            self.forget_before(self.lines.newest() + AHEAD);
        }
        let admin = self.proxy.admin();
        let args = command.iter().copied().chain(["--admin", &admin]);
        let args: Vec<_> = args.map(str::to_owned).collect();
        let running = spawn_owned(async move { run(args).await });
        let mut asks = 0;
        while !running.is_finished() {
            self.ask_around(1).await;
            asks += 1;
            assert!(asks < PATIENCE, "{}", self.context());
        }
        let outcome = running.await.unwrap();
        assert_eq!(outcome.code, 0, "{outcome:?}");
        let is = |status: &serde_json::Value| status["phase"] == phase;
        self.proxy.until("the phase is reached", is).await;
        // The first change behind the transition.
        self.ask(put("z", phase)).await;
        self.may_leave_out = could;
        if command == START.0 {
            self.base = self.lines.newest() - 1;
        }
        if command == BACK.0 {
            // What lies before, the old store has not seen as it was.
            self.forget_before(self.lines.newest() - 1);
        }
        phase.clone_into(&mut self.phase);
    }
}

/// Where pairs are alike in what they are sorted by, etcd leaves their order to chance if there are more
/// than a dozen.
fn sort_few(range: &mut pb::RangeRequest) {
    if range.sort_target != 0 && !range.range_end.is_empty() {
        let letter = range.key.first().copied().unwrap_or(b'a').max(b'a');
        range.key = vec![letter].into();
        range.range_end = vec![letter + 1].into();
    }
}

/// Keys that stand there from the beginning.
fn quiet_keys(root: &str) -> Vec<String> {
    let letter = |quiet| ["a", "b", "c", "d"][quiet % 4];
    (0..QUIET)
        .map(|quiet| format!("{root}{}{quiet:02}", letter(quiet)))
        .collect()
}

fn asks() -> usize {
    var("TWIN_ASKS").map_or(ASKS, |text| text.parse().unwrap())
}

async fn connect(endpoint: &str) -> Client {
    Client {
        slack_s: SLACK_S,
        ..Client::connect(endpoint).await
    }
}

impl Twins {
    async fn new(twin: Client, proxy: Segue, phase: &str) -> Self {
        let seed = var("SEED").map_or(SEED, |text| text.parse().unwrap());
        println!("SEED={seed} TWIN_ASKS={}", asks());
        Self {
            twin,
            segue: connect(&proxy.endpoint()).await,
            proxy,
            random: Random {
                ahead: 0,
                ..Random::new(seed)
            },
            lines: Lines::new(),
            watches: Watches::default(),
            compacted: 0,
            base: 0,
            oldest_watch: 2,
            may_leave_out: false,
            left_out: 0,
            asked: Vec::new(),
            asked_for: 0,
            phase: phase.into(),
        }
    }

    /// Some keys of those that were there before are written as often as others.
    fn use_some(&mut self, keys: &[String]) {
        self.random.keys.extend(keys.iter().step_by(7).cloned());
    }

    /// The last phases, and what is there in the end.
    async fn end(mut self, new: Kind) {
        // Then etcd gives copied keys numbers of its own.
        if new != Kind::Etcd {
            // Nobody has the old store's history any more.
            self.forget_before(self.base);
            self.go(COMPLETE).await;
            self.ask_around(asks()).await;
        }
        self.ask(range("\0", "\0")).await;
        self.ask(pb::LeaseLeasesRequest {}).await;
        println!(
            "{} requests and {} events alike; {} revisions left out",
            self.asked.len(),
            self.watches.compared,
            self.left_out
        );
    }
}

/// From a store that keeps etcd's history: from before the migration on, and there and back.
async fn nobody_can_tell_them_apart(old: Kind, new: Kind) {
    let (twin, old_home, new_home) = tokio::join!(Etcd::start(), start_old(old), new.start());
    let args = ["--old", &old_home.url, "--new", &new_home.url];
    let more = ["--start", "passthrough", "--rate-keys", RATE];
    let proxy = Segue::start(args.into_iter().chain(more)).await;
    let mut twins = Twins::new(connect(&twin.endpoint()).await, proxy, "passthrough").await;
    twins.watch_all().await;
    let quiet = quiet_keys("");
    for key in &quiet {
        twins.ask(put(key, "quiet")).await;
    }
    twins.use_some(&quiet);
    twins.ask_around(asks()).await;
    for transition in WAY {
        twins.go(transition).await;
        twins.may_leave_out = new == Kind::Etcd && transition != BACK;
        twins.ask_around(asks()).await;
    }
    twins.end(new).await;
}

/// From a store that has no more than pairs: from the beginning of the migration on.
async fn nobody_can_tell_what_was_copied(old: Bare, new: Kind) {
    let quiet = quiet_keys("/");
    let (old_home, twin, new_home) =
        tokio::join!(old.start(&quiet, "quiet"), Etcd::start(), new.start());
    let mut unmoved = connect(&twin.endpoint()).await;
    for key in &quiet {
        unmoved.ask(&put(key, "quiet").into()).await;
    }
    let args = ["--old", &old_home.url, "--new", &new_home.url];
    let proxy = Segue::start(args.into_iter().chain(["--rate-keys", RATE])).await;
    let mut twins = Twins::new(unmoved, proxy, "migration").await;
    for (twin, segue) in (2..).zip(old_home.revisions.iter().copied()) {
        twins.lines.note(twin, segue);
    }
    twins.base = twins.lines.newest();
    // There is no history of what was before.
    twins.forget_before(twins.base);
    twins.may_leave_out = true;
    twins.watch_all().await;
    twins.ask(put("z", "migration")).await;
    twins.use_some(&quiet);
    twins.may_leave_out = new == Kind::Etcd;
    twins.ask_around(asks()).await;
    for transition in NO_WAY_BACK {
        twins.go(transition).await;
        twins.ask_around(asks()).await;
    }
    twins.end(new).await;
}

macro_rules! pairs {
    ($how:ident { $($module:ident: $kind:ident::$old:ident, $($name:ident: $new:ident)*;)* }) => {
        $(mod $module {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    super::$how(super::$kind::$old, super::Kind::$new).await;
                }
            )*
        })*
    };
}

macro_rules! matrix {
    ($how:ident { $($module:ident: $kind:ident::$old:ident)* }) => {
        pairs! {
            $how {
                $($module: $kind::$old,
                    to_sqlite: Sqlite
                    to_postgres: Postgres
                    to_mariadb: Mariadb
                    to_etcd: Etcd;
                )*
            }
        }
    };
}

matrix! {
    nobody_can_tell_them_apart {
        from_sqlite: Kind::Sqlite
        from_postgres: Kind::Postgres
        from_mariadb: Kind::Mariadb
        from_etcd: Kind::Etcd
    }
}

matrix! {
    nobody_can_tell_what_was_copied {
        from_etcd2: Bare::Etcd2
        from_a_postgres_table: Bare::PostgresTable
        from_a_mariadb_table: Bare::MariadbTable
        from_a_sqlite_table: Bare::SqliteTable
    }
}
