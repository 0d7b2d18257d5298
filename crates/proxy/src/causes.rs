//! What the proxy answered itself and whom it refused, counted by kind of cause. One worker's
//! share.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use meltemi_filters::{Cause, ResponseFlag};
use meltemi_telemetry::{Counter, Shard};

const REPLIES: &str = "meltemi_local_replies_total";
const REFUSED: &str = "meltemi_refused_connections_total";
const UNMIRRORED: &str = "meltemi_unmirrored_requests_total";
const TLS: &str = "meltemi_downstream_tls_errors_total";

/// HELP lines of these families.
pub const HELP: &[(&str, &str)] = &[
    (
        REPLIES,
        "Responses that the proxy made itself, by kind of cause and response flag.",
    ),
    (
        REFUSED,
        "Connections that the proxy refused or could not serve, by kind of cause and response flag.",
    ),
    (
        UNMIRRORED,
        "Copies of requests that were not sent to a mirror, by reason.",
    ),
    (TLS, "TLS handshakes with clients that failed, by reason."),
];

/// Why a TLS handshake with a client failed: few words, since they are labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TlsReason {
    /// It took too long.
    Timeout,
    /// The first bytes were not TLS.
    Plaintext,
    /// The ClientHello, or a later message, is broken.
    Malformed,
    /// Server name required and none sent.
    NoServerName,
    /// A certificate is required and none was shown.
    NoCertificate,
    /// The client's certificate is not accepted.
    Certificate,
    /// No version, suite, group or protocol in common.
    Incompatible,
    /// The client ended the handshake with an alert.
    Alert,
    /// The client closed.
    Closed,
    /// Our own certificate or roots are not there or cannot be used.
    Unready,
}

impl TlsReason {
    pub fn label(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Plaintext => "plaintext",
            Self::Malformed => "malformed",
            Self::NoServerName => "no_server_name",
            Self::NoCertificate => "no_certificate",
            Self::Certificate => "certificate",
            Self::Incompatible => "incompatible",
            Self::Alert => "alert",
            Self::Closed => "closed",
            Self::Unready => "unready",
        }
    }

    /// What the error of a handshake means.
    pub fn of(error: &std::io::Error) -> Self {
        use rustls::Error as E;
        match error.get_ref().and_then(|inner| inner.downcast_ref::<E>()) {
            None => Self::Closed,
            Some(E::NoCertificatesPresented) => Self::NoCertificate,
            Some(E::InvalidCertificate(_) | E::InvalidCertRevocationList(_)) => Self::Certificate,
            Some(E::PeerIncompatible(_) | E::NoApplicationProtocol) => Self::Incompatible,
            Some(E::AlertReceived(_)) => Self::Alert,
            Some(_) => Self::Malformed,
        }
    }
}

type Key = (&'static str, &'static str, &'static str);

/// The counters, looked up once each.
#[derive(Debug)]
pub struct Causes {
    shard: Arc<Shard>,
    known: RefCell<HashMap<Key, Arc<Counter>>>,
}

impl Causes {
    /// Counts in this shard.
    pub fn new(shard: Arc<Shard>) -> Self {
        Self {
            shard,
            known: RefCell::default(),
        }
    }

    fn add(&self, family: &'static str, cause: &Cause, flag: Option<ResponseFlag>) {
        let (kind, flag) = (cause.kind(), flag.map_or("-", ResponseFlag::short));
        let mut known = self.known.borrow_mut();
        let counter = known.entry((family, kind, flag)).or_insert_with(|| {
            self.shard.counter(
                family,
                vec![("cause_kind", kind.into()), ("flag", flag.into())],
            )
        });
        counter.inc();
    }

    /// A response of the proxy's own.
    pub fn reply(&self, cause: &Cause, flag: Option<ResponseFlag>) {
        self.add(REPLIES, cause, flag);
    }

    /// A connection that was not served.
    pub fn refusal(&self, cause: &Cause, flag: Option<ResponseFlag>) {
        self.add(REFUSED, cause, flag);
    }

    fn because(&self, family: &'static str, reason: &'static str) {
        let mut known = self.known.borrow_mut();
        let counter = known
            .entry((family, reason, ""))
            .or_insert_with(|| self.shard.counter(family, vec![("reason", reason.into())]));
        counter.inc();
    }

    /// A copy that a mirror did not get.
    pub fn unmirrored(&self, reason: &'static str) {
        self.because(UNMIRRORED, reason);
    }

    /// A handshake that failed.
    pub fn handshake(&self, reason: TlsReason) {
        self.because(TLS, reason.label());
    }
}

#[cfg(test)]
mod tests {
    use meltemi_telemetry::{Registry, prometheus};

    use super::*;

    #[test]
    fn names_stay_out_of_the_labels() {
        let registry = Registry::default();
        let causes = Causes::new(registry.shard());
        for cluster in ["a", "b", "c"] {
            causes.reply(
                &Cause::NoEndpoint(cluster.into()),
                Some(ResponseFlag::NoHealthyUpstream),
            );
        }

        causes.refusal(&Cause::Policy(Some("p".into())), None);
        causes.handshake(TlsReason::Plaintext);
        let text = prometheus::encode(&registry, HELP);
        assert!(
            text.contains(
                "meltemi_local_replies_total{cause_kind=\"no_endpoint\",flag=\"UH\"} 3\n"
            ),
            "{text}"
        );

        assert!(
            text.contains(
                "meltemi_refused_connections_total{cause_kind=\"policy\",flag=\"-\"} 1\n"
            ),
            "{text}"
        );

        assert!(
            text.contains("meltemi_downstream_tls_errors_total{reason=\"plaintext\"} 1\n"),
            "{text}"
        );
    }
}
