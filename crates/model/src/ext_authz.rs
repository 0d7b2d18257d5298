//! External authorizers: the services that decide for policies with action CUSTOM.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::{AuthorizationPolicy, Hostname};

/// One of MeshConfig.extensionProviders, as CUSTOM policies see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provider {
    /// Proxies can ask it, if the mesh has its service.
    Authorizer(Arc<Authorizer>),
    /// An authorizer that proxies cannot ask.
    Faulty(ProviderFault),
    /// A tracer or a log.
    OtherKind,
}

/// Why a provider cannot be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderFault {
    /// The field, beginning at the provider: `envoyExtAuthzHttp.service`.
    pub field: String,
    /// The fault in words.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// A service as a provider names it: `HOST` or `NAMESPACE/HOST`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceName {
    /// The namespace of the declaring object, where several declare the host.
    pub namespace: Option<String>,
    /// The full host.
    pub host: Hostname,
}

impl ServiceName {
    pub(crate) fn new(written: &str) -> Self {
        match written.split_once('/') {
            Some((namespace, host)) => Self {
                namespace: Some(namespace.to_owned()),
                host: Hostname::new(host),
            },
            None => Self {
                namespace: None,
                host: Hostname::new(written),
            },
        }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        write!(f, "{}", self.host)
    }
}

/// A service that decides on requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Authorizer {
    pub service: ServiceName,
    pub port: u16,
    /// How a check is asked.
    pub check: Check,
    /// The limit of one check.
    pub timeout: Duration,
    /// Whether requests pass when the service cannot be asked.
    pub fail_open: bool,
    /// The client's status when the service cannot be asked; `None` is 403.
    pub status_on_error: Option<u16>,
    /// Whether the route is chosen again after an allowing check.
    pub clear_route_cache: bool,
    /// How much of a request's body a check carries; `None` is nothing.
    pub body: Option<CheckedBody>,
}

/// The API of an authorizer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Check {
    /// An HTTP request with the method and path of the request in question; 200 allows.
    Http(HttpCheck),
    /// `envoy.service.auth.v3.Authorization/Check`, which also decides on TCP connections.
    Grpc,
}

/// Headers and path of an HTTP check. Names are exact, `prefix*` or `*suffix`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct HttpCheck {
    /// Put before the request's path.
    pub path_prefix: String,
    /// Request headers that the check carries, besides Host, method, path and Content-Length.
    pub request_headers: Vec<String>,
    /// Headers with fixed values that the check carries.
    pub added_headers: BTreeMap<String, String>,
    /// Headers of an allowing answer that are set on the request.
    pub to_upstream: Vec<String>,
    /// Headers of a denying answer that the client gets; empty is all.
    pub to_downstream_on_deny: Vec<String>,
    /// Headers of an allowing answer that are added to the response.
    pub to_downstream_on_allow: Vec<String>,
}

/// The body of a request in a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CheckedBody {
    /// The most bytes that are held back and sent; above 0.
    pub max_bytes: u32,
    /// Whether the check of a longer body carries its beginning; else the client gets 413.
    pub allow_partial: bool,
    /// Whether a gRPC check carries the body as bytes instead of text.
    pub as_bytes: bool,
}

/// The CUSTOM policies of a workload that name one provider; dry-run policies are none of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CustomAuthorization {
    /// The provider's name; it is part of the policies' names in the proxy.
    pub provider: String,
    /// The service to ask. `None` denies what the policies select: the provider is unknown or
    /// faulty, or the workload has policies of several providers.
    pub authorizer: Option<Arc<Authorizer>>,
    /// The policies, in the order of [`AuthorizationPolicies`](crate::AuthorizationPolicies).
    pub policies: Vec<Arc<AuthorizationPolicy>>,
}
