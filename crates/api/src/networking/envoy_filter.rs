//! EnvoyFilter: patches of what translation makes. The patches' values stay as they are written.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::schema::{message, words};
use crate::shared::{LabelSelector, TargetReference};

message! {
    /// Patches.
    pub struct EnvoyFilter {
        /// Workloads; absent is the whole namespace (or mesh, in the root namespace).
        workload_selector: Option<LabelSelector> = "workloadSelector",
        /// Gateways or services instead of workloads.
        target_refs: Vec<TargetReference> = "targetRefs",
        /// Lower ones first.
        priority: i32 = "priority",
        /// In order.
        config_patches: Vec<EnvoyConfigObjectPatch> = "configPatches",
    }

    /// One patch.
    pub struct EnvoyConfigObjectPatch {
        /// What kind of thing is patched.
        apply_to: ApplyTo = "applyTo",
        /// Which one.
        r#match: Option<EnvoyConfigObjectMatch> = "match",
        /// How.
        patch: Option<Patch> = "patch",
    }

    /// Which thing is patched.
    pub struct EnvoyConfigObjectMatch {
        /// On which side.
        context: PatchContext = "context",
        /// Of which proxies.
        proxy: Option<ProxyMatch> = "proxy",
        /// Listeners and what is in them.
        listener: Option<ListenerMatch> = "listener",
        /// Routes and what is in them.
        route_configuration: Option<RouteConfigurationMatch> = "routeConfiguration",
        cluster: Option<ClusterMatch> = "cluster",
        /// What a waypoint holds.
        waypoint: Option<WaypointMatch> = "waypoint",
    }

    /// Which proxies.
    pub struct ProxyMatch {
        /// Expression over the version.
        proxy_version: String = "proxyVersion",
        /// Exact node metadata.
        metadata: BTreeMap<String, String> = "metadata",
    }

    /// Which listener.
    pub struct ListenerMatch {
        port_number: u32 = "portNumber",
        /// Name of the service's port.
        port_name: String = "portName",
        /// Filter chain in it.
        filter_chain: Option<FilterChainMatch> = "filterChain",
        /// Listener filter in it.
        listener_filter: String = "listenerFilter",
        /// Name of the listener.
        name: String = "name",
    }

    /// Which filter chain.
    pub struct FilterChainMatch {
        name: String = "name",
        /// Server name that it matches.
        sni: String = "sni",
        /// Transport protocol that it matches.
        transport_protocol: String = "transportProtocol",
        /// Comma-separated.
        application_protocols: String = "applicationProtocols",
        /// Filter in it.
        filter: Option<FilterMatch> = "filter",
        /// Destination port that it matches.
        destination_port: u32 = "destinationPort",
        /// Name of its transport socket.
        transport_socket: String = "transportSocket",
    }

    /// Which filter.
    pub struct FilterMatch {
        name: String = "name",
        /// HTTP filter in it.
        sub_filter: Option<NameMatch> = "subFilter",
    }

    /// By name.
    pub struct NameMatch {
        name: String = "name",
    }

    /// Which route configuration.
    pub struct RouteConfigurationMatch {
        port_number: u32 = "portNumber",
        /// Name of the port.
        port_name: String = "portName",
        /// Gateway, `namespace/name`.
        gateway: String = "gateway",
        /// Virtual host in it.
        vhost: Option<VirtualHostMatch> = "vhost",
        name: String = "name",
    }

    /// Which virtual host.
    pub struct VirtualHostMatch {
        name: String = "name",
        /// One of its domains.
        domain_name: String = "domainName",
        /// Route in it.
        route: Option<RouteMatch> = "route",
    }

    /// Which route.
    pub struct RouteMatch {
        name: String = "name",
        /// What it does.
        action: RouteAction = "action",
    }

    /// Which cluster.
    pub struct ClusterMatch {
        /// Port of the service.
        port_number: u32 = "portNumber",
        /// Host of the service.
        service: String = "service",
        subset: String = "subset",
        /// Name of the cluster.
        name: String = "name",
    }

    /// What of a waypoint.
    pub struct WaypointMatch {
        /// Port of the service.
        port_number: Option<u32> = "portNumber",
        filter: Option<FilterMatch> = "filter",
        route: Option<NameMatch> = "route",
    }

    /// How it is patched.
    pub struct Patch {
        /// What is done.
        operation: PatchOperation = "operation",
        /// With which configuration, as xDS JSON.
        value: Value = "value",
        /// Where an added filter goes.
        filter_class: FilterClass = "filterClass",
    }
}

words! {
    /// What kind of thing is patched.
    pub enum ApplyTo {
        /// Nothing.
        Invalid = "INVALID",
        Listener = "LISTENER",
        FilterChain = "FILTER_CHAIN",
        NetworkFilter = "NETWORK_FILTER",
        HttpFilter = "HTTP_FILTER",
        RouteConfiguration = "ROUTE_CONFIGURATION",
        VirtualHost = "VIRTUAL_HOST",
        HttpRoute = "HTTP_ROUTE",
        Cluster = "CLUSTER",
        ExtensionConfig = "EXTENSION_CONFIG",
        Bootstrap = "BOOTSTRAP",
        ListenerFilter = "LISTENER_FILTER",
    }

    /// On which side.
    pub enum PatchContext {
        /// Everywhere.
        Any = "ANY",
        /// A sidecar's server side.
        SidecarInbound = "SIDECAR_INBOUND",
        /// A sidecar's client side.
        SidecarOutbound = "SIDECAR_OUTBOUND",
        Gateway = "GATEWAY",
        Waypoint = "WAYPOINT",
    }

    /// What a route does.
    pub enum RouteAction {
        /// Anything.
        Any = "ANY",
        /// Forwards.
        Route = "ROUTE",
        Redirect = "REDIRECT",
        /// Answers.
        DirectResponse = "DIRECT_RESPONSE",
    }

    /// What a patch does.
    pub enum PatchOperation {
        /// Nothing.
        Invalid = "INVALID",
        Merge = "MERGE",
        /// Appends.
        Add = "ADD",
        Remove = "REMOVE",
        /// Puts before the match.
        InsertBefore = "INSERT_BEFORE",
        /// Puts after the match.
        InsertAfter = "INSERT_AFTER",
        /// Puts first.
        InsertFirst = "INSERT_FIRST",
        Replace = "REPLACE",
        /// Merges; lists are replaced.
        MergeAndReplaceList = "MERGE_AND_REPLACE_LIST",
    }

    /// Where an added filter goes.
    pub enum FilterClass {
        /// By operation.
        Unspecified = "UNSPECIFIED",
        /// After authentication.
        Authn = "AUTHN",
        /// After authorization.
        Authz = "AUTHZ",
        /// Before statistics.
        Stats = "STATS",
    }
}
