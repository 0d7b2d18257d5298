//! `run`, `logs`, `exec`: what goes on inside workloads.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, anyhow, bail};
use meltemi_node::api::{Run, Target};
use meltemi_node::{ClientError, ProxyKind};
use meltemi_types::Labels;

use crate::args::{ExecArgs, LogsArgs, RunArgs, WorkloadArgs};
use crate::mesh::Mesh;
use crate::names;
use crate::output::{bytes, line, note};

fn target(namespace: &str, name: &str) -> Target {
    Target { namespace: namespace.to_owned(), name: names::workload(name).to_owned() }
}

/// A failure of the node; where a name is wrong, with the names that there are.
async fn explained(mesh: &Mesh, namespace: &str, error: ClientError) -> anyhow::Error {
    let ClientError::NotFound(message) = &error else { return mesh.node_error(error) };
    let all = mesh.node().list().await.unwrap_or_default();
    let here: BTreeSet<String> =
        all.into_iter().filter(|one| one.key.namespace == namespace).map(|one| one.workload).collect();
    match here.len() {
        0 => anyhow!("{message}"),
        _ => anyhow!("{message}; there: {}", here.into_iter().collect::<Vec<_>>().join(", ")),
    }
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
    let print = async {
        let mut output = mesh.node().logs(target(&args.namespace, &args.workload), proxy, tail, args.follow).await?;
        while let Some(piece) = output.output().await? {
            if let Err(error) = bytes(&piece) {
                return Ok(Err(error));
            }
        }
        Ok(Ok(0))
    };
    match print.await {
        Ok(outcome) => outcome,
        Err(error) => Err(explained(mesh, &args.namespace, error).await),
    }
}

pub(crate) async fn exec(mesh: &Mesh, args: ExecArgs) -> Result<i32> {
    let env = std::env::var("TERM").map(|term| ("TERM".to_owned(), term));
    match mesh.node().exec(target(&args.namespace, &args.workload), args.command, env.into_iter().collect()).await {
        Ok(code) => Ok(code),
        Err(error) => Err(explained(mesh, &args.namespace, error).await),
    }
}

pub(crate) async fn stop(mesh: &Mesh, args: WorkloadArgs) -> Result<i32> {
    match mesh.node().stop(target(&args.namespace, &args.workload)).await {
        Ok(done) => line(done).map(|()| 0),
        Err(error) => Err(explained(mesh, &args.namespace, error).await),
    }
}

pub(crate) async fn restart(mesh: &Mesh, args: WorkloadArgs) -> Result<i32> {
    match mesh.node().restart(target(&args.namespace, &args.workload), None).await {
        Ok(done) => line(done).map(|()| 0),
        Err(error) => Err(explained(mesh, &args.namespace, error).await),
    }
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
