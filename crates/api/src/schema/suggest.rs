//! "Did you mean": the nearest known word.

/// The known word nearest to `word`, if one is near enough to be what was meant.
pub fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    // A foreign word can be a megabyte; nothing that long is a misspelling.
    if word.len() > 64 {
        return None;
    }
    let limit = (word.chars().count() / 3).clamp(1, 3);
    known
        .iter()
        .map(|candidate| {
            (
                distance(&word.to_ascii_lowercase(), &candidate.to_ascii_lowercase()),
                *candidate,
            )
        })
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Optimal string alignment: insertions, deletions, replacements, and swaps of neighbours count one
/// each.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut previous: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let cost = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (previous[j] + 1)
                .min(row[j - 1] + 1)
                .min(previous[j - 1] + cost);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }

        before = std::mem::replace(&mut previous, row);
    }

    previous[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspellings_find_their_word_and_strangers_do_not() {
        assert_eq!(
            closest("hsots", &["hosts", "http", "gateways"]),
            Some("hosts")
        );
        assert_eq!(closest("Hosts", &["hosts", "http"]), Some("hosts"));
        assert_eq!(closest("retry", &["retries", "route"]), None);
        assert_eq!(closest("banana", &["hosts", "http"]), None);
        assert_eq!(closest(&"x".repeat(1 << 20), &["hosts"]), None);
    }
}
