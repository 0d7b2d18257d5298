//! Output of a container: the newest part in memory, more in a file.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::Notify;

/// Bytes kept in memory.
const RING: usize = 256 * 1024;
/// A file that has grown this far is renamed to `.1`, in place of the one before.
const FILE: u64 = 4 * 1024 * 1024;

/// The log of one container.
#[derive(Debug)]
pub(crate) struct Log {
    state: Mutex<State>,
    more: Notify,
    path: PathBuf,
}

#[derive(Debug)]
struct State {
    ring: VecDeque<u8>,
    /// Bytes ever written.
    total: u64,
    file: Option<File>,
    file_length: u64,
}

impl Log {
    /// A log with a file; a full disk or a forbidden folder leaves the memory.
    pub(crate) fn new(path: &Path) -> Arc<Self> {
        if let Some(folder) = path.parent() {
            let _ = fs::create_dir_all(folder);
        }
        let file = File::options().create(true).append(true).open(path).ok();
        let file_length = file
            .as_ref()
            .and_then(|file| file.metadata().ok())
            .map_or(0, |found| found.len());

        let state = State {
            ring: VecDeque::new(),
            total: 0,
            file,
            file_length,
        };

        Arc::new(Self {
            state: Mutex::new(state),
            more: Notify::new(),
            path: path.to_owned(),
        })
    }

    /// Appends.
    pub(crate) fn write(&self, bytes: &[u8]) {
        let mut state = self
            .state
            .lock()
            .expect("nothing panics while it holds the log");

        let newest = &bytes[bytes.len().saturating_sub(RING)..];
        let excess = (state.ring.len() + newest.len()).saturating_sub(RING);
        state.ring.drain(..excess);
        state.ring.extend(newest);
        state.total += bytes.len() as u64;
        if let Some(file) = &mut state.file {
            if file.write_all(bytes).is_err() {
                // A full disk: the memory goes on, and the file is tried again with the next line.
                tracing::debug!(path = %self.path.display(), "log file cannot be written");
            }
            state.file_length += bytes.len() as u64;
        }

        if state.file_length > FILE {
            let _ = fs::rename(&self.path, self.path.with_extension("log.1"));
            state.file = File::create(&self.path).ok();
            state.file_length = 0;
        }

        drop(state);
        self.more.notify_waiters();
    }

    /// What is in memory from `offset` on, and the offset behind it. An offset from before the
    /// memory begins starts with the oldest that is left.
    pub(crate) fn read(&self, offset: u64) -> (Vec<u8>, u64) {
        let state = self
            .state
            .lock()
            .expect("nothing panics while it holds the log");
        let oldest = state.total - state.ring.len() as u64;
        let skip = usize::try_from(offset.max(oldest) - oldest)
            .unwrap_or(usize::MAX)
            .min(state.ring.len());
        (state.ring.iter().skip(skip).copied().collect(), state.total)
    }

    /// Where the last `lines` lines in memory begin.
    pub(crate) fn tail(&self, lines: usize) -> u64 {
        let state = self
            .state
            .lock()
            .expect("nothing panics while it holds the log");

        let oldest = state.total - state.ring.len() as u64;
        if lines == 0 {
            return state.total;
        }
        let mut left = lines;
        let body = state.ring.len().saturating_sub(1); // a closing line feed begins no further line
        for at in (0..body).rev() {
            if state.ring[at] == b'\n' {
                left = left.saturating_sub(1);
                if left == 0 {
                    return oldest + at as u64 + 1;
                }
            }
        }

        oldest
    }

    /// Waits until there is something behind `offset`. Cancellation safe.
    pub(crate) async fn wait(&self, offset: u64) {
        loop {
            let more = self.more.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            if self
                .state
                .lock()
                .expect("nothing panics while it holds the log")
                .total
                > offset
            {
                return;
            }

            more.await;
        }
    }

    /// Copies a stream into the log until it ends.
    pub(crate) async fn copy(self: Arc<Self>, mut from: impl AsyncRead + Unpin) {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            self.write(&buffer[..length]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn memory_is_bounded_and_lines_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::new(&dir.path().join("app.log"));
        log.write(b"one\ntwo\nthree\n");
        assert_eq!(log.read(log.tail(2)).0, b"two\nthree\n");
        assert_eq!(log.read(log.tail(9)).0, b"one\ntwo\nthree\n");
        assert_eq!(log.read(log.tail(0)).0, b"");
        let (_, end) = log.read(0);
        let (waited, ()) = tokio::join!(
            async {
                log.wait(end).await;
                log.read(end).0
            },
            async { log.write(b"four\n") }
        );

        assert_eq!(waited, b"four\n");
        log.write(&vec![b'x'; 2 * RING]);
        assert_eq!(log.read(0).0.len(), RING);
        assert_eq!(
            fs::metadata(dir.path().join("app.log")).unwrap().len(),
            19 + 2 * RING as u64
        );
    }

    #[test]
    fn a_log_without_file_works() {
        let log = Log::new(Path::new("/proc/none/app.log"));
        log.write(b"x");
        assert_eq!(log.read(0).0, b"x");
    }
}
