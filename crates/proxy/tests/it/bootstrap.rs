//! Bootstraps that cannot be served: the start and `--validate` refuse them in the same words.

use meltemi_proto::envoy::config::bootstrap::v3 as proto;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use meltemi_proxy::{Proxy, ProxyOptions};
use meltemi_proxy_config::bootstrap::Bootstrap;
use tls::secret::Type;

fn data(specifier: core::data_source::Specifier) -> Option<core::DataSource> {
    Some(core::DataSource {
        specifier: Some(specifier),
        ..Default::default()
    })
}

fn inline(text: &str) -> Option<core::DataSource> {
    data(core::data_source::Specifier::InlineString(text.into()))
}

fn with_secret(content: Type) -> proto::Bootstrap {
    proto::Bootstrap {
        static_resources: Some(proto::bootstrap::StaticResources {
            secrets: vec![tls::Secret {
                name: "own".into(),
                r#type: Some(content),
            }],
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The words of both, if they refuse.
fn verdicts(message: &proto::Bootstrap) -> (Option<String>, Option<String>) {
    let compile = || Bootstrap::compile(message).map_err(|rejection| rejection.to_string());
    let validated = compile()
        .and_then(|bootstrap| Proxy::validate(&bootstrap).map_err(|error| error.to_string()));
    let started = compile().and_then(|bootstrap| {
        let options = ProxyOptions {
            bootstrap: Some(bootstrap),
            ..Default::default()
        };
        Proxy::start(options).map_err(|error| error.to_string())
    });

    (validated.err(), started.err())
}

#[test]
fn validating_refuses_what_the_start_refuses() {
    let roots = |context| with_secret(Type::ValidationContext(context));
    let missing = data(core::data_source::Specifier::Filename(
        "/no/such/file".into(),
    ));

    let bad = [
        with_secret(Type::GenericSecret(Default::default())),
        with_secret(Type::TlsCertificate(tls::TlsCertificate {
            certificate_chain: inline("no chain"),
            private_key: inline("no key"),
            ..Default::default()
        })),
        with_secret(Type::TlsCertificate(tls::TlsCertificate {
            certificate_chain: missing.clone(),
            private_key: missing.clone(),
            ..Default::default()
        })),
        roots(tls::CertificateValidationContext {
            trusted_ca: missing,
            ..Default::default()
        }),
        roots(tls::CertificateValidationContext {
            trusted_ca: inline("no roots"),
            verify_certificate_hash: vec!["00".repeat(32)],
            ..Default::default()
        }),
    ];

    for message in bad {
        let (validated, started) = verdicts(&message);
        let words = validated.expect("refused");
        assert!(
            words.contains("static_resources.secrets[\"own\"]"),
            "{words}"
        );
        assert_eq!(Some(words), started);
    }

    assert_eq!(verdicts(&proto::Bootstrap::default()), (None, None));
}
