//! One document of a file is changed or removed; its comments and every other byte of the file stay.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use meltemi_api::{Chunk, Object, ObjectKey, to_yaml, value_of};
use serde_json::Value;

use super::comments::{around, with_comments_of};
use super::{ApplyError, rfc3339};

/// An object's place in a file.
#[derive(Debug)]
pub(super) struct Located {
    pub file: PathBuf,
    /// The file's whole text.
    pub text: Arc<str>,
    pub chunk: Chunk,
    /// If the document is a list, which item.
    pub item: Option<usize>,
    /// The object as it is there, if it could be read.
    pub held: Option<Arc<Object>>,
    /// How many objects the document holds beside it, outside of lists.
    pub neighbours: usize,
}

impl Located {
    /// The file that holds the object.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The refusal to edit the user's file.
    pub fn in_users_file(&self, key: &ObjectKey) -> ApplyError {
        ApplyError::InUsersFile {
            key: key.clone(),
            file: self.file.clone(),
            line: self.line(),
        }
    }

    /// The line of the object's name in the file; that of its document where the object cannot be
    /// read.
    fn line(&self) -> u32 {
        let within = self
            .held
            .as_ref()
            .map_or(1, |held| held.source.position("metadata.name").line.max(1));
        self.chunk.line + within - 1
    }

    /// The document's text, without its separator line.
    pub fn document(&self) -> &str {
        body(&self.text[self.chunk.start..self.chunk.end])
    }

    /// Whether the object there says the same already.
    pub fn says(&self, object: &Object) -> bool {
        self.held.as_ref().is_some_and(|held| held.says_as(object))
    }

    /// When the object there was created: as it says, else when its file was written last.
    pub fn created(&self) -> String {
        let said = self
            .held
            .as_ref()
            .and_then(|held| held.meta.creation.clone());
        said.unwrap_or_else(|| {
            let written = fs::metadata(&self.file).and_then(|file| file.modified());
            rfc3339(written.unwrap_or_else(|_| SystemTime::now()))
        })
    }

    /// The file's text with the object as `document`.
    pub fn with(
        &self,
        key: &ObjectKey,
        object: &Object,
        document: &str,
    ) -> Result<String, ApplyError> {
        if self.is_json() || self.item.is_some() {
            return self.rewrite(key, Some(&object.raw));
        }
        self.sole(key)?;
        Ok(self.replace(&self.commented(key, document)?))
    }

    /// The file's text without the object.
    pub fn without(&self, key: &ObjectKey) -> Result<String, ApplyError> {
        if self.item.is_some() {
            return self.rewrite(key, None);
        }
        self.sole(key)?;
        let (before, after) = (&self.text[..self.chunk.start], &self.text[self.chunk.end..]);
        let comments = separator_comment(&self.text[self.chunk.start..self.chunk.end])
            + &around(self.document());

        // The first document's separator would be left over in front of the next one.
        let after = if before.trim().is_empty() && comments.is_empty() {
            body(after)
        } else {
            after
        };

        Ok(format!("{before}{comments}{after}"))
    }

    /// The new document with the comments of the old one.
    fn commented(&self, key: &ObjectKey, document: &str) -> Result<String, ApplyError> {
        with_comments_of(self.document(), document)
            .ok_or_else(|| self.not_editable(key, "the document here is not valid YAML"))
    }

    fn is_json(&self) -> bool {
        serde_json::from_str::<Value>(self.document()).is_ok()
    }

    fn sole(&self, key: &ObjectKey) -> Result<(), ApplyError> {
        if self.neighbours == 0 {
            return Ok(());
        }
        Err(self.not_editable(
            key,
            "several documents share the lines between two --- separators",
        ))
    }

    fn not_editable(&self, key: &ObjectKey, reason: &'static str) -> ApplyError {
        ApplyError::NotEditable {
            key: key.clone(),
            file: self.file.clone(),
            line: self.line(),
            reason,
        }
    }

    /// The document written anew: an item of a list, or JSON, has no lines of its own.
    fn rewrite(&self, key: &ObjectKey, object: Option<&Value>) -> Result<String, ApplyError> {
        let mut value = value_of(self.document())
            .ok_or_else(|| self.not_editable(key, "the document around it is not valid YAML"))?;
        match (self.item, object) {
            (Some(index), object) => {
                let items = value.get_mut("items").and_then(Value::as_array_mut);
                let items = items
                    .filter(|items| index < items.len())
                    .ok_or_else(|| self.not_editable(key, "its list was not found"))?;
                match object {
                    Some(object) => items[index] = object.clone(),
                    None => {
                        items.remove(index);
                    }
                }
            }
            (None, Some(object)) => value = object.clone(),
            (None, None) => {}
        }

        let text = if self.is_json() {
            format!("{value:#}\n")
        } else {
            self.commented(key, &to_yaml(&value))?
        };

        Ok(self.replace(&text))
    }

    fn replace(&self, document: &str) -> String {
        let chunk = &self.text[self.chunk.start..self.chunk.end];
        let head = &chunk[..chunk.len() - body(chunk).len()];
        let head = if head.is_empty() || head.ends_with('\n') {
            head.to_owned()
        } else {
            format!("{head}\n")
        };
        let (before, after) = (&self.text[..self.chunk.start], &self.text[self.chunk.end..]);
        format!("{before}{head}{document}{after}")
    }
}

/// A chunk without its separator line; what stands behind `---` on that line is part of the
/// document.
pub(super) fn body(chunk: &str) -> &str {
    let Some(rest) = chunk.strip_prefix("---") else {
        return chunk;
    };
    let line_end = rest.find('\n').map_or(rest.len(), |at| at + 1);
    let line = rest[..line_end].trim();

    if line.is_empty() || line.starts_with('#') {
        &rest[line_end..]
    } else {
        rest
    }
}

/// The comment behind a chunk's `---`, as a line of its own.
fn separator_comment(chunk: &str) -> String {
    let line = chunk.lines().next().unwrap_or_default();
    match line.strip_prefix("---").map(str::trim) {
        Some(comment) if comment.starts_with('#') => format!("{comment}\n"),
        _ => String::new(),
    }
}

/// The place of a faulty object among the items of its list.
pub(super) fn list_index(document: &str, key: &ObjectKey) -> Option<usize> {
    let value = value_of(body(document))?;
    let items = value.get("items")?.as_array()?;
    items.iter().position(|item| {
        item.get("kind").and_then(Value::as_str) == Some(key.kind.word())
            && item.pointer("/metadata/name").and_then(Value::as_str) == Some(&key.name)
            && item
                .pointer("/metadata/namespace")
                .and_then(Value::as_str)
                .unwrap_or(if key.kind.is_namespaced() {
                    "default"
                } else {
                    ""
                })
                == key.namespace
    })
}
