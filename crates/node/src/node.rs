//! The node process: sets up the network, starts the control plane, and keeps the running workloads
//! equal to the configured ones.

mod api_server;
mod exec;
mod forward;
mod reconcile;
mod requests;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use meltemi_ca::TokenSigner;
use meltemi_redirect::{RouterPlan, apply};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use self::reconcile::{announce_ready, reconcile, wanted_workloads};
use self::state::Node;
use crate::addresses::Addresses;
use crate::config::NodeConfig;
use crate::context::Context;
use crate::dialler::Dialler;
use crate::events::Event;
use crate::network::{DOMAIN, POD_PREFIX, PROXY_RESOLVER, RELAY_PORT, ROUTER, inside, pods};
use crate::relay::Relay;
use crate::resolver::Resolver;
use crate::services::Services;
use crate::{
    control, gateways, host_sockets, image_files, kernel, links, objects, relay, reporter,
    service_ports, services, settings,
};

/// Exit code of a node whose channel to the supervisor closed.
pub(crate) const SUPERVISOR_GONE: i32 = 3;

/// Runs the node until SIGTERM or a failure; returns the exit code.
pub(crate) fn run(config: NodeConfig, channel: OwnedFd) -> i32 {
    log_to_file(&config);
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(_) => return 1,
    };

    runtime.block_on(async {
        let Ok((dialler, supervisor)) = Dialler::start(channel) else {
            return 1;
        };
        let outcome = tokio::select! {
            outcome = serve(config, Arc::clone(&dialler)) => outcome,
            _ = supervisor => return SUPERVISOR_GONE,
        };

        match outcome {
            Ok(()) => 0,
            Err(error) => {
                dialler.show(Event::Failed(format!("{error:#}"))).await;
                1
            }
        }
    })
}

fn log_to_file(config: &NodeConfig) {
    if let Ok(file) = std::fs::File::options()
        .create(true)
        .append(true)
        .open(config.run_dir.join("node.log"))
    {
        let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into());
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
            .with_ansi(false)
            // A full disk must not make tracing print to the user's terminal.
            .log_internal_errors(false)
            .with_writer(Mutex::new(file))
            .try_init();
    }
}

/// Removes the Pod files and sockets of an earlier node that was killed: its pods run no more.
fn remove_leftovers(config: &NodeConfig) -> std::io::Result<()> {
    let pods = std::fs::read_dir(config.pods_dir())?
        .flatten()
        .map(|entry| entry.path());
    for path in pods.chain(["node.sock", "host.sock"].map(|name| config.run_dir.join(name))) {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }

    Ok(())
}

async fn serve(config: NodeConfig, dialler: Arc<Dialler>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    set_up_network()?;
    remove_leftovers(&config).context("removing what an earlier node left")?;
    std::fs::write(
        config.objects_dir().join("gateways.yaml"),
        if config.gateways {
            gateways::OBJECTS
        } else {
            ""
        },
    )?;

    std::fs::write(config.objects_dir().join("mesh.yaml"), settings::OBJECTS)?;
    let view = objects::ConfigView::start(&config).context("reading the configuration")?;
    let mut worlds = view.worlds();
    worlds
        .wait_for(|world| world.is_ready())
        .await
        .context("reading the configuration")?;

    let applied = objects::applied(&worlds.borrow(), &config);
    dialler.show(Event::Applied(applied)).await;

    let services = services::follow(view.worlds());
    start_relay(&dialler, &services).await?;
    start_resolvers(&dialler, &services).await?;
    tokio::spawn(reporter::report(
        view.worlds(),
        Arc::clone(&dialler),
        reporter::Folders {
            own: config.run_dir.clone(),
            applied: config.applied_dir(),
        },
    ));
    let mut images = image_files::follow(
        config.image_files.clone(),
        config.images.clone(),
        Arc::clone(&dialler),
    );

    let signer = load_token_signer(&config)?;
    let (control_up, control_ready) = watch::channel(false);

    // Child environments are passed on as JSON, which has no place for bytes that are not UTF-8.
    let base_env = std::env::vars_os()
        .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
        .collect();
    let context = Arc::new(Context {
        config,
        dialler: Arc::clone(&dialler),
        signer,
        services,
        worlds: view.worlds(),
        published: Mutex::default(),
        control_ready,
        is_stopping: AtomicBool::new(false),
        base_env,
    });

    let node = Node::new(Arc::clone(&context));
    tokio::spawn(control::keep_running(Arc::clone(&context), control_up));
    host_sockets::start(&context)?;
    service_ports::start(&context).await;
    api_server::start(Arc::clone(&node))?;
    dialler.show(Event::NodeUp).await;

    let mut addresses = Addresses::load(&context.config.state_dir.join("addresses.json"));
    let mut reported = BTreeSet::new();
    let mut is_announcing = false;

    loop {
        let world = worlds.borrow_and_update().clone();
        let maps = images.borrow_and_update().clone();
        let wanted = wanted_workloads(&node, &world, &maps, &mut reported).await;

        reconcile(&node, wanted, &mut addresses, is_announcing).await;

        // Only the workloads of the start are announced, so their list is taken after the first
        // round.
        if !is_announcing {
            is_announcing = true;
            tokio::spawn(announce_ready(Arc::clone(&node)));
        }

        tokio::select! {
            changed = worlds.changed() => changed.context("the configuration is no longer followed")?,
            () = node.changed.notified() => {}
            Ok(()) = images.changed() => {}
            _ = terminate.recv() => break,
        }
    }

    // Wanting nothing stops every workload.
    node.context.is_stopping.store(true, Ordering::Relaxed);
    let count = node.state().handles.len();
    dialler.show(Event::Stopping(count)).await;
    reconcile(&node, BTreeMap::new(), &mut addresses, false).await;

    Ok(())
}

/// Creates the bridge, checks that workloads can be connected to it, and applies the router's
/// redirect rules.
fn set_up_network() -> anyhow::Result<()> {
    links::set_up_router(ROUTER, POD_PREFIX, PROXY_RESOLVER)
        .map_err(|e| anyhow::anyhow!(kernel::explain_router(&e)))?;
    kernel::check().map_err(anyhow::Error::msg)?;

    let plan = RouterPlan {
        bridge: links::BRIDGE,
        pods: pods(),
        relay_port: RELAY_PORT,
        dns_port: 53,
    };
    apply(&plan.rules())?;

    Ok(())
}

/// Starts the relay for connections that leave the mesh.
async fn start_relay(
    dialler: &Arc<Dialler>,
    services: &watch::Receiver<Arc<Services>>,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", RELAY_PORT))
        .await
        .context("binding the relay's port")?;
    let relay = Relay {
        dialler: Arc::clone(dialler),
        inside: inside(),
        services: services.clone(),
        turn: AtomicUsize::new(0),
    };
    tokio::spawn(relay::serve(listener, relay));

    Ok(())
}

/// Starts the node's DNS server on every address of the router.
async fn start_resolvers(
    dialler: &Arc<Dialler>,
    services: &watch::Receiver<Arc<Services>>,
) -> anyhow::Result<()> {
    // One socket per address: a UDP answer from a socket bound to 0.0.0.0 could leave from another
    // address than the one that was queried, and clients would drop it.
    for address in [ROUTER, PROXY_RESOLVER, std::net::Ipv4Addr::LOCALHOST] {
        let resolver = Resolver {
            services: services.clone(),
            dialler: Arc::clone(dialler),
            domain: DOMAIN.into(),
        };

        resolver
            .start(SocketAddr::from((address, 53)))
            .await
            .context("binding the resolver's port")?;
    }

    Ok(())
}

/// Loads the key that signs workload tokens, creating it at the first start, and writes the
/// public key for the control plane.
fn load_token_signer(config: &NodeConfig) -> anyhow::Result<TokenSigner> {
    let key = config.state_dir.join("token-key.pem");
    let signer = TokenSigner::load_or_create(&key).map_err(|error| {
        anyhow::anyhow!("{} can be neither read nor made: {error}", key.display())
    })?;
    std::fs::write(
        config.run_dir.join("token-public.pem"),
        signer.public_key_pem(),
    )?;

    Ok(signer)
}
