//! Destination rules.

use std::sync::Arc;

use meltemi_types::Labels;

use crate::{DestinationRule, Service, Snapshot};

impl Snapshot {
    /// The rule of a client (its namespace and labels) towards a service: of the client's
    /// namespace, else of the service's, else of the root namespace; of a client in the root
    /// namespace only private rules go before the service's. Within a namespace the most specific
    /// host wins, and a rule whose workloadSelector fits the client before one without.
    pub fn destination_rule(
        &self,
        namespace: &str,
        labels: &Labels,
        service: &Service,
    ) -> Option<Arc<DestinationRule>> {
        let root = self.root_namespace();

        // Rules of the root namespace are for the whole mesh: for its own proxies, which gateways
        // are, they come last, too, unless they are private. Source: Istio
        // `PushContext.destinationRule`.
        let own = if namespace == root {
            self.destination_rules.private_to(namespace, service.host())
        } else {
            self.destination_rules
                .of_namespace(namespace, service.host())
        };

        let candidates = own
            .or_else(|| {
                self.destination_rules
                    .exported_from(service.namespace(), service.host(), namespace)
            })
            .or_else(|| {
                self.destination_rules
                    .exported_from(root, service.host(), namespace)
            })?;

        let selected = candidates.iter().find(|rule| {
            rule.origin.object.namespace == namespace
                && rule
                    .workload_selector
                    .as_ref()
                    .is_some_and(|selector| selector.selects(labels))
        });

        selected
            .or_else(|| {
                candidates
                    .iter()
                    .find(|rule| rule.workload_selector.is_none())
            })
            .cloned()
    }

    /// Every merged rule, by namespace and host.
    pub fn destination_rules(&self) -> impl Iterator<Item = &Arc<DestinationRule>> {
        self.destination_rules.all()
    }
}
