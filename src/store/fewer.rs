//! Pages of a store that cannot be told how many bytes they may have.

use super::{RequestError, Result, StoreError};

/// Pairs of a page, at most, whose size nobody can bound.
pub(super) const UNMEASURED_PAIRS: usize = 1_000;

/// Asks for at most so many, and for half as many each time that the answer may have been too large to
/// arrive, while the store `answers` to something small. `most` becomes what has fitted.
pub(super) async fn until_it_fits<T, A, B>(
    most: &mut usize,
    ask: impl Fn(usize) -> A,
    answers: impl Fn() -> B,
) -> Result<T>
where
    A: Future<Output = Result<T>>,
    B: Future<Output = bool>,
{
    loop {
        match ask(*most).await {
            // What is too large may be refused, or not be there in time, or end the connection.
            Err(StoreError::Unavailable(_) | StoreError::Request(RequestError::TooLarge))
                if *most > 1 && answers().await =>
            {
                *most /= 2;
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    /// What becomes of asking for at most 1,000 of a store that answers no more than `fit` at once.
    async fn asked(fit: usize, error: StoreError, alive: bool) -> (Result<usize>, usize) {
        let mut most = 1_000;
        let ask = |most: usize| {
            ready(if most > fit {
                Err(error.clone())
            } else {
                Ok(most)
            })
        };
        let answer = until_it_fits(&mut most, ask, || ready(alive)).await;
        (answer, most)
    }

    #[tokio::test]
    async fn half_as_many_are_asked_for_until_the_answer_arrives() {
        let large = || StoreError::from(RequestError::TooLarge);
        let late = || StoreError::Unavailable("no answer in time".into());
        for error in [large(), late()] {
            assert_eq!(asked(1_000, error.clone(), true).await, (Ok(1_000), 1_000));
            assert_eq!(asked(400, error.clone(), true).await, (Ok(250), 250));
            assert_eq!(asked(1, error.clone(), true).await, (Ok(1), 1));
            // One alone that does not arrive is no question of how many.
            assert_eq!(asked(0, error.clone(), true).await, (Err(error), 1));
        }
        // A store that answers nothing at all is waited for, and asked for as much as before.
        assert_eq!(asked(400, late(), false).await, (Err(late()), 1_000));
        let stale = StoreError::StaleEpoch;
        assert_eq!(asked(400, stale.clone(), true).await, (Err(stale), 1_000));
    }
}
