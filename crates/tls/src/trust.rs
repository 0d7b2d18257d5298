//! Trusted roots, per trust domain or for all domains, and certificate revocation lists.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;

use meltemi_types::TrustDomain;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor};
use webpki::{CertRevocationList, OwnedCertRevocationList};

use crate::{TlsError, certificates_from_pem, certificates_to_pem, sha256_hex};

/// Paths at which Linux distributions keep the public roots.
const SYSTEM_BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Trusted roots. A SPIFFE ID is verified with the roots of its trust domain, or with the roots for
/// any domain if that domain has none of its own. Cheap to clone.
#[derive(Clone, Default)]
pub struct TrustBundle {
    inner: Arc<Inner>,
}

#[derive(Default, Clone)]
struct Inner {
    any: Roots,
    domains: BTreeMap<TrustDomain, Roots>,
    crls: Vec<Arc<CertRevocationList<'static>>>,
}

#[derive(Default, Clone)]
struct Roots {
    certificates: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

impl Roots {
    fn from_pem(text: &[u8]) -> Result<Self, TlsError> {
        let mut seen = HashSet::new();
        let mut roots = Self::default();
        for certificate in certificates_from_pem(text)? {
            if !seen.insert(sha256_hex(&certificate)) {
                continue;
            }
            let anchor = webpki::anchor_from_trusted_cert(&certificate)
                .map_err(|error| TlsError::Certificate(error.to_string()))?
                .to_owned();
            roots.certificates.push(certificate);
            roots.anchors.push(anchor);
        }

        Ok(roots)
    }
}

impl TrustBundle {
    /// Roots for any trust domain, as Envoy's `trusted_ca`. SAN matchers then restrict the accepted
    /// domains.
    pub fn from_pem(roots: &[u8]) -> Result<Self, TlsError> {
        Ok(Self {
            inner: Arc::new(Inner {
                any: Roots::from_pem(roots)?,
                ..Inner::default()
            }),
        })
    }

    /// Roots of one trust domain. Peers of other domains are refused.
    pub fn for_domain(domain: TrustDomain, roots: &[u8]) -> Result<Self, TlsError> {
        Self::default().with_domain(domain, roots)
    }

    /// Adds or replaces the roots of a trust domain (federation).
    pub fn with_domain(mut self, domain: TrustDomain, roots: &[u8]) -> Result<Self, TlsError> {
        let roots = Roots::from_pem(roots)?;
        Arc::make_mut(&mut self.inner).domains.insert(domain, roots);
        Ok(self)
    }

    /// Adds revocation lists. From then on, every certificate of a chain needs a current list of
    /// its issuer; a certificate of unknown status is refused.
    ///
    /// # Errors
    /// When a list cannot be parsed. Do not use the bundle without it.
    pub fn with_crls(mut self, pem: &[u8]) -> Result<Self, TlsError> {
        let crls = CertificateRevocationListDer::pem_slice_iter(pem)
            .map(|der| {
                let der = der.map_err(|error| TlsError::Crl(error.to_string()))?;
                let owned = OwnedCertRevocationList::from_der(&der)
                    .map_err(|error| TlsError::Crl(error.to_string()))?;
                Ok(Arc::new(CertRevocationList::from(owned)))
            })
            .collect::<Result<Vec<_>, TlsError>>()?;

        if crls.is_empty() {
            return Err(TlsError::Crl("no X509 CRL block found".to_owned()));
        }
        Arc::make_mut(&mut self.inner).crls.extend(crls);

        Ok(self)
    }

    /// Mozilla's public roots, compiled in.
    pub fn web_pki() -> Self {
        let anchors = webpki_roots::TLS_SERVER_ROOTS.to_vec();
        Self {
            inner: Arc::new(Inner {
                any: Roots {
                    certificates: Vec::new(),
                    anchors,
                },
                ..Inner::default()
            }),
        }
    }

    /// The machine's public roots (`SSL_CERT_FILE`, or the distribution's bundle), else
    /// [`TrustBundle::web_pki`]. Reads a file.
    pub fn system() -> Self {
        let named = std::env::var("SSL_CERT_FILE").ok();
        let texts = named
            .iter()
            .map(String::as_str)
            .chain(SYSTEM_BUNDLES.iter().copied())
            .filter_map(|path| std::fs::read(path).ok());

        for text in texts {
            // Distributions ship some roots that webpki cannot parse: skip those and keep the
            // others.
            let read = CertificateDer::pem_slice_iter(&text)
                .filter_map(Result::ok)
                .filter_map(|certificate| {
                    let anchor = webpki::anchor_from_trusted_cert(&certificate)
                        .ok()?
                        .to_owned();
                    Some((certificate, anchor))
                });

            let (certificates, anchors): (Vec<_>, Vec<_>) = read.unzip();
            if !anchors.is_empty() {
                return Self {
                    inner: Arc::new(Inner {
                        any: Roots {
                            certificates,
                            anchors,
                        },
                        ..Inner::default()
                    }),
                };
            }
        }

        Self::web_pki()
    }

    /// Whether there are no roots, so that no peer can be verified.
    pub fn is_empty(&self) -> bool {
        self.inner.any.anchors.is_empty()
            && self
                .inner
                .domains
                .values()
                .all(|roots| roots.anchors.is_empty())
    }

    /// The roots that verify SPIFFE IDs of a trust domain; empty if the domain is not trusted.
    pub fn anchors_for(&self, domain: &TrustDomain) -> &[TrustAnchor<'static>] {
        &self
            .inner
            .domains
            .get(domain)
            .unwrap_or(&self.inner.any)
            .anchors
    }

    /// All roots, for peers that are not verified by trust domain.
    pub fn all_anchors(&self) -> Vec<TrustAnchor<'static>> {
        let domains = self
            .inner
            .domains
            .values()
            .flat_map(|roots| roots.anchors.iter());

        self.inner
            .any
            .anchors
            .iter()
            .chain(domains)
            .cloned()
            .collect()
    }

    /// The trust domains with roots, and `any` if there are roots for any domain; for messages.
    pub fn domains(&self) -> String {
        let mut names: Vec<&str> = self.inner.domains.keys().map(TrustDomain::as_str).collect();
        if !self.inner.any.anchors.is_empty() {
            names.push("any");
        }
        match names.is_empty() {
            true => "none".to_owned(),
            false => names.join(", "),
        }
    }

    /// The root certificates; empty for public authorities.
    pub fn certificates(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.inner.any.certificates.iter().chain(
            self.inner
                .domains
                .values()
                .flat_map(|roots| roots.certificates.iter()),
        )
    }

    /// The root certificates as PEM, for the local SDS socket.
    pub fn to_pem(&self) -> String {
        certificates_to_pem(&self.certificates().cloned().collect::<Vec<_>>())
    }

    pub(crate) fn crls(&self) -> Vec<&CertRevocationList<'static>> {
        self.inner.crls.iter().map(Arc::as_ref).collect()
    }
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "TrustBundle({}; {} roots, {} CRLs)",
            self.domains(),
            self.all_anchors().len(),
            self.inner.crls.len()
        )
    }
}
