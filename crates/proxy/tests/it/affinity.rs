//! Which endpoint a request is bound to: the same as with stock Envoy, by the request as it is
//! forwarded.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use meltemi_proto::envoy::config::cluster::v3::cluster::LbPolicy;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::config::listener::v3::Listener;
use meltemi_proto::envoy::config::route::v3::route_action::{HashPolicy, hash_policy};
use meltemi_proxy::ProxyOptions;

use crate::config::*;
use crate::envoy::{self, Envoy};
use crate::peers::{self, Client};

fn by(specifier: hash_policy::PolicySpecifier) -> HashPolicy {
    HashPolicy {
        policy_specifier: Some(specifier),
        ..Default::default()
    }
}

/// By a header, by one that is not forwarded as it came, and by a cookie.
fn in_front() -> Listener {
    use hash_policy::{Cookie, Header, PolicySpecifier};

    let header = by(PolicySpecifier::Header(Header {
        header_name: "x-user".into(),
        ..Default::default()
    }));

    let cookie = by(PolicySpecifier::Cookie(Cookie {
        name: "session".into(),
        path: "/".into(),
        ttl: Some(Default::default()),
        ..Default::default()
    }));

    let by_header = tune(forward("/header", "up"), |action| {
        action.hash_policy = vec![header.clone()]
    });
    let mut by_set_header = tune(forward("/set", "up"), |action| {
        action.hash_policy = vec![header]
    });
    by_set_header.request_headers_to_add = vec![core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: "x-user".into(),
            value: "anybody".into(),
            ..Default::default()
        }),
        append_action: core::header_value_option::HeaderAppendAction::OverwriteIfExistsOrAdd as i32,
        ..Default::default()
    }];

    let by_cookie = tune(forward("/cookie", "up"), |action| {
        action.hash_policy = vec![cookie]
    });
    let mut manager = manager(inline(table(
        "r",
        vec![by_header, by_set_header, by_cookie],
    )));

    manager.access_log.clear();

    listener("in", vec![http_chain(&manager)])
}

async fn upstream() -> meltemi_proto::envoy::config::cluster::v3::Cluster {
    let mut endpoints = Vec::new();
    for name in ["one", "two", "three", "four"] {
        endpoints.push(peers::echo(name).await);
    }
    let mut up = static_cluster("up", &endpoints);
    up.lb_policy = LbPolicy::RingHash as i32;
    up
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

async fn endpoint_of(at: SocketAddr, path: &str, user: u32) -> String {
    let request = format!("GET {path} HTTP/1.1\nhost: a\nx-user: user-{user}\n\n");
    let (head, _) = Client::connect(at).await.ask(&request).await;
    field(&head, "x-name").expect("an endpoint").to_owned()
}

/// Two requests on one connection, neither with a cookie: what they are given, and who answers; and
/// who answers to the cookie on another connection.
async fn cookies_of(at: SocketAddr) {
    let mut client = Client::connect(at).await;
    let own = client.stream.local_addr().expect("bound");
    let value = meltemi_lb::hash::xxh64(format!("{own}{at}").as_bytes(), 0);
    let expected = format!("session=\"{value:016x}\"; Path=/; HttpOnly");
    let mut endpoints = BTreeSet::new();

    for _ in 0..3 {
        let (head, _) = client
            .ask("GET /cookie HTTP/1.1\nhost: a\ncookie: session=; other=1\n\n")
            .await;
        assert_eq!(field(&head, "set-cookie"), Some(&*expected));
        endpoints.insert(field(&head, "x-name").expect("an endpoint").to_owned());
    }

    let request = format!("GET /cookie HTTP/1.1\nhost: a\ncookie: session={value:016x}\n\n");
    let (head, _) = Client::connect(at).await.ask(&request).await;
    assert_eq!(field(&head, "set-cookie"), None);
    endpoints.insert(field(&head, "x-name").expect("an endpoint").to_owned());
    assert_eq!(endpoints.len(), 1, "{endpoints:?}");
}

#[tokio::test]
async fn a_client_without_cookie_jar_stays_for_as_long_as_its_connection() {
    let running = Running::with(vec![upstream().await], vec![in_front()]).await;
    cookies_of(running.at("in").await).await;
}

#[tokio::test]
async fn what_binds_is_the_request_as_it_is_forwarded() {
    let running = Running::with(vec![upstream().await], vec![in_front()]).await;
    let at = running.at("in").await;
    let (mut found, mut set) = (BTreeSet::new(), BTreeSet::new());
    for user in 0..30 {
        found.insert(endpoint_of(at, "/header", user).await);
        set.insert(endpoint_of(at, "/set", user).await);
    }
    assert!(found.len() > 1 && set.len() == 1, "{found:?}, {set:?}");
}

#[tokio::test]
async fn envoy_and_we_bind_alike() {
    let Some(program) = envoy::program("envoy_and_we_bind_alike") else {
        return;
    };
    let clusters = vec![upstream().await];
    let theirs = Envoy::start(program, clusters.clone(), |_| vec![in_front()]).await;
    let ours = Running::start(ProxyOptions::default());

    ours.apply(clusters, vec![in_front()]).await;
    let (their, our) = (theirs.at("in").await, ours.at("in").await);
    for path in ["/header", "/set"] {
        for user in 0..20 {
            assert_eq!(
                endpoint_of(their, path, user).await,
                endpoint_of(our, path, user).await,
                "{path} {user}"
            );
        }
    }

    cookies_of(their).await;
    cookies_of(our).await;
}
