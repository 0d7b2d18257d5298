//! Every protocol through the captured path, between programs that are not ours, and out of the
//! mesh.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::mesh::{Mesh, Plan, signal};
use crate::observability::Scrape;
use crate::peers::{App, Curl, Dialogue, Peers, certificates, curl, curl_here, envoy, yaml};

const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default}\nspec: {mtls: {mode: STRICT}}\n";

/// TLS that the gateway and the mesh pass on unopened, by server name.
const PASS_THROUGH: &str = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: secrets}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 8080, name: tls, protocol: TLS}
    tls: {mode: PASSTHROUGH}
    hosts: ['*.example.test']
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: secrets}
spec:
  hosts: ['*.example.test']
  gateways: [secrets]
  tls:
  - match: [{port: 8080, sniHosts: [alpha.example.test]}]
    route: [{destination: {host: alpha, port: {number: 8443}}}]
  - match: [{port: 8080, sniHosts: [beta.example.test]}]
    route: [{destination: {host: beta, port: {number: 8443}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: alpha}
spec:
  hosts: [alpha, alpha.example.test, beta.example.test]
  tls:
  - match: [{port: 8443, sniHosts: [beta.example.test]}]
    route: [{destination: {host: beta, port: {number: 8443}}}]
  - match: [{port: 8443, sniHosts: [alpha, alpha.example.test]}]
    route: [{destination: {host: alpha, port: {number: 8443}}}]
";

/// Takes effect only where a port was found to carry HTTP.
const TEAPOT: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: plain}
spec:
  hosts: [plain]
  http:
  - match: [{headers: {x-teapot: {exact: 'yes'}}}]
    directResponse: {status: 418, body: {string: short and stout}}
  - route: [{destination: {host: plain}}]
";

fn json_of(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn exec(mesh: &Mesh, workload: &str, program: &[String]) -> Output {
    mesh.exec(
        workload,
        &program.iter().map(String::as_str).collect::<Vec<_>>(),
    )
}

#[test]
fn foreign_programs_talk_through_the_mesh_in_every_protocol() {
    let Some(peers) = Peers::of("foreign_programs_talk_through_the_mesh_in_every_protocol") else {
        return;
    };
    let plan = Plan::new();
    for name in ["alpha", "beta"] {
        certificates(
            &plan.path(""),
            name,
            &[name, &format!("{name}.example.test")],
        );
    }

    let tls = |name: &str| {
        let file = |suffix: &str| plan.path(&format!("{name}.{suffix}")).display().to_string();
        App::new(
            name,
            &[("tls", 8443)],
            peers.program(
                "tls_server.py",
                &["0.0.0.0", "8443", name, &file("pem"), &file("key")],
            ),
        )
    };

    // `data` declares nothing: what it carries is found out.
    let ports = [
        ("http", 9080),
        ("tcp", 9081),
        ("data", 9082),
        ("tcp-greeting", 9083),
    ];

    let plain = App::new(
        "plain",
        &ports,
        peers.program(
            "recorder.py",
            &["plain", "9080", "9081", "9082", "9083:greet"],
        ),
    );

    let apps = [
        plain,
        App::new("speaker", &[("grpc", 50051), ("undeclared", 50052)], {
            let both = "for port in 50051 50052; do \"$0\" -u \"$1\" server $port & done; wait";
            let program = peers.program("grpc_peer.py", &[]);
            vec![
                "sh".to_owned(),
                "-c".to_owned(),
                both.to_owned(),
                program[0].clone(),
                program[2].clone(),
            ]
        }),
        App::new(
            "socket",
            &[("http-ws", 8765)],
            peers.program("ws_peer.py", &["server", "8765"]),
        ),
        App::new("two", &[("http2", 8082), ("any", 8083)], {
            let both = "\"$0\" -u \"$1\" 8082 declared & \"$0\" -u \"$1\" 8083 sniffed & wait";
            let program = peers.program("h2c.py", &[]);
            vec![
                "sh".to_owned(),
                "-c".to_owned(),
                both.to_owned(),
                program[0].clone(),
                program[2].clone(),
            ]
        }),
        tls("alpha"),
        tls("beta"),
        App::idle("inside"),
    ];

    let (apps, authority) = (yaml(&apps), plan.path("ca.pem").display().to_string());
    let plan = plan
        .file("apps.yaml", &apps)
        .file("strict.yaml", STRICT)
        .file("tls.yaml", PASS_THROUGH)
        .file("teapot.yaml", TEAPOT);

    let mesh = plan.start();
    mesh.wait("a first answer", || {
        curl(&mesh, "inside", &["http://plain:9080/"]).status == 200
    });

    http1(&mesh);
    tcp(&mesh, &peers);
    http2(&mesh);
    grpc(&mesh, &peers);
    counted(&mesh, &peers);
    websocket(&mesh, &peers);
    pass_through(&mesh, &authority);
    programs_added_by_hand(&mesh);
}

fn http1(mesh: &Mesh) {
    for port in [9080, 9082] {
        let url = format!("http://plain:{port}/x");
        let answer = curl(mesh, "inside", &[&url]);
        assert_eq!(
            (answer.status, answer.text.as_str()),
            (200, "plain GET /x"),
            "{url}"
        );

        let answer = curl(mesh, "inside", &["-H", "x-teapot: yes", &url]);
        assert_eq!(
            (answer.status, answer.text.as_str()),
            (418, "short and stout"),
            "{url} is HTTP, declared or found out"
        );

        // The same host by its absolute name: no way around a route, or a policy.
        let absolute = format!("host: plain.default.svc.cluster.local.:{port}");
        assert_eq!(
            curl(
                mesh,
                "inside",
                &["-H", &absolute, "-H", "x-teapot: yes", &url]
            )
            .status,
            418,
            "{absolute}"
        );

        let head = curl(mesh, "inside", &["-I", &url]);
        assert!(
            head.status == 200 && head.text.contains("content-length"),
            "{head:?}"
        );

        // A body with its length, one in chunks, one that is asked for first (Expect).
        let file = mesh.path("body");
        fs::write(&file, vec![b'x'; 3_000_000]).expect("a writable folder");
        let body = format!("@{}", file.display());
        for extra in [
            &["-H", "expect:"][..],
            &["-H", "transfer-encoding: chunked", "-H", "expect:"],
            &["-H", "expect: 100-continue"],
        ] {
            let answer = curl(
                mesh,
                "inside",
                &[extra, &["--data-binary", &body, &url]].concat(),
            );

            assert_eq!(
                (answer.status, answer.text.as_str()),
                (200, "plain POST /x"),
                "{extra:?}"
            );
        }
    }
}

fn tcp(mesh: &Mesh, peers: &Peers) {
    for port in [9081, 9082] {
        let mut talk = Dialogue::talk(mesh, peers, "inside", "plain", port);
        for word in ["one", "two", "three"] {
            assert_eq!(
                talk.ask(&format!("send {word}")),
                format!("received {word}"),
                "port {port}"
            );
        }
    }

    // On a port declared as TCP the server may speak first.
    let mut talk = Dialogue::talk(mesh, peers, "inside", "plain", 9083);
    assert_eq!(talk.ask("hear"), "received plain greets");
    assert_eq!(talk.ask("send thanks"), "received thanks");

    // Declared as TCP, its HTTP is nobody's business.
    let answer = curl(
        mesh,
        "inside",
        &["-H", "x-teapot: yes", "http://plain:9081/x"],
    );

    assert_eq!((answer.status, answer.text.as_str()), (200, "plain GET /x"));
}

fn http2(mesh: &Mesh) {
    for (port, text) in [(8082, "declared"), (8083, "sniffed")] {
        let url = format!("http://two:{port}/");
        let answer = curl(mesh, "inside", &["--http2-prior-knowledge", &url]);
        assert_eq!((answer.status, answer.text.as_str()), (200, text));
    }

    // HTTP/1.1 is carried to a service that declares HTTP/2, and HTTP/2 to one that speaks
    // HTTP/1.1.
    let answer = curl(mesh, "inside", &["--http1.1", "http://two:8082/"]);
    assert_eq!((answer.status, answer.text.as_str()), (200, "declared"));
    let answer = curl(
        mesh,
        "inside",
        &["--http2-prior-knowledge", "http://plain:9080/h2"],
    );

    assert_eq!(
        (answer.status, answer.text.as_str()),
        (200, "plain GET /h2")
    );
}

fn grpc(mesh: &Mesh, peers: &Peers) {
    for port in [50051, 50052] {
        let told = json_of(&exec(
            mesh,
            "inside",
            &peers.program("grpc_peer.py", &["client", &format!("speaker:{port}")]),
        ));

        let wanted = json!({
            "unary": ["said word 0", "said word 1", "said word 2"],
            "status": "NOT_FOUND: nobody of that name",
            "stream": ["heard line 0", "heard line 1", "heard line 2"],
            "code": "OK",
            "trailer": "at the end",
            "big": 1_000_005,
        });

        assert_eq!(told, wanted, "port {port}");
    }
}

/// Both proxies of a connection know both workloads, whether its port is declared or found out,
/// whoever speaks first.
fn counted(mesh: &Mesh, peers: &Peers) {
    let opened = |workload: &str, reporter: &str, source: &str| {
        let scrape = Scrape::of(
            mesh,
            peers,
            workload,
            15090,
            &["istio_tcp_connections_opened"],
        );

        let labels = [
            ("reporter", reporter),
            ("source_workload", source),
            (
                "source_workload_namespace",
                if source == "unknown" {
                    "unknown"
                } else {
                    "default"
                },
            ),
            ("source_app", source),
            ("destination_workload", "plain"),
            ("destination_app", "plain"),
            ("destination_service_name", "plain"),
        ];

        scrape.sum("istio_tcp_connections_opened_total", &labels)
    };

    // Two that were asked, one that was greeted, one of curl.
    for (workload, reporter) in [("inside", "source"), ("plain", "destination")] {
        assert_eq!(opened(workload, reporter, "inside"), 4.0, "at {workload}");
        assert_eq!(opened(workload, reporter, "unknown"), 0.0, "at {workload}");
    }

    let messages = |workload: &str, reporter: &str| {
        let families = ["istio_request_messages", "istio_response_messages"];
        let scrape = Scrape::of(mesh, peers, workload, 15090, &families);
        let labels = [
            ("reporter", reporter),
            ("source_workload", "inside"),
            ("destination_workload", "speaker"),
        ];
        families.map(|family| scrape.sum(&format!("{family}_total"), &labels))
    };

    mesh.wait("messages of both sides, counted alike at both ends", || {
        let (one, other) = (
            messages("inside", "source"),
            messages("speaker", "destination"),
        );
        one == other && one.iter().all(|count| *count >= 6.0)
    });
}

fn websocket(mesh: &Mesh, peers: &Peers) {
    let told = json_of(&exec(
        mesh,
        "inside",
        &peers.program("ws_peer.py", &["client", "ws://socket:8765/chat"]),
    ));
    assert_eq!(
        told,
        json!({ "text": ["one", "two"], "long": 100_000, "binary": [0, 255], "close": 1000 })
    );
}

fn pass_through(mesh: &Mesh, authority: &str) {
    mesh.wait("the way in", || mesh.published(8080).is_some());
    let port = mesh.published(8080).expect("published").port();
    let shown = format!("istio-ingressgateway port 8080: 127.0.0.1:{port}, TLS");
    assert!(
        mesh.said(&shown) && mesh.cli_ok(&["status"]).contains(&shown),
        "{:?}",
        mesh.lines()
    );

    for name in ["alpha", "beta"] {
        let host = format!("{name}.example.test");
        let (url, resolve) = (
            format!("https://{host}:{port}/from-outside"),
            format!("{host}:{port}:127.0.0.1"),
        );

        let call = || curl_here(&["--cacert", authority, "--resolve", &resolve, &url]);
        mesh.wait(&format!("{host} from outside"), || call().status == 200);
        assert_eq!(
            call().text,
            format!("{name} sni={host} host={host}:{port} path=/from-outside"),
            "its own certificate, unopened"
        );
    }

    let nobody = format!("nobody.example.test:{port}:127.0.0.1");
    assert_eq!(
        curl_here(&[
            "-k",
            "--resolve",
            &nobody,
            &format!("https://nobody.example.test:{port}/")
        ])
        .status,
        0
    );

    // Inside: the Service's own name, and a server name that leads elsewhere.
    let answer = curl(
        mesh,
        "inside",
        &["--cacert", authority, "https://alpha:8443/"],
    );

    assert_eq!(
        (answer.status, answer.text.as_str()),
        (200, "alpha sni=alpha host=alpha:8443 path=/")
    );

    let address =
        String::from_utf8_lossy(&mesh.exec("inside", &["getent", "ahostsv4", "alpha"]).stdout)
            .into_owned();
    let address = address
        .split_whitespace()
        .next()
        .expect("an address")
        .to_owned();

    let resolve = format!("beta.example.test:8443:{address}");
    let answer = curl(
        mesh,
        "inside",
        &[
            "--cacert",
            authority,
            "--resolve",
            &resolve,
            "https://beta.example.test:8443/",
        ],
    );

    assert_eq!(
        (answer.status, answer.text.split(' ').next()),
        (200, Some("beta")),
        "{answer:?}"
    );
}

/// `python3 -m http.server` and curl as workloads.
fn programs_added_by_hand(mesh: &Mesh) {
    let folder = mesh.path("files");
    fs::create_dir(&folder).expect("a writable folder");
    fs::write(folder.join("page.txt"), "a page of a file server").expect("a writable folder");
    let run = |words: &[&str]| {
        let mut command = mesh.cli_command();
        command.arg("run").args(words).current_dir(&folder);
        command
    };

    let python = [
        "--app",
        "files",
        "--port",
        "8000",
        "--detach",
        "--",
        "python3",
        "-m",
        "http.server",
        "8000",
    ];

    let started = run(&python).output().expect("it starts");
    assert!(
        started.status.success() && String::from_utf8_lossy(&started.stderr).contains("files-v1-0"),
        "{started:?}"
    );

    mesh.wait("it is called by name from inside the mesh", || {
        curl(mesh, "inside", &["http://files:8000/page.txt"]).status == 200
    });

    // STRICT is in force: only a meshed caller gets an answer, so curl has a sidecar of its own.
    let caller = [
        "--app",
        "caller",
        "--",
        "curl",
        "-sS",
        "--retry",
        "20",
        "--retry-all-errors",
        "http://files:8000/page.txt",
    ];

    let dialogue = Dialogue::start(&mut run(&caller));
    assert_eq!(
        dialogue.hear().split("server").next(),
        Some("a page of a file ")
    );

    let status = mesh.cli_ok(&["status"]);
    assert!(
        ["caller-v1-0", "files-v1-0"]
            .iter()
            .all(|name| status.contains(name)),
        "{status}"
    );

    signal(dialogue.process(), "INT");
    mesh.wait("it leaves with its client", || {
        !mesh.cli_ok(&["status"]).contains("caller-v1-0")
    });
    assert!(
        mesh.cli_ok(&["stop", "files-v1"])
            .contains("stopped files-v1-0")
    );

    mesh.wait("stopped", || {
        !mesh.cli_ok(&["status"]).contains("files-v1-0")
    });
    let refused = mesh.cli(&["stop", "inside"]);
    assert!(
        refused.status.code() == Some(1)
            && String::from_utf8_lossy(&refused.stderr).contains("comes from the configuration"),
        "{refused:?}"
    );
}

#[test]
fn egress_with_istios_rule_for_google_apis() {
    const TEST: &str = "egress_with_istios_rule_for_google_apis";

    let Some(shared) = crate::shared() else {
        return crate::skip(TEST, "Istio's samples are not beside the workspace");
    };
    let (Some(peers), Some(envoy)) = (Peers::of(TEST), envoy(TEST)) else {
        return;
    };
    let plan = Plan::new();
    let folder: PathBuf = plan.path("");
    certificates(&folder, "google", &["www.googleapis.com"]);
    certificates(&folder, "impostor", &["www.example.test"]);
    let server = |name: &str| {
        let file = |suffix: &str| {
            folder
                .join(format!("{name}.{suffix}"))
                .display()
                .to_string()
        };

        let words = peers.program(
            "tls_server.py",
            &["127.0.0.1", "0", name, &file("pem"), &file("key")],
        );

        let dialogue = Dialogue::start(Command::new(&words[0]).args(&words[1..]));
        let port = dialogue
            .hear()
            .strip_prefix("port ")
            .expect("it listens")
            .to_owned();

        (dialogue, port)
    };

    let (_google, google) = server("google");
    let (impostor_says, impostor) = server("impostor");
    let map = plan.path("dial.yaml");

    fs::write(
        &map,
        format!(
            "www.googleapis.com:443: 127.0.0.1:{google}\nimpostor.test:443: 127.0.0.1:{impostor}\n"
        ),
    )
    .expect("a writable folder");

    let rule = shared.join("istio/samples/bookinfo/networking/egress-rule-google-apis.yaml");
    let text = fs::read_to_string(&rule).expect("Istio's file");

    // The same for a host whose server shows another name's certificate.
    let impostor_rule = text
        .replace("www.googleapis.com", "impostor.test")
        .replace("googleapis", "impostor");
    let authority = plan.path("ca.pem");
    let plan = plan
        .argument("--dial-map")
        .argument(&map.display().to_string())
        .environment("SSL_CERT_FILE", &authority);

    let plan = plan
        .argument("--no-gateways")
        .argument("--envoy")
        .argument(&envoy.display().to_string())
        .file(
            "apps.yaml",
            &yaml(&[App::idle("inside"), App::idle("beside-envoy").with_envoy()]),
        )
        .file("impostor.yaml", &impostor_rule);

    let mesh = plan.start();

    // Behind our proxy and behind Envoy.
    let callers = ["inside", "beside-envoy"];
    let everywhere = |url: &str, holds: &dyn Fn(&Curl) -> bool| {
        callers.iter().all(|from| holds(&curl(&mesh, from, &[url])))
    };
    assert!(
        everywhere("http://www.googleapis.com/", &|answer| answer.status != 200),
        "nothing is there without the rule"
    );

    mesh.put(&rule);
    mesh.wait("the applications' HTTP leaves as HTTPS", || {
        everywhere("http://www.googleapis.com/books", &|answer| {
            answer.status == 200
        })
    });

    for from in callers {
        let answer = curl(&mesh, from, &["http://www.googleapis.com/books?q=isbn"]);
        assert_eq!(
            answer.text, "google sni=www.googleapis.com host=www.googleapis.com path=/books?q=isbn",
            "{from}"
        );

        // SIMPLE verifies the server's name.
        let refused = curl(&mesh, from, &["http://impostor.test/"]);
        assert_eq!(refused.status, 503, "{from}: {refused:?}");
        assert!(
            impostor_says.hear().starts_with("refused"),
            "{from} ends the handshake"
        );
    }

    mesh.take_out("egress-rule-google-apis.yaml");
    mesh.wait("the rule is gone", || {
        everywhere("http://www.googleapis.com/books", &|answer| {
            answer.status != 200
        })
    });
}
