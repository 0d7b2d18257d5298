//! Why a proxy is not ready: secrets that an SDS server has yet to send, and listeners that were
//! refused.

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use meltemi_proto::Any;
use meltemi_proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use meltemi_proto::envoy::config::bootstrap::v3 as bootstrap;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::extensions::filters::http::jwt_authn::v3 as jwt;
use meltemi_proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use meltemi_proto::pack;
use meltemi_proto::type_url::{LISTENER, SECRET};
use meltemi_proxy::ProxyOptions;
use meltemi_proxy_config::bootstrap::Bootstrap;
use meltemi_xds::ResourceSet;
use rcgen::SanType;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

use crate::config::*;
use crate::stats::{administered, page};
use crate::tls::{Authority, common, socket};
use crate::xds::Server;

/// An SDS server as Istio's agent has it: state of the world, and a stream ends with an error where
/// a secret cannot be made. It sends nothing before `open` is true.
struct Sds {
    open: watch::Receiver<bool>,
    chain: String,
    key: String,
    roots: String,
}

impl Sds {
    async fn start(authority: &Authority, open: watch::Receiver<bool>) -> SocketAddr {
        let name = "spiffe://cluster.local/ns/default/sa/server";
        let (chain, key) = authority.pems(SanType::URI(name.try_into().expect("IA5")));
        let sds = Self {
            open,
            chain,
            key,
            roots: authority.roots().to_owned(),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a free port");
        let address = listener.local_addr().expect("bound");
        let serving = tonic::transport::Server::builder()
            .add_service(SecretDiscoveryServiceServer::new(sds))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serving);

        address
    }

    fn secret(&self, name: &str) -> Option<tls::Secret> {
        let inline = |text: &str| {
            Some(core::DataSource {
                specifier: Some(core::data_source::Specifier::InlineString(text.to_owned())),
                ..Default::default()
            })
        };
        let content = match name {
            "default" => tls::secret::Type::TlsCertificate(tls::TlsCertificate {
                certificate_chain: inline(&self.chain),
                private_key: inline(&self.key),
                ..Default::default()
            }),
            "ROOTCA" => tls::secret::Type::ValidationContext(tls::CertificateValidationContext {
                trusted_ca: inline(&self.roots),
                ..Default::default()
            }),
            _ => return None,
        };

        Some(tls::Secret {
            name: name.to_owned(),
            r#type: Some(content),
        })
    }
}

type Outbound<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

#[tonic::async_trait]
impl SecretDiscoveryService for Sds {
    type DeltaSecretsStream = Outbound<DeltaDiscoveryResponse>;
    type StreamSecretsStream = Outbound<DiscoveryResponse>;

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("DeltaSecrets not implemented"))
    }

    async fn fetch_secrets(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("FetchSecrets not implemented"))
    }

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.expect("a first request");
        assert_eq!(first.type_url, SECRET);
        let secrets: Option<Vec<Any>> = first
            .resource_names
            .iter()
            .map(|name| self.secret(name).map(|secret| pack(&secret)))
            .collect();
        let resources = secrets.ok_or_else(|| Status::unknown("failed to generate secret"))?;

        let mut open = self.open.clone();
        let answer = async move {
            // Fails when the test ends.
            let _ = open.wait_for(|open| *open).await;
            Ok(DiscoveryResponse {
                type_url: SECRET.to_owned(),
                version_info: "1".to_owned(),
                nonce: "1".to_owned(),
                resources,
                ..Default::default()
            })
        };
        // What follows are the proxy's acknowledgements.
        let rest = futures_util::stream::unfold(requests, |mut requests| async move {
            while let Ok(Some(_)) = requests.message().await {}
            None
        });

        Ok(Response::new(Box::pin(
            futures_util::stream::once(answer).chain(rest),
        )))
    }
}

/// A listener that wants a certificate and roots from the cluster `sds-grpc`.
fn with_tls() -> meltemi_proto::envoy::config::listener::v3::Listener {
    let mut chain = http_chain(&manager(inline(table("r", vec![forward("/", "up")]))));
    chain.transport_socket = Some(socket(pack(&tls::DownstreamTlsContext {
        common_tls_context: Some(common(&["http/1.1"], &[])),
        ..Default::default()
    })));
    listener("tls", vec![chain])
}

fn listeners(with_bad: bool) -> ResourceSet {
    let mut set = ResourceSet::new();
    set.insert(LISTENER, "tls", "1", pack(&with_tls()));
    if with_bad {
        let mut bad = listener("bad", vec![tcp_chain("up")]);
        bad.filter_chains[0].filters.clear();
        set.insert(LISTENER, "bad", "1", pack(&bad));
    }
    set
}

/// Reads `/ready` until it says this.
async fn ready_says(running: &Running, wanted: &[&str]) {
    let mut last = String::new();
    for _ in 0..500 {
        last = page(running, "/ready").await;
        if wanted.iter().all(|wanted| last.contains(wanted)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("/ready never said {wanted:?}: {last}");
}

fn bootstrap(sds: SocketAddr) -> Bootstrap {
    Bootstrap::compile(&bootstrap::Bootstrap {
        static_resources: Some(bootstrap::bootstrap::StaticResources {
            clusters: vec![static_cluster("sds-grpc", &[sds])],
            ..Default::default()
        }),
        ..Default::default()
    })
    .expect("a good bootstrap")
}

#[tokio::test]
async fn readiness_waits_for_secrets_and_names_each_refused_listener() {
    let (open, opened) = watch::channel(false);
    let sds = Sds::start(&Authority::new(), opened).await;
    let server = Server::start(listeners(true)).await;
    let running = Running::start(ProxyOptions {
        xds: Some(server.client()),
        bootstrap: Some(bootstrap(sds)),
        ..administered()
    });

    let refused = "listener \"bad\" was refused: filter_chains[0]";
    ready_says(
        &running,
        &["INITIALIZING", refused, "listener \"tls\" waits for secret"],
    )
    .await;
    let dump = page(&running, "/config_dump?resource=dynamic_listeners").await;
    assert!(
        dump.contains("error_state") && dump.contains("failed_configuration"),
        "{dump}"
    );
    assert!(
        dump.contains("warming_state") && !dump.contains("active_state"),
        "{dump}"
    );

    // The certificate and the roots come over streams of their own.
    open.send_replace(true);
    running.at("tls").await;
    ready_says(&running, &["INITIALIZING", refused]).await;
    let dump = page(&running, "/config_dump?resource=dynamic_listeners").await;
    assert!(dump.contains("active_state"), "{dump}");

    server
        .resources
        .send_replace(Some(std::sync::Arc::new(listeners(false))));
    ready_says(&running, &["LIVE"]).await;
}

#[tokio::test]
async fn a_ready_proxy_names_listeners_that_deny_tokens_or_serve_an_older_version() {
    let set = |version: &str, is_good: bool| {
        let tokens = http_filter(
            "envoy.filters.http.jwt_authn",
            pack(&jwt::JwtAuthentication::default()),
        );
        let mut manager = manager(inline(table("routes", vec![forward("/", "up")])));
        manager.http_filters.insert(0, tokens);
        let mut served = listener("web", vec![http_chain(&manager)]);
        if !is_good {
            served.filter_chains[0].filters.clear();
        }

        let mut set = ResourceSet::new();
        set.insert(LISTENER, "web", version, pack(&served));
        set
    };

    let server = Server::start(set("1", true)).await;
    let running = Running::start(ProxyOptions {
        xds: Some(server.client()),
        ..administered()
    });
    let denies = "listener \"web\" denies requests with a token";
    ready_says(&running, &["LIVE\n", denies]).await;

    server
        .resources
        .send_replace(Some(std::sync::Arc::new(set("2", false))));
    let older = "listener \"web\" serves an older version: the newest was refused: filter_chains";
    ready_says(&running, &["LIVE\n", denies, older]).await;
}
