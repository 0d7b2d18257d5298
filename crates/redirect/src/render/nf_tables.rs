//! The rule set as nf_tables netlink messages (`linux/netfilter/nf_tables.h`).
//!
//! The messages create the table, delete it and create it anew, so within one transaction whatever
//! was there is replaced.

use std::net::{IpAddr, SocketAddr};

use meltemi_types::Cidr;

use crate::netlink::{Attributes, Messages, NLM_F_APPEND, NLM_F_CREATE};
use crate::rules::{Chain, Match, Rule, RuleSet, TABLE, Verdict};

/// nf_tables' number among the netfilter subsystems.
pub const SUBSYSTEM: u16 = 10;

const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;

const REGISTER: u32 = 1;
const SECOND_REGISTER: u32 = 2;

/// The messages that put `rules` in place of whatever the table held.
pub fn replace(rules: &RuleSet) -> Messages {
    let mut out = Messages::default();
    for ipv6 in [false, true].into_iter().take(1 + usize::from(rules.ipv6)) {
        table(&mut out, NEW_TABLE, NLM_F_CREATE, ipv6);
        table(&mut out, DELETE_TABLE, 0, ipv6);
        table(&mut out, NEW_TABLE, NLM_F_CREATE, ipv6);
        for chain in &rules.chains {
            new_chain(&mut out, chain, ipv6);
        }
        for chain in &rules.chains {
            for rule in chain.rules.iter().filter(|r| RuleSet::fits(r, ipv6)) {
                new_rule(&mut out, chain.name, rule, ipv6);
            }
        }
    }

    out
}

/// The messages that take the table away, whether it is there or not.
pub fn remove(ipv6: bool) -> Messages {
    let mut out = Messages::default();
    for ipv6 in [false, true].into_iter().take(1 + usize::from(ipv6)) {
        table(&mut out, NEW_TABLE, NLM_F_CREATE, ipv6);
        table(&mut out, DELETE_TABLE, 0, ipv6);
    }
    out
}

fn push(
    out: &mut Messages,
    kind: u16,
    flags: u16,
    ipv6: bool,
    attributes: impl FnOnce(&mut Attributes<'_>),
) {
    let family = if ipv6 { 10 } else { 2 };
    out.push(SUBSYSTEM << 8 | kind, flags, &[family, 0, 0, 0], attributes);
}

fn table(out: &mut Messages, kind: u16, flags: u16, ipv6: bool) {
    push(out, kind, flags, ipv6, |a| {
        a.text(1, TABLE);
    });
}

fn new_chain(out: &mut Messages, chain: &Chain, ipv6: bool) {
    push(out, NEW_CHAIN, NLM_F_CREATE, ipv6, |a| {
        a.text(1, TABLE).text(3, chain.name);
        if let Some(hook) = chain.hook {
            let number = if hook.is_arriving() { 0 } else { 3 };
            let (kind, priority) = if hook.is_raw() {
                ("filter", -300_i32)
            } else {
                ("nat", -100)
            };

            a.nest(4, |a| {
                a.be32(1, number).be32(2, priority.cast_unsigned());
            });
            a.be32(5, 1).text(7, kind);
        }
    });
}

fn new_rule(out: &mut Messages, chain: &str, rule: &Rule, ipv6: bool) {
    push(out, NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, ipv6, |a| {
        a.text(1, TABLE).text(2, chain).nest(4, |list| {
            for condition in &rule.matches {
                self::condition(list, condition);
            }
            verdict(list, &rule.verdict, ipv6);
        });
    });
}

fn expression(list: &mut Attributes<'_>, name: &str, data: impl FnOnce(&mut Attributes<'_>)) {
    list.nest(1, |a| {
        a.text(1, name).nest(2, data);
    });
}

fn condition(list: &mut Attributes<'_>, condition: &Match) {
    const EQUAL: u32 = 0;
    const DIFFERENT: u32 = 1;

    match condition {
        Match::Transport(t) => {
            meta(list, 16);
            compare(list, EQUAL, &[t.number()]);
        }
        // Source and destination port lead the header of TCP and of UDP alike.
        Match::Port(port) => {
            payload(list, 2, 2, 2);
            compare(list, EQUAL, &port.to_be_bytes());
        }
        Match::NotPort(port) => {
            payload(list, 2, 2, 2);
            compare(list, DIFFERENT, &port.to_be_bytes());
        }
        Match::SourcePort(port) => {
            payload(list, 2, 0, 2);
            compare(list, EQUAL, &port.to_be_bytes());
        }
        Match::To(block) => address(list, block, 16, 24, EQUAL),
        Match::NotTo(block) => address(list, block, 16, 24, DIFFERENT),
        Match::From(block) => address(list, block, 12, 8, EQUAL),
        Match::In(name) => interface(list, 6, name),
        Match::Out(name) => interface(list, 7, name),
        Match::Mark(mark) => {
            meta(list, 3);
            compare(list, EQUAL, &mark.to_ne_bytes());
        }
        Match::Uid(id) => {
            meta(list, 10);
            compare(list, EQUAL, &id.to_ne_bytes());
        }
        Match::Gid(id) => {
            meta(list, 11);
            compare(list, EQUAL, &id.to_ne_bytes());
        }
        Match::Every(n) => {
            expression(list, "numgen", |a| {
                a.be32(1, REGISTER).be32(2, *n).be32(3, 0).be32(4, 0);
            });
            compare(list, EQUAL, &0_u32.to_ne_bytes());
        }
    }
}

fn meta(list: &mut Attributes<'_>, key: u32) {
    expression(list, "meta", |a| {
        a.be32(1, REGISTER).be32(2, key);
    });
}

fn payload(list: &mut Attributes<'_>, base: u32, offset: u32, length: u32) {
    expression(list, "payload", |a| {
        a.be32(1, REGISTER)
            .be32(2, base)
            .be32(3, offset)
            .be32(4, length);
    });
}

fn compare(list: &mut Attributes<'_>, operator: u32, value: &[u8]) {
    expression(list, "cmp", |a| {
        a.be32(1, REGISTER).be32(2, operator).nest(3, |a| {
            a.bytes(1, value);
        });
    });
}

fn address(list: &mut Attributes<'_>, block: &Cidr, v4_offset: u32, v6_offset: u32, operator: u32) {
    let offset = match block.address() {
        IpAddr::V4(_) => v4_offset,
        IpAddr::V6(_) => v6_offset,
    };

    let value = octets(block.address());
    let length = u32::try_from(value.len()).expect("an address has 4 or 16 bytes");
    payload(list, 1, offset, length);
    if !block.is_host() {
        let mask = octets(block.mask());
        expression(list, "bitwise", |a| {
            a.be32(1, REGISTER).be32(2, REGISTER).be32(3, length);
            a.nest(4, |a| {
                a.bytes(1, &mask);
            });
            a.nest(5, |a| {
                a.bytes(1, &vec![0; mask.len()]);
            });
        });
    }

    compare(list, operator, &value);
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn interface(list: &mut Attributes<'_>, key: u32, name: &str) {
    // The register holds the name padded with zeros to IFNAMSIZ.
    let mut padded = [0_u8; 16];
    for (to, from) in padded[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    meta(list, key);
    compare(list, 0, &padded);
}

fn verdict(list: &mut Attributes<'_>, verdict: &Verdict, ipv6: bool) {
    const JUMP: i32 = -3;
    const RETURN: i32 = -5;

    let code = |list: &mut Attributes<'_>, code: i32, chain: Option<&str>| {
        expression(list, "immediate", |a| {
            a.be32(1, 0).nest(2, |a| {
                a.nest(2, |a| {
                    a.be32(1, code.cast_unsigned());
                    if let Some(chain) = chain {
                        a.text(2, chain);
                    }
                });
            });
        });
    };

    match verdict {
        Verdict::Return => code(list, RETURN, None),
        Verdict::Jump(chain) => code(list, JUMP, Some(chain)),
        Verdict::Redirect(port) => {
            load(list, REGISTER, &port.to_be_bytes());
            expression(list, "redir", |a| {
                a.be32(1, REGISTER);
            });
        }
        Verdict::Zone(zone) => {
            load(list, REGISTER, &zone.to_ne_bytes());
            expression(list, "ct", |a| {
                a.be32(2, 17).be32(4, REGISTER);
            });
        }
        Verdict::Dnat(to) => {
            let ip = match to {
                SocketAddr::V4(to) => to.ip().octets().to_vec(),
                SocketAddr::V6(to) => to.ip().octets().to_vec(),
            };

            load(list, REGISTER, &ip);
            load(list, SECOND_REGISTER, &to.port().to_be_bytes());
            expression(list, "nat", |a| {
                a.be32(1, 1).be32(2, if ipv6 { 10 } else { 2 });
                a.be32(3, REGISTER).be32(5, SECOND_REGISTER);
            });
        }
    }
}

fn load(list: &mut Attributes<'_>, register: u32, value: &[u8]) {
    expression(list, "immediate", |a| {
        a.be32(1, register).nest(2, |a| {
            a.bytes(1, value);
        });
    });
}
