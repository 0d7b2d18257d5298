//! The role `control`: the control plane, as the node starts it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use meltemi_api::mesh::FixedField;
use meltemi_ca::{CertificateAuthority, JwtTokenReview};
use meltemi_control::ControlOptions;
use meltemi_types::TrustDomain;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Flags that the node passes to the control plane.
#[derive(Debug, Parser)]
pub(crate) struct ControlArgs {
    /// Address to listen on, with Istio's ports.
    #[arg(long)]
    address: IpAddr,
    /// Folder of the socket and of the root certificate that agents trust.
    #[arg(long)]
    run_dir: PathBuf,
    /// Folder of everything that survives a restart.
    #[arg(long)]
    state_dir: PathBuf,
    /// PEM file with the public key that verifies workload tokens.
    #[arg(long)]
    token_key: PathBuf,
    /// Folder of the applied objects.
    #[arg(long)]
    applied: Option<PathBuf>,
    /// Directories of YAML, in order of precedence.
    #[arg(long = "dir")]
    dirs: Vec<PathBuf>,
    /// Serve xDS in plaintext on 15010 as well.
    #[arg(long)]
    plaintext: bool,
}

pub(crate) fn control(args: ControlArgs) -> Result<i32> {
    super::log("info");
    meltemi_tls::install_default();
    let authority =
        CertificateAuthority::self_signed(&args.state_dir.join("ca"), TrustDomain::default())
            .context("cannot open the certificate authority")?;
    let key = std::fs::read_to_string(&args.token_key)
        .with_context(|| format!("cannot read {}", args.token_key.display()))?;
    let tokens =
        JwtTokenReview::new(&key).with_context(|| format!("{}", args.token_key.display()))?;
    let root = authority.roots_pem().to_owned();
    let mut options = ControlOptions::new(args.state_dir, Arc::new(authority), Arc::new(tokens));

    // Directories below the run folder hold objects of the node, all others those of the user.
    (options.runtime, options.config) = args
        .dirs
        .into_iter()
        .partition(|dir| dir.starts_with(&args.run_dir));

    // The node's capture rules redirect to the default ports, so MeshConfig must not change them.
    options.build.mesh_fixed = vec![FixedField::ListenPort, FixedField::InboundListenPort];
    // One machine is a place to try: every request shows in the log unless the user says otherwise.
    Arc::make_mut(&mut options.build.mesh_defaults).access_log_file = "/dev/stdout".to_owned();
    options.secure.set_ip(args.address);
    options.plaintext = args.plaintext.then_some((args.address, 15010).into());
    options.http = Some((args.address, 15014).into());
    options.socket = Some(args.run_dir.join("control.sock"));
    options.server_addresses = vec![args.address];

    // Agents read the file as soon as it exists: rename it into place when it is complete.
    let next = args.run_dir.join("root-cert.pem.next");
    std::fs::write(&next, root)
        .and_then(|()| std::fs::rename(&next, args.run_dir.join("root-cert.pem")))
        .with_context(|| format!("cannot write {}", next.display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;

    runtime.block_on(async {
        tokio::spawn(crate::memory::give_back());
        let stop = CancellationToken::new();
        let (mut terminate, mut interrupt) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        );

        let stop_on_signal = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stop_on_signal.cancel();
        });

        meltemi_control::run(options, stop).await
    })?;

    Ok(0)
}
