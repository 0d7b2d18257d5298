//! The supervisor's loop: one node at a time. One that is killed is followed by another over the
//! same folders and the same published ports.

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
use crate::part::{Part, PartEvent};
use crate::{child, fd_socket, memfd, sys};

/// How long the node may take to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(8);
/// A node that ended this often, each time soon after its start, will end again.
const HOPELESS: u32 = 6;

/// Keeps a node running until somebody asks for the end.
///
/// # Errors
/// When the first node could not come up, or none of several in a row stayed up.
pub(crate) async fn supervise(
    config: NodeConfig,
    options: ServerOptions,
    on_event: &mut (dyn FnMut(Event) + Send),
) -> anyhow::Result<()> {
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut supervisor = Supervisor {
        config,
        machine: Machine::new(options),
        tell,
        serving: None,
    };

    let mut ends = Ends::listen()?;
    let mut news = News {
        on_event,
        was_up: false,
        failed: None,
    };

    let mut node = Part::default();
    node.start_now();
    loop {
        tokio::select! {
            () = ends.asked() => break,
            Some(event) = told.recv() => news.take(event),
            event = node.next() => match event {
                PartEvent::Due => node.started(supervisor.start()?),
                PartEvent::Exited(status) => {
                    supervisor.nothing_of_it_is_left().await;
                    while let Ok(event) = told.try_recv() {
                        news.take(event);
                    }
                    news.died(&mut node, status)?;
                }
            },
        }
    }

    let Some(child) = node.take() else {
        return Ok(());
    };
    let stopping = child::stop(child, STOP_TIMEOUT);
    tokio::pin!(stopping);

    loop {
        tokio::select! {
            () = &mut stopping => return Ok(()),
            Some(event) = told.recv() => news.take(event),
        }
    }
}

struct Supervisor {
    config: NodeConfig,
    machine: Arc<Machine>,
    tell: mpsc::UnboundedSender<Event>,
    /// Answers the node that runs.
    serving: Option<JoinHandle<()>>,
}

impl Supervisor {
    fn start(&mut self) -> anyhow::Result<Child> {
        let (ours, theirs) = fd_socket::pair()?;
        let server = Server::new(ours, Arc::clone(&self.machine))?;
        self.config.channel = theirs.as_raw_fd();
        let told = memfd::json(&self.config)?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0(format!("{TITLE} node {}", self.config.name))
            .arg(NODE_ROLE)
            .arg(told.as_raw_fd().to_string());

        command.stdin(Stdio::null());
        sys::inherit(&mut command, vec![told.as_raw_fd(), theirs.as_raw_fd()]);
        let child = tokio::process::Command::from(command)
            .spawn()
            .context("starting the node")?;
        let tell = self.tell.clone();
        self.serving = Some(tokio::spawn(async move {
            if let Err(error) = server.serve(|event| _ = tell.send(event)).await {
                let _ = tell.send(Event::Failed(format!("channel to the node: {error}")));
            }
        }));

        Ok(child)
    }

    /// Whoever started it may end before it; its own end of the channel closes with its last
    /// process.
    async fn nothing_of_it_is_left(&mut self) {
        if let Some(serving) = self.serving.take() {
            let _ = tokio::time::timeout(STOP_TIMEOUT, serving).await;
        }
    }
}

/// What the nodes have told, as far as it matters when one dies.
struct News<'a> {
    on_event: &'a mut (dyn FnMut(Event) + Send),
    /// There was a node that came up: this machine can have one.
    was_up: bool,
    failed: Option<String>,
}

impl News<'_> {
    fn take(&mut self, event: Event) {
        match &event {
            Event::NodeUp => self.was_up = true,
            Event::Failed(why) => self.failed = Some(why.clone()),
            _ => {}
        }
        (self.on_event)(event);
    }

    /// Plans the next one, unless that is hopeless.
    fn died(&mut self, node: &mut Part, status: ExitStatus) -> anyhow::Result<()> {
        let how = node.ended(status).to_owned();
        let why = self
            .failed
            .take()
            .unwrap_or_else(|| format!("the node ended by itself ({how})"));

        if !self.was_up {
            bail!("{why}");
        }
        if node.failures() >= HOPELESS {
            bail!("{why}; it is not started again, since that was the {HOPELESS}th time in a row");
        }
        self.take(Event::Warning(format!(
            "{why}, and with it everything in the mesh; it is started again with the same configuration and ports (what `run` \
             added without -d does not come back)"
        )));

        Ok(())
    }
}

/// The ways in which people ask for the end.
struct Ends {
    interrupt: Signal,
    terminate: Signal,
    /// Of a terminal that closes; `nohup` keeps it from us.
    hangup: Option<Signal>,
}

impl Ends {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: (!sys::is_ignored(libc::SIGHUP))
                .then(|| signal(SignalKind::hangup()))
                .transpose()?,
        })
    }

    async fn asked(&mut self) {
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
