//! The table as statements need it.

use bytes::Bytes;

use crate::store::url::Columns;
use crate::store::{RequestError, StoreError};
use crate::types::{KeyRange, Revision};

/// Ways to take one key apart into columns that are tried; more are looked for by the whole key.
const SPLITS_MAX: usize = 32;

/// How a column of the key is compared with a part of a key, so that the table's index helps.
#[derive(Clone, Debug)]
pub(super) enum Lookup {
    /// As text, which is put between two more pieces.
    Text(String, [String; 2]),
    /// As bytes.
    Bytes(String),
}

/// A table, as expressions. Every name in them comes from the catalog, and is quoted.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    /// What makes the table the one it is.
    pub(super) identity: String,
    /// The table.
    pub(super) from: String,
    /// The key as bytes; NULL where a column of it is.
    pub(super) key: String,
    /// Longest key that the database puts in order, if there is a limit. Longer ones are in no page:
    /// they would be anywhere.
    pub(super) key_bytes_max: Option<usize>,
    /// The value as bytes.
    pub(super) value: String,
    /// The revision as an integer, NULL where it is none.
    pub(super) revision: Option<String>,
    /// When rows expire.
    pub(super) expires: Option<Expires>,
    /// The columns of the key, if an index can help with them.
    pub(super) lookup: Option<Vec<Lookup>>,
    /// What the database takes for no bytes and no integer in a list of columns.
    pub(super) nothing: (&'static str, &'static str),
    /// How bytes are written.
    pub(super) bytes: fn(&[u8]) -> String,
    /// How text is written that is equal to these bytes; nothing if no text of the database is. May be
    /// several, with commas between them.
    pub(super) text: fn(&[u8]) -> Option<String>,
}

/// When rows expire, as expressions.
#[derive(Clone, Debug)]
pub(super) struct Expires {
    /// The column with the time.
    pub(super) column: String,
    /// The time in seconds since 1970, rounded up; NULL where the column says no time.
    pub(super) at: String,
    /// The seconds that are left until then; likewise.
    pub(super) ttl: String,
    /// The time now, in seconds since 1970.
    pub(super) now: String,
}

impl Shape {
    /// A statement for the first rows of a span in the order of their keys; without `values`, of these they have
    /// only whether there is one.
    pub(super) fn page(&self, keys: &KeyRange, limit: usize, values: bool) -> String {
        let select = if values {
            self.select(&self.value)
        } else {
            self.select(&self.has_value())
        };
        format!(
            "{select} WHERE {} ORDER BY 1 LIMIT {limit}",
            self.within(keys)
        )
    }

    /// A statement for all rows, in no order. In place of the seconds that are left to them they have
    /// the time at which they expire, which stays what it is.
    pub(super) fn walk(&self) -> String {
        let at = self.expires.as_ref().map(|expires| &expires.at[..]);
        format!(
            "{} WHERE {}",
            self.select_with(&self.value, at),
            self.within(&KeyRange::all())
        )
    }

    /// A statement for the time now, if rows expire.
    pub(super) fn now(&self) -> Option<String> {
        let (bytes, nothing) = self.nothing;
        let Expires { now, .. } = self.expires.as_ref()?;
        Some(format!("SELECT {bytes}, {bytes}, {now}, {nothing}, 0"))
    }

    /// A statement for all rows that may have one of `keys`; nothing if there can be none.
    pub(super) fn lookup(&self, keys: &[Bytes]) -> Option<String> {
        let keys = keys.iter().filter(|key| !key.is_empty());
        let found: Vec<String> = keys.filter_map(|key| self.is(key)).collect();
        (!found.is_empty()).then(|| {
            format!(
                "{} WHERE ({}) AND {}",
                self.select(&self.value),
                found.join(" OR "),
                self.alive()
            )
        })
    }

    /// A statement for the number of keys in a range.
    pub(super) fn count(&self, keys: &KeyRange) -> String {
        format!(
            "{} WHERE {}",
            self.select_number("count(*)"),
            self.within(keys)
        )
    }

    /// A statement for the numbers of rows that a page cannot have: those without a key, in the place of
    /// the revision, and those whose key is too long to be put in order, in the place of the time.
    pub(super) fn count_left_out(&self) -> String {
        let (bytes, _) = self.nothing;
        let none = format!("({0} IS NULL OR {0} = {1})", self.key, (self.bytes)(b""));
        let long = match self.key_bytes_max {
            Some(max) => format!("LENGTH({}) > {max}", self.key),
            None => "1 = 0".to_owned(),
        };
        let number = |which: &str| format!("sum(CASE WHEN {which} THEN 1 ELSE 0 END)");
        format!(
            "SELECT {bytes}, {bytes}, {}, {}, 0 FROM {} WHERE ({none} OR {long}) AND {}",
            number(&none),
            number(&long),
            self.from,
            self.alive()
        )
    }

    /// A statement for the greatest revision of those that a row may have.
    pub(super) fn greatest_revision(&self) -> Option<String> {
        let revision = self.revision.as_ref()?;
        let taken = format!("{revision} BETWEEN 1 AND {}", Revision::BASE_MAX);
        Some(self.select_number(&format!("max(CASE WHEN {taken} THEN {revision} END)")))
    }

    /// A statement for all rows that expire, in the order of their keys. Of their values they have only
    /// whether there is one.
    pub(super) fn expiring(&self) -> Option<String> {
        let Expires { column, .. } = self.expires.as_ref()?;
        let all = self.within(&KeyRange::all());
        Some(format!(
            "{} WHERE {column} IS NOT NULL AND {all} ORDER BY 1",
            self.select(&self.has_value())
        ))
    }

    /// An empty value in place of each, and none where there is none: a row without a value is no pair.
    fn has_value(&self) -> String {
        let (none, empty) = (self.nothing.0, (self.bytes)(b""));
        format!(
            "CASE WHEN {} IS NULL THEN {none} ELSE {empty} END",
            self.value
        )
    }

    fn select(&self, value: &str) -> String {
        let ttl = self.expires.as_ref().map(|expires| &expires.ttl[..]);
        self.select_with(value, ttl)
    }

    fn select_with(&self, value: &str, time: Option<&str>) -> String {
        let number = self.nothing.1;
        let revision = self.revision.as_deref().unwrap_or(number);
        let time = time.unwrap_or(number);
        let expires = match &self.expires {
            Some(Expires { column, .. }) => format!("CASE WHEN {column} IS NULL THEN 0 ELSE 1 END"),
            None => "0".to_owned(),
        };
        format!(
            "SELECT {}, {value}, {revision}, {time}, {expires} FROM {}",
            self.key, self.from
        )
    }

    fn select_number(&self, number: &str) -> String {
        let (bytes, nothing) = self.nothing;
        format!(
            "SELECT {bytes}, {bytes}, {number}, {nothing}, 0 FROM {}",
            self.from
        )
    }

    /// The rows that have not expired. Those that say no time stay, to be told as rejects.
    fn alive(&self) -> String {
        match &self.expires {
            Some(Expires { ttl, .. }) => format!("COALESCE({ttl}, 1) > 0"),
            None => "1 = 1".to_owned(),
        }
    }

    fn within(&self, keys: &KeyRange) -> String {
        let (key, bytes) = (&self.key, self.bytes);
        let span = match keys {
            KeyRange::One(one) => return format!("{key} = {} AND {}", bytes(one), self.alive()),
            KeyRange::Span { start, end } => {
                // Nothing is no key.
                let from = if start.is_empty() {
                    format!("{key} > {}", bytes(b""))
                } else {
                    format!("{key} >= {}", bytes(start))
                };
                match end {
                    Some(end) => format!("{from} AND {key} < {}", bytes(end)),
                    None => from,
                }
            }
        };
        let short = self
            .key_bytes_max
            .map(|max| format!(" AND LENGTH({key}) <= {max}"));
        format!("{span}{} AND {}", short.unwrap_or_default(), self.alive())
    }

    /// The condition for rows of `key`, and maybe others; nothing if there can be none.
    fn is(&self, key: &[u8]) -> Option<String> {
        let whole = || Some(format!("{} = {}", self.key, (self.bytes)(key)));
        let Some(columns) = &self.lookup else {
            return whole();
        };
        let Some(splits) = splits(key, columns.len()) else {
            return whole();
        };
        let ways: Vec<String> = splits
            .iter()
            .filter_map(|parts| {
                let equal = columns
                    .iter()
                    .zip(parts)
                    .map(|(column, part)| match column {
                        Lookup::Bytes(name) => Some(format!("{name} = {}", (self.bytes)(part))),
                        Lookup::Text(name, [before, after]) => {
                            let text = (self.text)(part)?;
                            Some(format!("{name} IN ({before}{text}{after})"))
                        }
                    });
                let equal = equal.collect::<Option<Vec<_>>>()?;
                Some(format!("({})", equal.join(" AND ")))
            })
            .collect();
        (!ways.is_empty()).then(|| ways.join(" OR "))
    }
}

/// All ways to take `key` apart at slashes into `parts`; nothing if there are too many.
fn splits(key: &[u8], parts: usize) -> Option<Vec<Vec<&[u8]>>> {
    if parts == 1 {
        return Some(vec![vec![key]]);
    }
    let mut ways = Vec::new();
    for (at, _) in key.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
        for rest in splits(&key[at + 1..], parts - 1)? {
            let mut way = vec![&key[..at]];
            way.extend(rest);
            ways.push(way);
            if ways.len() > SPLITS_MAX {
                return None;
            }
        }
    }
    Some(ways)
}

/// A column as the catalog has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    /// Its name.
    pub(super) name: String,
    /// Its type, in lower case.
    pub(super) of: String,
    /// The character set and collation of text, where the catalog tells.
    pub(super) charset: Option<(String, String)>,
}

/// Finds the column `name` among those of a table.
pub(super) fn find<'a>(
    columns: &'a [Column],
    parameter: &str,
    name: &str,
    any_case: bool,
) -> Result<&'a Column, StoreError> {
    let same = |column: &&Column| column.name == name;
    let alike = |column: &&Column| any_case && column.name.eq_ignore_ascii_case(name);
    let found = columns.iter().find(same);
    found.or_else(|| columns.iter().find(alike)).ok_or_else(|| {
        let names: Vec<&str> = columns.iter().map(|column| &column.name[..]).collect();
        unacceptable(&format!(
            "{parameter}={name}: the table has no such column; it has {}",
            names.join(", ")
        ))
    })
}

/// What is said of a table that is not there.
pub(super) fn no_table(columns: &Columns, place: &str) -> StoreError {
    let name = match &columns.schema {
        Some(schema) => format!("{schema}.{}", columns.table),
        None => columns.table.clone(),
    };
    unacceptable(&format!(
        "table={name}: there is no such table in {place}, or the user may not see it (SELECT is needed)"
    ))
}

/// What is said of a column that cannot be what it is named for.
pub(super) fn wrong_type(parameter: &str, column: &Column, wanted: &str) -> StoreError {
    unacceptable(&format!(
        "{parameter}={}: the column is of type {}, and has to be {wanted}",
        column.name, column.of
    ))
}

pub(super) fn unacceptable(why: &str) -> StoreError {
    RequestError::Unacceptable(why.to_owned()).into()
}

/// Two lower-case digits for each byte.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let text = String::with_capacity(bytes.len() * 2);
    bytes.iter().fold(text, |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A name between quotes of its database's kind.
pub(super) fn quoted(name: &str, quote: char) -> String {
    let doubled = format!("{quote}{quote}");
    format!("{quote}{}{quote}", name.replace(quote, &doubled))
}
