//! Passes listening sockets of the machine to the ingress gateway. The gateway sends a request over
//! `RUN/host.sock` (`meltemi_net::fdpass`), and the supervisor opens the sockets. Refuses every
//! other kind of request.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use meltemi_model::Snapshot;
use meltemi_net::fdpass::{Channel, ChannelListener, ListenReply, ListenRequest};
use meltemi_types::Protocol;

use crate::context::Context;
use crate::dialler::Listening;
use crate::events::{Event, PublishedPort};
use crate::gateways;

/// How long to wait for the port to appear in the node's own view of the configuration. The gateway
/// acts on the control plane's view, which may be ahead.
const MAX_LAG: Duration = Duration::from_millis(500);

/// Binds `RUN/host.sock` and serves it in the background.
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
                // The number chosen for a published port depends on the gateway's other ports: wait
                // until the node knows them too.
                let mut worlds = context.worlds.clone();
                let is_known = worlds.wait_for(|world| {
                    !gateway_servers_at(&world.snapshot, wanted.port())
                        .0
                        .is_empty()
                });
                let _ = tokio::time::timeout(MAX_LAG, is_known).await;
                let others = listening_ports(&context.worlds.borrow().snapshot);

                match context.dialler.listen(wanted.port(), 1, others).await {
                    Ok(Listening {
                        address,
                        taken,
                        sockets,
                    }) => {
                        if let Some(taken) = taken {
                            let text = format!(
                                "port {taken} of {} is taken by another program (`ss -ltnp 'sport = :{taken}'` shows which); port {} serves instead",
                                address.ip(),
                                address.port()
                            );
                            context.warn(text).await;
                        }
                        report_published(&context, wanted.port(), address).await;
                        (ListenReply::Socket(address), sockets.into_iter().next())
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

/// Shows a published port to the user, once: a gateway that restarts requests its ports again.
async fn report_published(context: &Context, port: u16, address: SocketAddr) {
    let before = context
        .published
        .lock()
        .expect("nothing panics while it holds the table")
        .insert(port, address);

    if before != Some(address) {
        let port = describe(&context.worlds.borrow().snapshot, port, address);
        context
            .dialler
            .show(Event::Published {
                gateway: gateways::INGRESS.to_owned(),
                port,
            })
            .await;
    }
}

/// Every published port, described by the current configuration.
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
    let (gateway_ports, protocol) = gateway_servers_at(snapshot, port);
    PublishedPort {
        port,
        address,
        gateway_ports,
        protocol,
    }
}

/// The Gateway servers behind a port that the ingress gateway wait_until_listening on: their
/// `port.number`s, and the protocol of the oldest.
fn gateway_servers_at(snapshot: &Snapshot, port: u16) -> (BTreeSet<u16>, Option<Protocol>) {
    let mut protocol = None;
    let mut numbers = BTreeSet::new();
    for (number, listening, server_protocol) in servers(snapshot) {
        if listening.contains(&port) {
            numbers.insert(number);
            protocol = protocol.or(Some(server_protocol));
        }
    }
    (numbers, protocol)
}

/// Every port that the ingress gateway wait_until_listening on.
fn listening_ports(snapshot: &Snapshot) -> Vec<u16> {
    let all: BTreeSet<u16> = servers(snapshot)
        .flat_map(|(_, listening, _)| listening)
        .collect();
    all.into_iter().collect()
}

/// The servers of all Gateways that select the ingress gateway: `port.number`, the ports that the
/// gateway wait_until_listening on for it (the `targetPort`s of its Services), and the protocol.
fn servers(snapshot: &Snapshot) -> impl Iterator<Item = (u16, BTreeSet<u16>, Protocol)> {
    let spec = gateways::workload(gateways::INGRESS);
    let gateways = snapshot.gateways_for(&spec.labels);
    let servers: Vec<(u16, Protocol)> = gateways
        .iter()
        .flat_map(|gateway| &gateway.servers)
        .map(|server| (server.port, server.protocol))
        .collect();

    servers.into_iter().map(move |(port, protocol)| {
        let listening = snapshot.gateway_ports(gateways::NAMESPACE, &spec.labels, &[], port);
        (port, listening, protocol)
    })
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
        assert_eq!(listening_ports(&snapshot), [81, 8080, 31400]);
        assert_eq!(
            gateway_servers_at(&snapshot, 8080),
            (BTreeSet::from([80, 8080]), Some(Protocol::Http))
        );

        assert_eq!(
            gateway_servers_at(&snapshot, 31400),
            (BTreeSet::from([31400]), Some(Protocol::Tcp))
        );

        assert_eq!(gateway_servers_at(&snapshot, 9), (BTreeSet::new(), None));
    }
}
