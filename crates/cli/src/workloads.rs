//! `run`, `logs`, `exec`: what goes on inside workloads.

use anyhow::{Context as _, Result, bail};
use meltemi_node::ProxyKind;
use meltemi_node::api::{Run, Target};
use meltemi_types::Labels;

use crate::args::{ExecArgs, LogsArgs, RunArgs, WorkloadArgs};
use crate::mesh::Mesh;
use crate::names;
use crate::output::{bytes, line, note};

fn target(namespace: String, name: &str) -> Target {
    Target { namespace, name: names::workload(name).to_owned() }
}

pub(crate) async fn run(mesh: &Mesh, args: RunArgs) -> Result<i32> {
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
    let (keys, mut output) = mesh.node().run(run).await.map_err(|error| mesh.node_error(error))?;
    for key in &keys {
        note(format_args!("workload {} runs in namespace {}", key.pod, key.namespace));
    }
    if detached {
        return Ok(0);
    }
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        tokio::select! {
            piece = output.output() => match piece? {
                Some(piece) => bytes(&piece)?,
                None => return Ok(0),
            },
            // Leaving is what ends it.
            _ = interrupt.recv() => return Ok(0),
            _ = terminate.recv() => return Ok(0),
        }
    }
}

pub(crate) async fn logs(mesh: &Mesh, args: LogsArgs) -> Result<i32> {
    let proxy = args.container != "app";
    // Below zero means all, as with kubectl.
    let tail = usize::try_from(args.tail).ok();
    let output = mesh.node().logs(target(args.namespace, &args.workload), proxy, tail, args.follow).await;
    let mut output = output.map_err(|error| mesh.node_error(error))?;
    while let Some(piece) = output.output().await? {
        bytes(&piece)?;
    }
    Ok(0)
}

pub(crate) async fn exec(mesh: &Mesh, args: ExecArgs) -> Result<i32> {
    let env = std::env::var("TERM").map(|term| ("TERM".to_owned(), term));
    let done = mesh.node().exec(target(args.namespace, &args.workload), args.command, env.into_iter().collect()).await;
    done.map_err(|error| mesh.node_error(error))
}

pub(crate) async fn stop(mesh: &Mesh, args: WorkloadArgs) -> Result<i32> {
    let done = mesh.node().stop(target(args.namespace, &args.workload)).await;
    line(done.map_err(|error| mesh.node_error(error))?)?;
    Ok(0)
}

pub(crate) async fn restart(mesh: &Mesh, args: WorkloadArgs) -> Result<i32> {
    let done = mesh.node().restart(target(args.namespace, &args.workload), None).await;
    line(done.map_err(|error| mesh.node_error(error))?)?;
    Ok(0)
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
