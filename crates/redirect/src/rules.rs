//! The rule model that every renderer shares: small enough that nf_tables and iptables can both say
//! all of it.

use std::net::SocketAddr;

use meltemi_types::Cidr;

/// Name of the table that this crate owns; it is replaced as a whole.
pub const TABLE: &str = "meltemi";

/// A complete rule set of one network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuleSet {
    /// Also write the rules for IPv6; rules that name IPv4 addresses only stay out of that table.
    pub ipv6: bool,
    /// Chains in the order in which they are created: a chain comes before the rules that jump to
    /// it.
    pub chains: Vec<Chain>,
}

/// A chain; with a hook it sees packets, without one only what jumps to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Lower-case name, unique in the set.
    pub name: &'static str,
    /// Where packets enter.
    pub hook: Option<Hook>,
    /// First match decides.
    pub rules: Vec<Rule>,
}

/// Where a chain sees packets, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets that arrive from outside the namespace; to rewrite destinations (priority -100).
    Prerouting,
    /// Packets that a process of the namespace sends; to rewrite destinations (priority -100).
    Output,
    /// Packets that arrive, before connections are looked up (priority -300).
    RawPrerouting,
    /// Packets that are sent, before connections are looked up (priority -300).
    RawOutput,
}

impl Hook {
    /// True before connection tracking.
    pub(crate) fn is_raw(self) -> bool {
        matches!(self, Self::RawPrerouting | Self::RawOutput)
    }

    /// True for packets that arrive.
    pub(crate) fn is_arriving(self) -> bool {
        matches!(self, Self::Prerouting | Self::RawPrerouting)
    }
}

/// All matches hold: the verdict applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Conditions, all of which must hold.
    pub matches: Vec<Match>,
    /// What happens then.
    pub verdict: Verdict,
}

/// Transport protocol of a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// The name that nft and iptables use.
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
    /// Transport protocol.
    Transport(Transport),
    /// Destination port equals.
    Port(u16),
    /// Destination port differs.
    NotPort(u16),
    /// Source port equals.
    SourcePort(u16),
    /// Destination address lies in the block.
    To(Cidr),
    /// Destination address lies outside the block.
    NotTo(Cidr),
    /// Source address lies in the block.
    From(Cidr),
    /// Arrived on this interface.
    In(&'static str),
    /// Leaves through this interface.
    Out(&'static str),
    /// The socket's mark (`SO_MARK`) equals.
    Mark(u32),
    /// The sending process's user.
    Uid(u32),
    /// The sending process's group.
    Gid(u32),
    /// True for every `n`th packet that gets here, beginning with the first. A chain of rules with
    /// n, n-1, … 1 deals round robin.
    Every(u32),
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Leave the chain.
    Return,
    /// Go on in another chain.
    Jump(&'static str),
    /// Rewrite the destination to this port of the namespace itself.
    Redirect(u16),
    /// Rewrite the destination.
    Dnat(SocketAddr),
    /// Look the connection up in this zone, and go on with the next rule. In chains of raw hooks
    /// only.
    Zone(u16),
}

impl RuleSet {
    /// True when the rule can be said for the given family.
    pub(crate) fn fits(rule: &Rule, ipv6: bool) -> bool {
        let family = |c: &Cidr| c.address().is_ipv6() == ipv6;
        let matches = rule.matches.iter().all(|m| match m {
            Match::To(c) | Match::NotTo(c) | Match::From(c) => family(c),
            _ => true,
        });
        matches && !matches!(rule.verdict, Verdict::Dnat(to) if to.is_ipv6() != ipv6)
    }
}
