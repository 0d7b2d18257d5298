//! Files below `/etc` that differ for a workload: `resolv.conf`, `hosts` and `nsswitch.conf`. They
//! are written to the run folder and mounted over the machine's own.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// Writes the files of one workload below `folder`, with `resolver` as its name server. Returns the
/// mounts as (source, target).
pub(crate) fn write(
    folder: &Path,
    namespace: &str,
    pod: &str,
    address: Ipv4Addr,
    resolver: Ipv4Addr,
) -> io::Result<Vec<(PathBuf, PathBuf)>> {
    fs::create_dir_all(folder)?;
    let machine = fs::read_to_string("/etc/nsswitch.conf").unwrap_or_default();
    let files = [
        ("/etc/resolv.conf", resolv_conf(namespace, resolver)),
        (
            "/etc/hosts",
            format!("127.0.0.1\tlocalhost\n{address}\t{pod}\n"),
        ),
        ("/etc/nsswitch.conf", nsswitch(&machine)),
    ];

    let mut shown = Vec::new();
    for (target, text) in files {
        let source = folder.join(target.rsplit('/').next().unwrap_or(target));
        fs::write(&source, text)?;
        shown.push((source, PathBuf::from(target)));
    }

    Ok(shown)
}

fn resolv_conf(namespace: &str, resolver: Ipv4Addr) -> String {
    // The content that the kubelet writes. A workload with a sidecar queries the router's address
    // too, but its queries are captured and the sidecar answers.
    format!(
        "nameserver {resolver}\nsearch {namespace}.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
    )
}

/// The machine's `nsswitch.conf` with host names looked up in `/etc/hosts` and DNS only. Other
/// sources, such as systemd-resolved, are reached over a Unix socket, which network namespaces do
/// not isolate, and they do not know the mesh's names.
fn nsswitch(machine: &str) -> String {
    let others = machine
        .lines()
        .filter(|line| !line.trim_start().starts_with("hosts:"));
    let mut out: String = others.flat_map(|line| [line, "\n"]).collect();
    out.push_str("hosts: files dns\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_looked_up_by_dns_alone() {
        assert_eq!(
            nsswitch("passwd: files\nhosts: files resolve [!UNAVAIL=return] dns\n"),
            "passwd: files\nhosts: files dns\n"
        );
        assert!(
            resolv_conf("shop", Ipv4Addr::LOCALHOST)
                .contains("search shop.svc.cluster.local svc.cluster.local cluster.local")
        );
    }
}
