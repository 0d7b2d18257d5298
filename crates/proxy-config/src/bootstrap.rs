//! The part of Envoy's bootstrap that a proxy needs to begin.

use std::sync::Arc;

use meltemi_filters::{Rejection, Scope, Warning};
use meltemi_proto::envoy::config::bootstrap::v3 as proto;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::extensions::transport_sockets::tls::v3::{Secret, secret::Type};

use crate::address::Address;
use crate::cluster::Cluster;
use crate::compiler::Compiler;
use crate::listener::Listener;
use crate::tls::compile::{data_source, grpc_cluster};
use crate::tls::{DataSource, Validation};

/// A compiled bootstrap. Source: Envoy `config.bootstrap.v3.Bootstrap`.
#[derive(Debug)]
pub struct Bootstrap {
    /// Who we are; sent to the control plane as it is.
    pub node: core::Node,
    /// Where the admin endpoints are served.
    pub admin: Option<Address>,
    /// Listeners that need no control plane.
    pub listeners: Vec<Arc<Listener>>,
    /// Clusters that need no control plane: the control plane's own among them.
    pub clusters: Vec<Arc<Cluster>>,
    /// Secrets that need no control plane.
    pub secrets: Vec<StaticSecret>,
    /// The ADS stream, if there is one.
    pub ads: Option<Ads>,
    /// Listeners come over ADS.
    pub lds: bool,
    /// Clusters come over ADS.
    pub cds: bool,
    /// What was left out.
    pub warnings: Vec<Warning>,
}

/// The ADS stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ads {
    /// The cluster of the control plane.
    pub cluster: Arc<str>,
    /// Delta, not state of the world.
    pub delta: bool,
}

/// A secret in the bootstrap.
#[derive(Debug)]
pub struct StaticSecret {
    /// Its name.
    pub name: Arc<str>,
    /// What it holds.
    pub content: SecretContent,
}

/// What a secret holds, from the bootstrap or over SDS.
#[derive(Debug)]
pub enum SecretContent {
    /// A certificate and its key.
    Certificate {
        /// The chain in PEM, leaf first.
        chain: DataSource,
        /// The private key in PEM.
        key: DataSource,
    },
    /// Trust roots and what else is verified.
    Validation(Box<Validation>),
    /// Anything else, by name.
    Generic(Option<DataSource>),
}

impl SecretContent {
    /// Compiles Envoy's message.
    pub fn compile(message: &Secret) -> Result<(Self, Vec<Warning>), Rejection> {
        let mut scope = Scope::new();
        let content = Self::compile_scoped(message, &mut scope)?;
        Ok((content, scope.into_warnings()))
    }

    fn compile_scoped(message: &Secret, scope: &mut Scope) -> Result<Self, Rejection> {
        match scope.required("type", message.r#type.as_ref())? {
            Type::TlsCertificate(certificate) => {
                if certificate.private_key_provider.is_some()
                    || certificate.pkcs12.is_some()
                    || certificate.password.is_some()
                {
                    return scope
                        .refuse("private key providers, PKCS #12 and encrypted keys are unknown");
                }

                let chain =
                    scope.required("certificate_chain", certificate.certificate_chain.as_ref())?;
                let key = scope.required("private_key", certificate.private_key.as_ref())?;
                Ok(Self::Certificate {
                    chain: data_source(chain, scope)?,
                    key: data_source(key, scope)?,
                })
            }
            Type::ValidationContext(context) => Ok(Self::Validation(Box::new(
                Validation::compile(context, scope)?,
            ))),
            Type::GenericSecret(generic) => Ok(Self::Generic(match &generic.secret {
                Some(source) => Some(data_source(source, scope)?),
                None => None,
            })),
            Type::SessionTicketKeys(_) => scope.refuse("session ticket keys are the proxy's own"),
        }
    }
}

impl Bootstrap {
    /// Compiles Envoy's message.
    pub fn compile(message: &proto::Bootstrap, compiler: &Compiler) -> Result<Self, Rejection> {
        let scope = &mut Scope::new();
        let resources = message.static_resources.clone().unwrap_or_default();
        let (listeners, clusters, secrets) = scope.within("static_resources", |scope| {
            let listeners = scope.each_named(
                "listeners",
                &resources.listeners,
                |listener| &listener.name,
                |scope, listener| Listener::compile(listener, compiler, scope).map(Arc::new),
            )?;

            let clusters = scope.each_named(
                "clusters",
                &resources.clusters,
                |cluster| &cluster.name,
                |scope, cluster| Cluster::compile(cluster, scope).map(Arc::new),
            )?;

            let secrets = scope.each_named(
                "secrets",
                &resources.secrets,
                |secret| &secret.name,
                |scope, secret| {
                    let content = SecretContent::compile_scoped(secret, scope)?;
                    Ok(StaticSecret {
                        name: secret.name.as_str().into(),
                        content,
                    })
                },
            )?;

            Ok::<_, Rejection>((listeners, clusters, secrets))
        })?;

        let dynamic = message.dynamic_resources.clone().unwrap_or_default();
        let ads = match &dynamic.ads_config {
            None => None,
            Some(ads) => Some(scope.within("dynamic_resources.ads_config", |scope| {
                compile_ads(ads, scope)
            })?),
        };

        let over_ads =
            |field: &str, source: Option<&core::ConfigSource>| -> Result<bool, Rejection> {
                use core::config_source::ConfigSourceSpecifier;
                match source.and_then(|source| source.config_source_specifier.as_ref()) {
                    None => Ok(false),
                    Some(ConfigSourceSpecifier::Ads(_)) if ads.is_some() => Ok(true),
                    Some(ConfigSourceSpecifier::Ads(_)) => {
                        scope.refuse(format!("{field} wants ADS, but ads_config is missing"))
                    }
                    Some(_) => scope.refuse(format!("{field}: only ADS is known")),
                }
            };

        let lds = over_ads("lds_config", dynamic.lds_config.as_ref())?;
        let cds = over_ads("cds_config", dynamic.cds_config.as_ref())?;
        if let Some(ads) = &ads
            && !clusters.iter().any(|cluster| cluster.name == ads.cluster)
        {
            return scope.refuse(format!(
                "ads_config names cluster {:?}, which is not static",
                ads.cluster
            ));
        }

        let bind = message
            .cluster_manager
            .as_ref()
            .and_then(|manager| manager.upstream_bind_config.as_ref());

        scope.unsupported("cluster_manager.upstream_bind_config", bind.is_some());

        Ok(Self {
            node: message.node.clone().unwrap_or_default(),
            admin: match message
                .admin
                .as_ref()
                .and_then(|admin| admin.address.as_ref())
            {
                None => None,
                Some(address) => {
                    Some(scope.within("admin.address", |scope| Address::compile(address, scope))?)
                }
            },
            listeners,
            clusters,
            secrets,
            ads,
            lds,
            cds,
            warnings: std::mem::take(scope).into_warnings(),
        })
    }
}

fn compile_ads(message: &core::ApiConfigSource, scope: &Scope) -> Result<Ads, Rejection> {
    use core::api_config_source::ApiType;

    let delta = match ApiType::try_from(message.api_type) {
        Ok(ApiType::DeltaGrpc | ApiType::AggregatedDeltaGrpc) => true,
        Ok(ApiType::Grpc | ApiType::AggregatedGrpc) => false,
        _ => return scope.refuse("only gRPC is known"),
    };

    match grpc_cluster(message) {
        Some(cluster) => Ok(Ads {
            cluster: cluster.into(),
            delta,
        }),
        None => scope.refuse("ADS needs grpc_services with envoy_grpc"),
    }
}
