//! TLS for a mesh: rustls configurations that verify peers by SPIFFE ID instead of host name.
//!
//! In: certificates, keys and roots (PEM or DER), and terms (ALPN, versions, accepted peers). Out:
//! rustls configurations, the parsed identity of a peer, and errors that name what was expected and
//! what was presented. Only [`provider`] names a crypto library.
//!
//! Must never import anything that knows xDS or configuration (`proto`, `api`, `model`), nor open a
//! socket.

mod certificate;
mod config;
mod error;
mod identity;
mod matcher;
mod pem;
mod provider;
mod secret;
mod terms;
mod trust;
mod verify;
mod xfcc;

pub use certificate::{
    CertificateInfo, MAX_POD_NAME, POD_EXTENSION, fingerprint, info_of, peer_spiffe, pin_digests,
    sha256_hex,
};
pub use config::{client_config, server_config, server_config_with};
pub use error::{PeerError, TlsError, cause_of, cause_of_io};
pub use identity::Identity;
pub use matcher::{SanKind, SanMatcher, TextMatch};
pub use pem::{certificates_from_pem, certificates_to_pem, key_from_pem, key_to_pem};
pub use provider::{install_default, provider};
pub use secret::{DEFAULT_SECRET, ROOT_SECRET, Secret, SecretStore};
pub use terms::{
    Algorithms, ClientAuth, ClientTerms, PeerRule, ServerRule, ServerTerms, TlsVersion,
};
pub use trust::TrustBundle;
pub use verify::verify_workload;
pub use xfcc::{XfccFields, XfccPeer, xfcc_element};

#[cfg(test)]
mod testing;
