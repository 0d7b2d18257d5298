//! Routes that the proxy answers itself.

use meltemi_filters::matcher::Substitution;
use meltemi_filters::{Rejection, RequestHead, Scope};
use meltemi_proto::envoy::config::core::v3::data_source::Specifier;
use meltemi_proto::envoy::config::route::v3 as proto;
use proto::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};

use super::PathMatch;
use crate::convert::{non_empty, not_honoured, require_one_line};

/// `RedirectAction`, compiled.
#[derive(Debug)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    scheme: Option<Box<str>>,
    host: Option<Box<str>>,
    port: Option<u16>,
    path: RedirectPath,
    strip_query: bool,
}

/// The path of a redirect's `location`.
#[derive(Debug)]
enum RedirectPath {
    Keep,
    /// May come with a query, which then replaces the request's.
    Full(Box<str>),
    Prefix(Box<str>),
    Regex(Box<Substitution>),
}

/// `DirectResponseAction`, compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectResponse {
    pub status: u16,
    pub body: bytes::Bytes,
}

impl Redirect {
    pub(super) fn compile(
        message: &proto::RedirectAction,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let proto::RedirectAction {
            host_redirect,
            port_redirect,
            response_code,
            strip_query,
            scheme_rewrite_specifier,
            path_rewrite_specifier,
        } = message;

        require_one_line("host_redirect", host_redirect, scope)?;
        match path_rewrite_specifier {
            Some(
                PathRewriteSpecifier::PathRedirect(text)
                | PathRewriteSpecifier::PrefixRewrite(text),
            ) => require_one_line("path", text, scope)?,
            Some(PathRewriteSpecifier::RegexRewrite(rewrite)) => {
                require_one_line("regex_rewrite", &rewrite.substitution, scope)?;
            }
            Some(PathRewriteSpecifier::PathRewrite(_)) | None => {}
        }
        if let Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) = scheme_rewrite_specifier {
            require_one_line("scheme_redirect", scheme, scope)?;
        }

        let status = match RedirectResponseCode::try_from(*response_code) {
            Ok(RedirectResponseCode::MovedPermanently) => 301,
            Ok(RedirectResponseCode::Found) => 302,
            Ok(RedirectResponseCode::SeeOther) => 303,
            Ok(RedirectResponseCode::TemporaryRedirect) => 307,
            Ok(RedirectResponseCode::PermanentRedirect) => 308,
            Err(_) => {
                return scope.refuse(format!("unknown response_code {response_code}"));
            }
        };

        let scheme = match scheme_rewrite_specifier {
            Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".into()),
            Some(SchemeRewriteSpecifier::HttpsRedirect(false)) | None => None,
            Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => Some(scheme.as_str().into()),
        };

        let path = match path_rewrite_specifier {
            None => RedirectPath::Keep,
            Some(PathRewriteSpecifier::PathRedirect(path)) if path.is_empty() => RedirectPath::Keep,
            Some(PathRewriteSpecifier::PathRedirect(path)) => {
                RedirectPath::Full(path.as_str().into())
            }
            Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
                RedirectPath::Prefix(prefix.as_str().into())
            }
            Some(PathRewriteSpecifier::RegexRewrite(rewrite)) => {
                RedirectPath::Regex(Box::new(Substitution::compile(rewrite, scope)?))
            }
            Some(PathRewriteSpecifier::PathRewrite(_)) => {
                return scope.refuse("path_rewrite with formatters is unknown");
            }
        };

        Ok(Self {
            status,
            scheme,
            host: non_empty(host_redirect),
            port: match *port_redirect {
                0 => None,
                port => Some(
                    u16::try_from(port)
                        .map_err(|_| scope.reject(format!("{port} is not a port")))?,
                ),
            },
            path,
            strip_query: *strip_query,
        })
    }

    /// The `location` header of the redirect. A prefix rewrite replaces the part of the path that
    /// `matched`, the route's condition, stands for.
    pub fn location(&self, head: &RequestHead, matched: &PathMatch) -> String {
        let original = head.scheme();
        let scheme = self.scheme.as_deref().unwrap_or(original);
        let (host, own_port) = split_port(head.authority());
        let mut location = String::with_capacity(64);

        location.push_str(scheme);
        location.push_str("://");
        location.push_str(self.host.as_deref().unwrap_or(host));
        match (self.port, own_port) {
            (Some(port), _) => push_port(&mut location, scheme, port),
            // A new host brings its own port. Where only the scheme changes, the default port of
            // the old scheme must not stay.
            (None, Some(port)) if self.host.is_none() => match (self.scheme.as_deref(), port) {
                (Some("https"), 80) | (Some("http"), 443) => {}
                _ => location.push_str(&format!(":{port}")),
            },
            _ => {}
        }

        let path = head.path_only();
        let mut replaced = Vec::new();
        let new_path: std::borrow::Cow<'_, str> = match &self.path {
            RedirectPath::Keep => path.into(),
            RedirectPath::Full(full) => (&**full).into(),
            RedirectPath::Prefix(prefix) => {
                format!("{prefix}{}", &path[matched.matched_length(path)..]).into()
            }
            RedirectPath::Regex(rewrite) => {
                match rewrite.replace_into(path.as_bytes(), &mut replaced) {
                    true => String::from_utf8_lossy(&replaced),
                    false => path.into(),
                }
            }
        };

        let has_query = new_path.contains('?');
        if !new_path.starts_with('/') {
            location.push('/');
        }
        location.push_str(&new_path);
        if let Some(query) = head.query().filter(|_| !self.strip_query && !has_query) {
            location.push('?');
            location.push_str(query);
        }

        location
    }
}

fn push_port(location: &mut String, scheme: &str, port: u16) {
    if !matches!((scheme, port), ("http", 80) | ("https", 443)) {
        location.push_str(&format!(":{port}"));
    }
}

/// Host and port of an authority; an IPv6 address keeps its brackets.
pub(crate) fn split_port(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        // A colon within brackets is none of a port.
        Some((host, port))
            if !port.contains(']') && (!host.contains(':') || host.ends_with(']')) =>
        {
            match port.bytes().all(|byte| byte.is_ascii_digit()) && !port.is_empty() {
                true => (host, port.parse().ok()),
                false => (authority, None),
            }
        }
        _ => (authority, None),
    }
}

impl DirectResponse {
    /// Files are not read: the body must stand in the configuration, in at most `limit` bytes.
    pub(super) fn compile(
        message: &proto::DirectResponseAction,
        limit: usize,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let proto::DirectResponseAction {
            status,
            body,
            body_format,
        } = message;
        not_honoured!(scope, body_format);

        let status = u16::try_from(*status)
            .ok()
            .filter(|status| (200..600).contains(status))
            .ok_or_else(|| scope.reject(format!("{status} is not a status")))?;

        let body = match body.as_ref().and_then(|body| body.specifier.as_ref()) {
            None => bytes::Bytes::new(),
            Some(Specifier::InlineBytes(bytes)) => bytes.clone().into(),
            Some(Specifier::InlineString(text)) => text.clone().into(),
            Some(Specifier::Filename(_) | Specifier::EnvironmentVariable(_)) => {
                return scope
                    .refuse("a direct response takes its body from the configuration only");
            }
        };

        if body.len() > limit {
            return scope.refuse(format!(
                "direct response of {} bytes is longer than {limit}",
                body.len()
            ));
        }

        Ok(Self { status, body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirect(message: proto::RedirectAction) -> Redirect {
        Redirect::compile(&message, &mut Scope::new()).expect("compiles")
    }

    #[test]
    fn https_redirect_drops_the_default_port_only() {
        let message = proto::RedirectAction {
            scheme_rewrite_specifier: Some(SchemeRewriteSpecifier::HttpsRedirect(true)),
            ..Default::default()
        };

        let redirect = redirect(message);
        let any = PathMatch::Prefix("/".into());
        let location =
            |authority| redirect.location(&RequestHead::of("GET", authority, "/a?b=c"), &any);
        assert_eq!(location("example.com"), "https://example.com/a?b=c");
        assert_eq!(location("example.com:80"), "https://example.com/a?b=c");
        assert_eq!(
            location("example.com:8080"),
            "https://example.com:8080/a?b=c"
        );

        assert_eq!(location("[::1]:8080"), "https://[::1]:8080/a?b=c");
        assert_eq!(location("[::1]"), "https://[::1]/a?b=c");
    }

    #[test]
    fn prefix_and_path_are_rewritten() {
        let message = proto::RedirectAction {
            host_redirect: "other".into(),
            port_redirect: 8443,
            response_code: RedirectResponseCode::PermanentRedirect as i32,
            path_rewrite_specifier: Some(PathRewriteSpecifier::PrefixRewrite("/new".into())),
            strip_query: true,
            ..Default::default()
        };

        let redirect = redirect(message);
        assert_eq!(redirect.status, 308);
        let location = redirect.location(
            &RequestHead::of("GET", "h:1", "/old/x?q"),
            &PathMatch::Prefix("/old".into()),
        );

        assert_eq!(location, "http://other:8443/new/x");
    }
}
