//! VirtualService: what happens to a request or connection for a host.

use std::collections::BTreeMap;

use meltemi_types::Selector;

use crate::duration::Duration;
use crate::schema::{Base64Bytes, message, words};
use crate::shared::{Percent, PortSelector, StringMatch, StringMatches};

message! {
    /// Routes for hosts.
    pub struct VirtualService {
        /// Hosts as callers name them; empty only in a delegate.
        hosts: Vec<String> = "hosts",
        /// Gateways, `namespace/name` or `name`; `mesh` means sidecars. Empty is `mesh`.
        gateways: Vec<String> = "gateways",
        /// Routes of requests, first match wins.
        http: Vec<HttpRoute> = "http",
        /// Routes of TLS connections by SNI, first match wins.
        tls: Vec<TlsRoute> = "tls",
        /// Routes of other connections, first match wins.
        tcp: Vec<TcpRoute> = "tcp",
        /// Namespaces that see this: `.`, `*`, or names. Empty is MeshConfig's default.
        export_to: Vec<String> = "exportTo",
    }

    /// Where traffic goes.
    pub struct Destination {
        /// A host of the service registry.
        host: String = "host" [required],
        /// A subset that a DestinationRule of that host names.
        subset: String = "subset",
        /// May be absent if the service has one port.
        port: Option<PortSelector> = "port",
    }

    /// What happens to the requests that match.
    pub struct HttpRoute {
        /// For logs and for merging.
        name: String = "name",
        /// Any of these; none is every request.
        r#match: Vec<HttpMatchRequest> = "match",
        /// Weighted destinations.
        route: Vec<HttpRouteDestination> = "route",
        /// Answer with a redirect.
        redirect: Option<HttpRedirect> = "redirect",
        /// Answer with this.
        direct_response: Option<HttpDirectResponse> = "directResponse",
        /// Another VirtualService continues.
        delegate: Option<Delegate> = "delegate",
        /// Changes path and authority before forwarding.
        rewrite: Option<HttpRewrite> = "rewrite",
        /// For the whole exchange; absent is none.
        timeout: Option<Duration> = "timeout",
        /// Retry policy; absent is MeshConfig's default.
        retries: Option<HttpRetry> = "retries",
        /// Faults to inject.
        fault: Option<HttpFaultInjection> = "fault",
        /// Deprecated: one mirror; see `mirrors`.
        mirror: Option<Destination> = "mirror",
        /// Copies of requests, whose answers are dropped.
        mirrors: Vec<HttpMirrorPolicy> = "mirrors",
        /// Deprecated: whole percents of `mirror`.
        mirror_percent: Option<u32> = "mirrorPercent" | "mirror_percent",
        /// Share of `mirror`; absent is all.
        mirror_percentage: Option<Percent> = "mirrorPercentage",
        /// Cross-origin policy.
        cors_policy: Option<CorsPolicy> = "corsPolicy",
        /// Header changes for all destinations.
        headers: Option<Headers> = "headers",
    }

    /// Conditions, all of which must hold.
    pub struct HttpMatchRequest {
        /// For statistics.
        name: String = "name",
        /// Path with query; case as `ignore_uri_case`.
        uri: Option<StringMatch> = "uri",
        /// `http` or `https`.
        scheme: Option<StringMatch> = "scheme",
        method: Option<StringMatch> = "method",
        /// Authority (Host).
        authority: Option<StringMatch> = "authority",
        /// Headers, lower case; an empty match asks for presence.
        headers: StringMatches = "headers",
        /// Headers that must not match.
        without_headers: StringMatches = "withoutHeaders",
        query_params: StringMatches = "queryParams",
        /// For exact and prefix paths.
        ignore_uri_case: bool = "ignoreUriCase",
        /// Port of the service or gateway; 0 is any.
        port: u32 = "port",
        /// Labels of the caller's workload.
        source_labels: Selector = "sourceLabels",
        /// Namespace of the caller's workload.
        source_namespace: String = "sourceNamespace",
        /// Gateways for this condition; overrides the object's list.
        gateways: Vec<String> = "gateways",
        /// Prefix of statistics for this match.
        stat_prefix: String = "statPrefix",
    }

    /// One weighted destination.
    pub struct HttpRouteDestination {
        /// Where to.
        destination: Destination = "destination" [required],
        /// Share of the sum of weights; a single destination may leave it out.
        weight: i32 = "weight",
        /// Header changes for this destination.
        headers: Option<Headers> = "headers",
    }

    /// Another VirtualService, with http routes and without hosts.
    pub struct Delegate {
        name: String = "name",
        /// Namespace; empty is this object's.
        namespace: String = "namespace",
    }

    pub struct HttpRedirect {
        /// Replaces the path.
        uri: String = "uri",
        /// Replaces the matched prefix only.
        prefix_rewrite: String = "prefixRewrite",
        /// Replaces the authority.
        authority: String = "authority",
        /// Replaces the port.
        port: Option<u32> = "port",
        /// Derives the port.
        derive_port: Option<RedirectPortSelection> = "derivePort",
        /// Replaces the scheme.
        scheme: String = "scheme",
        /// 301 (also 0), 302, 303, 307, 308.
        redirect_code: u32 = "redirectCode",
    }

    /// An answer without any upstream.
    pub struct HttpDirectResponse {
        /// 200 to 599.
        status: u32 = "status" [required],
        /// Body; absent is empty.
        body: Option<HttpBody> = "body",
    }

    /// A body: one of both.
    pub struct HttpBody {
        /// Text.
        string: Option<String> = "string",
        bytes: Option<Base64Bytes> = "bytes",
    }

    /// Changes before forwarding.
    pub struct HttpRewrite {
        /// Replaces the path, or the matched prefix.
        uri: String = "uri",
        /// Replaces the authority.
        authority: String = "authority",
        /// Replaces by expression.
        uri_regex_rewrite: Option<RegexRewrite> = "uriRegexRewrite",
    }

    /// A replacement by expression.
    pub struct RegexRewrite {
        /// RE2 expression.
        r#match: String = "match",
        /// Replacement with `\1`.
        rewrite: String = "rewrite",
    }

    /// When and how often to try again.
    pub struct HttpRetry {
        /// Retries after the first try; 0 switches retries off.
        attempts: i32 = "attempts",
        /// Limit of each try; absent is the route's timeout.
        per_try_timeout: Option<Duration> = "perTryTimeout",
        /// Envoy's conditions, comma-separated; numbers are status codes.
        retry_on: String = "retryOn",
        /// Whether other localities may serve a retry.
        retry_remote_localities: Option<bool> = "retryRemoteLocalities",
        /// Whether hosts tried before are avoided; absent is yes.
        retry_ignore_previous_hosts: Option<bool> = "retryIgnorePreviousHosts",
        /// Base of the back-off; absent is 25 ms.
        backoff: Option<Duration> = "backoff",
    }

    /// Faults to inject.
    pub struct HttpFaultInjection {
        /// Delays before forwarding.
        delay: Option<FaultDelay> = "delay",
        /// Answers instead of forwarding.
        abort: Option<FaultAbort> = "abort",
    }

    pub struct FaultDelay {
        /// How long.
        fixed_delay: Option<Duration> = "fixedDelay",
        /// In the schema, never implemented by Istio.
        exponential_delay: Option<Duration> = "exponentialDelay",
        /// Deprecated: whole percents.
        percent: i32 = "percent",
        /// Share of requests; absent is none, unless `percent` is set.
        percentage: Option<Percent> = "percentage",
    }

    /// An abort.
    pub struct FaultAbort {
        http_status: Option<i32> = "httpStatus",
        /// gRPC status, by name.
        grpc_status: Option<String> = "grpcStatus",
        /// In the schema, never implemented by Istio.
        http2_error: Option<String> = "http2Error",
        /// Share of requests; absent is all.
        percentage: Option<Percent> = "percentage",
    }

    pub struct HttpMirrorPolicy {
        /// Where to.
        destination: Destination = "destination" [required],
        /// Share of requests; absent is all.
        percentage: Option<Percent> = "percentage",
    }

    /// Cross-origin resource sharing.
    pub struct CorsPolicy {
        /// Deprecated: exact origins.
        allow_origin: Vec<String> = "allowOrigin",
        /// Origins that may call.
        allow_origins: Vec<StringMatch> = "allowOrigins",
        /// Methods for `access-control-allow-methods`.
        allow_methods: Vec<String> = "allowMethods",
        /// Headers for `access-control-allow-headers`.
        allow_headers: Vec<String> = "allowHeaders",
        /// Headers for `access-control-expose-headers`.
        expose_headers: Vec<String> = "exposeHeaders",
        /// How long a preflight's answer may be cached.
        max_age: Option<Duration> = "maxAge",
        /// `access-control-allow-credentials`.
        allow_credentials: Option<bool> = "allowCredentials",
        /// What happens to a preflight of another origin.
        unmatched_preflights: UnmatchedPreflights = "unmatchedPreflights",
    }

    /// Header changes.
    pub struct Headers {
        /// On the way up.
        request: Option<HeaderOperations> = "request",
        /// On the way down.
        response: Option<HeaderOperations> = "response",
    }

    /// Header changes in one direction.
    pub struct HeaderOperations {
        /// Replaces.
        set: BTreeMap<String, String> = "set",
        /// Appends.
        add: BTreeMap<String, String> = "add",
        remove: Vec<String> = "remove",
    }

    /// What happens to TLS connections that match.
    pub struct TlsRoute {
        /// Any of these.
        r#match: Vec<TlsMatchAttributes> = "match" [required],
        /// Weighted destinations.
        route: Vec<RouteDestination> = "route",
    }

    /// Conditions, all of which must hold.
    pub struct TlsMatchAttributes {
        /// Server names, `*.` prefixes allowed; subsets of the object's hosts.
        sni_hosts: Vec<String> = "sniHosts" [required],
        /// Addresses or CIDRs of the destination.
        destination_subnets: Vec<String> = "destinationSubnets",
        /// Port of the service or gateway; 0 is any.
        port: u32 = "port",
        /// Labels of the caller's workload.
        source_labels: Selector = "sourceLabels",
        /// Namespace of the caller's workload.
        source_namespace: String = "sourceNamespace",
        /// Gateways for this condition.
        gateways: Vec<String> = "gateways",
    }

    /// What happens to connections that match.
    pub struct TcpRoute {
        /// Any of these; none is every connection.
        r#match: Vec<L4MatchAttributes> = "match",
        /// Weighted destinations.
        route: Vec<RouteDestination> = "route",
    }

    /// Conditions, all of which must hold.
    pub struct L4MatchAttributes {
        /// Addresses or CIDRs of the destination.
        destination_subnets: Vec<String> = "destinationSubnets",
        /// Port of the service or gateway; 0 is any.
        port: u32 = "port",
        /// In the schema, never implemented by Istio.
        source_subnet: String = "sourceSubnet",
        /// Labels of the caller's workload.
        source_labels: Selector = "sourceLabels",
        /// Namespace of the caller's workload.
        source_namespace: String = "sourceNamespace",
        /// Gateways for this condition.
        gateways: Vec<String> = "gateways",
    }

    /// One weighted destination of connections.
    pub struct RouteDestination {
        /// Where to.
        destination: Destination = "destination" [required],
        /// Share of the sum of weights; a single destination may leave it out.
        weight: i32 = "weight",
    }
}

words! {
    /// Which port a redirect names.
    pub enum RedirectPortSelection {
        /// 80 or 443, by scheme.
        FromProtocolDefault = "FROM_PROTOCOL_DEFAULT",
        /// The port that was called.
        FromRequestPort = "FROM_REQUEST_PORT",
    }

    /// What happens to a preflight that no origin matches.
    pub enum UnmatchedPreflights {
        /// As `FORWARD`.
        Unspecified = "UNSPECIFIED",
        /// The upstream answers it.
        Forward = "FORWARD",
        /// The proxy answers it, without CORS headers.
        Ignore = "IGNORE",
    }
}
