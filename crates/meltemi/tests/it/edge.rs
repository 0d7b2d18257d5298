//! TLS at the edges of the mesh: ended at the gateway with a Secret, begun at a sidecar; and
//! workloads that a WorkloadEntry names.

use std::path::Path;
use std::process::Command;

use crate::mesh::{Mesh, Plan};
use crate::peers::{App, Curl, Peers, certificates, curl, curl_here, yaml};

const HOST: &str = "site.example.test";

fn gateway(mode: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: site}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
  - port: {{number: 443, name: https, protocol: HTTPS}}
    tls: {{mode: {mode}, credentialName: site}}
    hosts: [{HOST}]
  - port: {{number: 8080, name: http, protocol: HTTP}}
    tls: {{httpsRedirect: true}}
    hosts: [{HOST}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: site}}
spec:
  hosts: [{HOST}]
  gateways: [site]
  http: [{{route: [{{destination: {{host: plain}}}}]}}]
"
    )
}

/// A Secret as `kubectl create secret` makes it, of files in a folder.
fn secret(folder: &Path, name: &str) -> String {
    let encoded = |file: &str| {
        let output = Command::new("base64")
            .arg("-w0")
            .arg(folder.join(file))
            .output()
            .expect("base64 starts");
        String::from_utf8(output.stdout).expect("ASCII")
    };

    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: site, namespace: istio-system}}\ntype: kubernetes.io/tls\n\
         data:\n  tls.crt: {}\n  tls.key: {}\n  ca.crt: {}\n",
        encoded(&format!("{name}.pem")),
        encoded(&format!("{name}.key")),
        encoded("ca.pem"),
    )
}

/// The server beyond the mesh speaks TLS; the application speaks HTTP and its sidecar begins the
/// TLS.
fn origination(server: &str, authority: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: vault}}
spec:
  hosts: [vault.example.test]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 8443}}]
  endpoints: [{{address: {server}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: vault}}
spec:
  host: vault.example.test
  trafficPolicy:
    tls: {{mode: SIMPLE, caCertificates: {authority}, sni: vault.example.test, subjectAltNames: [vault.example.test]}}
"
    )
}

fn entry(address: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: legacy}}
spec:
  hosts: [legacy.example.test]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 9080}}]
  workloadSelector: {{labels: {{app: legacy}}}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: legacy}}
spec: {{address: {address}, labels: {{app: legacy}}}}
"
    )
}

fn mutual_tls(namespace: &str, mode: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: {namespace}}}\n\
         spec: {{mtls: {{mode: {mode}}}}}\n"
    )
}

fn address_of(mesh: &Mesh, workload: &str) -> String {
    let told = mesh.exec(workload, &["hostname", "-I"]);
    String::from_utf8_lossy(&told.stdout)
        .split_whitespace()
        .next()
        .expect("an address")
        .to_owned()
}

#[test]
fn gateways_terminate_tls_and_sidecars_originate_it() {
    let Some(peers) = Peers::of("gateways_terminate_tls_and_sidecars_originate_it") else {
        return;
    };
    let plan = Plan::new().argument("--publish").argument("8443=0");
    let folder = plan.path("");
    certificates(&folder, "one", &[HOST]);
    certificates(&folder, "two", &[HOST]);
    certificates(&folder, "caller", &["caller.example.test"]);
    certificates(&folder, "vault", &["vault.example.test"]);
    let path = |name: &str| folder.join(name).display().to_string();
    let recorder = |name: &str| peers.program("recorder.py", &[name, "9080"]);
    let apps = [
        App::new("plain", &[("http", 9080)], recorder("plain")),
        App::new("elsewhere", &[], recorder("elsewhere")).unmeshed(),
        App::new("vault", &[], {
            peers.program(
                "tls_server.py",
                &[
                    "0.0.0.0",
                    "8443",
                    "vault",
                    &path("vault.pem"),
                    &path("vault.key"),
                ],
            )
        })
        .unmeshed(),
        App::idle("inside"),
        App::idle("outside").unmeshed(),
    ];

    let plan = plan
        .file("apps.yaml", &yaml(&apps))
        .file("site.yaml", &gateway("SIMPLE"));
    let mesh = plan.file("secret.yaml", &secret(&folder, "one")).start();
    at_the_gateway(&mesh, &folder);
    at_the_sidecar(&mesh, &path("ca.pem"));
    a_workload_entry(&mesh);
    modes_of_mutual_tls(&mesh);
}

fn at_the_gateway(mesh: &Mesh, folder: &Path) {
    mesh.wait("the way in", || {
        mesh.published(8443).is_some() && mesh.published(8080).is_some()
    });
    let port = mesh.published(8443).expect("published").port();
    let (authority, resolve) = (
        folder.join("ca.pem").display().to_string(),
        format!("{HOST}:{port}:127.0.0.1"),
    );

    let (url, common) = (
        format!("https://{HOST}:{port}/secure"),
        ["--cacert", &authority, "--resolve", &resolve],
    );

    let call = |more: &[&str]| -> Curl { curl_here(&[&common[..], more, &[&url]].concat()) };
    mesh.wait("HTTPS with the Secret's certificate", || {
        call(&[]).status == 200
    });
    assert_eq!(call(&["--http1.1"]).status, 200);
    let spoken = call(&["--http2", "-o", "/dev/null", "-w", "%{http_version}\\n200"]);
    assert_eq!(spoken.text, "2", "ALPN offers HTTP/2");
    let nobody = format!("nobody.example.test:{port}:127.0.0.1");
    let other = curl_here(&[
        "-k",
        "--resolve",
        &nobody,
        &format!("https://nobody.example.test:{port}/"),
    ]);

    assert_eq!(
        other.status, 0,
        "no certificate for another name: {other:?}"
    );

    let plain = mesh.published(8080).expect("published").port();
    let resolve = format!("{HOST}:{plain}:127.0.0.1");
    let moved = curl_here(&[
        "-i",
        "--resolve",
        &resolve,
        &format!("http://{HOST}:{plain}/secure"),
    ]);

    assert!(
        moved.status == 301 && moved.text.contains(&format!("location: https://{HOST}")),
        "{moved:?}"
    );

    // Another certificate takes its place for the next handshake.
    let subject = || call(&["-v", "-o", "/dev/null"]).text.replace(' ', "");
    assert!(subject().contains("subject:CN=one"), "{}", subject());
    mesh.write("secret.yaml", &secret(folder, "two"));
    mesh.wait("the new certificate", || {
        subject().contains("subject:CN=two")
    });

    // The client must show a certificate as well.
    mesh.write("site.yaml", &gateway("MUTUAL"));
    let (certificate, key) = (
        folder.join("caller.pem").display().to_string(),
        folder.join("caller.key").display().to_string(),
    );

    let proven = ["--cert", &certificate, "--key", &key];
    mesh.wait("a caller without a certificate is refused", || {
        call(&[]).status == 0
    });
    assert_eq!(call(&proven).status, 200);
}

fn at_the_sidecar(mesh: &Mesh, authority: &str) {
    let server = address_of(mesh, "vault");
    mesh.write("vault.yaml", &origination(&server, authority));
    let call = || curl(mesh, "inside", &["http://vault.example.test/path"]);
    mesh.wait("the sidecar begins TLS", || call().status == 200);
    assert_eq!(
        call().text,
        "vault sni=vault.example.test host=vault.example.test path=/path"
    );

    // A server that is somebody else is not spoken to.
    let other = origination(&server, authority)
        .replace("subjectAltNames: [vault", "subjectAltNames: [other");
    mesh.write("vault.yaml", &other);
    mesh.wait("a server with another name", || call().status == 503);
}

fn a_workload_entry(mesh: &Mesh) {
    mesh.write("legacy.yaml", &entry(&address_of(mesh, "elsewhere")));
    let call = || curl(mesh, "inside", &["http://legacy.example.test/"]);
    mesh.wait("a program that a WorkloadEntry names", || {
        call().status == 200
    });
    assert!(call().text.contains("elsewhere"), "{:?}", call());
    mesh.write("legacy.yaml", &entry(&address_of(mesh, "plain")));
    mesh.wait("another address", || call().text.contains("plain"));
    mesh.take_out("legacy.yaml");
    mesh.wait("no such name", || call().status != 200);
}

fn modes_of_mutual_tls(mesh: &Mesh) {
    let from = |caller: &str| curl(mesh, caller, &["http://plain:9080/"]).status;
    mesh.wait("plaintext is permitted", || {
        from("outside") == 200 && from("inside") == 200
    });
    mesh.write("mesh-wide.yaml", &mutual_tls("istio-system", "STRICT"));
    mesh.wait("the whole mesh is strict", || from("outside") == 0);
    assert_eq!(from("inside"), 200);
    mesh.write("namespace.yaml", &mutual_tls("default", "DISABLE"));
    mesh.wait("the namespace wants none", || {
        from("outside") == 200 && from("inside") == 200
    });
    mesh.take_out("namespace.yaml");
    mesh.wait("strict again", || {
        from("outside") == 0 && from("inside") == 200
    });
}
