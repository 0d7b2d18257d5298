//! The supervisor's main loop. It runs one node at a time; when a node is killed, the supervisor
//! starts another with the same folders and the same published ports.

use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::process::Child;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::config::NodeConfig;
use crate::dialler::{Machine, Server, ServerOptions};
use crate::events::Event;
use crate::launch::{NODE_ROLE, TITLE};
use crate::supervised::{ProgramEvent, SupervisedProgram};
use crate::{child, fd_socket, memfd, sys};

/// How long the node may take to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(8);
/// Number of early deaths in a row after which the supervisor gives up.
const MAX_FAILURES: u32 = 6;

/// Keeps a node running until the user stops the mesh by a signal.
///
/// # Errors
/// When the first node fails to start, or [`MAX_FAILURES`] nodes in a row end early.
pub(crate) async fn supervise(
    config: NodeConfig,
    options: ServerOptions,
    on_event: &mut (dyn FnMut(Event) + Send),
) -> anyhow::Result<()> {
    let (event_sender, mut events) = mpsc::unbounded_channel();
    let mut supervisor = Supervisor {
        config,
        machine: Machine::new(options),
        event_sender,
        serving: None,
    };

    let mut stop_signals = StopSignals::listen()?;
    let mut history = NodeHistory {
        on_event,
        was_up: false,
        failed: None,
    };

    let mut node = SupervisedProgram::default();
    node.start_now();
    loop {
        tokio::select! {
            () = stop_signals.wait() => break,
            Some(event) = events.recv() => history.record(event),
            event = node.next() => match event {
            ProgramEvent::StartDue => node.started(supervisor.start_node()?),
            ProgramEvent::Exited(status) => {
            supervisor.wait_for_last_process().await;

            // The reason of the failure may be among the events that are still queued.
            while let Ok(event) = events.try_recv() {
            history.record(event);
            }
            history.plan_restart(&mut node, status)?;
                }
            },
        }
    }

    let Some(child) = node.take() else {
        return Ok(());
    };

    // Keep showing events while the node stops.
    let stopping = child::stop(child, STOP_TIMEOUT);
    tokio::pin!(stopping);

    loop {
        tokio::select! {
        () = &mut stopping => return Ok(()),
        Some(event) = events.recv() => history.record(event),
        }
    }
}

struct Supervisor {
    config: NodeConfig,
    machine: Arc<Machine>,
    event_sender: mpsc::UnboundedSender<Event>,
    /// The task that serves the running node's requests.
    serving: Option<JoinHandle<()>>,
}

impl Supervisor {
    fn start_node(&mut self) -> anyhow::Result<Child> {
        let (ours, theirs) = fd_socket::pair()?;
        let server = Server::new(ours, Arc::clone(&self.machine))?;
        self.config.channel = theirs.as_raw_fd();
        let config_file = memfd::json(&self.config)?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0(format!("{TITLE} node {}", self.config.name))
            .arg(NODE_ROLE)
            .arg(config_file.as_raw_fd().to_string());

        command.stdin(Stdio::null());
        sys::inherit(
            &mut command,
            vec![config_file.as_raw_fd(), theirs.as_raw_fd()],
        );
        let child = tokio::process::Command::from(command)
            .spawn()
            .context("starting the node")?;

        let sender = self.event_sender.clone();
        self.serving = Some(tokio::spawn(async move {
            if let Err(error) = server.serve(|event| _ = sender.send(event)).await {
                let _ = sender.send(Event::Failed(format!("channel to the node: {error}")));
            }
        }));

        Ok(child)
    }

    /// Waits until the node's end of the channel is closed, which happens when its last process has
    /// ended. The keeper, whose exit the supervisor observes, may end before the node.
    async fn wait_for_last_process(&mut self) {
        if let Some(serving) = self.serving.take() {
            let _ = tokio::time::timeout(STOP_TIMEOUT, serving).await;
        }
    }
}

/// What the supervisor remembers of the nodes' events to decide about a restart.
struct NodeHistory<'a> {
    on_event: &'a mut (dyn FnMut(Event) + Send),
    /// A node has come up before, so this machine can run one.
    was_up: bool,
    /// The reason that the last node gave for its failure.
    failed: Option<String>,
}

impl NodeHistory<'_> {
    /// Remembers an event and shows it to the user.
    fn record(&mut self, event: Event) {
        match &event {
            Event::NodeUp => self.was_up = true,
            Event::Failed(why) => self.failed = Some(why.clone()),
            _ => {}
        }
        (self.on_event)(event);
    }

    /// Plans the restart of a node that ended; fails if a restart would not help.
    fn plan_restart(
        &mut self,
        node: &mut SupervisedProgram,
        status: ExitStatus,
    ) -> anyhow::Result<()> {
        let how = node.ended(status).to_owned();
        let why = self
            .failed
            .take()
            .unwrap_or_else(|| format!("the node ended by itself ({how})"));

        // The very first node failed: the machine lacks something that a restart does not bring.
        if !self.was_up {
            bail!("{why}");
        }
        if node.failures() >= MAX_FAILURES {
            bail!(
                "{why}; it is not started again, since that was the {MAX_FAILURES}th time in a row"
            );
        }

        self.record(Event::Warning(format!(
            "{why}, and with it everything in the mesh; it is started again with the same configuration and ports (what `run` \
             added without -d does not come back)"
        )));

        Ok(())
    }
}

/// The signals by which a user stops the mesh.
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    /// Sent when the terminal closes; `None` under `nohup`, which ignores SIGHUP.
    hangup: Option<Signal>,
}

impl StopSignals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: (!sys::is_ignored(libc::SIGHUP))
                .then(|| signal(SignalKind::hangup()))
                .transpose()?,
        })
    }

    /// Waits for the first of the signals.
    async fn wait(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };

        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hangup => {}
        }
    }
}
