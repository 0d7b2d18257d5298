//! The DNS server: UDP and TCP on one address. Mesh names are answered at once; forwarded queries
//! are limited in number, so that they cannot delay mesh names.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use meltemi_dns::{Parsed, ResponseCode, Transport, error_for, error_reply, parse};
use meltemi_web::Places;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{Answer, Forwarder, Names};
use crate::AgentMetrics;

/// Options of the DNS server.
#[derive(Debug, Clone)]
pub struct DnsOptions {
    /// Address for both transports. Default 127.0.0.1:15053; port 0 lets the system choose.
    pub address: SocketAddr,
    /// Search domains for short names, in order.
    pub search: Vec<String>,
    /// Domains for which the mesh is authoritative: names in them that do not exist are answered
    /// with NXDOMAIN. Empty where the upstream serves them too, as on Kubernetes.
    pub zones: Vec<String>,
    /// Time to live of our answers in seconds. Default 30, as Istio's.
    pub ttl: u32,
    /// Maximum number of forwarded queries in flight. Further UDP queries are dropped, and clients
    /// retry. Default 1024.
    pub in_flight: usize,
    /// Maximum number of TCP connections; for a further one the eldest silent one of the source
    /// with most of them is closed. Default 128.
    pub connections: usize,
    /// A TCP connection without a query for this long is closed. Default 10 s.
    pub idle: Duration,
}

impl DnsOptions {
    /// Options with the documented defaults.
    pub fn new(search: Vec<String>) -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 15053)),
            search,
            zones: Vec::new(),
            ttl: 30,
            in_flight: 1024,
            connections: 128,
            idle: Duration::from_secs(10),
        }
    }
}

/// A DNS server that is bound and not yet serving.
pub struct DnsServer {
    shared: Arc<Shared>,
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
}

struct Shared {
    options: DnsOptions,
    names: Names,
    forwarder: Arc<dyn Forwarder>,
    metrics: AgentMetrics,
    in_flight: Arc<Semaphore>,
    places: Places,
}

impl DnsServer {
    /// Binds both transports to the same port.
    pub async fn bind(
        options: DnsOptions,
        names: Names,
        forwarder: Arc<dyn Forwarder>,
        metrics: AgentMetrics,
    ) -> io::Result<Self> {
        let mut attempts = 0;
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind(options.address).await?;
            match TcpListener::bind(udp.local_addr()?).await {
                Ok(tcp) => break (udp, tcp),
                // With port 0 the system chose a free UDP port whose TCP twin may be taken: try
                // another.
                Err(error)
                    if options.address.port() == 0
                        && attempts < 16
                        && error.kind() == io::ErrorKind::AddrInUse =>
                {
                    attempts += 1
                }
                Err(error) => return Err(error),
            }
        };

        let shared = Shared {
            in_flight: Arc::new(Semaphore::new(options.in_flight)),
            places: Places::new(options.connections),
            options,
            names,
            forwarder,
            metrics,
        };

        Ok(Self {
            shared: Arc::new(shared),
            udp: Arc::new(udp),
            tcp,
        })
    }

    /// The bound address, the same for both transports.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    /// Serves until the future is dropped, which ends all connections and queries.
    pub async fn run(self) {
        let mut tasks = JoinSet::new();
        let mut buffer = vec![0; 65_535];
        loop {
            tokio::select! {
                received = self.udp.recv_from(&mut buffer) => match received {
                    Ok((length, peer)) => self.serve_datagram(&buffer[..length], peer, &mut tasks),
                    // The kernel reports that an earlier client is unreachable (ICMP). Other
                    // clients are not affected.
                    Err(error) => tracing::debug!(%error, "dns: receive"),
                },
                accepted = self.tcp.accept() => match accepted {
                    Ok((stream, peer)) => {
                        tasks.spawn(serve_connection(self.shared.clone(), stream, peer.ip()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "dns: accept");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
                Some(_) = tasks.join_next() => {}
            }
        }
    }

    /// Answers a mesh name at once; spawns a task for a query that is forwarded.
    fn serve_datagram(&self, query: &[u8], peer: SocketAddr, tasks: &mut JoinSet<()>) {
        let shared = &self.shared;
        shared.metrics.dns_requests.add_shared(1);
        match shared.decide(query, Transport::Udp) {
            Decision::Reply(answer) => _ = self.udp.try_send_to(&answer, peer),
            Decision::Drop => {}
            Decision::Forward => match shared.in_flight.clone().try_acquire_owned() {
                Err(_) => shared.metrics.dns_dropped.add_shared(1),
                Ok(permit) => {
                    let (shared, udp, query) = (shared.clone(), self.udp.clone(), query.to_vec());
                    tasks.spawn(async move {
                        let _permit = permit;
                        if let Some(answer) = shared.upstream(&query, false).await {
                            let _ = udp.send_to(&answer, peer).await;
                        }
                    });
                }
            },
        }
    }
}

/// What to do with a query.
enum Decision {
    /// Send this answer.
    Reply(Vec<u8>),
    /// Ask the upstream name servers.
    Forward,
    /// Send nothing: the message has no id to answer to.
    Drop,
}

impl Shared {
    fn decide(&self, bytes: &[u8], transport: Transport) -> Decision {
        let query = match parse(bytes) {
            Parsed::Query(query) => query,
            Parsed::Foreign => return Decision::Forward,
            Parsed::Malformed(None) => return Decision::Drop,
            Parsed::Malformed(Some(id)) => {
                return Decision::Reply(error_reply(id, ResponseCode::FormErr));
            }
        };

        let options = &self.options;
        let known = self
            .names
            .answer(&query.name, query.record, &options.search, &options.zones);

        let answer = match &known {
            Answer::Foreign => return Decision::Forward,
            Answer::Absent => meltemi_dns::Answer::empty(ResponseCode::NXDomain),
            Answer::NotYet => meltemi_dns::Answer::empty(ResponseCode::ServFail),
            Answer::Known { alias, addresses } => meltemi_dns::Answer {
                code: ResponseCode::NoError,
                authoritative: false,
                alias: alias.as_deref(),
                addresses,
                targets: &[],
                ttl: options.ttl,
            },
        };

        Decision::Reply(query.respond(&answer, transport))
    }

    /// Forwards a query; a failure becomes SERVFAIL.
    async fn upstream(&self, query: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        self.metrics.dns_upstream.add_shared(1);
        match self.forwarder.forward(query, over_tcp).await {
            Ok(answer) => Some(answer),
            Err(error) => {
                self.metrics.dns_upstream_failures.add_shared(1);
                tracing::debug!(%error, "dns: upstream");
                error_for(query, ResponseCode::ServFail)
            }
        }
    }
}

/// Serves one TCP connection: queries are answered in order (RFC 7766).
async fn serve_connection(shared: Arc<Shared>, mut stream: TcpStream, source: IpAddr) {
    loop {
        // Every query takes a new place, so that the connection that is silent for longest makes
        // room for a newcomer.
        let mut place = shared.places.admit(Some(source));

        let read = async {
            let length = stream.read_u16().await?;
            let mut query = vec![0; usize::from(length)];
            stream.read_exact(&mut query).await?;
            io::Result::Ok(query)
        };

        let query = tokio::select! {
            biased;
            query = tokio::time::timeout(shared.options.idle, read) => query,
            () = place.lost() => {
                shared.metrics.dns_dropped.add_shared(1);
                return;
            }
        };
        let Ok(Ok(query)) = query else {
            return;
        };
        shared.metrics.dns_requests.add_shared(1);
        let answer = match shared.decide(&query, Transport::Tcp) {
            Decision::Reply(answer) => Some(answer),
            Decision::Drop => None,
            Decision::Forward => match shared.in_flight.try_acquire() {
                Ok(_in_flight) => shared.upstream(&query, true).await,
                Err(_) => error_for(&query, ResponseCode::ServFail),
            },
        };

        let Some(answer) = answer.filter(|answer| answer.len() <= usize::from(u16::MAX)) else {
            return;
        };
        let framed = [&(answer.len() as u16).to_be_bytes()[..], &answer].concat();
        let written = tokio::time::timeout(shared.options.idle, stream.write_all(&framed));
        if !matches!(written.await, Ok(Ok(()))) {
            return;
        }
    }
}
