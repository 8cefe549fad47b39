//! Pages: as many pairs as are wanted, and no more bytes.

use bytes::Bytes;
use segue::store::{AsOld, Guard, OldStore, PageSize};
use segue::types::{Content, KeyRange, KeyValue, Put};

use super::NewFixture;
use super::dsl::text;

/// Values of these sizes, small ones before large ones and behind them.
const SIZES: [usize; 12] = [
    10, 10, 10, 10, 10, 10, 20_000, 20_000, 20_000, 60_000, 10, 10,
];

/// Pairs with values of [`SIZES`], in key order, with this in front of their keys.
pub fn uneven(prefix: &str) -> Vec<(String, Bytes)> {
    let pair = |(number, size): (usize, &usize)| {
        let value = format!("{number:02}").repeat(size / 2);
        (format!("{prefix}{number:02}"), value.into())
    };
    SIZES.iter().enumerate().map(pair).collect()
}

/// Goes over all pairs of `old`, which has these, in pages of every kind.
pub async fn holds_to_sizes(old: &dyn OldStore, pairs: &[(String, Bytes)]) {
    let sizes = [
        (100, 1),
        (100, 100),
        (100, 30_000),
        (100, 1 << 20),
        (2, 30_000),
        (1, 1 << 20),
        (0, 0),
    ];
    for (pairs_max, bytes) in sizes {
        let size = PageSize {
            pairs: pairs_max,
            bytes,
        };
        for content in [Content::Full, Content::KeysOnly] {
            let mut seen = Vec::new();
            let mut rest = Some(KeyRange::all());
            while let Some(keys) = rest {
                let page = old.scan(keys.clone(), size, content).await.unwrap();
                rest = page.rest(&keys).unwrap();
                let Some((last, before)) = page.kvs.split_last() else {
                    assert!(rest.is_none(), "a page has a pair");
                    break;
                };
                let weight: usize = before.iter().map(KeyValue::weight).sum();
                assert!(before.is_empty() || weight < bytes, "{size:?}: {weight}");
                assert!(before.len() < pairs_max.max(1), "{size:?}");
                seen.extend(before.iter().chain([last]).cloned());
                if let Some(left) = page.left.exactly() {
                    assert_eq!(left, pairs.len() - seen.len(), "{size:?}");
                }
            }
            let seen = seen.iter().map(|kv| (text(&kv.key), kv.value.clone()));
            let expected = pairs.iter().cloned().map(|(key, value)| match content {
                Content::Full => (key, value),
                _ => (key, Bytes::new()),
            });
            assert!(seen.eq(expected), "{size:?} {content:?}");
        }
    }
}

pub async fn a_page_ends_with_the_pair_with_which_its_bytes_are_reached(fixture: &dyn NewFixture) {
    let new = fixture.new_store().await;
    let store = new.guarded(Guard::None);
    // On both sides of the reserved keys.
    let pairs = [uneven("a"), uneven("z")].concat();
    for (key, value) in &pairs {
        let put = Put::new(key.clone(), value.clone());
        store.put(put).await.unwrap();
    }
    let old = AsOld::of(new).await.unwrap();
    holds_to_sizes(&old, &pairs).await;
}
