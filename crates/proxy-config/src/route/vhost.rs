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
    /// Its name; over VHDS the resource's name.
    pub name: Arc<str>,
    /// The domains, lower case: exact, `*.suffix`, `prefix.*` or `*`.
    pub domains: Vec<Box<str>>,
    /// Routes in order; the first that matches is taken.
    pub routes: Vec<Route>,
    /// Plaintext requests are redirected to HTTPS.
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

/// Whether a virtual host insists on TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RequireTls {
    /// No.
    #[default]
    No,
    /// For requests from outside.
    External,
    /// For all.
    All,
}

/// One route.
#[derive(Debug)]
pub struct Route {
    /// Its name; empty if it has none.
    pub name: Arc<str>,
    /// When it is taken.
    pub matcher: RouteMatch,
    /// What it does.
    pub target: Target,
    /// Request headers, applied after the weighted cluster's.
    pub request_headers: HeaderOps,
    /// Response headers, applied after the weighted cluster's.
    pub response_headers: HeaderOps,
    /// Filter settings of this route's requests.
    pub overrides: Overrides,
    /// Static metadata.
    pub metadata: Metadata,
    /// For metrics of this route.
    pub stat_prefix: Box<str>,
}

/// What a route does.
#[derive(Debug)]
pub enum Target {
    /// Forward.
    Forward(Box<RouteAction>),
    /// Answer with a redirect.
    Redirect(Box<Redirect>),
    /// Answer with this.
    Direct(DirectResponse),
    /// Neither; a filter must answer.
    NonForwarding,
}

/// When a route is taken: all of these.
#[derive(Debug)]
pub struct RouteMatch {
    /// The path.
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

/// The condition on the path (without query).
#[derive(Debug)]
pub enum PathMatch {
    /// It begins so.
    Prefix(Box<str>),
    /// It begins so, ASCII case aside.
    PrefixIgnoreCase(Box<str>),
    /// It is this.
    Exact(Box<str>),
    /// It is this, ASCII case aside.
    ExactIgnoreCase(Box<str>),
    /// It is this, or this and a slash and more. The flag: case matters.
    Separated(Box<str>, bool),
    /// All of it matches.
    Regex(Box<FullRegex>),
    /// A template.
    Template(Box<PathTemplate>),
    /// A CONNECT request.
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
    pub fn is_match_path(&self, path: &str) -> bool {
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

    /// How much of a matching path is replaced by a prefix rewrite.
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

        // Paths are ASCII, so every length is a boundary; be sure of it all the same.
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
    /// The path and query that the upstream is told, written to `out`; `false`: leave it.
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

    /// The action, if it forwards.
    pub fn action(&self) -> Option<&RouteAction> {
        match &self.target {
            Target::Forward(action) => Some(action),
            _ => None,
        }
    }
}
