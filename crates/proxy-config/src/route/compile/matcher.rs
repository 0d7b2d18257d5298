//! Compiling the conditions of a route.

use meltemi_filters::matcher::{
    CookieMatch, Fraction, FullRegex, HeaderMatch, MetadataMatch, PathTemplate, QueryMatch,
};
use meltemi_filters::{Rejection, Scope};
use meltemi_proto::envoy::config::route::v3 as proto;
use proto::route_match::{PathSpecifier, TlsContextMatchOptions};

use crate::convert::boolean;
use crate::route::{PathMatch, RouteMatch};

impl RouteMatch {
    pub(crate) fn compile(
        message: &proto::RouteMatch,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let proto::RouteMatch {
            case_sensitive,
            runtime_fraction,
            headers,
            query_parameters,
            cookies,
            grpc,
            tls_context,
            dynamic_metadata,
            filter_state,
            path_specifier,
        } = message;

        if !filter_state.is_empty() {
            return scope.refuse("filter_state conditions are unknown");
        }

        let TlsContextMatchOptions {
            presented,
            validated,
        } = tls_context.unwrap_or_default();

        Ok(Self {
            path: PathMatch::compile(
                path_specifier.as_ref(),
                boolean(case_sensitive.as_ref(), true),
                scope,
            )?,
            headers: HeaderMatch::compile_all("headers", headers, scope)?,
            query: scope
                .each("query_parameters", query_parameters, |scope, parameter| {
                    QueryMatch::compile(parameter, scope)
                })?
                .into(),
            cookies: scope
                .each("cookies", cookies, |scope, cookie| {
                    CookieMatch::compile(cookie, scope)
                })?
                .into(),
            metadata: scope
                .each("dynamic_metadata", dynamic_metadata, |scope, metadata| {
                    MetadataMatch::compile(metadata, scope)
                })?
                .into(),
            fraction: runtime_fraction
                .as_ref()
                .map(|fraction| Fraction::from_runtime(Some(fraction), Fraction::NONE)),
            grpc: grpc.is_some(),
            tls_presented: presented.map(|value| value.value),
            tls_validated: validated.map(|value| value.value),
        })
    }
}

impl PathMatch {
    fn compile(
        message: Option<&PathSpecifier>,
        case_sensitive: bool,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        Ok(match scope.required("path_specifier", message)? {
            PathSpecifier::Prefix(prefix) if case_sensitive => Self::Prefix(prefix.as_str().into()),
            PathSpecifier::Prefix(prefix) => Self::PrefixIgnoreCase(prefix.as_str().into()),
            PathSpecifier::Path(path) if case_sensitive => Self::Exact(path.as_str().into()),
            PathSpecifier::Path(path) => Self::ExactIgnoreCase(path.as_str().into()),
            PathSpecifier::PathSeparatedPrefix(prefix) => {
                if !prefix.starts_with('/') || prefix.ends_with('/') || prefix.contains(['?', '#'])
                {
                    return scope.refuse(format!(
                        "path_separated_prefix {prefix:?} must begin and not end with a slash"
                    ));
                }
                Self::Separated(prefix.as_str().into(), case_sensitive)
            }
            PathSpecifier::SafeRegex(regex) => {
                Self::Regex(Box::new(FullRegex::compile(regex, scope)?))
            }
            PathSpecifier::ConnectMatcher(_) => Self::Connect,
            PathSpecifier::PathMatchPolicy(policy) => {
                Self::Template(Box::new(PathTemplate::compile(policy, scope)?))
            }
        })
    }
}
