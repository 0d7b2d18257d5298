//! Chooses the crypto provider for the whole project.

use std::sync::{Arc, OnceLock};

use rustls::crypto::CryptoProvider;

/// The provider of every TLS configuration of the project: aws-lc-rs.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .clone()
}

/// Makes [`provider`] the process default, for libraries that use rustls' default. Every `main`
/// calls this once; further calls have no effect.
pub fn install_default() {
    // The error only says that a default is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
