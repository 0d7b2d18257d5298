//! The table of the mesh's names, and the rules by which a query finds its name: exact names,
//! wildcards, search domains. Pure.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwapOption;
use meltemi_dns::RecordType;
use meltemi_proto::istio::NameTable;

/// A name table, indexed by host name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NameIndex {
    hosts: HashMap<String, Vec<IpAddr>>,
}

/// The answer to a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The name exists.
    Known {
        /// The name without the search domain, if the client's resolver appended one to an outside
        /// name; sent as a CNAME record.
        alias: Option<String>,
        /// Addresses of the queried type, possibly none. Rotated from answer to answer.
        addresses: Vec<IpAddr>,
    },
    /// The name is in a zone of the mesh and does not exist: NXDOMAIN.
    Absent,
    /// The name is in a zone of the mesh, and no name table has arrived yet: SERVFAIL.
    NotYet,
    /// Not a name of the mesh, or a record type that the mesh does not have: forward the query.
    Foreign,
}

impl NameIndex {
    /// Merges tables. Addresses that cannot be parsed are left out.
    pub fn from_tables<'a>(tables: impl IntoIterator<Item = &'a NameTable>) -> Self {
        let mut hosts: HashMap<String, Vec<IpAddr>> = HashMap::new();
        for table in tables {
            for (host, info) in &table.table {
                let addresses = info.ips.iter().filter_map(|ip| ip.parse::<IpAddr>().ok());
                let entry = hosts
                    .entry(host.trim_end_matches('.').to_ascii_lowercase())
                    .or_default();
                entry.extend(addresses);
            }
        }

        for addresses in hosts.values_mut() {
            // Tables may repeat an address, and their order is that of the server's hash map.
            addresses.sort_unstable();
            addresses.dedup();
        }

        Self { hosts }
    }

    /// Number of names.
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Whether the table has no name.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// Names and addresses, sorted by name, for `/debug/ndsz`.
    pub fn entries(&self) -> Vec<(&str, &[IpAddr])> {
        let mut all: Vec<_> = self
            .hosts
            .iter()
            .map(|(host, addresses)| (host.as_str(), addresses.as_slice()))
            .collect();
        all.sort_unstable();
        all
    }

    /// Addresses of a host: its own entry, else that of one endpoint, else the longest matching
    /// wildcard.
    fn find(&self, host: &str) -> Option<&[IpAddr]> {
        if let Some(addresses) = self.hosts.get(host).map(Vec::as_slice) {
            return Some(addresses);
        }
        if let Some(address) = self.find_endpoint(host) {
            return Some(address);
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

    /// The endpoint that SRV records of Kubernetes name by its address: `10-44-0-7.SERVICE`.
    fn find_endpoint(&self, host: &str) -> Option<&[IpAddr]> {
        let (dashed, service) = host.split_once('.')?;
        let address: Ipv4Addr = dashed.replace('-', ".").parse().ok()?;
        let addresses = self.hosts.get(service)?;
        let at = addresses.iter().position(|own| *own == address)?;

        Some(&addresses[at..=at])
    }

    /// Finds `name` (lower case, no trailing dot). Tried in order: the name itself; a short name
    /// with each search domain appended; the name with a search domain removed, which the client's
    /// resolver appended to an outside name. The third case also returns the outside name.
    fn resolve<'a>(
        &'a self,
        name: &'a str,
        search: &[String],
    ) -> Option<(Option<&'a str>, &'a [IpAddr])> {
        if let Some(addresses) = self.find(name) {
            return Some((None, addresses));
        }

        // At most three labels. A longer name is searched by the client itself; searching it here
        // could turn a typo into another service's name.
        if name.split('.').count() <= 3
            && let Some(addresses) = search
                .iter()
                .find_map(|domain| self.hosts.get(&format!("{name}.{domain}")))
        {
            return Some((None, addresses));
        }

        search.iter().find_map(|domain| {
            let real = name.strip_suffix(domain.as_str())?.strip_suffix('.')?;
            // A single label is a Service that does not exist in this namespace, not an outside
            // host.
            real.contains('.').then_some(())?;
            self.find(real).map(|addresses| (Some(real), addresses))
        })
    }
}

/// The current [`NameIndex`], shared by its writer and the servers. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Names {
    current: Arc<ArcSwapOption<NameIndex>>,
    /// Rotation of the addresses in answers.
    turn: Arc<AtomicUsize>,
}

impl Names {
    /// Replaces the table.
    pub fn set(&self, index: NameIndex) {
        self.current.store(Some(Arc::new(index)));
    }

    /// The table; `None` before the first one arrived.
    pub fn get(&self) -> Option<Arc<NameIndex>> {
        self.current.load_full()
    }

    /// Answers a query. `zones` are domains of the mesh: a name in one of them that is not in the
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
            // The mesh has address records only. The name exists, so answer without records:
            // NXDOMAIN would deny all its types.
            (Some(_), _) if in_zone => Answer::Known {
                alias: None,
                addresses: Vec::new(),
            },
            (Some(_), _) => Answer::Foreign,
            (None, RecordType::A | RecordType::AAAA) if in_zone => Answer::Absent,
            // Such as the SRV records of a Service's ports, which the name servers of the mesh have.
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
    fn records_of_ports_are_asked_for_elsewhere_and_lead_to_endpoints() {
        let names = names(&[("db.default.svc.cluster.local", &["10.44.0.7", "10.44.0.8"])]);

        assert_eq!(
            ask(
                &names,
                "_tcp._tcp.db.default.svc.cluster.local",
                RecordType::SRV
            ),
            Answer::Foreign
        );
        for (name, answer) in [
            ("10-44-0-8", known(&["10.44.0.8"])),
            ("10-44-0-9", Answer::Absent),
            ("10-44-0", Answer::Absent),
        ] {
            let name = format!("{name}.db.default.svc.cluster.local");
            assert_eq!(ask(&names, &name, RecordType::A), answer, "{name}");
        }
    }

    #[test]
    fn a_missing_address_family_gives_an_empty_answer() {
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
    fn a_search_domain_appended_to_an_outside_name_is_removed() {
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
    fn before_the_first_table_no_name_is_denied() {
        let names = Names::default();
        assert_eq!(
            ask(&names, "reviews.default.svc.cluster.local", RecordType::A),
            Answer::NotYet
        );
        assert_eq!(ask(&names, "example.com", RecordType::A), Answer::Foreign);
    }

    #[test]
    fn addresses_rotate() {
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
