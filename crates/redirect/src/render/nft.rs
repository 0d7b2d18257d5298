//! Renders a rule set as a file for `nft -f`, which replaces the table in one transaction.

use std::fmt::Write as _;

use crate::rules::{Match, Rule, RuleSet, TABLE, Verdict};

/// Renders the text.
pub fn nft(rules: &RuleSet) -> String {
    let mut out = String::new();
    for ipv6 in [false, true].into_iter().take(1 + usize::from(rules.ipv6)) {
        let family = if ipv6 { "ip6" } else { "ip" };

        // Declare the table first, so that the deletion succeeds even if the table did not exist.
        let _ = writeln!(
            out,
            "table {family} {TABLE}\ndelete table {family} {TABLE}\ntable {family} {TABLE} {{"
        );

        for chain in &rules.chains {
            let _ = writeln!(out, "\tchain {} {{", chain.name);
            if let Some(hook) = chain.hook {
                let name = if hook.is_arriving() {
                    "prerouting"
                } else {
                    "output"
                };

                let (kind, priority) = if hook.is_raw() {
                    ("filter", -300)
                } else {
                    ("nat", -100)
                };

                let _ = writeln!(
                    out,
                    "\t\ttype {kind} hook {name} priority {priority}; policy accept;"
                );
            }

            for rule in chain.rules.iter().filter(|r| RuleSet::fits(r, ipv6)) {
                let _ = writeln!(out, "\t\t{}", statement(rule, family));
            }
            out.push_str("\t}\n");
        }

        out.push_str("}\n");
    }

    out
}

fn statement(rule: &Rule, family: &str) -> String {
    let mut words: Vec<String> = rule.matches.iter().map(|m| condition(m, family)).collect();
    words.push(match &rule.verdict {
        Verdict::Return => "return".into(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::Redirect(port) => format!("redirect to :{port}"),
        Verdict::Dnat(to) => format!("dnat to {to}"),
        Verdict::Zone(zone) => format!("ct zone set {zone}"),
    });
    words.join(" ")
}

fn condition(condition: &Match, family: &str) -> String {
    match condition {
        Match::Transport(t) => format!("meta l4proto {}", t.name()),
        Match::Port(p) => format!("th dport {p}"),
        Match::NotPort(p) => format!("th dport != {p}"),
        Match::SourcePort(p) => format!("th sport {p}"),
        Match::To(c) => format!("{family} daddr {}", c),
        Match::NotTo(c) => format!("{family} daddr != {}", c),
        Match::From(c) => format!("{family} saddr {}", c),
        Match::In(name) => format!("iifname \"{name}\""),
        Match::Out(name) => format!("oifname \"{name}\""),
        Match::Mark(mark) => format!("meta mark {mark}"),
        Match::Uid(id) => format!("meta skuid {id}"),
        Match::Gid(id) => format!("meta skgid {id}"),
        Match::Every(n) => format!("numgen inc mod {n} 0"),
    }
}
