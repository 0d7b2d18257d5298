//! The supervisor's end, in the machine's own network namespace.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meltemi_dns::{Parsed, ResponseCode, parse};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use super::lane::Lane;
use super::{Answer, DialMap, Failure, Reply, Request, ToSupervisor};
use crate::dns;
use crate::events::Event;
use crate::fd_socket::{FdSocket, MAX_FDS};

/// Connections being made, and such as wait; together as many as the relay carries.
const CONNECTING: (usize, usize) = (1024, 3072);
/// Questions to the machine's resolver under way, and such as wait.
const LOOKING_UP: (usize, usize) = (256, 768);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const DNS_TIMEOUT: Duration = Duration::from_secs(2);
/// A port that needs privileges is published this much higher.
const PRIVILEGED_OFFSET: u16 = 8000;

/// What the machine's side decides.
#[derive(Debug, Clone)]
pub(crate) struct ServerOptions {
    /// Address on which gateways' ports are published.
    pub(crate) publish_address: IpAddr,
    /// Ports published under another number than their rule's.
    pub(crate) publish: BTreeMap<u16, u16>,
    /// Outside names and addresses that lead elsewhere.
    pub(crate) map: DialMap,
}

/// The machine as nodes may use it: outlives them.
pub(crate) struct Machine {
    options: ServerOptions,
    map: Mutex<DialMap>,
    /// Sockets of every published port; kept so that a gateway that starts again takes up the same
    /// queue.
    published: Mutex<BTreeMap<u16, (SocketAddr, Vec<OwnedFd>)>>,
}

/// Serves one node.
pub(crate) struct Server {
    socket: FdSocket,
    machine: Arc<Machine>,
    connects: Lane,
    lookups: Lane,
}

impl Server {
    pub(crate) fn new(socket: OwnedFd, machine: Arc<Machine>) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            socket: FdSocket::new(socket)?,
            machine,
            connects: Lane::new(CONNECTING.0, CONNECTING.1),
            lookups: Lane::new(LOOKING_UP.0, LOOKING_UP.1),
        }))
    }

    /// Answers until the node closes its end.
    pub(crate) async fn serve(self: Arc<Self>, mut on_event: impl FnMut(Event)) -> io::Result<()> {
        while let Some((message, _)) = self.socket.receive::<ToSupervisor>().await? {
            let (id, request) = match message {
                ToSupervisor::Tell(event) => {
                    on_event(event);
                    continue;
                }
                ToSupervisor::Ask(id, request) => (id, request),
            };

            let place = match &request {
                Request::Connect(_) => Some(self.connects.enter()),
                Request::Dns { .. } => Some(self.lookups.enter()),
                // At once, and as few as there are gateways.
                Request::Listen { .. } => None,
            };

            let server = Arc::clone(&self);
            tokio::spawn(async move {
                let outcome = async {
                    let place = place.transpose()?;
                    let _turn = match &place {
                        Some(place) => Some(place.turn().await?),
                        None => None,
                    };
                    server.machine.answer(request).await
                };

                let outcome = outcome.await;
                server.reply(id, outcome).await;
            });
        }

        Ok(())
    }

    /// Tells the node; also when what it asked for cannot be told, since it waits.
    async fn reply(&self, id: u64, outcome: io::Result<(Answer, Vec<OwnedFd>)>) {
        let failed = |e: &io::Error| {
            Err(Failure {
                message: e.to_string(),
                os_error: e.raw_os_error(),
            })
        };

        let (answer, fds) = match outcome {
            Ok((answer, fds)) => (Ok(answer), fds),
            Err(e) => (failed(&e), Vec::new()),
        };

        let borrowed: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();

        if let Err(error) = self.socket.send(&Reply { id, answer }, &borrowed).await {
            // Fails again where the node is gone, and then nobody waits.
            let _ = self
                .socket
                .send(
                    &Reply {
                        id,
                        answer: failed(&error),
                    },
                    &[],
                )
                .await;
        }
    }
}

impl Machine {
    /// With nothing published yet.
    pub(crate) fn new(options: ServerOptions) -> Arc<Self> {
        let map = Mutex::new(options.map.clone());
        Arc::new(Self {
            options,
            map,
            published: Mutex::default(),
        })
    }

    async fn answer(&self, request: Request) -> io::Result<(Answer, Vec<OwnedFd>)> {
        match request {
            Request::Connect(to) => {
                let stream = self.connect(to).await?;
                Ok((Answer::Done, vec![stream.into_std()?.into()]))
            }
            Request::Listen {
                port,
                count,
                others,
            } => {
                let (address, fds) = self.listen(port, count, &others)?;
                Ok((Answer::Listening(address), fds))
            }
            Request::Dns { query, tcp } => {
                Ok((Answer::Dns(self.resolve(&query, tcp).await?), Vec::new()))
            }
        }
    }

    async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let mapped = self
            .map
            .lock()
            .expect("nothing panics while it holds the map")
            .target_of(to);

        // 0.0.0.0 would reach the machine itself, and its loopback is not the workload's to call.
        let forbidden = to.ip().is_unspecified() || to.ip().is_loopback() || to.ip().is_multicast();
        if mapped.is_none() && forbidden {
            return Err(io::ErrorKind::PermissionDenied.into());
        }

        tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(mapped.unwrap_or(to)))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    fn listen(
        &self,
        port: u16,
        count: u16,
        others: &[u16],
    ) -> io::Result<(SocketAddr, Vec<OwnedFd>)> {
        let count = usize::from(count).clamp(1, MAX_FDS);
        let mut published = self
            .published
            .lock()
            .expect("nothing panics while it holds the table");

        if let Some((address, sockets)) = published.get_mut(&port) {
            while sockets.len() < count {
                sockets.push(listener(*address, true)?.into());
            }
            let copies = sockets
                .iter()
                .take(count)
                .map(OwnedFd::try_clone)
                .collect::<io::Result<_>>()?;
            return Ok((*address, copies));
        }

        let own: Vec<u16> = published
            .values()
            .map(|(address, _)| address.port())
            .collect();

        let chosen = self.options.publish.get(&port).copied();
        let outer = chosen.unwrap_or_else(|| published_port(port, others, &own));
        let wanted = SocketAddr::new(self.options.publish_address, outer);
        let taken = |e: io::Error| match e.kind() {
            io::ErrorKind::AddrInUse => io::Error::other(format!(
                "port {outer} of {} is taken by another program (`ss -ltnp 'sport = :{outer}'` shows which); stop it, or publish gateway port {port} elsewhere with --publish {port}=OTHER",
                wanted.ip()
            )),
            _ => io::Error::new(e.kind(), format!("cannot listen on {wanted}: {e}")),
        };

        // With SO_REUSEPORT a second program of the same user would share the port unnoticed: so
        // look first without it.
        let address = {
            let probe = listener(wanted, false).map_err(taken)?;
            probe.local_addr()?.as_socket().unwrap_or(wanted)
        };

        let sockets: Vec<OwnedFd> = (0..count)
            .map(|_| Ok(listener(address, true).map_err(taken)?.into()))
            .collect::<io::Result<_>>()?;
        let copies = sockets
            .iter()
            .map(OwnedFd::try_clone)
            .collect::<io::Result<_>>()?;

        published.insert(port, (address, sockets));

        Ok((address, copies))
    }

    async fn resolve(&self, query: &[u8], tcp: bool) -> io::Result<Vec<u8>> {
        if let Parsed::Query(asked) = parse(query) {
            let mapped = self
                .map
                .lock()
                .expect("nothing panics while it holds the map")
                .address_of(&asked.name);

            if let Some(address) = mapped {
                let addresses = dns::of_type(&[address], asked.record);
                let answer = dns::answer(ResponseCode::NoError, None, &addresses);
                return Ok(asked.respond(&answer, dns::transport(tcp)));
            }
        }

        let mut last = io::Error::other("the machine's /etc/resolv.conf names no server");
        for server in host_resolvers() {
            let asked = async {
                if tcp {
                    ask_tcp(server, query).await
                } else {
                    ask_udp(server, query).await
                }
            };

            match tokio::time::timeout(DNS_TIMEOUT, asked).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(e)) => last = e,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }

        Err(last)
    }
}

/// The machine's port for a gateway's port: its own number, or a higher one where that needs
/// privileges. Where that is the number of `others` of the gateway, or is published already, the
/// next one 10,000 higher that is free; in the end, whatever the kernel gives.
fn published_port(port: u16, others: &[u16], published: &[u16]) -> u16 {
    let first = if port < 1024 {
        port + PRIVILEGED_OFFSET
    } else {
        port
    };
    let is_free =
        |number: &u16| !published.contains(number) && (*number == port || !others.contains(number));
    let candidates = std::iter::successors(Some(first), |number| number.checked_add(10_000));
    candidates.into_iter().find(is_free).unwrap_or(0)
}

fn listener(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;

    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    if shared {
        socket.listen(1024)?;
    }

    Ok(socket)
}

/// The servers of /etc/resolv.conf, read each time: a laptop changes networks.
fn host_resolvers() -> Vec<SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            line.strip_prefix("nameserver")?
                .trim()
                .parse::<IpAddr>()
                .ok()
        })
        .map(|ip| SocketAddr::new(ip, 53))
        .take(3)
        .collect()
}

async fn ask_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if server.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        "[::]:0".parse().expect("an address")
    };

    let socket = UdpSocket::bind(any).await?;

    // Connected: answers of anybody else are dropped by the kernel.
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut answer = vec![0; 65_535];

    loop {
        let length = socket.recv(&mut answer).await?;
        if answer[..length].get(..2) == query.get(..2) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length =
        u16::try_from(query.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    stream
        .write_all(&[&length.to_be_bytes()[..], query].concat())
        .await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialler::Dialler;
    use crate::fd_socket;

    fn machine(map: &str) -> Arc<Machine> {
        let options = ServerOptions {
            publish_address: Ipv4Addr::LOCALHOST.into(),
            publish: [(80, 0), (81, 0)].into(),
            map: DialMap::parse(map).unwrap(),
        };
        Machine::new(options)
    }

    fn start(machine: &Arc<Machine>) -> Arc<Dialler> {
        let (ours, theirs) = fd_socket::pair().unwrap();
        tokio::spawn(
            Server::new(ours, Arc::clone(machine))
                .unwrap()
                .serve(|_| {}),
        );
        Dialler::start(theirs).unwrap().0
    }

    #[tokio::test]
    async fn connects_where_the_map_leads_and_never_to_loopback() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let dialler = start(&machine(&format!(
            "outside.test: {}",
            server.local_addr().unwrap()
        )));

        let query = [
            &[1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..],
            b"\x07outside\x04test\x00\x00\x01\x00\x01",
        ]
        .concat();

        let answer = dialler.dns(query, false).await.unwrap();
        let octets: [u8; 4] = answer[answer.len() - 4..].try_into().unwrap();
        dialler
            .connect(SocketAddr::from((octets, 443)))
            .await
            .unwrap();

        server.accept().unwrap();
        let refused = dialler
            .connect(server.local_addr().unwrap())
            .await
            .unwrap_err();

        assert_eq!(refused.to_string(), "permission denied");
    }

    #[tokio::test]
    async fn an_answer_as_large_as_dns_allows_arrives_and_a_larger_one_is_a_failure() {
        let (ours, theirs) = fd_socket::pair().unwrap();
        let server = Server::new(ours, machine("")).unwrap();
        server
            .reply(1, Ok((Answer::Dns(vec![255; 65_535]), Vec::new())))
            .await;
        let (reply, _) = fd_socket::receive::<Reply>(&theirs).unwrap().unwrap();
        assert!(matches!(reply.answer, Ok(Answer::Dns(bytes)) if bytes == [255; 65_535]));
        server
            .reply(2, Ok((Answer::Dns(vec![255; 1 << 20]), Vec::new())))
            .await;
        let (reply, _) = fd_socket::receive::<Reply>(&theirs).unwrap().unwrap();
        assert!(reply.id == 2 && reply.answer.is_err());
    }

    #[tokio::test]
    async fn connections_that_nobody_answers_hold_nothing_else_up() {
        let (ours, theirs) = fd_socket::pair().unwrap();
        let connects = Lane::new(1, 1);

        // Somebody whom nobody answers: the one behind waits.
        let ahead = connects.enter().unwrap();
        let _turn = ahead.turn().await.unwrap();
        let server = Server {
            socket: FdSocket::new(ours).unwrap(),
            machine: machine("outside.test: 127.0.0.1:1"),
            connects,
            lookups: Lane::new(1, 1),
        };

        let (told, mut events) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(Arc::new(server).serve(move |event| _ = told.send(event)));
        let node = FdSocket::new(theirs).unwrap();
        let ask = async |id, request| {
            node.send(&ToSupervisor::Ask(id, request), &[])
                .await
                .unwrap()
        };

        let to = SocketAddr::from(([127, 0, 0, 1], 1));
        ask(1, Request::Connect(to)).await;
        ask(2, Request::Connect(to)).await;
        let query = [
            &[1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..],
            b"\x07outside\x04test\x00\x00\x01\x00\x01",
        ]
        .concat();

        ask(3, Request::Dns { query, tcp: false }).await;
        ask(
            4,
            Request::Listen {
                port: 80,
                count: 1,
                others: Vec::new(),
            },
        )
        .await;

        node.send(&ToSupervisor::Tell(Event::NodeUp), &[])
            .await
            .unwrap();
        let mut answers = BTreeMap::new();
        for _ in 0..3 {
            let (reply, _) = node.receive::<Reply>().await.unwrap().unwrap();
            answers.insert(reply.id, reply.answer.is_ok());
        }

        assert_eq!(answers, [(2, false), (3, true), (4, true)].into());
        assert!(matches!(events.recv().await, Some(Event::NodeUp)));
    }

    #[tokio::test]
    async fn a_gateway_that_asks_again_gets_the_same_port() {
        let machine = machine("");
        let dialler = start(&machine);
        let (address, sockets) = dialler.listen(80, 2, Vec::new()).await.unwrap();

        assert_eq!(sockets.len(), 2);
        drop(sockets);
        assert_eq!(dialler.listen(80, 3, Vec::new()).await.unwrap().0, address);
        let queued = std::net::TcpStream::connect(address);
        assert!(queued.is_ok(), "the queue outlives the gateway");
        drop(dialler);
        assert_eq!(
            start(&machine).listen(80, 1, Vec::new()).await.unwrap().0,
            address,
            "and the node"
        );
    }

    #[test]
    fn privileged_ports_are_published_higher() {
        assert_eq!(
            [80, 443, 1023, 1024, 8080].map(|port| published_port(port, &[], &[])),
            [8080, 8443, 9023, 1024, 8080]
        );
    }

    #[test]
    fn a_port_that_names_itself_comes_before_one_that_was_moved() {
        let all = [25, 80, 8025, 8080];
        assert_eq!(
            all.map(|port| published_port(port, &all, &[])),
            [18025, 18080, 8025, 8080]
        );

        assert_eq!(published_port(25, &[8025], &[18025]), 28025);
        assert_eq!(published_port(8025, &[25], &[8025]), 18025, "it came later");
        assert_eq!(
            published_port(25, &[], &[8025, 18025, 28025, 38025, 48025, 58025]),
            0
        );
    }
}
