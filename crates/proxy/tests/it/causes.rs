//! Every answer of the proxy's own and every refusal names its cause: in the log, in a counter,
//! never to the client.

use meltemi_proto::envoy::config::rbac::v3 as rbac;
use meltemi_proto::envoy::config::route::v3 as route;
use meltemi_proto::envoy::extensions::filters::network::connection_limit::v3::ConnectionLimit;
use meltemi_proto::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use meltemi_proto::google::protobuf::UInt64Value;
use meltemi_proto::pack;

use crate::config::*;
use crate::peers::{self, Client, get};

fn nobody_may() -> rbac::Rbac {
    let any = rbac::Policy {
        permissions: vec![rbac::Permission {
            rule: Some(rbac::permission::Rule::Any(true)),
        }],
        principals: vec![rbac::Principal {
            identifier: Some(rbac::principal::Identifier::Any(true)),
        }],
        ..Default::default()
    };

    rbac::Rbac {
        action: rbac::rbac::Action::Deny as i32,
        policies: [("ns[a]-policy[secret-name]-rule[0]".to_owned(), any)].into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn answers_name_their_cause_in_the_log_and_a_counter_and_not_to_the_client() {
    let direct = route::Route {
        name: "secret-name".into(),
        r#match: forward("/direct", "x").r#match,
        action: Some(route::route::Action::DirectResponse(
            route::DirectResponseAction {
                status: 418,
                ..Default::default()
            },
        )),
        ..Default::default()
    };

    let routes = vec![
        forward("/none", "secret-name"),
        forward("/missing", "missing"),
        direct,
    ];

    let manager = manager(inline(table("secret-table", routes)));
    let running = Running::with(
        vec![static_cluster("secret-name", &[])],
        vec![listener("in", vec![http_chain(&manager)])],
    )
    .await;

    let at = running.at("in").await;
    for (path, cause) in [
        ("/none", "<no usable endpoint in secret-name>"),
        ("/missing", "<no cluster missing>"),
        ("/direct", "<route secret-name>"),
        ("/other", "<no route in secret-table>"),
    ] {
        let (head, body) = get(at, path).await;
        assert!(!format!("{head}{body}").contains("secret"), "{head}{body}");
        let line = running.log.line_with(&format!(" {path} ")).await;
        assert!(line.ends_with(cause), "{line}");
    }

    let mut client = Client::connect(at).await;
    client
        .ask("GET /none HTTP/1.1\nhost: a\nconnection: upgrade\nupgrade: spdy\n\n")
        .await;
    running
        .log
        .line_with("<route to-secret-name does not allow the upgrade>")
        .await;

    assert!(
        client.closed().await,
        "what follows may be in the other protocol"
    );

    Client::connect(at)
        .await
        .send("GET / HTTP/1.1\r\nhost : a\r\n\r\n")
        .await;

    running
        .log
        .line_with("<protocol error: http1.codec_error>")
        .await;

    let metrics = running.handle.metrics();

    for (kind, flag, count) in [
        ("no_endpoint", "UH", 1),
        ("no_cluster", "NC", 1),
        ("route", "-", 1),
        ("no_route", "NR", 1),
        ("upgrade", "-", 1),
        ("protocol", "DPE", 1),
    ] {
        let line = format!(
            "meltemi_local_replies_total{{cause_kind=\"{kind}\",flag=\"{flag}\"}} {count}\n"
        );
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
}

#[tokio::test]
async fn refused_connections_name_their_cause() {
    let mut denied = tcp_chain("up");
    let rules = NetworkRbac {
        stat_prefix: "tcp.".into(),
        rules: Some(nobody_may()),
        ..Default::default()
    };

    denied.filters.insert(
        0,
        network_filter("envoy.filters.network.rbac", pack(&rules)),
    );

    let mut limited = tcp_chain("up");
    let limit = ConnectionLimit {
        stat_prefix: "few".into(),
        max_connections: Some(UInt64Value { value: 1 }),
        ..Default::default()
    };

    limited.filters.insert(
        0,
        network_filter("envoy.filters.network.connection_limit", pack(&limit)),
    );

    // The limit is one for HTTP as well.
    let mut web = http_chain(&manager(inline(table("r", vec![forward("/", "up")]))));
    web.filters.insert(
        0,
        network_filter("envoy.filters.network.connection_limit", pack(&limit)),
    );

    let mut elsewhere = tcp_chain("up");
    elsewhere.filter_chain_match = Some(
        meltemi_proto::envoy::config::listener::v3::FilterChainMatch {
            server_names: vec!["example".into()],
            ..Default::default()
        },
    );

    let mut unmatched = listener("unmatched", vec![elsewhere]);
    unmatched.access_log = vec![log()];
    let up = peers::echo("up").await;
    let running = Running::with(
        vec![static_cluster("up", &[up])],
        vec![
            listener("denied", vec![denied]),
            listener("limited", vec![limited]),
            listener("web", vec![web]),
            unmatched,
        ],
    )
    .await;

    let mut refused = Client::connect(running.at("denied").await).await;
    assert!(refused.closed().await);
    running
        .log
        .line_with("<policy ns[a]-policy[secret-name]-rule[0]>")
        .await;

    let mut unknown = Client::connect(running.at("unmatched").await).await;
    assert!(unknown.closed().await);
    running
        .log
        .line_with("0 NR filter_chain_not_found - - 0 <no filter chain in unmatched>")
        .await;

    for name in ["limited", "web"] {
        let at = running.at(name).await;
        let mut first = Client::connect(at).await;
        first.ask("GET / HTTP/1.1\nhost: a\n\n").await;
        let mut second = Client::connect(at).await;
        assert!(second.closed().await, "{name}");
    }

    running.log.line_with("<connection limit few>").await;
    let metrics = running.handle.metrics();

    for (kind, flag, count) in [
        ("policy", "-", 1),
        ("no_filter_chain", "NR", 1),
        ("connection_limit", "UO", 2),
    ] {
        let line = format!(
            "meltemi_refused_connections_total{{cause_kind=\"{kind}\",flag=\"{flag}\"}} {count}\n"
        );
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
}

/// Istio's default text format.
const ISTIO: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

#[tokio::test]
async fn istios_line_is_whole_and_no_client_can_forge_one() {
    let up =
        peers::http_server(|_, _| b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec()).await;
    let mut manager = manager(inline(table("r", vec![forward("/", "up")])));
    manager.access_log = vec![log_as("/dev/stdout", ISTIO)];
    let running = Running::with(
        vec![static_cluster("up", &[up])],
        vec![listener("in", vec![http_chain(&manager)])],
    )
    .await;

    let at = running.at("in").await;
    let mut client = Client::connect(at).await;
    let from = client.stream.local_addr().expect("connected");
    let mut request =
        b"GET /a?b HTTP/1.1\r\nhost: details:9080\r\nx-request-id: one\r\nuser-agent: ".to_vec();
    request.extend_from_slice(b"a\" 200 - \\\tb\xff\xc2\x9b31m\r\n\r\n");
    client.send(request).await;
    client.receive().await.expect("a response");
    let line = running.log.line_with("GET /a?b").await;

    // What differs from run to run is taken out.
    let (start, rest) = line.split_once("] ").expect("a time");
    assert!(
        start.len() == "[2023-11-14T22:13:20.123Z".len() && start.ends_with('Z'),
        "{start}"
    );

    let words: Vec<&str> = rest.split(' ').collect();
    let (took, waited, local) = (words[10], words[11], words[words.len() - 5]);
    assert!(
        took.parse::<u32>().is_ok() && waited.parse::<u32>().is_ok(),
        "{rest}"
    );

    assert!(local.starts_with("127.0.0.1:"), "{rest}");
    let wanted = format!(
        "\"GET /a?b HTTP/1.1\" 200 - via_upstream - \"-\" 0 2 {took} {waited} \"-\" \
         \"a\\x22 200 - \\x5c\\x09b\\xff\\xc2\\x9b31m\" \
         \"one\" \"details:9080\" \"{up}\" up {local} {at} {from} - to-up"
    );

    assert_eq!(rest, wanted);
}
