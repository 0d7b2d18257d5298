//! Configuration from a server, over ADS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meltemi_proto::envoy::config::bootstrap::v3 as bootstrap;
use meltemi_proto::envoy::config::cluster::v3 as cluster;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::config::core::v3::Node;
use meltemi_proto::pack;
use meltemi_proto::type_url::{CLUSTER, ENDPOINT, LISTENER, ROUTE};
use meltemi_proxy::{Discover, ProxyOptions};
use meltemi_proxy_config::bootstrap::Bootstrap;
use meltemi_xds::{
    AdsServer, ClientConfig, Connection, Feed, Observer, Opening, ResourceSet, ServerTerms, Source,
    Verdict,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::TcpListenerStream;

use crate::config::*;
use crate::peers;

struct Everything {
    resources: watch::Receiver<Option<Arc<ResourceSet>>>,
    verdicts: mpsc::UnboundedSender<Verdict>,
}

struct Hears(mpsc::UnboundedSender<Verdict>);

impl Observer for Hears {
    fn sent(&mut self, _: &str, _: usize, _: usize, _: usize) {}
    fn verdict(&mut self, verdict: &Verdict) {
        let _ = self.0.send(verdict.clone());
    }
}

#[tonic::async_trait]
impl Source for Everything {
    async fn open(&self, _: Opening) -> Result<Feed, tonic::Status> {
        Ok(Feed {
            resources: self.resources.clone(),
            observer: Box::new(Hears(self.verdicts.clone())),
        })
    }
}

pub struct Server {
    address: SocketAddr,
    pub resources: watch::Sender<Option<Arc<ResourceSet>>>,
    pub verdicts: mpsc::UnboundedReceiver<Verdict>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    pub async fn start(set: ResourceSet) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("binds");
        let address = listener.local_addr().expect("bound");
        let (resources, receiver) = watch::channel(Some(Arc::new(set)));
        let (sender, verdicts) = mpsc::unbounded_channel();
        let service = AdsServer::service(
            Arc::new(Everything {
                resources: receiver,
                verdicts: sender,
            }),
            ServerTerms::default(),
        );

        let task = tokio::spawn(async move {
            let server = tonic::transport::Server::builder().add_service(service);
            server
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .expect("serves");
        });

        Self {
            address,
            resources,
            verdicts,
            task,
        }
    }

    pub fn client(&self) -> ClientConfig {
        let to = format!("http://{}", self.address);
        let connect = move || {
            let to = to.clone();
            async move {
                let channel = tonic::transport::Endpoint::from_shared(to)?
                    .connect()
                    .await?;
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Connection::from(channel))
            }
        };

        ClientConfig::new(
            connect,
            Node {
                id: "sidecar~1~a.b~b".into(),
                ..Default::default()
            },
            Vec::new(),
        )
    }
}

pub fn eds_cluster(name: &str) -> cluster::Cluster {
    let ads = core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            Default::default(),
        )),
        resource_api_version: core::ApiVersion::V3 as i32,
        ..Default::default()
    };

    cluster::Cluster {
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::Eds as i32,
        )),
        eds_cluster_config: Some(cluster::cluster::EdsClusterConfig {
            eds_config: Some(ads),
            service_name: name.into(),
        }),
        load_assignment: None,
        ..static_cluster(name, &[])
    }
}

/// A listener with routes by name, a cluster with endpoints by name.
pub fn set(version: &str, endpoint: SocketAddr) -> ResourceSet {
    let mut set = ResourceSet::new();
    set.insert(CLUSTER, "up", version, pack(&eds_cluster("up")));
    set.insert(
        ENDPOINT,
        "up",
        version,
        pack(&assignment("up", &[endpoint])),
    );

    set.insert(
        LISTENER,
        "in",
        version,
        pack(&listener("in", vec![http_chain(&manager(rds("9080")))])),
    );

    set.insert(
        ROUTE,
        "9080",
        version,
        pack(&table("9080", vec![forward("/", "up")])),
    );

    set
}

pub async fn says(at: SocketAddr, name: &str) {
    for _ in 0..500 {
        if peers::get(at, "/")
            .await
            .0
            .contains(&format!("x-name: {name}\r\n"))
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    panic!("{name} never answered");
}

#[tokio::test]
async fn a_proxy_serves_what_its_server_tells_and_goes_on_without_it() {
    let (one, two) = (peers::echo("one").await, peers::echo("two").await);
    let mut server = Server::start(set("1", one)).await;
    let running = Running::start(ProxyOptions {
        xds: Some(server.client()),
        ..Default::default()
    });

    running.handle.ready().await;
    let at = running.at("in").await;
    says(at, "one").await;

    server.resources.send_replace(Some(Arc::new(set("2", two))));
    says(at, "two").await;

    // One resource is refused, with its reason; everything else serves on.
    let mut bad = set("3", two);
    let mut broken = listener("in", vec![tcp_chain("up")]);
    broken.filter_chains[0].filters.clear();
    bad.insert(LISTENER, "in", "3", pack(&broken));
    server.resources.send_replace(Some(Arc::new(bad)));
    let refusal = loop {
        let verdict = server.verdicts.recv().await.expect("the server lives");
        let text = format!("{verdict:?}");
        if text.contains("in: filter_chains[0]") {
            break text;
        }
    };

    assert!(refusal.contains("Listener"), "{refusal}");
    says(at, "two").await;
    assert!(
        running
            .handle
            .status()
            .await
            .refusals
            .contains_key(LISTENER)
    );

    server.task.abort();
    drop(server);
    for _ in 0..500 {
        if !running.handle.status().await.connected {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    says(at, "two").await;
}

#[tokio::test]
async fn a_listener_waits_for_its_routes_and_a_cluster_for_its_endpoints() {
    let up = peers::echo("up").await;
    let whole = set("1", up);
    let mut part = ResourceSet::new();

    part.insert(CLUSTER, "up", "1", pack(&eds_cluster("up")));
    part.insert(
        LISTENER,
        "in",
        "1",
        pack(&listener("in", vec![http_chain(&manager(rds("9080")))])),
    );

    let server = Server::start(part).await;
    let running = Running::start(ProxyOptions {
        xds: Some(server.client()),
        ..Default::default()
    });

    server.resources.send_replace(Some(Arc::new(whole)));
    running.handle.ready().await;
    says(running.at("in").await, "up").await;
}

#[tokio::test]
async fn what_the_bootstrap_does_not_discover_is_neither_asked_for_nor_awaited() {
    let up = peers::echo("up").await;
    let server = Server::start(set("1", up)).await;
    let listeners = vec![listener("own", vec![http_chain(&manager(rds("9080")))])];
    let running = Running::start(ProxyOptions {
        xds: Some(server.client()),
        discover: Discover {
            listeners: false,
            ..Default::default()
        },
        bootstrap: Some(
            Bootstrap::compile(&bootstrap::Bootstrap {
                static_resources: Some(bootstrap::bootstrap::StaticResources {
                    listeners,
                    ..Default::default()
                }),
                ..Default::default()
            })
            .expect("compiles"),
        ),
        ..Default::default()
    });

    running.handle.ready().await;
    says(running.at("own").await, "up").await;
    let served: Vec<_> = running
        .handle
        .addresses()
        .await
        .into_iter()
        .map(|(name, _)| name)
        .collect();

    assert_eq!(
        served,
        ["own".into()],
        "the server's listener was not asked for"
    );
}
