//! SPIFFE identities as Istio writes them: `spiffe://<trust domain>/ns/<namespace>/sa/<service
//! account>`.
//!
//! Source: SPIFFE-ID specification §2, Istio `pkg/spiffe`. Parsing is strict: an identity either
//! has exactly one spelling or it is refused, since identities are compared as strings by every
//! policy.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a string is not an identity that this mesh accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// Another scheme than `spiffe`, or none.
    #[error("identity {0:?} does not start with spiffe://")]
    Scheme(String),
    /// The authority part is empty or holds a character outside `[a-z0-9._-]`.
    #[error("trust domain {0:?} is empty or has a character outside [a-z0-9._-]")]
    TrustDomain(String),
    /// The path is not `/ns/<namespace>/sa/<service account>` with plain segments.
    #[error("path of identity {0:?} is not /ns/NAMESPACE/sa/SERVICE-ACCOUNT")]
    Path(String),
}

/// The name of a trust root, for example `cluster.local`. Lower case, `[a-z0-9._-]`, never empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(String);

impl TrustDomain {
    /// Istio's default, `cluster.local` (MeshConfig: trustDomain).
    pub const DEFAULT: &'static str = "cluster.local";

    /// Checks the characters; Istio's rule that `@` stands for `.` is applied first.
    pub fn new(name: &str) -> Result<Self, SpiffeError> {
        let name = name.replace('@', ".");
        let plain =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if name.is_empty() || name.len() > 255 || !name.bytes().all(plain) {
            return Err(SpiffeError::TrustDomain(name));
        }
        Ok(Self(name))
    }

    /// The name as it stands in an identity.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TrustDomain {
    fn default() -> Self {
        Self(Self::DEFAULT.to_owned())
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = SpiffeError;
    fn try_from(name: String) -> Result<Self, SpiffeError> {
        Self::new(&name)
    }
}

impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> Self {
        domain.0
    }
}

/// A workload identity: trust domain, namespace and service account.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    namespace: String,
    service_account: String,
}

impl SpiffeId {
    /// Creates an identity. Namespace and service account must be plain path segments.
    pub fn new(
        trust_domain: TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, SpiffeError> {
        for segment in [namespace, service_account] {
            if !is_plain_segment(segment) {
                return Err(SpiffeError::Path(segment.to_owned()));
            }
        }

        Ok(Self {
            trust_domain,
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
        })
    }

    /// The trust domain that vouches for this identity.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// The identity without its scheme, as Istio's policies write principals:
    /// `cluster.local/ns/foo/sa/bar`.
    pub fn principal(&self) -> String {
        format!(
            "{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

/// SPIFFE-ID §2.2: letters, digits, dot, dash, underscore; not `.` or `..`; percent encoding is not
/// allowed.
fn is_plain_segment(segment: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    !segment.is_empty() && segment != "." && segment != ".." && segment.bytes().all(plain)
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        let rest = text
            .strip_prefix("spiffe://")
            .ok_or_else(|| SpiffeError::Scheme(text.to_owned()))?;
        let (domain, path) = rest
            .split_once('/')
            .ok_or_else(|| SpiffeError::Path(text.to_owned()))?;

        // The rule that `@` means `.` is for configuration, not for identities on the wire.
        if domain.contains('@') {
            return Err(SpiffeError::TrustDomain(domain.to_owned()));
        }
        let trust_domain = TrustDomain::new(domain)?;
        let mut segments = path.split('/');

        match (
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
        ) {
            (Some("ns"), Some(namespace), Some("sa"), Some(account), None) => {
                Self::new(trust_domain, namespace, account)
                    .map_err(|_| SpiffeError::Path(text.to_owned()))
            }
            _ => Err(SpiffeError::Path(text.to_owned())),
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = SpiffeError;
    fn try_from(text: String) -> Result<Self, SpiffeError> {
        text.parse()
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wellformed_identity_survives_the_round_trip() {
        let id: SpiffeId = "spiffe://cluster.local/ns/default/sa/bookinfo-reviews"
            .parse()
            .expect("well formed");
        assert_eq!(id.namespace(), "default");
        assert_eq!(id.service_account(), "bookinfo-reviews");
        assert_eq!(
            id.to_string(),
            "spiffe://cluster.local/ns/default/sa/bookinfo-reviews"
        );

        assert_eq!(
            id.principal(),
            "cluster.local/ns/default/sa/bookinfo-reviews"
        );
    }

    #[test]
    fn tricks_with_identities_are_refused() {
        for trick in [
            "https://cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/b/",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local/ns/a%2e/sa/b",
            "spiffe://cluster.local/ns/../sa/b",
            "spiffe://cluster.local/ns//sa/b",
            "spiffe://Cluster.Local/ns/a/sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://cluster@local/ns/a/sa/b",
            "spiffe://cluster.local:80/ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/b\0",
        ] {
            assert!(
                trick.parse::<SpiffeId>().is_err(),
                "{trick:?} must be refused"
            );
        }
    }
}
