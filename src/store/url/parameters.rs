//! What follows the `?` of a URL: `NAME=VALUE&NAME=VALUE`.

use percent_encoding::percent_decode_str;

use super::UrlError;
use super::table;

/// The parameters of one URL, each of them known, none of them twice.
pub(super) struct Parameters {
    scheme: &'static str,
    /// Names, and values as they were written.
    given: Vec<(&'static str, String)>,
}

impl Parameters {
    /// Reads the parameters. Those of plain tables are known besides `known`.
    pub(super) fn parse(
        scheme: &'static str,
        text: Option<&str>,
        known: &[&'static str],
    ) -> Result<Self, UrlError> {
        let known: Vec<&'static str> = known.iter().chain(table::NAMES).copied().collect();
        let mut given: Vec<(&'static str, String)> = Vec::new();
        for part in text.unwrap_or_default().split('&') {
            if part.is_empty() {
                continue;
            }
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let Some(name) = known.iter().find(|known| **known == name) else {
                // Part of a password, if somebody left a `?` in it as it is.
                let harmless = part.contains('=')
                    && !name.is_empty()
                    && name
                        .bytes()
                        .all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'_' | b'-'));
                let name = if harmless {
                    format!("`{name}=`")
                } else {
                    "a parameter".to_owned()
                };
                return Err(UrlError::Parameter(format!(
                    "the {scheme} URL has {name} behind its `?`, which is not known; known are {} \
                     (a `?` in a password is written %3F)",
                    list(&known)
                )));
            };
            if value.is_empty() {
                return Err(UrlError::Parameter(format!(
                    "`{name}=` has no value in the {scheme} URL: write one or leave it out"
                )));
            }
            if given.iter().any(|(other, _)| other == name) {
                return Err(UrlError::Parameter(format!(
                    "`{name}=` stands twice in the {scheme} URL: leave one of them out"
                )));
            }
            given.push((name, value.to_owned()));
        }
        Ok(Self { scheme, given })
    }

    /// The kind of URL.
    pub(super) fn scheme(&self) -> &'static str {
        self.scheme
    }

    /// Whether `name` was given and not taken.
    pub(super) fn has(&self, name: &str) -> bool {
        self.given.iter().any(|(given, _)| *given == name)
    }

    /// The value of `name`, with its `%XX` decoded.
    pub(super) fn take(&mut self, name: &str) -> Result<Option<String>, UrlError> {
        let parts = self.take_parts(name, None)?;
        Ok(parts.and_then(|mut parts| parts.pop()))
    }

    /// The value of `name`, taken apart at each `separator`. One that belongs to a part is written
    /// as `%XX`, since parts are decoded afterwards.
    pub(super) fn take_parts(
        &mut self,
        name: &str,
        separator: Option<char>,
    ) -> Result<Option<Vec<String>>, UrlError> {
        let Some(at) = self.given.iter().position(|(given, _)| *given == name) else {
            return Ok(None);
        };
        let (name, value) = self.given.remove(at);
        let parts = match separator {
            None => vec![value.as_str()],
            Some(separator) => value.split(separator).collect(),
        };
        let decode = |part: &str| {
            let part = percent_decode_str(part).decode_utf8().ok()?.into_owned();
            (!part.is_empty() && !part.contains('\0')).then_some(part)
        };
        let parts = parts.into_iter().map(decode).collect::<Option<Vec<_>>>();
        match parts {
            Some(parts) => Ok(Some(parts)),
            None => Err(UrlError::Parameter(format!(
                "`{name}=` in the {} URL is empty in a part or not UTF-8 once its %XX are decoded",
                self.scheme
            ))),
        }
    }
}

/// `a=, b= and c=`.
pub(super) fn list(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("{name}=")).collect();
    match names.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => "none".to_owned(),
    }
}
