//! Drawing one of several by weight.

use crate::random::below;

/// Numbers with weights, as a cumulative table; a plain list where all weights are the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Weighted {
    items: Vec<u32>,
    /// Upper bounds (exclusive); empty if all weights are equal.
    bounds: Vec<u64>,
    /// One round of a smooth weighted round robin; empty if weights are equal or the round is too
    /// long.
    round: Vec<u32>,
}

/// Longest precomputed round.
const MAX_ROUND: u64 = 4096;

impl Weighted {
    /// Builds a table without items of weight 0. `in_turn` also prepares [`Weighted::turn`].
    pub(crate) fn new(items: impl IntoIterator<Item = (u32, u32)>, in_turn: bool) -> Self {
        let (items, weights): (Vec<u32>, Vec<u32>) =
            items.into_iter().filter(|(_, weight)| *weight > 0).unzip();
        if weights.windows(2).all(|pair| pair[0] == pair[1]) {
            return Self {
                items,
                ..Self::default()
            };
        }

        let mut sum = 0;
        let bounds = weights.iter().map(|weight| {
            sum += u64::from(*weight);
            sum
        });

        let bounds: Vec<u64> = bounds.collect();
        let divisor = weights.iter().fold(0, |a, b| gcd(a, *b)).max(1);
        let round = match in_turn && sum / u64::from(divisor) <= MAX_ROUND {
            true => smooth_round(&items, &weights, divisor),
            false => Vec::new(),
        };

        Self {
            items,
            bounds,
            round,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether all weights are the same.
    pub(crate) fn is_equal(&self) -> bool {
        self.bounds.is_empty()
    }

    /// An item at random, by weight.
    pub(crate) fn draw(&self, random: u64) -> Option<u32> {
        let at = match self.bounds.last() {
            None => below(random, self.items.len() as u64) as usize,
            Some(total) => {
                let point = below(random, *total);
                self.bounds.partition_point(|bound| *bound <= point)
            }
        };
        self.items.get(at).copied()
    }

    /// The item of this turn: round robin by weight.
    pub(crate) fn turn(&self, turn: u64) -> Option<u32> {
        if self.items.is_empty() {
            return None;
        }
        if self.is_equal() {
            return Some(self.items[(turn % self.items.len() as u64) as usize]);
        }
        if !self.round.is_empty() {
            return Some(self.round[(turn % self.round.len() as u64) as usize]);
        }

        // A Weyl sequence spreads turns as evenly as weights allow, whatever their sum.
        self.draw(turn.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

/// One round of smooth weighted round robin. In each turn every item gains its weight; the item
/// with the highest sum is taken and pays the total weight.
fn smooth_round(items: &[u32], weights: &[u32], divisor: u32) -> Vec<u32> {
    let weights: Vec<i64> = weights
        .iter()
        .map(|weight| i64::from(weight / divisor))
        .collect();

    let total: i64 = weights.iter().sum();
    let mut current = vec![0i64; weights.len()];

    (0..total)
        .map(|_| {
            current
                .iter_mut()
                .zip(&weights)
                .for_each(|(current, weight)| *current += weight);

            // The first of equal items wins, so that turns keep the order of endpoints.
            let best = (0..current.len())
                .max_by_key(|at| (current[*at], std::cmp::Reverse(*at)))
                .unwrap_or(0);
            current[best] -= total;
            items[best]
        })
        .collect()
}

fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn turns_interleave() {
        let table = Weighted::new([(0, 4), (1, 2), (2, 2)], true);
        let turns: Vec<u32> = (0..4).filter_map(|turn| table.turn(turn)).collect();
        assert_eq!(turns, [0, 1, 2, 0]);
    }

    proptest! {
        #[test]
        fn a_round_gives_each_its_weight(weights in prop::collection::vec(0u32..20, 1..8)) {
            let table = Weighted::new(weights.iter().copied().enumerate().map(|(at, w)| (at as u32, w)), true);
            let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
            let mut counts = vec![0u64; weights.len()];
            let rounds = 3 * total;
            for turn in 0..rounds {
                if let Some(item) = table.turn(turn) {
                    counts[item as usize] += 1;
                }
            }
            for (count, weight) in counts.iter().zip(&weights) {
                let wanted = (rounds * u64::from(*weight)).checked_div(total).unwrap_or(0);
                prop_assert_eq!(*count, wanted);
            }
        }

        #[test]
        fn huge_weights_keep_their_shares(a in 1u32..u32::MAX, b in 1u32..u32::MAX, start in any::<u32>()) {
            let table = Weighted::new([(0, a), (1, b)], true);
            let hits = (0..4096u64).filter(|turn| table.turn(u64::from(start) + turn) == Some(0)).count() as f64;
            let share = f64::from(a) / (f64::from(a) + f64::from(b));
            prop_assert!((hits / 4096.0 - share).abs() < 0.01, "{hits} of 4096 for {share}");
        }
    }
}
