//! What came back: rows, and their columns.

use std::collections::VecDeque;

use bytes::Bytes;
use mysql_async::{Row, Value};

use super::error::Failure;
use crate::store::sql::rows::Columns;

/// The answers to the statements of a script that answer rows, in their order.
#[derive(Default)]
pub(super) struct Sets(VecDeque<Vec<Cells>>);

impl Sets {
    pub(super) fn new(sets: Vec<Vec<Cells>>) -> Self {
        Self(sets.into())
    }

    /// Puts those of a later script behind.
    pub(super) fn extend(&mut self, later: Self) {
        self.0.extend(later.0);
    }

    /// The rows of the next statement.
    pub(super) fn next(&mut self) -> Result<Vec<Cells>, Failure> {
        self.0
            .pop_front()
            .ok_or_else(|| odd("the answer to a statement is missing"))
    }

    /// The first row of the next statement.
    pub(super) fn first(&mut self) -> Result<Option<Cells>, Failure> {
        Ok(self.next()?.into_iter().next())
    }
}

/// One row. Numbers come as text.
pub(super) struct Cells(Row);

impl Cells {
    pub(super) fn new(row: Row) -> Self {
        Self(row)
    }

    fn value(&self, column: usize) -> Result<&Value, Failure> {
        self.0
            .as_ref(column)
            .ok_or_else(|| odd("a column is missing in an answer"))
    }
}

impl Columns for Cells {
    type Error = Failure;

    fn int(&self, column: usize) -> Result<i64, Failure> {
        self.maybe_int(column)?
            .ok_or_else(|| odd("a number is missing in an answer"))
    }

    fn maybe_int(&self, column: usize) -> Result<Option<i64>, Failure> {
        match self.value(column)? {
            Value::NULL => Ok(None),
            Value::Int(number) => Ok(Some(*number)),
            Value::UInt(number) => i64::try_from(*number)
                .map(Some)
                .map_err(|_| odd("a number is too large")),
            Value::Bytes(text) => std::str::from_utf8(text)
                .ok()
                .and_then(|text| text.parse().ok())
                .map(Some)
                .ok_or_else(|| odd("something that should be a number is none")),
            _ => Err(odd("something that should be a number is none")),
        }
    }

    fn bytes(&self, column: usize) -> Result<Bytes, Failure> {
        match self.value(column)? {
            Value::NULL => Ok(Bytes::new()),
            Value::Bytes(bytes) => Ok(Bytes::copy_from_slice(bytes)),
            _ => Err(odd("something that should be bytes is none")),
        }
    }

    fn text(&self, column: usize) -> Result<String, Failure> {
        match self.value(column)? {
            Value::NULL => Ok(String::new()),
            Value::Bytes(bytes) => Ok(String::from_utf8_lossy(bytes).into_owned()),
            other => Ok(other.as_sql(true)),
        }
    }
}

/// The columns of a row from this one on.
pub(super) struct Behind<'a>(pub(super) &'a Cells, pub(super) usize);

impl Columns for Behind<'_> {
    type Error = Failure;

    fn int(&self, column: usize) -> Result<i64, Failure> {
        self.0.int(self.1 + column)
    }

    fn maybe_int(&self, column: usize) -> Result<Option<i64>, Failure> {
        self.0.maybe_int(self.1 + column)
    }

    fn bytes(&self, column: usize) -> Result<Bytes, Failure> {
        self.0.bytes(self.1 + column)
    }

    fn text(&self, column: usize) -> Result<String, Failure> {
        self.0.text(self.1 + column)
    }
}

fn odd(what: &str) -> Failure {
    Failure::Odd(what.into())
}
