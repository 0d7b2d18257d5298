//! The incremental variant.

use std::sync::Arc;

use meltemi_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use meltemi_proto::envoy::config::core::v3::Node;
use meltemi_proto::type_url;

use super::status::{TypeStatus, Verdict};
use super::{Core, ProtocolError, ServerSession, check_names};
use crate::{ResourceSet, Variant};

/// One client's incremental stream.
pub struct DeltaSession {
    core: Core,
}

impl ServerSession for DeltaSession {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;
    const VARIANT: Variant = Variant::Delta;

    fn new() -> Self {
        Self {
            core: Core::new(Variant::Delta),
        }
    }

    fn on_request(
        &mut self,
        request: DeltaDiscoveryRequest,
    ) -> Result<Option<Verdict>, ProtocolError> {
        let url = &request.type_url;
        check_names(&request.resource_names_subscribe)?;
        check_names(&request.resource_names_unsubscribe)?;
        let verdict = if request.response_nonce.is_empty() {
            None
        } else {
            // A stale nonce settles nothing; the subscriptions of the request count all the same.
            self.core.answered(
                url,
                &request.response_nonce,
                request.error_detail.map(|status| status.message),
            )
        };

        let (state, first) = self.core.subscribed(url)?;
        if first {
            let fresh = request.initial_resource_versions.is_empty();
            state.holds_already(request.initial_resource_versions.into_iter());
            // A client that comes back with what it held gets differences only, and silence if
            // there are none.
            state.must_answer = fresh;
            // Naming nothing at first means everything, for types that know the wildcard.
            state.wildcard = request.resource_names_subscribe.is_empty() && has_wildcard(url);
        }

        for name in request.resource_names_subscribe {
            if name == "*" {
                state.must_answer |= !state.wildcard && !first;
                state.wildcard = true;
            } else {
                // Asking again for what is held means that the client wants it again; except when
                // it comes back and says which version it holds.
                let answer = !(first && state.knows(&name));
                state.add(name, answer)?;
            }
        }

        for name in request.resource_names_unsubscribe {
            if name == "*" {
                state.drop_wildcard();
            } else {
                state.drop_name(&name);
            }
        }

        if first && !state.wildcard {
            // What it holds but no longer asks for is its own affair.
            state.drop_wildcard();
        }

        Ok(verdict)
    }

    fn set_resources(&mut self, set: Arc<ResourceSet>) {
        self.core.set_resources(set);
    }

    fn next_response(&mut self) -> Option<DeltaDiscoveryResponse> {
        let push = self.core.next_push()?;
        let resources = push
            .set
            .into_iter()
            .map(|(name, version, content)| Resource {
                name,
                version: version.to_string(),
                resource: Some(content.any().clone()),
                ..Resource::default()
            });

        Some(DeltaDiscoveryResponse {
            system_version_info: push.version,
            resources: resources.collect(),
            type_url: push.type_url,
            removed_resources: push.removed,
            nonce: push.nonce,
            ..DeltaDiscoveryResponse::default()
        })
    }

    fn status(&self) -> Vec<TypeStatus> {
        self.core.status()
    }

    fn resources(&self) -> Option<Arc<ResourceSet>> {
        self.core.resources()
    }

    fn node(request: &DeltaDiscoveryRequest) -> Option<&Node> {
        request.node.as_ref()
    }

    fn names(request: &DeltaDiscoveryRequest) -> &[String] {
        &request.resource_names_subscribe
    }

    fn describe(response: &DeltaDiscoveryResponse) -> (&str, usize, usize) {
        (
            &response.type_url,
            response.resources.len(),
            response.removed_resources.len(),
        )
    }
}

/// Types of which a client can want everything. Endpoints, routes, secrets and filters are always
/// asked for by name.
pub(super) fn has_wildcard(url: &str) -> bool {
    !matches!(
        url,
        type_url::ENDPOINT | type_url::ROUTE | type_url::SECRET | type_url::EXTENSION_CONFIG
    )
}
