//! One build: lower what changed, put the tables together, compare with the previous snapshot.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use meltemi_api::{Kind, MeshConfig};
use meltemi_types::Diagnostic;

use super::compare::changes;
use super::endpoints::EndpointTable;
use super::options::BuildOptions;
use super::rules::{DestinationRuleTable, RouteTable};
use super::services::ServiceTable;
use super::workloads::WorkloadTable;
use super::{Build, ScopeCache, Snapshot};
use crate::lower::service::LoweredService;
use crate::lower::service_entry::LoweredEntry;
use crate::lower::{
    Context, Lowered, credential, istio, keep_equal, mesh, service, service_entry, workload,
};
use crate::tables::Tables;
use crate::{
    AuthorizationPolicy, ChangeSet, Credential, DestinationRule, Gateway, MeshSettings,
    PeerAuthentication, RequestAuthentication, Sidecar, Telemetry, Workload, analyze,
};
use istio::virtual_service::LoweredVirtualService;

/// The objects of each kind with their lowered values.
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
    pub secrets: Arc<Lowered<Option<Credential>>>,
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
            secrets: Lowered::update(
                prev.map(|p| &p.secrets),
                table(&Kind::Secret),
                credential::lower_secret,
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
            secrets,
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
            .chain(secrets.diagnostics())
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

    // A scope is made of services, routes and Sidecars: while their values stay, so does the cache.
    let scopes = match same_mesh {
        Some(prev)
            if services.has_same_services(&prev.services)
                && routes.has_same_routes(&prev.routes)
                && lowered.sidecars.has_same_values(&prev.lowered.sidecars) =>
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
    let changes = prev.map_or_else(ChangeSet::everything, |prev| changes(prev, &snapshot));

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
