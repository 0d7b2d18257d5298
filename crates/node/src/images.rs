//! Maps container images to programs of this machine, since the node pulls no images.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// An image map. The first entry whose pattern matches wins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageMap {
    /// The entries, tried in order.
    pub images: Vec<ImageEntry>,
}

/// One pattern and the program that it stands for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageEntry {
    /// Image reference; `*` matches any text. Registry and tag may be left out.
    pub image: String,
    /// Program and arguments, at least one word; the program `meltemi` is this binary.
    pub command: Vec<String>,
    /// Environment of the program; the container's own variables override it.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory; relative to the map's file once [`ImageMap::relative_to`] was called.
    #[serde(default)]
    pub cwd: Option<PathBuf>,
}

/// Why a text is not an image map.
#[derive(Debug, thiserror::Error)]
#[error(
    "image map {file}: {message}; it looks like `images: [{{image: my-app, command: [./my-server, --port, \"8080\"]}}]`"
)]
pub struct ImageMapError {
    file: String,
    message: String,
}

impl ImageMap {
    /// Parses a map; `file` names the map in errors.
    pub fn parse(file: &str, text: &str) -> Result<Self, ImageMapError> {
        let error = |message: String| ImageMapError {
            file: file.to_owned(),
            message,
        };
        let map: Self = serde_saphyr::from_str(text).map_err(|e| error(e.to_string()))?;
        match map.images.iter().find(|entry| entry.command.is_empty()) {
            Some(entry) => Err(error(format!("image {:?} has no command", entry.image))),
            None => Ok(map),
        }
    }

    /// Reads a map from a file. Relative programs and directories are resolved against the file's
    /// folder.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        use anyhow::Context as _;
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("image map {}", path.display()))?;
        let folder = std::fs::canonicalize(path)?
            .parent()
            .map(PathBuf::from)
            .unwrap_or_default();
        Ok(Self::parse(&path.display().to_string(), &text)?.relative_to(&folder))
    }

    /// Resolves relative programs and directories against `folder`. A program without a slash stays
    /// as it is: it is looked up on the PATH.
    #[must_use]
    pub fn relative_to(mut self, folder: &Path) -> Self {
        for entry in &mut self.images {
            if let Some(program) = entry
                .command
                .first_mut()
                .filter(|p| p.contains('/') && !p.starts_with('/'))
            {
                *program = folder.join(&*program).display().to_string();
            }

            entry.cwd = Some(
                entry
                    .cwd
                    .as_deref()
                    .map_or_else(|| folder.to_owned(), |cwd| folder.join(cwd)),
            );
        }

        self
    }

    /// The first entry that matches an image reference.
    pub fn find(&self, image: &str) -> Option<&ImageEntry> {
        let spellings = spellings(image);
        self.images.iter().find(|entry| {
            spellings
                .iter()
                .any(|spelling| fits(&entry.image, spelling))
        })
    }
}

/// The forms of a reference that a pattern may match: whole, without tag, without registry and
/// path, and without both.
fn spellings(image: &str) -> [&str; 4] {
    let untagged = |reference: &'_ str| -> usize {
        let name = reference.rfind('/').map_or(0, |slash| slash + 1);
        reference[name..]
            .find([':', '@'])
            .map_or(reference.len(), |at| name + at)
    };

    let short = image.rsplit('/').next().unwrap_or(image);
    [
        image,
        &image[..untagged(image)],
        short,
        &short[..untagged(short)],
    ]
}

/// Whether `pattern`, in which `*` matches any text, matches all of `text`.
fn fits(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => text.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).any(|at| rest.is_char_boundary(at) && fits(tail, &rest[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_references() {
        let map = ImageMap::parse(
            "t",
            "images:\n- {image: 'examples-bookinfo-reviews-*', command: [a]}\n- {image: nginx, command: [b]}\n- {image: 'reg.io/x/*', command: [c]}",
        )
        .unwrap();

        let command = |image| map.find(image).map(|entry| entry.command[0].as_str());
        assert_eq!(
            command("docker.io/istio/examples-bookinfo-reviews-v2:1.20.3"),
            Some("a")
        );

        assert_eq!(command("nginx:1.27"), Some("b"));
        assert_eq!(command("localhost:5000/nginx@sha256:00"), Some("b"));
        assert_eq!(command("reg.io/x/y:1"), Some("c"));
        assert_eq!(command("httpd"), None);
    }

    #[test]
    fn mistakes_are_named() {
        let error = ImageMap::parse("map.yaml", "images: [{image: a, command: []}]")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("map.yaml") && error.contains("\"a\" has no command"),
            "{error}"
        );
        assert!(ImageMap::parse("m", "images: [{imagge: a, command: [x]}]").is_err());
    }
}
