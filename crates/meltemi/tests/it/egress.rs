//! Calls that pass a gateway inside the mesh: Istio's task "Egress Gateways", and the ingress
//! gateway called from a sidecar.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use crate::mesh::{Mesh, Plan};
use crate::peers::{ACCESS_LOG, App, Peers, curl, yaml};

/// An HTTP server on the machine, outside the mesh: what was asked of it.
struct Outside {
    at: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Outside {
    fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let at = listener.local_addr().expect("it is bound");
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let heard = Arc::clone(&asked);

        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut reader = BufReader::new(stream);
                let mut head = String::new();
                while reader.read_line(&mut head).is_ok_and(|read| read > 2) {}
                heard
                    .lock()
                    .expect("nothing panics while it holds the lines")
                    .push(head);

                let answer =
                    "HTTP/1.1 200 OK\r\ncontent-length: 7\r\nconnection: close\r\n\r\noutside";
                let _ = reader.get_mut().write_all(answer.as_bytes());
            }
        });

        Self { at, asked }
    }

    fn was_asked(&self, path: &str) -> bool {
        let asked = self
            .asked
            .lock()
            .expect("nothing panics while it holds the lines");
        asked.iter().any(|head| {
            head.starts_with(&format!("GET {path} "))
                && head.to_ascii_lowercase().contains("host: away.test")
        })
    }
}

/// The task's objects; the gateway's server and what its clients do are the caller's.
fn through_the_gateway(server: &str, policy: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: away}}
spec:
  hosts: [away.test]
  ports: [{{number: 80, name: http-port, protocol: HTTP}}]
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: istio-egressgateway}}
spec:
  selector: {{istio: egressgateway}}
  servers:
  - {server}
    hosts: [away.test]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: egressgateway-for-away}}
spec:
  host: istio-egressgateway.istio-system.svc.cluster.local
  subsets:
  - name: away
{policy}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: direct-away-through-egress-gateway}}
spec:
  hosts: [away.test]
  gateways: [istio-egressgateway, mesh]
  http:
  - match: [{{gateways: [mesh], port: 80}}]
    route:
    - destination: {{host: istio-egressgateway.istio-system.svc.cluster.local, subset: away, port: {{number: 80}}}}
      weight: 100
  - match: [{{gateways: [istio-egressgateway], port: 80}}]
    route:
    - destination: {{host: away.test, port: {{number: 80}}}}
      weight: 100
"
    )
}

const PLAIN: &str = "port: {number: 80, name: http, protocol: HTTP}";
const MUTUAL: &str =
    "port: {number: 80, name: https, protocol: HTTPS}\n    tls: {mode: ISTIO_MUTUAL}";
const TO_MUTUAL: &str = "    trafficPolicy:
      loadBalancer: {simple: ROUND_ROBIN}
      portLevelSettings:
      - port: {number: 80}
        tls: {mode: ISTIO_MUTUAL, sni: away.test}";

/// A rule for the whole mesh, as Istio's older installations bring it: it must not take the subsets
/// away from gateways.
const MESH_WIDE: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: default, namespace: istio-system}
spec: {host: '*.default.svc.cluster.local', trafficPolicy: {connectionPool: {tcp: {connectTimeout: 5s}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: ledger}
spec: {host: ledger, subsets: [{name: v1, labels: {version: v1}}]}
";

const INGRESS: &str = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: entry}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ledger-from-outside}
spec:
  hosts: ['*']
  gateways: [entry]
  http:
  - route: [{destination: {host: ledger, subset: v1, port: {number: 9080}}}]
";

/// Whether a gateway's access log has a request for this path.
fn passed(mesh: &Mesh, gateway: &str, path: &str) -> bool {
    let log = mesh.cli_ok(&[
        "logs",
        &format!("{gateway}-0"),
        "-n",
        "istio-system",
        "-c",
        "proxy",
    ]);

    log.lines()
        .any(|line| line.contains(&format!("GET {path} ")) && line.contains(" 200 "))
}

#[test]
fn gateways_are_called_from_inside_the_mesh() {
    let Some(peers) = Peers::of("gateways_are_called_from_inside_the_mesh") else {
        return;
    };
    let outside = Outside::start();
    let plan = Plan::new();
    let dial_map = plan.path("dial-map.yaml");

    fs::write(&dial_map, format!("away.test: {}\n", outside.at)).expect("a writable folder");
    let apps = [
        peers.recorder("ledger"),
        App::idle("sleep"),
        App::idle("stranger").unmeshed(),
    ];

    let plan = plan
        .argument("--dial-map")
        .argument(&dial_map.display().to_string());
    let plan = plan
        .file("mesh.yaml", ACCESS_LOG)
        .file("apps.yaml", &yaml(&apps))
        .file("wide.yaml", MESH_WIDE);

    let mesh = plan
        .file("ingress.yaml", INGRESS)
        .file("egress.yaml", &through_the_gateway(PLAIN, ""))
        .start();

    let call = |from: &str, url: &str| curl(&mesh, from, &[url]);
    let called = |what: &str, url: &str, gateway: &str, path: &str| {
        mesh.wait(what, || {
            let answer = call("sleep", &format!("{url}{path}"));
            answer.status == 200 && passed(&mesh, gateway, path)
        });
    };

    called(
        "a call through the egress gateway",
        "http://away.test",
        "istio-egressgateway",
        "/plain",
    );

    assert!(outside.was_asked("/plain"));
    let ingress = "http://istio-ingressgateway.istio-system";
    called(
        "a call of the ingress gateway by a sidecar",
        ingress,
        "istio-ingressgateway",
        "/round",
    );

    // The same way, with the mesh's own TLS between sidecar and gateway.
    let direct = || {
        curl(
            &mesh,
            "stranger",
            &[
                "-H",
                "host: away.test",
                "http://istio-egressgateway.istio-system/strange",
            ],
        )
    };

    assert_eq!(
        direct().status,
        200,
        "in plaintext, whoever comes is let out"
    );

    mesh.write("egress.yaml", &through_the_gateway(MUTUAL, TO_MUTUAL));
    mesh.wait("the gateway asks for a certificate", || direct().code != 0);
    called(
        "a call through the egress gateway under mutual TLS",
        "http://away.test",
        "istio-egressgateway",
        "/mutual",
    );

    assert!(outside.was_asked("/mutual"));
    assert_ne!(direct().code, 0);
}
