//! Destination rules.

use std::sync::Arc;

use meltemi_types::Labels;

use crate::{DestinationRule, Service, Snapshot};

impl Snapshot {
    /// The rule of a client (its namespace and labels) towards a service: of the client's namespace, else of the service's,
    /// else of the root namespace. Within a namespace the most specific host wins, and a rule whose workloadSelector fits
    /// the client before one without.
    pub fn destination_rule(
        &self,
        namespace: &str,
        labels: &Labels,
        service: &Service,
    ) -> Option<Arc<DestinationRule>> {
        let root = self.root_namespace();
        let candidates = self
            .destination_rules
            .of_namespace(namespace, service.host())
            .or_else(|| self.destination_rules.exported_from(service.namespace(), service.host(), namespace))
            .or_else(|| self.destination_rules.exported_from(root, service.host(), namespace))?;
        let selected = candidates.iter().find(|rule| {
            rule.origin.object.namespace == namespace
                && rule.workload_selector.as_ref().is_some_and(|selector| selector.selects(labels))
        });
        selected.or_else(|| candidates.iter().find(|rule| rule.workload_selector.is_none())).cloned()
    }

    /// Every merged rule, by namespace and host.
    pub fn destination_rules(&self) -> impl Iterator<Item = &Arc<DestinationRule>> {
        self.destination_rules.all()
    }
}
