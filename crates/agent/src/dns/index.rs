//! Names of the mesh and how a question finds them. Pure.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwapOption;
use meltemi_dns::RecordType;
use meltemi_proto::istio::NameTable;

/// A name table, ready for questions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NameIndex {
    hosts: HashMap<String, Vec<IpAddr>>,
}

/// What is known of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The name exists; addresses of the asked type, perhaps none.
    Known {
        /// Set where the client's search domain was appended to a name outside: the real name.
        alias: Option<String>,
        /// Of the asked type, in an order that changes from answer to answer.
        addresses: Vec<IpAddr>,
    },
    /// The name would be the mesh's, but there is no such service.
    Absent,
    /// The mesh's names are not here yet.
    NotYet,
    /// Not a name of the mesh, or a type of record that the mesh does not have.
    Foreign,
}

impl NameIndex {
    /// Merges tables; addresses that cannot be read are left out.
    pub fn from_tables<'a>(tables: impl IntoIterator<Item = &'a NameTable>) -> Self {
        let mut hosts: HashMap<String, Vec<IpAddr>> = HashMap::new();
        for table in tables {
            for (host, info) in &table.table {
                let addresses = info.ips.iter().filter_map(|ip| ip.parse::<IpAddr>().ok());
                let known = hosts
                    .entry(host.trim_end_matches('.').to_ascii_lowercase())
                    .or_default();
                known.extend(addresses);
            }
        }

        for addresses in hosts.values_mut() {
            // A client must not see the same address twice, nor an order that depends on the
            // server's hash map.
            addresses.sort_unstable();
            addresses.dedup();
        }

        Self { hosts }
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Whether there is no name.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// Names and addresses, sorted; for `/debug/ndsz`.
    pub fn entries(&self) -> Vec<(&str, &[IpAddr])> {
        let mut all: Vec<_> = self
            .hosts
            .iter()
            .map(|(host, addresses)| (host.as_str(), addresses.as_slice()))
            .collect();
        all.sort_unstable();
        all
    }

    /// The addresses of a host: its own entry, else the closest wildcard above it.
    fn find(&self, host: &str) -> Option<&[IpAddr]> {
        if let Some(addresses) = self.hosts.get(host) {
            return Some(addresses);
        }
        let mut rest = host;
        while let Some((_, parent)) = rest.split_once('.') {
            if let Some(addresses) = self.hosts.get(&format!("*.{parent}")) {
                return Some(addresses);
            }
            rest = parent;
        }

        None
    }

    /// Finds a name as it was asked, without trailing dot and in lower case: as it is; as a short
    /// name under the search domains; as a full name of somewhere else to which the client's
    /// resolver has appended a search domain.
    fn resolve<'a>(
        &'a self,
        name: &'a str,
        search: &[String],
    ) -> Option<(Option<&'a str>, &'a [IpAddr])> {
        if let Some(addresses) = self.find(name) {
            return Some((None, addresses));
        }

        // Only short names: `a.b.c` is left to the client's own search, or a typo could reach
        // somebody else's service.
        if name.split('.').count() <= 3
            && let Some(addresses) = search
                .iter()
                .find_map(|domain| self.hosts.get(&format!("{name}.{domain}")))
        {
            return Some((None, addresses));
        }

        search.iter().find_map(|domain| {
            let real = name.strip_suffix(domain.as_str())?.strip_suffix('.')?;
            // One label is a service that does not exist in this namespace, not a host of the
            // world.
            real.contains('.').then_some(())?;
            self.find(real).map(|addresses| (Some(real), addresses))
        })
    }
}

/// The newest [`NameIndex`], shared between its writer and the servers. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Names {
    current: Arc<ArcSwapOption<NameIndex>>,
    turn: Arc<AtomicUsize>,
}

impl Names {
    /// Replaces the table.
    pub fn set(&self, index: NameIndex) {
        self.current.store(Some(Arc::new(index)));
    }

    /// The table, if one has come.
    pub fn get(&self) -> Option<Arc<NameIndex>> {
        self.current.load_full()
    }

    /// Answers a question. `zones` are domains that belong to the mesh alone: what is not in the
    /// table does not exist.
    pub fn answer(
        &self,
        name: &str,
        record: RecordType,
        search: &[String],
        zones: &[String],
    ) -> Answer {
        let in_zone = zones.iter().any(|zone| {
            name.strip_suffix(zone.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        });

        let index = self.current.load();
        let Some(index) = index.as_ref() else {
            return if in_zone {
                Answer::NotYet
            } else {
                Answer::Foreign
            };
        };

        match (index.resolve(name, search), record) {
            (Some((alias, addresses)), RecordType::A | RecordType::AAAA) => {
                let wanted = addresses
                    .iter()
                    .filter(|address| address.is_ipv4() == (record == RecordType::A));
                let mut addresses: Vec<IpAddr> = wanted.copied().collect();
                if !addresses.is_empty() {
                    let turn = self.turn.fetch_add(1, Ordering::Relaxed) % addresses.len();
                    addresses.rotate_left(turn);
                }

                Answer::Known {
                    alias: alias.map(str::to_owned),
                    addresses,
                }
            }
            // The mesh knows addresses only. Saying "no such name" for another type would deny the
            // name as a whole.
            (Some(_), _) if in_zone => Answer::Known {
                alias: None,
                addresses: Vec::new(),
            },
            (Some(_), _) => Answer::Foreign,
            (None, _) if in_zone => Answer::Absent,
            (None, _) => Answer::Foreign,
        }
    }
}

#[cfg(test)]
mod tests {
    use meltemi_proto::istio::NameInfo;

    use super::*;

    fn names(entries: &[(&str, &[&str])]) -> Names {
        let table = entries
            .iter()
            .map(|(host, ips)| {
                (
                    (*host).to_owned(),
                    NameInfo {
                        ips: ips.iter().map(|ip| (*ip).to_owned()).collect(),
                        ..NameInfo::default()
                    },
                )
            })
            .collect();

        let names = Names::default();
        names.set(NameIndex::from_tables([&NameTable { table }]));

        names
    }

    fn search() -> Vec<String> {
        [
            "default.svc.cluster.local",
            "svc.cluster.local",
            "cluster.local",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    fn ask(names: &Names, name: &str, record: RecordType) -> Answer {
        names.answer(name, record, &search(), &["cluster.local".to_owned()])
    }

    fn known(addresses: &[&str]) -> Answer {
        Answer::Known {
            alias: None,
            addresses: addresses
                .iter()
                .map(|ip| ip.parse().expect("an address"))
                .collect(),
        }
    }

    #[test]
    fn full_and_short_names_find_the_same_service() {
        let names = names(&[
            ("reviews.default.svc.cluster.local", &["10.45.0.2"]),
            ("ratings.prod.svc.cluster.local", &["10.45.0.3"]),
        ]);

        for name in [
            "reviews.default.svc.cluster.local",
            "reviews",
            "reviews.default",
            "reviews.default.svc",
        ] {
            assert_eq!(
                ask(&names, name, RecordType::A),
                known(&["10.45.0.2"]),
                "{name}"
            );
        }

        assert_eq!(
            ask(&names, "ratings.prod", RecordType::A),
            known(&["10.45.0.3"])
        );

        assert_eq!(
            ask(&names, "ratings", RecordType::A),
            Answer::Foreign,
            "another namespace's short name"
        );

        assert_eq!(
            ask(&names, "ratings.default.svc.cluster.local", RecordType::A),
            Answer::Absent
        );
    }

    #[test]
    fn the_other_family_is_empty_and_not_an_error() {
        let names = names(&[
            ("a.default.svc.cluster.local", &["10.45.0.2"]),
            ("b.default.svc.cluster.local", &["10.45.0.3", "fd00::3"]),
        ]);

        assert_eq!(ask(&names, "a", RecordType::AAAA), known(&[]));
        assert_eq!(ask(&names, "b", RecordType::AAAA), known(&["fd00::3"]));
        assert_eq!(
            ask(&names, "a.default.svc.cluster.local", RecordType::HTTPS),
            known(&[])
        );
    }

    #[test]
    fn wildcards_match_any_depth_and_the_closest_wins() {
        let names = names(&[
            ("*.example.com", &["240.240.0.1"]),
            ("*.eu.example.com", &["240.240.0.2"]),
            ("www.example.com", &["240.240.0.3"]),
        ]);

        assert_eq!(
            ask(&names, "a.b.example.com", RecordType::A),
            known(&["240.240.0.1"])
        );

        assert_eq!(
            ask(&names, "x.eu.example.com", RecordType::A),
            known(&["240.240.0.2"])
        );

        assert_eq!(
            ask(&names, "www.example.com", RecordType::A),
            known(&["240.240.0.3"])
        );

        assert_eq!(ask(&names, "example.com", RecordType::A), Answer::Foreign);
        assert_eq!(
            ask(&names, "www.example.com", RecordType::MX),
            Answer::Foreign,
            "mail goes where it always went"
        );
    }

    #[test]
    fn a_search_domain_behind_a_real_name_is_undone() {
        let names = names(&[("httpbin.org", &["240.240.0.9"])]);
        let answer = ask(
            &names,
            "httpbin.org.default.svc.cluster.local",
            RecordType::A,
        );

        assert_eq!(
            answer,
            Answer::Known {
                alias: Some("httpbin.org".into()),
                addresses: vec!["240.240.0.9".parse().expect("an address")]
            }
        );
    }

    #[test]
    fn before_the_first_table_nothing_is_denied() {
        let names = Names::default();
        assert_eq!(
            ask(&names, "reviews.default.svc.cluster.local", RecordType::A),
            Answer::NotYet
        );
        assert_eq!(ask(&names, "example.com", RecordType::A), Answer::Foreign);
    }

    #[test]
    fn addresses_take_turns() {
        let names = names(&[(
            "a.default.svc.cluster.local",
            &["10.0.0.2", "10.0.0.1", "10.0.0.1"],
        )]);

        assert_eq!(
            ask(&names, "a", RecordType::A),
            known(&["10.0.0.1", "10.0.0.2"])
        );

        assert_eq!(
            ask(&names, "a", RecordType::A),
            known(&["10.0.0.2", "10.0.0.1"])
        );
    }
}
