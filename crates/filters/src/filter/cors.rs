//! Cross-origin requests: `envoy.filters.http.cors`, whose policy is the route's.

use bytes::Bytes;
use meltemi_proto::envoy::config::route::v3 as route;
use meltemi_proto::envoy::extensions::filters::http::cors::v3 as filter;
use meltemi_proto::google::protobuf::BoolValue;

use crate::finding::{Rejection, Scope};
use crate::http::context::{RequestContext, ResponseContext};
use crate::http::phase::Step;
use crate::matcher::{Fraction, StringMatch};
use crate::reply::{Cause, LocalReply};

/// The origins that may read responses, and the methods and headers that they may send.
#[derive(Debug, Clone)]
pub struct CorsPolicy {
    origins: Vec<StringMatch>,
    methods: Box<str>,
    headers: Box<str>,
    expose: Box<str>,
    max_age: Box<str>,
    credentials: bool,
    private_network: bool,
    /// Preflights from other origins go to the upstream; else they are answered without
    /// permissions.
    forward_unmatched: bool,
    enabled: Fraction,
}

/// Kept for a cross-origin request from an origin that is allowed.
struct AllowedOrigin(Bytes);

/// What a preflight is told. For `*` it is what it asked for: with credentials a browser reads `*` as
/// a name, and never as `authorization` (Fetch, "CORS-preflight fetch").
fn allowed<'a>(configured: &'a str, asked: Option<&'a [u8]>) -> &'a [u8] {
    match asked {
        Some(asked) if configured == "*" => asked,
        _ => configured.as_bytes(),
    }
}

impl CorsPolicy {
    /// Compiles the filter's message for a route.
    pub fn compile(message: &filter::CorsPolicy, scope: &mut Scope) -> Result<Self, Rejection> {
        let filter::CorsPolicy {
            allow_origin_string_match,
            allow_methods,
            allow_headers,
            expose_headers,
            max_age,
            allow_credentials,
            filter_enabled,
            shadow_enabled,
            allow_private_network_access,
            forward_not_matching_preflights,
        } = message;
        scope.unsupported("shadow_enabled", shadow_enabled.is_some());

        let is_on = |value: &Option<BoolValue>| value.as_ref().is_some_and(|on| on.value);
        Ok(Self {
            origins: scope.each(
                "allow_origin_string_match",
                allow_origin_string_match,
                |scope, origin| StringMatch::compile(origin, scope),
            )?,
            methods: allow_methods.as_str().into(),
            headers: allow_headers.as_str().into(),
            expose: expose_headers.as_str().into(),
            max_age: max_age.as_str().into(),
            credentials: is_on(allow_credentials),
            private_network: is_on(allow_private_network_access),
            forward_unmatched: forward_not_matching_preflights.is_none_or(|on| on.value),
            enabled: Fraction::from_runtime(filter_enabled.as_ref(), Fraction::ALL),
        })
    }

    /// Compiles the older message, `RouteAction.cors`.
    pub fn compile_route(
        message: &route::CorsPolicy,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let filter_enabled = message.enabled_specifier.as_ref().map(|specifier| {
            let route::cors_policy::EnabledSpecifier::FilterEnabled(enabled) = specifier;
            enabled.clone()
        });

        let message = filter::CorsPolicy {
            allow_origin_string_match: message.allow_origin_string_match.clone(),
            allow_methods: message.allow_methods.clone(),
            allow_headers: message.allow_headers.clone(),
            expose_headers: message.expose_headers.clone(),
            max_age: message.max_age.clone(),
            allow_credentials: message.allow_credentials,
            filter_enabled,
            shadow_enabled: message.shadow_enabled.clone(),
            allow_private_network_access: message.allow_private_network_access,
            forward_not_matching_preflights: message.forward_not_matching_preflights,
        };

        Self::compile(&message, scope)
    }

    /// Answers preflights, and keeps the origin of other cross-origin requests for their response.
    pub(crate) fn on_request(&self, cx: &mut RequestContext<'_>) -> Step {
        let Some(origin) = cx.head.get("origin").filter(|origin| !origin.is_empty()) else {
            return Step::Continue;
        };
        if !self.enabled.hits(cx.entropy.draw()) {
            return Step::Continue;
        }
        let is_preflight = cx.head.method() == "OPTIONS"
            && cx
                .head
                .get("access-control-request-method")
                .is_some_and(|method| !method.is_empty());

        if !self.origins.iter().any(|allowed| allowed.is_match(origin)) {
            return match is_preflight && !self.forward_unmatched {
                true => LocalReply::new(200, "", "cors_response", Cause::Cors).into(),
                false => Step::Continue,
            };
        }

        let origin = Bytes::copy_from_slice(origin);
        if !is_preflight {
            cx.keep(AllowedOrigin(origin));
            return Step::Continue;
        }

        let mut reply = LocalReply::new(200, "", "cors_response", Cause::Cors)
            .header("access-control-allow-origin", origin);
        let credentials: &[u8] = if self.credentials { b"true" } else { b"" };
        let permissions = [
            ("access-control-allow-credentials", credentials),
            (
                "access-control-allow-methods",
                allowed(&self.methods, cx.head.get("access-control-request-method")),
            ),
            (
                "access-control-allow-headers",
                allowed(&self.headers, cx.head.get("access-control-request-headers")),
            ),
            ("access-control-expose-headers", self.expose.as_bytes()),
            ("access-control-max-age", self.max_age.as_bytes()),
        ];

        for (name, value) in permissions
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
        {
            reply = reply.header(name, value.to_vec());
        }

        let wants_private = cx.head.get("access-control-request-private-network") == Some(b"true");
        if self.private_network && wants_private {
            reply = reply.header("access-control-allow-private-network", "true");
        }

        reply.into()
    }

    /// Adds the headers by which a browser may read the response.
    pub(crate) fn on_response(&self, cx: &mut ResponseContext<'_>) {
        let Some(AllowedOrigin(origin)) = cx.take() else {
            return;
        };
        cx.head.set("access-control-allow-origin", &origin);
        if self.credentials {
            cx.head.set("access-control-allow-credentials", b"true");
        }

        if !self.expose.is_empty() {
            cx.head
                .set("access-control-expose-headers", self.expose.as_bytes());
        }
    }
}
