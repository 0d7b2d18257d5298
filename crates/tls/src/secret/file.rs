//! Secrets in files, under the SDS names of Istio's agent: `file-root:system`, `file-root:PATH`,
//! `file-cert:CERT~KEY`.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;

use super::Secret;
use crate::{Identity, TrustBundle};

const SYSTEM: &str = "system";

/// A parsed file name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileName<'a> {
    /// Roots: `system`, or the path of a PEM file.
    Root(&'a str),
    /// A certificate chain and its key, both PEM files.
    Certificate(&'a str, &'a str),
}

impl<'a> FileName<'a> {
    /// Parses a secret's name; `None` if it does not stand for a file.
    pub(super) fn of(name: &'a str) -> Option<Self> {
        if let Some(path) = name.strip_prefix("file-root:") {
            return Some(Self::Root(path));
        }
        let (certificate, key) = name.strip_prefix("file-cert:")?.split_once('~')?;
        Some(Self::Certificate(certificate, key))
    }

    /// Reads the files and returns the secret with a hash of the content; `None` if the hash equals
    /// `before`. The error names the file.
    pub(super) fn read(self, before: Option<u64>) -> Result<Option<(Secret, u64)>, String> {
        let file =
            |path: &str| fs::read(path).map_err(|error: io::Error| format!("{path}: {error}"));
        let texts = match self {
            Self::Root(SYSTEM) => vec![],
            Self::Root(path) => vec![file(path)?],
            Self::Certificate(certificate, key) => vec![file(certificate)?, file(key)?],
        };

        let mut hasher = DefaultHasher::new();
        texts.hash(&mut hasher);
        let hash = hasher.finish();
        if before == Some(hash) {
            return Ok(None);
        }
        let secret = match (self, texts.as_slice()) {
            (Self::Root(path), [roots]) => Secret::trust(
                TrustBundle::from_pem(roots).map_err(|error| format!("{path}: {error}"))?,
            ),
            (Self::Certificate(path, _), [certificate, key]) => Secret::identity(
                Identity::from_pem(certificate, key).map_err(|error| format!("{path}: {error}"))?,
            ),
            _ => Secret::trust(TrustBundle::system()),
        };

        Ok(Some((secret, hash)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn istios_file_names_are_parsed() {
        assert_eq!(
            FileName::of("file-root:system"),
            Some(FileName::Root("system"))
        );

        assert_eq!(
            FileName::of("file-root:/a/b.pem"),
            Some(FileName::Root("/a/b.pem"))
        );

        assert_eq!(
            FileName::of("file-cert:/c~/k"),
            Some(FileName::Certificate("/c", "/k"))
        );

        assert_eq!(FileName::of("default"), None);
    }

    #[test]
    fn an_unchanged_file_is_skipped_and_errors_name_the_file() {
        let (_, first) = FileName::of("file-root:system")
            .expect("a name")
            .read(None)
            .expect("always there")
            .expect("new");

        assert!(
            FileName::Root(SYSTEM)
                .read(Some(first))
                .expect("always there")
                .is_none()
        );

        let error = FileName::Root("/no/such/file")
            .read(None)
            .expect_err("it does not exist");
        assert!(error.contains("/no/such/file"), "{error}");
    }
}
