//! The proxy alone, from an Envoy bootstrap file.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use meltemi_cli::ProxyArgs;
use meltemi_proto::envoy::config::bootstrap::v3::Bootstrap;
use meltemi_proto::envoy::config::core::v3::{Address, address, api_config_source, grpc_service, socket_address};
use meltemi_proto::json::Reflection;
use meltemi_proxy::{Logs, Proxy, ProxyOptions};
use meltemi_xds::{ClientConfig, Connection, Variant};
use tokio::signal::unix::{SignalKind, signal};
use tonic::transport::Endpoint;

pub(crate) fn proxy(args: ProxyArgs) -> Result<i32> {
    let levels = super::log("info");
    meltemi_tls::install_default();
    let file = args.config.display();
    let bootstrap = read(&args.config).with_context(|| format!("{file}"))?;
    if args.validate {
        meltemi_proxy_config::bootstrap::Bootstrap::compile(&bootstrap, &Default::default())
            .map_err(|rejection| anyhow::anyhow!("{file}: {rejection}"))?;
        println!("configuration '{file}' OK");
        return Ok(0);
    }
    let admin = match bootstrap.admin.as_ref().and_then(|admin| admin.address.as_ref()) {
        Some(address) => Some(socket(address).with_context(|| format!("{file}: admin.address"))?),
        None => None,
    };
    let xds = server(&bootstrap).with_context(|| format!("{file}: dynamic_resources.ads_config"))?;
    let workers = args.concurrency.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
    let options = ProxyOptions {
        node: bootstrap.node.clone().unwrap_or_default(),
        workers,
        admin,
        xds,
        bootstrap: Some(bootstrap),
        logs: Logs::default(),
        levels,
        ..ProxyOptions::default()
    };
    let handle = Proxy::start(options).with_context(|| format!("{file}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        for (name, address) in handle.addresses().await {
            tracing::info!(listener = %name, %address, "listening");
        }
        let in_order = tokio::select! {
            _ = terminate.recv() => true,
            _ = interrupt.recv() => true,
            // `/quitquitquit` on the admin interface, or a thread's own end.
            () = ended(&handle) => handle.was_asked_to_end(),
        };
        handle.shutdown(Duration::from_secs(5)).await;
        Ok(i32::from(!in_order))
    })
}

async fn ended(handle: &meltemi_proxy::ProxyHandle) {
    while handle.is_running() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// YAML or JSON, which is YAML.
fn read(path: &Path) -> Result<Bootstrap> {
    let text = std::fs::read_to_string(path).context("cannot read the file")?;
    let value: serde_json::Value =
        serde_saphyr::from_str(&text).map_err(|error| anyhow::anyhow!("not YAML: {error}"))?;
    // The descriptors go as soon as the file is read.
    Reflection::new()?.from_json(&value).context("not an Envoy bootstrap")
}

fn socket(address: &Address) -> Result<SocketAddr> {
    match &address.address {
        Some(address::Address::SocketAddress(socket)) => {
            let port = match socket.port_specifier {
                Some(socket_address::PortSpecifier::PortValue(port)) => {
                    u16::try_from(port).context("port_value is above 65535")?
                }
                _ => bail!("socket_address needs a port_value"),
            };
            let ip: IpAddr =
                if socket.address.is_empty() { Ipv4Addr::UNSPECIFIED.into() } else { socket.address.parse()? };
            Ok((ip, port).into())
        }
        _ => bail!("only socket_address is supported here"),
    }
}

/// The ADS server that the bootstrap names: a static cluster, spoken to in plaintext over TCP or a Unix socket.
fn server(bootstrap: &Bootstrap) -> Result<Option<ClientConfig>> {
    let Some(ads) = bootstrap.dynamic_resources.as_ref().and_then(|dynamic| dynamic.ads_config.as_ref()) else {
        return Ok(None);
    };
    let target = ads.grpc_services.first().and_then(|service| service.target_specifier.as_ref());
    let Some(grpc_service::TargetSpecifier::EnvoyGrpc(grpc)) = target else {
        bail!("grpc_services[0].envoy_grpc.cluster_name must name the server's cluster");
    };
    let clusters = bootstrap.static_resources.as_ref().map_or(&[][..], |resources| &resources.clusters);
    let cluster = clusters
        .iter()
        .find(|cluster| cluster.name == grpc.cluster_name)
        .with_context(|| format!("there is no static cluster {:?}", grpc.cluster_name))?;
    ensure!(
        cluster.transport_socket.is_none(),
        "cluster {:?}: a transport_socket towards the server is not supported; use an agent or a Unix socket",
        cluster.name
    );
    let endpoint = cluster
        .load_assignment
        .iter()
        .flat_map(|assignment| &assignment.endpoints)
        .flat_map(|locality| &locality.lb_endpoints)
        .find_map(|endpoint| match &endpoint.host_identifier {
            Some(meltemi_proto::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier::Endpoint(endpoint)) => {
                endpoint.address.as_ref()?.address.as_ref()
            }
            _ => None,
        })
        .with_context(|| format!("cluster {:?} has no endpoint", cluster.name))?;
    let server = match endpoint {
        address::Address::Pipe(pipe) => format!("unix:{}", pipe.path),
        address::Address::SocketAddress(socket) => match socket.port_specifier {
            Some(socket_address::PortSpecifier::PortValue(port)) => format!("http://{}:{port}", socket.address),
            _ => bail!("cluster {:?}: the endpoint needs a port_value", cluster.name),
        },
        _ => bail!("cluster {:?}: the endpoint must be a socket_address or a pipe", cluster.name),
    };
    let node = bootstrap.node.clone().unwrap_or_default();
    let endpoint = Endpoint::from_shared(server)?.connect_timeout(Duration::from_secs(5));
    let connector = move || {
        let endpoint = endpoint.clone();
        async move { Ok(Connection::from(endpoint.connect().await?)) }
    };
    let mut config = ClientConfig::new(connector, node, Vec::new());
    if ads.api_type() != api_config_source::ApiType::DeltaGrpc {
        config.variant = Variant::Sotw;
    }
    Ok(Some(config))
}
