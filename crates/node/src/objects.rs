//! The node's own view of the configuration. It reads the same folders in the same order as the
//! control plane, so both see the same objects.

use std::path::Path;
use std::sync::Arc;

use meltemi_api::Object;
use meltemi_model::{BuildOptions, Kind};
use meltemi_store::{Directory, FileSource, FileSourceOptions, Store, World};
use tokio::sync::watch;

use crate::config::{LAST_GOOD, NodeConfig};
use crate::events::AppliedObject;

/// A running view. Dropping it ends its threads.
pub(crate) struct ConfigView {
    // Fields drop in order: the store ends only after its sources have ended.
    _files: FileSource,
    store: Store,
}

impl ConfigView {
    /// Starts watching the user's folders, the applied objects, and the node's own objects and
    /// pods.
    pub(crate) fn start(config: &NodeConfig) -> std::io::Result<Self> {
        let mut builder = Store::builder(BuildOptions::default());
        let sender = builder.source("files");
        let mut directories: Vec<_> = config.dirs.iter().map(Directory::of_users).collect();

        // Keep the control plane's order: of an object that is defined twice, the first wins.
        directories.push(Directory::of_users(config.applied_dir()));
        directories.push(Directory::of_programs(config.objects_dir()));
        directories.push(Directory::of_programs(config.pods_dir()));
        let remembered = config.state_dir.join(LAST_GOOD);
        let files = FileSource::start(
            FileSourceOptions::new(directories, Some(remembered)),
            sender,
        )?;

        Ok(Self {
            _files: files,
            store: builder.start()?,
        })
    }

    /// Receives the newest state of the configuration.
    pub(crate) fn worlds(&self) -> watch::Receiver<Arc<World>> {
        self.store.worlds()
    }
}

/// The objects in force that `meltemi apply` left in the mesh's state.
pub(crate) fn applied(world: &World, config: &NodeConfig) -> Vec<AppliedObject> {
    let folder = config.applied_dir();
    let is_applied = |object: &&Arc<Object>| Path::new(&*object.source.file).starts_with(&folder);
    let applied = world.tables.iter().filter(is_applied);
    applied
        .map(|object| AppliedObject {
            name: object.object_ref().to_string(),
            created: object.meta.creation.clone(),
        })
        .collect()
}

/// The objects that decide which workloads run: Namespaces and Deployments.
pub(crate) fn workload_objects(world: &World) -> Vec<&Object> {
    let kinds = [Kind::Namespace, Kind::Deployment];
    kinds
        .into_iter()
        .flat_map(|kind| world.tables.table(&kind).values())
        .map(|object| &**object)
        .collect()
}
