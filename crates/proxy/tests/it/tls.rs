//! Two proxies in a row with mutual TLS between them, as two sidecars are.

use meltemi_proto::envoy::config::cluster::v3::Cluster;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::config::listener::v3::FilterChain;
use meltemi_proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use meltemi_proto::pack;
use meltemi_proto::type_url::CLUSTER;
use meltemi_proxy::ProxyOptions;
use meltemi_tls::{Identity, Secret, SecretStore, TrustBundle};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};

use crate::config::*;
use crate::peers;

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("root").pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    fn identity(&self, spiffe: &str) -> Identity {
        self.identity_of(SanType::URI(spiffe.try_into().expect("IA5")))
    }

    pub fn identity_of(&self, name: SanType) -> Identity {
        let (chain, key) = self.pems(name);
        Identity::from_pem(chain.as_bytes(), key.as_bytes()).expect("own leaf")
    }

    /// The roots in PEM.
    pub fn roots(&self) -> &str {
        &self.pem
    }

    /// A certificate and its key in PEM.
    pub fn pems(&self, name: SanType) -> (String, String) {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![name];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];

        params.not_after = time::OffsetDateTime::now_utc() + time::Duration::hours(1);
        params.not_before = time::OffsetDateTime::now_utc() - time::Duration::hours(1);
        let certificate = params.signed_by(&key, &self.issuer).expect("leaf");

        (certificate.pem(), key.serialize_pem())
    }

    pub fn secrets(&self, spiffe: &str) -> SecretStore {
        let store = SecretStore::new();
        store.set("default", Secret::identity(self.identity(spiffe)));
        store.set(
            "ROOTCA",
            Secret::trust(TrustBundle::from_pem(self.pem.as_bytes()).expect("root")),
        );
        store
    }
}

fn sds(name: &str) -> tls::SdsSecretConfig {
    tls::SdsSecretConfig {
        name: name.into(),
        sds_config: Some(core::ConfigSource {
            config_source_specifier: Some(
                core::config_source::ConfigSourceSpecifier::ApiConfigSource(
                    core::ApiConfigSource {
                        api_type: core::api_config_source::ApiType::Grpc as i32,
                        transport_api_version: core::ApiVersion::V3 as i32,
                        grpc_services: vec![core::GrpcService {
                            target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(
                                core::grpc_service::EnvoyGrpc {
                                    cluster_name: "sds-grpc".into(),
                                    ..Default::default()
                                },
                            )),
                            ..Default::default()
                        }],
                        ..Default::default()
                    },
                ),
            ),
            resource_api_version: core::ApiVersion::V3 as i32,
            ..Default::default()
        }),
    }
}

pub fn common(alpn: &[&str], sans: &[&str]) -> tls::CommonTlsContext {
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
        validation_context_type: Some(
            tls::common_tls_context::ValidationContextType::CombinedValidationContext(
                tls::common_tls_context::CombinedCertificateValidationContext {
                    default_validation_context: Some(tls::CertificateValidationContext {
                        match_typed_subject_alt_names: sans.iter().map(san).collect(),
                        ..Default::default()
                    }),
                    validation_context_sds_secret_config: Some(sds("ROOTCA")),
                    ..Default::default()
                },
            ),
        ),
        ..Default::default()
    }
}

pub fn socket(config: meltemi_proto::Any) -> core::TransportSocket {
    core::TransportSocket {
        name: "envoy.transport_sockets.tls".into(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(config)),
    }
}

/// The server's side: TLS with client certificates, the client's identity in XFCC.
pub async fn inbound(authority: &Authority, upstream: std::net::SocketAddr) -> Running {
    inbound_with(authority, upstream, |_| {}).await
}

/// The server's side, with changes to its chain.
pub async fn inbound_with(
    authority: &Authority,
    upstream: std::net::SocketAddr,
    change: impl FnOnce(&mut FilterChain),
) -> Running {
    use meltemi_proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as hcm;

    let mut manager = manager(inline(table("r", vec![forward("/", "app")])));
    manager.forward_client_cert_details = hcm::ForwardClientCertDetails::AppendForward as i32;
    manager.set_current_client_cert_details = Some(hcm::SetCurrentClientCertDetails {
        uri: true,
        ..Default::default()
    });

    let mut chain = http_chain(&manager);
    chain.transport_socket = Some(socket(pack(&tls::DownstreamTlsContext {
        common_tls_context: Some(common(&["h2", "http/1.1"], &[])),
        require_client_certificate: Some(meltemi_proto::google::protobuf::BoolValue {
            value: true,
        }),
        ..Default::default()
    })));

    change(&mut chain);
    let secrets = authority.secrets("spiffe://cluster.local/ns/default/sa/server");
    let running = Running::start(ProxyOptions {
        secrets,
        ..Default::default()
    });

    running
        .apply(
            vec![static_cluster("app", &[upstream])],
            vec![listener("inbound", vec![chain])],
        )
        .await;

    running
}

/// The client's side.
pub async fn outbound(authority: &Authority, to: std::net::SocketAddr, san: &str) -> Running {
    outbound_with(authority, to, san, |_| {}).await
}

/// The client's side, with changes to its cluster.
pub async fn outbound_with(
    authority: &Authority,
    to: std::net::SocketAddr,
    san: &str,
    change: impl FnOnce(&mut Cluster),
) -> Running {
    let mut up = static_cluster("server", &[to]);
    up.transport_socket = Some(socket(pack(&tls::UpstreamTlsContext {
        common_tls_context: Some(common(&["istio-http/1.1", "istio", "http/1.1"], &[san])),
        sni: "outbound_.9080_._.server.default.svc.cluster.local".into(),
        ..Default::default()
    })));

    change(&mut up);
    let manager = manager(inline(table("r", vec![forward("/", "server")])));
    let secrets = authority.secrets("spiffe://cluster.local/ns/default/sa/client");
    let running = Running::start(ProxyOptions {
        secrets,
        ..Default::default()
    });

    running
        .apply(
            vec![up],
            vec![listener("outbound", vec![http_chain(&manager)])],
        )
        .await;

    running
}

#[tokio::test]
async fn identities_are_proved_both_ways() {
    let authority = Authority::new();
    let server = inbound(&authority, peers::echo("app").await).await;
    let to = server.at("inbound").await;
    let client = outbound(
        &authority,
        to,
        "spiffe://cluster.local/ns/default/sa/server",
    )
    .await;

    let (head, body) = peers::get(client.at("outbound").await, "/secret").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}{body}");
    assert!(
        body.contains(
            "x-forwarded-client-cert: By=spiffe://cluster.local/ns/default/sa/server;Hash="
        ),
        "{body}"
    );

    assert!(
        body.contains(";URI=spiffe://cluster.local/ns/default/sa/client\r\n"),
        "{body}"
    );

    let wrong = outbound(&authority, to, "spiffe://cluster.local/ns/default/sa/other").await;
    let (head, body) = peers::get(wrong.at("outbound").await, "/secret").await;
    assert!(
        head.starts_with("HTTP/1.1 503 ") && !body.contains("TLS"),
        "{head}{body}"
    );

    assert!(wrong.log.line_with(" UF ").await.contains("TLS_error"));

    let stranger = Authority::new();
    let foreign = outbound(&stranger, to, "spiffe://cluster.local/ns/default/sa/server").await;
    assert!(
        peers::get(foreign.at("outbound").await, "/secret")
            .await
            .0
            .starts_with("HTTP/1.1 503 ")
    );

    let mut plain = peers::Client::connect(to).await;
    plain.send("GET /secret HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(
        plain.closed().await,
        "plaintext where TLS is required gets nothing"
    );
}

#[tokio::test]
async fn a_listener_waits_for_its_secrets_and_rotation_cuts_nothing() {
    let authority = Authority::new();
    let server = inbound(&authority, peers::echo("app").await).await;
    let to = server.at("inbound").await;

    let mut manager = manager(inline(table("r", vec![forward("/", "server")])));

    manager.stat_prefix = "late".into();
    let secrets = SecretStore::new();
    let late = Running::start(ProxyOptions {
        secrets: secrets.clone(),
        ..Default::default()
    });

    let mut chain = http_chain(&manager);
    chain.transport_socket = Some(socket(pack(&tls::DownstreamTlsContext {
        common_tls_context: Some(common(&["http/1.1"], &[])),
        require_client_certificate: Some(meltemi_proto::google::protobuf::BoolValue {
            value: true,
        }),
        ..Default::default()
    })));

    late.apply(
        vec![static_cluster("server", &[])],
        vec![listener("late", vec![chain])],
    )
    .await;

    assert!(
        late.handle.addresses().await.is_empty(),
        "no certificate yet, so nobody is let in"
    );

    let full = authority.secrets("spiffe://cluster.local/ns/default/sa/late");
    for name in full.names() {
        secrets.set(&name, (*full.get(&name).expect("set")).clone());
    }
    late.at("late").await;

    let client_secrets = authority.secrets("spiffe://cluster.local/ns/default/sa/client");
    let mut up = static_cluster("server", &[to]);
    up.transport_socket = Some(socket(pack(&tls::UpstreamTlsContext {
        common_tls_context: Some(common(
            &[],
            &["spiffe://cluster.local/ns/default/sa/server"],
        )),
        sni: "server".into(),
        ..Default::default()
    })));

    let plain = http_chain(&crate::config::manager(inline(table(
        "r",
        vec![forward("/", "server")],
    ))));

    let client = Running::start(ProxyOptions {
        secrets: client_secrets.clone(),
        ..Default::default()
    });

    client
        .apply(vec![up], vec![listener("outbound", vec![plain])])
        .await;
    let mut connection = peers::Client::connect(client.at("outbound").await).await;
    assert!(
        connection
            .ask("GET /1 HTTP/1.1\nhost: a\n\n")
            .await
            .0
            .starts_with("HTTP/1.1 200 ")
    );

    client_secrets.set(
        "default",
        Secret::identity(authority.identity("spiffe://cluster.local/ns/default/sa/renewed")),
    );

    let (head, body) = connection.ask("GET /2 HTTP/1.1\nhost: a\n\n").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(
        body.contains("sa/client") || body.contains("sa/renewed"),
        "{body}"
    );
}

#[tokio::test]
async fn pinned_certificates_are_the_only_ones_that_are_taken() {
    let authority = Authority::new();
    let inbound_secrets = authority.secrets("spiffe://cluster.local/ns/default/sa/server");
    let outbound_secrets = authority.secrets("spiffe://cluster.local/ns/default/sa/client");
    let pin_of = |secrets: &SecretStore| {
        let secret = secrets.get("default").expect("set");
        secret
            .identity
            .as_ref()
            .expect("an identity")
            .info()
            .sha256
            .clone()
    };

    let (servers, clients) = (pin_of(&inbound_secrets), pin_of(&outbound_secrets));
    let pinned = |pin: &str| {
        use tls::common_tls_context::ValidationContextType::CombinedValidationContext;
        let mut context = common(&["http/1.1"], &[]);
        if let Some(CombinedValidationContext(combined)) = &mut context.validation_context_type
            && let Some(validation) = &mut combined.default_validation_context
        {
            validation.verify_certificate_hash = vec![pin.to_owned()];
        }
        context
    };

    let cases = [
        (&clients, &servers, "200"),
        (&servers, &servers, "503"),
        (&clients, &clients, "503"),
    ];

    for (client_pin, server_pin, status) in cases {
        let mut chain = http_chain(&manager(inline(table("r", vec![forward("/", "app")]))));
        chain.transport_socket = Some(socket(pack(&tls::DownstreamTlsContext {
            common_tls_context: Some(pinned(client_pin)),
            require_client_certificate: Some(meltemi_proto::google::protobuf::BoolValue {
                value: true,
            }),
            ..Default::default()
        })));

        let server = Running::start(ProxyOptions {
            secrets: inbound_secrets.clone(),
            ..Default::default()
        });

        let app = static_cluster("app", &[peers::echo("app").await]);
        server
            .apply(vec![app], vec![listener("inbound", vec![chain])])
            .await;
        let mut up = static_cluster("server", &[server.at("inbound").await]);
        up.transport_socket = Some(socket(pack(&tls::UpstreamTlsContext {
            common_tls_context: Some(pinned(server_pin)),
            sni: "server".into(),
            ..Default::default()
        })));

        let client = Running::start(ProxyOptions {
            secrets: outbound_secrets.clone(),
            ..Default::default()
        });

        let plain = http_chain(&manager(inline(table("r", vec![forward("/", "server")]))));
        client
            .apply(vec![up], vec![listener("outbound", vec![plain])])
            .await;
        let (head, body) = peers::get(client.at("outbound").await, "/").await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{head}{body}"
        );

        if client_pin == &servers {
            // The client's proxy may know before the server's has counted.
            let counted = "meltemi_downstream_tls_errors_total{reason=\"certificate\"} 1\n";
            while !server.handle.metrics().contains(counted) {
                tokio::task::yield_now().await;
            }
        }

        if server_pin == &clients {
            assert!(client.log.line_with(" UF ").await.contains("pinned"));
        }
    }
}

#[tokio::test]
async fn handshakes_that_fail_are_counted_by_reason() {
    let authority = Authority::new();
    let server = inbound(&authority, peers::echo("app").await).await;
    let to = server.at("inbound").await;
    let mut plain = peers::Client::connect(to).await;

    plain.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(plain.closed().await);
    let mut gone = peers::Client::connect(to).await;
    gone.send([0x16, 0x03, 0x01]).await;
    tokio::io::AsyncWriteExt::shutdown(&mut gone.stream)
        .await
        .expect("half-closed");
    assert!(gone.closed().await);
    let stranger = Authority::new();
    let foreign = outbound(&stranger, to, "spiffe://cluster.local/ns/default/sa/server").await;
    peers::get(foreign.at("outbound").await, "/").await;

    // The stranger ends the handshake, since it does not know us either; the alert may come a
    // moment later.
    let all = "meltemi_refused_connections_total{cause_kind=\"tls\",flag=\"-\"} 3\n";
    let metrics = loop {
        let metrics = server.handle.metrics();
        if metrics.contains(all) {
            break metrics;
        }
        tokio::task::yield_now().await;
    };

    for reason in ["plaintext", "closed", "alert"] {
        let line = format!("meltemi_downstream_tls_errors_total{{reason=\"{reason}\"}} 1\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
}

/// Answers with the server name that it was asked for.
async fn named_server(authority: &Authority) -> std::net::SocketAddr {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let identity = authority.identity_of(SanType::DnsName("a.example".try_into().expect("IA5")));
    let config = meltemi_tls::server_config(&meltemi_tls::ServerTerms::default(), &identity, None)
        .expect("a server");
    let acceptor = tokio_rustls::TlsAcceptor::from(config);

    peers::server(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                return;
            };
            let name = stream.get_ref().1.server_name().unwrap_or("-").to_owned();
            let mut seen = Vec::new();
            while stream.read_buf(&mut seen).await.is_ok_and(|n| n > 0) {
                if seen.ends_with(b"\r\n\r\n") {
                    seen.clear();
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}",
                        name.len()
                    );
                    let _ = stream.write_all(answer.as_bytes()).await;
                    let _ = stream.flush().await;
                }
            }
        }
    })
    .await
}

fn inline_source(text: &str) -> core::DataSource {
    core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineString(text.into())),
        ..Default::default()
    }
}

#[tokio::test]
async fn the_requests_host_is_the_server_name_and_the_certificate_must_be_for_it() {
    let authority = Authority::new();
    let at = named_server(&authority).await;
    let up = |name: &str, checked: bool, header: &str| {
        let mut up = static_cluster(name, &[at]);
        let validation = tls::CertificateValidationContext {
            trusted_ca: Some(inline_source(&authority.pem)),
            ..Default::default()
        };

        up.transport_socket = Some(socket(pack(&tls::UpstreamTlsContext {
            common_tls_context: Some(tls::CommonTlsContext {
                validation_context_type: Some(
                    tls::common_tls_context::ValidationContextType::ValidationContext(validation),
                ),
                ..Default::default()
            }),
            ..Default::default()
        })));

        let options = meltemi_proto::envoy::extensions::upstreams::http::v3::HttpProtocolOptions {
            upstream_http_protocol_options: Some(core::UpstreamHttpProtocolOptions {
                auto_sni: true,
                auto_san_validation: checked,
                override_auto_sni_header: header.into(),
            }),
            ..Default::default()
        };

        up.typed_extension_protocol_options.insert(
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".into(),
            pack(&options),
        );

        up
    };

    let routes = vec![
        forward("/checked", "checked"),
        forward("/header", "header"),
        forward("/free", "free"),
    ];

    let running = Running::with(
        vec![
            up("checked", true, ""),
            up("header", true, "x-name"),
            up("free", false, ""),
        ],
        vec![listener(
            "in",
            vec![http_chain(&manager(inline(table("r", routes))))],
        )],
    )
    .await;

    let to = running.at("in").await;
    let ask = async |path: &str, host: &str| {
        let request = format!("GET {path} HTTP/1.1\nhost: {host}\nx-name: a.example\n\n");
        peers::Client::connect(to).await.ask(&request).await
    };

    assert_eq!(ask("/checked", "a.example:443").await.1, "a.example");
    assert_eq!(ask("/header", "other.example").await.1, "a.example");
    assert_eq!(ask("/free", "other.example").await.1, "other.example");
    assert_eq!(
        ask("/free", "10.0.0.1").await.1,
        "-",
        "an address is never sent"
    );

    // B12
    let long = "a".repeat(300);
    assert_eq!(ask("/free", &long).await.1, "-", "nor what is no name");

    for host in ["other.example", "10.0.0.1", "[::1]:443", long.as_str()] {
        let (head, body) = ask("/checked", host).await;
        assert!(head.starts_with("HTTP/1.1 503 "), "{host}: {head}{body}");
    }
}

#[tokio::test]
async fn certificates_that_cannot_be_read_refuse_the_resource() {
    let running = Running::start(ProxyOptions::default());
    let mut chain = http_chain(&manager(inline(table("r", vec![]))));
    chain.transport_socket = Some(socket(pack(&tls::DownstreamTlsContext {
        common_tls_context: Some(tls::CommonTlsContext {
            tls_certificates: vec![tls::TlsCertificate {
                certificate_chain: Some(inline_source("not a certificate")),
                private_key: Some(inline_source("not a key")),
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    })));

    let message = listener("in", vec![chain]);
    let resources = vec![("in".into(), pack(&message))];
    let refused = running
        .handle
        .apply(meltemi_proto::type_url::LISTENER, resources, vec![])
        .await;

    let reason = refused.expect_err("refused");
    assert!(
        reason.starts_with("in: ") && reason.contains("PEM"),
        "{reason}"
    );

    assert!(running.handle.addresses().await.is_empty());
}

/// A file is read for as long as a resource names it: nobody wants to hear of the files of an
/// object that was deleted, and its key leaves the memory with it.
#[tokio::test]
async fn files_of_removed_resources_are_forgotten() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("roots.pem");
    std::fs::write(&path, authority.roots()).expect("written");
    let name = format!("file-root:{}", path.display());

    let mut terms = common(&[], &[]);
    terms.tls_certificate_sds_secret_configs.clear();
    terms.validation_context_type = Some(
        tls::common_tls_context::ValidationContextType::ValidationContextSdsSecretConfig(sds(
            &name,
        )),
    );
    let mut cluster = static_cluster("files", &[peers::nobody().await]);
    cluster.transport_socket = Some(socket(pack(&tls::UpstreamTlsContext {
        common_tls_context: Some(terms),
        ..Default::default()
    })));

    let secrets = SecretStore::new();
    let running = Running::start(ProxyOptions {
        secrets: secrets.clone(),
        ..Default::default()
    });
    running.apply(vec![cluster], vec![]).await;
    secrets.refresh_files();
    assert_eq!(secrets.names(), [&*name]);

    let removed = vec!["files".to_owned()];
    let applied = running.handle.apply(CLUSTER, vec![], removed).await;
    applied.expect("removed");
    secrets.refresh_files();
    assert!(secrets.names().is_empty(), "{:?}", secrets.names());
}
