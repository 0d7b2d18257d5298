//! How a written MeshConfig meets the defaults. Source: Istio `pkg/config/mesh`, `ApplyMeshConfig`.

use std::fmt::Display;

use meltemi_types::{Diagnostic, ObjectRef, Position, log_format_fault};
use serde_json::Value;

use super::{AccessLogEncoding, ExtensionProvider, MeshConfig};
use crate::object::attach;
use crate::positions::Positions;
use crate::schema::{Field, Report, UnknownFields};
use crate::validate::provider::check_provider;
use crate::validate::virtual_service::check_retries;
use crate::{Object, Spec, yaml};

/// Name of the ConfigMap, in the root namespace.
pub const MESH_CONFIG_NAME: &str = "istio";
/// Key in it.
pub const MESH_CONFIG_KEY: &str = "mesh";

impl MeshConfig {
    /// Reads the text of key `mesh` over the defaults. Faults are diagnostics at `position` (the
    /// ConfigMap's key); what is faulty stays as in `self`.
    ///
    /// A field of the top level replaces the default's, except that `defaultConfig` is merged field
    /// by field (and its `proxyMetadata` key by key), `extensionProviders` by name,
    /// `trustDomainAliases` and `defaultProviders` as sets.
    ///
    /// The `fixed` fields stay as in `self` whatever is written: what they say is built into the
    /// mesh that runs.
    #[must_use]
    pub fn overlay(
        &self,
        text: &str,
        fixed: &[FixedField],
        object: &ObjectRef,
        position: &Position,
    ) -> (Self, Vec<Diagnostic>) {
        let mut report = Report::new("", UnknownFields::Warn);
        let mut merged = self.clone();
        let mut positions = Positions::default();

        match yaml::parse_one(text) {
            Ok(document) => {
                if !document.value.is_null() {
                    merged.apply(&document.value, &mut report);
                }
                positions = document.positions;
            }
            Err(fault) => {
                positions.line = fault.line;
                report.error(
                    "MEL0101",
                    fault.message,
                    "correct the YAML under the key mesh",
                );
            }
        }

        let refused = report.has_errors();
        if !refused {
            fixed
                .iter()
                .for_each(|field| field.hold(&mut merged, self, &mut report));
        }

        let place = |mut finding: crate::schema::Finding| {
            let position = place_in_file(position, &positions, &finding.field);
            finding.field = match finding.field.as_str() {
                "" => format!("data.{MESH_CONFIG_KEY}"),
                field => format!("data.{MESH_CONFIG_KEY}: {field}"),
            };

            attach(finding, object.clone(), position)
        };

        let diagnostics = report.into_findings().into_iter().map(place).collect();

        (if refused { self.clone() } else { merged }, diagnostics)
    }

    /// Istio's defaults with `text` over them; see [`MeshConfig::overlay`].
    #[must_use]
    pub fn from_yaml(
        text: &str,
        object: &ObjectRef,
        position: &Position,
    ) -> (Self, Vec<Diagnostic>) {
        Self::istio_default().overlay(text, &[], object, position)
    }

    fn apply(&mut self, value: &Value, report: &mut Report) {
        let Some(map) = report.object(value) else {
            return;
        };
        let previous = self.clone();

        // What a message or map of the top level held before must not shine through, so it starts
        // empty.
        let blank = Self::default();
        for key in map.keys() {
            match key.as_str() {
                "outboundTrafficPolicy" => {
                    self.outbound_traffic_policy = blank.outbound_traffic_policy.clone()
                }
                "inboundTrafficPolicy" => {
                    self.inbound_traffic_policy = blank.inbound_traffic_policy.clone()
                }
                "localityLbSetting" => self.locality_lb_setting = None,
                "tcpKeepalive" => self.tcp_keepalive = None,
                "pathNormalization" => self.path_normalization = blank.path_normalization.clone(),
                "defaultHttpRetryPolicy" => self.default_http_retry_policy = None,
                "defaultInboundHttpRetryPolicy" => self.default_inbound_http_retry_policy = None,
                "meshMTLS" => self.mesh_mtls = None,
                "tlsDefaults" => self.tls_defaults = None,
                "defaultProviders" => self.default_providers = None,
                _ => {}
            }
        }

        self.read(value, report);

        // Checked before the merge: positions count the items that the text has.
        if map.contains_key("extensionProviders") {
            report.each(
                "extensionProviders",
                &self.extension_providers,
                check_provider,
            );
        }

        self.extension_providers =
            merge_providers(previous.extension_providers, &self.extension_providers);
        merge_set(
            &mut self.trust_domain_aliases,
            &previous.trust_domain_aliases,
        );

        if let (Some(merged), Some(before)) =
            (&mut self.default_providers, &previous.default_providers)
        {
            merge_set(&mut merged.tracing, &before.tracing);
            merge_set(&mut merged.metrics, &before.metrics);
            merge_set(&mut merged.access_logging, &before.access_logging);
        }

        if self.access_log_encoding == AccessLogEncoding::Json && !self.access_log_format.is_empty()
        {
            let parsed =
                serde_json::from_str::<serde_json::Map<String, Value>>(&self.access_log_format);
            if let Err(error) = parsed {
                report.field("accessLogFormat", |report| {
                    let message =
                        format!("not a JSON object, as accessLogEncoding: JSON wants it: {error}");
                    report.error(
                        "MEL0210",
                        message,
                        "write an object; operators stand in strings: {\"took\": \"%DURATION%\"}",
                    );
                });
            }
        }

        check(self, report);
    }
}

/// The place of a field of MeshConfig in the file of its ConfigMap. `key` is the place of the key
/// `mesh`.
fn place_in_file(key: &Position, positions: &Positions, field: &str) -> Position {
    let mut place = key.clone();

    // The key's value is a block scalar, so its first line is the next one of the file; its
    // indentation is unknown.
    if place.line > 0 {
        place.line += positions.find(field).0;
        place.column = 0;
    }

    place
}

/// The path and the place, in the mesh's ConfigMap, of a field of an extension provider. `field`
/// begins at the provider, for example `envoyExtAuthzHttp.service`. `None` if the text does not
/// declare the provider, because it is one of the defaults.
pub fn provider_field(
    config_map: &Object,
    provider: &str,
    field: &str,
) -> Option<(String, Position)> {
    let Spec::ConfigMap(map) = &config_map.spec else {
        return None;
    };
    let document = yaml::parse_one(map.data.get(MESH_CONFIG_KEY)?).ok()?;
    let providers = document.value.get("extensionProviders")?.as_array()?;

    // The last provider of a name counts; see `merge_providers`.
    let is_named = |item: &Value| item.get("name").and_then(Value::as_str) == Some(provider);
    let index = providers.iter().rposition(is_named)?;

    let field = format!("extensionProviders[{index}].{field}");
    let key = config_map
        .source
        .position(&format!("data.{MESH_CONFIG_KEY}"));
    let place = place_in_file(&key, &document.positions, &field);
    Some((format!("data.{MESH_CONFIG_KEY}: {field}"), place))
}

/// A setting that a running mesh may be unable to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FixedField {
    /// `trustDomain`: every certificate carries it.
    TrustDomain,
    /// `proxyListenPort`: the capture rules lead there.
    ListenPort,
    /// `proxyInboundListenPort`: the capture rules lead there.
    InboundListenPort,
}

impl FixedField {
    /// Puts the value back that runs, and tells.
    fn hold(self, merged: &mut MeshConfig, runs: &MeshConfig, report: &mut Report) {
        match self {
            Self::TrustDomain => hold(
                "trustDomain",
                &mut merged.trust_domain,
                &runs.trust_domain,
                report,
            ),
            Self::ListenPort => hold(
                "proxyListenPort",
                &mut merged.proxy_listen_port,
                &runs.proxy_listen_port,
                report,
            ),
            Self::InboundListenPort => {
                let (written, runs) = (
                    &mut merged.proxy_inbound_listen_port,
                    &runs.proxy_inbound_listen_port,
                );
                hold("proxyInboundListenPort", written, runs, report);
            }
        }
    }
}

fn hold<T: Clone + PartialEq + Display>(key: &str, written: &mut T, runs: &T, report: &mut Report) {
    if written != runs {
        let message =
            format!("{written} has no effect: this mesh runs with {runs}, which cannot be changed");
        report.field(key, |report| {
            report.error(
                "MEL0313",
                message,
                format!("remove the field, or write {runs}"),
            )
        });

        written.clone_from(runs);
    }
}

/// Later providers replace earlier ones of the same name, in their place.
fn merge_providers(
    mut providers: Vec<ExtensionProvider>,
    later: &[ExtensionProvider],
) -> Vec<ExtensionProvider> {
    for provider in later {
        match providers
            .iter_mut()
            .find(|known| known.name == provider.name)
        {
            Some(known) => known.clone_from(provider),
            None => providers.push(provider.clone()),
        }
    }

    providers
}

fn merge_set(merged: &mut Vec<String>, before: &[String]) {
    for item in before {
        if !merged.contains(item) {
            merged.push(item.clone());
        }
    }
}

fn check(mesh: &MeshConfig, report: &mut Report) {
    for (key, port) in [
        ("proxyListenPort", mesh.proxy_listen_port),
        ("proxyInboundListenPort", mesh.proxy_inbound_listen_port),
    ] {
        if !(1..=65535).contains(&port) {
            report.field(key, |report| {
                report.error(
                    "MEL0201",
                    "port must be between 1-65535",
                    "write a port number",
                )
            });
        }
    }

    if let Err(error) = meltemi_types::TrustDomain::new(&mesh.trust_domain) {
        report.field("trustDomain", |report| {
            report.error("MEL0210", error.to_string(), "write a lower-case DNS name")
        });
    }

    if let Some(fault) = log_format_fault(&mesh.access_log_format) {
        report.field("accessLogFormat", |report| {
            report.error(
                "MEL0201",
                fault,
                "see Envoy's list of %OPERATORS%: a format that proxies refuse would keep every listener as it is",
            );
        });
    }
    check_retry_policies(mesh, report);

    if mesh.root_namespace.is_empty() {
        report.field("rootNamespace", |report| {
            report.error(
                "MEL0210",
                "the root namespace must not be empty",
                "remove the field, or name a namespace",
            );
        });
    }
}

/// The mesh's retries, by the rules of a VirtualService. Source: Istio
/// `validateMeshConfigDefaultInboundHTTPRetryPolicy`.
fn check_retry_policies(mesh: &MeshConfig, report: &mut Report) {
    report.some(
        "defaultHttpRetryPolicy",
        &mesh.default_http_retry_policy,
        check_retries,
    );
    report.some(
        "defaultInboundHttpRetryPolicy",
        &mesh.default_inbound_http_retry_policy,
        |retries, report| {
            check_retries(retries, report);
            if retries.attempts == 0 && retries.backoff.is_some() {
                report.error(
                    "MEL0202",
                    "backoff configured when attempts are set to 0 (disabled)",
                    "write attempts, or remove backoff",
                );
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::OutboundTrafficMode;

    fn read(text: &str) -> (MeshConfig, Vec<Diagnostic>) {
        MeshConfig::from_yaml(
            text,
            &ObjectRef::new("ConfigMap", "istio-system", "istio"),
            &Position::default(),
        )
    }

    #[test]
    fn nothing_written_is_istios_default() {
        let (mesh, diagnostics) = read("");
        assert_eq!(diagnostics, vec![]);
        assert_eq!(mesh, MeshConfig::istio_default());
        assert_eq!(
            mesh.default_config.discovery_address,
            "istiod.istio-system.svc:15012"
        );
    }

    #[test]
    fn the_top_level_replaces_and_the_proxys_settings_merge() {
        let (mesh, diagnostics) = read(
            "accessLogFile: /dev/stdout\naccessLogEncoding: JSON\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\n\
             localityLbSetting: {failoverPriority: [a]}\ndefaultConfig:\n  concurrency: 4\n  proxyMetadata: {A: b}\n\
             extensionProviders:\n- name: envoy\n  envoyFileAccessLog: {path: /tmp/log}\n- name: mine\n  prometheus: {}\n",
        );

        assert_eq!(diagnostics, vec![]);
        assert_eq!(mesh.access_log_encoding, AccessLogEncoding::Json);
        assert_eq!(
            mesh.outbound_traffic_policy.mode,
            OutboundTrafficMode::RegistryOnly
        );

        assert_eq!(
            mesh.locality_lb_setting
                .as_ref()
                .and_then(|locality| locality.enabled),
            None
        );

        assert_eq!(mesh.default_config.concurrency, Some(4));
        assert_eq!(mesh.default_config.status_port, 15020);
        let names: Vec<_> = mesh
            .extension_providers
            .iter()
            .map(|provider| provider.name.as_str())
            .collect();

        assert_eq!(names, ["prometheus", "stackdriver", "envoy", "mine"]);
        let log = mesh.extension_providers[2]
            .envoy_file_access_log
            .as_ref()
            .expect("a file log");

        assert_eq!(log.path, "/tmp/log");
    }

    #[test]
    fn a_json_log_has_a_json_format() {
        let (_, diagnostics) =
            read("accessLogEncoding: JSON\naccessLogFormat: '{\"took\": %DURATION%}'\n");
        let told: Vec<_> = diagnostics
            .iter()
            .map(|d| (d.code.as_str(), d.field.as_str()))
            .collect();

        assert_eq!(told, [("MEL0210", "data.mesh: accessLogFormat")]);
        let (mesh, diagnostics) =
            read("accessLogEncoding: JSON\naccessLogFormat: '{\"took\": \"%DURATION%\"}'\n");
        assert!(diagnostics.is_empty() && !mesh.access_log_format.is_empty());
    }

    #[test]
    fn what_is_built_in_stays_and_the_rest_counts() {
        let text = "accessLogFile: /dev/stdout\ntrustDomain: example.org\nproxyListenPort: 15001\nproxyInboundListenPort: 9\n";
        let fixed = [
            FixedField::TrustDomain,
            FixedField::ListenPort,
            FixedField::InboundListenPort,
        ];

        let place = Position {
            file: "mesh.yaml".into(),
            line: 10,
            column: 1,
        };

        let object = ObjectRef::new("ConfigMap", "istio-system", "istio");
        let (mesh, diagnostics) =
            MeshConfig::istio_default().overlay(text, &fixed, &object, &place);
        assert_eq!(
            mesh,
            MeshConfig {
                access_log_file: "/dev/stdout".into(),
                ..MeshConfig::istio_default()
            }
        );

        let told: Vec<_> = diagnostics
            .iter()
            .map(|d| {
                (
                    d.code.as_str(),
                    d.field.as_str(),
                    d.position.line,
                    &*d.message,
                )
            })
            .collect();

        assert_eq!(
            told,
            [
                (
                    "MEL0313",
                    "data.mesh: trustDomain",
                    12,
                    "example.org has no effect: this mesh runs with cluster.local, which cannot be changed"
                ),
                (
                    "MEL0313",
                    "data.mesh: proxyInboundListenPort",
                    14,
                    "9 has no effect: this mesh runs with 15006, which cannot be changed"
                ),
            ]
        );

        let (mesh, _) = MeshConfig::istio_default().overlay(text, &[], &object, &place);
        assert_eq!(
            (mesh.trust_domain.as_str(), mesh.proxy_inbound_listen_port),
            ("example.org", 9)
        );
    }

    #[test]
    fn a_fault_keeps_what_was() {
        let (mesh, diagnostics) = read("accessLogFile: /dev/stdout\ntrustDomain: 'NOT A DOMAIN'\n");
        assert_eq!(mesh, MeshConfig::istio_default());
        assert_eq!(diagnostics.len(), 1);
        let (_, diagnostics) = read("acessLogFile: /dev/stdout\n");
        assert_eq!(diagnostics[0].remedy, "did you mean accessLogFile?");
        let (_, diagnostics) = read("banana: 1\ninboundTrafficPolicy: {banana: 1}\n");
        let remedies: Vec<_> = diagnostics
            .iter()
            .map(|finding| finding.remedy.as_str())
            .collect();

        let fields = MeshConfig::FIELDS.len();
        assert_eq!(
            remedies,
            [
                format!(
                    "remove it: none of the {fields} fields that can stand here has a similar name"
                ),
                "remove it, or use one of: mode".to_owned(),
            ]
        );
    }
}
