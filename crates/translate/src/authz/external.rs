//! ext_authz filters: requests and connections about which an external authorizer is asked.
//!
//! The RBAC filter before an ext_authz filter evaluates the rules of the CUSTOM policies as shadow
//! rules and leaves the name of the one that matched in dynamic metadata; the ext_authz filter asks
//! only if this name is one of the provider's.

use meltemi_model::{Authorizer, Check, CheckedBody, HttpCheck};

use super::{HTTP_FILTER as HTTP_RBAC, NETWORK_FILTER as NETWORK_RBAC};
use crate::cluster_name::outbound_name;
use crate::envoy::core;
use crate::envoy::extensions::filters::http::ext_authz::v3 as http_ext_authz;
use crate::envoy::extensions::filters::network::ext_authz::v3 as network_ext_authz;
use crate::envoy::matcher;
use crate::envoy::types::matcher::v3 as matchers;
use crate::envoy::types::v3::HttpStatus;
use crate::envoy::value::duration;

pub(crate) const HTTP_FILTER: &str = "envoy.filters.http.ext_authz";
pub(crate) const NETWORK_FILTER: &str = "envoy.filters.network.ext_authz";

/// Prefix of the metadata keys that the shadow rules write.
pub(super) const SHADOW_PREFIX: &str = "istio_ext_authz_";

/// The key of a rule that selects requests for a provider.
pub(super) fn rule_name(provider: &str, rule: &str) -> String {
    format!("{}-{rule}", rule_prefix(provider))
}

fn rule_prefix(provider: &str) -> String {
    format!("istio-ext-authz-{provider}")
}

/// Whether the authorizer decides on TCP connections. Istio leaves CUSTOM policies of an HTTP
/// provider out of TCP ports.
pub(super) fn decides_on_connections(authorizer: &Authorizer) -> bool {
    authorizer.check == Check::Grpc
}

/// The HTTP filter. Source: Istio `generateHTTPConfig` and `generateGRPCConfig`.
pub(super) fn http(provider: &str, authorizer: &Authorizer) -> http_ext_authz::ExtAuthz {
    use http_ext_authz::ext_authz::Services;

    let Authorizer {
        service: _,
        port: _,
        check,
        timeout: _,
        fail_open,
        status_on_error,
        clear_route_cache,
        body,
    } = authorizer;

    let (services, allowed_headers) = match check {
        Check::Http(check) => (
            Services::HttpService(http_service(authorizer, check)),
            header_list(&check.request_headers),
        ),
        // Without a list, a gRPC check carries every header.
        Check::Grpc => (Services::GrpcService(grpc_service(authorizer)), None),
    };

    http_ext_authz::ExtAuthz {
        services: Some(services),
        allowed_headers,
        failure_mode_allow: *fail_open,
        status_on_error: status_on_error.map(|status| HttpStatus {
            code: i32::from(status),
        }),
        clear_route_cache: *clear_route_cache,
        with_request_body: body.map(buffer_settings),
        filter_enabled_metadata: Some(is_selected(provider, HTTP_RBAC)),
        transport_api_version: core::ApiVersion::V3 as i32,
        ..Default::default()
    }
}

/// The network filter.
pub(super) fn network(provider: &str, authorizer: &Authorizer) -> network_ext_authz::ExtAuthz {
    network_ext_authz::ExtAuthz {
        stat_prefix: "tcp.".to_owned(),
        grpc_service: Some(grpc_service(authorizer)),
        failure_mode_allow: authorizer.fail_open,
        filter_enabled_metadata: Some(is_selected(provider, NETWORK_RBAC)),
        transport_api_version: core::ApiVersion::V3 as i32,
        ..Default::default()
    }
}

fn cluster(authorizer: &Authorizer) -> String {
    outbound_name(authorizer.port, "", authorizer.service.host.as_str())
}

fn http_service(authorizer: &Authorizer, check: &HttpCheck) -> http_ext_authz::HttpService {
    let HttpCheck {
        path_prefix,
        request_headers: _,
        added_headers,
        to_upstream,
        to_downstream_on_deny,
        to_downstream_on_allow,
    } = check;

    let added: Vec<_> = added_headers
        .iter()
        .map(|(name, value)| core::HeaderValue {
            key: name.clone(),
            value: value.clone(),
            ..Default::default()
        })
        .collect();

    http_ext_authz::HttpService {
        server_uri: Some(core::HttpUri {
            // Envoy wants a URI and goes by the cluster.
            uri: format!("http://{}", authorizer.service.host),
            http_upstream_type: Some(core::http_uri::HttpUpstreamType::Cluster(cluster(
                authorizer,
            ))),
            timeout: duration(authorizer.timeout),
        }),
        path_prefix: path_prefix.clone(),
        authorization_request: (!added.is_empty()).then(|| http_ext_authz::AuthorizationRequest {
            headers_to_add: added,
            ..Default::default()
        }),
        authorization_response: Some(http_ext_authz::AuthorizationResponse {
            allowed_upstream_headers: header_list(to_upstream),
            allowed_client_headers: header_list(to_downstream_on_deny),
            allowed_client_headers_on_success: header_list(to_downstream_on_allow),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn grpc_service(authorizer: &Authorizer) -> core::GrpcService {
    use core::grpc_service::{EnvoyGrpc, TargetSpecifier};

    core::GrpcService {
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
            cluster_name: cluster(authorizer),
            // Envoy would send the cluster's name, which no authority may be: it holds `|`.
            authority: authorizer.service.host.to_string(),
            ..Default::default()
        })),
        timeout: duration(authorizer.timeout),
        ..Default::default()
    }
}

fn buffer_settings(body: CheckedBody) -> http_ext_authz::BufferSettings {
    let CheckedBody {
        max_bytes,
        allow_partial,
        as_bytes,
    } = body;

    http_ext_authz::BufferSettings {
        max_request_bytes: max_bytes,
        allow_partial_message: allow_partial,
        pack_as_bytes: as_bytes,
    }
}

/// Header names; no list where none is written, since an empty list means another thing.
fn header_list(names: &[String]) -> Option<matchers::ListStringMatcher> {
    let patterns: Vec<_> = names
        .iter()
        .map(|name| matcher::ignoring_case(matcher::wildcard(name)))
        .collect();

    (!patterns.is_empty()).then_some(matchers::ListStringMatcher { patterns })
}

/// Whether a shadow rule of the provider matched, as the RBAC filter before noted it.
fn is_selected(provider: &str, rbac_filter: &str) -> matchers::MetadataMatcher {
    use matchers::metadata_matcher::{PathSegment, path_segment::Segment};

    matchers::MetadataMatcher {
        filter: rbac_filter.to_owned(),
        path: vec![PathSegment {
            segment: Some(Segment::Key(format!(
                "{SHADOW_PREFIX}shadow_effective_policy_id"
            ))),
        }],
        value: Some(matchers::ValueMatcher {
            match_pattern: Some(matchers::value_matcher::MatchPattern::StringMatch(
                matcher::prefix(&rule_prefix(provider)),
            )),
        }),
        invert: false,
    }
}
