//! What a change costs the control plane with 1,000 connected proxies: when every proxy is planned
//! anew, and when only those are that the change touches.
//!
//! `cargo bench -p meltemi-translate --bench scope`

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use meltemi_model::{BuildOptions, ProxyScope, Snapshot, Tables, touches};
use meltemi_proto::envoy::config::core::v3::Node;
use meltemi_translate::{Memo, Proxy, Translated, translate};

const NAMESPACES: usize = 100;
const SERVICES: usize = 10;
const PROXIES: usize = 1000;

/// The one proxy of its namespace.
const ALONE: &str = "alone";

fn main() {
    let tables: Tables = objects(&world());
    let snapshot = Snapshot::build(None, &tables, &BuildOptions::default()).snapshot;
    let memo = Memo::new();
    let mut proxies: Vec<Connected> = (0..PROXIES)
        .map(|number| Connected::new(number, &snapshot, &memo))
        .collect();

    println!(
        "{PROXIES} proxies, {} services, one thread",
        NAMESPACES * SERVICES
    );
    println!(
        "{:<44} {:>10} {:>10} {:>8} {:>10} {:>8}",
        "change", "build", "all", "pushes", "touched", "pushes"
    );

    let changes = [
        ("route that one proxy uses", route("10s", ".")),
        ("route that every proxy uses", route("20s", "*")),
        ("endpoint of one service", pod(0, 0, "10.200.0.1")),
        ("heartbeat of one pod", heartbeat()),
    ];

    let (mut tables, mut snapshot) = (tables, snapshot);
    for (name, text) in changes {
        for object in parse(&text) {
            tables.apply(object);
        }

        let started = cpu();
        let build = Snapshot::build(Some(&snapshot), &tables, &BuildOptions::default());
        let build_time = cpu() - started;
        snapshot = build.snapshot;

        // Every proxy is planned anew, as for a change that concerns all.
        let started = cpu();
        let all = proxies
            .iter()
            .filter(|proxy| proxy.differs(&translate(&snapshot, &proxy.proxy, &memo)))
            .count();
        let all_time = cpu() - started;

        let started = cpu();
        let mut touched = 0;
        for proxy in &mut proxies {
            if touches(&build.changes, &proxy.scope) {
                touched += usize::from(proxy.push(&snapshot, &memo));
            }
        }
        let touched_time = cpu() - started;
        assert_eq!(
            all, touched,
            "{name}: a proxy was skipped that needs a push"
        );

        println!(
            "{name:<44} {:>10} {:>10} {all:>8} {:>10} {touched:>8}",
            shown(build_time),
            shown(all_time),
            shown(touched_time)
        );
    }
}

/// A connected proxy and what it was sent.
struct Connected {
    proxy: Proxy,
    scope: ProxyScope,
    sent: HashMap<(&'static str, String), u64>,
}

impl Connected {
    fn new(number: usize, snapshot: &Snapshot, memo: &Memo) -> Self {
        let namespace = match number {
            0 => ALONE.to_owned(),
            _ => format!("n{}", number % NAMESPACES),
        };
        let ip = format!("10.100.{}.{}", number / 250, number % 250 + 1);
        let proxy = Proxy::from_node(&Node {
            id: format!("sidecar~{ip}~p{number}.{namespace}~{namespace}.svc.cluster.local"),
            user_agent_name: "meltemi".to_owned(),
            ..Node::default()
        })
        .expect("a node");

        let sent = versions(&translate(snapshot, &proxy, memo));
        let scope = snapshot.proxy_scope(proxy.facts());
        Self { proxy, scope, sent }
    }

    fn differs(&self, translated: &Translated) -> bool {
        versions(translated) != self.sent
    }

    /// Whether anything is sent.
    fn push(&mut self, snapshot: &Snapshot, memo: &Memo) -> bool {
        let translated = translate(snapshot, &self.proxy, memo);
        let differs = self.differs(&translated);
        self.sent = versions(&translated);
        self.scope = snapshot.proxy_scope(self.proxy.facts());
        differs
    }
}

fn versions(translated: &Translated) -> HashMap<(&'static str, String), u64> {
    let resources = translated.resources.iter();
    resources
        .flat_map(|(type_url, list)| {
            list.iter()
                .map(|resource| ((*type_url, resource.name.clone()), resource.version))
        })
        .collect()
}

fn world() -> String {
    let mut text = String::new();
    for namespace in 0..NAMESPACES {
        for service in 0..SERVICES {
            writeln!(
                text,
                "apiVersion: v1\nkind: Service\nmetadata: {{name: s{service}, namespace: n{namespace}}}\nspec: {{selector: {{app: s{service}}}, ports: [{{name: http, port: 80}}]}}\n---",
            )
            .expect("a string takes everything");
            let ip = format!("10.{}.{}.1", namespace + 1, service + 1);
            writeln!(text, "{}\n---", pod(namespace, service, &ip))
                .expect("a string takes everything");
        }
    }
    text + &route("1s", ".")
}

/// A route of the lonely namespace.
fn route(timeout: &str, export_to: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: route, namespace: {ALONE}}}\nspec: {{hosts: [s0.n0.svc.cluster.local], exportTo: [\"{export_to}\"], http: [{{timeout: {timeout}, route: [{{destination: {{host: s0.n0.svc.cluster.local}}}}]}}]}}"
    )
}

fn pod(namespace: usize, service: usize, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: s{service}, namespace: n{namespace}, labels: {{app: s{service}}}}}\nspec: {{containers: [{{name: c}}]}}\nstatus: {{phase: Running, podIP: {ip}}}"
    )
}

fn heartbeat() -> String {
    pod(0, 1, "10.1.2.1").replace(
        "labels:",
        "resourceVersion: \"7\", annotations: {heartbeat: now}, labels:",
    )
}

fn parse(text: &str) -> Vec<Arc<meltemi_api::Object>> {
    let (objects, _) = meltemi_api::parse_documents("bench.yaml", text);
    objects.into_iter().map(Arc::new).collect()
}

fn objects(text: &str) -> Tables {
    parse(text).into_iter().collect()
}

/// CPU time of this thread. Source: proc(5), `/proc/pid/schedstat`.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let nanos = text.split(' ').next().and_then(|field| field.parse().ok());
    Duration::from_nanos(nanos.expect("time on the CPU"))
}

fn shown(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}
