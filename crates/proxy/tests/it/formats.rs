//! Operators of format strings: in headers that the router changes and in access logs, stock
//! Envoy's values and ours.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use meltemi_filters::format::TimeFormat;
use meltemi_proto::envoy::config::cluster::v3::Cluster;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::config::listener::v3::Listener;
use meltemi_proto::google::protobuf::{Struct, Value, value::Kind};
use meltemi_proxy::ProxyOptions;

use crate::config::*;
use crate::envoy::{self, Envoy};
use crate::peers::{self, Client};

/// Answers with the request's head as its body; what is called with gRPC's content type fails with
/// the status in the path.
async fn mirror() -> SocketAddr {
    peers::http_server(|head, _| {
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|path| path.strip_prefix("/grpc/"))
            .unwrap_or_default();

        let grpc = if status.is_empty() {
            String::new()
        } else {
            format!("grpc-status: {status}\r\n")
        };

        format!(
            "HTTP/1.1 200 OK\r\n{grpc}content-length: {}\r\n\r\n{head}",
            head.len()
        )
        .into_bytes()
    })
    .await
}

fn value(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}

fn metadata(whose: &str) -> Option<core::Metadata> {
    let fields = Struct {
        fields: [("who".to_owned(), value(Kind::StringValue(whose.into())))].into(),
    };
    Some(core::Metadata {
        filter_metadata: [("test".to_owned(), fields)].into(),
        ..Default::default()
    })
}

/// What headers ask for. Each is `set`, so that what a client sends under that name is replaced, or
/// stays where Envoy leaves it.
const OPERATORS: &[&str] = &[
    "t=%START_TIME(%s.%3f)%",
    "%START_TIME%",
    "%START_TIME(%D %R)%",
    "%EMIT_TIME(%Y)%",
    "%PROTOCOL%",
    "%RESPONSE_CODE%",
    "%RESPONSE_CODE_DETAILS%",
    "%RESPONSE_FLAGS%",
    "%BYTES_RECEIVED%",
    "%BYTES_SENT%",
    "%DURATION%",
    "%UPSTREAM_HOST%",
    "%UPSTREAM_HOST_NAME%",
    "%UPSTREAM_HOST_NAME_WITHOUT_PORT%",
    "%UPSTREAM_REMOTE_ADDRESS%",
    "%UPSTREAM_REMOTE_PORT%",
    "%UPSTREAM_LOCAL_ADDRESS%",
    "%UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%",
    "%UPSTREAM_CLUSTER%",
    "%UPSTREAM_PROTOCOL%",
    "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "%UPSTREAM_METADATA(test:who)%",
    "%CLUSTER_METADATA(test:who)%",
    "%METADATA(ROUTE:test:who)%",
    "%METADATA(VIRTUAL_HOST:test:who)%",
    "%METADATA(LISTENER:test:who)%",
    "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%",
    "%DOWNSTREAM_PEER_SUBJECT%",
    "%CONNECTION_ID%",
    "%CONNECTION_TERMINATION_DETAILS%",
    "%STREAM_ID%",
    "%ACCESS_LOG_TYPE%",
    "%ROUTE_NAME%",
    "%HOSTNAME%",
    "%ENVIRONMENT(PATH)%",
    "%ENVIRONMENT(MELTEMI_NO_SUCH)%",
    "%REQ(x-none)%",
    "%REQ(:path)%",
    "%RESP(content-length)%",
    "%TRAILER(x)%",
    "%DYNAMIC_METADATA(a:b)%",
    "%COMMON_DURATION(DS_RX_BEG:DS_RX_END)%",
    "%COMMON_DURATION(DS_RX_BEG:US_RX_BEG:ns)%",
    "%COMMON_DURATION(DS_RX_BEG:nonsense)%",
    "%RESPONSE_DURATION%",
    "%GRPC_STATUS%",
    "%TRACE_ID%",
    "%ROUNDTRIP_DURATION%",
];

fn set(at: usize, value: &str) -> core::HeaderValueOption {
    core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: format!("x-op-{at:02}"),
            value: value.into(),
            ..Default::default()
        }),
        append_action: core::header_value_option::HeaderAppendAction::OverwriteIfExistsOrAdd as i32,
        ..Default::default()
    }
}

/// Runs of digits as one 0: ports, numbers and times differ from run to run.
fn folded(text: &str) -> String {
    let mut out = String::new();
    for letter in text.chars() {
        match letter.is_ascii_digit() {
            true if out.ends_with('0') => {}
            true => out.push('0'),
            false => out.push(letter),
        }
    }
    out
}

/// A UUID by its shape.
fn unnamed(text: &str) -> String {
    let is_uuid = text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        });

    if is_uuid {
        "(uuid)".to_owned()
    } else {
        folded(text)
    }
}

async fn cluster() -> Cluster {
    let mut cluster = static_cluster("up", &[mirror().await]);
    cluster.metadata = metadata("cluster");
    let endpoints = &mut cluster
        .load_assignment
        .as_mut()
        .expect("endpoints")
        .endpoints[0]
        .lb_endpoints;

    endpoints[0].metadata = metadata("endpoint");

    cluster
}

fn in_front(log: &str, format: &str) -> Vec<Listener> {
    let mut route = forward("/", "up");
    route.name = "a route".into();
    route.metadata = metadata("route");
    let numbered = || {
        OPERATORS
            .iter()
            .enumerate()
            .map(|(at, operator)| set(at, operator))
            .collect::<Vec<_>>()
    };

    route.request_headers_to_add = numbered();
    route.response_headers_to_add = numbered();
    let mut table = table("table", vec![route]);
    table.virtual_hosts[0].metadata = metadata("host");
    let mut manager = manager(inline(table));
    manager.access_log = vec![log_as(log, format)];
    let mut front = listener("in", vec![http_chain(&manager)]);
    front.metadata = metadata("listener");

    vec![front]
}

async fn both(test: &str, format: &str) -> Option<(Envoy, Running, [SocketAddr; 2])> {
    let program = envoy::program(test)?;
    let cluster = cluster().await;
    let log =
        |folder: &std::path::Path| in_front(&folder.join("log").display().to_string(), format);
    let theirs = Envoy::start(program, vec![cluster.clone()], log).await;
    let ours = Running::start(ProxyOptions::default());
    ours.apply(vec![cluster], in_front("/dev/stdout", format))
        .await;
    let at = [theirs.at("in").await, ours.at("in").await];

    Some((theirs, ours, at))
}

/// The values of the numbered headers in a head, `(none)` where there is none.
fn values(head: &str) -> Vec<String> {
    let of = |at: usize| {
        let name = format!("x-op-{at:02}: ");
        let lines: Vec<&str> = head
            .lines()
            .filter_map(|line| line.strip_prefix(&name))
            .collect();

        if lines.is_empty() {
            "(none)".to_owned()
        } else {
            unnamed(&lines.join("|"))
        }
    };

    (0..OPERATORS.len()).map(of).collect()
}

#[tokio::test]
async fn headers_are_filled_in_as_envoy_fills_them_in() {
    let Some((_theirs, _ours, at)) =
        both("headers_are_filled_in_as_envoy_fills_them_in", "x\n").await
    else {
        return;
    };

    let forged: String = (0..OPERATORS.len())
        .map(|at| format!("x-op-{at:02}: forged\n"))
        .collect();
    let request = format!("GET /a?b HTTP/1.1\nhost: a\n{forged}\n");
    let mut seen = Vec::new();
    for at in at {
        let (head, body) = Client::connect(at).await.ask(&request).await;
        seen.push((values(&body), values(&head)));
    }

    let mut different = Vec::new();
    for (at, operator) in OPERATORS.iter().enumerate() {
        for (message, theirs, ours) in [
            ("request", &seen[0].0, &seen[1].0),
            ("response", &seen[0].1, &seen[1].1),
        ] {
            if theirs[at] != ours[at] {
                different.push(format!(
                    "{message} {operator}: Envoy {:?}, we {:?}",
                    theirs[at], ours[at]
                ));
            }
        }
    }

    assert!(different.is_empty(), "{}", different.join("\n"));

    // A header that would be set to nothing is left as it came; Envoy leaves it, too.
    let of = |operator: &str| {
        OPERATORS
            .iter()
            .position(|own| *own == operator)
            .expect("listed")
    };

    assert_eq!(seen[1].0[of("%REQ(x-none)%")], "forged");
    assert_eq!(seen[1].1[of("%UPSTREAM_METADATA(test:who)%")], "endpoint");
    assert!(
        seen[1].0[0].starts_with("t=0.0") && seen[1].1[of("%UPSTREAM_HOST%")] == "0.0.0.0:0",
        "{seen:#?}"
    );
}

#[tokio::test]
async fn logs_name_what_envoys_name() {
    let format = "case=%REQ(X-CASE)% %UPSTREAM_PROTOCOL% %UPSTREAM_HOST_NAME% %UPSTREAM_HOST_NAME_WITHOUT_PORT% %STREAM_ID% \
                  %UNIQUE_ID% %ACCESS_LOG_TYPE% %UPSTREAM_METADATA(test:who)% %CLUSTER_METADATA(test:who)% \
                  %METADATA(ROUTE:test:who)% %METADATA(VIRTUAL_HOST:test:who)% %METADATA(LISTENER:test:who)% \
                  %COMMON_DURATION(DS_RX_BEG:US_RX_BEG)% %COMMON_DURATION(US_RX_BEG:DS_TX_END:us)% \
                  %COMMON_DURATION(DS_TX_END:DS_RX_BEG)% %ROUNDTRIP_DURATION% %TRACE_ID% %RESPONSE_CODE% %GRPC_STATUS% \
                  %GRPC_STATUS(CAMEL_STRING)% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS(NUMBER)% %GRPC_STATUS_NUMBER% \
                  %DOWNSTREAM_PEER_CERT_V_START% %UPSTREAM_TLS_VERSION% %UPSTREAM_PEER_SUBJECT%\n";

    let Some((theirs, ours, at)) = both("logs_name_what_envoys_name", format).await else {
        return;
    };
    let grpc = "content-type: application/grpc\n";
    let cases = [
        ("plain", "/", ""),
        ("plain-with-status", "/grpc/5", ""),
        ("ok", "/grpc/0", grpc),
        ("cancelled", "/grpc/1", grpc),
        ("invalid", "/grpc/3", grpc),
        ("last", "/grpc/16", grpc),
        ("unknown", "/grpc/17", grpc),
        ("user", "/grpc/99", grpc),
        ("none", "/", grpc),
    ];

    for (case, path, more) in cases {
        let start = format!("case={case} ");
        let mut lines = Vec::new();
        for at in at {
            let request = format!("GET {path} HTTP/1.1\nhost: a\nx-case: {case}\n{more}\n");
            Client::connect(at).await.ask(&request).await;
        }

        for line in [
            theirs.line("log", &start).await,
            ours.log.line_with(&start).await,
        ] {
            // Statuses are compared as they are.
            let words = line.split_whitespace().enumerate();
            let word = |(at, word): (usize, &str)| {
                if (17..23).contains(&at) {
                    word.to_owned()
                } else {
                    unnamed(word)
                }
            };

            lines.push(words.map(word).collect::<Vec<_>>().join(" "));
        }

        assert_eq!(lines[1], lines[0], "ours, and Envoy's");
    }
}

/// Every conversion of a time, at the very moment that Envoy printed.
#[tokio::test]
async fn times_are_written_as_envoy_writes_them() {
    const TIMES: &str = "%a %A %b %B %C %d %D %e %F %g %G %h %H %I %j %k %l %m %M %p %P %r %R %S %s %3f %6f %T %u %U %V %w %W \
                         %x %X %y %Y %z %Z %E3S %E*S %E0S %E3f %E4Y %ET %Ez %E*z %c %% %q";

    let format = format!("at=%START_TIME(%s|%9f)%|%START_TIME({TIMES})%\n");
    let Some((theirs, _ours, at)) = both("times_are_written_as_envoy_writes_them", &format).await
    else {
        return;
    };

    Client::connect(at[0])
        .await
        .ask("GET / HTTP/1.1\nhost: a\n\n")
        .await;

    let line = theirs.line("log", "at=").await;
    let mut parts = line["at=".len()..].splitn(3, '|');
    let mut number = || {
        parts
            .next()
            .and_then(|number| number.parse::<u64>().ok())
            .expect("a number")
    };

    let moment =
        SystemTime::UNIX_EPOCH + Duration::from_secs(number()) + Duration::from_nanos(number());
    let mut ours = Vec::new();
    TimeFormat::parse(TIMES)
        .expect("a format")
        .write(moment, &mut ours);
    assert_eq!(
        String::from_utf8(ours).expect("text"),
        parts.next().expect("the times")
    );
}
