//! One workload: its sandbox, its proxy, its application, from start to end.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::api::{PartStatus, Phase, WorkloadStatus};
use crate::child::{self, Output};
use crate::context::Context;
use crate::launch::LaunchSpec;
use crate::log::Log;
use crate::part::{Part, PartEvent};
use crate::pods;
use crate::programs::{app_spec, proxy_arguments};
use crate::readiness::{listens, proxy_answers, proxy_falls_silent};
use crate::sandbox::{self, Sandbox};
use crate::services::Services;
use crate::spec::{ProxyKind, WorkloadSpec};
use crate::token::TokenFile;

/// What a program gets to end by itself.
const GRACE: Duration = Duration::from_secs(2);

/// What is said of a proxy that runs and does not answer.
const PROXY_SILENT: &str = "its proxy runs and does not say that it is ready (port 15021), so that it gets no traffic; `meltemi restart` starts it anew";

/// What a log says of a program that was ended to be started anew.
const ON_REQUEST: &str = "a restart was asked for";

/// Callers get this long to learn that a workload goes away before it does.
const WITHDRAWAL: Duration = Duration::from_millis(200);

/// What others ask of a workload.
#[derive(Debug)]
pub(crate) enum Command {
    /// End; answered when everything is gone.
    Stop(oneshot::Sender<()>),
    /// End the application and start it anew.
    RestartApp,
    /// End the proxy and start it anew, possibly as another one.
    RestartProxy(Option<ProxyKind>),
}

/// The node's view of a running workload.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) spec: Arc<WorkloadSpec>,
    pub(crate) status: watch::Receiver<WorkloadStatus>,
    pub(crate) app_log: Arc<Log>,
    pub(crate) proxy_log: Arc<Log>,
    /// Empty until it is made, and where it cannot be made.
    pub(crate) sandbox: Arc<OnceLock<Sandbox>>,
    commands: mpsc::UnboundedSender<Command>,
}

impl Handle {
    /// Passes a command on; a workload that has just ended hears none.
    pub(crate) fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }
}

/// Starts a workload.
pub(crate) fn start(context: Arc<Context>, spec: WorkloadSpec, address: Ipv4Addr) -> Handle {
    let spec = Arc::new(spec);
    let folder = context
        .config
        .run_dir
        .join("workloads")
        .join(format!("{}_{}", spec.key.namespace, spec.key.pod));

    let (app_log, proxy_log) = (
        Log::new(&folder.join("app.log")),
        Log::new(&folder.join("proxy.log")),
    );

    let (commands, orders) = mpsc::unbounded_channel();
    let (status, seen) = watch::channel(WorkloadStatus::new(&spec, address));
    let sandbox = Arc::new(OnceLock::new());
    let workload = Workload {
        proxy_kind: spec.proxy,
        spec: Arc::clone(&spec),
        address,
        folder,
        app_log: Arc::clone(&app_log),
        proxy_log: Arc::clone(&proxy_log),
        sandbox: Arc::clone(&sandbox),
        app: Part::default(),
        proxy: Part::default(),
        token: None,
        proxy_ready: false,
        proxy_silent: false,
        app_ready: false,
        message: None,
        created: context.now(),
        written: None,
        status,
        context,
    };

    tokio::spawn(workload.run(orders));

    Handle {
        spec,
        status: seen,
        app_log,
        proxy_log,
        sandbox,
        commands,
    }
}

struct Workload {
    context: Arc<Context>,
    spec: Arc<WorkloadSpec>,
    proxy_kind: ProxyKind,
    address: Ipv4Addr,
    folder: PathBuf,
    app_log: Arc<Log>,
    proxy_log: Arc<Log>,
    sandbox: Arc<OnceLock<Sandbox>>,
    app: Part,
    proxy: Part,
    /// What the proxy that runs shows when it has no certificate.
    token: Option<TokenFile>,
    proxy_ready: bool,
    /// It was ready, runs on, and says so no more.
    proxy_silent: bool,
    app_ready: bool,
    message: Option<String>,
    created: String,
    /// Readiness as the pod's file says it.
    written: Option<bool>,
    status: watch::Sender<WorkloadStatus>,
}

impl Workload {
    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Command>) {
        let mut services = self.context.services.clone();
        match Sandbox::create(&self.context, &self.spec, self.address, &self.folder).await {
            Ok(sandbox) => _ = self.sandbox.set(sandbox),
            Err(error) => return self.fail(error, orders).await,
        }

        if self.spec.is_meshed() {
            self.proxy.start_now();
        } else {
            self.apply_services(&services.borrow_and_update().clone());
            self.proxy_ready = true;
            self.app.start_now();
        }

        let mut control = self.context.control_ready.clone();

        loop {
            self.publish();
            self.complain().await;
            let has_control = *control.borrow_and_update();
            let awaits_proxy =
                self.spec.is_meshed() && self.proxy.is_running() && !self.proxy_ready;
            let awaits_app = self.app.is_running() && !self.app_ready;
            let renewal = async {
                match &self.token {
                    Some(token) => token.wait().await,
                    None => std::future::pending().await,
                }
            };

            tokio::select! {
                order = orders.recv() => match order {
                    Some(Command::Stop(done)) => {
                        self.stop().await;
                        self.tear_down(done);
                        return;
                    }
                    Some(order) => self.obey(order).await,
                    None => {
                        self.stop().await;
                        return;
                    }
                },
                // Without the control plane's root certificate a proxy could only fail.
                event = self.proxy.next(), if has_control => match event {
                    PartEvent::Due => self.start_proxy(),
                    PartEvent::Exited(status) => {
                        let why = self.proxy.ended(status).to_owned();
                        self.proxy_ready = false;
                        self.proxy_silent = false;
                        self.proxy_log.write(format!("meltemi: proxy ended: {why}\n").as_bytes());
                        tracing::warn!(workload = %self.spec.key, why, "proxy ended");
                    }
                },
                _ = control.changed(), if !has_control => {}
                () = renewal => self.renew_token(),
                () = proxy_answers(self.address), if awaits_proxy => {
                    self.proxy_ready = true;
                    self.proxy_silent = false;
                    if self.spec.app.is_some() && !self.app.is_running() && self.app.due.is_none() {
                        self.app.start_now();
                    }
                }
                () = proxy_falls_silent(self.address), if self.spec.is_meshed() && self.proxy_ready => {
                    self.proxy_ready = false;
                    self.proxy_silent = true;
                    tracing::warn!(workload = %self.spec.key, "proxy does not say that it is ready");
                }
                event = self.app.next() => match event {
                    PartEvent::Due => self.start_app(),
                    PartEvent::Exited(status) => {
                        let why = self.app.ended(status).to_owned();
                        self.app_ready = false;
                        self.app_log.write(format!("meltemi: {} ended: {why}\n", self.spec.container).as_bytes());
                        tracing::info!(workload = %self.spec.key, why, "application ended");
                    }
                },
                silent = listens(&self.sandbox, &self.spec), if awaits_app => {
                    self.app_ready = true;
                    self.message = silent;
                }
                changed = services.changed(), if !self.spec.is_meshed() => {
                    if changed.is_ok() {
                        let new = services.borrow_and_update().clone();
                        self.apply_services(&new);
                    }
                }
            }
        }
    }

    /// There is nothing to run in: says why, and waits to be told to go.
    async fn fail(&mut self, error: anyhow::Error, mut orders: mpsc::UnboundedReceiver<Command>) {
        self.message = Some(format!("{error:#}"));
        self.context
            .warn(format!("workload {}: {error:#}", self.spec.key))
            .await;
        self.publish();

        while let Some(order) = orders.recv().await {
            if let Command::Stop(done) = order {
                return self.tear_down(done);
            }
        }
    }

    /// Tells of a program that fails again and again, and where its last words are.
    async fn complain(&mut self) {
        let key = &self.spec.key;
        let mesh = match self.context.config.name.as_str() {
            "default" => String::new(),
            name => format!(" --mesh {name}"),
        };

        for (part, what, flag) in [
            (&mut self.app, "its program", ""),
            (&mut self.proxy, "its proxy", " -c proxy"),
        ] {
            if let Some(complaint) = part.complaint() {
                let logs = format!("meltemi{mesh} logs -n {} {}{flag}", key.namespace, key.pod);
                self.context
                    .warn(format!(
                        "workload {key}: {what} {complaint}; `{logs}` shows what it said"
                    ))
                    .await;
            }
        }
    }

    fn apply_services(&self, services: &Services) {
        let Some(sandbox) = self.sandbox.get() else {
            return;
        };
        if let Err(error) = sandbox.apply(&services.rule_set()) {
            tracing::warn!(workload = %self.spec.key, %error, "services are not reachable by their addresses");
        }
    }

    fn start_proxy(&mut self) {
        self.proxy_ready = false;
        self.proxy_silent = false;
        match self.try_start_proxy() {
            Ok(child) => self.proxy.started(child),
            Err(error) => {
                self.proxy_log
                    .write(format!("meltemi: cannot start: {error:#}\n").as_bytes());
                self.proxy.failed(format!("{error:#}"));
            }
        }
    }

    fn try_start_proxy(&mut self) -> anyhow::Result<tokio::process::Child> {
        use anyhow::Context as _;

        let sandbox = self.sandbox.get().context("it has no network namespace")?;
        let token = self.context.token(&self.spec)?;
        let descriptor = token.descriptor();
        let own = self.folder.join("proxy");

        std::fs::create_dir_all(&own)?;
        let role = if self.spec.is_gateway() {
            "gateway"
        } else {
            "sidecar"
        };

        let spec = LaunchSpec {
            argv: proxy_arguments(
                &self.context,
                &self.spec,
                self.proxy_kind,
                self.address,
                &own,
                descriptor,
            ),
            title: Some(format!("meltemi: {role} {}", self.spec.key.pod)),
            env: self
                .context
                .base_env
                .clone()
                .into_iter()
                .chain([("HOSTNAME".to_owned(), self.spec.key.pod.clone())])
                .collect(),
            netns: Some(sandbox.netns.raw()),
            files: sandbox.proxy_files.clone(),
            // Its Envoy would hold the ports that the next one needs.
            ends_together: self.proxy_kind == ProxyKind::Envoy,
            keep: vec![descriptor],
            ..LaunchSpec::default()
        };

        let child = child::spawn(
            &spec,
            &format!("{role} {}", self.spec.key.pod),
            Output::Log(Arc::clone(&self.proxy_log)),
        )?;

        self.token = Some(token);

        Ok(child)
    }

    fn renew_token(&mut self) {
        let Some(token) = &mut self.token else { return };
        if let Err(error) = token.renew(&self.context.signer) {
            tracing::warn!(workload = %self.spec.key, %error, "its token is not renewed; it is tried again");
        }
    }

    fn start_app(&mut self) {
        self.app_ready = false;
        let started = self
            .sandbox
            .get()
            .and_then(|sandbox| app_spec(&self.context, &self.spec, sandbox))
            .ok_or_else(|| anyhow::anyhow!("it has no program"))
            .and_then(|spec| {
                child::spawn(
                    &spec,
                    &format!("app {}", self.spec.key.pod),
                    Output::Log(Arc::clone(&self.app_log)),
                )
            });

        match started {
            Ok(child) => self.app.started(child),
            Err(error) => self.app.failed(format!("{error:#}")),
        }
    }

    async fn obey(&mut self, order: Command) {
        match order {
            Command::Stop(_) => unreachable!("handled by the caller"),
            Command::RestartApp => {
                if self.spec.app.is_some() {
                    self.withdraw().await;
                    if let Some(child) = self.app.take() {
                        child::stop(child, GRACE).await;
                        self.app_log.write(
                            format!("meltemi: {} ended: {ON_REQUEST}\n", self.spec.container)
                                .as_bytes(),
                        );
                    }

                    self.app_ready = false;
                    self.app.start_now();
                }
            }
            Command::RestartProxy(kind) => {
                if self.spec.is_meshed() {
                    self.proxy_kind = kind.unwrap_or(self.proxy_kind);
                    self.withdraw().await;
                    self.proxy_ready = false;
                    if let Some(child) = self.proxy.take() {
                        child::stop(child, GRACE).await;
                        self.proxy_log
                            .write(format!("meltemi: proxy ended: {ON_REQUEST}\n").as_bytes());
                    }
                    self.proxy.start_now();
                }
            }
        }
    }

    async fn stop(&mut self) {
        pods::remove(&self.context.config.pods_dir(), &self.spec.key);
        self.until_withdrawn().await;
        if let Some(app) = self.app.take() {
            child::stop(app, GRACE).await;
        }
        if let Some(proxy) = self.proxy.take() {
            child::stop(proxy, GRACE).await;
        }
    }

    /// Not ready from now on, which callers know when this ends.
    async fn withdraw(&mut self) {
        let was_ready = self.written;
        self.app_ready = false;
        self.proxy_ready &= self.spec.app.is_some();
        self.publish();
        if was_ready == Some(true) {
            tokio::time::sleep(WITHDRAWAL).await;
        }
    }

    /// Lets callers turn away first: a connection to an address that nobody has any more hangs
    /// until it times out.
    async fn until_withdrawn(&self) {
        if self.written == Some(true) && !self.context.ending.load(Ordering::Relaxed) {
            tokio::time::sleep(WITHDRAWAL).await;
        }
    }

    fn tear_down(&self, done: oneshot::Sender<()>) {
        sandbox::remove(self.address, &self.folder);
        let _ = done.send(());
    }

    fn is_ready(&self) -> bool {
        self.proxy_ready && (self.spec.app.is_none() || (self.app.is_running() && self.app_ready))
    }

    /// Tells the control plane and whoever asks.
    fn publish(&mut self) {
        let ready = self.is_ready();
        if self.written != Some(ready) {
            let dir = self.context.config.pods_dir();
            match pods::write(&dir, &self.spec, self.address, ready, &self.created) {
                Ok(()) => self.written = Some(ready),
                Err(error) => {
                    tracing::warn!(workload = %self.spec.key, %error, "the pod's file cannot be written")
                }
            }
        }

        let part = |part: &Part| PartStatus {
            running: part.is_running(),
            pid: part.pid(),
            restarts: part.restarts,
            last_exit: part.last_exit.clone(),
        };

        let phase = match () {
            () if self.sandbox.get().is_none() => Phase::Failed,
            () if self.app.is_crashing() || self.proxy.is_crashing() => Phase::BackOff,
            () if ready || self.proxy_silent => Phase::Running,
            () => Phase::Starting,
        };

        let new = WorkloadStatus {
            phase,
            ready,
            proxy_kind: self.proxy_kind,
            app: self.spec.app.as_ref().map(|_| part(&self.app)),
            proxy: self.spec.is_meshed().then(|| part(&self.proxy)),
            message: self
                .proxy_silent
                .then(|| PROXY_SILENT.to_owned())
                .or_else(|| self.message.clone()),
            ..WorkloadStatus::new(&self.spec, self.address)
        };

        self.status.send_if_modified(|old| {
            let changed = *old != new;
            *old = new;
            changed
        });
    }
}
