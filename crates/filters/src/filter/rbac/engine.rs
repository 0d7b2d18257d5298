//! Matches policies against a request or connection.

use super::{Action, Condition, Facts, NameKind, Policy, Rules, Verdict};
use crate::matcher::Judge;

impl Rules {
    /// Matches the policies in order of their names; the verdict names the first that matches.
    pub fn judge(&self, facts: &Facts<'_>) -> Verdict {
        // A repeated header must not evade a policy: one line is enough to match a DENY, an ALLOW
        // needs all of them.
        let judge = if self.action == Action::Allow {
            Judge::All
        } else {
            Judge::Any
        };

        let matched = self
            .policies
            .iter()
            .find(|policy| policy.matches(facts, judge));

        Verdict {
            allowed: match self.action {
                Action::Allow => matched.is_some(),
                Action::Deny => matched.is_none(),
                Action::Log => true,
            },
            policy: matched.map(|policy| policy.id.clone()),
        }
    }
}

impl Policy {
    fn matches(&self, facts: &Facts<'_>, judge: Judge) -> bool {
        self.permissions
            .iter()
            .any(|permission| permission.matches(facts, judge))
            && self
                .principals
                .iter()
                .any(|principal| principal.matches(facts, judge))
    }
}

impl Condition {
    fn matches(&self, facts: &Facts<'_>, judge: Judge) -> bool {
        match self {
            Self::Constant(value) => *value,
            Self::All(all) => all.iter().all(|condition| condition.matches(facts, judge)),
            Self::Any(any) => any.iter().any(|condition| condition.matches(facts, judge)),
            Self::Not(condition) => !condition.matches(facts, judge.flipped()),
            Self::Header(matcher) => facts
                .head
                .is_some_and(|head| matcher.is_match_judged(head, judge)),
            Self::Path(matcher) => facts
                .head
                .is_some_and(|head| matcher.is_match(head.path_only().as_bytes())),
            Self::PathTemplate(template) => facts
                .head
                .is_some_and(|head| template.is_match(head.path_only())),
            Self::DestinationIp(range) => range.contains(facts.conn.local.ip()),
            Self::DestinationPort(start, end) => {
                (*start..*end).contains(&u32::from(facts.conn.local.port()))
            }
            Self::ServerName(matcher) => matcher.is_match(
                facts
                    .conn
                    .server_name
                    .as_deref()
                    .unwrap_or_default()
                    .as_bytes(),
            ),
            Self::Metadata(matcher) => matcher.is_match(facts.metadata),
            Self::RouteMetadata(matcher) => facts
                .route_metadata
                .is_some_and(|metadata| matcher.is_match(metadata)),
            Self::SourceIp(range) => range.contains(facts.conn.remote.ip()),
            Self::DirectRemoteIp(range) => range.contains(facts.conn.direct_remote.ip()),
            Self::RemoteIp(range) => range.contains(facts.remote.ip()),
            Self::Authenticated(matcher) => {
                let Some(peer) = facts.conn.tls.as_deref() else {
                    return false;
                };
                let Some(matcher) = matcher else { return true };

                // Envoy: URI names, then DNS names, then the subject.
                peer.uri_sans
                    .iter()
                    .chain(&peer.dns_sans)
                    .any(|name| matcher.is_match(name.as_bytes()))
                    || matcher.is_match(peer.subject.as_bytes())
            }
            Self::Validated(matcher) => {
                let Some(peer) = facts.conn.tls.as_deref().filter(|peer| peer.validated) else {
                    return false;
                };
                let Some((kind, matcher)) = matcher else {
                    return true;
                };
                let names = match kind {
                    NameKind::Uri => &peer.uri_sans,
                    NameKind::Dns => &peer.dns_sans,
                };

                names.iter().any(|name| matcher.is_match(name.as_bytes()))
            }
        }
    }
}
