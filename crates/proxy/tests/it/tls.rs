//! Two proxies in a row with mutual TLS between them, as two sidecars are.

use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use meltemi_proto::pack;
use meltemi_proxy::ProxyOptions;
use meltemi_tls::{Identity, Secret, SecretStore, TrustBundle};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};

use crate::config::*;
use crate::peers;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("root").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn identity(&self, spiffe: &str) -> Identity {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(spiffe.try_into().expect("IA5"))];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after = time::OffsetDateTime::now_utc() + time::Duration::hours(1);
        params.not_before = time::OffsetDateTime::now_utc() - time::Duration::hours(1);
        let certificate = params.signed_by(&key, &self.issuer).expect("leaf");
        Identity::from_pem(certificate.pem().as_bytes(), key.serialize_pem().as_bytes()).expect("own leaf")
    }

    fn secrets(&self, spiffe: &str) -> SecretStore {
        let store = SecretStore::new();
        store.set("default", Secret::identity(self.identity(spiffe)));
        store.set("ROOTCA", Secret::trust(TrustBundle::from_pem(self.pem.as_bytes()).expect("root")));
        store
    }
}

fn sds(name: &str) -> tls::SdsSecretConfig {
    tls::SdsSecretConfig {
        name: name.into(),
        sds_config: Some(core::ConfigSource {
            config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::ApiConfigSource(
                core::ApiConfigSource {
                    api_type: core::api_config_source::ApiType::Grpc as i32,
                    transport_api_version: core::ApiVersion::V3 as i32,
                    grpc_services: vec![core::GrpcService {
                        target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(
                            core::grpc_service::EnvoyGrpc { cluster_name: "sds-grpc".into(), ..Default::default() },
                        )),
                        ..Default::default()
                    }],
                    ..Default::default()
                },
            )),
            resource_api_version: core::ApiVersion::V3 as i32,
            ..Default::default()
        }),
    }
}

fn common(alpn: &[&str], sans: &[&str]) -> tls::CommonTlsContext {
    use meltemi_proto::envoy::r#type::matcher::v3 as matcher;
    let san = |name: &&str| tls::SubjectAltNameMatcher {
        san_type: tls::subject_alt_name_matcher::SanType::Uri as i32,
        matcher: Some(matcher::StringMatcher {
            match_pattern: Some(matcher::string_matcher::MatchPattern::Exact((*name).into())),
            ..Default::default()
        }),
        ..Default::default()
    };
    tls::CommonTlsContext {
        alpn_protocols: alpn.iter().map(|name| (*name).into()).collect(),
        tls_certificate_sds_secret_configs: vec![sds("default")],
        validation_context_type: Some(tls::common_tls_context::ValidationContextType::CombinedValidationContext(
            tls::common_tls_context::CombinedCertificateValidationContext {
                default_validation_context: Some(tls::CertificateValidationContext {
                    match_typed_subject_alt_names: sans.iter().map(san).collect(),
                    ..Default::default()
                }),
                validation_context_sds_secret_config: Some(sds("ROOTCA")),
                ..Default::default()
            },
        )),
        ..Default::default()
    }
}

fn socket(config: meltemi_proto::Any) -> core::TransportSocket {
    core::TransportSocket {
        name: "envoy.transport_sockets.tls".into(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(config)),
    }
}

/// The server's side: TLS with client certificates, the client's identity in XFCC.
async fn inbound(authority: &Authority, upstream: std::net::SocketAddr) -> Running {
    use meltemi_proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as hcm;
    let mut manager = manager(inline(table("r", vec![forward("/", "app")])));
    manager.forward_client_cert_details = hcm::ForwardClientCertDetails::AppendForward as i32;
    manager.set_current_client_cert_details =
        Some(hcm::SetCurrentClientCertDetails { uri: true, ..Default::default() });
    let mut chain = http_chain(&manager);
    chain.transport_socket = Some(socket(pack(&tls::DownstreamTlsContext {
        common_tls_context: Some(common(&["h2", "http/1.1"], &[])),
        require_client_certificate: Some(meltemi_proto::google::protobuf::BoolValue { value: true }),
        ..Default::default()
    })));
    let secrets = authority.secrets("spiffe://cluster.local/ns/default/sa/server");
    let running = Running::start(ProxyOptions { secrets, ..Default::default() });
    running.apply(vec![static_cluster("app", &[upstream])], vec![listener("inbound", vec![chain])]).await;
    running
}

async fn outbound(authority: &Authority, to: std::net::SocketAddr, san: &str) -> Running {
    let mut up = static_cluster("server", &[to]);
    up.transport_socket = Some(socket(pack(&tls::UpstreamTlsContext {
        common_tls_context: Some(common(&["istio-http/1.1", "istio", "http/1.1"], &[san])),
        sni: "outbound_.9080_._.server.default.svc.cluster.local".into(),
        ..Default::default()
    })));
    let manager = manager(inline(table("r", vec![forward("/", "server")])));
    let secrets = authority.secrets("spiffe://cluster.local/ns/default/sa/client");
    let running = Running::start(ProxyOptions { secrets, ..Default::default() });
    running.apply(vec![up], vec![listener("outbound", vec![http_chain(&manager)])]).await;
    running
}

#[tokio::test]
async fn identities_are_proved_both_ways() {
    let authority = Authority::new();
    let server = inbound(&authority, peers::echo("app").await).await;
    let to = server.at("inbound").await;
    let client = outbound(&authority, to, "spiffe://cluster.local/ns/default/sa/server").await;
    let (head, body) = peers::get(client.at("outbound").await, "/secret").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}{body}");
    assert!(body.contains("x-forwarded-client-cert: By=spiffe://cluster.local/ns/default/sa/server;Hash="), "{body}");
    assert!(body.contains(";URI=spiffe://cluster.local/ns/default/sa/client\r\n"), "{body}");

    let wrong = outbound(&authority, to, "spiffe://cluster.local/ns/default/sa/other").await;
    let (head, body) = peers::get(wrong.at("outbound").await, "/secret").await;
    assert!(head.starts_with("HTTP/1.1 503 ") && body.contains("TLS error"), "{head}{body}");

    let stranger = Authority::new();
    let foreign = outbound(&stranger, to, "spiffe://cluster.local/ns/default/sa/server").await;
    assert!(peers::get(foreign.at("outbound").await, "/secret").await.0.starts_with("HTTP/1.1 503 "));

    let mut plain = peers::Client::connect(to).await;
    plain.send("GET /secret HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(plain.closed().await, "plaintext where TLS is required gets nothing");
}

#[tokio::test]
async fn a_listener_waits_for_its_secrets_and_rotation_cuts_nothing() {
    let authority = Authority::new();
    let server = inbound(&authority, peers::echo("app").await).await;
    let to = server.at("inbound").await;

    let mut manager = manager(inline(table("r", vec![forward("/", "server")])));
    manager.stat_prefix = "late".into();
    let secrets = SecretStore::new();
    let late = Running::start(ProxyOptions { secrets: secrets.clone(), ..Default::default() });
    let mut chain = http_chain(&manager);
    chain.transport_socket = Some(socket(pack(&tls::DownstreamTlsContext {
        common_tls_context: Some(common(&["http/1.1"], &[])),
        require_client_certificate: Some(meltemi_proto::google::protobuf::BoolValue { value: true }),
        ..Default::default()
    })));
    late.apply(vec![static_cluster("server", &[])], vec![listener("late", vec![chain])]).await;
    assert!(late.handle.addresses().await.is_empty(), "no certificate yet, so nobody is let in");
    let full = authority.secrets("spiffe://cluster.local/ns/default/sa/late");
    for name in full.names() {
        secrets.set(&name, (*full.get(&name).expect("set")).clone());
    }
    late.at("late").await;

    let client_secrets = authority.secrets("spiffe://cluster.local/ns/default/sa/client");
    let mut up = static_cluster("server", &[to]);
    up.transport_socket = Some(socket(pack(&tls::UpstreamTlsContext {
        common_tls_context: Some(common(&[], &["spiffe://cluster.local/ns/default/sa/server"])),
        sni: "server".into(),
        ..Default::default()
    })));
    let plain = http_chain(&crate::config::manager(inline(table("r", vec![forward("/", "server")]))));
    let client = Running::start(ProxyOptions { secrets: client_secrets.clone(), ..Default::default() });
    client.apply(vec![up], vec![listener("outbound", vec![plain])]).await;
    let mut connection = peers::Client::connect(client.at("outbound").await).await;
    assert!(connection.ask("GET /1 HTTP/1.1\nhost: a\n\n").await.0.starts_with("HTTP/1.1 200 "));
    client_secrets.set("default", Secret::identity(authority.identity("spiffe://cluster.local/ns/default/sa/renewed")));
    let (head, body) = connection.ask("GET /2 HTTP/1.1\nhost: a\n\n").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(body.contains("sa/client") || body.contains("sa/renewed"), "{body}");
}
