//! Changes to header fields, as routes and filters ask for them.

use meltemi_proto::envoy::config::common::mutation_rules::v3 as rules;
use meltemi_proto::envoy::config::core::v3 as core;

use crate::finding::{Rejection, Scope};
use crate::format::{Facts, Place, Template};
use crate::head::{MAX_NAME, RequestHead, ResponseHead};
use crate::matcher::StringMatch;

/// A list of changes, in order.
#[derive(Debug, Clone, Default)]
pub struct HeaderOps {
    ops: Box<[Op]>,
}

#[derive(Debug, Clone)]
enum Op {
    Remove(Box<str>),
    RemoveMatching(StringMatch),
    Write {
        name: Box<str>,
        value: Value,
        action: AppendAction,
        keep_empty: bool,
    },
}

#[derive(Debug, Clone)]
enum Value {
    Constant(Box<[u8]>),
    Template(Template),
}

/// What happens where the field is there already. Source: Envoy `HeaderAppendAction`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AppendAction {
    /// A further line is added.
    #[default]
    Append,
    /// The existing field stays.
    AddIfAbsent,
    /// The field is replaced, or added if it is absent.
    Overwrite,
    /// The field is replaced, and not added if it is absent.
    OverwriteIfExists,
}

/// Fields that no configuration may change: they decide where a message ends, or what becomes of
/// its connection.
const FRAMING: [&str; 6] = [
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "upgrade",
];

/// Whether a field frames its message. Names are lower case.
pub(crate) fn is_framing(name: &str) -> bool {
    FRAMING.contains(&name)
}

/// Whether this is a lower-case field name, or a pseudo-header that may be written.
pub(crate) fn is_name(name: &str) -> bool {
    let token = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte)
    };
    match name.strip_prefix(':') {
        Some(_) => matches!(
            name,
            ":authority" | ":path" | ":method" | ":scheme" | ":status"
        ),
        None => !name.is_empty() && name.bytes().all(token),
    }
}

impl AppendAction {
    /// Writes a field.
    pub(crate) fn write(self, head: &mut impl HeadMut, name: &str, value: &[u8]) {
        match self {
            Self::Append => head.append(name, value),
            Self::AddIfAbsent => {
                if !head.contains(name) {
                    head.append(name, value);
                }
            }
            Self::Overwrite => head.set(name, value),
            Self::OverwriteIfExists => {
                if head.contains(name) {
                    head.set(name, value);
                }
            }
        }
    }
}

/// A head that can be changed.
pub trait HeadMut {
    /// Whether the field is there.
    fn contains(&self, name: &str) -> bool;
    /// The first line's value.
    fn value(&self, name: &str) -> Option<Vec<u8>>;
    /// Replaces every line of a field by one.
    fn set(&mut self, name: &str, value: &[u8]);
    /// Adds a line.
    fn append(&mut self, name: &str, value: &[u8]);
    /// Removes every line of a field.
    fn remove(&mut self, name: &str);
    /// Names of all fields.
    fn names(&self) -> Vec<String>;
}

impl HeadMut for RequestHead {
    fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }
    fn value(&self, name: &str) -> Option<Vec<u8>> {
        self.get(name).map(<[u8]>::to_vec)
    }
    fn set(&mut self, name: &str, value: &[u8]) {
        Self::set(self, name, value);
    }
    fn append(&mut self, name: &str, value: &[u8]) {
        Self::append(self, name, value);
    }
    fn remove(&mut self, name: &str) {
        Self::remove(self, name);
    }
    fn names(&self) -> Vec<String> {
        self.iter().map(|(name, _)| name.to_owned()).collect()
    }
}

impl HeadMut for ResponseHead {
    fn contains(&self, name: &str) -> bool {
        self.fields().contains(name)
    }
    fn value(&self, name: &str) -> Option<Vec<u8>> {
        self.fields().get(name).map(<[u8]>::to_vec)
    }
    fn set(&mut self, name: &str, value: &[u8]) {
        Self::set(self, name, value);
    }
    fn append(&mut self, name: &str, value: &[u8]) {
        Self::append(self, name, value);
    }
    fn remove(&mut self, name: &str) {
        Self::remove(self, name);
    }
    fn names(&self) -> Vec<String> {
        self.iter().map(|(name, _)| name.to_owned()).collect()
    }
}

impl HeaderOps {
    /// Compiles the lists of routes: names to remove, then values to add, in Envoy's order. A
    /// format operator that never has a value in this place is warned of; a header whose value
    /// renders to nothing is left as it came, as in Envoy.
    pub fn compile(
        place: Place,
        field: &str,
        add: &[core::HeaderValueOption],
        remove: &[String],
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let mut ops = Vec::with_capacity(add.len() + remove.len());
        for name in remove {
            if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
                return scope.refuse(format!("{field}: {name:?} cannot be removed"));
            }
            let name = checked_name(name, scope)?;
            if !is_left_alone(&name, scope) {
                ops.push(Op::Remove(name));
            }
        }

        ops.extend(
            scope
                .each(field, add, |scope, option| {
                    compile_write(place, option, scope)
                })?
                .into_iter()
                .flatten(),
        );

        Ok(Self { ops: ops.into() })
    }

    /// Compiles the list of the header mutation filter.
    pub fn compile_mutations(
        place: Place,
        field: &str,
        list: &[rules::HeaderMutation],
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let ops = scope.each(field, list, |scope, mutation| {
            use rules::header_mutation::Action;

            match scope.required("action", mutation.action.as_ref())? {
                Action::Remove(name) => {
                    let name = checked_name(name, scope)?;
                    Ok((!is_left_alone(&name, scope)).then_some(Op::Remove(name)))
                }
                Action::Append(option) => compile_write(place, option, scope),
                Action::RemoveOnMatch(on) => {
                    let matcher = scope.required("key_matcher", on.key_matcher.as_ref())?;
                    Ok(Some(Op::RemoveMatching(StringMatch::compile(
                        matcher, scope,
                    )?)))
                }
            }
        })?;

        Ok(Self {
            ops: ops.into_iter().flatten().collect(),
        })
    }

    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Applies the changes in order.
    pub fn apply(&self, head: &mut impl HeadMut, facts: &dyn Facts) {
        let mut rendered = Vec::new();
        for op in &self.ops {
            match op {
                Op::Remove(name) => head.remove(name),
                Op::RemoveMatching(matcher) => {
                    for name in head
                        .names()
                        .iter()
                        .filter(|name| matcher.is_match(name.as_bytes()))
                    {
                        if !FRAMING.contains(&name.as_str()) {
                            head.remove(name);
                        }
                    }
                }
                Op::Write {
                    name,
                    value,
                    action,
                    keep_empty,
                } => {
                    let value = match value {
                        Value::Constant(value) => value,
                        Value::Template(template) => {
                            rendered.clear();
                            template.render(facts, "", &mut rendered);

                            // A certificate's subject may hold line breaks. RFC 9110 §5.5.
                            for byte in rendered
                                .iter_mut()
                                .filter(|byte| matches!(byte, b'\r' | b'\n' | 0))
                            {
                                *byte = b' ';
                            }

                            rendered.as_slice()
                        }
                    };

                    if value.is_empty() && !keep_empty {
                        continue;
                    }
                    action.write(head, name, value);
                }
            }
        }
    }
}

fn compile_write(
    place: Place,
    option: &core::HeaderValueOption,
    scope: &mut Scope,
) -> Result<Option<Op>, Rejection> {
    use core::header_value_option::HeaderAppendAction;

    let header = scope.required("header", option.header.as_ref())?;
    #[expect(deprecated, reason = "Istio sends the older field")]
    let action = match (
        &option.append,
        HeaderAppendAction::try_from(option.append_action),
    ) {
        (_, Err(_)) => {
            return scope.refuse(format!("unknown append_action {}", option.append_action));
        }
        (Some(append), Ok(HeaderAppendAction::AppendIfExistsOrAdd)) if !append.value => {
            AppendAction::Overwrite
        }
        (_, Ok(HeaderAppendAction::AppendIfExistsOrAdd)) => AppendAction::Append,
        (_, Ok(HeaderAppendAction::AddIfAbsent)) => AppendAction::AddIfAbsent,
        (_, Ok(HeaderAppendAction::OverwriteIfExistsOrAdd)) => AppendAction::Overwrite,
        (_, Ok(HeaderAppendAction::OverwriteIfExists)) => AppendAction::OverwriteIfExists,
    };

    let name = checked_name(&header.key, scope)?;
    if is_left_alone(&name, scope) {
        return Ok(None);
    }
    let value = match header.raw_value.as_slice() {
        [] => match Template::parse(&header.value) {
            Ok(template) => match template.as_literal() {
                Some(text) => Value::Constant(text.as_bytes().into()),
                None => {
                    for gap in template.gaps(place) {
                        scope.warn("", format!("value of {name:?}: {gap}"));
                    }
                    Value::Template(template)
                }
            },
            Err(reason) => return scope.refuse(format!("value of {name:?}: {reason}")),
        },
        raw => Value::Constant(raw.into()),
    };

    if let Value::Constant(constant) = &value
        && constant
            .iter()
            .any(|byte| matches!(byte, b'\r' | b'\n' | 0))
    {
        return scope.refuse(format!("value of {name:?} holds a line break or NUL"));
    }

    Ok(Some(Op::Write {
        name,
        value,
        action,
        keep_empty: option.keep_empty_value,
    }))
}

/// The name in lower case.
fn checked_name(name: &str, scope: &Scope) -> Result<Box<str>, Rejection> {
    if name.len() > MAX_NAME {
        return scope.refuse(format!("a header name of more than {MAX_NAME} bytes"));
    }

    let lower = name.to_ascii_lowercase();
    match is_name(&lower) {
        true => Ok(lower.into()),
        false => scope.refuse(format!("{name:?} is not a header name")),
    }
}

/// Fields that frame the message are left alone, with a warning.
fn is_left_alone(name: &str, scope: &mut Scope) -> bool {
    let framing = is_framing(name);
    if framing {
        scope.warn("", format!("{name:?} frames the message and is left alone"));
    }
    framing
}

#[cfg(test)]
mod tests {
    use super::core::header_value_option::HeaderAppendAction;
    use super::*;
    use crate::format::NoFacts;

    fn option(name: &str, value: &str, action: HeaderAppendAction) -> core::HeaderValueOption {
        core::HeaderValueOption {
            header: Some(core::HeaderValue {
                key: name.into(),
                value: value.into(),
                raw_value: vec![],
            }),
            append_action: action as i32,
            ..Default::default()
        }
    }

    fn compile(add: &[core::HeaderValueOption], remove: &[&str]) -> Result<HeaderOps, Rejection> {
        let remove: Vec<String> = remove.iter().map(|name| (*name).to_owned()).collect();
        HeaderOps::compile(
            Place::RouteRequest,
            "request_headers_to_add",
            add,
            &remove,
            &mut Scope::new(),
        )
    }

    #[test]
    fn a_name_that_does_not_fit_into_a_head_is_refused() {
        let longest = "x".repeat(MAX_NAME);
        let longer = "x".repeat(MAX_NAME + 1);
        let action = HeaderAppendAction::AppendIfExistsOrAdd;

        assert!(compile(&[option(&longest, "1", action)], &[&longest]).is_ok());
        assert!(compile(&[option(&longer, "1", action)], &[]).is_err());
        assert!(compile(&[], &[&longer]).is_err());
    }

    #[test]
    fn the_four_actions() {
        use HeaderAppendAction::*;

        let ops = compile(
            &[
                option("X-Append", "2", AppendIfExistsOrAdd),
                option("x-absent", "2", AddIfAbsent),
                option("x-over", "2", OverwriteIfExistsOrAdd),
                option("x-never", "2", OverwriteIfExists),
                option(":authority", "other", OverwriteIfExistsOrAdd),
                option("x-unknown", "%REQ(none)%", OverwriteIfExistsOrAdd),
            ],
            &["x-gone"],
        )
        .expect("compiles");

        let mut head = RequestHead::of("GET", "host", "/");
        for name in ["x-append", "x-absent", "x-over", "x-gone"] {
            head.append(name, b"1");
        }
        ops.apply(&mut head, &NoFacts);
        assert_eq!(head.get_all("x-append").collect::<Vec<_>>(), [b"1", b"2"]);
        assert_eq!(head.get("x-absent"), Some(b"1".as_slice()));
        assert_eq!(head.get("x-over"), Some(b"2".as_slice()));
        assert_eq!(
            (
                head.get("x-never"),
                head.get("x-gone"),
                head.get("x-unknown")
            ),
            (None, None, None)
        );

        assert_eq!(head.authority(), "other");
    }

    #[test]
    fn what_a_peer_says_ends_no_line() {
        struct Hostile;
        impl Facts for Hostile {
            fn fact(&self, _: crate::format::Fact, out: &mut Vec<u8>) -> bool {
                out.extend_from_slice(b"CN=a\r\nx-admin: 1\0");
                true
            }
        }

        let add = option(
            "x",
            "%DOWNSTREAM_PEER_SUBJECT%",
            HeaderAppendAction::OverwriteIfExistsOrAdd,
        );

        let mut head = RequestHead::of("GET", "host", "/");
        compile(&[add], &[])
            .expect("compiles")
            .apply(&mut head, &Hostile);
        assert_eq!(head.get("x"), Some(b"CN=a  x-admin: 1 ".as_slice()));
    }

    /// Envoy's `HeaderParser::evaluateHeaders`: what renders to nothing writes nothing, unless that
    /// is asked for.
    #[test]
    fn an_empty_value_leaves_what_came_unless_it_is_kept() {
        let mut add = option(
            "x",
            "%REQ(none)%",
            HeaderAppendAction::OverwriteIfExistsOrAdd,
        );

        for (keep, wanted) in [(false, b"forged".as_slice()), (true, b"")] {
            add.keep_empty_value = keep;
            let mut head = RequestHead::of("GET", "host", "/");
            head.append("x", b"forged");
            compile(&[add.clone()], &[])
                .expect("compiles")
                .apply(&mut head, &NoFacts);
            assert_eq!(head.get("x"), Some(wanted));
        }
    }

    #[test]
    fn operators_without_an_answer_are_warned_of() {
        let add = [
            option(
                "x",
                "%TRACE_ID% %UPSTREAM_HOST% %ROUTE_NAME%",
                HeaderAppendAction::OverwriteIfExistsOrAdd,
            ),
            option(
                "y",
                "t=%START_TIME(%s.%3f)%",
                HeaderAppendAction::OverwriteIfExistsOrAdd,
            ),
        ];

        for (place, wanted) in [(Place::RouteRequest, 2), (Place::RouteResponse, 1)] {
            let mut scope = Scope::new();
            HeaderOps::compile(place, "add", &add, &[], &mut scope).expect("compiles");
            let warnings: Vec<String> = scope
                .into_warnings()
                .iter()
                .map(ToString::to_string)
                .collect();

            assert_eq!(warnings.len(), wanted, "{warnings:?}");
            assert!(
                warnings[0].starts_with("add[0]: value of \"x\": %TRACE_ID%"),
                "{warnings:?}"
            );
        }
    }

    #[test]
    fn framing_is_out_of_reach() {
        let set = |name, value| {
            compile(
                &[option(
                    name,
                    value,
                    HeaderAppendAction::OverwriteIfExistsOrAdd,
                )],
                &[],
            )
        };

        assert!(set("Content-Length", "0").expect("left out").is_empty());
        assert!(set("x", "a\r\nb: c").is_err());
        assert!(set("a b", "x").is_err());
        assert!(compile(&[], &["host"]).is_err());
        assert!(
            compile(&[], &["transfer-encoding"])
                .expect("left out")
                .is_empty()
        );
    }
}
