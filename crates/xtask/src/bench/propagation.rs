//! From a file's write until a route is in force: seen in answers, through every sidecar at once.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::mesh::{Mesh, PLAIN, PORT};
use super::poll::{self, HEADER, Word};
use super::report::Section;
use super::{Peer, quantile};

const CHANGES: u64 = 30;
const FILE: &str = "generation.yaml";
/// Between two changes: each is measured alone.
const PAUSE: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(10);

/// A program that asks through one sidecar.
struct Poller {
    child: Child,
}

impl Drop for Poller {
    fn drop(&mut self) {
        // The node ends the program inside when its client has left.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Times of [`CHANGES`] changes.
pub fn measure(mesh: &Mesh) -> Result<Section> {
    let (send, words) = channel();
    let workloads: Vec<(Peer, String)> = [Peer::Meltemi, Peer::Envoy]
        .into_iter()
        .flat_map(|peer| [(peer, peer.client()), (peer, peer.server())])
        .collect();

    let _pollers = workloads
        .iter()
        .map(|(_, workload)| poller(mesh, workload, send.clone()))
        .collect::<Result<Vec<_>>>()?;

    drop(send);
    let mut took: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut closed = 0;

    // The first change makes every poller say that it is there.
    for generation in 0..=CHANGES {
        let written = poll::now();
        mesh.write(FILE, &route(generation))?;
        let seen = everyone(&words, workloads.len(), generation, &mut closed)?;
        for (peer, workload) in &workloads {
            let when = seen.get(workload).context("everyone has seen it")?;
            let milliseconds = when.saturating_sub(written) as f64 / 1e6;
            if generation > 0 {
                took.entry(workload).or_default().push(milliseconds);
            }
            println!(
                "propagation {generation:2} {:8} {milliseconds:6.1} ms",
                format!("{} {workload}", peer.name())
            );
        }

        std::thread::sleep(PAUSE);
    }

    let row = |name: &str, which: &dyn Fn(Peer) -> bool| {
        let proxies: Vec<&Vec<f64>> = workloads
            .iter()
            .filter(|(peer, _)| which(*peer))
            .filter_map(|(_, w)| took.get(w.as_str()))
            .collect();

        let last: Vec<f64> = (0..CHANGES as usize)
            .map(|at| proxies.iter().map(|times| times[at]).fold(0.0, f64::max))
            .collect();
        let shown = |share: f64| format!("{:.0} ms", quantile(&last, share));
        vec![
            name.to_owned(),
            proxies.len().to_string(),
            shown(0.5),
            shown(0.99),
        ]
    };

    Ok(Section {
        title: "propagation: from a file's write until every proxy routes by it".to_owned(),
        header: ["sidecars", "how many", "p50", "p99"]
            .map(str::to_owned)
            .to_vec(),
        rows: vec![
            row("meltemi", &|peer| peer == Peer::Meltemi),
            row("Envoy 1.40", &|peer| peer == Peer::Envoy),
            row("all", &|_| true),
        ],
        notes: vec![format!(
            "{CHANGES} changes of one VirtualService, seen in answers on open connections; each sidecar is asked about every 2 ms. Connections ended meanwhile: {closed}."
        )],
    })
}

fn poller(
    mesh: &Mesh,
    workload: &str,
    words: Sender<(String, Result<Option<Word>>)>,
) -> Result<Poller> {
    let programs = mesh.programs.to_string_lossy().into_owned();
    let mut child = mesh
        .exec(
            workload,
            &[&programs, "bench-poll", &format!("{PLAIN}:{PORT}")],
        )
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;

    let stdout = child.stdout.take().context("its output is piped")?;
    let workload = workload.to_owned();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout)
            .lines()
            .map_while(std::result::Result::ok)
        {
            let _ = words.send((workload.clone(), Word::parse(&line)));
        }
    });

    Ok(Poller { child })
}

/// When each of `count` workloads first saw this generation.
fn everyone(
    words: &Receiver<(String, Result<Option<Word>>)>,
    count: usize,
    wanted: u64,
    closed: &mut u32,
) -> Result<BTreeMap<String, u128>> {
    let mut seen = BTreeMap::new();
    while seen.len() < count {
        let Ok((workload, word)) = words.recv_timeout(PATIENCE) else {
            bail!(
                "generation {wanted} reached only {:?}",
                seen.keys().collect::<Vec<_>>()
            );
        };

        match word.with_context(|| workload.clone())? {
            Some(Word::Seen(generation, when)) if generation == wanted => {
                _ = seen.insert(workload, when)
            }
            Some(Word::Closed) => *closed += 1,
            Some(Word::Seen(..)) | None => {}
        }
    }

    Ok(seen)
}

fn route(generation: u64) -> String {
    format!(
        "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: generation}}
spec:
  hosts: [{PLAIN}]
  http:
  - headers: {{response: {{set: {{{HEADER}: \"{generation}\"}}}}}}
    route: [{{destination: {{host: {PLAIN}}}}}]
"
    )
}
