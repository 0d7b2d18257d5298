//! The node's DNS server on the router. It answers names of the mesh for workloads without a
//! sidecar and forwards all other queries to the machine's resolver. Names below `cluster.local`
//! and single-label names are never forwarded.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use meltemi_dns::{Parsed, Query, RecordType, ResponseCode, addresses_of, is_name, parse};
use meltemi_web::Places;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};

use crate::dialler::Dialler;
use crate::dns;
use crate::services::Services;

/// Maximum number of queries in flight. UDP queries beyond it are dropped, and clients retry.
const IN_FLIGHT: usize = 256;
/// Maximum number of TCP connections. A further one takes the place of another.
const CONNECTIONS: usize = 256;
/// Limit for reading a whole query over TCP, for waiting until it may run, and for writing its
/// answer; each may take this long.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Pause after a failed accept or receive, since the error may last.
const PAUSE: Duration = Duration::from_millis(50);

/// Answers DNS queries of the workloads.
pub(crate) struct Resolver {
    pub(crate) services: watch::Receiver<Arc<Services>>,
    pub(crate) dialler: Arc<Dialler>,
    /// DNS suffix for which the mesh is authoritative.
    pub(crate) domain: String,
}

impl Resolver {
    /// Binds UDP and TCP at `address` and serves in the background.
    pub(crate) async fn start(self, address: SocketAddr) -> io::Result<()> {
        let udp = Arc::new(UdpSocket::bind(address).await?);
        let tcp = TcpListener::bind(address).await?;
        let resolver = Arc::new(self);
        let permits = Arc::new(Semaphore::new(IN_FLIGHT));
        tokio::spawn(Arc::clone(&resolver).serve_udp(udp, Arc::clone(&permits)));
        tokio::spawn(resolver.serve_tcp(tcp, permits));
        Ok(())
    }

    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>, permits: Arc<Semaphore>) {
        let mut buffer = vec![0; 4096];
        loop {
            let (length, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    tracing::warn!(%error, "resolver cannot receive");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };

            let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
                continue;
            };
            let (resolver, socket, query) = (
                Arc::clone(&self),
                Arc::clone(&socket),
                buffer[..length].to_vec(),
            );

            tokio::spawn(async move {
                if let Some(answer) = resolver.answer(query, false).await {
                    let _ = socket.send_to(&answer, from).await;
                }
                drop(permit);
            });
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener, permits: Arc<Semaphore>) {
        let places = Places::new(CONNECTIONS);
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "resolver cannot accept");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };

            let mut place = places.admit(Some(peer.ip()));
            let (resolver, permits) = (Arc::clone(&self), Arc::clone(&permits));
            tokio::spawn(async move {
                tokio::select! {
                    _ = resolver.converse(stream, &permits) => {}
                    () = place.lost() => {}
                }
            });
        }
    }

    async fn converse(&self, mut stream: TcpStream, permits: &Semaphore) -> io::Result<()> {
        loop {
            let read = async {
                let mut query = vec![0; usize::from(stream.read_u16().await?)];
                stream.read_exact(&mut query).await?;
                io::Result::Ok(query)
            };

            let query = tokio::time::timeout(TCP_IDLE, read).await??;
            let permit = tokio::time::timeout(TCP_IDLE, permits.acquire())
                .await?
                .map_err(io::Error::other)?;
            let Some(answer) = self.answer(query, true).await else {
                return Ok(());
            };
            drop(permit);
            let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
            let message = [&length.to_be_bytes()[..], &answer].concat();
            tokio::time::timeout(TCP_IDLE, stream.write_all(&message)).await??;
        }
    }

    async fn answer(&self, bytes: Vec<u8>, tcp: bool) -> Option<Vec<u8>> {
        let Parsed::Query(query) = parse(&bytes) else {
            return None;
        };
        let reply = |code, addresses: &[IpAddr]| {
            let answer = dns::answer(code, None, addresses);
            Some(query.respond(&answer, dns::transport(tcp)))
        };

        if dns::is_localhost(&query.name) {
            return reply(ResponseCode::NoError, &dns::loopback(query.record));
        }

        let targets = self.services.borrow().port_targets(&query.name);
        if let Some(targets) = targets {
            let mut answer = dns::answer(ResponseCode::NoError, None, &[]);
            if query.record == RecordType::SRV {
                answer.targets = &targets;
            }
            return Some(query.respond(&answer, dns::transport(tcp)));
        }

        let known = self.services.borrow().addresses(&query.name);
        if let Some(addresses) = known {
            let addresses = dns::of_type(&addresses, query.record);
            return reply(ResponseCode::NoError, &addresses);
        }

        let target = self.services.borrow().alias_target(&query.name);
        if let Some(target) = target {
            return Some(self.answer_alias(&query, &target, tcp).await);
        }

        // Search domains turn each lookup of an outside name into several names of the mesh. Answer
        // those here: forwarding them would only be slower.
        if self.is_mesh_name(&query.name) {
            return reply(ResponseCode::NXDomain, &[]);
        }

        match self.dialler.dns(bytes, tcp).await {
            Ok(answer) => Some(answer),
            Err(error) => {
                tracing::debug!(name = query.name, %error, "the machine's resolver did not answer");
                reply(ResponseCode::ServFail, &[])
            }
        }
    }

    /// Whether a name belongs to the mesh: below its domain, or a single label.
    fn is_mesh_name(&self, name: &str) -> bool {
        let below = name
            .strip_suffix(&self.domain)
            .is_some_and(|head| head.is_empty() || head.ends_with('.'));
        below || !name.contains('.')
    }

    /// Answers for an ExternalName Service: a CNAME record for `target`, and the addresses of
    /// `target` whether it is a name of the mesh or an outside name.
    async fn answer_alias(&self, query: &Query, target: &str, tcp: bool) -> Vec<u8> {
        let known = self.services.borrow().addresses(target);
        let outcome = match known {
            _ if !is_name(target) => None,
            Some(addresses) => Some((
                ResponseCode::NoError,
                dns::of_type(&addresses, query.record),
            )),
            None if self.is_mesh_name(target) => Some((ResponseCode::NXDomain, Vec::new())),
            None => self.ask_outside(query, target, tcp).await,
        };

        let answer = match &outcome {
            Some((code, addresses)) => dns::answer(*code, Some(target), addresses),
            None => dns::answer(ResponseCode::ServFail, None, &[]),
        };
        query.respond(&answer, dns::transport(tcp))
    }

    /// Asks the machine's resolver for the addresses of `name`, of the type that `query` asks for.
    /// Other record types may hold names and are left out.
    async fn ask_outside(
        &self,
        query: &Query,
        name: &str,
        tcp: bool,
    ) -> Option<(ResponseCode, Vec<IpAddr>)> {
        let answer = self.dialler.dns(query.about(name)?, tcp).await;
        let answer = answer
            .inspect_err(
                |error| tracing::debug!(name, %error, "the machine's resolver did not answer"),
            )
            .ok()?;

        let (code, mut addresses) = addresses_of(&answer)?;
        addresses.retain(|address| match query.record {
            RecordType::A => address.is_ipv4(),
            RecordType::AAAA => address.is_ipv6(),
            _ => false,
        });

        Some((code, addresses))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use meltemi_dns::ServiceTarget;

    use super::*;
    use crate::fd_socket;

    #[tokio::test]
    async fn an_idle_tcp_connection_holds_no_permit() {
        let (_supervisor, socket) = fd_socket::pair().unwrap();
        let services = Services {
            names: [("a.test".to_owned(), vec![Ipv4Addr::new(10, 45, 0, 3)])].into(),
            ..Services::default()
        };

        let (_keep, services) = watch::channel(Arc::new(services));
        let resolver = Arc::new(Resolver {
            services,
            dialler: Dialler::start(socket).unwrap().0,
            domain: "cluster.local".into(),
        });

        let udp = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (udp_address, tcp_address) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
        let permits = Arc::new(Semaphore::new(1));

        tokio::spawn(Arc::clone(&resolver).serve_udp(udp, Arc::clone(&permits)));
        tokio::spawn(resolver.serve_tcp(tcp, permits));

        let query = [
            &[1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..],
            b"\x01a\x04test\x00\x00\x01\x00\x01",
        ]
        .concat();

        let mut idle = TcpStream::connect(tcp_address).await.unwrap();
        let length = u16::try_from(query.len()).unwrap();
        idle.write_all(&[&length.to_be_bytes()[..], &query].concat())
            .await
            .unwrap();
        let mut answer = vec![0; usize::from(idle.read_u16().await.unwrap())];
        idle.read_exact(&mut answer).await.unwrap();
        assert!(answer.ends_with(&[10, 45, 0, 3]));

        // The idle connection stays open while a UDP query takes the only permit.
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(&query, udp_address).await.unwrap();
        let mut buffer = [0; 512];
        let (length, _) = client.recv_from(&mut buffer).await.unwrap();
        assert!(buffer[..length].ends_with(&[10, 45, 0, 3]));
        drop(idle);
    }

    #[tokio::test]
    async fn ports_of_services_and_localhost_are_answered_here() {
        let (_supervisor, socket) = fd_socket::pair().unwrap();
        let peer = ServiceTarget {
            host: "10-44-0-7.peers.test".into(),
            port: 9080,
        };
        let services = Services {
            ports: [("_http._tcp.peers.test".to_owned(), vec![peer])].into(),
            ..Services::default()
        };
        let (_keep, services) = watch::channel(Arc::new(services));
        let resolver = Resolver {
            services,
            dialler: Dialler::start(socket).unwrap().0,
            domain: "cluster.local".into(),
        };
        let ask = async |name: &str, record: u16| {
            let mut query = vec![1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            for label in name.split('.') {
                query.push(u8::try_from(label.len()).unwrap());
                query.extend_from_slice(label.as_bytes());
            }
            query.push(0);
            query.extend_from_slice(&record.to_be_bytes());
            query.extend_from_slice(&[0, 1]);
            resolver.answer(query, false).await.unwrap()
        };
        let counted = |answer: &[u8]| (answer[3] & 15, answer[7]);

        // Priority 0, weight 1, port 9080, and the name, uncompressed (RFC 2782).
        let srv = ask("_http._tcp.peers.test", 33).await;
        assert_eq!(counted(&srv), (0, 1));
        let data = [
            &[0, 0, 0, 1, 0x23, 0x78, 9][..],
            b"10-44-0-7\x05peers\x04test\x00",
        ]
        .concat();
        assert!(srv.ends_with(&data), "{srv:?}");
        assert_eq!(counted(&ask("_http._tcp.peers.test", 1).await), (0, 0));

        for name in ["localhost", "LocalHost", "a.localhost"] {
            assert!(ask(name, 1).await.ends_with(&[127, 0, 0, 1]), "{name}");
            assert!(ask(name, 28).await.ends_with(&[0, 0, 0, 1]), "{name}");
        }
        assert_eq!(counted(&ask("localhost", 16).await), (0, 0));
        assert_eq!(counted(&ask("notlocalhost", 1).await).0, 3, "NXDOMAIN");
    }
}
