//! MeshConfig.extensionProviders to authorizers. What depends on services is found when a policy
//! asks for its authorizer, in `query::ext_authz`.

use std::sync::Arc;
use std::time::Duration;

use meltemi_api::mesh::{ExtAuthzBody, ExtAuthzGrpc, ExtAuthzHttp, ExtensionProvider};

use super::port;
use crate::{Authorizer, Check, CheckedBody, HttpCheck, Provider, ProviderFault, ServiceName};

/// Source: Istio `timeoutOrDefault`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);

pub(crate) fn lower_provider(provider: &ExtensionProvider) -> Provider {
    let authorizer = match (
        &provider.envoy_ext_authz_http,
        &provider.envoy_ext_authz_grpc,
    ) {
        (Some(http), _) => lower_http(http),
        (None, Some(grpc)) => lower_grpc(grpc),
        (None, None) => return Provider::OtherKind,
    };

    match provider.authorizer_faults().into_iter().next() {
        None => Provider::Authorizer(Arc::new(authorizer)),
        Some(fault) => Provider::Faulty(ProviderFault {
            field: fault.field,
            message: fault.message,
            remedy: fault.remedy,
        }),
    }
}

fn lower_http(http: &ExtAuthzHttp) -> Authorizer {
    let ExtAuthzHttp {
        service,
        port: number,
        timeout,
        path_prefix,
        fail_open,
        status_on_error,
        clear_route_cache,
        include_headers_in_check,
        include_request_headers_in_check,
        include_additional_headers_in_check,
        include_request_body_in_check,
        headers_to_upstream_on_allow,
        headers_to_downstream_on_deny,
        headers_to_downstream_on_allow,
    } = http;

    // The deprecated field counts only where its successor is empty.
    let request_headers = if include_request_headers_in_check.is_empty() {
        include_headers_in_check
    } else {
        include_request_headers_in_check
    };

    Authorizer {
        service: ServiceName::new(service),
        port: port(*number).unwrap_or_default(),
        check: Check::Http(HttpCheck {
            path_prefix: path_prefix.clone(),
            request_headers: request_headers.clone(),
            added_headers: include_additional_headers_in_check.clone(),
            to_upstream: headers_to_upstream_on_allow.clone(),
            to_downstream_on_deny: headers_to_downstream_on_deny.clone(),
            to_downstream_on_allow: headers_to_downstream_on_allow.clone(),
        }),
        timeout: timeout.map_or(DEFAULT_TIMEOUT, |timeout| timeout.0),
        fail_open: *fail_open,
        status_on_error: status_on_error.parse().ok(),
        clear_route_cache: clear_route_cache.unwrap_or_default(),
        body: include_request_body_in_check.as_ref().map(lower_body),
    }
}

fn lower_grpc(grpc: &ExtAuthzGrpc) -> Authorizer {
    let ExtAuthzGrpc {
        service,
        port: number,
        timeout,
        fail_open,
        status_on_error,
        clear_route_cache,
        include_request_body_in_check,
    } = grpc;

    Authorizer {
        service: ServiceName::new(service),
        port: port(*number).unwrap_or_default(),
        check: Check::Grpc,
        timeout: timeout.map_or(DEFAULT_TIMEOUT, |timeout| timeout.0),
        fail_open: *fail_open,
        status_on_error: status_on_error.parse().ok(),
        clear_route_cache: clear_route_cache.unwrap_or_default(),
        body: include_request_body_in_check.as_ref().map(lower_body),
    }
}

fn lower_body(body: &ExtAuthzBody) -> CheckedBody {
    let ExtAuthzBody {
        max_request_bytes,
        allow_partial_message,
        pack_as_bytes,
    } = body;

    CheckedBody {
        max_bytes: *max_request_bytes,
        allow_partial: *allow_partial_message,
        as_bytes: *pack_as_bytes,
    }
}
