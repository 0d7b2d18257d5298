//! A file of objects: split once into its documents, of which each is read once at most, however
//! many objects a call looks for.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use meltemi_api::{Chunk, Object, ObjectKey, chunks, parse};
use meltemi_types::ObjectRef;

use super::edit::{Located, list_index};

/// The text of a file, with its documents.
#[derive(Debug)]
pub(super) struct SplitFile {
    path: PathBuf,
    text: Arc<str>,
    documents: Vec<Document>,
    /// The documents that each word stands in, first to last.
    words: HashMap<Box<str>, Vec<usize>>,
}

#[derive(Debug)]
struct Document {
    chunk: Chunk,
    contents: OnceCell<Contents>,
}

/// The objects of a document.
#[derive(Debug)]
struct Contents {
    sound: HashMap<ObjectKey, Arc<Object>>,
    /// Objects whose kind and name can be read, and not the rest.
    refused: HashSet<ObjectKey>,
    /// Objects that only a finding names.
    broken: HashSet<ObjectRef>,
    /// How many objects there are, without the broken ones.
    count: usize,
}

impl SplitFile {
    /// Reads a file of the disk; `None` if it cannot be read.
    pub fn read(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        Some(Self::of(path.to_owned(), text))
    }

    pub fn of(path: PathBuf, text: String) -> Self {
        let mut words: HashMap<Box<str>, Vec<usize>> = HashMap::new();
        let mut documents = Vec::new();
        for chunk in chunks(&text) {
            let at = documents.len();
            for word in words_of(&text[chunk.start..chunk.end]) {
                match words.get_mut(word) {
                    Some(places) if places.last() == Some(&at) => {}
                    Some(places) => places.push(at),
                    None => _ = words.insert(word.into(), vec![at]),
                }
            }

            documents.push(Document {
                chunk,
                contents: OnceCell::new(),
            });
        }

        Self {
            path,
            text: text.into(),
            documents,
            words,
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The first place of an object. An object that is there but faulty is found too: it is to be
    /// replaced.
    pub fn find(&self, key: &ObjectKey) -> Option<Located> {
        match words_of(&key.name).next() {
            Some(word) => {
                let mut places = self.words.get(word).into_iter().flatten();
                places.find_map(|at| self.find_in(&self.documents[*at], key))
            }
            None => self.documents.iter().find_map(|one| self.find_in(one, key)),
        }
    }

    fn find_in(&self, document: &Document, key: &ObjectKey) -> Option<Located> {
        let text = &self.text[document.chunk.start..document.chunk.end];
        let contents = document
            .contents
            .get_or_init(|| Contents::of(&self.path, text));

        let held = contents.sound.get(key).cloned();
        let item = match &held {
            Some(held) => held.source.item,
            None if contents.has_faulty(key) => list_index(text, key),
            None => return None,
        };

        Some(Located {
            file: self.path.clone(),
            text: Arc::clone(&self.text),
            chunk: document.chunk,
            item,
            held,
            neighbours: contents.count.saturating_sub(1),
        })
    }
}

impl Contents {
    fn of(path: &Path, text: &str) -> Self {
        let parsed = parse(&path.to_string_lossy(), text);
        let count = parsed.objects.len() + parsed.refused.len();
        let broken = match parsed.unreadable {
            1 => parsed
                .diagnostics
                .into_iter()
                .map(|one| one.object)
                .collect(),
            _ => HashSet::new(),
        };

        // Of two objects with one key the first one counts.
        let mut sound = HashMap::new();
        for object in parsed.objects {
            sound
                .entry(object.key())
                .or_insert_with(|| Arc::new(object));
        }

        Self {
            sound,
            refused: parsed.refused.into_iter().collect(),
            broken,
            count,
        }
    }

    fn has_faulty(&self, key: &ObjectKey) -> bool {
        self.refused.contains(key)
            || (!self.broken.is_empty() && self.broken.contains(&key.object_ref()))
    }
}

/// The words of a text. A name has at least one, and has it wherever it stands.
fn words_of(text: &str) -> impl Iterator<Item = &str> {
    let separates = |c: char| !(c.is_alphanumeric() || matches!(c, '-' | '.' | '_'));
    text.split(separates).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use meltemi_api::Kind;

    use super::*;

    fn service(name: &str) -> ObjectKey {
        ObjectKey::new(Kind::Service, "default", name)
    }

    fn document(name: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: \"{name}\"}}\nspec: {{ports: [{{port: 80}}]}}\n"
        )
    }

    fn file(text: String) -> SplitFile {
        SplitFile::of("services.yaml".into(), text)
    }

    #[test]
    fn a_document_is_read_once_and_only_for_a_name_that_stands_in_it() {
        let names: Vec<String> = (0..500).map(|number| format!("s-{number}")).collect();
        let documents: Vec<String> = names.iter().map(|name| document(name)).collect();
        let split = file(documents.join("---\n"));
        let read = || {
            let documents = split.documents.iter();
            documents
                .filter(|document| document.contents.get().is_some())
                .count()
        };

        assert!(split.find(&service("s-7")).is_some());
        assert_eq!(read(), 1, "neither s-70 nor any other");
        assert!(split.find(&service("s")).is_none());
        assert_eq!(read(), 1, "no document has the word");

        for (at, name) in names.iter().enumerate() {
            let found = split.find(&service(name)).expect("it is there");
            assert_eq!(found.chunk, split.documents[at].chunk);
        }
        assert_eq!(read(), names.len());
    }

    #[test]
    fn the_first_place_counts_in_whatever_form() {
        let list = format!(
            "apiVersion: v1\nkind: List\nitems:\n- {}\n- {}\n",
            document("listed").trim_end().replace('\n', "\n  "),
            document("twice").trim_end().replace('\n', "\n  "),
        );
        let faulty = "apiVersion: v1\nkind: Service\nmetadata: {name: faulty}\nspec: {ports: 3}\n";
        let text = [
            document("alone"),
            list,
            faulty.to_owned(),
            document("twice"),
        ];
        let split = file(text.join("---\n"));

        let place = |name: &str| {
            let found = split.find(&service(name))?;
            let mut documents = split.documents.iter();
            let at = documents.position(|one| one.chunk == found.chunk)?;
            Some((at, found.item, found.held.is_some()))
        };
        assert_eq!(place("alone"), Some((0, None, true)));
        assert_eq!(place("listed"), Some((1, Some(0), true)));
        assert_eq!(place("twice"), Some((1, Some(1), true)));
        assert_eq!(place("faulty"), Some((2, None, false)));
        assert_eq!(place("absent"), None);
        assert_eq!(place(""), None);
    }
}
