//! MeshConfig to the model: the ConfigMap over Istio's defaults, then the settings that it means.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use meltemi_api::mesh::{
    AccessLogEncoding, ExtensionProvider, FileAccessLog, FixedField, NormalizationType,
    OutboundTrafficMode,
};
use meltemi_api::networking::H2UpgradePolicy;
use meltemi_api::{MeshConfig, Object, Spec};
use meltemi_types::{Diagnostic, Severity, TrustDomain};
use serde_json::Value;

use super::istio::destination_rule::{lower_keepalive, lower_locality};
use super::{Findings, ext_authz, port};
use crate::{
    DefaultExportTo, FileLog, InboundRetries, LogFormat, MeshAccessLogs, MeshSettings,
    OutboundMode, PathNormalization,
};

/// The provider that follows MeshConfig's own encoding and format unless it states a format.
const BUILT_IN_LOG: &str = "envoy";

/// Reads the ConfigMap over `defaults`. Without a ConfigMap, or with one that is wrong, the
/// defaults hold.
pub(crate) fn read_mesh_config(
    config_map: Option<&Arc<Object>>,
    defaults: &MeshConfig,
    fixed: &[FixedField],
) -> (MeshConfig, Vec<Diagnostic>) {
    let Some(object) = config_map else {
        return (defaults.clone(), Vec::new());
    };
    let Spec::ConfigMap(config) = &object.spec else {
        return (defaults.clone(), Vec::new());
    };

    match config.data.get("mesh") {
        Some(text) => defaults.overlay(
            text,
            fixed,
            &object.object_ref(),
            &object.source.position("data.mesh"),
        ),
        None => {
            let mut findings = Findings::new(object);
            findings.push(
                Severity::Warning,
                "MEL0301",
                "data",
                "the mesh's ConfigMap has no key \"mesh\"",
                "write MeshConfig below data.mesh",
            );
            (defaults.clone(), findings.list)
        }
    }
}

pub(crate) fn lower_mesh_config(config: &MeshConfig) -> MeshSettings {
    let trust_domain = TrustDomain::new(&config.trust_domain).unwrap_or_default();
    let aliases = config
        .trust_domain_aliases
        .iter()
        .filter(|alias| *alias != trust_domain.as_str())
        .cloned();

    MeshSettings {
        root_namespace: config.root_namespace.clone(),
        trust_domain_aliases: aliases.collect(),
        trust_domain,
        default_export_to: DefaultExportTo {
            services: config.default_service_export_to.clone(),
            virtual_services: config.default_virtual_service_export_to.clone(),
            destination_rules: config.default_destination_rule_export_to.clone(),
        },
        outbound_port: port(config.proxy_listen_port).unwrap_or(15001),
        inbound_port: port(config.proxy_inbound_listen_port).unwrap_or(15006),
        // Envoy refuses a cluster whose connect timeout is zero.
        connect_timeout: config
            .connect_timeout
            .map(|timeout| timeout.0)
            .filter(|timeout| !timeout.is_zero())
            .unwrap_or(Duration::from_secs(10)),
        keepalive: config.tcp_keepalive.as_ref().map(lower_keepalive),
        auto_mtls: config.auto_mtls(),
        paths: lower_normalization(config.path_normalization.normalization),
        h2_upgrade: config.h2_upgrade_policy == H2UpgradePolicy::Upgrade,
        locality: config.locality_lb_setting.as_ref().map(lower_locality),
        outbound_mode: match config.outbound_traffic_policy.mode {
            OutboundTrafficMode::RegistryOnly => OutboundMode::RegistryOnly,
            OutboundTrafficMode::AllowAny => OutboundMode::AllowAny,
            OutboundTrafficMode::AllowAnyDynamicDns => OutboundMode::AllowAnyDynamicDns,
        },
        inbound_retries: lower_inbound_retries(config),
        access_logs: lower_access_logs(config),
        providers: config
            .extension_providers
            .iter()
            .map(|provider| (provider.name.clone(), ext_authz::lower_provider(provider)))
            .collect(),
    }
}

fn lower_normalization(steps: NormalizationType) -> PathNormalization {
    PathNormalization {
        normalize: steps != NormalizationType::None,
        merge_slashes: matches!(
            steps,
            NormalizationType::MergeSlashes | NormalizationType::DecodeAndMergeSlashes
        ),
        unescape_slashes: steps == NormalizationType::DecodeAndMergeSlashes,
    }
}

fn lower_inbound_retries(config: &MeshConfig) -> Option<InboundRetries> {
    let built_in = InboundRetries::default();
    let Some(written) = &config.default_inbound_http_retry_policy else {
        return Some(built_in);
    };

    // Source: Istio; an empty policy switches retries off.
    let attempts = super::positive(written.attempts)?;
    let retry_on = if written.retry_on.is_empty() {
        built_in.retry_on
    } else {
        written.retry_on.clone()
    };

    Some(InboundRetries { attempts, retry_on })
}

fn lower_access_logs(config: &MeshConfig) -> MeshAccessLogs {
    let format = lower_log_format(config);
    let path = &config.access_log_file;

    // Of two providers with one name the first counts, whatever sort it is.
    let mut seen = BTreeSet::new();
    let providers: BTreeMap<String, FileLog> = config
        .extension_providers
        .iter()
        .filter(|provider| seen.insert(&provider.name))
        .filter_map(|provider| Some((provider.name.clone(), lower_provider(provider, &format)?)))
        .collect();

    MeshAccessLogs {
        file: (!path.is_empty()).then(|| FileLog {
            path: path.clone(),
            format,
        }),
        default_providers: config
            .default_providers
            .as_ref()
            .map(|providers| providers.access_logging.clone())
            .unwrap_or_default(),
        providers,
        omits_listeners: config.disable_envoy_listener_log,
    }
}

/// accessLogEncoding and accessLogFormat.
fn lower_log_format(config: &MeshConfig) -> LogFormat {
    let text = config.access_log_format.as_str();
    match (config.access_log_encoding, text) {
        (AccessLogEncoding::Text, "") => LogFormat::DefaultText,
        (AccessLogEncoding::Text, text) => LogFormat::Text(with_newline(text)),
        (AccessLogEncoding::Json, "") => LogFormat::DefaultJson,
        // A text that is no JSON object was refused when the ConfigMap was read.
        (AccessLogEncoding::Json, text) => {
            serde_json::from_str(text).map_or(LogFormat::DefaultJson, LogFormat::Json)
        }
    }
}

/// The file log of a provider; `None` for providers of other sorts.
fn lower_provider(provider: &ExtensionProvider, mesh_format: &LogFormat) -> Option<FileLog> {
    let FileAccessLog {
        path,
        log_format,
        omit_empty_values: _,
    } = provider.envoy_file_access_log.as_ref()?;

    let written = log_format
        .as_ref()
        .map(|format| (&format.text, &format.labels));
    let format = match written {
        Some((Some(text), _)) if !text.is_empty() => LogFormat::Text(with_newline(text)),
        Some((_, Some(Value::Object(map)))) if map.is_empty() => LogFormat::DefaultJson,
        Some((_, Some(Value::Object(map)))) => LogFormat::Json(map.clone()),
        _ if provider.name == BUILT_IN_LOG => mesh_format.clone(),
        _ => LogFormat::DefaultText,
    };

    Some(FileLog {
        path: if path.is_empty() {
            "/dev/stdout".to_owned()
        } else {
            path.clone()
        },
        format,
    })
}

fn with_newline(text: &str) -> String {
    if text.ends_with('\n') {
        text.to_owned()
    } else {
        format!("{text}\n")
    }
}
