//! Deleting: one object by its name, or all applied ones.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use meltemi_admin_api::{Action, Applied, ApplyResponse, ChangeOptions, ObjectSelector, Origin};
use meltemi_api::{Kind, Object, ObjectKey};
use meltemi_model::Tables;
use meltemi_store::ApplyError;
use meltemi_types::{Diagnostic, Severity};

use super::{Objects, Refusal, apply_failed, diagnostic, kind_of, outcome_of, store_options};

impl Objects {
    /// Deletes one object by kind and name.
    pub(crate) async fn delete(
        &self,
        which: &ObjectSelector,
        options: ChangeOptions,
    ) -> Result<ApplyResponse, Refusal> {
        let key = self.key_of(which)?;
        let held = self.worlds.borrow().tables.get(&key).cloned();
        let mut response = ApplyResponse {
            ok: true,
            dry_run: options.dry_run,
            ..ApplyResponse::default()
        };

        if let Some(finding) = held.as_ref().and_then(|object| self.brought(object)) {
            self.refuse(&key, held.as_ref(), finding, &mut response);
            return Ok(response);
        }

        let (store, wanted) = (self.applied.clone(), key.clone());
        let work = move || store.delete(&wanted, store_options(options));
        match blocking(work).await? {
            Ok(outcomes) => {
                response.objects.extend(outcomes.iter().map(outcome_of));
                if !options.dry_run {
                    self.taken_up(|tables| is_replaced(tables, &key, held.as_ref()))
                        .await;
                    response.diagnostics.extend(self.brought_again(&key));
                }
            }
            Err(error @ ApplyError::NotFound(_)) => {
                return Err(Refusal::NotFound(error.to_string()));
            }
            Err(error) => {
                let finding = apply_failed(&error, Action::Deleted);
                self.refuse(&key, held.as_ref(), finding, &mut response);
            }
        }

        Ok(response)
    }

    /// Deletes every applied object that the selector matches. Objects of the user's files stay.
    pub(crate) async fn delete_applied(
        &self,
        which: &ObjectSelector,
        options: ChangeOptions,
    ) -> Result<ApplyResponse, Refusal> {
        let kind = kind_of(&self.worlds.borrow(), &which.kind).map_err(Refusal::Unclear)?;
        let (store, which) = (self.applied.clone(), which.clone());
        let work = move || {
            let is_wanted = |key: &ObjectKey| is_named(&which, kind.as_ref(), key);
            store.delete_all(is_wanted, store_options(options))
        };
        let before = self.worlds.borrow().clone();

        let mut response = ApplyResponse {
            ok: true,
            dry_run: options.dry_run,
            ..ApplyResponse::default()
        };
        let mut deleted = BTreeSet::new();
        for answer in blocking(work).await? {
            match answer {
                Ok(outcome) => {
                    response.objects.push(outcome_of(&outcome));
                    deleted.insert(outcome.key);
                }
                Err(error) => {
                    let finding = apply_failed(&error, Action::Deleted);
                    response.ok = false;
                    response.diagnostics.push(finding);
                }
            }
        }

        if !options.dry_run {
            let was_applied = |object: &&Arc<Object>| {
                deleted.contains(&object.key())
                    && self.origin(Path::new(&*object.source.file)) == Origin::Applied
            };
            let own: Vec<&Arc<Object>> = before.tables.iter().filter(was_applied).collect();
            let are_replaced = |tables: &Tables| {
                own.iter()
                    .all(|held| is_replaced(tables, &held.key(), Some(held)))
            };
            self.taken_up(are_replaced).await;
        }
        Ok(response)
    }

    fn key_of(&self, which: &ObjectSelector) -> Result<ObjectKey, Refusal> {
        let kind = kind_of(&self.worlds.borrow(), &which.kind).map_err(Refusal::Unclear)?;
        let (Some(kind), false) = (kind, which.name.is_empty()) else {
            let what = "say which object: kind and name, and ns where it is not default";
            return Err(Refusal::Unclear(what.to_owned()));
        };

        let namespace = match (kind.is_namespaced(), which.ns.as_str()) {
            (false, _) => "",
            (true, "") => "default",
            (true, named) => named,
        };
        Ok(ObjectKey::new(kind, namespace, &which.name))
    }

    fn refuse(
        &self,
        key: &ObjectKey,
        held: Option<&Arc<Object>>,
        finding: Diagnostic,
        response: &mut ApplyResponse,
    ) {
        response.ok = false;
        response.objects.push(Applied {
            action: Action::Refused,
            ..self.described(key, held)
        });
        response.diagnostics.push(finding);
    }

    /// The note that the mesh's own object is in force after a deletion.
    fn brought_again(&self, key: &ObjectKey) -> Option<Diagnostic> {
        let next = self.worlds.borrow().tables.get(key).cloned()?;
        self.brought(&next)?;

        let message = format!(
            "the one that the mesh brings ({}) is in force again",
            next.source.file
        );
        Some(Diagnostic {
            severity: Severity::Info,
            ..diagnostic(key.object_ref(), message, "to change it, apply another one")
        })
    }
}

/// Whether another object, or none, has the key now. What the mesh brings may stand behind a deleted
/// object.
fn is_replaced(tables: &Tables, key: &ObjectKey, held: Option<&Arc<Object>>) -> bool {
    tables
        .get(key)
        .is_none_or(|next| held.is_some_and(|held| !Arc::ptr_eq(held, next)))
}

/// Whether the selector matches a key; an empty field matches everything.
fn is_named(which: &ObjectSelector, kind: Option<&Kind>, key: &ObjectKey) -> bool {
    kind.is_none_or(|kind| key.kind == *kind)
        && (which.ns.is_empty() || key.namespace.is_empty() || key.namespace == which.ns)
        && (which.name.is_empty() || key.name == which.name)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Refusal::Unclear(format!("deleting broke off: {error}")))
}
