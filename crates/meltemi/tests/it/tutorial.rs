//! The page docs/first-services.md does what it says: each of its commands is run in the folder that
//! it tells the reader to copy, and must print what the page shows.

use std::fs;
use std::path::{Path, PathBuf};

use crate::mesh::{Mesh, Plan};
use crate::peers::Peers;

/// How the page starts the mesh; the test starts it with folders of its own instead.
const START: &str = "meltemi up -f shop --images images.yaml";

/// A command of the page, and the lines that it shows below the command. A `…` stands for any text.
#[derive(Debug, PartialEq)]
struct Step {
    command: String,
    lines: Vec<String>,
}

#[test]
fn the_commands_of_the_tutorial_print_what_it_shows() {
    const TEST: &str = "the_commands_of_the_tutorial_print_what_it_shows";
    if Peers::of(TEST).is_none() {
        return;
    }
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let page = fs::read_to_string(docs.join("first-services.md")).expect("the page");
    assert!(page.contains(&format!("    {START}\n")), "the page's start");
    let steps = steps(&page);
    assert!(steps.len() > 10, "{steps:?}");

    let plan = Plan::new();
    let folder = docs.join("first-services");
    copy(&folder, &plan.path(""));
    copy(&folder.join("shop"), &plan.path("config"));
    let mesh = plan.start();

    for step in &steps {
        run(&mesh, step);
    }

    // A scraper is a workload without a sidecar; the addresses are those that `status` shows.
    let metrics = |address: &str| {
        let url = format!("http://{address}:15020/stats/prometheus");
        mesh.exec("@router", &["curl", "-s", "-m", "5", &url])
            .stdout
    };
    let status = mesh.cli_ok(&["status"]);
    let addresses = status
        .split_whitespace()
        .filter(|word| word.starts_with("10.44."));
    for address in addresses {
        let page = String::from_utf8(metrics(address)).expect("text");
        assert!(page.contains("# TYPE istio_build "), "{address}: {page}");
    }
}

/// Runs a command until it prints what the page shows. A change is in force a moment after `apply`
/// returns; commands that change something say the same thing once only, and are run once.
fn run(mesh: &Mesh, step: &Step) {
    let command = step
        .command
        .replace("127.0.0.1:8080", &mesh.gateway.to_string());
    let output = || {
        let output = mesh.shell(&command);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        said + &String::from_utf8_lossy(&output.stderr)
    };

    let changes = ["meltemi apply", "meltemi delete"];
    if changes.iter().any(|change| command.starts_with(change)) {
        let said = output();
        assert!(shows(&said, &step.lines), "{step:?} printed {said}");
        return;
    }

    let mut said = String::new();
    mesh.wait(&format!("{step:?}"), || {
        said = output();
        shows(&said, &step.lines)
    });
}

/// The commands of a page: indented lines that begin with `$ `, each with the lines below it.
fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut is_within = false;
    for line in page.lines() {
        let Some(line) = line.strip_prefix("    ") else {
            is_within = false;
            continue;
        };
        match line.strip_prefix("$ ") {
            Some(command) => {
                is_within = true;
                steps.push(Step {
                    command: command.to_owned(),
                    lines: Vec::new(),
                });
            }
            None if is_within => steps
                .last_mut()
                .expect("a command came before")
                .lines
                .push(line.to_owned()),
            None => {}
        }
    }
    steps
}

/// Whether the lines are among what was printed, in their order.
fn shows(said: &str, lines: &[String]) -> bool {
    let mut said = said.lines();
    lines
        .iter()
        .all(|wanted| said.any(|line| fits(line, wanted)))
}

/// Whether a line is the wanted one, whose `…` stand for any text; blanks beside a `…` count as part
/// of that text.
fn fits(line: &str, wanted: &str) -> bool {
    let mut parts = wanted.split('…').map(str::trim);
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };

    let mut is_open = false;
    for part in parts {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
        is_open = part.is_empty();
    }
    rest.is_empty() || is_open
}

fn copy(from: &Path, into: &Path) {
    for entry in fs::read_dir(from).expect("a folder") {
        let path: PathBuf = entry.expect("an entry").path();
        if path.is_file() {
            let name = path.file_name().expect("a name");
            fs::copy(&path, into.join(name)).expect("a writable folder");
        }
    }
}

#[test]
fn a_page_is_read_as_commands_with_their_output() {
    let page = "text\n\n    up\n\n    $ a | b\n    one … three\n    …\n    $ c\n\n    no output\n";
    let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
    let step = |command: &str, shown: &[&str]| Step {
        command: command.to_owned(),
        lines: lines(shown),
    };
    assert_eq!(
        steps(page),
        [step("a | b", &["one … three", "…"]), step("c", &[])]
    );

    let wanted: Vec<String> = lines(&["one … three", "end"]);
    assert!(shows("zero\none two three\nend\n", &wanted));
    assert!(!shows("one two three four\nend\n", &wanted));
    assert!(!shows("end\none two three\n", &wanted));
    assert!(fits("a 1 b", "a …") && !fits("a 1 b", "b …") && !fits("ab", "a"));
}
