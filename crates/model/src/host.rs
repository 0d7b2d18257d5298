//! Host names as configuration writes them: exact, or with a leading wildcard label.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// A DNS name in lower case without trailing dot, perhaps a wildcard (`*`, `*.example.com`). Cheap
/// to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hostname(Arc<str>);

impl Hostname {
    /// Folds case and the trailing dot, so that equal names compare equal.
    pub fn new(name: &str) -> Self {
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.bytes().any(|b| b.is_ascii_uppercase()) {
            Self(name.to_ascii_lowercase().into())
        } else {
            Self(name.into())
        }
    }

    /// What a name in an object of `namespace` stands for: names without a dot are Services of that
    /// namespace. Source: Istio `ResolveShortnameToFQDN`; `reviews.default` is taken as written.
    pub fn resolve(name: &str, namespace: &str, domain: &str) -> Self {
        if name.is_empty() || name == "*" || name.contains('.') || name.parse::<IpAddr>().is_ok() {
            return Self::new(name);
        }
        Self::new(&format!("{name}.{namespace}.svc.{domain}"))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it begins with a wildcard.
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with('*')
    }

    /// Whether every name that `self` stands for is among those of `other`: `a.example.com` and
    /// `*.a.example.com` are within `*.example.com`, `*` holds all. Source: Istio
    /// `host.Name.SubsetOf`.
    pub fn is_within(&self, other: &Self) -> bool {
        match (self.0.strip_prefix('*'), other.0.strip_prefix('*')) {
            (_, Some("")) => true,
            (Some(own), Some(suffix)) => own.ends_with(suffix),
            (Some(_), None) => false,
            (None, Some(suffix)) => self.0.len() > suffix.len() && self.0.ends_with(suffix),
            (None, None) => self.0 == other.0,
        }
    }

    /// Whether some name is among those of both. Source: Istio `host.Name.Matches`.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.is_within(other) || other.is_within(self)
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Hostname {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl AsRef<str> for Hostname {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for Hostname {
    fn eq(&self, other: &str) -> bool {
        &*self.0 == other
    }
}

impl PartialEq<&str> for Hostname {
    fn eq(&self, other: &&str) -> bool {
        &*self.0 == *other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_services_of_the_namespace() {
        let resolve = |name| Hostname::resolve(name, "shop", "cluster.local").to_string();
        assert_eq!(resolve("reviews"), "reviews.shop.svc.cluster.local");
        assert_eq!(resolve("reviews.other"), "reviews.other");
        assert_eq!(resolve("*"), "*");
        assert_eq!(resolve("::1"), "::1");
        assert_eq!(resolve("API.Example.com."), "api.example.com");
    }

    #[test]
    fn wildcards_hold_names_below_them_only() {
        let within = |a: &str, b: &str| Hostname::new(a).is_within(&Hostname::new(b));
        assert!(within("a.example.com", "*.example.com"));
        assert!(within("*.a.example.com", "*.example.com"));
        assert!(within("*", "*"));
        assert!(!within("example.com", "*.example.com"));
        assert!(!within("*.example.com", "a.example.com"));
        assert!(!within("*.com", "*.example.com"));
        assert!(Hostname::new("*.com").overlaps(&Hostname::new("a.com")));
        assert!(!Hostname::new("a.org").overlaps(&Hostname::new("*.com")));
    }
}
