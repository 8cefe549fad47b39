//! What keeps the jobs of a member from going on, for people to see.
//!
//! Each job has a place of its own: that one gets on says nothing about another. What a job has told is
//! forgotten when it gets on again, and when it has ended, by whatever.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::store::StoreError;

/// The troubles of all jobs of a member. Clones are the same.
#[derive(Clone, Default)]
pub struct Troubles(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    /// How often a job was begun.
    runs: u64,
    by_job: BTreeMap<&'static str, Why>,
}

/// What keeps a job from going on.
struct Why {
    /// The number of the run that has told it.
    run: u64,
    text: String,
    /// It does not pass by itself.
    stays: bool,
}

impl Troubles {
    /// A place for the job that begins now.
    #[must_use]
    pub fn begin(&self, job: &'static str) -> Arc<Trouble> {
        let mut told = self.told();
        told.runs += 1;
        Arc::new(Trouble {
            all: self.clone(),
            job,
            run: told.runs,
            left: AtomicBool::new(false),
        })
    }

    /// That of one job, if it has any.
    #[must_use]
    pub fn of(&self, job: &str) -> Option<String> {
        self.told().by_job.get(job).map(|why| why.text.clone())
    }

    /// All of them in one text, if there is any.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        let told = self.told();
        let texts: Vec<_> = told.by_job.values().map(|why| &why.text[..]).collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }

    /// Forgets what was told by jobs that are not to be done here any more.
    pub(super) fn keep_only(&self, goes_on: impl Fn(&str) -> bool) {
        self.told().by_job.retain(|job, _| goes_on(job));
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one run of a job. What it has told is forgotten when it is dropped: a job that is stopped
/// takes its trouble with it.
pub struct Trouble {
    all: Troubles,
    job: &'static str,
    run: u64,
    left: AtomicBool,
}

impl Trouble {
    /// The job does not get on, and why. It goes on trying.
    pub fn tell(&self, why: String) {
        self.note(why, false);
    }

    /// The job does not get on because of this. It goes on trying, be it of use or not.
    pub fn tell_error(&self, what: &str, error: &StoreError) {
        self.note(format!("{what}: {error}"), error.is_final());
    }

    /// What does not pass by itself, if the job was kept from going on by such a thing.
    #[must_use]
    pub fn stays(&self) -> Option<String> {
        let told = self.all.told();
        let why = told.by_job.get(self.job).filter(|why| why.stays);
        why.map(|why| why.text.clone())
    }

    fn note(&self, text: String, stays: bool) {
        let mut told = self.all.told();
        // Whoever was stopped may find that out later than its successor has begun.
        if told
            .by_job
            .get(self.job)
            .is_none_or(|why| why.run <= self.run)
        {
            let run = self.run;
            told.by_job.insert(self.job, Why { run, text, stays });
        }
    }

    /// The job gets on.
    pub fn clear(&self) {
        let mut told = self.all.told();
        if told
            .by_job
            .get(self.job)
            .is_some_and(|why| why.run <= self.run)
        {
            told.by_job.remove(self.job);
        }
    }

    /// The same as [`Self::tell`] for a run that ends here: it stays until the next one gets on.
    pub fn leave(&self, why: String) {
        self.tell(why);
        self.left.store(true, Ordering::Relaxed);
    }
}

impl Drop for Trouble {
    fn drop(&mut self) {
        if !self.left.load(Ordering::Relaxed) {
            self.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_gets_on_or_ends_forgets_its_own_trouble_alone() {
        let troubles = Troubles::default();
        let (one, other) = (troubles.begin("one"), troubles.begin("other"));
        assert_eq!(troubles.text(), None);
        one.tell("a".into());
        other.tell("b".into());
        assert_eq!(troubles.text().as_deref(), Some("a; b"));
        other.clear();
        assert_eq!(troubles.text().as_deref(), Some("a"));
        drop(other);
        assert_eq!(troubles.text().as_deref(), Some("a"));
        drop(one);
        assert_eq!(troubles.text(), None);
    }

    #[test]
    fn what_passes_by_itself_is_told_from_what_stays() {
        let troubles = Troubles::default();
        let one = troubles.begin("one");
        one.tell_error("copying", &StoreError::Unavailable("it is away".into()));
        assert_eq!(one.stays(), None);
        one.tell_error("copying", &StoreError::Broken("it is no store".into()));
        assert_eq!(one.stays().as_deref(), Some("copying: it is no store"));
        one.clear();
        assert_eq!(one.stays(), None);
    }

    #[test]
    fn what_a_run_leaves_behind_stays_until_the_next_one_gets_on() {
        let troubles = Troubles::default();
        let first = troubles.begin("one");
        first.leave("a fault".into());
        drop(first);
        let second = troubles.begin("one");
        assert_eq!(troubles.text().as_deref(), Some("a fault"));
        second.clear();
        assert_eq!(troubles.text(), None);
        let third = troubles.begin("one");
        third.tell("c".into());
        // It was stopped, and is slow to see it.
        second.tell("b".into());
        drop(second);
        assert_eq!(troubles.text().as_deref(), Some("c"));
        troubles.keep_only(|job| job != "one");
        assert_eq!(troubles.text(), None);
    }
}
