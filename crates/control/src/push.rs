//! Whom to push what: each connected proxy follows the world by itself, and translation is shared
//! out among them.
//!
//! A proxy has one pending push: while it waits for its turn or its last push is in flight, newer
//! worlds replace older ones. There is no fixed waiting; the first change of a burst is translated
//! at once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use meltemi_model::{ChangeSet, ProxyScope, touches};
use meltemi_proto::Any;
use meltemi_proto::type_url::SECRET;
use meltemi_store::World;
use meltemi_translate::{Memo, Proxy, Resource, Translated, translate};
use meltemi_types::Diagnostic;
use meltemi_xds::{
    Feed, Observer, Opening, Packed, ResourceSet, SessionView, Source, Variant, Verdict,
};
use tokio::sync::{Semaphore, watch};
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Status};

use crate::audit::{Audit, Event, Record};
use crate::auth::{Authenticated, Authenticator, Peer, Proof, authorize};
use crate::clock::now_ms;
use crate::csr::Issued;
use crate::metrics::Metrics;

/// A connected proxy.
pub(crate) struct Connection {
    pub(crate) proxy: Proxy,
    pub(crate) authenticated: Authenticated,
    pub(crate) peer: String,
    pub(crate) variant: Variant,
    pub(crate) user_agent: String,
    pub(crate) istio_version: String,
    pub(crate) connected_at_ms: u64,
    pub(crate) last_push_ms: AtomicU64,
    pub(crate) session: Arc<dyn SessionView>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    diagnostics: Vec<Diagnostic>,
    /// When the change was seen whose effect has not been sent yet.
    waiting_since: Option<Instant>,
}

impl Connection {
    pub(crate) fn diagnostics(&self) -> Vec<Diagnostic> {
        self.state().diagnostics.clone()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All connected proxies.
#[derive(Default)]
pub(crate) struct Connections {
    by_number: Mutex<BTreeMap<u64, Arc<Connection>>>,
    next: AtomicU64,
}

impl Connections {
    /// In the order in which they connected.
    pub(crate) fn all(&self) -> Vec<Arc<Connection>> {
        self.by_number
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    fn add(self: &Arc<Self>, connection: Arc<Connection>) -> Registered {
        let number = self.next.fetch_add(1, Relaxed);
        self.by_number
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(number, connection);
        Registered {
            connections: self.clone(),
            number,
        }
    }
}

/// Takes a connection off the list when its stream ends, however it ends.
struct Registered {
    connections: Arc<Connections>,
    number: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.connections
            .by_number
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.number);
    }
}

/// Serves proxies from the store's worlds.
pub(crate) struct Pusher {
    pub(crate) worlds: watch::Receiver<Arc<World>>,
    pub(crate) memo: Arc<Memo>,
    pub(crate) authenticator: Arc<Authenticator>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) audit: Arc<Audit>,
    pub(crate) issued: Arc<Issued>,
    pub(crate) metrics: Arc<Metrics>,
    /// Translations at a time.
    pub(crate) turns: Arc<Semaphore>,
}

#[tonic::async_trait]
impl Source for Pusher {
    async fn admit(
        &self,
        metadata: &MetadataMap,
        extensions: &mut Extensions,
    ) -> Result<(), Status> {
        let peer = extensions.get::<Peer>();
        let authenticated = self
            .authenticator
            .authenticate(peer, metadata)
            .await
            .inspect_err(|status| {
                let peer = peer
                    .map(|peer| peer.address.ip().to_string())
                    .unwrap_or_default();
                self.audit.record(&Record {
                    event: Event::ProxyRefused,
                    peer: &peer,
                    identity: None,
                    pod: None,
                    detail: status.message(),
                });
            })?;

        extensions.insert(authenticated);

        Ok(())
    }

    async fn open(&self, opening: Opening) -> Result<Feed, Status> {
        let Opening {
            node,
            variant,
            mut extensions,
            session,
        } = opening;

        let Some(authenticated) = extensions.remove::<Authenticated>() else {
            return Err(Status::internal("nobody has looked at who comes"));
        };
        let peer = extensions.get::<Peer>();
        let address = peer
            .map(|peer| peer.address.to_string())
            .unwrap_or_default();
        let refused = |status: Status| {
            self.audit.record(&Record {
                event: Event::ProxyRefused,
                peer: &peer
                    .map(|peer| peer.address.ip().to_string())
                    .unwrap_or_default(),
                identity: authenticated.identity.as_ref(),
                pod: authenticated.pod.as_deref(),
                detail: &format!("{}: {}", node.id, status.message()),
            });
            status
        };

        let proxy = Proxy::from_node(&node)
            .map_err(|error| refused(Status::invalid_argument(error.to_string())))?;
        authorize(&proxy, &node, &authenticated).map_err(refused)?;
        if let Some(peer) = peer {
            self.issued.shown(peer);
        }
        tracing::info!(proxy = %proxy.id, peer = %address, %variant, by = authenticated.proof.word(), "proxy connected");
        let (sender, receiver) = watch::channel(None);
        let connection = Arc::new(Connection {
            authenticated,
            peer: address,
            variant,
            user_agent: user_agent(&node),
            istio_version: text(&node, "ISTIO_VERSION"),
            connected_at_ms: now_ms(),
            last_push_ms: AtomicU64::new(0),
            session,
            state: Mutex::default(),
            proxy,
        });

        let registered = self.connections.add(connection.clone());
        self.metrics.triggers_proxy.add(1);
        let follower = Follower {
            worlds: self.worlds.clone(),
            memo: self.memo.clone(),
            metrics: self.metrics.clone(),
            turns: self.turns.clone(),
            connection: connection.clone(),
            sender,
            held: None,
        };

        tokio::spawn(follower.run());
        let observer = Watcher {
            connection,
            metrics: self.metrics.clone(),
            _registered: registered,
        };

        Ok(Feed {
            resources: receiver,
            observer: Box::new(observer),
        })
    }
}

/// Keeps one proxy's resources up to date.
struct Follower {
    worlds: watch::Receiver<Arc<World>>,
    memo: Arc<Memo>,
    metrics: Arc<Metrics>,
    turns: Arc<Semaphore>,
    connection: Arc<Connection>,
    sender: watch::Sender<Option<Arc<ResourceSet>>>,
    /// What the proxy's resources were made of; `None` before the first translation, and after one
    /// that failed.
    held: Option<Held>,
}

/// What the resources of a proxy were made of.
struct Held {
    /// The newest world from which they cannot differ.
    version: u64,
    scope: ProxyScope,
}

impl Held {
    /// Whether a newer world may give the proxy other resources.
    fn is_outdated(&self, world: &World) -> bool {
        match world.changes_after(self.version) {
            None => true,
            Some(changes) => changes.iter().any(|change| touches(change, &self.scope)),
        }
    }
}

impl Follower {
    async fn run(mut self) {
        loop {
            if !self.follow().await {
                return;
            }
            tokio::select! {
                changed = self.worlds.changed() => if changed.is_err() { return },
                // The stream is gone.
                () = self.sender.closed() => return,
            }
        }
    }

    /// Whether the newest world may give the proxy other resources.
    fn needs_translation(&mut self) -> bool {
        let world = self.worlds.borrow_and_update();
        // An empty set would take everything away from a proxy that comes back after a restart of
        // the control plane: nothing is sent before every source was read once.
        if !world.is_ready() {
            return false;
        }

        match &mut self.held {
            None => true,
            Some(held) if held.is_outdated(&world) => true,
            Some(held) => {
                held.version = world.version;
                false
            }
        }
    }

    /// Translates the newest world if it concerns the proxy; false when the server shuts down.
    async fn follow(&mut self) -> bool {
        if !self.needs_translation() {
            return true;
        }

        let seen = Instant::now();
        let waiting_since = self.connection.state().waiting_since;
        self.connection.state().waiting_since = waiting_since.or(Some(seen));
        let Ok(turn) = self.turns.clone().acquire_owned().await else {
            return false;
        };
        self.metrics.queue.time(seen.elapsed());

        // The newest at the time of the turn, not of the change.
        let world = self.worlds.borrow_and_update().clone();
        let version = world.version;
        let (memo, connection) = (self.memo.clone(), self.connection.clone());
        let started = Instant::now();
        let translated = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let translated = translate(&world.snapshot, &connection.proxy, &memo);
            let set = resource_set(&translated, connection.authenticated.proof);
            let scope = world.snapshot.proxy_scope(connection.proxy.facts());
            (set, translated.diagnostics, scope)
        });

        match translated.await {
            Ok((set, diagnostics, scope)) => {
                self.held = Some(Held { version, scope });
                self.metrics.push_time.time(started.elapsed());
                let is_same = self
                    .sender
                    .borrow()
                    .as_ref()
                    .is_some_and(|before| before.is_same(&set));

                let mut state = self.connection.state();
                state.diagnostics = diagnostics;
                if is_same {
                    // Nothing will be sent, unless for a change before this one.
                    state.waiting_since = waiting_since;
                } else {
                    drop(state);
                    self.sender.send_replace(Some(Arc::new(set)));
                }
            }
            Err(error) => {
                // A bug in translation must not cost a proxy its connection; it keeps what it has.
                // The next change is translated whomever it concerns.
                self.held = None;
                self.metrics.translation_failures.add(1);
                tracing::error!(proxy = %self.connection.proxy.id, %error, "translation broke off; the proxy keeps what it has");
            }
        }

        true
    }
}

/// A resource as the memo shares it.
struct Shared(Arc<Resource>);

impl Packed for Shared {
    fn any(&self) -> &Any {
        &self.0.any
    }
}

/// All that was translated; but keys are for those only who proved whose they are, as in Istio.
fn resource_set(translated: &Translated, proof: Proof) -> ResourceSet {
    let mut set = ResourceSet::new();
    let may_have = |type_url: &str| type_url != SECRET || proof != Proof::Nothing;
    for (type_url, resources) in translated
        .resources
        .iter()
        .filter(|(type_url, _)| may_have(type_url))
    {
        for resource in resources {
            set.insert(
                type_url,
                &resource.name,
                format!("{:016x}", resource.version),
                Shared(resource.clone()),
            );
        }
    }

    set
}

/// Hears what happens on a stream.
struct Watcher {
    connection: Arc<Connection>,
    metrics: Arc<Metrics>,
    _registered: Registered,
}

impl Observer for Watcher {
    fn sent(&mut self, type_url: &str, resources: usize, removed: usize, bytes: usize) {
        self.metrics.pushes.of(type_url).add(1);
        self.metrics.sizes.record(bytes as f64);
        self.connection.last_push_ms.store(now_ms(), Relaxed);
        if let Some(since) = self.connection.state().waiting_since.take() {
            self.metrics.convergence.time(since.elapsed());
        }
        let short = meltemi_proto::type_url::short(type_url);
        tracing::debug!(proxy = %self.connection.proxy.id, r#type = short, resources, removed, bytes, "pushed");
    }

    fn verdict(&mut self, verdict: &Verdict) {
        if let Verdict::Nacked {
            type_url,
            names,
            reason,
            ..
        } = verdict
        {
            self.metrics.rejects.of(type_url).add(1);
            let short = meltemi_proto::type_url::short(type_url);
            let named = names
                .iter()
                .take(5)
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", ");
            tracing::warn!(proxy = %self.connection.proxy.id, r#type = short, resources = %named, count = names.len(), %reason, "NACK");
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        tracing::info!(proxy = %self.connection.proxy.id, "proxy disconnected");
    }
}

/// Counts changes by kind, and lets the memo forget resources that two worlds in a row did not use.
pub(crate) async fn account(
    mut worlds: watch::Receiver<Arc<World>>,
    memo: Arc<Memo>,
    metrics: Arc<Metrics>,
) {
    let mut version = 0;
    while worlds.changed().await.is_ok() {
        let world = worlds.borrow_and_update().clone();
        let changes = world.changes_after(version);
        version = world.version;

        let all = |fits: fn(&ChangeSet) -> bool| {
            let changes = changes.as_ref();
            changes.is_some_and(|changes| changes.iter().all(|change| fits(change)))
        };
        if all(ChangeSet::is_empty) {
            continue;
        }

        if all(ChangeSet::is_endpoints_only) {
            metrics.triggers_endpoint.add(1);
        } else {
            metrics.triggers_config.add(1);
        }
        memo.sweep();
    }
}

fn text(node: &meltemi_proto::envoy::config::core::v3::Node, key: &str) -> String {
    use meltemi_proto::istio::StructExt;
    node.metadata
        .as_ref()
        .and_then(|metadata| metadata.text(key))
        .unwrap_or_default()
        .to_owned()
}

fn user_agent(node: &meltemi_proto::envoy::config::core::v3::Node) -> String {
    use meltemi_proto::envoy::config::core::v3::node::UserAgentVersionType;

    let version = match &node.user_agent_version_type {
        Some(UserAgentVersionType::UserAgentVersion(version)) => version.clone(),
        Some(UserAgentVersionType::UserAgentBuildVersion(build)) => match &build.version {
            Some(v) => format!("{}.{}.{}", v.major_number, v.minor_number, v.patch),
            None => String::new(),
        },
        None => String::new(),
    };

    format!("{} {version}", node.user_agent_name)
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use meltemi_proto::type_url::CLUSTER;

    use super::*;

    #[test]
    fn keys_are_for_those_who_prove_who_they_are() {
        let resource = Resource {
            name: "shop-cert".to_owned(),
            version: 1,
            any: Any::default(),
        };

        let resources = [
            (SECRET, vec![Arc::new(resource.clone())]),
            (CLUSTER, vec![Arc::new(resource)]),
        ]
        .into();

        let translated = Translated {
            resources,
            diagnostics: Vec::new(),
        };

        for proof in [Proof::Certificate, Proof::Token] {
            assert!(
                resource_set(&translated, proof)
                    .of(SECRET)
                    .is_some_and(|secrets| !secrets.is_empty())
            );
        }

        let set = resource_set(&translated, Proof::Nothing);
        assert!(
            set.of(SECRET).is_none()
                && set.of(CLUSTER).is_some_and(|clusters| !clusters.is_empty())
        );
    }
}
