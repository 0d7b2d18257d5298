//! What to capture, as data, and the rules that follow from it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use meltemi_types::Cidr;

use crate::rules::{Chain, Hook, Match, Rule, RuleSet, Transport, Verdict};

/// The source address from which a proxy calls its own application; such calls are never captured
/// again.
pub const PASSTHROUGH_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
/// The same for IPv6.
pub const PASSTHROUGH_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
/// `SO_MARK` of the proxy's own sockets where no user of its own sets it apart.
pub const PROXY_MARK: u32 = 1337;
/// User and group of the proxy on Kubernetes.
pub const PROXY_ID: u32 = 1337;

/// How the proxy's own connections are told from the application's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exempt {
    /// The proxy marks its sockets; the application is not allowed to.
    Mark(u32),
    /// The proxy runs as a user or group of its own.
    Owner {
        /// Users whose traffic is the proxy's.
        uids: Vec<u32>,
        /// Groups whose traffic is the proxy's.
        gids: Vec<u32>,
    },
}

impl Exempt {
    fn matches(&self) -> Vec<Match> {
        match self {
            Self::Mark(mark) => vec![Match::Mark(*mark)],
            Self::Owner { uids, gids } => uids
                .iter()
                .map(|u| Match::Uid(*u))
                .chain(gids.iter().map(|g| Match::Gid(*g)))
                .collect(),
        }
    }
}

/// Capture for one workload with a sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SidecarPlan {
    /// How the proxy's own traffic is recognised.
    pub exempt: Exempt,
    /// Where outbound connections go: 15001.
    pub outbound_port: u16,
    /// Where inbound connections go: 15006.
    pub inbound_port: u16,
    /// Where DNS queries go (15053), or `None` to leave DNS alone.
    pub dns_port: Option<u16>,
    /// A DNS server that is asked directly: the proxy's own, since the C library's resolver marks
    /// no socket. It must know real addresses: those that the captured resolver makes up lead back
    /// to the proxy.
    pub direct_dns: Option<IpAddr>,
    /// Inbound ports to capture; `None` captures all, an empty list none.
    pub include_inbound_ports: Option<Vec<u16>>,
    /// Inbound ports to leave alone, beside the proxy's own.
    pub exclude_inbound_ports: Vec<u16>,
    /// Outbound ports captured whatever their address.
    pub include_outbound_ports: Vec<u16>,
    /// Outbound ports to leave alone; 53 among them leaves DNS alone as well.
    pub exclude_outbound_ports: Vec<u16>,
    /// Destinations to capture; `None` captures all, an empty list none but
    /// `include_outbound_ports`.
    pub include_outbound: Option<Vec<Cidr>>,
    /// Destinations to leave alone, but for DNS: as on Istio, a block around the resolver does not
    /// give up the mesh's names.
    pub exclude_outbound: Vec<Cidr>,
    /// Write IPv6 rules as well.
    pub ipv6: bool,
}

impl SidecarPlan {
    /// Everything is captured, with the usual ports.
    pub fn new(exempt: Exempt) -> Self {
        Self {
            exempt,
            outbound_port: 15001,
            inbound_port: 15006,
            dns_port: Some(15053),
            direct_dns: None,
            include_inbound_ports: None,
            exclude_inbound_ports: vec![15020, 15021, 15090],
            include_outbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            include_outbound: None,
            exclude_outbound: Vec::new(),
            ipv6: false,
        }
    }

    /// The rules of this plan.
    pub fn rules(&self) -> RuleSet {
        let Self {
            exempt,
            outbound_port,
            inbound_port,
            dns_port,
            direct_dns,
            include_inbound_ports,
            exclude_inbound_ports,
            include_outbound_ports,
            exclude_outbound_ports,
            include_outbound,
            exclude_outbound,
            ipv6,
        } = self;

        let tcp = Match::Transport(Transport::Tcp);
        let own = exempt.matches();

        // Source: Istio's istio-iptables returns excluded ports, of TCP and UDP, before it
        // redirects DNS.
        let dns_port = &dns_port.filter(|_| !exclude_outbound_ports.contains(&53));

        let mut entry = Vec::new();

        for transport in dns_port.map_or(&[][..], |_| &[Transport::Udp, Transport::Tcp]) {
            let query = [Match::Transport(*transport), Match::Port(53)];

            // The resolver's own forwarded queries must leave, or they would come back to it for
            // ever.
            for mine in &own {
                entry.push(rule(query.iter().chain([mine]), Verdict::Return));
            }
            if let Some(direct) = direct_dns {
                entry.push(rule(
                    query.iter().chain([&Match::To(Cidr::host(*direct))]),
                    Verdict::Return,
                ));
            }

            entry.push(rule(
                &query,
                Verdict::Redirect(dns_port.expect("iterated only with a DNS port")),
            ));
        }

        entry.push(rule([&tcp], Verdict::Jump("outbound")));

        let lo = Match::Out("lo");

        // Before connections back to the own pod are redirected, as on Istio.
        let mut outbound: Vec<Rule> = exclude_outbound_ports
            .iter()
            .map(|port| rule([&tcp, &Match::Port(*port)], Verdict::Return))
            .collect();

        outbound.push(rule(
            [&lo, &Match::From(Cidr::host(PASSTHROUGH_V4.into()))],
            Verdict::Return,
        ));

        if *ipv6 {
            outbound.push(rule(
                [&lo, &Match::From(Cidr::host(PASSTHROUGH_V6.into()))],
                Verdict::Return,
            ));
        }

        for mine in &own {
            // The application called its own service and the balancer chose this very pod: the
            // proxy's call takes the loopback device and must still pass the inbound side, as it
            // would on the way to any other pod.
            outbound.push(rule(
                [&tcp, &lo, &Match::NotTo(Cidr::v4(127, 0, 0, 0, 8)), mine],
                Verdict::Jump("inbound_redirect"),
            ));

            if *ipv6 {
                let v6_loopback = Cidr::host(Ipv6Addr::LOCALHOST.into());
                outbound.push(rule(
                    [&tcp, &lo, &Match::NotTo(v6_loopback), mine],
                    Verdict::Jump("inbound_redirect"),
                ));
            }
        }

        for mine in &own {
            outbound.push(rule([mine], Verdict::Return));
        }

        // An application that speaks to itself is nobody's business.
        outbound.push(rule([&lo], Verdict::Return));
        for block in exclude_outbound {
            outbound.push(rule([&Match::To(*block)], Verdict::Return));
        }
        let redirect = Verdict::Jump("outbound_redirect");
        for port in include_outbound_ports {
            outbound.push(rule([&tcp, &Match::Port(*port)], redirect.clone()));
        }
        match include_outbound {
            None => outbound.push(rule([], redirect)),
            Some(blocks) => {
                outbound.extend(
                    blocks
                        .iter()
                        .map(|block| rule([&Match::To(*block)], redirect.clone())),
                );
            }
        }

        let mut inbound = Vec::new();
        for port in exclude_inbound_ports {
            inbound.push(rule([&tcp, &Match::Port(*port)], Verdict::Return));
        }
        let redirect = Verdict::Jump("inbound_redirect");
        match include_inbound_ports {
            None => inbound.push(rule([&tcp], redirect)),
            Some(ports) => {
                inbound.extend(
                    ports
                        .iter()
                        .map(|port| rule([&tcp, &Match::Port(*port)], redirect.clone())),
                );
            }
        }

        let mut chains = vec![];
        if let Some(dns_port) = dns_port {
            chains.extend(dns_zones(&own, *dns_port));
        }
        chains.extend([
            chain(
                "inbound_redirect",
                None,
                vec![rule([&tcp], Verdict::Redirect(*inbound_port))],
            ),
            chain(
                "outbound_redirect",
                None,
                vec![rule([&tcp], Verdict::Redirect(*outbound_port))],
            ),
            chain("outbound", None, outbound),
            chain("inbound", None, inbound),
            chain("output", Some(Hook::Output), entry),
            chain(
                "prerouting",
                Some(Hook::Prerouting),
                vec![rule([&tcp], Verdict::Jump("inbound"))],
            ),
        ]);

        RuleSet {
            ipv6: *ipv6,
            chains,
        }
    }
}

/// Zones of connection tracking that keep the application's queries and the resolver's own apart.
///
/// Both go from the pod's address to the same server. A query that the resolver forwards from a
/// port which the application used a moment ago would be taken for the application's, and
/// redirected to the resolver itself.
fn dns_zones(own: &[Match], dns_port: u16) -> [Chain; 2] {
    const RESOLVERS: u16 = 1;
    const APPLICATIONS: u16 = 2;

    let udp = Match::Transport(Transport::Udp);
    let query = [udp.clone(), Match::Port(53)];

    // The zone that is set first holds.
    let mut sent: Vec<Rule> = own
        .iter()
        .map(|mine| rule(query.iter().chain([mine]), Verdict::Zone(RESOLVERS)))
        .collect();

    sent.push(rule(&query, Verdict::Zone(APPLICATIONS)));
    sent.push(rule(
        [&udp, &Match::SourcePort(dns_port)],
        Verdict::Zone(APPLICATIONS),
    ));

    let arriving = vec![rule(
        [&udp, &Match::SourcePort(53)],
        Verdict::Zone(RESOLVERS),
    )];

    [
        chain("zones_output", Some(Hook::RawOutput), sent),
        chain("zones_prerouting", Some(Hook::RawPrerouting), arriving),
    ]
}

/// The way out of a machine's mesh: what no workload answers goes to a relay of the router's
/// namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterPlan {
    /// Interface on which the workloads arrive.
    pub bridge: &'static str,
    /// Addresses of the workloads and of the router itself: never relayed.
    pub pods: Cidr,
    /// Port of the relay in the router's namespace.
    pub relay_port: u16,
    /// Port of the router's resolver; queries to any other resolver are answered there too.
    pub dns_port: u16,
}

impl RouterPlan {
    /// The rules of this plan.
    pub fn rules(&self) -> RuleSet {
        let Self {
            bridge,
            pods,
            relay_port,
            dns_port,
        } = *self;

        let tcp = Match::Transport(Transport::Tcp);
        let outside = Match::NotTo(pods);
        let mut relay = Vec::new();

        for transport in [Transport::Udp, Transport::Tcp] {
            relay.push(rule(
                [&Match::Transport(transport), &Match::Port(53), &outside],
                Verdict::Redirect(dns_port),
            ));
        }

        relay.push(rule([&tcp, &outside], Verdict::Redirect(relay_port)));
        let own = vec![
            rule([&Match::Out("lo")], Verdict::Return),
            rule([], Verdict::Jump("relay")),
        ];

        let arriving = vec![rule([&Match::In(bridge)], Verdict::Jump("relay"))];

        RuleSet {
            ipv6: false,
            chains: vec![
                chain("relay", None, relay),
                chain("output", Some(Hook::Output), own),
                chain("prerouting", Some(Hook::Prerouting), arriving),
            ],
        }
    }
}

/// Service addresses for a workload without sidecar: destination translation in its own namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// Every address and port of a service.
    pub services: Vec<ServiceRule>,
}

/// One address and port of a service with its endpoints.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceRule {
    /// The service's own address.
    pub address: IpAddr,
    /// The service's port.
    pub port: u16,
    /// Transport protocol of the port.
    pub transport: Transport,
    /// Where it goes, dealt round robin; a service without endpoints gets no rule.
    pub endpoints: Vec<SocketAddr>,
}

impl ServicePlan {
    /// The rules of this plan.
    pub fn rules(&self) -> RuleSet {
        let mut rules = Vec::new();
        for service in &self.services {
            let to = [
                Match::Transport(service.transport),
                Match::To(Cidr::host(service.address)),
                Match::Port(service.port),
            ];

            let count = service.endpoints.len();
            for (index, endpoint) in service.endpoints.iter().enumerate() {
                let left = u32::try_from(count - index).unwrap_or(u32::MAX);
                let turn = (left > 1).then_some(Match::Every(left));
                rules.push(rule(to.iter().chain(turn.iter()), Verdict::Dnat(*endpoint)));
            }
        }

        let ipv6 = self.services.iter().any(|s| s.address.is_ipv6());

        RuleSet {
            ipv6,
            chains: vec![chain("output", Some(Hook::Output), rules)],
        }
    }
}

fn rule<'a>(matches: impl IntoIterator<Item = &'a Match>, verdict: Verdict) -> Rule {
    Rule {
        matches: matches.into_iter().cloned().collect(),
        verdict,
    }
}

fn chain(name: &'static str, hook: Option<Hook>, rules: Vec<Rule>) -> Chain {
    Chain { name, hook, rules }
}
