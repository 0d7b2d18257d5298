//! Who is calling, and whether a proxy may ask as whom it says to be.

use std::net::SocketAddr;
use std::sync::Arc;

use meltemi_ca::{ReviewError, TokenReview};
use meltemi_proto::envoy::config::core::v3::Node;
use meltemi_tls::CertificateInfo;
use meltemi_translate::Proxy;
use meltemi_types::{SpiffeId, TrustDomain};
use meltemi_web::Place;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tonic::transport::server::Connected;

/// What a transport knows of a caller; tonic puts it into the extensions of every request of the
/// connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Where the caller connects from.
    pub address: SocketAddr,
    /// The verified client certificate.
    pub certificate: Option<PeerCertificate>,
    /// Whether the connection is TLS.
    pub is_secure: bool,
}

/// A client certificate that was verified in the handshake.
#[derive(Debug, Clone)]
pub struct PeerCertificate {
    /// Whom it names.
    pub identity: SpiffeId,
    /// All of it that status shows.
    pub info: Arc<CertificateInfo>,
}

/// A stream that knows its peer.
pub(crate) struct WithPeer<S> {
    pub(crate) stream: S,
    pub(crate) peer: Peer,
    /// The place of a client without a certificate, which another client may take.
    pub(crate) place: Option<Place>,
}

impl<S> Connected for WithPeer<S> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

/// How a caller proved who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// With a client certificate.
    Certificate,
    /// With a token.
    Token,
    /// Not at all; only plaintext connections get so far, and only if plaintext was asked for.
    Nothing,
}

impl Proof {
    /// The word that status shows.
    pub fn word(self) -> &'static str {
        match self {
            Self::Certificate => "mtls",
            Self::Token => "token",
            Self::Nothing => "none",
        }
    }
}

/// A caller after authentication.
#[derive(Debug, Clone)]
pub struct Authenticated {
    /// Whom it proved to be.
    pub identity: Option<SpiffeId>,
    /// How.
    pub proof: Proof,
    /// The pod that its token is for, or that its certificate was issued for.
    pub pod: Option<String>,
}

/// Authenticates callers: a certificate counts before a token.
pub struct Authenticator {
    tokens: Arc<dyn TokenReview>,
    trust_domain: TrustDomain,
}

impl Authenticator {
    /// With a token review and the trust domain that token holders belong to.
    pub fn new(tokens: Arc<dyn TokenReview>, trust_domain: TrustDomain) -> Self {
        Self {
            tokens,
            trust_domain,
        }
    }

    /// The caller's proven identity.
    pub async fn authenticate(
        &self,
        peer: Option<&Peer>,
        metadata: &MetadataMap,
    ) -> Result<Authenticated, Status> {
        if let Some(certificate) = peer.and_then(|peer| peer.certificate.as_ref()) {
            let identity = Some(certificate.identity.clone());
            return Ok(Authenticated {
                identity,
                proof: Proof::Certificate,
                pod: certificate.info.pod.clone(),
            });
        }

        let header = match metadata.get("authorization") {
            Some(value) => value
                .to_str()
                .map_err(|_| Status::unauthenticated("the authorization header is not text"))?,
            None if peer.is_some_and(|peer| !peer.is_secure) => {
                return Ok(Authenticated {
                    identity: None,
                    proof: Proof::Nothing,
                    pod: None,
                });
            }
            None => {
                return Err(Status::unauthenticated(
                    "show a client certificate, or a token as `authorization: Bearer ...`",
                ));
            }
        };

        let (identity, pod) = self.holder(header).await?;

        Ok(Authenticated {
            identity: Some(identity),
            proof: Proof::Token,
            pod,
        })
    }

    /// The identity of the holder of `Bearer <token>`.
    pub async fn review(&self, authorization: &str) -> Result<SpiffeId, Status> {
        let (identity, _) = self.holder(authorization).await?;
        Ok(identity)
    }

    async fn holder(&self, authorization: &str) -> Result<(SpiffeId, Option<String>), Status> {
        // RFC 9110 §11.1: the scheme is case-insensitive.
        let token = match authorization.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
            _ => {
                return Err(Status::unauthenticated(
                    "the authorization header is not `Bearer <token>`",
                ));
            }
        };

        let caller = self
            .tokens
            .review(token)
            .await
            .map_err(|error| match error {
                ReviewError::Refused(_) => Status::unauthenticated(error.to_string()),
                ReviewError::Unavailable(_) => Status::unavailable(error.to_string()),
            })?;

        let identity = caller
            .identity(&self.trust_domain)
            .map_err(|error| Status::unauthenticated(error.to_string()))?;
        Ok((identity, caller.pod))
    }
}

/// Lets a proxy ask as itself only: every place of the node that names a namespace or a service
/// account must name the caller's, and where the caller's token or certificate is for a pod, the
/// node must be that pod.
pub fn authorize(proxy: &Proxy, node: &Node, caller: &Authenticated) -> Result<(), Status> {
    let Some(identity) = &caller.identity else {
        return Ok(());
    };
    let deny = |what: &str, said: &str, proven: &str| {
        Err(Status::permission_denied(format!(
            "the node says {what} {said:?}, but the caller proved to be {identity}, {what} {proven:?}; a proxy can only ask as itself"
        )))
    };

    if proxy.namespace != identity.namespace() {
        return deny("namespace", &proxy.namespace, identity.namespace());
    }
    if proxy.service_account != identity.service_account() {
        return deny(
            "service account",
            &proxy.service_account,
            identity.service_account(),
        );
    }

    // The id may contradict the metadata; other parts of the mesh read the id.
    let pod = node.id.split('~').nth(2).unwrap_or_default();
    let name = pod.rsplit_once('.').map_or(pod, |(name, _)| name);
    if let Some(own) = &caller.pod {
        for said in [name, proxy.name.as_str()] {
            if said != own {
                return deny("pod", said, own);
            }
        }
    }

    match pod.rsplit_once('.') {
        Some((_, namespace)) if namespace != identity.namespace() => {
            deny("namespace", namespace, identity.namespace())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use meltemi_proto::google::protobuf::Struct;
    use meltemi_proto::value_of;

    use super::*;

    fn node(id: &str, metadata: &[(&str, &str)]) -> Node {
        let fields = metadata
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value_of(*value)))
            .collect();
        Node {
            id: id.into(),
            metadata: Some(Struct { fields }),
            ..Node::default()
        }
    }

    fn allowed(id: &str, metadata: &[(&str, &str)]) -> Result<(), String> {
        let node = node(id, metadata);
        let proxy = Proxy::from_node(&node).expect("a sound node");
        let identity: SpiffeId = "spiffe://cluster.local/ns/shop/sa/cart"
            .parse()
            .expect("well formed");
        let caller = Authenticated {
            identity: Some(identity),
            proof: Proof::Token,
            pod: Some("cart-1".to_owned()),
        };
        authorize(&proxy, &node, &caller).map_err(|status| {
            assert_eq!(status.code(), tonic::Code::PermissionDenied);
            status.message().to_owned()
        })
    }

    #[test]
    fn a_proxy_asks_as_itself() {
        let cart = [("NAMESPACE", "shop"), ("SERVICE_ACCOUNT", "cart")];
        assert_eq!(
            allowed("sidecar~10.0.0.1~cart-1.shop~shop.svc.cluster.local", &cart),
            Ok(())
        );
    }

    #[test]
    fn a_proxy_cannot_ask_as_another() {
        let id = "sidecar~10.0.0.1~cart-1.shop~shop.svc.cluster.local";
        let cart = [("NAMESPACE", "shop"), ("SERVICE_ACCOUNT", "cart")];
        let other_account = allowed(id, &[("NAMESPACE", "shop"), ("SERVICE_ACCOUNT", "bank")])
            .expect_err("not its account");
        assert!(
            other_account.contains("service account \"bank\"")
                && other_account.contains("/sa/cart"),
            "{other_account}"
        );

        assert!(allowed(id, &[("NAMESPACE", "bank"), ("SERVICE_ACCOUNT", "cart")]).is_err());
        let other_id = "sidecar~10.0.0.1~cart-1.bank~bank.svc.cluster.local";
        assert!(
            allowed(
                other_id,
                &[("NAMESPACE", "shop"), ("SERVICE_ACCOUNT", "cart")]
            )
            .is_err()
        );

        // The token is for one pod of the account.
        let other_pod = allowed("sidecar~10.0.0.2~cart-2.shop~shop.svc.cluster.local", &cart);
        let other_pod = other_pod.expect_err("not its pod");
        assert!(other_pod.contains("pod \"cart-2\""), "{other_pod}");
        let other_name = [cart[0], cart[1], ("NAME", "cart-2")];
        assert!(allowed(id, &other_name).is_err());

        // Without a service account a node means `default`, which is another identity.
        assert!(allowed(id, &[("NAMESPACE", "shop")]).is_err());
    }
}
