//! The command `port-forward`: listens on this machine and carries each connection to a workload's
//! program.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use anyhow::{Context as _, Result, anyhow, ensure};
use meltemi_node::api::{Destination, Target};
use tokio::net::{TcpListener, TcpStream};

use crate::args::PortForwardArgs;
use crate::mesh::Mesh;
use crate::names;
use crate::output::{line, note};

pub(crate) async fn port_forward(mesh: &Mesh, args: PortForwardArgs) -> Result<i32> {
    let destination = destination(&args.target, &args.namespace);
    let pairs = args
        .ports
        .iter()
        .map(|word| ports(word))
        .collect::<Result<Vec<_>>>()?;

    // Say what is wrong before anything listens.
    let mut ends = Vec::new();
    for (_, port) in &pairs {
        let found = mesh.node().resolve(destination.clone(), *port).await;
        ends.push(found.map_err(|error| mesh.node_error(error))?);
    }

    let mut listeners = Vec::new();
    for ((local, port), end) in pairs.iter().zip(&ends) {
        let listener = listen(args.address, *local).await?;
        let address = listener.local_addr()?;
        line(format_args!("Forwarding from {address} -> {end}"))?;
        listeners.push((listener, *port));
    }

    let (mesh, destination) = (Rc::new(mesh.clone()), Rc::new(destination));
    let tasks = tokio::task::LocalSet::new();
    for (listener, port) in listeners {
        let (mesh, destination) = (Rc::clone(&mesh), Rc::clone(&destination));
        tasks.spawn_local(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    // Out of descriptors: others will close theirs.
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                };
                let (mesh, destination) = (Rc::clone(&mesh), Rc::clone(&destination));
                tokio::task::spawn_local(async move {
                    if let Err(error) = carry(&mesh, &destination, port, stream).await {
                        note(format_args!("error: {error:#}"));
                    }
                });
            }
        });
    }

    let interrupted = tasks.run_until(tokio::signal::ctrl_c()).await;
    interrupted.map(|()| 0).map_err(Into::into)
}

/// Carries one connection until both sides are closed.
async fn carry(
    mesh: &Mesh,
    destination: &Destination,
    port: u16,
    mut outer: TcpStream,
) -> Result<()> {
    let forwarded = mesh.node().forward(destination.clone(), port).await;
    let inner = forwarded.map_err(|error| mesh.node_error(error))?;
    inner.set_nonblocking(true)?;
    let mut inner = TcpStream::from_std(inner)?;

    // A connection that one side resets is no fault of the command.
    let _ = tokio::io::copy_bidirectional(&mut outer, &mut inner).await;
    Ok(())
}

async fn listen(address: IpAddr, port: u16) -> Result<TcpListener> {
    let wanted = SocketAddr::new(address, port);
    TcpListener::bind(wanted).await.with_context(|| {
        format!("cannot listen on {wanted}; choose another port, or leave the number out (:PORT)")
    })
}

/// `svc/web` is a Service, anything else a workload.
fn destination(word: &str, namespace: &str) -> Destination {
    match word.split_once('/') {
        Some(("svc" | "service" | "services", name)) => Destination::Service {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        },
        _ => Destination::Workload(Target {
            namespace: namespace.to_owned(),
            name: names::workload(word).to_owned(),
        }),
    }
}

/// `8000:80`, `80` for the same port on both sides, `:80` for any free port of this machine.
fn ports(word: &str) -> Result<(u16, u16)> {
    let number = |text: &str| {
        text.parse::<u16>().map_err(|_| {
            anyhow!("{word:?}: {text:?} is not a port; write LOCAL:PORT, PORT or :PORT")
        })
    };
    let (local, remote) = match word.split_once(':') {
        Some(("", remote)) => (0, number(remote)?),
        Some((local, remote)) => (number(local)?, number(remote)?),
        None => (number(word)?, number(word)?),
    };

    ensure!(remote != 0, "{word:?}: port 0 leads nowhere");
    Ok((local, remote))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_and_ports_are_read_as_by_kubectl() {
        assert_eq!(ports("8000:80").expect("ports"), (8000, 80));
        assert_eq!(ports("80").expect("ports"), (80, 80));
        assert_eq!(ports(":80").expect("ports"), (0, 80));
        for wrong in ["", "x", "1:2:3", "8000:", "80:0", "65536"] {
            assert!(ports(wrong).is_err(), "{wrong}");
        }

        assert!(
            matches!(destination("svc/web", "shop"), Destination::Service { name, .. } if name == "web")
        );
        for word in ["web-v1", "deploy/web-v1", "pod/web-v1"] {
            assert!(
                matches!(destination(word, "shop"), Destination::Workload(target) if target.name == "web-v1"),
                "{word}"
            );
        }
    }
}
