//! Compares the configured workloads with the running ones, stops those that are superfluous or
//! changed, and starts those that are missing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use meltemi_store::World;
use tokio::sync::{oneshot, watch};

use super::state::Node;
use crate::addresses::Addresses;
use crate::api::WorkloadStatus;
use crate::context::Context;
use crate::desired::plan_replicas;
use crate::events::{Event, WorkloadChange};
use crate::images::ImageMap;
use crate::spec::{NO_ENVOY, ProxyKind, WorkloadKey, WorkloadSpec};
use crate::workload::{self, Command};
use crate::{gateways, objects, run_services};

/// Returns every workload that should run: Deployments, gateways, and programs added with `run`.
/// Shows each problem to the user once, until it goes away.
pub(super) async fn wanted_workloads(
    node: &Node,
    world: &World,
    images: &[ImageMap],
    reported: &mut BTreeSet<String>,
) -> BTreeMap<WorkloadKey, WorkloadSpec> {
    let config = &node.context.config;
    let (mut specs, mut problems) =
        plan_replicas(objects::workload_objects(world), images, &config.proxies);
    if config.envoy.is_none() {
        let lacking = specs.values().filter(|spec| spec.proxy == ProxyKind::Envoy);
        problems.extend(lacking.map(|spec| format!("workload {}: {NO_ENVOY}", spec.key)));
    }

    if config.gateways {
        specs.extend(
            gateways::workloads()
                .into_iter()
                .map(|spec| (spec.key.clone(), spec)),
        );
    }

    for problem in problems.iter().filter(|p| !reported.contains(*p)) {
        node.context.warn(problem.clone()).await;
    }
    let problems_now: BTreeSet<String> = problems.iter().cloned().collect();
    for mended in reported.difference(&problems_now) {
        let event = Event::Mended(mended.clone());
        node.context.dialler.show(event).await;
    }
    *reported = problems_now;

    let mut state = node.state();
    state.problems = problems;
    for (key, spec) in &state.runs {
        specs.entry(key.clone()).or_insert_with(|| spec.clone());
    }
    if let Err(error) = run_services::write(
        &config.objects_dir(),
        &run_services::missing(&state.runs, world),
    ) {
        tracing::warn!(%error, "Services of added programs cannot be written");
    }

    specs
}

/// Stops workloads that are not wanted or whose specification changed, waits for them, then starts
/// the missing ones. With `announce`, shows each of them to the user.
pub(super) async fn reconcile(
    node: &Node,
    wanted: BTreeMap<WorkloadKey, WorkloadSpec>,
    addresses: &mut Addresses,
    announce: bool,
) {
    let ending: Vec<(WorkloadKey, oneshot::Receiver<()>)> = {
        let state = node.state();
        let stale = state
            .handles
            .iter()
            .filter(|(key, handle)| wanted.get(key) != Some(&*handle.spec));
        stale
            .map(|(key, handle)| {
                let (done, ended) = oneshot::channel();
                handle.send(Command::Stop(done));
                (key.clone(), ended)
            })
            .collect()
    };

    let mut changed = BTreeSet::new();
    for (key, ended) in ending {
        let _ = ended.await;
        node.state().handles.remove(&key);
        addresses.release(&key.to_string());
        if wanted.contains_key(&key) {
            changed.insert(key);
        } else if announce {
            show_change(node, &key, WorkloadChange::Ended).await;
        }
    }

    for (key, spec) in wanted {
        let started = {
            let mut state = node.state();
            if state.handles.contains_key(&key) {
                continue;
            }
            match addresses.take(&key.to_string()) {
                Some(address) => {
                    let handle = workload::start(Arc::clone(&node.context), spec, address);
                    let status = handle.status.clone();
                    state.handles.insert(key.clone(), handle);
                    Some(status)
                }
                None => {
                    tracing::error!(workload = %key, "no address is left in 10.44.0.0/16");
                    None
                }
            }
        };

        if let (true, Some(status)) = (announce, started) {
            let change = match changed.contains(&key) {
                true => WorkloadChange::Changed,
                false => WorkloadChange::Started,
            };
            show_change(node, &key, change).await;
            tokio::spawn(show_ready(Arc::clone(&node.context), key, status));
        }
    }
}

async fn show_change(node: &Node, key: &WorkloadKey, change: WorkloadChange) {
    let event = Event::Workload {
        namespace: key.namespace.clone(),
        name: key.pod.clone(),
        change,
    };
    node.context.dialler.show(event).await;
}

/// Shows to the user that a workload is ready for the first time. Shows nothing if it ends before.
async fn show_ready(
    context: Arc<Context>,
    key: WorkloadKey,
    mut status: watch::Receiver<WorkloadStatus>,
) {
    if status.wait_for(|status| status.ready).await.is_ok() {
        let event = Event::WorkloadReady {
            namespace: key.namespace,
            name: key.pod,
        };
        context.dialler.show(event).await;
    }
}

/// Shows each workload of the start to the user as it becomes ready, and finally
/// [`Event::AllReady`].
pub(super) async fn announce_ready(node: Arc<Node>) {
    let mut statuses: Vec<_> = {
        let state = node.state();
        state
            .handles
            .iter()
            .map(|(key, handle)| (key.clone(), handle.status.clone()))
            .collect()
    };

    while !statuses.is_empty() {
        let mut waiting = Vec::new();
        for (key, status) in statuses {
            if status.borrow().ready {
                node.context
                    .dialler
                    .show(Event::WorkloadReady {
                        namespace: key.namespace,
                        name: key.pod,
                    })
                    .await;
            } else if status.has_changed().is_ok() {
                waiting.push((key, status));
            }
        }

        statuses = waiting;
        if !statuses.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    // Without workloads nothing has waited for the control plane, which answers `apply`.
    let mut control = node.context.control_ready.clone();
    let _ = control.wait_for(|is_up| *is_up).await;
    node.context.dialler.show(Event::AllReady).await;
}
