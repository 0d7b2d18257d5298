//! The mesh's own file of an applied object: its name and its text.

use meltemi_api::{Chunk, Object, ObjectKey, chunks, parse, to_yaml};
use serde_json::Value;

use super::edit::body;

/// A text that objects were read from, cut into its documents once for all of them.
pub(super) struct Documents<'a> {
    text: &'a str,
    chunks: Vec<Chunk>,
}

impl<'a> Documents<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Self {
            text,
            chunks: chunks(text),
        }
    }

    /// The object's own lines of the text, comments included, where it has such; else new YAML.
    pub(super) fn text_of(&self, object: &Object) -> String {
        if object.source.item.is_none()
            && let Some(chunk) = self.chunks.get(object.source.document)
        {
            let lines = body(&self.text[chunk.start..chunk.end]);

            // JSON, several documents in a chunk, and an object whose namespace was given beside
            // the text, are written anew.
            let again = parse("", lines);
            if !lines.trim_start().starts_with('{')
                && again.objects.len() == 1
                && again.objects[0] == *object
            {
                let mut lines = lines.trim_end().to_owned();
                lines.push('\n');
                return lines;
            }
        }

        to_yaml(&object.raw)
    }
}

/// The document with the time of its object's creation, as an API server would have it: what the
/// user says about that does not count.
pub(super) fn stamped(object: &Object, document: &str, created: &str) -> String {
    let mut wanted = object.clone();
    if let Some(metadata) = wanted
        .raw
        .get_mut("metadata")
        .and_then(Value::as_object_mut)
    {
        metadata.insert("creationTimestamp".to_owned(), created.into());
    }

    // A line of its own, where metadata is written in lines.
    let metadata = document
        .find("\nmetadata:\n")
        .map(|at| at + "\nmetadata:\n".len());
    let metadata = metadata.or_else(|| {
        document
            .starts_with("metadata:\n")
            .then_some("metadata:\n".len())
    });

    if let (Some(at), None) = (metadata, &object.meta.creation) {
        let indent: String = document[at..].chars().take_while(|c| *c == ' ').collect();
        let text = format!(
            "{}{indent}creationTimestamp: \"{created}\"\n{}",
            &document[..at],
            &document[at..]
        );

        let again = parse("", &text);
        if again.objects.len() == 1 && again.objects[0] == wanted {
            return text;
        }
    }

    to_yaml(&wanted.raw)
}

/// One name for each key, within what file systems take. A group may hold dots, as a name may: no
/// name holds a plus.
pub(super) fn file_name(key: &ObjectKey) -> String {
    let group = match key.kind.group() {
        group if key.kind.is_mesh() || group.is_empty() => String::new(),
        group => format!("+{}+", group.replace('/', "_")),
    };

    let readable = format!(
        "{}{group}.{}.{}",
        key.kind.word().to_ascii_lowercase(),
        key.namespace,
        key.name
    );

    if readable.len() <= 200 && !readable.contains('/') {
        return format!("{readable}.yaml");
    }
    let start: String = readable.chars().filter(|c| *c != '/').take(150).collect();

    format!("{start}-{:016x}.yaml", fnv1a(readable.as_bytes()))
}

/// FNV-1a, 64 bits (RFC 9923): the same in every release, since it names files.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
