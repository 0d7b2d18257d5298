//! `status`: workloads as the node runs them beside proxies as the control plane sees them.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use meltemi_admin_api::{CertificateStatus, ProxyStatus, Status, SyncState, TypeSync};
use meltemi_node::api::{PartStatus, Phase, WorkloadStatus};
use meltemi_node::{Client, ProxyKind};
use serde::Serialize;

use crate::args::{Output, StatusArgs};
use crate::mesh::control;
use crate::output;
use crate::table::{Table, age};

/// Everything, for machines.
#[derive(Serialize)]
struct Whole {
    workloads: Vec<WorkloadStatus>,
    control: Option<Status>,
}

pub(crate) async fn status(mesh: &str, args: StatusArgs) -> Result<i32> {
    let mut workloads = Client::new(&meltemi_node::config::run_dir(mesh)).list().await?;
    // The control plane may be starting again; the workloads are worth showing all the same.
    let control = control(mesh).status().await;
    if let Some(namespace) = &args.namespace {
        workloads.retain(|workload| workload.key.namespace == *namespace);
    }
    let problem = control.as_ref().err().map(ToString::to_string);
    let whole = Whole { workloads, control: control.ok() };
    if output::machine(args.output, &whole)? {
        return Ok(0);
    }
    if args.output == Some(Output::Name) {
        whole.workloads.iter().for_each(|workload| println!("workload/{}", workload.key.pod));
        return Ok(0);
    }
    print!("{}", table(&whole, args.output == Some(Output::Wide)));
    if let Some(problem) = problem {
        eprintln!("warning: {problem}");
    }
    if let Some(control) = &whole.control {
        for proxy in &control.proxies {
            for rejection in &proxy.rejections {
                eprintln!(
                    "warning: {} refuses {} {}: {}",
                    proxy.name, rejection.short, rejection.name, rejection.reason
                );
            }
        }
        output::diagnostics(&control.diagnostics);
    }
    for workload in &whole.workloads {
        if let Some(message) = &workload.message {
            eprintln!("warning: {}: {message}", workload.key.pod);
        }
    }
    Ok(0)
}

fn table(whole: &Whole, wide: bool) -> String {
    let mut header = vec!["NAMESPACE", "WORKLOAD", "STATE", "RESTARTS", "IP", "PROXY", "CONFIG", "CERTIFICATE"];
    if wide {
        header.extend(["VERSION", "CDS", "EDS", "LDS", "RDS", "IDENTITY", "LAST EXIT"]);
    }
    let mut table = Table::new(&header);
    for workload in &whole.workloads {
        let proxy = whole.control.as_ref().and_then(|control| {
            control.proxies.iter().find(|p| p.name == workload.key.pod && p.namespace == workload.key.namespace)
        });
        let mut row = vec![
            workload.key.namespace.clone(),
            workload.key.pod.clone(),
            state(workload),
            restarts(workload),
            workload.ip.to_string(),
            kind(workload.proxy_kind).to_owned(),
            config(workload, proxy),
            proxy.and_then(|proxy| certificate(whole, proxy)).map_or_else(String::new, lifetime),
        ];
        if wide {
            let of = |short: &str| {
                proxy.and_then(|proxy| proxy.types.iter().find(|t| t.short == short)).map_or_else(String::new, sync)
            };
            let version = proxy.map_or_else(String::new, |proxy| {
                let acked: Vec<&str> = proxy.types.iter().map(|t| t.acked.as_str()).filter(|v| !v.is_empty()).collect();
                acked.first().map_or_else(String::new, |first| first.chars().take(8).collect())
            });
            let identity = proxy.map(|proxy| proxy.identity.clone()).unwrap_or_default();
            row.extend([version, of("CDS"), of("EDS"), of("LDS"), of("RDS"), identity, last_exit(workload)]);
        }
        table.row(row);
    }
    table.render()
}

fn state(workload: &WorkloadStatus) -> String {
    match (workload.phase, workload.ready) {
        (Phase::Running, true) => "Running",
        (Phase::Running, false) => "NotReady",
        (Phase::Starting, _) => "Starting",
        (Phase::BackOff, _) => "CrashLoopBackOff",
        (Phase::Failed, _) => "Failed",
    }
    .to_owned()
}

fn parts(workload: &WorkloadStatus) -> impl Iterator<Item = &PartStatus> {
    workload.app.iter().chain(&workload.proxy)
}

fn restarts(workload: &WorkloadStatus) -> String {
    parts(workload).map(|part| part.restarts).sum::<u32>().to_string()
}

fn last_exit(workload: &WorkloadStatus) -> String {
    parts(workload).find_map(|part| part.last_exit.clone()).unwrap_or_default()
}

fn kind(kind: ProxyKind) -> &'static str {
    match kind {
        ProxyKind::None => "",
        ProxyKind::Meltemi => "meltemi",
        ProxyKind::Envoy => "envoy",
    }
}

/// Whether the proxy's configuration is the wanted one.
fn config(workload: &WorkloadStatus, proxy: Option<&ProxyStatus>) -> String {
    match (workload.proxy_kind, proxy) {
        (ProxyKind::None, _) => String::new(),
        (_, None) => "NOT CONNECTED".to_owned(),
        (_, Some(proxy)) => word(proxy.state).to_owned(),
    }
}

fn sync(sync: &TypeSync) -> String {
    format!("{} {}", word(sync.state), sync.resources)
}

fn word(state: SyncState) -> &'static str {
    match state {
        SyncState::Synced => "SYNCED",
        SyncState::NotSent => "NOT SENT",
        SyncState::Stale => "STALE",
        SyncState::Rejected => "REJECTED",
    }
}

/// The newest certificate that was issued to this proxy's address.
fn certificate<'a>(whole: &'a Whole, proxy: &ProxyStatus) -> Option<&'a CertificateStatus> {
    let certificates = &whole.control.as_ref()?.certificates;
    let from = |peer: &str| {
        proxy
            .ips
            .iter()
            .any(|ip| peer.strip_prefix(ip.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(':')))
    };
    certificates.iter().filter(|c| c.identity == proxy.identity && from(&c.peer)).max_by_key(|c| c.issued_at_ms)
}

fn lifetime(certificate: &CertificateStatus) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    match certificate.expires_at_ms.checked_sub(now) {
        Some(left) => format!("valid for {}", age(left / 1_000)),
        None => "EXPIRED".to_owned(),
    }
}
