//! The node's own view of the configuration: the same folders and the same model as the control
//! plane's.

use std::sync::Arc;

use meltemi_api::Object;
use meltemi_model::{BuildOptions, Kind};
use meltemi_store::{Directory, FileSource, FileSourceOptions, Store, World};
use tokio::sync::watch;

use crate::config::NodeConfig;

/// A running view; dropping it ends its threads.
pub(crate) struct View {
    // The source first: the store ends once its sources have.
    _files: FileSource,
    store: Store,
}

impl View {
    /// Follows the user's folders, the applied objects and what runs. Findings are the control
    /// plane's to tell.
    pub(crate) fn start(config: &NodeConfig) -> std::io::Result<Self> {
        let mut builder = Store::builder(BuildOptions::default());
        let sender = builder.source("files");
        let mut directories: Vec<_> = config.dirs.iter().map(Directory::of_users).collect();

        // In the control plane's order: of an object that is written twice the first counts.
        directories.push(Directory::of_users(config.applied_dir()));
        directories.push(Directory::of_programs(config.objects_dir()));
        directories.push(Directory::of_programs(config.pods_dir()));
        let remembered = config.state_dir.join("node-last-good");
        let files = FileSource::start(
            FileSourceOptions::new(directories, Some(remembered)),
            sender,
        )?;

        Ok(Self {
            _files: files,
            store: builder.start()?,
        })
    }

    /// The worlds, one after the other.
    pub(crate) fn worlds(&self) -> watch::Receiver<Arc<World>> {
        self.store.worlds()
    }
}

/// The objects that workloads are made of.
pub(crate) fn of_workloads(world: &World) -> Vec<&Object> {
    let kinds = [Kind::Namespace, Kind::Deployment];
    kinds
        .into_iter()
        .flat_map(|kind| world.tables.table(&kind).values())
        .map(|object| &**object)
        .collect()
}
