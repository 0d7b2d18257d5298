//! `meltemi port-forward`: finds the replica and the port that a client means, and connects to it
//! inside the workload's network, beside its sidecar, as `kubectl port-forward` does.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::requests::{Refusal, choose_replica, refused};
use super::state::Node;
use crate::api::Destination;
use crate::service_ports;
use crate::spec::WorkloadKey;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The replica and its port behind a destination's port.
pub(super) fn resolve(
    node: &Node,
    destination: &Destination,
    port: u16,
) -> Result<(WorkloadKey, u16), Refusal> {
    let (namespace, name) = match destination {
        Destination::Workload(target) => return Ok((choose_replica(node, target)?, port)),
        Destination::Service { namespace, name } => (namespace, name),
    };

    let snapshot = node.context.worlds.borrow().snapshot.clone();
    let endpoints = service_ports::endpoints(&snapshot, namespace, name, port).or_else(refused)?;
    let state = node.state();
    let found = endpoints.iter().find_map(|endpoint| {
        let key = state
            .handles
            .iter()
            .find(|(_, handle)| IpAddr::V4(handle.status.borrow().ip) == endpoint.ip());
        Some((key?.0.clone(), endpoint.port()))
    });
    found.map_or_else(
        || {
            refused(format!(
                "no workload of service {name} in namespace {namespace:?} is ready"
            ))
        },
        Ok,
    )
}

/// Opens a connection to a port of a replica.
pub(super) async fn connect(node: &Node, key: &WorkloadKey, port: u16) -> Result<OwnedFd, Refusal> {
    let Some((sandbox, address)) = node
        .state()
        .handles
        .get(key)
        .map(|handle| (handle.sandbox.clone(), handle.status.borrow().ip))
    else {
        return refused(format!("{key} has just ended"));
    };

    let work = move || {
        let sandbox = sandbox
            .get()
            .ok_or_else(|| io::Error::other("it has no network namespace"))?;
        sandbox.netns.run(|| {
            // A program may listen on one of the two alone.
            connect_first([Ipv4Addr::LOCALHOST, address].map(|ip| SocketAddr::from((ip, port))))
        })
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(stream)) => Ok(stream.into()),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            refused(format!("nobody listens on port {port} of {key}"))
        }
        Ok(Err(error)) => refused(format!("cannot connect to port {port} of {key}: {error}")),
        Err(error) => refused(error.to_string()),
    }
}

/// The first connection that succeeds, else the first error.
fn connect_first(addresses: [SocketAddr; 2]) -> io::Result<TcpStream> {
    let [first, second] = addresses;
    TcpStream::connect_timeout(&first, CONNECT_TIMEOUT)
        .or_else(|error| TcpStream::connect_timeout(&second, CONNECT_TIMEOUT).map_err(|_| error))
}
