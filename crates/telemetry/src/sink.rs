//! The sink for access-log lines: one writer thread per file. Workers hand it full buffers and
//! never wait for it; if the disk is too slow, lines are dropped and counted.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;

/// Size in bytes at which a worker hands its buffer over, if [`LogWriter::flush`] does not do so
/// earlier.
const CHUNK: usize = 64 * 1024;
/// Maximum number of buffers in flight. Further lines are dropped and counted.
const QUEUE: usize = 64;
/// Initial capacity of a buffer in bytes.
const INITIAL_CAPACITY: usize = 8 * 1024;

/// A log file or stream that any number of workers write to.
#[derive(Debug, Clone)]
pub struct LogSink {
    chunks: SyncSender<Vec<u8>>,
    dropped: Arc<AtomicU64>,
}

impl LogSink {
    /// Opens a file for appending. `/dev/stdout` and `/dev/stderr` mean the process's own streams.
    pub fn open(path: &str) -> io::Result<Self> {
        let stream: Box<dyn Write + Send> = match path {
            "/dev/stdout" => Box::new(io::stdout()),
            "/dev/stderr" => Box::new(io::stderr()),
            path => Box::new(append(Path::new(path))?),
        };
        Self::to(stream)
    }

    /// Creates a sink that writes to the given stream.
    pub fn to(stream: Box<dyn Write + Send>) -> io::Result<Self> {
        let (chunks, receiver) = sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let lost = dropped.clone();
        thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || drain(&receiver, stream, &lost))?;
        Ok(Self { chunks, dropped })
    }

    /// Creates the buffer of one worker.
    pub fn writer(&self) -> LogWriter {
        LogWriter {
            sink: self.clone(),
            buffer: RefCell::default(),
        }
    }

    /// Number of lines lost because the disk was full or too slow.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    fn send(&self, chunk: Vec<u8>) {
        if let Err(TrySendError::Full(chunk) | TrySendError::Disconnected(chunk)) =
            self.chunks.try_send(chunk)
        {
            self.dropped.fetch_add(lines(&chunk), Relaxed);
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn lines(chunk: &[u8]) -> u64 {
    chunk.iter().filter(|byte| **byte == b'\n').count() as u64
}

fn drain(chunks: &Receiver<Vec<u8>>, mut stream: Box<dyn Write + Send>, dropped: &AtomicU64) {
    for chunk in chunks {
        if stream
            .write_all(&chunk)
            .and_then(|()| stream.flush())
            .is_err()
        {
            dropped.fetch_add(lines(&chunk), Relaxed);
        }
    }
}

/// The buffer of one worker. Not shared between threads.
#[derive(Debug)]
pub struct LogWriter {
    sink: LogSink,
    buffer: RefCell<Vec<u8>>,
}

impl LogWriter {
    /// Calls `line` to append to the buffer, and hands the buffer over when it is full.
    pub fn write(&self, line: impl FnOnce(&mut Vec<u8>)) {
        let mut buffer = self.buffer.borrow_mut();
        if buffer.capacity() == 0 {
            buffer.reserve(INITIAL_CAPACITY);
        }
        line(&mut buffer);
        if buffer.len() >= CHUNK {
            self.sink.send(std::mem::take(&mut buffer));
        }
    }

    /// Hands the buffer over if it is not empty. Workers call this about every 50 ms and before
    /// they end.
    pub fn flush(&self) {
        let mut buffer = self.buffer.borrow_mut();
        if !buffer.is_empty() {
            self.sink.send(std::mem::take(&mut buffer));
        }
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};

    struct Tell(Sender<Vec<u8>>);
    impl Write for Tell {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_arrive_after_a_flush() {
        let (tell, told) = channel();
        let sink = LogSink::to(Box::new(Tell(tell))).expect("a thread starts");
        let writer = sink.writer();
        writer.write(|out| out.extend_from_slice(b"one\n"));
        writer.write(|out| out.extend_from_slice(b"two\n"));
        writer.flush();
        assert_eq!(told.recv().expect("the sink writes"), b"one\ntwo\n");
        assert_eq!(sink.dropped(), 0);
    }

    #[test]
    fn a_full_disk_loses_lines_and_counts_them() {
        struct Full(Sender<()>);
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                self.0.send(()).map_err(io::Error::other)?;
                Err(io::Error::from(io::ErrorKind::StorageFull))
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let (tell, told) = channel();
        let sink = LogSink::to(Box::new(Full(tell))).expect("a thread starts");
        let writer = sink.writer();

        for _ in 0..2 {
            writer.write(|out| out.extend_from_slice(b"one\ntwo\n"));
            writer.flush();
            told.recv().expect("the sink tried");
        }

        drop(writer);

        // The second attempt began after the first was counted.
        assert!(sink.dropped() >= 2);
    }
}
