//! The part of Envoy's bootstrap that a proxy needs to begin. It is compiled once: the proxy starts
//! with the compiled value, and `--validate` looks at the same.

use std::sync::Arc;

use meltemi_filters::{Rejection, Scope, Warning};
use meltemi_proto::Any;
use meltemi_proto::envoy::config::bootstrap::v3 as proto;
use meltemi_proto::envoy::config::core::v3 as core;
use proto::bootstrap::{DynamicResources, StaticResources};

use crate::address::Address;
use crate::cluster::Cluster;
use crate::compiler::Compiler;
use crate::convert::not_honoured;
use crate::listener::Listener;
use crate::memo::Compiled;
use crate::tls::{SecretContent, grpc_source};

/// A compiled bootstrap. Source: Envoy `config.bootstrap.v3.Bootstrap`.
#[derive(Debug, Default)]
pub struct Bootstrap {
    /// Who the proxy is; sent to the control plane as it is.
    pub node: core::Node,
    /// The address of the admin endpoints; `None`: they are not served.
    pub admin: Option<Address>,
    /// Listeners that need no control plane.
    pub listeners: Vec<StaticResource<Listener>>,
    /// Clusters that need no control plane: the control plane's own among them.
    pub clusters: Vec<StaticResource<Cluster>>,
    /// Secrets that need no control plane.
    pub secrets: Vec<StaticSecret>,
    /// The ADS stream, if there is one.
    pub ads: Option<Ads>,
    /// Listeners come over ADS.
    pub lds: bool,
    /// Clusters come over ADS.
    pub cds: bool,
    /// The parts that have no effect, of static resources too.
    pub warnings: Vec<Warning>,
    /// The message that all of this was compiled from, for `/config_dump`.
    pub message: Any,
}

/// The ADS stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ads {
    /// The cluster of the control plane.
    pub cluster: Arc<str>,
    /// The stream speaks the delta variant, not state of the world.
    pub delta: bool,
}

/// A listener or cluster of the bootstrap.
#[derive(Debug)]
pub struct StaticResource<T> {
    /// The compiled resource.
    pub value: Arc<T>,
    /// The message that it was compiled from, for `/config_dump`.
    pub message: Any,
    /// The parts of it that have no effect.
    pub warnings: Vec<Warning>,
}

/// A secret of the bootstrap.
#[derive(Debug)]
pub struct StaticSecret {
    /// The name by which resources refer to it.
    pub name: Arc<str>,
    pub content: SecretContent,
}

impl Bootstrap {
    /// Compiles a bootstrap. The first static resource that is refused refuses it as a whole.
    pub fn compile(message: &proto::Bootstrap) -> Result<Self, Rejection> {
        let scope = &mut Scope::new();
        check_fields(message, scope)?;

        let StaticResources {
            listeners,
            clusters,
            secrets,
        } = message.static_resources.clone().unwrap_or_default();
        let compiler = Compiler::default();
        let listeners = compile_static(
            "listeners",
            &listeners,
            |listener| &listener.name,
            |listener| compiler.listener(listener),
        )?;
        let clusters = compile_static(
            "clusters",
            &clusters,
            |cluster| &cluster.name,
            |cluster| compiler.cluster(cluster),
        )?;
        let secrets = scope.within("static_resources", |scope| {
            scope.each_named(
                "secrets",
                &secrets,
                |secret| &secret.name,
                |scope, secret| {
                    let content = SecretContent::compile_scoped(secret, scope)?;
                    Ok(StaticSecret {
                        name: secret.name.as_str().into(),
                        content,
                    })
                },
            )
        })?;

        let discovery = Discovery::compile(message.dynamic_resources.as_ref(), scope)?;
        if let Some(ads) = &discovery.ads
            && !clusters
                .iter()
                .any(|cluster| cluster.value.name == ads.cluster)
        {
            return scope.refuse(format!(
                "ads_config names cluster {:?}, which is not static",
                ads.cluster
            ));
        }
        let admin = compile_admin(message.admin.as_ref(), scope)?;

        let mut warnings = std::mem::take(scope).into_warnings();
        warnings.extend(placed_warnings("listeners", &listeners, |value| {
            &value.name
        }));
        warnings.extend(placed_warnings("clusters", &clusters, |value| &value.name));

        Ok(Self {
            node: message.node.clone().unwrap_or_default(),
            admin,
            listeners,
            clusters,
            secrets,
            ads: discovery.ads,
            lds: discovery.lds,
            cds: discovery.cds,
            warnings,
            message: meltemi_proto::pack(message),
        })
    }
}

/// Warns of the fields that have no effect here.
fn check_fields(message: &proto::Bootstrap, scope: &mut Scope) -> Result<(), Rejection> {
    #[expect(deprecated, reason = "older fields are warned of like the newer ones")]
    let proto::Bootstrap {
        cluster_manager,
        hds_config,
        flags_path,
        stats_sinks,
        stats_config,
        watchdog,
        watchdogs,
        tracing,
        layered_runtime,
        overload_manager,
        enable_dispatcher_stats,
        header_prefix,
        stats_server_version_override,
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
        bootstrap_extensions,
        fatal_actions,
        config_sources,
        default_config_source,
        default_socket_interface,
        inline_headers,
        perf_tracing_file_path,
        default_regex_engine,
        xds_delegate_extension,
        xds_config_tracker_extension,
        application_log_config,
        grpc_async_client_manager_config,
        memory_allocator_manager,
        enable_worker_cpu_affinity,
        stats_flush,
        stats_eviction,
        // Chooses the parameters of xdstp resources, which are not asked for.
        node_context_params: _,
        // Matters of how Envoy keeps and flushes its statistics.
        deferred_stat_options: _,
        stats_flush_interval: _,
        // Whatever names one of these is refused.
        certificate_provider_instances: _,
        // Envoy has but one.
        listener_manager: _,
        // `Bootstrap` compiles these.
        node: _,
        static_resources: _,
        dynamic_resources: _,
        admin: _,
    } = message;

    not_honoured!(
        scope,
        hds_config,
        flags_path,
        stats_sinks,
        stats_config,
        watchdog,
        watchdogs,
        tracing,
        layered_runtime,
        overload_manager,
        enable_dispatcher_stats,
        header_prefix,
        stats_server_version_override,
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
        bootstrap_extensions,
        fatal_actions,
        config_sources,
        default_config_source,
        default_socket_interface,
        inline_headers,
        perf_tracing_file_path,
        default_regex_engine,
        xds_delegate_extension,
        xds_config_tracker_extension,
        application_log_config,
        grpc_async_client_manager_config,
        memory_allocator_manager,
        enable_worker_cpu_affinity,
        stats_flush,
        stats_eviction,
    );

    if let Some(manager) = cluster_manager {
        let proto::ClusterManager {
            local_cluster_name,
            outlier_detection,
            upstream_bind_config,
            load_stats_config,
            // A matter of Envoy's memory.
            enable_deferred_cluster_creation: _,
        } = manager;
        scope.within("cluster_manager", |scope| {
            not_honoured!(
                scope,
                local_cluster_name,
                outlier_detection,
                upstream_bind_config,
                load_stats_config,
            );
        });
    }

    Ok(())
}

fn compile_admin(
    message: Option<&proto::Admin>,
    scope: &mut Scope,
) -> Result<Option<Address>, Rejection> {
    let Some(message) = message else {
        return Ok(None);
    };

    #[expect(deprecated, reason = "the older field is warned of like the newer one")]
    let proto::Admin {
        access_log,
        access_log_path,
        address,
        socket_options,
        allow_paths,
        // There is no profiler to write a profile.
        profile_path: _,
        // There is no global limit to be excepted from.
        ignore_global_conn_limit: _,
    } = message;

    scope.within("admin", |scope| {
        // Without the list every path would be open.
        if !allow_paths.is_empty() {
            return scope.refuse("allow_paths is unknown");
        }
        not_honoured!(scope, access_log, access_log_path, socket_options);

        match address {
            None => Ok(None),
            Some(address) => scope
                .within("address", |scope| Address::compile(address, scope))
                .map(Some),
        }
    })
}

/// `dynamic_resources`, compiled.
struct Discovery {
    ads: Option<Ads>,
    lds: bool,
    cds: bool,
}

impl Discovery {
    fn compile(message: Option<&DynamicResources>, scope: &mut Scope) -> Result<Self, Rejection> {
        let DynamicResources {
            lds_config,
            lds_resources_locator,
            cds_config,
            cds_resources_locator,
            ads_config,
        } = message.cloned().unwrap_or_default();

        // The resources that they name would never arrive.
        if !lds_resources_locator.is_empty() || !cds_resources_locator.is_empty() {
            return scope.refuse("dynamic_resources: xdstp locators are unknown");
        }

        let ads = match &ads_config {
            None => None,
            Some(ads) => Some(scope.within("dynamic_resources.ads_config", |scope| {
                Ads::compile(ads, scope)
            })?),
        };

        Ok(Self {
            lds: is_over_ads("lds_config", lds_config.as_ref(), ads.is_some(), scope)?,
            cds: is_over_ads("cds_config", cds_config.as_ref(), ads.is_some(), scope)?,
            ads,
        })
    }
}

fn is_over_ads(
    field: &str,
    source: Option<&core::ConfigSource>,
    has_ads: bool,
    scope: &Scope,
) -> Result<bool, Rejection> {
    use core::config_source::ConfigSourceSpecifier;

    match source.and_then(|source| source.config_source_specifier.as_ref()) {
        None => Ok(false),
        Some(ConfigSourceSpecifier::Ads(_)) if has_ads => Ok(true),
        Some(ConfigSourceSpecifier::Ads(_)) => {
            scope.refuse(format!("{field} wants ADS, but ads_config is missing"))
        }
        Some(_) => scope.refuse(format!("{field}: only ADS is known")),
    }
}

impl Ads {
    fn compile(message: &core::ApiConfigSource, scope: &Scope) -> Result<Self, Rejection> {
        match grpc_source(message) {
            Some((cluster, delta)) => Ok(Self {
                cluster: cluster.into(),
                delta,
            }),
            None => {
                scope.refuse("ADS needs an api_type of gRPC, and grpc_services with envoy_grpc")
            }
        }
    }
}

/// Compiles each resource on its own, so that its warnings stay with it.
fn compile_static<M, T>(
    field: &str,
    messages: &[M],
    name: impl Fn(&M) -> &str,
    compile: impl Fn(&M) -> Compiled<Arc<T>>,
) -> Result<Vec<StaticResource<T>>, Rejection>
where
    M: prost::Message + prost::Name,
{
    let compile_one = |(index, message): (usize, &M)| match compile(message) {
        Ok((value, warnings)) => Ok(StaticResource {
            value,
            message: meltemi_proto::pack(message),
            warnings,
        }),
        Err(rejection) => {
            let place = match name(message) {
                "" => format!("static_resources.{field}[{index}]"),
                name => format!("static_resources.{field}[{name:?}]"),
            };
            Err(Rejection {
                path: below(&place, &rejection.path),
                reason: rejection.reason,
            })
        }
    };

    messages.iter().enumerate().map(compile_one).collect()
}

/// The warnings of static resources, with their places in the bootstrap.
fn placed_warnings<'a, T>(
    field: &'a str,
    resources: &'a [StaticResource<T>],
    name: impl Fn(&T) -> &str + 'a,
) -> impl Iterator<Item = Warning> + 'a {
    resources.iter().flat_map(move |resource| {
        let place = format!("static_resources.{field}[{:?}]", name(&resource.value));
        resource.warnings.iter().map(move |warning| Warning {
            path: below(&place, &warning.path),
            reason: warning.reason.clone(),
        })
    })
}

fn below(place: &str, path: &str) -> String {
    match path {
        "" => place.to_owned(),
        path => format!("{place}.{path}"),
    }
}
