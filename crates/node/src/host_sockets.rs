//! Listening sockets of the machine for the ingress gateway: it asks as any process asks for
//! sockets of another namespace (`meltemi_net::fdpass`), and the supervisor opens them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use meltemi_model::Snapshot;
use meltemi_net::fdpass::{Channel, ChannelListener, ListenReply, ListenRequest};
use meltemi_types::Protocol;

use crate::context::Context;
use crate::events::{Event, PublishedPort};
use crate::gateways;

/// How long our own view of the configuration may lag behind the control plane's, which made the
/// gateway ask.
const LAG: Duration = Duration::from_millis(500);

/// Serves for ever at `RUN/host.sock`.
pub(crate) fn start(context: &Arc<Context>) -> anyhow::Result<()> {
    let listener = ChannelListener::bind(&context.config.run_dir.join("host.sock"))?;
    let context = Arc::clone(context);
    tokio::spawn(async move {
        while let Ok(channel) = listener.accept().await {
            tokio::spawn(serve(Arc::clone(&context), channel));
        }
    });
    Ok(())
}

async fn serve(context: Arc<Context>, channel: Channel) {
    while let Ok((packet, _)) = channel.receive().await {
        if packet.is_empty() {
            return;
        }
        let (reply, fd) = match ListenRequest::decode(&packet) {
            Ok(ListenRequest(wanted)) => {
                let mut worlds = context.worlds.clone();
                let is_known = worlds
                    .wait_for(|world| !asked_for(&world.snapshot, wanted.port()).0.is_empty());
                let _ = tokio::time::timeout(LAG, is_known).await;
                let others = listening(&context.worlds.borrow().snapshot);
                match context.dialler.listen(wanted.port(), 1, others).await {
                    Ok((address, fds)) => {
                        tell(&context, wanted.port(), address).await;
                        (ListenReply::Socket(address), fds.into_iter().next())
                    }
                    Err(error) => {
                        context
                            .warn(format!("gateway port {}: {error}", wanted.port()))
                            .await;
                        (ListenReply::Refused(error.to_string()), None)
                    }
                }
            }
            Err(error) => (ListenReply::Refused(error.to_string()), None),
        };

        let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
        if channel.send(&reply.encode(), &fds).await.is_err() {
            return;
        }
    }
}

/// Tells the user of a port, unless it is known: a gateway that starts again asks again.
async fn tell(context: &Context, port: u16, address: SocketAddr) {
    let before = context
        .published
        .lock()
        .expect("nothing panics while it holds the table")
        .insert(port, address);

    if before != Some(address) {
        let port = describe(&context.worlds.borrow().snapshot, port, address);
        context
            .dialler
            .tell(Event::Published {
                gateway: gateways::INGRESS.to_owned(),
                port,
            })
            .await;
    }
}

/// Every published port, as the configuration has it now.
pub(crate) fn published(context: &Context) -> Vec<PublishedPort> {
    let world = context.worlds.borrow().clone();
    let table = context
        .published
        .lock()
        .expect("nothing panics while it holds the table");
    table
        .iter()
        .map(|(port, address)| describe(&world.snapshot, *port, *address))
        .collect()
}

fn describe(snapshot: &Snapshot, port: u16, address: SocketAddr) -> PublishedPort {
    let (gateway_ports, protocol) = asked_for(snapshot, port);
    PublishedPort {
        port,
        address,
        gateway_ports,
        protocol,
    }
}

/// The Gateways' own numbers of a port that the ingress gateway listens on, and what the oldest
/// says is spoken there.
fn asked_for(snapshot: &Snapshot, port: u16) -> (BTreeSet<u16>, Option<Protocol>) {
    let mut protocol = None;
    let mut numbers = BTreeSet::new();
    for (number, listening, spoken) in servers(snapshot) {
        if listening.contains(&port) {
            numbers.insert(number);
            protocol = protocol.or(Some(spoken));
        }
    }
    (numbers, protocol)
}

/// Every port that the ingress gateway listens on.
fn listening(snapshot: &Snapshot) -> Vec<u16> {
    let all: BTreeSet<u16> = servers(snapshot)
        .flat_map(|(_, listening, _)| listening)
        .collect();
    all.into_iter().collect()
}

fn servers(snapshot: &Snapshot) -> impl Iterator<Item = (u16, BTreeSet<u16>, Protocol)> {
    let spec = gateways::workload(gateways::INGRESS);
    let of = move |port| snapshot.gateway_ports(gateways::NAMESPACE, &spec.labels, &[], port);
    let gateways = snapshot.gateways_for(&gateways::workload(gateways::INGRESS).labels);
    let servers: Vec<(u16, Protocol)> = gateways
        .iter()
        .flat_map(|gateway| &gateway.servers)
        .map(|server| (server.port, server.protocol))
        .collect();

    servers
        .into_iter()
        .map(move |(port, protocol)| (port, of(port), protocol))
}

#[cfg(test)]
mod tests {
    use meltemi_model::{BuildOptions, Tables};

    use super::*;

    #[test]
    fn ports_are_those_of_the_gateways_behind_the_service() {
        let text = format!(
            "{}---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: in}}\nspec:\n  selector: {{istio: ingressgateway}}\n  \
             servers:\n  - {{port: {{number: 80, name: http, protocol: HTTP}}, hosts: ['*']}}\n  \
             - {{port: {{number: 8080, name: more, protocol: HTTP}}, hosts: ['*']}}\n  \
             - {{port: {{number: 81, name: low, protocol: HTTP}}, hosts: ['*']}}\n  \
             - {{port: {{number: 31400, name: tcp, protocol: TCP}}, hosts: ['*']}}\n",
            gateways::OBJECTS
        );

        let (objects, diagnostics) = meltemi_api::parse_documents("t.yaml", &text);
        assert!(diagnostics.is_empty(), "{diagnostics:?}");
        let tables: Tables = objects.into_iter().map(Arc::new).collect();
        let snapshot = Snapshot::build(None, &tables, &BuildOptions::default()).snapshot;
        assert_eq!(listening(&snapshot), [81, 8080, 31400]);
        assert_eq!(
            asked_for(&snapshot, 8080),
            (BTreeSet::from([80, 8080]), Some(Protocol::Http))
        );

        assert_eq!(
            asked_for(&snapshot, 31400),
            (BTreeSet::from([31400]), Some(Protocol::Tcp))
        );

        assert_eq!(asked_for(&snapshot, 9), (BTreeSet::new(), None));
    }
}
