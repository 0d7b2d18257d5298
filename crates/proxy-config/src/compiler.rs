//! Compiling whole resources.

use std::sync::Arc;

use meltemi_filters::rate_limit::Buckets;
use meltemi_filters::{Rejection, Scope, Warning};
use meltemi_proto::Any;
use meltemi_proto::envoy::config::cluster::v3::Cluster as ProtoCluster;
use meltemi_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use meltemi_proto::envoy::config::listener::v3::Listener as ProtoListener;
use meltemi_proto::envoy::config::route::v3::{
    RouteConfiguration, VirtualHost as ProtoVirtualHost,
};

use crate::cluster::Cluster;
use crate::endpoint::EndpointSet;
use crate::listener::Listener;
use crate::memo::Memo;
use crate::route::{RouteTable, VirtualHost};

/// What came of compiling a resource: the value and what was left out, or the reason for a NACK.
pub type Compiled<T> = Result<(T, Vec<Warning>), Rejection>;

/// Compiles resources. Keep one for the life of a proxy: token buckets survive in it from version
/// to version, and a resource that arrives again with the same bytes is the same `Arc`.
#[derive(Debug, Clone, Default)]
pub struct Compiler {
    pub(crate) buckets: Buckets,
    memo: Memo,
}

impl Compiler {
    /// A listener as a server sends it. The same bytes give the same `Arc` for as long as it is in
    /// use.
    pub fn listener_from(&self, any: &Any) -> Compiled<Arc<Listener>> {
        self.memo.get(any, |message| self.listener(message))
    }

    /// A cluster as a server sends it; see [`Compiler::listener_from`].
    pub fn cluster_from(&self, any: &Any) -> Compiled<Arc<Cluster>> {
        self.memo.get(any, |message| self.cluster(message))
    }

    /// A route table as a server sends it; see [`Compiler::listener_from`].
    pub fn route_from(&self, any: &Any) -> Compiled<Arc<RouteTable>> {
        self.memo.get(any, |message| self.route(message))
    }

    /// Endpoints as a server sends them; see [`Compiler::listener_from`].
    pub fn endpoints_from(&self, any: &Any) -> Compiled<Arc<EndpointSet>> {
        self.memo.get(any, |message| self.endpoints(message))
    }

    /// A listener.
    pub fn listener(&self, message: &ProtoListener) -> Compiled<Arc<Listener>> {
        run(|scope| Listener::compile(message, self, scope))
    }

    /// A cluster.
    pub fn cluster(&self, message: &ProtoCluster) -> Compiled<Arc<Cluster>> {
        run(|scope| Cluster::compile(message, scope))
    }

    /// A route table.
    pub fn route(&self, message: &RouteConfiguration) -> Compiled<Arc<RouteTable>> {
        run(|scope| RouteTable::compile(message, self, scope))
    }

    /// One virtual host of a route table, as VHDS delivers it.
    pub fn virtual_host(
        &self,
        table: &str,
        message: &ProtoVirtualHost,
    ) -> Compiled<Arc<VirtualHost>> {
        run(|scope| VirtualHost::compile(message, table, self, scope))
    }

    /// The endpoints of a cluster.
    pub fn endpoints(&self, message: &ClusterLoadAssignment) -> Compiled<Arc<EndpointSet>> {
        run(|scope| EndpointSet::compile(message, scope))
    }
}

fn run<T>(compile: impl FnOnce(&mut Scope) -> Result<T, Rejection>) -> Compiled<Arc<T>> {
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
