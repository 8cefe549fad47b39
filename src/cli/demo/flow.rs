//! The show, act by act.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ledger::Ledger;
use super::meter::{Meter, Period, millis};
use super::proxy::{Proxy, trouble};
use super::report::{Report, ms};
use super::screen::Screen;
use super::seed::GUEST_ROOT;
use super::stage::{Address, Show};
use super::stores::{Before, Stores};
use super::troupe::{Performance, Troupe};
use super::{Demo, House};
use crate::cli::Failure;
use crate::cli::figures::{bytes, number};
use crate::migration::status::Status;
use crate::types::KeyRange;

/// Between two looks at the migration.
const LOOK: Duration = Duration::from_millis(100);

/// How much longer than it should the migration may take before the demo gives up.
const OVERTIME: Duration = Duration::from_mins(2);

/// Plays the whole show.
pub(super) async fn play(
    demo: &Demo,
    house: &mut House,
    screen: &Screen,
) -> Result<Report, Failure> {
    let stores = Stores::prepare(demo, house.dir.path(), screen).await?;
    let survey = &stores.survey;
    screen.end(&format!(
        "{} keys, {}, {} of them with a lease",
        number(survey.keys.len() as u64),
        bytes(survey.bytes),
        number(survey.leased as u64)
    ));
    let show = Arc::new(Show {
        ledger: open_ledger(&stores)?,
        meter: Meter::new(),
        props: survey.props(stores.own),
    });
    let flow = Flow {
        demo,
        screen,
        stores,
        show,
    };
    let mut report = flow.report();
    let troupe = flow.before(house).await?;
    let performance = flow.migrate(house, troupe, &mut report).await?;
    flow.after(house, performance, &mut report).await?;
    report.conclude();
    Ok(report)
}

/// The ledger over what the old store holds. Of a store that is not the demo's own, it says nothing
/// about keys with leases: nobody knows how long those are meant to live.
fn open_ledger(stores: &Stores) -> Result<Ledger, Failure> {
    let survey = &stores.survey;
    let ledger = Ledger::open(survey.revision, survey.keys.clone());
    if stores.own {
        return Ok(ledger);
    }
    let guests = KeyRange::prefix(GUEST_ROOT);
    let mut range = survey.keys.range::<[u8], _>(guests.bounds());
    if let Some((key, _)) = range.next() {
        return Err(Failure::Usage(format!(
            "the old store has keys below {GUEST_ROOT} ({}), where the demo would write",
            super::check::shown(key)
        )));
    }
    for (key, facts) in &survey.keys {
        if facts.lease != 0 {
            ledger.doubt(KeyRange::One(key.clone()));
        }
    }
    Ok(ledger)
}

struct Flow<'a> {
    demo: &'a Demo,
    screen: &'a Screen,
    stores: Stores,
    show: Arc<Show>,
}

impl Flow<'_> {
    fn report(&self) -> Report {
        let config = &self.stores.config;
        let old = config.old.as_ref();
        Report {
            old: old.map(ToString::to_string).unwrap_or_default(),
            new: config.new.to_string(),
            before: self.stores.before().words(),
            ..Report::default()
        }
    }

    /// How long the clients perform before the migration, and after it.
    fn aside(&self) -> Duration {
        Duration::from_secs_f64(self.demo.seconds / 2.0).max(Duration::from_millis(500))
    }

    /// The clients use the old store alone.
    async fn before(&self, house: &mut House) -> Result<Troupe, Failure> {
        let troupe = Troupe::of(&self.show);
        self.show.meter.begin(Period::Before);
        let address = match self.stores.before() {
            Before::Nothing(_) => return Ok(troupe),
            Before::Direct(address) => address,
            Before::Served => {
                let mut config = self.stores.config.clone();
                if let Some(old) = config.old.take() {
                    config.new = old;
                }
                house.raise(config).await?
            }
        };
        self.screen.begin("before");
        let performance = troupe.perform(address, &house.tasks);
        self.watch_for(self.aside(), "on the old store").await;
        let troupe = performance.end().await.map_err(|error| broke(&error))?;
        house.lower().await?;
        let answered = self.show.meter.count();
        self.screen.end(&format!(
            "{} requests answered by the old store alone",
            number(answered)
        ));
        Ok(troupe)
    }

    /// The clients are pointed at Segue, every key moves, and the switch is flipped.
    async fn migrate(
        &self,
        house: &mut House,
        troupe: Troupe,
        report: &mut Report,
    ) -> Result<Performance, Failure> {
        self.screen.begin("migration");
        let keys = self.stores.survey.keys.len() as u64;
        let mut config = self.stores.config.clone();
        config.rate_keys = Some(per_second(keys, self.demo.seconds));
        self.show.meter.begin(Period::During);
        let begun = Instant::now();
        let address: Address = house.raise(config).await?;
        let performance = troupe.perform(address, &house.tasks);
        let proxy = house.proxy()?;
        let status = self
            .wait_for(proxy, |status| status.backfill_complete)
            .await?;
        report.migration_ms = whole_ms(begun.elapsed());
        report.keys_moved = status.keys_copied;
        report.bytes_moved = status.bytes_copied;
        self.screen.end(&format!(
            "{} keys, {} moved while the application ran",
            number(status.keys_copied),
            bytes(status.bytes_copied)
        ));
        self.screen.begin("verified");
        self.wait_for(proxy, |status| status.verified).await?;
        self.screen
            .end("every key compared with the old store, no difference");
        self.screen.begin("switch");
        let flipped = Instant::now();
        proxy.switch().await?;
        let took = flipped.elapsed();
        self.show.meter.begin(Period::After);
        report.switch_ms = whole_ms(took);
        self.screen.end(&format!(
            "the new store alone, {} after `put segue/switch`",
            ms(millis(took))
        ));
        Ok(performance)
    }

    /// The new store serves alone; then everything is checked.
    async fn after(
        &self,
        house: &mut House,
        performance: Performance,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let proxy = house.proxy()?;
        let asked = proxy.status().await?.reads_old;
        self.screen.begin("after");
        self.watch_for(self.aside() / 2, "on the new store").await;
        let asked = proxy.status().await?.reads_old - asked;
        if asked > 0 {
            report.complaints.push(format!(
                "the old store was asked {} times after the switch",
                number(asked)
            ));
        }
        // Where settling shows clients other revisions, they have to leave first.
        if self.stores.keeps_revisions() {
            proxy.complete().await?;
        }
        self.watch_for(self.aside() / 2, "on the new store").await;
        let readings = self.show.meter.read();
        self.screen.end(&format!(
            "{} requests answered by the new store alone",
            number(readings.operations(Period::After))
        ));
        self.screen.begin("checked");
        let (findings, finals) = performance.finale().await.map_err(|error| broke(&error))?;
        if !self.stores.keeps_revisions() {
            proxy.complete().await?;
        }
        report.phase = proxy.status().await?.phase;
        report.measure(&self.show.meter.read());
        report.judge(&findings);
        let entries = self.show.ledger.entries();
        let events = entries.watches.iter().map(|watched| watched.events.len());
        report.watch_events = events.sum::<usize>() as u64;
        report.keys_checked = finals.keys.len() as u64;
        report.writes_checked = entries.writes.len() as u64;
        report.reads_checked = (entries.reads.len() + entries.lists.len()) as u64;
        drop(entries);
        self.screen.end(&format!(
            "{} keys, {} watch events are as they should be",
            number(report.keys_checked),
            number(report.watch_events)
        ));
        Ok(())
    }

    /// Lets the clients perform for a while.
    async fn watch_for(&self, time: Duration, message: &str) {
        let begun = Instant::now();
        let mut pace = Pace::new(self.show.meter.count());
        while begun.elapsed() < time {
            tokio::time::sleep(LOOK.min(time)).await;
            let rate = pace.per_second(self.show.meter.count());
            let (done, all) = (whole_ms(begun.elapsed()), whole_ms(time));
            let message = format!("{} requests/s {message}", number(rate));
            self.screen.progress(done.min(all), Some(all), &message);
        }
    }

    /// Looks at the migration until `holds`.
    async fn wait_for(
        &self,
        proxy: &Proxy,
        holds: impl Fn(&Status) -> bool,
    ) -> Result<Status, Failure> {
        let begun = Instant::now();
        let time = Duration::from_secs_f64(self.demo.seconds) + OVERTIME;
        let mut pace = Pace::new(self.show.meter.count());
        loop {
            let status = proxy.status().await?;
            if holds(&status) {
                return Ok(status);
            }
            if status.rejects > 0 && status.backfill_complete {
                return Err(Failure::Failed(format!(
                    "the new store cannot take {} of the keys; with `segue serve` you could see them \
                     by `segue rejects`",
                    number(status.rejects)
                )));
            }
            if begun.elapsed() > time {
                let why = trouble(&status);
                return Err(Failure::Failed(format!(
                    "the migration does not end: {why}"
                )));
            }
            let all = status.keys_copied + status.keys_left;
            let rate = pace.per_second(self.show.meter.count());
            let message = match status.verifying {
                Some(compared) => format!(
                    "{} keys compared, {} requests/s",
                    number(compared),
                    number(rate)
                ),
                None => format!(
                    "{} of {} keys, {} requests/s",
                    number(status.keys_copied),
                    number(all),
                    number(rate)
                ),
            };
            let done = status.verifying.unwrap_or(status.keys_copied);
            self.screen.progress(done, Some(all), &message);
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Requests per second, of the last second or so.
struct Pace {
    marks: std::collections::VecDeque<(Instant, u64)>,
}

impl Pace {
    fn new(count: u64) -> Self {
        Self {
            marks: [(Instant::now(), count)].into(),
        }
    }

    fn per_second(&mut self, count: u64) -> u64 {
        let now = Instant::now();
        self.marks.push_back((now, count));
        while self.marks.len() > 2 && now - self.marks[1].0 > Duration::from_secs(1) {
            self.marks.pop_front();
        }
        let (at, before) = self.marks[0];
        let millis = whole_ms(now - at).max(1);
        (count - before) * 1000 / millis
    }
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// So many keys per second that all take about `seconds`.
fn per_second(keys: u64, seconds: f64) -> u64 {
    let tenths = Duration::from_secs_f64(seconds).as_millis().max(1);
    let rate = u128::from(keys) * 1000 / tenths;
    u64::try_from(rate).unwrap_or(u64::MAX).max(1)
}

fn broke(error: &anyhow::Error) -> Failure {
    Failure::Failed(format!("{error:#}"))
}
