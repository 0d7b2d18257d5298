//! Connections: `envoy.filters.network.ext_authz`. A service decides over gRPC whether a TCP
//! connection may pass. The connection is asked about before its first byte goes upstream.

use auth::attribute_context as attributes;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::extensions::filters::network::ext_authz::v3 as proto;
use meltemi_proto::envoy::service::auth::v3 as auth;

use super::check::{self, CHECK};
use super::compile::grpc;
use super::verdict::{self, Verdict};
use super::{GrpcService, MetadataMatch};
use crate::conn::ConnInfo;
use crate::finding::{Rejection, Scope};
use crate::http::grpc_call;
use crate::http::phase::{CallResult, Fetch};
use crate::metadata::Metadata;
use crate::reply::Cause;

/// Which connections a service is asked about, and what happens where it does not answer.
#[derive(Debug)]
pub struct ConnectionAuthz {
    service: GrpcService,
    /// Istio: a shadow rule of RBAC before this filter matched. `None`: every connection.
    metadata: Option<MetadataMatch>,
    /// Connections pass where the service does not answer.
    fail_open: bool,
    peer_certificate: bool,
    tls_session: bool,
}

/// A connection that may not pass.
#[derive(Debug)]
pub struct ConnectionRefusal {
    /// `%CONNECTION_TERMINATION_DETAILS%`.
    pub details: &'static str,
    /// The service, and the result of the call.
    pub cause: Cause,
}

impl ConnectionAuthz {
    /// Compiles the filter's message.
    pub fn compile(message: &proto::ExtAuthz, scope: &mut Scope) -> Result<Self, Rejection> {
        let proto::ExtAuthz {
            // No counters are kept by this prefix.
            stat_prefix: _,
            grpc_service,
            failure_mode_allow,
            include_peer_certificate,
            transport_api_version,
            filter_enabled_metadata,
            bootstrap_metadata_labels_key,
            include_tls_session,
            send_tls_alert_on_denial,
            metadata_context_namespaces,
            typed_metadata_context_namespaces,
            shadow_mode,
        } = message;

        if *transport_api_version != core::ApiVersion::V3 as i32 {
            return scope.refuse("transport_api_version must be V3");
        }
        if *shadow_mode {
            return scope.refuse("shadow_mode is unknown: connections would be refused in earnest");
        }
        for (field, is_set) in [
            (
                "bootstrap_metadata_labels_key",
                !bootstrap_metadata_labels_key.is_empty(),
            ),
            ("send_tls_alert_on_denial", *send_tls_alert_on_denial),
            (
                "metadata_context_namespaces",
                !metadata_context_namespaces.is_empty(),
            ),
            (
                "typed_metadata_context_namespaces",
                !typed_metadata_context_namespaces.is_empty(),
            ),
        ] {
            scope.unsupported(field, is_set);
        }

        let service = scope.required("grpc_service", grpc_service.as_ref())?;
        let service = scope.within("grpc_service", |scope| grpc(service, scope))?;
        if !service.initial_metadata.is_empty() {
            return scope.refuse("grpc_service.initial_metadata is unknown on connections");
        }

        let metadata = match filter_enabled_metadata {
            None => None,
            Some(matcher) => Some(scope.within("filter_enabled_metadata", |scope| {
                MetadataMatch::compile(matcher, scope)
            })?),
        };

        Ok(Self {
            service,
            metadata,
            fail_open: *failure_mode_allow,
            peer_certificate: *include_peer_certificate,
            tls_session: *include_tls_session,
        })
    }

    /// Whether the service is asked about a connection with this metadata.
    pub fn asks(&self, metadata: &Metadata) -> bool {
        let matcher = self.metadata.as_ref();
        matcher.is_none_or(|matcher| matcher.is_match(metadata))
    }

    /// The question about a connection.
    pub fn question(&self, conn: &ConnInfo) -> Fetch {
        let message = auth::CheckRequest {
            attributes: Some(auth::AttributeContext {
                source: Some(check::source(conn, self.peer_certificate)),
                destination: Some(check::destination(conn)),
                tls_session: self.tls_session.then(|| check::tls_session(conn)),
                request: Some(attributes::Request::default()),
                ..Default::default()
            }),
        };

        let GrpcService {
            cluster,
            authority,
            timeout,
            initial_metadata: _,
        } = &self.service;
        grpc_call::call(cluster, authority, CHECK, &message, *timeout)
    }

    /// Reads the answer; `None` if the connection may pass.
    pub fn refusal(&self, answer: CallResult) -> Option<ConnectionRefusal> {
        let (details, how) = match verdict::of_grpc(answer).verdict {
            Verdict::Allowed(_) => return None,
            Verdict::Error(..) if self.fail_open => return None,
            Verdict::Unaskable(how) => ("ext_authz_error", how),
            Verdict::Denied(_) => ("ext_authz_denied", "denied".into()),
            Verdict::Error(_, how) => ("ext_authz_error", how),
        };

        Some(ConnectionRefusal {
            details,
            cause: Cause::ExternalAuthorization(self.service.cluster.clone(), how),
        })
    }
}

#[cfg(test)]
mod tests {
    use core::grpc_service::{EnvoyGrpc, TargetSpecifier};
    use meltemi_proto::envoy::config::core::v3 as core;
    use meltemi_proto::google::rpc::Status;

    use super::*;
    use crate::head::ResponseHead;
    use crate::http::phase::{FetchError, Fetched};

    fn compiled(change: impl FnOnce(&mut proto::ExtAuthz)) -> Result<ConnectionAuthz, Rejection> {
        let mut message = proto::ExtAuthz {
            grpc_service: Some(core::GrpcService {
                target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
                    cluster_name: "authz".to_owned(),
                    ..Default::default()
                })),
                ..Default::default()
            }),
            transport_api_version: core::ApiVersion::V3 as i32,
            ..Default::default()
        };
        change(&mut message);
        ConnectionAuthz::compile(&message, &mut Scope::default())
    }

    fn answer(code: i32) -> CallResult {
        let response = auth::CheckResponse {
            status: Some(Status {
                code,
                ..Default::default()
            }),
            ..Default::default()
        };
        let call = grpc_call::call(&"authz".into(), "authz", CHECK, &response, None);
        let mut fetched = Fetched {
            head: ResponseHead::of(200),
            body: call.body,
            ..Fetched::default()
        };
        fetched.trailers.append("grpc-status", b"0");
        CallResult::Fetched(Ok(Box::new(fetched)))
    }

    fn failure() -> CallResult {
        CallResult::Fetched(Err(FetchError {
            reason: "no endpoint".into(),
            is_unsendable: false,
        }))
    }

    #[test]
    fn the_answer_decides_and_its_absence_is_a_refusal_unless_open() {
        let closed = compiled(|_| {}).expect("a filter");
        let details = |refusal: Option<ConnectionRefusal>| refusal.map(|refusal| refusal.details);
        assert_eq!(details(closed.refusal(answer(0))), None);
        assert_eq!(details(closed.refusal(answer(7))), Some("ext_authz_denied"));
        assert_eq!(details(closed.refusal(failure())), Some("ext_authz_error"));

        let open = compiled(|message| message.failure_mode_allow = true).expect("a filter");
        assert_eq!(details(open.refusal(answer(7))), Some("ext_authz_denied"));
        assert_eq!(details(open.refusal(failure())), None);
    }

    #[test]
    fn settings_that_would_ask_otherwise_are_refused() {
        assert!(compiled(|message| message.grpc_service = None).is_err());
        assert!(compiled(|message| message.transport_api_version = 0).is_err());
        assert!(compiled(|message| message.shadow_mode = true).is_err());
    }
}
