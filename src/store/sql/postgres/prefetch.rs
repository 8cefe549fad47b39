//! What a batch, or a transaction that only reads, needs: as statements of one flight, and from
//! their answers.

use bytes::Bytes;
use tokio_postgres::{Error, Row as Answer};

use super::conn::Step;
use super::place::Tid;
use super::text::{PLACE_COLUMN, ROWS_TYPES, RowsText, Sql, Values, split};
use crate::store::sql::backend::{CLAIMS_MAX, Head, Past, Placed, Prefetch, Prefetched};
use crate::store::sql::rows::{Columns as _, lease_of, record_of, row_of};
use crate::types::{KeyRange, Revision};

/// The statements that fetch it; how many there are, and of which kind, follows from `want`.
pub(super) fn steps<'a>(sql: &Sql, want: &'a Prefetch) -> Vec<Step<'a>> {
    let mut steps = Vec::new();
    if !want.keys.is_empty() {
        steps.push(by_key(&sql.rows_by_key, &want.keys));
    }
    for span in &want.claims {
        let text = RowsText::of(span, false, true, Values::None);
        steps.push(span_step(
            sql.span(text),
            span,
            Some(CLAIMS_MAX),
            None,
            0,
            None,
        ));
    }
    if !want.attached.is_empty() {
        let ids: Vec<i64> = want.attached.iter().map(|id| id.0).collect();
        steps.push(Step::with(&sql.rows_attached, vec![Box::new(ids)]));
    }
    if !want.leases.is_empty() {
        let ids: Vec<i64> = want.leases.iter().map(|id| id.0).collect();
        steps.push(Step::with(&sql.leases_by_id, vec![Box::new(ids)]));
    }
    if !want.records.is_empty() {
        steps.push(Step::with(
            &sql.records_by_name,
            vec![Box::new(&want.records)],
        ));
    }
    for span in &want.spans {
        let text = RowsText::of(span, false, true, Values::All);
        steps.push(span_step(sql.span(text), span, None, None, 0, None));
    }
    for (span, at) in &want.past {
        let text = RowsText::of(span, true, false, Values::All);
        steps.push(span_step(sql.span(text), span, None, Some(*at), 0, None));
    }
    steps
}

/// Puts the answers to [`steps`] together.
pub(super) fn found(
    sql: &Sql,
    want: &Prefetch,
    head: Head,
    now_ms: i64,
    answers: Vec<Vec<Answer>>,
) -> Result<Prefetched, Error> {
    let mut answers = answers.into_iter();
    let mut next = |asked: bool| {
        let answer = if asked { answers.next() } else { None };
        answer.unwrap_or_default()
    };
    let place = |row: &Answer| {
        let place = sql.places.then(|| row.try_get(PLACE_COLUMN));
        place.transpose().map(|it| it.map(|Tid(place)| place))
    };
    let mut rows = Vec::with_capacity(want.keys.len());
    for row in next(!want.keys.is_empty()) {
        rows.push(Placed {
            row: row_of(&row)?,
            place: place(&row)?,
        });
    }
    let mut claimed = Vec::new();
    for _ in &want.claims {
        for row in next(true) {
            claimed.push(row.bytes(0)?);
        }
    }
    for row in next(!want.attached.is_empty()) {
        rows.push(Placed::somewhere(row_of(&row)?));
    }
    let leases = next(!want.leases.is_empty());
    let leases = leases.iter().map(lease_of).collect::<Result<_, _>>()?;
    let records = next(!want.records.is_empty());
    let records = records.iter().map(record_of).collect::<Result<_, _>>()?;
    for _ in &want.spans {
        for row in next(true) {
            rows.push(Placed::somewhere(row_of(&row)?));
        }
    }
    let mut past = Vec::with_capacity(want.past.len());
    for (keys, at) in &want.past {
        let kvs = next(true)
            .iter()
            .map(|row| Ok(row_of(row)?.kv))
            .collect::<Result<_, Error>>()?;
        past.push(Past {
            keys: keys.clone(),
            at: *at,
            kvs,
        });
    }
    Ok(Prefetched {
        head,
        now_ms,
        rows,
        claimed,
        past,
        leases,
        records,
    })
}

/// A statement that finds rows by their keys. It may find more than was asked for, which does no
/// harm: of two long keys, the first part of the one and the rest of the other may be a third.
pub(super) fn by_key<'a>(text: &str, keys: &'a [Bytes]) -> Step<'a> {
    let parts: Vec<&[u8]> = keys.iter().map(|key| split(key).0).collect();
    let rests = keys.iter().map(|key| split(key).1);
    let rests: Vec<&[u8]> = rests.filter(|rest| !rest.is_empty()).collect();
    Step::with(text, vec![Box::new(parts), Box::new(rests)])
}

/// A statement over the rows of a span.
pub(super) fn span_step(
    text: String,
    span: &KeyRange,
    limit: Option<usize>,
    at: Option<Revision>,
    values: usize,
    bytes: Option<usize>,
) -> Step<'_> {
    let int = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    let end = span.end().map(|end| end.to_vec());
    Step::typed(
        text,
        ROWS_TYPES,
        vec![
            Box::new(&span.start()[..]),
            Box::new(end),
            Box::new(limit.map(int)),
            Box::new(at.map(|at| at.0)),
            Box::new(int(values)),
            Box::new(bytes.map(int)),
        ],
    )
}
