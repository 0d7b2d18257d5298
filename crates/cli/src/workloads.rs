//! The commands `run`, `logs`, `exec`, `stop` and `restart`, which work on workloads through the
//! node.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use meltemi_node::api::{Run, Target, WorkloadStatus};
use meltemi_node::{ClientError, ProxyKind, WorkloadKey};
use meltemi_types::Labels;

use crate::access_log;
use crate::args::{ExecArgs, LogsArgs, RunArgs, StopArgs, WorkloadArgs};
use crate::mesh::Mesh;
use crate::names;
use crate::output::{bytes, line, note};

fn target(namespace: &str, name: &str) -> Target {
    Target {
        namespace: namespace.to_owned(),
        name: names::workload(name).to_owned(),
    }
}

/// Turns an error of the node into a message. For an unknown workload, the message lists the
/// workloads of the namespace.
async fn explain(mesh: &Mesh, namespace: &str, error: ClientError) -> anyhow::Error {
    let ClientError::NotFound(message) = &error else {
        return mesh.node_error(error);
    };
    let all = mesh.node().list().await.unwrap_or_default();
    let here: BTreeSet<String> = all
        .into_iter()
        .filter(|one| one.key.namespace == namespace)
        .map(|one| one.workload)
        .collect();

    match here.len() {
        0 => anyhow!("{message}"),
        _ => anyhow!(
            "{message}; there: {}",
            here.into_iter().collect::<Vec<_>>().join(", ")
        ),
    }
}

pub(crate) async fn run(mesh: &Mesh, args: RunArgs) -> Result<i32> {
    let proxy = match (args.no_sidecar, args.proxy.as_deref()) {
        (true, _) => Some(ProxyKind::None),
        (false, Some("envoy")) => Some(ProxyKind::Envoy),
        (false, Some(_)) => Some(ProxyKind::Meltemi),
        (false, None) => None,
    };

    if let Some(missing) = missing_program(&args.command) {
        note(format_args!(
            "error: {missing}: no such program; is it installed and on the PATH?"
        ));
        return Ok(PROGRAM_NOT_FOUND);
    }

    let mut env = environment();
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
    let (keys, mut output) = mesh
        .node()
        .run(run)
        .await
        .map_err(|error| mesh.node_error(error))?;

    for key in &keys {
        note(format_args!(
            "workload {} runs in namespace {}",
            key.pod, key.namespace
        ));
    }

    if detached {
        return match args.wait {
            true => await_ready(mesh, &keys).await,
            false => Ok(0),
        };
    }
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;

    loop {
        tokio::select! {
            piece = output.output() => match piece? {
                Some(piece) => bytes(&piece)?,
                None => return Ok(0),
            },
            // The node ends the workload when this client disconnects.
            _ = interrupt.recv() => return Ok(0),
            _ = terminate.recv() => return Ok(0),
        }
    }
}

pub(crate) async fn logs(mesh: &Mesh, args: LogsArgs) -> Result<i32> {
    let proxy = is_proxy(mesh, &args).await?;

    // As with kubectl, a negative number means all lines.
    let tail = usize::try_from(args.tail).ok();
    let print = async {
        let target = target(&args.namespace, &args.workload);
        // What is followed has no end at which a note could stand.
        if args.follow {
            access_log::note_missing(mesh, &target, proxy).await;
        }
        if args.previous {
            let mut output = mesh.node().logs(target, proxy, None, false).await?;
            let mut all = Vec::new();
            while let Some(piece) = output.output().await? {
                all.extend(piece);
            }
            return Ok(match previous_run(&all, tail) {
                Some(output) => bytes(output).map(|()| 0),
                None => Err(anyhow!(
                    "{} has not ended so far, so nothing ran before",
                    args.workload
                )),
            });
        }

        let mut output = mesh
            .node()
            .logs(target.clone(), proxy, tail, args.follow)
            .await?;
        while let Some(piece) = output.output().await? {
            if let Err(error) = bytes(&piece) {
                return Ok(Err(error));
            }
        }
        access_log::note_missing(mesh, &target, proxy).await;

        Ok(Ok(0))
    };

    match print.await {
        Ok(outcome) => outcome,
        Err(error) => Err(explain(mesh, &args.namespace, error).await),
    }
}

/// Whether `--container` names the proxy. Accepts the application's own container name as well.
async fn is_proxy(mesh: &Mesh, args: &LogsArgs) -> Result<bool> {
    match args.container.as_str() {
        "app" => return Ok(false),
        "proxy" | "istio-proxy" => return Ok(true),
        _ => {}
    }

    let name = names::workload(&args.workload);
    let all = mesh
        .node()
        .list()
        .await
        .map_err(|error| mesh.node_error(error))?;

    let workload = all.iter().find(|one| {
        one.key.namespace == args.namespace && (one.workload == name || one.key.pod == name)
    });

    match workload {
        // The request for the log will fail with a better message if there is no such workload.
        Some(workload) if workload.container != args.container => bail!(
            "no container {:?} in {name}; there: {} (app), istio-proxy (proxy)",
            args.container,
            workload.container
        ),
        _ => Ok(false),
    }
}

/// The output of a program's previous run. The node marks each end with a line `meltemi: NAME
/// ended: REASON`, so the previous run is what lies before the last such line and after the one
/// before it. `None` if the program has not ended yet.
fn previous_run(log: &[u8], tail: Option<usize>) -> Option<&[u8]> {
    let is_end = |line: &[u8]| {
        line.starts_with(b"meltemi: ") && String::from_utf8_lossy(line).contains(" ended: ")
    };
    let lines: Vec<&[u8]> = log.split_inclusive(|byte| *byte == b'\n').collect();
    let last = lines.iter().rposition(|line| is_end(line))?;
    let start = lines[..last]
        .iter()
        .rposition(|line| is_end(line))
        .map_or(0, |end| end + 1);

    let start = tail.map_or(start, |tail| start.max(last.saturating_sub(tail)));
    let length = |lines: &[&[u8]]| lines.iter().map(|line| line.len()).sum::<usize>();
    let offset = length(&lines[..start]);

    Some(&log[offset..offset + length(&lines[start..last])])
}

/// Exit code that shells use for a program that is not found.
const PROGRAM_NOT_FOUND: i32 = 127;

/// Returns the program of a command line if it does not exist, so that the user learns of it at
/// once instead of from a workload that fails again and again.
fn missing_program(command: &[String]) -> Option<&str> {
    let program = command.first()?;
    let is_there = |path: &std::path::Path| path.is_file();
    let found = match program.contains('/') {
        true => is_there(program.as_ref()),
        false => std::env::split_paths(&std::env::var_os("PATH")?)
            .any(|dir| is_there(&dir.join(program))),
    };
    (!found).then_some(program)
}

pub(crate) async fn exec(mesh: &Mesh, args: ExecArgs) -> Result<i32> {
    let env = std::env::var("TERM").map(|term| ("TERM".to_owned(), term));
    match mesh
        .node()
        .exec(
            target(&args.namespace, &args.workload),
            args.command,
            env.into_iter().collect(),
        )
        .await
    {
        Ok(code) => Ok(code),
        Err(error) => Err(explain(mesh, &args.namespace, error).await),
    }
}

pub(crate) async fn stop(mesh: &Mesh, args: StopArgs) -> Result<i32> {
    let StopArgs {
        workload: WorkloadArgs {
            workload,
            namespace,
        },
        wait,
    } = args;

    let done = match mesh.node().stop(target(&namespace, &workload)).await {
        Ok(done) => done,
        Err(error) => return Err(explain(mesh, &namespace, error).await),
    };
    if wait {
        let is_own = |status: &WorkloadStatus| {
            status.key.namespace == namespace
                && (status.workload == workload || status.key.pod == workload)
        };
        let gone = async || Ok(!mesh.node().list().await?.iter().any(is_own));
        if !wait_until(gone).await? {
            bail!("{workload} still runs after {PATIENCE:?}; `meltemi status` shows it");
        }
    }

    line(done).map(|()| 0)
}

/// How long `run` and `stop` wait.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks again and again; false if the time is up.
async fn wait_until(mut holds: impl AsyncFnMut() -> Result<bool>) -> Result<bool> {
    let end = Instant::now() + PATIENCE;
    while !holds().await? {
        if Instant::now() > end {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    Ok(true)
}

/// How long a program must outlive its start. A program that fails on a wrong argument or a taken
/// port ends within this time, after the moment in which it counts as ready.
const SETTLE: Duration = Duration::from_millis(500);

/// Waits until every replica receives traffic and its program has outlived [`SETTLE`]. A program
/// that ends is told at once: it will be started again, and may end again.
async fn await_ready(mesh: &Mesh, keys: &[WorkloadKey]) -> Result<i32> {
    let replicas = async || -> Result<Vec<WorkloadStatus>> {
        let mut all = mesh.node().list().await?;
        all.retain(|status| keys.contains(&status.key));
        Ok(all)
    };
    let has_failed = |status: &WorkloadStatus| !status.ready || ended(status).is_some();

    let in_time = wait_until(async || {
        let all = replicas().await?;
        Ok(all
            .iter()
            .all(|status| status.ready || ended(status).is_some()))
    })
    .await?;

    let mut last = replicas().await?;
    if !last.iter().any(has_failed) {
        tokio::time::sleep(SETTLE).await;
        last = replicas().await?;
    }

    let mut code = 0;
    for status in last.iter().filter(|status| has_failed(status)) {
        code = 1;
        let pod = &status.key.pod;
        let why = match (ended(status), &status.message) {
            (Some(how), _) => {
                format!("its program ended: {how}; `meltemi logs {pod}` shows its output")
            }
            (None, Some(message)) => message.clone(),
            (None, None) => format!("`meltemi status` and `meltemi logs {pod}` show more"),
        };
        let since = if in_time { "" } else { " within 30s" };
        note(format_args!("error: {pod} is not ready{since}: {why}"));
    }

    Ok(code)
}

/// How the program ended, if it has ended since its start.
fn ended(status: &WorkloadStatus) -> Option<&str> {
    status.app.as_ref()?.last_exit.as_deref()
}

pub(crate) async fn restart(mesh: &Mesh, args: WorkloadArgs) -> Result<i32> {
    match mesh
        .node()
        .restart(target(&args.namespace, &args.workload), None)
        .await
    {
        Ok(done) => line(done).map(|()| 0),
        Err(error) => Err(explain(mesh, &args.namespace, error).await),
    }
}

/// This process's environment. Variables that are not UTF-8 are left out with a warning, since the
/// protocol is JSON.
fn environment() -> Vec<(String, String)> {
    let text = |(name, value): (OsString, OsString)| {
        let shown = name.display().to_string();
        let pair = name.into_string().ok().zip(value.into_string().ok());
        if pair.is_none() {
            note(format_args!(
                "warning: the variable {shown} is not UTF-8 and is left out"
            ));
        }
        pair
    };

    std::env::vars_os().filter_map(text).collect()
}

/// Parses `KEY=VALUE` words. As in kubectl, `--labels` takes several pairs separated by commas.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_previous_run_lies_between_the_last_two_ends() {
        let log = b"one\nmeltemi: web ended: exit code 1\ntwo\nthree\nmeltemi: web ended: exit code 1\nfour\n";
        assert_eq!(previous_run(log, None), Some(&b"two\nthree\n"[..]));
        assert_eq!(previous_run(log, Some(1)), Some(&b"three\n"[..]));
        assert_eq!(previous_run(&log[..37], None), Some(&b"one\n"[..]));
        assert_eq!(previous_run(b"one\n", None), None);
    }

    #[test]
    fn a_missing_program_is_detected_before_it_runs() {
        let missing = |word: &str| missing_program(&[word.to_owned()]).is_some();
        assert!(!missing("sh") && !missing("/bin/sh"));
        assert!(
            missing("no-such-program-anywhere") && missing("/no/such/program") && missing("/tmp/")
        );
    }
}
