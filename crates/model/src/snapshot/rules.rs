//! Tables of routes and destination rules: ordered, merged, indexed.

use std::collections::BTreeMap;
use std::sync::Arc;

use meltemi_types::{Diagnostic, Severity};

use crate::lower::istio::delegate::merge_delegates;
use crate::lower::istio::virtual_service::LoweredVirtualService;
use crate::lower::{Lowered, finding};
use crate::{DestinationRule, GatewayRef, Hostname, VirtualService};

/// VirtualServices with delegates merged, oldest first.
#[derive(Debug, Default)]
pub(crate) struct RouteTable {
    pub all: Vec<Arc<VirtualService>>,
    pub by_gateway: BTreeMap<GatewayRef, Vec<Arc<VirtualService>>>,
    pub diagnostics: Vec<Diagnostic>,
}

impl RouteTable {
    pub fn build(prev: Option<&Self>, lowered: &Lowered<LoweredVirtualService>) -> Self {
        let mut table = Self::default();
        let held: BTreeMap<_, _> = prev
            .into_iter()
            .flat_map(|prev| &prev.all)
            .map(|vs| (&vs.origin.object, vs))
            .collect();

        for entry in lowered.entries.values() {
            if entry.value.is_delegate() {
                continue;
            }
            let merged = merge_delegates(entry, lowered, &mut table.diagnostics);
            let held = held
                .get(&merged.origin.object)
                .filter(|held| ****held == merged);
            table
                .all
                .push(held.copied().cloned().unwrap_or_else(|| Arc::new(merged)));
        }

        table.all.sort_by(|a, b| a.origin.age.cmp(&b.origin.age));
        for vs in &table.all {
            for gateway in &vs.gateways {
                let bound = table.by_gateway.entry(gateway.clone()).or_default();
                // A gateway that is listed twice counts once.
                if !bound.last().is_some_and(|last| Arc::ptr_eq(last, vs)) {
                    bound.push(vs.clone());
                }
            }
        }

        table
    }

    /// Whether the routes are those of `other`, the same allocations in the same order.
    pub fn has_same_routes(&self, other: &Self) -> bool {
        self.all.len() == other.all.len()
            && std::iter::zip(&self.all, &other.all).all(|(own, held)| Arc::ptr_eq(own, held))
    }
}

/// Merged rules by namespace and host.
#[derive(Debug, Default)]
pub(crate) struct DestinationRuleTable {
    /// For clients of the namespace itself: every rule.
    local: BTreeMap<String, HostRules>,
    /// Rules that are exported to their own namespace alone, by that namespace.
    private: BTreeMap<String, HostRules>,
    /// For clients of other namespaces: rules that are not private.
    exported: BTreeMap<String, HostRules>,
    pub diagnostics: Vec<Diagnostic>,
}

/// Rules by host; several of one host only if they are for different workloads or viewers.
type HostRules = BTreeMap<Hostname, Vec<Arc<DestinationRule>>>;

impl DestinationRuleTable {
    pub fn build(lowered: &Lowered<DestinationRule>) -> Self {
        let mut table = Self::default();
        let mut entries: Vec<_> = lowered.entries.values().collect();
        entries.sort_by(|a, b| a.value.origin.age.cmp(&b.value.origin.age));
        for entry in entries {
            let rule = &entry.value;
            let namespace = rule.origin.object.namespace.as_str();
            let repeated = merge(table.local.entry(namespace.to_owned()).or_default(), rule);

            for subset in repeated {
                let message = format!(
                    "subset {subset:?} of host {} is defined by an older DestinationRule already, which counts",
                    rule.host
                );

                table.diagnostics.push(finding(
                    &entry.object,
                    Severity::Warning,
                    "MEL0320",
                    "spec.subsets",
                    message,
                    "rename or remove one of the subsets",
                ));
            }

            let visible = if rule.export_to.is_private_to(namespace) {
                &mut table.private
            } else {
                &mut table.exported
            };

            merge(visible.entry(namespace.to_owned()).or_default(), rule);
        }

        table
    }

    /// The rules of a namespace for its own clients.
    pub fn of_namespace(
        &self,
        namespace: &str,
        host: &Hostname,
    ) -> Option<Vec<Arc<DestinationRule>>> {
        most_specific(self.local.get(namespace)?, host).cloned()
    }

    /// The rules that a namespace keeps for its own clients.
    pub fn private_to(
        &self,
        namespace: &str,
        host: &Hostname,
    ) -> Option<Vec<Arc<DestinationRule>>> {
        most_specific(self.private.get(namespace)?, host).cloned()
    }

    /// The rules of `namespace` that clients in `viewer` may see.
    pub fn exported_from(
        &self,
        namespace: &str,
        host: &Hostname,
        viewer: &str,
    ) -> Option<Vec<Arc<DestinationRule>>> {
        let rules = most_specific(self.exported.get(namespace)?, host)?;
        let seen: Vec<_> = rules
            .iter()
            .filter(|rule| rule.export_to.includes(viewer))
            .cloned()
            .collect();
        (!seen.is_empty()).then_some(seen)
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<DestinationRule>> {
        self.local
            .values()
            .flat_map(|hosts| hosts.values())
            .flatten()
    }
}

/// The exact host, else the longest wildcard that holds it.
fn most_specific<'a>(
    rules: &'a HostRules,
    host: &Hostname,
) -> Option<&'a Vec<Arc<DestinationRule>>> {
    if let Some(exact) = rules.get(host) {
        return Some(exact);
    }
    let wildcards = rules
        .iter()
        .filter(|(own, _)| own.is_wildcard() && host.is_within(own));
    wildcards
        .max_by_key(|(own, _)| own.as_str().len())
        .map(|(_, rules)| rules)
}

/// Adds a rule to those of its host: into an older one for the same workloads and viewers (subsets
/// are united, the older policy holds), else beside them. Answers the names of subsets that were
/// there already. Source: Istio `mergeDestinationRule`.
fn merge(rules: &mut HostRules, rule: &Arc<DestinationRule>) -> Vec<String> {
    let of_host = rules.entry(rule.host.clone()).or_default();
    let same = of_host.iter_mut().find(|held| {
        held.workload_selector == rule.workload_selector && held.export_to == rule.export_to
    });
    let Some(held) = same else {
        of_host.push(rule.clone());
        return Vec::new();
    };

    let held = Arc::make_mut(held);
    let mut repeated = Vec::new();
    for subset in &rule.subsets {
        if held.subset(&subset.name).is_some() {
            repeated.push(subset.name.clone());
        } else {
            held.subsets.push(subset.clone());
        }
    }

    if held.policy == crate::TrafficPolicy::default() {
        held.policy = rule.policy.clone();
    }
    held.sources.extend(rule.sources.iter().cloned());

    repeated
}
