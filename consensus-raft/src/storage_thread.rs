//! The thread that writes the log.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
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
    span: tracing::Span,
) -> std::io::Result<(mpsc::Sender<LogBatch>, JoinHandle<()>)> {
    let (batches, queue) = mpsc::channel::<LogBatch>();
    let thread = std::thread::Builder::new().name("raft-log".to_owned()).spawn(move || {
        let _in = span.entered();
        while let Ok(batch) = queue.recv() {
            let (entries, began) = (batch.entries.len(), Instant::now());
            let _write = tracing::debug_span!("write", entries).entered();
            let Some(result) = write_when_there_is_room(&*storage, batch, &inbox, &queue) else { return };
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

/// `None` if the engine stopped before there was room.
fn write_when_there_is_room(
    storage: &dyn LogStorage,
    mut batch: LogBatch,
    inbox: &Inbox,
    queue: &mpsc::Receiver<LogBatch>,
) -> Option<Result<(), StorageError>> {
    let mut told = false;
    loop {
        // A panic in there is as final as an error; unnoticed, everybody would wait for ever.
        let result = catch_unwind(AssertUnwindSafe(|| storage.write(batch)))
            .unwrap_or_else(|_| Err(StorageError::Failed("it panicked".to_owned())));
        let Err(StorageError::NoRoom { why, batch: again }) = result else { return Some(result) };
        batch = *again;
        if !std::mem::replace(&mut told, true) {
            inbox.send(Input::NoRoom(why)).ok()?;
        }
        // There is one batch at a time: nothing can come but the end.
        if queue.recv_timeout(ROOM_RETRY) != Err(RecvTimeoutError::Timeout) {
            return None;
        }
    }
}

/// How often a full disk is looked at.
const ROOM_RETRY: Duration = Duration::from_millis(200);
