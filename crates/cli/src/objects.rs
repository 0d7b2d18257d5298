//! The commands `apply`, `get` and `delete`, which work on configuration objects through the
//! control plane.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::{StreamExt as _, stream};
use meltemi_admin_api::{
    Action, ApplyResponse, ChangeOptions, ClientError, ObjectSelector, ObjectView, Origin,
};
use meltemi_api::{Kind, not_found};

use crate::args::{ApplyArgs, DeleteArgs, DryRun, GetArgs};
use crate::columns::{Live, needs_live};
use crate::listing::{FieldFilter, TableStyle, custom_table, sort, tables};
use crate::mesh::Mesh;
use crate::names::{LabelFilter, NamedObject, parse_names, resource};
use crate::offline;
use crate::output::{self, Output};
use crate::sources::Sources;
use crate::view::View;

/// HTTP status of the control plane's answer for an object that does not exist.
const NOT_FOUND: u16 = 404;

pub(crate) async fn apply(mesh: &Mesh, args: ApplyArgs) -> Result<i32> {
    let sources = Sources::read(&args.files)?;
    let options = ChangeOptions {
        dry_run: args.dry_run == DryRun::Server,
        write: args.write,
    };
    let mut response = if args.dry_run == DryRun::Client {
        let response = offline::check(&sources.text, &args.namespace);
        ensure!(
            !response.objects.is_empty() || !response.ok,
            "the given files hold no object"
        );
        response
    } else {
        let control = mesh.control();
        let answer = patiently(control.apply(sources.text.clone(), &args.namespace, options)).await;
        answer.map_err(|error| mesh.control_error(error))?
    };
    sources.set_positions(&mut response.diagnostics);

    match args.output {
        Some(Output::Name) => {
            for applied in response
                .objects
                .iter()
                .filter(|applied| applied.action != Action::Refused)
            {
                output::line(format_args!(
                    "{}/{}",
                    resource(&applied.object),
                    applied.object.name
                ))?;
            }

            sources.report(&response.diagnostics);
        }
        format if output::structured(format, &response)? => {}
        _ => {
            print_objects(&response)?;
            sources.report(&response.diagnostics);
        }
    }

    Ok(i32::from(!response.ok))
}

/// Deletions that are asked for at a time.
const AT_A_TIME: usize = 64;
/// After this time without an answer the user is told what is waited for.
const SILENCE: Duration = Duration::from_secs(5);

/// Waits for the control plane, and says so if it takes long.
async fn patiently<T>(answer: impl Future<Output = T>) -> T {
    let mut answer = pin!(answer);
    match tokio::time::timeout(SILENCE, &mut answer).await {
        Ok(answer) => answer,
        Err(_) => {
            output::note(format_args!("waiting for the control plane ..."));
            answer.await
        }
    }
}

pub(crate) async fn delete(mesh: &Mesh, args: DeleteArgs) -> Result<i32> {
    if args.all {
        return delete_all(mesh, &args).await;
    }

    let namespace = args.namespace.as_deref().unwrap_or("default");
    let options = ChangeOptions {
        dry_run: args.dry_run,
        write: args.write,
    };
    let selectors = if args.what.is_empty() {
        let sources = Sources::read(&args.files)?;
        selectors_of(&sources, namespace)?
    } else if let Some(selector) = &args.selector {
        labelled(mesh, &args.what, namespace, selector).await?
    } else {
        let select = |NamedObject { kind, name }| ObjectSelector {
            kind,
            ns: namespace.to_owned(),
            name,
        };

        let all: Vec<_> = parse_names(&args.what)?.into_iter().map(select).collect();
        for one in &all {
            ensure!(
                !one.name.is_empty(),
                "which {kind}? Name one: meltemi delete {kind} NAME, or all applied ones: meltemi delete {kind} --all",
                kind = one.kind
            );
        }

        all
    };

    // Many at a time: each waits until the mesh has taken its change up, and one step of the mesh
    // takes many changes up.
    let calls = selectors
        .iter()
        .map(|selector| async move { mesh.control().delete(selector, options).await });
    let mut answers = pin!(stream::iter(calls).buffered(AT_A_TIME));

    let mut code = 0;
    while let Some(answer) = patiently(answers.next()).await {
        match answer {
            Ok(response) => {
                print(&response)?;
                code |= i32::from(!response.ok);
            }
            // A missing object does not keep the other ones from being deleted.
            Err(ClientError::Refused { message, status }) => {
                if !(args.ignore_not_found && status == NOT_FOUND) {
                    output::note(format_args!("error: {message}"));
                    code = 1;
                }
            }
            Err(error) => return Err(mesh.control_error(error)),
        }
    }

    Ok(code)
}

/// Selectors of the objects with labels, in files or applied.
async fn labelled(
    mesh: &Mesh,
    what: &[String],
    ns: &str,
    selector: &str,
) -> Result<Vec<ObjectSelector>> {
    let filter = LabelFilter::parse(selector)?;
    let mut found = Vec::new();
    for NamedObject { kind, name } in parse_names(what)? {
        ensure!(
            name.is_empty(),
            "{kind}/{name}: --selector takes kinds without names"
        );
        let all = ObjectSelector {
            kind,
            ns: ns.to_owned(),
            name,
        };
        for item in objects(mesh, &all).await? {
            // The node writes objects of running workloads, and would write them again.
            if item.origin != Origin::Runtime && filter.matches(&labels(&item)) {
                found.push(ObjectSelector {
                    kind: resource(&item.object),
                    ns: item.object.namespace,
                    name: item.object.name,
                });
            }
        }
    }

    if found.is_empty() {
        output::note("No objects found with these labels.");
    }
    Ok(found)
}

/// Deletes all applied objects, or those of the kinds and names given.
async fn delete_all(mesh: &Mesh, args: &DeleteArgs) -> Result<i32> {
    let ns = match &args.namespace {
        Some(namespace) => namespace.clone(),
        None if args.all_namespaces || args.what.is_empty() => String::new(),
        None => "default".to_owned(),
    };
    let select = |NamedObject { kind, name }| ObjectSelector {
        kind: if kind == "all" { String::new() } else { kind },
        ns: ns.clone(),
        name,
    };
    let named = match args.what.as_slice() {
        [] => vec![ObjectSelector {
            ns: ns.clone(),
            ..ObjectSelector::default()
        }],
        what => parse_names(what)?.into_iter().map(select).collect(),
    };

    let options = ChangeOptions {
        dry_run: args.dry_run,
        write: false,
    };
    let (mut code, mut deleted) = (0, 0);
    for selector in &named {
        let answer = mesh.control().delete_applied(selector, options).await;
        let response = answer.map_err(|error| mesh.control_error(error))?;
        print(&response)?;
        code |= i32::from(!response.ok);
        deleted += response.objects.len();
    }

    if deleted == 0 && code == 0 {
        output::note(format_args!(
            "No applied objects found{}. Objects of files stay: `meltemi get all -A -o wide` names them.",
            in_namespace(&ns)
        ));
    }
    Ok(code)
}

pub(crate) async fn get(mesh: &Mesh, args: GetArgs) -> Result<i32> {
    let ns = if args.all_namespaces {
        ""
    } else {
        args.namespace.as_str()
    };

    let selectors = if args.what.is_empty() {
        selectors_of(&Sources::read(&args.files)?, ns)?
    } else {
        let select = |NamedObject { kind, name }| ObjectSelector {
            kind,
            ns: ns.to_owned(),
            name,
        };
        parse_names(&args.what)?.into_iter().map(select).collect()
    };

    let filter = args
        .selector
        .as_deref()
        .map(LabelFilter::parse)
        .transpose()?;
    let fields = args
        .field_selector
        .as_deref()
        .map(FieldFilter::parse)
        .transpose()?;

    let is_named = selectors.iter().all(|selector| !selector.name.is_empty());
    let mut items: Vec<ObjectView> = Vec::new();
    let mut code = 0;

    for selector in &selectors {
        let found = objects(mesh, selector).await?;
        if found.is_empty() && !selector.name.is_empty() {
            report_missing(mesh, selector).await?;
            code = 1;
        }

        // Selectors may overlap, as in `get all vs`: list each object once.
        for item in found {
            let has_labels = filter
                .as_ref()
                .is_none_or(|filter| filter.matches(&labels(&item)));
            let has_fields = match &fields {
                Some(fields) => fields.matches(&item.value)?,
                None => true,
            };
            if has_labels && has_fields && !items.contains(&item) {
                items.push(item);
            }
        }
    }
    if let Some(path) = &args.sort_by {
        sort(&mut items, path)?;
    }

    let is_single = is_named && selectors.len() == 1;
    show(mesh, &args, &items, is_single).await?;

    // Formats for programs print an empty list instead.
    let is_table = matches!(&args.output, None | Some(View::Known(Output::Wide)));
    if items.is_empty() && !is_named && is_table {
        output::note(format_args!("No objects found{}.", in_namespace(ns)));
    }

    Ok(code)
}

/// Prints objects in the format that the user wants.
async fn show(mesh: &Mesh, args: &GetArgs, items: &[ObjectView], is_single: bool) -> Result<()> {
    let style = TableStyle {
        namespaces: args.all_namespaces
            || items
                .iter()
                .any(|item| item.object.namespace != items[0].object.namespace),
        wide: args.output == Some(View::Known(Output::Wide)),
        labels: args.show_labels,
        no_headers: args.no_headers,
    };

    match &args.output {
        Some(View::Known(Output::Name)) => {
            for item in items {
                let kind = resource(&item.object);
                output::line(format_args!("{kind}/{}", item.object.name))?;
            }
        }
        Some(View::Known(format @ (Output::Json | Output::Yaml))) => {
            if let Some(value) = together(items, is_single) {
                output::structured(Some(*format), &value)?;
            }
        }
        Some(View::JsonPath(template)) => {
            if let Some(value) = together(items, is_single) {
                output::text(&template.render(&value)?)?;
            }
        }
        Some(View::Columns(columns)) => output::text(&custom_table(items, columns, style)?)?,
        None | Some(View::Known(Output::Wide)) => {
            output::text(&tables(items, &live(mesh, items).await, style))?;
        }
    }

    Ok(())
}

/// Prints that an object does not exist, and the namespace of one with the same
/// name if there is one.
async fn report_missing(mesh: &Mesh, selector: &ObjectSelector) -> Result<()> {
    let resource = Kind::from_word(&selector.kind)
        .map_or_else(|| selector.kind.clone(), |kind| kind.resource());
    output::note(format_args!(
        "error: {}",
        not_found(&resource, &selector.ns, &selector.name)
    ));

    let anywhere = ObjectSelector {
        ns: String::new(),
        ..selector.clone()
    };
    if let Some(elsewhere) = objects(mesh, &anywhere).await?.first() {
        let namespace = &elsewhere.object.namespace;
        output::note(format_args!(
            "there is one in namespace {namespace} (-n {namespace})"
        ));
    }

    Ok(())
}

/// A single object by itself (nothing if it does not exist), several as a `List`.
fn together(items: &[ObjectView], is_single: bool) -> Option<serde_json::Value> {
    match (items, is_single) {
        ([only], true) => Some(only.value.clone()),
        ([], true) => None,
        (all, _) => {
            let values: Vec<_> = all.iter().map(|item| &item.value).collect();
            Some(serde_json::json!({"apiVersion": "v1", "kind": "List", "items": values}))
        }
    }
}

/// Asks the control plane for the objects of a selector; the kind `all` selects
/// every kind.
async fn objects(mesh: &Mesh, one: &ObjectSelector) -> Result<Vec<ObjectView>> {
    let kind = if one.kind == "all" {
        String::new()
    } else {
        one.kind.clone()
    };

    let selector = ObjectSelector {
        kind,
        ..one.clone()
    };

    Ok(mesh
        .control()
        .objects(&selector)
        .await
        .map_err(|error| mesh.control_error(error))?
        .items)
}

/// The live state, if a kind has columns for it. If node or control plane do not answer, the
/// columns show less.
async fn live(mesh: &Mesh, items: &[ObjectView]) -> Live {
    if !items.iter().any(|item| needs_live(&item.object.kind)) {
        return Live::default();
    }
    Live {
        workloads: mesh.node().list().await.unwrap_or_default(),
        services: mesh
            .control()
            .get("/debug/registryz")
            .await
            .unwrap_or_default(),
    }
}

fn in_namespace(ns: &str) -> String {
    if ns.is_empty() {
        String::new()
    } else {
        format!(" in namespace {ns:?}")
    }
}

fn labels(item: &ObjectView) -> BTreeMap<&str, &str> {
    let labels = item.value["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten();
    labels
        .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
        .collect()
}

/// Prints the result of a delete: one line per object, then the diagnostics.
fn print(response: &ApplyResponse) -> Result<()> {
    print_objects(response)?;
    output::diagnostics(&response.diagnostics);

    Ok(())
}

/// Prints a line for each object that was or would be changed.
fn print_objects(response: &ApplyResponse) -> Result<()> {
    let suffix = if response.dry_run { " (dry run)" } else { "" };
    for applied in response
        .objects
        .iter()
        .filter(|applied| applied.action != Action::Refused)
    {
        // Name only files of the user. The mesh's own state files are an internal matter.
        let place = if applied.in_users_file {
            format!(" in {}", applied.file)
        } else {
            String::new()
        };

        let (kind, name) = (resource(&applied.object), &applied.object.name);
        output::line(format_args!(
            "{kind}/{name} {}{place}{suffix}",
            applied.action
        ))?;
    }

    Ok(())
}

/// Selectors of the objects that files define.
fn selectors_of(sources: &Sources, namespace: &str) -> Result<Vec<ObjectSelector>> {
    let mut parsed = meltemi_api::parse_in("applied", &sources.text, namespace);
    sources.set_positions(&mut parsed.diagnostics);
    sources.report(&parsed.diagnostics);
    ensure!(!parsed.objects.is_empty(), "the given files name no object");

    let select = |object: &meltemi_api::Object| {
        let meltemi_api::ObjectKey {
            kind,
            namespace,
            name,
        } = object.key();

        ObjectSelector {
            kind: kind.resource(),
            ns: namespace,
            name,
        }
    };

    Ok(parsed.objects.iter().map(select).collect())
}
