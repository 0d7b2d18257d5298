//! What applications cannot reach: the folders with the mesh's keys, tokens and sockets.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::mesh::{Mesh, Plan};
use crate::peers::{App, has_namespaces, yaml};

/// Looks for the mesh's keys and sockets in every way that a shell knows. Each line that it prints
/// is a way that led there.
const SEARCH: &str = r#"
run=$1 state=$2 home=$3

# By name, by their own names and as folders.
for folder in "$run" "$state"; do
    [ -z "$(ls -A "$folder")" ] || echo "$folder can be listed"
done
for file in "$state/token-key.pem" "$state/ca/ca-key.pem" "$run/control.sock" "$run/node.sock"; do
    [ ! -e "$file" ] || echo "$file is there"
done
find "$home" -name ca-key.pem -o -name token-key.pem -o -name control.sock

# By moving a folder above them, up to the test's own, or putting another one in its place.
for folder in "$run" "$state"; do
    while [ "$folder" != "$home" ]; do
        mv "$folder" "$folder.moved" 2>/dev/null && echo "$folder can be moved" && mv "$folder.moved" "$folder"
        folder=$(dirname "$folder")
    done
done
rmdir "$run" "$state" 2>/dev/null && echo "they can be removed"
touch "$run/control.sock" 2>/dev/null && echo "a false socket can be made"

# By the mounts: in the workload's own namespace, and in one where the program is root.
umount "$state" 2>/dev/null && echo "the cover can be unmounted"
unshare --user --map-root-user --mount sh -c '
    umount "$2" 2>/dev/null && echo "its root unmounts the cover"
    umount -l "$2" 2>/dev/null && echo "its root detaches the cover"
    umount -l "$3" 2>/dev/null && echo "its root detaches the folder above"
    mount --bind "$3" /mnt 2>/dev/null && find /mnt -name ca-key.pem
    mv "$3" "$3.moved" 2>/dev/null && echo "its root moves the folder above" && mv "$3.moved" "$3"
' sh "$run" "$state" "$(dirname "$state")"

# By other processes.
for process in /proc/[0-9]*; do
    ls "$process/root/$state/ca" 2>/dev/null && echo "$process leads there"
    ls "$process/cwd/ca" 2>/dev/null && echo "the folder of $process is the state"
done
true
"#;

fn search(mesh: &Mesh, workload: &str) -> String {
    let (run, state) = (mesh.run_dir(), mesh.path("state/meltemi/default"));
    let config = mesh.config();
    let home = config.parent().expect("the test's own folder");
    let output = mesh.exec(
        workload,
        &[
            "sh",
            "-c",
            SEARCH,
            "sh",
            &run.display().to_string(),
            &state.display().to_string(),
            &home.display().to_string(),
        ],
    );
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Files below a folder that others than the user may read or write.
fn open_to_others(folder: &Path) -> Vec<String> {
    let mut open = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let found = entry.path().symlink_metadata().expect("it is there");
        if found.permissions().mode() & 0o077 != 0 {
            open.push(format!(
                "{:o} {}",
                found.permissions().mode(),
                entry.path().display()
            ));
        }
        if found.is_dir() {
            open.extend(open_to_others(&entry.path()));
        }
    }
    open
}

#[test]
fn applications_reach_no_key_and_no_socket_of_the_mesh_by_any_name() {
    let test = "applications_reach_no_key_and_no_socket_of_the_mesh_by_any_name";
    if !has_namespaces(test) {
        return;
    }
    let mesh = Plan::new()
        .argument("--no-gateways")
        .file(
            "apps.yaml",
            &yaml(&[App::idle("inside"), App::idle("outside").unmeshed()]),
        )
        .start();

    let state = mesh.path("state/meltemi/default");
    assert!(
        state.join("ca/ca-key.pem").is_file(),
        "the search has something to find"
    );
    for workload in ["inside", "outside"] {
        assert_eq!(search(&mesh, workload), "", "{workload}");
    }
    for folder in [mesh.run_dir(), state.clone()] {
        assert_eq!(open_to_others(&folder), [""; 0]);
    }

    // The user moves the folder away under the running mesh: the next program would find it under
    // its new name, so there is none.
    let moved = mesh.path("moved");
    fs::rename(&state, &moved).expect("one file system");
    mesh.cli_ok(&["restart", "inside"]);
    mesh.wait("the workload says why it does not start", || {
        let said = mesh.cli_ok(&["logs", "inside"]);
        said.contains("is not the folder that the mesh was started with")
    });
    fs::create_dir(&state).expect("a decoy");
    assert!(
        !mesh.exec("inside", &["true"]).status.success(),
        "a folder of the same name is another folder"
    );

    fs::remove_dir(&state).expect("the decoy is empty");
    fs::rename(&moved, &state).expect("one file system");
    mesh.wait("the workload starts again", || {
        mesh.exec("inside", &["true"]).status.success()
    });
    assert_eq!(search(&mesh, "inside"), "");
}
