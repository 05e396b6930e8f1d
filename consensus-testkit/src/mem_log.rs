//! A log storage in memory.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use consensus_core::{
    Entry, HardState, LogBatch, LogIndex, LogState, LogStorage, SnapshotMeta, StorageError,
};

/// A [`LogStorage`] in memory. Clones share one "disk", which outlives them: dropping a node and starting it with a clone
/// simulates a restart.
#[derive(Debug, Default)]
pub struct MemLogStorage {
    disk: Arc<Mutex<Disk>>,
    /// Whether a write failed. Not shared by clones: a clone counts as opened again.
    failed: AtomicBool,
}

impl Clone for MemLogStorage {
    fn clone(&self) -> Self {
        Self { disk: self.disk.clone(), failed: AtomicBool::new(false) }
    }
}

#[derive(Debug, Default)]
struct Disk {
    hard_state: HardState,
    purged: SnapshotMeta,
    entries: VecDeque<Entry>,
    writes: u64,
    entries_written: u64,
    fail_writes: bool,
    full: bool,
}

impl Disk {
    fn last(&self) -> LogIndex {
        self.entries.back().map_or(self.purged.last.index, |entry| entry.id.index)
    }
}

impl Disk {
    /// Checks whether `batch` follows the log.
    fn check(&self, batch: &LogBatch) -> Result<(), StorageError> {
        let purged = batch.purge.as_ref().map_or(self.purged.last.index, |meta| meta.last.index);
        if purged < self.purged.last.index {
            let why = format!("a purge up to {purged}, after one up to {}", self.purged.last.index);
            return Err(StorageError::Misuse(why));
        }
        let last = self.last().max(purged);
        let mut last = batch.truncate_after.map_or(last, |after| after.max(purged).min(last));
        for entry in &batch.entries {
            if entry.id.index != last.next() {
                return Err(StorageError::Misuse(format!("entry {} does not follow index {last}", entry.id)));
            }
            last = entry.id.index;
        }
        Ok(())
    }
}

impl MemLogStorage {
    /// Creates a storage with an empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes every write fail and change nothing from now on (`true`), like a lost disk, or succeed again (`false`). A
    /// storage with a failed write stays failed; a clone works again when the disk does.
    pub fn fail_writes(&self, fail: bool) {
        self.lock().fail_writes = fail;
    }

    /// Makes the disk full for commands from now on (`true`), or frees it again (`false`).
    pub fn fill(&self, full: bool) {
        self.lock().full = full;
    }

    /// Number of batches and of entries written. Their ratio shows how well an engine batches.
    #[must_use]
    pub fn written(&self) -> (u64, u64) {
        let disk = self.lock();
        (disk.writes, disk.entries_written)
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LogStorage for MemLogStorage {
    fn load(&self) -> Result<LogState, StorageError> {
        let disk = self.lock();
        let (hard_state, purged) = (disk.hard_state.clone(), disk.purged.clone());
        let mut state = LogState { hard_state, purged, ..LogState::default() };
        disk.entries.iter().try_for_each(|entry| state.push(entry))?;
        Ok(state)
    }

    fn write(&self, batch: LogBatch) -> Result<(), StorageError> {
        let mut disk = self.lock();
        if self.failed.load(Ordering::Relaxed) {
            return Err(StorageError::Failed("the test makes the disk fail".to_owned()));
        }
        if disk.fail_writes {
            self.failed.store(true, Ordering::Relaxed);
            let source = std::io::Error::other("the test makes the disk fail");
            return Err(StorageError::Io { context: "write".to_owned(), source });
        }
        if disk.full && batch.must_leave_reserve() {
            let why = "the test filled the disk".to_owned();
            return Err(StorageError::NoRoom { why, batch: Box::new(batch) });
        }
        disk.check(&batch)?;
        if let Some(meta) = batch.purge {
            disk.entries.retain(|entry| entry.id.index > meta.last.index);
            disk.purged = meta;
        }
        if let Some(after) = batch.truncate_after {
            disk.entries.retain(|entry| entry.id.index <= after);
        }
        disk.writes += 1;
        disk.entries_written += batch.entries.len() as u64;
        disk.entries.extend(batch.entries);
        if let Some(hard_state) = batch.hard_state {
            disk.hard_state = hard_state;
        }
        Ok(())
    }

    fn read(&self, after: LogIndex, last: LogIndex, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        let disk = self.lock();
        let wanted = disk.entries.iter().skip_while(|entry| entry.id.index <= after);
        let mut bytes = 0;
        let found: Vec<Entry> = wanted
            .take_while(|entry| {
                let first = bytes == 0;
                bytes += entry.size_bytes();
                entry.id.index <= last && (first || bytes <= max_bytes)
            })
            .cloned()
            .collect();
        if after < last && found.first().is_none_or(|entry| entry.id.index != after.next()) {
            let (purged, last) = (disk.purged.last.index, disk.last());
            return Err(StorageError::Missing { index: after.next(), purged, last });
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log_storage;

    #[test]
    fn passes_the_suite() {
        log_storage::run_suite(MemLogStorage::new, MemLogStorage::clone);
    }

    #[test]
    fn passes_the_suites_for_failing_and_full_disks() {
        log_storage::run_failing_disk_suite(
            MemLogStorage::new,
            MemLogStorage::clone,
            MemLogStorage::fail_writes,
        );
        log_storage::run_full_disk_suite(MemLogStorage::new, MemLogStorage::clone, MemLogStorage::fill);
    }
}
