//! Matches the alternative names of a peer's certificate. Source: Envoy `SubjectAltNameMatcher`,
//! Istio `subjectAltNames`.

use std::fmt;

use crate::{CertificateInfo, TlsError};

/// The kind of alternative name that a matcher compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SanKind {
    /// URI names.
    Uri,
    /// DNS names.
    Dns,
    /// IP addresses in text form.
    Ip,
    /// Names of any kind, as Envoy's untyped `match_subject_alt_names`.
    Any,
}

/// How a name is compared: byte by byte, DNS names without regard to case.
#[derive(Debug, Clone)]
pub enum TextMatch {
    /// The name equals the text. A wildcard DNS name in the certificate (`*.example.com`) matches
    /// one more label.
    Exact(String),
    /// The name begins with the text.
    Prefix(String),
    /// The name ends with the text.
    Suffix(String),
    /// The name contains the text.
    Contains(String),
    /// The regular expression matches the whole name. Created by [`TextMatch::regex`].
    Regex(Box<regex::Regex>),
}

impl TextMatch {
    /// Compiles a regular expression that must match the whole name (RE2's full match).
    pub fn regex(pattern: &str) -> Result<Self, TlsError> {
        regex::RegexBuilder::new(&format!("^(?:{pattern})$"))
            .size_limit(1 << 20)
            .build()
            .map(|regex| Self::Regex(Box::new(regex)))
            .map_err(|error| TlsError::Pattern {
                pattern: pattern.to_owned(),
                reason: error.to_string(),
            })
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(text) => name == text,
            Self::Prefix(text) => name.starts_with(text.as_str()),
            Self::Suffix(text) => name.ends_with(text.as_str()),
            Self::Contains(text) => name.contains(text.as_str()),
            Self::Regex(regex) => regex.is_match(name),
        }
    }

    fn lower(&self) -> Self {
        match self {
            Self::Exact(text) => Self::Exact(text.to_ascii_lowercase()),
            Self::Prefix(text) => Self::Prefix(text.to_ascii_lowercase()),
            Self::Suffix(text) => Self::Suffix(text.to_ascii_lowercase()),
            Self::Contains(text) => Self::Contains(text.to_ascii_lowercase()),
            Self::Regex(regex) => Self::Regex(regex.clone()),
        }
    }
}

impl fmt::Display for TextMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
            Self::Contains(text) => write!(f, "*{text}*"),
            Self::Regex(regex) => write!(f, "/{regex}/"),
        }
    }
}

/// One matcher. A certificate satisfies a list of matchers if any of its names matches any of them.
#[derive(Debug, Clone)]
pub struct SanMatcher {
    kind: SanKind,
    text: TextMatch,
    ignore_case: bool,
}

impl SanMatcher {
    /// A matcher for names of one kind.
    pub fn new(kind: SanKind, text: TextMatch) -> Self {
        Self {
            kind,
            text,
            ignore_case: false,
        }
    }

    /// Matches exactly this URI.
    pub fn uri(uri: impl Into<String>) -> Self {
        Self::new(SanKind::Uri, TextMatch::Exact(uri.into()))
    }

    /// Compares without regard to ASCII case (Envoy's `StringMatcher.ignore_case`).
    pub fn ignoring_case(mut self) -> Self {
        self.ignore_case = true;
        self
    }

    /// Whether a name of the certificate matches.
    pub fn matches(&self, certificate: &CertificateInfo) -> bool {
        let uri = || certificate.uri_sans.iter().any(|name| self.compare(name));
        let dns = || {
            certificate
                .dns_sans
                .iter()
                .any(|name| self.compare_dns(name))
        };

        let ip = || {
            certificate
                .ip_sans
                .iter()
                .any(|address| self.compare(&address.to_string()))
        };

        match self.kind {
            SanKind::Uri => uri(),
            SanKind::Dns => dns(),
            SanKind::Ip => ip(),
            SanKind::Any => uri() || dns() || ip(),
        }
    }

    fn compare(&self, name: &str) -> bool {
        match self.ignore_case {
            true => self.text.lower().matches(&name.to_ascii_lowercase()),
            false => self.text.matches(name),
        }
    }

    fn compare_dns(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        let text = self.text.lower();

        // Envoy: an exact matcher is the host name, so a wildcard in the certificate applies to it
        // (RFC 6125 §6.4.3).
        let wildcard = match (&text, name.strip_prefix("*.")) {
            (TextMatch::Exact(host), Some(parent)) => host
                .split_once('.')
                .is_some_and(|(label, rest)| !label.is_empty() && rest == parent),
            _ => false,
        };

        wildcard || text.matches(&name)
    }
}

impl fmt::Display for SanMatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            SanKind::Uri => write!(f, "URI:{}", self.text),
            SanKind::Dns => write!(f, "DNS:{}", self.text),
            SanKind::Ip => write!(f, "IP:{}", self.text),
            SanKind::Any => write!(f, "{}", self.text),
        }
    }
}
