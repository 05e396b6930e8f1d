//! In-memory index of the log: the segment and offset of each entry.

use std::{collections::VecDeque, sync::Arc};

use consensus_core::{LogId, LogIndex, Term};

use crate::segment::Segment;

/// Location of an entry's record in its segment. The length is 0 for an entry that is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordLocation {
    pub(crate) at: u32,
    pub(crate) len: u32,
}

/// Index of the log on disk. Entries are in the order of their locations, because frames are only written at the end.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Log id before the first entry: the last purged entry.
    base: LogId,
    locations: VecDeque<RecordLocation>,
    /// First index of each term, none of them beyond the last entry. The first term may have started before `base`.
    terms: VecDeque<(LogIndex, Term)>,
    segments: VecDeque<SegmentRange>,
    /// Number of changes that removed entries at the end. A read in several steps compares it, so that it never joins entries
    /// from before and after a truncation.
    truncations: u64,
}

/// A segment that the log needs, and its entries.
#[derive(Debug)]
struct SegmentRange {
    segment: Arc<Segment>,
    /// Last index before the segment's first frame. When it is purged, older segments are not needed any more.
    /// `u64::MAX` if the first frame cannot be read: older segments are then always needed.
    base: LogIndex,
    /// Index of the segment's first entry. Its last entry is the one before the next segment's first.
    from: LogIndex,
}

/// Consecutive entries in one segment.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) segment: Arc<Segment>,
    /// Index of the first entry.
    pub(crate) index: LogIndex,
    pub(crate) locations: Vec<RecordLocation>,
}

impl Index {
    /// Log id of the last entry, or of the last purged one if there are no entries.
    pub(crate) fn last(&self) -> LogId {
        let index = LogIndex(self.base.index.0 + self.locations.len() as u64);
        self.id_of(index).unwrap_or(self.base)
    }

    /// Index of the last purged entry.
    pub(crate) fn base(&self) -> LogIndex {
        self.base.index
    }

    /// Log id of the entry at `index`, which may also be the last purged one.
    pub(crate) fn id_of(&self, index: LogIndex) -> Option<LogId> {
        if index == self.base.index {
            return Some(self.base);
        }
        let inside = index > self.base.index && index.0 - self.base.index.0 <= self.locations.len() as u64;
        let after = self.terms.partition_point(|(first, _)| *first <= index);
        let (_, term) = self.terms.get(after.checked_sub(1)?)?;
        inside.then_some(LogId { term: *term, index })
    }

    pub(crate) fn truncations(&self) -> u64 {
        self.truncations
    }

    /// All segments, in order.
    pub(crate) fn segments(&self) -> Vec<Arc<Segment>> {
        self.segments.iter().map(|range| range.segment.clone()).collect()
    }

    /// Removes the entries up to `to`, which may be beyond the last entry.
    pub(crate) fn purge(&mut self, to: LogId) {
        let gone = to.index.0.saturating_sub(self.base.index.0);
        if gone > self.locations.len() as u64 {
            self.truncations += 1;
        }
        self.locations.drain(..self.locations.len().min(usize::try_from(gone).unwrap_or(usize::MAX)));
        if to.index >= self.base.index {
            self.base = to;
        }
        while self.terms.get(1).is_some_and(|(first, _)| *first <= self.base.index.next()) {
            self.terms.pop_front();
        }
        if self.locations.is_empty() {
            self.terms.clear();
        }
        self.shrink();
    }

    /// Removes the entries after `after`, which is an entry of the log or was purged.
    pub(crate) fn truncate_after(&mut self, after: LogId) {
        // Possible only in a log whose first entries cannot be read.
        if after.index < self.base.index {
            self.restart_after(after);
        } else {
            self.truncate(after.index);
        }
    }

    /// Removes the entries after index `after`.
    pub(crate) fn truncate(&mut self, after: LogIndex) {
        if after >= self.last().index {
            return;
        }
        self.truncations += 1;
        self.locations.truncate(after.0.saturating_sub(self.base.index.0) as usize);
        while self.terms.back().is_some_and(|(first, _)| *first > after) {
            self.terms.pop_back();
        }
        for range in &mut self.segments {
            range.from = range.from.min(after.next());
        }
    }

    /// Removes all entries. The log continues after `base`.
    pub(crate) fn restart_after(&mut self, base: LogId) {
        self.truncate(LogIndex::ZERO);
        self.locations.clear();
        self.terms.clear();
        self.base = base;
    }

    /// Adds `segment`, to which all entries pushed from now on belong. Its first frame appends after index `base`.
    pub(crate) fn start_segment(&mut self, segment: Arc<Segment>, base: LogIndex) {
        self.segments.push_back(SegmentRange { segment, base, from: self.last().index.next() });
    }

    /// Adds an entry after the last one.
    pub(crate) fn push(&mut self, term: Term, location: RecordLocation) {
        let index = self.last().index.next();
        if self.locations.is_empty() || self.terms.back().is_none_or(|(_, last)| *last != term) {
            self.terms.push_back((index, term));
        }
        self.locations.push_back(location);
    }

    /// Removes the segments that contain no entry after `purged` from the index, and returns them in the order in which their
    /// files may be removed: the newest first, because a damaged segment may need older ones, but none needs a newer one. The
    /// caller passes the purged position and not `base`: in a damaged log, entries before `base` were not purged and may
    /// serve to repair the log.
    pub(crate) fn take_purged_segments(&mut self, purged: LogIndex) -> Vec<Arc<Segment>> {
        let needed = self.segments.iter().rposition(|range| range.base <= purged).unwrap_or(0);
        self.segments.drain(..needed).rev().map(|range| range.segment).collect()
    }

    /// Locations of the entries in `(after, last]`, up to the first one for which `fit` returns false.
    pub(crate) fn runs(
        &self,
        after: LogIndex,
        last: LogIndex,
        mut fit: impl FnMut(RecordLocation) -> bool,
    ) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let last = last.min(self.last().index);
        let mut range = self.segments.partition_point(|range| range.from <= after.next()).saturating_sub(1);
        let Some(first) = after.0.checked_sub(self.base.index.0) else { return runs };
        for (index, location) in (after.next().0..=last.0).zip(self.locations.iter().skip(first as usize)) {
            if !fit(*location) {
                break;
            }
            let mut other = runs.is_empty();
            while self.segments.get(range + 1).is_some_and(|next| next.from.0 <= index) {
                (range, other) = (range + 1, true);
            }
            let Some(segment) = self.segments.get(range).map(|range| &range.segment) else { break };
            let ends_beyond = |run: &Run| {
                let first = run.locations[0];
                u64::from(location.at) + u64::from(location.len) > u64::from(first.at) + RUN_BYTES
            };
            match runs.last_mut() {
                Some(run) if !other && location.len > 0 && !ends_beyond(run) => run.locations.push(*location),
                _ => {
                    let locations = vec![*location];
                    runs.push(Run { segment: segment.clone(), index: LogIndex(index), locations });
                }
            }
        }
        runs
    }

    fn shrink(&mut self) {
        if self.locations.capacity() > 4 * self.locations.len().max(1024) {
            self.locations.shrink_to(2 * self.locations.len());
        }
    }
}

/// Bytes that one call reads at most, except for a longer single record. An entry that is kept in memory keeps the whole
/// buffer of its run.
const RUN_BYTES: u64 = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn term_of_index_is_known_after_truncation_and_purge() {
        let mut index = Index::default();
        for (n, term) in [1, 1, 2, 2, 2, 5].into_iter().enumerate() {
            index.push(Term(term), RecordLocation { at: n as u32, len: 1 });
        }
        let terms =
            |index: &Index| (0..8).map(|n| index.id_of(LogIndex(n)).map(|id| id.term.0)).collect::<Vec<_>>();
        assert_eq!(terms(&index), [Some(0), Some(1), Some(1), Some(2), Some(2), Some(2), Some(5), None]);
        index.truncate(LogIndex(4));
        assert_eq!(index.last(), LogId::new(2, 4));
        index.push(Term(3), RecordLocation { at: 9, len: 1 });
        index.purge(LogId::new(1, 2));
        assert_eq!(terms(&index), [None, None, Some(1), Some(2), Some(2), Some(3), None, None]);
        index.purge(LogId::new(7, 7));
        assert_eq!((index.last(), index.truncations()), (LogId::new(7, 7), 2));
        index.push(Term(7), RecordLocation { at: 10, len: 1 });
        assert_eq!(index.last(), LogId::new(7, 8));
    }
}
