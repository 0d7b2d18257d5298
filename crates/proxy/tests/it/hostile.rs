//! Hostile inputs: each is refused in the way it should be, and everybody else is served meanwhile.
//!
//! The letter and number in front of a case is its place in the catalogue of hostile inputs: A
//! framing of HTTP/1.1, B HTTP/2, C TLS, D names and paths, H configuration.

mod answers;
mod differential;
mod floods;
pub mod frames;
mod http1;
mod http2;
mod names;
mod resend;
mod tls;
mod upstream;
mod xds;

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::peers::{self, Client};

/// A request that must never arrive anywhere.
pub const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";

/// An application that remembers what it was asked.
#[derive(Clone)]
pub struct App {
    pub at: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl App {
    pub async fn start() -> Self {
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let book = asked.clone();
        let at = peers::http_server(move |head, body| {
            let text = format!("{head}{}", String::from_utf8_lossy(body));
            book.lock().expect("no writer panics").push(text.clone());
            format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}",
                text.len()
            )
            .into_bytes()
        });

        Self {
            at: at.await,
            asked,
        }
    }

    /// Whether a whole request held this text.
    pub fn saw(&self, text: &str) -> bool {
        self.asked
            .lock()
            .expect("no writer panics")
            .iter()
            .any(|one| one.contains(text))
    }
}

/// Somebody who does nothing wrong: an old connection, and a new one for every look.
pub struct Bystander {
    at: SocketAddr,
    old: Client,
}

impl Bystander {
    pub async fn at(at: SocketAddr) -> Self {
        let mut bystander = Self {
            at,
            old: Client::connect(at).await,
        };
        bystander.is_served().await;
        bystander
    }

    /// Asks on both connections.
    pub async fn is_served(&mut self) {
        let request = "GET /bystander HTTP/1.1\nhost: a\n\n";
        let (head, body) = soon(self.old.ask(request)).await;
        assert!(
            head.starts_with("HTTP/1.1 200 "),
            "on an old connection: {head}{body}"
        );

        let (head, body) = soon(peers::get(self.at, "/bystander")).await;
        assert!(
            head.starts_with("HTTP/1.1 200 "),
            "on a new connection: {head}{body}"
        );
    }

    /// Asks for as long as the attack goes on, and once after it.
    pub async fn while_under<T>(&mut self, attack: impl Future<Output = T>) -> T {
        let over = Cell::new(false);
        let attack = async {
            let result = attack.await;
            over.set(true);
            result
        };

        let asking = async {
            while !over.get() {
                self.is_served().await;
            }
        };

        let (result, ()) = tokio::join!(attack, asking);
        self.is_served().await;

        result
    }
}

/// What must happen, but not for ever: a bound on how long a failing test hangs.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future)
        .await
        .expect("it never came")
}

/// Waits until something is so.
pub async fn until(what: &str, so: impl Fn() -> bool) {
    for _ in 0..3000 {
        if so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}
