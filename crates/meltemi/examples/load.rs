//! The soak test's load, and the server that it goes to: ordinary programs that know nothing of a
//! mesh.
//!
//!     load serve PORT VERSION
//!     load run HOST:PORT SECONDS NEW KEEP-ALIVE HTTP2
//!
//! `run` offers so many requests a second of each kind: each on a new connection (its name looked
//! up anew), on kept connections one after the other, and as streams of HTTP/2 connections in
//! plaintext. It makes every request that it offered, late if it must, and prints one line of JSON:
//! per kind the requests that were to be made, went well, failed, and connections that somebody
//! else ended; the first failures in words; and every value of the header `x-step` that answers
//! bore. Nothing is tried twice.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::header::{CONNECTION, HOST};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, timeout};

/// Kept connections of each kind.
const KEPT: u32 = 8;
const MULTIPLEXED: u32 = 4;
/// A request that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);
const BODY: &str = "fresh wind\n";
/// Failures that are told in words.
const TOLD: usize = 20;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", port, version] => serve(port.parse()?, version.to_owned()).await,
        ["run", target, seconds, new, kept, multiplexed] => {
            let plan = Plan {
                target: target.to_owned(),
                seconds: seconds.parse()?,
                new: new.parse()?,
                kept: kept.parse()?,
                multiplexed: multiplexed.parse()?,
            };
            run(plan).await
        }
        _ => bail!("load serve PORT VERSION | load run HOST:PORT SECONDS NEW KEEP-ALIVE HTTP2"),
    }
}

async fn serve(port: u16, version: String) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let version = version.clone();
        tokio::spawn(async move {
            let answer = hyper::service::service_fn(move |_: Request<Incoming>| {
                let answer = Response::builder()
                    .header("x-version", &version)
                    .body(Full::new(Bytes::from_static(BODY.as_bytes())));
                async move { answer }
            });

            // The proxy in front may end an idle connection as it likes.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

/// What is offered: requests a second.
struct Plan {
    target: String,
    seconds: u32,
    new: u32,
    kept: u32,
    multiplexed: u32,
}

/// What became of one kind's requests.
#[derive(Default)]
struct Tally {
    kind: &'static str,
    wanted: u64,
    ok: u64,
    failed: u64,
    closed: u64,
    told: Vec<String>,
    steps: BTreeSet<String>,
}

#[derive(Clone)]
struct Counter(Arc<Mutex<Tally>>, Instant);

impl Counter {
    fn new(kind: &'static str, wanted: u32) -> Self {
        Self(
            Arc::new(Mutex::new(Tally {
                kind,
                wanted: wanted.into(),
                ..Tally::default()
            })),
            Instant::now(),
        )
    }

    fn with(&self, change: impl FnOnce(&mut Tally)) {
        change(&mut self.0.lock().expect("nothing panics while it counts"));
    }

    /// A request is over; a good one tells its answer's step.
    fn outcome(&self, outcome: Result<Option<String>>) {
        match outcome {
            Ok(step) => self.with(|tally| {
                tally.ok += 1;
                tally.steps.extend(step);
            }),
            Err(error) => {
                self.with(|tally| tally.failed += 1);
                self.tell(&format!("failed: {error:#}"));
            }
        }
    }

    fn closed(&self, how: &str) {
        self.with(|tally| tally.closed += 1);
        self.tell(&format!("connection ended: {how}"));
    }

    fn tell(&self, what: &str) {
        let at = self.1.elapsed().as_secs_f64();
        self.with(|tally| {
            let line = format!("{} after {at:.3} s {what}", tally.kind);
            eprintln!("{line}");
            if tally.told.len() < TOLD {
                tally.told.push(line);
            }
        });
    }
}

async fn run(plan: Plan) -> Result<()> {
    let started = Instant::now();
    let Plan {
        target,
        seconds,
        new,
        kept,
        multiplexed,
    } = plan;

    let counters = [("new", new), ("keep-alive", kept), ("http2", multiplexed)]
        .map(|(kind, rate)| Counter::new(kind, rate * seconds));
    let [of_new, of_kept, of_multiplexed] = counters.clone();
    let mut tasks = JoinSet::new();
    let (host, name) = (target.clone(), target.clone());

    tasks.spawn(async move { fresh(target, new, new * seconds, of_new).await });
    for share in shares(kept, KEPT) {
        tasks.spawn(keep_alive(
            host.clone(),
            share,
            share * seconds,
            of_kept.clone(),
        ));
    }

    for share in shares(multiplexed, MULTIPLEXED) {
        tasks.spawn(streams(
            name.clone(),
            share,
            share * seconds,
            of_multiplexed.clone(),
        ));
    }

    while let Some(done) = tasks.join_next().await {
        done?;
    }
    let (mut kinds, mut told, mut steps) = (serde_json::Map::new(), Vec::new(), BTreeSet::new());
    for counter in &counters {
        counter.with(
            |Tally {
                 kind,
                 wanted,
                 ok,
                 failed,
                 closed,
                 told: words,
                 steps: seen,
             }| {
                kinds.insert(
                    (*kind).to_owned(),
                    json!({ "wanted": wanted, "ok": ok, "failed": failed, "closed": closed }),
                );
                told.append(words);
                steps.append(seen);
            },
        );
    }

    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{}",
        json!({ "kinds": kinds, "failures": told, "steps": steps, "seconds": seconds })
    );

    Ok(())
}

/// A rate in `parts` whole shares.
fn shares(rate: u32, parts: u32) -> impl Iterator<Item = u32> {
    (0..parts)
        .map(move |part| rate / parts + u32::from(part < rate % parts))
        .filter(|share| *share > 0)
}

/// Ticks of a rate; what was missed is made up for at once.
fn ticks(rate: u32) -> tokio::time::Interval {
    interval(Duration::from_secs(1) / rate.max(1))
}

async fn fresh(target: String, rate: u32, count: u32, counter: Counter) {
    let (mut ticks, mut requests) = (ticks(rate), JoinSet::new());
    for _ in 0..count {
        ticks.tick().await;
        let (target, counter) = (target.clone(), counter.clone());
        requests.spawn(async move {
            let outcome = async {
                let (mut sender, _) = connect1(&target).await?;
                let request = Request::get("/new")
                    .header(HOST, &target)
                    .header(CONNECTION, "close")
                    .body(Empty::new())?;
                check(sender.send_request(request).await.context("exchange")?).await
            };
            counter.outcome(within(outcome).await);
        });

        while requests.try_join_next().is_some() {}
    }

    while requests.join_next().await.is_some() {}
}

async fn keep_alive(target: String, rate: u32, count: u32, counter: Counter) {
    let (mut ticks, mut connection) = (ticks(rate), None);
    for _ in 0..count {
        ticks.tick().await;
        let outcome = async {
            let mut held = match connection.take() {
                None => connect1(&target).await?,
                Some(held) => held,
            };

            let request = Request::get("/kept")
                .header(HOST, &target)
                .body(Empty::new())?;
            let answer = held.0.send_request(request).await.context("exchange")?;
            let farewell = answer.headers().get(CONNECTION).cloned();
            anyhow::Ok((held, farewell, check(answer).await?))
        };

        match within(outcome).await {
            Ok((held, farewell, step)) => {
                counter.outcome(Ok(step));
                if farewell
                    .as_ref()
                    .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"))
                {
                    counter.closed("the answer says connection: close");
                } else if held.1.is_finished() {
                    counter.closed("after an answer");
                } else {
                    connection = Some(held);
                }
            }
            Err(error) => counter.outcome(Err(error)),
        }

        // Between two requests nobody may end it either.
        if let Some(held) = &mut connection
            && let Err(error) = held.0.ready().await
        {
            counter.closed(&error.to_string());
            connection = None;
        }
    }
}

async fn streams(target: String, rate: u32, count: u32, counter: Counter) {
    let (mut ticks, mut connection, mut requests) = (ticks(rate), None, JoinSet::new());
    for _ in 0..count {
        ticks.tick().await;
        if connection
            .as_ref()
            .is_some_and(|(_, driver): &(_, Driver)| driver.is_finished())
        {
            counter.closed("HTTP/2");
            connection = None;
        }

        if connection.is_none() {
            match within(connect2(&target)).await {
                Ok(new) => connection = Some(new),
                Err(error) => {
                    counter.outcome(Err(error));
                    continue;
                }
            }
        }

        let Some((sender, _)) = &connection else {
            continue;
        };
        let (mut sender, target, counter) = (sender.clone(), target.clone(), counter.clone());
        requests.spawn(async move {
            let outcome = async {
                let request = Request::get(format!("http://{target}/stream")).body(Empty::new())?;
                check(sender.send_request(request).await.context("stream")?).await
            };
            counter.outcome(within(outcome).await);
        });

        while requests.try_join_next().is_some() {}
    }

    while requests.join_next().await.is_some() {}
}

/// The task that moves a connection's bytes; it ends with the connection.
type Driver = tokio::task::JoinHandle<()>;

async fn dial(target: &str) -> Result<TokioIo<TcpStream>> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(target)
        .await
        .context("name")?
        .collect();

    let address = addresses
        .into_iter()
        .next()
        .context("the name has no address")?;

    let stream = TcpStream::connect(address).await.context("connect")?;
    stream.set_nodelay(true)?;

    Ok(TokioIo::new(stream))
}

async fn connect1(target: &str) -> Result<(http1::SendRequest<Empty<Bytes>>, Driver)> {
    let (sender, connection) = http1::handshake(dial(target).await?).await?;
    Ok((sender, tokio::spawn(async move { drop(connection.await) })))
}

async fn connect2(target: &str) -> Result<(http2::SendRequest<Empty<Bytes>>, Driver)> {
    let (sender, connection) = http2::handshake(TokioExecutor::new(), dial(target).await?).await?;
    Ok((sender, tokio::spawn(async move { drop(connection.await) })))
}

/// A whole answer, and the right one; the step that it bears.
async fn check(answer: Response<Incoming>) -> Result<Option<String>> {
    let step = answer
        .headers()
        .get("x-step")
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);

    let status = answer.status();
    let body = answer
        .into_body()
        .collect()
        .await
        .context("body")?
        .to_bytes();

    ensure!(
        status == StatusCode::OK,
        "status {status}: {}",
        String::from_utf8_lossy(&body)
    );

    ensure!(
        body == BODY,
        "another body: {:?}",
        String::from_utf8_lossy(&body)
    );

    Ok(step)
}

async fn within<T>(outcome: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(PATIENCE, outcome)
        .await
        .unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {PATIENCE:?}")))
}
