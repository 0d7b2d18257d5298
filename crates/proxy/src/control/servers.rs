//! Servers of configuration that the bootstrap names as static clusters: how to connect to one.

use meltemi_proto::envoy::config::core::v3::Node;
use meltemi_proxy_config::Address;
use meltemi_proxy_config::cluster::{Cluster, Discovery};
use meltemi_proxy_config::tls::UpstreamTransport;
use meltemi_xds::{ClientConfig, Connection, Variant};
use tonic::transport::Endpoint;

/// The client of an xDS server that a static cluster names; it subscribes to nothing yet. The
/// server must be reachable in plaintext over TCP or a Unix socket: an agent beside the proxy holds
/// the identity.
///
/// # Errors
///
/// Says what the cluster lacks, to follow the cluster's place in the bootstrap.
pub fn client_of(cluster: &Cluster, delta: bool, node: Node) -> Result<ClientConfig, String> {
    if !matches!(cluster.transport, UpstreamTransport::Plaintext) {
        return Err(
            "a transport_socket towards the server of configuration is not supported; \
                    use an agent or a Unix socket"
                .to_owned(),
        );
    }

    let server = match address(cluster).ok_or("has no endpoint; it needs a load_assignment")? {
        Address::Pipe(path) => format!("unix:{path}"),
        Address::Socket(address) => format!("http://{address}"),
        Address::Name(name, port) => format!("http://{name}:{port}"),
        Address::Internal(name) => {
            return Err(format!(
                "internal listener {name:?}: the endpoint must be a socket_address or a pipe"
            ));
        }
    };

    let endpoint = Endpoint::from_shared(server)
        .map_err(|error| error.to_string())?
        .connect_timeout(cluster.connect_timeout);
    let connector = move || {
        let endpoint = endpoint.clone();
        async move { Ok(Connection::from(endpoint.connect().await?)) }
    };

    let mut config = ClientConfig::new(connector, node, Vec::new());
    if !delta {
        config.variant = Variant::Sotw;
    }

    Ok(config)
}

fn address(cluster: &Cluster) -> Option<&Address> {
    match &cluster.discovery {
        Discovery::Static(set) | Discovery::StrictDns(set, _) | Discovery::LogicalDns(set, _) => {
            Some(&set.endpoints.first()?.address)
        }
        Discovery::Eds(_) | Discovery::OriginalDst(_) => None,
    }
}
