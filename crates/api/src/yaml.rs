//! YAML text to JSON values with positions, as kubectl reads it.
//!
//! Scalars resolve as in sigs.k8s.io/yaml (YAML 1.1 words: unquoted `yes`, `on`, `y` are true),
//! merge keys work, map keys become strings. Aliases are paid for from a budget, so that a bomb of
//! them is refused; nesting is limited.

mod emit;
mod scalar;

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, StrInput, StructureStyle, Tag};
use serde_json::{Map, Value};

use crate::positions::{Children, Positions};
use crate::schema::{push_index, push_key};

pub use emit::to_yaml;

/// One document.
#[derive(Debug, Default)]
pub(crate) struct Document {
    pub value: Value,
    pub positions: Positions,
    /// Keys that are written twice, with path and place of the second; the second counts, as in
    /// kubectl.
    pub duplicates: Vec<(String, u32, u32)>,
}

/// Why a text is not YAML, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub message: String,
    pub line: u32,
    pub column: u32,
}

/// No configuration of a mesh nests deeper; recursion here and in whoever walks the value stays
/// shallow.
const MAX_NESTING: usize = 96;
/// What aliases may add to a document, in bytes of memory.
const ALIAS_BUDGET: usize = 8 << 20;
/// What a node weighs beside its text.
const NODE_WEIGHT: usize = 64;

/// Reads the only document of a text; an empty text is null.
pub(crate) fn parse_one(text: &str) -> Result<Document, Fault> {
    let mut documents = parse_all(text, 1)?;
    match documents.len() {
        0 => Ok(Document::default()),
        1 => Ok(documents.remove(0)),
        _ => Err(Fault {
            message: "more than one YAML document".to_owned(),
            line: 0,
            column: 0,
        }),
    }
}

/// Reads all documents of a text whose first line is line `first_line` of its file.
pub(crate) fn parse_all(text: &str, first_line: u32) -> Result<Vec<Document>, Fault> {
    let options = granit_parser::options! {
        emit_comments: false,
        flow_nesting_limit: MAX_NESTING,
        block_nesting_limit: MAX_NESTING,
    };

    let parser = Parser::new_from_str_with_options(text, options);
    let mut builder = Builder {
        parser,
        first_line,
        anchors: HashMap::new(),
        open_anchors: Vec::new(),
        budget: ALIAS_BUDGET,
        path: String::new(),
        duplicates: Vec::new(),
    };

    let mut documents = Vec::new();

    loop {
        match builder.next()? {
            (Event::StreamEnd, _) => return Ok(documents),
            (Event::StreamStart | Event::DocumentEnd, _) => {}
            (Event::DocumentStart(..), _) => {
                builder.anchors.clear();
                let (event, place) = builder.next()?;
                let node = builder.node(event, place)?;
                let duplicates = std::mem::take(&mut builder.duplicates);
                documents.push(Document {
                    value: node.value,
                    positions: node.positions,
                    duplicates,
                });
            }
            (_, place) => return Err(place.fault("unexpected content between documents")),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Place {
    line: u32,
    column: u32,
}

impl Place {
    fn fault(self, message: impl Into<String>) -> Fault {
        Fault {
            message: message.into(),
            line: self.line,
            column: self.column,
        }
    }
}

struct Node {
    value: Value,
    positions: Positions,
    weight: usize,
}

struct Builder<'t> {
    parser: Parser<'t, StrInput<'t>>,
    first_line: u32,
    anchors: HashMap<usize, (Value, usize)>,
    /// Anchors whose node is not complete: an alias to them is a cycle.
    open_anchors: Vec<usize>,
    budget: usize,
    path: String,
    duplicates: Vec<(String, u32, u32)>,
}

impl<'t> Builder<'t> {
    fn place(&self, line: usize, column: usize) -> Place {
        let line = u32::try_from(line).unwrap_or(u32::MAX).max(1);
        Place {
            line: line.saturating_add(self.first_line - 1),
            column: u32::try_from(column).unwrap_or(u32::MAX).saturating_add(1),
        }
    }

    fn next(&mut self) -> Result<(Event<'t>, Place), Fault> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, self.place(span.start.line(), span.start.col()))),
            Some(Err(error)) => {
                let place = self.place(error.marker().line(), error.marker().col());
                Err(place.fault(error.kind().to_string()))
            }
            None => Ok((Event::StreamEnd, self.place(1, 0))),
        }
    }

    fn node(&mut self, event: Event<'t>, place: Place) -> Result<Node, Fault> {
        let Place { line, column } = place;
        let positions = |children| Positions {
            line,
            column,
            children,
        };

        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar_value(&text, style, tag.as_deref(), place)?;
                let weight = NODE_WEIGHT + text.len();
                self.define(anchor, &value, weight);
                Ok(Node {
                    value,
                    positions: positions(Children::None),
                    weight,
                })
            }
            Event::SequenceStart(style, anchor, _) => {
                self.open_anchors.push(anchor);
                let (mut items, mut places, mut weight) = (Vec::new(), Vec::new(), NODE_WEIGHT);
                loop {
                    let (event, place) = self.next()?;
                    if matches!(event, Event::SequenceEnd) {
                        break;
                    }
                    let length = self.path.len();
                    push_index(&mut self.path, items.len());
                    let item = self.node(event, place)?;
                    self.path.truncate(length);
                    weight += item.weight;
                    let value = match style {
                        StructureStyle::Flow => colons_at_the_end(item.value),
                        StructureStyle::Block => item.value,
                    };
                    items.push(value);
                    places.push(item.positions);
                }

                self.open_anchors.pop();
                let value = Value::Array(items);
                self.define(anchor, &value, weight);
                Ok(Node {
                    value,
                    positions: positions(Children::Items(places)),
                    weight,
                })
            }
            Event::MappingStart(_, anchor, _) => {
                self.open_anchors.push(anchor);
                let node = self.mapping(place)?;
                self.open_anchors.pop();
                self.define(anchor, &node.value, node.weight);
                Ok(node)
            }
            Event::Alias(id) => {
                if self.open_anchors.contains(&id) {
                    return Err(place.fault("an alias refers to the node that it is part of"));
                }
                let (value, weight) = self
                    .anchors
                    .get(&id)
                    .ok_or_else(|| place.fault("an alias refers to no anchor"))?;

                let weight = *weight;
                self.budget = self.budget.checked_sub(weight).ok_or_else(|| {
                    place.fault(format!(
                        "aliases expand to more than {} MiB",
                        ALIAS_BUDGET >> 20
                    ))
                })?;

                Ok(Node {
                    value: value.clone(),
                    positions: positions(Children::None),
                    weight,
                })
            }
            other => Err(place.fault(format!("unexpected {other:?}"))),
        }
    }

    fn define(&mut self, anchor: usize, value: &Value, weight: usize) {
        if anchor != 0 {
            // The kept copy is at most as large as the text that wrote it, or as the budget that
            // paid for it.
            self.anchors.insert(anchor, (value.clone(), weight));
        }
    }

    fn mapping(&mut self, place: Place) -> Result<Node, Fault> {
        let mut map = Map::new();
        let mut fields: Vec<(Box<str>, Positions)> = Vec::new();
        let mut merges: Vec<Value> = Vec::new();
        let mut weight = NODE_WEIGHT;

        loop {
            let (event, key_place) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let is_merge =
                matches!(&event, Event::Scalar(text, ScalarStyle::Plain, _, None) if text == "<<");
            let key = self.node(event, key_place)?;
            let key_text = key_text(&key.value)
                .ok_or_else(|| key_place.fault("a key must be a plain value"))?;
            weight += key.weight;

            let length = self.path.len();
            push_key(&mut self.path, &key_text);
            let (event, value_place) = self.next()?;
            let value = self.node(event, value_place)?;
            weight += value.weight;
            if is_merge {
                self.path.truncate(length);
                match value.value {
                    Value::Array(items) => merges.extend(items),
                    other => merges.push(other),
                }
                continue;
            }

            let below = Positions {
                line: key_place.line,
                column: key_place.column,
                children: value.positions.children,
            };

            if map.insert(key_text.clone(), value.value).is_some() {
                self.duplicates
                    .push((self.path.clone(), key_place.line, key_place.column));
                fields.retain(|(name, _)| **name != *key_text);
            }

            fields.push((key_text.into_boxed_str(), below));
            self.path.truncate(length);
        }

        for merge in merges {
            let Value::Object(merged) = merge else {
                return Err(place.fault("a merge key needs a mapping or a list of mappings"));
            };
            for (key, value) in merged {
                map.entry(key).or_insert(value);
            }
        }

        let positions = Positions {
            line: place.line,
            column: place.column,
            children: Children::Fields(fields),
        };

        Ok(Node {
            value: Value::Object(map),
            positions,
            weight,
        })
    }
}

/// `[2001:db8::]`: to kubectl's reader the last colon is part of the text, and begins no value.
fn colons_at_the_end(item: Value) -> Value {
    let Value::Object(fields) = &item else {
        return item;
    };
    let mut pairs = fields.iter();
    match (pairs.next(), pairs.next()) {
        (Some((key, Value::Null)), None) if key.ends_with(':') => Value::String(format!("{key}:")),
        _ => item,
    }
}

/// Keys are strings in JSON: numbers and booleans become what they look like.
fn key_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Null => Some("null".to_owned()),
        Value::Array(_) | Value::Object(_) => None,
    }
}

fn scalar_value(
    text: &str,
    style: ScalarStyle,
    tag: Option<&Tag>,
    place: Place,
) -> Result<Value, Fault> {
    let resolved = || scalar::resolve(text);
    match tag.map(|tag| tag.core_suffix().unwrap_or("other")) {
        None if style == ScalarStyle::Plain => Ok(resolved()),
        None | Some("str" | "other") => Ok(Value::String(text.to_owned())),
        Some("null") => Ok(Value::Null),
        Some(wanted) => {
            let value = resolved();
            let fits = match wanted {
                "bool" => value.is_boolean(),
                "int" => value.is_i64() || value.is_u64(),
                "float" => value.is_number(),
                _ => true,
            };

            if fits {
                Ok(value)
            } else {
                Err(place.fault(format!(
                    "cannot read {:?} as !!{wanted}",
                    crate::schema::shorten(text)
                )))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn value(text: &str) -> Value {
        parse_one(text).expect("valid").value
    }

    #[test]
    fn fields_know_their_places() {
        let text = "a:\n  b:\n    - x: 1\n    - x: 2\n      y.z: 3\n";
        let document = parse_one(text).expect("valid");
        assert_eq!(
            document.value,
            json!({"a": {"b": [{"x": 1}, {"x": 2, "y.z": 3}]}})
        );

        assert_eq!(document.positions.find("a"), (1, 1));
        assert_eq!(document.positions.find("a.b"), (2, 3));
        assert_eq!(document.positions.find("a.b[1]"), (4, 7));
        assert_eq!(document.positions.find("a.b[1].x"), (4, 7));
        assert_eq!(document.positions.find("a.b[1][\"y.z\"]"), (5, 7));
        assert_eq!(document.positions.find("a.b[1].gone.far"), (4, 7));
        assert_eq!(document.positions.find("a.b[7]"), (2, 3));
    }

    #[test]
    fn anchors_merge_keys_and_duplicates() {
        let text = "base: &b {x: 1, z: 2}\nuse:\n  <<: *b\n  z: 3\nagain: *b\n";
        assert_eq!(
            value(text),
            json!({"base": {"x": 1, "z": 2}, "use": {"z": 3, "x": 1}, "again": {"x": 1, "z": 2}})
        );
        let document = parse_one("a: {b: 1, b: 2}\n").expect("valid");
        assert_eq!(document.value, json!({"a": {"b": 2}}));
        assert_eq!(document.duplicates, vec![("a.b".to_owned(), 1, 11)]);
    }

    #[test]
    fn keys_become_strings() {
        assert_eq!(
            value("{80: a, true: b, on: c, 'x': d}"),
            json!({"80": "a", "true": "c", "x": "d"})
        );
    }

    #[test]
    fn bombs_cycles_and_depth_are_refused() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..12 {
            let before = format!("*a{},", level - 1).repeat(10);
            bomb.push_str(&format!("a{level}: &a{level} [{before}]\n"));
        }

        assert!(
            parse_one(&bomb)
                .expect_err("a bomb")
                .message
                .contains("aliases expand")
        );

        assert!(parse_one("a: &a [*a]\n").is_err());
        assert!(parse_one(&"[".repeat(100_000)).is_err());
        assert!(parse_one(&"- ".repeat(100_000)).is_err());
    }

    #[test]
    fn a_fault_has_its_line() {
        let fault = parse_all("a: 1\nb: [1, 2\nc: 3\n", 10).expect_err("no end of the list");
        assert!(fault.line >= 11 && fault.line <= 14, "{fault:?}");
        let fault = parse_one("a: {}\nb: }\n").expect_err("a brace");
        assert_eq!((fault.line, fault.column), (2, 4), "{fault:?}");
    }
}
