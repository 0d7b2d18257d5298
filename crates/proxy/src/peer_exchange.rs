//! Istio's exchange of peer metadata on TCP: both sides say who they are before the first byte of the application.
//! Source: Istio proxy `metadata_exchange.cc`.

use std::sync::Arc;
use std::time::Duration;

use meltemi_filters::http::LocalPeer;
use meltemi_filters::peer_metadata::PeerInfo;
use meltemi_filters::peer_metadata::preamble::{self, Read};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The protocol that both sides must have agreed on.
pub const ALPN: &str = "istio-peer-exchange";
/// A peer that agreed and is silent may be waiting for the application's first word (the server speaks first, the
/// client's proxy sends its part with its first bytes): then the connection goes on without.
const PATIENCE: Duration = Duration::from_secs(1);

/// Says who we are and reads who they are. `bytes` is what was read already; afterwards what is the application's.
pub async fn exchange<S>(
    stream: &mut S,
    bytes: &mut Vec<u8>,
    local: &LocalPeer,
) -> std::io::Result<Option<Arc<PeerInfo>>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(&preamble::write(&local.id, &local.info)).await?;
    stream.flush().await?;
    let reading = async {
        loop {
            match preamble::read(bytes) {
                Read::More(_) if stream.read_buf(bytes).await? > 0 => {}
                Read::More(_) | Read::Absent => return Ok(None),
                Read::Peer(length, peer) => {
                    bytes.drain(..length);
                    return Ok(peer);
                }
            }
        }
    };
    // Cancelled between two reads nothing is lost: what was read is in `bytes`.
    tokio::time::timeout(PATIENCE, reading).await.unwrap_or(Ok(None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(workload: &str) -> LocalPeer {
        let info = PeerInfo { workload: workload.into(), namespace: "default".into(), ..PeerInfo::default() };
        LocalPeer { id: workload.into(), encoded: info.encode().into(), info }
    }

    #[tokio::test]
    async fn both_sides_learn_of_each_other_and_no_byte_is_lost() {
        let (mut a, mut b) = tokio::io::duplex(4096);
        let (client, server) = (local("client"), local("server"));
        let (mut from_server, mut from_client) = (Vec::new(), Vec::new());
        let ask = async {
            let peer = exchange(&mut a, &mut from_server, &client).await.expect("exchanged");
            a.write_all(b"question").await.expect("written");
            peer
        };
        let (seen, heard) = tokio::join!(ask, exchange(&mut b, &mut from_client, &server));
        assert_eq!(&*seen.expect("a peer").workload, "server");
        assert_eq!(&*heard.expect("exchanged").expect("a peer").workload, "client");
        let mut question = from_client;
        while question.len() < 8 {
            b.read_buf(&mut question).await.expect("read");
        }
        assert_eq!(question, b"question");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_says_something_else_or_nothing_is_let_be() {
        let (mut a, mut b) = tokio::io::duplex(4096);
        b.write_all(b"SSH-2.0").await.expect("written");
        let mut bytes = Vec::new();
        assert!(exchange(&mut a, &mut bytes, &local("x")).await.expect("goes on").is_none());
        assert_eq!(bytes, b"SSH-2.0");
        let (mut a, _b) = tokio::io::duplex(4096);
        assert!(exchange(&mut a, &mut Vec::new(), &local("x")).await.expect("goes on").is_none());
    }
}
