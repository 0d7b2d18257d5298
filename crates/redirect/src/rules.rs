//! The rule model that all renderers share. It holds only what both nf_tables and iptables can
//! express.

use std::net::SocketAddr;

use meltemi_types::Cidr;

/// Name of the table that this crate owns. It is always replaced as a whole.
pub const TABLE: &str = "meltemi";

/// All rules of one network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuleSet {
    /// Whether to write an IPv6 table as well. Rules with IPv4 addresses are left out of it.
    pub ipv6: bool,
    /// Chains in the order of creation: a chain comes before the chains that jump to it.
    pub chains: Vec<Chain>,
}

/// A chain of rules. A chain with a hook sees packets itself; one without a hook is entered by
/// jumps only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Lower-case name, unique in the rule set.
    pub name: &'static str,
    /// The point at which packets enter the chain.
    pub hook: Option<Hook>,
    /// The rules; the first match decides.
    pub rules: Vec<Rule>,
}

/// The point in the kernel's packet processing at which a chain sees packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets that arrive from outside the namespace, at the NAT priority (-100).
    Prerouting,
    /// Packets that a process of the namespace sends, at the NAT priority (-100).
    Output,
    /// Packets that arrive, before connection tracking (priority -300).
    RawPrerouting,
    /// Packets that are sent, before connection tracking (priority -300).
    RawOutput,
}

impl Hook {
    /// Whether the hook lies before connection tracking.
    pub(crate) fn is_raw(self) -> bool {
        matches!(self, Self::RawPrerouting | Self::RawOutput)
    }

    /// Whether the hook sees arriving packets.
    pub(crate) fn is_arriving(self) -> bool {
        matches!(self, Self::Prerouting | Self::RawPrerouting)
    }
}

/// A rule: the verdict applies if all matches hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Conditions, all of which must hold.
    pub matches: Vec<Match>,
    /// The action.
    pub verdict: Verdict,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    /// The name in nft and iptables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// One condition of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// The transport protocol equals.
    Transport(Transport),
    /// The destination port equals.
    Port(u16),
    /// The destination port differs.
    NotPort(u16),
    /// The source port equals.
    SourcePort(u16),
    /// The destination address is in the block.
    To(Cidr),
    /// The destination address is not in the block.
    NotTo(Cidr),
    /// The source address is in the block.
    From(Cidr),
    /// The packet arrived on this interface.
    In(&'static str),
    /// The packet leaves through this interface.
    Out(&'static str),
    /// The socket's mark (`SO_MARK`) equals.
    Mark(u32),
    /// The user id of the sending process equals.
    Uid(u32),
    /// The group id of the sending process equals.
    Gid(u32),
    /// Holds for every `n`th packet that reaches the rule, starting with the first. Rules with n,
    /// n-1, … 1 distribute round robin.
    Every(u32),
}

/// The action of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Leave the chain and continue in the chain that jumped to it.
    Return,
    /// Continue in another chain.
    Jump(&'static str),
    /// Rewrite the destination to this port of the namespace itself.
    Redirect(u16),
    /// Rewrite the destination to this address.
    Dnat(SocketAddr),
    /// Assign the packet to this connection-tracking zone and continue with the next rule. Only in
    /// chains with a raw hook.
    Zone(u16),
}

impl RuleSet {
    /// Whether the rule can be expressed in a table of the given family.
    pub(crate) fn fits(rule: &Rule, ipv6: bool) -> bool {
        let family = |c: &Cidr| c.address().is_ipv6() == ipv6;
        let matches = rule.matches.iter().all(|m| match m {
            Match::To(c) | Match::NotTo(c) | Match::From(c) => family(c),
            _ => true,
        });
        matches && !matches!(rule.verdict, Verdict::Dnat(to) if to.is_ipv6() != ipv6)
    }
}
