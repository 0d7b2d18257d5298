//! The one entry: a snapshot and a proxy in, resources in push order out.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;
use std::sync::Arc;

use meltemi_model::Snapshot;
use meltemi_proto::{Any, type_url};
use meltemi_types::Diagnostic;

use crate::cluster::build_cluster;
use crate::endpoint::build_endpoints;
use crate::listener::build_listener;
use crate::memo::{Memo, Resource};
use crate::name_table::{NAME, build_name_table};
use crate::plan::{Plan, plan};
use crate::proxy::Proxy;
use crate::route::build_route_table;
use crate::secret::build_secret;

/// What a proxy is to be sent.
#[derive(Debug, Clone, Default)]
pub struct Translated {
    /// By type URL; every type that is served has an entry, so that an empty one says "none". Push
    /// order is [`type_url::PUSH_ORDER`]; within a type the order is stable and names are unique.
    pub resources: BTreeMap<&'static str, Vec<Arc<Resource>>>,
    /// Diagnostics for resources that were left out.
    pub diagnostics: Vec<Diagnostic>,
}

impl Translated {
    /// The resources of one type; empty if none.
    pub fn of(&self, type_url: &str) -> &[Arc<Resource>] {
        self.resources
            .get(type_url)
            .map(Vec::as_slice)
            .unwrap_or_default()
    }
}

/// Translates the snapshot for one proxy. Resources whose input the memo has seen are not built
/// again.
pub fn translate(snapshot: &Snapshot, proxy: &Proxy, memo: &Memo) -> Translated {
    let Plan {
        clusters,
        endpoints,
        listeners,
        routes,
        names,
        secrets,
        mut diagnostics,
    } = plan(snapshot, proxy);

    let mut resources = BTreeMap::new();
    let names: Vec<_> = names.into_iter().collect();
    resources.insert(
        type_url::CLUSTER,
        built(
            memo,
            type_url::CLUSTER,
            &clusters,
            |input| &input.name,
            build_cluster,
        ),
    );

    resources.insert(
        type_url::ENDPOINT,
        built(
            memo,
            type_url::ENDPOINT,
            &endpoints,
            |input| &input.cluster,
            build_endpoints,
        ),
    );

    resources.insert(
        type_url::LISTENER,
        built(
            memo,
            type_url::LISTENER,
            &listeners,
            |input| &input.name,
            build_listener,
        ),
    );

    resources.insert(
        type_url::ROUTE,
        built(
            memo,
            type_url::ROUTE,
            &routes,
            |input| &input.name,
            |input| build_route_table(input),
        ),
    );

    resources.insert(
        type_url::SECRET,
        built(
            memo,
            type_url::SECRET,
            &secrets,
            |input| input.name(),
            build_secret,
        ),
    );

    resources.insert(
        type_url::NAME_TABLE,
        built(
            memo,
            type_url::NAME_TABLE,
            &names,
            |_| NAME,
            build_name_table,
        ),
    );

    diagnostics.sort();
    diagnostics.dedup();

    Translated {
        resources,
        diagnostics,
    }
}

/// Builds each input once; of two with one name the first stays, since a client takes no two.
fn built<I: Hash>(
    memo: &Memo,
    type_url: &'static str,
    inputs: &[I],
    name: impl Fn(&I) -> &str,
    build: impl Fn(&I) -> Any,
) -> Vec<Arc<Resource>> {
    let mut seen = BTreeSet::new();
    inputs
        .iter()
        .filter(|input| seen.insert(name(input).to_owned()))
        .map(|input| memo.resource(type_url, name(input), input, &build))
        .collect()
}
