//! `cargo xtask fuzz`: feeds each parser of foreign bytes with mutated input, guided by coverage.
//!
//! The targets stand in `fuzz/targets`, seeds for each in `fuzz/corpus/TARGET`. New inputs go below
//! `target/fuzz/corpus`, inputs that break a target below `target/fuzz/artifacts`.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};

use crate::peers;
use crate::shell::{cargo, execute, output, root, target};

const USAGE: &str = "\
cargo xtask fuzz [TARGET..] [--seconds N] [--input FILE]

  TARGET          targets of fuzz/targets; all of them if none is named
  --seconds N     for each target, default 15
  --input FILE    run one target once on this file, as found in target/fuzz/artifacts
";

/// Coverage counters that libFuzzer reads, as `cargo fuzz` asks LLVM for them. These flags work on
/// stable Rust; the address sanitizer does not, but the fuzzed crates have no unsafe code.
const COVERAGE: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
];

/// An input that takes longer is a finding.
const MAX_SECONDS_AN_INPUT: u32 = 5;
/// A target that needs more memory is a finding.
const MAX_MEGABYTES: u32 = 2048;

pub fn run(arguments: &[String]) -> Result<()> {
    let options = Options::parse(arguments)?;
    let all = targets()?;
    for name in &options.targets {
        ensure!(
            all.contains(name),
            "there is no target {name:?}: {}",
            all.join(", ")
        );
    }
    let chosen = if options.targets.is_empty() {
        all
    } else {
        options.targets
    };

    let programs = build(&chosen)?;
    if let Some(input) = options.input {
        ensure!(chosen.len() == 1, "--input needs one target");
        return execute(Command::new(programs.join(&chosen[0])).arg(input));
    }

    let failed = run_all(&programs, &chosen, options.seconds)?;
    ensure!(
        failed.is_empty(),
        "found something: {}\nsee `cargo xtask fuzz TARGET --input FILE` with a file of target/fuzz/artifacts",
        failed.join(", ")
    );
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
struct Options {
    targets: Vec<String>,
    seconds: u32,
    input: Option<PathBuf>,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self {
            targets: Vec::new(),
            seconds: 15,
            input: None,
        };

        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--seconds" => {
                    let seconds = words.next().context("--seconds needs a number")?;
                    options.seconds = seconds.parse().context("--seconds needs a number")?;
                }
                "--input" => {
                    options.input = Some(words.next().context("--input needs a file")?.into());
                }
                word if word.starts_with('-') => bail!("{USAGE}"),
                name => options.targets.push(name.to_owned()),
            }
        }

        Ok(options)
    }
}

fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root().join("fuzz/targets"))? {
        let path = entry?.path();
        if path.extension() == Some(OsStr::new("rs")) {
            names.extend(
                path.file_stem()
                    .map(|stem| stem.to_string_lossy().into_owned()),
            );
        }
    }

    names.sort();
    Ok(names)
}

/// Builds the targets once; the folder of their programs.
fn build(names: &[String]) -> Result<PathBuf> {
    let manifest = root().join("fuzz/Cargo.toml");
    // The same versions as everywhere else; cargo adds those that only the targets need.
    fs::copy(root().join("Cargo.lock"), root().join("fuzz/Cargo.lock"))?;

    let host = host()?;
    let folder = target().join("fuzz");
    let mut build = cargo();
    build
        .args(["build", "--release", "--manifest-path"])
        .arg(&manifest)
        .arg("--target-dir")
        .arg(&folder)
        // With --target the flags leave build scripts and procedural macros alone.
        .args(["--target", &host])
        .env("RUSTFLAGS", COVERAGE.join(" "));
    for name in names {
        build.args(["--bin", name]);
    }
    execute(peers::set_up()?.apply(&mut build))?;

    Ok(folder.join(host).join("release"))
}

fn host() -> Result<String> {
    let version = output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}

/// Runs the targets, as many at a time as there are processors; the names of those that failed.
fn run_all(programs: &Path, names: &[String], seconds: u32) -> Result<Vec<String>> {
    let waiting = Mutex::new(names.iter());
    let failed = Mutex::new(Vec::new());
    let processors = std::thread::available_parallelism().map_or(1, usize::from);

    std::thread::scope(|scope| {
        for _ in 0..processors {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().expect("no thread panics").next();
                    let Some(name) = next else { break };
                    if let Err(error) = run_one(programs, name, seconds) {
                        println!("fuzz {name}: {error:#}");
                        failed.lock().expect("no thread panics").push(name.clone());
                    }
                }
            });
        }
    });

    Ok(failed.into_inner().expect("no thread panics"))
}

fn run_one(programs: &Path, name: &str, seconds: u32) -> Result<()> {
    let folder = target().join("fuzz");
    let found = folder.join("corpus").join(name);
    let artifacts = folder.join("artifacts").join(name);
    fs::create_dir_all(&found)?;
    fs::create_dir_all(&artifacts)?;

    let run = Command::new(programs.join(name))
        .arg(&found)
        .arg(root().join("fuzz/corpus").join(name))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={MAX_SECONDS_AN_INPUT}"))
        .arg(format!("-rss_limit_mb={MAX_MEGABYTES}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1")
        .output()
        .with_context(|| format!("cannot start {name}"))?;

    let log = String::from_utf8_lossy(&run.stderr);
    if !run.status.success() {
        let tail: Vec<&str> = log.lines().rev().take(40).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        bail!("{}\n{}", run.status, tail.join("\n"));
    }

    let figures = Figures::read(&log).context("libFuzzer printed no figures")?;
    println!(
        "fuzz {name}: {} inputs, {} edges covered, {} of them by mutation",
        figures.inputs,
        figures.edges,
        figures.edges.saturating_sub(figures.edges_of_seeds)
    );
    Ok(())
}

/// What libFuzzer says of a run.
#[derive(Debug, PartialEq, Eq)]
struct Figures {
    inputs: u64,
    /// Edges of the control-flow graph that some input reached.
    edges: u64,
    edges_of_seeds: u64,
}

impl Figures {
    fn read(log: &str) -> Option<Self> {
        let number = |line: &str, mark: &str| {
            let (_, rest) = line.split_once(mark)?;
            rest.split_whitespace().next()?.parse::<u64>().ok()
        };
        let edges_of = |word: &str| {
            let mut lines = log.lines().filter(|line| line.contains(word));
            lines.find_map(|line| number(line, "cov: "))
        };

        Some(Self {
            inputs: log
                .lines()
                .find_map(|line| number(line, "stat::number_of_executed_units:"))?,
            edges: edges_of("DONE")?,
            edges_of_seeds: edges_of("INITED")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn options_are_read() {
        let options = Options::parse(&words("dns xds --seconds 3")).expect("good options");

        assert_eq!(options.targets, ["dns", "xds"]);
        assert_eq!(options.seconds, 3);
        assert!(Options::parse(&words("--seconds")).is_err());
        assert!(Options::parse(&words("--fast")).is_err());
    }

    #[test]
    fn every_target_has_seeds_and_is_built() {
        let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).expect("a manifest");
        for name in targets().expect("the folder of targets") {
            let seeds = root().join("fuzz/corpus").join(&name);
            assert!(
                seeds.read_dir().is_ok_and(|mut all| all.next().is_some()),
                "{name}"
            );
            assert!(manifest.contains(&format!("targets/{name}.rs")), "{name}");
        }
    }

    #[test]
    fn figures_of_libfuzzer_are_read() {
        let log = "#3\tINITED cov: 120 ft: 121 corp: 2/9b exec/s: 0 rss: 30Mb\n\
                   #900\tNEW    cov: 130 ft: 140 corp: 3/9b\n\
                   #1000\tDONE   cov: 150 ft: 160 corp: 9/90b\n\
                   stat::number_of_executed_units: 1000\n";
        let expected = Figures {
            inputs: 1000,
            edges: 150,
            edges_of_seeds: 120,
        };

        assert_eq!(Figures::read(log), Some(expected));
        assert_eq!(Figures::read("no figures"), None);
    }
}
