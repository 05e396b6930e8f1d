//! Where each entry is.

use std::{collections::VecDeque, sync::Arc};

use consensus_core::{LogId, LogIndex, Term};

use crate::segment::Segment;

/// Where the record of an entry is in its segment. Of one that is lost the length is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) at: u32,
    pub(crate) len: u32,
}

/// The log as it lies on disk. Entries are in the order of their places, as nothing is ever written but at the end.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Before the first entry.
    base: LogId,
    places: VecDeque<Place>,
    /// The first index of each term; none of them is beyond the end. One from before the base may be the first.
    terms: VecDeque<(LogIndex, Term)>,
    segments: VecDeque<Held>,
    /// Counts what took entries away at the end: who reads piece by piece must not join what was before and after.
    cuts: u64,
}

/// A segment that the log needs.
#[derive(Debug)]
struct Held {
    segment: Arc<Segment>,
    /// The last index before its first frame. Those before it are needed no longer when this is purged; never, if that frame
    /// cannot be read.
    base: LogIndex,
    /// Its entries begin here, and end where those of the next one begin.
    from: LogIndex,
}

/// Entries side by side in one segment.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) segment: Arc<Segment>,
    /// Of the first of them.
    pub(crate) index: LogIndex,
    pub(crate) places: Vec<Place>,
}

impl Index {
    /// The last entry, or the last purged one.
    pub(crate) fn last(&self) -> LogId {
        let index = LogIndex(self.base.index.0 + self.places.len() as u64);
        self.id_of(index).unwrap_or(self.base)
    }

    /// Before the first entry.
    pub(crate) fn base(&self) -> LogIndex {
        self.base.index
    }

    /// The entry at `index`, or the last purged one.
    pub(crate) fn id_of(&self, index: LogIndex) -> Option<LogId> {
        if index == self.base.index {
            return Some(self.base);
        }
        let inside = index > self.base.index && index.0 - self.base.index.0 <= self.places.len() as u64;
        let after = self.terms.partition_point(|(first, _)| *first <= index);
        let (_, term) = self.terms.get(after.checked_sub(1)?)?;
        inside.then_some(LogId { term: *term, index })
    }

    pub(crate) fn cuts(&self) -> u64 {
        self.cuts
    }

    /// All segments, in order.
    pub(crate) fn segments(&self) -> Vec<Arc<Segment>> {
        self.segments.iter().map(|held| held.segment.clone()).collect()
    }

    /// Takes entries away up to `to`; it need not be there.
    pub(crate) fn purge(&mut self, to: LogId) {
        let gone = to.index.0.saturating_sub(self.base.index.0);
        if gone > self.places.len() as u64 {
            self.cuts += 1;
        }
        self.places.drain(..self.places.len().min(usize::try_from(gone).unwrap_or(usize::MAX)));
        if to.index >= self.base.index {
            self.base = to;
        }
        while self.terms.get(1).is_some_and(|(first, _)| *first <= self.base.index.next()) {
            self.terms.pop_front();
        }
        if self.places.is_empty() {
            self.terms.clear();
        }
        self.shrink();
    }

    /// Takes entries away after `after`, which is there or was purged.
    pub(crate) fn cut(&mut self, after: LogId) {
        // Of a log whose first entries cannot be read.
        if after.index < self.base.index {
            self.begin_anew(after);
        } else {
            self.truncate(after.index);
        }
    }

    /// Takes entries away after `after`.
    pub(crate) fn truncate(&mut self, after: LogIndex) {
        if after >= self.last().index {
            return;
        }
        self.cuts += 1;
        self.places.truncate(after.0.saturating_sub(self.base.index.0) as usize);
        while self.terms.back().is_some_and(|(first, _)| *first > after) {
            self.terms.pop_back();
        }
        for held in &mut self.segments {
            held.from = held.from.min(after.next());
        }
    }

    /// Forgets all entries: the log goes on after `base`.
    pub(crate) fn begin_anew(&mut self, base: LogId) {
        self.truncate(LogIndex::ZERO);
        self.places.clear();
        self.terms.clear();
        self.base = base;
    }

    /// What is pushed from now on is in `segment`, whose first frame appends after `base`.
    pub(crate) fn begin_segment(&mut self, segment: Arc<Segment>, base: LogIndex) {
        self.segments.push_back(Held { segment, base, from: self.last().index.next() });
    }

    /// Takes in an entry after the last one.
    pub(crate) fn push(&mut self, term: Term, place: Place) {
        let index = self.last().index.next();
        if self.places.is_empty() || self.terms.back().is_none_or(|(_, last)| *last != term) {
            self.terms.push_back((index, term));
        }
        self.places.push_back(place);
    }

    /// Forgets the segments that hold nothing beyond `purged`, and returns them in the order in which they may go: the newest
    /// first, as the others do no harm without it, and a damaged one may need those before it. In a log that is damaged the base is no
    /// measure: what lies before it was not purged, and may be what somebody mends the log with.
    pub(crate) fn retire(&mut self, purged: LogIndex) -> Vec<Arc<Segment>> {
        let needed = self.segments.iter().rposition(|held| held.base <= purged).unwrap_or(0);
        self.segments.drain(..needed).rev().map(|held| held.segment).collect()
    }

    /// Where the entries in `(after, last]` are, as many as `fit` says.
    pub(crate) fn runs(
        &self,
        after: LogIndex,
        last: LogIndex,
        mut fit: impl FnMut(Place) -> bool,
    ) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let last = last.min(self.last().index);
        let mut held = self.segments.partition_point(|held| held.from <= after.next()).saturating_sub(1);
        let Some(first) = after.0.checked_sub(self.base.index.0) else { return runs };
        for (index, place) in (after.next().0..=last.0).zip(self.places.iter().skip(first as usize)) {
            if !fit(*place) {
                break;
            }
            let mut other = runs.is_empty();
            while self.segments.get(held + 1).is_some_and(|next| next.from.0 <= index) {
                (held, other) = (held + 1, true);
            }
            let Some(segment) = self.segments.get(held).map(|held| &held.segment) else { break };
            let ends_beyond = |run: &Run| {
                let first = run.places[0];
                u64::from(place.at) + u64::from(place.len) > u64::from(first.at) + RUN_BYTES
            };
            match runs.last_mut() {
                Some(run) if !other && place.len > 0 && !ends_beyond(run) => run.places.push(*place),
                _ => {
                    let places = vec![*place];
                    runs.push(Run { segment: segment.clone(), index: LogIndex(index), places });
                }
            }
        }
        runs
    }

    fn shrink(&mut self) {
        if self.places.capacity() > 4 * self.places.len().max(1024) {
            self.places.shrink_to(2 * self.places.len());
        }
    }
}

/// What is read at once, but for a single record that is longer. An entry that is kept keeps as much in memory.
const RUN_BYTES: u64 = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_known_after_truncation_and_purge() {
        let mut index = Index::default();
        for (n, term) in [1, 1, 2, 2, 2, 5].into_iter().enumerate() {
            index.push(Term(term), Place { at: n as u32, len: 1 });
        }
        let terms =
            |index: &Index| (0..8).map(|n| index.id_of(LogIndex(n)).map(|id| id.term.0)).collect::<Vec<_>>();
        assert_eq!(terms(&index), [Some(0), Some(1), Some(1), Some(2), Some(2), Some(2), Some(5), None]);
        index.truncate(LogIndex(4));
        assert_eq!(index.last(), LogId::new(2, 4));
        index.push(Term(3), Place { at: 9, len: 1 });
        index.purge(LogId::new(1, 2));
        assert_eq!(terms(&index), [None, None, Some(1), Some(2), Some(2), Some(3), None, None]);
        index.purge(LogId::new(7, 7));
        assert_eq!((index.last(), index.cuts()), (LogId::new(7, 7), 2));
        index.push(Term(7), Place { at: 10, len: 1 });
        assert_eq!(index.last(), LogId::new(7, 8));
    }
}
