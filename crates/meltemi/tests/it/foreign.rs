//! Our proxy alone, under an xDS server that shares no line with us: `tests/foreign/xds_server.py`
//! on grpcio.

mod buffer;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http::{self, Client};
use crate::peers::{Dialogue, Peers};

const PATIENCE: Duration = Duration::from_secs(60);
const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";

fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: did not come to hold");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A server that answers every request with its name.
fn backend(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream, name));
        }
    });
    address
}

fn answer(mut stream: TcpStream, name: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
        }

        write!(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}",
            name.len()
        )?;
    }
}

/// The server in a process of its own, and the file that it serves.
struct Server {
    dialogue: Dialogue,
    file: tempfile::NamedTempFile,
    port: u16,
    heard: Vec<Value>,
}

impl Server {
    fn start(peers: &Peers, resources: &Value, port: Option<u16>) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), resources.to_string()).expect("writable");
        let words = peers.program(
            "xds_server.py",
            &[
                &file.path().display().to_string(),
                &port.unwrap_or(0).to_string(),
            ],
        );

        let dialogue = Dialogue::start(Command::new(&words[0]).args(&words[1..]));
        let said = dialogue.hear();
        let port = said
            .strip_prefix("port ")
            .and_then(|port| port.parse().ok())
            .unwrap_or_else(|| panic!("it said {said:?}"));

        Self {
            dialogue,
            file,
            port,
            heard: Vec::new(),
        }
    }

    /// Serves these from now on.
    fn push(&mut self, resources: &Value) {
        fs::write(self.file.path(), resources.to_string()).expect("writable");
        self.dialogue.say("again");
    }

    /// Hears until a client refuses something; the reason.
    fn refusal(&mut self) -> (String, String) {
        loop {
            let line = self.dialogue.hear();
            let said: Value = serde_json::from_str(&line)
                .unwrap_or_else(|_| panic!("instead of a refusal: {line}"));
            self.heard.push(said.clone());
            if let (Some(url), Some(reason)) = (said["type"].as_str(), said["nack"].as_str()) {
                return (url.to_owned(), reason.to_owned());
            }
        }
    }
}

/// The proxy in a process of its own.
struct Proxy {
    child: Child,
    said: Arc<Mutex<String>>,
    admin: SocketAddr,
    _folder: tempfile::TempDir,
}

fn bootstrap(variant: &str, xds: u16, admin: u16) -> Value {
    let h2 = json!({ "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": { "http2_protocol_options": {} },
    } });

    json!({
        "node": { "id": "alone", "cluster": "test" },
        "admin": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": admin } } },
        "dynamic_resources": {
            "ads_config": { "api_type": variant, "transport_api_version": "V3", "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds" } }] },
            "cds_config": { "ads": {}, "resource_api_version": "V3" },
            "lds_config": { "ads": {}, "resource_api_version": "V3" },
        },
        "static_resources": { "clusters": [{
            "name": "xds", "type": "STATIC", "connect_timeout": "1s", "typed_extension_protocol_options": h2,
            "load_assignment": { "cluster_name": "xds", "endpoints": [{ "lb_endpoints": [endpoint(([127, 0, 0, 1], xds).into())] }] },
        }] },
    })
}

impl Proxy {
    fn start(bootstrap: &Value, admin: u16) -> Self {
        let mut command = Command::new(crate::binary());
        command.args(["proxy", "--concurrency", "2"]);
        Self::spawn(command, bootstrap, admin)
    }

    /// Stock Envoy in the place of our proxy.
    fn envoy(program: &Path, bootstrap: &Value, admin: u16) -> Self {
        let mut command = Command::new(program);
        command.args(["--concurrency", "1", "--disable-hot-restart"]);
        Self::spawn(command, bootstrap, admin)
    }

    fn spawn(mut command: Command, bootstrap: &Value, admin: u16) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("bootstrap.json");
        fs::write(&file, bootstrap.to_string()).expect("writable");
        command
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());

        let mut child = command.spawn().expect("the binary starts");
        let said = Arc::new(Mutex::new(String::new()));
        collect(child.stdout.take().expect("piped"), Arc::clone(&said));
        collect(child.stderr.take().expect("piped"), Arc::clone(&said));

        Self {
            child,
            said,
            admin: ([127, 0, 0, 1], admin).into(),
            _folder: folder,
        }
    }

    fn admin(&self, path: &str) -> String {
        http::get(self.admin, path, &[])
            .map(|answer| answer.body)
            .unwrap_or_default()
    }
}

fn collect(from: impl Read + Send + 'static, into: Arc<Mutex<String>>) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            *into.lock().expect("nothing panics while it holds the text") += &(line + "\n");
        }
    });
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!(
                "the proxy said:\n{}",
                self.said
                    .lock()
                    .expect("nothing panics while it holds the text")
            );
        }
    }
}

fn endpoint(address: SocketAddr) -> Value {
    json!({ "endpoint": { "address": { "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } } } })
}

fn cluster(name: &str) -> Value {
    json!({ "name": name, "type": "EDS", "connect_timeout": "1s", "eds_cluster_config": { "eds_config": { "ads": {}, "resource_api_version": "V3" } } })
}

fn assignment(name: &str, addresses: &[SocketAddr]) -> Value {
    let endpoints: Vec<Value> = addresses.iter().map(|address| endpoint(*address)).collect();
    json!({ "cluster_name": name, "endpoints": [{ "lb_endpoints": endpoints }] })
}

fn listener(name: &str, port: u16, routes: &Value) -> Value {
    let mut hcm = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } }],
    });

    for (key, value) in routes.as_object().expect("an object") {
        hcm[key] = value.clone();
    }
    json!({
        "name": name,
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": port } },
        "filter_chains": [{ "filters": [{ "name": "envoy.filters.network.http_connection_manager", "typed_config": hcm }] }],
    })
}

fn by_rds(name: &str) -> Value {
    json!({ "rds": { "route_config_name": name, "config_source": { "ads": {}, "resource_api_version": "V3" } } })
}

fn routes(name: &str, list: &Value) -> Value {
    json!({ "name": name, "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": list }] })
}

fn scenarios(test: &str, variant: &str) {
    let Some(peers) = Peers::python(test) else {
        return;
    };
    let (one, two) = (backend("one"), backend("two"));
    let (port, admin) = (meltemi_testkit::free_port(), meltemi_testkit::free_port());
    let all = |prefix: &str, to: &str| json!({ "match": { "prefix": prefix }, "route": { "cluster": to } });
    let mut world = json!({});

    world[CLUSTER] = json!([cluster("first"), cluster("second")]);
    world[ENDPOINT] = json!([assignment("first", &[one]), assignment("second", &[two])]);
    world[LISTENER] = json!([listener("way-in", port, &by_rds("routes"))]);
    world[ROUTE] = json!([routes("routes", &json!([all("/", "first")]))]);
    let mut server = Server::start(&peers, &world, None);
    let proxy = Proxy::start(&bootstrap(variant, server.port, admin), admin);
    let address: SocketAddr = ([127, 0, 0, 1], port).into();
    let body = |path: &str| {
        http::get(address, path, &[])
            .map(|answer| answer.body)
            .unwrap_or_default()
    };

    wait(
        "listener, route, cluster and endpoints are in force",
        || body("/") == "one",
    );

    wait("the proxy says so", || {
        http::get(proxy.admin, "/ready", &[]).is_ok_and(|answer| answer.status == 200)
    });
    let mut kept = Client::connect(address).expect("it listens");
    let mut on_kept = |path: &str| {
        kept.get(path, &[])
            .map(|answer| answer.body)
            .unwrap_or_else(|error| format!("failed: {error}"))
    };

    assert_eq!(on_kept("/"), "one");

    // A change of routes, on the open connection too.
    world[ROUTE] = json!([routes(
        "routes",
        &json!([
            all("/second", "second"),
            { "match": { "path": "/here" }, "direct_response": { "status": 200, "body": { "inline_string": "the proxy itself" } } },
            all("/", "first"),
        ])
    )]);

    server.push(&world);
    wait("a changed route is taken", || body("/second") == "two");
    assert_eq!(
        (
            on_kept("/second").as_str(),
            on_kept("/").as_str(),
            on_kept("/here").as_str()
        ),
        ("two", "one", "the proxy itself")
    );

    // A change of endpoints.
    world[ENDPOINT] = json!([assignment("first", &[two]), assignment("second", &[one])]);
    server.push(&world);
    wait("changed endpoints are taken", || {
        body("/") == "two" && body("/second") == "one"
    });

    // A new cluster and a route to it, together.
    world[CLUSTER] = json!([cluster("first"), cluster("second"), cluster("third")]);
    world[ENDPOINT] = json!([
        assignment("first", &[two]),
        assignment("second", &[one]),
        assignment("third", &[one, two])
    ]);

    let third = json!([
        all("/third", "third"),
        all("/second", "second"),
        all("/", "first")
    ]);

    world[ROUTE] = json!([routes("routes", &third)]);
    server.push(&world);
    wait("a new cluster is used", || body("/third") == "one");
    wait("with both endpoints", || body("/third") == "two");

    // A bad route configuration: refused by name, the old one stays.
    let good = world.clone();
    let bad =
        json!({ "match": { "safe_regex": { "regex": "(" } }, "route": { "cluster": "first" } });
    world[ROUTE] = json!([routes("routes", &json!([bad, all("/", "second")]))]);
    server.push(&world);
    let (url, reason) = server.refusal();
    assert_eq!(url, ROUTE);
    assert!(reason.contains("routes"), "{reason}");
    assert_eq!(
        (body("/").as_str(), on_kept("/").as_str()),
        ("two", "two"),
        "the old routes stay"
    );

    // A bad listener beside a changed good one: named, and the good one is taken.
    world = good.clone();
    let inline = json!({ "route_config": routes("inline", &json!([bad])) });
    world[LISTENER] = json!([
        listener("broken", meltemi_testkit::free_port(), &inline),
        listener("way-in", port, &by_rds("others"))
    ]);

    world[ROUTE] = json!([routes("others", &json!([all("/", "second")]))]);
    server.push(&world);
    let (url, reason) = server.refusal();
    assert_eq!(url, LISTENER);
    assert!(
        reason.contains("broken") && !reason.contains("way-in"),
        "{reason}"
    );

    wait("the good listener is taken", || body("/") == "one");

    // A bad cluster: named; calls to it fail, others do not.
    world = good.clone();
    world[CLUSTER] = json!([cluster("first"), cluster("second"), { "name": "third", "type": "EDS", "connect_timeout": "-1s" }]);
    server.push(&world);
    let (url, reason) = server.refusal();
    assert_eq!(url, CLUSTER);
    assert!(reason.contains("third"), "{reason}");
    wait("the other routes are in force", || {
        body("/") == "two" && body("/second") == "one"
    });
    assert!(
        ["one", "two"].contains(&body("/third").as_str()),
        "the old cluster stays"
    );

    server.push(&good);

    // The server dies: traffic goes on, old connections and new ones. It comes back with other
    // endpoints.
    let xds = server.port;
    server.dialogue.kill();
    let mut before = Client::connect(address).expect("it still listens");
    for _ in 0..20 {
        assert_eq!(
            before
                .get("/", &[])
                .map(|answer| answer.body)
                .ok()
                .as_deref(),
            Some("two"),
            "without a server"
        );

        assert_eq!(body("/second"), "one", "without a server");
    }

    world = good.clone();
    world[ENDPOINT] = json!([
        assignment("first", &[one]),
        assignment("second", &[two]),
        assignment("third", &[one])
    ]);

    let _server = Server::start(&peers, &world, Some(xds));
    wait("what the new server says is taken", || {
        body("/") == "one" && body("/second") == "two"
    });
    assert_eq!(
        before
            .get("/", &[])
            .map(|answer| answer.body)
            .ok()
            .as_deref(),
        Some("one"),
        "on the old connection too"
    );

    let dump = proxy.admin("/config_dump");
    assert!(
        ["way-in", "routes", "first", "third"]
            .iter()
            .all(|name| dump.contains(name)),
        "{dump}"
    );

    let clusters = proxy.admin("/clusters");
    assert!(
        clusters.contains("first::") && clusters.contains(&one.to_string()),
        "{clusters}"
    );

    assert!(
        proxy
            .admin("/listeners")
            .contains(&format!("127.0.0.1:{port}"))
    );
}

#[test]
fn a_foreign_server_drives_our_proxy_with_delta() {
    scenarios("a_foreign_server_drives_our_proxy_with_delta", "DELTA_GRPC");
}

#[test]
fn a_foreign_server_drives_our_proxy_with_the_state_of_the_world() {
    scenarios(
        "a_foreign_server_drives_our_proxy_with_the_state_of_the_world",
        "GRPC",
    );
}

#[test]
fn a_bootstrap_is_validated_without_serving() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let check = |name: &str, text: &str| {
        let file = folder.path().join(name);
        fs::write(&file, text).expect("writable");
        let output = Command::new(crate::binary())
            .args(["proxy", "--validate", "-c"])
            .arg(&file)
            .output()
            .expect("the binary starts");

        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned()
                + &String::from_utf8_lossy(&output.stdout),
        )
    };

    let sound = bootstrap("DELTA_GRPC", 1, 2);
    let (code, told) = check("sound.json", &sound.to_string());
    assert_eq!(code, Some(0), "{told}");
    let (code, told) = check("broken.yaml", "node: {id: a\nadmin: [");
    assert!(code == Some(1) && told.contains("broken.yaml"), "{told}");
    let mut secured = sound.clone();
    secured["static_resources"]["clusters"][0]["transport_socket"] = json!({
        "name": "tls",
        "typed_config": { "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext" },
    });

    let (code, told) = check("secured.json", &secured.to_string());
    assert!(
        code == Some(1)
            && told.contains("static cluster \"xds\"")
            && told.contains("transport_socket"),
        "{told}"
    );

    let mut bad = sound;
    bad["static_resources"]["clusters"][0]["connect_timeout"] = json!("-1s");
    let (code, told) = check("cluster.json", &bad.to_string());
    assert!(
        code == Some(1) && told.contains("clusters[\"xds\"]") && told.contains("connect_timeout"),
        "{told}"
    );
}
