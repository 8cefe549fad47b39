//! What clients may believe: one store that never migrates.
//!
//! It carries out every change at the moment when a transaction of a real store commits it, so that
//! an answer can be compared with the one that a single etcd would have given then.

use std::fmt;

/// A revision as clients see it.
pub(crate) type Revision = u8;

/// One of the two keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Key {
    A,
    B,
}

pub(crate) const KEYS: [Key; 2] = [Key::A, Key::B];

/// A key's value and numbers. Every write has a revision of its own, which stands for all of them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Pair {
    pub(crate) written: Revision,
    /// Attached to the one lease.
    pub(crate) leased: bool,
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "@{}{}",
            self.written,
            if self.leased { " leased" } else { "" }
        )
    }
}

/// What the keys hold.
pub(crate) type Pairs = [Option<Pair>; 2];

/// What becomes of each key: nothing, or a new pair, or its end.
pub(crate) type Writes = [Option<Option<Pair>>; 2];

pub(crate) const NO_WRITES: Writes = [None; 2];

/// What clients ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Request {
    Get(Key),
    Range,
    Put(Key),
    Delete(Key),
    /// Put, if the key still holds what it held when the client asked.
    Swap(Key, Option<Pair>),
    /// A transaction over both keys: if A still holds this, delete A and put B; else put A.
    Move(Option<Pair>),
}

/// What they are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Answer {
    Pairs(Pairs),
    Written,
    Deleted(bool),
    Succeeded(bool),
}

impl Request {
    pub(crate) fn is_read(self) -> bool {
        matches!(self, Self::Get(_) | Self::Range)
    }

    /// Whether `key` is compared, read or written in any branch.
    pub(crate) fn touches(self, key: Key) -> bool {
        match self {
            Self::Range | Self::Move(_) => true,
            Self::Get(k) | Self::Put(k) | Self::Delete(k) | Self::Swap(k, _) => k == key,
        }
    }

    /// Decides the request on `pairs`, as etcd would. A change happens at `at`.
    pub(crate) fn evaluate(self, pairs: Pairs, at: Revision) -> (Answer, Writes) {
        let put = Some(Some(Pair {
            written: at,
            leased: false,
        }));
        let of = |key: Key| pairs[key as usize];
        let mut writes = NO_WRITES;
        let answer = match self {
            Self::Get(key) => {
                let mut seen = [None; 2];
                seen[key as usize] = of(key);
                Answer::Pairs(seen)
            }
            Self::Range => Answer::Pairs(pairs),
            Self::Put(key) => {
                writes[key as usize] = put;
                Answer::Written
            }
            Self::Delete(key) => {
                let found = of(key).is_some();
                writes[key as usize] = found.then_some(None);
                Answer::Deleted(found)
            }
            Self::Swap(key, expected) => {
                let equal = of(key) == expected;
                writes[key as usize] = if equal { put } else { None };
                Answer::Succeeded(equal)
            }
            Self::Move(expected) => {
                let equal = of(Key::A) == expected;
                writes = if equal {
                    [of(Key::A).map(|_| None), put]
                } else {
                    [put, None]
                };
                Answer::Succeeded(equal)
            }
        };
        (answer, writes)
    }
}

/// The end of the lease: every key attached to it is deleted.
pub(crate) fn expire(pairs: Pairs) -> Writes {
    pairs.map(|pair| pair.filter(|pair| pair.leased).map(|_| None))
}

/// Applies `writes` to `pairs`.
pub(crate) fn apply(pairs: &mut Pairs, writes: &Writes) {
    for (pair, write) in pairs.iter_mut().zip(writes) {
        if let Some(write) = write {
            *pair = *write;
        }
    }
}

/// How a step has broken a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Broken {
    /// A read showed what was never there between its begin and its end.
    Read,
    /// A revision was given out twice, or went back.
    Revision,
    /// A request was decided on something else than the true state.
    Answer,
    /// The new store tells its watchers something else than the change.
    Event,
    /// The old store differs from the new one after the drain.
    Mirror,
    /// A change was mirrored into the old store while that was open for others.
    Open,
}

/// The store that never migrates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Spec {
    pub(crate) pairs: Pairs,
    /// The highest revision that a client may have seen.
    pub(crate) published: Revision,
}

impl Spec {
    /// A real store has carried out `request` at revision `at`, and answered `answer`.
    pub(crate) fn check(
        &mut self,
        request: Request,
        at: Revision,
        answer: Answer,
        writes: &Writes,
    ) -> Result<(), Broken> {
        let (expected, changes) = request.evaluate(self.pairs, at);
        if expected != answer {
            return Err(if request.is_read() {
                Broken::Read
            } else {
                Broken::Answer
            });
        }
        if changes != *writes {
            return Err(Broken::Event);
        }
        self.change(at, writes)
    }

    /// A real store has carried out `writes` at `at`; a request that changes nothing shows it.
    pub(crate) fn change(&mut self, at: Revision, writes: &Writes) -> Result<(), Broken> {
        let changed = *writes != NO_WRITES;
        if at < self.published || (changed && at == self.published) {
            return Err(Broken::Revision);
        }
        self.published = at;
        apply(&mut self.pairs, writes);
        Ok(())
    }
}
