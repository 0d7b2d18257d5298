//! Security policies: who must be encrypted, authenticated and permitted.

use std::collections::BTreeMap;
use std::sync::Arc;

use meltemi_types::{ObjectRef, Selector};

use crate::{CustomAuthorization, Origin};

/// What a server accepts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MtlsMode {
    /// Plaintext only.
    Disable,
    /// Both.
    #[default]
    Permissive,
    /// Mutual TLS only.
    Strict,
}

/// One PeerAuthentication; `None` inherits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerAuthentication {
    /// The object.
    pub origin: Origin,
    /// Which workloads; `None` for the whole namespace, or mesh in the root namespace.
    pub selector: Option<Selector>,
    /// For all ports.
    pub mode: Option<MtlsMode>,
    /// For single ports of the workload (not of its Service).
    pub ports: BTreeMap<u16, Option<MtlsMode>>,
}

/// What holds for one workload: port over workload over namespace over mesh, PERMISSIVE at the end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct EffectivePeerAuthentication {
    /// For ports that are not named.
    pub mode: MtlsMode,
    /// For named ports.
    pub ports: BTreeMap<u16, MtlsMode>,
    /// The objects it was made of, most specific first.
    pub sources: Vec<ObjectRef>,
}

impl EffectivePeerAuthentication {
    /// The mode of a port of the workload.
    pub fn of_port(&self, port: u16) -> MtlsMode {
        self.ports.get(&port).copied().unwrap_or(self.mode)
    }
}

/// One AuthorizationPolicy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AuthorizationPolicy {
    /// The object; namespace and name become part of the policy's name in the proxy.
    pub origin: Origin,
    /// Which workloads; `None` for all of the namespace (or the mesh).
    pub target: PolicyTarget,
    /// What a matching rule does.
    pub action: AuthzAction,
    /// Any of these; an ALLOW without rules denies everything, other actions without rules do
    /// nothing.
    pub rules: Vec<AuthzRule>,
    /// `istio.io/dry-run`: only counted and logged; for CUSTOM nothing at all.
    pub dry_run: bool,
}

/// Which workloads a policy is attached to, within its namespace (or the mesh, from the root
/// namespace).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum PolicyTarget {
    /// All.
    #[default]
    All,
    /// Those with these labels.
    Workloads(Selector),
    /// targetRefs: attached to other objects. Sidecars and classic gateways are none of them.
    References(Vec<TargetRef>),
}

/// targetRefs[].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TargetRef {
    /// API group.
    pub group: String,
    pub kind: String,
    pub name: String,
    /// Namespace; the policy's own if not written.
    pub namespace: String,
}

/// AuthorizationPolicy.action.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AuthzAction {
    /// Ask the named extension provider.
    Custom {
        /// Name in MeshConfig.extensionProviders.
        provider: String,
    },
    /// Refuse.
    Deny,
    /// Permit; what no ALLOW policy matches is refused once there is one.
    Allow,
    /// Only note.
    Audit,
}

/// One rule: from AND to AND when; an empty part holds always.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct AuthzRule {
    /// Any of these sources.
    pub from: Vec<AuthzSource>,
    /// Any of these operations.
    pub to: Vec<AuthzOperation>,
    /// All of these conditions.
    pub when: Vec<AuthzCondition>,
}

/// Values that may match and values that must not, as written (`*`, `prefix*`, `*suffix`, exact).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Values {
    /// Any of these; empty does not matter.
    pub any: Vec<String>,
    /// None of these.
    pub none: Vec<String>,
}

impl Values {
    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        self.any.is_empty() && self.none.is_empty()
    }
}

/// from[].source; all fields must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct AuthzSource {
    /// Peer identities without `spiffe://`.
    pub principals: Values,
    /// Token identities, `issuer/subject`.
    pub request_principals: Values,
    /// Peer namespaces.
    pub namespaces: Values,
    /// Peer service accounts, always as `namespace/name` (a bare name is of the policy's
    /// namespace).
    pub service_accounts: Values,
    /// The connection's source.
    pub ip_blocks: Values,
    /// The client as X-Forwarded-For or the PROXY protocol tell.
    pub remote_ip_blocks: Values,
    /// Peer trust domains.
    pub trust_domains: Values,
}

/// to[].operation; all fields must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct AuthzOperation {
    /// Authorities, case-insensitive.
    pub hosts: Values,
    /// Destination ports.
    pub ports: Values,
    pub methods: Values,
    /// Paths, perhaps with `{*}` and `{**}`.
    pub paths: Values,
}

/// when[].
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct AuthzCondition {
    /// The attribute.
    pub key: String,
    pub values: Values,
}

/// The policies of one workload, in the order in which they are asked; in each list those of the
/// root namespace first, then by age.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct AuthorizationPolicies {
    /// CUSTOM, by provider.
    pub custom: Vec<CustomAuthorization>,
    pub deny: Vec<Arc<AuthorizationPolicy>>,
    /// ALLOW.
    pub allow: Vec<Arc<AuthorizationPolicy>>,
    /// AUDIT.
    pub audit: Vec<Arc<AuthorizationPolicy>>,
}

impl AuthorizationPolicies {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.custom.is_empty()
            && self.deny.is_empty()
            && self.allow.is_empty()
            && self.audit.is_empty()
    }
}

/// One RequestAuthentication.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestAuthentication {
    /// The object.
    pub origin: Origin,
    /// Which workloads.
    pub target: PolicyTarget,
    /// The issuers.
    pub rules: Vec<TokenRule>,
}

/// One of jwtRules: where the tokens of an issuer stand in a request. Its keys are not read yet: no
/// proxy checks tokens, and requests with a token are denied.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TokenRule {
    pub issuer: String,
    /// fromHeaders: names, and what stands before the token. Without any place, a token stands in
    /// `authorization` after `Bearer `, or in the query parameter `access_token`.
    pub headers: Vec<(String, String)>,
    /// fromParams.
    pub parameters: Vec<String>,
    /// fromCookies.
    pub cookies: Vec<String>,
    /// presence: a request without a token is denied.
    pub is_required: bool,
    /// Headers that only the proxy may write (outputPayloadToHeader).
    pub payload_header: String,
    /// The same for claims (outputClaimToHeaders): header and claim.
    pub claim_headers: Vec<(String, String)>,
}
