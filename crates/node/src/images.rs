//! Which container image is which program of this machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// An image map: the first entry whose pattern fits decides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageMap {
    /// Entries, most specific first.
    pub images: Vec<ImageEntry>,
}

/// One pattern and its program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageEntry {
    /// Image reference; `*` stands for anything. Registry and tag may be left out.
    pub image: String,
    /// Program and arguments; the program `meltemi` is this very binary.
    pub command: Vec<String>,
    /// Environment, overridden by the container's own.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory; relative to the map's file once [`ImageMap::relative_to`] was called.
    #[serde(default)]
    pub cwd: Option<PathBuf>,
}

/// Why a text is no image map.
#[derive(Debug, thiserror::Error)]
#[error(
    "image map {file}: {message}; it looks like `images: [{{image: my-app, command: [./my-server, --port, \"8080\"]}}]`"
)]
pub struct ImageMapError {
    file: String,
    message: String,
}

impl ImageMap {
    /// Reads a map; `file` names it in errors.
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

    /// Reads a map from a file; programs and directories written with a path are relative to it.
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

    /// Makes relative paths absolute. A program without a slash is looked up on the PATH.
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

    /// The entry for an image.
    pub fn find(&self, image: &str) -> Option<&ImageEntry> {
        let spellings = spellings(image);
        self.images.iter().find(|entry| {
            spellings
                .iter()
                .any(|spelling| fits(&entry.image, spelling))
        })
    }
}

/// The reference itself, then without registry and folders, each without tag as well.
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
