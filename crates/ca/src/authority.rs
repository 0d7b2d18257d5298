//! The signing key, where it comes from, and what is signed with it.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use meltemi_tls::{
    CertificateInfo, Identity, TlsError, TrustBundle, certificates_from_pem, certificates_to_pem,
    info_of,
};
use meltemi_types::{SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::FromDer;

use crate::files::write_private;
use crate::request::{SignError, read_request};

/// What a request gets that asks for nothing. Source: Istio `DEFAULT_WORKLOAD_CERT_TTL`.
pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);
/// What nobody gets more than. Source: Istio `MAX_WORKLOAD_CERT_TTL`.
pub const MAX_TTL: Duration = Duration::from_secs(90 * 24 * 3600);

/// A root of our own lives as long as Istio's.
const ROOT_TTL: Duration = Duration::from_secs(3650 * 24 * 3600);
/// Certificates are valid from a little before they are issued, for peers whose clock is behind.
/// Source: Istio `ClockSkewGracePeriod`.
const BACKDATE: Duration = Duration::from_secs(120);

const ROOT_FILE: &str = "root-cert.pem";
const CERTIFICATE_FILE: &str = "ca-cert.pem";
const KEY_FILE: &str = "ca-key.pem";
const CHAIN_FILE: &str = "cert-chain.pem";

/// Why there is no authority.
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
    /// A file is not what its name says.
    #[error("{path}: {error}")]
    Material {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: TlsError,
    },
    /// The files are readable but do not fit together.
    #[error("{folder}: {reason}")]
    Mismatch {
        /// The folder of plug-in certificates, or of our own.
        folder: PathBuf,
        /// What does not fit, and what to do.
        reason: String,
    },
    /// The crypto library refuses.
    #[error("making a certificate authority: {0}")]
    Crypto(#[from] rcgen::Error),
}

/// Where the signing key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A root of our own, kept in this folder.
    SelfSigned(PathBuf),
    /// Plug-in certificates (Istio's secret `cacerts`) from this folder.
    PlugIn(PathBuf),
    /// A root of our own that lives as long as the process.
    Memory,
}

/// A certificate authority of one trust domain. Signing is pure but for randomness and the clock.
pub struct CertificateAuthority {
    trust_domain: TrustDomain,
    origin: Origin,
    issuer: Issuer<'static, KeyPair>,
    /// The issuing certificate.
    info: CertificateInfo,
    /// What follows the leaf: the issuing certificate up to, but without, the root.
    intermediates: Vec<CertificateDer<'static>>,
    roots_pem: String,
}

impl CertificateAuthority {
    /// The root of our own in `folder`, made there if there is none yet. The key stays in that
    /// folder, mode 0600.
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
            // Also after a crash between the two files: the key stays, so what it signed stays
            // good.
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

    /// A root of our own that is never written down; everything it signed dies with the process.
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

    /// Plug-in certificates: `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem`, `root-cert.pem`, as in
    /// Istio's secret `cacerts`.
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

        // The chain file may or may not begin with the issuing certificate and end with the root;
        // normalise it.
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

        // One leaf to prove that what we sign is accepted under the roots that we hand out.
        authority.prove().map_err(|error| {
            mismatch(format!(
                "certificates it signs do not verify under {ROOT_FILE}: {error}"
            ))
        })?;

        Ok(authority)
    }

    /// The trust domain.
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

    /// The roots, as every workload gets them.
    pub fn roots_pem(&self) -> &str {
        &self.roots_pem
    }

    /// The roots, bound to the trust domain.
    pub fn trust(&self) -> Result<TrustBundle, TlsError> {
        TrustBundle::for_domain(self.trust_domain.clone(), self.roots_pem.as_bytes())
    }

    /// Issues a certificate for `identity`, whatever names the request asks for. PEM: leaf,
    /// intermediates, and as last element all roots. `ttl` zero means the default; more than the
    /// maximum, or than the issuer's own time, is cut.
    pub fn sign(
        &self,
        csr_pem: &str,
        identity: &SpiffeId,
        ttl: Duration,
    ) -> Result<Vec<String>, SignError> {
        self.sign_at(csr_pem, identity, ttl, SystemTime::now())
    }

    /// [`CertificateAuthority::sign`] at a given time.
    pub fn sign_at(
        &self,
        csr_pem: &str,
        identity: &SpiffeId,
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

        let leaf = self.leaf(&key, vec![SanType::URI(uri)], usages, ttl, now)?;
        let mut chain = vec![leaf.pem()];
        chain.extend(
            self.intermediates
                .iter()
                .map(|link| certificates_to_pem(std::slice::from_ref(link))),
        );

        chain.push(self.roots_pem.clone());

        Ok(chain)
    }

    /// A server certificate for the control plane itself, with a new key.
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
            names,
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
        names: Vec<SanType>,
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

        // An empty subject makes the alternative names critical (RFC 5280 §4.2.1.6): nobody may
        // overlook them.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.serial_number = Some(random_serial()?);
        params.not_before = whole_seconds(now - BACKDATE);

        // X.509 counts seconds; the fraction goes to the holder, or a lifetime of two seconds could
        // be one.
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

    fn prove(&self) -> Result<(), String> {
        let id = SpiffeId::new(self.trust_domain.clone(), "meltemi", "self-test")
            .map_err(|error| error.to_string())?;
        let key = KeyPair::generate().map_err(|error| error.to_string())?;
        let csr = CertificateParams::default()
            .serialize_request(&key)
            .and_then(|csr| csr.pem())
            .map_err(|error| error.to_string())?;

        let mut chain = self
            .sign(&csr, &id, Duration::from_secs(60))
            .map_err(|error| error.to_string())?;
        chain.pop();
        let trust = self.trust().map_err(|error| error.to_string())?;
        let certificates =
            certificates_from_pem(chain.concat().as_bytes()).map_err(|error| error.to_string())?;

        meltemi_tls::verify_workload(&certificates, &trust, SystemTime::now())
            .map_err(|error| error.to_string())
    }
}

/// Never shows the key.
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

/// 127 random bits: positive, and never twice (RFC 5280 §4.1.2.2).
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

/// PKCS#8, PKCS#1 and SEC1 alike.
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
