//! The reference model as a subject.

use std::future::{Ready, ready};
use std::sync::Arc;

use async_trait::async_trait;
use segue::store::memory::Memory;
use segue::store::{NewStore, Store};

use super::{Fixture, NewFixture, new_store_contract, store_contract};

pub struct InMemory;

pub fn fixture() -> Ready<InMemory> {
    ready(InMemory)
}

store_contract!(kv, crate::contract::memory::fixture());
new_store_contract!(new, crate::contract::memory::fixture());

#[async_trait]
impl Fixture for InMemory {
    async fn store(&self) -> Arc<dyn Store> {
        Arc::new(Memory::new())
    }
}

#[async_trait]
impl NewFixture for InMemory {
    async fn new_store(&self) -> Arc<dyn NewStore> {
        Arc::new(Memory::new())
    }
}
