//! The role `proxy`: the proxy alone, configured by an Envoy bootstrap file.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail};
use meltemi_cli::ProxyArgs;
use meltemi_proto::envoy::config::bootstrap::v3 as proto;
use meltemi_proto::json::Reflection;
use meltemi_proxy::{Discover, Logs, Proxy, ProxyOptions};
use meltemi_proxy_config::Address;
use meltemi_proxy_config::bootstrap::{Ads, Bootstrap};
use meltemi_xds::ClientConfig;
use prost::Message as _;
use tokio::signal::unix::{SignalKind, signal};

pub(crate) fn proxy(args: ProxyArgs) -> Result<i32> {
    let levels = super::log(match args.envoy.log_level.as_deref() {
        None => "info",
        // Two of Envoy's levels have another name here, or none.
        Some("warning") => "warn",
        Some("critical") => "error",
        Some(level) => level,
    });
    meltemi_tls::install_default();
    let file = args.config.display();
    let mut message = read(&args.config).with_context(|| format!("{file}"))?;
    if let Some(text) = &args.envoy.config_yaml {
        let more = parse(text).context("--config-yaml")?;
        // A protobuf message that is read into another is merged as Envoy merges the two.
        message
            .merge(more.encode_to_vec().as_slice())
            .context("--config-yaml")?;
    }
    let bootstrap =
        Bootstrap::compile(&message).map_err(|rejection| anyhow!("{file}: {rejection}"))?;
    for warning in &bootstrap.warnings {
        tracing::warn!(%warning, "{file}");
    }
    let admin = bootstrap
        .admin
        .as_ref()
        .map(socket)
        .transpose()
        .with_context(|| format!("{file}: admin.address"))?;

    let xds = match &bootstrap.ads {
        Some(ads) => Some(
            server(ads, &bootstrap)
                .with_context(|| format!("{file}: static cluster {:?}", &*ads.cluster))?,
        ),
        None => None,
    };

    if args.validate {
        Proxy::validate(&bootstrap).with_context(|| format!("{file}"))?;
        println!("configuration '{file}' OK");
        return Ok(0);
    }

    let workers = args
        .concurrency
        .or_else(|| std::thread::available_parallelism().ok().map(usize::from))
        .unwrap_or(1);

    let mut options = ProxyOptions {
        node: bootstrap.node.clone(),
        workers,
        admin,
        xds,
        discover: Discover {
            clusters: bootstrap.cds,
            listeners: bootstrap.lds,
        },
        bootstrap: Some(bootstrap),
        logs: Logs::default(),
        levels,
        ..ProxyOptions::default()
    };
    if let Some(seconds) = args.envoy.drain_time_s {
        options.drain_time = Duration::from_secs(seconds);
    }

    let handle = Proxy::start(options).with_context(|| format!("{file}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;

    runtime.block_on(async {
        tokio::spawn(crate::memory::give_back());
        let (mut terminate, mut interrupt) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        );

        for (name, address) in handle.addresses().await {
            tracing::info!(listener = %name, %address, "listening");
        }
        let in_order = tokio::select! {
            _ = terminate.recv() => true,
            _ = interrupt.recv() => true,
            // A client sent `/quitquitquit` to the admin interface, or a thread died.
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

/// Reads a bootstrap in YAML or JSON.
fn read(path: &Path) -> Result<proto::Bootstrap> {
    parse(&std::fs::read_to_string(path).context("cannot read the file")?)
}

fn parse(text: &str) -> Result<proto::Bootstrap> {
    let value: serde_json::Value =
        serde_saphyr::from_str(text).map_err(|error| anyhow!("not YAML: {error}"))?;
    // The reflection data is large: drop it as soon as the file is parsed.
    Reflection::new()?
        .from_json(&value)
        .context("not an Envoy bootstrap")
}

fn socket(address: &Address) -> Result<SocketAddr> {
    match address {
        Address::Socket(address) => Ok(*address),
        other => bail!("{other:?}: only an IP address and port are supported here"),
    }
}

/// The client of the ADS server.
fn server(ads: &Ads, bootstrap: &Bootstrap) -> Result<ClientConfig> {
    let cluster = bootstrap
        .clusters
        .iter()
        .find(|cluster| cluster.value.name == ads.cluster)
        .context("does not exist")?;

    meltemi_proxy::client_of(&cluster.value, ads.delta, bootstrap.node.clone()).map_err(Error::msg)
}
