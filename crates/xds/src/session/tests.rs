//! What a client sees of a server, request by request.

use std::sync::Arc;

use meltemi_proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use meltemi_proto::type_url::{CLUSTER, ENDPOINT, LISTENER, NAME_TABLE, ROUTE};
use meltemi_proto::{Any, google};

use super::ServerSession;
use super::delta::DeltaSession;
use super::sotw::SotwSession;
use super::status::{TypeStatus, Verdict};
use crate::{ResourceSet, name_of};

/// A set from `(type, name, version)`; the message holds its name in field 1 and its version in
/// field 15.
fn set(resources: &[(&str, &str, &str)]) -> Arc<ResourceSet> {
    let mut set = ResourceSet::new();
    for (url, name, version) in resources {
        let mut value = vec![0x0a, u8::try_from(name.len()).expect("short")];
        value.extend_from_slice(name.as_bytes());
        value.extend_from_slice(&[0x7a, u8::try_from(version.len()).expect("short")]);
        value.extend_from_slice(version.as_bytes());
        set.insert(
            url,
            *name,
            *version,
            Any {
                type_url: (*url).to_owned(),
                value,
            },
        );
    }

    Arc::new(set)
}

fn delta(resources: &[(&str, &str, &str)]) -> DeltaSession {
    let mut session = DeltaSession::new();
    session.set_resources(set(resources));
    session
}

fn ask(url: &str, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: url.to_owned(),
        resource_names_subscribe: names.iter().map(|&name| name.to_owned()).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn drop_names(url: &str, names: &[&str]) -> DeltaDiscoveryRequest {
    let resource_names_unsubscribe = names.iter().map(|&name| name.to_owned()).collect();
    DeltaDiscoveryRequest {
        type_url: url.to_owned(),
        resource_names_unsubscribe,
        ..DeltaDiscoveryRequest::default()
    }
}

fn holding(url: &str, names: &[&str], versions: &[(&str, &str)]) -> DeltaDiscoveryRequest {
    let versions = versions
        .iter()
        .map(|(name, version)| ((*name).to_owned(), (*version).to_owned()));
    DeltaDiscoveryRequest {
        initial_resource_versions: versions.collect(),
        ..ask(url, names)
    }
}

fn ack(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn nack(response: &DeltaDiscoveryResponse, reason: &str) -> DeltaDiscoveryRequest {
    let error_detail = google::rpc::Status {
        code: 3,
        message: reason.to_owned(),
        details: Vec::new(),
    };
    DeltaDiscoveryRequest {
        error_detail: Some(error_detail),
        ..ack(response)
    }
}

/// Asks, and settles every response until nothing more comes; the responses as text.
fn settle(session: &mut DeltaSession) -> Vec<String> {
    let mut seen = Vec::new();
    while let Some(response) = session.next_response() {
        seen.push(text(&response));
        session
            .on_request(ack(&response))
            .expect("a well-formed request");
    }
    seen
}

fn tell(session: &mut DeltaSession, request: DeltaDiscoveryRequest) -> Option<Verdict> {
    session.on_request(request).expect("a well-formed request")
}

/// `CDS a@1 b@2 -c`.
fn text(response: &DeltaDiscoveryResponse) -> String {
    let set = response
        .resources
        .iter()
        .map(|resource| format!(" {}@{}", resource.name, resource.version));

    let removed = response
        .removed_resources
        .iter()
        .map(|name| format!(" -{name}"));

    meltemi_proto::type_url::short(&response.type_url).to_owned()
        + &set.chain(removed).collect::<String>()
}

fn of<'a>(status: &'a [TypeStatus], url: &str) -> &'a TypeStatus {
    status
        .iter()
        .find(|status| status.type_url == url)
        .expect("the type is subscribed")
}

#[test]
fn a_wildcard_client_gets_all_then_differences() {
    let mut session = delta(&[(CLUSTER, "a", "1"), (CLUSTER, "b", "1")]);
    tell(&mut session, ask(CLUSTER, &[]));
    assert_eq!(settle(&mut session), ["CDS a@1 b@1"]);
    session.set_resources(set(&[(CLUSTER, "b", "2"), (CLUSTER, "c", "1")]));
    assert_eq!(settle(&mut session), ["CDS b@2 c@1 -a"]);
    session.set_resources(set(&[(CLUSTER, "b", "2"), (CLUSTER, "c", "1")]));
    assert_eq!(settle(&mut session), Vec::<String>::new());
}

#[test]
fn the_first_request_is_answered_even_with_nothing() {
    let mut session = delta(&[]);
    tell(&mut session, ask(CLUSTER, &[]));
    tell(&mut session, ask("example.com/unknown.Type", &[]));
    assert_eq!(settle(&mut session), ["CDS", "example.com/unknown.Type"]);
}

#[test]
fn nothing_is_said_before_there_is_a_set() {
    let mut session = DeltaSession::new();
    tell(&mut session, ask(CLUSTER, &[]));
    assert!(session.next_response().is_none());
    session.set_resources(set(&[(CLUSTER, "a", "1")]));
    assert_eq!(settle(&mut session), ["CDS a@1"]);
}

#[test]
fn names_are_answered_once_and_again_when_asked_again() {
    let mut session = delta(&[(ENDPOINT, "a", "1"), (ENDPOINT, "b", "1")]);
    tell(&mut session, ask(ENDPOINT, &["a", "nowhere"]));
    assert_eq!(settle(&mut session), ["EDS a@1 -nowhere"]);
    tell(&mut session, ask(ENDPOINT, &["a"]));
    assert_eq!(settle(&mut session), ["EDS a@1"]);
    // What did not exist when it was asked for is sent as soon as it does.
    session.set_resources(set(&[(ENDPOINT, "a", "1"), (ENDPOINT, "nowhere", "1")]));
    assert_eq!(settle(&mut session), ["EDS nowhere@1"]);
}

#[test]
fn names_beside_the_wildcard() {
    let mut session = delta(&[(CLUSTER, "a", "1"), (CLUSTER, "b", "1")]);
    tell(&mut session, ask(CLUSTER, &["*", "a"]));
    assert_eq!(settle(&mut session), ["CDS a@1 b@1"]);

    // Dropping a name that the wildcard covers: the client forgot it, so it is told again.
    tell(&mut session, drop_names(CLUSTER, &["a"]));
    assert_eq!(settle(&mut session), ["CDS a@1"]);

    // Dropping the wildcard leaves the names.
    tell(&mut session, ask(CLUSTER, &["b"]));
    settle(&mut session);
    tell(&mut session, drop_names(CLUSTER, &["*"]));
    session.set_resources(set(&[(CLUSTER, "a", "2"), (CLUSTER, "b", "2")]));
    assert_eq!(settle(&mut session), ["CDS b@2"]);
}

#[test]
fn unsubscribed_names_are_not_spoken_of_again() {
    let mut session = delta(&[(ROUTE, "80", "1"), (ROUTE, "90", "1")]);
    tell(&mut session, ask(ROUTE, &["80", "90"]));
    settle(&mut session);
    tell(&mut session, drop_names(ROUTE, &["80"]));
    session.set_resources(set(&[(ROUTE, "80", "2"), (ROUTE, "90", "2")]));
    assert_eq!(settle(&mut session), ["RDS 90@2"]);

    // Dropping the last name does not turn into the wildcard.
    tell(&mut session, drop_names(ROUTE, &["90"]));
    session.set_resources(set(&[(ROUTE, "80", "3"), (ROUTE, "90", "3")]));
    assert_eq!(settle(&mut session), Vec::<String>::new());
}

#[test]
fn a_client_that_comes_back_gets_differences_only() {
    let world = [
        (CLUSTER, "a", "1"),
        (CLUSTER, "b", "2"),
        (ENDPOINT, "a", "1"),
        (ENDPOINT, "b", "1"),
    ];

    let mut same = delta(&world);
    tell(&mut same, holding(CLUSTER, &[], &[("a", "1"), ("b", "2")]));
    tell(
        &mut same,
        holding(ENDPOINT, &["a", "b"], &[("a", "1"), ("b", "1")]),
    );

    assert_eq!(settle(&mut same), Vec::<String>::new());
    assert!(same.status().iter().all(TypeStatus::is_synced));

    let mut changed = delta(&world);
    tell(
        &mut changed,
        holding(CLUSTER, &[], &[("a", "1"), ("b", "1"), ("gone", "1")]),
    );

    tell(&mut changed, holding(ENDPOINT, &["a", "b"], &[("a", "1")]));
    assert_eq!(settle(&mut changed), ["CDS b@2 -gone", "EDS b@1"]);
}

#[test]
fn one_response_is_in_flight_and_what_follows_merges() {
    let mut session = delta(&[(CLUSTER, "a", "1")]);
    tell(&mut session, ask(CLUSTER, &[]));
    let first = session.next_response().expect("the first answer");
    session.set_resources(set(&[(CLUSTER, "a", "2")]));
    session.set_resources(set(&[(CLUSTER, "a", "3"), (CLUSTER, "b", "1")]));
    assert!(
        session.next_response().is_none(),
        "the first is not answered yet"
    );

    tell(&mut session, ack(&first));
    assert_eq!(settle(&mut session), ["CDS a@3 b@1"]);
}

#[test]
fn a_stale_nonce_settles_nothing_but_its_names_count() {
    let mut session = delta(&[(ENDPOINT, "a", "1"), (ENDPOINT, "b", "1")]);
    tell(&mut session, ask(ENDPOINT, &["a"]));
    let flight = session.next_response().expect("an answer");
    let stale = DeltaDiscoveryRequest {
        response_nonce: "stale".into(),
        ..ask(ENDPOINT, &["b"])
    };

    assert_eq!(tell(&mut session, stale), None);
    assert!(session.next_response().is_none());
    tell(&mut session, ack(&flight));
    assert_eq!(settle(&mut session), ["EDS b@1"]);
}

#[test]
fn a_refused_resource_waits_for_its_next_version() {
    let mut session = delta(&[
        (CLUSTER, "good", "1"),
        (CLUSTER, "bad", "1"),
        (CLUSTER, "ba", "1"),
    ]);

    tell(&mut session, ask(CLUSTER, &[]));
    let response = session.next_response().expect("an answer");
    let verdict = tell(
        &mut session,
        nack(&response, "cluster bad: no such transport socket."),
    );

    assert!(matches!(verdict, Some(Verdict::Nacked { names, .. }) if names == ["bad"]));

    // What the reason does not name goes out again, without the culprit.
    assert_eq!(settle(&mut session), ["CDS ba@1 good@1"]);
    let status = session.status();
    let status = of(&status, CLUSTER);
    assert!(!status.is_synced());
    assert_eq!(status.nacks, 1);
    let bad = status.resources["bad"]
        .nack
        .as_ref()
        .expect("bad was refused");

    assert_eq!(
        (&*bad.version, bad.reason.as_str()),
        ("1", "cluster bad: no such transport socket.")
    );

    assert!(status.resources["good"].nack.is_none());

    session.set_resources(set(&[
        (CLUSTER, "good", "1"),
        (CLUSTER, "bad", "2"),
        (CLUSTER, "ba", "1"),
    ]));

    assert_eq!(settle(&mut session), ["CDS bad@2"]);
    assert!(of(&session.status(), CLUSTER).is_synced());
}

#[test]
fn a_refusal_that_names_nothing_is_not_repeated() {
    let mut session = delta(&[(CLUSTER, "a", "1"), (CLUSTER, "b", "1")]);
    tell(&mut session, ask(CLUSTER, &[]));
    let response = session.next_response().expect("an answer");
    tell(&mut session, nack(&response, "out of memory"));
    assert!(session.next_response().is_none());
    let status = session.status();
    assert!(
        of(&status, CLUSTER)
            .resources
            .values()
            .all(|resource| resource.nack.is_some())
    );
}

#[test]
fn listeners_and_routes_wait_for_clusters_and_their_endpoints() {
    let mut session = delta(&[
        (CLUSTER, "a", "1"),
        (ENDPOINT, "a", "1"),
        (LISTENER, "l", "1"),
        (ROUTE, "r", "1"),
        (NAME_TABLE, "", "1"),
    ]);

    for url in [NAME_TABLE, LISTENER, CLUSTER] {
        tell(&mut session, ask(url, &[]));
    }
    let clusters = session.next_response().expect("clusters go first");
    assert_eq!(text(&clusters), "CDS a@1");
    assert_eq!(
        text(
            &session
                .next_response()
                .expect("the name table waits for nobody")
        ),
        "NDS @1"
    );

    assert!(session.next_response().is_none());

    // The client learns of cluster a, asks for its endpoints, then takes the cluster.
    tell(&mut session, ask(ENDPOINT, &["a"]));
    tell(&mut session, ack(&clusters));
    let endpoints = session.next_response().expect("asked for by name");
    assert_eq!(text(&endpoints), "EDS a@1");
    assert!(
        session.next_response().is_none(),
        "listeners wait for the endpoints"
    );

    tell(&mut session, ack(&endpoints));
    let listeners = session.next_response().expect("now the listeners");
    assert_eq!(text(&listeners), "LDS l@1");

    // A route that is asked for by name is answered at once.
    tell(&mut session, ask(ROUTE, &["r"]));
    assert_eq!(
        text(&session.next_response().expect("asked for by name")),
        "RDS r@1"
    );
}

#[test]
fn a_cluster_goes_after_the_route_that_named_it() {
    let mut session = delta(&[
        (CLUSTER, "v1", "1"),
        (ENDPOINT, "v1", "1"),
        (ROUTE, "r", "to-v1"),
    ]);

    tell(&mut session, ask(CLUSTER, &[]));
    tell(&mut session, ask(ENDPOINT, &["v1"]));
    tell(&mut session, ask(ROUTE, &["r"]));
    settle(&mut session);
    session.set_resources(set(&[
        (CLUSTER, "v2", "1"),
        (ENDPOINT, "v2", "1"),
        (ROUTE, "r", "to-v2"),
    ]));

    let new_cluster = session.next_response().expect("the new cluster");
    assert_eq!(text(&new_cluster), "CDS v2@1");
    assert!(session.next_response().is_none(), "the route waits");
    tell(&mut session, ask(ENDPOINT, &["v2"]));
    tell(&mut session, ack(&new_cluster));
    assert_eq!(
        settle(&mut session),
        ["EDS v2@1", "RDS r@to-v2", "CDS -v1", "EDS -v1"]
    );
}

#[test]
fn a_refused_route_keeps_the_cluster_of_its_predecessor() {
    let mut session = delta(&[(CLUSTER, "v1", "1"), (ROUTE, "r", "1")]);
    tell(&mut session, ask(CLUSTER, &[]));
    tell(&mut session, ask(ROUTE, &["r"]));
    settle(&mut session);
    session.set_resources(set(&[(ROUTE, "r", "2")]));
    let route = session.next_response().expect("the route");
    tell(&mut session, nack(&route, "route r is bad"));
    assert!(
        session.next_response().is_none(),
        "the client still routes to v1"
    );

    session.set_resources(set(&[(ROUTE, "r", "3")]));
    assert_eq!(settle(&mut session), ["RDS r@3", "CDS -v1"]);
}

#[test]
fn a_replaced_cluster_gets_its_endpoints_again() {
    let mut session = delta(&[
        (CLUSTER, "a", "1"),
        (ENDPOINT, "a", "1"),
        (ENDPOINT, "b", "1"),
    ]);

    tell(&mut session, ask(CLUSTER, &[]));
    tell(&mut session, ask(ENDPOINT, &["a", "b"]));
    settle(&mut session);
    session.set_resources(set(&[
        (CLUSTER, "a", "2"),
        (ENDPOINT, "a", "1"),
        (ENDPOINT, "b", "1"),
    ]));

    assert_eq!(settle(&mut session), ["CDS a@2", "EDS a@1"]);
}

#[test]
fn a_client_cannot_ask_without_bounds() {
    let mut session = DeltaSession::new();
    assert!(session.on_request(ask("", &[])).is_err());
    assert!(
        session
            .on_request(ask(CLUSTER, &[&"x".repeat(5000)]))
            .is_err()
    );

    let refused = (0..100).any(|n| {
        session
            .on_request(ask(&format!("example.com/T{n}"), &[]))
            .is_err()
    });

    assert!(refused, "the number of types is limited");
}

fn sotw(resources: &[(&str, &str, &str)]) -> SotwSession {
    let mut session = SotwSession::new();
    session.set_resources(set(resources));
    session
}

fn want(url: &str, names: &[&str], last: Option<&DiscoveryResponse>) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: url.to_owned(),
        resource_names: names.iter().map(|&name| name.to_owned()).collect(),
        response_nonce: last.map(|last| last.nonce.clone()).unwrap_or_default(),
        version_info: last
            .map(|last| last.version_info.clone())
            .unwrap_or_default(),
        ..DiscoveryRequest::default()
    }
}

fn names(response: &DiscoveryResponse) -> Vec<String> {
    response
        .resources
        .iter()
        .map(|any| name_of(any).expect("made above"))
        .collect()
}

#[test]
fn state_of_the_world_lists_all_clusters_but_only_changed_endpoints() {
    let mut session = sotw(&[
        (CLUSTER, "a", "1"),
        (CLUSTER, "b", "1"),
        (ENDPOINT, "a", "1"),
        (ENDPOINT, "b", "1"),
    ]);

    session.on_request(want(CLUSTER, &[], None)).expect("fine");
    let clusters = session.next_response().expect("an answer");
    assert_eq!(names(&clusters), ["a", "b"]);
    session
        .on_request(want(CLUSTER, &[], Some(&clusters)))
        .expect("fine");
    session
        .on_request(want(ENDPOINT, &["a", "b"], None))
        .expect("fine");
    let endpoints = session.next_response().expect("an answer");
    assert_eq!(names(&endpoints), ["a", "b"]);
    session
        .on_request(want(ENDPOINT, &["a", "b"], Some(&endpoints)))
        .expect("fine");
    assert!(session.next_response().is_none());

    session.set_resources(set(&[
        (CLUSTER, "a", "1"),
        (CLUSTER, "b", "2"),
        (ENDPOINT, "a", "2"),
        (ENDPOINT, "b", "1"),
    ]));

    let clusters = session.next_response().expect("a change");
    assert_eq!(
        names(&clusters),
        ["a", "b"],
        "the unchanged cluster is in the list"
    );

    let endpoints = session.next_response().expect("a change");
    assert_eq!(
        names(&endpoints),
        ["a", "b"],
        "a changed; b warms anew with its cluster"
    );

    session
        .on_request(want(ENDPOINT, &["a", "b"], Some(&endpoints)))
        .expect("fine");
    session.set_resources(set(&[
        (CLUSTER, "a", "1"),
        (CLUSTER, "b", "2"),
        (ENDPOINT, "a", "3"),
        (ENDPOINT, "b", "1"),
    ]));

    assert_eq!(names(&session.next_response().expect("a change")), ["a"]);
}

#[test]
fn state_of_the_world_keeps_a_cluster_in_the_list_until_its_route_is_gone() {
    let mut session = sotw(&[(CLUSTER, "v1", "1"), (ROUTE, "r", "to-v1")]);
    session.on_request(want(CLUSTER, &[], None)).expect("fine");
    let clusters = session.next_response().expect("an answer");
    session
        .on_request(want(CLUSTER, &[], Some(&clusters)))
        .expect("fine");
    session.on_request(want(ROUTE, &["r"], None)).expect("fine");
    let routes = session.next_response().expect("an answer");
    session
        .on_request(want(ROUTE, &["r"], Some(&routes)))
        .expect("fine");

    session.set_resources(set(&[(CLUSTER, "v2", "1"), (ROUTE, "r", "to-v2")]));
    let clusters = session.next_response().expect("the new list");
    assert_eq!(names(&clusters), ["v2", "v1"]);
    session
        .on_request(want(CLUSTER, &[], Some(&clusters)))
        .expect("fine");
    let routes = session.next_response().expect("the route");
    assert_eq!(names(&routes), ["r"]);
    assert!(session.next_response().is_none());
    session
        .on_request(want(ROUTE, &["r"], Some(&routes)))
        .expect("fine");
    let clusters = session.next_response().expect("the final list");
    assert_eq!(names(&clusters), ["v2"]);
    session
        .on_request(want(CLUSTER, &[], Some(&clusters)))
        .expect("fine");
    assert!(session.next_response().is_none());
    assert!(session.status().iter().all(TypeStatus::is_synced));
}

#[test]
fn state_of_the_world_names_change_and_stale_requests_are_ignored() {
    let mut session = sotw(&[(ROUTE, "80", "1"), (ROUTE, "90", "1")]);
    session
        .on_request(want(ROUTE, &["80"], None))
        .expect("fine");
    let first = session.next_response().expect("an answer");
    session
        .on_request(want(ROUTE, &["80", "90"], Some(&first)))
        .expect("fine");
    let second = session.next_response().expect("the new name");
    assert_eq!(names(&second), ["90"]);
    session
        .on_request(want(ROUTE, &[], Some(&first)))
        .expect("stale");
    session
        .on_request(want(ROUTE, &["80", "90"], Some(&second)))
        .expect("fine");
    session.set_resources(set(&[(ROUTE, "80", "2"), (ROUTE, "90", "1")]));
    assert_eq!(
        names(&session.next_response().expect("80 is still wanted")),
        ["80"]
    );
}

#[test]
fn state_of_the_world_refusal_is_recorded_with_what_was_new() {
    let mut session = sotw(&[(CLUSTER, "a", "1")]);
    session.on_request(want(CLUSTER, &[], None)).expect("fine");
    let first = session.next_response().expect("an answer");
    session
        .on_request(want(CLUSTER, &[], Some(&first)))
        .expect("fine");
    session.set_resources(set(&[(CLUSTER, "a", "1"), (CLUSTER, "b", "1")]));
    let second = session.next_response().expect("a change");
    let error_detail = Some(google::rpc::Status {
        code: 3,
        message: "no".into(),
        details: Vec::new(),
    });

    let refusal = DiscoveryRequest {
        error_detail,
        version_info: first.version_info.clone(),
        ..want(CLUSTER, &[], Some(&second))
    };

    session.on_request(refusal).expect("fine");
    let status = session.status();
    let status = of(&status, CLUSTER);
    assert!(
        status.resources["a"].nack.is_none(),
        "a was taken long before"
    );

    assert!(status.resources["b"].nack.is_some());
    assert!(
        session.next_response().is_none(),
        "a refused list is not repeated"
    );
}

#[test]
fn state_of_the_world_sends_again_what_a_refused_part_may_have_cost() {
    let mut session = sotw(&[(ROUTE, "80", "1"), (ROUTE, "90", "1"), (ROUTE, "bad", "1")]);
    let wanted = ["80", "90", "bad"];
    session
        .on_request(want(ROUTE, &wanted, None))
        .expect("fine");
    let first = session.next_response().expect("an answer");
    assert_eq!(names(&first), wanted);
    let error_detail = Some(google::rpc::Status {
        code: 3,
        message: "route bad: no".into(),
        details: Vec::new(),
    });

    session
        .on_request(DiscoveryRequest {
            error_detail,
            ..want(ROUTE, &wanted, Some(&first))
        })
        .expect("fine");

    let again = session
        .next_response()
        .expect("Envoy takes the tables of a response one by one, until one is bad");
    assert_eq!(names(&again), ["80", "90"]);
    session
        .on_request(want(ROUTE, &wanted, Some(&again)))
        .expect("fine");
    assert!(
        session.next_response().is_none(),
        "the refused version is not repeated"
    );

    let status = session.status();
    let status = of(&status, ROUTE);
    assert!(status.resources["bad"].nack.is_some() && status.resources["80"].acked.is_some());
}
