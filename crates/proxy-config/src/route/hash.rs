//! What decides the endpoint under consistent hashing. Source: Envoy `hash_policy.cc`.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use meltemi_filters::matcher::{Substitution, cookie, query_parameter};
use meltemi_filters::{Rejection, RequestHead, Scope};
use meltemi_lb::hash::xxh64;
use meltemi_proto::envoy::config::route::v3::route_action as proto;
use smallvec::SmallVec;

use crate::convert::require_one_line;

/// One part of a request that is hashed.
#[derive(Debug)]
pub struct HashPolicy {
    source: Source,
    /// Later policies do not count where this one finds something to hash.
    terminal: bool,
}

#[derive(Debug)]
enum Source {
    Header(Box<str>, Option<Box<Substitution>>),
    Cookie(CookieSpec),
    Address,
    Query(Box<str>),
}

/// A cookie that binds a client to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CookieSpec {
    /// The cookie's name.
    pub name: Box<str>,
    /// Its attribute `Path`; none if empty.
    pub path: Box<str>,
    /// How long the client keeps a cookie that the proxy makes, zero: for the client's session;
    /// `None`: the proxy makes none.
    pub ttl: Option<Duration>,
    /// Further attributes: name and value.
    pub attributes: Vec<(Box<str>, Box<str>)>,
}

impl CookieSpec {
    /// The `set-cookie` value.
    pub fn header_value(&self, value: &str) -> String {
        let mut text = format!("{}=\"{value}\"", self.name);
        if let Some(ttl) = self.ttl.filter(|ttl| !ttl.is_zero()) {
            text.push_str(&format!("; Max-Age={}", ttl.as_secs()));
        }
        if !self.path.is_empty() {
            text.push_str(&format!("; Path={}", self.path));
        }
        for (name, value) in &self.attributes {
            match value.is_empty() {
                true => text.push_str(&format!("; {name}")),
                false => text.push_str(&format!("; {name}={value}")),
            }
        }

        text.push_str("; HttpOnly");

        text
    }
}

/// The result of hashing a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct HashOutcome<'a> {
    /// The hash; `None` where the request has nothing that a policy hashes.
    pub hash: Option<u64>,
    /// The cookie that the response must set, and its value.
    pub set_cookie: Option<(&'a CookieSpec, String)>,
}

impl HashPolicy {
    /// `None`, with a warning, for a kind of policy that this proxy does not honour.
    pub(super) fn compile(
        message: &proto::HashPolicy,
        scope: &mut Scope,
    ) -> Result<Option<Self>, Rejection> {
        use proto::hash_policy::{Cookie, Header, PolicySpecifier};

        let proto::HashPolicy {
            terminal,
            policy_specifier,
        } = message;

        if let Some(PolicySpecifier::Cookie(cookie)) = policy_specifier {
            let attributes = cookie.attributes.iter();
            let pairs = attributes.flat_map(|pair| [&pair.name, &pair.value]);
            for text in pairs.chain([&cookie.name, &cookie.path]) {
                require_one_line("cookie", text, scope)?;
            }
        }

        let source = match scope.required("policy_specifier", policy_specifier.as_ref())? {
            PolicySpecifier::Header(Header {
                header_name,
                regex_rewrite,
            }) => {
                let rewrite = match regex_rewrite {
                    Some(rewrite) => Some(Box::new(Substitution::compile(rewrite, scope)?)),
                    None => None,
                };
                Source::Header(crate::convert::header_name(header_name), rewrite)
            }
            PolicySpecifier::Cookie(Cookie {
                name,
                ttl,
                path,
                attributes,
            }) => Source::Cookie(CookieSpec {
                name: name.as_str().into(),
                path: path.as_str().into(),
                ttl: scope.duration("cookie.ttl", ttl.as_ref())?,
                attributes: attributes
                    .iter()
                    .map(|a| (a.name.as_str().into(), a.value.as_str().into()))
                    .collect(),
            }),
            PolicySpecifier::ConnectionProperties(properties) if properties.source_ip => {
                Source::Address
            }
            PolicySpecifier::ConnectionProperties(_) => return Ok(None),
            PolicySpecifier::QueryParameter(parameter) => {
                Source::Query(parameter.name.as_str().into())
            }
            PolicySpecifier::FilterState(_) => {
                scope.warn("filter_state", "not honoured by this proxy");
                return Ok(None);
            }
        };

        Ok(Some(Self {
            source,
            terminal: *terminal,
        }))
    }
}

pub(super) fn combine<'a>(
    policies: &'a [HashPolicy],
    head: &RequestHead,
    source: IpAddr,
    ends: (SocketAddr, SocketAddr),
) -> HashOutcome<'a> {
    let mut outcome = HashOutcome::default();
    for policy in policies {
        let new = match &policy.source {
            Source::Header(name, rewrite) => hash_header(head, name, rewrite.as_deref()),
            Source::Address => Some(hash_ip(source)),
            Source::Query(name) => head
                .query()
                .and_then(|query| query_parameter(query, name))
                .map(|value| xxh64(value.as_bytes(), 0)),
            Source::Cookie(spec) => {
                match cookie(head, &spec.name).filter(|value| !value.is_empty()) {
                    Some(value) => Some(xxh64(value, 0)),
                    None if spec.ttl.is_some() => {
                        // All requests of a connection get the same value, so that a client that
                        // keeps no cookies stays at its endpoint.
                        let value = format!(
                            "{:016x}",
                            xxh64(format!("{}{}", ends.0, ends.1).as_bytes(), 0)
                        );
                        let hash = xxh64(value.as_bytes(), 0);
                        outcome.set_cookie = Some((spec, value));
                        Some(hash)
                    }
                    None => None,
                }
            }
        };

        if let Some(new) = new {
            // Without the rotation two equal policies would cancel each other out.
            outcome.hash = Some(outcome.hash.map_or(0, |old| old.rotate_left(1)) ^ new);
        }

        if policy.terminal && outcome.hash.is_some() {
            break;
        }
    }

    outcome
}

fn hash_header(head: &RequestHead, name: &str, rewrite: Option<&Substitution>) -> Option<u64> {
    let mut values: SmallVec<[&[u8]; 4]> = head.get_all(name).collect();
    if values.is_empty() {
        return None;
    }

    // Proxies may reorder field lines of one name; the hash must not change with their order.
    values.sort_unstable();
    let mut rewritten = Vec::new();

    Some(values.iter().fold(0, |seed, value| {
        rewritten.clear();
        let value = match rewrite {
            Some(rewrite) if rewrite.replace_into(value, &mut rewritten) => &rewritten,
            _ => *value,
        };
        xxh64(value, seed)
    }))
}

/// The hash of an address as text, as Envoy hashes it.
fn hash_ip(address: IpAddr) -> u64 {
    let mut text = [0u8; 64];
    let mut rest = text.as_mut_slice();
    // An address is at most 45 characters.
    let _ = write!(rest, "{address}");
    let free = rest.len();
    let used = text.len() - free;
    xxh64(&text[..used], 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::hash_policy::{ConnectionProperties, Cookie, Header, PolicySpecifier};

    fn compile(specifiers: Vec<(PolicySpecifier, bool)>) -> Vec<HashPolicy> {
        let compile = |(specifier, terminal)| {
            let message = proto::HashPolicy {
                terminal,
                policy_specifier: Some(specifier),
            };
            HashPolicy::compile(&message, &mut Scope::new())
                .expect("compiles")
                .expect("honoured")
        };

        specifiers.into_iter().map(compile).collect()
    }

    fn header(name: &str) -> PolicySpecifier {
        PolicySpecifier::Header(Header {
            header_name: name.into(),
            regex_rewrite: None,
        })
    }

    const IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const ENDS: (SocketAddr, SocketAddr) = (SocketAddr::new(IP, 4711), SocketAddr::new(IP, 80));

    #[test]
    fn equal_policies_do_not_cancel_out() {
        let mut head = RequestHead::of("GET", "h", "/");
        head.append("x-user", b"ann");
        let once = combine(&compile(vec![(header("x-user"), false)]), &head, IP, ENDS).hash;
        assert_eq!(once, Some(xxh64(b"ann", 0)));
        let twice = combine(
            &compile(vec![(header("X-User"), false), (header("x-user"), false)]),
            &head,
            IP,
            ENDS,
        )
        .hash;

        assert!(twice.is_some_and(|hash| hash != 0) && twice != once);
    }

    #[test]
    fn a_terminal_policy_that_hits_ends_it() {
        let source =
            PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true });
        let policies = compile(vec![(header("x-user"), true), (source, false)]);
        let mut head = RequestHead::of("GET", "h", "/");
        assert_eq!(
            combine(&policies, &head, IP, ENDS).hash,
            Some(xxh64(b"10.0.0.1", 0))
        );

        head.append("x-user", b"ann");
        assert_eq!(
            combine(&policies, &head, IP, ENDS).hash,
            Some(xxh64(b"ann", 0))
        );
    }

    #[test]
    fn a_missing_cookie_is_made() {
        let spec = Cookie {
            name: "s".into(),
            ttl: Some(Default::default()),
            path: "/p".into(),
            attributes: vec![],
        };

        let policies = compile(vec![(PolicySpecifier::Cookie(spec), false)]);
        let mut head = RequestHead::of("GET", "h", "/");
        let outcome = combine(&policies, &head, IP, ENDS);
        let (spec, value) = outcome.set_cookie.expect("made");
        let wanted = format!(
            "s=\"{:016x}\"; Path=/p; HttpOnly",
            xxh64(b"10.0.0.1:471110.0.0.1:80", 0)
        );

        assert_eq!(spec.header_value(&value), wanted);
        let other = (SocketAddr::new(IP, 4712), ENDS.1);
        assert_ne!(
            combine(&policies, &head, IP, other).hash,
            outcome.hash,
            "another connection, another cookie"
        );

        head.append("cookie", format!("s={value}").as_bytes());
        assert_eq!(
            combine(&policies, &head, IP, other).hash,
            outcome.hash,
            "the cookie leads to the same endpoint"
        );
    }
}
