//! What the compilers of filters share for the life of a proxy.

use std::sync::Arc;

use meltemi_proto::Any;

use super::extension::{Extension, ExtensionFactory};
use crate::counter::Counters;
use crate::filter::rate_limit::Buckets;
use crate::finding::{Rejection, Scope};

/// Keep one: buckets stay as full as they are from one version of the configuration to the next.
#[derive(Debug, Clone, Default)]
pub struct FilterShared {
    /// Token buckets of local rate limits.
    pub buckets: Buckets,
    /// Names of what filters count.
    pub counters: Counters,
    /// Filters of optional crates.
    pub extensions: Arc<[Arc<dyn ExtensionFactory>]>,
}

impl FilterShared {
    /// The extension that a message configures; `None` if no factory knows it.
    pub fn extension(
        &self,
        message: &str,
        config: &Any,
        scope: &mut Scope,
    ) -> Option<Result<Arc<dyn Extension>, Rejection>> {
        let factory = self
            .extensions
            .iter()
            .find(|own| own.message() == message)?;
        Some(factory.compile(config, scope))
    }
}
