//! What an interface for this machine lets itself be called.

use std::net::IpAddr;

/// Whether a request's `Host` is `localhost` or an address, with or without port. A web page in a
/// browser can reach a loopback address under a name of its own (DNS rebinding), but not under
/// these.
pub fn is_local_host(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_local_names_and_addresses_pass() {
        for local in [
            "localhost",
            "LOCALHOST:15014",
            "127.0.0.1:15014",
            "[::1]:15014",
            "10.0.0.1",
        ] {
            assert!(is_local_host(local), "{local}");
        }

        for foreign in [
            "",
            "evil.example",
            "evil.example:15014",
            "localhost.evil.example",
        ] {
            assert!(!is_local_host(foreign), "{foreign}");
        }
    }
}
