//! Starts the control plane as a program in the router's network namespace and restarts it when it
//! ends.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::child::{self, ProgramIo};
use crate::config::NodeConfig;
use crate::context::Context;
use crate::etc_files;
use crate::events::Event;
use crate::launch::LaunchSpec;
use crate::log::Log;
use crate::network::ROUTER;
use crate::supervised::{ProgramEvent, SupervisedProgram};

/// Runs the control plane for ever, with back-off between restarts. Sets `is_up` to true the first
/// time that it answers: from then on proxies can request certificates.
pub(crate) async fn keep_running(context: Arc<Context>, is_up: watch::Sender<bool>) {
    let log = Log::new(&context.config.run_dir.join("control.log"));
    let folder = context.config.run_dir.join("workloads").join("control");
    let files =
        etc_files::write(&folder, "istio-system", "istiod", ROUTER, ROUTER).unwrap_or_default();
    let mut program = SupervisedProgram::default();
    program.start_now();

    loop {
        let awaits_answer = program.is_running() && !*is_up.borrow();
        tokio::select! {
            event = program.next() => match event {
            ProgramEvent::StartDue => match start(&context, &log, &files) {
            Ok(child) => program.started(child),
            Err(error) => program.failed(format!("{error:#}")),
                },
                ProgramEvent::Exited(status) => {
                    let why = program.ended(status).to_owned();
                    let last_error = last_error(&log);
                    log.write(format!("meltemi: control plane ended: {why}\n").as_bytes());

                    // Warn at the first failure and when a crash loop begins, not at every restart.
                    let warning = program
                    .take_crash_loop_message()
                    .or_else(|| program.has_failed_once().then(|| format!("ended ({why}) and is started again")));
                    if let Some(warning) = warning {
                    let path = context.config.run_dir.join("control.log");
                    context
                    .warn(format!("the control plane {warning}{last_error}; its log is {}", path.display()))
                    .await;
                    }
                }
            },
            () = wait_until_answering(&context.config), if awaits_answer => {
            let _ = is_up.send(true);
                context.dialler.show(Event::ControlUp).await;
            }
        }
    }
}

/// The last line of the log as `: TEXT` if that line is an error, else empty. At most 400
/// characters.
fn last_error(log: &Log) -> String {
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
    child::spawn(&spec, "control plane", ProgramIo::Log(Arc::clone(log)))
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

/// Waits until the root certificate exists and the control plane's socket accepts a connection.
async fn wait_until_answering(config: &NodeConfig) {
    loop {
        let has_root = config.run_dir.join("root-cert.pem").exists();
        if has_root
            && tokio::net::UnixStream::connect(config.run_dir.join("control.sock"))
                .await
                .is_ok()
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
