//! Candidates for shell completion: names from the running mesh that the command line so far
//! selects by `--mesh`, `--run-dir` and `--namespace`.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use clap_complete::engine::{CompletionCandidate, ValueCompleter};
use meltemi_admin_api::ObjectSelector;

use crate::mesh::{Mesh, running};
use crate::names;

/// Limit for asking the mesh, since the user waits at a prompt.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The command line so far, which the shell's script passes after `--`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Typed {
    mesh: Option<String>,
    run_dir: Option<PathBuf>,
    namespace: Option<String>,
    all_namespaces: bool,
    /// The subcommand and its positional arguments.
    words: Vec<String>,
}

impl Typed {
    fn parse(arguments: impl Iterator<Item = String>) -> Self {
        let mut typed = Self::default();
        let mut rest = arguments.skip_while(|word| word != "--").skip(2);
        while let Some(word) = rest.next() {
            let (flag, inline) = match word.split_once('=') {
                Some((flag, value)) if flag.starts_with("--") => {
                    (flag.to_owned(), Some(value.to_owned()))
                }
                _ => (word.clone(), None),
            };

            match flag.as_str() {
                "--mesh" => typed.mesh = inline.or_else(|| rest.next()),
                "--run-dir" => typed.run_dir = inline.or_else(|| rest.next()).map(PathBuf::from),
                "-n" | "--namespace" => typed.namespace = inline.or_else(|| rest.next()),
                "-A" | "--all-namespaces" => typed.all_namespaces = true,
                "-o" | "--output" | "-c" | "--container" | "-l" | "--selector" | "--tail"
                    if inline.is_none() =>
                {
                    rest.next();
                }
                "--" => break,
                _ if flag.starts_with('-') && flag != "-" => {}
                _ => typed.words.push(word),
            }
        }

        typed
    }

    fn from_process_arguments() -> Self {
        Self::parse(std::env::args_os().map(|word| word.to_string_lossy().into_owned()))
    }

    fn mesh(&self) -> Mesh {
        let variable = |name| {
            std::env::var(name)
                .ok()
                .filter(|value: &String| !value.is_empty())
        };

        let name = self.mesh.clone().or_else(|| variable("MELTEMI_MESH"));

        let run_dir = self
            .run_dir
            .clone()
            .or_else(|| variable("MELTEMI_RUN_DIR").map(PathBuf::from));

        Mesh::find(name.as_deref(), run_dir.as_deref())
    }

    fn namespace(&self) -> &str {
        match (&self.namespace, self.all_namespaces) {
            (_, true) => "",
            (Some(namespace), false) => namespace,
            (None, false) => "default",
        }
    }
}

/// Runs a query against the mesh; the default value if there is no mesh or no answer within
/// [`TIMEOUT`].
fn query<T: Default>(future: impl Future<Output = T>) -> T {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    else {
        return T::default();
    };

    runtime.block_on(async {
        tokio::time::timeout(TIMEOUT, future)
            .await
            .unwrap_or_default()
    })
}

/// The names that begin with the word being typed, sorted.
fn beginning(current: &OsStr, names: impl IntoIterator<Item = String>) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else {
        return Vec::new();
    };
    let sorted: BTreeSet<String> = names
        .into_iter()
        .filter(|name| name.starts_with(current))
        .collect();
    sorted.into_iter().map(CompletionCandidate::new).collect()
}

/// Names of running meshes.
pub(crate) fn meshes(current: &OsStr) -> Vec<CompletionCandidate> {
    beginning(current, running())
}

/// Names of Deployments and replicas in the namespace.
pub(crate) fn workloads(current: &OsStr) -> Vec<CompletionCandidate> {
    let typed = Typed::from_process_arguments();
    let all = query(async { typed.mesh().node().list().await.unwrap_or_default() });

    // `status` shows all namespaces unless one is given.
    let is_status = typed
        .words
        .first()
        .is_some_and(|word| matches!(word.as_str(), "status" | "ps" | "proxy-status"));

    let all_namespaces = is_status && typed.namespace.is_none();
    let matching = all
        .into_iter()
        .filter(|workload| all_namespaces || workload.key.namespace == typed.namespace());

    beginning(
        current,
        matching.flat_map(|workload| [workload.workload, workload.key.pod]),
    )
}

/// Names of a workload's containers: `app` or the application's container name, `proxy` or
/// `istio-proxy`.
pub(crate) fn containers(current: &OsStr) -> Vec<CompletionCandidate> {
    let typed = Typed::from_process_arguments();
    let all = query(async { typed.mesh().node().list().await.unwrap_or_default() });
    let name = typed
        .words
        .get(1)
        .map(|word| names::workload(word).to_owned())
        .unwrap_or_default();

    let has_name = |one: &meltemi_node::api::WorkloadStatus| {
        one.key.namespace == typed.namespace() && (one.workload == name || one.key.pod == name)
    };
    let own = all
        .into_iter()
        .find(has_name)
        .map(|workload| workload.container);

    let known = ["app", "proxy", "istio-proxy"].map(str::to_owned);

    beginning(
        current,
        known.into_iter().chain(own).filter(|word| !word.is_empty()),
    )
}

/// Namespaces of running workloads and of configured objects.
pub(crate) fn namespaces(current: &OsStr) -> Vec<CompletionCandidate> {
    let mesh = Typed::from_process_arguments().mesh();
    let (running, configured) = query(async {
        let configured = mesh
            .control()
            .objects(&ObjectSelector::default())
            .await
            .unwrap_or_default();
        (mesh.node().list().await.unwrap_or_default(), configured)
    });

    let configured =
        configured
            .items
            .into_iter()
            .map(|item| match item.object.qualified_kind().as_str() {
                "Namespace" => item.object.name,
                _ => item.object.namespace,
            });

    let all = running
        .into_iter()
        .map(|workload| workload.key.namespace)
        .chain(configured);

    beginning(current, all.filter(|namespace| !namespace.is_empty()))
}

/// Completes kinds first, then names of objects of that kind.
#[derive(Debug, Clone)]
pub(crate) struct Objects;

impl ValueCompleter for Objects {
    fn complete(&self, current: &OsStr) -> Vec<CompletionCandidate> {
        let typed = Typed::from_process_arguments();
        let text = current.to_str().unwrap_or_default();

        // The word being typed is among the words: leave it out.
        let before: Vec<&String> = typed
            .words
            .iter()
            .skip(1)
            .filter(|word| *word != text)
            .collect();

        let (kind, prefix) = match (text.split_once('/'), before.first()) {
            (Some((kind, _)), _) => (kind.to_owned(), format!("{kind}/")),
            (None, Some(kind)) if !kind.contains('/') => ((*kind).clone(), String::new()),
            (None, _) => {
                let kinds = meltemi_api::Kind::all()
                    .map(|kind| kind.plural())
                    .chain(["all".to_owned()]);
                return beginning(current, kinds);
            }
        };

        let selector = ObjectSelector {
            kind,
            ns: typed.namespace().to_owned(),
            name: String::new(),
        };

        let list = query(async {
            typed
                .mesh()
                .control()
                .objects(&selector)
                .await
                .unwrap_or_default()
        });

        beginning(
            current,
            list.items
                .into_iter()
                .map(|item| format!("{prefix}{}", item.object.name)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Typed {
        Typed::parse(line.split(' ').map(str::to_owned))
    }

    #[test]
    fn mesh_namespace_and_words_are_found_on_the_command_line() {
        let typed = parse("/usr/bin/meltemi -- meltemi --mesh shop logs -n web --tail 5 rev");
        assert_eq!(
            (typed.mesh.as_deref(), typed.namespace()),
            (Some("shop"), "web")
        );

        assert_eq!(typed.words, ["logs", "rev"]);
        let typed = parse("meltemi -- meltemi get --namespace=web -A vs -o yaml reviews");
        assert_eq!(
            (typed.namespace(), typed.words.as_slice()),
            ("", &["get".into(), "vs".into(), "reviews".into()][..])
        );

        assert_eq!(parse("meltemi -- meltemi exec a -- b").words, ["exec", "a"]);
        assert_eq!(parse("meltemi status").words, Vec::<String>::new());
    }
}
