//! What goes wrong when: all of it follows from the seed.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

/// Proxies in a storm.
pub(super) const PROXIES: usize = 3;

/// A kind of store that several proxies can share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Etcd,
    Postgres,
    Mariadb,
}

const KINDS: [Kind; 3] = [Kind::Etcd, Kind::Postgres, Kind::Mariadb];

/// What the operator does, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transition {
    /// `segue start`.
    Start,
    /// `segue switch normal`.
    Normal,
    /// `segue switch migration`.
    Migration,
    /// `segue rollback`.
    Back,
}

/// There, and back to the old store from either phase, and there in the end.
const WAY: [Transition; 8] = [
    Transition::Start,
    Transition::Normal,
    Transition::Migration,
    Transition::Back,
    Transition::Start,
    Transition::Back,
    Transition::Start,
    Transition::Normal,
];

/// Whom it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Party {
    Proxy(usize),
    OldStore,
    NewStore,
    /// The way of the clients to a proxy.
    ClientLink(usize),
    /// The way of a proxy to the old store.
    OldLink(usize),
    /// The way of a proxy to the new store.
    NewLink(usize),
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A process is killed, and started again.
    Kill,
    /// A process is stopped, and goes on.
    Stop,
    /// All connections are ended.
    Cut,
    /// Everything takes so much longer.
    Slow(Duration),
    /// Nothing comes through, and nobody is told.
    Stand,
    /// All connections are ended, and there are no new ones.
    Close,
}

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blow {
    /// Behind the end of the one before.
    pub after: Duration,
    pub fault: Fault,
    pub lasts: Duration,
}

/// A storm.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub seed: u64,
    pub old: Kind,
    pub new: Kind,
    /// Keys that the backfill copies per second.
    pub rate: u32,
    /// What the operator does, and how long it waits before.
    pub transitions: Vec<(Duration, Transition)>,
    /// What strikes whom.
    pub blows: Vec<(Party, Vec<Blow>)>,
}

impl Plan {
    /// The storm of this seed: the faults go on for `length`. Seeds that follow one another go through
    /// all pairs of stores.
    pub(super) fn new(seed: u64, length: Duration) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let kind = |number: u64| KINDS[usize::try_from(number % 3).unwrap()];
        let pause = ms(length) / (WAY.len() as u64 + 1);
        let transitions = WAY
            .iter()
            .map(|transition| {
                let wait = random.random_range(pause / 4..=pause);
                (Duration::from_millis(wait), *transition)
            })
            .collect();
        // Some storms are rougher than others.
        let calm = random.random_range(2..=6);
        let mut parties = vec![Party::OldStore, Party::NewStore];
        for proxy in 0..PROXIES {
            parties.extend([
                Party::Proxy(proxy),
                Party::ClientLink(proxy),
                Party::OldLink(proxy),
                Party::NewLink(proxy),
            ]);
        }
        let blows = parties
            .into_iter()
            .map(|party| (party, blows(party, calm, length, &mut random)))
            .collect();
        Self {
            seed,
            old: kind(seed),
            new: kind(seed / 3),
            rate: random.random_range(100..400),
            transitions,
            blows,
        }
    }
}

/// What strikes one party; `calm` is about how many seconds lie between two blows.
fn blows(party: Party, calm: u64, length: Duration, random: &mut StdRng) -> Vec<Blow> {
    let mut blows = Vec::new();
    let mut now = Duration::ZERO;
    loop {
        let after = Duration::from_millis(random.random_range(200..=calm * 2_500));
        let (fault, longest) = fault(party, random);
        let lasts = Duration::from_millis(random.random_range(0..=longest));
        now += after + lasts;
        if now > length {
            return blows;
        }
        blows.push(Blow {
            after,
            fault,
            lasts,
        });
    }
}

/// Something that can happen to this party, and the longest that it lasts in milliseconds.
fn fault(party: Party, random: &mut StdRng) -> (Fault, u64) {
    match party {
        Party::Proxy(_) => *[(Fault::Kill, 500), (Fault::Stop, 3_000)]
            .choose(random)
            .unwrap(),
        Party::OldStore | Party::NewStore => (Fault::Kill, 1_000),
        Party::ClientLink(_) | Party::OldLink(_) | Party::NewLink(_) => {
            let slow = Duration::from_millis(random.random_range(5..100));
            *[
                (Fault::Cut, 0),
                (Fault::Slow(slow), 3_000),
                (Fault::Stand, 3_000),
                (Fault::Close, 1_500),
            ]
            .choose(random)
            .unwrap()
        }
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap()
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, old, new, .. } = self;
        writeln!(
            f,
            "the storm of seed {seed}: {old:?} to {new:?}, {} keys/s",
            self.rate
        )?;
        write!(f, "  the operator:")?;
        for (after, transition) in &self.transitions {
            write!(f, " +{} {transition:?}", ms(*after))?;
        }
        for (party, blows) in &self.blows {
            write!(f, "\n  {party:?}:")?;
            for Blow {
                after,
                fault,
                lasts,
            } in blows
            {
                write!(f, " +{} {fault:?} {}", ms(*after), ms(*lasts))?;
            }
        }
        Ok(())
    }
}

#[test]
fn a_seed_always_gives_the_same_storm() {
    let text = |seed| Plan::new(seed, Duration::from_mins(1)).to_string();
    assert_eq!(text(7), text(7));
    assert_ne!(text(7), text(8));
}
