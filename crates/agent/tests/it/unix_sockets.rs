//! What Envoy would see on its two sockets.

use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use meltemi_agent::envoy::serve_sockets;
use meltemi_agent::{AgentMetrics, ControlPlane};
use meltemi_ca::CertificateAuthority;
use meltemi_proto::discovery::{
    AggregatedDiscoveryServiceClient, DeltaDiscoveryRequest, DiscoveryRequest,
    SecretDiscoveryServiceClient,
};
use meltemi_proto::envoy::config::core::v3::{Node, data_source::Specifier};
use meltemi_proto::envoy::extensions::transport_sockets::tls::v3::{
    Secret as SecretResource, secret::Type,
};
use meltemi_proto::{type_url, unpack};
use meltemi_tls::{DEFAULT_SECRET, Identity, ROOT_SECRET, Secret, SecretStore, TrustBundle};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use crate::peers::{Peers, sleep_id, until};

#[derive(Clone)]
struct ToSocket(PathBuf);

impl tower_service::Service<http::Uri> for ToSocket {
    type Response = TokioIo<UnixStream>;
    type Error = std::io::Error;
    type Future =
        std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;
    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }
    fn call(&mut self, _: http::Uri) -> Self::Future {
        let path = self.0.clone();
        Box::pin(async move { Ok(TokioIo::new(UnixStream::connect(path).await?)) })
    }
}

async fn channel(path: PathBuf) -> Channel {
    Endpoint::from_static("http://envoy")
        .connect_with_connector(ToSocket(path))
        .await
        .expect("connected")
}

pub(crate) fn certificate(authority: &CertificateAuthority) -> Identity {
    let key = rcgen::KeyPair::generate().expect("key");
    let csr = rcgen::CertificateParams::default()
        .serialize_request(&key)
        .expect("CSR")
        .pem()
        .expect("PEM");

    let chain = authority
        .sign(&csr, &sleep_id(), None, Duration::ZERO)
        .expect("signed");

    Identity::from_pem(chain[0].as_bytes(), key.serialize_pem().as_bytes()).expect("an identity")
}

fn sockets(
    peers: &Peers,
    secrets: &SecretStore,
    control_plane: ControlPlane,
) -> (PathBuf, PathBuf, watch::Sender<usize>) {
    let (xds, sds) = (peers.folder().join("XDS"), peers.folder().join("SDS"));
    let streams = watch::Sender::new(0);
    let served = serve_sockets(
        &xds,
        &sds,
        control_plane,
        secrets.clone(),
        AgentMetrics::default(),
        streams.clone(),
    )
    .expect("bound");

    tokio::spawn(served);

    (xds, sds, streams)
}

#[tokio::test]
async fn secrets_are_served_in_both_variants_and_updated() {
    let peers = Peers::start().await;
    let secrets = SecretStore::new();
    let (_, sds, _) = sockets(&peers, &secrets, peers.control_plane(&secrets));
    let mut client = SecretDiscoveryServiceClient::new(channel(sds).await);

    let (delta, requests) = mpsc::channel(8);
    let subscribe = DeltaDiscoveryRequest {
        node: Some(Node {
            id: "envoy".into(),
            ..Node::default()
        }),
        type_url: type_url::SECRET.into(),
        resource_names_subscribe: vec![DEFAULT_SECRET.into()],
        ..DeltaDiscoveryRequest::default()
    };

    delta.send(subscribe).await.expect("sent");

    // The subscription comes before the certificate does: it waits.
    let opening = client.delta_secrets(ReceiverStream::new(requests));
    let mut inbound = opening.await.expect("a stream").into_inner();
    let first = certificate(&peers.authority);

    secrets.set(
        ROOT_SECRET,
        Secret::trust(
            TrustBundle::from_pem(peers.authority.roots_pem().as_bytes()).expect("roots"),
        ),
    );

    secrets.set(DEFAULT_SECRET, Secret::identity(first.clone()));

    let mut serials = Vec::new();
    for round in 0..2 {
        let response = inbound
            .message()
            .await
            .expect("a response")
            .expect("the stream lives");

        assert!(response.removed_resources.is_empty());
        let secret: SecretResource =
            unpack(response.resources[0].resource.as_ref().expect("a resource")).expect("a secret");
        let Some(Type::TlsCertificate(tls)) = secret.r#type else {
            panic!("{:?}", secret.name)
        };
        let bytes =
            |source: Option<meltemi_proto::envoy::config::core::v3::DataSource>| match source
                .and_then(|source| source.specifier)
            {
                Some(Specifier::InlineBytes(bytes)) => bytes,
                other => panic!("{other:?}"),
            };

        let identity = Identity::from_pem(&bytes(tls.certificate_chain), &bytes(tls.private_key))
            .expect("chain and key belong together");
        serials.push(identity.info().serial.clone());
        let ack = DeltaDiscoveryRequest {
            type_url: type_url::SECRET.into(),
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        };

        delta.send(ack).await.expect("sent");
        if round == 0 {
            secrets.set(
                DEFAULT_SECRET,
                Secret::identity(certificate(&peers.authority)),
            );
        }
    }

    assert!(serials[0] == first.info().serial && serials[1] != serials[0]);

    let (sotw, requests) = mpsc::channel(8);
    let subscribe = DiscoveryRequest {
        node: Some(Node {
            id: "envoy".into(),
            ..Node::default()
        }),
        type_url: type_url::SECRET.into(),
        resource_names: vec![ROOT_SECRET.into()],
        ..DiscoveryRequest::default()
    };

    sotw.send(subscribe).await.expect("sent");
    let mut inbound = client
        .stream_secrets(ReceiverStream::new(requests))
        .await
        .expect("a stream")
        .into_inner();

    let response = inbound
        .message()
        .await
        .expect("a response")
        .expect("the stream lives");

    let secret: SecretResource = unpack(&response.resources[0]).expect("a secret");
    assert!(
        secret.name == ROOT_SECRET && matches!(secret.r#type, Some(Type::ValidationContext(_)))
    );
}

/// A DestinationRule's `caCertificates`, and the machine's own authorities where there are none,
/// are names of files.
#[tokio::test]
async fn roots_that_are_files_are_served_by_name() {
    let peers = Peers::start().await;
    let secrets = SecretStore::new();
    secrets.set(
        DEFAULT_SECRET,
        Secret::identity(certificate(&peers.authority)),
    );

    let file = peers.folder().join("roots.pem");
    std::fs::write(&file, peers.authority.roots_pem()).expect("written");
    let names = [
        format!("file-root:{}", file.display()),
        "file-root:system".to_owned(),
    ];

    let (_, sds, _) = sockets(&peers, &secrets, peers.control_plane(&secrets));
    let mut client = SecretDiscoveryServiceClient::new(channel(sds).await);

    for name in names {
        let (delta, requests) = mpsc::channel(1);
        let subscribe = DeltaDiscoveryRequest {
            node: Some(Node {
                id: "envoy".into(),
                ..Node::default()
            }),
            type_url: type_url::SECRET.into(),
            resource_names_subscribe: vec![name.clone()],
            ..DeltaDiscoveryRequest::default()
        };

        delta.send(subscribe).await.expect("sent");
        let mut inbound = client
            .delta_secrets(ReceiverStream::new(requests))
            .await
            .expect("a stream")
            .into_inner();

        let response = inbound
            .message()
            .await
            .expect("a response")
            .expect("the stream lives");

        let secret: SecretResource =
            unpack(response.resources[0].resource.as_ref().expect("a resource")).expect("a secret");
        let Some(Type::ValidationContext(context)) = secret.r#type else {
            panic!("{:?}", secret.name)
        };
        let Some(Specifier::InlineBytes(roots)) = context.trusted_ca.and_then(|ca| ca.specifier)
        else {
            panic!("{name}")
        };

        let is_there = TrustBundle::from_pem(&roots).is_ok_and(|roots| !roots.is_empty());
        assert!(secret.name == name && is_there, "{name}");
    }
}

#[tokio::test]
async fn discovery_streams_use_the_agents_credential_and_reconnect_after_a_restart() {
    let mut peers = Peers::start().await;
    peers.serve_names("1", &[("a.default.svc.cluster.local", "10.45.0.1")]);
    let secrets = SecretStore::new();
    let (xds, _, streams) = sockets(&peers, &secrets, peers.control_plane(&secrets));
    let mut client = AggregatedDiscoveryServiceClient::new(channel(xds).await);
    let subscribe = || DeltaDiscoveryRequest {
        node: Some(Node {
            id: "sidecar~1.2.3.4~envoy.default~x".into(),
            ..Node::default()
        }),
        type_url: type_url::NAME_TABLE.into(),
        resource_names_subscribe: vec!["*".into()],
        ..DeltaDiscoveryRequest::default()
    };

    for round in 1..=2 {
        let (sender, requests) = mpsc::channel(8);
        sender.send(subscribe()).await.expect("sent");
        let mut inbound = client
            .delta_aggregated_resources(ReceiverStream::new(requests))
            .await
            .expect("a stream")
            .into_inner();

        let response = inbound
            .message()
            .await
            .expect("a response")
            .expect("the stream lives");

        assert_eq!(
            (response.type_url.as_str(), response.resources.len()),
            (type_url::NAME_TABLE, 1)
        );

        assert_eq!(*streams.borrow(), 1);
        assert_eq!(peers.nodes.lock().expect("lock").len(), round);
        if round == 1 {
            peers.stop();
            assert!(
                !matches!(inbound.message().await, Ok(Some(_))),
                "the stream ends with the control plane"
            );

            drop(inbound);
            until("the stream is counted out", async || {
                (*streams.borrow() == 0).then_some(())
            })
            .await;

            let (sender, requests) = mpsc::channel(8);
            sender.send(subscribe()).await.expect("sent");
            let refused = client
                .delta_aggregated_resources(ReceiverStream::new(requests))
                .await
                .expect_err("nobody there");

            assert_eq!(refused.code(), tonic::Code::Unavailable);
            peers.restart().await;
        }
    }
}
