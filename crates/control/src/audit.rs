//! The audit log: who got a certificate, and who asked for something that is not theirs. It is a
//! file of its own, one JSON object a line, so that no flood in another log removes its lines.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use meltemi_types::SpiffeId;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::caller_limit::CallerLimit;

/// The file is renamed at this size, and the one that was renamed before is removed.
const MAX_BYTES: u64 = 16 * 1024 * 1024;
/// Lines of one kind that one address may cause at once. Then it is one every [`REFILL`].
const BURST: u32 = 100;
/// See [`BURST`].
const REFILL: Duration = Duration::from_secs(1);

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Event {
    /// A certificate was issued.
    CertificateIssued,
    /// A certificate request had no proof, or asked for more than the caller's own.
    CertificateRefused,
    /// A proxy asked as somebody else, or without proof.
    ProxyRefused,
}

/// One line.
#[derive(Debug, Serialize)]
pub(crate) struct Record<'a> {
    pub event: Event,
    /// The address that the caller connects from.
    pub peer: &'a str,
    /// Who the caller proved to be.
    #[serde(serialize_with = "as_text")]
    pub identity: Option<&'a SpiffeId>,
    /// The pod of the caller's proof.
    pub pod: Option<&'a str>,
    /// The serial of what was issued, or why nothing was.
    pub detail: &'a str,
}

fn as_text<S: serde::Serializer>(
    identity: &Option<&SpiffeId>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    identity.map(SpiffeId::to_string).serialize(serializer)
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    record: &'a Record<'a>,
    /// Records that were left out since the line before, as too many of a kind from one address.
    #[serde(skip_serializing_if = "is_zero")]
    left_out: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The log of one control plane.
#[derive(Debug)]
pub(crate) struct Audit {
    path: PathBuf,
    limit: CallerLimit,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    file: Option<File>,
    left_out: u64,
    is_failing: bool,
}

impl Audit {
    /// Appends to this file.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            limit: CallerLimit::new(BURST, REFILL),
            state: Mutex::default(),
        }
    }

    /// Writes a line, here and in the process's own log.
    pub(crate) fn record(&self, record: &Record<'_>) {
        let kind = format!("{:?}", record.event);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.limit.admit(&kind, record.peer, Instant::now()) {
            state.left_out += 1;
            return;
        }

        let Record {
            event,
            peer,
            identity,
            pod,
            detail,
        } = record;
        let identity = identity.map(SpiffeId::to_string).unwrap_or_default();
        let pod = pod.unwrap_or_default();
        match event {
            Event::CertificateIssued => {
                tracing::info!(%identity, pod, peer, serial = detail, "certificate issued");
            }
            Event::CertificateRefused => {
                tracing::warn!(%identity, pod, peer, reason = detail, "certificate refused");
            }
            Event::ProxyRefused => {
                tracing::warn!(%identity, pod, peer, reason = detail, "proxy refused");
            }
        }

        let line = Line {
            time: OffsetDateTime::now_utc()
                .format(&Rfc3339)
                .unwrap_or_default(),
            record,
            left_out: std::mem::take(&mut state.left_out),
        };
        let written = self.append(&mut state.file, &line);
        if let Err(error) = &written {
            // Once, until it works again.
            state.file = None;
            if !state.is_failing {
                tracing::error!(file = %self.path.display(), %error, "the audit log cannot be written");
            }
        }
        state.is_failing = written.is_err();
    }

    fn append(&self, file: &mut Option<File>, line: &Line<'_>) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');

        if let Some(open) = file
            && open.metadata()?.len() >= MAX_BYTES
        {
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
            *file = None;
        }
        if file.is_none() {
            let options = OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .clone();
            *file = Some(options.open(&self.path)?);
        }
        match file {
            Some(file) => file.write_all(&text),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &std::path::Path) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(path).expect("written");
        text.lines()
            .map(|line| serde_json::from_str(line).expect("an object"))
            .collect()
    }

    #[test]
    fn a_flood_from_one_address_leaves_the_lines_of_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit.log");
        let audit = Audit::new(path.clone());
        let identity: SpiffeId = "spiffe://cluster.local/ns/shop/sa/cart"
            .parse()
            .expect("one");
        let record = |peer: &str, event| {
            audit.record(&Record {
                event,
                peer,
                identity: Some(&identity),
                pod: Some("cart-1"),
                detail: "abc",
            });
        };

        (0..1000).for_each(|_| record("10.0.0.1", Event::CertificateRefused));
        record("10.0.0.2", Event::CertificateIssued);

        let lines = lines(&path);
        assert!((100..200).contains(&(lines.len() - 1)), "{}", lines.len());
        let last = lines.last().expect("one");
        assert_eq!(last["event"], "certificate-issued");
        assert_eq!(last["identity"], identity.to_string());
        assert_eq!(
            (&last["peer"], &last["pod"]),
            (&"10.0.0.2".into(), &"cart-1".into())
        );
        let written = u64::try_from(lines.len()).expect("few") - 1;
        assert_eq!(last["left_out"], 1000 - written);
    }

    #[test]
    fn a_large_file_is_renamed_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit.log");
        let file = File::create(&path).expect("made");
        file.set_len(MAX_BYTES).expect("sparse");

        let audit = Audit::new(path.clone());
        for peer in ["10.0.0.1", "10.0.0.2"] {
            audit.record(&Record {
                event: Event::ProxyRefused,
                peer,
                identity: None,
                pod: None,
                detail: "no token",
            });
        }
        let old = fs::metadata(path.with_extension("log.1")).expect("renamed");
        assert!(old.len() > MAX_BYTES, "the first line went to it");
        assert_eq!(lines(&path).len(), 1);
    }
}
