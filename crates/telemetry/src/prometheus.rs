//! Renders metrics in Prometheus text format 0.0.4.

use std::fmt::Write;

use crate::metrics::{BUCKETS, Kind, LabelSet, Registry, Sample};

/// Content type of the text that [`encode`] returns.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Renders all metrics of the registry. Families without an entry in `help` get no HELP line.
pub fn encode(registry: &Registry, help: &[(&str, &str)]) -> String {
    let mut out = String::new();
    let mut last = "";
    for (family, labels, sample) in registry.gather() {
        if family != last {
            if let Some((_, text)) = help.iter().find(|(name, _)| *name == family) {
                let _ = writeln!(out, "# HELP {family} {text}");
            }
            let kind = match sample {
                Sample::Counter(_) => Kind::Counter,
                Sample::Gauge(_) => Kind::Gauge,
                Sample::Histogram(..) => Kind::Histogram,
            };

            let _ = writeln!(out, "# TYPE {family} {}", word(kind));
            last = family;
        }

        write_sample(&mut out, family, &labels, &sample);
    }

    out
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    }
}

fn write_sample(out: &mut String, family: &str, labels: &LabelSet, sample: &Sample) {
    match sample {
        Sample::Counter(value) => line(out, family, "", labels, None, *value as f64),
        Sample::Gauge(value) => line(out, family, "", labels, None, *value as f64),
        Sample::Histogram(counts, sum) => {
            let mut cumulative = 0;
            for (i, count) in counts.iter().enumerate() {
                cumulative += count;
                let bound = BUCKETS
                    .get(i)
                    .map_or_else(|| "+Inf".to_owned(), |bound| bound.to_string());
                line(
                    out,
                    family,
                    "_bucket",
                    labels,
                    Some(&bound),
                    cumulative as f64,
                );
            }

            line(out, family, "_sum", labels, None, *sum);
            line(out, family, "_count", labels, None, cumulative as f64);
        }
    }
}

fn line(
    out: &mut String,
    family: &str,
    suffix: &str,
    labels: &LabelSet,
    bound: Option<&str>,
    value: f64,
) {
    let _ = write!(out, "{family}{suffix}");
    if !labels.is_empty() || bound.is_some() {
        out.push('{');
        let pairs = labels
            .iter()
            .map(|(name, value)| (*name, &**value))
            .chain(bound.map(|bound| ("le", bound)));

        for (i, (name, value)) in pairs.enumerate() {
            if i > 0 {
                out.push(',');
            }
            let _ = write!(out, "{name}=\"");
            escape(out, value);
            out.push('"');
        }

        out.push('}');
    }

    let _ = writeln!(out, " {value}");
}

fn escape(out: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn labels_are_escaped_and_buckets_are_cumulative() {
        let registry = Registry::default();
        let shard = registry.shard();
        shard
            .counter("hits", vec![("path", Arc::from("/\"a\\\n"))])
            .add(2);
        shard.histogram("took", vec![]).record(0.25);
        let text = encode(&registry, &[("hits", "Requests.")]);
        assert!(
            text.starts_with(
                "# HELP hits Requests.\n# TYPE hits counter\nhits{path=\"/\\\"a\\\\\\n\"} 2\n"
            ),
            "{text}"
        );

        assert!(text.contains("took_bucket{le=\"0.5\"} 1\n"), "{text}");
        assert!(
            text.contains("took_bucket{le=\"+Inf\"} 1\ntook_sum 0.25\ntook_count 1\n"),
            "{text}"
        );
    }
}
