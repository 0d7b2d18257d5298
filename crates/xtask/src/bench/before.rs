//! `--before BINARY`: our proxy before a change and after it, in one run.
//!
//! Two meshes run side by side, one from each binary. Slices of load alternate between them, and
//! each slice of the new binary is compared with the mean of the old binary's slices around it.
//! Instructions are counted by callgrind, which a busy machine does not disturb.

use std::path::Path;

use anyhow::Result;

use super::load::{self, Slice};
use super::mesh::{Mesh, Sidecars};
use super::report::{Section, number};
use super::{Case, Options, Peer, instructions, median, quantile};
use crate::peers::Peers;

const COMPARED: &[Peer] = &[Peer::Meltemi];

/// Measures both binaries: CPU time under load for each case, then instructions a request.
pub fn measure(
    before: &Path,
    after: &Path,
    programs: &Path,
    peers: &Peers,
    options: &Options,
) -> Result<Vec<Section>> {
    let mut sections = vec![instructions::measure(before, after, programs, peers)?];

    let old = Side::start("before", before, programs, peers)?;
    let new = Side::start("after", after, programs, peers)?;
    for case in [Case::H1, Case::Pair] {
        sections.push(under_load(case, &old, &new, options)?);
    }

    Ok(sections)
}

/// One binary's mesh.
struct Side {
    name: &'static str,
    mesh: Mesh,
    sidecars: Sidecars,
}

impl Side {
    fn start(name: &'static str, binary: &Path, programs: &Path, peers: &Peers) -> Result<Self> {
        let mesh = Mesh::start(name, binary, programs, peers, COMPARED)?;
        let sidecars = mesh.sidecars()?;
        mesh.pin(&sidecars)?;

        Ok(Self {
            name,
            mesh,
            sidecars,
        })
    }

    fn slice(&self, case: Case, options: &Options) -> Result<Slice> {
        let length = options.slice;
        load::slice(
            case,
            &self.mesh,
            &self.sidecars,
            Peer::Meltemi,
            length,
            self.name,
        )
    }
}

fn under_load(case: Case, old: &Side, new: &Side, options: &Options) -> Result<Section> {
    // The first slices open connections and fill caches; they do not count.
    old.slice(case, options)?;
    new.slice(case, options)?;

    let mut reference = vec![old.slice(case, options)?.per_cpu];
    let mut measured = Vec::new();
    for _ in 0..options.rounds {
        measured.push(new.slice(case, options)?.per_cpu);
        reference.push(old.slice(case, options)?.per_cpu);
    }

    let ratios: Vec<f64> = measured
        .iter()
        .zip(reference.windows(2))
        .map(|(after, before)| after / f64::midpoint(before[0], before[1]))
        .collect();

    let title = match case {
        Case::H1 => "h1 before and after",
        _ => "pair before and after",
    };

    let row = |name: &str, value: f64, ratio: String| vec![name.to_owned(), number(value), ratio];

    Ok(Section {
        title: title.to_owned(),
        header: ["", "requests per CPU second", "ratio (quartiles)"]
            .map(str::to_owned)
            .to_vec(),
        rows: vec![
            row("before", median(reference), "1".to_owned()),
            row(
                "after",
                median(measured),
                format!(
                    "**{:.3}** ({:.3} to {:.3})",
                    median(ratios.iter().copied()),
                    quantile(&ratios, 0.25),
                    quantile(&ratios, 0.75)
                ),
            ),
        ],
        notes: vec![format!(
            "{} slices of {} s for each, alternating.",
            options.rounds,
            options.slice.as_secs()
        )],
    })
}
