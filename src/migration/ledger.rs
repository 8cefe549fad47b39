//! Typed access to the records in which the migration keeps its state.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::phase::State;
use super::records::STATE;
use crate::store::{NewStore, Record, RecordTxn, RecordWrite, Result, StoreError};
use crate::types::Epoch;

/// Records that are written or removed in one transaction: as many as one of etcd's takes, with room for what
/// goes with them and what the store adds.
pub(super) const TOGETHER: usize = 100;

/// The records of a new store.
#[derive(Clone)]
pub struct Ledger(Arc<dyn NewStore>);

/// A record's value with the version that it was read in; the default is a record that does not exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry<T> {
    /// What it says.
    pub value: T,
    /// For compare-and-put; 0 if the record does not exist.
    pub version: i64,
}

impl Ledger {
    /// The records of `store`.
    #[must_use]
    pub fn new(store: Arc<dyn NewStore>) -> Self {
        Self(store)
    }

    /// One record.
    pub async fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<Entry<T>>> {
        let records = self.0.records(name).await?;
        match records.iter().find(|record| record.name == name) {
            Some(record) => Ok(Some(read(record)?)),
            None => Ok(None),
        }
    }

    /// All records below `prefix`, with what follows it in their names.
    pub async fn list<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<(String, Entry<T>)>> {
        let records = self.0.records(prefix).await?;
        records
            .iter()
            .map(|record| {
                let rest = record.name.strip_prefix(prefix).unwrap_or(&record.name);
                Ok((rest.to_owned(), read(record)?))
            })
            .collect()
    }

    /// Writes `value` if the record is still in `version`; answers whether it was.
    pub async fn put<T: Serialize>(&self, name: &str, value: &T, version: i64) -> Result<bool> {
        self.write(RecordTxn {
            expect: vec![(name.to_owned(), version)],
            writes: vec![write(name, value)],
            ..RecordTxn::default()
        })
        .await
    }

    /// The same, if the state too is still as it was read. So is written whatever could make a record that
    /// was not there: a member that has slept through the end of the migration would leave it behind for
    /// good.
    pub async fn put_under<T: Serialize>(
        &self,
        state: &Entry<State>,
        name: &str,
        value: &T,
        version: i64,
    ) -> Result<bool> {
        self.write(RecordTxn {
            expect: vec![
                (STATE.to_owned(), state.version),
                (name.to_owned(), version),
            ],
            writes: vec![write(name, value)],
            ..RecordTxn::default()
        })
        .await
    }

    /// Carries out `txn`, for those who do not know the state, if it is not closed; answers whether all
    /// that `txn` expects held. Fails with [`StoreError::StaleEpoch`] when the migration is over.
    pub async fn write_while_open(&self, txn: RecordTxn) -> Result<bool> {
        self.write_while(|state| !state.closed, txn).await
    }

    /// The same in this epoch alone. Versions of records begin anew with the next migration, so that they
    /// do not tell whoever has slept through its beginning.
    pub async fn write_in(&self, epoch: Epoch, txn: RecordTxn) -> Result<bool> {
        self.write_while(|state| state.epoch == epoch, txn).await
    }

    async fn write_while(
        &self,
        holds: impl Fn(&State) -> bool + Copy,
        txn: RecordTxn,
    ) -> Result<bool> {
        loop {
            let state = self.state_if(holds).await?;
            let mut under = txn.clone();
            under.expect.push((STATE.to_owned(), state.version));
            if self.write(under).await? {
                return Ok(true);
            }
            if self.state_if(holds).await?.version == state.version {
                return Ok(false);
            }
        }
    }

    async fn state_if(&self, holds: impl Fn(&State) -> bool) -> Result<Entry<State>> {
        let state = self.get::<State>(STATE).await?;
        let state = state.filter(|entry| holds(&entry.value));
        state.ok_or(StoreError::StaleEpoch)
    }

    /// Removes the record if it is still in `version`; answers whether it was.
    pub async fn remove(&self, name: &str, version: i64) -> Result<bool> {
        self.write(RecordTxn {
            expect: vec![(name.to_owned(), version)],
            writes: vec![RecordWrite {
                name: name.to_owned(),
                value: None,
            }],
            ..RecordTxn::default()
        })
        .await
    }

    /// Removes all these records while the state is still as it was read; answers whether it was to the end.
    /// May be repeated.
    pub async fn remove_all(&self, state: &Entry<State>, names: &[String]) -> Result<bool> {
        for some in names.chunks(TOGETHER) {
            let removal = |name: &String| RecordWrite {
                name: name.clone(),
                value: None,
            };
            let txn = RecordTxn {
                expect: vec![(STATE.to_owned(), state.version)],
                writes: some.iter().map(removal).collect(),
                ..RecordTxn::default()
            };
            if !self.write(txn).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Carries out `txn` if all that it expects holds; answers whether it did.
    pub async fn write(&self, txn: RecordTxn) -> Result<bool> {
        self.0.write_records(txn).await
    }
}

/// The write that makes the record `name` say `value`.
///
/// # Panics
/// Never for the records of this crate: they are plain data, which serializes.
pub fn write<T: Serialize>(name: impl Into<String>, value: &T) -> RecordWrite {
    let json = serde_json::to_vec(value).expect("records are plain data");
    RecordWrite {
        name: name.into(),
        value: Some(Bytes::from(json)),
    }
}

fn read<T: DeserializeOwned>(record: &Record) -> Result<Entry<T>> {
    let value = serde_json::from_slice(&record.value).map_err(|error| {
        StoreError::Broken(format!(
            "the record {:?} in the new store is not one of this version of segue: {error}",
            record.name
        ))
    })?;
    Ok(Entry {
        value,
        version: record.version,
    })
}
