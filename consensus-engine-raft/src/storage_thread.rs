//! What writes the log, on a thread of its own as a rule.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use consensus_core::{LogBatch, LogStorage, StorageError};

use crate::{
    inbox::Input,
    measure,
    worker::{Next, Report, Work},
};

/// One write at a time.
pub(crate) struct LogWriter {
    storage: Arc<dyn LogStorage>,
    /// When the write in hand was tried first, if it waits for room.
    waits_since: Option<Instant>,
}

impl LogWriter {
    pub(crate) fn new(storage: Arc<dyn LogStorage>) -> Self {
        Self { storage, waits_since: None }
    }
}

impl Work for LogWriter {
    type Job = LogBatch;

    fn work(&mut self, batch: LogBatch, report: Report<'_>) -> Next<LogBatch> {
        let entries = batch.entries.len();
        let waits_since = self.waits_since.take();
        let began = waits_since.unwrap_or_else(Instant::now);
        let _write = tracing::debug_span!("write", entries).entered();
        // A panic in there is as final as an error; unnoticed, everybody would wait for ever.
        let result = catch_unwind(AssertUnwindSafe(|| self.storage.write(batch)))
            .unwrap_or_else(|_| Err(StorageError::Failed("it panicked".to_owned())));
        if let Err(StorageError::NoRoom { why, batch }) = result {
            self.waits_since = Some(began);
            let heard = waits_since.is_some() || report(Input::NoRoom(why));
            return if heard { Next::Again(*batch, ROOM_RETRY) } else { Next::Over };
        }
        measure::log_written(entries, began.elapsed());
        // After a failed write nobody knows what is on disk: the engine stops, and so does this.
        let failed = result.is_err();
        let told = report(Input::Persisted(result));
        if !told || failed { Next::Over } else { Next::Ready }
    }
}

/// How often a full disk is looked at.
const ROOM_RETRY: Duration = Duration::from_millis(200);
