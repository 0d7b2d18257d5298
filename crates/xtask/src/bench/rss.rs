//! Memory of idle sidecars.

use anyhow::{Context, Result};

use super::Peer;
use super::mesh::Sidecars;
use super::process::{Memory, Tree};
use super::report::Section;

/// Both peers' sidecars as they are now.
pub fn measure(sidecars: &Sidecars) -> Result<Section> {
    let mean = |peer: Peer, part: fn(&Tree) -> Result<Memory>| -> Result<Memory> {
        let both = sidecars
            .of(peer)
            .iter()
            .map(part)
            .collect::<Result<Vec<_>>>()?;

        let (count, sum) = (both.len() as f64, both.into_iter().sum::<Memory>());
        Ok(Memory {
            rss: sum.rss / count,
            pss: sum.pss / count,
        })
    };

    let whole = |tree: &Tree| -> Result<Memory> {
        Ok(tree.memory()?.into_iter().map(|(_, memory)| memory).sum())
    };
    let child =
        |tree: &Tree| -> Result<Memory> { Ok(tree.memory()?.last().context("a process")?.1) };
    let (envoy, alone, ours) = (
        mean(Peer::Envoy, whole)?,
        mean(Peer::Envoy, child)?,
        mean(Peer::Meltemi, whole)?,
    );

    let row = |name: &str, memory: Memory| {
        let ratio = |value: f64, of: f64| format!("{:.2}", value / of);
        let shown = |value: f64| format!("{value:.1}");
        vec![
            name.to_owned(),
            shown(memory.rss),
            ratio(memory.rss, alone.rss),
            shown(memory.pss),
            ratio(memory.pss, alone.pss),
        ]
    };

    Ok(Section {
        title: "rss: memory of an idle sidecar, MiB".to_owned(),
        header: ["", "resident (RSS)", "ratio", "proportional (PSS)", "ratio"]
            .map(str::to_owned)
            .to_vec(),
        rows: vec![
            row("Envoy 1.40 alone", alone),
            row("Envoy 1.40 and its agent", envoy),
            row("meltemi, proxy and agent in one process", ours),
        ],
        notes: vec![
            "Mean of the client's and the server's sidecar, before any load; one worker each."
                .to_owned(),
        ],
    })
}
