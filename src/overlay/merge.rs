//! The one rule, applied to two ordered lists.

use crate::store::Claim;
use crate::types::KeyValue;

/// `view(key) = if new.claimed(key) { new.get(key) } else { old.get(key) }`, for all keys of a
/// range at once. Both lists are in key order, each key at most once, and so is the answer.
pub(super) fn view(old: Vec<KeyValue>, claims: Vec<Claim>) -> Vec<KeyValue> {
    let mut merged = Vec::with_capacity(old.len() + claims.len());
    let mut old = old.into_iter().peekable();
    for claim in claims {
        while let Some(kv) = old.next_if(|kv| kv.key < *claim.key()) {
            merged.push(kv);
        }
        old.next_if(|kv| kv.key == *claim.key());
        match claim {
            Claim::Live(kv) | Claim::Copied(kv) => merged.push(kv),
            Claim::Whiteout(_) => {}
        }
    }
    merged.extend(old);
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(key: &'static str, value: &'static str) -> KeyValue {
        KeyValue {
            key: key.into(),
            value: value.into(),
            ..KeyValue::default()
        }
    }

    #[test]
    fn claims_decide_and_everything_else_shines_through() {
        let old = vec![
            kv("a", "old"),
            kv("b", "old"),
            kv("c", "old"),
            kv("e", "old"),
        ];
        let claims = vec![
            Claim::Whiteout("0".into()),
            Claim::Live(kv("b", "new")),
            Claim::Whiteout("c".into()),
            Claim::Copied(kv("d", "new")),
        ];
        let expected = vec![
            kv("a", "old"),
            kv("b", "new"),
            kv("d", "new"),
            kv("e", "old"),
        ];
        assert_eq!(view(old, claims), expected);
    }

    #[test]
    fn either_side_may_be_empty() {
        assert_eq!(view(vec![kv("a", "old")], vec![]), vec![kv("a", "old")]);
        assert_eq!(
            view(vec![], vec![Claim::Live(kv("a", "new"))]),
            vec![kv("a", "new")]
        );
        assert_eq!(view(vec![], vec![Claim::Whiteout("a".into())]), vec![]);
    }
}
