//! Turns Deployments into the replicas that the node should run, and reports what it cannot run.
//! Pure: objects, image maps and proxy choice in, specifications and problems out.

use std::collections::BTreeMap;

use meltemi_api::core::{Container, DeploymentSpec, EnvVar};
use meltemi_api::{Object, Spec};
use meltemi_types::Labels;
use serde_json::Value;

use crate::images::ImageMap;
use crate::network::ROUTER;
use crate::spec::{
    ContainerPort, Origin, POD_IP, Program, ProxyChoice, ProxyKind, WorkloadKey, WorkloadSpec,
};

/// Replicas started for one Deployment at most: a larger number is taken for a mistake.
const MAX_REPLICAS: i32 = 100;
/// Label or annotation that turns sidecar injection off with `false`.
const INJECT: &str = "sidecar.istio.io/inject";
/// Annotation that chooses stock Envoy as the sidecar.
pub(crate) const PROXY_ANNOTATION: &str = "meltemi.io/proxy";

/// Returns the replicas that the objects ask for, and a message for each Deployment that cannot run
/// as written.
pub(crate) fn plan_replicas<'a>(
    objects: impl IntoIterator<Item = &'a Object> + Clone,
    images: &[ImageMap],
    proxies: &ProxyChoice,
) -> (BTreeMap<WorkloadKey, WorkloadSpec>, Vec<String>) {
    let mut specs = BTreeMap::new();
    let mut problems = Vec::new();

    // Istio: a namespace labelled `istio-injection: disabled` gets no sidecars.
    let unmeshed: Vec<&str> = objects
        .clone()
        .into_iter()
        .filter(|o| {
            matches!(o.spec, Spec::Namespace)
                && o.meta.labels.value("istio-injection") == Some("disabled")
        })
        .map(|o| o.meta.name.as_str())
        .collect();

    for object in objects {
        if let Spec::Deployment(deployment) = &object.spec {
            let is_meshed = !unmeshed.contains(&object.meta.namespace.as_str());
            add_replicas(
                object,
                deployment,
                is_meshed,
                (images, proxies),
                &mut specs,
                &mut problems,
            );
        }
    }

    (specs, problems)
}

fn add_replicas(
    object: &Object,
    deployment: &DeploymentSpec,
    is_meshed: bool,
    (images, proxies): (&[ImageMap], &ProxyChoice),
    specs: &mut BTreeMap<WorkloadKey, WorkloadSpec>,
    problems: &mut Vec<String>,
) {
    let position_of = |field: &str| {
        let at = object.source.position(field);
        format!(
            "{}:{}: Deployment {}/{}",
            at.file, at.line, object.meta.namespace, object.meta.name
        )
    };

    let template = &deployment.template;

    // A workload is one process tree: run the first container that is not the injected proxy.
    let Some(container) = template
        .spec
        .containers
        .iter()
        .find(|c| c.name != "istio-proxy")
    else {
        problems.push(format!(
            "{}: it has no container",
            position_of("spec.template.spec")
        ));
        return;
    };

    if template.spec.containers.len() > 1 {
        problems.push(format!(
            "{}: only its first container, {}, is started; on one machine a workload is one program",
            position_of("spec.template.spec.containers"),
            container.name
        ));
    }

    let Some(program) = program(container, images) else {
        problems.push(format!(
            "{}: image {} is no program of this machine; add it to the image map, or give the container a command",
            position_of("spec.template.spec.containers"),
            container.image
        ));
        return;
    };

    let wanted = deployment.replicas.unwrap_or(1);
    let count = wanted.clamp(0, MAX_REPLICAS);
    if count != wanted {
        problems.push(format!(
            "{}: {wanted} replicas; {count} are started",
            position_of("spec.replicas")
        ));
    }

    // The pod's own label or annotation overrides the namespace's label, as Istio's injector does.
    let labels = &template.metadata.labels;
    let annotations = &template.metadata.annotations;
    let inject = labels
        .value(INJECT)
        .or(annotations.get(INJECT).map(String::as_str));
    let proxy = match (
        inject,
        annotations.get(PROXY_ANNOTATION).map(String::as_str),
    ) {
        (Some("false"), _) => ProxyKind::None,
        (None, _) if !is_meshed => ProxyKind::None,
        (_, Some("envoy")) => ProxyKind::Envoy,
        _ => proxies.kind_of(&object.meta.name),
    };

    for index in 0..count {
        let key = WorkloadKey {
            namespace: object.meta.namespace.clone(),
            pod: format!("{}-{index}", object.meta.name),
        };

        let spec = WorkloadSpec {
            key: key.clone(),
            workload: object.meta.name.clone(),
            origin: Origin::Deployment,
            service_account: template.spec.account().to_owned(),
            labels: labels.clone(),
            annotations: annotations.clone(),
            proxy,
            app: Some(program.clone()),
            ports: ports(container),
            container: container.name.clone(),
            image: container.image.clone(),
        };

        specs.insert(key.clone(), with_pod_env(spec, container));
    }
}

fn ports(container: &Container) -> Vec<ContainerPort> {
    let protocol = |text: &str| {
        if text.is_empty() {
            "TCP".to_owned()
        } else {
            text.to_owned()
        }
    };

    let port = |p: &meltemi_api::core::ContainerPort| ContainerPort {
        name: p.name.clone(),
        number: p.container_port,
        protocol: protocol(&p.protocol),
    };

    container.ports.iter().map(port).collect()
}

/// The program of a container: the image map's entry, else the container's `command` and `args` as
/// Kubernetes combines them. `None` if neither names a program.
fn program(container: &Container, images: &[ImageMap]) -> Option<Program> {
    let entry = images.iter().find_map(|map| map.find(&container.image));
    let mut argv = match (&container.command[..], entry) {
        // The entry replaces the container's command, whose paths exist only inside the image.
        (_, Some(entry)) => entry.command.clone(),
        ([], None) => return None,
        (command, None) => command.to_vec(),
    };

    // Without a `command`, `args` are arguments of the image's entry point. With one, they belong
    // to that command, which the entry replaced.
    match entry {
        Some(_) if !container.command.is_empty() => {}
        _ => argv.extend(container.args.iter().cloned()),
    }

    // An empty program name stands for this binary, wherever it is installed.
    if argv.first().is_some_and(|program| program == "meltemi") {
        argv[0].clear();
    }
    let cwd = match (container.working_dir.as_str(), entry) {
        (_, Some(entry)) => entry.cwd.clone(),
        ("", None) => None,
        (dir, None) => Some(dir.into()),
    };

    Some(Program {
        argv,
        env: entry.map(|e| e.env.clone()).unwrap_or_default(),
        cwd,
    })
}

/// Adds the container's own environment. References to the pod's address become [`POD_IP`],
/// replaced once the pod has an address.
fn with_pod_env(mut spec: WorkloadSpec, container: &Container) -> WorkloadSpec {
    let mut env = spec
        .app
        .as_ref()
        .map(|app| app.env.clone())
        .unwrap_or_default();

    for EnvVar {
        name,
        value,
        value_from,
        ..
    } in &container.env
    {
        let value = match value_from {
            None => expand(value, &env),
            Some(source) => match field_reference(source, &spec) {
                Some(value) => value,
                None => continue,
            },
        };
        env.insert(name.clone(), value);
    }

    if let Some(app) = &mut spec.app {
        for word in &mut app.argv {
            *word = expand(word, &env);
        }
        app.env = env;
    }

    spec
}

/// The value of `valueFrom.fieldRef` (the downward API); `None` for a field that the node does not
/// offer.
fn field_reference(source: &Value, spec: &WorkloadSpec) -> Option<String> {
    let path = source.get("fieldRef")?.get("fieldPath")?.as_str()?;
    let labels: &Labels = &spec.labels;
    Some(match path {
        "metadata.name" => spec.key.pod.clone(),
        "metadata.namespace" => spec.key.namespace.clone(),
        "spec.serviceAccountName" => spec.service_account.clone(),
        "spec.nodeName" => "meltemi".to_owned(),
        "status.podIP" => POD_IP.to_owned(),
        "status.hostIP" => ROUTER.to_string(),
        _ => {
            let key = path.strip_prefix("metadata.labels['")?.strip_suffix("']")?;
            labels.value(key)?.to_owned()
        }
    })
}

/// Expands `$(NAME)` as Kubernetes does: an unknown name stays as written, `$$` is a dollar sign.
fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')'))
            && let Some(value) = env.get(name)
        {
            out.push_str(value);
            rest = after;
        } else {
            out.push('$');
        }
    }

    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(yaml: &str, map: &str) -> (BTreeMap<WorkloadKey, WorkloadSpec>, Vec<String>) {
        let (objects, diagnostics) = meltemi_api::parse_documents("t.yaml", yaml);
        assert!(diagnostics.is_empty(), "{diagnostics:?}");
        let proxies = ProxyChoice::parse(&["chosen=envoy".to_owned()]).unwrap();
        plan_replicas(
            objects.iter(),
            &[ImageMap::parse("map", map).unwrap()],
            &proxies,
        )
    }

    const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: reviews-v1, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: reviews}}
  template:
    metadata:
      labels: {app: reviews, version: v1}
      annotations: {traffic.sidecar.istio.io/excludeOutboundPorts: "25, 26"}
    spec:
      serviceAccountName: bookinfo
      containers:
      - name: reviews
        image: docker.io/istio/examples-bookinfo-reviews-v1:1.20.3
        env:
        - {name: LOG_DIR, value: /tmp/logs}
        - {name: FILE, value: $(LOG_DIR)/a$$(X)}
        - name: ME
          valueFrom: {fieldRef: {fieldPath: metadata.name}}
        ports: [{containerPort: 9080}]
"#;

    #[test]
    fn replicas_become_workloads() {
        let (specs, problems) = plan(
            DEPLOYMENT,
            "images: [{image: examples-bookinfo-reviews-v1, command: [meltemi, sample, reviews], env: {LOG_DIR: /x}}]",
        );

        assert_eq!(problems, Vec::<String>::new());
        let names: Vec<_> = specs.keys().map(ToString::to_string).collect();
        assert_eq!(names, ["shop/reviews-v1-0", "shop/reviews-v1-1"]);
        let spec = &specs.values().next().unwrap();
        let app = spec.app.as_ref().unwrap();
        assert_eq!(app.argv, ["", "sample", "reviews"]);
        assert_eq!(app.env["FILE"], "/tmp/logs/a$(X)");
        assert_eq!(app.env["ME"], "reviews-v1-0");
        assert_eq!(
            (
                spec.service_account.as_str(),
                spec.proxy,
                spec.ports[0].number
            ),
            ("bookinfo", ProxyKind::Meltemi, 9080)
        );

        assert_eq!(spec.capture().0.exclude_outbound_ports, [25, 26]);
    }

    #[test]
    fn an_unknown_image_is_named_with_its_line() {
        let (specs, problems) = plan(DEPLOYMENT, "images: []");
        assert!(specs.is_empty());
        assert!(
            problems[0].starts_with("t.yaml:")
                && problems[0].contains("reviews-v1:1.20.3 is no program"),
            "{problems:?}"
        );

        let with_command = DEPLOYMENT.replace(
            "        env:",
            "        command: [python3, -m, http.server]\n        args: ['9080']\n        env:",
        );

        let (specs, _) = plan(&with_command, "images: []");
        assert_eq!(
            specs.values().next().unwrap().app.as_ref().unwrap().argv,
            ["python3", "-m", "http.server", "9080"]
        );
    }

    #[test]
    fn injection_can_be_declined() {
        let label = DEPLOYMENT.replace(
            "version: v1}",
            "version: v1, sidecar.istio.io/inject: 'false'}",
        );

        let map = "images: [{image: '*', command: [x]}]";
        assert!(
            plan(&label, map)
                .0
                .values()
                .all(|s| s.proxy == ProxyKind::None)
        );

        let namespace = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{istio-injection: disabled}}}}\n---{DEPLOYMENT}"
        );
        assert!(
            plan(&namespace, map)
                .0
                .values()
                .all(|s| s.proxy == ProxyKind::None)
        );

        let envoy = DEPLOYMENT.replace("annotations: {", "annotations: {meltemi.io/proxy: envoy, ");
        assert!(
            plan(&envoy, map)
                .0
                .values()
                .all(|s| s.proxy == ProxyKind::Envoy)
        );

        let chosen = DEPLOYMENT.replace("name: reviews-v1,", "name: chosen,");
        assert!(
            plan(&chosen, map)
                .0
                .values()
                .all(|s| s.proxy == ProxyKind::Envoy)
        );

        assert!(
            ProxyChoice::parse(&["nginx".to_owned()])
                .unwrap_err()
                .contains("\"nginx\" is no proxy")
        );
    }
}
