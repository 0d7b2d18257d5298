//! The entry point of the supervisor: checks the options, locks the mesh's state folder, creates
//! the run folder, supervises the node, and removes the run folder at the end.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::Mode;

use crate::config::{APPLIED, LAST_GOOD, NodeConfig, UpOptions, run_dir, state_dir};
use crate::dialler::ServerOptions;
use crate::images::ImageMap;
use crate::launch::Folder;
use crate::limits::raise_open_files;
use crate::spec::{NO_ENVOY, ProxyChoice};
use crate::supervise::supervise;

/// Runs a mesh until Ctrl-C, SIGTERM, SIGHUP (unless ignored) or a failure. All processes and the
/// run folder are gone when this returns.
///
/// Call this from the main thread of a process without a tokio runtime: the kernel kills the node
/// when the thread that started it ends.
///
/// # Errors
/// When the mesh cannot start (the message names what is missing and the remedy), or no node stays
/// up.
pub fn up(options: UpOptions) -> anyhow::Result<()> {
    let UpOptions {
        name,
        dirs,
        embedded,
        images,
        image_files,
        run_dir: run,
        state_dir: state,
        fresh,
        publish_address,
        publish,
        publish_services,
        take_free_ports,
        dial_map,
        gateways,
        control_args,
        sidecar_args,
        proxies,
        envoy,
        mut on_event,
    } = options;

    let run = run.unwrap_or_else(|| run_dir(&name));
    let state = state.unwrap_or_else(|| state_dir(&name));
    let proxies = ProxyChoice::parse(&proxies).map_err(anyhow::Error::msg)?;
    let envoy = find_envoy(envoy, &proxies)?;
    let dirs = absolute_dirs(&dirs)?;

    // Load each map once, so that a mistake ends the command instead of becoming a warning later.
    let image_files = image_files
        .iter()
        .map(|file| ImageMap::load(file).and_then(|_| Ok(std::path::absolute(file)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;

    // Every log, socket and key of the mesh is for its user alone.
    let users_umask = rustix::process::umask(Mode::RWXG | Mode::RWXO);
    private_dir(&state)?;
    let lock = lock(&state, &name)?;
    if fresh {
        forget(&state)?;
    }

    check_parent(&run, &name)?;

    // A supervisor that was killed together with its keeper leaves the folder behind. Holding the
    // lock proves that no other mesh uses it.
    if run.exists() {
        fs::remove_dir_all(&run)
            .with_context(|| format!("removing what an earlier run left in {}", run.display()))?;
    }

    private_dir(&run)?;
    check_run_dir(&run)?;

    // Held open until the mesh ends, so that no other folder gets the number of one of these.
    let (run_dir, state_dir) = (fs::canonicalize(&run)?, fs::canonicalize(&state)?);
    let (covered, held): (Vec<_>, Vec<_>) = [&run_dir, &state_dir]
        .into_iter()
        .map(|dir| Folder::hold(dir).with_context(|| format!("opening {}", dir.display())))
        .collect::<anyhow::Result<Vec<_>>>()?
        .into_iter()
        .unzip();

    let config = NodeConfig {
        name,
        dirs,
        images,
        image_files,
        run_dir,
        state_dir,
        covered,
        gateways,
        publish_services,
        control_args,
        sidecar_args,
        proxies,
        envoy,
        supervisor: rustix::process::getpid().as_raw_nonzero().get(),
        channel: -1,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        umask: users_umask.as_raw_mode(),
        open_files: raise_open_files(),
    };

    create_folders(&config, &embedded)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let server_options = ServerOptions {
        publish_address,
        publish,
        take_free_ports,
        map: dial_map,
    };

    let outcome = runtime.block_on(supervise(config, server_options, &mut *on_event));
    drop((runtime, held));

    // Usually the keeper has removed the folder; a keeper that was killed has not.
    let _ = fs::remove_dir_all(&run);
    if let Some(parent) = run.parent().filter(|p| p.starts_with("/tmp")) {
        let _ = fs::remove_dir(parent);
    }
    drop(lock);

    outcome
}

/// The Envoy binary: the user's choice, else `envoy` on the PATH. An error if `proxies` needs one
/// and there is none.
fn find_envoy(chosen: Option<PathBuf>, proxies: &ProxyChoice) -> anyhow::Result<Option<PathBuf>> {
    let envoy = match chosen {
        Some(path) => {
            Some(fs::canonicalize(&path).with_context(|| format!("Envoy at {}", path.display()))?)
        }
        None => on_path("envoy"),
    };

    if envoy.is_none() && proxies.names_envoy() {
        bail!("{NO_ENVOY}");
    }
    Ok(envoy)
}

/// Checks that the directories exist and makes their paths absolute. Symbolic links stay
/// unresolved: the user may point them elsewhere while the mesh runs.
fn absolute_dirs(dirs: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    dirs.iter()
        .map(|dir| {
            let named = fs::metadata(dir).and_then(|_| std::path::absolute(dir));
            named.with_context(|| format!("directory {}", dir.display()))
        })
        .collect()
}

/// Creates the folders of the mesh and writes the embedded YAML.
fn create_folders(config: &NodeConfig, embedded: &[(String, String)]) -> anyhow::Result<()> {
    for dir in [
        config.pods_dir(),
        config.objects_dir(),
        config.runs_dir(),
        config.applied_dir(),
    ] {
        private_dir(&dir)?;
    }

    for (file, text) in embedded {
        let path = config.objects_dir().join(file);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }

    Ok(())
}

fn on_path(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

fn private_dir(path: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("creating {}", path.display()))
}

/// Removes what earlier runs left of objects. Keys and addresses stay: certificates and addresses
/// that somebody noted down remain true.
fn forget(state: &Path) -> anyhow::Result<()> {
    for folder in [APPLIED, "last-good", LAST_GOOD] {
        let path = state.join(folder);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Refuses the default run folder's parent if another user has made it: anyone may create folders
/// in `/tmp`. The parent of a folder that the user chose is the user's business.
fn check_parent(run: &Path, name: &str) -> anyhow::Result<()> {
    match run.parent() {
        Some(parent) if run == run_dir(name) && parent.symlink_metadata().is_ok() => {
            check_owner(parent)
        }
        _ => Ok(()),
    }
}

fn check_owner(dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::MetadataExt as _;

    let owner = fs::symlink_metadata(dir)?.uid();
    if owner != rustix::process::geteuid().as_raw() && owner != 0 {
        bail!(
            "{} belongs to another user ({owner}); choose another folder with --run-dir",
            dir.display()
        );
    }

    Ok(())
}

/// Refuses a run folder that belongs to another user or whose path is too long for Unix sockets
/// (`sun_path` holds 107 bytes).
fn check_run_dir(run: &Path) -> anyhow::Result<()> {
    check_owner(run)?;

    if run.join("control.sock").as_os_str().len() > 107 {
        bail!(
            "{} is too long a path for Unix sockets; choose a shorter one with --run-dir",
            run.display()
        );
    }

    Ok(())
}

/// Takes the lock of the mesh's state folder and writes this process's id into it. The lock is held
/// until the returned file is closed.
fn lock(state: &Path, name: &str) -> anyhow::Result<fs::File> {
    let path = state.join("lock");
    let file = fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path);

    let mut file = file.with_context(|| format!("creating {}", path.display()))?;

    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            // The process id is for the error message below, seen by the next `meltemi up`. If it
            // cannot be written (full disk), the lock still holds.
            let _ = file
                .set_len(0)
                .and_then(|()| write!(file, "{}", std::process::id()));
            Ok(file)
        }
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let holder = fs::read_to_string(&path)
                .ok()
                .filter(|pid| pid.parse::<u32>().is_ok());
            let (who, how) = holder.map_or_else(Default::default, |pid| {
                (format!(" (process {pid})"), format!(" (`kill {pid}`)"))
            });
            bail!(
                "the mesh {name:?} is already running on this machine{who}; stop it first{how}, or give this one another name with \
                 --mesh"
            )
        }
        Err(e) => Err(e).context("locking the mesh's state folder"),
    }
}
