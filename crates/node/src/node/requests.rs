//! Executes the requests of [`crate::api`] on the node's workloads, or refuses them with a message
//! for the user.

use std::collections::BTreeMap;
use std::sync::Arc;

use meltemi_types::{Labels, is_dns_label};

use super::state::Node;
use crate::api::{NodeReply, ProgramName, Run, Target, WorkloadStatus};
use crate::log::Log;
use crate::spec::{ContainerPort, NO_ENVOY, Origin, Program, ProxyKind, WorkloadKey, WorkloadSpec};
use crate::workload::{Command, Handle};
use crate::{gateways, host_sockets, run_files};

/// Replicas of one `run` at most.
const MAX_REPLICAS: u32 = 100;

/// Why a request cannot be executed.
pub(super) struct Refusal {
    /// True when no workload has the requested name.
    pub(super) not_found: bool,
    pub(super) message: String,
}

pub(super) fn refused<T>(message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal {
        not_found: false,
        message: message.into(),
    })
}

/// The current status of every replica.
pub(super) fn list(node: &Node) -> Vec<WorkloadStatus> {
    let mut all: Vec<_> = node
        .state()
        .handles
        .values()
        .map(|handle| handle.status.borrow().clone())
        .collect();

    if let Some(ingress) = all
        .iter_mut()
        .find(|w| w.origin == Origin::Gateway && w.workload == gateways::INGRESS)
    {
        ingress.published = host_sockets::published(&node.context);
    }

    all
}

/// Finds the replicas that a name refers to: the pod with this name, else all replicas of the
/// workload with this name. Never returns an empty list.
fn find_replicas(node: &Node, target: &Target) -> Result<Vec<WorkloadKey>, Refusal> {
    let state = node.state();
    let as_pod = WorkloadKey {
        namespace: target.namespace.clone(),
        pod: target.name.clone(),
    };

    if state.handles.contains_key(&as_pod) {
        return Ok(vec![as_pod]);
    }

    let matching_key = |(key, handle): (&WorkloadKey, &Handle)| {
        (key.namespace == target.namespace && handle.spec.workload == target.name)
            .then(|| key.clone())
    };

    let found: Vec<_> = state.handles.iter().filter_map(matching_key).collect();
    if !found.is_empty() {
        return Ok(found);
    }

    // The user may have forgotten the namespace: name the one that has such a workload.
    let elsewhere = state
        .handles
        .iter()
        .find(|(key, handle)| handle.spec.workload == target.name || key.pod == target.name);

    let hint = elsewhere.map_or_else(String::new, |(key, _)| {
        format!(
            "; there is one in namespace {} (-n {})",
            key.namespace, key.namespace
        )
    });

    Err(Refusal {
        not_found: true,
        message: format!(
            "no workload {:?} in namespace {:?}{hint}",
            target.name, target.namespace
        ),
    })
}

/// Chooses one replica: the first that is ready, else the first.
pub(super) fn choose_replica(node: &Node, target: &Target) -> Result<WorkloadKey, Refusal> {
    let found = find_replicas(node, target)?;
    let state = node.state();
    let ready = found.iter().find(|key| {
        state
            .handles
            .get(key)
            .is_some_and(|h| h.status.borrow().ready)
    });

    Ok(ready
        .or(found.first())
        .cloned()
        .expect("find_replicas never returns an empty list"))
}

/// The log of a workload's application, or of its proxy.
pub(super) fn log(node: &Node, target: &Target, proxy: bool) -> Result<Arc<Log>, Refusal> {
    let key = choose_replica(node, target)?;
    match node.state().handles.get(&key) {
        Some(handle) if proxy || handle.spec.app.is_none() => Ok(Arc::clone(&handle.proxy_log)),
        Some(handle) => Ok(Arc::clone(&handle.app_log)),
        None => refused("it has just ended"),
    }
}

/// Restarts both programs of a workload, or one.
pub(super) fn restart(
    node: &Node,
    target: &Target,
    part: Option<ProgramName>,
) -> Result<NodeReply, Refusal> {
    let found = find_replicas(node, target)?;
    let state = node.state();
    for handle in found.iter().filter_map(|key| state.handles.get(key)) {
        if part != Some(ProgramName::App) {
            handle.send(Command::RestartProxy(None));
        }
        if part != Some(ProgramName::Proxy) {
            handle.send(Command::RestartApp);
        }
    }

    Ok(NodeReply::Done(format!("restarted {}", names(&found))))
}

/// Replaces the proxy of a workload by another kind.
pub(super) fn set_proxy(
    node: &Node,
    target: &Target,
    kind: ProxyKind,
) -> Result<NodeReply, Refusal> {
    if kind == ProxyKind::None {
        return refused(
            "a workload leaves the mesh by its label `sidecar.istio.io/inject: \"false\"`, not by its proxy",
        );
    }

    if kind == ProxyKind::Envoy && node.context.config.envoy.is_none() {
        return refused(NO_ENVOY);
    }

    let found = find_replicas(node, target)?;
    let state = node.state();
    let handles: Vec<&Handle> = found
        .iter()
        .filter_map(|key| state.handles.get(key))
        .collect();

    for Handle { spec, .. } in &handles {
        if spec.is_gateway() {
            return refused(
                "Envoy takes no listening socket from outside: it stands in for sidecars, not for gateways",
            );
        }
        if !spec.is_meshed() {
            return refused(format!("{} is outside the mesh and has no proxy", spec.key));
        }
    }

    for handle in handles {
        handle.send(Command::RestartProxy(Some(kind)));
    }
    let proxy = if kind == ProxyKind::Envoy {
        "Envoy"
    } else {
        "Meltemi's proxy"
    };

    Ok(NodeReply::Done(format!(
        "{} now has {proxy} beside it",
        target.name
    )))
}

/// Ends a workload that [`add`] added. Refuses workloads of the configuration.
pub(super) fn stop(node: &Node, target: &Target) -> Result<NodeReply, Refusal> {
    let found = find_replicas(node, target)?;
    let state = node.state();
    let is_added = |key: &WorkloadKey| {
        state
            .handles
            .get(key)
            .is_some_and(|handle| handle.spec.origin == Origin::Run)
    };

    if !found.iter().any(is_added) {
        return refused(format!(
            "{} comes from the configuration; change it there",
            target.name
        ));
    }

    drop(state);

    // Stopping twice succeeds: a workload that was just stopped is still in the table while it
    // ends.
    node.remove_runs(&found);

    Ok(NodeReply::Done(format!("stopped {}", names(&found))))
}

fn names(keys: &[WorkloadKey]) -> String {
    keys.iter()
        .map(|key| key.pod.as_str())
        .collect::<Vec<_>>()
        .join(", ")
}

/// Adds a program as a workload. Returns the keys of its replicas.
pub(super) fn add(node: &Node, run: Run) -> Result<Vec<WorkloadKey>, Refusal> {
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
        detach,
    } = run;

    if argv.is_empty() {
        return refused("no program to run");
    }
    let name = name.unwrap_or_else(|| {
        version
            .as_ref()
            .map_or_else(|| app.clone(), |version| format!("{app}-{version}"))
    });

    let proxy = proxy.unwrap_or_else(|| node.context.config.proxies.kind_of(&name));
    if proxy == ProxyKind::Envoy && node.context.config.envoy.is_none() {
        return refused(NO_ENVOY);
    }
    for (what, value) in [("name", &name), ("namespace", &namespace)] {
        if !is_dns_label(value) {
            return refused(format!(
                "{what} {value:?} must be lower-case letters, digits and '-', at most 63 of them"
            ));
        }
    }

    // `app` and `version` override labels of the same names.
    let own: BTreeMap<String, String> = [("app".to_owned(), app.clone())]
        .into_iter()
        .chain(version.map(|v| ("version".to_owned(), v)))
        .collect();

    let labels: Labels = labels.0.into_iter().chain(own).collect();
    let mut state = node.state();
    let mut specs = Vec::new();

    for index in 0..replicas.clamp(1, MAX_REPLICAS) {
        let key = WorkloadKey {
            namespace: namespace.clone(),
            pod: format!("{name}-{index}"),
        };

        if state.handles.contains_key(&key) || state.runs.contains_key(&key) {
            return refused(format!(
                "there is a workload {key} already; stop it first, or choose another --name"
            ));
        }

        specs.push(WorkloadSpec {
            key,
            workload: name.clone(),
            origin: Origin::Run,
            service_account: service_account.clone(),
            labels: labels.clone(),
            annotations: BTreeMap::new(),
            proxy,
            app: Some(Program {
                argv: argv.clone(),
                env: env.iter().cloned().collect(),
                cwd: Some(cwd.clone()),
            }),
            ports: ports
                .iter()
                .map(|port| ContainerPort {
                    name: String::new(),
                    number: *port,
                    protocol: "TCP".into(),
                })
                .collect(),
            container: app.clone(),
            image: argv[0].clone(),
        });
    }

    for spec in specs.iter().filter(|_| detach) {
        if let Err(error) = run_files::save(&node.context.config.runs_dir(), spec) {
            tracing::warn!(workload = %spec.key, %error, "cannot save the workload: it is lost if the node is restarted");
        }
    }

    let keys: Vec<_> = specs.iter().map(|spec| spec.key.clone()).collect();
    state
        .runs
        .extend(specs.into_iter().map(|spec| (spec.key.clone(), spec)));
    drop(state);
    node.changed.notify_one();

    Ok(keys)
}
