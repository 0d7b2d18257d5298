//! Words that some crates must not use.

use super::imports::PURE;
use super::paths::Code;
use super::source::Source;

/// A sentence of `ARCHITECTURE.md` as paths that code must not name.
struct Rule {
    applies: fn(crate_name: &str) -> bool,
    /// Code that only tests compile must keep the rule as well.
    in_tests: bool,
    paths: &'static [&'static str],
    why: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        applies: |name| PURE.contains(&name),
        in_tests: false,
        paths: &[
            "SystemTime::now",
            "Instant::now",
            "thread::spawn",
            "thread::sleep",
            "std::env",
            "std::fs",
            "std::net::TcpListener",
            "std::net::TcpStream",
            "std::net::UdpSocket",
            "std::process",
        ],
        why: "a pure crate has no IO, no clock and no randomness",
    },
    Rule {
        applies: |name| !["net", "redirect", "node"].contains(&name),
        in_tests: true,
        paths: &["unsafe"],
        why: "only net, redirect and node hold unsafe code",
    },
    Rule {
        applies: |name| name != "tls",
        in_tests: false,
        paths: &[
            "CryptoProvider",
            "default_provider",
            "rustls::crypto",
            "ServerConfig::builder",
            "ClientConfig::builder",
        ],
        why: "only tls picks the crypto provider",
    },
];

pub fn check(source: &Source) -> Vec<String> {
    let shipped = Code::of(&source.shipped);
    let whole = Code::of(&source.whole);
    let mut found = Vec::new();
    for rule in RULES.iter().filter(|rule| (rule.applies)(&source.name)) {
        let code = if rule.in_tests { &whole } else { &shipped };
        for path in rule.paths {
            for line in code.lines_with(path) {
                found.push(format!("{}:{line}: `{path}`: {}", source.shown, rule.why));
            }
        }
    }

    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, text: &str) -> Vec<String> {
        check(&Source::parse(name, text).expect("it parses"))
    }

    #[test]
    fn a_pure_crate_has_no_clock_outside_its_tests() {
        let text =
            "#[cfg(test)]\nmod tests { fn a() { Instant::now(); } }\nfn b() {\n Instant::now();\n}";

        assert_eq!(
            found("model", text),
            ["code.rs:4: `Instant::now`: a pure crate has no IO, no clock and no randomness"]
        );
        assert_eq!(found("proxy", text), Vec::<String>::new());
    }

    #[test]
    fn unsafe_code_is_refused_in_tests_as_well() {
        let text = "#[cfg(test)]\nmod tests { fn a() { unsafe { b() } } }";

        assert_eq!(
            found("proxy", text),
            ["code.rs:2: `unsafe`: only net, redirect and node hold unsafe code"]
        );
        assert_eq!(found("net", text), Vec::<String>::new());
        assert_eq!(
            found("proxy", "#![deny(unsafe_code)]"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn only_tls_names_a_crypto_provider() {
        let text = "use rustls::crypto::aws_lc_rs;";

        assert_eq!(found("net", text).len(), 1);
        assert_eq!(found("tls", text), Vec::<String>::new());
    }
}
