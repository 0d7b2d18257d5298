//! The output of one program: the newest 256 KiB in memory for readers, and up to two files of 4
//! MiB on disk.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::Notify;

/// Bytes kept in memory.
const MAX_MEMORY: usize = 256 * 1024;
/// Size in bytes at which the file is renamed to `.log.1`, replacing the previous one.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// The log of one program. Offsets count all bytes ever written, so they stay valid when old bytes
/// leave the memory.
#[derive(Debug)]
pub(crate) struct Log {
    state: Mutex<State>,
    more: Notify,
    path: PathBuf,
}

#[derive(Debug)]
struct State {
    ring: VecDeque<u8>,
    /// Number of bytes ever written: the offset of the end.
    total: u64,
    file: Option<File>,
    file_length: u64,
}

impl Log {
    /// Opens a log with the file at `path`. If the file cannot be opened, the log works in memory
    /// only.
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

    /// Appends bytes and wakes the readers. Errors of the file are ignored.
    pub(crate) fn write(&self, bytes: &[u8]) {
        let mut state = self
            .state
            .lock()
            .expect("nothing panics while it holds the log");

        let newest = &bytes[bytes.len().saturating_sub(MAX_MEMORY)..];
        let excess = (state.ring.len() + newest.len()).saturating_sub(MAX_MEMORY);
        state.ring.drain(..excess);
        state.ring.extend(newest);
        state.total += bytes.len() as u64;

        if let Some(file) = &mut state.file {
            if file.write_all(bytes).is_err() {
                // The disk may be full. Readers use the memory, and the next write tries the file
                // again.
                tracing::debug!(path = %self.path.display(), "log file cannot be written");
            }
            state.file_length += bytes.len() as u64;
        }

        if state.file_length > MAX_FILE {
            let _ = fs::rename(&self.path, self.path.with_extension("log.1"));
            state.file = File::create(&self.path).ok();
            state.file_length = 0;
        }

        drop(state);
        self.more.notify_waiters();
    }

    /// Returns the bytes in memory from `offset` on, and the offset of the end. An `offset` that
    /// has left the memory starts at the oldest byte.
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

    /// The offset at which the last `lines` lines begin; the oldest byte if there are fewer.
    pub(crate) fn tail(&self, lines: usize) -> u64 {
        let state = self
            .state
            .lock()
            .expect("nothing panics while it holds the log");

        let oldest = state.total - state.ring.len() as u64;
        if lines == 0 {
            return state.total;
        }

        // The line feed at the very end closes the last line and starts no other.
        let mut left = lines;
        let body = state.ring.len().saturating_sub(1);
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

    /// Waits until there are bytes beyond `offset`. Cancellation safe.
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

    /// Copies a stream into the log until the stream ends or fails.
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
        log.write(&vec![b'x'; 2 * MAX_MEMORY]);
        assert_eq!(log.read(0).0.len(), MAX_MEMORY);
        assert_eq!(
            fs::metadata(dir.path().join("app.log")).unwrap().len(),
            19 + 2 * MAX_MEMORY as u64
        );
    }

    #[test]
    fn a_log_without_file_works() {
        let log = Log::new(Path::new("/proc/none/app.log"));
        log.write(b"x");
        assert_eq!(log.read(0).0, b"x");
    }
}
