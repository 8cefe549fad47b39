//! A table that an application has made itself, which a migration can come from.

use std::fmt;
use std::path::PathBuf;

use super::UrlError;
use super::database::{Database, MYSQL, POSTGRES, encoded};
use super::parameters::{Parameters, list};

/// The parameters that make a database's URL one of a table.
pub(super) const NAMES: &[&str] = &["table", "key", "value", "revision", "expires"];

/// A table to be read as keys and values. Whether it is there is found out when it is opened.
#[derive(Clone, PartialEq, Eq)]
pub struct Table {
    /// The database that it is in.
    pub within: Within,
    /// What to read of it.
    pub columns: Columns,
}

/// The database of a [`Table`].
#[derive(Clone, PartialEq, Eq)]
pub enum Within {
    /// A file.
    Sqlite(PathBuf),
    /// PostgreSQL.
    Postgres(Database),
    /// MySQL or MariaDB.
    Mysql(Database),
}

/// Names of a table and its columns, as the operator wrote them: to be looked up in the database's
/// catalog, and never to be put into a statement as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The schema (in MySQL: the database) that the table is in, if not where names are looked up
    /// by themselves.
    pub schema: Option<String>,
    /// The table's name.
    pub table: String,
    /// The columns whose values, joined by `/`, are the key; at least one.
    pub key: Vec<String>,
    /// The column with the value.
    pub value: String,
    /// The column with the revision of the last change.
    pub revision: Option<String>,
    /// The column with the time at which the row expires.
    pub expires: Option<String>,
}

impl Within {
    /// The server's database, if there is a server.
    #[must_use]
    pub fn database(&self) -> Option<&Database> {
        match self {
            Self::Sqlite(_) => None,
            Self::Postgres(database) | Self::Mysql(database) => Some(database),
        }
    }

    pub(super) fn database_mut(&mut self) -> Option<&mut Database> {
        match self {
            Self::Sqlite(_) => None,
            Self::Postgres(database) | Self::Mysql(database) => Some(database),
        }
    }
}

/// Takes the parameters of a table; nothing if there are none.
pub(super) fn parse(parameters: &mut Parameters) -> Result<Option<Columns>, UrlError> {
    let scheme = parameters.scheme();
    let complain = |what: String| {
        UrlError::Parameter(format!(
            "{what} in the {scheme} URL: an existing table is read with table=[SCHEMA.]TABLE, \
             key=COLUMN[,COLUMN…] and value=COLUMN, and, if it has such columns, revision=COLUMN and \
             expires=COLUMN"
        ))
    };
    let Some(mut table) = parameters.take_parts("table", Some('.'))? else {
        let stray: Vec<&str> = NAMES
            .iter()
            .copied()
            .filter(|name| parameters.has(name))
            .collect();
        return match stray.as_slice() {
            [] => Ok(None),
            stray => Err(complain(format!("{} without table=", list(stray)))),
        };
    };
    let name = table.pop().unwrap_or_default();
    let qualifier = table.pop();
    if !table.is_empty() {
        return Err(complain(
            "table= has more than one `.` (one that belongs to a name is written %2E)".to_owned(),
        ));
    }
    let (Some(key), Some(value)) = (
        parameters.take_parts("key", Some(','))?,
        parameters.take("value")?,
    ) else {
        return Err(complain("table= without key= or value=".to_owned()));
    };
    Ok(Some(Columns {
        schema: qualifier,
        table: name,
        key,
        value,
        revision: parameters.take("revision")?,
        expires: parameters.take("expires")?,
    }))
}

impl fmt::Display for Columns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("table=")?;
        if let Some(schema) = &self.schema {
            write!(f, "{}.", encoded(schema))?;
        }
        let key: Vec<String> = self.key.iter().map(|name| encoded(name)).collect();
        let (table, value) = (encoded(&self.table), encoded(&self.value));
        write!(f, "{table}&key={}&value={value}", key.join(","))?;
        for (name, column) in [("revision", &self.revision), ("expires", &self.expires)] {
            if let Some(column) = column {
                write!(f, "&{name}={}", encoded(column))?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.within {
            Within::Sqlite(path) => write!(f, "sqlite:{}?{}", path.display(), self.columns),
            Within::Postgres(database) => database.show(&POSTGRES, Some(&self.columns), f),
            Within::Mysql(database) => database.show(&MYSQL, Some(&self.columns), f),
        }
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
