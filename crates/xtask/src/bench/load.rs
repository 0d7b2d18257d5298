//! Cases under load: `wrk` inside a client workload, the proxies' CPU time beside its count.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::machine::Steal;
use super::mesh::{Mesh, PLAIN, PORT, Sidecars};
use super::process::{Cpu, Tree};
use super::report::{Section, number};
use super::{Case, Options, Peer, median, quantile};

/// What one slice of load measured.
#[derive(Debug, Clone, Copy)]
pub struct Slice {
    /// Requests that were answered.
    requests: f64,
    /// Requests a second.
    rate: f64,
    /// Requests for each second of CPU time that the proxies took.
    pub per_cpu: f64,
    /// Microseconds that a request took outside and inside the kernel.
    user: f64,
    kernel: f64,
    /// Share of the slice that the proxies' core worked for them.
    busy: f64,
    /// Share of the machine that its hypervisor took away.
    steal: f64,
}

/// Slices of all, each of the others' between two of plain Envoy's.
pub fn measure(case: Case, mesh: &Mesh, sidecars: &Sidecars, options: &Options) -> Result<Section> {
    let (title, what) = match case {
        Case::H1 => (
            "h1",
            "HTTP/1.1 keep-alive, plaintext: client, its sidecar, a server outside the mesh",
        ),
        _ => (
            "pair",
            "a pair of sidecars: client, its sidecar, mutual TLS, the server's sidecar, server",
        ),
    };

    let slice = |peer: Peer| slice(case, mesh, sidecars, peer, options.slice, peer.name());
    let counted = |peer: Peer| mesh.metric(&peer.client(), "istio_requests_total");
    for peer in Peer::ALL {
        slice(peer).with_context(|| format!("warming up {title} with {}", peer.name()))?;
    }
    println!("{title}: warm; {} rounds", options.rounds);
    let before = counted(Peer::Meltemi)?;
    let others = [Peer::Meltemi, Peer::EnvoyLogged];
    let mut reference = vec![slice(Peer::Envoy)?];
    let mut measured: [Vec<Slice>; 2] = Default::default();

    for _ in 0..options.rounds {
        for (peer, slices) in others.into_iter().zip(&mut measured) {
            slices.push(slice(peer)?);
            reference.push(slice(Peer::Envoy)?);
        }
    }

    let [ours, logged] = measured;
    let sent: f64 = ours.iter().map(|slice| slice.requests).sum();
    let metered = counted(Peer::Meltemi)? - before;

    ensure!(
        metered >= sent,
        "{title}: {sent} requests, but our metrics count {metered}: the comparison would not be fair"
    );

    for (peer, writes) in [
        (Peer::Meltemi, true),
        (Peer::Envoy, false),
        (Peer::EnvoyLogged, true),
    ] {
        let line = mesh.last_log_line(&peer.client())?;
        let wrote = line.contains("\"GET / HTTP/1.1\"");
        ensure!(
            wrote == writes,
            "{title}: the access log of {} is not as it should be, its last line is {line:?}",
            peer.name()
        );
    }

    let lost = mesh.metric(&Peer::Meltemi.client(), "meltemi_access_log_dropped_total")?;
    let rows = vec![
        row(Peer::Envoy, &reference, None),
        row(Peer::EnvoyLogged, &logged, Some(&around(&reference, 1))),
        row(Peer::Meltemi, &ours, Some(&around(&reference, 0))),
    ];

    Ok(Section {
        title: format!("{title}: {what}"),
        header: [
            "",
            "requests per CPU second",
            "ratio (quartiles)",
            "requests/s",
            "ratio",
            "CPU a request, user + kernel",
            "core busy",
        ]
        .map(str::to_owned)
        .to_vec(),
        rows,
        notes: vec![format!(
            "{} slices of {} s, 32 connections. Our metrics counted {} of {} requests; lines of the access log lost: {}.",
            ours.len(),
            options.slice.as_secs(),
            number(metered),
            number(sent),
            number(lost)
        )],
    })
}

/// Loads one peer's client for `length` and prints the figures after `label`.
pub fn slice(
    case: Case,
    mesh: &Mesh,
    sidecars: &Sidecars,
    peer: Peer,
    length: Duration,
    label: &str,
) -> Result<Slice> {
    let [client, server] = sidecars.of(peer);
    let (title, url, proxies) = match case {
        Case::H1 => ("h1", format!("http://{PLAIN}:{PORT}/"), vec![client]),
        _ => (
            "pair",
            format!("http://{}:{PORT}/", peer.server()),
            vec![client, server],
        ),
    };

    let slice = run(mesh, &peer.client(), &url, &proxies, length.as_secs())?;
    println!(
        "{title} {label:12} {:>8.0} requests/s {:>8.0} per CPU second, core {:>3.0} % busy, {:.0} % stolen",
        slice.rate,
        slice.per_cpu,
        slice.busy * 100.0,
        slice.steal * 100.0
    );

    Ok(slice)
}

/// The two slices of the reference around each slice of one of the two others that take turns
/// between them.
fn around(reference: &[Slice], turn: usize) -> Vec<[Slice; 2]> {
    reference
        .windows(2)
        .skip(turn)
        .step_by(2)
        .map(|pair| [pair[0], pair[1]])
        .collect()
}

fn row(peer: Peer, slices: &[Slice], around: Option<&[[Slice; 2]]>) -> Vec<String> {
    let middle = |value: fn(&Slice) -> f64| median(slices.iter().map(value));
    let ratios = |value: fn(&Slice) -> f64| -> Option<Vec<f64>> {
        let pairs = slices.iter().zip(around?);
        Some(
            pairs
                .map(|(slice, [before, after])| {
                    value(slice) / f64::midpoint(value(before), value(after))
                })
                .collect(),
        )
    };

    let spread = |all: Vec<f64>| {
        let (low, high) = (quantile(&all, 0.25), quantile(&all, 0.75));
        format!("**{:.2}** ({low:.2} to {high:.2})", median(all))
    };

    let one = || "1".to_owned();

    vec![
        peer.title().to_owned(),
        number(middle(|slice| slice.per_cpu)),
        ratios(|slice| slice.per_cpu).map_or_else(one, spread),
        number(middle(|slice| slice.rate)),
        ratios(|slice| slice.rate).map_or_else(one, |all| format!("{:.2}", median(all))),
        format!(
            "{:.1} + {:.1} µs",
            middle(|slice| slice.user),
            middle(|slice| slice.kernel)
        ),
        format!("{:.0} %", middle(|slice| slice.busy) * 100.0),
    ]
}

fn run(mesh: &Mesh, client: &str, url: &str, proxies: &[&Tree], seconds: u64) -> Result<Slice> {
    let cpu = || proxies.iter().map(|tree| tree.cpu()).sum::<Result<Cpu>>();
    let (steal, before) = (Steal::now()?, cpu()?);
    let text = mesh.output(
        client,
        &["wrk", "-t1", "-c32", &format!("-d{seconds}s"), url],
    )?;

    let (Cpu { user, system }, steal) = (cpu()?.since(before), steal.since()?);
    let Counted {
        requests,
        seconds,
        rate,
        errors,
    } = Counted::parse(&text).with_context(|| format!("wrk said:\n{text}"))?;

    ensure!(errors == 0, "{url}: requests failed; wrk said:\n{text}");
    let [user, kernel] = [user, system].map(|time| time.as_secs_f64());
    let all = user + kernel;
    let [user, kernel] = [user, kernel].map(|time| time * 1e6 / requests);

    Ok(Slice {
        requests,
        rate,
        per_cpu: requests / all,
        user,
        kernel,
        busy: all / seconds,
        steal,
    })
}

/// What wrk counted.
#[derive(Debug, PartialEq)]
struct Counted {
    requests: f64,
    seconds: f64,
    rate: f64,
    errors: u64,
}

impl Counted {
    fn parse(text: &str) -> Option<Self> {
        let line = |start: &str| {
            text.lines()
                .find_map(|line| line.trim().strip_prefix(start))
        };

        // "  176123 requests in 4.00s, 26.54MB read"
        let (requests, rest) = text
            .lines()
            .find_map(|line| line.trim().split_once(" requests in "))?;
        let took = rest.split(',').next()?.trim();
        let seconds = match took.strip_suffix("ms") {
            Some(milliseconds) => milliseconds.parse::<f64>().ok()? / 1000.0,
            None => took.strip_suffix('s')?.parse().ok()?,
        };

        // "Socket errors: connect 0, read 4, write 0, timeout 0"
        let sockets = line("Socket errors:")
            .unwrap_or_default()
            .split([' ', ','])
            .filter_map(|word| word.parse::<u64>().ok())
            .sum::<u64>();

        let statuses = line("Non-2xx or 3xx responses:")
            .map_or(Some(0), |count| count.trim().parse::<u64>().ok())?;

        Some(Self {
            requests: requests.parse().ok()?,
            seconds,
            rate: line("Requests/sec:")?.trim().parse().ok()?,
            errors: sockets + statuses,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrks_words_are_read() {
        let text = "\
Running 4s test @ http://server:8080/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   726.53us  183.22us   5.93ms   92.06%
    Req/Sec    44.31k     1.95k   46.64k    87.50%
  176123 requests in 4.01s, 26.54MB read
Requests/sec:  43921.91
Transfer/sec:      6.62MB
";

        let counted = Counted::parse(text).unwrap();
        assert_eq!(
            counted,
            Counted {
                requests: 176_123.0,
                seconds: 4.01,
                rate: 43_921.91,
                errors: 0
            }
        );

        let failed = text.replace(
            "Requests/sec:",
            "  Socket errors: connect 0, read 2, write 0, timeout 1\n  Non-2xx or 3xx responses: 40\nRequests/sec:",
        );

        assert_eq!(Counted::parse(&failed).unwrap().errors, 43);
        assert_eq!(Counted::parse("unable to connect"), None);
    }
}
