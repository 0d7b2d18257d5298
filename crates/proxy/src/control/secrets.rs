//! Secrets that arrive as resources.

use meltemi_proto::Any;
use meltemi_proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
use meltemi_proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret as Message, secret::Type,
};
use meltemi_tls::{Identity, Secret, SecretStore, TrustBundle};

/// Reads one secret into the store. The error names no byte of it.
pub fn apply(store: &SecretStore, name: &str, any: &Any) -> Result<(), String> {
    let message: Message = meltemi_proto::unpack(any).map_err(|error| error.to_string())?;
    let secret = match &message.r#type {
        Some(Type::TlsCertificate(certificate)) => {
            let chain = bytes(certificate.certificate_chain.as_ref())?;
            let key = bytes(certificate.private_key.as_ref())?;
            Secret::identity(Identity::from_pem(&chain, &key).map_err(|error| error.to_string())?)
        }
        Some(Type::ValidationContext(context)) => {
            // Only roots and revocation lists are taken from a secret; whatever else narrows whom
            // to trust would be lost.
            let known = CertificateValidationContext {
                trusted_ca: context.trusted_ca.clone(),
                crl: context.crl.clone(),
                watched_directory: context.watched_directory.clone(),
                allow_expired_certificate: context.allow_expired_certificate,
                only_verify_leaf_cert_crl: context.only_verify_leaf_cert_crl,
                suppress_client_ca_list: context.suppress_client_ca_list,
                trust_chain_verification: context.trust_chain_verification,
                ..Default::default()
            };

            if known != *context {
                return Err(
                    "of a validation context only trusted_ca and crl may come in a secret"
                        .to_owned(),
                );
            }

            let mut trust = TrustBundle::from_pem(&bytes(context.trusted_ca.as_ref())?)
                .map_err(|error| error.to_string())?;
            if let Some(crl) = &context.crl {
                trust = trust
                    .with_crls(&bytes(Some(crl))?)
                    .map_err(|error| error.to_string())?;
            }

            Secret::trust(trust)
        }
        Some(_) | None => {
            return Err("only certificates and validation contexts are known".to_owned());
        }
    };

    store.set(name, secret);

    Ok(())
}

fn bytes(source: Option<&DataSource>) -> Result<Vec<u8>, String> {
    match source.and_then(|source| source.specifier.as_ref()) {
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes.clone()),
        Some(Specifier::InlineString(text)) => Ok(text.clone().into_bytes()),
        Some(Specifier::Filename(path)) => {
            std::fs::read(path).map_err(|error| format!("{path}: {error}"))
        }
        Some(Specifier::EnvironmentVariable(name)) => std::env::var(name)
            .map(String::into_bytes)
            .map_err(|error| format!("{name}: {error}")),
        None => Err("a data source is missing".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_that_says_more_than_roots_is_refused() {
        let inline = |text: &str| {
            Some(DataSource {
                specifier: Some(Specifier::InlineString(text.into())),
                ..Default::default()
            })
        };

        let context = CertificateValidationContext {
            trusted_ca: inline("x"),
            verify_certificate_hash: vec!["00".repeat(32)],
            ..Default::default()
        };

        let message = Message {
            name: "ROOTCA".into(),
            r#type: Some(Type::ValidationContext(context)),
        };

        let reason = apply(
            &SecretStore::new(),
            "ROOTCA",
            &meltemi_proto::pack(&message),
        )
        .expect_err("refused");

        assert!(reason.contains("trusted_ca"), "{reason}");
    }
}
