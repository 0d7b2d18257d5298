//! Objects that users apply.

use std::fs;

use meltemi_api::{Kind, ObjectKey, parse_in, validate};
use meltemi_store::{
    Action, AppliedStore, ApplyError, ChangeOptions, FileSourceOptions, Outcome, World,
};
use meltemi_types::Severity;

use crate::{Running, key, timeout, virtual_service};

const REAL: ChangeOptions = ChangeOptions {
    dry_run: false,
    write: false,
};
const WRITE: ChangeOptions = ChangeOptions {
    dry_run: false,
    write: true,
};

/// Applies the sound objects of a text, as the control plane does, to the user's files too.
fn apply(store: &AppliedStore, text: &str, namespace: &str) -> Vec<Outcome> {
    let mut objects = parse_in("x.yaml", text, namespace).objects;
    objects.retain(|object| {
        validate(object)
            .iter()
            .all(|finding| finding.severity != Severity::Error)
    });

    store
        .apply(&objects, text, WRITE)
        .into_iter()
        .map(|outcome| outcome.expect("written"))
        .collect()
}

/// Without the line that says when it was created.
fn ageless(text: &str) -> String {
    text.lines()
        .filter(|line| !line.contains("creationTimestamp"))
        .flat_map(|line| [line, "\n"])
        .collect()
}

#[tokio::test]
async fn applied_objects_take_effect_and_survive() {
    let root = tempfile::tempdir().expect("a directory");
    let own = root.path().join("state/applied");
    let store = AppliedStore::open(&own, vec![]).expect("opened");
    let mut running = Running::start(vec![store.source()], None);

    running.wait(|world| world.is_ready()).await;

    let text = format!("# mine\n{}", virtual_service("a", "1s"));
    let outcomes = apply(&store, &text, "default");
    assert_eq!(
        (outcomes[0].action, outcomes[0].is_users),
        (Action::Created, false)
    );

    running.wait(|world| timeout(world, "a") == Some(1)).await;
    let kept = fs::read_to_string(&outcomes[0].file).expect("kept");
    assert_eq!(ageless(&kept), text);

    assert_eq!(apply(&store, &text, "default")[0].action, Action::Unchanged);
    assert_eq!(apply(&store, &kept, "default")[0].action, Action::Unchanged);
    assert_eq!(
        apply(&store, &virtual_service("a", "2s"), "default")[0].action,
        Action::Configured
    );

    running.wait(|world| timeout(world, "a") == Some(2)).await;

    // A namespace beside the text is written into it.
    let outcomes = apply(&store, &virtual_service("b", "3s"), "other");
    assert_eq!(
        outcomes[0].key,
        ObjectKey::new(Kind::VirtualService, "other", "b")
    );

    running
        .wait(|world| world.tables.get(&outcomes[0].key).is_some())
        .await;
    drop(running);

    let mut running = Running::start(vec![store.source()], None);
    let world = running.wait(|world| world.is_ready()).await;
    assert_eq!((timeout(&world, "a"), world.tables.len()), (Some(2), 2));
    assert_eq!(
        store.delete(&key("a"), REAL).expect("deleted")[0].action,
        Action::Deleted
    );

    assert!(matches!(
        store.delete(&key("a"), REAL),
        Err(ApplyError::NotFound(_))
    ));

    running.wait(|world| timeout(world, "a").is_none()).await;
}

#[test]
fn an_applied_object_keeps_the_time_of_its_creation() {
    let root = tempfile::tempdir().expect("a directory");
    let open = || AppliedStore::open(root.path().join("applied"), vec![]).expect("opened");
    let created = |outcome: &Outcome| {
        let text = fs::read_to_string(&outcome.file).expect("kept");
        meltemi_api::parse("", &text)
            .objects
            .remove(0)
            .meta
            .creation
            .expect("a time")
    };

    let flow = |timeout: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: f, creationTimestamp: '1999-01-01T00:00:00Z'}}\n\
             spec: {{hosts: [f], http: [{{timeout: {timeout}, route: [{{destination: {{host: f}}}}]}}]}}\n"
        )
    };

    for text in [|timeout: &str| virtual_service("a", timeout), flow] as [fn(&str) -> String; 2] {
        let outcome = apply(&open(), &text("1s"), "default").remove(0);
        let first = created(&outcome);
        assert!(
            first.len() == "2026-01-01T00:00:00Z".len() && !first.starts_with("1999"),
            "{first}"
        );

        // As if it had been made long ago: every later version, also after a restart, is as old.
        let aged = fs::read_to_string(&outcome.file)
            .expect("kept")
            .replace(&first, "2001-02-03T04:05:06Z");
        fs::write(&outcome.file, aged).expect("written");
        for timeout in ["2s", "3s"] {
            let outcome = apply(&open(), &text(timeout), "default").remove(0);
            assert_eq!(
                (outcome.action, created(&outcome).as_str()),
                (Action::Configured, "2001-02-03T04:05:06Z")
            );
        }
    }

    // Kept by an earlier program, without a time: the file's own.
    let outcome = apply(&open(), &virtual_service("old", "1s"), "default").remove(0);
    fs::write(&outcome.file, virtual_service("old", "1s")).expect("written");
    let file = fs::File::options()
        .write(true)
        .open(&outcome.file)
        .expect("there");

    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(86_400))
        .expect("set");
    assert_eq!(
        created(&apply(&open(), &virtual_service("old", "2s"), "default")[0]),
        "1970-01-02T00:00:00Z"
    );
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

    let outcomes = apply(&store, &virtual_service("b", "2s"), "default");
    assert_eq!(
        (outcomes[0].action, outcomes[0].is_users, &outcomes[0].file),
        (Action::Configured, true, &file)
    );

    let expected = before.replacen(&virtual_service("b", "1s"), &virtual_service("b", "2s"), 1);
    assert_eq!(fs::read_to_string(&file).expect("there"), expected);
    assert_eq!(
        fs::read_dir(root.path().join("applied"))
            .expect("there")
            .count(),
        0
    );

    // A document that was broken by hand is left for that hand, since its comments cannot be told.
    let broken = before.replacen(&virtual_service("b", "1s"), &virtual_service("b", "["), 1);
    fs::write(&file, &broken).expect("written");
    let wanted = parse_in("x.yaml", &virtual_service("b", "2s"), "default").objects;
    let refused = store.apply(&wanted, "", WRITE).remove(0);
    assert!(
        matches!(refused, Err(ApplyError::NotEditable { .. })),
        "{refused:?}"
    );
    assert_eq!(fs::read_to_string(&file).expect("there"), broken);
    fs::write(&file, &expected).expect("written");

    // What is removed is the document; its neighbours' comments and the file stay.
    store.delete(&key("a"), WRITE).expect("deleted");
    let rest = fs::read_to_string(&file).expect("there");
    assert_eq!(
        rest,
        format!(
            "# all of it\n# the second\n---   # mark\n{}--- \n{}",
            virtual_service("b", "2s"),
            virtual_service("c", "1s")
        )
    );

    store.delete(&key("b"), WRITE).expect("deleted");
    store.delete(&key("c"), WRITE).expect("deleted");
    let rest = fs::read_to_string(&file).expect("there");
    assert_eq!(rest, "# all of it\n# the second\n# mark\n");
    let parsed = meltemi_api::parse("", &rest);
    assert!(
        parsed.objects.is_empty() && parsed.diagnostics.is_empty(),
        "{parsed:?}"
    );
}

#[test]
fn the_users_files_stay_as_they_are_unless_that_is_allowed() {
    let root = tempfile::tempdir().expect("a directory");
    let users = root.path().join("mine");
    fs::create_dir(&users).expect("made");
    let (file, second) = (users.join("a.yaml"), users.join("b.yaml"));
    let text = format!(
        "# head\n{}---\n{}",
        virtual_service("z", "1s"),
        virtual_service("a", "1s  # on-call, read runbook 17")
    );
    fs::write(&file, &text).expect("written");
    fs::write(&second, virtual_service("a", "9s")).expect("written");

    let own = root.path().join("applied");
    let store = AppliedStore::open(&own, vec![]).expect("opened");
    apply(&store, &virtual_service("a", "7s"), "default");
    let store = AppliedStore::open(&own, vec![users]).expect("opened");

    // Neither the file nor the applied object behind it changes, and the place is told.
    let wanted = parse_in("x.yaml", &virtual_service("a", "2s"), "default").objects;
    let place = |error: ApplyError| match error {
        ApplyError::InUsersFile { file, line, .. } => (file, line),
        other => panic!("{other}"),
    };
    let line = text
        .lines()
        .position(|line| line.contains("name: a"))
        .expect("a line")
        + 1;
    let expected = (file.clone(), u32::try_from(line).expect("small"));
    for dry_run in [true, false] {
        let options = ChangeOptions { dry_run, ..REAL };
        let mut applied = store.apply(&wanted, "", options);
        assert_eq!(place(applied.remove(0).expect_err("refused")), expected);
        assert_eq!(
            place(store.delete(&key("a"), options).expect_err("refused")),
            expected
        );
    }
    assert_eq!(fs::read_to_string(&file).expect("there"), text);
    assert_eq!(fs::read_dir(&own).expect("there").count(), 1);

    // Allowed: the comment stays.
    let outcome = apply(&store, &virtual_service("a", "2s"), "default").remove(0);
    assert_eq!(
        (outcome.action, outcome.is_users),
        (Action::Configured, true)
    );
    let expected = text.replace("1s  # on-call", "2s # on-call");
    assert_eq!(fs::read_to_string(&file).expect("there"), expected);

    // Deleted from every file that holds it, and what was applied with them.
    let dry = ChangeOptions {
        dry_run: true,
        ..WRITE
    };
    for options in [dry, WRITE] {
        let outcomes = store.delete(&key("a"), options).expect("deleted");
        let files: Vec<bool> = outcomes.iter().map(|outcome| outcome.is_users).collect();
        assert_eq!(files, [true, true, false]);
    }
    assert!(
        !fs::read_to_string(&file)
            .expect("there")
            .contains("name: a")
    );
    assert_eq!(fs::read_to_string(&second).expect("still there"), "");
    assert_eq!(fs::read_dir(&own).expect("there").count(), 0);
}

#[test]
fn all_applied_objects_are_deleted_broken_ones_among_them() {
    let root = tempfile::tempdir().expect("a directory");
    let own = root.path().join("applied");
    let store = AppliedStore::open(&own, vec![]).expect("opened");
    for name in ["a", "b"] {
        apply(&store, &virtual_service(name, "1s"), "default");
    }
    let broken = apply(&store, &virtual_service("c", "1s"), "other")
        .remove(0)
        .file;
    let text = fs::read_to_string(&broken)
        .expect("there")
        .replace("hosts:", "hoosts: x\n  hosts:");
    fs::write(&broken, text).expect("written");

    let deleted = store.delete_all(|key| key.namespace == "default", REAL);
    assert_eq!(deleted.len(), 2);
    assert_eq!(fs::read_dir(&own).expect("there").count(), 1);
    assert_eq!(store.delete_all(|_| true, REAL).len(), 1);
    assert_eq!(fs::read_dir(&own).expect("there").count(), 0);
}

#[test]
fn objects_of_unread_kinds_never_share_a_file() {
    let root = tempfile::tempdir().expect("a directory");
    let store = AppliedStore::open(root.path().join("applied"), vec![]).expect("opened");
    let object = |group: &str, namespace: &str, name: &str| {
        format!(
            "apiVersion: {group}/v1\nkind: Thing\nmetadata: {{name: {name}, namespace: {namespace}}}\n"
        )
    };

    for (group, namespace, name) in [("a.b", "c", "d"), ("a", "b", "c.d")] {
        assert_eq!(
            apply(&store, &object(group, namespace, name), "default")[0].action,
            Action::Created
        );
    }

    assert_eq!(
        fs::read_dir(root.path().join("applied"))
            .expect("there")
            .count(),
        2
    );
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
        format!(
            "# first\napiVersion: v1\nkind: Namespace\nmetadata: {{name: first}}\n---\n{accounts}"
        ),
    )
    .expect("written");

    fs::write(
        users.join("one.json"),
        "{\"apiVersion\": \"v1\", \"kind\": \"ServiceAccount\", \"metadata\": {\"name\": \"j\"}}",
    )
    .expect("written");

    fs::write(
        elsewhere.join("linked"),
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: l}\n",
    )
    .expect("written");

    std::os::unix::fs::symlink(elsewhere.join("linked"), users.join("linked.yaml"))
        .expect("linked");
    let store =
        AppliedStore::open(root.path().join("applied"), vec![users.clone()]).expect("opened");

    let labelled = |name: &str| {
        format!(
            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, labels: {{new: label}}}}\n"
        )
    };

    for name in ["x", "j", "l"] {
        let outcomes = apply(&store, &labelled(name), "default");
        assert_eq!(
            (outcomes[0].action, outcomes[0].is_users),
            (Action::Configured, true),
            "{name}"
        );

        assert_eq!(
            apply(&store, &labelled(name), "default")[0].action,
            Action::Unchanged,
            "{name}"
        );
    }

    assert!(
        fs::read_to_string(users.join("list.yaml"))
            .expect("there")
            .starts_with("# first\napiVersion: v1\nkind: Namespace\n")
    );

    assert!(
        fs::read_to_string(users.join("one.json"))
            .expect("there")
            .starts_with('{')
    );

    assert!(
        fs::symlink_metadata(users.join("linked.yaml"))
            .expect("there")
            .is_symlink()
    );

    assert!(
        fs::read_to_string(elsewhere.join("linked"))
            .expect("there")
            .contains("new: label")
    );

    store
        .delete(&ObjectKey::new(Kind::ServiceAccount, "default", "x"), WRITE)
        .expect("deleted");
    let keys: Vec<String> = meltemi_api::parse(
        "",
        &fs::read_to_string(users.join("list.yaml")).expect("there"),
    )
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
        apply(&store, &text, "default");
    }

    assert_eq!(fs::read_dir(root.path()).expect("there").count(), 1);

    // The longest names that there are, and two that differ at their end alone.
    let long = "a".repeat(252);

    for end in ["b", "c"] {
        let outcomes = apply(
            &store,
            &object("ServiceAccount", "v1", &format!("{long}{end}")),
            &"n".repeat(63),
        );
        assert_eq!(outcomes[0].action, Action::Created);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_that_are_applied_together_take_effect_together() {
    const MANY: usize = 300;
    let root = tempfile::tempdir().expect("a directory");
    let store = AppliedStore::open(root.path().join("applied"), vec![]).expect("opened");
    let mut running = Running::with(FileSourceOptions {
        turn: store.turn(),
        ..FileSourceOptions::new(vec![store.source()], Some(root.path().join("last-good")))
    });

    let text: String = (0..MANY)
        .map(|n| format!("---\n{}", virtual_service(&format!("v{n}"), "1s")))
        .collect();
    let writer = tokio::task::spawn_blocking(move || apply(&store, &text, "default").len());

    // Nobody sees a part of them.
    let count = |world: &World| {
        (0..MANY)
            .filter(|n| world.tables.get(&key(&format!("v{n}"))).is_some())
            .count()
    };
    let world = running.wait(|world| count(world) > 0).await;
    assert_eq!(count(&world), MANY);
    assert_eq!(writer.await.expect("written"), MANY);
}
