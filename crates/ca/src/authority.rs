//! The authority: loads or creates its signing key and root, and signs certificates.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use meltemi_tls::{
    CertificateInfo, Identity, MAX_POD_NAME, POD_EXTENSION, TlsError, TrustBundle,
    certificates_from_pem, certificates_to_pem, info_of,
};
use meltemi_types::{SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
    SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::FromDer;

use crate::files::write_private;
use crate::request::{SignError, read_request};

/// Lifetime of a certificate whose request names none. Source: Istio `DEFAULT_WORKLOAD_CERT_TTL`.
pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);
/// Maximum lifetime of a certificate. Source: Istio `MAX_WORKLOAD_CERT_TTL`.
pub const MAX_TTL: Duration = Duration::from_secs(90 * 24 * 3600);

/// Lifetime of a self-signed root, the same as Istio's.
const ROOT_TTL: Duration = Duration::from_secs(3650 * 24 * 3600);
/// Validity starts this long before the issue, for peers whose clock is behind. Source: Istio
/// `ClockSkewGracePeriod`.
const BACKDATE: Duration = Duration::from_secs(120);

const ROOT_FILE: &str = "root-cert.pem";
const CERTIFICATE_FILE: &str = "ca-cert.pem";
const KEY_FILE: &str = "ca-key.pem";
const CHAIN_FILE: &str = "cert-chain.pem";

/// Why the authority cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// A file does not hold the expected certificate or key.
    #[error("{path}: {error}")]
    Material {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: TlsError,
    },
    /// The files are valid but do not belong together.
    #[error("{folder}: {reason}")]
    Mismatch {
        /// The folder of the files.
        folder: PathBuf,
        /// The contradiction and the remedy.
        reason: String,
    },
    /// The crypto library refuses.
    #[error("making a certificate authority: {0}")]
    Crypto(#[from] rcgen::Error),
}

/// Where the signing key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A self-signed root, kept in this folder.
    SelfSigned(PathBuf),
    /// Plug-in certificates (Istio's secret `cacerts`) from this folder.
    PlugIn(PathBuf),
    /// A self-signed root that is never written to disk.
    Memory,
}

/// The names in a certificate.
struct Names {
    alternative: Vec<SanType>,
    pod: Option<CustomExtension>,
}

/// A certificate authority for one trust domain.
pub struct CertificateAuthority {
    trust_domain: TrustDomain,
    origin: Origin,
    issuer: Issuer<'static, KeyPair>,
    /// The issuing certificate.
    info: CertificateInfo,
    /// The certificates that follow a leaf: the issuing certificate and further intermediates,
    /// without the root.
    intermediates: Vec<CertificateDer<'static>>,
    roots_pem: String,
}

impl CertificateAuthority {
    /// Loads the self-signed root in `folder`, or creates it. The key file has mode 0600.
    pub fn self_signed(folder: &Path, trust_domain: TrustDomain) -> Result<Self, AuthorityError> {
        let (key_path, root_path) = (folder.join(KEY_FILE), folder.join(ROOT_FILE));
        let key = match read_if_there(&key_path)? {
            Some(text) => parse_key(&text, &key_path)?,
            None => {
                let key = KeyPair::generate()?;
                write(&key_path, &key.serialize_pem())?;
                key
            }
        };

        let root = match read_if_there(&root_path)? {
            Some(text) => text,
            // The key may exist without the certificate after a crash. Keep the key, so that
            // certificates it signed stay valid.
            None => {
                let root = make_root(&key, &trust_domain)?;
                write(&root_path, &root)?;
                root
            }
        };

        let certificate = first_certificate(&root, &root_path)?;

        Self::assemble(
            trust_domain,
            Origin::SelfSigned(folder.to_owned()),
            folder,
            key,
            certificate,
            Vec::new(),
            root,
        )
    }

    /// Creates a root that is never written to disk. Its certificates are worthless after the
    /// process has ended.
    pub fn in_memory(trust_domain: TrustDomain) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let root = make_root(&key, &trust_domain)?;
        let here = Path::new("memory");
        let certificate = first_certificate(&root, here)?;

        Self::assemble(
            trust_domain,
            Origin::Memory,
            here,
            key,
            certificate,
            Vec::new(),
            root,
        )
    }

    /// Loads plug-in CA certificates: `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem`,
    /// `root-cert.pem`, as in Istio's secret `cacerts`.
    pub fn plug_in(folder: &Path, trust_domain: TrustDomain) -> Result<Self, AuthorityError> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).map_err(|error| AuthorityError::Io { path, error })
        };

        let key = parse_key(&read(KEY_FILE)?, &folder.join(KEY_FILE))?;
        let certificate =
            first_certificate(&read(CERTIFICATE_FILE)?, &folder.join(CERTIFICATE_FILE))?;
        let material = |name: &str, text: &str| {
            certificates_from_pem(text.as_bytes()).map_err(|error| AuthorityError::Material {
                path: folder.join(name),
                error,
            })
        };

        let roots_pem = read(ROOT_FILE)?;
        let roots = material(ROOT_FILE, &roots_pem)?;

        // The chain file may or may not contain the issuing certificate and the root: add the
        // first, remove the second.
        let chain_text = read_if_there(&folder.join(CHAIN_FILE))?.unwrap_or_default();
        let mut chain = match chain_text.trim().is_empty() {
            true => Vec::new(),
            false => material(CHAIN_FILE, &chain_text)?,
        };

        if !chain.contains(&certificate) {
            chain.insert(0, certificate.clone());
        }
        chain.retain(|link| !roots.contains(link));

        Self::assemble(
            trust_domain,
            Origin::PlugIn(folder.to_owned()),
            folder,
            key,
            certificate,
            chain,
            roots_pem,
        )
    }

    /// Checks that key, certificate and roots belong together.
    fn assemble(
        trust_domain: TrustDomain,
        origin: Origin,
        folder: &Path,
        key: KeyPair,
        certificate: CertificateDer<'static>,
        intermediates: Vec<CertificateDer<'static>>,
        roots_pem: String,
    ) -> Result<Self, AuthorityError> {
        let mismatch = |reason: String| AuthorityError::Mismatch {
            folder: folder.to_owned(),
            reason,
        };

        let info = info_of(&certificate).map_err(|error| mismatch(error.to_string()))?;
        let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(&certificate)
            .map_err(|error| mismatch(error.to_string()))?;
        if !parsed.is_ca() {
            return Err(mismatch(format!(
                "certificate {:?} is no authority; give one with CA:TRUE",
                info.subject
            )));
        }

        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(mismatch(format!(
                "{KEY_FILE} is not the key of certificate {:?}",
                info.subject
            )));
        }

        if info.not_after <= SystemTime::now() {
            return Err(mismatch(format!(
                "certificate {:?} has expired; replace it",
                info.subject
            )));
        }

        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        let authority = Self {
            trust_domain,
            origin,
            issuer,
            info,
            intermediates,
            roots_pem,
        };

        // Sign a test certificate: it must verify under the roots that workloads get.
        authority.verify_own_chain().map_err(|error| {
            mismatch(format!(
                "certificates it signs do not verify under {ROOT_FILE}: {error}"
            ))
        })?;

        Ok(authority)
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Where the signing key comes from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The issuing certificate.
    pub fn info(&self) -> &CertificateInfo {
        &self.info
    }

    /// The roots as PEM, as workloads receive them.
    pub fn roots_pem(&self) -> &str {
        &self.roots_pem
    }

    /// The roots, bound to the trust domain.
    pub fn trust(&self) -> Result<TrustBundle, TlsError> {
        TrustBundle::for_domain(self.trust_domain.clone(), self.roots_pem.as_bytes())
    }

    /// Issues a certificate for `identity`, whatever names the request holds. Returns PEM texts:
    /// leaf, intermediates, and all roots as the last element. A zero `ttl` means [`DEFAULT_TTL`];
    /// it is limited to [`MAX_TTL`] and to the issuer's own expiry. `pod` is the pod of the identity
    /// that the caller proved to be; see [`meltemi_tls::POD_EXTENSION`].
    pub fn sign(
        &self,
        csr_pem: &str,
        identity: &SpiffeId,
        pod: Option<&str>,
        ttl: Duration,
    ) -> Result<Vec<String>, SignError> {
        self.sign_at(csr_pem, identity, pod, ttl, SystemTime::now())
    }

    /// [`CertificateAuthority::sign`] at a given time.
    pub fn sign_at(
        &self,
        csr_pem: &str,
        identity: &SpiffeId,
        pod: Option<&str>,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Vec<String>, SignError> {
        if identity.trust_domain() != &self.trust_domain {
            return Err(SignError::TrustDomain {
                identity: identity.to_string(),
                ours: self.trust_domain.to_string(),
            });
        }

        let key = read_request(csr_pem, identity)?;
        let uri = identity
            .to_string()
            .try_into()
            .map_err(|error: rcgen::Error| SignError::Crypto(error.to_string()))?;

        let usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];

        let names = Names {
            alternative: vec![SanType::URI(uri)],
            pod: pod.map(pod_extension).transpose()?,
        };
        let leaf = self.leaf(&key, names, usages, ttl, now)?;
        let mut chain = vec![leaf.pem()];
        chain.extend(
            self.intermediates
                .iter()
                .map(|link| certificates_to_pem(std::slice::from_ref(link))),
        );

        chain.push(self.roots_pem.clone());

        Ok(chain)
    }

    /// Issues a server certificate with a new key for the control plane itself.
    pub fn server_identity(
        &self,
        dns: &[String],
        ips: &[IpAddr],
        ttl: Duration,
    ) -> Result<Identity, SignError> {
        let crypto = |error: rcgen::Error| SignError::Crypto(error.to_string());
        let key = KeyPair::generate().map_err(crypto)?;
        let mut names = Vec::with_capacity(dns.len() + ips.len());

        for name in dns {
            names.push(SanType::DnsName(name.as_str().try_into().map_err(crypto)?));
        }
        names.extend(ips.iter().copied().map(SanType::IpAddress));
        let leaf = self.leaf(
            &key,
            Names {
                alternative: names,
                pod: None,
            },
            vec![ExtendedKeyUsagePurpose::ServerAuth],
            ttl,
            SystemTime::now(),
        )?;

        let mut chain = vec![leaf.der().clone()];
        chain.extend(self.intermediates.iter().cloned());
        let key = meltemi_tls::key_from_pem(key.serialize_pem().as_bytes())
            .map_err(|error| SignError::Crypto(error.to_string()))?;

        Identity::new(chain, key).map_err(|error| SignError::Crypto(error.to_string()))
    }

    fn leaf(
        &self,
        key: &impl PublicKeyData,
        names: Names,
        usages: Vec<ExtendedKeyUsagePurpose>,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<rcgen::Certificate, SignError> {
        let ttl = match ttl.is_zero() {
            true => DEFAULT_TTL,
            false => ttl.min(MAX_TTL),
        };

        if now >= self.info.not_after {
            return Err(SignError::Expired {
                issuer: self.info.subject.clone(),
            });
        }

        let mut params = CertificateParams::default();

        // With an empty subject the alternative names are critical (RFC 5280 §4.2.1.6), so
        // verifiers must not ignore them.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names.alternative;
        params.custom_extensions.extend(names.pod);
        params.serial_number = Some(random_serial()?);
        params.not_before = whole_seconds(now - BACKDATE);

        // X.509 has whole seconds: round up, or a lifetime of two seconds could become one.
        params.not_after =
            whole_seconds((now + ttl + Duration::from_millis(999)).min(self.info.not_after));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];

        params.extended_key_usages = usages;
        params.use_authority_key_identifier_extension = true;

        params
            .signed_by(key, &self.issuer)
            .map_err(|error| SignError::Crypto(error.to_string()))
    }

    /// Signs a test certificate and verifies it under the authority's own roots.
    fn verify_own_chain(&self) -> Result<(), String> {
        let id = SpiffeId::new(self.trust_domain.clone(), "meltemi", "self-test")
            .map_err(|error| error.to_string())?;
        let key = KeyPair::generate().map_err(|error| error.to_string())?;
        let csr = CertificateParams::default()
            .serialize_request(&key)
            .and_then(|csr| csr.pem())
            .map_err(|error| error.to_string())?;

        let mut chain = self
            .sign(&csr, &id, None, Duration::from_secs(60))
            .map_err(|error| error.to_string())?;
        chain.pop();
        let trust = self.trust().map_err(|error| error.to_string())?;
        let certificates =
            certificates_from_pem(chain.concat().as_bytes()).map_err(|error| error.to_string())?;

        meltemi_tls::verify_workload(&certificates, &trust, SystemTime::now())
            .map_err(|error| error.to_string())
    }
}

/// Shows trust domain, origin and fingerprint, never the key.
impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "CertificateAuthority({}, {:?}, {:?}, sha256 {})",
            self.trust_domain,
            self.origin,
            self.info.subject,
            &self.info.sha256[..16]
        )
    }
}

fn make_root(key: &KeyPair, trust_domain: &TrustDomain) -> Result<String, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, trust_domain.as_str());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];

    params.serial_number = Some(random_serial().map_err(|_| rcgen::Error::RingUnspecified)?);
    let now = SystemTime::now();
    params.not_before = whole_seconds(now - BACKDATE);
    params.not_after = whole_seconds(now + ROOT_TTL);

    Ok(params.self_signed(key)?.pem())
}

/// The pod's name as a DER UTF8String (ITU-T X.690 §8.23).
fn pod_extension(pod: &str) -> Result<CustomExtension, SignError> {
    const UTF8_STRING: u8 = 0x0c;
    const LENGTH_IN_NEXT_BYTE: u8 = 0x81;

    let length = u8::try_from(pod.len())
        .ok()
        .filter(|n| usize::from(*n) <= MAX_POD_NAME);
    let Some(length) = length else {
        let why = format!(
            "the pod's name has {} bytes, more than {MAX_POD_NAME}",
            pod.len()
        );
        return Err(SignError::Crypto(why));
    };
    let mut der = vec![UTF8_STRING];
    if length > 0x7f {
        der.push(LENGTH_IN_NEXT_BYTE);
    }
    der.push(length);
    der.extend_from_slice(pod.as_bytes());

    Ok(CustomExtension::from_oid_content(&POD_EXTENSION, der))
}

/// A random serial number of 127 bits: positive, and unique in practice (RFC 5280 §4.1.2.2).
fn random_serial() -> Result<SerialNumber, SignError> {
    let mut bytes = [0u8; 16];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| SignError::Crypto("no random numbers".to_owned()))?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn whole_seconds(at: SystemTime) -> OffsetDateTime {
    let at = OffsetDateTime::from(at);
    at.replace_nanosecond(0).unwrap_or(at)
}

fn read_if_there(path: &Path) -> Result<Option<String>, AuthorityError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(AuthorityError::Io {
            path: path.to_owned(),
            error,
        }),
    }
}

fn write(path: &Path, text: &str) -> Result<(), AuthorityError> {
    write_private(path, text.as_bytes()).map_err(|error| AuthorityError::Io {
        path: path.to_owned(),
        error,
    })
}

/// Parses a key in PKCS#8, PKCS#1 or SEC1 form.
fn parse_key(text: &str, path: &Path) -> Result<KeyPair, AuthorityError> {
    let material = |error| AuthorityError::Material {
        path: path.to_owned(),
        error,
    };
    let key = meltemi_tls::key_from_pem(text.as_bytes()).map_err(material)?;
    KeyPair::try_from(&key).map_err(|error| material(TlsError::Key(error.to_string())))
}

fn first_certificate(text: &str, path: &Path) -> Result<CertificateDer<'static>, AuthorityError> {
    let material = |error| AuthorityError::Material {
        path: path.to_owned(),
        error,
    };
    let mut all = certificates_from_pem(text.as_bytes()).map_err(material)?;
    Ok(all.remove(0))
}
