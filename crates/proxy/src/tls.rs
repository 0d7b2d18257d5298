//! rustls configurations from compiled terms and the secrets of the moment. Rebuilt when a secret
//! changes; connections that stand keep what they have.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use meltemi_proxy_config::tls::{
    CertificateSource, CommonTls, DataSource, DownstreamTls, SanKind, SanMatch, TlsVersion, Trust,
    UpstreamTls, Validation,
};
use meltemi_tls::{
    Algorithms, ClientAuth, ClientTerms, Identity, PeerRule, ROOT_SECRET, SanMatcher, SecretStore,
    ServerRule, ServerTerms, TextMatch, TrustBundle,
};
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use crate::peer_exchange::ALPN;

/// Whether a name of ALPN means HTTP/2.
pub fn is_http2(name: &[u8]) -> bool {
    matches!(name, b"h2" | b"istio-h2")
}

/// Why there is no configuration (yet).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsUnready {
    /// A secret has not arrived.
    #[error("secret {0} has not arrived")]
    Missing(Arc<str>),
    /// What arrived cannot be used.
    #[error("{0}")]
    Unusable(String),
}

/// The terms, their ALPN list's replacement, and for SNI: whether it is replaced, and the name that
/// is checked.
type ClientKey = (usize, Option<Box<[Box<str>]>>, bool, Option<Box<str>>);

/// One worker's configurations, made on first use.
#[derive(Debug)]
pub struct TlsConfigs {
    secrets: SecretStore,
    changes: watch::Receiver<u64>,
    made: RefCell<Made>,
}

#[derive(Debug, Default)]
struct Made {
    generation: u64,
    principal: Option<Arc<str>>,
    // The terms are kept, so that an address cannot come to mean other terms.
    clients: HashMap<ClientKey, (Arc<UpstreamTls>, Arc<rustls::ClientConfig>)>,
    servers: HashMap<(usize, bool), (Arc<DownstreamTls>, Arc<rustls::ServerConfig>)>,
}

/// More than any configuration has at a time; beyond it the old ones go.
const MAX_MADE: usize = 4096;

impl TlsConfigs {
    /// URI names of our own certificate, as XFCC and logs tell them.
    pub fn own_names(&self, terms: &DownstreamTls) -> Vec<String> {
        let identities = identities(&self.secrets, &terms.common).unwrap_or_default();
        identities
            .first()
            .map(|identity| identity.info().uri_sans.clone())
            .unwrap_or_default()
    }

    /// Over the process's secrets.
    pub fn new(secrets: SecretStore) -> Self {
        Self {
            changes: secrets.changes(),
            secrets,
            made: RefCell::default(),
        }
    }

    /// The identity of our workload certificate, without its scheme.
    pub fn own_principal(&self) -> Option<Arc<str>> {
        let mut made = self.made.borrow_mut();
        self.refresh(&mut made);
        if made.principal.is_none() {
            let secret = self.secrets.get(meltemi_tls::DEFAULT_SECRET)?;
            let principal = secret.identity.as_ref()?.spiffe()?.principal();
            made.principal = Some(principal.into());
        }
        made.principal.clone()
    }

    fn refresh(&self, made: &mut Made) {
        let generation = *self.changes.borrow();
        if made.generation != generation || made.clients.len() + made.servers.len() > MAX_MADE {
            *made = Made {
                generation,
                ..Made::default()
            };
        }
    }

    /// For connecting with these terms. `alpn` replaces the terms' own list, `name` their SNI; with
    /// it comes whether the certificate must be for that name.
    pub fn client(
        &self,
        terms: &Arc<UpstreamTls>,
        alpn: Option<&[Box<str>]>,
        name: Option<(&str, bool)>,
    ) -> Result<Arc<rustls::ClientConfig>, TlsUnready> {
        let checked = name.and_then(|(name, is_checked)| is_checked.then_some(name));
        let mut made = self.made.borrow_mut();
        self.refresh(&mut made);
        let key = (
            Arc::as_ptr(terms) as usize,
            alpn.map(Into::into),
            name.is_some(),
            checked.map(Into::into),
        );

        if let Some((_, config)) = made.clients.get(&key) {
            return Ok(config.clone());
        }
        let config = client_config(&self.secrets, terms, alpn, name.is_some(), checked)?;
        made.clients.insert(key, (terms.clone(), config.clone()));

        Ok(config)
    }

    /// For serving a client that offers these protocols. One that offers none of ours is served
    /// without ALPN, as BoringSSL does; rustls by itself would refuse it.
    pub fn server(
        &self,
        terms: &Arc<DownstreamTls>,
        offered: &[String],
    ) -> Result<Arc<rustls::ServerConfig>, TlsUnready> {
        let mut made = self.made.borrow_mut();
        self.refresh(&mut made);
        let agrees = offered.is_empty()
            || terms
                .common
                .alpn
                .iter()
                .any(|own| offered.iter().any(|one| **one == **own));

        let key = (Arc::as_ptr(terms) as usize, agrees);
        if let Some((_, config)) = made.servers.get(&key) {
            return Ok(config.clone());
        }
        let mut config = server_config(&self.secrets, terms)?;
        if !agrees {
            let mut without = (*config).clone();
            without.alpn_protocols.clear();
            config = Arc::new(without);
        }

        made.servers.insert(key, (terms.clone(), config.clone()));

        Ok(config)
    }
}

fn unusable(error: impl std::fmt::Display) -> TlsUnready {
    TlsUnready::Unusable(error.to_string())
}

/// Reads the bytes that a data source stands for.
pub fn read(source: &DataSource) -> Result<Vec<u8>, TlsUnready> {
    match source {
        DataSource::Inline(bytes) => Ok(bytes.to_vec()),
        // Rare and small: once for a configuration.
        DataSource::File(path) => {
            std::fs::read(&**path).map_err(|error| unusable(format!("{path}: {error}")))
        }
        DataSource::Environment(name) => std::env::var(&**name)
            .map(String::into_bytes)
            .map_err(|error| unusable(format!("{name}: {error}"))),
    }
}

fn identities(secrets: &SecretStore, common: &CommonTls) -> Result<Vec<Identity>, TlsUnready> {
    let one = |source: &CertificateSource| match source {
        CertificateSource::Secret(secret) => secrets
            .get(&secret.name)
            .and_then(|secret| secret.identity.clone())
            .ok_or_else(|| TlsUnready::Missing(secret.name.clone())),
        CertificateSource::Inline { chain, key } => {
            Identity::from_pem(&read(chain)?, &read(key)?).map_err(unusable)
        }
    };

    common.certificates.iter().map(one).collect()
}

fn trust(secrets: &SecretStore, common: &CommonTls) -> Result<Option<TrustBundle>, TlsUnready> {
    let validation = &common.validation;
    let bundle = match &validation.trust {
        Trust::None => return Ok(None),
        Trust::Secret(secret) => secrets
            .get(&secret.name)
            .and_then(|secret| secret.trust.clone())
            .ok_or_else(|| TlsUnready::Missing(secret.name.clone()))?,
        Trust::Inline(source) => TrustBundle::from_pem(&read(source)?).map_err(unusable)?,
        Trust::System => TrustBundle::system(),
    };

    match &validation.crl {
        Some(crl) => bundle.with_crls(&read(crl)?).map(Some).map_err(unusable),
        None => Ok(Some(bundle)),
    }
}

fn is_mesh(common: &CommonTls) -> bool {
    matches!(&common.validation.trust, Trust::Secret(secret) if &*secret.name == ROOT_SECRET)
}

fn version(version: TlsVersion) -> meltemi_tls::TlsVersion {
    match version {
        TlsVersion::V12 => meltemi_tls::TlsVersion::V1_2,
        TlsVersion::V13 => meltemi_tls::TlsVersion::V1_3,
    }
}

fn san(matchers: &[SanMatch]) -> Result<Vec<SanMatcher>, TlsUnready> {
    matchers.iter().map(san_matcher).collect()
}

fn client_config(
    secrets: &SecretStore,
    terms: &UpstreamTls,
    alpn: Option<&[Box<str>]>,
    has_name: bool,
    checked: Option<&str>,
) -> Result<Arc<rustls::ClientConfig>, TlsUnready> {
    let common = &terms.common;
    let identity = identities(secrets, common)?.into_iter().next();
    let trust = trust(secrets, common)?;
    let rule = match (&trust, checked) {
        (None, _) => ServerRule::Insecure,
        (Some(_), _) if is_mesh(common) => ServerRule::Spiffe,
        (Some(_), Some(name)) => ServerRule::Host(name.to_owned()),
        (Some(_), None) if terms.auto_sni_san_validation && !has_name => {
            ServerRule::Host(terms.sni.to_string())
        }
        (Some(_), None) => ServerRule::Chain,
    };

    let client = ClientTerms {
        // Who connects without naming protocols does not send the preamble that this one promises.
        alpn: match alpn {
            Some(named) => named.iter().map(|name| name.to_string()).collect(),
            None => common
                .alpn
                .iter()
                .filter(|name| ***name != *ALPN)
                .map(|name| name.to_string())
                .collect(),
        },
        no_sni: !has_name && terms.sni.is_empty() && !terms.auto_host_sni,
        rule,
        san: san(&common.validation.san_matchers)?,
        min_version: Some(version(common.min_version)),
        max_version: Some(version(common.max_version)),
        algorithms: algorithms(common),
    };

    let trust = trust.unwrap_or_default();

    meltemi_tls::client_config(&client, identity.as_ref(), &trust).map_err(unusable)
}

fn server_config(
    secrets: &SecretStore,
    terms: &DownstreamTls,
) -> Result<Arc<rustls::ServerConfig>, TlsUnready> {
    let common = &terms.common;
    let identities = identities(secrets, common)?;
    let trust = trust(secrets, common)?;
    let client_auth = match (terms.require_client_certificate, &trust) {
        (true, _) => ClientAuth::Required,
        (false, Some(_)) => ClientAuth::Optional,
        (false, None) => ClientAuth::None,
    };

    let server = ServerTerms {
        alpn: common.alpn.iter().map(|name| name.to_string()).collect(),
        client_auth,
        rule: if is_mesh(common) {
            PeerRule::Spiffe
        } else {
            PeerRule::Chain
        },
        san: san(&common.validation.san_matchers)?,
        min_version: Some(version(common.min_version)),
        max_version: Some(version(common.max_version)),
        algorithms: algorithms(common),
    };

    let config =
        meltemi_tls::server_config_with(&server, &identities, trust.as_ref()).map_err(unusable)?;
    if !terms.disable_tickets && !terms.disable_sessions {
        return Ok(config);
    }
    let mut config = (*config).clone();

    // rustls resumes from one store, whichever way the client asks.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;

    Ok(Arc::new(config))
}

fn algorithms(common: &CommonTls) -> Algorithms {
    Algorithms {
        tls12_suites: common.cipher_suites.clone(),
        groups: common.groups.clone(),
    }
}

/// Reads what stands in the configuration or in files that it names, so that what can never be used
/// is refused when it arrives. Secrets by name are judged when they come.
pub fn check(common: &CommonTls) -> Result<(), TlsUnready> {
    for certificate in &common.certificates {
        if let CertificateSource::Inline { chain, key } = certificate {
            Identity::from_pem(&read(chain)?, &read(key)?).map_err(unusable)?;
        }
    }

    if let Trust::Inline(source) = &common.validation.trust {
        TrustBundle::from_pem(&read(source)?).map_err(unusable)?;
    }
    if let Some(crl) = &common.validation.crl {
        TrustBundle::default()
            .with_crls(&read(crl)?)
            .map_err(unusable)?;
    }

    san(&common.validation.san_matchers).map(|_| ())
}

/// Whether the peer's certificate is one of those that are pinned, if any are. A handshake has
/// proved that the peer has its key; nothing has been said to it yet.
pub fn check_pins(
    validation: &Validation,
    chain: Option<&[CertificateDer<'_>]>,
) -> Result<(), String> {
    if !validation.is_pinned() {
        return Ok(());
    }

    // A client that shows nothing where it need not has been let in by the terms themselves.
    let Some(leaf) = chain.and_then(<[_]>::first) else {
        return Ok(());
    };
    let (certificate, key) = meltemi_tls::pin_digests(leaf).map_err(|error| error.to_string())?;

    match validation.accepts_pin(&certificate, &key) {
        true => Ok(()),
        false => Err(format!(
            "certificate {} is not one of those that are pinned",
            meltemi_tls::sha256_hex(leaf)
        )),
    }
}

fn san_matcher(matcher: &SanMatch) -> Result<SanMatcher, TlsUnready> {
    use meltemi_filters::matcher::{IgnoreCase, StringMatch};

    let kind = match matcher.kind {
        SanKind::Any => meltemi_tls::SanKind::Any,
        SanKind::Dns => meltemi_tls::SanKind::Dns,
        SanKind::Uri => meltemi_tls::SanKind::Uri,
        SanKind::Ip => meltemi_tls::SanKind::Ip,
        SanKind::Email => return Err(unusable("e-mail names are not supported")),
    };

    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (value, fold) = match &matcher.value {
        StringMatch::Exact(value) => (TextMatch::Exact(text(value)), false),
        StringMatch::Prefix(value) => (TextMatch::Prefix(text(value)), false),
        StringMatch::Suffix(value) => (TextMatch::Suffix(text(value)), false),
        StringMatch::Contains(value) => (TextMatch::Contains(text(value.needle())), false),
        StringMatch::Regex(regex) => (TextMatch::regex(regex.as_str()).map_err(unusable)?, false),
        StringMatch::IgnoreCase(IgnoreCase::Exact(value)) => (TextMatch::Exact(text(value)), true),
        StringMatch::IgnoreCase(IgnoreCase::Prefix(value)) => {
            (TextMatch::Prefix(text(value)), true)
        }
        StringMatch::IgnoreCase(IgnoreCase::Suffix(value)) => {
            (TextMatch::Suffix(text(value)), true)
        }
        StringMatch::IgnoreCase(IgnoreCase::Contains(value)) => {
            (TextMatch::Contains(text(value)), true)
        }
    };

    let matcher = SanMatcher::new(kind, value);

    Ok(if fold {
        matcher.ignoring_case()
    } else {
        matcher
    })
}
