//! Gateway.

use meltemi_types::{is_cipher_suite, is_dns_label};

use super::rules::*;
use crate::networking::{Gateway, Port, Server, ServerTlsMode, ServerTlsSettings, TlsProtocol};
use crate::schema::{Report, shorten};

/// Protocols that a gateway serves, in any case.
const PROTOCOLS: &[&str] = &[
    "HTTP", "HTTPS", "GRPC", "GRPC-WEB", "HTTP2", "MONGO", "MYSQL", "REDIS", "TCP", "TLS", "HBONE",
];

pub(super) fn check(spec: &Gateway, name: &str, at: &mut Report) {
    let Gateway { selector, servers } = spec;
    if !is_dns_label(&name.to_ascii_lowercase()) {
        at.error(
            INVALID,
            format!("invalid gateway name: {:?}", shorten(name)),
            "write a name without dots",
        );
    }

    check_labels("selector", &selector.0, at);
    if servers.is_empty() {
        at.field("servers", |at| {
            at.error(
                MISSING,
                "gateway must have at least one server",
                "add a server with port and hosts",
            )
        });
    }

    let mut names = Once::new();
    at.field("servers", |at| {
        for (index, server) in servers.iter().enumerate() {
            at.index(index, |at| {
                check_server(server, at);
                if !server.port.name.is_empty() && !names.insert(&server.port.name) {
                    at.field("port", |at| {
                        at.field("name", |at| {
                            let message = format!(
                                "port names in servers must be unique: duplicate name {}",
                                server.port.name
                            );
                            at.error(DUPLICATE, message, "rename one of them");
                        });
                    });
                }
            });
        }
    });
}

fn check_server(server: &Server, at: &mut Report) {
    let Server {
        name: _,
        port,
        bind,
        hosts,
        tls,
        default_endpoint,
    } = server;

    if hosts.is_empty() {
        at.field("hosts", |at| {
            at.error(
                MISSING,
                "server config must contain at least one host",
                "add a host; * is any",
            )
        });
    }

    let mut seen = Once::new();
    at.field("hosts", |at| {
        for (index, host) in hosts.iter().enumerate() {
            at.index(index, |at| {
                check_scoped_host(host, at);
                if !seen.insert(host) {
                    at.warn(
                        DOUBTFUL,
                        format!("duplicate host {host} in server"),
                        "remove one of them",
                    );
                }
            });
        }
    });

    at.field("port", |at| check_server_port(port, bind, at));
    if !bind.is_empty() && !is_ip(bind) && !bind.starts_with("unix://") {
        at.field("bind", |at| {
            at.error(
                INVALID,
                format!("{:?} is not an IP address or unix:// socket", shorten(bind)),
                "write an address",
            )
        });
    }

    if !default_endpoint.is_empty() {
        at.field("defaultEndpoint", |at| {
            at.warn(
                WITHOUT_EFFECT,
                "defaultEndpoint is not implemented",
                "route with a VirtualService",
            )
        });
    }

    check_protocol_and_tls(&port.protocol, tls, at);
}

/// A protocol over TLS has settings of TLS, and no other has.
fn check_protocol_and_tls(protocol: &str, tls: &Option<ServerTlsSettings>, at: &mut Report) {
    let is_tls = matches!(protocol.to_ascii_uppercase().as_str(), "HTTPS" | "TLS");
    let is_http = matches!(
        protocol.to_ascii_uppercase().as_str(),
        "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB"
    );

    match tls {
        None if is_tls => {
            at.field("tls", |at| {
                at.error(
                    MISSING,
                    "server must have TLS settings for HTTPS/TLS protocols",
                    "add tls with a mode",
                )
            });
        }
        Some(tls) if !is_tls && is_http && *tls != only_redirect(tls) => {
            at.field("tls", |at| {
                at.error(
                    CONFLICT,
                    "server cannot have TLS settings for plain text HTTP ports",
                    "use protocol HTTPS, or keep httpsRedirect alone",
                );
            });
        }
        Some(tls) if is_tls => {
            if tls.https_redirect {
                at.field("tls", |at| {
                    at.field("httpsRedirect", |at| {
                        at.warn(
                            WITHOUT_EFFECT,
                            "tls.httpsRedirect should only be used with http servers",
                            "set it on the HTTP port",
                        );
                    });
                });
            }

            at.field("tls", |at| check_tls(tls, at));
        }
        Some(_) if !is_tls && !is_http => {
            at.field("tls", |at| {
                at.error(
                    CONFLICT,
                    "server cannot have TLS settings for non HTTPS/TLS ports",
                    "use protocol TLS, or remove tls",
                );
            });
        }
        _ => {}
    }
}

fn only_redirect(tls: &ServerTlsSettings) -> ServerTlsSettings {
    ServerTlsSettings {
        https_redirect: tls.https_redirect,
        ..ServerTlsSettings::default()
    }
}

fn check_server_port(port: &Port, bind: &str, at: &mut Report) {
    let Port {
        number,
        protocol,
        name,
        target_port,
    } = port;

    if !bind.starts_with("unix://") || *number != 0 {
        at.field("number", |at| check_port(*number, at));
    }
    if !PROTOCOLS.contains(&protocol.to_ascii_uppercase().as_str()) {
        let remedy = crate::schema::closest(protocol, PROTOCOLS).map_or_else(
            || format!("use one of {}", PROTOCOLS.join(", ")),
            |word| format!("did you mean {word}?"),
        );
        at.field("protocol", |at| at.error(INVALID, format!("invalid protocol {:?}, supported protocols are HTTP, HTTP2, GRPC, GRPC-WEB, MONGO, TCP, TLS, HTTPS", shorten(protocol)), remedy));
    }

    if name.is_empty() {
        at.field("name", |at| {
            at.error(
                MISSING,
                "port name must be set",
                "name the port, for example http",
            )
        });
    }

    if *target_port != 0 {
        at.field("targetPort", |at| {
            at.error(
                WITHOUT_EFFECT,
                "targetPort has no impact on Gateways",
                "remove it; the Service before the gateway maps ports",
            )
        });
    }
}

/// `host`, or `namespace/host`, where namespace may be `.` or `*`.
fn check_scoped_host(host: &str, at: &mut Report) {
    let (namespace, host) = host
        .split_once('/')
        .map_or((None, host), |(namespace, host)| (Some(namespace), host));
    if let Some(namespace) = namespace
        && !matches!(namespace, "." | "*")
        && !is_dns_label(namespace)
    {
        at.error(
            INVALID,
            format!("namespace {:?} is not valid", shorten(namespace)),
            "write NAMESPACE/HOST, ./HOST or */HOST",
        );
    }

    if !is_ip(host) {
        check_full_host(host, at);
    }
}

/// What may be written in place of another source of the certificate.
const ONE_SOURCE: &str =
    "keep one of credentialName, credentialNames, tlsCertificates and serverCertificate";

pub(super) fn check_tls(tls: &ServerTlsSettings, at: &mut Report) {
    let ServerTlsSettings {
        https_redirect: _,
        mode,
        server_certificate,
        private_key,
        ca_certificates,
        ca_crl: _,
        credential_name,
        credential_names,
        ca_cert_credential_name: _,
        tls_certificates,
        subject_alt_names: _,
        verify_certificate_spki,
        verify_certificate_hash,
        min_protocol_version,
        max_protocol_version,
        cipher_suites,
        ecdh_curves: _,
        insecure_skip_verify: _,
    } = tls;

    check_lists(tls, at);
    check_pins(verify_certificate_spki, verify_certificate_hash, at);

    // Half a pair is no certificate, and says nothing beside a Secret.
    let sources = Sources {
        secret: !credential_name.is_empty() || !credential_names.is_empty(),
        files: (!server_certificate.is_empty() && !private_key.is_empty())
            || !tls_certificates.is_empty(),
    };
    match mode {
        ServerTlsMode::IstioMutual => check_istio_mutual(tls, sources, at),
        ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough => {
            if sources.secret || sources.files || !ca_certificates.is_empty() {
                let mode = mode.as_str();
                at.warn(
                    WITHOUT_EFFECT,
                    format!("{mode} mode does not use certificates, they will be ignored"),
                    "remove them",
                );
            }
        }
        ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual => {
            check_terminating(tls, sources, at);
        }
    }

    if *min_protocol_version != TlsProtocol::Auto
        && *max_protocol_version != TlsProtocol::Auto
        && min_protocol_version > max_protocol_version
    {
        at.field("minProtocolVersion", |at| {
            at.error(
                CONFLICT,
                "minProtocolVersion is newer than maxProtocolVersion",
                "swap them",
            )
        });
    }

    check_cipher_suites(cipher_suites, at);
}

/// Where a server's certificate comes from.
#[derive(Clone, Copy)]
struct Sources {
    secret: bool,
    files: bool,
}

/// The lists of certificates: at most two entries (one RSA, one ECDSA), and one list alone.
fn check_lists(tls: &ServerTlsSettings, at: &mut Report) {
    if !tls.tls_certificates.is_empty() && !tls.credential_names.is_empty() {
        at.error(
            CONFLICT,
            "only one of credentialNames or tlsCertificates can be set",
            ONE_SOURCE,
        );
    }

    if !tls.credential_name.is_empty() && !tls.credential_names.is_empty() {
        at.error(
            CONFLICT,
            "only one of credentialName or credentialNames can be set",
            ONE_SOURCE,
        );
    }

    for (key, count) in [
        ("credentialNames", tls.credential_names.len()),
        ("tlsCertificates", tls.tls_certificates.len()),
    ] {
        if count > 2 {
            at.field(key, |at| {
                at.error(
                    INVALID,
                    format!("{} in body should have at most 2 items", at.path()),
                    "keep one RSA and one ECDSA",
                )
            });
        }
    }
}

/// ISTIO_MUTUAL: the workload's own certificate, and no other.
fn check_istio_mutual(tls: &ServerTlsSettings, sources: Sources, at: &mut Report) {
    for (what, set) in [
        ("server certificate", !tls.server_certificate.is_empty()),
        ("private key", !tls.private_key.is_empty()),
        ("CA bundle", !tls.ca_certificates.is_empty()),
        ("tlsCertificates", !tls.tls_certificates.is_empty()),
        ("credentialName", sources.secret),
    ] {
        if set {
            at.error(
                CONFLICT,
                format!("ISTIO_MUTUAL TLS cannot have associated {what}"),
                "remove it: the workload's certificate is used",
            );
        }
    }
}

/// SIMPLE, MUTUAL and OPTIONAL_MUTUAL: the certificate and, for clients, the roots must be named.
fn check_terminating(tls: &ServerTlsSettings, sources: Sources, at: &mut Report) {
    if sources.secret && sources.files {
        at.error(
            CONFLICT,
            "only one of credentialName or serverCertificate can be set",
            ONE_SOURCE,
        );
    }

    if !sources.secret {
        check_files(tls, at);
    }
    if !tls.ca_crl.is_empty() && tls.mode == ServerTlsMode::Simple && !sources.secret {
        at.field("caCrl", |at| {
            at.error(
                CONFLICT,
                "CRL is not supported with SIMPLE TLS",
                "use mode MUTUAL, or remove it",
            )
        });
    }

    let has_roots = sources.secret
        || !tls.ca_cert_credential_name.is_empty()
        || !tls.ca_certificates.is_empty()
        || tls
            .tls_certificates
            .iter()
            .any(|certificate| !certificate.ca_certificates.is_empty());

    if tls.mode != ServerTlsMode::Simple && !has_roots {
        at.error(
            MISSING,
            format!("{} TLS requires a client CA bundle", tls.mode.as_str()),
            "add caCertificates or credentialName",
        );
    }
}

/// Unknown and repeated suites are left out with a warning, as by Istio.
fn check_cipher_suites(suites: &[String], at: &mut Report) {
    let mut seen = Once::new();
    at.field("cipherSuites", |at| {
        for (index, suite) in suites.iter().enumerate() {
            let (fault, remedy) = if !is_cipher_suite(suite) {
                let remedy = "write an OpenSSL name, for example ECDHE-RSA-AES128-GCM-SHA256";
                (
                    format!("ignoring invalid cipher suite {:?}", shorten(suite)),
                    remedy,
                )
            } else if !seen.insert(suite) {
                let fault = format!("duplicate cipher suite {:?} is ignored", shorten(suite));
                (fault, "remove it")
            } else {
                continue;
            };
            at.index(index, |at| at.warn(DOUBTFUL, fault, remedy));
        }
    });
}

/// The certificates that come from files, each with its key.
fn check_files(tls: &ServerTlsSettings, at: &mut Report) {
    let word = tls.mode.as_str();
    let advice = "add credentialName with the name of a Secret, or both files";
    let check_pair = |certificate: &str, key: &str, at: &mut Report| {
        for (what, path) in [("server certificate", certificate), ("private key", key)] {
            if path.is_empty() {
                at.error(MISSING, format!("{word} TLS requires a {what}"), advice);
            }
        }
    };

    if tls.tls_certificates.is_empty() {
        return check_pair(&tls.server_certificate, &tls.private_key, at);
    }
    at.each("tlsCertificates", &tls.tls_certificates, |pair, at| {
        check_pair(&pair.server_certificate, &pair.private_key, at);
    });
}

/// Hashes of client certificates, in the forms that Envoy takes: base64 of 32 bytes, and 32 bytes in
/// hexadecimal with or without colons.
fn check_pins(keys: &[String], certificates: &[String], at: &mut Report) {
    at.each("verifyCertificateSpki", keys, |pin, at| {
        let is_base64 = |b: u8| b.is_ascii_alphanumeric() || b == b'+' || b == b'/';
        let is_pin = pin.len() == 44
            && pin.strip_suffix('=').is_some_and(|rest| rest.bytes().all(is_base64));
        if !is_pin {
            at.error(
                INVALID,
                "not the base64 of a SHA-256 hash",
                "hash the public key as openssl pkey -pubin -outform DER | openssl dgst -sha256 -binary | base64",
            );
        }
    });

    at.each("verifyCertificateHash", certificates, |pin, at| {
        let is_pair = |pair: &str| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit());
        let is_pin = match pin.len() {
            64 => pin.bytes().all(|b| b.is_ascii_hexdigit()),
            95 => pin.split(':').all(is_pair),
            _ => false,
        };
        if !is_pin {
            at.error(
                INVALID,
                "not a SHA-256 hash in hexadecimal",
                "hash the certificate as openssl x509 -fingerprint -sha256",
            );
        }
    });
}
