//! Whole resources: listeners, clusters, endpoints, bootstrap, snapshots.

use std::sync::Arc;

use meltemi_filters::metadata::{Metadata, Value};
use meltemi_lb::{Cursor, PickContext, Policy};
use meltemi_proto::Any;
use meltemi_proto::envoy::config::bootstrap::v3 as bootstrap;
use meltemi_proto::envoy::config::cluster::v3 as cluster;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::config::endpoint::v3 as endpoint;
use meltemi_proto::envoy::config::listener::v3 as listener;
use meltemi_proto::envoy::config::route::v3 as route;
use meltemi_proto::envoy::extensions::filters::http as http_filters;
use meltemi_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use meltemi_proto::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use meltemi_proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use meltemi_proto::google::protobuf::{BoolValue, Struct, UInt32Value};
use meltemi_proto::{pack, value_of};

use crate::bootstrap::Bootstrap;
use crate::cluster::{Discovery, UpstreamProtocol};
use crate::compiler::*;
use crate::listener::Terminal;
use crate::tls::{SecretSource, Trust, UpstreamTransport};

fn socket(ip: &str, port: u32) -> Option<core::Address> {
    let socket = core::SocketAddress {
        address: ip.into(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
        ..Default::default()
    };
    Some(core::Address {
        address: Some(core::address::Address::SocketAddress(socket)),
    })
}

pub(crate) fn network(name: &str, any: Any) -> listener::Filter {
    listener::Filter {
        name: name.into(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(any)),
    }
}

pub(crate) fn tcp_proxy(cluster: &str) -> listener::Filter {
    let message = tcp::TcpProxy {
        stat_prefix: cluster.into(),
        cluster_specifier: Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(cluster.into())),
        ..Default::default()
    };
    network("envoy.filters.network.tcp_proxy", pack(&message))
}

pub(crate) fn http_filter(name: &str, any: Any) -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: name.into(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(any)),
        ..Default::default()
    }
}

pub(crate) fn router() -> hcm::HttpFilter {
    http_filter(
        "envoy.filters.http.router",
        pack(&http_filters::router::v3::Router::default()),
    )
}

pub(crate) fn manager(filters: Vec<hcm::HttpFilter>) -> listener::Filter {
    let message = hcm::HttpConnectionManager {
        stat_prefix: "outbound".into(),
        http_filters: filters,
        route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::RouteConfig(
            route::RouteConfiguration::default(),
        )),
        normalize_path: Some(BoolValue { value: true }),
        ..Default::default()
    };

    network(
        "envoy.filters.network.http_connection_manager",
        pack(&message),
    )
}

fn chain(filters: Vec<listener::Filter>) -> listener::FilterChain {
    listener::FilterChain {
        filters,
        ..Default::default()
    }
}

pub(crate) fn simple(
    name: &str,
    ip: &str,
    port: u32,
    filters: Vec<listener::Filter>,
) -> listener::Listener {
    listener::Listener {
        name: name.into(),
        address: socket(ip, port),
        filter_chains: vec![chain(filters)],
        bind_to_port: Some(BoolValue { value: false }),
        ..Default::default()
    }
}

fn unknown() -> Any {
    Any {
        type_url: "type.googleapis.com/envoy.extensions.filters.http.oauth2.v3.OAuth2".into(),
        value: vec![],
    }
}

#[test]
fn unknown_filters_refuse_the_listener_unless_optional() {
    let compile = |filters| compile_listener(&simple("l", "0.0.0.0", 80, vec![manager(filters)]));
    let error = compile(vec![http_filter("oauth2", unknown()), router()]).expect_err("refused");
    assert_eq!(error.path, "filter_chains[0].filters[0].http_filters[0]");
    let mut optional = http_filter("oauth2", unknown());
    optional.is_optional = true;
    let (compiled, warnings) = compile(vec![optional, router()]).expect("left out");
    assert_eq!(warnings.len(), 1);
    let Terminal::Http(manager) = &compiled.chains.all[0].terminal else {
        panic!("HTTP")
    };
    assert!(manager.filters.slots().next().is_none() && manager.path.normalize);
    assert!(
        compile(vec![]).is_err(),
        "without a router nothing is served"
    );

    let other = compile_listener(&simple(
        "l",
        "0.0.0.0",
        80,
        vec![network("x", unknown()), tcp_proxy("c")],
    ));

    assert!(other.is_err(), "nor are unknown network filters left out");
    assert!(compile_listener(&simple("l", "0.0.0.0", 80, vec![])).is_err());
    assert!(
        compile_listener(&simple(
            "l",
            "0.0.0.0",
            80,
            vec![tcp_proxy("a"), tcp_proxy("b")]
        ))
        .is_err()
    );
}

pub(crate) fn downstream_tls(
    require: bool,
    trust: Option<tls::common_tls_context::ValidationContextType>,
) -> core::TransportSocket {
    let ads = core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::ApiConfigSource(
            core::ApiConfigSource {
                api_type: core::api_config_source::ApiType::Grpc as i32,
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
        )),
        ..Default::default()
    };

    let context = tls::DownstreamTlsContext {
        common_tls_context: Some(tls::CommonTlsContext {
            tls_certificate_sds_secret_configs: vec![tls::SdsSecretConfig {
                name: "default".into(),
                sds_config: Some(ads),
            }],
            alpn_protocols: vec!["h2".into(), "http/1.1".into()],
            validation_context_type: trust,
            ..Default::default()
        }),
        require_client_certificate: Some(BoolValue { value: require }),
        ..Default::default()
    };

    core::TransportSocket {
        name: "envoy.transport_sockets.tls".into(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack(
            &context,
        ))),
    }
}

#[test]
fn tls_terms_are_plain_data_and_never_left_out() {
    use tls::common_tls_context::ValidationContextType;

    let compile = |socket| {
        let mut message = simple("l", "0.0.0.0", 443, vec![tcp_proxy("c")]);
        message.filter_chains[0].transport_socket = Some(socket);
        compile_listener(&message)
    };

    let root = ValidationContextType::ValidationContextSdsSecretConfig(tls::SdsSecretConfig {
        name: "ROOTCA".into(),
        sds_config: None,
    });

    let (compiled, _) = compile(downstream_tls(true, Some(root))).expect("compiles");
    let terms = compiled.chains.all[0].transport.tls().expect("TLS");
    assert!(terms.require_client_certificate);
    assert!(
        matches!(&terms.common.validation.trust, Trust::Secret(secret) if &*secret.name == "ROOTCA")
    );
    let secrets: Vec<_> = terms
        .common
        .secrets()
        .map(|secret| (&*secret.name, &secret.source))
        .collect();

    assert_eq!(
        secrets[0],
        (
            "default",
            &SecretSource::Cluster {
                cluster: "sds-grpc".into(),
                delta: false
            }
        )
    );

    assert!(
        compile(downstream_tls(true, None)).is_err(),
        "nothing to verify the client by"
    );

    let unknown = core::TransportSocket {
        name: "x".into(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(unknown())),
    };

    assert!(
        compile(unknown).is_err(),
        "an unknown transport is not plaintext"
    );
}

#[test]
fn a_peer_goes_on_under_terms_that_it_would_meet() {
    use crate::tls::DownstreamTls;
    use meltemi_proto::envoy::r#type::matcher::v3::{StringMatcher, string_matcher};
    use tls::common_tls_context::ValidationContextType;

    let inline = |text: &str| core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineString(text.to_owned())),
        ..Default::default()
    };

    let terms = |roots: &str, domains: &[&str]| {
        let sans = domains.iter().map(|domain| tls::SubjectAltNameMatcher {
            san_type: tls::subject_alt_name_matcher::SanType::Uri as i32,
            matcher: Some(StringMatcher {
                match_pattern: Some(string_matcher::MatchPattern::Prefix(format!(
                    "spiffe://{domain}/"
                ))),
                ..Default::default()
            }),
            ..Default::default()
        });

        let validation = tls::CertificateValidationContext {
            trusted_ca: Some(inline(roots)),
            match_typed_subject_alt_names: sans.collect(),
            ..Default::default()
        };

        let message = tls::DownstreamTlsContext {
            common_tls_context: Some(tls::CommonTlsContext {
                tls_certificates: vec![tls::TlsCertificate {
                    certificate_chain: Some(inline("chain")),
                    private_key: Some(inline("key")),
                    ..Default::default()
                }],
                validation_context_type: Some(ValidationContextType::ValidationContext(validation)),
                ..Default::default()
            }),
            require_client_certificate: Some(BoolValue { value: true }),
            ..Default::default()
        };

        DownstreamTls::compile(&message, &mut meltemi_filters::Scope::new()).expect("compiles")
    };

    let old = terms("roots", &["one"]);
    let peer = meltemi_filters::TlsPeer {
        presented: true,
        validated: true,
        uri_sans: vec!["spiffe://one/ns/a/sa/b".into()],
        ..Default::default()
    };

    assert!(
        terms("roots", &["one", "two"]).goes_on_with(&old, &peer),
        "one more domain is trusted"
    );

    assert!(
        terms("roots", &[]).goes_on_with(&old, &peer),
        "every domain is"
    );

    assert!(
        !terms("roots", &["two"]).goes_on_with(&old, &peer),
        "its own is no longer"
    );

    assert!(
        !terms("others", &["one"]).goes_on_with(&old, &peer),
        "others vouch now"
    );

    let nobody = meltemi_filters::TlsPeer::default();
    assert!(
        !terms("roots", &["one"]).goes_on_with(&old, &nobody),
        "a certificate is asked for now"
    );
}

#[test]
fn verification_that_cannot_be_done_refuses_and_pins_are_read() {
    use tls::common_tls_context::ValidationContextType;

    let compile =
        |change: &dyn Fn(&mut tls::CommonTlsContext, &mut tls::CertificateValidationContext)| {
            let mut validation = tls::CertificateValidationContext {
                trusted_ca: Some(core::DataSource {
                    specifier: Some(core::data_source::Specifier::InlineString("roots".into())),
                    ..Default::default()
                }),
                ..Default::default()
            };

            let mut common = tls::CommonTlsContext::default();
            change(&mut common, &mut validation);
            common.validation_context_type =
                Some(ValidationContextType::ValidationContext(validation));
            let context = tls::UpstreamTlsContext {
                common_tls_context: Some(common),
                ..Default::default()
            };

            let socket = core::TransportSocket {
                name: "envoy.transport_sockets.tls".into(),
                config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack(
                    &context,
                ))),
            };

            compile_cluster(&cluster::Cluster {
                transport_socket: Some(socket),
                ..eds("c")
            })
        };

    let spki = "NvqYIYSbgK2vCJpQhObf77vv+bQWtc5ek5RIOwPiC9A=";
    let hash = "DF:6F:F7:2F:E9:11:65:21:26:8F:6F:2D:D4:96:6F:51:DF:47:98:83:FE:70:37:B3:9F:75:91:6A:C3:04:9D:1A";
    let (pinned, warnings) = compile(&|_, validation| {
        validation.verify_certificate_spki = vec![spki.into()];
        validation.verify_certificate_hash =
            vec![hash.into(), hash.replace(':', "").to_lowercase()];
    })
    .expect("good pins");

    let validation = &pinned.transport.tls().expect("TLS").common.validation;
    assert_eq!(
        (
            validation.spki_pins.len(),
            validation.certificate_pins[0][0]
        ),
        (1, 0xdf)
    );

    assert_eq!(
        validation.certificate_pins[0],
        validation.certificate_pins[1]
    );

    assert!(
        validation.accepts_pin(&validation.certificate_pins[0], &[0; 32])
            && validation.accepts_pin(&[0; 32], &validation.spki_pins[0])
    );

    assert!(!validation.accepts_pin(&[0; 32], &[0; 32]));
    assert!(warnings.is_empty());
    type Change = fn(&mut tls::CommonTlsContext, &mut tls::CertificateValidationContext);

    let refused: [(&str, Change); 9] = [
        ("verify_certificate_spki[0]", |_, v| {
            v.verify_certificate_spki = vec!["AAAA".into()]
        }),
        ("verify_certificate_hash[0]", |_, v| {
            v.verify_certificate_hash = vec!["zz".into()]
        }),
        ("max_verify_depth", |_, v| {
            v.max_verify_depth = Some(UInt32Value { value: 1 })
        }),
        ("nothing vouches", |_, v| {
            v.trusted_ca = None;
            v.match_typed_subject_alt_names = vec![tls::SubjectAltNameMatcher {
                san_type: tls::subject_alt_name_matcher::SanType::Dns as i32,
                matcher: Some(meltemi_proto::envoy::r#type::matcher::v3::StringMatcher {
                    match_pattern: Some(
                        meltemi_proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern::Exact("a".into()),
                    ),
                    ..Default::default()
                }),
                ..Default::default()
            }];
        }),
        ("crl without", |_, v| v.crl = v.trusted_ca.take()),
        ("no suite", |c, _| {
            c.tls_params = Some(tls::TlsParameters {
                cipher_suites: vec!["AES128-SHA".into()],
                ..Default::default()
            })
        }),
        ("no group", |c, _| {
            c.tls_params = Some(tls::TlsParameters {
                ecdh_curves: vec!["P-521".into()],
                ..Default::default()
            })
        }),
        ("signature_algorithms", |c, _| {
            c.tls_params = Some(tls::TlsParameters {
                signature_algorithms: vec!["ed25519".into()],
                ..Default::default()
            });
        }),
        ("compliance_policies", |c, _| {
            c.tls_params = Some(tls::TlsParameters {
                compliance_policies: vec![0],
                ..Default::default()
            })
        }),
    ];

    for (wanted, change) in refused {
        let rejection = compile(&change).expect_err(wanted).to_string();
        assert!(rejection.contains(wanted), "{wanted}: {rejection}");
    }

    let (_, warnings) =
        compile(&|_, v| v.only_verify_leaf_cert_crl = true).expect("stricter than asked for");
    assert_eq!(warnings.len(), 1);
}

#[test]
fn the_same_bytes_are_the_same_value() {
    let compiler = Compiler::default();
    let any = pack(&simple("l", "0.0.0.0", 80, vec![tcp_proxy("a")]));
    let (first, _) = compiler.listener_from(&any).expect("compiles");
    let (second, _) = compiler.listener_from(&any).expect("compiles");

    assert!(Arc::ptr_eq(&first, &second));
    let other = pack(&simple("l", "0.0.0.0", 80, vec![tcp_proxy("b")]));
    assert!(!Arc::ptr_eq(
        &first,
        &compiler.listener_from(&other).expect("compiles").0
    ));

    assert!(
        compiler.cluster_from(&any).is_err(),
        "another type is refused"
    );
}

pub(crate) fn eds(name: &str) -> cluster::Cluster {
    cluster::Cluster {
        name: name.into(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::Eds as i32,
        )),
        lb_policy: cluster::cluster::LbPolicy::LeastRequest as i32,
        ..Default::default()
    }
}

fn fields(pairs: &[(&str, &str)]) -> Struct {
    Struct {
        fields: pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value_of(*value)))
            .collect(),
    }
}

#[test]
fn auto_mtls_goes_by_the_endpoints_metadata() {
    let context = tls::UpstreamTlsContext {
        sni: "outbound_.9080_._.details".into(),
        ..Default::default()
    };

    let socket = |any: Any| {
        Some(core::TransportSocket {
            name: String::new(),
            config_type: Some(core::transport_socket::ConfigType::TypedConfig(any)),
        })
    };

    let raw =
        meltemi_proto::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer::default();
    let message = cluster::Cluster {
        transport_socket_matches: vec![
            cluster::cluster::TransportSocketMatch {
                name: "tlsMode-istio".into(),
                r#match: Some(fields(&[("tlsMode", "istio")])),
                transport_socket: socket(pack(&context)),
            },
            cluster::cluster::TransportSocketMatch {
                name: "tlsMode-disabled".into(),
                r#match: Some(Struct::default()),
                transport_socket: socket(pack(&raw)),
            },
        ],
        ..eds("outbound|9080||details")
    };

    let (compiled, warnings) = compile_cluster(&message).expect("compiles");
    assert_eq!(warnings, []);
    let mut meshed = Metadata::default();
    meshed.set(
        "envoy.transport_socket_match",
        "tlsMode",
        Value::string("istio"),
    );

    let (transport, name) = compiled.transport_for(&meshed);
    assert_eq!(name.map(|name| &**name), Some("tlsMode-istio"));
    assert_eq!(
        transport.tls().map(|tls| &*tls.sni),
        Some("outbound_.9080_._.details")
    );

    let (transport, name) = compiled.transport_for(&Metadata::default());
    assert_eq!(name.map(|name| &**name), Some("tlsMode-disabled"));
    assert!(matches!(transport, UpstreamTransport::Plaintext));
}

#[test]
fn clusters_have_envoys_defaults_and_say_what_they_want() {
    let (compiled, _) = compile_cluster(&eds("c")).expect("compiles");
    assert_eq!(compiled.lb.policy, Policy::LeastRequest { choices: 2 });
    assert_eq!(compiled.breakers[0].max_requests, 1024);
    assert_eq!(compiled.connect_timeout.as_secs(), 5);
    assert_eq!(compiled.protocol, UpstreamProtocol::Http1);
    assert_eq!(compiled.eds().map(|name| &**name), Some("c"));
    use meltemi_proto::envoy::extensions::upstreams::http::v3 as upstream;
    use upstream::http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config,
    };

    let http2 = upstream::HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(
            ExplicitHttpConfig {
                protocol_config: Some(explicit_http_config::ProtocolConfig::Http2ProtocolOptions(
                    Default::default(),
                )),
            },
        )),
        ..Default::default()
    };

    let mut message = eds("c");
    message.typed_extension_protocol_options.insert(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".into(),
        pack(&http2),
    );

    assert_eq!(
        compile_cluster(&message).expect("compiles").0.protocol,
        UpstreamProtocol::Http2
    );

    let maglev = cluster::Cluster {
        lb_policy: cluster::cluster::LbPolicy::Maglev as i32,
        ..eds("c")
    };

    assert_eq!(
        compile_cluster(&maglev).expect("compiles").0.lb.policy,
        Policy::Maglev { table_size: 65537 }
    );

    let not_prime = cluster::Cluster {
        lb_config: Some(cluster::cluster::LbConfig::MaglevLbConfig(
            cluster::cluster::MaglevLbConfig {
                table_size: Some(meltemi_proto::google::protobuf::UInt64Value { value: 65536 }),
            },
        )),
        ..maglev
    };

    assert!(compile_cluster(&not_prime).is_err());
    let original = cluster::Cluster {
        name: "PassthroughCluster".into(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::OriginalDst as i32,
        )),
        lb_policy: cluster::cluster::LbPolicy::ClusterProvided as i32,
        ..Default::default()
    };

    assert!(matches!(
        compile_cluster(&original).expect("compiles").0.discovery,
        Discovery::OriginalDst(_)
    ));
}

pub(crate) fn lb_endpoint(
    ip: &str,
    weight: u32,
    health: core::HealthStatus,
) -> endpoint::LbEndpoint {
    endpoint::LbEndpoint {
        health_status: health as i32,
        load_balancing_weight: Some(UInt32Value { value: weight }),
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(
            endpoint::Endpoint {
                address: socket(ip, 9080),
                ..Default::default()
            },
        )),
        ..Default::default()
    }
}

#[test]
fn endpoints_are_balanced_by_weight_health_and_priority() {
    use core::HealthStatus::{Draining, Healthy, Unknown};

    let group = |priority, endpoints| endpoint::LocalityLbEndpoints {
        priority,
        lb_endpoints: endpoints,
        load_balancing_weight: Some(UInt32Value { value: 1 }),
        ..Default::default()
    };

    let message = endpoint::ClusterLoadAssignment {
        cluster_name: "c".into(),
        endpoints: vec![
            group(
                0,
                vec![
                    lb_endpoint("10.0.0.1", 1, Healthy),
                    lb_endpoint("10.0.0.2", 1, Unknown),
                    lb_endpoint("10.0.0.3", 1, Draining),
                ],
            ),
            group(1, vec![lb_endpoint("10.0.1.1", 1, Healthy)]),
        ],
        ..Default::default()
    };

    let (set, _) = compile_endpoints(&message).expect("compiles");
    assert_eq!(&*set.endpoints[0].hash_key, "10.0.0.1:9080");
    let (compiled, _) = compile_cluster(&eds("c")).expect("compiles");
    let balancer = set.balancer(&compiled.lb, false, |host| {
        set.endpoints[host as usize].status.health()
    });
    let mut counts = [0; 4];
    let mut cursor = Cursor::default();
    for random in 0..2000u64 {
        let mut context = PickContext {
            random: random.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            hash: None,
            active: &|_| 0,
            cursor: &mut cursor,
            subset: None,
            avoid: &|_| false,
            attempts: 1,
            failed_priorities: &[],
        };

        counts[balancer.pick(&mut context).expect("somebody").host as usize] += 1;
    }

    assert!(
        counts[0] > 700 && counts[1] > 700 && counts[2] == 0,
        "{counts:?}"
    );

    assert!(
        (50..250).contains(&counts[3]),
        "7 % spill over, for two thirds times 140 % are 93 %: {counts:?}"
    );
}

#[test]
fn a_bootstrap_says_how_to_begin() {
    let ads = core::ApiConfigSource {
        api_type: core::api_config_source::ApiType::DeltaGrpc as i32,
        grpc_services: vec![core::GrpcService {
            target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(
                core::grpc_service::EnvoyGrpc {
                    cluster_name: "xds-grpc".into(),
                    ..Default::default()
                },
            )),
            ..Default::default()
        }],
        ..Default::default()
    };

    let over_ads = Some(core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            Default::default(),
        )),
        ..Default::default()
    });

    let mut message = bootstrap::Bootstrap {
        node: Some(core::Node {
            id: "sidecar~1.2.3.4~a.b~b.svc.cluster.local".into(),
            ..Default::default()
        }),
        admin: Some(bootstrap::Admin {
            address: socket("127.0.0.1", 15000),
            ..Default::default()
        }),
        static_resources: Some(bootstrap::bootstrap::StaticResources {
            clusters: vec![cluster::Cluster {
                name: "xds-grpc".into(),
                ..Default::default()
            }],
            ..Default::default()
        }),
        dynamic_resources: Some(bootstrap::bootstrap::DynamicResources {
            ads_config: Some(ads),
            lds_config: over_ads.clone(),
            cds_config: over_ads,
            ..Default::default()
        }),
        ..Default::default()
    };

    let compiled = Bootstrap::compile(&message).expect("compiles");
    assert!(compiled.lds && compiled.cds);
    assert_eq!(
        compiled.ads.map(|ads| (ads.cluster, ads.delta)),
        Some(("xds-grpc".into(), true))
    );

    assert_eq!(compiled.admin.and_then(|admin| admin.port()), Some(15000));
    let mut bad = message.clone();
    let resources = bad.static_resources.as_mut().expect("set");
    resources.clusters.push(cluster::Cluster {
        name: "reviews".into(),
        lb_policy: 99,
        ..Default::default()
    });

    resources.clusters.push(cluster::Cluster {
        lb_policy: 99,
        ..Default::default()
    });

    let refused = Bootstrap::compile(&bad).expect_err("refused");
    assert!(
        refused
            .path
            .starts_with("static_resources.clusters[\"reviews\"]"),
        "{refused}"
    );

    bad.static_resources
        .as_mut()
        .expect("set")
        .clusters
        .remove(1);

    let refused = Bootstrap::compile(&bad).expect_err("refused");
    assert!(
        refused.path.starts_with("static_resources.clusters[1]"),
        "it has no name: {refused}"
    );

    message.static_resources = None;
    assert!(
        Bootstrap::compile(&message).is_err(),
        "the control plane's cluster must be static"
    );
}
