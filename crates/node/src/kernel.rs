//! Checks the kernel features that the node needs, and explains to the user how to enable what is
//! missing.

use std::fs;

use crate::links;
use crate::netns::Netns;
use crate::network::{POD_PREFIX, ROUTER};

/// Describes a failure to set up namespaces: the error, its likely reason on this machine, and the
/// remedy.
pub(crate) fn explain(error: &anyhow::Error) -> String {
    let read = |path: &str| {
        fs::read_to_string(path)
            .ok()
            .map(|text| text.trim().to_owned())
    };

    let is = |path: &str, value: &str| read(path).as_deref() == Some(value);
    let reason = if is(
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
    ) {
        "AppArmor restricts user namespaces of ordinary users on this machine. As root: \
         `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`, or give this program an AppArmor profile with `userns,`"
    } else if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        "user namespaces of ordinary users are switched off on this machine. As root: `sysctl -w kernel.unprivileged_userns_clone=1`"
    } else if is("/proc/sys/user/max_user_namespaces", "0") {
        "user namespaces are switched off on this machine. As root: `sysctl -w user.max_user_namespaces=10000`"
    } else if fs::metadata("/proc/self/ns/user").is_err() {
        "this kernel was built without user namespaces (CONFIG_USER_NS)"
    } else if fs::metadata("/.dockerenv").is_ok() || fs::metadata("/run/.containerenv").is_ok() {
        "this is a container that forbids namespaces. Start it with `--security-opt seccomp=unconfined \
         --security-opt systempaths=unconfined`, or with `--privileged`"
    } else {
        "a security policy (seccomp, SELinux, a limit in /proc/sys/user) forbids it"
    };

    format!("{error:#}: {reason}")
}

/// Creates and removes a network namespace with a veth pair, so that a missing kernel feature is
/// one clear message instead of a failure of every workload.
pub(crate) fn check() -> Result<(), String> {
    let netns = Netns::create()
        .map_err(|e| explain(&anyhow::Error::from(e).context("creating a network namespace")))?;
    let probe = std::net::Ipv4Addr::new(10, 44, 255, 254);
    links::connect_workload(&netns, probe, POD_PREFIX, ROUTER).map_err(|e| {
        format!("cannot create a veth pair ({e}): the kernel lacks it (CONFIG_VETH); as root: `modprobe veth`")
    })?;
    let _ = links::disconnect_workload(probe);
    Ok(())
}

/// Describes a failure to create the bridge, with the remedy.
pub(crate) fn explain_router(error: &std::io::Error) -> String {
    format!(
        "cannot set up the bridge ({error}): the kernel lacks it (CONFIG_BRIDGE); as root: `modprobe bridge`"
    )
}
