//! The command `status`: joins the workloads of the node with the proxies of the control plane.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, anyhow, bail};
use meltemi_admin_api::{CertificateStatus, ProxyStatus, Status, SyncState, TypeSync};
use meltemi_node::ProxyKind;
use meltemi_node::api::{Phase, ProgramStatus, WorkloadStatus};
use serde::Serialize;

use crate::args::StatusArgs;
use crate::mesh::Mesh;
use crate::names;
use crate::output::{self, Output};
use crate::table::{Table, age};

/// All data of the command; printed as it is with `-o yaml` and `-o json`.
#[derive(Serialize)]
struct MeshStatus {
    workloads: Vec<WorkloadStatus>,
    /// Messages about Deployments that run differently from what their YAML says.
    problems: Vec<String>,
    control: Option<Status>,
}

/// Limit for the control plane's answer.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(3);

pub(crate) async fn status(mesh: &Mesh, args: StatusArgs) -> Result<i32> {
    let mut workloads = mesh
        .node()
        .list()
        .await
        .map_err(|error| mesh.node_error(error))?;

    // Show the workloads even if the control plane does not answer: it may be restarting.
    let control = match tokio::time::timeout(CONTROL_TIMEOUT, mesh.control().status()).await {
        Ok(answer) => answer.map_err(|error| mesh.control_error(error)),
        Err(_) => Err(anyhow!(
            "the control plane does not answer within {} s",
            CONTROL_TIMEOUT.as_secs()
        )),
    };

    if let Some(namespace) = &args.namespace {
        workloads.retain(|workload| workload.key.namespace == *namespace);
    }
    if let Some(name) = args.workload.as_deref().map(names::workload) {
        workloads.retain(|workload| workload.key.pod == name || workload.workload == name);
        if workloads.is_empty() {
            let place = args.namespace.map_or_else(String::new, |namespace| {
                format!(" in namespace {namespace:?}")
            });
            bail!("no workload {name:?}{place}");
        }
    }

    // Problems are not tied to a workload, so show them only for the whole mesh.
    let is_filtered = args.namespace.is_some() || args.workload.is_some();
    let problems = if !is_filtered {
        mesh.node().problems().await.unwrap_or_default()
    } else {
        Vec::new()
    };

    let control_problem = control.as_ref().err().map(ToString::to_string);
    let mut whole = MeshStatus {
        workloads,
        problems,
        control: control.ok(),
    };

    if is_filtered && let Some(control) = &mut whole.control {
        control.proxies.retain(|proxy| {
            whole
                .workloads
                .iter()
                .any(|workload| is_of(proxy, workload))
        });
    }

    match args.output {
        Some(Output::Name) => {
            for workload in &whole.workloads {
                output::line(format_args!("workload/{}", workload.key.pod))?;
            }
        }
        format if output::structured(format, &whole)? => {}
        _ if whole.workloads.is_empty() => output::note("No workloads found."),
        format => {
            output::text(&table(&whole, format == Some(Output::Wide)))?;
            output::text(&published_ports(&whole.workloads))?;
            print_problems(&whole);
        }
    }

    match control_problem {
        Some(problem) => {
            output::note(format_args!("warning: {problem}"));
            Ok(1)
        }
        None => Ok(0),
    }
}

/// Prints rejections, diagnostics and problems below the table.
fn print_problems(whole: &MeshStatus) {
    if let Some(control) = &whole.control {
        for proxy in &control.proxies {
            rejection_lines(proxy).iter().for_each(output::note);
        }
        output::diagnostics(&control.diagnostics);

        // Translation often leaves the same resource out for many proxies: print each diagnostic
        // once.
        let left_out: BTreeSet<_> = control
            .proxies
            .iter()
            .flat_map(|proxy| &proxy.diagnostics)
            .collect();

        left_out
            .into_iter()
            .filter(|finding| !control.diagnostics.contains(finding))
            .for_each(output::note);
    }

    for problem in &whole.problems {
        output::note(format_args!("warning: {problem}"));
    }
    for workload in &whole.workloads {
        if let Some(message) = &workload.message {
            output::note(format_args!("warning: {}: {message}", workload.key.pod));
        }
    }
}

/// The rejections of a proxy, one line per reason. Envoy sends one reason for all resources of a
/// response, and the control plane records it for each resource.
fn rejection_lines(proxy: &ProxyStatus) -> Vec<String> {
    let mut by_reason: Vec<(&str, &str, Vec<&str>)> = Vec::new();
    for rejection in &proxy.rejections {
        match by_reason
            .iter_mut()
            .find(|(short, reason, _)| *short == rejection.short && *reason == rejection.reason)
        {
            Some((_, _, names)) => names.push(&rejection.name),
            None => by_reason.push((&rejection.short, &rejection.reason, vec![&rejection.name])),
        }
    }

    let line = |(short, reason, mut names): (&str, &str, Vec<&str>)| {
        names.sort_unstable();
        names.dedup();
        format!(
            "warning: {} refuses {short} {}: {}",
            proxy.name,
            names.join(", "),
            reason.trim_end()
        )
    };

    by_reason.into_iter().map(line).collect()
}

/// Whether the proxy belongs to the workload.
fn is_of(proxy: &ProxyStatus, workload: &WorkloadStatus) -> bool {
    proxy.name == workload.key.pod && proxy.namespace == workload.key.namespace
}

fn table(whole: &MeshStatus, wide: bool) -> String {
    let mut header = vec![
        "NAMESPACE",
        "WORKLOAD",
        "STATE",
        "RESTARTS",
        "IP",
        "PROXY",
        "CONFIG",
        "CERTIFICATE",
    ];

    if wide {
        header.extend([
            "VERSION",
            "WANTED",
            "CDS",
            "EDS",
            "LDS",
            "RDS",
            "IDENTITY",
            "LAST EXIT",
        ]);
    }

    let mut table = Table::new(&header);
    for workload in &whole.workloads {
        let proxy = whole
            .control
            .as_ref()
            .and_then(|control| control.proxies.iter().find(|proxy| is_of(proxy, workload)));

        let mut row = vec![
            workload.key.namespace.clone(),
            workload.key.pod.clone(),
            state(workload),
            restarts(workload),
            workload.ip.to_string(),
            kind(workload.proxy_kind).to_owned(),
            config(workload, whole.control.is_some(), proxy),
            proxy
                .and_then(|proxy| certificate(whole, proxy))
                .map_or_else(String::new, lifetime),
        ];

        if wide {
            let of = |short: &str| {
                proxy
                    .and_then(|proxy| proxy.types.iter().find(|t| t.short == short))
                    .map_or_else(String::new, sync)
            };

            let version = |of: fn(&TypeSync) -> &str| {
                proxy.map_or_else(String::new, |proxy| version(proxy, of))
            };
            let identity = proxy
                .map(|proxy| proxy.identity.clone())
                .unwrap_or_default();
            row.extend([
                version(|t| &t.acked),
                version(|t| &t.wanted),
                of("CDS"),
                of("EDS"),
                of("LDS"),
                of("RDS"),
                identity,
                last_exit(workload),
            ]);
        }

        table.row(row);
    }

    table.render()
}

/// The published ports of gateways, one line each.
fn published_ports(workloads: &[WorkloadStatus]) -> String {
    let lines_of = |workload: &WorkloadStatus| {
        workload
            .published
            .iter()
            .map(|port| format!("{} {port}\n", workload.workload))
            .collect::<String>()
    };

    workloads
        .iter()
        .map(lines_of)
        .filter(|lines| !lines.is_empty())
        .map(|lines| format!("\n{lines}"))
        .collect()
}

/// The cell STATE, in kubectl's words.
pub(crate) fn state(workload: &WorkloadStatus) -> String {
    match (workload.phase, workload.ready) {
        (Phase::Running, true) => "Running",
        (Phase::Running, false) => "NotReady",
        (Phase::Starting, _) => "Starting",
        (Phase::BackOff, _) => "CrashLoopBackOff",
        (Phase::Failed, _) => "Failed",
    }
    .to_owned()
}

fn programs(workload: &WorkloadStatus) -> impl Iterator<Item = &ProgramStatus> {
    workload.app.iter().chain(&workload.proxy)
}

pub(crate) fn restarts(workload: &WorkloadStatus) -> String {
    programs(workload)
        .map(|program| program.restarts)
        .sum::<u32>()
        .to_string()
}

fn last_exit(workload: &WorkloadStatus) -> String {
    programs(workload)
        .find_map(|program| program.last_exit.clone())
        .unwrap_or_default()
}

fn kind(kind: ProxyKind) -> &'static str {
    match kind {
        ProxyKind::None => "",
        ProxyKind::Meltemi => "meltemi",
        ProxyKind::Envoy => "envoy",
    }
}

/// The cell CONFIG: whether the proxy has the newest configuration. `has_control` is false if the
/// control plane did not answer.
fn config(workload: &WorkloadStatus, has_control: bool, proxy: Option<&ProxyStatus>) -> String {
    match (workload.proxy_kind, proxy) {
        (ProxyKind::None, _) => String::new(),
        (_, None) if !has_control => "UNKNOWN".to_owned(),
        (_, None) => "NOT CONNECTED".to_owned(),
        (_, Some(proxy)) => word(proxy.state).to_owned(),
    }
}

/// The cell of one xDS type: state, number of resources, and the acknowledged version, or
/// `ACKED->WANTED` if they differ.
fn sync(sync: &TypeSync) -> String {
    let (acked, wanted) = (short(&sync.acked), short(&sync.wanted));
    let versions = match (acked == wanted, acked.is_empty() && wanted.is_empty()) {
        (_, true) => String::new(),
        (true, _) => format!(" {acked}"),
        (false, _) => format!(
            " {}->{}",
            if acked.is_empty() { "none" } else { acked },
            if wanted.is_empty() { "none" } else { wanted }
        ),
    };

    format!("{} {}{versions}", word(sync.state), sync.resources)
}

/// The first 8 digits of a hash, enough to tell a few versions apart.
fn short(hash: &str) -> &str {
    hash.get(..8).unwrap_or(hash)
}

/// One version over all types, equal for proxies whose versions are equal in every type.
fn version(proxy: &ProxyStatus, of: fn(&TypeSync) -> &str) -> String {
    let mut versions: Vec<(&str, &str)> = proxy
        .types
        .iter()
        .map(|t| (t.type_url.as_str(), of(t)))
        .collect();

    versions.retain(|(_, version)| !version.is_empty());
    if versions.is_empty() {
        return String::new();
    }

    // The order in which the control plane lists the types must not matter.
    versions.sort_unstable();
    let mut hasher = DefaultHasher::new();
    versions.hash(&mut hasher);

    short(&format!("{:016x}", hasher.finish())).to_owned()
}

fn word(state: SyncState) -> &'static str {
    match state {
        SyncState::Synced => "SYNCED",
        SyncState::NotSent => "NOT SENT",
        SyncState::Stale => "STALE",
        SyncState::Rejected => "REJECTED",
    }
}

/// The newest certificate that the control plane issued to this proxy: same identity, requested
/// from the proxy's address.
fn certificate<'a>(whole: &'a MeshStatus, proxy: &ProxyStatus) -> Option<&'a CertificateStatus> {
    let certificates = &whole.control.as_ref()?.certificates;
    let from = |peer: &str| {
        proxy.ips.iter().any(|ip| {
            peer.strip_prefix(ip.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
        })
    };

    certificates
        .iter()
        .filter(|c| c.identity == proxy.identity && from(&c.peer))
        .max_by_key(|c| c.issued_at_ms)
}

fn lifetime(certificate: &CertificateStatus) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis() as u64;
    match certificate.expires_at_ms.checked_sub(now) {
        Some(left) => format!("valid for {}", age(left / 1_000)),
        None => "EXPIRED".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use meltemi_admin_api::Rejection;

    use super::*;

    fn workload() -> WorkloadStatus {
        serde_json::from_value(serde_json::json!({
            "key": {"namespace": "shop", "pod": "reviews-v1-0"}, "workload": "reviews-v1", "origin": "deployment",
            "service_account": "default", "labels": {}, "ip": "10.44.0.2", "phase": "Running", "ready": true,
            "proxy_kind": "meltemi", "app": {"running": true, "pid": 7, "restarts": 2, "last_exit": "exit code 3"},
            "proxy": {"running": true, "pid": 8, "restarts": 1, "last_exit": null}, "message": null,
        }))
        .unwrap()
    }

    fn row(whole: &MeshStatus) -> Vec<String> {
        let text = table(whole, false);
        text.lines()
            .nth(1)
            .unwrap()
            .split("   ")
            .map(|cell| cell.trim().to_owned())
            .filter(|c| !c.is_empty())
            .collect()
    }

    #[test]
    fn a_proxy_is_found_by_its_pod_and_its_certificate_by_its_address() {
        let identity = "spiffe://cluster.local/ns/shop/sa/default".to_owned();
        let proxy = ProxyStatus {
            name: "reviews-v1-0".into(),
            namespace: "shop".into(),
            ips: vec!["10.44.0.2".into()],
            identity: identity.clone(),
            state: SyncState::Stale,
            ..ProxyStatus::default()
        };

        let certificate = |peer: &str, issued_at_ms| CertificateStatus {
            identity: identity.clone(),
            peer: peer.into(),
            issued_at_ms,
            expires_at_ms: issued_at_ms,
            ..CertificateStatus::default()
        };

        // 10.44.0.21 begins with the same digits but belongs to another pod.
        let certificates = vec![
            certificate("10.44.0.2:5000", 1),
            certificate("10.44.0.21:5000", u64::MAX),
        ];

        let control = Status {
            proxies: vec![proxy],
            certificates,
            ..Status::default()
        };

        let whole = MeshStatus {
            workloads: vec![workload()],
            problems: Vec::new(),
            control: Some(control),
        };

        assert_eq!(
            row(&whole),
            [
                "shop",
                "reviews-v1-0",
                "Running",
                "3",
                "10.44.0.2",
                "meltemi",
                "STALE",
                "EXPIRED"
            ]
        );
    }

    #[test]
    fn acknowledged_and_wanted_versions_are_shown() {
        let of = |short: &str, state, acked: &str, wanted: &str| TypeSync {
            type_url: format!("type/{short}"),
            short: short.into(),
            state,
            resources: 3,
            acked: acked.into(),
            wanted: wanted.into(),
            ..TypeSync::default()
        };

        let (same, old) = ("0123456789abcdef", "fedcba9876543210");
        let mut types = vec![
            of("CDS", SyncState::Synced, same, same),
            of("LDS", SyncState::Stale, old, same),
            of("RDS", SyncState::Stale, "", same),
        ];

        let proxy = |types: &[TypeSync]| ProxyStatus {
            name: "reviews-v1-0".into(),
            namespace: "shop".into(),
            types: types.to_vec(),
            ..ProxyStatus::default()
        };

        let cells = |types: &[TypeSync]| {
            let control = Status {
                proxies: vec![proxy(types)],
                ..Status::default()
            };

            let whole = MeshStatus {
                workloads: vec![workload()],
                problems: Vec::new(),
                control: Some(control),
            };

            let text = table(&whole, true);
            let (header, row) = text.split_once('\n').unwrap();
            let begins = |column: &str| header.find(column).unwrap();
            let cell = |column: &str| {
                row[begins(column)..]
                    .split("   ")
                    .next()
                    .unwrap()
                    .trim()
                    .to_owned()
            };

            ["VERSION", "WANTED", "CDS", "EDS", "LDS", "RDS"].map(cell)
        };

        let [version, wanted, cds, eds, lds, rds] = cells(&types);
        assert_eq!((cds.as_str(), eds.as_str()), ("SYNCED 3 01234567", "-"));
        assert_eq!(
            (lds.as_str(), rds.as_str()),
            ("STALE 3 fedcba98->01234567", "STALE 3 none->01234567")
        );

        assert!(
            version != wanted && version.len() == 8 && wanted.len() == 8,
            "{version} {wanted}"
        );

        // The proxy catches up. The types are listed in another order, which must not matter.
        types.reverse();
        types
            .iter_mut()
            .for_each(|one| one.acked.clone_from(&one.wanted));
        let [version, now, ..] = cells(&types);
        assert_eq!((version, now), (wanted.clone(), wanted));
    }

    #[test]
    fn a_reason_for_many_resources_is_printed_once() {
        let rejection = |name: &str, reason: &str| Rejection {
            short: "LDS".into(),
            name: name.into(),
            reason: reason.into(),
            ..Rejection::default()
        };

        let rejections = vec![
            rejection("b", "no %CAUSE%\n"),
            rejection("a", "no %CAUSE%\n"),
            rejection("c", "other"),
        ];

        let proxy = ProxyStatus {
            name: "web-0".into(),
            rejections,
            ..ProxyStatus::default()
        };

        assert_eq!(
            rejection_lines(&proxy),
            [
                "warning: web-0 refuses LDS a, b: no %CAUSE%",
                "warning: web-0 refuses LDS c: other"
            ]
        );
    }

    #[test]
    fn a_gateways_published_ports_are_listed() {
        let mut gateway = workload();
        assert_eq!(published_ports(std::slice::from_ref(&gateway)), "");
        gateway.workload = "istio-ingressgateway".into();
        gateway.published = serde_json::from_value(serde_json::json!([
            {"port": 8080, "address": "127.0.0.1:8080", "gateway_ports": [80], "protocol": "Http"},
            {"port": 31400, "address": "127.0.0.1:31400", "gateway_ports": [31400], "protocol": "Tcp"},
        ]))
        .unwrap();

        assert_eq!(
            published_ports(&[workload(), gateway]),
            "\nistio-ingressgateway port 8080 (Gateway port 80): http://127.0.0.1:8080\n\
             istio-ingressgateway port 31400: 127.0.0.1:31400, TCP\n"
        );
    }

    #[test]
    fn without_a_control_plane_the_configuration_is_unknown() {
        let mut whole = MeshStatus {
            workloads: vec![workload()],
            problems: Vec::new(),
            control: None,
        };

        assert_eq!(row(&whole)[5..], ["meltemi", "UNKNOWN", "-"]);
        whole.control = Some(Status::default());
        assert_eq!(row(&whole)[5..], ["meltemi", "NOT CONNECTED", "-"]);
        whole.workloads[0].proxy_kind = ProxyKind::None;
        assert_eq!(row(&whole)[5..], ["-", "-", "-"]);
    }
}
