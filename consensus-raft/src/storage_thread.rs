//! The thread that writes the log.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Instant,
};

use consensus_core::{LogBatch, LogStorage, StorageError};

use crate::{
    inbox::{Inbox, Input},
    measure,
};

/// One write at a time; ends when the sender is dropped.
pub(crate) fn spawn(
    storage: Arc<dyn LogStorage>,
    inbox: Inbox,
) -> std::io::Result<(mpsc::Sender<LogBatch>, JoinHandle<()>)> {
    let (batches, queue) = mpsc::channel::<LogBatch>();
    let thread = std::thread::Builder::new().name("raft-log".to_owned()).spawn(move || {
        for batch in queue {
            let (entries, began) = (batch.entries.len(), Instant::now());
            // A panic in there is as final as an error; unnoticed, everybody would wait for ever.
            let result = catch_unwind(AssertUnwindSafe(|| storage.write(batch)))
                .unwrap_or_else(|_| Err(StorageError::Failed("it panicked".to_owned())));
            measure::log_written(entries, began.elapsed());
            // After a failed write nobody knows what is on disk: the engine stops, and so does this.
            let failed = result.is_err();
            if inbox.send(Input::Persisted(result)).is_err() || failed {
                return;
            }
        }
    })?;
    Ok((batches, thread))
}
