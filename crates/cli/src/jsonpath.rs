//! JSONPath templates as kubectl takes them: text with `{...}` actions, `{range}` and `{end}`,
//! fields, indexes, slices, unions, filters and recursive descent. Kubernetes' dialect is neither
//! RFC 9535 nor Goessner's, and this file follows its client library: `$` and `@` both mean the
//! current value, `['a.b']` is the path `.a.b`, a missing field is nothing, and an index behind the
//! end of an array is an error.

mod parse;

use std::cmp::Ordering;

use anyhow::{Result, bail};
use serde_json::Value;

/// A template of `-o jsonpath=`.
#[derive(Debug, Clone, PartialEq)]
pub struct Template(Vec<Piece>);

/// One path, such as `.metadata.name`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Path(Vec<Step>);

#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Text(String),
    Path(Path),
    Range(Path, Vec<Piece>),
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    /// `[*]` and `.*`
    Each,
    Index(i64),
    /// `[start:end:step]`
    Slice(Option<i64>, Option<i64>, Option<i64>),
    /// `..`: the value and all values below it.
    Descend,
    /// `[a,b]`
    Union(Vec<Path>),
    Filter(Operand, Option<(Operator, Operand)>),
}

#[derive(Debug, Clone, PartialEq)]
enum Operand {
    Path(Path),
    Literal(Value),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    Unequal,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

impl Template {
    /// Fills the template in from a value.
    ///
    /// # Errors
    /// For an index behind an array's end, and for an index or filter on a value that is no array.
    pub fn render(&self, value: &Value) -> Result<String> {
        let mut out = String::new();
        render(&self.0, value, &mut out)?;
        Ok(out)
    }
}

fn render(pieces: &[Piece], value: &Value, out: &mut String) -> Result<()> {
    for piece in pieces {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Path(path) => {
                let found: Vec<_> = path.find(value)?.into_iter().map(text).collect();
                out.push_str(&found.join(" "));
            }
            Piece::Range(path, body) => {
                for item in path.find(value)? {
                    render(body, item, out)?;
                }
            }
        }
    }

    Ok(())
}

/// A value as kubectl prints it: strings without quotes, lists and mappings as JSON.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        // Go's encoder escapes these characters, which could end a script in HTML.
        Value::Array(_) | Value::Object(_) => value
            .to_string()
            .replace('<', "\\u003c")
            .replace('>', "\\u003e")
            .replace('&', "\\u0026"),
        other => other.to_string(),
    }
}

impl Path {
    /// The values that the path leads to.
    ///
    /// # Errors
    /// As for [`Template::render`].
    pub(crate) fn find<'v>(&self, value: &'v Value) -> Result<Vec<&'v Value>> {
        let mut current = vec![value];
        for step in &self.0 {
            let mut next = Vec::new();
            step.take(&current, &mut next)?;
            current = next;
        }

        Ok(current)
    }
}

impl Step {
    /// Adds the values to which the step leads.
    fn take<'v>(&self, values: &[&'v Value], out: &mut Vec<&'v Value>) -> Result<()> {
        // A union takes its first path of every value, then its second.
        if let Self::Union(paths) = self {
            for path in paths {
                for value in values {
                    out.extend(path.find(value)?);
                }
            }
            return Ok(());
        }

        for value in values {
            self.take_one(value, out)?;
        }
        Ok(())
    }

    fn take_one<'v>(&self, value: &'v Value, out: &mut Vec<&'v Value>) -> Result<()> {
        match self {
            Self::Field(name) => out.extend(value.get(name)),
            Self::Each => out.extend(children(value)),
            Self::Descend => descend(value, out),
            Self::Union(_) => self.take(&[value], out)?,
            Self::Index(index) => {
                let list = array(value)?;
                let length = list.len();
                let Some(item) = position(*index, length).and_then(|at| list.get(at)) else {
                    bail!("array index out of bounds: index {index}, length {length}");
                };
                out.push(item);
            }
            Self::Slice(start, end, step) => {
                let list = array(value)?;
                let bound = |index: i64| position(index, list.len()).unwrap_or(0).min(list.len());
                let start = start.map_or(0, bound);
                let end = end.map_or(list.len(), bound).max(start);
                let step = step.and_then(|step| usize::try_from(step).ok());
                out.extend(list[start..end].iter().step_by(step.unwrap_or(1).max(1)));
            }
            Self::Filter(left, comparison) => {
                for item in array(value)? {
                    if holds(item, left, comparison.as_ref())? {
                        out.push(item);
                    }
                }
            }
        }

        Ok(())
    }
}

/// The items of a list; none for null.
fn array(value: &Value) -> Result<&[Value]> {
    match value {
        Value::Array(list) => Ok(list),
        Value::Null => Ok(&[]),
        other => bail!("{} is not array or slice", text(other)),
    }
}

/// The position of an index, which counts from the end if it is negative.
fn position(index: i64, length: usize) -> Option<usize> {
    match usize::try_from(index) {
        Ok(index) => Some(index),
        Err(_) => length.checked_sub(usize::try_from(index.unsigned_abs()).ok()?),
    }
}

fn children(value: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match value {
        Value::Array(list) => Box::new(list.iter()),
        Value::Object(map) => Box::new(map.values()),
        _ => Box::new(std::iter::empty()),
    }
}

fn descend<'v>(value: &'v Value, out: &mut Vec<&'v Value>) {
    out.push(value);
    for child in children(value) {
        descend(child, out);
    }
}

/// Whether an item passes a filter. A path that leads nowhere fails every comparison.
fn holds(item: &Value, left: &Operand, comparison: Option<&(Operator, Operand)>) -> Result<bool> {
    let Some(left) = operand(left, item)? else {
        return Ok(false);
    };
    let Some((operator, right)) = comparison else {
        return Ok(true);
    };
    let Some(right) = operand(right, item)? else {
        return Ok(false);
    };

    let ordering = compare(left, right);
    Ok(match operator {
        Operator::Equal => left == right || ordering == Some(Ordering::Equal),
        Operator::Unequal => left != right && ordering != Some(Ordering::Equal),
        Operator::Less => ordering == Some(Ordering::Less),
        Operator::AtMost => ordering.is_some_and(Ordering::is_le),
        Operator::Greater => ordering == Some(Ordering::Greater),
        Operator::AtLeast => ordering.is_some_and(Ordering::is_ge),
    })
}

fn operand<'v>(operand: &'v Operand, item: &'v Value) -> Result<Option<&'v Value>> {
    match operand {
        Operand::Literal(value) => Ok(Some(value)),
        Operand::Path(path) => Ok(path.find(item)?.first().copied()),
    }
}

/// The order of two numbers or two strings; `None` for values of different types.
fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Number(a), Value::Number(b)) => a.as_f64()?.partial_cmp(&b.as_f64()?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service() -> Value {
        json!({
            "kind": "Service",
            "metadata": {"name": "a", "labels": {"app.io/name": "x"}},
            "spec": {"ports": [{"name": "http", "port": 80}, {"name": "t<p", "port": 90}]},
        })
    }

    fn filled(template: &str) -> Result<String> {
        template.parse::<Template>()?.render(&service())
    }

    /// `kubectl label --local -f FILE a=b -o jsonpath=TEMPLATE` of version 1.32 gave the answers.
    #[test]
    fn templates_are_filled_in_as_by_kubectl() {
        for (template, expected) in [
            ("{.spec.ports[*].port}", "80 90"),
            ("{$.metadata.name}", "a"),
            (".kind", ".kind"),
            ("kind: {.kind}!", "kind: Service!"),
            (
                "{range .spec.ports[*]}{.name}{\"\\t\"}{.port}{'\\n'}{end}.",
                "http\t80\nt<p\t90\n.",
            ),
            ("{.spec.ports[?(@.port>80)].port}", "90"),
            ("{.spec.ports[?(@.name==\"http\")].port}", "80"),
            ("{.spec.ports[?(@.name!='http')].port}", "90"),
            ("{.spec.ports[?(@.port)].name}", "http t<p"),
            ("{.spec.ports[?(@.nope)].port}", ""),
            ("{.spec.ports[?(@.nope!='x')].port}", ""),
            ("{.metadata.labels.app\\.io/name}", "x"),
            ("{.metadata.labels['app\\.io/name']}", "x"),
            ("{['metadata.name']}", "a"),
            ("{.spec.ports[-1].port}", "90"),
            ("{.spec.ports[0:1].port}", "80"),
            ("{.spec.ports[::2].port}", "80"),
            ("{.spec.ports[0,1].port}", "80 90"),
            ("{.spec.ports[*]['name','port']}", "http t<p 80 90"),
            ("{..port}", "80 90"),
            ("{.spec.ports[1]}", r#"{"name":"t\u003cp","port":90}"#),
            ("{.spec.nothing.x}", ""),
        ] {
            assert_eq!(filled(template).unwrap(), expected, "{template}");
        }
    }

    #[test]
    fn faults_of_templates_are_errors() {
        for (template, fault) in [
            (
                "{.spec.ports[7]}",
                "array index out of bounds: index 7, length 2",
            ),
            ("{.kind[0]}", "Service is not array or slice"),
            ("{.spec", "unclosed action"),
            ("{range .spec.ports[*]}x", "unclosed range"),
            ("{end}", "not in range"),
            ("{.spec[}", "unterminated array"),
            ("{kind}", "unrecognized identifier kind"),
        ] {
            let error = filled(template).unwrap_err().to_string();
            assert!(error.contains(fault), "{template}: {error}");
        }
    }
}
