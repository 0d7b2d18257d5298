//! `apply`, `get`, `delete`.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use meltemi_admin_api::{Action, ApplyResponse, ClientError, ObjectSelector, ObjectView};
use meltemi_api::{Kind, not_found};

use crate::args::{ApplyArgs, DeleteArgs, GetArgs};
use crate::columns::{Live, columns, needs_live};
use crate::mesh::Mesh;
use crate::names::{LabelFilter, Wanted, wanted};
use crate::output::{self, Output};
use crate::sources::Sources;
use crate::table::Table;

/// The status code of an answer about an object that is not there.
const NOT_FOUND: u16 = 404;

pub(crate) async fn apply(mesh: &Mesh, args: ApplyArgs) -> Result<i32> {
    let sources = Sources::read(&args.files)?;
    let answer = mesh
        .control()
        .apply(sources.text.clone(), &args.namespace, args.dry_run)
        .await;

    let mut response = answer.map_err(|error| mesh.control_error(error))?;
    sources.place(&mut response.diagnostics);
    match args.output {
        Some(Output::Name) => {
            for applied in response
                .objects
                .iter()
                .filter(|applied| applied.action != Action::Refused)
            {
                output::line(format_args!(
                    "{}/{}",
                    applied.object.kind.to_lowercase(),
                    applied.object.name
                ))?;
            }

            output::diagnostics(&response.diagnostics);
        }
        form if output::machine(form, &response)? => {}
        _ => print(&response)?,
    }

    Ok(i32::from(!response.ok))
}

pub(crate) async fn delete(mesh: &Mesh, args: DeleteArgs) -> Result<i32> {
    let which = if args.what.is_empty() {
        let sources = Sources::read(&args.files)?;
        selectors(&sources, &args.namespace)?
    } else {
        let of = |Wanted { kind, name }| ObjectSelector {
            kind,
            ns: args.namespace.clone(),
            name,
        };

        let all: Vec<_> = wanted(&args.what)?.into_iter().map(of).collect();
        for one in &all {
            ensure!(
                !one.name.is_empty(),
                "which {kind}? Name one: meltemi delete {kind} NAME",
                kind = one.kind
            );
        }

        all
    };

    let mut code = 0;
    for selector in &which {
        match mesh.control().delete(selector, args.dry_run).await {
            Ok(response) => {
                print(&response)?;
                code |= i32::from(!response.ok);
            }
            // One that is not there keeps nobody from deleting the others.
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

pub(crate) async fn get(mesh: &Mesh, args: GetArgs) -> Result<i32> {
    let ns = if args.all_namespaces {
        ""
    } else {
        args.namespace.as_str()
    };

    let which = if args.what.is_empty() {
        selectors(&Sources::read(&args.files)?, ns)?
    } else {
        let of = |Wanted { kind, name }| ObjectSelector {
            kind,
            ns: ns.to_owned(),
            name,
        };
        wanted(&args.what)?.into_iter().map(of).collect()
    };

    let filter = args
        .selector
        .as_deref()
        .map(LabelFilter::parse)
        .transpose()?;

    let is_named = which.iter().all(|one| !one.name.is_empty());
    let mut items: Vec<ObjectView> = Vec::new();
    let mut code = 0;

    for one in &which {
        let found = objects(mesh, one).await?;
        if found.is_empty() && !one.name.is_empty() {
            let resource =
                Kind::from_word(&one.kind).map_or_else(|| one.kind.clone(), |kind| kind.resource());
            output::note(format_args!(
                "error: {}",
                not_found(&resource, &one.ns, &one.name)
            ));

            if let Some(elsewhere) = objects(
                mesh,
                &ObjectSelector {
                    ns: String::new(),
                    ..one.clone()
                },
            )
            .await?
            .first()
            {
                let namespace = &elsewhere.object.namespace;
                output::note(format_args!(
                    "there is one in namespace {namespace} (-n {namespace})"
                ));
            }

            code = 1;
        }

        for item in found {
            if filter
                .as_ref()
                .is_none_or(|filter| filter.fits(&labels(&item)))
                && !items.contains(&item)
            {
                items.push(item);
            }
        }
    }

    match args.output {
        Some(Output::Name) => {
            for item in &items {
                output::line(format_args!(
                    "{}/{}",
                    item.object.kind.to_lowercase(),
                    item.object.name
                ))?;
            }
        }
        Some(form @ (Output::Json | Output::Yaml)) => {
            match (items.as_slice(), is_named && which.len() == 1) {
                ([only], true) => _ = output::machine(Some(form), &only.value)?,
                ([], true) => {}
                (all, _) => {
                    let values: Vec<_> = all.iter().map(|item| &item.value).collect();
                    output::machine(
                        Some(form),
                        &serde_json::json!({"apiVersion": "v1", "kind": "List", "items": values}),
                    )?;
                }
            }
        }
        _ if items.is_empty() && !is_named => {
            output::note(format_args!("No objects found{}.", place(ns)))
        }
        form => {
            let live = live(mesh, &items).await;
            let namespaces = args.all_namespaces
                || items
                    .iter()
                    .any(|item| item.object.namespace != items[0].object.namespace);

            output::text(&tables(
                &items,
                &live,
                namespaces,
                form == Some(Output::Wide),
            ))?;
        }
    }

    Ok(code)
}

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

/// What runs, for the kinds that show it. Without an answer their columns show less.
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

fn place(ns: &str) -> String {
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

/// One table a kind; where there are several, names carry their kind.
fn tables(items: &[ObjectView], live: &Live, all_namespaces: bool, wide: bool) -> String {
    let of_one_kind: Vec<&[ObjectView]> = items
        .chunk_by(|a, b| a.object.kind == b.object.kind)
        .collect();
    let is_mixed = of_one_kind.len() > 1;
    let one = |items: &&[ObjectView]| {
        let mut table = Table::default();
        for (index, item) in items.iter().enumerate() {
            let object = &item.object;
            let name = match is_mixed {
                true => format!("{}/{}", object.kind.to_lowercase(), object.name),
                false => object.name.clone(),
            };

            let namespace = all_namespaces.then(|| ("NAMESPACE", object.namespace.clone()));
            let columns = namespace
                .into_iter()
                .chain([("NAME", name)])
                .chain(columns(item, live, wide));

            let (headings, cells): (Vec<&str>, Vec<String>) = columns.unzip();
            if index == 0 {
                table = Table::new(&headings);
            }
            table.row(cells);
        }

        table.render()
    };

    of_one_kind.iter().map(one).collect::<Vec<_>>().join("\n")
}

fn print(response: &ApplyResponse) -> Result<()> {
    let suffix = if response.dry_run { " (dry run)" } else { "" };
    for applied in response
        .objects
        .iter()
        .filter(|applied| applied.action != Action::Refused)
    {
        // Whose file it is decides who has to know: the mesh's own state is nobody's to look into.
        let place = if applied.in_users_file {
            format!(" in {}", applied.file)
        } else {
            String::new()
        };

        let (kind, name) = (applied.object.kind.to_lowercase(), &applied.object.name);
        output::line(format_args!(
            "{kind}/{name} {}{place}{suffix}",
            applied.action
        ))?;
    }

    output::diagnostics(&response.diagnostics);

    Ok(())
}

fn selectors(sources: &Sources, namespace: &str) -> Result<Vec<ObjectSelector>> {
    let mut parsed = meltemi_api::parse_in("applied", &sources.text, namespace);
    sources.place(&mut parsed.diagnostics);
    output::diagnostics(&parsed.diagnostics);
    ensure!(!parsed.objects.is_empty(), "the given files name no object");
    let of = |object: &meltemi_api::Object| {
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

    Ok(parsed.objects.iter().map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use meltemi_types::ObjectRef;

    fn item(kind: &str, name: &str) -> ObjectView {
        let value = serde_json::json!({"metadata": {"creationTimestamp": "2999-01-01T00:00:00Z"}, "spec": {"host": "x"}});
        ObjectView {
            object: ObjectRef::new(kind, "shop", name),
            value,
            ..ObjectView::default()
        }
    }

    #[test]
    fn each_kind_has_a_table_of_its_own() {
        let items = [
            item("DestinationRule", "a"),
            item("DestinationRule", "bb"),
            item("Sidecar", "c"),
        ];

        assert_eq!(
            tables(&items[..2], &Live::default(), false, false),
            "NAME   HOST   AGE\na      x      0s\nbb     x      0s\n"
        );

        assert_eq!(
            tables(&items[1..], &Live::default(), true, false),
            "NAMESPACE   NAME                 HOST   AGE\nshop        destinationrule/bb   x      0s\n\n\
             NAMESPACE   NAME        AGE\nshop        sidecar/c   0s\n"
        );
    }
}
