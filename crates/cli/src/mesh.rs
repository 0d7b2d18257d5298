//! Finds a running mesh by name, and explains to the user why it does not answer.

use std::fmt::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Error, anyhow};
use meltemi_admin_api::{Client, ClientError};
use meltemi_node::ClientError as NodeError;

/// A mesh of this machine, running or not.
#[derive(Debug, Clone)]
pub struct Mesh {
    name: String,
    run_dir: PathBuf,
}

impl Mesh {
    /// Names a mesh by `name`, or by `run_dir` if the mesh was started with `--run-dir`.
    pub fn new(name: &str, run_dir: Option<&Path>) -> Self {
        let run_dir = run_dir.map_or_else(|| meltemi_node::config::run_dir(name), Path::to_owned);
        Self {
            name: name.to_owned(),
            run_dir,
        }
    }

    /// The mesh that a command means: the one that is named, else `default` if it runs, else the
    /// only one that runs.
    pub fn find(name: Option<&str>, run_dir: Option<&Path>) -> Self {
        match (name, run_dir) {
            (Some(name), _) => Self::new(name, run_dir),
            (None, Some(_)) => Self::new(DEFAULT, run_dir),
            (None, None) => Self::new(&choose(folders()), None),
        }
    }

    /// The words of a command line that address this mesh, such as `meltemi --mesh shop`.
    pub fn command(&self) -> String {
        let mut words = "meltemi".to_owned();
        if self.name != Self::find(None, None).name {
            _ = write!(words, " --mesh {}", self.name);
        }
        if self.run_dir != meltemi_node::config::run_dir(&self.name) {
            _ = write!(words, " --run-dir {}", self.run_dir.display());
        }
        words
    }

    /// A client of the control plane.
    pub(crate) fn control(&self) -> Client {
        Client::unix(self.run_dir.join("control.sock"))
    }

    /// A client of the node.
    pub(crate) fn node(&self) -> meltemi_node::Client {
        meltemi_node::Client::new(&self.run_dir)
    }

    /// Turns an error of the control plane's client into a message: is there no mesh, or does only
    /// the control plane not answer?
    pub(crate) fn control_error(&self, error: ClientError) -> Error {
        match error {
            ClientError::Connect { .. } if is_alive(&self.run_dir) => anyhow!(
                "the control plane of mesh {:?} does not answer; its node starts it again, and traffic goes on meanwhile (its log is {})",
                self.name,
                self.run_dir.join("control.log").display()
            ),
            ClientError::Connect { .. } => self.not_running(),
            other => other.into(),
        }
    }

    /// Turns an error of the node's client into a message: is there no mesh, or was the request
    /// refused?
    pub(crate) fn node_error(&self, error: NodeError) -> Error {
        match error {
            NodeError::NotRunning { .. } => self.not_running(),
            other => other.into(),
        }
    }

    fn not_running(&self) -> Error {
        if self.run_dir.is_dir() {
            return anyhow!(
                "the mesh {:?} does not answer: its node is being started (`meltemi up` says so), or everything was killed and left {}",
                self.name,
                self.run_dir.display()
            );
        }

        let mut text = format!(
            "no mesh {:?} is running (there is no socket in {})",
            self.name,
            self.run_dir.display()
        );

        let others = running();
        match others.as_slice() {
            [] => text.push_str("; start one with `meltemi demo` or `meltemi up -f DIR`"),
            others => {
                _ = write!(
                    text,
                    "; running: {} (choose with --mesh NAME)",
                    others.join(", ")
                )
            }
        }

        Error::msg(text)
    }
}

/// Names of this user's meshes that run in the default folder.
pub(crate) fn running() -> Vec<String> {
    let alive = folders().into_iter().filter(|folder| folder.is_alive);
    alive.map(|folder| folder.mesh).collect()
}

/// Name of the mesh that `up` starts.
const DEFAULT: &str = "default";

/// A mesh's folder of sockets. One that is not alive is being started, or was killed.
struct Folder {
    mesh: String,
    is_alive: bool,
}

/// The folders of this user's meshes, by name.
fn folders() -> Vec<Folder> {
    let default_mesh = meltemi_node::config::run_dir(DEFAULT);
    let entries = default_mesh
        .parent()
        .and_then(|folder| std::fs::read_dir(folder).ok());
    let folder_of = |entry: std::fs::DirEntry| {
        Some(Folder {
            is_alive: is_alive(&entry.path()),
            mesh: entry.file_name().into_string().ok()?,
        })
    };

    let mut found: Vec<Folder> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(folder_of)
        .collect();
    found.sort_by(|a, b| a.mesh.cmp(&b.mesh));
    found
}

/// The mesh of a command that names none: `default` if it has a folder, else the only one.
///
/// `default` counts even while its node is being started anew: a command must not reach another
/// mesh by chance.
fn choose(mut folders: Vec<Folder>) -> String {
    if folders.iter().any(|folder| folder.mesh == DEFAULT) {
        return DEFAULT.to_owned();
    }
    if folders.iter().any(|folder| folder.is_alive) {
        folders.retain(|folder| folder.is_alive);
    }
    match folders.as_slice() {
        [only] => only.mesh.clone(),
        _ => DEFAULT.to_owned(),
    }
}

/// Whether a node listens in the folder. A socket file alone proves nothing: a killed mesh leaves
/// it behind.
fn is_alive(run_dir: &Path) -> bool {
    // The node's socket is SOCK_SEQPACKET. Connecting with SOCK_STREAM fails with EPROTOTYPE if a
    // process listens, and with ECONNREFUSED if none does.
    match UnixStream::connect(run_dir.join("node.sock")) {
        Ok(_) => true,
        Err(error) => error.raw_os_error() == Some(EPROTOTYPE),
    }
}

/// Linux's error number for a connect with the wrong socket type.
const EPROTOTYPE: i32 = 91;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_without_a_name_means_the_only_mesh() {
        let chosen = |folders: &[(&str, bool)]| {
            let folder = |(mesh, is_alive): &(&str, bool)| Folder {
                mesh: (*mesh).to_owned(),
                is_alive: *is_alive,
            };
            choose(folders.iter().map(folder).collect())
        };

        assert_eq!(chosen(&[]), "default");
        assert_eq!(chosen(&[("demo", true)]), "demo");
        assert_eq!(chosen(&[("demo", true), ("killed", false)]), "demo");
        assert_eq!(chosen(&[("demo", false)]), "demo", "it is being started");
        assert_eq!(chosen(&[("default", false), ("demo", true)]), "default");
        assert_eq!(chosen(&[("a", true), ("b", true)]), "default");
    }

    #[test]
    fn the_error_for_a_missing_mesh_names_the_mesh_and_its_folder() {
        let folder = std::env::temp_dir().join("meltemi-cli-nobody");
        let mesh = Mesh::new("shop", Some(&folder));
        let error = ClientError::Connect {
            path: folder.clone(),
            error: std::io::ErrorKind::NotFound.into(),
        };

        let text = mesh.control_error(error).to_string();
        assert!(
            text.starts_with("no mesh \"shop\" is running") && text.contains("meltemi-cli-nobody"),
            "{text}"
        );

        let refused = ClientError::Refused {
            status: 404,
            message: "not there".into(),
        };

        assert_eq!(mesh.control_error(refused).to_string(), "not there");
    }
}
