//! Renders a rule set as text for `iptables-restore --noflush` and `ip6tables-restore`.
//!
//! Declaring a chain flushes it, so a second run replaces our chains. It would duplicate the jumps
//! from the built-in chains, which [`Entry::Present`] therefore leaves out.

use std::fmt::Write as _;

use meltemi_types::Cidr;

use crate::rules::{Chain, Hook, Match, Rule, RuleSet, Verdict};

/// Whether the built-in chains already jump to our chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// No: insert the jumps (first run).
    Absent,
    /// Yes: replace the chains only.
    Present,
}

/// Renders the rules of one address family.
pub fn iptables(rules: &RuleSet, ipv6: bool, entry: Entry) -> String {
    let mut out = String::new();
    for table in TABLES {
        let chains = || rules.chains.iter().filter(|chain| table_of(chain) == table);
        if chains().next().is_none() {
            continue;
        }
        let _ = writeln!(out, "*{table}");
        for chain in chains() {
            let _ = writeln!(out, ":{} - [0:0]", name(chain.name));
        }
        for chain in chains() {
            for rule in chain.rules.iter().filter(|r| RuleSet::fits(r, ipv6)) {
                let _ = writeln!(out, "-A {}{}", name(chain.name), arguments(rule));
            }
            if let (Some(hook), Entry::Absent) = (chain.hook, entry) {
                let _ = writeln!(out, "-I {} -j {}", builtin(hook), name(chain.name));
            }
        }

        out.push_str("COMMIT\n");
    }

    out
}

/// Renders the text that removes the rules. `iptables-restore` fails on it if the rules are not in
/// place.
pub fn iptables_remove(rules: &RuleSet) -> String {
    let mut out = String::new();
    for table in TABLES {
        let chains = || rules.chains.iter().filter(|chain| table_of(chain) == table);
        if chains().next().is_none() {
            continue;
        }
        let _ = writeln!(out, "*{table}");
        for chain in chains() {
            if let Some(hook) = chain.hook {
                let _ = writeln!(out, "-D {} -j {}", builtin(hook), name(chain.name));
            }
        }

        // Flush all chains before deleting any: a chain that another one jumps to cannot be
        // deleted.
        for command in ["-F", "-X"] {
            for chain in chains() {
                let _ = writeln!(out, "{command} {}", name(chain.name));
            }
        }

        out.push_str("COMMIT\n");
    }

    out
}

const TABLES: [&str; 2] = ["raw", "nat"];

/// The table of a chain. Chains without a hook belong to `nat`, since only chains of that table
/// jump to them.
fn table_of(chain: &Chain) -> &'static str {
    if chain.hook.is_some_and(Hook::is_raw) {
        "raw"
    } else {
        "nat"
    }
}

fn name(chain: &str) -> String {
    format!("MELTEMI_{}", chain.to_ascii_uppercase())
}

fn builtin(hook: Hook) -> &'static str {
    if hook.is_arriving() {
        "PREROUTING"
    } else {
        "OUTPUT"
    }
}

/// Always with the prefix length, as `iptables-save` prints it.
fn block(block: &Cidr) -> String {
    format!("{}/{}", block.address(), block.prefix())
}

fn arguments(rule: &Rule) -> String {
    let mut out = String::new();
    for condition in &rule.matches {
        let _ = match condition {
            Match::Transport(t) => write!(out, " -p {}", t.name()),
            Match::Port(p) => write!(out, " --dport {p}"),
            Match::NotPort(p) => write!(out, " ! --dport {p}"),
            Match::SourcePort(p) => write!(out, " --sport {p}"),
            Match::To(c) => write!(out, " -d {}", block(c)),
            Match::NotTo(c) => write!(out, " ! -d {}", block(c)),
            Match::From(c) => write!(out, " -s {}", block(c)),
            Match::In(name) => write!(out, " -i {name}"),
            Match::Out(name) => write!(out, " -o {name}"),
            Match::Mark(mark) => write!(out, " -m mark --mark {mark}"),
            Match::Uid(id) => write!(out, " -m owner --uid-owner {id}"),
            Match::Gid(id) => write!(out, " -m owner --gid-owner {id}"),
            Match::Every(n) => write!(out, " -m statistic --mode nth --every {n} --packet 0"),
        };
    }

    let _ = match &rule.verdict {
        Verdict::Return => write!(out, " -j RETURN"),
        Verdict::Jump(chain) => write!(out, " -j {}", name(chain)),
        Verdict::Redirect(port) => write!(out, " -j REDIRECT --to-ports {port}"),
        Verdict::Dnat(to) => write!(out, " -j DNAT --to-destination {to}"),
        Verdict::Zone(zone) => write!(out, " -j CT --zone {zone}"),
    };

    out
}
