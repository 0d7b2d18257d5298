//! Says in `logs -c proxy` that requests are not in the output, and what to do about it.

use meltemi_admin_api::ProxyStatus;
use meltemi_node::api::{Target, WorkloadStatus};

use crate::mesh::Mesh;
use crate::output::note;

/// Prints a note if the proxy of a workload writes no access log, or writes it elsewhere. Says
/// nothing while the proxy is not connected: its configuration is not known then.
pub(crate) async fn note_missing(mesh: &Mesh, target: &Target, asked_for_proxy: bool) {
    let is_own = |namespace: &str, workload: &str, pod: &str| {
        namespace == target.namespace && (workload == target.name || pod == target.name)
    };

    if !asked_for_proxy {
        // A gateway's only output is its proxy's.
        let all = mesh.node().list().await.unwrap_or_default();
        let is_gateway = |one: &WorkloadStatus| {
            one.app.is_none() && is_own(&one.key.namespace, &one.workload, &one.key.pod)
        };
        if !all.iter().any(is_gateway) {
            return;
        }
    }

    let Ok(status) = mesh.control().status().await else {
        return;
    };
    let proxy = status
        .proxies
        .iter()
        .find(|proxy| is_own(&proxy.namespace, &proxy.workload, &proxy.name));
    if let Some(text) = proxy.and_then(|proxy| missing(proxy, mesh)) {
        note(text);
    }
}

/// The note for a proxy whose requests are not in its output.
fn missing(proxy: &ProxyStatus, mesh: &Mesh) -> Option<String> {
    const OUTPUTS: [&str; 4] = [
        "/dev/stdout",
        "/dev/stderr",
        "/proc/self/fd/1",
        "/proc/self/fd/2",
    ];

    let name = &proxy.name;
    match proxy.access_logs.as_slice() {
        [] => Some(format!(
            "note: {name} writes no access log. Set `accessLogFile: /dev/stdout` in the ConfigMap istio \
             (`{meltemi} get configmap istio -n istio-system -o yaml`), or remove what disables it \
             (`{meltemi} get telemetries -A`).",
            meltemi = mesh.command()
        )),
        paths if paths.iter().any(|path| OUTPUTS.contains(&path.as_str())) => None,
        paths => Some(format!(
            "note: {name} writes its access log to {}, not to this output.",
            paths.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_off_or_elsewhere_is_named_with_the_remedy() {
        let said = |paths: &[&str]| {
            let proxy = ProxyStatus {
                name: "web-0".to_owned(),
                access_logs: paths.iter().map(|path| (*path).to_owned()).collect(),
                ..ProxyStatus::default()
            };
            missing(&proxy, &Mesh::new("shop", None))
        };

        let off = said(&[]).expect("a note");
        assert!(
            off.contains("accessLogFile: /dev/stdout")
                && off.contains("meltemi --mesh shop get configmap"),
            "{off}"
        );
        assert_eq!(said(&["/dev/stdout", "/tmp/log"]), None);
        assert!(said(&["/tmp/log"]).expect("a note").contains("to /tmp/log"));
    }
}
