//! The state-of-the-world variant: clusters and listeners are sent as whole lists, other types by
//! name.

use std::collections::BTreeSet;
use std::sync::Arc;

use meltemi_proto::discovery::{DiscoveryRequest, DiscoveryResponse};
use meltemi_proto::envoy::config::core::v3::Node;

use super::delta::has_wildcard;
use super::status::{TypeStatus, Verdict};
use super::{Core, ProtocolError, ServerSession, check_names};
use crate::{ResourceSet, Variant};

/// One client's state-of-the-world stream.
pub struct SotwSession {
    core: Core,
    /// The last sent nonce by type. A request with another nonce is stale and is ignored.
    nonces: std::collections::BTreeMap<String, String>,
}

impl ServerSession for SotwSession {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;
    const VARIANT: Variant = Variant::Sotw;

    fn new() -> Self {
        Self {
            core: Core::new(Variant::Sotw),
            nonces: std::collections::BTreeMap::new(),
        }
    }

    fn on_request(&mut self, request: DiscoveryRequest) -> Result<Option<Verdict>, ProtocolError> {
        let url = request.type_url;
        check_names(&request.resource_names)?;
        let known = self.core.known_type(&url).is_some();
        let nonce = &request.response_nonce;
        if known && !nonce.is_empty() && self.nonces.get(&url) != Some(nonce) {
            return Ok(None);
        }

        // A nonce in a type's first request belongs to an earlier stream and acknowledges nothing.
        let verdict = if known && !nonce.is_empty() {
            self.core.answered(
                &url,
                nonce,
                request.error_detail.map(|status| status.message),
            )
        } else {
            None
        };

        let (state, first) = self.core.subscribed(&url)?;
        let star = request.resource_names.iter().any(|name| name == "*");
        let names: BTreeSet<String> = request
            .resource_names
            .into_iter()
            .filter(|name| name != "*")
            .collect();

        let legacy = names.is_empty()
            && has_wildcard(&url)
            && (first || (state.wildcard && state.names.is_empty()));
        let wildcard = star || legacy;
        if first {
            state.must_answer = true;
        }
        if wildcard && !state.wildcard {
            state.wildcard = true;
            state.must_answer = true;
        } else if !wildcard && state.wildcard {
            state.drop_wildcard();
        }

        let gone: Vec<String> = state.names.difference(&names).cloned().collect();
        for name in gone {
            state.drop_name(&name);
        }
        let new: Vec<String> = names.difference(&state.names).cloned().collect();
        for name in new {
            state.add(name, true)?;
        }

        Ok(verdict)
    }

    fn set_resources(&mut self, set: Arc<ResourceSet>) {
        self.core.set_resources(set);
    }

    fn next_response(&mut self) -> Option<DiscoveryResponse> {
        let push = self.core.next_push()?;
        self.nonces
            .insert(push.type_url.clone(), push.nonce.clone());
        Some(DiscoveryResponse {
            version_info: push.version,
            resources: push
                .set
                .into_iter()
                .map(|(_, _, content)| content.any().clone())
                .collect(),
            type_url: push.type_url,
            nonce: push.nonce,
            ..DiscoveryResponse::default()
        })
    }

    fn status(&self) -> Vec<TypeStatus> {
        self.core.status()
    }

    fn resources(&self) -> Option<Arc<ResourceSet>> {
        self.core.resources()
    }

    fn node(request: &DiscoveryRequest) -> Option<&Node> {
        request.node.as_ref()
    }

    fn names(request: &DiscoveryRequest) -> &[String] {
        &request.resource_names
    }

    fn describe(response: &DiscoveryResponse) -> (&str, usize, usize) {
        (&response.type_url, response.resources.len(), 0)
    }
}
