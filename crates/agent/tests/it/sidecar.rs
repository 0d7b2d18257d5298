//! The whole sidecar around a proxy that does nothing.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meltemi_agent::dns::DnsOptions;
use meltemi_agent::sidecar::{
    Embedded, EmbeddedProxy, ProxyChoice, SidecarDns, SidecarOptions, run,
};
use meltemi_agent::{BoxFuture, IdentityOptions, NodeKind, Workload};
use meltemi_tls::{DEFAULT_SECRET, SecretStore};
use meltemi_types::Locality;

use crate::peers::{Peers, no_annotations, sleep_id, until};
use crate::status::http;

#[derive(Default)]
struct Idle {
    drained: AtomicBool,
    secrets: Mutex<Option<SecretStore>>,
}

impl EmbeddedProxy for Idle {
    fn metrics(&self) -> BoxFuture<'_, String> {
        Box::pin(std::future::ready("idle 1\n".into()))
    }
    fn ready(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }
    fn is_running(&self) -> bool {
        true
    }
    fn was_asked_to_end(&self) -> bool {
        false
    }
    fn shutdown(&self, _: Duration) -> BoxFuture<'_, ()> {
        self.drained.store(true, Ordering::Relaxed);
        Box::pin(std::future::ready(()))
    }
}

#[tokio::test]
async fn a_sidecar_becomes_ready_and_drains_when_told_to_end() {
    let peers = Peers::start().await;
    let workload = Workload {
        kind: NodeKind::Sidecar,
        identity: sleep_id(),
        pod: "sleep-1".into(),
        ips: vec!["10.44.0.7".parse().expect("an address")],
        labels: [("app", "sleep")].into_iter().collect(),
        annotations: no_annotations(),
        workload_name: "sleep".into(),
        cluster_id: "Kubernetes".into(),
        locality: Locality::default(),
        node_name: "laptop".into(),
        domain_suffix: "cluster.local".into(),
        extra: Default::default(),
    };

    let status = SocketAddr::from(([127, 0, 0, 1], meltemi_testkit::free_port()));
    let dns = DnsOptions {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        ..DnsOptions::new(workload.search_domains())
    };

    let proxy = Arc::new(Idle::default());
    let started = proxy.clone();
    let options = SidecarOptions {
        workload,
        control_plane: peers.options(),
        identity: IdentityOptions::new(sleep_id()),
        dns: Some(SidecarDns {
            server: dns,
            upstreams: Vec::new(),
        }),
        status,
        health: None,
        termination_drain: Duration::from_secs(1),
        proxy: ProxyChoice::Embedded(Embedded::new(move |feed| {
            *started.secrets.lock().expect("lock") = Some(feed.secrets);
            Ok(started)
        })),
    };

    let sidecar = tokio::spawn(run(options, std::future::pending()));

    until("the status port", async || {
        tokio::net::TcpStream::connect(status).await.ok()
    })
    .await;

    let missing = until("the certificate", async || {
        let (code, body) = http(status, "GET", "/healthz/ready").await;
        (code == 503 && !body.contains("certificate")).then_some(body)
    })
    .await;

    assert_eq!(missing, "no name table from the control plane yet\n");
    let secrets = proxy.secrets.lock().expect("lock").clone().expect("fed");
    assert!(secrets.get(DEFAULT_SECRET).is_some());

    peers.serve_names("1", &[("details.default.svc.cluster.local", "10.45.0.3")]);
    until("readiness", async || {
        (http(status, "GET", "/healthz/ready").await.0 == 200).then_some(())
    })
    .await;

    assert!(
        http(status, "GET", "/debug/ndsz")
            .await
            .1
            .contains("details.default.svc.cluster.local")
    );

    assert!(
        http(status, "GET", "/certs")
            .await
            .1
            .contains("spiffe://cluster.local/ns/default/sa/sleep")
    );

    assert!(http(status, "GET", "/metrics").await.1.contains("idle 1"));
    assert_eq!(
        peers.nodes.lock().expect("lock").as_slice(),
        ["sidecar~10.44.0.7~sleep-1.default~default.svc.cluster.local"]
    );

    assert_eq!(http(status, "POST", "/quitquitquit").await.0, 200);
    sidecar.await.expect("no panic").expect("a good end");
    assert!(proxy.drained.load(Ordering::Relaxed));
}
