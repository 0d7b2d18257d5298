//! Files in, worlds out.

mod applied;
mod files;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use meltemi_api::{Kind, ObjectKey, Spec};
use meltemi_model::BuildOptions;
use meltemi_store::{Directory, FileSource, FileSourceOptions, Store, World};
use tokio::sync::watch;

/// A store over directories. The thread of the source ends before that of the store.
struct Running {
    worlds: watch::Receiver<Arc<World>>,
    source: FileSource,
    _store: Store,
}

impl Running {
    fn start(directories: Vec<Directory>, state: Option<&Path>) -> Self {
        Self::with(FileSourceOptions::new(
            directories,
            state.map(Path::to_owned),
        ))
    }

    fn with(options: FileSourceOptions) -> Self {
        let mut builder = Store::builder(BuildOptions::default());
        let sender = builder.source("files");
        let store = builder.start().expect("a thread");
        let source = FileSource::start(options, sender).expect("a thread");

        Self {
            worlds: store.worlds(),
            source,
            _store: store,
        }
    }

    /// Waits for a world of which `wanted` is true.
    async fn wait(&mut self, wanted: impl FnMut(&Arc<World>) -> bool) -> Arc<World> {
        let found =
            tokio::time::timeout(Duration::from_secs(20), self.worlds.wait_for(wanted)).await;
        match found.map(|world| world.expect("the store runs").clone()) {
            Ok(world) => world,
            Err(_) => panic!("never came; last: {:?}", self.worlds.borrow().diagnostics),
        }
    }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(Kind::VirtualService, "default", name)
}

/// A VirtualService whose timeout tells versions apart.
fn virtual_service(name: &str, timeout: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: {name}\nspec:\n  hosts: [{name}]\n  http:\n  \
         - timeout: {timeout}\n    route: [{{destination: {{host: {name}}}}}]\n"
    )
}

/// The timeout in force, in seconds.
fn timeout(world: &World, name: &str) -> Option<u64> {
    let object = world.tables.get(&key(name))?;
    let Spec::VirtualService(spec) = &object.spec else {
        return None;
    };
    spec.http[0].timeout.map(|timeout| timeout.as_secs())
}

fn has(world: &World, code: &str, name: &str) -> bool {
    world
        .diagnostics
        .iter()
        .any(|finding| finding.code == code && finding.object.name == name)
}
