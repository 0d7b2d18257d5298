//! Cases under load: `wrk` inside a client workload, the proxies' CPU time beside its count.

use anyhow::{Context, Result, ensure};

use super::machine::Steal;
use super::mesh::{Mesh, PLAIN, PORT, Sidecars};
use super::process::Tree;
use super::report::{Section, number};
use super::{Case, Options, Peer, median};

/// One slice.
#[derive(Debug, Clone, Copy)]
struct Slice {
    /// Requests a second.
    rate: f64,
    /// Requests for each second of CPU time that the proxies took.
    per_cpu: f64,
    /// Share of the slice that the proxies' core worked for them.
    busy: f64,
    /// Share of the machine that its hypervisor took away.
    steal: f64,
}

/// Slices of both, each of ours between two of Envoy's.
pub fn measure(case: Case, mesh: &Mesh, sidecars: &Sidecars, options: &Options) -> Result<Section> {
    let (title, what) = match case {
        Case::H1 => ("h1", "HTTP/1.1 keep-alive, plaintext: client, its sidecar, a server outside the mesh"),
        _ => ("pair", "a pair of sidecars: client, its sidecar, mutual TLS, the server's sidecar, server"),
    };
    let slice = |peer: Peer| -> Result<Slice> {
        let [client, server] = sidecars.of(peer);
        let (url, proxies) = match case {
            Case::H1 => (format!("http://{PLAIN}:{PORT}/"), vec![client]),
            _ => (format!("http://{}:{PORT}/", peer.server()), vec![client, server]),
        };
        let slice = run(mesh, &peer.client(), &url, &proxies, options.slice.as_secs())?;
        println!(
            "{title} {:8} {:>8.0} requests/s {:>8.0} per CPU second, core {:>3.0} % busy, {:.0} % stolen",
            peer.name(),
            slice.rate,
            slice.per_cpu,
            slice.busy * 100.0,
            slice.steal * 100.0
        );
        Ok(slice)
    };
    for peer in Peer::BOTH {
        slice(peer).with_context(|| format!("warming up {title} with {}", peer.name()))?;
    }
    println!("{title}: warm; {} rounds", options.rounds);
    let mut envoy = vec![slice(Peer::Envoy)?];
    let mut ours = Vec::new();
    for _ in 0..options.rounds {
        ours.push(slice(Peer::Meltemi)?);
        envoy.push(slice(Peer::Envoy)?);
    }
    let ratios = |value: fn(&Slice) -> f64| -> Vec<f64> {
        let around = envoy.windows(2).map(|pair| f64::midpoint(value(&pair[0]), value(&pair[1])));
        ours.iter().zip(around).map(|(slice, around)| value(slice) / around).collect()
    };
    let row = |name: &str, slices: &[Slice], ratio: [String; 2]| -> Vec<String> {
        let middle = |value: fn(&Slice) -> f64| median(slices.iter().map(value));
        let [per_cpu, rate] = ratio;
        let busy = format!("{:.0} %", middle(|s| s.busy) * 100.0);
        vec![name.to_owned(), number(middle(|s| s.per_cpu)), per_cpu, number(middle(|s| s.rate)), rate, busy]
    };
    let (per_cpu, rate) = (ratios(|s| s.per_cpu), ratios(|s| s.rate));
    let spread = |all: &[f64]| {
        let (low, high) = (super::quantile(all, 0.25), super::quantile(all, 0.75));
        format!("**{:.2}** ({low:.2} to {high:.2})", median(all.iter().copied()))
    };
    let one = || ["1".to_owned(), "1".to_owned()];
    Ok(Section {
        title: format!("{title}: {what}"),
        header: ["", "requests per CPU second", "ratio (quartiles)", "requests/s", "ratio", "proxies' core busy"]
            .map(str::to_owned)
            .to_vec(),
        rows: vec![
            row("Envoy 1.40", &envoy, one()),
            row("meltemi", &ours, [spread(&per_cpu), format!("{:.2}", median(rate))]),
        ],
        notes: vec![format!("{} slices of {} s, 32 connections.", ours.len(), options.slice.as_secs())],
    })
}

fn run(mesh: &Mesh, client: &str, url: &str, proxies: &[&Tree], seconds: u64) -> Result<Slice> {
    let cpu = || proxies.iter().map(|tree| tree.cpu()).sum::<Result<std::time::Duration>>();
    let (steal, before) = (Steal::now()?, cpu()?);
    let text = mesh.output(client, &["wrk", "-t1", "-c32", &format!("-d{seconds}s"), url])?;
    let (taken, steal) = (cpu()?.saturating_sub(before).as_secs_f64(), steal.since()?);
    let counted = Counted::parse(&text).with_context(|| format!("wrk said:\n{text}"))?;
    ensure!(counted.errors == 0, "{url}: requests failed; wrk said:\n{text}");
    Ok(Slice { rate: counted.rate, per_cpu: counted.requests / taken, busy: taken / counted.seconds, steal })
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
        let line = |start: &str| text.lines().find_map(|line| line.trim().strip_prefix(start));
        // "  176123 requests in 4.00s, 26.54MB read"
        let (requests, rest) = text.lines().find_map(|line| line.trim().split_once(" requests in "))?;
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
        let statuses = line("Non-2xx or 3xx responses:").map_or(Some(0), |count| count.trim().parse::<u64>().ok())?;
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
        assert_eq!(counted, Counted { requests: 176_123.0, seconds: 4.01, rate: 43_921.91, errors: 0 });
        let failed = text.replace(
            "Requests/sec:",
            "  Socket errors: connect 0, read 2, write 0, timeout 1\n  Non-2xx or 3xx responses: 40\nRequests/sec:",
        );
        assert_eq!(Counted::parse(&failed).unwrap().errors, 43);
        assert_eq!(Counted::parse("unable to connect"), None);
    }
}
