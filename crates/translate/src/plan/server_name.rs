//! The server names by which a listener tells TLS connections apart.

use meltemi_model::Hostname;
use meltemi_types::{Diagnostic, ObjectRef, Severity};

/// Hosts as Envoy takes them: `*` is written as no name at all. Envoy refuses the whole listener for
/// a partial wildcard (`*shop.example`), so such a host is left out alone, and told on `object`.
/// `None` if no host is left: then there is no chain.
pub(super) fn server_names(
    hosts: &[Hostname],
    object: &ObjectRef,
    diagnostics: &mut Vec<Diagnostic>,
) -> Option<Vec<String>> {
    if hosts.iter().any(|host| *host == "*") {
        return Some(Vec::new());
    }

    let (partial, whole): (Vec<_>, Vec<_>) = hosts.iter().partition(|host| is_partial(host));
    for host in partial {
        diagnostics.push(Diagnostic {
            code: "MEL0508".to_owned(),
            severity: Severity::Warning,
            object: object.clone(),
            field: "spec".to_owned(),
            position: Default::default(),
            message: format!("TLS cannot be routed by the partial wildcard {host}; it is left out"),
            remedy: "write a name that begins with *.".to_owned(),
        });
    }

    (!whole.is_empty()).then(|| whole.into_iter().map(ToString::to_string).collect())
}

fn is_partial(host: &Hostname) -> bool {
    host.is_wildcard() && !host.as_str().starts_with("*.")
}
