//! What a proxy says of itself, read by others: Prometheus' parser reads its metrics, Envoy's
//! messages its admin interface.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::mesh::{Mesh, Plan};
use crate::peers::{Peers, curl};

const PAGES: usize = 25;

/// The labels of Istio's standard metrics. Source: istio.io, "Istio Standard Metrics".
const LABELS: [&str; 25] = [
    "connection_security_policy",
    "destination_app",
    "destination_canonical_revision",
    "destination_canonical_service",
    "destination_cluster",
    "destination_principal",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "destination_version",
    "destination_workload",
    "destination_workload_namespace",
    "grpc_response_status",
    "reporter",
    "request_protocol",
    "response_code",
    "response_flags",
    "source_app",
    "source_canonical_revision",
    "source_canonical_service",
    "source_cluster",
    "source_principal",
    "source_version",
    "source_workload",
    "source_workload_namespace",
];

/// A scrape: names of all families, and the samples of those asked for.
pub struct Scrape {
    families: Vec<String>,
    samples: Vec<Sample>,
}

struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Scrape {
    pub fn of(mesh: &Mesh, peers: &Peers, workload: &str, port: u16, families: &[&str]) -> Self {
        let url = format!("http://127.0.0.1:{port}/stats/prometheus");
        let program = peers.program("scrape.py", &[&[url.as_str()][..], families].concat());
        let said = run(mesh, workload, &program);
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let labels = |labels: &Value| {
            let pairs = labels.as_object().expect("an object").iter();
            pairs
                .map(|(name, value)| (name.clone(), text(value)))
                .collect()
        };

        let samples = said["samples"].as_array().expect("a list").iter();

        Self {
            families: said["families"]
                .as_array()
                .expect("a list")
                .iter()
                .map(text)
                .collect(),
            samples: samples
                .map(|sample| Sample {
                    name: text(&sample["name"]),
                    labels: labels(&sample["labels"]),
                    value: sample["value"].as_f64().expect("a number"),
                })
                .collect(),
        }
    }

    /// The sum over all samples of this name with these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |sample: &&Sample| {
            labels
                .iter()
                .all(|(label, value)| sample.labels.get(*label).is_some_and(|v| v == value))
        };

        self.samples
            .iter()
            .filter(|sample| sample.name == name)
            .filter(fits)
            .map(|sample| sample.value)
            .sum()
    }
}

fn run(mesh: &Mesh, workload: &str, program: &[String]) -> Value {
    let words: Vec<&str> = program.iter().map(String::as_str).collect();
    let output = mesh.exec(workload, &words);
    let (text, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{errors}"))
}

fn counts_of_pages(mesh: &Mesh, peers: &Peers) -> [f64; 5] {
    let families = [
        "istio_requests",
        "istio_request_duration_milliseconds",
        "request_result",
    ];

    let page = Scrape::of(mesh, peers, "productpage-v1", 15020, &families);
    let details = Scrape::of(mesh, peers, "details-v1", 15090, &families);
    let to_page = [
        ("reporter", "destination"),
        ("source_workload", "istio-ingressgateway"),
        (
            "source_principal",
            "spiffe://cluster.local/ns/istio-system/sa/istio-ingressgateway-service-account",
        ),
        ("destination_workload", "productpage-v1"),
        (
            "destination_service",
            "productpage.default.svc.cluster.local",
        ),
        ("request_protocol", "http"),
        ("response_code", "200"),
        ("response_flags", "-"),
        ("connection_security_policy", "mutual_tls"),
    ];

    let to_details = |reporter| {
        [
            ("reporter", reporter),
            ("source_workload", "productpage-v1"),
            ("source_app", "productpage"),
            ("source_version", "v1"),
            ("destination_workload", "details-v1"),
            ("destination_service_name", "details"),
            (
                "destination_principal",
                "spiffe://cluster.local/ns/default/sa/bookinfo-details",
            ),
            ("response_code", "200"),
        ]
    };

    [
        page.sum("istio_requests_total", &to_page),
        page.sum("istio_request_duration_milliseconds_count", &to_page),
        page.sum("istio_requests_total", &to_details("source")),
        page.sum(
            "request_result_total",
            &[("destination_app", "details"), ("response_code", "200")],
        ),
        details.sum("istio_requests_total", &to_details("destination")),
    ]
}

#[test]
fn prometheus_and_other_tools_read_metrics_and_admin_pages() {
    const TEST: &str = "prometheus_and_other_tools_read_metrics_and_admin_pages";

    let (Some(shared), Some(peers)) = (crate::shared(), Peers::of(TEST)) else {
        return crate::skip(TEST, "Istio's samples are not beside the workspace");
    };
    let samples = shared.join("istio/samples/bookinfo");
    let mesh = Plan::new()
        .sample(&samples.join("platform/kube/bookinfo.yaml"))
        .sample(&samples.join("networking/bookinfo-gateway.yaml"))
        .start();

    let whole = |mesh: &Mesh| {
        let page = mesh.get("/productpage", &[]);
        page.status == 200 && page.body.contains("1234567890")
    };

    mesh.wait("a whole page", || whole(&mesh));

    let before = counts_of_pages(&mesh, &peers);
    assert!((0..PAGES).all(|_| whole(&mesh)));
    let added = || {
        let now = counts_of_pages(&mesh, &peers);
        std::array::from_fn::<f64, 5, _>(|i| now[i] - before[i])
    };

    mesh.wait("every page is counted once, everywhere", || {
        added() == [PAGES as f64; 5]
    });

    let merged = Scrape::of(&mesh, &peers, "productpage-v1", 15020, &["istio_requests"]);
    for sample in merged
        .samples
        .iter()
        .filter(|sample| sample.name == "istio_requests_total")
    {
        assert_eq!(
            sample.labels.keys().map(String::as_str).collect::<Vec<_>>(),
            LABELS
        );
    }

    let own = Scrape::of(&mesh, &peers, "productpage-v1", 15090, &[]);
    for family in [
        "istio_requests",
        "istio_request_bytes",
        "istio_response_bytes",
        "istio_build",
    ] {
        assert!(
            own.families.iter().any(|name| name == family),
            "{family}: {:?}",
            own.families
        );

        assert!(
            merged.families.iter().any(|name| name == family),
            "{family}: {:?}",
            merged.families
        );
    }

    for (family, of) in [
        ("istio_agent_cert_expiry_seconds", "the agent"),
        ("request_result", "the application"),
    ] {
        assert!(
            merged.families.iter().any(|name| name == family),
            "{of}: {:?}",
            merged.families
        );

        assert!(
            !own.families.iter().any(|name| name == family),
            "15090 is the proxy's alone: {:?}",
            own.families
        );
    }

    let details = Scrape::of(&mesh, &peers, "details-v1", 15020, &[]);
    assert!(
        !details.families.iter().any(|name| name == "request_result"),
        "details has no metrics of its own"
    );

    admin(&mesh, &peers);
}

/// 15000 and 15021 of productpage-v1.
fn admin(mesh: &Mesh, peers: &Peers) {
    let said = run(
        mesh,
        "productpage-v1",
        &peers.program("admin.py", &["127.0.0.1:15000"]),
    );

    assert_eq!(said["state"], "LIVE");
    assert_eq!(said["certs"], 2, "the chain and the roots: {said}");
    let has = |list: &str, name: &str| {
        said[list]
            .as_array()
            .expect("a list")
            .iter()
            .any(|item| item == name)
    };

    for part in [
        "ClustersConfigDump",
        "ListenersConfigDump",
        "RoutesConfigDump",
        "EndpointsConfigDump",
    ] {
        assert!(has("config_dump", part), "{part}: {said}");
    }

    for cluster in [
        "outbound|9080||reviews.default.svc.cluster.local",
        "inbound|9080||",
        "PassthroughCluster",
    ] {
        assert!(has("clusters", cluster), "{cluster}: {said}");
    }

    for listener in ["virtualOutbound", "virtualInbound"] {
        assert!(has("listeners", listener), "{listener}: {said}");
    }
    let foreign = said["foreign"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(Value::as_str);

    for name in foreign {
        assert!(
            [
                "stats.",
                "istio.",
                "io.istio.",
                "envoy.tcp.metadataexchange."
            ]
            .iter()
            .any(|of| name.starts_with(of)),
            "{name} is Istio's or Envoy's"
        );
    }

    let ask = |arguments: &[&str]| curl(mesh, "productpage-v1", arguments);
    let get = |path: &str| ask(&[&format!("http://127.0.0.1:15000{path}")]);
    assert_eq!(ask(&["http://127.0.0.1:15021/healthz/ready"]).status, 200);
    assert_eq!(get("/ready").text, "LIVE");
    let filtered = get("/stats?filter=^cluster_manager%5C.cds%5C.");
    assert!(
        !filtered.text.is_empty()
            && filtered
                .text
                .lines()
                .all(|line| line.starts_with("cluster_manager.cds.")),
        "{filtered:?}"
    );

    assert_eq!(get("/stats?filter=(").status, 400, "no regular expression");
    assert_eq!(
        get("/logging?level=debug").status,
        405,
        "it changes something"
    );

    assert!(
        ask(&["-XPOST", "http://127.0.0.1:15000/logging?level=debug"])
            .text
            .contains("debug")
    );

    assert!(
        ask(&["-XPOST", "http://127.0.0.1:15000/logging?level=info"])
            .text
            .contains("info")
    );

    assert_eq!(
        ask(&["-XPOST", "http://127.0.0.1:15000/healthcheck/fail"]).status,
        200
    );

    assert_eq!(get("/ready").status, 503);
    assert_eq!(
        ask(&["-XPOST", "http://127.0.0.1:15000/healthcheck/ok"]).status,
        200
    );

    assert_eq!(get("/ready").status, 200);

    // The end of a proxy by its own command; the node starts another one.
    let pid = |mesh: &Mesh| {
        let status: Value =
            serde_json::from_str(&mesh.cli_ok(&["status", "-o", "json"])).expect("JSON");
        let workloads = status["workloads"].as_array().expect("a list").clone();
        let page = workloads
            .iter()
            .find(|workload| workload["workload"] == "productpage-v1")
            .expect("it runs")
            .clone();
        page["proxy"]["pid"].as_u64()
    };

    let first = pid(mesh).expect("it runs");
    assert_eq!(
        ask(&["-XPOST", "http://127.0.0.1:15000/quitquitquit"]).status,
        200
    );

    mesh.wait("another proxy", || {
        pid(mesh).is_some_and(|now| now != first)
    });
    mesh.wait("the page again", || {
        mesh.get("/productpage", &[]).body.contains("1234567890")
    });
}
