//! Listening sockets of the machine for the ingress gateway: it asks as any process asks for sockets of another namespace
//! (`meltemi_net::fdpass`), and the supervisor opens them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex};

use meltemi_net::fdpass::{Channel, ChannelListener, Reply, Request};

use crate::context::Context;
use crate::events::Event;

/// Serves for ever at `RUN/host.sock`.
pub(crate) fn start(context: &Arc<Context>) -> anyhow::Result<()> {
    let listener = ChannelListener::bind(&context.config.run_dir.join("host.sock"))?;
    let context = Arc::clone(context);
    let told: Told = Arc::default();
    tokio::spawn(async move {
        while let Ok(channel) = listener.accept().await {
            tokio::spawn(serve(Arc::clone(&context), channel, Arc::clone(&told)));
        }
    });
    Ok(())
}

/// Published ports that the user knows of: a gateway that starts again asks again.
type Told = Arc<Mutex<BTreeMap<u16, SocketAddr>>>;

async fn serve(context: Arc<Context>, channel: Channel, told: Told) {
    while let Ok((packet, _)) = channel.receive().await {
        if packet.is_empty() {
            return;
        }
        let (reply, fd) = match Request::decode(&packet) {
            Ok(Request::Listen(wanted)) => match context.dialler.listen(wanted.port(), 1).await {
                Ok((address, fds)) => {
                    let before =
                        told.lock().expect("nothing panics while it holds the table").insert(wanted.port(), address);
                    if before != Some(address) {
                        let gateway = "istio-ingressgateway".to_owned();
                        context.dialler.tell(Event::Published { gateway, port: wanted.port(), address }).await;
                    }
                    (Reply::Socket(address), fds.into_iter().next())
                }
                Err(error) => {
                    context.warn(format!("gateway port {}: {error}", wanted.port())).await;
                    (Reply::Refused(error.to_string()), None)
                }
            },
            Ok(_) => (Reply::Refused("only listening sockets are handed out here".into()), None),
            Err(error) => (Reply::Refused(error.to_string()), None),
        };
        let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
        if channel.send(&reply.encode(), &fds).await.is_err() {
            return;
        }
    }
}
