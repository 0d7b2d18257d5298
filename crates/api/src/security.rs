//! `security.istio.io`: who may call whom, and how callers prove who they are.

use std::collections::BTreeMap;

use crate::duration::Duration;
use crate::schema::{Field, Report, message, words};
use crate::shared::{TargetReference, WorkloadSelector};

message! {
    /// Whether callers must use mutual TLS.
    pub struct PeerAuthentication {
        /// Workloads; absent is the whole namespace (or mesh, in the root namespace).
        selector: Option<WorkloadSelector> = "selector",
        /// For all ports.
        mtls: Option<MutualTls> = "mtls",
        /// Per port of the workload; needs a selector.
        port_level_mtls: PortLevelMtls = "portLevelMtls",
    }

    /// Mutual TLS.
    pub struct MutualTls {
        /// Which kind.
        mode: MutualTlsMode = "mode",
    }

    /// Which tokens are accepted.
    pub struct RequestAuthentication {
        /// Workloads; absent is the whole namespace (or mesh, in the root namespace).
        selector: Option<WorkloadSelector> = "selector",
        /// One target instead of workloads.
        target_ref: Option<TargetReference> = "targetRef",
        /// Targets instead of workloads.
        target_refs: Vec<TargetReference> = "targetRefs",
        /// Issuers.
        jwt_rules: Vec<JwtRule> = "jwtRules",
    }

    /// One issuer.
    pub struct JwtRule {
        /// `iss`.
        issuer: String = "issuer" [non_empty],
        /// Accepted `aud`; empty is any.
        audiences: Vec<String> = "audiences" [non_empty],
        /// Where keys are fetched.
        jwks_uri: String = "jwksUri" | "jwks_uri" [non_empty],
        /// Keys, as a JSON document.
        jwks: String = "jwks",
        /// Headers that carry tokens.
        from_headers: Vec<JwtHeader> = "fromHeaders",
        /// Query parameters that carry tokens.
        from_params: Vec<String> = "fromParams" [non_empty],
        /// Cookies that carry tokens.
        from_cookies: Vec<String> = "fromCookies" [non_empty],
        /// Header for the payload.
        output_payload_to_header: String = "outputPayloadToHeader",
        /// Headers for claims.
        output_claim_to_headers: Vec<ClaimToHeader> = "outputClaimToHeaders",
        /// Whether the token goes on.
        forward_original_token: bool = "forwardOriginalToken",
        /// Of fetching keys; absent is 5 s.
        timeout: Option<Duration> = "timeout",
        /// Claims whose value is a list in a string.
        space_delimited_claims: Vec<String> = "spaceDelimitedClaims" [non_empty],
        /// Whether a token must be there.
        presence: JwtPresence = "presence",
    }

    /// A header that carries tokens.
    pub struct JwtHeader {
        name: String = "name" [required, non_empty],
        /// Before the token, with its space.
        prefix: String = "prefix",
    }

    /// A header for a claim.
    pub struct ClaimToHeader {
        /// Name.
        header: String = "header" [required, non_empty],
        claim: String = "claim" [required, non_empty],
    }

    /// Who may call.
    pub struct AuthorizationPolicy {
        /// Workloads; absent is the whole namespace (or mesh, in the root namespace).
        selector: Option<WorkloadSelector> = "selector",
        /// One target instead of workloads.
        target_ref: Option<TargetReference> = "targetRef",
        /// Targets instead of workloads.
        target_refs: Vec<TargetReference> = "targetRefs",
        /// Any of these. Absent matches nothing, so that ALLOW refuses everything.
        rules: Vec<Rule> = "rules",
        /// What a match means.
        action: AuthorizationAction = "action",
        /// Who decides for CUSTOM.
        provider: Option<ExtensionProviderRef> = "provider",
    }

    /// A provider of MeshConfig.
    pub struct ExtensionProviderRef {
        name: String = "name",
    }

    /// Conditions: any of `from`, any of `to`, all of `when`. An empty rule matches everything.
    pub struct Rule {
        /// Callers.
        from: Vec<RuleFrom> = "from",
        /// Requests.
        to: Vec<RuleTo> = "to",
        /// Further conditions.
        when: Vec<Condition> = "when",
    }

    /// Callers.
    pub struct RuleFrom {
        /// All of its fields must hold.
        source: Option<Source> = "source",
    }

    /// A caller; each list is any-of, `not` is none-of. `*`, `prefix*` and `*suffix` work in names.
    pub struct Source {
        /// Identities without `spiffe://`.
        principals: Vec<String> = "principals",
        /// Other than these.
        not_principals: Vec<String> = "notPrincipals",
        /// `iss/sub` of the token.
        request_principals: Vec<String> = "requestPrincipals",
        /// Other than these.
        not_request_principals: Vec<String> = "notRequestPrincipals",
        /// Namespaces of the identity.
        namespaces: Vec<String> = "namespaces",
        /// Other than these.
        not_namespaces: Vec<String> = "notNamespaces",
        /// `namespace/account`, or `account` of the policy's namespace.
        service_accounts: Vec<String> = "serviceAccounts",
        /// Other than these.
        not_service_accounts: Vec<String> = "notServiceAccounts",
        /// Addresses or CIDRs of the connection.
        ip_blocks: Vec<String> = "ipBlocks",
        /// Other than these.
        not_ip_blocks: Vec<String> = "notIpBlocks",
        /// Addresses or CIDRs of the original client.
        remote_ip_blocks: Vec<String> = "remoteIpBlocks",
        /// Other than these.
        not_remote_ip_blocks: Vec<String> = "notRemoteIpBlocks",
        /// Trust domains of the identity.
        trust_domains: Vec<String> = "trustDomains",
        /// Other than these.
        not_trust_domains: Vec<String> = "notTrustDomains",
    }

    /// Requests.
    pub struct RuleTo {
        /// All of its fields must hold.
        operation: Option<Operation> = "operation",
    }

    /// A request; each list is any-of, `not` is none-of.
    pub struct Operation {
        /// Host header, case-insensitive.
        hosts: Vec<String> = "hosts",
        /// Other than these.
        not_hosts: Vec<String> = "notHosts",
        /// Ports of the workload.
        ports: Vec<String> = "ports",
        /// Other than these.
        not_ports: Vec<String> = "notPorts",
        methods: Vec<String> = "methods",
        /// Other than these.
        not_methods: Vec<String> = "notMethods",
        /// Paths; `{*}` is one segment, `{**}` several.
        paths: Vec<String> = "paths",
        /// Other than these.
        not_paths: Vec<String> = "notPaths",
    }

    /// A condition on an attribute.
    pub struct Condition {
        /// Attribute, for example `request.headers[user-agent]`.
        key: String = "key" [required],
        /// Any of these.
        values: Vec<String> = "values",
        /// None of these.
        not_values: Vec<String> = "notValues",
    }
}

words! {
    /// Which kind of mutual TLS.
    pub enum MutualTlsMode {
        /// What the wider scope says.
        Unset = "UNSET",
        /// None.
        Disable = "DISABLE",
        /// Plaintext too.
        Permissive = "PERMISSIVE",
        /// Nothing else.
        Strict = "STRICT",
    }

    /// Whether a token must be there.
    pub enum JwtPresence {
        /// It need not.
        Optional = "OPTIONAL",
        /// It must.
        Required = "REQUIRED",
    }

    /// What a match means.
    pub enum AuthorizationAction {
        /// Allowed, if nothing denies; with any ALLOW policy, all else is denied.
        Allow = "ALLOW",
        /// Denied.
        Deny = "DENY",
        /// Noted.
        Audit = "AUDIT",
        /// A provider decides.
        Custom = "CUSTOM",
    }
}

/// Modes by port; ports are map keys, so strings, in YAML.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
#[serde(transparent)]
pub struct PortLevelMtls(pub BTreeMap<u16, MutualTls>);

impl std::ops::Deref for PortLevelMtls {
    type Target = BTreeMap<u16, MutualTls>;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Field for PortLevelMtls {
    fn read(&mut self, value: &serde_json::Value, report: &mut Report) {
        let Some(map) = report.object(value) else {
            return;
        };
        if map.is_empty() {
            let message = format!(
                "{} in body should have at least 1 properties",
                report.path()
            );
            return report.error("MEL0110", message, "name a port, or remove the field");
        }

        for (key, value) in map {
            report.field(key, |report| {
                let mut mode = MutualTls::default();
                mode.read(value, report);
                match key.parse::<i64>().map(u16::try_from) {
                    Ok(Ok(port)) if port > 0 => {
                        self.0.insert(port, mode);
                    }
                    Ok(_) => report.error(
                        "MEL0201",
                        "port must be between 1-65535",
                        "write the workload's port number",
                    ),
                    Err(_) => report.error(
                        "MEL0201",
                        format!(
                            "type conversion error from 'string' to 'int': {:?} is not a port",
                            crate::schema::shorten(key)
                        ),
                        "write the workload's port number, not a name",
                    ),
                }
            });
        }
    }

    fn is_unset(&self) -> bool {
        self.0.is_empty()
    }
}
