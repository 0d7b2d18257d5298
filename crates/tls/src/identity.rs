//! The certificate chain and private key that this process presents to peers.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use meltemi_types::SpiffeId;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::{
    CertificateInfo, TlsError, certificates_from_pem, certificates_to_pem, info_of, key_from_pem,
    key_to_pem, provider,
};

/// A certificate chain with its private key, checked to belong together. Cheap to clone.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<Inner>,
}

struct Inner {
    certified: Arc<CertifiedKey>,
    key: PrivateKeyDer<'static>,
    info: CertificateInfo,
    spiffe: Option<SpiffeId>,
}

impl Identity {
    /// Creates an identity from DER. The chain starts with the leaf, and the key must belong to the
    /// leaf.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, TlsError> {
        let leaf = chain
            .first()
            .ok_or_else(|| TlsError::Certificate("the chain is empty".to_owned()))?;
        let info = info_of(leaf).map_err(|error| TlsError::Certificate(error.to_string()))?;
        let spiffe = info.spiffe().ok();
        let certified = CertifiedKey::from_der(chain, key.clone_key(), &provider())
            .map_err(|error| TlsError::Key(error.to_string()))?;

        Ok(Self {
            inner: Arc::new(Inner {
                certified: Arc::new(certified),
                key,
                info,
                spiffe,
            }),
        })
    }

    /// Creates an identity from PEM. The chain starts with the leaf, and the key must belong to the
    /// leaf.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        Self::new(certificates_from_pem(chain)?, key_from_pem(key)?)
    }

    /// The certificate chain, starting with the leaf.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.inner.certified.cert
    }

    /// The parsed fields of the leaf.
    pub fn info(&self) -> &CertificateInfo {
        &self.inner.info
    }

    /// The leaf's SPIFFE identity; `None` for a gateway's or server's certificate with DNS names.
    pub fn spiffe(&self) -> Option<&SpiffeId> {
        self.inner.spiffe.as_ref()
    }

    /// Start of validity.
    pub fn not_before(&self) -> SystemTime {
        self.inner.info.not_before
    }

    /// End of validity.
    pub fn not_after(&self) -> SystemTime {
        self.inner.info.not_after
    }

    /// Chain and key in rustls' form.
    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        self.inner.certified.clone()
    }

    /// The chain as PEM, for the local SDS socket.
    pub fn chain_pem(&self) -> String {
        certificates_to_pem(self.chain())
    }

    /// The private key as PEM, for the local SDS socket and key files. Never log it.
    pub fn key_pem(&self) -> String {
        key_to_pem(&self.inner.key)
    }
}

/// Shows names, serial and fingerprint, never the private key.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let info = self.info();
        write!(
            f,
            "Identity({}, serial {}, sha256 {})",
            info.names(),
            info.serial,
            &info.sha256[..16]
        )
    }
}
