//! Secrets to TLS credentials.

use meltemi_api::{Object, Spec};

use super::Findings;
use crate::Credential;

/// The credential of a Secret: `tls.crt`, `tls.key`, `ca.crt`, `ca.crl`, or the generic `cert`,
/// `key`, `cacert`, `crl`. `None` if it has neither a certificate nor roots. Source: Istio
/// `ExtractCertInfo`.
pub(crate) fn lower_secret(object: &Object, _: &mut Findings<'_>) -> Option<Credential> {
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
