//! The one route model: what VirtualServices, and any other routing API, are lowered to.
//!
//! Names are resolved, aliases and defaults applied, delegates merged. What depends on the client
//! (its namespace, labels, gateway and port) is kept as a condition, and [`HttpMatch::applies_to`]
//! and its siblings decide it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use meltemi_types::{GrpcCode, Labels, Selector};

use crate::{Cidr, Hostname, NamespacedName, Origin, Percent, Visibility};

/// Routes for a set of hosts, bound to the sidecars or to gateways.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VirtualService {
    /// The object that declared it.
    pub origin: Origin,
    /// Full names, perhaps wildcards, in declaration order.
    pub hosts: Vec<Hostname>,
    /// Who applies it; never empty.
    pub gateways: Vec<GatewayRef>,
    /// Which namespaces' proxies apply it.
    pub export_to: Visibility,
    /// HTTP routes, first match wins.
    pub http: Vec<HttpRoute>,
    /// Routes by SNI for opaque TLS.
    pub tls: Vec<L4Route>,
    /// Routes for opaque TCP.
    pub tcp: Vec<L4Route>,
}

/// Who applies routes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GatewayRef {
    /// Every sidecar (`mesh`).
    Mesh,
    /// The proxies of a Gateway.
    Gateway(NamespacedName),
}

impl fmt::Display for GatewayRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh => f.write_str("mesh"),
            Self::Gateway(name) => write!(f, "{name}"),
        }
    }
}

/// The proxy, listener and gateway that routes are built for.
#[derive(Debug, Clone, Copy)]
pub struct RouteContext<'a> {
    /// The proxy's namespace.
    pub namespace: &'a str,
    /// The proxy's labels.
    pub labels: &'a Labels,
    /// The gateway, or [`GatewayRef::Mesh`] for sidecars.
    pub gateway: &'a GatewayRef,
    /// The listener's port; 0 asks for routes of every port.
    pub port: u16,
}

impl RouteContext<'_> {
    fn admits(&self, source: &SourceMatch, of: &[GatewayRef]) -> bool {
        let gateways = if source.gateways.is_empty() {
            of
        } else {
            &source.gateways
        };

        let is_mesh = *self.gateway == GatewayRef::Mesh;
        gateways.contains(self.gateway)
            && (self.port == 0 || source.port.is_none_or(|port| port == self.port))
            // Source conditions are about the sidecar itself; at a gateway they mean nothing, so
            // the match never holds.
            && (source.labels.is_empty() || (is_mesh && source.labels.selects(self.labels)))
            && source.namespace.as_deref().is_none_or(|ns| is_mesh && ns == self.namespace)
    }
}

/// The part of a match that is decided when configuration is built, not per request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct SourceMatch {
    /// The listener's port.
    pub port: Option<u16>,
    /// Labels of the client.
    pub labels: Selector,
    /// Namespace of the client.
    pub namespace: Option<String>,
    /// Overrides the gateways of the whole object; empty means those.
    pub gateways: Vec<GatewayRef>,
}

/// One HTTP rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HttpRoute {
    /// Its name; empty if unnamed.
    pub name: String,
    /// Any of these; empty matches everything.
    pub matches: Vec<HttpMatch>,
    /// What happens.
    pub action: HttpAction,
    /// Changes of path or authority before forwarding.
    pub rewrite: Option<Rewrite>,
    /// For the whole exchange; `None` is Istio's default, no timeout.
    pub timeout: Option<Duration>,
    /// How often and when to try again.
    pub retries: Retries,
    /// Injected failures.
    pub fault: Option<Fault>,
    /// Copies of the request.
    pub mirrors: Vec<Mirror>,
    /// Cross-origin policy.
    pub cors: Option<Cors>,
    /// Changes of request and response headers.
    pub headers: HeaderOps,
    /// The object that wrote this rule: the delegate, if there is one.
    pub source: NamespacedName,
}

impl HttpRoute {
    /// The matches that hold for a proxy; `None` if the rule is not for it at all, an empty list if
    /// it matches everything.
    pub fn matches_for(
        &self,
        context: &RouteContext<'_>,
        of: &VirtualService,
    ) -> Option<Vec<&HttpMatch>> {
        if self.matches.is_empty() {
            return of.gateways.contains(context.gateway).then(Vec::new);
        }
        let held: Vec<_> = self
            .matches
            .iter()
            .filter(|m| m.applies_to(context, &of.gateways))
            .collect();
        (!held.is_empty()).then_some(held)
    }
}

/// Conditions on a request; all must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct HttpMatch {
    /// Its name; becomes part of the route's name.
    pub name: String,
    /// The path without query.
    pub uri: Option<StringMatch>,
    /// Compare `uri` without case (exact and prefix only).
    pub ignore_uri_case: bool,
    /// `http` or `https`.
    pub scheme: Option<StringMatch>,
    pub method: Option<StringMatch>,
    pub authority: Option<StringMatch>,
    /// Headers that must match, by lower-case name.
    pub headers: BTreeMap<String, StringMatch>,
    /// Headers that must not match, by lower-case name.
    pub without_headers: BTreeMap<String, StringMatch>,
    pub query_params: BTreeMap<String, StringMatch>,
    /// Port, client and gateway.
    pub source: SourceMatch,
    /// Prefix for statistics of this route; empty if unset.
    pub stat_prefix: String,
}

impl HttpMatch {
    /// Whether it can hold at this proxy; `of` are the gateways of the whole object.
    pub fn applies_to(&self, context: &RouteContext<'_>, of: &[GatewayRef]) -> bool {
        context.admits(&self.source, of)
    }

    /// Whether every request fits.
    pub fn is_catch_all(&self) -> bool {
        let Self {
            name: _,
            uri,
            ignore_uri_case: _,
            scheme,
            method,
            authority,
            headers,
            without_headers,
            query_params,
            source: _,
            stat_prefix: _,
        } = self;

        let any_path = match uri {
            None => true,
            Some(StringMatch::Prefix(prefix)) => prefix == "/",
            Some(StringMatch::Regex(regex)) => regex == ".*" || regex == "*",
            Some(_) => false,
        };

        any_path
            && scheme.is_none()
            && method.is_none()
            && authority.is_none()
            && headers.is_empty()
            && without_headers.is_empty()
            && query_params.is_empty()
    }
}

/// A condition on a string.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StringMatch {
    /// There is one, whatever it is.
    Present,
    /// The whole string.
    Exact(String),
    /// Its beginning.
    Prefix(String),
    /// RE2, anchored at both ends.
    Regex(String),
}

/// What an HTTP rule does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HttpAction {
    /// Forward to one of these; never empty.
    Forward(Vec<WeightedDestination>),
    /// Answer with a redirect.
    Redirect(Redirect),
    /// Answer directly.
    DirectResponse(DirectResponse),
}

/// A destination with its share.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WeightedDestination {
    /// Where.
    pub destination: Destination,
    /// Its share of the sum; a single destination has 100 when none is written. 0 takes no traffic.
    pub weight: u32,
    /// Changes of headers for this destination only.
    pub headers: HeaderOps,
}

/// A service, one of its ports, perhaps a subset.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    /// The full name.
    pub host: Hostname,
    /// The subset; empty for all.
    pub subset: String,
    /// The port; `None` is the only port of the service, else the listener's.
    pub port: Option<u16>,
}

/// HTTPRedirect.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Redirect {
    /// The new path.
    pub path: RedirectPath,
    /// The new authority; `None` keeps it.
    pub authority: Option<String>,
    /// The new port.
    pub port: RedirectPort,
    /// The new scheme; `None` keeps it.
    pub scheme: Option<String>,
    /// 301 by default.
    pub code: u16,
}

/// What becomes of the path in a redirect.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RedirectPath {
    /// Kept.
    Keep,
    /// Replaced as a whole.
    Full(String),
    /// The matched prefix is replaced.
    Prefix(String),
}

/// What becomes of the port in a redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RedirectPort {
    /// Nothing is said: a port in the authority stays.
    Keep,
    /// This one.
    Number(u16),
    /// The default of the scheme (derivePort: FROM_PROTOCOL_DEFAULT).
    SchemeDefault,
    /// The port the request came to (derivePort: FROM_REQUEST_PORT).
    RequestPort,
}

/// HTTPDirectResponse.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DirectResponse {
    pub status: u16,
    /// The body; empty for none.
    pub body: Vec<u8>,
}

/// HTTPRewrite.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rewrite {
    pub path: RewritePath,
    /// The authority; `None` keeps it.
    pub authority: Option<String>,
}

/// What becomes of the path when forwarding.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RewritePath {
    /// Kept.
    Keep,
    /// The matched prefix (or the whole path for exact matches) is replaced.
    Prefix(String),
    /// RE2 with `\1` references.
    Regex {
        /// What to find.
        pattern: String,
        /// What to put.
        substitution: String,
    },
}

/// When a failed try is repeated.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum Retries {
    /// Nothing written: the mesh's default policy (two retries on connection failures and the
    /// like).
    #[default]
    Default,
    /// attempts: 0.
    Off,
    /// As written.
    Explicit(RetryPolicy),
}

/// HTTPRetry with attempts of at least 1.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RetryPolicy {
    /// How many tries after the first.
    pub attempts: u32,
    /// For each try; `None` is the route's timeout.
    pub per_try_timeout: Option<Duration>,
    /// Conditions in Envoy's words, comma separated, numeric codes taken out; empty is the default
    /// list.
    pub retry_on: String,
    /// Numeric tokens of retryOn.
    pub status_codes: Vec<u16>,
    /// Whether other localities may be tried; `None` if not written.
    pub remote_localities: Option<bool>,
    /// Whether hosts tried before are avoided; `None` is yes.
    pub ignore_previous_hosts: Option<bool>,
    /// Base interval; `None` is Envoy's 25 ms.
    pub backoff: Option<Duration>,
}

/// HTTPFaultInjection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fault {
    /// Wait before forwarding.
    pub delay: Option<FaultDelay>,
    /// Answer instead of forwarding.
    pub abort: Option<FaultAbort>,
}

/// HTTPFaultInjection.delay.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FaultDelay {
    /// How long.
    pub fixed: Duration,
    /// How many requests.
    pub percent: Percent,
}

/// HTTPFaultInjection.abort.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FaultAbort {
    /// With what.
    pub status: AbortStatus,
    /// How many requests.
    pub percent: Percent,
}

/// How an injected abort answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AbortStatus {
    /// An HTTP status.
    Http(u16),
    /// A gRPC status code.
    Grpc(GrpcCode),
}

/// A copy of the request, its answer ignored.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mirror {
    /// Where to.
    pub destination: Destination,
    /// How many requests.
    pub percent: Percent,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Cors {
    /// Accepted origins.
    pub allow_origins: Vec<StringMatch>,
    /// Accepted methods.
    pub allow_methods: Vec<String>,
    /// Accepted request headers.
    pub allow_headers: Vec<String>,
    /// Response headers that scripts may read.
    pub expose_headers: Vec<String>,
    /// How long a preflight's answer holds.
    pub max_age: Option<Duration>,
    /// Whether credentials may be sent; `None` if not written.
    pub allow_credentials: Option<bool>,
    /// Whether preflights of other origins go to the service; `None` if not written (yes).
    pub forward_unmatched_preflights: Option<bool>,
}

/// Changes of headers, names in lower case as written order does not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct HeaderOps {
    /// On the request.
    pub request: HeaderChanges,
    /// On the response.
    pub response: HeaderChanges,
}

impl HeaderOps {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty()
    }
}

/// Set, add, remove.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct HeaderChanges {
    /// Replaces a header; the builder handles `host` and `:authority`.
    pub set: BTreeMap<String, String>,
    /// Appends.
    pub add: BTreeMap<String, String>,
    pub remove: Vec<String>,
}

impl HeaderChanges {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

/// A rule for opaque TLS or TCP.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct L4Route {
    /// Any of these; empty matches everything (TCP only).
    pub matches: Vec<L4Match>,
    /// Where to; never empty.
    pub destinations: Vec<WeightedDestination>,
}

impl L4Route {
    /// The matches that hold for a proxy; `None` if the rule is not for it at all, an empty list if
    /// it matches everything.
    pub fn matches_for(
        &self,
        context: &RouteContext<'_>,
        of: &VirtualService,
    ) -> Option<Vec<&L4Match>> {
        if self.matches.is_empty() {
            return of.gateways.contains(context.gateway).then(Vec::new);
        }
        let held: Vec<_> = self
            .matches
            .iter()
            .filter(|m| context.admits(&m.source, &of.gateways))
            .collect();
        (!held.is_empty()).then_some(held)
    }
}

/// Conditions on a connection; all must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct L4Match {
    /// Any of these SNI names; empty for TCP.
    pub sni_hosts: Vec<Hostname>,
    /// Any of these destinations; empty matches all.
    pub destination_subnets: Vec<Cidr>,
    /// Port, client and gateway.
    pub source: SourceMatch,
}
