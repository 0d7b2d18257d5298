//! Whom a change concerns, against the naive way: translate for everybody and compare.

mod world;

use std::collections::BTreeMap;
use std::sync::Arc;

use meltemi_api::mesh::{ExtAuthzGrpc, ExtensionProvider};
use meltemi_api::{Object, ObjectKey};
use meltemi_model::{BuildOptions, ProxyScope, Snapshot, Tables, touches};
use meltemi_translate::{Memo, Proxy, Translated, translate};
use proptest::prelude::*;

use super::proxy;
use world::{ADDRESSES, KINDS, Piece};

fn proxies() -> Vec<Proxy> {
    let id = |kind: &str, at: usize, name: &str, namespace: &str| {
        let ip = ADDRESSES[at];
        format!("{kind}~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local")
    };

    vec![
        proxy(&id("sidecar", 0, "p0", "a"), "one", &[("app", "w0")]),
        proxy(&id("sidecar", 1, "p1", "a"), "one", &[("app", "w1")]),
        proxy(&id("sidecar", 2, "p0", "b"), "two", &[("app", "w0")]),
        proxy(&id("sidecar", 0, "p2", "istio-system"), "two", &[]),
        proxy(&id("router", 3, "p1", "a"), "one", &[("app", "gw")]),
        proxy(&id("router", 3, "p2", "b"), "one", &[("app", "w0")]),
    ]
}

/// A mesh with the authorizers that policies of the test name.
fn with_authorizers() -> BuildOptions {
    let provider = |name: &str, service: &str| ExtensionProvider {
        name: name.to_owned(),
        envoy_ext_authz_grpc: Some(ExtAuthzGrpc {
            service: service.to_owned(),
            port: 80,
            ..ExtAuthzGrpc::default()
        }),
        ..ExtensionProvider::default()
    };

    let mut options = BuildOptions::default();
    Arc::make_mut(&mut options.mesh_defaults)
        .extension_providers
        .extend([
            provider("inside", "s0.b.svc.cluster.local"),
            provider("outside", "x0.example"),
        ]);
    options
}

fn parse(text: &str) -> Vec<Arc<Object>> {
    let (objects, diagnostics) = meltemi_api::parse_documents("world.yaml", text);
    assert!(
        diagnostics
            .iter()
            .all(|found| found.severity != meltemi_types::Severity::Error),
        "{text}\n{diagnostics:#?}"
    );
    objects.into_iter().map(Arc::new).collect()
}

/// One proxy as the control plane follows it.
struct Follower {
    proxy: Proxy,
    scope: ProxyScope,
    sent: Translated,
}

impl Follower {
    fn new(proxy: Proxy, snapshot: &Snapshot, memo: &Memo) -> Self {
        Self {
            scope: snapshot.proxy_scope(proxy.facts()),
            sent: translate(snapshot, &proxy, memo),
            proxy,
        }
    }
}

/// The world that the test changes step by step.
struct Mesh {
    options: BuildOptions,
    tables: Tables,
    snapshot: Snapshot,
    memo: Memo,
    followers: Vec<Follower>,
    skipped: usize,
}

impl Mesh {
    fn new(objects: Vec<Arc<Object>>) -> Self {
        let tables: Tables = objects.into_iter().collect();
        let options = with_authorizers();
        let snapshot = Snapshot::build(None, &tables, &options).snapshot;
        let memo = Memo::new();
        let followers = proxies()
            .into_iter()
            .map(|proxy| Follower::new(proxy, &snapshot, &memo))
            .collect();

        Self {
            options,
            tables,
            snapshot,
            memo,
            followers,
            skipped: 0,
        }
    }

    /// Builds the next snapshot, and holds every proxy that is skipped against a translation of its
    /// own. Answers the names of the proxies that were touched.
    fn step(&mut self) -> Vec<String> {
        let build = Snapshot::build(Some(&self.snapshot), &self.tables, &self.options);
        self.snapshot = build.snapshot;

        let mut touched = Vec::new();
        for follower in &mut self.followers {
            let now = translate(&self.snapshot, &follower.proxy, &self.memo);
            if touches(&build.changes, &follower.scope) {
                touched.push(follower.proxy.id.clone());
                follower.scope = self.snapshot.proxy_scope(follower.proxy.facts());
                follower.sent = now;
            } else {
                self.skipped += 1;
                assert_same(&follower.sent, &now, &follower.proxy, &build.changes);
            }
        }

        touched
    }

    fn apply(&mut self, text: &str) -> Vec<String> {
        for object in parse(text) {
            self.tables.apply(object);
        }
        self.step()
    }
}

fn assert_same(
    sent: &Translated,
    now: &Translated,
    proxy: &Proxy,
    changes: &meltemi_model::ChangeSet,
) {
    let versions = |translated: &Translated| -> BTreeMap<(String, String), u64> {
        let resources = translated.resources.iter();
        resources
            .flat_map(|(type_url, list)| {
                list.iter().map(|resource| {
                    let name = (type_url.to_string(), resource.name.clone());
                    (name, resource.version)
                })
            })
            .collect()
    };

    assert_eq!(
        versions(sent),
        versions(now),
        "{} was skipped: {changes:#?}",
        proxy.id
    );
    assert_eq!(
        sent.diagnostics, now.diagnostics,
        "{}: {changes:#?}",
        proxy.id
    );
}

fn piece() -> impl Strategy<Value = Piece> {
    (
        0..KINDS.len(),
        0..3_usize,
        0..3_usize,
        prop::array::uniform6(0..60_usize),
    )
        .prop_map(|(kind, namespace, name, choices)| Piece {
            kind,
            namespace,
            name,
            choices,
        })
}

/// An object that comes or is replaced, or the removal of one that is there.
#[derive(Debug, Clone)]
enum Edit {
    Apply(Piece),
    Remove(usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        3 => piece().prop_map(Edit::Apply),
        1 => (0..100_usize).prop_map(Edit::Remove),
    ]
}

fn perform(tables: &mut Tables, edit: &Edit) {
    match edit {
        Edit::Apply(piece) => {
            for object in parse(&piece.text()) {
                tables.apply(object);
            }
        }
        Edit::Remove(at) => {
            let keys: Vec<ObjectKey> = tables.iter().map(|object| object.key()).collect();
            if let Some(key) = keys.get(at % keys.len().max(1)) {
                tables.remove(key);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_skipped_proxy_would_have_been_sent_nothing_else(
        world in prop::collection::vec(piece(), 8..40),
        steps in prop::collection::vec(prop::collection::vec(edit(), 1..3), 1..8),
    ) {
        let objects = world.iter().flat_map(|piece| parse(&piece.text())).collect();
        let mut mesh = Mesh::new(objects);
        for edits in &steps {
            for edit in edits {
                perform(&mut mesh.tables, edit);
            }
            mesh.step();
        }
    }
}

const WORLD: &str = "
apiVersion: v1
kind: Service
metadata: {name: s0, namespace: a}
spec: {selector: {app: w0}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: s0, namespace: b}
spec: {selector: {app: w0}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: p9, namespace: b, labels: {app: w0}}
spec: {containers: [{name: c}]}
status: {phase: Running, podIP: 10.9.0.1}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: only, namespace: a}
spec: {egress: [{hosts: [\"./*\"]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v0, namespace: b}
spec: {hosts: [s0], exportTo: [b], http: [{route: [{destination: {host: s0}}]}]}
";

fn mesh() -> Mesh {
    Mesh::new(parse(WORLD))
}

/// `name.namespace` of each node id.
fn short(touched: &[String]) -> Vec<&str> {
    let pods = touched.iter().map(|id| id.split('~').nth(2));
    pods.map(Option::unwrap_or_default).collect()
}

#[test]
fn a_route_for_one_namespace_touches_its_sidecars_alone() {
    let mut mesh = mesh();
    let touched = mesh.apply(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v0, namespace: b}\nspec: {hosts: [s0], exportTo: [b], http: [{timeout: 3s, route: [{destination: {host: s0}}]}]}",
    );
    assert_eq!(short(&touched), ["p0.b"]);
}

#[test]
fn endpoints_touch_those_who_import_the_service() {
    let mut mesh = mesh();
    let touched = mesh.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p8, namespace: b, labels: {app: w0}}\nspec: {containers: [{name: c}]}\nstatus: {phase: Running, podIP: 10.9.0.2}",
    );
    assert_eq!(
        short(&touched),
        ["p0.b", "p2.istio-system", "p1.a", "p2.b"],
        "the sidecars of namespace a import their own namespace alone"
    );
}

#[test]
fn policies_touch_the_workloads_that_they_select() {
    let mut mesh = mesh();
    let policy = |namespace: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: z, namespace: {namespace}}}\nspec: {{selector: {{matchLabels: {{app: w1}}}}, action: DENY, rules: [{{}}]}}"
        )
    };

    assert_eq!(short(&mesh.apply(&policy("a"))), ["p1.a"]);
    assert_eq!(short(&mesh.apply(&policy("istio-system"))), ["p1.a"]);
    assert!(mesh.apply(&policy("b")).is_empty());
}

#[test]
fn request_authentications_touch_the_workloads_that_they_select() {
    let mut mesh = mesh();
    let tokens = |namespace: &str, issuer: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: q, namespace: {namespace}}}\nspec: {{selector: {{matchLabels: {{app: w1}}}}, jwtRules: [{{issuer: {issuer}}}]}}"
        )
    };

    assert_eq!(short(&mesh.apply(&tokens("a", "i"))), ["p1.a"]);
    assert_eq!(short(&mesh.apply(&tokens("a", "j"))), ["p1.a"]);
    assert_eq!(short(&mesh.apply(&tokens("istio-system", "i"))), ["p1.a"]);
    assert!(mesh.apply(&tokens("b", "i")).is_empty());
}

#[test]
fn servers_that_switch_mutual_tls_off_touch_their_clients() {
    let mut mesh = mesh();
    mesh.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: p9, namespace: b, labels: {app: w0, security.istio.io/tlsMode: istio}}\nspec: {containers: [{name: c}]}\nstatus: {phase: Running, podIP: 10.9.0.1}");
    let touched = mesh.apply("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: m, namespace: b}\nspec: {mtls: {mode: DISABLE}}");
    assert_eq!(
        short(&touched),
        ["p0.b", "p2.istio-system", "p1.a", "p2.b"],
        "a client without plaintext would be refused"
    );
}

#[test]
fn an_authorizer_touches_those_whose_policies_name_it() {
    let mut mesh = mesh();
    mesh.apply("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: z, namespace: a}\nspec: {selector: {matchLabels: {app: w1}}, action: CUSTOM, provider: {name: outside}, rules: [{}]}");

    // Exported to nobody, yet the policy denies no more.
    let touched = mesh.apply("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: b}\nspec: {hosts: [x0.example], exportTo: [\"~\"], resolution: DNS, ports: [{number: 80, name: grpc, protocol: GRPC}]}");
    assert_eq!(short(&touched), ["p1.a"]);
}

#[test]
fn an_alias_touches_those_whose_routes_name_it() {
    let alias = |target: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s9, namespace: b}}\nspec: {{type: ExternalName, externalName: {target}.b.svc.cluster.local, ports: [{{port: 80}}]}}"
        )
    };
    let hidden = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: b, annotations: {{networking.istio.io/exportTo: b}}}}\nspec: {{ports: [{{port: 80, name: http}}]}}"
        )
    };

    // The route is of namespace a, which sees neither service.
    let route = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v9, namespace: a}\nspec: {hosts: [s0], http: [{route: [{destination: {host: s9.b.svc.cluster.local}}]}]}";
    let mut mesh = mesh();
    mesh.apply(
        &[&hidden("s7"), &hidden("s8"), &alias("s7"), route]
            .map(|text: &str| text.to_owned())
            .join("\n---\n"),
    );
    assert!(short(&mesh.apply(&alias("s8"))).contains(&"p0.a"));
}

#[test]
fn text_that_means_the_same_touches_nobody() {
    let mut mesh = mesh();
    let heartbeat = "apiVersion: v1
kind: Pod
metadata: {name: p9, namespace: b, labels: {app: w0}, resourceVersion: \"7\", annotations: {heartbeat: now}, managedFields: [{manager: kubelet}]}
spec: {containers: [{name: c}]}
status: {phase: Running, podIP: 10.9.0.1, conditions: [{type: Ready, status: \"True\", lastProbeTime: now}]}";
    let shifted = format!("# A comment.\n\n{WORLD}");

    assert!(mesh.apply(heartbeat).is_empty());
    assert!(mesh.apply(&shifted).is_empty());
    assert!(mesh.skipped > 0);
}

#[test]
fn namespaces_and_accounts_touch_nobody() {
    let mut mesh = mesh();
    for text in [
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {x: one}}",
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: one, namespace: a}",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: other, namespace: a}\ndata: {x: one}",
    ] {
        assert!(mesh.apply(text).is_empty(), "{text}");
    }
}
