//! Which access logs a workload writes.

use std::collections::{BTreeMap, BTreeSet};

use meltemi_types::{Labels, ObjectRef};

use crate::{AccessLog, FileLog, Snapshot, Telemetry, WorkloadMode};

impl Snapshot {
    /// The access logs of one side of a workload. Telemetry objects of the mesh, the namespace and
    /// the workload are applied in that order over MeshConfig's default providers; without either,
    /// `accessLogFile` counts. Source: Istio `Telemetries.AccessLogging` and `mergeLogs`.
    pub fn access_logs(
        &self,
        namespace: &str,
        labels: &Labels,
        mode: WorkloadMode,
    ) -> Vec<AccessLog> {
        let scopes = self.telemetries_for(namespace, labels);
        let rules: Vec<_> = scopes
            .iter()
            .flat_map(|telemetry| &telemetry.access_logging)
            .collect();

        let default = &self.mesh.access_logs.default_providers;

        if rules.is_empty() && default.is_empty() {
            return self.mesh_access_log().into_iter().collect();
        }
        let applies = |rule_mode: Option<WorkloadMode>| rule_mode.is_none_or(|own| own == mode);

        // Providers are replaced as a whole by the most specific object that names any; a filter
        // goes with its provider.
        let mut in_scope: BTreeSet<&str> = default.iter().map(String::as_str).collect();
        let mut filters: BTreeMap<&str, Option<&str>> = BTreeMap::new();

        for telemetry in &scopes {
            let mut named = BTreeSet::new();
            for rule in telemetry
                .access_logging
                .iter()
                .filter(|rule| applies(rule.mode))
            {
                for provider in &rule.providers {
                    named.insert(provider.as_str());
                    filters.insert(provider, rule.filter.as_deref());
                }
            }

            if !named.is_empty() {
                in_scope = named;
            }
        }

        let mut enabled: BTreeSet<&str> = if rules.is_empty() {
            in_scope.clone()
        } else {
            BTreeSet::new()
        };

        let mut parents: Vec<&str> = default.iter().map(String::as_str).collect();
        for rule in rules {
            if !rule.providers.is_empty() {
                parents = rule.providers.iter().map(String::as_str).collect();
            }
            if !applies(rule.mode) {
                continue;
            }
            for provider in parents
                .iter()
                .copied()
                .filter(|provider| in_scope.contains(provider))
            {
                if rule.disabled == Some(true) {
                    enabled.remove(provider);
                } else {
                    enabled.insert(provider);
                    if rule.providers.is_empty() && rule.filter.is_some() {
                        filters.insert(provider, rule.filter.as_deref());
                    }
                }
            }
        }

        let sources: Vec<ObjectRef> = scopes
            .iter()
            .filter(|telemetry| !telemetry.access_logging.is_empty())
            .map(|telemetry| telemetry.origin.object.clone())
            .collect();

        let written = enabled.into_iter().filter_map(|name| {
            self.provider_log(name, filters.get(name).copied().flatten(), &sources)
        });

        written.collect()
    }

    /// The Telemetry objects of a workload: mesh, namespace, workload; the oldest of each.
    pub fn telemetries_for(&self, namespace: &str, labels: &Labels) -> Vec<&Telemetry> {
        let oldest = |fits: &dyn Fn(&Telemetry) -> bool| {
            self.lowered
                .telemetries
                .values()
                .filter(|telemetry| !telemetry.is_attached && fits(telemetry))
                .min_by(|a, b| a.origin.age.cmp(&b.origin.age))
                .map(|telemetry| &**telemetry)
        };

        let root = self.root_namespace();
        let whole = |telemetry: &Telemetry, ns: &str| {
            telemetry.selector.is_none() && telemetry.origin.object.namespace == ns
        };
        let scopes = [
            oldest(&|telemetry| whole(telemetry, root)),
            oldest(&|telemetry| namespace != root && whole(telemetry, namespace)),
            oldest(&|telemetry| {
                telemetry.origin.object.namespace == namespace
                    && telemetry
                        .selector
                        .as_ref()
                        .is_some_and(|selector| selector.selects(labels))
            }),
        ];

        scopes.into_iter().flatten().collect()
    }

    /// MeshConfig.accessLogFile; `None` if logging is off.
    pub fn mesh_access_log(&self) -> Option<AccessLog> {
        let FileLog { path, format } = self.mesh.access_logs.file.clone()?;
        Some(AccessLog {
            provider: "envoy".to_owned(),
            path,
            format,
            filter: None,
            sources: Vec::new(),
        })
    }

    /// The log of a named provider; `None` for a name that no provider with a file log has.
    fn provider_log(
        &self,
        name: &str,
        filter: Option<&str>,
        sources: &[ObjectRef],
    ) -> Option<AccessLog> {
        let FileLog { path, format } = self.mesh.access_logs.providers.get(name)?.clone();
        Some(AccessLog {
            provider: name.to_owned(),
            path,
            format,
            filter: filter.map(str::to_owned),
            sources: sources.to_vec(),
        })
    }
}
