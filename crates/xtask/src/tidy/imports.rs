//! Which crate may import which.

use super::workspace::{Dependency, Member, Workspace};

/// The data plane knows xDS only, so that any server can drive it.
const DATA_PLANE: &[&str] = &["lb", "filters", "net", "proxy-config", "proxy", "agent"];
const CONFIGURATION: &[&str] = &["api", "model", "store", "translate", "control"];

/// Same input, same bytes: no IO, no clock, no randomness of their own.
pub const PURE: &[&str] = &[
    "types",
    "model",
    "translate",
    "proxy-config",
    "filters",
    "lb",
];
const IMPURE: &[&str] = &[
    "tokio", "hyper", "socket2", "rustix", "rand", "notify", "tonic",
];

/// Foreign crates that one crate of ours wraps for all others.
const WRAPPED: &[(&str, &str)] = &[
    ("envoy-types", "proto"),
    ("kube", "kube"),
    ("k8s-openapi", "kube"),
];

/// Stands beside the layers: nothing imports it, and it imports nothing of ours.
const CHORES: &str = "xtask";
/// Stands beside the layers: tests import it, nothing that ships does, and it imports nothing of
/// ours.
const TESTKIT: &str = "testkit";

pub fn check(workspace: &Workspace) -> Vec<String> {
    workspace
        .members
        .iter()
        .flat_map(|member| check_member(workspace, member))
        .collect()
}

fn check_member(workspace: &Workspace, member: &Member) -> Vec<String> {
    let name = &member.name;
    let mut found = Vec::new();
    if !member.has_row {
        found.push(format!(
            "crate {name} has no row in ARCHITECTURE.md's table of crates"
        ));
    }

    let has_place = match member.layers.len() {
        0 => name == CHORES || name == TESTKIT,
        count => count == 1,
    };
    if !has_place {
        found.push(format!(
            "crate {name} must have one layer in ARCHITECTURE.md"
        ));
        return found;
    }

    let shipped = member.dependencies.iter().filter(|entry| !entry.is_dev);
    found.extend(shipped.filter_map(|entry| check_edge(workspace, member, entry)));
    found
}

/// What is wrong with a dependency that ships.
fn check_edge(workspace: &Workspace, member: &Member, dependency: &Dependency) -> Option<String> {
    let name = member.name.as_str();
    let on = dependency.name.as_str();
    match workspace.member(on) {
        Some(other) => own_edge(member, other),
        None if PURE.contains(&name) && IMPURE.contains(&on) => {
            Some(format!("{name} is pure and imports {on}"))
        }
        None => {
            let (_, wrapper) = WRAPPED.iter().find(|(foreign, _)| *foreign == on)?;
            (name != *wrapper).then(|| format!("{name} imports {on}: only {wrapper} does"))
        }
    }
}

fn own_edge(member: &Member, other: &Member) -> Option<String> {
    let (name, on) = (member.name.as_str(), other.name.as_str());
    if name == CHORES || on == CHORES {
        return Some(format!("{name} imports {on}: {CHORES} builds alone"));
    }
    if name == TESTKIT || on == TESTKIT {
        return Some(format!("{name} imports {on}: {TESTKIT} is for tests alone"));
    }
    if DATA_PLANE.contains(&name) && CONFIGURATION.contains(&on) {
        return Some(format!(
            "{name} is data plane and imports {on}: it may know xDS only"
        ));
    }

    if name == "translate" && on == "api" {
        return Some(format!("{name} imports {on}: it reads the model alone"));
    }

    let (layer, below) = (member.layers.first()?, other.layers.first()?);
    (below >= layer).then(|| format!("{name} (layer {layer}) imports {on} (layer {below})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, layer: Option<u8>, dependencies: &[(&str, bool)]) -> Member {
        Member {
            name: name.to_owned(),
            layers: layer.into_iter().collect(),
            has_row: true,
            dependencies: dependencies
                .iter()
                .map(|(name, is_dev)| Dependency {
                    name: (*name).to_owned(),
                    is_dev: *is_dev,
                })
                .collect(),
            folder: name.into(),
        }
    }

    fn found(members: Vec<Member>) -> Vec<String> {
        check(&Workspace { members })
    }

    #[test]
    fn imports_run_downwards() {
        let found = found(vec![
            member("model", Some(2), &[("types", false)]),
            member("types", Some(0), &[("model", false)]),
            member("api", Some(1), &[("ca", false)]),
            member("ca", Some(1), &[]),
        ]);

        assert_eq!(
            found,
            [
                "types (layer 0) imports model (layer 2)",
                "api (layer 1) imports ca (layer 1)"
            ]
        );
    }

    #[test]
    fn tests_may_import_anything() {
        let members = vec![
            member("types", Some(0), &[("model", true), ("tokio", true)]),
            member("model", Some(2), &[]),
        ];

        assert_eq!(found(members), Vec::<String>::new());
    }

    #[test]
    fn the_testkit_is_for_tests_alone() {
        let members = vec![
            member("net", Some(2), &[("testkit", true)]),
            member("node", Some(4), &[("testkit", false)]),
            member("testkit", None, &[("types", false)]),
            member("types", Some(0), &[]),
        ];

        assert_eq!(
            found(members),
            [
                "node imports testkit: testkit is for tests alone",
                "testkit imports types: testkit is for tests alone"
            ]
        );
    }

    #[test]
    fn the_data_plane_knows_xds_only() {
        let members = vec![
            member("proxy", Some(4), &[("api", false)]),
            member("api", Some(1), &[]),
        ];

        assert_eq!(
            found(members),
            ["proxy is data plane and imports api: it may know xDS only"]
        );
    }

    #[test]
    fn translate_reads_the_model_alone() {
        let members = vec![
            member("translate", Some(3), &[("api", false), ("model", false)]),
            member("model", Some(2), &[("api", false)]),
            member("api", Some(1), &[]),
        ];

        assert_eq!(
            found(members),
            ["translate imports api: it reads the model alone"]
        );
    }

    #[test]
    fn pure_crates_import_no_io_and_foreign_crates_have_one_wrapper() {
        let members = vec![
            member("filters", Some(2), &[("tokio", false), ("bytes", false)]),
            member("proto", Some(0), &[("envoy-types", false)]),
            member("xds", Some(1), &[("envoy-types", false)]),
        ];

        assert_eq!(
            found(members),
            [
                "filters is pure and imports tokio",
                "xds imports envoy-types: only proto does"
            ]
        );
    }

    #[test]
    fn chores_build_alone() {
        let members = vec![
            member("xtask", None, &[("types", false)]),
            member("types", Some(0), &[]),
            member("lost", None, &[]),
        ];

        assert_eq!(
            found(members),
            [
                "xtask imports types: xtask builds alone",
                "crate lost must have one layer in ARCHITECTURE.md"
            ]
        );
    }
}
