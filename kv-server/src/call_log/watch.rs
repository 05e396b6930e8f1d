//! Records of the watches of a stream: a line when a watch is created, and one when it ends.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kv_state_machine::KeyRange;

use super::{
    CallRecord, OK,
    line::{self, WatchPart},
    methods::Traits,
    note,
    notes::Notes,
};

/// Records the watches of a stream; by default nothing is recorded.
#[derive(Default)]
pub(crate) struct WatchLog(Option<Arc<CallRecord>>);

/// A watch that has not ended. Dropping it records its end.
pub(crate) struct WatchRecord {
    stream: Arc<CallRecord>,
    id: i64,
    notes: Notes,
    start: Instant,
    result: &'static str,
}

impl WatchLog {
    /// Records the watches of the stream that the current call opens, in place of the call.
    pub(crate) fn of_current_call() -> Self {
        let mut stream = None;
        note(|record| {
            record.is_silent = true;
            stream = record.outputs.audit.is_some().then(|| CallRecord {
                outputs: record.outputs.clone(),
                origin: record.origin,
                method: record.method.clone(),
                traits: Traits { waits: true, ..record.traits },
                start: record.start,
                notes: Notes { user: record.notes.user.clone(), ..Notes::default() },
                result: Some(OK),
                is_silent: true,
            });
        });
        Self(stream.map(Arc::new))
    }

    /// Records that a watch was created at a revision.
    pub(crate) fn created(&self, id: i64, keys: &KeyRange, revision: u64) -> Option<WatchRecord> {
        let has_reads =
            |stream: &&Arc<CallRecord>| stream.outputs.audit.as_ref().is_some_and(super::AuditLog::has_reads);
        let stream = self.0.as_ref().filter(has_reads)?;
        let mut notes = Notes::default();
        notes.keys.add(keys.key.clone(), keys.range_end.clone());
        notes.revision = Some(revision);
        let watch = WatchPart { id, event: "created" };
        write(stream, &notes, watch, OK, Duration::ZERO);
        notes.revision = None;
        Some(WatchRecord { stream: stream.clone(), id, notes, start: Instant::now(), result: OK })
    }

    /// Records that a watch was refused, with the code of the error.
    pub(crate) fn refused(&self, id: i64, keys: &KeyRange, result: &'static str) {
        let Some(stream) = &self.0 else { return };
        let mut notes = Notes::default();
        notes.keys.add(keys.key.clone(), keys.range_end.clone());
        write(stream, &notes, WatchPart { id, event: "refused" }, result, Duration::ZERO);
    }
}

impl WatchRecord {
    /// Ends the watch with the code of an error.
    pub(crate) fn fail(mut self, result: &'static str) {
        self.result = result;
    }
}

impl Drop for WatchRecord {
    fn drop(&mut self) {
        let watch = WatchPart { id: self.id, event: "ended" };
        write(&self.stream, &self.notes, watch, self.result, self.start.elapsed());
    }
}

fn write(stream: &CallRecord, notes: &Notes, watch: WatchPart, result: &'static str, duration: Duration) {
    if let Some(audit) = &stream.outputs.audit {
        audit.write(line::of_watch(stream, notes, watch, result, duration));
    }
}
