//! The names that the DNS proxy of an agent answers itself.

use std::collections::HashMap;

use meltemi_model::{NameEntry, Registry};
use meltemi_proto::istio::{NameInfo, NameTable};
use meltemi_proto::{Any, pack};

/// The name of the one name table of a proxy.
pub(crate) const NAME: &str = "nametable";

/// Names with their addresses, ordered.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct NameTableInput(Vec<NameEntry>);

impl NameTableInput {
    pub(crate) fn new(entries: Vec<NameEntry>) -> Self {
        Self(entries)
    }
}

/// Builds the table from its input alone.
pub(crate) fn build_name_table(input: &NameTableInput) -> Any {
    let entries = input.0.iter().map(|entry| {
        let NameEntry {
            host,
            ips,
            registry,
            short,
        } = entry;

        let (shortname, namespace) = short.clone().unwrap_or_default();
        let info = NameInfo {
            ips: ips.iter().map(ToString::to_string).collect(),
            registry: match registry {
                Registry::Kubernetes => "Kubernetes",
                Registry::ServiceEntry => "External",
            }
            .to_owned(),
            shortname,
            namespace,
            alt_hosts: Vec::new(),
        };

        (host.to_string(), info)
    });

    pack(&NameTable {
        table: entries.collect::<HashMap<_, _>>(),
    })
}
