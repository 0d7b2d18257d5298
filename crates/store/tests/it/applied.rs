//! Objects that users apply.

use std::fs;

use meltemi_api::{Kind, ObjectKey};
use meltemi_store::{Action, AppliedStore, ApplyError};

use crate::{Running, key, timeout, virtual_service};

#[tokio::test]
async fn applied_objects_take_effect_and_survive() {
    let root = tempfile::tempdir().expect("a directory");
    let own = root.path().join("state/applied");
    let store = AppliedStore::open(&own, vec![]).expect("opened");
    let mut running = Running::start(vec![store.source()], None);
    running.wait(|world| world.is_ready()).await;

    let text = format!("# mine\n{}", virtual_service("a", "1s"));
    let report = store.apply("a.yaml", &text, "default");
    assert!(report.is_success(), "{report:?}");
    assert_eq!((report.outcomes[0].action, report.outcomes[0].is_users), (Action::Created, false));
    running.wait(|world| timeout(world, "a") == Some(1)).await;
    assert_eq!(fs::read_to_string(&report.outcomes[0].file).expect("kept"), text);

    assert_eq!(store.apply("a.yaml", &text, "default").outcomes[0].action, Action::Unchanged);
    assert_eq!(store.apply("a.yaml", &virtual_service("a", "2s"), "default").outcomes[0].action, Action::Configured);
    running.wait(|world| timeout(world, "a") == Some(2)).await;

    // Invalid objects are refused, the others of the text applied; a namespace beside the text is written into it.
    let report =
        store.apply("x.yaml", &format!("{}---\n{}", virtual_service("a", "soon"), virtual_service("b", "3s")), "other");
    assert!(!report.is_success());
    assert_eq!(report.outcomes.len(), 1);
    assert_eq!(report.outcomes[0].key, ObjectKey::new(Kind::VirtualService, "other", "b"));
    running.wait(|world| world.tables.get(&report.outcomes[0].key).is_some()).await;
    drop(running);

    let mut running = Running::start(vec![store.source()], None);
    let world = running.wait(|world| world.is_ready()).await;
    assert_eq!((timeout(&world, "a"), world.tables.len()), (Some(2), 2));
    assert_eq!(store.delete(&key("a")).expect("deleted").action, Action::Deleted);
    assert!(matches!(store.delete(&key("a")), Err(ApplyError::NotFound(_))));
    running.wait(|world| timeout(world, "a").is_none()).await;
}

#[test]
fn an_object_of_the_users_directory_is_changed_there() {
    let root = tempfile::tempdir().expect("a directory");
    let users = root.path().join("mine");
    fs::create_dir(&users).expect("made");
    let file = users.join("all.yaml");
    let before = format!(
        "# all of it\n{}\n# the second\n---   # mark\n{}--- \n{}",
        virtual_service("a", "1s"),
        virtual_service("b", "1s"),
        virtual_service("c", "1s")
    );
    fs::write(&file, &before).expect("written");
    let store = AppliedStore::open(root.path().join("applied"), vec![users]).expect("opened");

    let report = store.apply("b.yaml", &virtual_service("b", "2s"), "default");
    assert!(report.is_success(), "{report:?}");
    assert_eq!(
        (report.outcomes[0].action, report.outcomes[0].is_users, &report.outcomes[0].file),
        (Action::Configured, true, &file)
    );
    let expected = before.replacen(&virtual_service("b", "1s"), &virtual_service("b", "2s"), 1);
    assert_eq!(fs::read_to_string(&file).expect("there"), expected);
    assert_eq!(fs::read_dir(root.path().join("applied")).expect("there").count(), 0);

    // A document that was broken by hand is the one that is replaced.
    let broken = before.replacen(&virtual_service("b", "1s"), &virtual_service("b", "["), 1);
    fs::write(&file, &broken).expect("written");
    assert!(store.apply("b.yaml", &virtual_service("b", "2s"), "default").is_success());
    assert_eq!(fs::read_to_string(&file).expect("there"), expected);

    store.delete(&key("a")).expect("deleted");
    let rest = fs::read_to_string(&file).expect("there");
    assert_eq!(rest, format!("{}--- \n{}", virtual_service("b", "2s"), virtual_service("c", "1s")));
    store.delete(&key("b")).expect("deleted");
    store.delete(&key("c")).expect("deleted");
    assert!(!file.exists());
}

#[test]
fn lists_json_and_links_are_changed_too() {
    let root = tempfile::tempdir().expect("a directory");
    let (users, elsewhere) = (root.path().join("mine"), root.path().join("elsewhere"));
    fs::create_dir(&users).expect("made");
    fs::create_dir(&elsewhere).expect("made");
    let accounts = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: ServiceAccount, metadata: {name: x}}\n- {apiVersion: v1, kind: ServiceAccount, metadata: {name: z}}\n";
    fs::write(
        users.join("list.yaml"),
        format!("# first\napiVersion: v1\nkind: Namespace\nmetadata: {{name: first}}\n---\n{accounts}"),
    )
    .expect("written");
    fs::write(
        users.join("one.json"),
        "{\"apiVersion\": \"v1\", \"kind\": \"ServiceAccount\", \"metadata\": {\"name\": \"j\"}}",
    )
    .expect("written");
    fs::write(elsewhere.join("linked"), "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: l}\n")
        .expect("written");
    std::os::unix::fs::symlink(elsewhere.join("linked"), users.join("linked.yaml")).expect("linked");
    let store = AppliedStore::open(root.path().join("applied"), vec![users.clone()]).expect("opened");

    let labelled = |name: &str| {
        format!("apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, labels: {{new: label}}}}\n")
    };
    for name in ["x", "j", "l"] {
        let report = store.apply("sa.yaml", &labelled(name), "default");
        assert!(report.is_success() && report.outcomes[0].is_users, "{report:?}");
        assert_eq!(report.outcomes[0].action, Action::Configured, "{name}");
        assert_eq!(store.apply("sa.yaml", &labelled(name), "default").outcomes[0].action, Action::Unchanged, "{name}");
    }
    assert!(
        fs::read_to_string(users.join("list.yaml"))
            .expect("there")
            .starts_with("# first\napiVersion: v1\nkind: Namespace\n")
    );
    assert!(fs::read_to_string(users.join("one.json")).expect("there").starts_with('{'));
    assert!(fs::symlink_metadata(users.join("linked.yaml")).expect("there").is_symlink());
    assert!(fs::read_to_string(elsewhere.join("linked")).expect("there").contains("new: label"));

    store.delete(&ObjectKey::new(Kind::ServiceAccount, "default", "x")).expect("deleted");
    let keys: Vec<String> = meltemi_api::parse("", &fs::read_to_string(users.join("list.yaml")).expect("there"))
        .objects
        .iter()
        .map(|object| object.meta.name.clone())
        .collect();
    assert_eq!(keys, ["first", "z"]);
}

#[test]
fn hostile_names_stay_in_the_directory() {
    let root = tempfile::tempdir().expect("a directory");
    let own = root.path().join("applied");
    let store = AppliedStore::open(&own, vec![]).expect("opened");
    let object = |kind: &str, version: &str, name: &str| {
        format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: '{name}'}}\n")
    };
    for text in [
        object("Pod", "v1", "../../x"),
        object("Foo", "x/v1", "../x"),
        object("Foo", "../x/v1", "ok"),
        object("../Foo", "x/v1", "ok2"),
    ] {
        store.apply("x.yaml", &text, "default");
    }
    assert_eq!(fs::read_dir(root.path()).expect("there").count(), 1);
    // The longest names that there are, and two that differ at their end alone.
    let long = "a".repeat(252);
    for end in ["b", "c"] {
        let report = store.apply("x.yaml", &object("ServiceAccount", "v1", &format!("{long}{end}")), &"n".repeat(63));
        assert!(report.is_success(), "{report:?}");
        assert_eq!(report.outcomes[0].action, Action::Created);
    }
}
