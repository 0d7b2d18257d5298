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
            // A stale nonce acknowledges nothing, but the request's subscriptions still count.
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
            // A client that reconnects and names its versions gets only differences, and no
            // response if there are none.
            state.must_answer = fresh;
            // A first request without names subscribes to the wildcard, for types that support it.
            state.wildcard = request.resource_names_subscribe.is_empty() && has_wildcard(url);
        }

        for name in request.resource_names_subscribe {
            if name == "*" {
                state.must_answer |= !state.wildcard && !first;
                state.wildcard = true;
            } else {
                // A repeated subscription requests the resource again, except on a reconnect where
                // the client names the version that it holds.
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
            // Ignore resources that the client holds but does not subscribe to.
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

/// Whether a type supports the wildcard. Endpoints, routes, secrets and filters are always
/// requested by name.
pub(super) fn has_wildcard(url: &str) -> bool {
    !matches!(
        url,
        type_url::ENDPOINT | type_url::ROUTE | type_url::SECRET | type_url::EXTENSION_CONFIG
    )
}
