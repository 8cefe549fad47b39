//! The old store's data: what a web shop might keep in etcd, with a history behind it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::{TryStreamExt as _, stream};
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::ledger::Facts;
use super::stage::{Props, dice, size, value};
use crate::store::{OldStore, PageSize, Store};
use crate::types::{Content, Delete, Grant, KeyRange, LeaseId, Put};

/// What every key of the demo's own data begins with.
pub(super) const ROOT: &str = "/shop/";

/// Where the clients write if the old store holds somebody's data: apart from it.
pub(super) const GUEST_ROOT: &str = "/segue-demo/";

/// Requests under way at a time while the store is filled: enough for a store that commits them in
/// groups.
const IN_FLIGHT: usize = 128;

/// More keys than this are no demonstration any more: the ledger keeps all of them in memory.
pub(super) const KEYS_MAX: usize = 1_000_000;

/// Pairs per page when the store is read.
const PAGE: usize = 1_000;

/// Keys in a directory that is listed: more would only show how long lists take.
const DIRECTORY_KEYS_MAX: usize = 400;

/// Parts of the shop whose keys the clients write and delete. All others stay as they are.
const WRITABLE: [&str; 3] = ["products/", "queue/", "users/"];

/// One key to be made.
struct Plan {
    key: String,
    bytes: usize,
    lease: Option<usize>,
}

/// What is planned for a store.
struct Plans {
    keys: Vec<Plan>,
    /// Times to live, in seconds.
    leases: Vec<i64>,
}

impl Plans {
    /// About `count` keys, in shares as a shop might have them.
    fn of(count: usize, rng: &mut StdRng) -> Self {
        // Long enough to live through any show without a holder.
        const TTLS_S: [i64; 5] = [600, 1_200, 1_800, 3_600, 86_400];
        const SERVICES: [&str; 8] = [
            "billing", "cart", "checkout", "mail", "search", "shipping", "stock", "web",
        ];
        let mut plans = Self {
            keys: Vec::with_capacity(count),
            leases: Vec::new(),
        };
        for n in 0..count {
            let service = SERVICES[n % SERVICES.len()];
            let mut lease = None;
            let (key, bytes) = match n % 1000 {
                0 => {
                    let bytes = rng.random_range(100_000..260_000);
                    (format!("assets/banner-{n:06}.png"), bytes)
                }
                1..25 => {
                    // Two keys per lease, and a lease per instance.
                    if n % 2 == 1 {
                        plans.leases.push(TTLS_S[n / 2 % TTLS_S.len()]);
                    }
                    lease = Some(plans.leases.len() - 1);
                    let part = ["endpoint", "health"][n % 2];
                    let instance = n / 2;
                    let key = format!("services/{service}/i-{instance:06x}/{part}");
                    (key, rng.random_range(100..250))
                }
                25..40 => {
                    plans.leases.push(TTLS_S[n % TTLS_S.len()]);
                    lease = Some(plans.leases.len() - 1);
                    let id: u64 = rng.random();
                    (format!("sessions/{:02x}/{id:016x}", n % 256), 400)
                }
                40..70 => (format!("queue/{:03}/job-seed-{n:06}", n % 60), 150),
                70..200 => {
                    let team = n / 7 % 9;
                    let key = format!("config/team-{team}/{service}/setting-{n:06}");
                    (key, size(rng))
                }
                200..220 => (format!("flags/{service}/feature-{n:06}"), 20),
                220..620 => (
                    format!("users/{:03}/{n:07}/profile", n / 3 % 128),
                    size(rng),
                ),
                _ => (format!("products/{:03}/sku-{n:07}", n / 5 % 128), size(rng)),
            };
            plans.keys.push(Plan {
                key: format!("{ROOT}{key}"),
                bytes,
                lease,
            });
        }
        plans
    }
}

/// Fills an empty store with about `count` keys that have a past: some were written several times,
/// some were deleted and made anew, some were deleted for good. `progress` is told how many
/// requests of how many are done.
pub(super) async fn seed(
    store: Arc<dyn Store>,
    count: usize,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> anyhow::Result<()> {
    let mut rng = dice(1);
    let plans = Plans::of(count, &mut rng);
    let mut leases = Vec::with_capacity(plans.leases.len());
    for ttl_s in &plans.leases {
        let grant = Grant {
            id: None,
            ttl_s: *ttl_s,
        };
        leases.push(store.grant(grant).await?.reply.id);
    }
    let mut first = Vec::new();
    let mut later = [Vec::new(), Vec::new(), Vec::new()];
    for (n, plan) in plans.keys.iter().enumerate() {
        let key = Bytes::from(plan.key.clone());
        let lease = plan.lease.map_or(LeaseId::NONE, |index| leases[index]);
        let put = |rng: &mut StdRng| {
            Request::Put(Put {
                lease: Some(lease),
                ..Put::new(key.clone(), value(rng, plan.bytes))
            })
        };
        first.push(put(&mut rng));
        match n % 40 {
            // Written again, once to three times.
            0..6 => {
                for round in &mut later[..=n % 3] {
                    round.push(put(&mut rng));
                }
            }
            // Deleted and made anew.
            6 => {
                later[0].push(Request::Delete(key.clone()));
                later[1].push(put(&mut rng));
            }
            // Another key that was there once and is deleted for good.
            7 => {
                let gone = Bytes::from(format!("{}-gone", plan.key));
                first.push(Request::Put(Put::new(gone.clone(), value(&mut rng, 100))));
                later[0].push(Request::Delete(gone));
            }
            _ => {}
        }
    }
    let total = first.len() + later.iter().map(Vec::len).sum::<usize>();
    let done = AtomicUsize::new(0);
    // One round after the other, so that the changes of one key happen in their order.
    for round in std::iter::once(first).chain(later) {
        stream::iter(round.into_iter().map(Ok::<_, anyhow::Error>))
            .try_for_each_concurrent(IN_FLIGHT, |request| {
                let (store, done) = (&store, &done);
                async move {
                    request.send(&**store).await?;
                    progress(done.fetch_add(1, Ordering::Relaxed) + 1, total);
                    Ok(())
                }
            })
            .await
            .context("the old store cannot be filled")?;
    }
    Ok(())
}

enum Request {
    Put(Put),
    Delete(Bytes),
}

impl Request {
    async fn send(self, store: &dyn Store) -> anyhow::Result<()> {
        match self {
            Self::Put(put) => drop(store.put(put).await?),
            Self::Delete(key) => {
                let keys = KeyRange::One(key);
                let delete = Delete {
                    keys,
                    prev_kv: false,
                };
                drop(store.delete(delete).await?);
            }
        }
        Ok(())
    }
}

/// What an old store holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Survey {
    /// Its revision.
    pub revision: i64,
    /// Its keys.
    pub keys: BTreeMap<Bytes, Facts>,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Keys that hang on leases.
    pub leased: usize,
}

impl Survey {
    /// Reads the whole store. Nobody may write to it meanwhile.
    pub(super) async fn of(old: &dyn OldStore) -> anyhow::Result<Self> {
        let mut survey = Self {
            revision: old.revision().await?.0,
            ..Self::default()
        };
        let mut rest = Some(KeyRange::all());
        while let Some(keys) = rest {
            let page = old
                .scan(keys.clone(), PageSize::pairs(PAGE), Content::Full)
                .await?;
            for kv in &page.kvs {
                survey.bytes += kv.weight() as u64;
                survey.leased += usize::from(kv.lease.is_some());
                survey.keys.insert(kv.key.clone(), Facts::from(kv));
            }
            let held = survey.keys.len();
            anyhow::ensure!(
                held <= KEYS_MAX,
                "the old store holds more than {KEYS_MAX} keys, too many for a demonstration; \
                 `segue serve` moves them"
            );
            rest = page.rest(&keys)?;
        }
        Ok(survey)
    }

    /// What clients may do with these keys: everything with those that the demo made itself,
    /// nothing but reading with others.
    pub(super) fn props(&self, own: bool) -> Props {
        let root = if own { ROOT } else { GUEST_ROOT };
        let keys = self.keys.iter();
        let unleased = keys.clone().filter(|(_, facts)| facts.lease == 0);
        let writable = |key: &Bytes| {
            let path = key.strip_prefix(root.as_bytes()).unwrap_or_default();
            WRITABLE
                .iter()
                .any(|area| path.starts_with(area.as_bytes()))
        };
        let mut writable: Vec<Bytes> = unleased
            .map(|(key, _)| key.clone())
            .filter(|key| own && writable(key))
            .collect();
        // Clients prefer the first ones, which should lie everywhere.
        shuffle(&mut writable, &mut dice(2));
        Props {
            root: root.to_owned(),
            readable: keys.map(|(key, _)| key.clone()).collect(),
            writable,
            directories: self.directories(),
        }
    }

    /// Prefixes up to a `/` that few enough keys begin with.
    fn directories(&self) -> Vec<Bytes> {
        let mut counts: BTreeMap<&[u8], usize> = BTreeMap::new();
        for key in self.keys.keys() {
            let slashes = key.iter().enumerate().skip(1);
            for (at, _) in slashes.filter(|(_, byte)| **byte == b'/') {
                *counts.entry(&key[..=at]).or_default() += 1;
            }
        }
        let right = |(_, count): &(&[u8], usize)| (2..=DIRECTORY_KEYS_MAX).contains(count);
        let directories = counts.into_iter().filter(right);
        directories
            .map(|(prefix, _)| Bytes::copy_from_slice(prefix))
            .collect()
    }
}

/// Fisher and Yates's.
fn shuffle(keys: &mut [Bytes], rng: &mut StdRng) {
    for last in (1..keys.len()).rev() {
        keys.swap(last, rng.random_range(0..=last));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::Memory;
    use crate::store::old::AsOld;
    use crate::store::{Guard, NewStore as _};

    #[tokio::test]
    async fn the_old_store_has_leases_versions_sizes_and_a_past() {
        let store = Arc::new(Memory::new());
        let handle = store.guarded(Guard::None);
        seed(handle.clone(), 2_000, &|_, _| {}).await.unwrap();
        let old = AsOld::new(handle, "it".into());
        let survey = Survey::of(&old).await.unwrap();
        assert_eq!(survey.keys.len(), 2_000);
        assert!(survey.leased >= 50, "{}", survey.leased);
        assert!(survey.revision > 2_300, "{}", survey.revision);
        let all = || survey.keys.values();
        assert!(all().any(|facts| facts.version == 4));
        assert!(all().any(|facts| facts.version == 1 && facts.create > 2_100));
        let own = survey.props(true);
        assert_eq!(own.readable.len(), 2_000);
        assert!(own.writable.len() > 500 && own.writable.len() < 1_800);
        assert!(own.directories.len() > 20);
        let leased = |key| survey.keys[key].lease != 0;
        assert!(!own.writable.iter().any(leased));
        assert!(survey.props(false).writable.is_empty());
    }
}
