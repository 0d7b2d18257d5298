//! The sandbox of a workload, as Kubernetes calls it: what its programs find around them. A network
//! namespace, the cable to the bridge, capture rules, resolver files.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use meltemi_redirect::{RuleSet, apply};

use crate::context::Context;
use crate::netns::Netns;
use crate::network::{POD_PREFIX, PROXY_RESOLVER, ROUTER};
use crate::spec::WorkloadSpec;
use crate::{links, surroundings};

/// What stands ready for a workload's programs.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) netns: Netns,
    pub(crate) address: Ipv4Addr,
    /// Files that the application is shown: (source, target).
    pub(crate) files: Vec<(PathBuf, PathBuf)>,
    /// The same for the proxy, whose queries are not captured.
    pub(crate) proxy_files: Vec<(PathBuf, PathBuf)>,
}

impl Sandbox {
    /// Makes a workload's sandbox, with its files below `folder`.
    pub(crate) async fn create(
        context: &Context,
        spec: &WorkloadSpec,
        address: Ipv4Addr,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let netns = Netns::create().context("creating its network namespace")?;

        // Left over from a workload of this name that has just ended.
        let _ = links::disconnect_workload(address);
        links::connect_workload(&netns, address, POD_PREFIX, ROUTER)
            .context("connecting it to the bridge")?;
        if spec.is_meshed() && !spec.is_gateway() {
            let (plan, problems) = spec.capture();
            for problem in problems {
                context
                    .warn(format!("workload {}: {problem}", spec.key))
                    .await;
            }
            apply_within(&netns, &plan.rules()).context("applying its capture rules")?;
        }

        let files = |name: &str, resolver| {
            surroundings::write(
                &folder.join(name),
                &spec.key.namespace,
                &spec.key.pod,
                address,
                resolver,
            )
            .context("writing its resolver's files")
        };

        Ok(Self {
            address,
            files: files("etc", ROUTER)?,
            proxy_files: files("proxy-etc", PROXY_RESOLVER)?,
            netns,
        })
    }

    /// Puts rules in place of those of the same table.
    pub(crate) fn apply(&self, rules: &RuleSet) -> io::Result<()> {
        apply_within(&self.netns, rules)
    }
}

fn apply_within(netns: &Netns, rules: &RuleSet) -> io::Result<()> {
    netns.run(|| apply(rules).map_err(io::Error::other))
}

/// Takes away what is left of a sandbox, whole or half made; its network namespace ends with
/// whoever holds it last.
pub(crate) fn remove(address: Ipv4Addr, folder: &Path) {
    let _ = links::disconnect_workload(address);
    for name in ["etc", "proxy-etc"] {
        let _ = std::fs::remove_dir_all(folder.join(name));
    }
}
