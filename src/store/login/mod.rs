//! How the drivers of database servers are told where a database is, who logs in there, and whom to
//! believe. The same for stores and for plain tables.

pub(super) mod mysql;
pub(super) mod postgres;
