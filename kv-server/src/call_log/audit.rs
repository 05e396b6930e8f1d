//! The file of the audit log. A thread of its own writes it; a bounded queue leads there.
//!
//! A call never waits for the file: a line that finds the queue full is dropped and counted, and so are the lines that the file does not
//! take. A line with their number stands in the log where they are missing.

mod file;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, SystemTime},
};

use metrics::{Counter, counter};

use self::file::RotatedFile;
use super::line;
use crate::config::Audit;

/// Why there is no audit log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuditError {
    #[error("audit_log: {path}: {source}; name a file in a directory that this user may write to")]
    File { path: PathBuf, source: io::Error },
    #[error("audit_log: there is no thread to write it: {0}")]
    Thread(#[source] io::Error),
}

/// Writes lines to the audit log.
pub(super) struct AuditLog {
    queue: SyncSender<Item>,
    shared: Arc<Shared>,
    has_reads: bool,
}

/// State that the log shares with its thread.
#[derive(Default)]
struct Shared {
    /// Bytes of the lines in the queue.
    queued_bytes: AtomicUsize,
    missing: Mutex<Missing>,
}

/// Lines that were dropped and are not yet counted in the log.
#[derive(Default)]
struct Missing {
    lines: u64,
    /// Time of the first one.
    since: Option<SystemTime>,
}

/// An item of the queue.
enum Item {
    Line(String),
    /// Answers when everything before it is written.
    Flush(SyncSender<()>),
}

impl Shared {
    fn drop_lines(&self, lines: u64) {
        counter!("kv_audit_dropped_total").increment(lines);
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing.lines += lines;
        missing.since.get_or_insert_with(SystemTime::now);
    }

    /// The line about the missing ones, with their number.
    fn missing_line(&self) -> Option<(String, u64)> {
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        Some((line::of_missing(missing.lines, missing.since?), missing.lines))
    }

    /// Notes that so many missing lines are counted in the log.
    fn settle_missing(&self, lines: u64) {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing.lines -= lines;
        missing.since = (missing.lines > 0).then(SystemTime::now);
    }
}

impl AuditLog {
    /// Opens the file and starts the thread.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub(super) fn open(path: &Path, settings: &Audit) -> Result<Self, AuditError> {
        let file = RotatedFile::open(path, settings.audit_log_size, settings.audit_log_files);
        let file = file.map_err(|source| AuditError::File { path: path.to_owned(), source })?;
        let (queue, items) = sync_channel(QUEUE_LINES_MAX);
        let shared = Arc::new(Shared::default());
        let written = counter!("kv_audit_lines_total");
        let mut writer = Writer { file, shared: shared.clone(), written, failed: 0 };
        let thread = thread::Builder::new().name("audit".to_owned());
        thread.spawn(move || writer.run(&items)).map_err(AuditError::Thread)?;
        Ok(Self { queue, shared, has_reads: settings.audit_log_reads })
    }

    /// Whether reads that succeed are recorded.
    pub(super) fn has_reads(&self) -> bool {
        self.has_reads
    }

    /// Writes a line, or drops and counts it if the queue is full.
    pub(super) fn write(&self, line: String) {
        let bytes = line.len();
        let queued = self.shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        if queued + bytes <= QUEUE_BYTES_MAX && self.queue.try_send(Item::Line(line)).is_ok() {
            return;
        }
        self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.shared.drop_lines(1);
    }

    /// Waits until the lines before are written or dropped.
    pub(super) fn flush(&self) {
        let (done, flushed) = sync_channel(1);
        if self.queue.send(Item::Flush(done)).is_ok() {
            let _ = flushed.recv();
        }
    }
}

/// The thread that writes.
struct Writer {
    file: RotatedFile,
    shared: Arc<Shared>,
    written: Counter,
    /// Lines that were not written since the file could not be written; 0: it can.
    failed: u64,
}

impl Writer {
    /// Writes until the log is dropped.
    fn run(&mut self, items: &Receiver<Item>) {
        loop {
            match items.recv_timeout(IDLE) {
                Ok(item) => self.write_batch(item, items),
                Err(RecvTimeoutError::Timeout) => self.write(Vec::new()),
                Err(RecvTimeoutError::Disconnected) => {
                    self.file.sync();
                    return;
                }
            }
        }
    }

    /// Writes what is in the queue, at most [`BATCH_BYTES`] at once.
    fn write_batch(&mut self, first: Item, items: &Receiver<Item>) {
        let (mut lines, mut bytes) = (Vec::new(), 0);
        let mut next = Some(first);
        while let Some(item) = next {
            match item {
                Item::Line(line) => {
                    bytes += line.len();
                    lines.push(line);
                }
                Item::Flush(done) => {
                    self.write(std::mem::take(&mut lines));
                    self.file.sync();
                    let _ = done.send(());
                }
            }
            next = if bytes < BATCH_BYTES { items.try_recv().ok() } else { None };
        }
        self.write(lines);
        self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn write(&mut self, mut lines: Vec<String>) {
        let missing = self.shared.missing_line();
        let count = lines.len() as u64;
        let counted = missing.map(|(line, missing)| {
            lines.insert(0, line);
            missing
        });
        match self.file.append(&lines) {
            Ok(()) => {
                self.written.increment(count);
                self.shared.settle_missing(counted.unwrap_or(0));
                if self.failed > 0 {
                    let lines = std::mem::take(&mut self.failed);
                    tracing::info!(lines, "the audit log is written again; so many lines are missing");
                }
            }
            Err(failure) => {
                // The lines before the failure are in the file, and the first one may be that about the missing lines.
                let own = u64::from(counted.is_some());
                let written = (failure.written as u64).saturating_sub(own);
                self.written.increment(written);
                if failure.written > 0 {
                    self.shared.settle_missing(counted.unwrap_or(0));
                }
                let lost = count - written;
                if lost > 0 {
                    self.shared.drop_lines(lost);
                }
                if self.failed == 0 && lost > 0 {
                    tracing::warn!(
                        path = %self.file.path().display(), error = %failure.error,
                        "the audit log cannot be written: requests go on, and lines are missing until it can; free space, or make the file writable"
                    );
                }
                self.failed += lost;
            }
        }
    }
}

/// Lines and bytes in the queue: at most this memory waits for a slow disk.
const QUEUE_LINES_MAX: usize = 16 << 10;
const QUEUE_BYTES_MAX: usize = 16 << 20;
/// Bytes that are written at once.
const BATCH_BYTES: usize = 256 << 10;
/// Time without lines after which the thread looks whether the file can be written again.
const IDLE: Duration = Duration::from_secs(1);
