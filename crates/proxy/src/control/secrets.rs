//! Secrets, from the bootstrap and over SDS: compiled by `proxy-config`, and read here into the
//! form that TLS works with.

use meltemi_proto::Any;
use meltemi_proto::envoy::extensions::transport_sockets::tls::v3 as proto;
use meltemi_proxy_config::tls::SecretContent;
use meltemi_tls::{Identity, Secret, SecretStore, TrustBundle};

use crate::tls::read;

/// Puts one secret of an update into the store. The error names no byte of it.
pub fn apply(store: &SecretStore, name: &str, any: &Any) -> Result<(), String> {
    let message: proto::Secret = meltemi_proto::unpack(any).map_err(|error| error.to_string())?;
    let (content, warnings) =
        SecretContent::compile(&message).map_err(|rejection| rejection.to_string())?;
    for warning in &warnings {
        tracing::debug!(secret = name, %warning, "left out");
    }

    store.set(name, load(&content)?);

    Ok(())
}

/// Reads the data of a secret, which may be in files.
pub fn load(content: &SecretContent) -> Result<Secret, String> {
    match content {
        SecretContent::Certificate { chain, key } => {
            let (chain, key) = (bytes(chain)?, bytes(key)?);
            let identity = Identity::from_pem(&chain, &key).map_err(|error| error.to_string())?;
            Ok(Secret::identity(identity))
        }
        SecretContent::Roots { trusted_ca, crl } => {
            let mut trust =
                TrustBundle::from_pem(&bytes(trusted_ca)?).map_err(|error| error.to_string())?;
            if let Some(crl) = crl {
                trust = trust
                    .with_crls(&bytes(crl)?)
                    .map_err(|error| error.to_string())?;
            }
            Ok(Secret::trust(trust))
        }
    }
}

fn bytes(source: &meltemi_proxy_config::tls::DataSource) -> Result<Vec<u8>, String> {
    read(source).map_err(|error| error.to_string())
}
