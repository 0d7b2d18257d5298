//! Builds rustls configurations from terms, an identity and trusted roots.

use std::fmt;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion};

use crate::verify::{ClientVerifier, ServerVerifier};
use crate::{
    Algorithms, ClientAuth, ClientTerms, Identity, ServerRule, ServerTerms, TlsError, TlsVersion,
    TrustBundle, provider,
};

/// A server configuration with one certificate. `trust` is required if the terms request client
/// certificates.
pub fn server_config(
    terms: &ServerTerms,
    identity: &Identity,
    trust: Option<&TrustBundle>,
) -> Result<Arc<ServerConfig>, TlsError> {
    server_config_with(terms, std::slice::from_ref(identity), trust)
}

/// A server configuration with several certificates for the same names, such as RSA and ECDSA. The
/// server presents the first whose signature the client supports.
pub fn server_config_with(
    terms: &ServerTerms,
    identities: &[Identity],
    trust: Option<&TrustBundle>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let ServerTerms {
        alpn,
        client_auth,
        rule,
        san,
        min_version,
        max_version,
        algorithms,
    } = terms;

    if identities.is_empty() {
        return Err(TlsError::Certificate(
            "a server needs a certificate".to_owned(),
        ));
    }

    let builder = ServerConfig::builder_with_provider(narrowed(algorithms)?)
        .with_protocol_versions(&versions(*min_version, *max_version)?)
        .map_err(|error| TlsError::Terms(error.to_string()))?;
    let builder = match client_auth {
        ClientAuth::None => builder.with_no_client_auth(),
        asked => {
            let trust = trust
                .filter(|trust| !trust.is_empty())
                .ok_or(TlsError::NoRoots)?;
            builder.with_client_cert_verifier(Arc::new(ClientVerifier::new(
                *rule,
                *asked,
                trust.clone(),
                san.clone(),
            )))
        }
    };

    let mut config = builder.with_cert_resolver(Arc::new(BySignature(
        identities.iter().map(Identity::certified_key).collect(),
    )));
    config.alpn_protocols = protocols(alpn);
    if *client_auth != ClientAuth::None {
        // A resumed session would skip the verification of the client certificate, which may have
        // been revoked or replaced since. So every connection does a full handshake.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
    }

    Ok(Arc::new(config))
}

/// A client configuration. With an identity, the client presents its certificate to servers that
/// request one.
pub fn client_config(
    terms: &ClientTerms,
    identity: Option<&Identity>,
    trust: &TrustBundle,
) -> Result<Arc<ClientConfig>, TlsError> {
    let ClientTerms {
        alpn,
        no_sni,
        rule,
        san,
        min_version,
        max_version,
        algorithms,
    } = terms;

    if *rule != ServerRule::Insecure && trust.is_empty() {
        return Err(TlsError::NoRoots);
    }
    let builder = ClientConfig::builder_with_provider(narrowed(algorithms)?)
        .with_protocol_versions(&versions(*min_version, *max_version)?)
        .map_err(|error| TlsError::Terms(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier::new(
            rule.clone(),
            trust.clone(),
            san.clone(),
        )));

    let mut config = match identity {
        Some(identity) => {
            builder.with_client_cert_resolver(Arc::new(OneIdentity(identity.certified_key())))
        }
        None => builder.with_no_client_auth(),
    };

    config.alpn_protocols = protocols(alpn);
    config.enable_sni = !no_sni;
    if identity.is_some() || *rule == ServerRule::Spiffe {
        config.resumption = Resumption::disabled();
    }

    Ok(Arc::new(config))
}

fn protocols(alpn: &[String]) -> Vec<Vec<u8>> {
    alpn.iter().map(|name| name.as_bytes().to_vec()).collect()
}

/// The crypto provider, restricted to the algorithms that the terms allow.
fn narrowed(algorithms: &Algorithms) -> Result<Arc<CryptoProvider>, TlsError> {
    let Algorithms {
        tls12_suites,
        groups,
    } = algorithms;

    let whole = provider();
    if tls12_suites.is_empty() && groups.is_empty() {
        return Ok(whole);
    }
    let mut narrow = (*whole).clone();
    if !tls12_suites.is_empty() {
        let allowed = |suite: &SupportedCipherSuite| match suite {
            SupportedCipherSuite::Tls12(_) => tls12_suites.contains(&suite.suite().into()),
            SupportedCipherSuite::Tls13(_) => true,
        };
        narrow.cipher_suites.retain(allowed);
    }

    if !groups.is_empty() {
        let find = |number: &u16| {
            whole
                .kx_groups
                .iter()
                .find(|group| u16::from(group.name()) == *number)
                .copied()
        };
        narrow.kx_groups = groups.iter().filter_map(find).collect();
    }

    match narrow.kx_groups.is_empty() || narrow.cipher_suites.is_empty() {
        true => Err(TlsError::Terms(
            "none of the wanted cipher suites or groups is there".to_owned(),
        )),
        false => Ok(Arc::new(narrow)),
    }
}

fn versions(
    min: Option<TlsVersion>,
    max: Option<TlsVersion>,
) -> Result<Vec<&'static SupportedProtocolVersion>, TlsError> {
    let (min, max) = (
        min.unwrap_or(TlsVersion::V1_2),
        max.unwrap_or(TlsVersion::V1_3),
    );

    let all = [
        (TlsVersion::V1_3, &rustls::version::TLS13),
        (TlsVersion::V1_2, &rustls::version::TLS12),
    ];

    let chosen: Vec<_> = all
        .into_iter()
        .filter(|(version, _)| (min..=max).contains(version))
        .map(|(_, known)| known)
        .collect();

    match chosen.is_empty() {
        true => Err(TlsError::Terms(format!(
            "maximum version {max:?} is below minimum version {min:?}"
        ))),
        false => Ok(chosen),
    }
}

struct BySignature(Vec<Arc<CertifiedKey>>);

impl fmt::Debug for BySignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BySignature({} certificates)", self.0.len())
    }
}

impl ResolvesServerCert for BySignature {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let usable = self
            .0
            .iter()
            .find(|key| key.key.choose_scheme(hello.signature_schemes()).is_some());
        usable.or_else(|| self.0.first()).cloned()
    }
}

struct OneIdentity(Arc<CertifiedKey>);

impl fmt::Debug for OneIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OneIdentity")
    }
}

impl rustls::client::ResolvesClientCert for OneIdentity {
    fn resolve(
        &self,
        _root_hints: &[&[u8]],
        schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.0.key.choose_scheme(schemes).map(|_| self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
