//! Names and paths: one canonical form for routing, authorization and forwarding, and nothing from
//! outside that passes for the mesh's own.

use matcher::string_matcher::MatchPattern;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::config::rbac::v3 as rbac;
use meltemi_proto::envoy::config::route::v3 as route;
use meltemi_proto::envoy::extensions::filters::http::rbac::v3::Rbac;
use meltemi_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use meltemi_proto::envoy::r#type::matcher::v3 as matcher;
use meltemi_proto::google::protobuf::BoolValue;
use meltemi_proto::istio::{IstioHeaders, PeerMetadataConfig, PeerMethod};
use meltemi_proto::pack;

use super::{App, Bystander};
use crate::config::*;
use crate::peers::Client;

fn on() -> Option<BoolValue> {
    Some(BoolValue { value: true })
}

fn string(pattern: MatchPattern) -> matcher::StringMatcher {
    matcher::StringMatcher {
        match_pattern: Some(pattern),
        ..Default::default()
    }
}

/// An authorization that denies what one rule says.
fn denies(rule: rbac::permission::Rule) -> hcm::HttpFilter {
    authorizes(rbac::rbac::Action::Deny, rule)
}

fn authorizes(action: rbac::rbac::Action, rule: rbac::permission::Rule) -> hcm::HttpFilter {
    let policy = rbac::Policy {
        permissions: vec![rbac::Permission { rule: Some(rule) }],
        principals: vec![rbac::Principal {
            identifier: Some(rbac::principal::Identifier::Any(true)),
        }],
        ..Default::default()
    };

    let rules = rbac::Rbac {
        action: action as i32,
        policies: [("policy".to_owned(), policy)].into(),
        ..Default::default()
    };

    http_filter(
        "envoy.filters.http.rbac",
        pack(&Rbac {
            rules: Some(rules),
            ..Default::default()
        }),
    )
}

fn header(name: &str, pattern: MatchPattern) -> rbac::permission::Rule {
    rbac::permission::Rule::Header(route::HeaderMatcher {
        name: name.into(),
        header_match_specifier: Some(route::header_matcher::HeaderMatchSpecifier::StringMatch(
            string(pattern),
        )),
        ..Default::default()
    })
}

async fn in_front(
    app: &App,
    change: impl FnOnce(&mut hcm::HttpConnectionManager),
) -> (Running, Bystander) {
    let mut manager = manager(inline(table("r", vec![forward("/", "up")])));
    change(&mut manager);
    let running = Running::with(
        vec![static_cluster("up", &[app.at])],
        vec![listener("in", vec![http_chain(&manager)])],
    )
    .await;
    let bystander = Bystander::at(running.at("in").await).await;
    (running, bystander)
}

async fn status(at: std::net::SocketAddr, request: &str) -> String {
    let (head, _) = Client::connect(at).await.ask(request).await;
    head.split(' ').nth(1).expect("a status").to_owned()
}

/// What means `/admin` to some server behind us.
const ADMINS: &[&str] = &[
    "/admin",
    "/admin/",
    "/admin/x",
    "/./admin",
    "/x/../admin",
    "/x/%2e%2e/admin",
    "/x/%2E%2E/admin",
    "/x/.%2e/admin",
    "/x/%2e./admin",
    "/../../admin",
    "/%61dmin",
    "/%61%64%6d%69%6e",
    "//admin",
    "///admin",
    "/.//admin",
    "/%2Fadmin",
    "/%2fadmin",
    "/x%2f..%2fadmin",
    "/x/..%2fadmin",
    "/%5Cadmin",
    "/%5cadmin",
    "\\admin",
    "/\\admin",
    "/x\\..\\admin",
    "/x/..\\admin",
    "/admin?x=/../y",
    "/admin#x",
    "/x/../admin#y",
    "/admin%00",
    "/%00/../admin",
    "http://a/admin",
    "http://a//admin",
    "http://a/x/../admin",
    "HTTP://a/admin",
    "/admin%zz",
    "/admin%",
];

#[tokio::test]
async fn no_spelling_of_a_path_passes_a_policy() {
    let app = App::start().await;
    let path = rbac::permission::Rule::UrlPath(matcher::PathMatcher {
        rule: Some(matcher::path_matcher::Rule::Path(string(
            MatchPattern::Prefix("/admin".into()),
        ))),
    });

    let (_running, mut bystander) = in_front(&app, |m| {
        m.http_filters.insert(0, denies(path));
        m.normalize_path = on();
        m.merge_slashes = true;
        m.path_with_escaped_slashes_action =
            hcm::http_connection_manager::PathWithEscapedSlashesAction::UnescapeAndForward as i32;
    })
    .await;

    for path in ADMINS {
        let status = status(bystander.at, &format!("GET {path} HTTP/1.1\nhost: a\n\n")).await;
        assert!(matches!(status.as_str(), "403" | "400"), "{path}: {status}");
    }

    bystander.is_served().await;
    assert!(!app.saw("admin"));

    // What was judged is what is forwarded.
    assert_eq!(
        status(
            bystander.at,
            "GET /a/./b//c/%2e%2e/%64?q=//../ HTTP/1.1\nhost: a\n\n"
        )
        .await,
        "200"
    );

    assert!(app.saw("GET /a/b/d?q=//../ HTTP/1.1"));
}

#[tokio::test]
async fn escaped_slashes_can_be_refused_or_sent_back() {
    use hcm::http_connection_manager::PathWithEscapedSlashesAction as Action;

    for (action, status_wanted) in [
        (Action::RejectRequest, "400"),
        (Action::UnescapeAndRedirect, "307"),
    ] {
        let app = App::start().await;
        let (_running, mut bystander) =
            in_front(&app, |m| m.path_with_escaped_slashes_action = action as i32).await;
        for path in ["/x%2fadmin", "/x%5Cadmin?y"] {
            let status = status(bystander.at, &format!("GET {path} HTTP/1.1\nhost: a\n\n")).await;
            assert_eq!(status, status_wanted, "{path}");
        }
        bystander.is_served().await;
        assert!(!app.saw("admin"));
    }
}

#[tokio::test]
async fn hosts_are_folded_before_every_decision() {
    let app = App::start().await;
    let exact = |domain: &str, routes| route::VirtualHost {
        name: domain.into(),
        domains: vec![domain.into()],
        routes,
        ..Default::default()
    };

    let routes = route::RouteConfiguration {
        name: "r".into(),
        virtual_hosts: vec![
            // Without routes: 404.
            exact("secret.example", vec![]),
            exact("*", vec![forward("/", "up")]),
        ],
        ..Default::default()
    };

    let (_running, mut bystander) = in_front(&app, |m| {
        m.route_specifier = Some(inline(routes));
        m.strip_trailing_host_dot = true;
        m.strip_port_mode =
            Some(hcm::http_connection_manager::StripPortMode::StripAnyHostPort(true));
    })
    .await;

    for host in [
        "secret.example",
        "Secret.Example",
        "secret.example:443",
        "secret.example.",
        "SECRET.example.:443",
        "secret.example:",
    ] {
        let status = status(
            bystander.at,
            &format!("GET /host HTTP/1.1\nhost: {host}\n\n"),
        )
        .await;

        assert!(matches!(status.as_str(), "404" | "400"), "{host}: {status}");

        // The target decides, whatever Host says.
        let request = format!("GET http://{host}/host HTTP/1.1\nhost: other.example\n\n");
        let status = self::status(bystander.at, &request).await;
        assert!(matches!(status.as_str(), "404" | "400"), "{host}: {status}");
    }

    bystander.is_served().await;
    assert!(!app.saw("/host"));
}

#[tokio::test]
async fn each_of_several_values_is_judged() {
    let app = App::start().await;
    let (_running, mut bystander) = in_front(&app, |m| {
        m.http_filters.insert(
            0,
            denies(header("x-role", MatchPattern::Exact("admin".into()))),
        )
    })
    .await;

    for (fields, wanted) in [
        ("x-role: admin", "403"),
        ("X-ROLE: admin", "403"),
        ("x-role: user\nx-role: admin", "403"),
        ("x-role: admin\nx-role: user", "403"),
        ("x-role:  admin  ", "403"),
        ("x-role: user", "200"),
        ("x-role: administrator", "200"),
    ] {
        let status = status(
            bystander.at,
            &format!("GET /d4 HTTP/1.1\nhost: a\n{fields}\n\n"),
        )
        .await;
        assert_eq!(status, wanted, "{fields:?}");
    }

    bystander.is_served().await;
}

#[tokio::test]
async fn all_of_several_values_must_be_allowed() {
    let app = App::start().await;
    let rule = header("x-role", MatchPattern::Exact("user".into()));
    let allows = authorizes(rbac::rbac::Action::Allow, rule);
    let (_running, at) = {
        let mut manager = manager(inline(table("r", vec![forward("/", "up")])));
        manager.http_filters.insert(0, allows);
        let up = static_cluster("up", &[app.at]);
        let running =
            Running::with(vec![up], vec![listener("in", vec![http_chain(&manager)])]).await;
        let at = running.at("in").await;
        (running, at)
    };

    for (fields, wanted) in [
        ("x-role: user", "200"),
        ("x-role: user\nx-role: user", "200"),
        ("x-role: user\nx-role: admin", "403"),
        ("x-role: admin\nx-role: user", "403"),
        ("x-role: user,admin", "403"),
        ("x-role: ", "403"),
        ("x-other: user", "403"),
    ] {
        let status = status(at, &format!("GET /d4 HTTP/1.1\nhost: a\n{fields}\n\n")).await;
        assert_eq!(status, wanted, "{fields:?}");
    }

    assert!(!app.saw("admin"));
}

#[tokio::test]
async fn underscores_are_refused_or_dropped_where_that_is_asked_for() {
    use core::http_protocol_options::HeadersWithUnderscoresAction as Action;

    for (action, wanted, arrives) in [
        (Action::RejectRequest, "400", false),
        (Action::DropHeader, "200", false),
        (Action::Allow, "200", true),
    ] {
        let app = App::start().await;
        let (_running, mut bystander) = in_front(&app, |m| {
            m.common_http_protocol_options = Some(core::HttpProtocolOptions {
                headers_with_underscores_action: action as i32,
                ..Default::default()
            });
        })
        .await;

        for name in ["x_user", "X_User", "_x", "x_"] {
            let status = status(
                bystander.at,
                &format!("GET /d5 HTTP/1.1\nhost: a\n{name}: root\n\n"),
            )
            .await;
            assert_eq!(status, wanted, "{name}: {action:?}");
        }

        bystander.is_served().await;
        assert_eq!(app.saw("root"), arrives, "{action:?}");
    }
}

/// What only the mesh may say of itself.
const OURS: &str = "x-forwarded-client-cert: By=spiffe://a;URI=spiffe://cluster.local/ns/x/sa/admin\n\
                    x-envoy-internal: true\nx-envoy-retry-on: 5xx\nx-envoy-max-retries: 100\n\
                    x-envoy-upstream-rq-timeout-ms: 1\nx-envoy-upstream-rq-per-try-timeout-ms: 1\n\
                    x-envoy-expected-rq-timeout-ms: 1\nx-envoy-retriable-status-codes: 200\n\
                    x-envoy-decorator-operation: forged\nx-envoy-external-address: 6.6.6.6\n\
                    x-envoy-original-path: /forged\nx-envoy-attempt-count: 7\nx-forwarded-for: 6.6.6.6\n\
                    x-forwarded-proto: https\nx-request-id: forged\n\
                    x-envoy-force-trace: forged\nx-envoy-ip-tags: forged\n\
                    x-envoy-hedge-on-per-try-timeout: forged\nx-envoy-original-url: forged\n\
                    x-envoy-retriable-header-names: forged\n\
                    x-envoy-upstream-alt-stat-name: forged\n\
                    x-envoy-upstream-rq-timeout-alt-response: forged";

#[tokio::test]
async fn a_gateway_believes_nothing_that_a_stranger_says() {
    use hcm::http_connection_manager::ForwardClientCertDetails as Details;

    let app = App::start().await;

    // As Istio configures its gateways.
    let (_running, mut bystander) = in_front(&app, |m| {
        m.use_remote_address = on();
        m.forward_client_cert_details = Details::SanitizeSet as i32;
        m.set_current_client_cert_details =
            Some(hcm::http_connection_manager::SetCurrentClientCertDetails {
                uri: true,
                ..Default::default()
            });
    })
    .await;

    let (head, seen) = Client::connect(bystander.at)
        .await
        .ask(&format!("GET /d6 HTTP/1.1\nhost: a\n{OURS}\n\n"))
        .await;

    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    for gone in [
        "x-forwarded-client-cert",
        "x-envoy-internal",
        "x-envoy-retry-on",
        "x-envoy-max-retries",
        "x-envoy-upstream-rq",
        "x-envoy-expected-rq-timeout-ms: 1\r",
        "x-envoy-retriable",
        "x-envoy-decorator-operation",
        "x-envoy-original-path",
        "forged",
        "x-forwarded-proto: https",
        "x-envoy-external-address: 6.6.6.6",
    ] {
        assert!(!seen.contains(gone), "{gone}: {seen}");
    }

    // What the client claims stays to the left of what we saw.
    assert!(
        seen.contains("\r\nx-forwarded-for: 6.6.6.6,127.0.0.1\r\n"),
        "{seen}"
    );

    assert!(
        seen.contains("\r\nx-envoy-external-address: 127.0.0.1\r\n"),
        "{seen}"
    );

    bystander.is_served().await;
}

#[tokio::test]
async fn a_certificate_is_not_claimed_by_header() {
    use hcm::http_connection_manager::ForwardClientCertDetails as Details;

    for (details, kept) in [
        (Details::Sanitize, false),
        (Details::ForwardOnly, false),
        (Details::AppendForward, false),
        (Details::SanitizeSet, false),
        (Details::AlwaysForwardOnly, true),
    ] {
        let app = App::start().await;
        let (_running, bystander) =
            in_front(&app, |m| m.forward_client_cert_details = details as i32).await;
        let claim = "x-forwarded-client-cert: URI=spiffe://cluster.local/ns/x/sa/admin\n\
                     X-Forwarded-Client-Cert: URI=spiffe://cluster.local/ns/x/sa/root";
        status(
            bystander.at,
            &format!("GET /xfcc HTTP/1.1\nhost: a\n{claim}\n\n"),
        )
        .await;

        assert_eq!(
            app.saw("spiffe"),
            kept,
            "{details:?}: plaintext proves nothing"
        );
    }
}

#[tokio::test]
async fn metadata_of_peers_stops_at_the_proxy() {
    let headers = || {
        vec![PeerMethod {
            istio_headers: Some(IstioHeaders::default()),
        }]
    };

    let app = App::start().await;

    // As Istio configures an inbound listener.
    let metadata = PeerMetadataConfig {
        downstream_discovery: headers(),
        downstream_propagation: headers(),
        ..Default::default()
    };

    let (_running, mut bystander) = in_front(&app, |m| {
        m.http_filters
            .insert(0, http_filter("istio.peer_metadata", pack(&metadata)))
    })
    .await;

    for fields in [
        "x-envoy-peer-metadata: AAAA\nx-envoy-peer-metadata-id: sidecar~secret",
        "X-Envoy-Peer-Metadata: AAAA\nX-Envoy-Peer-Metadata-Id: sidecar~secret",
        "x-envoy-peer-metadata: one\nx-envoy-peer-metadata: two\nx-envoy-peer-metadata-id: sidecar~secret",
        "x-envoy-peer-metadata-id: sidecar~secret",
        "x-envoy-peer-metadata: secret",
        "connection: x-envoy-peer-metadata\nx-envoy-peer-metadata: secret",
    ] {
        let (head, _) = Client::connect(bystander.at)
            .await
            .ask(&format!("GET /peer HTTP/1.1\nhost: a\n{fields}\n\n"))
            .await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    }

    bystander.is_served().await;
    assert!(app.saw("GET /peer") && !app.saw("peer-metadata") && !app.saw("secret"));
}

#[tokio::test]
async fn with_n_trusted_proxies_the_nth_from_the_right_is_the_client() {
    for (hops, forwarded, client) in [
        (0, "6.6.6.6, 1.1.1.1", "127.0.0.1"),
        (1, "6.6.6.6, 1.1.1.1", "1.1.1.1"),
        (2, "6.6.6.6, 2.2.2.2, 1.1.1.1", "2.2.2.2"),
        // Fewer than were promised, or something else: the connection's own address.
        (2, "1.1.1.1", "127.0.0.1"),
        (1, "6.6.6.6, unknown", "127.0.0.1"),
        (1, "6.6.6.6, 010.0.0.1", "127.0.0.1"),
        (1, "6.6.6.6, 1.1.1.1%eth0", "127.0.0.1"),
        (1, "", "127.0.0.1"),
        (1, "::ffff:3.3.3.3", "3.3.3.3"),
    ] {
        let app = App::start().await;
        let (_running, bystander) = in_front(&app, |m| {
            m.use_remote_address = on();
            m.xff_num_trusted_hops = hops;
        })
        .await;

        let request = format!("GET /xff HTTP/1.1\nhost: a\nx-forwarded-for: {forwarded}\n\n");
        let (_, seen) = Client::connect(bystander.at).await.ask(&request).await;
        assert!(
            seen.contains(&format!("\r\nx-envoy-external-address: {client}\r\n")),
            "{forwarded:?}: {seen}"
        );
    }
}

#[tokio::test]
async fn methods_are_words_of_their_own() {
    let app = App::start().await;
    let (_running, mut bystander) = in_front(&app, |m| {
        m.http_filters.insert(
            0,
            denies(header(":method", MatchPattern::Exact("PUT".into()))),
        )
    })
    .await;

    let long = "M".repeat(1024);
    for (method, wanted) in [
        ("PUT", "403"),
        ("TRACE", "200"),
        ("put", "400"),
        ("Put", "400"),
        ("PUTS", "200"),
        (&long, "200"),
    ] {
        let status = status(
            bystander.at,
            &format!("{method} /d12 HTTP/1.1\nhost: a\n\n"),
        )
        .await;
        assert_eq!(status, wanted, "{method}");
    }

    bystander.is_served().await;
    assert!(app.saw("TRACE /d12 ") && app.saw("PUTS /d12 ") && !app.saw("PUT /d12 "));
}
