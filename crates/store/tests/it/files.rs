//! The file source.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;

use meltemi_model::NamespacedName;
use meltemi_store::{Directory, World};

use crate::{Running, has, key, timeout, virtual_service};

#[tokio::test]
async fn what_is_written_is_in_force_and_what_is_broken_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("a.yaml");
    fs::write(&file, virtual_service("a", "1s")).expect("written");
    let mut running = Running::start(vec![Directory::of_users(dir.path())], None);
    let first = running.wait(|world| world.is_ready()).await;
    assert_eq!(timeout(&first, "a"), Some(1));

    // Changed, in place, with as many bytes.
    fs::write(&file, virtual_service("a", "2s")).expect("written");
    let second = running.wait(|world| timeout(world, "a") == Some(2)).await;
    let changes = second.changes_after(first.version).expect("remembered");
    let name = key("a");
    let name = NamespacedName::new(name.namespace, name.name);
    assert!(
        changes
            .iter()
            .any(|change| change.virtual_services.contains_key(&name))
    );

    // Valid YAML, invalid object; then not YAML at all.
    fs::write(&file, virtual_service("a", "soon")).expect("written");
    let world = running.wait(|world| has(world, "MEL0403", "a")).await;
    assert_eq!(timeout(&world, "a"), Some(2));
    let refusal = world
        .diagnostics
        .iter()
        .find(|finding| finding.code == "MEL0111")
        .expect("the fault");

    assert_eq!(
        (refusal.position.line, refusal.position.file.as_str()),
        (8, &*file.to_string_lossy())
    );

    fs::write(&file, virtual_service("a", "[")).expect("written");
    let world = running.wait(|world| has(world, "MEL0101", "a")).await;
    assert_eq!(timeout(&world, "a"), Some(2));
    fs::write(&file, [0xff, 0xfe, b'a']).expect("written");
    let world = running
        .wait(|world| {
            world
                .diagnostics
                .iter()
                .any(|finding| finding.code == "MEL0401")
        })
        .await;

    assert_eq!(timeout(&world, "a"), Some(2));

    // Corrected; then more files, below too; then gone.
    fs::write(&file, virtual_service("a", "3s")).expect("written");
    let world = running.wait(|world| timeout(world, "a") == Some(3)).await;
    assert!(
        !world
            .diagnostics
            .iter()
            .any(|finding| finding.code.starts_with("MEL03")),
        "{:?}",
        world.diagnostics
    );

    fs::create_dir_all(dir.path().join("x/y")).expect("made");
    fs::write(dir.path().join("x/y/b.yml"), virtual_service("b", "4s")).expect("written");
    fs::write(
        dir.path().join("x/.hidden.yaml"),
        virtual_service("c", "4s"),
    )
    .expect("written");

    let world = running.wait(|world| timeout(world, "b") == Some(4)).await;
    assert_eq!(timeout(&world, "c"), None);
    fs::remove_file(&file).expect("removed");
    let world = running.wait(|world| timeout(world, "a").is_none()).await;
    assert_eq!(timeout(&world, "b"), Some(4));
}

#[tokio::test]
async fn the_last_good_version_survives_a_restart() {
    let (dir, state) = (
        tempfile::tempdir().expect("a directory"),
        tempfile::tempdir().expect("a directory"),
    );

    let state = state.path().join("last-good");
    let file = dir.path().join("a.yaml");
    fs::write(
        &file,
        format!(
            "{}---\n{}",
            virtual_service("a", "1s"),
            virtual_service("b", "1s")
        ),
    )
    .expect("written");

    let mut running = Running::start(vec![Directory::of_users(dir.path())], Some(&state));
    running.wait(|world| world.is_ready()).await;
    drop(running);

    // One document invalid, one broken, and nobody saw the change.
    fs::write(
        &file,
        format!(
            "{}---\n{}",
            virtual_service("a", "-1s"),
            virtual_service("b", "[")
        ),
    )
    .expect("written");

    let mut running = Running::start(vec![Directory::of_users(dir.path())], Some(&state));
    let world = running.wait(|world| world.is_ready()).await;
    assert_eq!(
        (timeout(&world, "a"), timeout(&world, "b")),
        (Some(1), Some(1))
    );

    assert!(has(&world, "MEL0403", "a") && has(&world, "MEL0403", "b"));
    drop(running);

    // Once more, with a damaged state: nothing to keep, nothing to fall over.
    for entry in fs::read_dir(&state).expect("the state") {
        fs::write(entry.expect("an entry").path(), "{").expect("written");
    }
    let mut running = Running::start(vec![Directory::of_users(dir.path())], Some(&state));
    let world = running.wait(|world| world.is_ready()).await;
    assert_eq!((timeout(&world, "a"), timeout(&world, "b")), (None, None));
    drop(running);

    // Removed while nobody looked: its state goes too.
    fs::write(&file, virtual_service("a", "5s")).expect("written");
    drop({
        let mut running = Running::start(vec![Directory::of_users(dir.path())], Some(&state));
        running.wait(|world| timeout(world, "a") == Some(5)).await;
        running
    });

    fs::remove_file(&file).expect("removed");
    let mut running = Running::start(vec![Directory::of_users(dir.path())], Some(&state));
    let world = running.wait(|world| world.is_ready()).await;
    assert!(world.tables.is_empty());
    drop(running);
    assert_eq!(fs::read_dir(&state).expect("the state").count(), 0);
}

#[tokio::test]
async fn a_state_that_cannot_be_written_is_told_and_hurts_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let occupied = dir.path().join("occupied");
    fs::write(&occupied, "not a directory").expect("written");
    fs::write(dir.path().join("a.yaml"), virtual_service("a", "1s")).expect("written");
    let mut running = Running::start(vec![Directory::of_users(dir.path())], Some(&occupied));
    running.wait(|world| timeout(world, "a") == Some(1)).await;
    let is_told = |world: &World| {
        world
            .diagnostics
            .iter()
            .any(|finding| finding.code == "MEL0405")
    };

    running.wait(|world| is_told(world)).await;

    // As soon as it can be written, it is, and nothing is left to say.
    fs::remove_file(&occupied).expect("removed");
    running.wait(|world| !is_told(world)).await;
    assert_eq!(fs::read_dir(&occupied).expect("made").count(), 1);
}

#[tokio::test]
async fn a_half_broken_file_yields_its_good_half() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = format!(
        "{}---\nkind: [\n---\n{}",
        virtual_service("a", "1s"),
        virtual_service("b", "2s")
    );

    fs::write(dir.path().join("a.yaml"), text).expect("written");
    let mut running = Running::start(vec![Directory::of_users(dir.path())], None);
    let world = running.wait(|world| world.is_ready()).await;
    assert_eq!(
        (timeout(&world, "a"), timeout(&world, "b")),
        (Some(1), Some(2))
    );

    assert_eq!(
        world
            .diagnostics
            .iter()
            .filter(|finding| finding.code == "MEL0101")
            .count(),
        1
    );
}

/// An object of any kind that cannot be told from others by its name.
fn widget(api_version: &str, kind: &str, rest: &str) -> String {
    format!(
        "apiVersion: {api_version}\nkind: {kind}\nmetadata:\n  name: same\n  namespace: default\n{rest}"
    )
}

#[tokio::test]
async fn a_broken_document_keeps_the_object_of_its_own_kind_and_group_alone() {
    const BROKEN: &str = "spec: [\n";

    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("a.yaml");
    let whole = [
        widget("example.com/v1", "Widget", "spec: {size: 1}\n"),
        widget("other.example/v1", "Widget", "spec: {size: 2}\n"),
        widget("example.com/v1", "Gadget", "spec: {size: 3}\n"),
        widget("gateway.networking.k8s.io/v1", "Gateway", "spec: {}\n"),
        widget(
            "networking.istio.io/v1",
            "VirtualService",
            "spec: {hosts: [a], http: [{route: [{destination: {host: a}}]}]}\n",
        ),
        widget(
            "networking.istio.io/v1",
            "Sidecar",
            "spec: {egress: [{hosts: ['*/*']}]}\n",
        ),
    ];
    fs::write(&file, whole.join("---\n")).expect("written");
    let mut running = Running::start(vec![Directory::of_users(dir.path())], None);
    let world = running.wait(|world| world.is_ready()).await;
    assert_eq!(world.tables.iter().count(), whole.len());

    // Each of these is one broken document, and all other documents are gone.
    for (api_version, kind, kept) in [
        // The version says nothing about which object it is.
        ("example.com/v2", "Widget", "Widget.example.com"),
        ("other.example/v1", "Widget", "Widget.other.example"),
        (
            "gateway.networking.k8s.io/v1",
            "Gateway",
            "Gateway.gateway.networking.k8s.io",
        ),
        ("networking.istio.io/v9", "VirtualService", "VirtualService"),
        // A slip in the group.
        ("security.istio.io/v1", "Sidecar", "Sidecar"),
        // An object that was not there.
        ("third.example/v1", "Widget", ""),
        ("networking.istio.io/v1", "Gateway", ""),
    ] {
        fs::write(&file, whole.join("---\n")).expect("written");
        running
            .wait(|world| world.tables.iter().count() == whole.len())
            .await;
        fs::write(&file, widget(api_version, kind, BROKEN)).expect("written");
        let few = |world: &std::sync::Arc<World>| world.tables.iter().count() < whole.len();
        let world = running.wait(few).await;

        let held: Vec<String> = world
            .tables
            .iter()
            .map(|object| object.key().object_ref().qualified_kind())
            .collect();
        let told: Vec<String> = world
            .diagnostics
            .iter()
            .filter(|finding| finding.code == "MEL0403")
            .map(|finding| finding.object.qualified_kind())
            .collect();
        let kept: Vec<&str> = [kept].into_iter().filter(|kept| !kept.is_empty()).collect();
        assert_eq!(
            (held, told),
            (to_strings(&kept), to_strings(&kept)),
            "{api_version} {kind}"
        );
    }
}

fn to_strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[tokio::test]
async fn of_two_the_first_file_counts_and_both_are_named() {
    let (dir, second) = (
        tempfile::tempdir().expect("a directory"),
        tempfile::tempdir().expect("a directory"),
    );

    let (one, two) = (dir.path().join("1.yaml"), dir.path().join("2.yaml"));
    fs::write(&one, virtual_service("a", "1s")).expect("written");
    fs::write(&two, virtual_service("a", "2s")).expect("written");
    fs::write(second.path().join("0.yaml"), virtual_service("a", "3s")).expect("written");
    let mut running = Running::start(
        vec![
            Directory::of_users(dir.path()),
            Directory::of_users(second.path()),
        ],
        None,
    );

    let world = running.wait(|world| world.is_ready()).await;
    assert_eq!(timeout(&world, "a"), Some(1));
    let doubles: Vec<_> = world
        .diagnostics
        .iter()
        .filter(|finding| finding.code == "MEL0402")
        .collect();

    assert_eq!(doubles.len(), 2, "{doubles:?}");
    assert!(
        doubles
            .iter()
            .all(|double| double.message.contains(&*one.to_string_lossy())),
        "{doubles:?}"
    );

    assert!(
        doubles
            .iter()
            .any(|double| double.position.file == two.to_string_lossy()),
        "{doubles:?}"
    );

    fs::remove_file(&one).expect("removed");
    running.wait(|world| timeout(world, "a") == Some(2)).await;
}

#[tokio::test]
async fn what_a_program_brings_gives_way_without_a_word() {
    let (dir, program) = (
        tempfile::tempdir().expect("a directory"),
        tempfile::tempdir().expect("a directory"),
    );

    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {}\n";
    for (folder, timeout) in [(dir.path(), "1s"), (program.path(), "2s")] {
        fs::write(
            folder.join("a.yaml"),
            format!("{}---\n{pod}", virtual_service("a", timeout)),
        )
        .expect("written");
    }

    let mut running = Running::start(
        vec![
            Directory::of_users(dir.path()),
            Directory::of_programs(program.path()),
        ],
        None,
    );

    let world = running.wait(|world| world.is_ready()).await;
    assert_eq!(timeout(&world, "a"), Some(1));

    // A Pod that runs is another matter.
    assert!(
        !has(&world, "MEL0402", "a") && has(&world, "MEL0402", "p"),
        "{:?}",
        world.diagnostics
    );

    fs::remove_file(dir.path().join("a.yaml")).expect("removed");
    running.wait(|world| timeout(world, "a") == Some(2)).await;

    // Twice in one place is a slip of the program's.
    fs::write(program.path().join("b.yaml"), virtual_service("a", "3s")).expect("written");
    running.wait(|world| has(world, "MEL0402", "a")).await;
}

#[tokio::test]
async fn a_mounted_config_map_is_swapped_by_its_link() {
    let dir = tempfile::tempdir().expect("a directory");
    let swap = |version: &str, text: &str| {
        fs::create_dir(dir.path().join(version)).expect("made");
        fs::write(dir.path().join(version).join("a.yaml"), text).expect("written");
        symlink(version, dir.path().join("..data_tmp")).expect("linked");
        fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).expect("swapped");
    };

    swap("..1", &virtual_service("a", "1s"));
    symlink("..data/a.yaml", dir.path().join("a.yaml")).expect("linked");
    let mut running = Running::start(vec![Directory::of_users(dir.path())], None);
    let world = running.wait(|world| world.is_ready()).await;
    assert_eq!(timeout(&world, "a"), Some(1));
    swap("..2", &virtual_service("a", "2s"));
    running.wait(|world| timeout(world, "a") == Some(2)).await;
}

#[tokio::test]
async fn a_directory_may_come_later_and_loop() {
    let dir = tempfile::tempdir().expect("a directory");
    let later = dir.path().join("later");
    let mut running = Running::start(vec![Directory::of_users(&later)], None);
    let world = running.wait(|world| world.is_ready()).await;

    assert!(
        world
            .diagnostics
            .iter()
            .any(|finding| finding.message.contains("does not exist")),
        "{:?}",
        world.diagnostics
    );

    fs::create_dir(&later).expect("made");
    symlink(&later, later.join("loop")).expect("linked");
    fs::write(later.join("a.yaml"), virtual_service("a", "1s")).expect("written");
    running.source.rescan();
    let world = running.wait(|world| timeout(world, "a") == Some(1)).await;
    assert!(!has(&world, "MEL0402", "a"), "{:?}", world.diagnostics);
}

#[tokio::test]
async fn a_file_is_read_when_its_writer_has_closed_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("a.yaml");
    fs::write(&file, virtual_service("a", "1s")).expect("written");
    let mut running = Running::start(vec![Directory::of_users(dir.path())], None);
    running.wait(|world| timeout(world, "a") == Some(1)).await;

    // As `helm template > a.yaml` does: empty at once, half of it a moment later, closed at the
    // end.
    let text = virtual_service("a", "2s");
    let (half, rest) = text.split_at(text.find("spec:").expect("there"));
    let mut writer = fs::File::create(&file).expect("emptied");

    for (number, part) in [(1, half), (2, rest)] {
        // What is seen after the emptying, and after each part, is the old object: another file's
        // change tells that it was looked.
        let other = format!("other{number}");
        fs::write(
            dir.path().join(format!("{other}.yaml")),
            virtual_service(&other, "1s"),
        )
        .expect("written");

        let world = running.wait(|world| timeout(world, &other).is_some()).await;
        assert_eq!(timeout(&world, "a"), Some(1), "{:?}", world.diagnostics);
        assert!(
            world
                .diagnostics
                .iter()
                .all(|finding| finding.code != "MEL0101"),
            "{:?}",
            world.diagnostics
        );

        writer.write_all(part.as_bytes()).expect("written");
    }

    drop(writer);
    running.wait(|world| timeout(world, "a") == Some(2)).await;
}

#[tokio::test]
async fn what_links_lead_to_is_watched() {
    let root = tempfile::tempdir().expect("a directory");
    let (dir, outside, folder) = (
        root.path().join("dir"),
        root.path().join("a.yaml"),
        root.path().join("folder"),
    );

    fs::create_dir_all(folder.join("deep")).expect("made");
    fs::create_dir(&dir).expect("made");
    let deep = folder.join("deep/b.yaml");
    fs::write(&outside, virtual_service("a", "1s")).expect("written");
    fs::write(&deep, virtual_service("b", "1s")).expect("written");
    symlink(&outside, dir.join("a.yaml")).expect("linked");
    symlink(&folder, dir.join("folder")).expect("linked");

    // Nobody looks by himself within the time of this test.
    let mut running = Running::start(vec![Directory::of_users(&dir)], None);
    running
        .wait(|world| timeout(world, "a") == Some(1) && timeout(world, "b") == Some(1))
        .await;

    fs::write(&outside, virtual_service("a", "2s")).expect("written");
    running.wait(|world| timeout(world, "a") == Some(2)).await;
    fs::write(&deep, virtual_service("b", "2s")).expect("written");
    running.wait(|world| timeout(world, "b") == Some(2)).await;

    // Replaced as editors do, and more than once: the next one is a file that was not there when
    // the first was watched. The kernel says that a file is gone when nobody has it open any more,
    // which is after its successor was found.
    for seconds in 3..6 {
        let new = root.path().join("new");
        fs::write(&new, virtual_service("a", &format!("{seconds}s"))).expect("written");
        let old = fs::File::open(&outside).expect("opened");
        fs::rename(&new, &outside).expect("renamed");
        running
            .wait(|world| timeout(world, "a") == Some(seconds))
            .await;
        drop(old);
    }

    // Gone for a while, and the link leads to nothing.
    fs::remove_file(&outside).expect("removed");
    running
        .wait(|world| {
            world
                .diagnostics
                .iter()
                .any(|finding| finding.position.file.ends_with("a.yaml"))
        })
        .await;

    fs::write(&outside, virtual_service("a", "7s")).expect("written");
    running.wait(|world| timeout(world, "a") == Some(7)).await;

    // The directory itself is another one.
    fs::rename(&dir, root.path().join("old")).expect("renamed");
    fs::create_dir(&dir).expect("made");
    fs::write(dir.join("c.yaml"), virtual_service("c", "1s")).expect("written");
    running.wait(|world| timeout(world, "c") == Some(1)).await;
    fs::write(dir.join("c.yaml"), virtual_service("c", "2s")).expect("written");
    running.wait(|world| timeout(world, "c") == Some(2)).await;
}

#[tokio::test]
async fn a_directory_that_a_link_leads_to_may_be_another_one() {
    let root = tempfile::tempdir().expect("a directory");
    let release = |number: u64| {
        let folder = root.path().join(format!("releases/{number}/conf/deep"));
        fs::create_dir_all(&folder).expect("made");
        fs::write(
            folder.join("a.yaml"),
            virtual_service("a", &format!("{number}s")),
        )
        .expect("written");
    };

    // As `ln -sfn releases/2 current` does; the link is the directory itself, and on the way to it.
    let point = |number: u64| {
        let new = root.path().join("new");
        symlink(format!("releases/{number}"), &new).expect("linked");
        fs::rename(&new, root.path().join("current")).expect("swapped");
    };

    for directory in ["current", "current/conf"] {
        (1..=3).for_each(release);
        point(1);

        // Nobody looks at everything within the time of this test.
        let mut running =
            Running::start(vec![Directory::of_users(root.path().join(directory))], None);
        running.wait(|world| timeout(world, "a") == Some(1)).await;
        for number in [2, 3, 1] {
            point(number);
            running
                .wait(|world| timeout(world, "a") == Some(number))
                .await;

            // What the link leads to now is watched, and what it led to is of no interest.
            let file = |number: u64| {
                root.path()
                    .join(format!("releases/{number}/conf/deep/a.yaml"))
            };

            fs::write(
                file(number),
                virtual_service("a", &format!("{}s", number + 10)),
            )
            .expect("written");

            running
                .wait(|world| timeout(world, "a") == Some(number + 10))
                .await;
        }

        // It leads to nothing for a while: nobody has removed the objects on purpose, but the
        // directory is gone.
        fs::remove_file(root.path().join("current")).expect("removed");
        running
            .wait(|world| {
                world
                    .diagnostics
                    .iter()
                    .any(|found| found.message.contains("does not exist"))
            })
            .await;

        point(2);
        running.wait(|world| timeout(world, "a") == Some(12)).await;
    }
}

#[tokio::test]
async fn what_is_no_file_is_told_and_holds_nothing_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let made = std::process::Command::new("mkfifo")
        .arg(dir.path().join("pipe.yaml"))
        .status()
        .expect("mkfifo");

    assert!(made.success());
    fs::write(dir.path().join("z.yaml"), virtual_service("z", "1s")).expect("written");
    let mut running = Running::start(vec![Directory::of_users(dir.path())], None);
    let world = running.wait(|world| timeout(world, "z") == Some(1)).await;
    assert!(
        world
            .diagnostics
            .iter()
            .any(|finding| finding.message.contains("is not a regular file"))
    );
}

#[tokio::test]
async fn files_of_other_programs_are_one_finding_and_no_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("written");
    write("a.yaml", &virtual_service("a", "1s"));
    write("compose.yaml", "services: {web: {image: nginx}}\n");
    write("images.yaml", "images: [{image: a, command: [b]}]\n");
    write("package.json", "{\"name\": \"x\"}");
    write("tsconfig.json", "{\"files\": []}");
    write("kustomization.yaml", "resources: [a.yaml]\n");
    write("values.yaml", "replicas: 3\n");
    fs::create_dir_all(dir.path().join("node_modules/x")).expect("made");
    write("node_modules/x/broken.json", "{ // not even JSON");

    let mut running = Running::start(vec![Directory::of_users(dir.path())], None);
    let world = running.wait(|world| world.is_ready()).await;
    assert_eq!(timeout(&world, "a"), Some(1));
    let found: Vec<String> = world.diagnostics.iter().map(ToString::to_string).collect();
    assert_eq!(
        found
            .iter()
            .filter(|found| !found.contains("IST"))
            .collect::<Vec<_>>(),
        [&format!(
            "{}: info[MEL0406]: left alone, since they hold no Kubernetes object: compose.yaml, images.yaml, \
             kustomization.yaml, package.json, tsconfig.json, 1 more",
            dir.path().display()
        )]
    );

    // A document among others is no reason to name the file.
    write(
        "values.yaml",
        &format!("replicas: 3\n---\n{}", virtual_service("b", "1s")),
    );
    let world = running.wait(|world| timeout(world, "b") == Some(1)).await;
    assert!(
        world
            .diagnostics
            .iter()
            .any(|found| found.message.ends_with("package.json, tsconfig.json"))
    );
}

#[tokio::test]
async fn a_single_file_is_read_and_watched_however_it_is_replaced() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("app.conf");
    fs::write(&file, virtual_service("a", "1s")).expect("written");
    fs::write(dir.path().join("other.yaml"), virtual_service("b", "1s")).expect("written");
    let mut running = Running::start(vec![Directory::of_users(&file)], None);
    let world = running.wait(|world| world.is_ready()).await;
    assert_eq!(
        (timeout(&world, "a"), timeout(&world, "b")),
        (Some(1), None)
    );

    fs::write(&file, virtual_service("a", "2s")).expect("written");
    running.wait(|world| timeout(world, "a") == Some(2)).await;

    // As editors do it, twice.
    for seconds in [3, 4] {
        let next = dir.path().join("next");
        fs::write(&next, virtual_service("a", &format!("{seconds}s"))).expect("written");
        fs::rename(&next, &file).expect("renamed");
        running
            .wait(|world| timeout(world, "a") == Some(seconds))
            .await;
    }

    fs::remove_file(&file).expect("removed");
    running.wait(|world| timeout(world, "a").is_none()).await;
    fs::write(&file, virtual_service("a", "5s")).expect("written");
    running.wait(|world| timeout(world, "a") == Some(5)).await;
}
