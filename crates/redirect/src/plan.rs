//! Plans of packet rules as data, and the rule sets that follow from them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use meltemi_types::Cidr;

use crate::rules::{Chain, Hook, Match, Rule, RuleSet, Transport, Verdict};

/// Source address with which a proxy connects to its own application. Such connections are not
/// captured again.
pub const PASSTHROUGH_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
/// The same for IPv6.
pub const PASSTHROUGH_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
/// `SO_MARK` of the proxy's sockets where the proxy has no user of its own.
pub const PROXY_MARK: u32 = 1337;
/// User and group id of the proxy on Kubernetes.
pub const PROXY_ID: u32 = 1337;

/// How rules recognise the proxy's own connections, which are not captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exempt {
    /// By the mark that the proxy sets on its sockets. Applications lack the capability to set it.
    Mark(u32),
    /// By the user or group that the proxy runs as.
    Owner {
        /// User ids of the proxy.
        uids: Vec<u32>,
        /// Group ids of the proxy.
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

/// Captures the traffic of a workload with a sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SidecarPlan {
    /// How the proxy's own connections are recognised.
    pub exempt: Exempt,
    /// Port to which outbound connections are redirected. Default 15001.
    pub outbound_port: u16,
    /// Port to which inbound connections are redirected. Default 15006.
    pub inbound_port: u16,
    /// Port to which DNS queries are redirected, default 15053; `None` does not capture DNS.
    pub dns_port: Option<u16>,
    /// A DNS server to which queries are not captured. The proxy itself queries it, since the C
    /// library's resolver cannot mark its sockets. It must return real addresses: addresses that
    /// the sidecar's DNS server allocates lead back to the proxy.
    pub direct_dns: Option<IpAddr>,
    /// Inbound ports to capture; `None` captures all, an empty list none.
    pub include_inbound_ports: Option<Vec<u16>>,
    /// Inbound ports that are not captured. Default: 15020, 15021 and 15090, the proxy's own.
    pub exclude_inbound_ports: Vec<u16>,
    /// Outbound ports that are captured for every destination.
    pub include_outbound_ports: Vec<u16>,
    /// Outbound ports that are not captured. 53 among them also turns off the capture of DNS.
    pub exclude_outbound_ports: Vec<u16>,
    /// Destinations to capture; `None` captures all, an empty list only `include_outbound_ports`.
    pub include_outbound: Option<Vec<Cidr>>,
    /// Destinations that are not captured. DNS is captured all the same, as by Istio: excluding a
    /// block that contains the resolver must not lose the mesh's names.
    pub exclude_outbound: Vec<Cidr>,
    /// Whether to write IPv6 rules as well.
    pub ipv6: bool,
}

impl SidecarPlan {
    /// Captures everything, with the default ports.
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
        let tcp = Match::Transport(Transport::Tcp);
        let own = self.exempt.matches();

        // Istio's istio-iptables exempts excluded ports, TCP and UDP, before it redirects DNS.
        let dns_port = self
            .dns_port
            .filter(|_| !self.exclude_outbound_ports.contains(&53));

        let mut chains = vec![];
        if let Some(dns_port) = dns_port {
            chains.extend(dns_zones(&own, dns_port));
        }
        chains.extend([
            chain(
                "inbound_redirect",
                None,
                vec![rule([&tcp], Verdict::Redirect(self.inbound_port))],
            ),
            chain(
                "outbound_redirect",
                None,
                vec![rule([&tcp], Verdict::Redirect(self.outbound_port))],
            ),
            chain("outbound", None, self.outbound_rules(&own)),
            chain("inbound", None, self.inbound_rules()),
            chain(
                "output",
                Some(Hook::Output),
                self.output_rules(&own, dns_port),
            ),
            chain(
                "prerouting",
                Some(Hook::Prerouting),
                vec![rule([&tcp], Verdict::Jump("inbound"))],
            ),
        ]);

        RuleSet {
            ipv6: self.ipv6,
            chains,
        }
    }

    /// The chain that every sent packet enters: redirects DNS queries and passes TCP on to the
    /// chain `outbound`.
    fn output_rules(&self, own: &[Match], dns_port: Option<u16>) -> Vec<Rule> {
        let mut rules = Vec::new();

        if let Some(dns_port) = dns_port {
            for transport in [Transport::Udp, Transport::Tcp] {
                let query = [Match::Transport(transport), Match::Port(53)];

                // Queries that the sidecar forwards must leave, or they would come back to it for
                // ever.
                for mine in own {
                    rules.push(rule(query.iter().chain([mine]), Verdict::Return));
                }
                if let Some(direct) = self.direct_dns {
                    let to_direct = Match::To(Cidr::host(direct));
                    rules.push(rule(query.iter().chain([&to_direct]), Verdict::Return));
                }

                rules.push(rule(&query, Verdict::Redirect(dns_port)));
            }
        }

        let tcp = Match::Transport(Transport::Tcp);
        rules.push(rule([&tcp], Verdict::Jump("outbound")));

        rules
    }

    /// The chain for TCP packets that a process of the pod sends.
    fn outbound_rules(&self, own: &[Match]) -> Vec<Rule> {
        let tcp = Match::Transport(Transport::Tcp);
        let lo = Match::Out("lo");

        // Istio exempts excluded ports before it redirects connections back to the own pod.
        let mut rules: Vec<Rule> = self
            .exclude_outbound_ports
            .iter()
            .map(|port| rule([&tcp, &Match::Port(*port)], Verdict::Return))
            .collect();

        // The proxy's connections to its own application.
        rules.push(rule(
            [&lo, &Match::From(Cidr::host(PASSTHROUGH_V4.into()))],
            Verdict::Return,
        ));
        if self.ipv6 {
            rules.push(rule(
                [&lo, &Match::From(Cidr::host(PASSTHROUGH_V6.into()))],
                Verdict::Return,
            ));
        }

        // If the application calls its own Service and the load balancer chooses this pod, the
        // proxy's connection takes the loopback device. It must pass the inbound side, as a
        // connection to any other pod would.
        for mine in own {
            rules.push(rule(
                [&tcp, &lo, &Match::NotTo(Cidr::v4(127, 0, 0, 0, 8)), mine],
                Verdict::Jump("inbound_redirect"),
            ));

            if self.ipv6 {
                let v6_loopback = Cidr::host(Ipv6Addr::LOCALHOST.into());
                rules.push(rule(
                    [&tcp, &lo, &Match::NotTo(v6_loopback), mine],
                    Verdict::Jump("inbound_redirect"),
                ));
            }
        }

        for mine in own {
            rules.push(rule([mine], Verdict::Return));
        }

        // Connections within the pod are not captured.
        rules.push(rule([&lo], Verdict::Return));

        for block in &self.exclude_outbound {
            rules.push(rule([&Match::To(*block)], Verdict::Return));
        }
        let redirect = Verdict::Jump("outbound_redirect");
        for port in &self.include_outbound_ports {
            rules.push(rule([&tcp, &Match::Port(*port)], redirect.clone()));
        }
        match &self.include_outbound {
            None => rules.push(rule([], redirect)),
            Some(blocks) => {
                for block in blocks {
                    rules.push(rule([&Match::To(*block)], redirect.clone()));
                }
            }
        }

        rules
    }

    /// The chain for TCP packets that arrive at the pod.
    fn inbound_rules(&self) -> Vec<Rule> {
        let tcp = Match::Transport(Transport::Tcp);
        let redirect = Verdict::Jump("inbound_redirect");
        let mut rules = Vec::new();

        for port in &self.exclude_inbound_ports {
            rules.push(rule([&tcp, &Match::Port(*port)], Verdict::Return));
        }
        match &self.include_inbound_ports {
            None => rules.push(rule([&tcp], redirect)),
            Some(ports) => {
                for port in ports {
                    rules.push(rule([&tcp, &Match::Port(*port)], redirect.clone()));
                }
            }
        }

        rules
    }
}

/// Separates the application's DNS queries from the sidecar's own by zones of connection
/// tracking.
///
/// Both kinds go from the pod's address to the same server. Without zones, a query that the
/// sidecar forwards from a port which the application used shortly before would match the
/// application's tracked connection and be redirected to the sidecar itself.
fn dns_zones(own: &[Match], dns_port: u16) -> [Chain; 2] {
    const SIDECAR_ZONE: u16 = 1;
    const APPLICATION_ZONE: u16 = 2;

    let udp = Match::Transport(Transport::Udp);
    let query = [udp.clone(), Match::Port(53)];

    // A packet keeps the first zone that is set.
    let mut sent: Vec<Rule> = own
        .iter()
        .map(|mine| rule(query.iter().chain([mine]), Verdict::Zone(SIDECAR_ZONE)))
        .collect();

    sent.push(rule(&query, Verdict::Zone(APPLICATION_ZONE)));
    sent.push(rule(
        [&udp, &Match::SourcePort(dns_port)],
        Verdict::Zone(APPLICATION_ZONE),
    ));

    let arriving = vec![rule(
        [&udp, &Match::SourcePort(53)],
        Verdict::Zone(SIDECAR_ZONE),
    )];

    [
        chain("zones_output", Some(Hook::RawOutput), sent),
        chain("zones_prerouting", Some(Hook::RawPrerouting), arriving),
    ]
}

/// Redirects connections that leave the mesh to the relay in the router's namespace, and DNS
/// queries to the router's resolver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterPlan {
    /// Interface on which packets of the workloads arrive.
    pub bridge: &'static str,
    /// Addresses of the workloads and of the router, which are never redirected.
    pub pods: Cidr,
    /// Port of the relay in the router's namespace.
    pub relay_port: u16,
    /// Port of the router's resolver, which also answers queries to any other name server.
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

/// Translates cluster IPs to endpoints (DNAT) in the namespace of a workload without a sidecar.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// One rule for each cluster IP and port.
    pub services: Vec<ServiceRule>,
}

/// One cluster IP and port with its endpoints.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceRule {
    /// The cluster IP.
    pub address: IpAddr,
    /// The port of the Service.
    pub port: u16,
    /// The transport protocol of the port.
    pub transport: Transport,
    /// The endpoints, used round robin. Without endpoints there is no rule.
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
                // The first rule takes one packet in `count`, the next one in `count - 1` of the
                // rest, and so on; the last takes all that remain.
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
