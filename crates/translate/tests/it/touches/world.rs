//! Objects of every kind that the mesh reads, from a few numbers: small pools of names, so that
//! objects meet.

/// An object: which kind, namespace and name, and how its fields are chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub kind: usize,
    pub namespace: usize,
    pub name: usize,
    pub choices: [usize; 6],
}

pub const NAMESPACES: [&str; 3] = ["a", "b", "istio-system"];

/// Addresses of the proxies of the test: workloads and endpoints use them, too.
pub const ADDRESSES: [&str; 4] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.9"];

const HOSTS: [&str; 8] = [
    "s0.a.svc.cluster.local",
    "s1.a.svc.cluster.local",
    "s0.b.svc.cluster.local",
    "x0.example",
    "x1.example",
    "*.example",
    "*.a.svc.cluster.local",
    "s2.b.svc.cluster.local",
];

const EXPORTS: [&str; 6] = ["", "\".\"", "\"*\"", "a", "b", "\"~\""];

const APPS: [&str; 3] = ["w0", "w1", "gw"];

type Template = fn(&Piece) -> String;

/// Kind and specification of each sort of object.
pub const KINDS: [Template; 17] = [
    service,
    external_name,
    service_entry,
    virtual_service,
    delegate,
    destination_rule,
    sidecar,
    gateway,
    peer_authentication,
    authorization_policy,
    telemetry,
    mesh_config,
    pod,
    workload_entry,
    secret,
    request_authentication,
    namespace,
];

impl Piece {
    pub fn text(&self) -> String {
        KINDS[self.kind % KINDS.len()](self)
    }

    fn pick<'a, const N: usize>(&self, choice: usize, pool: &[&'a str; N]) -> &'a str {
        pool[self.choices[choice] % N]
    }

    fn is(&self, choice: usize, every: usize) -> bool {
        self.choices[choice].is_multiple_of(every)
    }

    fn namespace(&self) -> &'static str {
        NAMESPACES[self.namespace % NAMESPACES.len()]
    }

    fn object(&self, api: &str, kind: &str, name: &str, metadata: &str, body: &str) -> String {
        format!(
            "apiVersion: {api}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {}{metadata}}}\n{body}\n",
            self.namespace()
        )
    }

    fn networking(&self, kind: &str, prefix: &str, body: &str) -> String {
        let name = format!("{prefix}{}", self.name % 3);
        self.object("networking.istio.io/v1", kind, &name, "", body)
    }

    fn export(&self, choice: usize) -> String {
        match self.pick(choice, &EXPORTS) {
            "" => String::new(),
            scope => format!("\n  exportTo: [{scope}]"),
        }
    }

    fn selector(&self, choice: usize, form: &str) -> String {
        match self.choices[choice] % 4 {
            3 => String::new(),
            at => form.replace("APP", APPS[at]),
        }
    }
}

fn service(piece: &Piece) -> String {
    let export = match piece.pick(0, &EXPORTS) {
        "" => String::new(),
        scope => {
            let scope = scope.trim_matches('"');
            format!(", annotations: {{networking.istio.io/exportTo: \"{scope}\"}}")
        }
    };
    let port = piece.pick(
        1,
        &[
            "{name: http, port: 80, targetPort: 8080}",
            "{name: tcp, port: 81, targetPort: web}",
            "{name: odd, port: 80}",
            "{name: http, port: 80}, {name: tls, port: 443}",
        ],
    );
    let ip = piece.pick(2, &["", ", clusterIP: None", ", clusterIP: 10.1.0.1"]);
    let selector = piece.selector(3, ", selector: {app: APP}");
    let distribution = piece.pick(4, &["", ", trafficDistribution: PreferClose"]);

    let name = format!("s{}", piece.name % 3);
    let body = format!("spec: {{ports: [{port}]{ip}{selector}{distribution}}}");
    piece.object("v1", "Service", &name, &export, &body)
}

fn external_name(piece: &Piece) -> String {
    let target = piece.pick(0, &HOSTS);
    let name = format!("s{}", piece.name % 3);
    let body =
        format!("spec: {{type: ExternalName, externalName: \"{target}\", ports: [{{port: 80}}]}}");
    piece.object("v1", "Service", &name, "", &body)
}

fn service_entry(piece: &Piece) -> String {
    let host = piece.pick(0, &HOSTS);
    let resolution = piece.pick(1, &["STATIC", "DNS", "NONE", "DNS_ROUND_ROBIN"]);
    let from = match piece.choices[2] % 5 {
        4 => piece.selector(3, "\n  workloadSelector: {labels: {app: APP}}"),
        at => format!("\n  endpoints: [{{address: {}}}]", ADDRESSES[at]),
    };
    let from = if resolution == "NONE" {
        String::new()
    } else {
        from
    };
    let location = piece.pick(4, &["MESH_INTERNAL", "MESH_EXTERNAL"]);
    let protocol = piece.pick(3, &["HTTP", "TCP", "TLS"]);
    let export = piece.export(5);

    piece.networking(
        "ServiceEntry",
        "e",
        &format!(
            "spec:\n  hosts: [\"{host}\"]\n  resolution: {resolution}\n  location: {location}\n  ports: [{{number: 80, name: p, protocol: {protocol}}}]{from}{export}"
        ),
    )
}

fn virtual_service(piece: &Piece) -> String {
    let host = piece.pick(0, &HOSTS);
    let target = piece.pick(1, &HOSTS);
    let gateways = piece.pick(
        2,
        &[
            "",
            "\n  gateways: [mesh]",
            "\n  gateways: [a/g0, mesh]",
            "\n  gateways: [b/g1]",
        ],
    );
    let matches = piece.pick(
        3,
        &[
            "",
            "match: [{sourceLabels: {app: w0}}], ",
            "match: [{sourceNamespace: b}], ",
            "match: [{uri: {prefix: /x}, gateways: [a/g0]}], ",
        ],
    );
    let action = match piece.choices[4] % 4 {
        0 => "delegate: {name: d0, namespace: a}".to_owned(),
        1 => format!(
            "route: [{{destination: {{host: \"{target}\", subset: v1}}}}], mirror: {{host: x1.example}}"
        ),
        _ => format!("route: [{{destination: {{host: \"{target}\"}}}}]"),
    };
    let tcp = if piece.is(4, 3) {
        format!("\n  tcp: [{{route: [{{destination: {{host: \"{target}\"}}}}]}}]")
    } else {
        String::new()
    };
    let export = piece.export(5);

    piece.networking(
        "VirtualService",
        "v",
        &format!(
            "spec:\n  hosts: [\"{host}\"]{gateways}{export}\n  http: [{{{matches}{action}}}]{tcp}"
        ),
    )
}

fn delegate(piece: &Piece) -> String {
    let target = piece.pick(1, &HOSTS);
    let export = piece.export(5);
    piece.networking(
        "VirtualService",
        "d",
        &format!("spec:{export}\n  http: [{{route: [{{destination: {{host: \"{target}\"}}}}]}}]"),
    )
}

fn destination_rule(piece: &Piece) -> String {
    let host = piece.pick(0, &HOSTS);
    let policy = piece.pick(
        1,
        &[
            "{tls: {mode: DISABLE}}",
            "{loadBalancer: {consistentHash: {httpHeaderName: x-user}}}",
            "{connectionPool: {tcp: {maxConnections: 3, idleTimeout: 9s}}}",
            "{outlierDetection: {consecutive5xxErrors: 3, minHealthPercent: 10}}",
            "{tls: {mode: SIMPLE, credentialName: c0}}",
        ],
    );
    let subset = piece.pick(2, &["", "\n  subsets: [{name: v1, labels: {app: w0}}]"]);
    let selector = if piece.is(3, 3) {
        piece.selector(4, "\n  workloadSelector: {matchLabels: {app: APP}}")
    } else {
        String::new()
    };
    let export = piece.export(5);

    piece.networking(
        "DestinationRule",
        "r",
        &format!("spec:\n  host: \"{host}\"\n  trafficPolicy: {policy}{subset}{selector}{export}"),
    )
}

fn sidecar(piece: &Piece) -> String {
    let selector = piece.selector(0, "\n  workloadSelector: {labels: {app: APP}}");
    let hosts = piece.pick(
        1,
        &[
            "\"./*\"",
            "\"*/*\"",
            "\"b/*\"",
            "\"a/s0.a.svc.cluster.local\"",
            "\"*/x0.example\", \"istio-system/*\"",
            "\"~/*\"",
        ],
    );
    let port = piece.pick(2, &["", "port: {number: 80, name: http, protocol: HTTP}, "]);
    let ingress = piece.pick(
        3,
        &[
            "",
            "\n  ingress: [{port: {number: 9000, name: http, protocol: HTTP}, defaultEndpoint: \"127.0.0.1:9001\"}]",
            "\n  ingress: [{port: {number: 9000, name: https, protocol: HTTPS}, defaultEndpoint: \"127.0.0.1:9001\", tls: {mode: SIMPLE, credentialName: c0}}]",
        ],
    );
    let outbound = piece.pick(
        4,
        &[
            "",
            "\n  outboundTrafficPolicy: {mode: REGISTRY_ONLY}",
            "\n  outboundTrafficPolicy: {mode: ALLOW_ANY, egressProxy: {host: x0.example, port: {number: 80}}}",
        ],
    );

    piece.networking(
        "Sidecar",
        "c",
        &format!("spec:\n  egress: [{{{port}hosts: [{hosts}]}}]{selector}{ingress}{outbound}"),
    )
}

fn gateway(piece: &Piece) -> String {
    let selector = piece.pick(0, &["{app: gw}", "{app: w0}", "{}"]);
    let host = piece.pick(
        1,
        &["\"*\"", "\"*/x0.example\"", "\"a/*\"", "\"*.example\""],
    );
    let server = piece.pick(
        2,
        &[
            "port: {number: 80, name: http, protocol: HTTP}",
            "port: {number: 443, name: https, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: c0}",
            "port: {number: 443, name: tls, protocol: TLS}, tls: {mode: PASSTHROUGH}",
            "port: {number: 81, name: tcp, protocol: TCP}",
        ],
    );

    piece.networking(
        "Gateway",
        "g",
        &format!("spec:\n  selector: {selector}\n  servers: [{{hosts: [{host}], {server}}}]"),
    )
}

fn peer_authentication(piece: &Piece) -> String {
    let selector = piece.selector(0, "\n  selector: {matchLabels: {app: APP}}");
    let mode = piece.pick(1, &["STRICT", "DISABLE", "PERMISSIVE", "UNSET"]);
    let ports = if selector.is_empty() {
        ""
    } else {
        piece.pick(2, &["", "\n  portLevelMtls: {8080: {mode: DISABLE}}"])
    };
    let name = format!("m{}", piece.name % 3);
    let body = format!("spec:\n  mtls: {{mode: {mode}}}{selector}{ports}");
    piece.object(
        "security.istio.io/v1",
        "PeerAuthentication",
        &name,
        "",
        &body,
    )
}

fn authorization_policy(piece: &Piece) -> String {
    let selector = piece.selector(0, "\n  selector: {matchLabels: {app: APP}}");
    let action = piece.pick(
        1,
        &[
            "ALLOW",
            "DENY",
            "AUDIT",
            "CUSTOM\n  provider: {name: inside}",
            "CUSTOM\n  provider: {name: outside}",
        ],
    );
    let rules = piece.pick(
        2,
        &[
            "",
            "\n  rules: [{to: [{operation: {paths: [/x]}}]}]",
            "\n  rules: [{}]",
        ],
    );
    let name = format!("z{}", piece.name % 3);
    let body = format!("spec:\n  action: {action}{selector}{rules}");
    piece.object(
        "security.istio.io/v1",
        "AuthorizationPolicy",
        &name,
        "",
        &body,
    )
}

fn request_authentication(piece: &Piece) -> String {
    let selector = piece.selector(0, "\n  selector: {matchLabels: {app: APP}}");
    let name = format!("q{}", piece.name % 3);
    let body = format!(
        "spec:\n  jwtRules: [{{issuer: i{}}}]{selector}",
        piece.choices[1] % 3
    );
    piece.object(
        "security.istio.io/v1",
        "RequestAuthentication",
        &name,
        "",
        &body,
    )
}

fn telemetry(piece: &Piece) -> String {
    let selector = piece.selector(0, "\n  selector: {matchLabels: {app: APP}}");
    let logs = piece.pick(
        1,
        &[
            "{providers: [{name: envoy}]}",
            "{disabled: true}",
            "{match: {mode: CLIENT}, providers: [{name: envoy}]}",
        ],
    );
    let name = format!("t{}", piece.name % 3);
    let body = format!("spec:\n  accessLogging: [{logs}]{selector}");
    piece.object("telemetry.istio.io/v1", "Telemetry", &name, "", &body)
}

fn mesh_config(piece: &Piece) -> String {
    let setting = piece.pick(
        0,
        &[
            "accessLogFile: /dev/stdout",
            "enableAutoMtls: false",
            "defaultServiceExportTo: [\".\"]",
            "rootNamespace: b",
            "enableTracing: false",
        ],
    );
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    {setting}\n"
    )
}

fn pod(piece: &Piece) -> String {
    let app = piece.pick(0, &APPS);
    let ip = piece.pick(1, &ADDRESSES);
    let account = piece.pick(2, &["one", "two"]);
    let ready = piece.pick(3, &["True", "False"]);
    let tls = piece.pick(4, &["", ", security.istio.io/tlsMode: istio"]);
    let node = piece.pick(5, &["n0", "n1"]);

    let name = format!("p{}", piece.name % 3);
    let labels = format!(", labels: {{app: {app}{tls}}}");
    let body = format!(
        "spec: {{serviceAccountName: {account}, nodeName: {node}, hostname: h, subdomain: s0, containers: [{{name: c, ports: [{{name: web, containerPort: 8081}}]}}]}}\nstatus: {{phase: Running, podIP: {ip}, conditions: [{{type: Ready, status: \"{ready}\"}}]}}"
    );
    piece.object("v1", "Pod", &name, &labels, &body)
}

fn workload_entry(piece: &Piece) -> String {
    let address = piece.pick(0, &ADDRESSES);
    let app = piece.pick(1, &APPS);
    let account = piece.pick(2, &["one", "two"]);
    piece.networking(
        "WorkloadEntry",
        "p",
        &format!(
            "spec: {{address: {address}, labels: {{app: {app}}}, serviceAccount: {account}, ports: {{web: 8082}}}}"
        ),
    )
}

fn secret(piece: &Piece) -> String {
    let key = piece.pick(0, &["b25l", "dHdv"]);
    let roots = piece.pick(1, &["", ", ca.crt: cm9vdA=="]);
    let name = format!("c{}", piece.name % 2);
    let body = format!("data: {{tls.crt: {key}, tls.key: {key}{roots}}}");
    piece.object("v1", "Secret", &name, "", &body)
}

fn namespace(piece: &Piece) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {}, labels: {{x: \"{}\"}}}}\n",
        piece.namespace(),
        piece.choices[0] % 3
    )
}
