//! Certificate verifiers: webpki checks chain, validity and key usage; this module checks names.
//!
//! Names are never taken from the subject. A chain is verified only against the roots of the trust
//! domain that the leaf claims, so a CA of one domain cannot issue identities of another.

use std::time::SystemTime;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{
    EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder,
    UnknownStatusPolicy,
};

use crate::{
    CertificateInfo, ClientAuth, PeerError, PeerRule, SanMatcher, ServerRule, TrustBundle, info_of,
};

/// Maximum number of certificates in a chain, since each costs a signature verification. Istio's
/// longest chain is root, two intermediates and leaf.
const MAX_CHAIN: usize = 10;

/// The side of the connection that presented the certificate.
#[derive(Debug, Clone, Copy)]
enum Side {
    Client,
    Server,
}

/// The checks that client and server verifiers share.
#[derive(Debug)]
struct Rules {
    trust: TrustBundle,
    san: Vec<SanMatcher>,
    algorithms: WebPkiSupportedAlgorithms,
    /// All roots, for rules without trust domains. Collected once instead of for each handshake.
    all: Vec<TrustAnchor<'static>>,
}

impl Rules {
    fn new(trust: TrustBundle, san: Vec<SanMatcher>, by_domain: bool) -> Self {
        let all = if by_domain {
            Vec::new()
        } else {
            trust.all_anchors()
        };

        Self {
            trust,
            san,
            algorithms: algorithms(),
            all,
        }
    }

    /// Verifies a certificate by its SPIFFE ID: roots of its trust domain, then SAN matchers.
    fn spiffe(
        &self,
        side: Side,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), PeerError> {
        let info = info_of(leaf)?;
        let id = info.spiffe()?;
        let anchors = self.trust.anchors_for(id.trust_domain());

        if anchors.is_empty() {
            return Err(PeerError::TrustDomain {
                expected: self.trust.domains(),
                presented: id.to_string(),
            });
        }

        self.chain(
            side,
            &info,
            leaf,
            rest,
            anchors,
            id.trust_domain().as_str(),
            now,
        )?;

        self.names(&info)
    }

    /// Verifies a certificate against all roots, then the SAN matchers.
    fn any(
        &self,
        side: Side,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<CertificateInfo, PeerError> {
        let info = info_of(leaf)?;
        info.check_uris()?;
        self.chain(side, &info, leaf, rest, &self.all, "any", now)?;
        self.names(&info)?;
        Ok(info)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the inputs of X.509 path validation"
    )]
    fn chain(
        &self,
        side: Side,
        info: &CertificateInfo,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        anchors: &[TrustAnchor<'static>],
        domain: &str,
        now: UnixTime,
    ) -> Result<(), PeerError> {
        if rest.len() + 1 > MAX_CHAIN {
            return Err(PeerError::TooMany {
                limit: MAX_CHAIN,
                presented: rest.len() + 1,
            });
        }

        let certificate = EndEntityCert::try_from(leaf)
            .map_err(|error| PeerError::Malformed(error.to_string()))?;
        let usage = match side {
            Side::Client => KeyUsage::client_auth(),
            Side::Server => KeyUsage::server_auth(),
        };

        let crls = self.trust.crls();
        let revocation = RevocationOptionsBuilder::new(&crls).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });

        certificate
            .verify_for_usage(
                self.algorithms.all,
                anchors,
                rest,
                now,
                usage,
                revocation,
                None,
            )
            .map(|_| ())
            .map_err(|error| refusal(side, info, domain, &error))
    }

    fn names(&self, info: &CertificateInfo) -> Result<(), PeerError> {
        if self.san.is_empty() || self.san.iter().any(|matcher| matcher.matches(info)) {
            return Ok(());
        }
        let mut expected: Vec<String> = self.san.iter().take(8).map(ToString::to_string).collect();
        if self.san.len() > expected.len() {
            expected.push(format!("{} more", self.san.len() - expected.len()));
        }

        Err(PeerError::Name {
            expected: expected.join(" or "),
            presented: info.names(),
        })
    }
}

fn refusal(side: Side, info: &CertificateInfo, domain: &str, error: &webpki::Error) -> PeerError {
    use webpki::Error as E;

    let presented = info.names();
    match error {
        E::CertExpired { time, not_after } => PeerError::Validity {
            presented,
            reason: format!(
                "expired {} s ago",
                time.as_secs().saturating_sub(not_after.as_secs())
            ),
        },
        E::CertNotValidYet { time, not_before } => PeerError::Validity {
            presented,
            reason: format!(
                "valid only in {} s",
                not_before.as_secs().saturating_sub(time.as_secs())
            ),
        },
        E::CertRevoked => PeerError::Validity {
            presented,
            reason: "revoked".to_owned(),
        },
        E::UnknownRevocationStatus => PeerError::Validity {
            presented,
            reason: "no revocation list of its issuer is at hand".to_owned(),
        },
        E::CrlExpired { .. } => PeerError::Validity {
            presented,
            reason: "the revocation list of its issuer is out of date".to_owned(),
        },
        E::RequiredEkuNotFoundContext(_) => PeerError::Usage {
            expected: match side {
                Side::Client => "client",
                Side::Server => "server",
            },
            presented,
            reason: error.to_string(),
        },
        _ => PeerError::Chain {
            expected: domain.to_owned(),
            presented: format!("{presented}, issued by {:?}", info.issuer),
            reason: error.to_string(),
        },
    }
}

/// Verifies client certificates.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    rules: Rules,
    rule: PeerRule,
    auth: ClientAuth,
}

impl ClientVerifier {
    pub(crate) fn new(
        rule: PeerRule,
        auth: ClientAuth,
        trust: TrustBundle,
        san: Vec<SanMatcher>,
    ) -> Self {
        Self {
            rules: Rules::new(trust, san, rule == PeerRule::Spiffe),
            rule,
            auth,
        }
    }

    pub(crate) fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), PeerError> {
        match self.rule {
            PeerRule::Spiffe => self.rules.spiffe(Side::Client, leaf, rest, now),
            PeerRule::Chain => self.rules.any(Side::Client, leaf, rest, now).map(|_| ()),
        }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn offer_client_auth(&self) -> bool {
        self.auth != ClientAuth::None
    }

    fn client_auth_mandatory(&self) -> bool {
        self.auth == ClientAuth::Required
    }

    // No hints: they would reveal our CAs to unauthenticated clients, and cost bytes.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.judge(end_entity, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.rules.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.rules.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.rules.algorithms.supported_schemes()
    }
}

/// Verifies server certificates.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    rules: Rules,
    rule: ServerRule,
}

impl ServerVerifier {
    pub(crate) fn new(rule: ServerRule, trust: TrustBundle, san: Vec<SanMatcher>) -> Self {
        Self {
            rules: Rules::new(trust, san, rule == ServerRule::Spiffe),
            rule,
        }
    }

    pub(crate) fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), PeerError> {
        match &self.rule {
            ServerRule::Insecure => Ok(()),
            ServerRule::Spiffe => self.rules.spiffe(Side::Server, leaf, rest, now),
            ServerRule::Chain => self.rules.any(Side::Server, leaf, rest, now).map(|_| ()),
            ServerRule::Host(host) => {
                let info = self.rules.any(Side::Server, leaf, rest, now)?;
                let refused = |presented| PeerError::Name {
                    expected: host.clone(),
                    presented,
                };

                let name = ServerName::try_from(host.as_str())
                    .map_err(|_| refused("nothing: it is not a host name".to_owned()))?;
                let certificate = EndEntityCert::try_from(leaf)
                    .map_err(|error| PeerError::Malformed(error.to_string()))?;
                certificate
                    .verify_is_valid_for_subject_name(&name)
                    .map_err(|_| refused(info.names()))
            }
        }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        // SNI is only a routing hint in a mesh. The rule names the identity to verify.
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.rules.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.rules.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.rules.algorithms.supported_schemes()
    }
}

/// Verifies a workload's chain (leaf first) as its peers will, for both sides of a connection.
pub fn verify_workload(
    chain: &[CertificateDer<'_>],
    trust: &TrustBundle,
    now: SystemTime,
) -> Result<(), PeerError> {
    let (leaf, rest) = chain.split_first().ok_or(PeerError::None)?;
    let now = UnixTime::since_unix_epoch(
        now.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default(),
    );
    let rules = Rules::new(trust.clone(), Vec::new(), true);
    rules.spiffe(Side::Client, leaf, rest, now)?;
    rules.spiffe(Side::Server, leaf, rest, now)
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    crate::provider().signature_verification_algorithms
}

#[cfg(test)]
mod tests;
