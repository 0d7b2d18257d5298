//! CUSTOM policies that deny, or do nothing, because of their provider.

use std::collections::BTreeSet;

use meltemi_api::{Kind, Object};
use meltemi_types::{Diagnostic, Severity};

use crate::lower::finding;
use crate::query::ext_authz::NoAuthorizer;
use crate::{
    AuthorizationPolicy, AuthzAction, Check, NamespacedName, ProviderFault, Snapshot, Workload,
};

const MISSING: &str = "IST0101";
/// A CUSTOM policy denies what its rules select, since its provider cannot be asked.
const DENIES: &str = "MEL0331";
/// A CUSTOM policy, or its provider, has less effect than its text suggests.
const DOES_LESS: &str = "MEL0332";

const PROVIDER: &str = "spec.provider.name";

pub(super) fn analyze(snapshot: &Snapshot, found: &mut Vec<Diagnostic>) {
    providers(snapshot, found);

    let of_several = policies_of_several_providers(snapshot);
    for (name, entry) in &snapshot.lowered.authorization_policies.entries {
        if let AuthzAction::Custom { provider } = &entry.value.action {
            let several = of_several.contains(name);
            policy(
                snapshot,
                &entry.object,
                &entry.value,
                provider,
                several,
                found,
            );
        }
    }
}

/// Reports faults of providers that depend on services, at the mesh's ConfigMap. Faults of
/// the text alone are reported when the text is read.
fn providers(snapshot: &Snapshot, found: &mut Vec<Diagnostic>) {
    let config_maps = snapshot.tables.table(&Kind::ConfigMap);
    let Some(object) = config_maps.get(&snapshot.options.mesh_config_map) else {
        return;
    };

    for name in snapshot.mesh.providers.keys() {
        let fault = match snapshot.authorizer(name) {
            Ok(authorizer) => snapshot.port_fault(authorizer),
            Err(NoAuthorizer::NoService(fault)) => Some(fault),
            Err(NoAuthorizer::Unknown | NoAuthorizer::OtherKind | NoAuthorizer::Faulty(_)) => None,
        };

        let Some(ProviderFault {
            field,
            message,
            remedy,
        }) = fault
        else {
            continue;
        };
        if let Some((field, position)) = meltemi_api::mesh::provider_field(object, name, &field) {
            found.push(Diagnostic {
                position,
                ..finding(object, Severity::Warning, MISSING, &field, message, remedy)
            });
        }
    }
}

fn policy(
    snapshot: &Snapshot,
    object: &Object,
    policy: &AuthorizationPolicy,
    provider: &str,
    is_of_several: bool,
    found: &mut Vec<Diagnostic>,
) {
    let mut warn = |code: &str, message: String, remedy: String| {
        found.push(finding(
            object,
            Severity::Warning,
            code,
            PROVIDER,
            message,
            remedy,
        ));
    };

    if policy.dry_run {
        return warn(
            DOES_LESS,
            "a CUSTOM policy with istio.io/dry-run has no effect: nobody is asked".to_owned(),
            "remove the annotation, or the policy".to_owned(),
        );
    }

    let cannot_be_asked = |fault: &ProviderFault| {
        let ProviderFault { field, message, .. } = fault;
        format!(
            "provider {provider:?} cannot be asked: {field}: {message}: what the rules select is denied"
        )
    };

    let authorizer = match snapshot.authorizer(provider) {
        Ok(authorizer) => authorizer,
        Err(NoAuthorizer::Unknown) => {
            return warn(
                MISSING,
                format!(
                    "Referenced provider not found: {provider:?}: what the rules select is denied"
                ),
                "add it to extensionProviders of MeshConfig".to_owned(),
            );
        }
        Err(NoAuthorizer::OtherKind) => {
            return warn(
                DENIES,
                format!("provider {provider:?} is no authorizer: what the rules select is denied"),
                "name a provider with envoyExtAuthzHttp or envoyExtAuthzGrpc".to_owned(),
            );
        }
        Err(NoAuthorizer::Faulty(fault)) => {
            return warn(DENIES, cannot_be_asked(fault), fault.remedy.clone());
        }
        Err(NoAuthorizer::NoService(fault)) => {
            return warn(DENIES, cannot_be_asked(&fault), fault.remedy);
        }
    };

    if is_of_several {
        return warn(
            DENIES,
            "CUSTOM policies of several providers select the same workload: what their rules select is denied"
                .to_owned(),
            "use one provider for a workload".to_owned(),
        );
    }

    let mut workloads = snapshot.workloads();
    let own = workloads.find(|workload| {
        snapshot.selects(policy, &workload.namespace, &workload.labels)
            && snapshot.is_behind(authorizer, &workload.namespace, &workload.labels)
    });
    if let Some(own) = own {
        warn(
            DOES_LESS,
            format!(
                "the policy selects workload {} of its own authorizer, which is not checked: it would have to ask itself",
                own.key()
            ),
            "give the policy a selector that leaves the authorizer out".to_owned(),
        );
    }

    if matches!(authorizer.check, Check::Http(_))
        && let Some((workload, port)) = served_over_tcp(snapshot, policy)
    {
        warn(
            DOES_LESS,
            format!(
                "provider {provider:?} decides on HTTP requests only: TCP port {port} of workload {} is not checked",
                workload.key()
            ),
            "use a provider with envoyExtAuthzGrpc, or add a DENY policy for the port".to_owned(),
        );
    }
}

/// The CUSTOM policies that select a workload together with one of another provider.
fn policies_of_several_providers(snapshot: &Snapshot) -> BTreeSet<NamespacedName> {
    let named: BTreeSet<&str> = snapshot
        .lowered
        .authorization_policies
        .values()
        .filter(|policy| !policy.dry_run)
        .filter_map(|policy| match &policy.action {
            AuthzAction::Custom { provider } => Some(provider.as_str()),
            AuthzAction::Allow | AuthzAction::Deny | AuthzAction::Audit => None,
        })
        .collect();

    // Most meshes end here: to look at every workload costs time.
    if named.len() < 2 {
        return BTreeSet::new();
    }

    snapshot
        .workloads()
        .map(|workload| {
            snapshot
                .authorization_policies(&workload.namespace, &workload.labels)
                .custom
        })
        .filter(|custom| custom.len() > 1)
        .flatten()
        .flat_map(|of_provider| of_provider.policies)
        .map(|policy| policy.origin.name())
        .collect()
}

/// A workload that the policy selects, and a port that it serves as bytes.
fn served_over_tcp<'a>(
    snapshot: &'a Snapshot,
    policy: &AuthorizationPolicy,
) -> Option<(&'a Workload, u16)> {
    let selected = snapshot
        .workloads()
        .filter(|workload| snapshot.selects(policy, &workload.namespace, &workload.labels));

    selected.into_iter().find_map(|workload| {
        let targets =
            snapshot.service_targets(&workload.namespace, &workload.labels, &workload.ips);
        let over_tcp = targets
            .iter()
            .find(|target| target.port.protocol.is_tcp())?;
        Some((workload.as_ref(), over_tcp.target_port))
    })
}
