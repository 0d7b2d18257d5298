//! Builds the launch specification of a workload's application and the command line of its proxy.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use crate::context::Context;
use crate::launch::{Identity, LaunchSpec};
use crate::network::{CONTROL_PORT, ROUTER};
use crate::pods;
use crate::sandbox::Sandbox;
use crate::spec::{POD_IP, ProxyKind, WorkloadSpec};

/// How to launch the workload's application, or the program that `exec` put in its place. `None`
/// for gateways, which have no application.
pub(crate) fn app_spec(
    context: &Context,
    spec: &WorkloadSpec,
    sandbox: &Sandbox,
) -> Option<LaunchSpec> {
    let program = spec.app.as_ref()?;
    let mut env = context.app_env(spec);
    env.extend(program.env.clone());

    // The address was unknown when the specification was made.
    for value in env.values_mut().filter(|value| *value == POD_IP) {
        *value = sandbox.address.to_string();
    }
    // A program that is this binary would be shown by `ps` as `exe`: give it a title.
    let is_this_binary = program.argv.first().is_some_and(String::is_empty);

    Some(LaunchSpec {
        argv: program.argv.clone(),
        title: is_this_binary.then(|| format!("meltemi: {} {}", spec.container, spec.key.pod)),
        env: env.into_iter().collect(),
        cwd: program.cwd.clone(),
        netns: Some(sandbox.netns.raw()),
        files: sandbox.files.clone(),
        hide: context.config.covered.clone(),
        isolate: Some(Identity {
            uid: context.config.uid,
            gid: context.config.gid,
            hostname: spec.key.pod.clone(),
        }),
        umask: Some(context.config.umask),
        open_files: context.config.open_files,
        ..LaunchSpec::default()
    })
}

/// Command line of a sidecar or gateway: identity, labels, control plane, and the inherited
/// descriptor of its token.
pub(crate) fn proxy_arguments(
    context: &Context,
    spec: &WorkloadSpec,
    kind: ProxyKind,
    address: Ipv4Addr,
    own_folder: &Path,
    token: i32,
) -> Vec<String> {
    let labels: Vec<String> = pods::labels(spec)
        .iter()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();

    let config = &context.config;
    let node_type = if spec.is_gateway() {
        "router"
    } else {
        "sidecar"
    };

    let id = format!(
        "{node_type}~{address}~{}.{ns}~{ns}.svc.cluster.local",
        spec.key.pod,
        ns = spec.key.namespace
    );

    let mut argv: Vec<String> = vec![String::new(), "sidecar".into()];
    let mut flag = |name: &str, value: String| argv.extend([format!("--{name}"), value]);
    flag("id", id);
    flag("namespace", spec.key.namespace.clone());
    flag("service-account", spec.service_account.clone());
    flag("pod", spec.key.pod.clone());
    flag("workload", spec.workload.clone());
    flag("labels", labels.join(","));
    if !spec.annotations.is_empty() {
        flag(
            "annotations",
            serde_json::json!(spec.annotations).to_string(),
        );
    }

    flag("ip", address.to_string());
    flag(
        "control",
        SocketAddr::from((ROUTER, CONTROL_PORT)).to_string(),
    );

    flag(
        "root-cert",
        config.run_dir.join("root-cert.pem").display().to_string(),
    );

    flag("token-fd", token.to_string());
    flag("mark", meltemi_redirect::plan::PROXY_MARK.to_string());
    flag("run-dir", own_folder.display().to_string());
    if spec.is_gateway() {
        if let Some(socket) = context.host_socket(spec) {
            flag("host-socket", socket.display().to_string());
        }
        argv.push("--router".into());
    } else if kind == ProxyKind::Envoy {
        flag("proxy", "envoy".into());
        if let Some(envoy) = &config.envoy {
            flag("envoy-path", envoy.display().to_string());
        }
    }

    argv.extend(config.sidecar_args.iter().cloned());

    argv
}
