//! Gateway to the model.

use meltemi_api::networking::{self as api};
use meltemi_api::{Object, Spec};
use meltemi_types::Protocol;

use crate::lower::{Findings, origin, port};
use crate::{
    Gateway, Hostname, NamespaceScope, Server, ServerHost, ServerTls, ServerTlsMode, TlsVersion,
};

pub(crate) fn lower_gateway(object: &Object, findings: &mut Findings<'_>) -> Gateway {
    let empty = api::Gateway::default();
    let spec = if let Spec::Gateway(spec) = &object.spec {
        spec.as_ref()
    } else {
        &empty
    };

    let namespace = object.meta.namespace.as_str();
    let mut servers = Vec::new();
    for (index, server) in spec.servers.iter().enumerate() {
        let Some(number) = port(server.port.number) else {
            continue;
        };
        let bind = match server.bind.as_str() {
            "" => None,
            text => match text.parse() {
                Ok(ip) => Some(ip),
                Err(_) => {
                    let field = format!("spec.servers[{index}].bind");
                    findings.warn(
                        "MEL0308",
                        &field,
                        format!(
                            "{text:?} is not an IP address; the server listens on every address"
                        ),
                        "write an IP address",
                    );

                    None
                }
            },
        };

        servers.push(Server {
            name: server.name.clone(),
            port: number,
            port_name: server.port.name.clone(),
            protocol: Protocol::from_word(&server.port.protocol).unwrap_or(Protocol::Tcp),
            bind,
            hosts: server
                .hosts
                .iter()
                .map(|host| server_host(host, namespace))
                .collect(),
            tls: server.tls.as_ref().map(lower_server_tls),
        });
    }

    Gateway {
        origin: origin(object),
        selector: spec.selector.clone(),
        servers,
    }
}

fn server_host(text: &str, namespace: &str) -> ServerHost {
    match text.split_once('/') {
        Some((of, host)) => ServerHost {
            namespace: NamespaceScope::parse(of, namespace),
            host: Hostname::new(host),
        },
        None => ServerHost {
            namespace: NamespaceScope::Any,
            host: Hostname::new(text),
        },
    }
}

/// Also Sidecar.ingress[].tls.
pub(crate) fn lower_server_tls(written: &api::ServerTlsSettings) -> ServerTls {
    let single = Some(&written.credential_name).filter(|name| !name.is_empty());
    let version = |written| match written {
        api::TlsProtocol::Auto => TlsVersion::Auto,
        api::TlsProtocol::V1_0 => TlsVersion::V1_0,
        api::TlsProtocol::V1_1 => TlsVersion::V1_1,
        api::TlsProtocol::V1_2 => TlsVersion::V1_2,
        api::TlsProtocol::V1_3 => TlsVersion::V1_3,
    };

    ServerTls {
        https_redirect: written.https_redirect,
        mode: match written.mode {
            api::ServerTlsMode::Passthrough => ServerTlsMode::Passthrough,
            api::ServerTlsMode::Simple => ServerTlsMode::Simple,
            api::ServerTlsMode::Mutual => ServerTlsMode::Mutual,
            api::ServerTlsMode::AutoPassthrough => ServerTlsMode::AutoPassthrough,
            api::ServerTlsMode::IstioMutual => ServerTlsMode::IstioMutual,
            api::ServerTlsMode::OptionalMutual => ServerTlsMode::OptionalMutual,
        },
        server_certificate: written.server_certificate.clone(),
        private_key: written.private_key.clone(),
        ca_certificates: written.ca_certificates.clone(),
        ca_crl: written.ca_crl.clone(),
        credential_names: if written.credential_names.is_empty() {
            single.cloned().into_iter().collect()
        } else {
            written.credential_names.clone()
        },
        ca_credential_name: written.ca_cert_credential_name.clone(),
        subject_alt_names: written.subject_alt_names.clone(),
        verify_spki: written.verify_certificate_spki.clone(),
        verify_hash: written.verify_certificate_hash.clone(),
        min_version: version(written.min_protocol_version),
        max_version: version(written.max_protocol_version),
        cipher_suites: written.cipher_suites.clone(),
    }
}
