//! Where a row is.
//!
//! PostgreSQL tells of each row in which page of the table it is, and at which position. There a row is
//! found again without a walk through an index, which is what an update of a fetched row costs most. It
//! stays there as long as nobody writes it, and all who do hold the lock of the head row. Where somebody
//! has done so by hand, the update fails and the batch is tried again. Servers that only speak the
//! protocol have no such places.

use bytes::{BufMut as _, BytesMut};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};
use tracing::debug;

use super::conn::{Conn, Step};
use crate::store::login::postgres::told;
use crate::store::sql::backend::Place;

/// A place as PostgreSQL has it, its `ctid`: number of the page, and of the item in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tid(pub(super) Place);

/// Whether rows have places there.
pub(super) async fn supported(conn: &Conn) -> bool {
    let asked = conn
        .query(Step::of("SELECT ctid FROM pg_class LIMIT 0"))
        .await;
    if let Err(err) = &asked {
        debug!("rows have no places: {}", told(err));
    }
    asked.is_ok()
}

type Failed = Box<dyn std::error::Error + Sync + Send>;

impl<'a> FromSql<'a> for Tid {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Failed> {
        let mut bytes = [0; 8];
        bytes[2..].copy_from_slice(raw.get(..6).ok_or("a place has six bytes")?);
        Ok(Self(Place(i64::from_be_bytes(bytes))))
    }

    accepts!(TID);
}

impl ToSql for Tid {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Failed> {
        out.put_slice(&self.0.0.to_be_bytes()[2..]);
        Ok(IsNull::No)
    }

    accepts!(TID);
    to_sql_checked!();
}
