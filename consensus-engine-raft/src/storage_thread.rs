//! Writes the log, normally on a dedicated thread.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use consensus_core::{LogBatch, LogStorage, StorageError};

use crate::{
    inbox::Input,
    measure,
    worker::{Next, Report, Work},
};

/// Makes one write at a time.
pub(crate) struct LogWriter {
    storage: Arc<dyn LogStorage>,
}

impl LogWriter {
    pub(crate) fn new(storage: Arc<dyn LogStorage>) -> Self {
        Self { storage }
    }
}

impl Work for LogWriter {
    type Job = LogBatch;

    fn work(&mut self, batch: LogBatch, report: Report<'_>) -> Next<LogBatch> {
        let entries = batch.entries.len();
        let began = Instant::now();
        let _write = tracing::debug_span!("write", entries).entered();
        // A panic is as final as an error. If it were not reported, all clients would wait for ever.
        let result = catch_unwind(AssertUnwindSafe(|| self.storage.write(batch)))
            .unwrap_or_else(|_| Err(StorageError::Failed("it panicked".to_owned())));
        // Nothing was written. The engine builds a new batch when it retries.
        if let Err(StorageError::NoRoom { why, .. }) = &result {
            return if report(Input::NoRoom(why.clone())) { Next::Ready } else { Next::Stop };
        }
        measure::log_written(entries, began.elapsed());
        // After a failed write it is unknown what is on disk: the engine stops, and so does this thread.
        let failed = result.is_err();
        let told = report(Input::Persisted(result));
        if !told || failed { Next::Stop } else { Next::Ready }
    }
}
