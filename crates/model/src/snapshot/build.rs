//! One build: lower what changed, put the tables together, compare with the previous snapshot.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use meltemi_api::{Kind, MeshConfig, ObjectKey};
use meltemi_types::Diagnostic;

use super::endpoints::EndpointTable;
use super::rules::{DestinationRuleTable, RouteTable};
use super::services::ServiceTable;
use super::workloads::WorkloadTable;
use super::{Build, BuildOptions, ScopeCache, Snapshot};
use crate::lower::service::LoweredService;
use crate::lower::service_entry::LoweredEntry;
use crate::lower::{Context, Lowered, istio, mesh, service, service_entry, workload};
use crate::tables::Tables;
use crate::{
    AuthorizationPolicy, ChangeSet, DestinationRule, Gateway, MeshSettings, PeerAuthentication,
    RequestAuthentication, Resolution, ServiceKey, Sidecar, Telemetry, Workload, analyze,
};
use istio::virtual_service::LoweredVirtualService;

/// Each kind's objects with what they were lowered to.
#[derive(Debug, Clone, Default)]
pub(crate) struct LoweredKinds {
    pub services: Arc<Lowered<Vec<LoweredService>>>,
    pub service_entries: Arc<Lowered<LoweredEntry>>,
    pub pods: Arc<Lowered<Option<Workload>>>,
    pub workload_entries: Arc<Lowered<Option<Workload>>>,
    pub virtual_services: Arc<Lowered<LoweredVirtualService>>,
    pub destination_rules: Arc<Lowered<DestinationRule>>,
    pub gateways: Arc<Lowered<Gateway>>,
    pub sidecars: Arc<Lowered<Sidecar>>,
    pub peer_authentications: Arc<Lowered<PeerAuthentication>>,
    pub request_authentications: Arc<Lowered<RequestAuthentication>>,
    pub authorization_policies: Arc<Lowered<AuthorizationPolicy>>,
    pub telemetries: Arc<Lowered<Telemetry>>,
}

impl LoweredKinds {
    fn update(prev: Option<&Self>, tables: &Tables, context: &Context<'_>) -> Self {
        let table = |kind: &Kind| tables.table(kind).as_ref();
        Self {
            services: Lowered::update(prev.map(|p| &p.services), table(&Kind::Service), |o, f| {
                service::lower_service(context, o, f)
            }),
            service_entries: Lowered::update(
                prev.map(|p| &p.service_entries),
                table(&Kind::ServiceEntry),
                |o, f| service_entry::lower_service_entry(context, o, f),
            ),
            pods: Lowered::update(prev.map(|p| &p.pods), table(&Kind::Pod), |o, f| {
                workload::lower_pod(context, o, f)
            }),
            workload_entries: Lowered::update(
                prev.map(|p| &p.workload_entries),
                table(&Kind::WorkloadEntry),
                |o, f| workload::lower_workload_entry(context, o, f),
            ),
            virtual_services: Lowered::update(
                prev.map(|p| &p.virtual_services),
                table(&Kind::VirtualService),
                |o, f| istio::virtual_service::lower_virtual_service(context, o, f),
            ),
            destination_rules: Lowered::update(
                prev.map(|p| &p.destination_rules),
                table(&Kind::DestinationRule),
                |o, f| istio::destination_rule::lower_destination_rule(context, o, f),
            ),
            gateways: Lowered::update(
                prev.map(|p| &p.gateways),
                table(&Kind::Gateway),
                istio::gateway::lower_gateway,
            ),
            sidecars: Lowered::update(prev.map(|p| &p.sidecars), table(&Kind::Sidecar), |o, f| {
                istio::sidecar::lower_sidecar(context, o, f)
            }),
            peer_authentications: Lowered::update(
                prev.map(|p| &p.peer_authentications),
                table(&Kind::PeerAuthentication),
                istio::security::lower_peer_authentication,
            ),
            request_authentications: Lowered::update(
                prev.map(|p| &p.request_authentications),
                table(&Kind::RequestAuthentication),
                istio::security::lower_request_authentication,
            ),
            authorization_policies: Lowered::update(
                prev.map(|p| &p.authorization_policies),
                table(&Kind::AuthorizationPolicy),
                istio::security::lower_authorization_policy,
            ),
            telemetries: Lowered::update(
                prev.map(|p| &p.telemetries),
                table(&Kind::Telemetry),
                istio::telemetry::lower_telemetry,
            ),
        }
    }

    fn diagnostics(&self) -> Vec<Diagnostic> {
        let Self {
            services,
            service_entries,
            pods,
            workload_entries,
            virtual_services,
            destination_rules,
            gateways,
            sidecars,
            peer_authentications,
            request_authentications,
            authorization_policies,
            telemetries,
        } = self;

        let all = services
            .diagnostics()
            .chain(service_entries.diagnostics())
            .chain(pods.diagnostics())
            .chain(workload_entries.diagnostics());

        let all = all
            .chain(virtual_services.diagnostics())
            .chain(destination_rules.diagnostics())
            .chain(gateways.diagnostics());

        let all = all
            .chain(sidecars.diagnostics())
            .chain(peer_authentications.diagnostics())
            .chain(request_authentications.diagnostics());

        all.chain(authorization_policies.diagnostics())
            .chain(telemetries.diagnostics())
            .cloned()
            .collect()
    }
}

pub(super) fn build(prev: Option<&Snapshot>, tables: &Tables, options: &BuildOptions) -> Build {
    let options_kept = prev
        .filter(|prev| *prev.options == *options)
        .map(|prev| prev.options.clone());
    let Mesh {
        config: mesh_config,
        settings: mesh,
        diagnostics: mesh_diagnostics,
    } = build_mesh(prev.filter(|_| options_kept.is_some()), tables, options);

    // Under other settings of the mesh every object may mean something else: then nothing lowered
    // before is taken over.
    let same_mesh = prev.filter(|prev| options_kept.is_some() && Arc::ptr_eq(&prev.mesh, &mesh));
    let context = Context {
        mesh: &mesh,
        domain: &options.domain,
    };

    let lowered = LoweredKinds::update(same_mesh.map(|prev| &prev.lowered), tables, &context);
    let services = build_services(prev, &lowered, options);
    let workloads = build_workloads(prev, &lowered);
    let endpoints = build_endpoints(prev, &services, &workloads);
    let routes = match same_mesh
        .filter(|prev| Arc::ptr_eq(&prev.lowered.virtual_services, &lowered.virtual_services))
    {
        Some(prev) => prev.routes.clone(),
        None => Arc::new(RouteTable::build(
            prev.map(|prev| &*prev.routes),
            &lowered.virtual_services,
        )),
    };

    let destination_rules = match same_mesh
        .filter(|prev| Arc::ptr_eq(&prev.lowered.destination_rules, &lowered.destination_rules))
    {
        Some(prev) => prev.destination_rules.clone(),
        None => Arc::new(DestinationRuleTable::build(&lowered.destination_rules)),
    };

    let scopes = match same_mesh {
        Some(prev)
            if Arc::ptr_eq(&prev.services, &services)
                && Arc::ptr_eq(&prev.routes, &routes)
                && Arc::ptr_eq(&prev.lowered.sidecars, &lowered.sidecars) =>
        {
            prev.scopes.clone()
        }
        _ => Arc::new(ScopeCache(Mutex::default())),
    };

    let options = options_kept.unwrap_or_else(|| Arc::new(options.clone()));
    let tables = tables.clone();
    let snapshot = Snapshot {
        options,
        mesh,
        mesh_config,
        mesh_diagnostics,
        tables,
        lowered,
        services,
        workloads,
        endpoints,
        routes,
        destination_rules,
        scopes,
    };

    let mut diagnostics = snapshot.mesh_diagnostics.to_vec();
    diagnostics.extend(snapshot.lowered.diagnostics());
    diagnostics.extend(snapshot.services.diagnostics.iter().cloned());
    diagnostics.extend(snapshot.routes.diagnostics.iter().cloned());
    diagnostics.extend(snapshot.destination_rules.diagnostics.iter().cloned());
    diagnostics.extend(analyze::analyze(&snapshot));
    diagnostics.sort_by(|a, b| {
        (&a.object, &a.field, &a.code, &a.message).cmp(&(&b.object, &b.field, &b.code, &b.message))
    });
    diagnostics.dedup();
    let changes = changes(prev, same_mesh.is_some(), &snapshot);

    Build {
        snapshot,
        diagnostics,
        changes,
    }
}

/// MeshConfig in the forms that a snapshot keeps.
struct Mesh {
    config: Arc<MeshConfig>,
    settings: Arc<MeshSettings>,
    diagnostics: Arc<[Diagnostic]>,
}

/// Reads and lowers MeshConfig. What says the same as in `prev` keeps its allocation.
fn build_mesh(prev: Option<&Snapshot>, tables: &Tables, options: &BuildOptions) -> Mesh {
    let config_map = tables.table(&Kind::ConfigMap).get(&options.mesh_config_map);
    if let Some(prev) = prev {
        let held = prev
            .tables
            .table(&Kind::ConfigMap)
            .get(&options.mesh_config_map);

        let is_same = match (held, config_map) {
            (Some(held), Some(object)) => Arc::ptr_eq(held, object),
            (None, None) => true,
            _ => false,
        };

        if is_same {
            return Mesh {
                config: prev.mesh_config.clone(),
                settings: prev.mesh.clone(),
                diagnostics: prev.mesh_diagnostics.clone(),
            };
        }
    }

    let (config, diagnostics) =
        mesh::read_mesh_config(config_map, &options.mesh_defaults, &options.mesh_fixed);
    let settings = mesh::lower_mesh_config(&config);

    Mesh {
        config: Arc::new(config),
        settings: keep_equal(prev.map(|prev| &prev.mesh), settings),
        diagnostics: diagnostics.into(),
    }
}

/// The allocation held before if the new value equals it: later stages compare pointers.
pub(crate) fn keep_equal<T: PartialEq>(held: Option<&Arc<T>>, value: T) -> Arc<T> {
    match held {
        Some(held) if **held == value => held.clone(),
        _ => Arc::new(value),
    }
}

/// The previous table where both inputs are the same, also by content; addresses are kept even when
/// MeshConfig changed.
fn build_services(
    prev: Option<&Snapshot>,
    lowered: &LoweredKinds,
    options: &BuildOptions,
) -> Arc<ServiceTable> {
    if let Some(prev) = prev
        && *prev.options == *options
        && Arc::ptr_eq(&prev.lowered.services, &lowered.services)
        && Arc::ptr_eq(&prev.lowered.service_entries, &lowered.service_entries)
    {
        return prev.services.clone();
    }

    Arc::new(ServiceTable::build(
        prev.map(|prev| &*prev.services),
        &lowered.services,
        &lowered.service_entries,
        options,
    ))
}

fn build_workloads(prev: Option<&Snapshot>, lowered: &LoweredKinds) -> Arc<WorkloadTable> {
    if let Some(prev) = prev
        && Arc::ptr_eq(&prev.lowered.pods, &lowered.pods)
        && Arc::ptr_eq(&prev.lowered.workload_entries, &lowered.workload_entries)
    {
        return prev.workloads.clone();
    }

    Arc::new(WorkloadTable::build(
        prev.map(|prev| &*prev.workloads),
        &lowered.pods,
        &lowered.workload_entries,
    ))
}

fn build_endpoints(
    prev: Option<&Snapshot>,
    services: &Arc<ServiceTable>,
    workloads: &Arc<WorkloadTable>,
) -> Arc<EndpointTable> {
    let Some(prev) = prev else {
        return Arc::new(EndpointTable::build(
            None,
            services,
            workloads,
            &BTreeSet::new(),
        ));
    };

    let changed = if Arc::ptr_eq(&prev.workloads, workloads) {
        Vec::new()
    } else {
        workloads.changed_since(&prev.workloads)
    };

    if changed.is_empty() && Arc::ptr_eq(&prev.services, services) {
        return prev.endpoints.clone();
    }
    let namespaces = changed.iter().map(|name| name.namespace.as_str()).collect();

    Arc::new(EndpointTable::build(
        Some((&prev.endpoints, &prev.services)),
        services,
        workloads,
        &namespaces,
    ))
}

fn changes(prev: Option<&Snapshot>, is_same_mesh: bool, next: &Snapshot) -> ChangeSet {
    let Some(prev) = prev else {
        let objects = next.tables.iter().map(|object| object.key()).collect();
        return ChangeSet {
            is_first: true,
            objects,
            ..ChangeSet::default()
        };
    };

    let mut changes = ChangeSet {
        mesh: !is_same_mesh,
        objects: next.tables.changed_since(&prev.tables),
        ..ChangeSet::default()
    };

    // A ConfigMap that is not the mesh's means nothing to proxies, nor does the mesh's when it says
    // the same.
    changes
        .objects
        .retain(|key: &ObjectKey| key.kind != Kind::ConfigMap || !is_same_mesh);
    if !Arc::ptr_eq(&prev.workloads, &next.workloads) {
        changes
            .workloads
            .extend(next.workloads.changed_since(&prev.workloads));
    }

    if !Arc::ptr_eq(&prev.services, &next.services) {
        let (old, new) = (&prev.services.by_key, &next.services.by_key);
        let newer = new
            .iter()
            .filter(|(key, service)| old.get(key).is_none_or(|held| !Arc::ptr_eq(held, service)));
        let gone = old.keys().filter(|key| !new.contains_key(*key));
        changes
            .services
            .extend(newer.map(|(key, _)| key).chain(gone).cloned());
        changes
            .services
            .extend(next.services.aliased_otherwise(&prev.services));
    }

    if !Arc::ptr_eq(&prev.endpoints, &next.endpoints) {
        for key in next.endpoints.changed_since(&prev.endpoints) {
            if changes.services.contains(key) {
                continue;
            }
            let set = if reaches_clusters(prev, next, key) {
                &mut changes.services
            } else {
                &mut changes.endpoints
            };
            set.insert(key.clone());
        }
    }

    changes
}

/// Whether other endpoints of a service mean other clusters, listeners or names, not just other
/// load assignments.
fn reaches_clusters(prev: &Snapshot, next: &Snapshot, key: &ServiceKey) -> bool {
    let is_client_side = next
        .service(key)
        .is_some_and(|service| service.resolution == Resolution::ClientSide);
    !is_client_side || prev.endpoints.identities(key) != next.endpoints.identities(key)
}
