//! Authorization: `envoy.filters.http.rbac` and `envoy.filters.network.rbac`, on one engine.
//!
//! An unknown condition in a policy refuses the resource: without the condition the policy would
//! let more pass. The lines of a repeated header are matched one by one, in the direction that
//! refuses.

mod compile;
mod engine;

use std::net::SocketAddr;
use std::sync::Arc;

use crate::conn::ConnInfo;
use crate::counter::{Counter, Tally};
use crate::head::RequestHead;
use crate::http::context::RequestContext;
use crate::http::phase::Step;
use crate::matcher::{Cidr, HeaderMatch, MetadataMatch, PathTemplate, StringMatch};
use crate::metadata::{Metadata, Value};
use crate::reply::{Cause, LocalReply};

/// The rules of a filter: those that are enforced, and shadow rules without effect on the request.
#[derive(Debug, Clone, Default)]
pub struct Rbac {
    /// `None`: everything is allowed.
    pub rules: Option<Rules>,
    /// Rules whose result is only recorded (dry run).
    pub shadow_rules: Option<Rules>,
    /// Prefix of the shadow rules' results in dynamic metadata.
    pub shadow_stat_prefix: Box<str>,
    counts: Counts,
}

/// The counters of a filter; those that there is no room for are `None`.
#[derive(Debug, Clone, Default)]
struct Counts {
    allowed: Option<Counter>,
    denied: Option<Counter>,
    shadow_allowed: Option<Counter>,
    shadow_denied: Option<Counter>,
}

/// An action, and the policies whose match triggers it, in order of their names.
#[derive(Debug, Clone)]
pub struct Rules {
    /// What a match means.
    pub action: Action,
    policies: Vec<Policy>,
}

/// What a match means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A request passes only if a policy matches.
    Allow,
    /// A request is refused if a policy matches.
    Deny,
    /// Every request passes; a match sets `access_log_hint` for access logs.
    Log,
}

#[derive(Debug, Clone)]
struct Policy {
    id: Arc<str>,
    /// One of these must match.
    permissions: Vec<Condition>,
    /// One of these must match as well.
    principals: Vec<Condition>,
}

/// One condition of a permission or a principal.
#[derive(Debug, Clone)]
enum Condition {
    Constant(bool),
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Not(Box<Condition>),
    Header(HeaderMatch),
    Path(StringMatch),
    PathTemplate(PathTemplate),
    DestinationIp(Cidr),
    /// A port from the first to below the second.
    DestinationPort(u32, u32),
    ServerName(StringMatch),
    Metadata(MetadataMatch),
    RouteMetadata(MetadataMatch),
    /// A peer with a certificate of which a name matches; any TLS peer if `None`.
    Authenticated(Option<StringMatch>),
    /// A peer whose certificate was verified, and of which a name of the kind matches.
    Validated(Option<(NameKind, StringMatch)>),
    /// The address of the connection's client (PROXY protocol).
    SourceIp(Cidr),
    /// The other end of the socket.
    DirectRemoteIp(Cidr),
    /// The client of the request (`x-forwarded-for`).
    RemoteIp(Cidr),
}

/// A kind of name in a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NameKind {
    Uri,
    Dns,
}

/// The facts that policies are matched against.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub conn: &'a ConnInfo,
    /// The client of this request, or of the connection.
    pub remote: SocketAddr,
    /// The request; `None` on connections, where conditions on requests do not match.
    pub head: Option<&'a RequestHead>,
    /// Dynamic metadata that earlier filters have set.
    pub metadata: &'a Metadata,
    /// The route's static metadata.
    pub route_metadata: Option<&'a Metadata>,
}

/// The result of one set of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the request or connection may pass.
    pub allowed: bool,
    /// The policy that matched.
    pub policy: Option<Arc<str>>,
}

/// The metadata that results of shadow rules go to, of requests.
const METADATA_NAMESPACE: &str = "envoy.filters.http.rbac";
/// The same, of connections.
const CONNECTION_NAMESPACE: &str = "envoy.filters.network.rbac";
/// The metadata that results of LOG go to.
const LOG_NAMESPACE: &str = "envoy.common";

impl Rbac {
    /// Judges the enforced rules.
    pub fn enforce(&self, facts: &Facts<'_>) -> Verdict {
        match &self.rules {
            Some(rules) => rules.judge(facts),
            None => Verdict {
                allowed: true,
                policy: None,
            },
        }
    }

    /// Judges the shadow rules, if there are any.
    pub fn shadow(&self, facts: &Facts<'_>) -> Option<Verdict> {
        self.shadow_rules.as_ref().map(|rules| rules.judge(facts))
    }

    /// Judges a connection, and counts the results.
    pub fn on_connection(&self, facts: &Facts<'_>, tally: &Tally) -> Verdict {
        if let Some(shadow) = self.shadow(facts) {
            self.count_shadow(&shadow, tally);
        }

        let verdict = self.enforce(facts);
        if self.rules.is_some() {
            self.count(&verdict, tally);
        }

        verdict
    }

    fn count(&self, verdict: &Verdict, tally: &Tally) {
        let Counts {
            allowed, denied, ..
        } = &self.counts;
        let counter = if verdict.allowed { allowed } else { denied };
        counter.iter().for_each(|counter| tally.count(counter));
    }

    fn count_shadow(&self, verdict: &Verdict, tally: &Tally) {
        let Counts {
            shadow_allowed,
            shadow_denied,
            ..
        } = &self.counts;
        let counter = match verdict.allowed {
            true => shadow_allowed,
            false => shadow_denied,
        };
        counter.iter().for_each(|counter| tally.count(counter));
    }

    /// Judges a request. Results of shadow rules and of LOG go into dynamic metadata.
    pub(crate) fn on_request(&self, cx: &mut RequestContext<'_>) -> Step {
        let facts = Facts {
            conn: cx.conn,
            remote: cx.remote,
            head: Some(cx.head),
            metadata: &cx.state.metadata,
            route_metadata: cx.route_metadata,
        };
        let shadow = self.shadow(&facts);
        let enforced = self.rules.as_ref().map(|rules| rules.judge(&facts));

        if let Some(verdict) = shadow {
            self.count_shadow(&verdict, cx.tally);
            self.note_shadow(verdict, METADATA_NAMESPACE, &mut cx.state.metadata);
        }

        let (Some(rules), Some(verdict)) = (&self.rules, enforced) else {
            return Step::Continue;
        };
        if rules.action == Action::Log {
            let hit = Value::Bool(verdict.policy.is_some());
            cx.state.metadata.set(LOG_NAMESPACE, "access_log_hint", hit);
        }

        self.count(&verdict, cx.tally);
        match verdict.allowed {
            true => Step::Continue,
            false => verdict.into_reply().into(),
        }
    }

    /// Records the result of the shadow rules on a connection in dynamic metadata.
    pub fn note_connection(&self, conn: &ConnInfo, metadata: &mut Metadata) {
        let facts = Facts {
            conn,
            remote: conn.remote,
            head: None,
            metadata,
            route_metadata: None,
        };
        if let Some(verdict) = self.shadow(&facts) {
            self.note_shadow(verdict, CONNECTION_NAMESPACE, metadata);
        }
    }

    /// Records the result of the shadow rules in dynamic metadata, for logs and later filters:
    /// Istio enables external authorization by it.
    fn note_shadow(&self, verdict: Verdict, namespace: &str, metadata: &mut Metadata) {
        let prefix = &self.shadow_stat_prefix;
        if let Some(policy) = verdict.policy {
            let key = format!("{prefix}shadow_effective_policy_id");
            metadata.set(namespace, &key, Value::String(policy));
        }

        let key = format!("{prefix}shadow_engine_result");
        let result = Value::string(if verdict.allowed { "allowed" } else { "denied" });
        metadata.set(namespace, &key, result);
    }
}

impl Verdict {
    /// `%RESPONSE_CODE_DETAILS%` of a refused request, `%CONNECTION_TERMINATION_DETAILS%` of a
    /// refused connection.
    pub fn details(&self) -> String {
        let policy = self.policy.as_deref().unwrap_or("none");
        // Logs are split at white space.
        let policy: String = policy
            .chars()
            .map(|c| if c.is_whitespace() { '_' } else { c })
            .collect();
        format!("rbac_access_denied_matched_policy[{policy}]")
    }

    /// What caused the refusal.
    pub fn cause(&self) -> Cause {
        Cause::Policy(self.policy.clone())
    }

    /// The answer to a refused request.
    pub fn into_reply(self) -> LocalReply {
        let details = self.details();
        let cause = Cause::Policy(self.policy);

        // Envoy sets no flag here.
        LocalReply::new(403, "RBAC: access denied", details, cause)
    }
}

#[cfg(test)]
mod tests;
