//! Virtual hosts and their routes.

use std::sync::Arc;

use meltemi_filters::RequestHead;
use meltemi_filters::http::Overrides;
use meltemi_filters::matcher::{
    CookieMatch, Fraction, FullRegex, HeaderMatch, MetadataMatch, PathTemplate, QueryMatch,
};
use meltemi_filters::metadata::Metadata;

use super::{DirectResponse, HeaderOps, Redirect, RouteAction, RouteContext};

/// A virtual host: domains and the routes below them.
#[derive(Debug)]
pub struct VirtualHost {
    /// Its name, for causes and metrics.
    pub name: Arc<str>,
    /// The domains, lower case: exact, `*.suffix`, `prefix.*` or `*`.
    pub domains: Vec<Box<str>>,
    /// Routes in order; the first that matches is taken.
    pub routes: Vec<Route>,
    /// Which plaintext requests are redirected to HTTPS.
    pub requires_tls: RequireTls,
    /// Request headers, applied after the route's.
    pub request_headers: HeaderOps,
    /// Response headers, applied after the route's.
    pub response_headers: HeaderOps,
    /// Filter settings of this host's requests.
    pub overrides: Overrides,
    /// Static metadata.
    pub metadata: Metadata,
}

/// Which plaintext requests a virtual host redirects to HTTPS. Source: Envoy `require_tls`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RequireTls {
    /// None.
    #[default]
    No,
    /// Requests from outside the mesh.
    External,
    /// All of them.
    All,
}

/// One route.
#[derive(Debug)]
pub struct Route {
    /// Its name; empty if it has none.
    pub name: Arc<str>,
    /// The conditions that a request must meet.
    pub matcher: RouteMatch,
    /// The action for a request that matches.
    pub target: Target,
    /// Request headers, applied after the weighted cluster's.
    pub request_headers: HeaderOps,
    /// Response headers, applied after the weighted cluster's.
    pub response_headers: HeaderOps,
    /// Filter settings of this route's requests.
    pub overrides: Overrides,
    /// Static metadata.
    pub metadata: Metadata,
    /// The name of the operation, where other proxies are told it. Source: Envoy `decorator`.
    pub operation: Option<Arc<str>>,
}

/// What a route does with a request.
#[derive(Debug)]
pub enum Target {
    /// Forwards it.
    Forward(Box<RouteAction>),
    /// Answers with a redirect.
    Redirect(Box<Redirect>),
    /// Answers with a response from the configuration.
    Direct(DirectResponse),
    /// Does nothing: a filter must answer.
    NonForwarding,
}

/// The conditions of a route. A request takes the route if it meets all of them.
#[derive(Debug)]
pub struct RouteMatch {
    /// The condition on the path.
    pub path: PathMatch,
    pub(crate) headers: Box<[HeaderMatch]>,
    pub(crate) query: Box<[QueryMatch]>,
    pub(crate) cookies: Box<[CookieMatch]>,
    pub(crate) metadata: Box<[MetadataMatch]>,
    pub(crate) fraction: Option<Fraction>,
    pub(crate) grpc: bool,
    pub(crate) tls_presented: Option<bool>,
    pub(crate) tls_validated: Option<bool>,
}

/// The condition on a request's path, without its query.
#[derive(Debug)]
pub enum PathMatch {
    /// The path begins with this.
    Prefix(Box<str>),
    /// The path begins with this; ASCII case does not matter.
    PrefixIgnoreCase(Box<str>),
    /// The path equals this.
    Exact(Box<str>),
    /// The path equals this; ASCII case does not matter.
    ExactIgnoreCase(Box<str>),
    /// The path equals this, or begins with this and a slash. The flag says whether case matters.
    Separated(Box<str>, bool),
    /// A pattern matches the whole path.
    Regex(Box<FullRegex>),
    /// A template matches the path.
    Template(Box<PathTemplate>),
    /// The request is a CONNECT, whatever its path.
    Connect,
}

impl PathMatch {
    /// Whether the request's path matches.
    pub fn is_match(&self, head: &RequestHead) -> bool {
        match self {
            Self::Connect => head.method() == "CONNECT",
            // A CONNECT without path (RFC 9110 §9.3.6) belongs to connect_matcher alone.
            _ if head.path().is_empty() => false,
            _ => self.is_match_path(head.path_only()),
        }
    }

    /// Whether a path without query matches.
    fn is_match_path(&self, path: &str) -> bool {
        match self {
            Self::Prefix(prefix) => path.starts_with(&**prefix),
            Self::PrefixIgnoreCase(prefix) => starts_with_ignore_case(path, prefix),
            Self::Exact(exact) => path == &**exact,
            Self::ExactIgnoreCase(exact) => path.eq_ignore_ascii_case(exact),
            Self::Separated(prefix, case) => {
                let begins = if *case {
                    path.starts_with(&**prefix)
                } else {
                    starts_with_ignore_case(path, prefix)
                };
                begins && matches!(path.as_bytes().get(prefix.len()), None | Some(b'/'))
            }
            Self::Regex(regex) => regex.is_match(path.as_bytes()),
            Self::Template(template) => template.is_match(path),
            Self::Connect => false,
        }
    }

    /// The length of the part of a matching path that a prefix rewrite replaces.
    pub(crate) fn matched_length(&self, path: &str) -> usize {
        let length = match self {
            Self::Prefix(prefix) | Self::PrefixIgnoreCase(prefix) | Self::Separated(prefix, _) => {
                prefix.len()
            }
            Self::Exact(_) | Self::ExactIgnoreCase(_) | Self::Regex(_) | Self::Template(_) => {
                path.len()
            }
            Self::Connect => 0,
        };

        // Paths are ASCII, so every length is a boundary. A path that is not must not panic.
        if path.is_char_boundary(length.min(path.len())) {
            length.min(path.len())
        } else {
            0
        }
    }
}

fn starts_with_ignore_case(path: &str, prefix: &str) -> bool {
    path.as_bytes()
        .get(..prefix.len())
        .is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes()))
}

impl RouteMatch {
    /// Whether the request takes this route.
    pub fn is_match(&self, head: &RequestHead, context: &RouteContext<'_>) -> bool {
        self.path.is_match(head)
            && self.headers.iter().all(|matcher| matcher.is_match(head))
            && (self.query.is_empty() || {
                let query = head.query();
                self.query.iter().all(|matcher| matcher.is_match(query))
            })
            && (!self.grpc || head.is_grpc())
            && self
                .fraction
                .is_none_or(|fraction| fraction.hits(context.random))
            && self.cookies.iter().all(|matcher| matcher.is_match(head))
            && self
                .metadata
                .iter()
                .all(|matcher| matcher.is_match(context.metadata))
            && self.is_match_tls(context)
    }

    fn is_match_tls(&self, context: &RouteContext<'_>) -> bool {
        if self.tls_presented.is_none() && self.tls_validated.is_none() {
            return true;
        }
        let Some(tls) = context.conn.and_then(|conn| conn.tls.as_deref()) else {
            return false;
        };
        self.tls_presented
            .is_none_or(|wanted| tls.presented == wanted)
            && self
                .tls_validated
                .is_none_or(|wanted| tls.validated == wanted)
    }
}

impl Route {
    /// Writes the rewritten path and the query to `out`, and returns whether there is a rewritten
    /// path: else the request's own stays.
    pub fn rewrite_path(&self, head: &RequestHead, out: &mut Vec<u8>) -> bool {
        let Target::Forward(action) = &self.target else {
            return false;
        };
        let Some(rewrite) = &action.path_rewrite else {
            return false;
        };
        let path = head.path_only();
        match rewrite {
            super::PathRewrite::Prefix(prefix) => {
                out.extend_from_slice(prefix.as_bytes());
                out.extend_from_slice(&path.as_bytes()[self.matcher.path.matched_length(path)..]);
            }
            super::PathRewrite::Regex(substitution) => {
                if !substitution.replace_into(path.as_bytes(), out) {
                    return false;
                }
            }
            super::PathRewrite::Full(full) => out.extend_from_slice(full.as_bytes()),
        }

        if let Some(query) = head.query() {
            out.push(b'?');
            out.extend_from_slice(query.as_bytes());
        }

        true
    }
}
