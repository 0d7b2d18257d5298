//! `apply`, `get`, `delete`.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use meltemi_admin_api::{Action, ApplyResponse, ObjectSelector, ObjectView, Origin};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::args::{ApplyArgs, DeleteArgs, GetArgs, Output};
use crate::mesh::control;
use crate::output;
use crate::table::{Table, age};

pub(crate) async fn apply(mesh: &str, args: ApplyArgs) -> Result<i32> {
    let response = control(mesh).apply(read_all(&args.files)?, &args.namespace, args.dry_run).await?;
    if !output::machine(args.output, &response)? {
        print(&response);
    }
    Ok(i32::from(!response.ok))
}

pub(crate) async fn delete(mesh: &str, args: DeleteArgs) -> Result<i32> {
    let which = match &args.kind {
        Some(kind) => {
            let (kind, name) = kind_and_name(kind, args.name.as_deref());
            ensure!(!name.is_empty(), "which {kind}? Name one: meltemi delete {kind} NAME");
            vec![ObjectSelector { kind, ns: args.namespace.clone(), name }]
        }
        None => selectors(&read_all(&args.files)?, &args.namespace)?,
    };
    let mut code = 0;
    for selector in &which {
        let response = control(mesh).delete(selector, args.dry_run).await?;
        print(&response);
        if response.objects.is_empty() && response.diagnostics.is_empty() {
            eprintln!("error: {} {:?} not found in namespace {}", selector.kind, selector.name, selector.ns);
            code = 1;
        }
        code |= i32::from(!response.ok);
    }
    Ok(code)
}

pub(crate) async fn get(mesh: &str, args: GetArgs) -> Result<i32> {
    let (kind, name) = kind_and_name(&args.kind, args.name.as_deref());
    let everything = kind == "all";
    let ns = match (args.all_namespaces, args.namespace) {
        (true, _) => String::new(),
        (false, Some(namespace)) => namespace,
        (false, None) => "default".to_owned(),
    };
    let selector = ObjectSelector { kind: if everything { String::new() } else { kind }, ns, name: name.clone() };
    let list = control(mesh).objects(&selector).await?;
    if list.items.is_empty() {
        match name.is_empty() {
            true if selector.ns.is_empty() => eprintln!("No objects found."),
            true => eprintln!("No objects found in namespace {}.", selector.ns),
            false => eprintln!("error: {} {name:?} not found in namespace {}", args.kind, selector.ns),
        }
        return Ok(i32::from(!name.is_empty()));
    }
    match args.output {
        Some(Output::Name) => {
            list.items.iter().for_each(|item| println!("{}/{}", item.object.kind.to_lowercase(), item.object.name));
        }
        Some(form @ (Output::Json | Output::Yaml)) => {
            if let ([only], false) = (list.items.as_slice(), name.is_empty()) {
                output::machine(Some(form), &only.value)?;
            } else {
                let items: Vec<_> = list.items.iter().map(|item| &item.value).collect();
                output::machine(Some(form), &serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items}))?;
            }
        }
        wide => print!("{}", table(&list.items, wide.is_some())),
    }
    Ok(0)
}

fn table(items: &[ObjectView], wide: bool) -> String {
    let mut header = vec!["KIND", "NAMESPACE", "NAME", "AGE"];
    if wide {
        header.extend(["FROM", "FINDINGS"]);
    }
    let mut table = Table::new(&header);
    for item in items {
        let object = &item.object;
        let mut row = vec![object.kind.clone(), object.namespace.clone(), object.name.clone(), created(item)];
        if wide {
            let origin = match item.origin {
                Origin::File => item.position.to_string(),
                Origin::Applied => "applied".to_owned(),
                Origin::Runtime => "the node".to_owned(),
            };
            row.extend([origin, item.diagnostics.len().to_string()]);
        }
        table.row(row);
    }
    table.render()
}

/// Age by `metadata.creationTimestamp`, where the object has one.
fn created(item: &ObjectView) -> String {
    let text = item.value["metadata"]["creationTimestamp"].as_str().unwrap_or_default();
    let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) else { return String::new() };
    age((OffsetDateTime::now_utc() - at).whole_seconds().try_into().unwrap_or(0))
}

fn print(response: &ApplyResponse) {
    let suffix = if response.dry_run { " (dry run)" } else { "" };
    for applied in &response.objects {
        if applied.action != Action::Refused {
            // Whose file it is decides who has to know: the mesh's own state is nobody's to look into.
            let place = if applied.in_users_file { format!(" in {}", applied.file) } else { String::new() };
            println!("{}/{} {}{place}{suffix}", applied.object.kind.to_lowercase(), applied.object.name, applied.action);
        }
    }
    output::diagnostics(&response.diagnostics);
}

fn kind_and_name(kind: &str, name: Option<&str>) -> (String, String) {
    match kind.split_once('/') {
        Some((kind, name)) => (kind.to_owned(), name.to_owned()),
        None => (kind.to_owned(), name.unwrap_or_default().to_owned()),
    }
}

fn selectors(text: &str, namespace: &str) -> Result<Vec<ObjectSelector>> {
    let (objects, diagnostics) = meltemi_api::parse_documents("the given files", text);
    output::diagnostics(&diagnostics);
    ensure!(!objects.is_empty(), "the given files name no object");
    let of = |object: &meltemi_api::Object| {
        let named = &object.object_ref();
        let ns = if named.namespace.is_empty() { namespace.to_owned() } else { named.namespace.clone() };
        ObjectSelector { kind: named.kind.clone(), ns, name: named.name.clone() }
    };
    Ok(objects.iter().map(of).collect())
}

/// All files as one stream of documents.
fn read_all(files: &[PathBuf]) -> Result<String> {
    let mut all = String::new();
    for file in files {
        if file == Path::new("-") {
            std::io::stdin().read_to_string(&mut all)?;
        } else if file.is_dir() {
            let mut inside: Vec<PathBuf> = fs::read_dir(file)
                .with_context(|| format!("cannot read {}", file.display()))?
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json"))
                .collect();
            inside.sort();
            ensure!(!inside.is_empty(), "{} holds no .yaml, .yml or .json file", file.display());
            for path in inside {
                append(&mut all, &path)?;
            }
        } else {
            append(&mut all, file)?;
        }
    }
    Ok(all)
}

fn append(all: &mut String, path: &Path) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    if !all.is_empty() && !all.ends_with("\n---\n") {
        all.push_str("\n---\n");
    }
    all.push_str(&text);
    Ok(())
}
