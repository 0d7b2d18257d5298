//! The task of one replica: creates its sandbox, starts its proxy and then its application, watches
//! both, and publishes its status and its Pod file until it is stopped.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::api::{Phase, ProgramStatus, WorkloadStatus};
use crate::child::{self, ProgramIo};
use crate::context::Context;
use crate::launch::LaunchSpec;
use crate::log::Log;
use crate::pods;
use crate::programs::{app_spec, proxy_arguments};
use crate::readiness::{wait_until_listening, wait_until_proxy_ready, wait_until_proxy_unready};
use crate::sandbox::{self, Sandbox};
use crate::services::Services;
use crate::spec::{ProxyKind, WorkloadSpec};
use crate::supervised::{ProgramEvent, SupervisedProgram};
use crate::token::TokenFile;

/// Time between SIGTERM and SIGKILL for a program.
const GRACE: Duration = Duration::from_secs(2);

/// Status message of a proxy that runs and fails its readiness probe.
const PROXY_SILENT: &str = "its proxy runs and does not say that it is ready (port 15021), so that it gets no traffic; `meltemi restart` starts it anew";

/// Reason written to the log of a program that the node ended for a restart.
const ON_REQUEST: &str = "a restart was asked for";

/// How long a workload keeps running after its Pod was removed or became unready, so that callers
/// learn of it and stop sending requests.
const WITHDRAWAL: Duration = Duration::from_millis(200);

/// A command to a workload's task.
#[derive(Debug)]
pub(crate) enum Command {
    /// End the workload; the sender fires when its programs and sandbox are gone.
    Stop(oneshot::Sender<()>),
    /// Restart the application.
    RestartApp,
    /// Restart the proxy, as another kind if one is given.
    RestartProxy(Option<ProxyKind>),
}

/// The node's handle of a running workload.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) spec: Arc<WorkloadSpec>,
    pub(crate) status: watch::Receiver<WorkloadStatus>,
    pub(crate) app_log: Arc<Log>,
    pub(crate) proxy_log: Arc<Log>,
    /// Empty until the sandbox was created, and for ever if that failed.
    pub(crate) sandbox: Arc<OnceLock<Sandbox>>,
    commands: mpsc::UnboundedSender<Command>,
}

impl Handle {
    /// Sends a command; ignored if the workload has already ended.
    pub(crate) fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }
}

/// Starts the task of a workload.
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

    let (commands, received) = mpsc::unbounded_channel();
    let (status, status_receiver) = watch::channel(WorkloadStatus::new(&spec, address));
    let sandbox = Arc::new(OnceLock::new());
    let workload = Workload {
        proxy_kind: spec.proxy,
        spec: Arc::clone(&spec),
        address,
        folder,
        app_log: Arc::clone(&app_log),
        proxy_log: Arc::clone(&proxy_log),
        sandbox: Arc::clone(&sandbox),
        app: SupervisedProgram::default(),
        proxy: SupervisedProgram::default(),
        token: None,
        proxy_ready: false,
        proxy_silent: false,
        app_ready: false,
        message: None,
        created: context.now(),
        published_ready: None,
        status,
        context,
    };

    tokio::spawn(workload.run(received));

    Handle {
        spec,
        status: status_receiver,
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
    app: SupervisedProgram,
    proxy: SupervisedProgram,
    /// Token file of the running proxy, with which it requests its certificate.
    token: Option<TokenFile>,
    proxy_ready: bool,
    /// The proxy was ready, still runs, and now fails its readiness probe.
    proxy_silent: bool,
    app_ready: bool,
    message: Option<String>,
    created: String,
    /// Readiness in the Pod file; `None` before the file was first written.
    published_ready: Option<bool>,
    status: watch::Sender<WorkloadStatus>,
}

impl Workload {
    /// Runs the workload until it is stopped.
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut services = self.context.services.clone();
        match Sandbox::create(&self.context, &self.spec, self.address, &self.folder).await {
            Ok(sandbox) => _ = self.sandbox.set(sandbox),
            Err(error) => return self.fail(error, commands).await,
        }

        // In the mesh the application starts only when its proxy is ready, since its first
        // calls would fail otherwise.
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
            self.report_crash_loops().await;

            // Each condition below switches one branch of the select on.
            let has_control = *control.borrow_and_update();
            let awaits_proxy =
                self.spec.is_meshed() && self.proxy.is_running() && !self.proxy_ready;
            let awaits_app = self.app.is_running() && !self.app_ready;
            let renewal = async {
                match &self.token {
                    Some(token) => token.wait_until_due().await,
                    None => std::future::pending().await,
                }
            };

            tokio::select! {
                command = commands.recv() => match command {
                Some(Command::Stop(done)) => {
                self.stop().await;
                self.remove_sandbox(done);
                return;
                }
                Some(command) => self.execute(command).await,
                    None => {
                        self.stop().await;
                        return;
                    }
                },
                // A proxy cannot start without the control plane's root certificate.
                event = self.proxy.next(), if has_control => match event {
                    ProgramEvent::StartDue => self.start_proxy(),
                    ProgramEvent::Exited(status) => self.proxy_ended(status),
                },
                _ = control.changed(), if !has_control => {}
                () = renewal => self.renew_token(),
                () = wait_until_proxy_ready(self.address), if awaits_proxy => self.proxy_became_ready(),
                () = wait_until_proxy_unready(self.address), if self.spec.is_meshed() && self.proxy_ready => {
                    self.proxy_ready = false;
                    self.proxy_silent = true;
                    tracing::warn!(workload = %self.spec.key, "proxy does not say that it is ready");
                }
                event = self.app.next() => match event {
                    ProgramEvent::StartDue => self.start_app(),
                    ProgramEvent::Exited(status) => self.app_ended(status),
                },
                silent = wait_until_listening(&self.sandbox, &self.spec), if awaits_app => {
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

    fn proxy_ended(&mut self, status: ExitStatus) {
        let why = self.proxy.ended(status).to_owned();
        self.proxy_ready = false;
        self.proxy_silent = false;
        self.proxy_log
            .write(format!("meltemi: proxy ended: {why}\n").as_bytes());
        tracing::warn!(workload = %self.spec.key, why, "proxy ended");
    }

    fn app_ended(&mut self, status: ExitStatus) {
        let why = self.app.ended(status).to_owned();
        self.app_ready = false;
        self.app_log
            .write(format!("meltemi: {} ended: {why}\n", self.spec.container).as_bytes());
        tracing::info!(workload = %self.spec.key, why, "application ended");
    }

    fn proxy_became_ready(&mut self) {
        self.proxy_ready = true;
        self.proxy_silent = false;

        // Start the application the first time only: a proxy that comes back leaves it as it is.
        if self.spec.app.is_some() && !self.app.is_running() && self.app.due.is_none() {
            self.app.start_now();
        }
    }

    /// Reports that the sandbox could not be created, then waits for [`Command::Stop`].
    async fn fail(&mut self, error: anyhow::Error, mut commands: mpsc::UnboundedReceiver<Command>) {
        self.message = Some(format!("{error:#}"));
        self.context
            .warn(format!("workload {}: {error:#}", self.spec.key))
            .await;
        self.publish();

        while let Some(command) = commands.recv().await {
            if let Command::Stop(done) = command {
                return self.remove_sandbox(done);
            }
        }
    }

    /// Shows a program that fails again and again to the user, with the command that shows its
    /// log.
    async fn report_crash_loops(&mut self) {
        let key = &self.spec.key;
        let mesh = match self.context.config.name.as_str() {
            "default" => String::new(),
            name => format!(" --mesh {name}"),
        };

        for (part, what, flag) in [
            (&mut self.app, "its program", ""),
            (&mut self.proxy, "its proxy", " -c proxy"),
        ] {
            if let Some(take_crash_loop_message) = part.take_crash_loop_message() {
                let logs = format!("meltemi{mesh} logs -n {} {}{flag}", key.namespace, key.pod);
                self.context
                    .warn(format!(
                        "workload {key}: {what} {take_crash_loop_message}; `{logs}` shows what it said"
                    ))
                    .await;
            }
        }
    }

    /// Applies the DNAT rules of Services, for a workload without a sidecar.
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
            // If the agent dies, its Envoy must die too: it would keep the ports that the next one
            // needs.
            ends_together: self.proxy_kind == ProxyKind::Envoy,
            keep: vec![descriptor],
            ..LaunchSpec::default()
        };

        let child = child::spawn(
            &spec,
            &format!("{role} {}", self.spec.key.pod),
            ProgramIo::Log(Arc::clone(&self.proxy_log)),
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
                    ProgramIo::Log(Arc::clone(&self.app_log)),
                )
            });

        match started {
            Ok(child) => self.app.started(child),
            Err(error) => self.app.failed(format!("{error:#}")),
        }
    }

    async fn execute(&mut self, command: Command) {
        match command {
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

    /// Removes the Pod, waits until callers have noticed, then stops the application and the proxy,
    /// in this order: the application's last calls need the proxy.
    async fn stop(&mut self) {
        pods::remove(&self.context.config.pods_dir(), &self.spec.key);
        self.wait_for_withdrawal().await;
        if let Some(app) = self.app.take() {
            child::stop(app, GRACE).await;
        }
        if let Some(proxy) = self.proxy.take() {
            child::stop(proxy, GRACE).await;
        }
    }

    /// Publishes that the workload is not ready and waits until callers have noticed.
    async fn withdraw(&mut self) {
        let was_ready = self.published_ready;
        self.app_ready = false;
        self.proxy_ready &= self.spec.app.is_some();
        self.publish();
        if was_ready == Some(true) {
            tokio::time::sleep(WITHDRAWAL).await;
        }
    }

    /// Waits until callers have stopped using the workload's address. A connection to an address
    /// that is gone would hang until it times out. Skipped when the whole node stops.
    async fn wait_for_withdrawal(&self) {
        if self.published_ready == Some(true) && !self.context.is_stopping.load(Ordering::Relaxed) {
            tokio::time::sleep(WITHDRAWAL).await;
        }
    }

    fn remove_sandbox(&self, done: oneshot::Sender<()>) {
        sandbox::remove(self.address, &self.folder);
        let _ = done.send(());
    }

    fn is_ready(&self) -> bool {
        self.proxy_ready && (self.spec.app.is_none() || (self.app.is_running() && self.app_ready))
    }

    /// Writes the Pod file if the readiness changed, and publishes the status to commands.
    fn publish(&mut self) {
        let ready = self.is_ready();
        if self.published_ready != Some(ready) {
            let dir = self.context.config.pods_dir();
            match pods::write(&dir, &self.spec, self.address, ready, &self.created) {
                Ok(()) => self.published_ready = Some(ready),
                Err(error) => {
                    tracing::warn!(workload = %self.spec.key, %error, "the pod's file cannot be written")
                }
            }
        }

        let status_of = |program: &SupervisedProgram| ProgramStatus {
            running: program.is_running(),
            pid: program.pid(),
            restarts: program.restarts,
            last_exit: program.last_exit.clone(),
        };

        let phase = match () {
            () if self.sandbox.get().is_none() => Phase::Failed,
            () if self.app.is_backing_off() || self.proxy.is_backing_off() => Phase::BackOff,
            () if ready || self.proxy_silent => Phase::Running,
            () => Phase::Starting,
        };

        let new = WorkloadStatus {
            phase,
            ready,
            proxy_kind: self.proxy_kind,
            app: self.spec.app.as_ref().map(|_| status_of(&self.app)),
            proxy: self.spec.is_meshed().then(|| status_of(&self.proxy)),
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
