//! The verification: a full ordered comparison of both stores, by code that shares nothing with the
//! backfill.
//!
//! It walks over the old store and reads what the new one has claimed in the same span afterwards
//! (old before new: a claim that is missing then was missing all along). Only copies are compared:
//! clients may go on writing, and what they have changed is theirs to decide, as is what the new store
//! held before the migration.

use std::cmp::Ordering;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::mirror;
use super::reach::{FIRST_PAGE, PAGES, Reach, adapted};
use super::records::readable;
use crate::store::{Claim, GuardedStore, NewStore, OldStore, Page, PageSize, Result};
use crate::types::{Content, Epoch, KeyRange, KeyValue, Reserved, Revision};

/// Findings that are listed one by one; all are counted.
const LISTED: usize = 100;

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The epoch that it was made in.
    pub epoch: Epoch,
    /// The backfill was complete when it began: what is missing should not be.
    #[serde(default = "yes")]
    pub backfill_complete: bool,
    /// It has been through all keys.
    pub complete: bool,
    /// Complete, and nothing was found.
    pub good: bool,
    /// Keys of the old store that were compared.
    pub compared: u64,
    /// Keys that are the same in both.
    pub equal: u64,
    /// Keys that clients have changed or deleted since the migration began, or that the new store
    /// held before.
    pub superseded: u64,
    /// Copied keys with a lease that have run out in the old store since. Only the new one counts.
    pub expired: u64,
    /// Keys of the old store that were not copied.
    pub missing: u64,
    /// Keys whose copy is not what the old store holds.
    pub different: u64,
    /// Copies of keys that are not in the old store.
    pub stray: u64,
    /// Keys that were changed since, and that the old store holds as the mirror has replayed them.
    #[serde(default)]
    pub mirrored: u64,
    /// Keys that the old store does not hold as the mirror should have replayed them. Of importance for a
    /// rollback only.
    #[serde(default)]
    pub unmirrored: u64,
    /// The first of what was found.
    pub findings: Vec<Finding>,
    /// When it ended, in milliseconds since 1970.
    pub finished_ms: u64,
}

/// What reports of earlier versions mean, which did not tell.
fn yes() -> bool {
    true
}

/// Something that should not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What kind.
    pub kind: Kind,
    /// The key, bytes that are not printable escaped.
    pub key: String,
    /// What is wrong, if there is more to say.
    pub detail: String,
}

/// Kinds of findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Not copied.
    Missing,
    /// Copied wrongly.
    Different,
    /// Copied from nowhere.
    Stray,
    /// Changed in the new store, and not replayed into the old one.
    Unmirrored,
}

/// What a verification works on.
pub struct Verification {
    /// The store that the data comes from.
    pub old: Arc<dyn OldStore>,
    /// The store that the data goes to, under the guard of the present epoch.
    pub new: Arc<dyn GuardedStore>,
    /// What is not compared.
    pub reserved: Reserved,
    /// Everything that the old store had is claimed: a key without a claim was made in the new one, and
    /// is in the old one by the mirror.
    pub all_claimed: bool,
    /// The old store again, if it follows the new one's changes.
    pub mirrored: Option<Arc<dyn NewStore>>,
}

impl Verification {
    /// Compares everything. `report` says what it is to begin with; `progress` is called now and then.
    pub async fn run(
        &self,
        mut report: Report,
        progress: &(dyn Fn(&Report) + Sync),
    ) -> Result<Report> {
        let mut walk = Reach::over(Bytes::new(), None, PAGES, &self.reserved);
        let mut sizes = (FIRST_PAGE, FIRST_PAGE);
        while let Some(reach) = &mut walk {
            if !self.step(reach, &mut sizes, &mut report).await? {
                walk = None;
            }
            progress(&report);
        }
        progress(&report);
        report.complete = true;
        report.good = report.missing + report.different + report.stray == 0;
        Ok(report)
    }

    /// Compares the next part, and answers whether anything is left.
    async fn step(
        &self,
        reach: &mut Reach,
        sizes: &mut (PageSize, PageSize),
        report: &mut Report,
    ) -> Result<bool> {
        // Before the old store is read, and the new one after it: what was replayed by then and has
        // not changed by now is the same in both.
        let replayed = match &self.mirrored {
            Some(old) => mirror::replayed_through(old).await?,
            None => None,
        };
        let span = reach.range();
        let mut page = self.old.scan(span.clone(), sizes.0, Content::Full).await?;
        sizes.0 = adapted(sizes.0, page.kvs.iter());
        let old_end = page.stop()?;
        let upto = |end: &Option<Bytes>| match end {
            Some(end) => KeyRange::span(span.start().clone(), Some(end.clone())),
            None => span.clone(),
        };
        // The new store may hold more there than can be held, and so cut it once more.
        let (claims, new_end) = self.new.first_claims(upto(&old_end), sizes.1).await?;
        sizes.1 = adapted(sizes.1, claims.iter().filter_map(Claim::live));
        let end = new_end.or(old_end);
        let part = upto(&end);
        let more = reach.go_on(&page, end);
        page.kvs.retain(|kv| part.contains(&kv.key));
        page.rejects.retain(|(key, _)| part.contains(key));
        if self.all_claimed {
            // Both are in key order.
            let claimed = |key: &Bytes| {
                claims
                    .binary_search_by(|claim| claim.key().cmp(key))
                    .is_ok()
            };
            let before = page.kvs.len();
            page.kvs.retain(|kv| claimed(&kv.key));
            report.superseded += (before - page.kvs.len()) as u64;
        }
        compare(&page, &claims, replayed, report);
        Ok(more)
    }
}

/// Walks over both sides in key order.
fn compare(page: &Page, claims: &[Claim], replayed: Option<Revision>, report: &mut Report) {
    let is_replayed = |kv: &KeyValue| replayed.is_some_and(|through| kv.mod_revision <= through);
    let mut old = page.kvs.iter().peekable();
    let mut new = claims.iter().peekable();
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(kv), Some(claim)) => kv.key.cmp(claim.key()),
        };
        match order {
            Ordering::Less => {
                report.compared += 1;
                if let Some(kv) = old.next() {
                    report.find(Kind::Missing, &kv.key, String::new());
                }
            }
            Ordering::Greater => match new.next() {
                Some(Claim::Copied(kv)) if kv.lease.is_some() => report.expired += 1,
                Some(Claim::Copied(kv)) => report.find(Kind::Stray, &kv.key, String::new()),
                Some(Claim::Live(kv)) if is_replayed(kv) => {
                    report.find(Kind::Unmirrored, &kv.key, "it is not there".into());
                }
                _ => {}
            },
            Ordering::Equal => {
                report.compared += 1;
                match (old.next(), new.next()) {
                    // The mirror has written it again, without its lease.
                    (Some(old), Some(Claim::Copied(new)))
                        if replayed.is_some() && new.lease.is_some() && old.value == new.value =>
                    {
                        report.equal += 1;
                    }
                    (Some(old), Some(Claim::Copied(new))) => match difference(old, new) {
                        None => report.equal += 1,
                        Some(what) => report.find(Kind::Different, &old.key, what),
                    },
                    (Some(old), Some(Claim::Live(new))) => {
                        report.superseded += 1;
                        if is_replayed(new) && old.value == new.value {
                            report.mirrored += 1;
                        } else if is_replayed(new) {
                            let what = "it has another value".into();
                            report.find(Kind::Unmirrored, &new.key, what);
                        }
                    }
                    _ => report.superseded += 1,
                }
            }
        }
    }
    for (key, reason) in &page.rejects {
        report.compared += 1;
        let decided = claims.iter().any(|claim| claim.key() == key);
        if decided {
            report.superseded += 1;
        } else {
            report.find(Kind::Missing, key, reason.clone());
        }
    }
}

fn difference(old: &KeyValue, new: &KeyValue) -> Option<String> {
    let numbers = [
        (
            "create revision",
            old.create_revision.0,
            new.create_revision.0,
        ),
        ("mod revision", old.mod_revision.0, new.mod_revision.0),
        ("version", old.version, new.version),
        ("lease", old.lease.0, new.lease.0),
    ];
    if old.value != new.value {
        return Some(format!(
            "the values differ ({} bytes in the old store, {} in the new one)",
            old.value.len(),
            new.value.len()
        ));
    }
    numbers
        .into_iter()
        .find(|(_, old, new)| old != new)
        .map(|(what, old, new)| format!("{what} {old} in the old store, {new} in the new one"))
}

impl Report {
    fn find(&mut self, kind: Kind, key: &[u8], detail: String) {
        match kind {
            Kind::Missing => self.missing += 1,
            Kind::Different => self.different += 1,
            Kind::Stray => self.stray += 1,
            Kind::Unmirrored => self.unmirrored += 1,
        }
        if self.findings.len() < LISTED {
            self.findings.push(Finding {
                kind,
                key: readable(key),
                detail,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LeaseId, Revision};

    fn kv(key: &'static str, value: &'static str, revision: i64) -> KeyValue {
        KeyValue {
            key: key.into(),
            value: value.into(),
            create_revision: Revision(revision),
            mod_revision: Revision(revision),
            version: 1,
            lease: LeaseId::NONE,
        }
    }

    fn found(old: &[KeyValue], new: &[Claim]) -> Report {
        let page = Page {
            kvs: old.to_vec(),
            ..Page::default()
        };
        let mut report = Report::default();
        compare(&page, new, None, &mut report);
        report
    }

    #[test]
    fn each_kind_of_difference_is_told_from_what_clients_did() {
        let a = || kv("a", "1", 5);
        let changed = |change: &dyn Fn(&mut KeyValue)| {
            let mut copy = a();
            change(&mut copy);
            Claim::Copied(copy)
        };
        let leased = changed(&|kv| kv.lease = LeaseId(7));
        let [equal, superseded, expired, missing, different, stray] = [0, 1, 2, 3, 4, 5];
        for (name, old, new, expected) in [
            ("same", vec![a()], vec![changed(&|_| {})], equal),
            ("not copied", vec![a()], vec![], missing),
            (
                "value",
                vec![a()],
                vec![changed(&|kv| kv.value = "2".into())],
                different,
            ),
            (
                "version",
                vec![a()],
                vec![changed(&|kv| kv.version = 2)],
                different,
            ),
            (
                "created",
                vec![a()],
                vec![changed(&|kv| kv.create_revision = Revision(4))],
                different,
            ),
            (
                "modified",
                vec![a()],
                vec![changed(&|kv| kv.mod_revision = Revision(10))],
                different,
            ),
            ("lease", vec![a()], vec![leased.clone()], different),
            (
                "written since, or there before",
                vec![a()],
                vec![Claim::Live(kv("a", "2", 5))],
                superseded,
            ),
            (
                "deleted since",
                vec![a()],
                vec![Claim::Whiteout("a".into())],
                superseded,
            ),
            ("from nowhere", vec![], vec![changed(&|_| {})], stray),
            ("expired in old", vec![], vec![leased], expired),
        ] {
            let report = found(&old, &new);
            let counts = [
                report.equal,
                report.superseded,
                report.expired,
                report.missing,
                report.different,
                report.stray,
            ];
            let mut wanted = [0; 6];
            wanted[expected] = 1;
            assert_eq!(counts, wanted, "{name}");
            assert_eq!(
                report.findings.len(),
                usize::from(expected >= missing),
                "{name}"
            );
        }
    }

    #[test]
    fn new_keys_of_clients_and_their_whiteouts_are_nobodys_concern() {
        let new = [Claim::Live(kv("b", "x", 5)), Claim::Whiteout("c".into())];
        assert_eq!(found(&[], &new), Report::default());
    }

    #[test]
    fn a_gap_is_found_among_neighbours() {
        let old = [kv("a", "1", 1), kv("b", "2", 2), kv("c", "3", 3)];
        let new = [0, 2].map(|index: usize| Claim::Copied(old[index].clone()));
        let report = found(&old, &new);
        assert_eq!((report.compared, report.equal, report.missing), (3, 2, 1));
        assert_eq!(report.findings[0].key, "b");
    }
}
