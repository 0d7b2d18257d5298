//! Istio's filter `peer_metadata`: proxies tell each other who they are in headers.

use meltemi_proto::istio::{PeerMetadataConfig, PeerMethod};

use crate::finding::{Rejection, Scope};
use crate::http::context::{RequestContext, ResponseContext};
use crate::peer_metadata::{HEADER, HEADER_ID};

/// Kept for a stream whose downstream sent peer metadata: the response carries ours in return.
struct Exchanges;

/// Istio's filter `peer_metadata`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PeerMetadata {
    /// Read who sent the request.
    pub downstream_discovery: bool,
    /// Read who answers.
    pub upstream_discovery: bool,
    /// Tell the downstream who we are, if it told us.
    pub downstream_propagation: bool,
    /// Tell the upstream who we are.
    pub upstream_propagation: bool,
    /// But not outside the mesh.
    pub skip_external: bool,
}

impl PeerMetadata {
    /// Compiles Istio's message.
    pub fn compile(message: &PeerMetadataConfig, scope: &mut Scope) -> Result<Self, Rejection> {
        let mut headers = |field: &str, methods: &[PeerMethod]| {
            if methods.iter().any(|method| method.istio_headers.is_none()) {
                scope.warn(field, "only the method istio_headers is known");
            }
            methods.iter().any(|method| method.istio_headers.is_some())
        };

        Ok(Self {
            downstream_discovery: headers("downstream_discovery", &message.downstream_discovery),
            upstream_discovery: headers("upstream_discovery", &message.upstream_discovery),
            downstream_propagation: headers(
                "downstream_propagation",
                &message.downstream_propagation,
            ),
            upstream_propagation: headers("upstream_propagation", &message.upstream_propagation),
            skip_external: message
                .upstream_propagation
                .iter()
                .filter_map(|method| method.istio_headers.as_ref())
                .any(|headers| headers.skip_external_clusters),
        })
    }

    /// Reads who sent the request, if mutual TLS proves that it is a peer of the mesh, and tells the
    /// upstream who we are.
    pub fn on_request(&self, cx: &mut RequestContext<'_>) {
        // Over plaintext anybody may claim to be anybody, and each name becomes a series of metrics.
        let proven = cx.conn.is_mesh_peer();
        if self.downstream_discovery && proven {
            let id = cx.head.get(HEADER_ID).unwrap_or_default();
            let exchanges = !id.is_empty();
            if let Some(header) = cx.head.get(HEADER)
                && let Some(peer) = cx.peers.decode(id, header)
            {
                cx.state.downstream_peer = Some(peer);
            }

            if exchanges {
                cx.keep(Exchanges);
            }
        }

        if self.downstream_discovery || self.upstream_propagation {
            // What others said of themselves is not passed on as ours.
            cx.head.remove(HEADER);
            cx.head.remove(HEADER_ID);
        }

        if self.upstream_propagation && (cx.upstream_in_mesh || !self.skip_external) {
            cx.head.append(HEADER, cx.local.encoded.as_bytes());
            cx.head.append(HEADER_ID, cx.local.id.as_bytes());
        }
    }

    /// Reads who answered and tells the downstream who we are.
    pub fn on_response(&self, cx: &mut ResponseContext<'_>) {
        if self.upstream_discovery {
            let id = cx.head.fields().get(HEADER_ID).unwrap_or_default();
            if let Some(header) = cx.head.fields().get(HEADER)
                && let Some(peer) = cx.peers.decode(id, header)
            {
                cx.state.upstream_peer = Some(peer);
            }
        }

        if self.upstream_discovery || self.downstream_propagation {
            cx.head.remove(HEADER);
            cx.head.remove(HEADER_ID);
        }

        if self.downstream_propagation && cx.take::<Exchanges>().is_some() {
            cx.head.append(HEADER, cx.local.encoded.as_bytes());
            cx.head.append(HEADER_ID, cx.local.id.as_bytes());
        }
    }
}
