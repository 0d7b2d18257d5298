//! The sandbox of a workload (the pod sandbox of Kubernetes): a network namespace, a veth pair to
//! the bridge, capture rules, and resolver files.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use meltemi_redirect::{RuleSet, apply};

use crate::context::Context;
use crate::netns::Netns;
use crate::network::{POD_PREFIX, PROXY_RESOLVER, ROUTER};
use crate::spec::WorkloadSpec;
use crate::{etc_files, links};

/// A sandbox in which a workload's programs can start.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) netns: Netns,
    pub(crate) address: Ipv4Addr,
    /// Files mounted for the application, as (source, target).
    pub(crate) files: Vec<(PathBuf, PathBuf)>,
    /// Files mounted for the proxy, which queries another resolver address: its queries must not be
    /// captured.
    pub(crate) proxy_files: Vec<(PathBuf, PathBuf)>,
}

impl Sandbox {
    /// Creates a workload's sandbox, with its files below `folder`.
    pub(crate) async fn create(
        context: &Context,
        spec: &WorkloadSpec,
        address: Ipv4Addr,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let netns = Netns::create().context("creating its network namespace")?;

        // The link of an earlier workload with this address may still exist, since the kernel
        // removes it some time after the last process ended.
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
            etc_files::write(
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

    /// Replaces the rules of the same nf_tables table in the sandbox.
    pub(crate) fn apply(&self, rules: &RuleSet) -> io::Result<()> {
        apply_within(&self.netns, rules)
    }
}

fn apply_within(netns: &Netns, rules: &RuleSet) -> io::Result<()> {
    netns.run(|| apply(rules).map_err(io::Error::other))
}

/// Removes the link and the files of a sandbox, even one that was only half created. The network
/// namespace ends when its last holder does.
pub(crate) fn remove(address: Ipv4Addr, folder: &Path) {
    let _ = links::disconnect_workload(address);
    for name in ["etc", "proxy-etc"] {
        let _ = std::fs::remove_dir_all(folder.join(name));
    }
}
