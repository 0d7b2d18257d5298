//! Network namespaces, each held by a file descriptor. A namespace lives until the descriptor is
//! closed and the last process in it has ended.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::sys;

/// A network namespace of this node.
#[derive(Debug)]
pub(crate) struct Netns(OwnedFd);

impl Netns {
    /// Creates an empty namespace and applies [`settings`] to it.
    pub(crate) fn create() -> io::Result<Self> {
        // Only the new thread enters the namespace, and it ends at once: all other threads stay in
        // the router's namespace.
        on_a_thread(|| {
            sys::new_network_namespace()?;
            settings();
            Ok(Self(File::open("/proc/thread-self/ns/net")?.into()))
        })
    }

    /// Runs `work` on a thread of its own within this namespace.
    pub(crate) fn run<T: Send>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        on_a_thread(|| {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        })
    }

    /// The descriptor, for a launcher to inherit.
    pub(crate) fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| scope.spawn(work).join())
        .unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
}

/// Applies kernel settings to the calling thread's network namespace.
///
/// Every setting is best effort, since kernels differ in what they offer. A setting that matters
/// and is missing shows later, when rules or addresses are applied.
pub(crate) fn settings() {
    for (name, value) in [
        // A workload may bind port 80 without being root.
        ("ipv4/ip_unprivileged_port_start", "0"),
        ("ipv4/ping_group_range", "0 0"),
        ("ipv6/conf/all/disable_ipv6", "1"),
        ("ipv6/conf/default/disable_ipv6", "1"),
        // New namespaces inherit these from the machine, where an administrator may have changed
        // them.
        ("ipv4/ip_forward", "0"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        // With 1, traffic between pods on the bridge would traverse the router's rules and be
        // relayed.
        ("bridge/bridge-nf-call-iptables", "0"),
        // Every captured connection takes an entry of the connection-tracking table. With the
        // default of 120 s, thousands of new connections per second fill it.
        ("netfilter/nf_conntrack_tcp_timeout_time_wait", "5"),
        ("ipv4/tcp_tw_reuse", "1"),
        ("ipv4/ip_local_port_range", "20000 65000"),
    ] {
        if let Err(error) = fs::write(format!("/proc/sys/net/{name}"), value) {
            tracing::debug!(name, %error, "kernel setting left as it is");
        }
    }
}

/// Whether a process in the calling thread's network namespace wait_until_listening on a TCP port.
pub(crate) fn is_listening(port: u16) -> bool {
    ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .any(|table| lists_listener(&table, port))
}

/// Whether a table in the format of `/proc/net/tcp` lists a listener on `port`: addresses are
/// hexadecimal, state 0A is `TCP_LISTEN`.
fn lists_listener(table: &str, port: u16) -> bool {
    table.lines().skip(1).any(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let local = words.next().and_then(|address| address.rsplit(':').next());
        let state = words.nth(1);
        state == Some("0A") && local.and_then(|p| u16::from_str_radix(p, 16).ok()) == Some(port)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue\n   \
            0: 00000000:2378 00000000:0000 0A 00000000:00000000\n   \
            1: 0100007F:1F90 0100007F:C350 01 00000000:00000000\n";
        assert!(lists_listener(table, 9080));
        assert!(!lists_listener(table, 8080));
        assert!(!lists_listener("", 1));
    }
}
