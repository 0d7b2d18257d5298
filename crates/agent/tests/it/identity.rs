//! Certificates: obtained, rotated, kept when the CA fails.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use meltemi_agent::identity::{IdentityAgent, IdentityView, SystemClock};
use meltemi_agent::{
    AgentMetrics, BoxFuture, Clock, ControlPlane, ControlPlaneOptions, IdentityOptions, Token,
};
use meltemi_tls::{DEFAULT_SECRET, Identity, ROOT_SECRET, SecretStore};
use tokio::sync::mpsc;

use crate::peers::{Peers, Proof, sleep_id, until};

/// Time that moves only when the agent sleeps and the test lets it.
struct StepClock {
    ahead_ms: Arc<AtomicU64>,
    started: SystemTime,
    asleep: mpsc::UnboundedSender<(Duration, tokio::sync::oneshot::Sender<()>)>,
}

impl Clock for StepClock {
    fn now(&self) -> SystemTime {
        self.started + Duration::from_millis(self.ahead_ms.load(Ordering::Relaxed))
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let (wake, woken) = tokio::sync::oneshot::channel();
        let _ = self.asleep.send((duration, wake));
        Box::pin(async move { _ = woken.await })
    }
}

struct Bench {
    peers: Peers,
    secrets: SecretStore,
    view: IdentityView,
    started: SystemTime,
    ahead_ms: Arc<AtomicU64>,
    sleeps: mpsc::UnboundedReceiver<(Duration, tokio::sync::oneshot::Sender<()>)>,
    agent: tokio::task::JoinHandle<()>,
}

impl Bench {
    async fn start(ttl: Duration) -> Self {
        let peers = Peers::start().await;
        let secrets = SecretStore::new();
        let (asleep, sleeps) = mpsc::unbounded_channel();
        let ahead_ms = Arc::new(AtomicU64::new(0));
        let started = SystemTime::now();

        *peers.csr.now.lock().expect("lock") = Some(started);
        let clock = StepClock {
            ahead_ms: ahead_ms.clone(),
            started,
            asleep,
        };

        let options = IdentityOptions {
            ttl,
            ..IdentityOptions::new(sleep_id())
        };

        let source = Arc::new(peers.control_plane(&secrets));
        let agent = IdentityAgent::new(
            options,
            source,
            Arc::new(clock),
            secrets.clone(),
            AgentMetrics::default(),
        );

        let view = agent.state();
        let agent = tokio::spawn(agent.run());

        Self {
            peers,
            secrets,
            view,
            started,
            ahead_ms,
            sleeps,
            agent,
        }
    }

    /// The agent's next sleep; time then passes for everybody, and it wakes.
    async fn pass(&mut self) -> Duration {
        let (duration, wake) = self.sleeps.recv().await.expect("the agent runs");
        let ms = u64::try_from(duration.as_millis()).expect("short") + 1;
        self.ahead_ms.fetch_add(ms, Ordering::Relaxed);
        let now = self.started + Duration::from_millis(self.ahead_ms.load(Ordering::Relaxed));
        *self.peers.csr.now.lock().expect("lock") = Some(now);
        let _ = wake.send(());
        duration
    }

    async fn asleep(&mut self) -> (Duration, tokio::sync::oneshot::Sender<()>) {
        self.sleeps.recv().await.expect("the agent runs")
    }

    fn current(&self) -> Option<Identity> {
        self.secrets
            .get(DEFAULT_SECRET)
            .and_then(|secret| secret.identity.clone())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.agent.abort();
    }
}

#[tokio::test]
async fn certificates_are_renewed_at_half_of_their_lifetime() {
    let mut bench = Bench::start(Duration::from_secs(2)).await;
    let mut serials = std::collections::BTreeSet::new();
    for round in 0..5 {
        let slept = bench.pass().await;
        let identity = bench.current().expect("a certificate");
        assert!(
            serials.insert(identity.info().serial.clone()),
            "round {round}: the same certificate twice"
        );

        assert_eq!(identity.spiffe(), Some(&sleep_id()));

        // Two to three seconds of life, since X.509 counts whole ones: half of it, and one per
        // cent.
        assert!(
            slept >= Duration::from_millis(950) && slept <= Duration::from_millis(1530),
            "round {round}: {slept:?}"
        );

        assert!(
            bench
                .secrets
                .get(ROOT_SECRET)
                .expect("roots")
                .trust
                .is_some()
        );
    }

    let _parked = bench.asleep().await;
    assert_eq!(bench.view.get().issued, 6);
    let proofs = bench.peers.csr.proofs.lock().expect("lock").clone();
    assert_eq!(proofs[0], Proof::Token, "the first one");
    assert_eq!(
        proofs[1..],
        [Proof::Certificate; 5],
        "its own certificate afterwards"
    );
}

#[tokio::test]
async fn the_old_certificate_stays_while_the_ca_fails() {
    let mut bench = Bench::start(Duration::from_secs(30)).await;
    bench.pass().await;

    // Up to the rotation everything is well; then the CA is out of order for a while.
    let (_, wake) = bench.asleep().await;
    let before = bench.current().expect("a certificate");
    *bench.peers.csr.failing.lock().expect("lock") =
        Some(tonic::Status::unavailable("out of order"));
    bench.ahead_ms.fetch_add(20_000, Ordering::Relaxed);
    let _ = wake.send(());
    for failures in 1..=4 {
        let delay = bench.pass().await;
        assert!(delay <= Duration::from_secs(15));
        let state = bench.view.get();
        assert!(
            state.failures >= failures
                && state.last_error.expect("a reason").contains("out of order")
        );

        assert_eq!(
            bench.current().expect("still there").info().serial,
            before.info().serial
        );
    }

    *bench.peers.csr.failing.lock().expect("lock") = None;
    until("a new certificate", async || {
        bench.pass().await;
        (bench.current()?.info().serial != before.info().serial).then_some(())
    })
    .await;

    let state = bench.view.get();
    assert_eq!((state.failures, state.last_error), (0, None));
}

#[tokio::test]
async fn the_first_certificate_arrives_once_the_control_plane_is_up() {
    let mut bench = Bench::start(Duration::from_secs(60)).await;
    bench.pass().await;
    let first = bench.current().expect("a certificate");
    bench.peers.stop();

    // Thirty seconds later, in slices or not, the attempt fails.
    until("a failure", async || {
        bench.pass().await;
        (bench.view.get().failures > 0).then_some(())
    })
    .await;

    assert_eq!(
        bench.current().expect("kept").info().serial,
        first.info().serial
    );

    bench.peers.restart().await;
    until("a new certificate", async || {
        bench.pass().await;
        (bench.current()?.info().serial != first.info().serial).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_certificate_for_another_identity_is_not_used() {
    let peers = Peers::start().await;
    let secrets = SecretStore::new();
    let (asleep, mut sleeps) = mpsc::unbounded_channel();
    let clock = StepClock {
        ahead_ms: Arc::default(),
        started: SystemTime::now(),
        asleep,
    };

    // The token says sleep, the agent believes to be httpbin: whoever mixed them up must be told.
    let options = IdentityOptions::new(
        "spiffe://cluster.local/ns/default/sa/httpbin"
            .parse()
            .expect("an identity"),
    );

    let agent = IdentityAgent::new(
        options,
        Arc::new(peers.control_plane(&secrets)),
        Arc::new(clock),
        secrets.clone(),
        AgentMetrics::default(),
    );

    let view = agent.state();
    let agent = tokio::spawn(agent.run());
    let _parked = sleeps.recv().await;
    let error = view.get().last_error.expect("refused");

    assert!(
        error.contains("sa/httpbin") && error.contains("sa/sleep"),
        "{error}"
    );

    assert!(secrets.get(DEFAULT_SECRET).is_none());
    agent.abort();
}

#[tokio::test]
async fn a_certificate_of_a_replaced_ca_falls_back_to_the_token() {
    let peers = Peers::start().await;
    let secrets = SecretStore::new();

    // A certificate of an authority that is no more.
    let gone = meltemi_ca::CertificateAuthority::in_memory(meltemi_types::TrustDomain::default())
        .expect("authority");
    let key = rcgen::KeyPair::generate().expect("key");
    let csr = rcgen::CertificateParams::default()
        .serialize_request(&key)
        .expect("CSR")
        .pem()
        .expect("PEM");

    let chain = gone
        .sign(&csr, &sleep_id(), None, Duration::ZERO)
        .expect("signed");
    let stale = Identity::from_pem(chain[0].as_bytes(), key.serialize_pem().as_bytes())
        .expect("an identity");
    secrets.set(DEFAULT_SECRET, meltemi_tls::Secret::identity(stale));
    let connection = peers
        .control_plane(&secrets)
        .connect()
        .await
        .expect("with the token");

    assert!(connection.metadata.get("authorization").is_some());
}

#[tokio::test]
async fn an_expired_token_is_replaced_by_the_next_line_of_its_file() {
    let peers = Peers::start().await;
    let (secrets, file) = (SecretStore::new(), peers.folder().join("token"));
    let ended = peers.token_made(SystemTime::now() - Duration::from_secs(2 * 3600));

    std::fs::write(&file, format!("{ended}\n")).expect("a writable folder");
    let options = ControlPlaneOptions {
        token: Some(Token::File(file.clone())),
        ..peers.options()
    };

    let source = Arc::new(ControlPlane::new(options, secrets.clone()));
    let options = IdentityOptions::new(sleep_id());
    let agent = IdentityAgent::new(
        options,
        source,
        Arc::new(SystemClock),
        secrets.clone(),
        AgentMetrics::default(),
    );

    let view = agent.state();
    let agent = tokio::spawn(agent.run());
    let refused = until("a refusal", async || view.get().last_error).await;

    assert!(refused.contains("ExpiredSignature"), "{refused}");

    // As the node renews it; half of a line is not taken for a token.
    let next = peers.token();
    let (half, rest) = next.split_at(next.len() / 2);
    let mut appended = std::fs::File::options()
        .append(true)
        .open(&file)
        .expect("there");

    appended.write_all(half.as_bytes()).expect("written");
    let failures = view.get().failures;
    until("another refusal", async || {
        (view.get().failures > failures).then_some(())
    })
    .await;

    assert!(
        view.get()
            .last_error
            .is_some_and(|error| error.contains("ExpiredSignature"))
    );

    appended
        .write_all(format!("{rest}\n").as_bytes())
        .expect("written");
    until("a certificate", async || secrets.get(DEFAULT_SECRET)).await;
    agent.abort();
}
