//! From YAML to resources, through the real parser and model.

mod accepted;
mod authz;
mod envoy;
mod ext_authz;
mod inbound;
mod summary;
mod touches;
mod values;
mod whole;

use std::sync::Arc;

use meltemi_model::{BuildOptions, Snapshot, Tables};
use meltemi_proto::envoy::config::core::v3::{Extension, Node};
use meltemi_proto::google::protobuf::{Struct, Value, value::Kind};
use meltemi_proto::{type_url, value_of};
use meltemi_translate::{Memo, Proxy, Translated, translate};

use meltemi_testkit::skip;

const SHOP: &str = include_str!("data/shop.yaml");

pub fn snapshot_of(text: &str) -> Snapshot {
    let (objects, diagnostics) = meltemi_api::parse_documents("test.yaml", text);
    let errors: Vec<_> = diagnostics
        .iter()
        .filter(|d| d.severity == meltemi_types::Severity::Error)
        .collect();
    assert!(errors.is_empty(), "{errors:#?}");
    let tables: Tables = objects.into_iter().map(Arc::new).collect();
    Snapshot::build(None, &tables, &BuildOptions::default()).snapshot
}

pub fn proxy(id: &str, account: &str, labels: &[(&str, &str)]) -> Proxy {
    let labels = Struct {
        fields: labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value_of(*value)))
            .collect(),
    };

    let fields = [
        ("SERVICE_ACCOUNT".to_owned(), value_of(account)),
        (
            "LABELS".to_owned(),
            Value {
                kind: Some(Kind::StructValue(labels)),
            },
        ),
    ];

    Proxy::from_node(&Node {
        id: id.to_owned(),
        user_agent_name: "meltemi".to_owned(),
        metadata: Some(Struct {
            fields: fields.into_iter().collect(),
        }),
        ..Node::default()
    })
    .expect("a node")
}

fn front() -> Proxy {
    proxy(
        "sidecar~10.44.0.2~front-1.shop~shop.svc.cluster.local",
        "front",
        &[("app", "front"), ("version", "v1")],
    )
}

fn ledger() -> Proxy {
    proxy(
        "sidecar~10.44.0.7~ledger-1.bank~bank.svc.cluster.local",
        "ledger",
        &[("app", "ledger"), ("version", "v1")],
    )
}

fn entry() -> Proxy {
    proxy(
        "router~10.44.0.9~entry-1.edge~edge.svc.cluster.local",
        "entry",
        &[("istio", "ingressgateway")],
    )
}

fn stock(mut proxy: Proxy) -> Proxy {
    proxy.is_meltemi = false;
    let names = [
        "envoy.filters.http.router",
        "envoy.filters.http.fault",
        "envoy.filters.http.cors",
        "envoy.filters.http.rbac",
        "envoy.filters.http.ext_authz",
        "envoy.filters.http.grpc_stats",
        "envoy.filters.http.set_filter_state",
        "envoy.filters.network.rbac",
        "envoy.filters.network.ext_authz",
        "envoy.filters.network.tcp_proxy",
    ];

    proxy.extensions = names
        .map(|name| {
            Extension {
                name: name.to_owned(),
                ..Extension::default()
            }
            .name
        })
        .into();

    proxy
}

fn shop(proxy: &Proxy) -> Translated {
    translate(&snapshot_of(SHOP), proxy, &Memo::new())
}

#[test]
fn a_sidecar_calls_the_mesh() {
    insta::assert_snapshot!(summary::of(&shop(&front())));
}

#[test]
fn a_strict_workload_accepts_mutual_tls_alone() {
    let text = summary::of(&shop(&ledger()));
    let inbound: Vec<_> = text
        .split("\nlistener ")
        .filter(|part| part.starts_with("virtualInbound"))
        .collect();
    insta::assert_snapshot!(inbound[0]);
}

#[test]
fn a_gateway_serves_what_gateways_say() {
    insta::assert_snapshot!(summary::of(&shop(&entry())));
}

#[test]
fn stock_envoy_is_sent_nothing_that_it_has_not() {
    let translated = shop(&stock(front()));
    for resource in translated.resources.values().flatten() {
        // Names of filters, and of their types, are plain text within the message.
        let text = String::from_utf8_lossy(&resource.any.value);
        for foreign in [
            "istio.alpn",
            "istio.stats",
            "metadata_exchange",
            "stats.PluginConfig",
        ] {
            assert!(!text.contains(foreign), "{foreign} in {}", resource.name);
        }
    }

    let text = summary::of(&translated);
    assert!(
        text.contains(r#"alpn=["istio-http/1.1", "istio", "http/1.1"]"#),
        "{text}"
    );

    assert!(
        text.contains("set_filter_state"),
        "sniffed ports decide their ALPN per request: {text}"
    );
}

#[test]
fn both_ends_of_tcp_are_told_to_say_who_they_are_where_both_can() {
    let ours = summary::of(&shop(&front()));
    assert!(
        ours.contains("istio-peer-exchange\", \"istio\"]"),
        "the client offers: {ours}"
    );

    let chains = |proxy: &Proxy| {
        let translated = shop(proxy);
        let list = translated.of(type_url::LISTENER);
        let inbound = list
            .iter()
            .find(|resource| &*resource.name == "virtualInbound")
            .expect("a sidecar's");
        let message: meltemi_proto::envoy::config::listener::v3::Listener =
            meltemi_proto::unpack(&inbound.any).expect("a listener");
        message.filter_chains
    };

    for (proxy, exchanges) in [(ledger(), true), (stock(ledger()), false)] {
        let mut seen = false;
        for chain in chains(&proxy) {
            let is_tcp = chain
                .filters
                .iter()
                .any(|filter| filter.name == "envoy.filters.network.tcp_proxy");

            let has_filter = chain
                .filters
                .iter()
                .any(|filter| filter.name == "istio.metadata_exchange");

            assert_eq!(has_filter, is_tcp && exchanges, "{}", chain.name);
            let Some(tls) = &chain.transport_socket else {
                continue;
            };
            let selects = format!("{tls:?}")
                .contains(format!("{:?}", b"istio-peer-exchange").trim_matches(['[', ']']));
            assert_eq!(selects, is_tcp && exchanges, "{}", chain.name);
            seen |= is_tcp;
        }

        assert!(seen, "a chain that ends mutual TLS for bytes");
    }
}

#[test]
fn grpc_web_is_translated_by_envoy_alone() {
    let text = SHOP.replace("name: http", "name: grpc-web");
    assert_ne!(text, SHOP);
    let has = |proxy: &Proxy| {
        let translated = translate(&snapshot_of(&text), proxy, &Memo::new());
        let all = translated.resources.values().flatten();
        all.clone().any(|resource| {
            String::from_utf8_lossy(&resource.any.value).contains("envoy.filters.http.grpc_web")
        })
    };

    let mut envoy = stock(front());
    envoy
        .extensions
        .insert("envoy.filters.http.grpc_web".to_owned());
    assert!(has(&envoy) && !has(&front()));
}

#[test]
fn the_same_world_gives_the_same_versions_and_builds_nothing_twice() {
    let memo = Memo::new();
    let first = translate(&snapshot_of(SHOP), &front(), &memo);
    let built = memo.stats().misses;
    let second = translate(&snapshot_of(SHOP), &front(), &memo);

    assert_eq!(memo.stats().misses, built);

    for (url, resources) in &first.resources {
        for (one, other) in resources.iter().zip(second.of(url)) {
            assert!(Arc::ptr_eq(one, other), "{}", one.name);
        }
    }
}

#[test]
fn one_weight_changes_the_tables_of_its_host() {
    let memo = Memo::new();
    let versions = |text: &str| {
        let translated = translate(&snapshot_of(text), &front(), &memo);
        let all: Vec<_> = translated
            .resources
            .iter()
            .flat_map(|(url, list)| {
                list.iter()
                    .map(move |one| (format!("{url} {}", one.name), one.version))
            })
            .collect();

        all
    };

    let (before, after) = (
        versions(SHOP),
        versions(&SHOP.replace("weight: 80", "weight: 79")),
    );

    let changed: Vec<_> = before
        .iter()
        .filter(|pair| !after.contains(pair))
        .map(|(name, _)| name.clone())
        .collect();

    // The host has no service on port 80, so its routes are there as well.
    assert_eq!(
        changed,
        ["80", "9080"].map(|table| format!("{} {table}", type_url::ROUTE))
    );
}

#[test]
fn names_are_unique_within_a_type() {
    for proxy in [front(), ledger(), entry()] {
        for resources in shop(&proxy).resources.values() {
            let mut names: Vec<_> = resources.iter().map(|one| one.name.as_str()).collect();
            names.sort_unstable();
            let all = names.len();
            names.dedup();
            assert_eq!(names.len(), all);
        }
    }
}

#[test]
fn registry_only_refuses_the_unknown() {
    let mesh = "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n    accessLogFile: /dev/stdout\n";
    let text = summary::of(&translate(
        &snapshot_of(&format!("{SHOP}{mesh}")),
        &front(),
        &Memo::new(),
    ));
    assert!(text.contains("host block_all"), "{text}");
    assert!(!text.contains("tcp PassthroughCluster"), "{text}");
}

#[test]
fn a_plaintext_tcp_port_belongs_to_one_gateway() {
    let gateway = |namespace: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: gw, namespace: {namespace}}}\nspec:\n  selector: {{istio: ingressgateway}}\n  servers:\n  - port: {{number: 3306, name: tcp, protocol: TCP}}\n    hosts: [\"*\"]\n"
        )
    };

    let route = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: sql, namespace: bank}\nspec:\n  hosts: [\"*\"]\n  gateways: [bank/gw]\n  tcp:\n  - route: [{destination: {host: ledger, port: {number: 5432}}}]\n";
    let text = |older: &str| {
        let world = format!(
            "{SHOP}---\n{}---\n{}---\n{route}",
            gateway("bank"),
            gateway(older)
        );
        summary::of(&translate(&snapshot_of(&world), &entry(), &Memo::new()))
    };

    assert!(
        text("zoo").contains("listener 0.0.0.0_3306"),
        "bank/gw comes first"
    );

    assert!(
        !text("ark").contains("listener 0.0.0.0_3306"),
        "ark/gw comes first, and has no route"
    );
}

#[test]
fn a_redirect_to_https_needs_no_route() {
    let gateway = "---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: gw, namespace: shop}\nspec:\n  selector: {istio: ingressgateway}\n  servers:\n  - port: {number: 8000, name: http, protocol: HTTP}\n    hosts: [a.example.com]\n    tls: {httpsRedirect: true}\n";
    let text = summary::of(&translate(
        &snapshot_of(&format!("{SHOP}{gateway}")),
        &entry(),
        &Memo::new(),
    ));

    assert!(
        text.contains(r#"host a.example.com:8000 ["a.example.com"] https-only"#),
        "{text}"
    );
}

#[test]
fn a_bind_that_is_not_honoured_is_told() {
    let told = |extra: &str| {
        let sidecar = format!(
            "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: front, namespace: shop}}\nspec:\n  egress:\n  - port: {{number: 9080, name: http, protocol: HTTP}}\n    hosts: ['*/*']\n{extra}"
        );
        let translated = translate(
            &snapshot_of(&format!("{SHOP}{sidecar}")),
            &front(),
            &Memo::new(),
        );

        let codes: Vec<_> = translated
            .diagnostics
            .into_iter()
            .map(|finding| finding.code)
            .collect();

        codes
    };

    assert_eq!(told(""), Vec::<String>::new());
    assert_eq!(told("    bind: 127.0.0.9\n"), ["MEL0502"]);
    assert_eq!(
        told("    bind: 127.0.0.9\n    captureMode: NONE\n"),
        ["MEL0502"]
    );
}

#[test]
fn a_workload_that_refuses_tls_is_called_in_plaintext() {
    let policy = "\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: open, namespace: shop}\nspec:\n  selector: {matchLabels: {app: catalogue}}\n  mtls: {mode: DISABLE}\n";
    let text = summary::of(&translate(
        &snapshot_of(&format!("{SHOP}{policy}")),
        &front(),
        &Memo::new(),
    ));

    let endpoint = text
        .lines()
        .find(|line| line.contains("10.44.0.3"))
        .expect("an endpoint");

    assert!(endpoint.ends_with("tls=false"), "{endpoint}");
}
