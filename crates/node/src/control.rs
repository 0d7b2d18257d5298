//! The control plane: a program in the router's namespace that is kept running.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::child::{self, Output};
use crate::config::NodeConfig;
use crate::context::Context;
use crate::events::Event;
use crate::launch::LaunchSpec;
use crate::log::Log;
use crate::network::ROUTER;
use crate::part::{Part, PartEvent};
use crate::surroundings;

/// Starts the control plane and starts it again when it ends. `up` becomes true when workloads can
/// ask it for certificates.
pub(crate) async fn keep_running(context: Arc<Context>, up: watch::Sender<bool>) {
    let log = Log::new(&context.config.run_dir.join("control.log"));
    let folder = context.config.run_dir.join("workloads").join("control");
    let files =
        surroundings::write(&folder, "istio-system", "istiod", ROUTER, ROUTER).unwrap_or_default();
    let mut part = Part::default();
    part.start_now();

    loop {
        let awaits = part.is_running() && !*up.borrow();
        tokio::select! {
            event = part.next() => match event {
                PartEvent::Due => match start(&context, &log, &files) {
                    Ok(child) => part.started(child),
                    Err(error) => part.failed(format!("{error:#}")),
                },
                PartEvent::Exited(status) => {
                    let why = part.ended(status).to_owned();
                    let said = last_words(&log);
                    log.write(format!("meltemi: control plane ended: {why}\n").as_bytes());
                    let path = context.config.run_dir.join("control.log");
                    let what = match part.complaint() {
                        Some(complaint) => Some(complaint),
                        None => part.failed_once().then(|| format!("ended ({why}) and is started again")),
                    };
                    if let Some(what) = what {
                        context.warn(format!("the control plane {what}{said}; its log is {}", path.display())).await;
                    }
                }
            },
            () = answers(&context.config), if awaits => {
                let _ = up.send(true);
                context.dialler.tell(Event::ControlUp).await;
            }
        }
    }
}

/// Its last line, where that is an error.
fn last_words(log: &Log) -> String {
    let (bytes, _) = log.read(log.tail(1));
    match String::from_utf8_lossy(&bytes)
        .trim()
        .strip_prefix("error: ")
    {
        Some(error) => format!(": {}", error.chars().take(400).collect::<String>()),
        None => String::new(),
    }
}

fn start(
    context: &Context,
    log: &Arc<Log>,
    files: &[(PathBuf, PathBuf)],
) -> anyhow::Result<tokio::process::Child> {
    let spec = LaunchSpec {
        argv: arguments(&context.config),
        title: Some("meltemi: control plane".into()),
        env: context.base_env.clone().into_iter().collect(),
        files: files.to_vec(),
        ..LaunchSpec::default()
    };
    child::spawn(&spec, "control plane", Output::Log(Arc::clone(log)))
}

/// Command line of the control plane.
fn arguments(config: &NodeConfig) -> Vec<String> {
    let mut argv = vec![String::new(), "control".to_owned()];
    let mut flag = |name: &str, value: String| argv.extend([format!("--{name}"), value]);
    let path = |path: PathBuf| path.display().to_string();

    flag("address", ROUTER.to_string());
    flag("run-dir", path(config.run_dir.clone()));
    flag("state-dir", path(config.state_dir.clone()));
    flag("token-key", path(config.run_dir.join("token-public.pem")));
    flag("applied", path(config.applied_dir()));
    for dir in &config.dirs {
        flag("dir", path(dir.clone()));
    }
    flag("dir", path(config.objects_dir()));
    flag("dir", path(config.pods_dir()));
    argv.extend(config.control_args.iter().cloned());

    argv
}

/// Waits for the root certificate and for the socket to answer.
async fn answers(config: &NodeConfig) {
    loop {
        let root = config.run_dir.join("root-cert.pem").exists();
        if root
            && tokio::net::UnixStream::connect(config.run_dir.join("control.sock"))
                .await
                .is_ok()
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
