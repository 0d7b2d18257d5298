//! The control plane as the node starts it.

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

/// Flags between the node and its control plane.
#[derive(Debug, Parser)]
pub(crate) struct ControlArgs {
    /// Where it listens, on Istio's ports.
    #[arg(long)]
    address: IpAddr,
    /// Sockets, and the root certificate that agents trust.
    #[arg(long)]
    run_dir: PathBuf,
    /// What outlives it.
    #[arg(long)]
    state_dir: PathBuf,
    /// Public key of the tokens.
    #[arg(long)]
    token_key: PathBuf,
    /// Applied objects; part of the state.
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
    (options.runtime, options.config) = args
        .dirs
        .into_iter()
        .partition(|dir| dir.starts_with(&args.run_dir));

    // The node's capture rules lead to the usual ports.
    options.build.mesh_fixed = vec![FixedField::ListenPort, FixedField::InboundListenPort];
    options.secure.set_ip(args.address);
    options.plaintext = args.plaintext.then_some((args.address, 15010).into());
    options.http = Some((args.address, 15014).into());
    options.socket = Some(args.run_dir.join("control.sock"));
    options.server_addresses = vec![args.address];

    // Whole or not at all: agents read it as soon as it is there.
    let next = args.run_dir.join("root-cert.pem.next");
    std::fs::write(&next, root)
        .and_then(|()| std::fs::rename(&next, args.run_dir.join("root-cert.pem")))
        .with_context(|| format!("cannot write {}", next.display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;

    runtime.block_on(async {
        let stop = CancellationToken::new();
        let (mut terminate, mut interrupt) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        );

        let asked = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            asked.cancel();
        });

        meltemi_control::run(options, stop).await
    })?;

    Ok(0)
}
