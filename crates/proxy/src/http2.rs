//! HTTP/2 through the `h2` crate: heads to and from our own form, serving, and upstream
//! connections.

pub mod client;
pub mod heads;
pub mod meter;
mod resets;
pub mod send;
pub mod server;

use std::time::Duration;

/// A PING must be answered within this time, where configuration says nothing.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Sends PINGs at this interval, and resolves when one is not answered in time; never without an
/// interval.
async fn keep_alive(ping: Option<(Duration, h2::PingPong)>, timeout: Duration) {
    let Some((interval, mut ping)) = ping else {
        return std::future::pending().await;
    };

    loop {
        tokio::time::sleep(interval).await;
        match tokio::time::timeout(timeout, ping.ping(h2::Ping::opaque())).await {
            Ok(Ok(_)) => {}
            _ => return,
        }
    }
}

/// What frames that carry little may cost a connection that has these windows, as the codec counts
/// it: nearly 256 for each small one that waits to be read. A whole window of a stream may come in
/// messages of gRPC without content, or one of the connection in messages of a dozen bytes, and no
/// other stream pays for it; up to a limit, since each one waits in memory.
fn small_frames(stream_window: u32, connection_window: u32) -> usize {
    const WAITING: usize = 256;
    const SMALLEST: usize = 5;
    const MOST: usize = 16_384 * WAITING;
    let (stream, connection) = (stream_window as usize, connection_window as usize);
    (stream / SMALLEST)
        .saturating_mul(WAITING)
        .max(connection.saturating_mul(16))
        .min(MOST)
}

/// Streams that we reset are remembered for a moment, so that what their peers sent before they
/// knew is no error; so many.
const REMEMBERED_RESETS: usize = 1024;
