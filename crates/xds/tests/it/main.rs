//! Our server and our client over tonic, in one process.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use meltemi_proto::discovery::{AggregatedDiscoveryServiceClient, DeltaDiscoveryRequest};
use meltemi_proto::envoy::config::core::v3::Node;
use meltemi_proto::type_url::{CLUSTER, ENDPOINT};
use meltemi_proto::{Any, pack};
use meltemi_xds::{
    AdsServer, Backoff, Client, ClientConfig, ClientEvent, ClientHandle, Connection, Feed,
    Observer, Opening, ResourceSet, ServerTerms, SessionView, Source, Subscription, TypeStatus,
    Update, Variant, Verdict,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Extensions;
use tonic::metadata::MetadataMap;

struct Everything {
    resources: watch::Receiver<Option<Arc<ResourceSet>>>,
    verdicts: mpsc::UnboundedSender<Verdict>,
    sessions: Arc<Mutex<Vec<Arc<dyn SessionView>>>>,
}

struct Listener(mpsc::UnboundedSender<Verdict>);

impl Observer for Listener {
    fn sent(&mut self, _: &str, _: usize, _: usize, bytes: usize) {
        assert!(bytes > 0);
    }
    fn verdict(&mut self, verdict: &Verdict) {
        _ = self.0.send(verdict.clone());
    }
}

#[tonic::async_trait]
impl Source for Everything {
    async fn admit(&self, metadata: &MetadataMap, _: &mut Extensions) -> Result<(), tonic::Status> {
        match metadata.get("authorization") {
            Some(_) => Ok(()),
            None => Err(tonic::Status::unauthenticated("no token")),
        }
    }

    async fn open(&self, opening: Opening) -> Result<Feed, tonic::Status> {
        assert_eq!(opening.node.id, "me");
        self.sessions
            .lock()
            .expect("no panic")
            .push(opening.session);
        Ok(Feed {
            resources: self.resources.clone(),
            observer: Box::new(Listener(self.verdicts.clone())),
        })
    }
}

struct Server {
    address: SocketAddr,
    resources: watch::Sender<Option<Arc<ResourceSet>>>,
    verdicts: mpsc::UnboundedReceiver<Verdict>,
    sessions: Arc<Mutex<Vec<Arc<dyn SessionView>>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(address: &str, set: Arc<ResourceSet>) -> Self {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (resources, receiver) = watch::channel(Some(set));
        let (verdict_sender, verdicts) = mpsc::unbounded_channel();
        let sessions = Arc::new(Mutex::new(Vec::new()));
        let source = Arc::new(Everything {
            resources: receiver,
            verdicts: verdict_sender,
            sessions: sessions.clone(),
        });

        let service = AdsServer::service(source, ServerTerms::default());
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
            sessions,
            task,
        }
    }

    /// As a SIGKILL would: listener and connections are gone. Dropping the sender ends each stream.
    async fn kill(self) -> SocketAddr {
        self.task.abort();
        _ = self.task.await;
        self.address
    }

    fn status(&self, url: &str) -> TypeStatus {
        let sessions = self.sessions.lock().expect("no panic");
        let status = sessions.last().expect("a stream").status();
        status
            .into_iter()
            .find(|status| status.type_url == url)
            .expect("subscribed")
    }
}

fn endpoint(name: &str) -> Any {
    pack(
        &meltemi_proto::envoy::config::endpoint::v3::ClusterLoadAssignment {
            cluster_name: name.into(),
            ..Default::default()
        },
    )
}

fn cluster(name: &str) -> Any {
    pack(&meltemi_proto::envoy::config::cluster::v3::Cluster {
        name: name.into(),
        ..Default::default()
    })
}

fn world(clusters: &[(&str, &str)]) -> Arc<ResourceSet> {
    let mut set = ResourceSet::new();
    for (name, version) in clusters {
        set.insert(CLUSTER, *name, *version, cluster(name));
        set.insert(ENDPOINT, *name, "1", endpoint(name));
    }
    Arc::new(set)
}

fn client(address: SocketAddr, variant: Variant) -> (ClientHandle, mpsc::Receiver<ClientEvent>) {
    let connect = move || async move {
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}"))?
            .connect()
            .await?;
        let mut connection = Connection::from(channel);
        connection
            .metadata
            .insert("authorization", "Bearer x".parse()?);
        Ok(connection)
    };

    let initial = vec![
        (CLUSTER.to_owned(), Subscription::wildcard()),
        (ENDPOINT.to_owned(), Subscription::names::<String>([])),
    ];

    let node = Node {
        id: "me".into(),
        ..Node::default()
    };

    let backoff = Backoff {
        first: Duration::from_millis(1),
        longest: Duration::from_millis(20),
    };

    Client::spawn(ClientConfig {
        variant,
        backoff,
        ..ClientConfig::new(connect, node, initial)
    })
}

async fn update(events: &mut mpsc::Receiver<ClientEvent>) -> Update {
    loop {
        if let ClientEvent::Update(update) = events.recv().await.expect("the driver lives") {
            return update;
        }
    }
}

fn names(update: &Update) -> Vec<&str> {
    update
        .set
        .iter()
        .map(|resource| resource.name.as_str())
        .collect()
}

async fn a_change_a_refusal_and_a_restart(variant: Variant) {
    let mut server = Server::start("127.0.0.1:0", world(&[("a", "1"), ("b", "1")])).await;
    let (handle, mut events) = client(server.address, variant);
    let first = update(&mut events).await;

    assert_eq!(
        (first.type_url.as_str(), names(&first)),
        (CLUSTER, vec!["a", "b"])
    );

    assert_eq!(first.full, variant == Variant::Sotw);
    handle.subscribe(ENDPOINT, ["a", "b"]);
    handle.ack(CLUSTER, &first.nonce);
    let endpoints = update(&mut events).await;
    assert_eq!(
        (endpoints.type_url.as_str(), names(&endpoints)),
        (ENDPOINT, vec!["a", "b"])
    );

    handle.ack(ENDPOINT, &endpoints.nonce);
    for url in [CLUSTER, ENDPOINT] {
        let verdict = server.verdicts.recv().await.expect("the stream lives");
        assert!(matches!(verdict, Verdict::Acked { type_url, .. } if type_url == url));
    }

    assert!(server.status(CLUSTER).is_synced());

    // A removal and a bad cluster.
    server
        .resources
        .send_replace(Some(world(&[("a", "1"), ("c", "1")])));
    let second = update(&mut events).await;
    assert_eq!(second.removed, ["b"]);
    handle.nack(CLUSTER, &second.nonce, "cluster c is bad");
    let verdict = server.verdicts.recv().await.expect("the stream lives");
    assert!(matches!(verdict, Verdict::Nacked { names, .. } if names == ["c"]));
    assert_eq!(
        server.status(CLUSTER).resources["c"]
            .nack
            .as_ref()
            .expect("refused")
            .reason,
        "cluster c is bad"
    );

    // The server dies and comes back at the same address with a repaired cluster.
    let address = server.kill().await;
    loop {
        // In between the refused removal may come again.
        match events.recv().await.expect("the driver lives") {
            ClientEvent::Disconnected { .. } => break,
            ClientEvent::Update(again) => handle.ack(&again.type_url, &again.nonce),
            ClientEvent::Connected => {}
        }
    }

    let server = Server::start(&address.to_string(), world(&[("a", "1"), ("c", "2")])).await;
    let third = update(&mut events).await;
    assert_eq!(third.type_url, CLUSTER);
    match variant {
        // Only what the client does not hold: it said that it holds a.
        Variant::Delta => assert_eq!(names(&third), ["c"]),
        Variant::Sotw => assert_eq!(names(&third), ["a", "c"]),
    }

    handle.ack(CLUSTER, &third.nonce);
    drop(events);
    drop(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delta_survives_refusal_and_restart() {
    a_change_a_refusal_and_a_restart(Variant::Delta).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_of_the_world_survives_refusal_and_restart() {
    a_change_a_refusal_and_a_restart(Variant::Sotw).await;
}

#[tokio::test]
async fn a_refused_stream_says_why() {
    let server = Server::start("127.0.0.1:0", world(&[])).await;
    let address = server.address;
    let connect = move || async move {
        Ok(Connection::from(
            tonic::transport::Endpoint::from_shared(format!("http://{address}"))?
                .connect()
                .await?,
        ))
    };

    let initial = vec![(CLUSTER.to_owned(), Subscription::wildcard())];
    let (_handle, mut events) = Client::spawn(ClientConfig::new(connect, Node::default(), initial));
    let reason = loop {
        if let ClientEvent::Disconnected { reason } = events.recv().await.expect("the driver lives")
        {
            break reason;
        }
    };

    assert!(reason.contains("no token"), "{reason}");
}

#[tokio::test]
async fn nobody_is_listened_to_before_it_is_known_who_it_is() {
    let server = Server::start("127.0.0.1:0", world(&[])).await;
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", server.address))
        .expect("a URI");
    let mut client =
        AggregatedDiscoveryServiceClient::new(endpoint.connect().await.expect("connected"));

    // The stream never says a word, and is refused all the same.
    let answer = client
        .delta_aggregated_resources(tokio_stream::pending::<DeltaDiscoveryRequest>())
        .await;
    let refusal = match answer {
        Ok(answer) => answer.into_inner().message().await.expect_err("refused"),
        Err(refusal) => refusal,
    };

    assert_eq!(refusal.code(), tonic::Code::Unauthenticated);
}

/// Answers every stream with something new, and ends it as soon as the client has accepted the
/// answer.
#[derive(Default)]
struct Ending(AtomicU64);

/// Holds the resources of a stream until the client's first verdict.
struct UntilVerdict(Option<watch::Sender<Option<Arc<ResourceSet>>>>);

impl Observer for UntilVerdict {
    fn sent(&mut self, _: &str, _: usize, _: usize, _: usize) {}
    fn verdict(&mut self, verdict: &Verdict) {
        assert!(matches!(verdict, Verdict::Acked { .. }));
        self.0 = None;
    }
}

#[tonic::async_trait]
impl Source for Ending {
    async fn admit(&self, _: &MetadataMap, _: &mut Extensions) -> Result<(), tonic::Status> {
        Ok(())
    }

    async fn open(&self, _: Opening) -> Result<Feed, tonic::Status> {
        let version = self.0.fetch_add(1, Ordering::Relaxed).to_string();
        let (sender, resources) = watch::channel(Some(world(&[("a", &version)])));
        Ok(Feed {
            resources,
            observer: Box::new(UntilVerdict(Some(sender))),
        })
    }
}

#[tokio::test]
async fn a_server_that_answers_and_ends_each_stream_is_asked_less_and_less() {
    const FIRST: Duration = Duration::from_millis(8);
    const STREAMS: usize = 7;

    let service = AdsServer::service(Arc::new(Ending::default()), ServerTerms::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let address = listener.local_addr().expect("bound");
    let server = tonic::transport::Server::builder().add_service(service);
    let serving = tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

    let dialled = Arc::new(Mutex::new(Vec::new()));
    let times = dialled.clone();
    let connect = move || {
        times.lock().expect("no panic").push(Instant::now());
        async move {
            let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"))?;
            Ok(Connection::from(endpoint.connect().await?))
        }
    };

    let initial = vec![(CLUSTER.to_owned(), Subscription::wildcard())];
    let (handle, mut events) = Client::spawn(ClientConfig {
        backoff: Backoff {
            first: FIRST,
            longest: Duration::from_secs(60),
        },
        ..ClientConfig::new(connect, Node::default(), initial)
    });
    for _ in 0..STREAMS {
        let answer = tokio::time::timeout(Duration::from_secs(20), update(&mut events));
        let answer = answer.await.expect("an answer");
        handle.ack(&answer.type_url, &answer.nonce);
    }

    // The delay doubles, and is at least half of its bound. Only health makes it short again.
    let dialled = dialled.lock().expect("no panic");
    let last = dialled[STREAMS - 1] - dialled[STREAMS - 2];
    let bound = FIRST * (1 << (STREAMS - 2));
    assert!(last >= bound / 2, "{last:?} after {} answers", STREAMS - 1);
    serving.abort();
}
