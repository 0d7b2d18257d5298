//! Configuration that is broken, too large or contradicts itself: it is refused by name, and the
//! last good one serves.

use meltemi_proto::envoy::config::cluster::v3 as cluster;
use meltemi_proto::envoy::config::rbac::v3 as rbac;
use meltemi_proto::envoy::config::route::v3 as route;
use meltemi_proto::envoy::extensions::filters::http::rbac::v3::Rbac;
use meltemi_proto::envoy::r#type::matcher::v3 as matcher;
use meltemi_proto::type_url::{CLUSTER, ENDPOINT, LISTENER, ROUTE};
use meltemi_proto::{Any, pack};
use meltemi_proxy::ProxyOptions;
use tokio::sync::mpsc::error::TryRecvError;

use super::{App, Bystander, soon};
use crate::config::*;
use crate::peers;
use crate::xds::{Server, says, set};

/// A proxy that serves.
async fn serving() -> (App, Running, Bystander) {
    let app = App::start().await;
    let (running, at) = simple(app.at).await;
    let bystander = Bystander::at(at).await;
    (app, running, bystander)
}

/// Applies one resource, which must be refused by its name.
async fn is_refused(running: &Running, what: &str, type_url: &'static str, name: &str, any: Any) {
    let refused = running
        .handle
        .apply(type_url, vec![(name.into(), any)], Vec::new())
        .await;
    let reason = refused.expect_err(what);
    assert!(reason.starts_with(&format!("{name}: ")), "{what}: {reason}");
}

fn any(type_url: &str, value: &[u8]) -> Any {
    Any {
        type_url: type_url.to_owned(),
        value: value.to_vec(),
    }
}

#[tokio::test]
async fn resources_that_cannot_be_read_are_refused_and_the_last_good_ones_serve() {
    let (_app, running, mut bystander) = serving().await;
    let good = pack(&static_cluster("up", &[]));
    let mut cut = good.clone();

    cut.value.truncate(cut.value.len() - 1);
    for (type_url, name) in [
        (CLUSTER, "up"),
        (LISTENER, "in"),
        (ROUTE, "r"),
        (ENDPOINT, "up"),
    ] {
        for (what, broken) in [
            ("junk", any(type_url, &[0xff; 100])),
            (
                "a length that lies",
                any(type_url, &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]),
            ),
            ("no UTF-8", any(type_url, &[0x0a, 2, 0xff, 0xfe])),
            ("groups without end", any(type_url, &[0x0b; 10_000])),
            (
                "another type inside",
                any("type.googleapis.com/google.protobuf.Struct", &good.value),
            ),
            ("no type", any("", &good.value)),
            ("a type that is none", any("\u{0}/\u{202e}", &good.value)),
            ("cut off", any(type_url, &cut.value)),
        ] {
            is_refused(&running, what, type_url, name, broken).await;
        }

        bystander.is_served().await;
    }

    let unknown = running
        .handle
        .apply(
            "type.googleapis.com/x.Y",
            vec![("x".into(), good)],
            Vec::new(),
        )
        .await;

    assert!(unknown.expect_err("unknown").contains("x.Y"));
    bystander.is_served().await;
}

#[tokio::test]
async fn what_contradicts_itself_is_refused() {
    let (_app, running, mut bystander) = serving().await;
    let up = || static_cluster("up", &[]);
    let mut no_name = up();

    no_name.name.clear();
    let mut bad_address = up();
    bad_address
        .load_assignment
        .as_mut()
        .expect("static")
        .endpoints
        .push(Default::default());

    let mut eds_without_name = up();
    eds_without_name.cluster_discovery_type =
        Some(cluster::cluster::ClusterDiscoveryType::Type(99));
    let mut no_chain = listener("in", vec![]);
    no_chain.default_filter_chain = None;
    let mut empty_chain = listener("in", vec![tcp_chain("up")]);
    empty_chain.filter_chains[0].filters.clear();
    let two_ends = {
        let mut chain = tcp_chain("up");
        chain.filters.extend(tcp_chain("up").filters);
        listener("in", vec![chain])
    };

    let twice = {
        let mut one = tcp_chain("up");
        one.filter_chain_match = Some(Default::default());
        listener("in", vec![one.clone(), one])
    };

    let nowhere = {
        let mut nowhere = listener("in", vec![tcp_chain("up")]);
        nowhere.address = Some(Default::default());
        nowhere
    };

    let port = {
        use meltemi_proto::envoy::config::core::v3::{
            address::Address, socket_address::PortSpecifier,
        };

        let mut port = listener("in", vec![tcp_chain("up")]);
        if let Some(Address::SocketAddress(socket)) =
            port.address.as_mut().and_then(|a| a.address.as_mut())
        {
            socket.port_specifier = Some(PortSpecifier::PortValue(70_000));
        }

        port
    };

    let regex = {
        let mut one = forward("/", "up");
        one.r#match.as_mut().expect("set").path_specifier = Some(
            route::route_match::PathSpecifier::SafeRegex(matcher::RegexMatcher {
                regex: "a(((((((((".into(),
                ..Default::default()
            }),
        );

        listener(
            "in",
            vec![http_chain(&manager(inline(table("r", vec![one]))))],
        )
    };

    let huge_regex = {
        let mut one = forward("/", "up");
        one.r#match.as_mut().expect("set").path_specifier = Some(
            route::route_match::PathSpecifier::SafeRegex(matcher::RegexMatcher {
                regex: "((((a{1000}){1000}){1000}){1000})".into(),
                ..Default::default()
            }),
        );

        listener(
            "in",
            vec![http_chain(&manager(inline(table("r", vec![one]))))],
        )
    };

    let weights = {
        let one = tune(forward("/", "up"), |action| {
            let share = |weight| route::weighted_cluster::ClusterWeight {
                name: "up".into(),
                weight: Some(meltemi_proto::google::protobuf::UInt32Value { value: weight }),
                ..Default::default()
            };

            action.cluster_specifier = Some(
                route::route_action::ClusterSpecifier::WeightedClusters(route::WeightedCluster {
                    clusters: vec![share(u32::MAX), share(u32::MAX)],
                    ..Default::default()
                }),
            );
        });

        listener(
            "in",
            vec![http_chain(&manager(inline(table("r", vec![one]))))],
        )
    };

    for (what, type_url, name, message) in [
        ("no name", CLUSTER, "up", pack(&no_name)),
        ("unknown discovery", CLUSTER, "up", pack(&eds_without_name)),
        ("no chain", LISTENER, "in", pack(&no_chain)),
        ("no filter", LISTENER, "in", pack(&empty_chain)),
        ("two terminal filters", LISTENER, "in", pack(&two_ends)),
        ("two chains for the same", LISTENER, "in", pack(&twice)),
        ("no address", LISTENER, "in", pack(&nowhere)),
        ("a port above 65535", LISTENER, "in", pack(&port)),
        ("a broken regex", LISTENER, "in", pack(&regex)),
        ("a regex of gigabytes", LISTENER, "in", pack(&huge_regex)),
        ("weights above 32 bits", LISTENER, "in", pack(&weights)),
    ] {
        is_refused(&running, what, type_url, name, message).await;
        bystander.is_served().await;
    }

    // An empty locality is nothing, and no error.
    let _ = running
        .handle
        .apply(
            CLUSTER,
            vec![("other".into(), pack(&bad_address))],
            Vec::new(),
        )
        .await;

    bystander.is_served().await;
}

#[tokio::test]
async fn rules_within_rules_without_end_are_refused() {
    let (app, running, mut bystander) = serving().await;
    let mut rule = rbac::Permission {
        rule: Some(rbac::permission::Rule::Any(true)),
    };
    for _ in 0..5000 {
        rule = rbac::Permission {
            rule: Some(rbac::permission::Rule::NotRule(Box::new(rule))),
        };
    }

    let policy = rbac::Policy {
        permissions: vec![rule],
        ..Default::default()
    };

    let rules = rbac::Rbac {
        policies: [("deep".to_owned(), policy)].into(),
        ..Default::default()
    };

    let filter = http_filter(
        "envoy.filters.http.rbac",
        pack(&Rbac {
            rules: Some(rules),
            ..Default::default()
        }),
    );

    let mut manager = manager(inline(table("r", vec![forward("/", "up")])));
    manager.http_filters.insert(0, filter);
    is_refused(
        &running,
        "deep",
        LISTENER,
        "in",
        pack(&listener("in", vec![http_chain(&manager)])),
    )
    .await;

    bystander.is_served().await;
    drop(app);
}

#[tokio::test]
async fn what_is_large_is_applied_while_others_are_served() {
    let (app, running, mut bystander) = serving().await;
    let many: Vec<_> = (0..50_000_u32)
        .map(|n| std::net::SocketAddr::from((std::net::Ipv4Addr::from(0x0a00_0000 + n), 80)))
        .collect();
    let large = vec![("large".to_owned(), pack(&static_cluster("large", &many)))];
    let routes: Vec<_> = (0..10_000)
        .map(|n| forward(&format!("/route-{n}/"), "up"))
        .collect();
    let mut wide = listener(
        "wide",
        vec![http_chain(&manager(inline(table("wide", routes))))],
    );

    wide.bind_to_port = Some(meltemi_proto::google::protobuf::BoolValue { value: true });
    let apply = async {
        running
            .handle
            .apply(CLUSTER, large, Vec::new())
            .await
            .expect("applied");

        running
            .handle
            .apply(LISTENER, vec![("wide".into(), pack(&wide))], Vec::new())
            .await
            .expect("applied");
    };

    bystander.while_under(apply).await;
    let (head, _) = peers::get(running.at("wide").await, "/route-9999/x").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(app.saw("/route-9999/x"));
}

#[tokio::test]
async fn a_listener_that_cannot_have_its_address_takes_nobody_elses() {
    let (app, running, mut bystander) = serving().await;
    let mut same = listener("same", vec![tcp_chain("up")]);
    same.address = Some(address(bystander.at));
    let _ = running
        .handle
        .apply(LISTENER, vec![("same".into(), pack(&same))], Vec::new())
        .await;

    bystander.is_served().await;
    assert!(
        running
            .handle
            .addresses()
            .await
            .iter()
            .all(|(name, _)| &**name != "same")
    );

    assert!(
        running
            .handle
            .status()
            .await
            .bind_errors
            .contains_key("same")
    );

    drop(app);
}

#[tokio::test]
async fn a_server_that_sends_nonsense_is_refused_each_time_and_believed_again() {
    let one = peers::echo("one").await;
    let two = peers::echo("two").await;
    let mut server = Server::start(set("1", one)).await;
    let running = Running::start(ProxyOptions {
        xds: Some(server.client()),
        ..Default::default()
    });

    soon(running.handle.ready()).await;
    let at = running.at("in").await;
    says(at, "one").await;

    // A storm of versions that are all refused.
    for n in 0..100 {
        let mut bad = set(&format!("bad-{n}"), one);
        bad.insert(CLUSTER, "up", format!("bad-{n}"), any(CLUSTER, &[0xff; 10]));
        server
            .resources
            .send_replace(Some(std::sync::Arc::new(bad)));
        loop {
            let verdict = soon(server.verdicts.recv())
                .await
                .expect("the server lives");
            if format!("{verdict:?}").contains("up: ") {
                break;
            }
        }
    }

    says(at, "one").await;
    assert!(running.handle.status().await.refusals.contains_key(CLUSTER));

    // A push beyond any measure: the stream may break, the proxy does not.
    let mut huge = set("huge", one);
    huge.insert(CLUSTER, "huge", "huge", any(CLUSTER, &vec![0; 64 << 20]));
    server
        .resources
        .send_replace(Some(std::sync::Arc::new(huge)));
    for _ in 0..50 {
        says(at, "one").await;
    }

    // An older version, and everything else anew: it is what the server says now.
    server
        .resources
        .send_replace(Some(std::sync::Arc::new(set("0", two))));
    soon(says(at, "two")).await;

    while !matches!(
        server.verdicts.try_recv(),
        Err(TryRecvError::Empty | TryRecvError::Disconnected)
    ) {}
}
