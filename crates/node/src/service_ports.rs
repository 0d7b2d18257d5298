//! Ports of Services that are published on the machine (`up --publish web:80=8000`), as a NodePort
//! of Kubernetes is: connections enter the mesh in plaintext, through the sidecar of an endpoint.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use meltemi_model::{Registry, Service, Snapshot};
use meltemi_types::Protocol;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::context::Context;
use crate::events::{Event, PublishedPort};
use crate::network::DOMAIN;
use crate::publication::ServicePublication;
use crate::{relay, services};

/// Maximum number of connections to one published port; further ones wait in its backlog.
const CONNECTIONS: usize = 1024;

/// Publishes the ports that the user asked for. One that is taken, or that no Service has, is a
/// warning.
pub(crate) async fn start(context: &Arc<Context>) {
    for publication in &context.config.publish_services {
        let label = publication.label();
        let snapshot = context.worlds.borrow().snapshot.clone();
        let ServicePublication {
            name,
            namespace,
            port,
            ..
        } = publication;
        if let Err(reason) = endpoints(&snapshot, namespace, name, *port) {
            context.warn(format!("--publish {label}: {reason}")).await;
        }

        let published = context.dialler.publish(publication.clone()).await;
        let opened = published.and_then(|published| {
            let address = published.address;
            Ok((address, listener(published.sockets)?))
        });
        match opened {
            Ok((address, listener)) => {
                tokio::spawn(serve(Arc::clone(context), listener, publication.clone()));
                context
                    .dialler
                    .show(Event::Published {
                        gateway: publication.shown_name(),
                        port: PublishedPort {
                            port: *port,
                            address,
                            gateway_ports: [*port].into(),
                            protocol: protocol(&snapshot, publication),
                        },
                    })
                    .await;
            }
            Err(error) => context.warn(format!("--publish {label}: {error}")).await,
        }
    }
}

fn listener(sockets: Vec<OwnedFd>) -> std::io::Result<TcpListener> {
    let socket = sockets
        .into_iter()
        .next()
        .ok_or_else(|| std::io::Error::other("no socket came with the answer"))?;
    let listener = std::net::TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

async fn serve(context: Arc<Context>, listener: TcpListener, publication: ServicePublication) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut turn = 0_usize;
    loop {
        let permit = Arc::clone(&permits)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let Ok((outer, _)) = listener.accept().await else {
            // Out of descriptors: others will close theirs.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };

        let snapshot = context.worlds.borrow().snapshot.clone();
        let ServicePublication {
            name,
            namespace,
            port,
            ..
        } = &publication;
        let endpoints = endpoints(&snapshot, namespace, name, *port).unwrap_or_default();
        let endpoint = endpoints.get(turn % endpoints.len().max(1)).copied();
        turn = turn.wrapping_add(1);
        tokio::spawn(async move {
            let inner = match endpoint {
                Some(endpoint) => TcpStream::connect(endpoint).await.ok(),
                None => None,
            };
            match inner {
                Some(inner) => relay::copy(inner, outer).await,
                None => relay::reset(&outer),
            }
            drop(permit);
        });
    }
}

/// The ready endpoints of a Service's port, or why there is no such port.
pub(crate) fn endpoints(
    snapshot: &Snapshot,
    namespace: &str,
    name: &str,
    port: u16,
) -> Result<Vec<SocketAddr>, String> {
    let service = service(snapshot, namespace, name)
        .ok_or_else(|| format!("there is no Service {name:?} in namespace {namespace:?}"))?;
    let Some(found) = service
        .ports
        .iter()
        .find(|one| one.number == port && one.protocol != Protocol::Udp)
    else {
        let ports: Vec<String> = service
            .ports
            .iter()
            .map(|port| port.number.to_string())
            .collect();
        return Err(format!(
            "Service {name} has no TCP port {port}; use one of its ports: {}",
            ports.join(", ")
        ));
    };

    Ok(services::endpoints(snapshot, service, found))
}

fn service<'a>(snapshot: &'a Snapshot, namespace: &str, name: &str) -> Option<&'a Service> {
    let host = format!("{name}.{namespace}.svc.{DOMAIN}");
    snapshot
        .services()
        .find(|service| service.registry == Registry::Kubernetes && service.host().as_str() == host)
        .map(|service| &**service)
}

fn protocol(snapshot: &Snapshot, publication: &ServicePublication) -> Option<Protocol> {
    let service = service(snapshot, &publication.namespace, &publication.name)?;
    let port = service
        .ports
        .iter()
        .find(|port| port.number == publication.port)?;
    Some(port.protocol)
}

#[cfg(test)]
mod tests {
    use meltemi_model::{BuildOptions, Tables};

    use super::*;

    #[test]
    fn endpoints_are_the_ready_pods_of_the_services_port() {
        let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
                    spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 9080}]}\n---\n\
                    apiVersion: v1\nkind: Pod\nmetadata: {name: web-0, namespace: shop, labels: {app: web}}\n\
                    spec: {containers: [{name: web}]}\n\
                    status: {phase: Running, podIP: 10.44.0.7, conditions: [{type: Ready, status: 'True'}]}\n";
        let (objects, diagnostics) = meltemi_api::parse_documents("t.yaml", text);
        assert!(diagnostics.is_empty(), "{diagnostics:?}");
        let tables: Tables = objects.into_iter().map(Arc::new).collect();
        let snapshot = Snapshot::build(None, &tables, &BuildOptions::default()).snapshot;

        let of = |name: &str, port| endpoints(&snapshot, "shop", name, port);
        assert_eq!(
            of("web", 80),
            Ok(vec!["10.44.0.7:9080".parse().expect("an address")])
        );
        assert!(of("web", 81).is_err_and(|reason| reason.contains("use one of its ports: 80")));
        assert!(of("wob", 80).is_err_and(|reason| reason.contains("no Service \"wob\"")));
    }
}
