//! The rule set as nf_tables netlink messages (`linux/netfilter/nf_tables.h`).
//!
//! The messages create the table, delete it and create it anew, so within one transaction whatever
//! was there is replaced.

mod uapi;

use std::net::IpAddr;

use meltemi_types::Cidr;

pub use self::uapi::NFNL_SUBSYS_NFTABLES;
use self::uapi::*;
use crate::netlink::{Attributes, Messages, NLM_F_APPEND, NLM_F_CREATE};
use crate::rules::{Chain, Match, Rule, RuleSet, TABLE, Verdict};

/// The messages that put `rules` in place of whatever the table held.
pub fn replace(rules: &RuleSet) -> Messages {
    let mut out = Messages::default();
    for ipv6 in [false, true].into_iter().take(1 + usize::from(rules.ipv6)) {
        table(&mut out, NFT_MSG_NEWTABLE, NLM_F_CREATE, ipv6);
        table(&mut out, NFT_MSG_DELTABLE, 0, ipv6);
        table(&mut out, NFT_MSG_NEWTABLE, NLM_F_CREATE, ipv6);
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
        table(&mut out, NFT_MSG_NEWTABLE, NLM_F_CREATE, ipv6);
        table(&mut out, NFT_MSG_DELTABLE, 0, ipv6);
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
    // struct nfgenmsg: family, version, resource id.
    let header = [family(ipv6), 0, 0, 0];
    out.push(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, &header, attributes);
}

fn family(ipv6: bool) -> u8 {
    if ipv6 { NFPROTO_IPV6 } else { NFPROTO_IPV4 }
}

fn table(out: &mut Messages, kind: u16, flags: u16, ipv6: bool) {
    push(out, kind, flags, ipv6, |a| {
        a.text(NFTA_TABLE_NAME, TABLE);
    });
}

fn new_chain(out: &mut Messages, chain: &Chain, ipv6: bool) {
    push(out, NFT_MSG_NEWCHAIN, NLM_F_CREATE, ipv6, |a| {
        a.text(NFTA_CHAIN_TABLE, TABLE)
            .text(NFTA_CHAIN_NAME, chain.name);
        let Some(hook) = chain.hook else {
            return;
        };

        let number = if hook.is_arriving() {
            NF_INET_PRE_ROUTING
        } else {
            NF_INET_LOCAL_OUT
        };
        let (kind, priority) = if hook.is_raw() {
            ("filter", NF_IP_PRI_RAW)
        } else {
            ("nat", NF_IP_PRI_NAT_DST)
        };

        a.nest(NFTA_CHAIN_HOOK, |a| {
            a.be32(NFTA_HOOK_HOOKNUM, number)
                .be32(NFTA_HOOK_PRIORITY, priority.cast_unsigned());
        });
        a.be32(NFTA_CHAIN_POLICY, NF_ACCEPT)
            .text(NFTA_CHAIN_TYPE, kind);
    });
}

fn new_rule(out: &mut Messages, chain: &str, rule: &Rule, ipv6: bool) {
    push(
        out,
        NFT_MSG_NEWRULE,
        NLM_F_CREATE | NLM_F_APPEND,
        ipv6,
        |a| {
            a.text(NFTA_RULE_TABLE, TABLE).text(NFTA_RULE_CHAIN, chain);
            a.nest(NFTA_RULE_EXPRESSIONS, |list| {
                for condition in &rule.matches {
                    self::condition(list, condition);
                }
                verdict(list, &rule.verdict, ipv6);
            });
        },
    );
}

fn expression(list: &mut Attributes<'_>, name: &str, data: impl FnOnce(&mut Attributes<'_>)) {
    list.nest(NFTA_LIST_ELEM, |a| {
        a.text(NFTA_EXPR_NAME, name).nest(NFTA_EXPR_DATA, data);
    });
}

fn condition(list: &mut Attributes<'_>, condition: &Match) {
    match condition {
        Match::Transport(t) => {
            meta(list, NFT_META_L4PROTO);
            compare(list, NFT_CMP_EQ, &[t.number()]);
        }
        Match::Port(number) => {
            port(list, DESTINATION_PORT);
            compare(list, NFT_CMP_EQ, &number.to_be_bytes());
        }
        Match::NotPort(number) => {
            port(list, DESTINATION_PORT);
            compare(list, NFT_CMP_NEQ, &number.to_be_bytes());
        }
        Match::SourcePort(number) => {
            port(list, SOURCE_PORT);
            compare(list, NFT_CMP_EQ, &number.to_be_bytes());
        }
        Match::To(block) => address(list, block, DESTINATION, NFT_CMP_EQ),
        Match::NotTo(block) => address(list, block, DESTINATION, NFT_CMP_NEQ),
        Match::From(block) => address(list, block, SOURCE, NFT_CMP_EQ),
        Match::In(name) => interface(list, NFT_META_IIFNAME, name),
        Match::Out(name) => interface(list, NFT_META_OIFNAME, name),
        Match::Mark(mark) => {
            meta(list, NFT_META_MARK);
            compare(list, NFT_CMP_EQ, &mark.to_ne_bytes());
        }
        Match::Uid(id) => {
            meta(list, NFT_META_SKUID);
            compare(list, NFT_CMP_EQ, &id.to_ne_bytes());
        }
        Match::Gid(id) => {
            meta(list, NFT_META_SKGID);
            compare(list, NFT_CMP_EQ, &id.to_ne_bytes());
        }
        Match::Every(n) => {
            expression(list, "numgen", |a| {
                a.be32(NFTA_NG_DREG, NFT_REG_1)
                    .be32(NFTA_NG_MODULUS, *n)
                    .be32(NFTA_NG_TYPE, NFT_NG_INCREMENTAL)
                    .be32(NFTA_NG_OFFSET, 0);
            });
            compare(list, NFT_CMP_EQ, &0_u32.to_ne_bytes());
        }
    }
}

fn meta(list: &mut Attributes<'_>, key: u32) {
    expression(list, "meta", |a| {
        a.be32(NFTA_META_DREG, NFT_REG_1).be32(NFTA_META_KEY, key);
    });
}

fn payload(list: &mut Attributes<'_>, base: u32, offset: u32, length: u32) {
    expression(list, "payload", |a| {
        a.be32(NFTA_PAYLOAD_DREG, NFT_REG_1)
            .be32(NFTA_PAYLOAD_BASE, base)
            .be32(NFTA_PAYLOAD_OFFSET, offset)
            .be32(NFTA_PAYLOAD_LEN, length);
    });
}

/// Loads a port: the header of TCP and that of UDP have the ports in the same place.
fn port(list: &mut Attributes<'_>, offset: u32) {
    payload(list, NFT_PAYLOAD_TRANSPORT_HEADER, offset, 2);
}

fn compare(list: &mut Attributes<'_>, operator: u32, value: &[u8]) {
    expression(list, "cmp", |a| {
        a.be32(NFTA_CMP_SREG, NFT_REG_1).be32(NFTA_CMP_OP, operator);
        a.nest(NFTA_CMP_DATA, |a| {
            a.bytes(NFTA_DATA_VALUE, value);
        });
    });
}

/// The offsets of an address in the headers of IPv4 and IPv6.
type Offsets = (u32, u32);

const SOURCE: Offsets = (IPV4_SOURCE, IPV6_SOURCE);
const DESTINATION: Offsets = (IPV4_DESTINATION, IPV6_DESTINATION);

fn address(list: &mut Attributes<'_>, block: &Cidr, offsets: Offsets, operator: u32) {
    let offset = match block.address() {
        IpAddr::V4(_) => offsets.0,
        IpAddr::V6(_) => offsets.1,
    };

    let value = octets(block.address());
    let length = u32::try_from(value.len()).expect("an address has 4 or 16 bytes");
    payload(list, NFT_PAYLOAD_NETWORK_HEADER, offset, length);
    if !block.is_host() {
        let mask = octets(block.mask());
        expression(list, "bitwise", |a| {
            a.be32(NFTA_BITWISE_SREG, NFT_REG_1)
                .be32(NFTA_BITWISE_DREG, NFT_REG_1)
                .be32(NFTA_BITWISE_LEN, length);
            a.nest(NFTA_BITWISE_MASK, |a| {
                a.bytes(NFTA_DATA_VALUE, &mask);
            });
            a.nest(NFTA_BITWISE_XOR, |a| {
                a.bytes(NFTA_DATA_VALUE, &vec![0; mask.len()]);
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
    compare(list, NFT_CMP_EQ, &padded);
}

fn verdict(list: &mut Attributes<'_>, verdict: &Verdict, ipv6: bool) {
    let code = |list: &mut Attributes<'_>, code: i32, chain: Option<&str>| {
        expression(list, "immediate", |a| {
            a.be32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
            a.nest(NFTA_IMMEDIATE_DATA, |a| {
                a.nest(NFTA_DATA_VERDICT, |a| {
                    a.be32(NFTA_VERDICT_CODE, code.cast_unsigned());
                    if let Some(chain) = chain {
                        a.text(NFTA_VERDICT_CHAIN, chain);
                    }
                });
            });
        });
    };

    match verdict {
        Verdict::Return => code(list, NFT_RETURN, None),
        Verdict::Jump(chain) => code(list, NFT_JUMP, Some(chain)),
        Verdict::Redirect(port) => {
            load(list, NFT_REG_1, &port.to_be_bytes());
            expression(list, "redir", |a| {
                a.be32(NFTA_REDIR_REG_PROTO_MIN, NFT_REG_1);
            });
        }
        Verdict::Zone(zone) => {
            load(list, NFT_REG_1, &zone.to_ne_bytes());
            expression(list, "ct", |a| {
                a.be32(NFTA_CT_KEY, NFT_CT_ZONE)
                    .be32(NFTA_CT_SREG, NFT_REG_1);
            });
        }
        Verdict::Dnat(to) => {
            load(list, NFT_REG_1, &octets(to.ip()));
            load(list, NFT_REG_2, &to.port().to_be_bytes());
            expression(list, "nat", |a| {
                a.be32(NFTA_NAT_TYPE, NFT_NAT_DNAT)
                    .be32(NFTA_NAT_FAMILY, family(ipv6).into())
                    .be32(NFTA_NAT_REG_ADDR_MIN, NFT_REG_1)
                    .be32(NFTA_NAT_REG_PROTO_MIN, NFT_REG_2);
            });
        }
    }
}

fn load(list: &mut Attributes<'_>, register: u32, value: &[u8]) {
    expression(list, "immediate", |a| {
        a.be32(NFTA_IMMEDIATE_DREG, register);
        a.nest(NFTA_IMMEDIATE_DATA, |a| {
            a.bytes(NFTA_DATA_VALUE, value);
        });
    });
}
