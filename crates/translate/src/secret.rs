//! Secrets that gateways name by `credentialName`.

use std::fmt;

use meltemi_proto::{Any, pack};

use crate::envoy::core::{DataSource, data_source::Specifier};
use crate::envoy::extensions::transport_sockets::tls::v3 as tls;

/// A secret as it is sent.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum SecretInput {
    Certificate {
        name: String,
        chain: Vec<u8>,
        key: Vec<u8>,
    },
    Roots {
        name: String,
        ca: Vec<u8>,
        crl: Option<Vec<u8>>,
    },
}

/// A key must not get into logs.
impl fmt::Debug for SecretInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SecretInput")
            .field(&self.name())
            .finish_non_exhaustive()
    }
}

impl SecretInput {
    pub fn name(&self) -> &str {
        match self {
            Self::Certificate { name, .. } | Self::Roots { name, .. } => name,
        }
    }
}

/// Builds a secret from its input alone.
pub(crate) fn build_secret(input: &SecretInput) -> Any {
    let bytes = |bytes: &[u8]| {
        Some(DataSource {
            specifier: Some(Specifier::InlineBytes(bytes.to_vec())),
            ..Default::default()
        })
    };

    let kind = match input {
        SecretInput::Certificate {
            name: _,
            chain,
            key,
        } => tls::secret::Type::TlsCertificate(tls::TlsCertificate {
            certificate_chain: bytes(chain),
            private_key: bytes(key),
            ..Default::default()
        }),
        SecretInput::Roots { name: _, ca, crl } => {
            tls::secret::Type::ValidationContext(tls::CertificateValidationContext {
                trusted_ca: bytes(ca),
                crl: crl.as_deref().and_then(bytes),
                ..Default::default()
            })
        }
    };

    pack(&tls::Secret {
        name: input.name().to_owned(),
        r#type: Some(kind),
    })
}
