//! Serves [`crate::api`] at `RUN/node.sock`.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use meltemi_net::fdpass;
use meltemi_types::Labels;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::api::{Further, PartName, ROUTER_TARGET, Reply, Request, Run, Target};
use crate::child::{self, Output};
use crate::fd_socket::FdSocket;
use crate::launch::LaunchSpec;
use crate::log::Log;
use crate::node::Node;
use crate::programs::app_spec;
use crate::spec::{ContainerPort, NO_ENVOY, Origin, Program, ProxyKind, WorkloadKey, WorkloadSpec};
use crate::workload::{Command, Handle};
use crate::{gateways, host_sockets};

/// Programs that a client left get this long to end by themselves.
const GRACE: Duration = Duration::from_secs(2);
const MAX_REPLICAS: u32 = 100;
const CHUNK: usize = 32 * 1024;

/// Serves for ever.
pub(crate) fn start(node: Arc<Node>) -> anyhow::Result<()> {
    let listener = fdpass::listen_blocking(&node.context.config.run_dir.join("node.sock"))?;
    rustix::io::ioctl_fionbio(&listener, true)?;
    let listener = crate::sys::register(listener)?;
    tokio::spawn(async move {
        loop {
            let Ok(mut ready) = listener.readable().await else { return };
            let Ok(accepted) = ready.try_io(|l| fdpass::accept_blocking(l.get_ref())) else { continue };
            if let Ok(client) = accepted.and_then(FdSocket::new) {
                let node = Arc::clone(&node);
                tokio::spawn(async move {
                    let client = Client { socket: client };
                    if let Err(error) = client.serve(&node).await {
                        tracing::debug!(%error, "a client left");
                    }
                });
            }
        }
    });
    Ok(())
}

/// What a request is answered with when it cannot be done.
struct Refusal {
    not_found: bool,
    message: String,
}

fn refused<T>(message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { not_found: false, message: message.into() })
}

struct Client {
    socket: FdSocket,
}

impl Client {
    async fn send(&self, reply: Reply) -> io::Result<()> {
        self.socket.send(&reply, &[]).await
    }

    /// Ends when the client closes its side; packets of its that nobody expects are dropped.
    async fn left(&self) {
        while let Ok(Some(_)) = self.socket.receive::<Further>().await {}
    }

    async fn serve(self, node: &Arc<Node>) -> io::Result<()> {
        let Some((request, fds)) = self.socket.receive::<Request>().await? else { return Ok(()) };
        let outcome = match request {
            Request::List => Ok(Reply::Workloads(list(node))),
            Request::Problems => {
                let state = node.state.lock().expect("nothing panics while it holds the state");
                Ok(Reply::Problems(state.problems.clone()))
            }
            Request::Logs { target, proxy, tail, follow } => {
                return self.logs(node, &target, proxy, tail, follow).await;
            }
            Request::Exec { target, argv, env } => return self.exec(node, &target, argv, env, fds).await,
            Request::Run(run) => return self.run(node, *run).await,
            Request::Stop(target) => stop(node, &target),
            Request::Restart { target, part } => order(node, &target, |send| {
                if part != Some(PartName::App) {
                    send(Command::RestartProxy(None));
                }
                if part != Some(PartName::Proxy) {
                    send(Command::RestartApp);
                }
            }),
            Request::Proxy { target, kind } => set_proxy(node, &target, kind),
        };
        self.send(outcome.unwrap_or_else(|r| Reply::Refused { not_found: r.not_found, message: r.message })).await
    }

    async fn refuse(&self, refusal: Refusal) -> io::Result<()> {
        self.send(Reply::Refused { not_found: refusal.not_found, message: refusal.message }).await
    }

    async fn logs(
        &self,
        node: &Node,
        target: &Target,
        proxy: bool,
        tail: Option<usize>,
        follow: bool,
    ) -> io::Result<()> {
        let log = match one(node, target).and_then(|key| {
            let state = node.state.lock().expect("nothing panics while it holds the state");
            match state.handles.get(&key) {
                Some(handle) if proxy || handle.spec.app.is_none() => Ok(Arc::clone(&handle.proxy_log)),
                Some(handle) => Ok(Arc::clone(&handle.app_log)),
                None => refused("it has just ended"),
            }
        }) {
            Ok(log) => log,
            Err(refusal) => return self.refuse(refusal).await,
        };
        let offset = tail.map_or(0, |lines| log.tail(lines));
        tokio::select! {
            outcome = self.copy_log(&log, offset, follow) => outcome,
            () = self.left() => Ok(()),
        }
    }

    async fn copy_log(&self, log: &Log, mut offset: u64, follow: bool) -> io::Result<()> {
        loop {
            let (bytes, end) = log.read(offset);
            offset = end;
            for chunk in bytes.chunks(CHUNK) {
                self.send(Reply::Output(chunk.to_vec())).await?;
            }
            if !follow {
                return Ok(());
            }
            log.wait(offset).await;
        }
    }

    async fn exec(
        &self,
        node: &Node,
        target: &Target,
        argv: Vec<String>,
        env: Vec<(String, String)>,
        fds: Vec<OwnedFd>,
    ) -> io::Result<()> {
        let spawned = <[OwnedFd; 3]>::try_from(fds)
            .or_else(|_| refused("exec needs the client's input, output and errors"))
            .and_then(|fds| exec(node, target, argv, env, fds));
        let mut child = match spawned {
            Ok(child) => child,
            Err(refusal) => return self.refuse(refusal).await,
        };
        loop {
            tokio::select! {
                status = child.wait() => {
                    let code = status.map_or(1, |s| s.code().unwrap_or(1));
                    return self.send(Reply::Exited(code)).await;
                }
                further = self.socket.receive::<Further>() => match further {
                    Ok(Some((Further::Signal(signal), _))) => child::signal(&child, signal),
                    _ => {
                        child::stop(child, GRACE).await;
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn run(&self, node: &Arc<Node>, run: Run) -> io::Result<()> {
        let detach = run.detach;
        let keys = match add(node, run) {
            Ok(keys) => keys,
            Err(refusal) => return self.refuse(refusal).await,
        };
        self.send(Reply::Started(keys.clone())).await?;
        if detach {
            return Ok(());
        }
        let outcome = tokio::select! {
            outcome = self.follow(node, &keys) => outcome,
            () = self.left() => Ok(()),
        };
        node.state.lock().expect("nothing panics while it holds the state").runs.retain(|key, _| !keys.contains(key));
        node.changed.notify_one();
        outcome
    }

    /// Output of the first replica, until the workload is stopped.
    async fn follow(&self, node: &Node, keys: &[WorkloadKey]) -> io::Result<()> {
        let Some(first) = keys.first() else { return Ok(()) };
        let started = || {
            let state = node.state.lock().expect("nothing panics while it holds the state");
            state.handles.get(first).map(|handle| Arc::clone(&handle.app_log))
        };
        let log = loop {
            if let Some(log) = started() {
                break log;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let stopped = async {
            while node.state.lock().expect("nothing panics while it holds the state").runs.contains_key(first) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            outcome = self.copy_log(&log, 0, true) => outcome,
            () = stopped => Ok(()),
        }
    }
}

fn list(node: &Node) -> Vec<crate::api::WorkloadStatus> {
    let mut all: Vec<_> = {
        let state = node.state.lock().expect("nothing panics while it holds the state");
        state.handles.values().map(|handle| handle.status.borrow().clone()).collect()
    };
    if let Some(ingress) = all.iter_mut().find(|w| w.origin == Origin::Gateway && w.workload == gateways::INGRESS) {
        ingress.published = host_sockets::published(&node.context);
    }
    all
}

/// Replicas that a name means: a replica's own name first, else all of a Deployment.
fn find(node: &Node, target: &Target) -> Result<Vec<WorkloadKey>, Refusal> {
    let state = node.state.lock().expect("nothing panics while it holds the state");
    let own = WorkloadKey { namespace: target.namespace.clone(), pod: target.name.clone() };
    if state.handles.contains_key(&own) {
        return Ok(vec![own]);
    }
    let of = |(key, handle): (&WorkloadKey, &Handle)| {
        (key.namespace == target.namespace && handle.spec.workload == target.name).then(|| key.clone())
    };
    let found: Vec<_> = state.handles.iter().filter_map(of).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let elsewhere =
        state.handles.iter().find(|(key, handle)| handle.spec.workload == target.name || key.pod == target.name);
    let hint = elsewhere.map_or_else(String::new, |(key, _)| {
        format!("; there is one in namespace {} (-n {})", key.namespace, key.namespace)
    });
    Err(Refusal {
        not_found: true,
        message: format!("no workload {:?} in namespace {:?}{hint}", target.name, target.namespace),
    })
}

/// One replica: the first that is ready, else the first.
fn one(node: &Node, target: &Target) -> Result<WorkloadKey, Refusal> {
    let found = find(node, target)?;
    let state = node.state.lock().expect("nothing panics while it holds the state");
    let ready = found.iter().find(|key| state.handles.get(key).is_some_and(|h| h.status.borrow().ready));
    Ok(ready.or(found.first()).cloned().expect("find never answers an empty list"))
}

fn order(node: &Node, target: &Target, orders: impl Fn(&dyn Fn(Command))) -> Result<Reply, Refusal> {
    let found = find(node, target)?;
    let state = node.state.lock().expect("nothing panics while it holds the state");
    let names: Vec<String> = found.iter().map(|key| key.pod.clone()).collect();
    for handle in found.iter().filter_map(|key| state.handles.get(key)) {
        orders(&|command| {
            let _ = handle.commands.send(command);
        });
    }
    Ok(Reply::Done(format!("restarted {}", names.join(", "))))
}

fn set_proxy(node: &Node, target: &Target, kind: ProxyKind) -> Result<Reply, Refusal> {
    if kind == ProxyKind::None {
        return refused(
            "a workload leaves the mesh by its label `sidecar.istio.io/inject: \"false\"`, not by its proxy",
        );
    }
    if kind == ProxyKind::Envoy && node.context.config.envoy.is_none() {
        return refused(NO_ENVOY);
    }
    for key in find(node, target)? {
        let state = node.state.lock().expect("nothing panics while it holds the state");
        let Some(handle) = state.handles.get(&key) else { continue };
        if handle.spec.is_gateway() {
            return refused(
                "Envoy takes no listening socket from outside: it stands in for sidecars, not for gateways",
            );
        }
        if !handle.spec.is_meshed() {
            return refused(format!("{key} is outside the mesh and has no proxy"));
        }
    }
    order(node, target, |send| send(Command::RestartProxy(Some(kind)))).map(|_| {
        Reply::Done(format!(
            "{} now has {} beside it",
            target.name,
            if kind == ProxyKind::Envoy { "Envoy" } else { "Meltemi's proxy" }
        ))
    })
}

fn stop(node: &Node, target: &Target) -> Result<Reply, Refusal> {
    let found = find(node, target)?;
    let mut state = node.state.lock().expect("nothing panics while it holds the state");
    let is_added = |key: &WorkloadKey| state.handles.get(key).is_some_and(|handle| handle.spec.origin == Origin::Run);
    if !found.iter().any(is_added) {
        return refused(format!("{} comes from the configuration; change it there", target.name));
    }
    // One that was stopped a moment ago, and is still ending, is stopped.
    state.runs.retain(|key, _| !found.contains(key));
    drop(state);
    node.changed.notify_one();
    Ok(Reply::Done(format!("stopped {}", found.iter().map(|k| k.pod.as_str()).collect::<Vec<_>>().join(", "))))
}

fn add(node: &Node, run: Run) -> Result<Vec<WorkloadKey>, Refusal> {
    let Run {
        name,
        app,
        version,
        ports,
        namespace,
        service_account,
        replicas,
        labels,
        proxy,
        argv,
        env,
        cwd,
        detach: _,
    } = run;
    if argv.is_empty() {
        return refused("no program to run");
    }
    if proxy == ProxyKind::Envoy && node.context.config.envoy.is_none() {
        return refused(NO_ENVOY);
    }
    let name =
        name.unwrap_or_else(|| version.as_ref().map_or_else(|| app.clone(), |version| format!("{app}-{version}")));
    for (what, value) in [("name", &name), ("namespace", &namespace)] {
        if !is_dns_label(value) {
            return refused(format!("{what} {value:?} must be lower-case letters, digits and '-', at most 63 of them"));
        }
    }
    let own: BTreeMap<String, String> =
        [("app".to_owned(), app.clone())].into_iter().chain(version.map(|v| ("version".to_owned(), v))).collect();
    let labels: Labels = labels.0.into_iter().chain(own).collect();
    let mut state = node.state.lock().expect("nothing panics while it holds the state");
    let mut specs = Vec::new();
    for index in 0..replicas.clamp(1, MAX_REPLICAS) {
        let key = WorkloadKey { namespace: namespace.clone(), pod: format!("{name}-{index}") };
        if state.handles.contains_key(&key) || state.runs.contains_key(&key) {
            return refused(format!("there is a workload {key} already; stop it first, or choose another --name"));
        }
        specs.push(WorkloadSpec {
            key,
            workload: name.clone(),
            origin: Origin::Run,
            service_account: service_account.clone(),
            labels: labels.clone(),
            annotations: BTreeMap::new(),
            proxy,
            app: Some(Program { argv: argv.clone(), env: env.iter().cloned().collect(), cwd: Some(cwd.clone()) }),
            ports: ports
                .iter()
                .map(|port| ContainerPort { name: String::new(), number: *port, protocol: "TCP".into() })
                .collect(),
            container: app.clone(),
            image: argv[0].clone(),
        });
    }
    let keys: Vec<_> = specs.iter().map(|spec| spec.key.clone()).collect();
    state.runs.extend(specs.into_iter().map(|spec| (spec.key.clone(), spec)));
    drop(state);
    node.changed.notify_one();
    Ok(keys)
}

fn is_dns_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&text.len()) && text.chars().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn exec(
    node: &Node,
    target: &Target,
    argv: Vec<String>,
    env: Vec<(String, String)>,
    fds: [OwnedFd; 3],
) -> Result<tokio::process::Child, Refusal> {
    if argv.is_empty() {
        return refused("no program to run");
    }
    let spawn = |spec: &LaunchSpec, title: String| {
        child::spawn(spec, &title, Output::Given(fds)).or_else(|error| refused(format!("{error:#}")))
    };
    if target.name == ROUTER_TARGET {
        let all = node.context.base_env.clone().into_iter().chain(env).collect();
        return spawn(&LaunchSpec { argv, env: all, ..LaunchSpec::default() }, "exec in the router".into());
    }
    let key = one(node, target)?;
    let state = node.state.lock().expect("nothing panics while it holds the state");
    let Some(handle) = state.handles.get(&key) else { return refused("it has just ended") };
    let Some(netns) = handle.netns.get() else { return refused(format!("{key} could not be set up")) };
    let mut in_place = (*handle.spec).clone();
    let program = in_place.app.get_or_insert_default();
    program.argv = argv;
    program.env.extend(env);
    let folder =
        node.context.config.run_dir.join("workloads").join(format!("{}_{}", key.namespace, key.pod)).join("etc");
    let shown =
        ["resolv.conf", "hosts", "nsswitch.conf"].map(|name| (folder.join(name), format!("/etc/{name}").into()));
    let Some(mut spec) = app_spec(&node.context, &in_place, handle.address, &shown, netns) else {
        return refused("no program to run");
    };
    // Beside the running application; if it does not run just now, in namespaces made as its own were.
    let application = handle.status.borrow().app.as_ref().and_then(|app| app.pid).and_then(first_process);
    if let Some(process) = &application {
        spec.join = Some(process.as_raw_fd());
        spec.isolate = None;
        spec.files = Vec::new();
        spec.hide = Vec::new();
        spec.cwd = spec.cwd.or_else(|| Some("/".into()));
    }
    spawn(&spec, format!("exec {}", key.pod))
}

/// The first process of the namespaces below a launcher: its only child.
fn first_process(launcher: u32) -> Option<OwnedFd> {
    let parent = |pid: u32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything, also a parenthesis.
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    let pids = std::fs::read_dir("/proc").ok()?.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let child = pids.into_iter().find(|pid| parent(*pid) == Some(launcher))?;
    let fd = pidfd_open(Pid::from_raw(child.cast_signed())?, PidfdFlags::empty()).ok()?;
    // Opened by number: still the same process?
    (parent(child) == Some(launcher)).then_some(())?;
    let _ = fd.as_fd();
    Some(fd)
}
