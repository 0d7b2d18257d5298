//! `envoy.filters.http.jwt_authn` without the check of tokens: a request that carries a token at one
//! of the filter's places is denied, as Envoy denies a token that does not verify.
//!
//! Requests without a token pass where the filter allows that, as in Envoy. So nothing passes that
//! Envoy would refuse, and the listener serves what needs no token.

mod compile;
mod places;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

pub use self::compile::requirement_of_route;
use self::places::Places;
use crate::counter::Counter;
use crate::head::RequestHead;
use crate::http::context::RequestContext;
use crate::http::phase::Step;
use crate::reply::{Cause, LocalReply};

/// The filter.
#[derive(Debug)]
pub struct JwtAuthn {
    providers: Vec<Places>,
    /// The first rule that matches decides; without one the request passes.
    rules: Vec<Rule>,
    /// `requirement_map`, which routes name.
    named: HashMap<Box<str>, Requirement>,
    /// CORS preflights pass: browsers send them without tokens.
    bypass_preflight: bool,
    counts: Counts,
}

#[derive(Debug)]
struct Counts {
    allowed: Option<Counter>,
    denied: Option<Counter>,
    bypassed: Option<Counter>,
}

#[derive(Debug)]
struct Rule {
    path: PathRule,
    /// `None`: nothing is required.
    requirement: Option<Requirement>,
}

/// The requests of a rule.
#[derive(Debug)]
enum PathRule {
    Prefix(Box<str>),
    Exact(Box<str>),
    /// Conditions that are not read: the rule may match any request.
    Unknown,
}

/// A requirement on tokens.
#[derive(Debug, Clone)]
enum Requirement {
    /// A good token of the provider at this index.
    Provider(usize),
    /// One of these.
    Any(Vec<Requirement>),
    /// Each of these.
    All(Vec<Requirement>),
    /// No token of any provider, or a good one.
    AllowMissing,
    /// Whatever the request carries.
    Nothing,
}

/// The result of a requirement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passes,
    /// No token is where one must be.
    Missing,
    /// There is a token, and nobody can say whether it is good.
    Unverified,
}

impl JwtAuthn {
    /// Denies a request with a token, or without one that it needs. `route` names a requirement of
    /// the map.
    pub(crate) fn on_request(&self, route: Option<&str>, cx: &mut RequestContext<'_>) -> Step {
        let count = |counter: &Option<Counter>| {
            if let Some(counter) = counter {
                cx.tally.count(counter);
            }
        };

        if self.bypass_preflight && is_preflight(cx.head) {
            count(&self.counts.bypassed);
            return Step::Continue;
        }

        let outcome = match route {
            None => self.judge(cx.head),
            Some(name) => match self.named.get(name) {
                Some(requirement) => self.outcome(requirement, cx.head),
                // Envoy: "Wrong requirement_name".
                None => Outcome::Unverified,
            },
        };

        if outcome == Outcome::Passes {
            count(&self.counts.allowed);
            // A client must not pass off its own text as claims that the proxy has verified.
            for name in self.providers.iter().flat_map(Places::written_headers) {
                cx.head.remove(name);
            }
            return Step::Continue;
        }

        count(&self.counts.denied);
        reply(outcome, cx.head).into()
    }

    /// The outcome of the first rule that matches, and of those before it that may match.
    fn judge(&self, head: &RequestHead) -> Outcome {
        for rule in &self.rules {
            let is_match = match &rule.path {
                PathRule::Prefix(prefix) => Some(head.path_only().starts_with(&**prefix)),
                PathRule::Exact(path) => Some(head.path_only() == &**path),
                PathRule::Unknown => None,
            };
            if is_match == Some(false) {
                continue;
            }

            let outcome = rule
                .requirement
                .as_ref()
                .map_or(Outcome::Passes, |requirement| {
                    self.outcome(requirement, head)
                });
            if outcome != Outcome::Passes || is_match == Some(true) {
                return outcome;
            }
        }

        Outcome::Passes
    }

    fn outcome(&self, requirement: &Requirement, head: &RequestHead) -> Outcome {
        match requirement {
            Requirement::Provider(index) => match self.providers[*index].hold_token(head) {
                true => Outcome::Unverified,
                false => Outcome::Missing,
            },
            Requirement::Any(any) => {
                let mut outcomes = any.iter().map(|one| self.outcome(one, head));
                let mut worst = Outcome::Missing;
                loop {
                    match outcomes.next() {
                        None => return worst,
                        Some(Outcome::Passes) => return Outcome::Passes,
                        Some(Outcome::Unverified) => worst = Outcome::Unverified,
                        Some(Outcome::Missing) => {}
                    }
                }
            }
            Requirement::All(all) => all
                .iter()
                .map(|one| self.outcome(one, head))
                .find(|outcome| *outcome != Outcome::Passes)
                .unwrap_or(Outcome::Passes),
            Requirement::AllowMissing => {
                match self.providers.iter().any(|places| places.hold_token(head)) {
                    true => Outcome::Unverified,
                    false => Outcome::Passes,
                }
            }
            Requirement::Nothing => Outcome::Passes,
        }
    }
}

fn is_preflight(head: &RequestHead) -> bool {
    let has = |name: &str| head.get(name).is_some_and(|value| !value.is_empty());
    head.method() == "OPTIONS" && has("origin") && has("access-control-request-method")
}

/// Envoy's answer, in its words.
fn reply(outcome: Outcome, head: &RequestHead) -> LocalReply {
    let (words, details, error, cause) = match outcome {
        Outcome::Missing => (
            "Jwt is missing",
            "jwt_authn_access_denied{Jwt_is_missing}",
            "",
            "the request has no token",
        ),
        _ => (
            "Jwt verification fails",
            "jwt_authn_access_denied{Jwt_verification_fails}",
            ", error=\"invalid_token\"",
            "tokens are not checked yet, so that none is accepted",
        ),
    };
    let challenge = format!("Bearer realm=\"{}\"{error}", realm(head));

    LocalReply::new(401, words, details, Cause::Token(cause)).header("www-authenticate", challenge)
}

/// The longest path in a realm, in bytes, as in Envoy.
const MAX_REALM_PATH: usize = 256;

/// The request's URI.
fn realm(head: &RequestHead) -> String {
    let path: String = head
        .path()
        .chars()
        .scan(0, |len, c| {
            *len += c.len_utf8();
            (*len <= MAX_REALM_PATH).then_some(c)
        })
        // The realm is a quoted string (RFC 9110 §11.5).
        .filter(|c| !matches!(c, '"' | '\\'))
        .collect();

    format!("{}://{}{path}", head.scheme(), head.authority())
}
