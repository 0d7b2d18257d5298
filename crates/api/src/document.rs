//! Files to objects: documents, lists, kinds, metadata.

use std::sync::Arc;

use meltemi_types::{Diagnostic, ObjectRef, Position, Severity, is_dns_label};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use crate::core::{ConfigMap, DeploymentSpec, Pod, Secret, ServiceSpec};
use crate::extensions::{TrafficExtension, WasmPlugin};
use crate::kind::{Kind, ObjectKey, Recognised};
use crate::networking::{
    DestinationRule, EnvoyFilter, Gateway, ProxyConfigResource, ServiceEntry, Sidecar,
    VirtualService, WorkloadEntry, WorkloadGroup,
};
use crate::object::{Meta, Object, Source, Spec, attach};
use crate::positions::Positions;
use crate::schema::{Field, Finding, Report, UnknownFields, closest};
use crate::security::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
use crate::telemetry::Telemetry;
use crate::yaml;

pub use yaml::to_yaml;

/// Code of the diagnostic about a document that is no Kubernetes object. It is information where
/// the document does not look like one.
pub const FOREIGN: &str = "MEL0107";

/// What a file says.
#[derive(Debug, Default)]
pub struct Parsed {
    /// Objects without a fault of form. Whether they make sense, [`crate::validate`] tells.
    pub objects: Vec<Object>,
    /// Objects that are written here but cannot be read; whoever holds an older version of one
    /// keeps it.
    pub refused: Vec<ObjectKey>,
    /// Documents of which not even kind and name could be read.
    pub unreadable: usize,
    /// Documents that are not meant for Kubernetes, such as a Compose file. Each has a diagnostic
    /// with [`FOREIGN`].
    pub foreign: usize,
    /// Everything there is to say.
    pub diagnostics: Vec<Diagnostic>,
}

/// One document's text in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// First byte; that of the separator line, if there is one.
    pub start: usize,
    /// Past the last byte.
    pub end: usize,
    /// Line of the first byte, from 1.
    pub line: u32,
}

/// Splits a file at its `---` lines, before anything is parsed: a broken document does not take the
/// others along.
pub fn chunks(text: &str) -> Vec<Chunk> {
    let mut found = Vec::new();
    let mut open = Chunk {
        start: 0,
        end: 0,
        line: 1,
    };

    let (mut at, mut number) = (0, 1);
    for line in text.split_inclusive('\n') {
        let separates = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if separates && at > 0 {
            found.push(Chunk { end: at, ..open });
            open = Chunk {
                start: at,
                end: at,
                line: number,
            };
        }

        at += line.len();
        number += 1;
    }

    found.push(Chunk { end: at, ..open });

    found
        .into_iter()
        .flat_map(|chunk| json_values(text, chunk))
        .collect()
}

/// JSON values one after another are documents of their own, as kubectl reads them. Any other text
/// stays as it is.
fn json_values(text: &str, chunk: Chunk) -> Vec<Chunk> {
    let held = &text[chunk.start..chunk.end];
    if !held.trim_start().starts_with('{') {
        return vec![chunk];
    }

    let mut values = serde_json::Deserializer::from_str(held).into_iter::<IgnoredAny>();
    let (mut found, mut open): (Vec<Chunk>, Chunk) = (Vec::new(), chunk);
    loop {
        match values.next() {
            None => {
                if let Some(last) = found.last_mut() {
                    last.end = chunk.end;
                }
                return found;
            }
            Some(Err(_)) => return vec![chunk],
            Some(Ok(_)) => {
                let end = chunk.start + values.byte_offset();
                found.push(Chunk { end, ..open });

                let lines = text[open.start..end].matches('\n').count();
                open.start = end;
                open.line += u32::try_from(lines).unwrap_or(u32::MAX);
            }
        }
    }
}

/// Reads a file. `file` is its name as diagnostics shall show it.
pub fn parse(file: &str, text: &str) -> Parsed {
    parse_in(file, text, "default")
}

/// Reads a file whose objects belong to `namespace` where they name none, as with `kubectl -n`.
pub fn parse_in(file: &str, text: &str, namespace: &str) -> Parsed {
    let mut parsed = Parsed::default();
    let file: Arc<str> = Arc::from(file);
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (number, chunk) in chunks(text).into_iter().enumerate() {
        match yaml::parse_all(&text[chunk.start..chunk.end], chunk.line) {
            Ok(documents) => {
                for document in documents {
                    read_document(&file, number, document, namespace, &mut parsed);
                }
            }
            Err(fault) => {
                parsed.unreadable += 1;
                parsed.diagnostics.push(Diagnostic {
                    code: "MEL0101".to_owned(),
                    severity: Severity::Error,
                    object: guess(&text[chunk.start..chunk.end]),
                    field: String::new(),
                    position: Position { file: file.to_string(), line: fault.line, column: fault.column },
                    message: format!("not valid YAML: {}", fault.message),
                    remedy:
                        "correct the text here or in the line before; the other documents of the file are not affected"
                            .to_owned(),
                });
            }
        }
    }

    parsed
}

/// [`parse`], without the keys of refused objects.
pub fn parse_documents(file: &str, text: &str) -> (Vec<Object>, Vec<Diagnostic>) {
    let parsed = parse(file, text);
    (parsed.objects, parsed.diagnostics)
}

/// The value of a document's text, unread; for rewriting it. `None` if it is not one document.
pub fn value_of(text: &str) -> Option<Value> {
    yaml::parse_one(text).ok().map(|document| document.value)
}

/// Reads an object that an API server sent.
pub fn object_from_value(value: Value) -> Parsed {
    let mut parsed = Parsed::default();
    read_object(value, Source::default(), Vec::new(), "default", &mut parsed);
    parsed
}

/// Kind and name of a document that does not parse, as far as its lines show them.
fn guess(text: &str) -> ObjectRef {
    let mut object = ObjectRef::default();
    let mut api_version = String::new();
    for line in text.lines().take(200) {
        let value = |key: &str| {
            line.strip_prefix(key)
                .map(|rest| rest.trim().trim_matches(['"', '\'']).to_owned())
        };

        if let (Some(kind), true) = (value("kind:"), object.kind.is_empty()) {
            object.kind = kind;
        } else if let (Some(version), true) = (value("apiVersion:"), api_version.is_empty()) {
            api_version = version;
        } else if let (Some(name), true) = (value("  name:"), object.name.is_empty()) {
            object.name = name;
        } else if let (Some(namespace), true) = (value("  namespace:"), object.namespace.is_empty())
        {
            object.namespace = namespace;
        }
    }

    if !object.kind.is_empty() && !object.name.is_empty() && object.namespace.is_empty() {
        object.namespace = "default".to_owned();
    }

    match Kind::recognise(&api_version, &object.kind) {
        Recognised::Kind(kind) => kind.object_ref(object.namespace, object.name),
        Recognised::WrongVersion(_) | Recognised::WrongGroup(_) => object,
    }
}

fn read_document(
    file: &Arc<str>,
    number: usize,
    document: yaml::Document,
    namespace: &str,
    parsed: &mut Parsed,
) {
    let yaml::Document {
        value,
        positions,
        duplicates,
    } = document;

    if value.is_null() {
        return;
    }
    let source = Source {
        file: file.clone(),
        document: number,
        item: None,
        positions,
    };

    let is_list = value
        .get("kind")
        .and_then(Value::as_str)
        .is_some_and(|kind| kind.ends_with("List"))
        && value.get("items").is_some_and(Value::is_array);

    if !is_list {
        return read_object(value, source, duplicates, namespace, parsed);
    }
    let Value::Object(mut list) = value else {
        return;
    };
    let Some(Value::Array(items)) = list.remove("items") else {
        return;
    };

    for (index, item) in items.into_iter().enumerate() {
        let prefix = format!("items[{index}]");
        let positions = source.positions.below(&prefix).cloned().unwrap_or_else(|| {
            let (line, column) = source.positions.find(&prefix);
            Positions {
                line,
                column,
                ..Positions::default()
            }
        });

        let inside = |(path, line, column): &(String, u32, u32)| {
            path.strip_prefix(&prefix)
                .map(|rest| (rest.trim_start_matches('.').to_owned(), *line, *column))
        };

        let duplicates = duplicates.iter().filter_map(inside).collect();
        let source = Source {
            file: source.file.clone(),
            document: source.document,
            item: Some(index),
            positions,
        };

        read_object(item, source, duplicates, namespace, parsed);
    }
}

fn read_object(
    mut value: Value,
    source: Source,
    duplicates: Vec<(String, u32, u32)>,
    namespace: &str,
    parsed: &mut Parsed,
) {
    let Typed {
        map,
        api_version,
        kind_word,
    } = match read_type(&value, &source) {
        _ if source.item.is_none() && is_foreign(&value) => {
            parsed.foreign += 1;
            parsed.diagnostics.push(foreign(&source));
            return;
        }
        Ok(read) => read,
        Err(diagnostic) => {
            parsed.unreadable += 1;
            parsed.diagnostics.push(*diagnostic);
            return;
        }
    };

    let (kind, version_fault) = recognise(&api_version, &kind_word);
    let policy = if kind.is_mesh() {
        UnknownFields::Refuse
    } else {
        UnknownFields::Ignore
    };

    let mut report = Report::new("", policy);
    if let Some(fault) = version_fault {
        report.field("apiVersion", |report| {
            report.error("MEL0106", fault, "correct apiVersion")
        });
    }

    let meta = read_meta(map, &kind, namespace, &mut report);
    if meta.name.is_empty() {
        parsed.unreadable += 1;
        let diagnostics = nameless(report, &kind, &kind_word, &source);
        parsed.diagnostics.extend(diagnostics);
        return;
    }

    let spec = read_spec(&kind, &api_version, &kind_word, map, &mut report);
    if let Kind::Other(_) = &kind {
        warn_unread(&api_version, &kind_word, &mut report);
    }

    let key = ObjectKey::new(kind.clone(), meta.namespace.clone(), meta.name.clone());
    let object = key.object_ref();

    // Which of two values counts depends on the reader, so the mesh's own objects must not repeat
    // a field.
    let is_refused = report.has_errors() || (kind.is_mesh() && !duplicates.is_empty());
    for finding in report.into_findings() {
        let position = source.position(&finding.field);
        let diagnostic = attach(finding, object.clone(), position);
        parsed.diagnostics.push(diagnostic);
    }
    for duplicate in duplicates {
        let diagnostic = written_twice(duplicate, &kind, &object, &source);
        parsed.diagnostics.push(diagnostic);
    }

    if is_refused {
        parsed.refused.push(key);
        return;
    }

    if kind.is_namespaced()
        && let Some(Value::Object(written)) = value.get_mut("metadata")
    {
        written.insert(
            "namespace".to_owned(),
            Value::String(meta.namespace.clone()),
        );
    }

    parsed.objects.push(Object {
        kind,
        api_version,
        meta,
        spec,
        source,
        raw: value,
    });
}

const NOT_AN_OBJECT: &str = "this is not a Kubernetes object";
const OBJECTS_ARE: &str = "an object is a mapping with apiVersion, kind and metadata";

fn foreign(source: &Source) -> Diagnostic {
    Diagnostic {
        code: FOREIGN.to_owned(),
        severity: Severity::Info,
        object: ObjectRef::default(),
        field: String::new(),
        position: source.position(""),
        message: format!("{NOT_AN_OBJECT}, and left alone"),
        remedy: OBJECTS_ARE.to_owned(),
    }
}

/// A value with `apiVersion` and `kind`.
struct Typed<'a> {
    map: &'a Map<String, Value>,
    api_version: String,
    kind_word: String,
}

/// Whether a document is not meant for an API server: a Compose file, an image map, a Helm chart's
/// values, a Kustomization. Whatever has `metadata`, `spec` or a kind of the mesh, however these
/// are spelt, is an object with a fault.
fn is_foreign(value: &Value) -> bool {
    let Some(map) = value.as_object() else {
        return true;
    };
    let word = |key: &str| {
        let same = |(found, _): &(&String, &Value)| found.eq_ignore_ascii_case(key);
        map.iter()
            .find(same)
            .map(|(_, value)| value.as_str().unwrap_or_default())
    };

    let (version, kind) = (word("apiVersion"), word("kind"));
    if version.is_some_and(|version| version.starts_with("kustomize.config.k8s.io/")) {
        return true;
    }
    let is_known = kind.is_some_and(|kind| Kind::from_word(kind).is_some());
    let is_typed = version.is_some() && kind.is_some();
    !is_typed && !is_known && word("metadata").is_none() && word("spec").is_none()
}

/// Reads `apiVersion` and `kind`. The error says why the value is no Kubernetes object.
fn read_type<'a>(value: &'a Value, source: &Source) -> Result<Typed<'a>, Box<Diagnostic>> {
    let refuse = |kind: &str, field: &str, message: String, remedy: &str| {
        Box::new(Diagnostic {
            code: FOREIGN.to_owned(),
            severity: Severity::Error,
            object: ObjectRef::new(kind, "", ""),
            field: field.to_owned(),
            position: source.position(field),
            message,
            remedy: remedy.to_owned(),
        })
    };

    let Some(map) = value.as_object() else {
        return Err(refuse("", "", NOT_AN_OBJECT.to_owned(), OBJECTS_ARE));
    };

    let word = |key: &str| map.get(key).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind_word) = (word("apiVersion").to_owned(), word("kind").to_owned());
    for (key, value) in [("apiVersion", &api_version), ("kind", &kind_word)] {
        if value.is_empty() {
            return Err(refuse(
                &kind_word,
                key,
                format!("{key} is missing or not a string"),
                "every object has apiVersion and kind",
            ));
        }
    }

    // Source: Kubernetes, names of custom resource definitions and their versions.
    if !is_kind_word(&kind_word) {
        let message = format!(
            "{:?} is not the name of a kind",
            crate::schema::shorten(&kind_word)
        );
        return Err(refuse(
            "",
            "kind",
            message,
            "a kind is one word of letters and digits",
        ));
    }
    if !is_api_version(&api_version) {
        let message = format!(
            "{:?} is not a version",
            crate::schema::shorten(&api_version)
        );
        return Err(refuse(
            &kind_word,
            "apiVersion",
            message,
            "write GROUP/VERSION, or v1",
        ));
    }

    Ok(Typed {
        map,
        api_version,
        kind_word,
    })
}

fn is_kind_word(word: &str) -> bool {
    word.len() <= 63
        && word.bytes().all(|b| b.is_ascii_alphanumeric())
        && word.as_bytes()[0].is_ascii_alphabetic()
}

fn is_api_version(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
    let (group, version) = text.split_once('/').unwrap_or(("", text));
    text.len() <= 253 + 1 + 63
        && group.bytes().all(inner)
        && !version.is_empty()
        && version.bytes().all(inner)
}

/// The kind of an object, and the fault if its version or group is wrong.
fn recognise(api_version: &str, kind_word: &str) -> (Kind, Option<String>) {
    let fault = match Kind::recognise(api_version, kind_word) {
        Recognised::Kind(kind) => return (kind, None),
        Recognised::WrongVersion(versions) => format!(
            "{kind_word} has no version {api_version:?}; it has {}",
            versions.join(", ")
        ),
        Recognised::WrongGroup(group) => {
            format!("{kind_word} is not in the API group of {api_version:?} but in {group:?}")
        }
    };

    let kind = Kind::from_word(kind_word).unwrap_or(Kind::Other(kind_word.into()));
    (kind, Some(fault))
}

/// The findings about an object without a name. For a kind that the mesh does not read they are
/// warnings: an IstioOperator, or the configuration of some tool, needs no name.
fn nameless(
    report: Report,
    kind: &Kind,
    kind_word: &str,
    source: &Source,
) -> impl Iterator<Item = Diagnostic> {
    let is_foreign = matches!(kind, Kind::Other(_));
    report.into_findings().into_iter().map(move |mut finding| {
        if is_foreign {
            finding.severity = Severity::Warning;
        }
        let position = source.position(&finding.field);
        attach(finding, ObjectRef::new(kind_word, "", ""), position)
    })
}

/// Warns that the mesh does not read a kind, and names the kind that was probably meant.
fn warn_unread(api_version: &str, kind_word: &str, report: &mut Report) {
    let known: Vec<String> = Kind::all().map(|kind| kind.word().to_owned()).collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let remedy = match closest(kind_word, &known) {
        Some(word) if word != kind_word => format!("did you mean {word}?"),
        _ => "it may stay: it is kept and has no effect".to_owned(),
    };

    report.field("kind", |report| {
        report.warn(
            "MEL0106",
            format!("the mesh does not read {kind_word} of {api_version}"),
            remedy,
        );
    });
}

/// A field that a mapping holds twice: its path, line and column.
fn written_twice(
    (field, line, column): (String, u32, u32),
    kind: &Kind,
    object: &ObjectRef,
    source: &Source,
) -> Diagnostic {
    let finding = Finding {
        code: "MEL0108",
        severity: if kind.is_mesh() {
            Severity::Error
        } else {
            Severity::Warning
        },
        field,
        message: "this field is written twice".to_owned(),
        remedy: "remove one of them".to_owned(),
    };

    let position = Position {
        file: source.file.to_string(),
        line,
        column,
    };

    attach(finding, object.clone(), position)
}

fn read_meta(map: &Map<String, Value>, kind: &Kind, namespace: &str, report: &mut Report) -> Meta {
    let mut meta = Meta::default();
    let Some(written) = map.get("metadata").filter(|value| !value.is_null()) else {
        report.required("metadata");
        return meta;
    };

    // Kubernetes adds fields to metadata with every version, and none of them is the mesh's.
    let mut inner = Report::new("metadata", UnknownFields::Ignore);
    meta.read(written, &mut inner);
    if meta.name.is_empty() {
        let remedy = if written.get("generateName").is_some() {
            "generateName does not work in files: add the field name"
        } else {
            "add the field name"
        };
        inner.field("name", |report| {
            report.error("MEL0104", "Required value: name is required", remedy)
        });
    } else if !is_object_name(&meta.name, kind) {
        let message = format!(
            "a name must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric \
             character: {:?}",
            crate::schema::shorten(&meta.name)
        );
        inner.field("name", |report| {
            report.error("MEL0110", message, "choose another name")
        });
    }

    if kind.is_namespaced() {
        if meta.namespace.is_empty() {
            namespace.clone_into(&mut meta.namespace);
        } else if !is_dns_label(&meta.namespace) {
            let message = format!(
                "{:?} is not a namespace's name",
                crate::schema::shorten(&meta.namespace)
            );
            inner.field("namespace", |report| {
                report.error("MEL0110", message, "a namespace is a lower-case DNS label")
            });
        }
    } else {
        meta.namespace.clear();
    }

    for finding in inner.into_findings() {
        report.push(finding);
    }

    meta
}

/// RFC 1123 subdomain; RBAC's names may hold `:` too, and none of them a path separator.
fn is_object_name(name: &str, kind: &Kind) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if name.len() > 253 {
        return false;
    }
    if matches!(kind, Kind::Other(_)) {
        // Kinds may have rules of their own; what no path can hold, no kind allows.
        return !name.contains(|c: char| c.is_control() || matches!(c, '/' | '%'))
            && name != "."
            && name != "..";
    }

    name.bytes().all(inner)
        && name.as_bytes().first().is_some_and(edge)
        && name.as_bytes().last().is_some_and(edge)
}

fn body<T: Field + Default>(
    map: &Map<String, Value>,
    required: bool,
    report: &mut Report,
) -> Arc<T> {
    let mut spec = T::default();
    match map.get("spec") {
        Some(Value::Null) | None => {
            if required {
                report.required("spec");
            }
        }
        Some(value) => report.field("spec", |report| spec.read(value, report)),
    }

    Arc::new(spec)
}

fn whole<T: Field + Default>(map: &Map<String, Value>, report: &mut Report) -> Arc<T> {
    let mut object = T::default();
    object.read(&Value::Object(map.clone()), report);
    Arc::new(object)
}

fn read_spec(
    kind: &Kind,
    api_version: &str,
    kind_word: &str,
    map: &Map<String, Value>,
    report: &mut Report,
) -> Spec {
    if kind.is_mesh() {
        for key in map.keys() {
            if !matches!(
                key.as_str(),
                "apiVersion" | "kind" | "metadata" | "spec" | "status"
            ) {
                report.unknown_field(key, &["apiVersion", "kind", "metadata", "spec", "status"]);
            }
        }
    }

    match kind {
        Kind::Namespace => Spec::Namespace,
        Kind::ServiceAccount => Spec::ServiceAccount,
        Kind::ConfigMap => Spec::ConfigMap(whole::<ConfigMap>(map, report)),
        Kind::Secret => Spec::Secret(whole::<Secret>(map, report)),
        Kind::Service => Spec::Service(body::<ServiceSpec>(map, false, report)),
        Kind::Pod => Spec::Pod(whole::<Pod>(map, report)),
        Kind::Deployment => Spec::Deployment(body::<DeploymentSpec>(map, false, report)),
        Kind::VirtualService => Spec::VirtualService(body::<VirtualService>(map, false, report)),
        Kind::DestinationRule => Spec::DestinationRule(body::<DestinationRule>(map, false, report)),
        Kind::Gateway => Spec::Gateway(body::<Gateway>(map, false, report)),
        Kind::ServiceEntry => Spec::ServiceEntry(body::<ServiceEntry>(map, true, report)),
        Kind::WorkloadEntry => Spec::WorkloadEntry(body::<WorkloadEntry>(map, true, report)),
        Kind::WorkloadGroup => Spec::WorkloadGroup(body::<WorkloadGroup>(map, true, report)),
        Kind::Sidecar => Spec::Sidecar(body::<Sidecar>(map, false, report)),
        Kind::EnvoyFilter => Spec::EnvoyFilter(body::<EnvoyFilter>(map, false, report)),
        Kind::ProxyConfig => Spec::ProxyConfig(body::<ProxyConfigResource>(map, false, report)),
        Kind::PeerAuthentication => {
            Spec::PeerAuthentication(body::<PeerAuthentication>(map, false, report))
        }
        Kind::RequestAuthentication => {
            Spec::RequestAuthentication(body::<RequestAuthentication>(map, false, report))
        }
        Kind::AuthorizationPolicy => {
            Spec::AuthorizationPolicy(body::<AuthorizationPolicy>(map, false, report))
        }
        Kind::Telemetry => Spec::Telemetry(body::<Telemetry>(map, false, report)),
        Kind::WasmPlugin => Spec::WasmPlugin(body::<WasmPlugin>(map, true, report)),
        Kind::TrafficExtension => {
            Spec::TrafficExtension(body::<TrafficExtension>(map, true, report))
        }
        Kind::Other(_) => Spec::Other {
            api_version: api_version.to_owned(),
            kind: kind_word.to_owned(),
        },
    }
}
