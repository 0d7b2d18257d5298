//! A whole control plane in the process: a temporary directory of YAML, real TLS, our own clients.

mod harness;

use std::time::Duration;

use harness::{Mesh, nothing_more, proxy_node, update};
use meltemi_admin_api::{Action, ChangeOptions, Client as Admin, ObjectSelector, SyncState};
use meltemi_ca::Caller;
use meltemi_model::GatewayRef;
use meltemi_proto::ca::{CertificateRequest, CertificateServiceClient};
use meltemi_proto::type_url::{CLUSTER, ENDPOINT, LISTENER, NAME_TABLE, ROUTE};
use meltemi_xds::{ClientEvent, Connection, Variant};

const REAL: ChangeOptions = ChangeOptions {
    dry_run: false,
    write: false,
};
const DRY_RUN: ChangeOptions = ChangeOptions {
    dry_run: true,
    write: false,
};
const WRITE: ChangeOptions = ChangeOptions {
    dry_run: false,
    write: true,
};

const REVIEWS: &str = "outbound|9080||reviews.default.svc.cluster.local";

/// Takes everything that a proxy takes at its start, asking for endpoints and routes as they are
/// named.
async fn start_up(client: &mut harness::Proxy) -> Vec<(String, Vec<String>)> {
    let mut seen = Vec::new();
    while seen.iter().filter(|(url, _)| url == LISTENER).count() == 0 {
        let got = update(&mut client.events).await;
        let names: Vec<String> = got
            .set
            .iter()
            .map(|resource| resource.name.clone())
            .collect();

        if got.type_url == CLUSTER {
            client.handle.subscribe(
                ENDPOINT,
                names
                    .iter()
                    .filter(|name| name.starts_with("outbound|"))
                    .cloned(),
            );
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
        seen.iter()
            .filter(|(seen, _)| seen == url)
            .flat_map(|(_, names)| names.clone())
            .collect::<Vec<_>>()
    };

    assert!(of(CLUSTER).contains(&REVIEWS.to_owned()), "{seen:?}");
    assert!(of(ENDPOINT).contains(&REVIEWS.to_owned()), "{seen:?}");
    assert!(
        of(LISTENER).contains(&"virtualOutbound".to_owned())
            && of(LISTENER).contains(&"virtualInbound".to_owned()),
        "{seen:?}"
    );

    let types: Vec<&str> = seen.iter().map(|(url, _)| url.as_str()).collect();
    let first = |url: &str| types.iter().position(|seen| *seen == url);
    assert!(
        first(CLUSTER) < first(ENDPOINT) && first(ENDPOINT) < first(LISTENER),
        "{types:?}"
    );

    client.handle.subscribe(ROUTE, ["9080"]);
    let routes = update(&mut client.events).await;
    assert_eq!((routes.type_url.as_str(), routes.set.len()), (ROUTE, 1));
    client.handle.ack(ROUTE, &routes.nonce);

    // A new file is a push.
    mesh.write("ratings.yaml", &harness::service("ratings"));
    let pushed = update(&mut client.events).await;
    assert_eq!(pushed.type_url, CLUSTER);
    assert!(
        pushed
            .set
            .iter()
            .any(|cluster| cluster.name.contains("ratings"))
    );

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
        (
            Some(ratings),
            proxy_node("default", "bookinfo-productpage"),
            "PermissionDenied",
            "can only ask as itself",
        ),
        (
            None,
            proxy_node("default", "bookinfo-productpage"),
            "Unauthenticated",
            "token",
        ),
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

    client.handle.nack(
        CLUSTER,
        &clusters.nonce,
        format!("cluster {REVIEWS}: I do not like it"),
    );

    let admin = mesh.admin();
    let proxy = loop {
        let status = admin.status().await.expect("the socket answers");
        match status.proxies.into_iter().next() {
            Some(proxy) if !proxy.rejections.is_empty() => break proxy,
            _ => tokio::task::yield_now().await,
        }
    };

    assert_eq!(proxy.state, SyncState::Rejected);
    assert_eq!(
        (proxy.namespace.as_str(), proxy.service_account.as_str()),
        ("default", "bookinfo-productpage")
    );

    assert_eq!(proxy.authenticated_by, "token");
    assert_eq!(proxy.rejections.len(), 1);
    assert_eq!(proxy.rejections[0].name, REVIEWS);
    assert!(proxy.rejections[0].reason.contains("I do not like it"));
    let metrics =
        String::from_utf8(admin.text("/metrics").await.expect("answers").to_vec()).expect("text");
    assert!(
        metrics.contains("pilot_xds_cds_reject 1")
            && metrics.contains("pilot_total_xds_rejects{type=\"cds\"} 1"),
        "{metrics}"
    );

    let dump: meltemi_admin_api::ConfigDump = admin
        .get("/debug/config_dump?proxyID=productpage-1.default")
        .await
        .expect("the proxy is connected");

    assert!(
        dump.types.iter().any(|dumped| dumped.type_url == CLUSTER
            && dumped.resources.iter().any(|r| r.name == REVIEWS))
    );

    mesh.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_names_its_caller_and_opens_a_stream() {
    let mesh = Mesh::start().await;
    let (key, csr) = harness::request(Some(
        "spiffe://cluster.local/ns/default/sa/bookinfo-productpage",
    ));
    let token = mesh.token("default", "bookinfo-productpage");
    let connection = mesh
        .channel(Some(token.clone()), None)
        .await
        .expect("connects");

    let mut ca = CertificateServiceClient::new(connection.channel.clone());
    let ask = |csr: String| {
        let message = CertificateRequest {
            csr,
            validity_duration: 3600,
            metadata: None,
        };
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = connection.metadata.clone();
        request
    };

    let chain = ca
        .create_certificate(ask(csr))
        .await
        .expect("issued")
        .into_inner()
        .cert_chain;

    assert_eq!(chain.len(), 2, "leaf and root");

    // Somebody else's name in the request is refused.
    let (_, foreign) = harness::request(Some("spiffe://cluster.local/ns/default/sa/bank"));
    let refused = ca
        .create_certificate(ask(foreign))
        .await
        .expect_err("not the caller's");

    assert_eq!(refused.code(), tonic::Code::PermissionDenied);

    // No proof, no certificate.
    let anonymous = tonic::Request::new(CertificateRequest {
        csr: harness::request(None).1,
        validity_duration: 0,
        metadata: None,
    });

    assert_eq!(
        ca.create_certificate(anonymous)
            .await
            .expect_err("no token")
            .code(),
        tonic::Code::Unauthenticated
    );

    // The certificate stands for the token.
    let identity =
        meltemi_tls::Identity::from_pem(chain[0].as_bytes(), key.as_bytes()).expect("they fit");
    assert_eq!(
        identity.spiffe().expect("an identity").service_account(),
        "bookinfo-productpage"
    );

    let node = proxy_node("default", "bookinfo-productpage");
    let mut client = mesh.connect(None, Some(identity), node, Variant::Delta);
    assert_eq!(update(&mut client.events).await.type_url, CLUSTER);
    let status = mesh.admin().status().await.expect("answers");
    assert_eq!(status.proxies[0].authenticated_by, "mtls");
    assert_eq!(status.certificates.len(), 1);
    assert_eq!(
        status.certificates[0].identity,
        "spiffe://cluster.local/ns/default/sa/bookinfo-productpage"
    );

    // Another process has issued nothing yet, and knows the certificate as soon as the proxy is
    // back.
    let issued = status.certificates[0].clone();
    let mesh = mesh.restart().await;
    let shown = loop {
        let status = mesh.admin().status().await.expect("answers");
        match status.proxies.is_empty() {
            true => tokio::task::yield_now().await,
            false => break status.certificates,
        }
    };

    assert_eq!(shown.len(), 1);
    assert_eq!(
        (&shown[0].serial, &shown[0].peer),
        (&issued.serial, &issued.peer)
    );

    assert_eq!(shown[0].expires_at_ms, issued.expires_at_ms);
    mesh.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_speaks_for_the_pod_of_its_token_alone() {
    let mesh = Mesh::start().await;
    let identity = "spiffe://cluster.local/ns/default/sa/bookinfo-productpage";
    let token = mesh.pod_token("default", "bookinfo-productpage", "other-1");
    let request = |connection: &Connection, csr: String| {
        let mut request = tonic::Request::new(CertificateRequest {
            csr,
            validity_duration: 3600,
            metadata: None,
        });
        *request.metadata_mut() = connection.metadata.clone();
        request
    };

    // One by the token, and one by that certificate: a renewal keeps the pod.
    let mut proof = (Some(token), None);
    for _ in 0..2 {
        let (key, csr) = harness::request(None);
        let connection = mesh.channel(proof.0, proof.1).await.expect("connects");
        let mut ca = CertificateServiceClient::new(connection.channel.clone());
        let answer = ca.create_certificate(request(&connection, csr)).await;
        let chain = answer.expect("issued").into_inner().cert_chain;
        let own = meltemi_tls::Identity::from_pem(chain[0].as_bytes(), key.as_bytes());
        proof = (None, Some(own.expect("they fit")));
    }

    // The node is `productpage-1`, of the same account.
    let node = proxy_node("default", "bookinfo-productpage");
    let mut client = mesh.connect(None, proof.1, node, Variant::Delta);
    let reason = loop {
        match client.events.recv().await.expect("the driver lives") {
            ClientEvent::Disconnected { reason } => break reason,
            ClientEvent::Update(update) => panic!("got {} without permission", update.type_url),
            ClientEvent::Connected => {}
        }
    };
    assert!(
        reason.contains("PermissionDenied") && reason.contains("pod \"other-1\""),
        "{reason}"
    );

    // The audit log has all of it.
    let audit: Vec<serde_json::Value> = mesh
        .state("audit.log")
        .lines()
        .map(|line| serde_json::from_str(line).expect("an object"))
        .collect();
    let issued = |line: &&serde_json::Value| line["event"] == "certificate-issued";
    assert_eq!(audit.iter().filter(issued).count(), 2);
    assert!(audit.iter().filter(issued).all(|line| {
        line["identity"] == identity && line["pod"] == "other-1" && line["peer"] == "127.0.0.1"
    }));
    let refused = audit.iter().find(|line| line["event"] == "proxy-refused");
    let detail = refused.expect("a line")["detail"].as_str().expect("a text");
    assert!(detail.contains("productpage-1"), "{detail}");

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
    while !admin
        .status()
        .await
        .expect("answers")
        .proxies
        .iter()
        .any(|proxy| proxy.state == SyncState::Synced)
    {
        tokio::task::yield_now().await;
    }

    nothing_more(&mut client.events);
    mesh.write("ratings.yaml", &harness::service("ratings"));
    let pushed = update(&mut client.events).await;
    assert!(
        pushed
            .set
            .iter()
            .all(|cluster| cluster.name.contains("ratings")),
        "{:?}",
        pushed.set
    );

    mesh.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_applied_shown_and_deleted() {
    let mesh = Mesh::start().await;
    let admin: Admin = mesh.admin();
    let which = ObjectSelector {
        kind: "svc".into(),
        ns: "default".into(),
        name: "ratings".into(),
    };

    let dry = admin
        .apply(harness::service("ratings"), "default", DRY_RUN)
        .await
        .expect("answers");

    assert!(dry.ok && dry.dry_run && dry.objects[0].action == Action::Created);
    assert!(
        admin
            .objects(&which)
            .await
            .expect("answers")
            .items
            .is_empty()
    );

    let applied = admin
        .apply(harness::service("ratings"), "default", REAL)
        .await
        .expect("answers");

    assert!(applied.ok, "{applied:?}");
    assert_eq!(admin.objects(&which).await.expect("answers").items.len(), 1);
    let again = admin
        .apply(harness::service("ratings"), "default", REAL)
        .await
        .expect("answers");

    assert_eq!(again.objects[0].action, Action::Unchanged);

    // What a file of the user's holds is left alone, and changed there only if that is allowed.
    let labelled = harness::service("reviews").replace(
        "name: reviews\nspec",
        "name: reviews\n  labels: {tier: one}\nspec",
    );

    for options in [DRY_RUN, REAL] {
        let refused = admin
            .apply(labelled.clone(), "default", options)
            .await
            .expect("answers");
        assert!(
            !refused.ok && refused.objects[0].action == Action::Refused,
            "{refused:?}"
        );
        let place = &refused.diagnostics[0].position;
        assert!(
            place.file.ends_with("config/reviews.yaml") && place.line == 4,
            "{place:?}"
        );
        assert!(refused.diagnostics[0].remedy.contains("--write"));
    }
    assert!(!mesh.read("reviews.yaml").contains("tier: one"));

    let changed = admin
        .apply(labelled, "default", WRITE)
        .await
        .expect("answers");

    assert!(
        changed.ok
            && changed.objects[0].action == Action::Configured
            && changed.objects[0].in_users_file,
        "{changed:?}"
    );

    assert!(
        changed.objects[0].file.ends_with("config/reviews.yaml"),
        "{changed:?}"
    );

    assert!(mesh.read("reviews.yaml").contains("tier: one"));

    // It survives a restart, and goes when it is told to.
    let mesh = mesh.restart().await;
    let admin = mesh.admin();
    mesh.ready().await;
    assert_eq!(admin.objects(&which).await.expect("answers").items.len(), 1);
    let deleted = admin.delete(&which, REAL).await.expect("answers");
    assert_eq!(deleted.objects[0].action, Action::Deleted);
    assert!(
        admin
            .objects(&which)
            .await
            .expect("answers")
            .items
            .is_empty()
    );

    mesh.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_leaves_files_alone_and_all_means_all_that_was_applied() {
    let mesh = Mesh::start().await;
    let admin = mesh.admin();
    let account = |namespace: &str, name: &str| {
        format!(
            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: {namespace}}}\n"
        )
    };
    let select = |kind: &str, ns: &str, name: &str| ObjectSelector {
        kind: kind.into(),
        ns: ns.into(),
        name: name.into(),
    };
    let left = async || {
        let all = admin.objects(&select("", "", "")).await.expect("answers");
        let applied = all
            .items
            .into_iter()
            .filter(|item| item.origin == meltemi_admin_api::Origin::Applied);
        applied.map(|item| item.object.name).collect::<Vec<_>>()
    };

    // Applied, and then written into a file, which counts: deleting would bring the applied one
    // into force.
    for (namespace, name) in [("default", "a"), ("default", "b"), ("other", "c")] {
        let text = account(namespace, name);
        admin.apply(text, "default", REAL).await.expect("answers");
    }
    mesh.write("a.yaml", &account("default", "a"));
    let a = select("sa", "default", "a");
    let file_of = |list: meltemi_admin_api::ObjectList| list.items[0].position.file.clone();
    while !file_of(admin.objects(&a).await.expect("answers")).ends_with("config/a.yaml") {
        tokio::task::yield_now().await;
    }
    let refused = admin.delete(&a, REAL).await.expect("answers");
    assert!(
        !refused.ok && refused.diagnostics[0].position.line == 3,
        "{refused:?}"
    );
    assert_eq!(mesh.read("a.yaml"), account("default", "a"));

    // All of a kind in a namespace, then all.
    let dry = admin
        .delete_applied(&select("sa", "default", ""), DRY_RUN)
        .await
        .expect("answers");
    assert_eq!(
        (dry.objects.len(), left().await),
        (2, vec!["b".to_owned(), "c".to_owned()])
    );
    let response = admin
        .delete_applied(&select("sa", "default", ""), REAL)
        .await
        .expect("answers");
    assert!(response.ok && response.objects.len() == 2, "{response:?}");
    assert_eq!(left().await, ["c"]);
    admin
        .delete_applied(&select("", "", ""), REAL)
        .await
        .expect("answers");
    assert!(left().await.is_empty());
    assert_eq!(mesh.read("a.yaml"), account("default", "a"));

    // Nothing that was applied is left behind the file's object.
    let deleted = admin.delete(&a, WRITE).await.expect("answers");
    assert!(
        deleted.ok && deleted.objects[0].in_users_file,
        "{deleted:?}"
    );
    assert!(admin.objects(&a).await.expect("answers").items.is_empty());

    mesh.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateways_of_two_groups_are_two_objects() {
    let mesh = Mesh::start().await;
    let admin = mesh.admin();
    let istio = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: web}\n\
                 spec: {servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [a.example]}]}\n";
    let kubernetes = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: web}\n\
                      spec: {gatewayClassName: istio}\n";
    let select = |kind: &str| ObjectSelector {
        kind: kind.into(),
        ns: "default".into(),
        name: "web".into(),
    };

    let text = format!("{istio}---\n{kubernetes}");
    let response = admin.apply(text, "default", REAL).await.expect("answers");
    let created: Vec<String> = response
        .objects
        .iter()
        .map(|a| a.object.to_string())
        .collect();
    assert_eq!(
        created,
        [
            "Gateway/web.default",
            "Gateway.gateway.networking.k8s.io/web.default"
        ]
    );

    // The warning that the mesh does not read a kind belongs to the object of that kind alone.
    let kinds = ["gateways", "gateways.gateway.networking.k8s.io"];
    for (kind, field, warnings) in [(kinds[0], "servers", 0), (kinds[1], "gatewayClassName", 1)] {
        let found = admin.objects(&select(kind)).await.expect("answers").items;
        assert_eq!(found.len(), 1, "{kind}");
        assert!(found[0].value["spec"].get(field).is_some(), "{kind}");
        let unread = found[0].diagnostics.iter().filter(|d| d.code == "MEL0106");
        assert_eq!(unread.count(), warnings, "{kind}");
    }

    // Each is deleted by its own name, and the other one stays.
    let deleted = admin
        .delete(&select(kinds[0]), REAL)
        .await
        .expect("answers");
    assert_eq!(deleted.objects[0].object.group, "");
    let left = admin
        .objects(&select(kinds[1]))
        .await
        .expect("answers")
        .items;
    assert_eq!(left.len(), 1);
    assert!(
        admin
            .objects(&select(kinds[0]))
            .await
            .expect("answers")
            .items
            .is_empty()
    );

    mesh.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_object_of_a_text_stands_for_itself() {
    let mesh = Mesh::start().await;
    let admin = mesh.admin();
    let account = |name: &str, label: &str| {
        format!(
            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, labels: {{is: {label}}}}}\n"
        )
    };

    let virtual_service = |name: &str, field: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\nspec: {{{field}: [{name}]}}\n"
        )
    };

    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: way}\nspec: {x: y}\n";
    let parts = [
        account("a", "first"),
        "kind: [\n".to_owned(),
        virtual_service("bad", "hostz"),
        route.to_owned(),
        account("a", "second"),
        account("b", "only"),
    ];

    let text = parts.join("---\n");
    let tell = |response: &meltemi_admin_api::ApplyResponse| {
        let line =
            |applied: &meltemi_admin_api::Applied| format!("{} {}", applied.object, applied.action);
        response.objects.iter().map(line).collect::<Vec<_>>()
    };

    let expected = [
        "ServiceAccount/a.default created",
        "HTTPRoute.gateway.networking.k8s.io/way.default created",
        "ServiceAccount/a.default configured",
        "ServiceAccount/b.default created",
        "VirtualService/bad.default refused",
    ];

    for options in [DRY_RUN, REAL] {
        let response = admin
            .apply(text.clone(), "default", options)
            .await
            .expect("answers");

        assert_eq!(
            (response.ok, tell(&response)),
            (false, expected.map(str::to_owned).to_vec()),
            "{options:?}"
        );

        let codes: Vec<_> = response
            .diagnostics
            .iter()
            .map(|d| (d.code.as_str(), d.severity.to_string()))
            .collect();

        let expected = [
            ("MEL0101", "error"),
            ("MEL0103", "error"),
            ("MEL0106", "warning"),
            ("MEL0601", "warning"),
        ];

        assert_eq!(
            codes,
            expected.map(|(code, severity)| (code, severity.to_owned())),
            "{:?}",
            response.diagnostics
        );
    }

    let find = |kind: &str, name: &str| {
        let which = ObjectSelector {
            kind: kind.into(),
            ns: "default".into(),
            name: name.into(),
        };
        let admin = mesh.admin();
        async move { admin.objects(&which).await.map(|list| list.items) }
    };

    let a = find("sa", "a").await.expect("answers");
    assert_eq!(
        a[0].value["metadata"]["labels"]["is"], "second",
        "the last one counts"
    );

    assert_eq!(find("vs", "bad").await.expect("answers"), []);

    // An unread kind is kept, told about, listed and deleted like any other; alone it is no
    // failure.
    let again = admin
        .apply(route.to_owned(), "default", REAL)
        .await
        .expect("answers");

    assert_eq!(
        (again.ok, tell(&again)),
        (
            true,
            vec!["HTTPRoute.gateway.networking.k8s.io/way.default unchanged".to_owned()]
        )
    );

    assert_eq!(again.diagnostics[0].code, "MEL0106");
    assert_eq!(find("httproutes", "way").await.expect("answers").len(), 1);
    let kind = "httproutes.gateway.networking.k8s.io";
    let which = ObjectSelector {
        kind: kind.into(),
        ns: "default".into(),
        name: "way".into(),
    };

    assert_eq!(
        admin.delete(&which, REAL).await.expect("answers").objects[0].action,
        Action::Deleted
    );

    let slip = find("virtualservics", "")
        .await
        .expect_err("no kind")
        .to_string();

    assert!(slip.contains("did you mean virtualservices?"), "{slip}");
    assert!(
        find("httproutes", "way")
            .await
            .is_err_and(|error| error.to_string().contains("knows no kind"))
    );

    // What is not there is another failure than what makes no sense.
    let gone = ObjectSelector {
        kind: "vs".into(),
        ns: "default".into(),
        name: "bad".into(),
    };

    let error = admin
        .delete(&gone, REAL)
        .await
        .expect_err("it is not there");

    let meltemi_admin_api::ClientError::Refused {
        status: 404,
        message,
    } = error
    else {
        panic!("{error}")
    };

    assert_eq!(
        message,
        "virtualservices.networking.istio.io \"bad\" not found in namespace \"default\""
    );

    let nonsense = ObjectSelector {
        kind: "gizmo".into(),
        ..gone
    };

    let error = admin
        .delete(&nonsense, REAL)
        .await
        .expect_err("no such kind");

    assert!(
        matches!(
            error,
            meltemi_admin_api::ClientError::Refused { status: 400, .. }
        ),
        "{error}"
    );

    let empty = admin
        .apply("# nothing\n".to_owned(), "default", REAL)
        .await
        .expect("answers");

    assert!(
        !empty.ok && empty.diagnostics[0].message.contains("holds no object"),
        "{empty:?}"
    );

    mesh.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_built_into_the_mesh_cannot_be_configured() {
    let mesh = Mesh::start().await;
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    \
                accessLogFile: /dev/stdout\n    trustDomain: example.org\n    banana: 1\n";
    let applied = mesh
        .admin()
        .apply(text.to_owned(), "", REAL)
        .await
        .expect("answers");

    assert!(
        applied.ok && applied.objects[0].action == Action::Created,
        "{applied:?}"
    );

    let told: Vec<_> = applied
        .diagnostics
        .iter()
        .map(|finding| (finding.code.as_str(), &*finding.field))
        .collect();

    assert_eq!(
        told,
        [
            ("MEL0103", "data.mesh: banana"),
            ("MEL0313", "data.mesh: trustDomain")
        ]
    );

    let world = mesh.world();
    assert_eq!(
        world
            .snapshot
            .mesh
            .access_logs
            .file
            .as_ref()
            .map(|log| log.path.as_str()),
        Some("/dev/stdout")
    );
    assert_eq!(world.snapshot.mesh.trust_domain.as_str(), "cluster.local");
    mesh.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_mesh_brings_is_replaced_and_comes_back_but_pods_are_as_they_are() {
    let mesh = Mesh::start().await;
    let account = |label: &str| {
        format!(
            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: own, labels: {{is: {label}}}}}\n"
        )
    };

    let pod = |ip: &str| {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nstatus: {{podIP: {ip}}}\n")
    };
    mesh.bring(
        "own.yaml",
        &format!("{}---\n{}", account("brought"), pod("10.44.0.8")),
    );

    let label = |world: &meltemi_store::World| {
        let key =
            meltemi_model::ObjectKey::new(meltemi_model::Kind::ServiceAccount, "default", "own");
        world
            .tables
            .get(&key)
            .and_then(|own| own.meta.labels.value("is").map(str::to_owned))
    };

    mesh.see(|world| label(world).as_deref() == Some("brought"))
        .await;
    let admin = mesh.admin();
    let text = format!("{}---\n{}", account("applied"), pod("10.44.0.9"));
    let response = admin.apply(text, "default", REAL).await.expect("answers");
    let actions: Vec<Action> = response
        .objects
        .iter()
        .map(|applied| applied.action)
        .collect();

    assert_eq!(
        (response.ok, actions),
        (false, vec![Action::Configured, Action::Refused]),
        "{response:?}"
    );

    assert!(
        response
            .diagnostics
            .iter()
            .any(|finding| finding.remedy == "change the workload instead")
    );

    assert_eq!(
        label(&mesh.world()).as_deref(),
        Some("applied"),
        "{:?}",
        mesh.world().diagnostics
    );

    assert!(
        mesh.world()
            .diagnostics
            .iter()
            .all(|finding| finding.code != "MEL0402"),
        "nobody is told of a double"
    );

    let which = ObjectSelector {
        kind: "sa".into(),
        ns: "default".into(),
        name: "own".into(),
    };

    let deleted = admin.delete(&which, REAL).await.expect("answers");
    assert_eq!(
        (deleted.ok, deleted.objects[0].action),
        (true, Action::Deleted)
    );

    assert!(
        deleted.diagnostics[0].message.contains("is in force again"),
        "{deleted:?}"
    );

    assert_eq!(label(&mesh.world()).as_deref(), Some("brought"));
    let refused = admin.delete(&which, REAL).await.expect("answers");
    assert_eq!(
        (refused.ok, refused.objects[0].action),
        (false, Action::Refused)
    );

    mesh.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oldest_applied_object_comes_first() {
    let mesh = Mesh::start().await;
    let admin = mesh.admin();
    let text = |name: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\nspec:\n  hosts: [reviews]\n  \
             http: [{{route: [{{destination: {{host: reviews}}}}], name: {name}}}]\n"
        )
    };

    // As if it had been applied long ago: it is kept through a change, and counts before a lesser
    // name.
    admin
        .apply(text("z"), "default", REAL)
        .await
        .expect("answers");

    mesh.age_applied("2001-02-03T04:05:06Z");
    mesh.see(|world| {
        format!(
            "{:?}",
            world
                .tables
                .iter()
                .map(|o| o.meta.creation.clone())
                .collect::<Vec<_>>()
        )
        .contains("2001")
    })
    .await;

    admin
        .apply(
            text("z").replace("name: z}]", "name: again}]"),
            "default",
            REAL,
        )
        .await
        .expect("answers");

    admin
        .apply(text("a"), "default", REAL)
        .await
        .expect("answers");

    let order: Vec<String> = {
        let applied = mesh
            .world()
            .snapshot
            .virtual_services_for(&GatewayRef::Mesh, "default");
        applied
            .iter()
            .map(|one| one.origin.object.name.clone())
            .collect()
    };

    assert_eq!(order, ["z", "a"]);
    let which = ObjectSelector {
        kind: "vs".into(),
        ns: "default".into(),
        name: "z".into(),
    };

    let shown = admin
        .objects(&which)
        .await
        .expect("answers")
        .items
        .remove(0)
        .value;

    assert_eq!(
        shown["metadata"]["creationTimestamp"],
        "2001-02-03T04:05:06Z"
    );

    assert_eq!(shown["spec"]["http"][0]["name"], "again");
    mesh.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_gets_its_name_table_on_a_stream_of_its_own() {
    let mesh = Mesh::start().await;
    let mut client = mesh.subscribe_to("default", "bookinfo-productpage", NAME_TABLE);
    let names = update(&mut client.events).await;

    assert_eq!(names.type_url, NAME_TABLE);
    let table: meltemi_proto::istio::NameTable =
        meltemi_proto::unpack(&names.set[0].any).expect("a name table");
    assert!(
        table
            .table
            .contains_key("reviews.default.svc.cluster.local"),
        "{:?}",
        table.table.keys()
    );

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
    Caller {
        namespace: namespace.to_owned(),
        service_account: account.to_owned(),
        pod: None,
    }
}
