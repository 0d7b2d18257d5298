//! `cargo xtask bench`: our proxy beside Envoy, in one run.
//!
//! One mesh, started as a user starts it: workloads in network namespaces, traffic captured,
//! configuration from the control plane. The same client and server exist once for each proxy. Load
//! comes in short slices; each slice lies between two of plain Envoy's and is compared with their
//! mean, so that a machine whose speed drifts drops out of the ratio. The proxies run on one core,
//! load and backend on another. What counts is requests per second of CPU that the proxies took.

pub mod backend;
mod before;
mod instructions;
mod load;
mod machine;
mod mesh;
pub mod poll;
mod process;
mod propagation;
mod report;
mod rss;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::peers;
use crate::shell::{cargo, execute, target};
use mesh::Mesh;

const USAGE: &str = "\
cargo xtask bench [CASE..] [--rounds N] [--seconds N] [--write] [--before BINARY]

  h1           HTTP/1.1 keep-alive through the client's sidecar alone, plaintext behind it
  pair         both sidecars, mutual TLS between them
  rss          resident memory, idle
  propagation  from a file's write until a route is in force in every proxy
  all          all of them; without a case: h1 pair rss

  --rounds N   slices of ours for each load (8)
  --seconds N  length of a slice (4)
  --write      put the tables into docs/performance.md

  --before BINARY  instead of the cases: an earlier build of meltemi beside today's, requests per CPU second
                   (h1, pair) and instructions a request
";

/// Debian packages that count instructions, and a program of each.
const INSTRUCTION_TOOLS: &[(&str, &str)] =
    &[("valgrind", "valgrind"), ("nghttp2-client", "h2load")];

/// Core of the proxies, and core of everything else.
const PROXY_CORE: usize = 0;
const LOAD_CORE: usize = 1;

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Case {
    H1,
    Pair,
    Rss,
    Propagation,
}

/// One of those that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Peer {
    /// Ours, with access log and Istio's metrics.
    Meltemi,
    /// Stock Envoy without an access log: what all others are compared with.
    Envoy,
    /// Stock Envoy with the same access log as ours.
    EnvoyLogged,
}

impl Peer {
    const ALL: [Self; 3] = [Self::Meltemi, Self::Envoy, Self::EnvoyLogged];

    fn name(self) -> &'static str {
        match self {
            Self::Meltemi => "meltemi",
            Self::Envoy => "envoy",
            Self::EnvoyLogged => "envoy-logged",
        }
    }

    /// In tables.
    fn title(self) -> &'static str {
        match self {
            Self::Meltemi => "meltemi",
            Self::Envoy => "Envoy 1.40, plain",
            Self::EnvoyLogged => "Envoy 1.40 with the access log",
        }
    }

    /// Which proxy the node is asked for.
    fn proxy(self) -> &'static str {
        match self {
            Self::Meltemi => "meltemi",
            Self::Envoy | Self::EnvoyLogged => "envoy",
        }
    }

    fn client(self) -> String {
        format!("client-{}", self.name())
    }

    fn server(self) -> String {
        format!("server-{}", self.name())
    }
}

#[derive(Debug)]
struct Options {
    cases: Vec<Case>,
    rounds: usize,
    slice: Duration,
    write: bool,
    /// An earlier build to compare today's with.
    before: Option<PathBuf>,
}

impl Options {
    fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self {
            cases: Vec::new(),
            rounds: 8,
            slice: Duration::from_secs(4),
            write: false,
            before: None,
        };

        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut number = || -> Result<u64> {
                let text = words
                    .next()
                    .with_context(|| format!("{word} takes a number"))?;
                let number = text.parse().with_context(|| format!("{word} {text}"))?;
                ensure!(number > 0, "{word} {number}: at least 1");
                Ok(number)
            };

            match word.as_str() {
                "h1" => options.cases.push(Case::H1),
                "pair" => options.cases.push(Case::Pair),
                "rss" => options.cases.push(Case::Rss),
                "propagation" => options.cases.push(Case::Propagation),
                "all" => options
                    .cases
                    .extend([Case::H1, Case::Pair, Case::Rss, Case::Propagation]),
                "--rounds" => options.rounds = usize::try_from(number()?)?,
                "--seconds" => options.slice = Duration::from_secs(number()?),
                "--write" => options.write = true,
                "--before" => {
                    let path = words.next().context("--before takes a binary")?;
                    options.before = Some(path.into());
                }
                other => bail!("what is {other:?}?\n\n{USAGE}"),
            }
        }

        if options.cases.is_empty() {
            options.cases = vec![Case::H1, Case::Pair, Case::Rss];
        }
        options.cases.sort_unstable();
        options.cases.dedup();

        Ok(options)
    }
}

/// Runs the cases and prints the tables.
pub fn run(words: &[String]) -> Result<()> {
    if words
        .iter()
        .any(|word| matches!(word.as_str(), "-h" | "--help"))
    {
        print!("{USAGE}");
        return Ok(());
    }

    let options = Options::parse(words)?;
    ensure!(
        machine::cores() > LOAD_CORE,
        "one core for the proxies and one for the load: this machine has a single one"
    );

    let peers = match options.before {
        Some(_) => peers::set_up_with(INSTRUCTION_TOOLS)?,
        None => peers::set_up()?,
    };
    let (meltemi, programs) = build()?;
    let mut report = report::Report::new(words);
    if let Some(before) = &options.before {
        for section in before::measure(before, &meltemi, &programs, &peers, &options)? {
            report.add(section);
        }
        print!("\n{}", report.markdown()?);
        return Ok(());
    }

    let mesh = Mesh::start("peers", &meltemi, &programs, &peers, &Peer::ALL)?;
    let sidecars = mesh.sidecars()?;

    mesh.pin(&sidecars)?;

    // Idle is before any load.
    if options.cases.contains(&Case::Rss) {
        report.add(rss::measure(&sidecars)?);
    }
    for case in [Case::H1, Case::Pair] {
        if options.cases.contains(&case) {
            report.add(load::measure(case, &mesh, &sidecars, &options)?);
        }
    }

    if options.cases.contains(&Case::Propagation) {
        report.add(propagation::measure(&mesh)?);
    }
    drop(mesh);
    print!("\n{}", report.markdown()?);
    if options.write {
        report.write()?;
    }

    Ok(())
}

/// The binary under test, and the one that holds the helper programs: both as users build them.
/// With `MELTEMI_BIN` that binary is measured, and the helpers are our own.
fn build() -> Result<(PathBuf, PathBuf)> {
    if let Some(binary) = std::env::var_os("MELTEMI_BIN") {
        return Ok((binary.into(), std::env::current_exe()?));
    }
    execute(cargo().args([
        "build",
        "--release",
        "--package",
        "meltemi",
        "--package",
        "xtask",
    ]))?;

    let release = target().join("release");

    Ok((release.join("meltemi"), release.join("xtask")))
}

/// A command's text on one line, for messages.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The middle one; the mean of the two middle ones.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The value below which `share` of all lie.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (share * sorted.len() as f64).ceil() as usize;
    sorted
        .get(at.clamp(1, sorted.len().max(1)) - 1)
        .copied()
        .unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options> {
        Options::parse(
            &line
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn options_are_read() {
        let options = parse("pair h1 pair --rounds 3 --write").unwrap();
        assert_eq!(
            (options.cases, options.rounds, options.write),
            (vec![Case::H1, Case::Pair], 3, true)
        );
        assert_eq!(parse("").unwrap().cases, [Case::H1, Case::Pair, Case::Rss]);
        assert!(parse("h3").unwrap_err().to_string().contains("\"h3\""));
        assert!(parse("--rounds 0").is_err() && parse("--rounds").is_err());
    }

    #[test]
    fn the_middle_is_found() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median([]).is_nan());
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(
            (quantile(&hundred, 0.5), quantile(&hundred, 0.99)),
            (50.0, 99.0)
        );
        assert_eq!(quantile(&[7.0], 0.99), 7.0);
    }
}
