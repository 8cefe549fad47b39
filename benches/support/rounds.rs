//! Rounds in which the targets take turns, so that a noisy minute hits all of them alike.

/// What one target gave, a figure per round.
#[derive(Clone, Debug)]
pub struct Series {
    /// Which target.
    pub name: String,
    /// The figures, in the order of the rounds.
    pub figures: Vec<f64>,
}

impl Series {
    /// No figures yet.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            figures: Vec::new(),
        }
    }

    /// The figure in the middle.
    pub fn median(&self) -> f64 {
        median(&self.figures)
    }

    /// Against `peer`: the ratio in the middle of those of each round, which says more than the
    /// ratio of the medians, since both had the same noise.
    pub fn ratio_to(&self, peer: &Self) -> f64 {
        let ratios: Vec<f64> = self
            .figures
            .iter()
            .zip(&peer.figures)
            .map(|(ours, theirs)| ours / theirs)
            .collect();
        median(&ratios)
    }
}

/// The value in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

/// Measures each of `targets` `rounds` times: in their order in one round, in reverse in the next.
/// `measure` is told the round. /// Answers what was measured, by target, in the order of the rounds.
pub async fn take_turns<T, S>(
    rounds: usize,
    targets: &[T],
    mut measure: impl AsyncFnMut(usize, &T) -> S,
) -> Vec<Vec<S>> {
    let mut samples: Vec<Vec<S>> = targets.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        for turn in 0..targets.len() {
            let index = if round % 2 == 0 {
                turn
            } else {
                targets.len() - 1 - turn
            };
            let sample = measure(round, &targets[index]).await;
            samples[index].push(sample);
        }
    }
    samples
}
