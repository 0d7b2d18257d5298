//! The client's half, request by request.

use meltemi_proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use meltemi_proto::envoy::config::cluster::v3::Cluster;
use meltemi_proto::envoy::config::core::v3::Node;
use meltemi_proto::envoy::config::route::v3::RouteConfiguration;
use meltemi_proto::pack;
use meltemi_proto::type_url::{CLUSTER, ENDPOINT, ROUTE};

use super::session::{ClientRequest, ClientResponse, ClientSession, Received};
use super::{Subscription, Update, failures_after};
use crate::Variant;

fn session(variant: Variant) -> ClientSession {
    let initial = vec![
        (CLUSTER.to_owned(), Subscription::wildcard()),
        (ENDPOINT.to_owned(), Subscription::names::<String>([])),
    ];

    ClientSession::new(
        variant,
        Node {
            id: "me".into(),
            ..Node::default()
        },
        initial,
    )
}

fn delta(session: &mut ClientSession) -> Option<DeltaDiscoveryRequest> {
    match session.next_request()? {
        ClientRequest::Delta(request) => Some(request),
        ClientRequest::Sotw(_) => panic!("the wrong variant"),
    }
}

fn sotw(session: &mut ClientSession) -> Option<DiscoveryRequest> {
    match session.next_request()? {
        ClientRequest::Sotw(request) => Some(request),
        ClientRequest::Delta(_) => panic!("the wrong variant"),
    }
}

fn named(name: &str, version: &str) -> Resource {
    let any = pack(&Cluster {
        name: name.into(),
        ..Cluster::default()
    });

    Resource {
        name: name.into(),
        version: version.into(),
        resource: Some(any),
        ..Resource::default()
    }
}

fn clusters(nonce: &str, set: &[(&str, &str)], removed: &[&str]) -> ClientResponse {
    ClientResponse::Delta(DeltaDiscoveryResponse {
        type_url: CLUSTER.into(),
        nonce: nonce.into(),
        resources: set
            .iter()
            .map(|(name, version)| named(name, version))
            .collect(),
        removed_resources: removed.iter().map(|&name| name.to_owned()).collect(),
        ..DeltaDiscoveryResponse::default()
    })
}

fn updated(received: Received) -> Update {
    match received {
        Received::Update(update) => update,
        Received::Refused { reason, .. } => panic!("{reason}"),
    }
}

#[test]
fn a_type_without_names_is_announced_with_its_first_name() {
    let mut session = session(Variant::Delta);
    assert!(delta(&mut session).is_none(), "not connected");
    session.connected();
    let first = delta(&mut session).expect("clusters");
    assert_eq!(first.type_url, CLUSTER);
    assert_eq!(first.node.expect("the first request has it").id, "me");
    assert!(
        delta(&mut session).is_none(),
        "an empty first request would be the wildcard"
    );

    session.subscribe(ENDPOINT, ["a".to_owned()].into_iter());
    let second = delta(&mut session).expect("endpoints");
    assert_eq!(
        (second.type_url.as_str(), second.resource_names_subscribe),
        (ENDPOINT, vec!["a".to_owned()])
    );

    assert!(second.node.is_none());
}

#[test]
fn what_was_taken_is_told_to_the_next_server_and_what_was_refused_is_not() {
    let mut session = session(Variant::Delta);
    session.connected();
    delta(&mut session);
    let update = updated(session.response(clusters("1", &[("a", "1"), ("b", "1")], &[])));
    session.ack(CLUSTER, &update.nonce);
    assert_eq!(delta(&mut session).expect("the answer").response_nonce, "1");
    let update = updated(session.response(clusters("2", &[("c", "1")], &["b"])));
    session.nack(CLUSTER, &update.nonce, "c is bad".into());
    let answer = delta(&mut session).expect("the answer");
    assert_eq!(answer.error_detail.expect("a refusal").message, "c is bad");
    session.disconnected();
    session.connected();
    let again = delta(&mut session).expect("clusters");
    let mut held: Vec<_> = again.initial_resource_versions.into_iter().collect();
    held.sort();
    assert_eq!(
        held,
        [
            ("a".to_owned(), "1".to_owned()),
            ("b".to_owned(), "1".to_owned())
        ]
    );
}

#[test]
fn a_late_answer_does_not_hit_the_next_stream() {
    let mut session = session(Variant::Delta);
    session.connected();
    delta(&mut session);
    let old = updated(session.response(clusters("1", &[("a", "1")], &[])));
    session.disconnected();
    session.connected();
    delta(&mut session);
    let new = updated(session.response(clusters("1", &[("a", "2")], &[])));
    session.ack(CLUSTER, &old.nonce);
    assert!(
        delta(&mut session).is_none(),
        "the old stream's answer has nowhere to go"
    );

    assert_eq!(session.held(CLUSTER).collect::<Vec<_>>(), [("a", "1")]);
    session.nack(CLUSTER, &new.nonce, "no".into());
    assert!(
        delta(&mut session)
            .expect("the answer")
            .error_detail
            .is_some()
    );
}

#[test]
fn subscriptions_go_before_answers() {
    let mut session = session(Variant::Delta);
    session.connected();
    delta(&mut session);
    let update = updated(session.response(clusters("1", &[("a", "1")], &[])));
    session.ack(CLUSTER, &update.nonce);
    session.subscribe(ENDPOINT, ["a".to_owned()].into_iter());
    assert_eq!(
        delta(&mut session).expect("the subscription").type_url,
        ENDPOINT
    );

    assert_eq!(delta(&mut session).expect("the answer").type_url, CLUSTER);
}

#[test]
fn malformed_responses_are_refused_by_the_session() {
    let mut session = session(Variant::Delta);
    session.connected();
    delta(&mut session);
    let twice = session.response(clusters("1", &[("a", "1"), ("a", "2")], &[]));
    assert!(matches!(twice, Received::Refused { reason, .. } if reason.contains("twice")));
    assert_eq!(delta(&mut session).expect("a refusal").response_nonce, "1");
    let empty = Resource {
        name: "a".into(),
        ..Resource::default()
    };

    let response = DeltaDiscoveryResponse {
        type_url: CLUSTER.into(),
        resources: vec![empty],
        ..Default::default()
    };

    assert!(matches!(
        session.response(ClientResponse::Delta(response)),
        Received::Refused { .. }
    ));

    let foreign = DeltaDiscoveryResponse {
        type_url: "example.com/T".into(),
        ..Default::default()
    };

    assert!(matches!(
        session.response(ClientResponse::Delta(foreign)),
        Received::Refused { .. }
    ));

    let wrong = DeltaDiscoveryResponse {
        type_url: ENDPOINT.into(),
        resources: vec![named("a", "1")],
        ..Default::default()
    };

    assert!(matches!(
        session.response(ClientResponse::Delta(wrong)),
        Received::Refused { .. }
    ));
}

#[test]
fn state_of_the_world_finds_removals_and_keeps_the_accepted_version() {
    let list = |version: &str, nonce: &str, names: &[&str]| {
        ClientResponse::Sotw(DiscoveryResponse {
            type_url: CLUSTER.into(),
            version_info: version.into(),
            nonce: nonce.into(),
            resources: names
                .iter()
                .map(|&name| {
                    pack(&Cluster {
                        name: name.into(),
                        ..Cluster::default()
                    })
                })
                .collect(),
            ..DiscoveryResponse::default()
        })
    };

    let mut session = session(Variant::Sotw);
    session.connected();
    sotw(&mut session);
    let first = updated(session.response(list("v1", "1", &["a", "b"])));
    session.ack(CLUSTER, &first.nonce);
    let answer = sotw(&mut session).expect("the answer");
    assert_eq!(
        (answer.version_info.as_str(), answer.response_nonce.as_str()),
        ("v1", "1")
    );

    let second = updated(session.response(list("v2", "2", &["b", "c"])));
    assert!(second.full);
    assert_eq!(second.removed, ["a"]);
    session.nack(CLUSTER, &second.nonce, "no".into());
    let answer = sotw(&mut session).expect("the answer");
    assert_eq!(
        (answer.version_info.as_str(), answer.response_nonce.as_str()),
        ("v1", "2")
    );

    assert!(answer.error_detail.is_some());
    session.disconnected();
    session.connected();
    let again = sotw(&mut session).expect("clusters");
    assert_eq!(
        (again.version_info.as_str(), again.response_nonce.as_str()),
        ("v1", "")
    );

    // Of what was refused as a whole, the owner may have taken c.
    let third = updated(session.response(list("v3", "1", &["b"])));
    assert_eq!(third.removed, ["a", "c"]);
    session.ack(CLUSTER, &third.nonce);
    let fourth = updated(session.response(list("v4", "2", &[])));
    assert_eq!(fourth.removed, ["b"]);

    // What comes back before the answer stays.
    let fifth = updated(session.response(list("v5", "3", &["b"])));
    session.ack(CLUSTER, &fourth.nonce);
    session.ack(CLUSTER, &fifth.nonce);
    assert_eq!(
        updated(session.response(list("v6", "4", &[]))).removed,
        ["b"]
    );
}

#[test]
fn a_name_that_was_dropped_in_between_is_asked_for_anew() {
    let mut session = session(Variant::Sotw);
    let names = |names: &[&str]| {
        names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<Vec<_>>()
    };
    let route = |name: &str| {
        pack(&RouteConfiguration {
            name: name.to_owned(),
            ..Default::default()
        })
    };
    session.connected();
    session.subscribe(ROUTE, names(&["a"]).into_iter());
    while sotw(&mut session).is_some() {}

    // The listener that names `a` goes and comes back while the response is on its way: the owner
    // has dropped `a`, and the server believes that it has it.
    session.unsubscribe(ROUTE, names(&["a"]).into_iter());
    session.subscribe(ROUTE, names(&["b"]).into_iter());
    let update = updated(session.response(ClientResponse::Sotw(DiscoveryResponse {
        type_url: ROUTE.to_owned(),
        nonce: "1".to_owned(),
        resources: vec![route("a")],
        ..Default::default()
    })));
    session.subscribe(ROUTE, names(&["a"]).into_iter());
    session.ack(ROUTE, &update.nonce);

    let asked: Vec<_> = std::iter::from_fn(|| sotw(&mut session))
        .map(|request| request.resource_names)
        .collect();
    assert_eq!(asked[0], names(&["b"]));
    assert!(
        asked.len() > 1 && asked[1..].iter().all(|asked| *asked == names(&["a", "b"])),
        "{asked:?}"
    );
}

#[test]
fn an_answer_alone_is_no_recovery() {
    let ended_soon = (0..5).fold(0, |failures, _| failures_after(failures, false));
    assert_eq!(ended_soon, 5, "the delay grows");
    assert_eq!(
        failures_after(ended_soon, true),
        1,
        "and is short again after health"
    );
}
