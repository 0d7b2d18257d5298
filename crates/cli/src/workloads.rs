//! `run`, `logs`, `exec`: what goes on inside workloads.

use std::io::Write as _;

use anyhow::{Context as _, Result, bail};
use meltemi_node::api::{Run, Target};
use meltemi_node::{Client, ProxyKind};
use meltemi_types::Labels;

use crate::args::{ExecArgs, LogsArgs, RunArgs, WorkloadArgs};

fn node(mesh: &str) -> Client {
    Client::new(&meltemi_node::config::run_dir(mesh))
}

pub(crate) async fn run(mesh: &str, args: RunArgs) -> Result<i32> {
    let proxy = match (args.no_sidecar, args.proxy.as_str()) {
        (true, _) => ProxyKind::None,
        (false, "envoy") => ProxyKind::Envoy,
        (false, _) => ProxyKind::Meltemi,
    };
    let mut env: Vec<(String, String)> = std::env::vars().collect();
    env.extend(pairs(&args.env, "--env")?);
    let run = Run {
        name: args.name,
        app: args.app,
        version: (!args.version.is_empty()).then_some(args.version),
        ports: args.ports,
        namespace: args.namespace,
        service_account: args.service_account,
        replicas: args.replicas,
        labels: Labels::from_iter(pairs(&args.labels, "--labels")?),
        proxy,
        argv: args.command,
        env,
        cwd: std::env::current_dir().context("the working directory is gone")?,
        detach: args.detach,
    };
    let detached = run.detach;
    let (keys, mut output) = node(mesh).run(run).await?;
    for key in &keys {
        eprintln!("workload {} runs in namespace {}", key.pod, key.namespace);
    }
    if detached {
        return Ok(0);
    }
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        tokio::select! {
            piece = output.output() => match piece? {
                Some(bytes) => print(&bytes)?,
                None => return Ok(0),
            },
            // Leaving is what ends it.
            _ = interrupt.recv() => return Ok(0),
            _ = terminate.recv() => return Ok(0),
        }
    }
}

pub(crate) async fn logs(mesh: &str, args: LogsArgs) -> Result<i32> {
    let target = Target { namespace: args.namespace, name: args.workload };
    let proxy = args.container != "app";
    let mut output = node(mesh).logs(target, proxy, args.tail, args.follow).await?;
    while let Some(bytes) = output.output().await? {
        print(&bytes)?;
    }
    Ok(0)
}

pub(crate) async fn exec(mesh: &str, args: ExecArgs) -> Result<i32> {
    let target = Target { namespace: args.namespace, name: args.workload };
    let env = std::env::var("TERM").map(|term| ("TERM".to_owned(), term));
    Ok(node(mesh).exec(target, args.command, env.into_iter().collect()).await?)
}

pub(crate) async fn stop(mesh: &str, args: WorkloadArgs) -> Result<i32> {
    println!("{}", node(mesh).stop(Target { namespace: args.namespace, name: args.workload }).await?);
    Ok(0)
}

pub(crate) async fn restart(mesh: &str, args: WorkloadArgs) -> Result<i32> {
    println!("{}", node(mesh).restart(Target { namespace: args.namespace, name: args.workload }, None).await?);
    Ok(0)
}

fn print(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}

fn pairs(words: &[String], flag: &str) -> Result<Vec<(String, String)>> {
    words
        .iter()
        .flat_map(|word| word.split(if flag == "--labels" { ',' } else { '\0' }))
        .map(|word| match word.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => bail!("{flag} {word:?}: expected KEY=VALUE"),
        })
        .collect()
}
