//! The snapshot: every derived table, immutable and shared, and how the next one is built from the
//! last.

pub(crate) mod build;
mod compare;
pub(crate) mod endpoints;
pub(crate) mod options;
pub(crate) mod rules;
pub(crate) mod services;
pub(crate) mod workloads;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use meltemi_api::MeshConfig;
use meltemi_types::Diagnostic;

use crate::lower::Lowered;
use crate::tables::Tables;
use crate::{
    ChangeSet, Gateway, MeshSettings, NamespacedName, PeerAuthentication, Sidecar, SidecarScope,
};
use build::LoweredKinds;
use endpoints::EndpointTable;
pub use options::BuildOptions;
use rules::{DestinationRuleTable, RouteTable};
use services::ServiceTable;
use workloads::WorkloadTable;

/// One consistent state of the mesh. All queries are methods (module `query`); clones share
/// everything.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The options of the build.
    pub options: Arc<BuildOptions>,
    /// The settings of the whole mesh.
    pub mesh: Arc<MeshSettings>,
    /// MeshConfig as written over the defaults; analysis reports fields of it that have no effect.
    pub(crate) mesh_config: Arc<MeshConfig>,
    pub(crate) mesh_diagnostics: Arc<[Diagnostic]>,
    pub(crate) tables: Tables,
    pub(crate) lowered: LoweredKinds,
    pub(crate) services: Arc<ServiceTable>,
    pub(crate) workloads: Arc<WorkloadTable>,
    pub(crate) endpoints: Arc<EndpointTable>,
    pub(crate) routes: Arc<RouteTable>,
    pub(crate) destination_rules: Arc<DestinationRuleTable>,
    /// Scopes are worked out when first asked for: they depend on nothing but the tables, and most
    /// namespaces need one.
    pub(crate) scopes: Arc<ScopeCache>,
}

/// The proxy's namespace, and the Sidecar that applies.
pub(crate) type ScopeKey = (String, Option<NamespacedName>);

#[derive(Debug, Default)]
pub(crate) struct ScopeCache(pub Mutex<BTreeMap<ScopeKey, Arc<SidecarScope>>>);

/// What a build hands over.
#[derive(Debug, Clone)]
pub struct Build {
    /// The next state.
    pub snapshot: Snapshot,
    /// All present faults, sorted by object; not only new ones.
    pub diagnostics: Vec<Diagnostic>,
    /// What differs from the previous snapshot.
    pub changes: ChangeSet,
}

impl Snapshot {
    /// Builds the next snapshot; only what depends on changed objects is worked out anew. Never
    /// fails: what is wrong is left out and told.
    pub fn build(prev: Option<&Self>, tables: &Tables, options: &BuildOptions) -> Build {
        build::build(prev, tables, options)
    }

    /// The objects that it was built from.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The namespace of policies for the whole mesh.
    pub fn root_namespace(&self) -> &str {
        &self.mesh.root_namespace
    }

    /// Every Gateway, by namespace and name.
    pub fn gateways(&self) -> impl Iterator<Item = &Arc<Gateway>> {
        values(&self.lowered.gateways)
    }

    /// Every Sidecar, by namespace and name.
    pub fn sidecars(&self) -> impl Iterator<Item = &Arc<Sidecar>> {
        values(&self.lowered.sidecars)
    }

    /// Every PeerAuthentication.
    pub fn written_peer_authentications(&self) -> impl Iterator<Item = &Arc<PeerAuthentication>> {
        values(&self.lowered.peer_authentications)
    }
}

fn values<T>(lowered: &Lowered<T>) -> impl Iterator<Item = &Arc<T>> {
    lowered.values()
}
