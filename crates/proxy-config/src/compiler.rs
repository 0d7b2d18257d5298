//! Compiling whole resources.

use std::sync::Arc;

use meltemi_filters::Scope;
use meltemi_filters::http::{ExtensionFactory, FilterShared};
use meltemi_proto::Any;
use meltemi_proto::envoy::config::cluster::v3::Cluster as ProtoCluster;
use meltemi_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use meltemi_proto::envoy::config::listener::v3::Listener as ProtoListener;
use meltemi_proto::envoy::config::route::v3::RouteConfiguration;

use crate::cluster::Cluster;
use crate::endpoint::EndpointSet;
use crate::listener::Listener;
use crate::memo::{Compiled, Memo};
use crate::route::RouteTable;

/// Compiles resources. Keep one for the life of a proxy: its token buckets survive from version to
/// version, and a resource that arrives again with the same bytes is the same `Arc`.
#[derive(Debug, Clone, Default)]
pub struct Compiler {
    shared: FilterShared,
    memo: Memo,
}

impl Compiler {
    /// A compiler that knows HTTP filters of optional crates beside the built-in ones.
    pub fn with_extensions(extensions: Arc<[Arc<dyn ExtensionFactory>]>) -> Self {
        Self {
            shared: FilterShared {
                extensions,
                ..FilterShared::default()
            },
            memo: Memo::default(),
        }
    }

    /// Compiles a listener as a server sends it. The same bytes give the same `Arc` for as long as
    /// somebody keeps it.
    pub fn listener_from(&self, any: &Any) -> Compiled<Arc<Listener>> {
        self.memo.get(any, |message| self.listener(message))
    }

    /// Compiles a cluster as a server sends it; see [`Compiler::listener_from`].
    pub fn cluster_from(&self, any: &Any) -> Compiled<Arc<Cluster>> {
        self.memo.get(any, |message| self.cluster(message))
    }

    /// Compiles a route table as a server sends it; see [`Compiler::listener_from`].
    pub fn route_from(&self, any: &Any) -> Compiled<Arc<RouteTable>> {
        self.memo.get(any, |message| self.route(message))
    }

    /// Compiles endpoints as a server sends them; see [`Compiler::listener_from`].
    pub fn endpoints_from(&self, any: &Any) -> Compiled<Arc<EndpointSet>> {
        self.memo.get(any, |message| self.endpoints(message))
    }

    /// Compiles a listener.
    pub(crate) fn listener(&self, message: &ProtoListener) -> Compiled<Arc<Listener>> {
        run(|scope| Listener::compile(message, &self.shared, scope))
    }

    /// Compiles a cluster.
    pub(crate) fn cluster(&self, message: &ProtoCluster) -> Compiled<Arc<Cluster>> {
        run(|scope| Cluster::compile(message, scope))
    }

    fn route(&self, message: &RouteConfiguration) -> Compiled<Arc<RouteTable>> {
        run(|scope| RouteTable::compile(message, &self.shared, scope))
    }

    fn endpoints(&self, message: &ClusterLoadAssignment) -> Compiled<Arc<EndpointSet>> {
        run(|scope| EndpointSet::compile(message, scope))
    }
}

fn run<T>(
    compile: impl FnOnce(&mut Scope) -> Result<T, meltemi_filters::Rejection>,
) -> Compiled<Arc<T>> {
    let mut scope = Scope::new();
    let value = compile(&mut scope)?;
    Ok((Arc::new(value), scope.into_warnings()))
}

/// Compiles a listener on its own; see [`Compiler`].
pub fn compile_listener(message: &ProtoListener) -> Compiled<Arc<Listener>> {
    Compiler::default().listener(message)
}

/// Compiles a cluster on its own.
pub fn compile_cluster(message: &ProtoCluster) -> Compiled<Arc<Cluster>> {
    Compiler::default().cluster(message)
}

/// Compiles a route table on its own; see [`Compiler`].
pub fn compile_route(message: &RouteConfiguration) -> Compiled<Arc<RouteTable>> {
    Compiler::default().route(message)
}

/// Compiles endpoints on their own.
pub fn compile_endpoints(message: &ClusterLoadAssignment) -> Compiled<Arc<EndpointSet>> {
    Compiler::default().endpoints(message)
}
