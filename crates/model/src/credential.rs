//! TLS credentials that gateways name.

use std::fmt;

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
