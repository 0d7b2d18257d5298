//! The supervisor's end of the channel: opens sockets and forwards DNS queries in the machine's
//! network namespace. Refuses connections to the machine's loopback, except where the dial map
//! redirects.

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

use super::client::Listening;
use super::request_queue::RequestQueue;
use super::{Answer, DialMap, DiallerReply, DiallerRequest, Failure, ToSupervisor};
use crate::dns;
use crate::events::Event;
use crate::fd_socket::{FdSocket, MAX_FDS};
use crate::publication::ServicePublication;

/// Limits of connects: (running, waiting). Their sum is the number of connections that the relay
/// carries.
const CONNECTS: (usize, usize) = (1024, 3072);
/// Limits of DNS queries: (running, waiting).
const LOOKUPS: (usize, usize) = (256, 768);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const DNS_TIMEOUT: Duration = Duration::from_secs(2);
/// Added to a gateway port below 1024, since ordinary users cannot listen on it.
const PRIVILEGED_OFFSET: u16 = 8000;

/// Options of the supervisor that concern the machine's network.
#[derive(Debug, Clone)]
pub(crate) struct ServerOptions {
    /// Address on which gateway ports are published.
    pub(crate) publish_address: IpAddr,
    /// Machine port by gateway port, where the user chose one.
    pub(crate) publish: BTreeMap<u16, u16>,
    /// Whether a gateway's port that another program has is published on a free one instead.
    pub(crate) take_free_ports: bool,
    /// Redirections of outside names and addresses.
    pub(crate) map: DialMap,
}

/// The machine's network as nodes may use it. Outlives the nodes.
pub(crate) struct Machine {
    options: ServerOptions,
    map: Mutex<DialMap>,
    /// Address and sockets by gateway port. The supervisor keeps the sockets open: connections
    /// queue while a gateway restarts, and the restarted gateway accepts them.
    published: Mutex<BTreeMap<u16, (SocketAddr, Vec<OwnedFd>)>>,
    /// The same for ports of Services, by the words of `--publish`.
    services: Mutex<BTreeMap<String, (SocketAddr, OwnedFd)>>,
}

/// Serves one node.
pub(crate) struct Server {
    socket: FdSocket,
    machine: Arc<Machine>,
    connects: RequestQueue,
    lookups: RequestQueue,
}

impl Server {
    pub(crate) fn new(socket: OwnedFd, machine: Arc<Machine>) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            socket: FdSocket::new(socket)?,
            machine,
            connects: RequestQueue::new(CONNECTS.0, CONNECTS.1),
            lookups: RequestQueue::new(LOOKUPS.0, LOOKUPS.1),
        }))
    }

    /// Serves requests until the node closes its end; passes events to `on_event`.
    pub(crate) async fn serve(self: Arc<Self>, mut on_event: impl FnMut(Event)) -> io::Result<()> {
        while let Some((message, _)) = self.socket.receive::<ToSupervisor>().await? {
            let (id, request) = match message {
                ToSupervisor::Event(event) => {
                    on_event(event);
                    continue;
                }
                ToSupervisor::Request(id, request) => (id, request),
            };

            let place = match &request {
                DiallerRequest::Connect(_) => Some(self.connects.admit()),
                DiallerRequest::Dns { .. } => Some(self.lookups.admit()),
                // Listening never blocks, and there are only as many requests as ports.
                DiallerRequest::Listen { .. } | DiallerRequest::Publish(_) => None,
            };

            let server = Arc::clone(&self);
            tokio::spawn(async move {
                let outcome = async {
                    let place = place.transpose()?;
                    let _turn = match &place {
                        Some(place) => Some(place.wait_for_turn().await?),
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

    /// Sends the reply. If the reply cannot be sent (an answer too long for a message), sends the
    /// error instead, since the node waits for a reply.
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

        if let Err(error) = self
            .socket
            .send(&DiallerReply { id, answer }, &borrowed)
            .await
        {
            // If the node is gone, this fails as well, and nobody waits for it.
            let _ = self
                .socket
                .send(
                    &DiallerReply {
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
    /// Creates the machine without published ports.
    pub(crate) fn new(options: ServerOptions) -> Arc<Self> {
        let map = Mutex::new(options.map.clone());
        Arc::new(Self {
            options,
            map,
            published: Mutex::default(),
            services: Mutex::default(),
        })
    }

    async fn answer(&self, request: DiallerRequest) -> io::Result<(Answer, Vec<OwnedFd>)> {
        match request {
            DiallerRequest::Connect(to) => {
                let stream = self.connect(to).await?;
                Ok((Answer::Done, vec![stream.into_std()?.into()]))
            }
            DiallerRequest::Listen {
                port,
                count,
                others,
            } => {
                let Listening {
                    address,
                    taken,
                    sockets,
                } = self.listen(port, count, &others)?;
                Ok((Answer::Listening { address, taken }, sockets))
            }
            DiallerRequest::Publish(publication) => {
                let (address, socket) = self.publish(&publication)?;
                let answer = Answer::Listening {
                    address,
                    taken: None,
                };
                Ok((answer, vec![socket]))
            }
            DiallerRequest::Dns { query, tcp } => {
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

        // Workloads must not reach services on the machine's loopback; connecting to 0.0.0.0
        // reaches the loopback as well.
        let forbidden = to.ip().is_unspecified() || to.ip().is_loopback() || to.ip().is_multicast();
        if mapped.is_none() && forbidden {
            return Err(io::ErrorKind::PermissionDenied.into());
        }

        tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(mapped.unwrap_or(to)))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Returns copies of the sockets that listen for the gateway port `port`, opening them at the
    /// first request.
    fn listen(&self, port: u16, count: u16, others: &[u16]) -> io::Result<Listening> {
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
            return Ok(Listening {
                address: *address,
                taken: None,
                sockets: copies,
            });
        }

        let taken_ports: Vec<u16> = published
            .values()
            .map(|(address, _)| address.port())
            .collect();

        let chosen = self.options.publish.get(&port).copied();
        let outer = chosen.unwrap_or_else(|| published_port(port, others, &taken_ports));
        let wanted = SocketAddr::new(self.options.publish_address, outer);
        let explain = |e| {
            let remedy =
                format!("publish gateway port {port} elsewhere with --publish {port}=OTHER");
            explain(e, wanted, &remedy)
        };

        let is_taken = |e: &io::Error| e.kind() == io::ErrorKind::AddrInUse;
        let (address, taken) = match free_address(wanted) {
            Err(e) if is_taken(&e) && self.options.take_free_ports && chosen.is_none() => {
                let any = free_address(SocketAddr::new(wanted.ip(), 0)).map_err(explain)?;
                (any, Some(outer))
            }
            other => (other.map_err(explain)?, None),
        };
        let sockets: Vec<OwnedFd> = (0..count)
            .map(|_| Ok(listener(address, true).map_err(explain)?.into()))
            .collect::<io::Result<_>>()?;
        let copies = sockets
            .iter()
            .map(OwnedFd::try_clone)
            .collect::<io::Result<_>>()?;

        published.insert(port, (address, sockets));
        Ok(Listening {
            address,
            taken,
            sockets: copies,
        })
    }

    /// Returns a copy of the socket that listens for a Service's port, opening it at the first
    /// request.
    fn publish(&self, publication: &ServicePublication) -> io::Result<(SocketAddr, OwnedFd)> {
        let mut services = self
            .services
            .lock()
            .expect("nothing panics while it holds the table");
        let label = publication.label();
        if let Some((address, socket)) = services.get(&label) {
            return Ok((*address, socket.try_clone()?));
        }

        let wanted = SocketAddr::new(self.options.publish_address, publication.machine_port);
        let explain = |e| {
            let remedy = format!("publish it elsewhere with --publish {label}=OTHER");
            explain(e, wanted, &remedy)
        };
        let address = free_address(wanted).map_err(explain)?;
        let socket: OwnedFd = listener(address, true).map_err(explain)?.into();
        let copy = socket.try_clone()?;
        services.insert(label, (address, socket));
        Ok((address, copy))
    }

    /// Answers a mapped name from the dial map; otherwise asks the servers of `/etc/resolv.conf` in
    /// turn.
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

/// The machine's port for a gateway port: the same number, or 8000 more if that needs privileges.
/// If the number belongs to another port of the gateway (`others`) or is published already, 10,000
/// is added until a number is free; 0 (the kernel chooses) when none is.
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

/// The address with a port filled in, if no program listens there.
///
/// `SO_REUSEPORT` would share the port with another program of the same user without an error, so
/// this binds once without it.
fn free_address(wanted: SocketAddr) -> io::Result<SocketAddr> {
    let probe = listener(wanted, false)?;
    Ok(probe.local_addr()?.as_socket().unwrap_or(wanted))
}

/// Why the machine cannot listen on an address, and what to do about it.
fn explain(error: io::Error, wanted: SocketAddr, remedy: &str) -> io::Error {
    let (ip, port) = (wanted.ip(), wanted.port());
    match error.kind() {
        io::ErrorKind::AddrInUse => io::Error::other(format!(
            "port {port} of {ip} is taken by another program (`ss -ltnp 'sport = :{port}'` shows which); stop it, or {remedy}"
        )),
        _ => io::Error::new(error.kind(), format!("cannot listen on {wanted}: {error}")),
    }
}

/// Binds a socket. A `shared` socket listens and allows others on the same port; one that is not
/// shared only tests whether the port is free.
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

/// The first three servers of `/etc/resolv.conf`. The file is read for every query, since it
/// changes when a laptop changes networks.
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

    // On a connected socket the kernel drops answers from any other address.
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
            take_free_ports: true,
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
    async fn the_largest_dns_answer_fits_a_message_and_a_larger_one_is_an_error() {
        let (ours, theirs) = fd_socket::pair().unwrap();
        let server = Server::new(ours, machine("")).unwrap();
        server
            .reply(1, Ok((Answer::Dns(vec![255; 65_535]), Vec::new())))
            .await;
        let (reply, _) = fd_socket::receive::<DiallerReply>(&theirs)
            .unwrap()
            .unwrap();
        assert!(matches!(reply.answer, Ok(Answer::Dns(bytes)) if bytes == [255; 65_535]));
        server
            .reply(2, Ok((Answer::Dns(vec![255; 1 << 20]), Vec::new())))
            .await;
        let (reply, _) = fd_socket::receive::<DiallerReply>(&theirs)
            .unwrap()
            .unwrap();
        assert!(reply.id == 2 && reply.answer.is_err());
    }

    #[tokio::test]
    async fn connects_that_hang_delay_no_other_request() {
        let (ours, theirs) = fd_socket::pair().unwrap();
        let connects = RequestQueue::new(1, 1);

        // A connect that hangs: the next one waits.
        let ahead = connects.admit().unwrap();
        let _turn = ahead.wait_for_turn().await.unwrap();
        let server = Server {
            socket: FdSocket::new(ours).unwrap(),
            machine: machine("outside.test: 127.0.0.1:1"),
            connects,
            lookups: RequestQueue::new(1, 1),
        };

        let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(Arc::new(server).serve(move |event| _ = sender.send(event)));
        let node = FdSocket::new(theirs).unwrap();
        let ask = async |id, request| {
            node.send(&ToSupervisor::Request(id, request), &[])
                .await
                .unwrap()
        };

        let to = SocketAddr::from(([127, 0, 0, 1], 1));
        ask(1, DiallerRequest::Connect(to)).await;
        ask(2, DiallerRequest::Connect(to)).await;
        let query = [
            &[1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..],
            b"\x07outside\x04test\x00\x00\x01\x00\x01",
        ]
        .concat();

        ask(3, DiallerRequest::Dns { query, tcp: false }).await;
        ask(
            4,
            DiallerRequest::Listen {
                port: 80,
                count: 1,
                others: Vec::new(),
            },
        )
        .await;

        node.send(&ToSupervisor::Event(Event::NodeUp), &[])
            .await
            .unwrap();
        let mut answers = BTreeMap::new();
        for _ in 0..3 {
            let (reply, _) = node.receive::<DiallerReply>().await.unwrap().unwrap();
            answers.insert(reply.id, reply.answer.is_ok());
        }

        assert_eq!(answers, [(2, false), (3, true), (4, true)].into());
        assert!(matches!(events.recv().await, Some(Event::NodeUp)));
    }

    #[tokio::test]
    async fn a_restarted_gateway_gets_the_same_port() {
        let machine = machine("");
        let dialler = start(&machine);
        let first = dialler.listen(80, 2, Vec::new()).await.unwrap();
        assert_eq!(first.sockets.len(), 2);
        let address = first.address;
        drop(first);
        let again = dialler.listen(80, 3, Vec::new()).await.unwrap();
        assert_eq!(again.address, address);

        let queued = std::net::TcpStream::connect(address);
        assert!(queued.is_ok(), "the queue outlives the gateway");
        drop(dialler);
        assert_eq!(
            start(&machine)
                .listen(80, 1, Vec::new())
                .await
                .unwrap()
                .address,
            address,
            "and the node"
        );
    }

    #[tokio::test]
    async fn a_taken_port_is_named_and_a_free_one_serves_instead() {
        let machine = machine("");
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = other.local_addr().unwrap().port();
        let listening = machine.listen(port, 1, &[]).unwrap();
        assert_eq!(listening.taken, Some(port));
        assert_ne!(listening.address.port(), port);

        let publication = ServicePublication {
            name: "web".to_owned(),
            namespace: "shop".to_owned(),
            port: 80,
            machine_port: port,
        };
        let refused = machine.publish(&publication).unwrap_err().to_string();
        assert!(
            refused.contains("taken by another program")
                && refused.contains("--publish web.shop:80=OTHER"),
            "{refused}"
        );
        drop(other);
        let (address, _) = machine.publish(&publication).unwrap();
        assert_eq!(address.port(), port);
        assert_eq!(
            machine.publish(&publication).unwrap().0,
            address,
            "the same socket"
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
    fn a_moved_port_avoids_the_other_ports_of_the_gateway() {
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
