//! Access log files, opened once for all workers; each worker has a buffer of its own in front of
//! them.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use meltemi_filters::format::Facts;
use meltemi_proxy_config::access_log::{AccessLog, LogSink as Place};
use meltemi_telemetry::{LogSink, LogWriter};
use tokio::sync::Notify;

/// A line waits no longer than this for the buffer to fill.
const FLUSH: Duration = Duration::from_millis(50);

/// The files of a process.
#[derive(Debug, Clone, Default)]
pub struct Logs {
    open: Arc<Mutex<HashMap<Place, Option<LogSink>>>>,
    instead: Option<LogSink>,
}

impl Logs {
    /// Everything goes to one stream, whatever configuration says; for embedding and tests.
    pub fn to(stream: Box<dyn Write + Send>) -> std::io::Result<Self> {
        Ok(Self {
            open: Arc::default(),
            instead: Some(LogSink::to(stream)?),
        })
    }

    fn writer(&self, place: &Place) -> Option<LogWriter> {
        if let Some(sink) = &self.instead {
            return Some(sink.writer());
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let path = match place {
            Place::Stdout => "/dev/stdout",
            Place::Stderr => "/dev/stderr",
            Place::File(path) => path,
        };

        let sink = open.entry(place.clone()).or_insert_with(|| match LogSink::open(path) {
            Ok(sink) => Some(sink),
            Err(error) => {
                tracing::error!(%path, %error, "access log cannot be opened; its lines are lost");
                None
            }
        });

        sink.as_ref().map(LogSink::writer)
    }

    /// Lines lost so far.
    pub fn dropped(&self) -> u64 {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.values()
            .flatten()
            .chain(&self.instead)
            .map(LogSink::dropped)
            .sum()
    }
}

/// One worker's buffers.
#[derive(Debug)]
pub struct WorkerLogs {
    logs: Logs,
    writers: RefCell<HashMap<Place, Option<LogWriter>>>,
    waiting: Cell<bool>,
    wake: Notify,
}

impl WorkerLogs {
    /// In front of the process's files.
    pub fn new(logs: Logs) -> Self {
        Self {
            logs,
            writers: RefCell::default(),
            waiting: Cell::new(false),
            wake: Notify::new(),
        }
    }

    /// Writes a line.
    pub fn write(&self, log: &AccessLog, facts: &dyn Facts) {
        let mut writers = self.writers.borrow_mut();
        if !writers.contains_key(&log.sink) {
            writers.insert(log.sink.clone(), self.logs.writer(&log.sink));
        }
        let Some(Some(writer)) = writers.get(&log.sink) else {
            return;
        };
        writer.write(|out| log.format.render(facts, out));

        if !self.waiting.replace(true) {
            self.wake.notify_one();
        }
    }

    /// Hands buffers over a little after something was written; never ends.
    pub async fn keep_flushing(&self) {
        loop {
            self.wake.notified().await;
            tokio::time::sleep(FLUSH).await;
            self.waiting.set(false);
            self.flush();
        }
    }

    /// Hands everything over now.
    pub fn flush(&self) {
        self.writers
            .borrow()
            .values()
            .flatten()
            .for_each(LogWriter::flush);
    }
}
