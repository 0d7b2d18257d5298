//! Which connections the chains of one listener take: no two may take the same.
//!
//! Envoy refuses a listener, with all its chains, where two take the same network and server name.
//! The chain that comes first keeps them.

use std::collections::BTreeSet;

use meltemi_model::Cidr;

use crate::listener::ChainMatch;

/// The pairs of network and server name that chains have taken; `None` is any.
#[derive(Debug, Default)]
pub(super) struct Claims(BTreeSet<(Option<Cidr>, Option<String>)>);

impl Claims {
    /// The part of a match that no earlier chain has taken, as matches that overlap with none: empty
    /// if nothing is left, several if the networks are left with different names.
    pub fn take(&mut self, matched: ChainMatch) -> Vec<ChainMatch> {
        let names: Vec<Option<String>> = match matched.server_names.is_empty() {
            true => vec![None],
            false => matched.server_names.iter().cloned().map(Some).collect(),
        };
        let networks: Vec<Option<Cidr>> = match matched.destinations.is_empty() {
            true => vec![None],
            false => matched.destinations.iter().copied().map(Some).collect(),
        };

        let mut parts: Vec<(Vec<Cidr>, Vec<String>)> = Vec::new();
        for network in networks {
            let free: Vec<&Option<String>> = names
                .iter()
                .filter(|name| self.0.insert((network, (*name).clone())))
                .collect();
            if free.is_empty() {
                continue;
            }

            // Networks with the same names stay together.
            let names: Vec<String> = free.into_iter().flatten().cloned().collect();
            match parts.iter_mut().find(|(_, held)| *held == names) {
                Some((networks, _)) => networks.extend(network),
                None => parts.push((network.into_iter().collect(), names)),
            }
        }

        let part = |(destinations, server_names)| ChainMatch {
            destinations,
            server_names,
            ..matched.clone()
        };
        parts.into_iter().map(part).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matched(networks: &[&str], names: &[&str]) -> ChainMatch {
        ChainMatch {
            destinations: networks.iter().map(|n| n.parse().expect("CIDR")).collect(),
            server_names: names.iter().map(|name| (*name).to_owned()).collect(),
            ..ChainMatch::default()
        }
    }

    #[test]
    fn what_is_taken_twice_is_kept_once() {
        let mut claims = Claims::default();
        let twice = matched(&["10.0.0.0/8", "10.1.0.0/8"], &["a", "a"]);
        assert_eq!(claims.take(twice), [matched(&["10.0.0.0/8"], &["a"])]);
        assert_eq!(claims.take(matched(&["10.0.0.0/8"], &["a"])), []);

        // One network has a name left, the other both.
        let wider = matched(&["10.0.0.0/8", "11.0.0.0/8"], &["a", "b"]);
        assert_eq!(
            claims.take(wider),
            [
                matched(&["10.0.0.0/8"], &["b"]),
                matched(&["11.0.0.0/8"], &["a", "b"])
            ]
        );

        assert_eq!(claims.take(matched(&[], &[])), [matched(&[], &[])]);
        assert_eq!(claims.take(matched(&[], &[])), []);
    }
}
