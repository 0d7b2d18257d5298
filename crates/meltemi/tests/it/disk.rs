//! A full disk below the mesh's state: what is said, what goes on, and that nothing is lost.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::lifecycle::processes;
use crate::mesh::{Mesh, Plan, signal};
use crate::objects::{both, teapot};
use crate::peers::{App, Dialogue, Peers, curl, yaml};

/// Writes a file until nothing more fits on its file system.
fn fill(file: &Path) {
    let mut file = File::create(file).expect("room for a file");
    for size in [4096, 1] {
        loop {
            match file.write(&vec![b'x'; size]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

#[test]
fn a_full_disk_is_reported_and_nothing_is_lost() {
    let Some(peers) = Peers::of("a_full_disk_is_reported_and_nothing_is_lost") else {
        return;
    };
    let apps = [
        peers.recorder("ledger"),
        peers.recorder("diary"),
        peers.recorder("memo"),
        App::idle("inside"),
    ];

    let mut mesh = Plan::new()
        .argument("--no-gateways")
        .file("apps.yaml", &yaml(&apps))
        .state_of("512k")
        .start();

    // The file system is the mesh's alone; its processes show it.
    let home = mesh.path("state/meltemi/default");
    let state = PathBuf::from(format!("/proc/{}/root", mesh.supervisor().id()))
        .join(home.strip_prefix("/").expect("an absolute path"));
    let status =
        |mesh: &Mesh, host: &str| curl(mesh, "inside", &[&format!("http://{host}:9080/")]).status;
    let apply = |mesh: &Mesh, text: &str| {
        let file = mesh.path("applied.yaml");
        fs::write(&file, text).expect("a writable folder");
        mesh.cli(&["apply", "-f", &file.display().to_string()])
    };

    mesh.wait("everybody answers", || {
        ["ledger", "diary", "memo"]
            .iter()
            .all(|host| status(&mesh, host) == 200)
    });

    assert!(apply(&mesh, &teapot("ledger", 418)).status.success());
    mesh.wait("what was applied is in force", || {
        status(&mesh, "ledger") == 418
    });
    let kept = names(&state.join("applied"));
    assert_eq!(kept.len(), 1, "{kept:?}");

    let mut load = Dialogue::inside(
        &mesh,
        "inside",
        &peers.program("load.py", &["memo", "9080", "/"]),
    );

    assert_eq!(load.hear(), "started");
    fill(&state.join("filler"));

    // A change and a new object: each is refused with the file, the reason and the remedy, and the
    // old object stays.
    for text in [teapot("ledger", 451), teapot("diary", 451)] {
        let output = apply(&mesh, &text);
        let told = both(&output);
        assert_eq!(output.status.code(), Some(1), "{told}");
        for words in [
            "applied/virtualservice",
            "No space left on device",
            "nothing was changed",
            &format!(
                "free space on the file system of {}",
                home.join("applied").display()
            ),
        ] {
            assert!(told.contains(words), "{words:?} in {told}");
        }

        assert!(
            !told.contains("created") && !told.contains("configured"),
            "{told}"
        );
    }

    assert_eq!(
        names(&state.join("applied")),
        kept,
        "no half-written file is left"
    );

    assert_eq!(mesh.cli(&["get", "vs", "diary"]).status.code(), Some(1));
    assert_eq!(
        (status(&mesh, "ledger"), status(&mesh, "diary")),
        (418, 200)
    );

    // The directory lies elsewhere: its changes are in force, and that they cannot be remembered is
    // told.
    mesh.write("diary.yaml", &teapot("diary", 429));
    mesh.wait("a file's change is in force", || {
        status(&mesh, "diary") == 429
    });
    let says_full = |mesh: &Mesh| {
        let told = both(&mesh.cli(&["status"]));
        told.contains("MEL0405")
            && told.contains("No space left on device")
            && told.contains("free space")
    };

    mesh.wait("status tells of the disk", || says_full(&mesh));

    // A control plane that starts on a full disk finds everything again.
    let victims = processes(&mut mesh, "meltemi: control plane");
    assert!(!victims.is_empty());
    victims.iter().for_each(|pid| signal(*pid, "KILL"));
    mesh.wait("the control plane is back", || {
        mesh.cli(&["get", "vs", "ledger"]).status.success()
    });
    let object: Value =
        serde_json::from_str(&mesh.cli_ok(&["get", "vs/ledger", "-o", "json"])).expect("JSON");
    assert_eq!(
        object["spec"]["http"][0]["fault"]["abort"]["httpStatus"],
        418
    );

    mesh.wait("its proxies are", || {
        !both(&mesh.cli(&["status"])).contains("NOT CONNECTED")
    });
    assert_eq!(
        (status(&mesh, "ledger"), status(&mesh, "diary")),
        (418, 429)
    );

    // Room again: it works, and nothing is left to say.
    fs::remove_file(state.join("filler")).expect("removed");
    mesh.wait("nothing is left to say of the disk", || {
        !both(&mesh.cli(&["status"])).contains("MEL0405")
    });
    assert!(apply(&mesh, &teapot("ledger", 451)).status.success());
    mesh.wait("the change is in force", || status(&mesh, "ledger") == 451);

    let counts: Value = serde_json::from_str(&load.end()).expect("JSON");
    assert_eq!(
        counts["failures"],
        serde_json::json!([]),
        "traffic is not hurt: {counts}"
    );
}
