//! A whole control plane in the process: a temporary directory of YAML, real TLS, our own clients.

mod harness;

use std::time::Duration;

use harness::{Mesh, nothing_more, proxy_node, update};
use meltemi_admin_api::{Action, Client as Admin, ObjectSelector, SyncState};
use meltemi_ca::Caller;
use meltemi_proto::ca::{CertificateRequest, CertificateServiceClient};
use meltemi_proto::type_url::{CLUSTER, ENDPOINT, LISTENER, NAME_TABLE, ROUTE};
use meltemi_xds::{ClientEvent, Variant};

const REVIEWS: &str = "outbound|9080||reviews.default.svc.cluster.local";

/// Takes everything that a proxy takes at its start, asking for endpoints and routes as they are named.
async fn start_up(client: &mut harness::Proxy) -> Vec<(String, Vec<String>)> {
    let mut seen = Vec::new();
    while seen.iter().filter(|(url, _)| url == LISTENER).count() == 0 {
        let got = update(&mut client.events).await;
        let names: Vec<String> = got.set.iter().map(|resource| resource.name.clone()).collect();
        if got.type_url == CLUSTER {
            client.handle.subscribe(ENDPOINT, names.iter().filter(|name| name.starts_with("outbound|")).cloned());
        }
        client.handle.ack(&got.type_url, &got.nonce);
        seen.push((got.type_url, names));
    }
    seen
}

async fn a_proxy_gets_its_configuration(variant: Variant) {
    let mesh = Mesh::start().await;
    let mut client = mesh.proxy("default", "bookinfo-productpage", variant);
    let seen = start_up(&mut client).await;
    let of = |url: &str| {
        seen.iter().filter(|(seen, _)| seen == url).flat_map(|(_, names)| names.clone()).collect::<Vec<_>>()
    };
    assert!(of(CLUSTER).contains(&REVIEWS.to_owned()), "{seen:?}");
    assert!(of(ENDPOINT).contains(&REVIEWS.to_owned()), "{seen:?}");
    assert!(
        of(LISTENER).contains(&"virtualOutbound".to_owned()) && of(LISTENER).contains(&"virtualInbound".to_owned()),
        "{seen:?}"
    );
    let types: Vec<&str> = seen.iter().map(|(url, _)| url.as_str()).collect();
    let first = |url: &str| types.iter().position(|seen| *seen == url);
    assert!(first(CLUSTER) < first(ENDPOINT) && first(ENDPOINT) < first(LISTENER), "{types:?}");

    client.handle.subscribe(ROUTE, ["9080"]);
    let routes = update(&mut client.events).await;
    assert_eq!((routes.type_url.as_str(), routes.set.len()), (ROUTE, 1));
    client.handle.ack(ROUTE, &routes.nonce);

    // A new file is a push.
    mesh.write("ratings.yaml", &harness::service("ratings"));
    let pushed = update(&mut client.events).await;
    assert_eq!(pushed.type_url, CLUSTER);
    assert!(pushed.set.iter().any(|cluster| cluster.name.contains("ratings")));
    mesh.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delta_proxy_gets_its_configuration_over_tls_with_a_token() {
    a_proxy_gets_its_configuration(Variant::Delta).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_of_the_world_proxy_gets_its_configuration_over_tls_with_a_token() {
    a_proxy_gets_its_configuration(Variant::Sotw).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_can_only_ask_as_itself() {
    let mesh = Mesh::start().await;
    let ratings = mesh.token("default", "bookinfo-ratings");
    let cases = [
        (Some(ratings), proxy_node("default", "bookinfo-productpage"), "PermissionDenied", "can only ask as itself"),
        (None, proxy_node("default", "bookinfo-productpage"), "Unauthenticated", "token"),
        (
            Some("nonsense".to_owned()),
            proxy_node("default", "bookinfo-productpage"),
            "Unauthenticated",
            "token refused",
        ),
    ];
    for (token, node, code, words) in cases {
        let mut client = mesh.connect(token, None, node, Variant::Delta);
        let reason = loop {
            match client.events.recv().await.expect("the driver lives") {
                ClientEvent::Disconnected { reason } => break reason,
                ClientEvent::Update(update) => panic!("got {} without permission", update.type_url),
                ClientEvent::Connected => {}
            }
        };
        assert!(reason.contains(code) && reason.contains(words), "{reason}");
    }
    mesh.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_visible_with_resource_and_reason() {
    let mesh = Mesh::start().await;
    let mut client = mesh.proxy("default", "bookinfo-productpage", Variant::Delta);
    let clusters = update(&mut client.events).await;
    client.handle.nack(CLUSTER, &clusters.nonce, format!("cluster {REVIEWS}: I do not like it"));
    let admin = mesh.admin();
    let proxy = loop {
        let status = admin.status().await.expect("the socket answers");
        match status.proxies.into_iter().next() {
            Some(proxy) if !proxy.rejections.is_empty() => break proxy,
            _ => tokio::task::yield_now().await,
        }
    };
    assert_eq!(proxy.state, SyncState::Rejected);
    assert_eq!((proxy.namespace.as_str(), proxy.service_account.as_str()), ("default", "bookinfo-productpage"));
    assert_eq!(proxy.authenticated_by, "token");
    assert_eq!(proxy.rejections.len(), 1);
    assert_eq!(proxy.rejections[0].name, REVIEWS);
    assert!(proxy.rejections[0].reason.contains("I do not like it"));
    let metrics = String::from_utf8(admin.text("/metrics").await.expect("answers").to_vec()).expect("text");
    assert!(
        metrics.contains("pilot_xds_cds_reject 1") && metrics.contains("pilot_total_xds_rejects{type=\"cds\"} 1"),
        "{metrics}"
    );
    let dump: meltemi_admin_api::ConfigDump =
        admin.get("/debug/config_dump?proxyID=productpage-1.default").await.expect("the proxy is connected");
    assert!(
        dump.types
            .iter()
            .any(|dumped| dumped.type_url == CLUSTER && dumped.resources.iter().any(|r| r.name == REVIEWS))
    );
    mesh.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_names_its_caller_and_opens_a_stream() {
    let mesh = Mesh::start().await;
    let (key, csr) = harness::request(Some("spiffe://cluster.local/ns/default/sa/bookinfo-productpage"));
    let token = mesh.token("default", "bookinfo-productpage");
    let connection = mesh.channel(Some(token.clone()), None).await.expect("connects");
    let mut ca = CertificateServiceClient::new(connection.channel.clone());
    let ask = |csr: String| {
        let message = CertificateRequest { csr, validity_duration: 3600, metadata: None };
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = connection.metadata.clone();
        request
    };
    let chain = ca.create_certificate(ask(csr)).await.expect("issued").into_inner().cert_chain;
    assert_eq!(chain.len(), 2, "leaf and root");

    // Somebody else's name in the request is refused.
    let (_, foreign) = harness::request(Some("spiffe://cluster.local/ns/default/sa/bank"));
    let refused = ca.create_certificate(ask(foreign)).await.expect_err("not the caller's");
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    // No proof, no certificate.
    let anonymous =
        tonic::Request::new(CertificateRequest { csr: harness::request(None).1, validity_duration: 0, metadata: None });
    assert_eq!(ca.create_certificate(anonymous).await.expect_err("no token").code(), tonic::Code::Unauthenticated);

    // The certificate stands for the token.
    let identity = meltemi_tls::Identity::from_pem(chain[0].as_bytes(), key.as_bytes()).expect("they fit");
    assert_eq!(identity.spiffe().expect("an identity").service_account(), "bookinfo-productpage");
    let node = proxy_node("default", "bookinfo-productpage");
    let mut client = mesh.connect(None, Some(identity), node, Variant::Delta);
    assert_eq!(update(&mut client.events).await.type_url, CLUSTER);
    let status = mesh.admin().status().await.expect("answers");
    assert_eq!(status.proxies[0].authenticated_by, "mtls");
    assert_eq!(status.certificates.len(), 1);
    assert_eq!(status.certificates[0].identity, "spiffe://cluster.local/ns/default/sa/bookinfo-productpage");
    mesh.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_sends_nothing_again() {
    let mesh = Mesh::start().await;
    let mut client = mesh.proxy("default", "bookinfo-productpage", Variant::Delta);
    start_up(&mut client).await;
    let mesh = mesh.restart().await;
    loop {
        match client.events.recv().await.expect("the driver lives") {
            ClientEvent::Connected => break,
            ClientEvent::Disconnected { .. } => {}
            ClientEvent::Update(update) => panic!("{} was sent again", update.type_url),
        }
    }
    // What does not exist yet is the first thing to come.
    let admin = mesh.admin();
    while !admin.status().await.expect("answers").proxies.iter().any(|proxy| proxy.state == SyncState::Synced) {
        tokio::task::yield_now().await;
    }
    nothing_more(&mut client.events);
    mesh.write("ratings.yaml", &harness::service("ratings"));
    let pushed = update(&mut client.events).await;
    assert!(pushed.set.iter().all(|cluster| cluster.name.contains("ratings")), "{:?}", pushed.set);
    mesh.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_applied_shown_and_deleted() {
    let mesh = Mesh::start().await;
    let admin: Admin = mesh.admin();
    let which = ObjectSelector { kind: "svc".into(), ns: "default".into(), name: "ratings".into() };

    let dry = admin.apply(harness::service("ratings"), "default", true).await.expect("answers");
    assert!(dry.ok && dry.dry_run && dry.objects[0].action == Action::Created);
    assert!(admin.objects(&which).await.expect("answers").items.is_empty());

    let applied = admin.apply(harness::service("ratings"), "default", false).await.expect("answers");
    assert!(applied.ok, "{applied:?}");
    assert_eq!(admin.objects(&which).await.expect("answers").items.len(), 1);
    let again = admin.apply(harness::service("ratings"), "default", false).await.expect("answers");
    assert_eq!(again.objects[0].action, Action::Unchanged);

    // What a file of the user's holds is changed there, and the answer says which file.
    let labelled =
        harness::service("reviews").replace("name: reviews\nspec", "name: reviews\n  labels: {tier: one}\nspec");
    let changed = admin.apply(labelled, "default", false).await.expect("answers");
    assert!(
        changed.ok && changed.objects[0].action == Action::Configured && changed.objects[0].in_users_file,
        "{changed:?}"
    );
    assert!(changed.objects[0].file.ends_with("config/reviews.yaml"), "{changed:?}");
    assert!(mesh.read("reviews.yaml").contains("tier: one"));

    let broken = admin.apply("kind: [".to_owned(), "default", false).await.expect("answers");
    assert!(!broken.ok && !broken.diagnostics.is_empty());

    // It survives a restart, and goes when it is told to.
    let mesh = mesh.restart().await;
    let admin = mesh.admin();
    mesh.ready().await;
    assert_eq!(admin.objects(&which).await.expect("answers").items.len(), 1);
    let deleted = admin.delete(&which, false).await.expect("answers");
    assert_eq!(deleted.objects[0].action, Action::Deleted);
    assert!(admin.objects(&which).await.expect("answers").items.is_empty());
    mesh.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_gets_its_name_table_on_a_stream_of_its_own() {
    let mesh = Mesh::start().await;
    let mut client = mesh.subscribe_to("default", "bookinfo-productpage", NAME_TABLE);
    let names = update(&mut client.events).await;
    assert_eq!(names.type_url, NAME_TABLE);
    let table: meltemi_proto::istio::NameTable = meltemi_proto::unpack(&names.set[0].any).expect("a name table");
    assert!(table.table.contains_key("reviews.default.svc.cluster.local"), "{:?}", table.table.keys());
    mesh.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn debugging_is_not_for_everybody() {
    let mesh = Mesh::start().await;
    let ask = |path: &'static str, host: &'static str| {
        let address = mesh.http();
        async move { harness::http_status(address, path, host).await }
    };
    mesh.ready().await;
    assert_eq!(ask("/ready", "anything").await, 200);
    assert_eq!(ask("/debug/syncz", "localhost").await, 200);
    assert_eq!(ask("/debug/syncz", "evil.example").await, 403);
    assert_eq!(ask("/apis/objects", "localhost").await, 403);
    assert_eq!(ask("/nowhere", "localhost").await, 404);
    mesh.shutdown().await;
}

/// Tests that hang are worse than tests that fail.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn caller(namespace: &str, account: &str) -> Caller {
    Caller { namespace: namespace.to_owned(), service_account: account.to_owned(), pod: None }
}
