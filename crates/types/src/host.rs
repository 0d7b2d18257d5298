//! Names of hosts: DNS labels, and the names under which an interface for this machine answers.

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

/// Whether `text` is a DNS label as RFC 1123 §2.1 has it, in lower case: 1 to 63 letters, digits
/// and inner hyphens.
pub fn is_dns_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
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

    #[test]
    fn labels_have_1_to_63_letters_digits_and_inner_hyphens() {
        for good in ["a", "0", "reviews-v1", &"a".repeat(63)] {
            assert!(is_dns_label(good), "{good}");
        }
        for wrong in ["", "-a", "a-", "A", "a.b", "a_b", "é", &"a".repeat(64)] {
            assert!(!is_dns_label(wrong), "{wrong}");
        }
    }
}
