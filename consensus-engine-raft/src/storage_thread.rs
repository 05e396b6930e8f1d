//! Writes the log, on a thread of its own as a rule.

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

/// One write at a time.
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
        // A panic in there is as final as an error; unnoticed, everybody would wait for ever.
        let result = catch_unwind(AssertUnwindSafe(|| self.storage.write(batch)))
            .unwrap_or_else(|_| Err(StorageError::Failed("it panicked".to_owned())));
        // Nothing was written. The engine makes the batch anew when it tries again.
        if let Err(StorageError::NoRoom { why, .. }) = &result
            && entries > 0
        {
            return if report(Input::NoRoom(why.clone())) { Next::Ready } else { Next::Over };
        }
        measure::log_written(entries, began.elapsed());
        // After a failed write nobody knows what is on disk: the engine stops, and so does this.
        let failed = result.is_err();
        let told = report(Input::Persisted(result));
        if !told || failed { Next::Over } else { Next::Ready }
    }
}
