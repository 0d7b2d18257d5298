//! The workload table: Pods and WorkloadEntries by name, address and namespace.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::lower::Lowered;
use crate::{NamespacedName, Workload};

/// Every workload. A WorkloadEntry with the name of a Pod stands behind it.
#[derive(Debug, Default)]
pub(crate) struct WorkloadTable {
    pub by_name: BTreeMap<NamespacedName, Arc<Workload>>,
    pub by_ip: BTreeMap<IpAddr, Arc<Workload>>,
    by_namespace: BTreeMap<String, Vec<Arc<Workload>>>,
}

impl WorkloadTable {
    pub fn build(
        prev: Option<&Self>,
        pods: &Lowered<Option<Workload>>,
        entries: &Lowered<Option<Workload>>,
    ) -> Self {
        let mut table = Self::default();
        for (name, entry) in entries.entries.iter().chain(&pods.entries) {
            let Some(workload) = entry.value.as_ref() else {
                continue;
            };
            let held = prev
                .and_then(|prev| prev.by_name.get(name))
                .filter(|held| ***held == *workload);
            let workload = held.cloned().unwrap_or_else(|| Arc::new(workload.clone()));
            table.by_name.insert(name.clone(), workload);
        }

        for workload in table.by_name.values() {
            for ip in &workload.ips {
                // An address that was given anew belongs to who is alive.
                let held = table.by_ip.get(ip);
                if held.is_none_or(|held| held.health >= workload.health) {
                    table.by_ip.insert(*ip, workload.clone());
                }
            }

            table
                .by_namespace
                .entry(workload.namespace.clone())
                .or_default()
                .push(workload.clone());
        }

        table
    }

    /// The workloads of a namespace, by name.
    pub fn in_namespace(&self, namespace: &str) -> &[Arc<Workload>] {
        self.by_namespace.get(namespace).map_or(&[], Vec::as_slice)
    }

    /// Names of workloads that differ from `prev`.
    pub fn changed_since(&self, prev: &Self) -> Vec<NamespacedName> {
        let is_held = |name: &NamespacedName, workload: &Arc<Workload>, other: &Self| {
            other
                .by_name
                .get(name)
                .is_some_and(|held| Arc::ptr_eq(held, workload))
        };

        let newer = self
            .by_name
            .iter()
            .filter(|(name, workload)| !is_held(name, workload, prev))
            .map(|(name, _)| name.clone());

        let gone = prev
            .by_name
            .keys()
            .filter(|name| !self.by_name.contains_key(*name))
            .cloned();

        newer.chain(gone).collect()
    }
}
