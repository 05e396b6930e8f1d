//! A log storage whose disk is memory.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use consensus_core::{
    Entry, HardState, LogBatch, LogIndex, LogState, LogStorage, SnapshotMeta, StorageError,
};

/// A [`LogStorage`] in memory. Clones share one "disk", which outlives them: dropping a node and starting it again with a
/// clone is a restart.
#[derive(Clone, Debug, Default)]
pub struct MemLogStorage(Arc<Mutex<Disk>>);

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

impl MemLogStorage {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on (`true`) every write fails and changes nothing, like a disk that is gone.
    pub fn fail_writes(&self, fail: bool) {
        self.lock().fail_writes = fail;
    }

    /// From now on (`true`) there is no room for entries.
    pub fn fill(&self, full: bool) {
        self.lock().full = full;
    }

    /// How many batches and how many entries were written; their ratio shows how well an engine batches.
    #[must_use]
    pub fn written(&self) -> (u64, u64) {
        let disk = self.lock();
        (disk.writes, disk.entries_written)
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        if disk.fail_writes {
            let source = std::io::Error::other("the test took the disk away");
            return Err(StorageError::Io { context: "write".to_owned(), source });
        }
        if disk.full && !batch.entries.is_empty() {
            let why = "the test filled the disk".to_owned();
            return Err(StorageError::NoRoom { why, batch: Box::new(batch) });
        }
        let purged = batch.purge.as_ref().map_or(disk.purged.last.index, |meta| meta.last.index);
        let last = disk.last().max(purged);
        let last = batch.truncate_after.map_or(last, |after| after.max(purged).min(last));
        if let Some(first) = batch.entries.first().filter(|first| first.id.index != last.next()) {
            return Err(StorageError::Misuse(format!("entry {} does not follow index {last}", first.id)));
        }
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

    #[test]
    fn passes_the_suite() {
        crate::log_storage::run_suite(MemLogStorage::new, MemLogStorage::clone);
    }
}
