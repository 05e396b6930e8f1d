//! Recent entries with their payloads, so that they are written, sent and applied without reading the disk.

use std::collections::VecDeque;

use consensus_core::{Entry, LogIndex};

/// The newest entries of the log, those in `(base, last]`.
#[derive(Debug)]
pub(crate) struct EntryCache {
    base: LogIndex,
    entries: VecDeque<Entry>,
    bytes: u64,
}

impl EntryCache {
    /// Creates an empty cache of a log that ends at `base`.
    pub(crate) fn new(base: LogIndex) -> Self {
        Self { base, entries: VecDeque::new(), bytes: 0 }
    }

    fn last(&self) -> LogIndex {
        LogIndex(self.base.0 + self.entries.len() as u64)
    }

    pub(crate) fn push(&mut self, entry: Entry) {
        assert_eq!(entry.id.index, self.last().next(), "the cache has no gaps");
        self.bytes += entry.size_bytes();
        self.entries.push_back(entry);
    }

    /// Removes the entries after `index`, so that an overwritten entry is never sent, written or applied (known bug C18).
    pub(crate) fn truncate_after(&mut self, index: LogIndex) {
        if index < self.base {
            *self = Self::new(index);
        }
        while self.last() > index {
            self.bytes -= self.entries.pop_back().map_or(0, |entry| entry.size_bytes());
        }
    }

    /// Returns the entries in `(after, last]`, if all of them are cached.
    pub(crate) fn get(&self, after: LogIndex, last: LogIndex) -> Option<Vec<Entry>> {
        if after < self.base || last > self.last() {
            return None;
        }
        Some(
            self.entries
                .range(after.since(self.base) as usize..last.since(self.base) as usize)
                .cloned()
                .collect(),
        )
    }

    /// Removes the oldest entries until at most `bytes_max` are left, but no entry after `needed_after`.
    pub(crate) fn evict(&mut self, bytes_max: u64, needed_after: LogIndex) {
        while self.bytes > bytes_max && self.base < needed_after {
            let Some(entry) = self.entries.pop_front() else { return };
            self.bytes -= entry.size_bytes();
            self.base = entry.id.index;
        }
    }
}

#[cfg(test)]
mod tests {
    use consensus_core::LogId;

    use super::*;

    #[test]
    fn overwritten_entries_are_removed() {
        let mut cache = EntryCache::new(LogIndex(4));
        for index in 5..9 {
            cache.push(Entry::command(LogId::new(1, index), "old"));
        }
        cache.truncate_after(LogIndex(6));
        cache.push(Entry::command(LogId::new(2, 7), "new"));
        let terms: Vec<u64> =
            cache.get(LogIndex(4), LogIndex(7)).unwrap().iter().map(|e| e.id.term.0).collect();
        assert_eq!(terms, [1, 1, 2]);
        assert_eq!(cache.get(LogIndex(4), LogIndex(8)), None);
        assert_eq!(cache.get(LogIndex(3), LogIndex(7)), None);
        cache.truncate_after(LogIndex(2));
        cache.push(Entry::command(LogId::new(3, 3), "newest"));
        assert_eq!(cache.bytes, 38);
    }

    #[test]
    fn needed_entries_are_not_evicted() {
        let mut cache = EntryCache::new(LogIndex(0));
        for index in 1..=4 {
            cache.push(Entry::command(LogId::new(1, index), vec![0; 100]));
        }
        cache.evict(0, LogIndex(2));
        assert_eq!(cache.base, LogIndex(2));
        assert!(cache.get(LogIndex(2), LogIndex(4)).is_some());
    }
}
