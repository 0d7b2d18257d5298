//! `envoy.filters.http.buffer` from a foreign xDS server: our proxy and stock Envoy get the same
//! resources and the same requests.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use serde_json::{Value, json};

use super::{
    CLUSTER, ENDPOINT, LISTENER, Proxy, ROUTE, Server, assignment, bootstrap, by_rds, cluster,
    listener, routes, wait,
};
use crate::peers::{self, Curl, Peers, curl_here};

const BUFFER: &str = "envoy.filters.http.buffer";
const ROUTER: &str = "envoy.filters.http.router";

/// A server that answers with what it received: the framing fields and the size of the body.
fn recorder() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || record(stream));
        }
    });
    address
}

fn record(mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    loop {
        let (mut length, mut is_chunked) = (None, false);
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                // The request line has no colon and a blank; the end of the head has neither.
                if line == "\r\n" {
                    break;
                }
                continue;
            };
            match name {
                "content-length" => length = value.parse::<usize>().ok(),
                "transfer-encoding" => is_chunked = value == "chunked",
                _ => {}
            }
        }

        let mut size = 0;
        if is_chunked {
            loop {
                line.clear();
                reader.read_line(&mut line)?;
                let chunk = usize::from_str_radix(line.trim(), 16).unwrap_or(0);
                reader.read_exact(&mut vec![0; chunk + 2])?;
                size += chunk;
                if chunk == 0 {
                    break;
                }
            }
        } else {
            size = length.unwrap_or(0);
            reader.read_exact(&mut vec![0; size])?;
        }

        let body = format!("content-length {length:?}, chunked {is_chunked}, body {size}");
        write!(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
    }
}

/// A listener that buffers up to 32 bytes; `/wide` buffers up to 64, and `/off` nothing.
fn world(port: u16, upstream: SocketAddr) -> Value {
    let per_route = |settings: Value| {
        let mut settings = settings;
        settings["@type"] =
            json!("type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute");
        json!({ BUFFER: settings })
    };
    let route = |prefix: &str, settings: Value| {
        json!({
            "match": { "prefix": prefix },
            "route": { "cluster": "recorder" },
            "typed_per_filter_config": settings,
        })
    };

    let mut way_in = by_rds("routes");
    way_in["http_filters"] = json!([
        { "name": BUFFER, "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer",
            "max_request_bytes": 32,
        } },
        { "name": ROUTER, "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
        } },
    ]);

    let list = json!([
        route(
            "/wide",
            per_route(json!({ "buffer": { "max_request_bytes": 64 } }))
        ),
        route("/off", per_route(json!({ "disabled": true }))),
        route("/", json!({})),
    ]);

    json!({
        CLUSTER: [cluster("recorder")],
        ENDPOINT: [assignment("recorder", &[upstream])],
        LISTENER: [listener("way-in", port, &way_in)],
        ROUTE: [routes("routes", &list)],
    })
}

/// Sends every request to a proxy and returns what the client saw of each.
fn answers(port: u16) -> Vec<(String, Curl)> {
    let bodies = ["a".repeat(20), "b".repeat(40), "c".repeat(80)];
    let mut all = Vec::new();
    for path in ["/", "/wide", "/off"] {
        for body in &bodies {
            for (framing, more) in [
                ("with its length", &[][..]),
                ("in chunks", &["-H", "transfer-encoding: chunked"]),
                ("over HTTP/2", &["--http2-prior-knowledge"]),
            ] {
                let url = format!("http://127.0.0.1:{port}{path}");
                let request = [more, &["--data-binary", body, &url]].concat();
                let name = format!("{path} {} bytes {framing}", body.len());
                all.push((name, curl_here(&request)));
            }
        }

        let url = format!("http://127.0.0.1:{port}{path}");
        all.push((format!("{path} without a body"), curl_here(&[&url])));
    }

    all
}

#[test]
fn a_foreign_server_has_bodies_buffered_as_by_envoy() {
    let test = "a_foreign_server_has_bodies_buffered_as_by_envoy";
    let (Some(python), Some(envoy)) = (Peers::python(test), peers::envoy(test)) else {
        return;
    };
    let upstream = recorder();

    let mut seen = Vec::new();
    for is_envoy in [false, true] {
        let (port, admin) = (meltemi_testkit::free_port(), meltemi_testkit::free_port());
        let server = Server::start(&python, &world(port, upstream), None);
        let bootstrap = bootstrap("DELTA_GRPC", server.port, admin);
        let _proxy = match is_envoy {
            true => Proxy::envoy(&envoy, &bootstrap, admin),
            false => Proxy::start(&bootstrap, admin),
        };

        let url = format!("http://127.0.0.1:{port}/");
        wait("the proxy serves", || curl_here(&[&url]).status == 200);
        seen.push(answers(port));
    }

    // Envoy does not count a body that comes as one HTTP/2 frame with the stream's end, so it lets
    // a longer one pass. We hold to the limit.
    for ((request, ours), (_, envoys)) in seen[0].iter().zip(&seen[1]) {
        let passes_envoy = request.ends_with("over HTTP/2") && envoys.status == 200;
        if passes_envoy && ours.status == 413 {
            continue;
        }
        assert_eq!(ours, envoys, "{request}: ours, then Envoy's");
    }

    // The comparison means something only if the limits had their effect.
    let status = |name: &str| {
        let found = seen[0].iter().find(|(request, _)| request == name);
        found.map(|(_, answer)| answer.status)
    };
    assert_eq!(status("/ 20 bytes in chunks"), Some(200));
    assert_eq!(status("/ 40 bytes in chunks"), Some(413));
    assert_eq!(status("/wide 40 bytes with its length"), Some(200));
    assert_eq!(status("/wide 80 bytes over HTTP/2"), Some(413));
    assert_eq!(status("/off 80 bytes in chunks"), Some(200));
}
