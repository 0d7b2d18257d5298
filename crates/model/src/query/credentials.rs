//! TLS credentials that gateways name: Secrets in the forms that Istio accepts.

use std::fmt;

use meltemi_api::{Kind, Spec};

use crate::{NamespacedName, Snapshot};

/// What a Secret holds for TLS, in PEM. Absent parts are `None`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credential {
    /// Certificate chain, leaf first.
    pub certificate_chain: Option<Vec<u8>>,
    /// Private key of the leaf.
    pub private_key: Option<Vec<u8>>,
    /// Roots for the other side.
    pub ca: Option<Vec<u8>>,
    /// Revocations.
    pub crl: Option<Vec<u8>>,
}

/// A key must not get into logs.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            certificate_chain,
            private_key,
            ca,
            crl,
        } = self;

        f.debug_struct("Credential")
            .field("certificate_chain", &certificate_chain.is_some())
            .field("private_key", &private_key.is_some())
            .field("ca", &ca.is_some())
            .field("crl", &crl.is_some())
            .finish()
    }
}

impl Snapshot {
    /// The credential of a Secret: `tls.crt`, `tls.key`, `ca.crt`, `ca.crl`, or the generic `cert`,
    /// `key`, `cacert`, `crl`. `None` if there is no such Secret or it holds none of them.
    pub fn credential(&self, secret: &NamespacedName) -> Option<Credential> {
        let object = self.tables.table(&Kind::Secret).get(secret)?;
        let Spec::Secret(secret) = &object.spec else {
            return None;
        };
        let value = |keys: [&str; 2]| {
            keys.iter()
                .find_map(|key| secret.value(key))
                .filter(|bytes| !bytes.is_empty())
                .map(<[u8]>::to_vec)
        };

        let credential = Credential {
            certificate_chain: value(["tls.crt", "cert"]),
            private_key: value(["tls.key", "key"]),
            ca: value(["ca.crt", "cacert"]),
            crl: value(["ca.crl", "crl"]),
        };

        (credential.certificate_chain.is_some() || credential.ca.is_some()).then_some(credential)
    }
}
