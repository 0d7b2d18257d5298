//! Network namespaces, held by a file descriptor: they live as long as it or a process in them.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::sys;

/// A network namespace of this node.
#[derive(Debug)]
pub(crate) struct Netns(OwnedFd);

impl Netns {
    /// Makes a new, empty namespace.
    pub(crate) fn create() -> io::Result<Self> {
        // The thread that enters the namespace ends at once: the rest of the process stays where it
        // is.
        on_a_thread(|| {
            sys::new_network_namespace()?;
            settings();
            Ok(Self(File::open("/proc/thread-self/ns/net")?.into()))
        })
    }

    /// Runs `work` with this namespace as the calling thread's.
    pub(crate) fn run<T: Send>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        on_a_thread(|| {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        })
    }

    /// Its descriptor, to be inherited by a launcher.
    pub(crate) fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| scope.spawn(work).join())
        .unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
}

/// Kernel settings of the calling thread's network namespace.
///
/// Each is best effort: what a kernel does not offer it does not need, and what matters shows in
/// the rules or addresses.
pub(crate) fn settings() {
    for (name, value) in [
        // A workload may bind port 80 without being root.
        ("ipv4/ip_unprivileged_port_start", "0"),
        ("ipv4/ping_group_range", "0 0"),
        ("ipv6/conf/all/disable_ipv6", "1"),
        ("ipv6/conf/default/disable_ipv6", "1"),
        // Values that a machine may have changed for itself, and new namespaces inherit.
        ("ipv4/ip_forward", "0"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        // Without it bridged traffic between pods would pass the router's rules and be relayed.
        ("bridge/bridge-nf-call-iptables", "0"),
        // Every captured connection is tracked; at many new ones a second the default of two
        // minutes fills the table.
        ("netfilter/nf_conntrack_tcp_timeout_time_wait", "5"),
        ("ipv4/tcp_tw_reuse", "1"),
        ("ipv4/ip_local_port_range", "20000 65000"),
    ] {
        if let Err(error) = fs::write(format!("/proc/sys/net/{name}"), value) {
            tracing::debug!(name, %error, "kernel setting left as it is");
        }
    }
}

/// True when a process of the calling thread's network namespace listens on a TCP port.
pub(crate) fn is_listening(port: u16) -> bool {
    ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .any(|table| lists_listener(&table, port))
}

/// Reads the kernel's table: local address and port in hexadecimal, state 0A is LISTEN.
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
