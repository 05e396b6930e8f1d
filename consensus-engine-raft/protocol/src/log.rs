//! The log in the protocol's memory: the term and size of each entry.

use std::{
    collections::VecDeque,
    hash::{Hash, Hasher},
    ops::Range,
    sync::Arc,
};

use consensus_core::{Leadership, LeadershipId, LogId, LogIndex, LogState, Membership, SnapshotMeta, Term};
use serde::{Deserialize, Serialize};

use crate::{
    EntryInfo,
    model::{Names, hash_membership},
};

/// Entries in `(purged, last]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Log {
    purged: LogId,
    entries: VecDeque<Position>,
    /// Total size of `entries`.
    size_bytes: u64,
    /// Configurations, by the index from which they are in force: the one at `purged`, then those in the log (I10).
    memberships: VecDeque<(LogIndex, Arc<Membership>)>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Position {
    term: Term,
    size_bytes: u64,
}

impl Log {
    pub(crate) fn new(state: LogState) -> Self {
        let first = (state.purged.last.index, state.purged.membership);
        Self {
            purged: state.purged.last,
            size_bytes: state.entries.iter().map(|(_, size)| size).sum(),
            entries: state
                .entries
                .iter()
                .map(|(id, size)| Position { term: id.term, size_bytes: *size })
                .collect(),
            memberships: std::iter::once(first)
                .chain(state.memberships)
                .map(|(i, m)| (i, Arc::new(m)))
                .collect(),
        }
    }

    pub(crate) fn purged(&self) -> LogId {
        self.purged
    }

    pub(crate) fn last(&self) -> LogId {
        let term = self.entries.back().map_or(self.purged.term, |position| position.term);
        LogId { term, index: LogIndex(self.purged.index.0 + self.entries.len() as u64) }
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Index after which the entries have at most `bytes_max` bytes together.
    pub(crate) fn tail(&self, bytes_max: u64) -> LogIndex {
        let mut bytes = 0;
        let fit = self.entries.iter().rev().take_while(|position| {
            bytes += position.size_bytes;
            bytes <= bytes_max
        });
        LogIndex(self.last().index.0 - fit.count() as u64)
    }

    fn position(&self, index: LogIndex) -> Option<&Position> {
        let offset = index.0.checked_sub(self.purged.index.0 + 1)?;
        self.entries.get(usize::try_from(offset).ok()?)
    }

    /// Log id of the entry at `index`, which may be the last purged entry.
    pub(crate) fn id_at(&self, index: LogIndex) -> Option<LogId> {
        if index == self.purged.index {
            return Some(self.purged);
        }
        self.position(index).map(|position| LogId { term: position.term, index })
    }

    /// Whether the log has the entry `id`. Index 0 with term 0 stands for the position before the first entry, which every
    /// log that was never purged contains.
    pub(crate) fn contains(&self, id: LogId) -> bool {
        self.id_at(id.index) == Some(id)
    }

    /// Last entry whose index is at most `index` and whose term is at most `term`: the last position at which two logs may
    /// agree. Terms never decrease along a log, so a binary search finds it.
    pub(crate) fn last_not_after(&self, index: LogIndex, term: Term) -> LogId {
        let within = index.0.min(self.last().index.0).saturating_sub(self.purged.index.0) as usize;
        let (front, back) = self.entries.as_slices();
        let cut = front.len().min(within);
        let not_after = |run: &[Position]| run.partition_point(|position| position.term <= term);
        let mut count = not_after(&front[..cut]);
        if count == cut {
            count += not_after(&back[..within - cut]);
        }
        self.id_at(LogIndex(self.purged.index.0 + count as u64)).unwrap_or(self.purged)
    }

    /// End and size of the longest run of entries after `after` within the limits; the run has at least one entry.
    pub(crate) fn run_after(&self, after: LogIndex, entries_max: usize, bytes_max: u64) -> (LogIndex, u64) {
        let from = after.since(self.purged.index) as usize;
        let (mut count, mut bytes) = (0, 0);
        for position in self.entries.range(from..).take(entries_max) {
            if bytes > 0 && bytes + position.size_bytes > bytes_max {
                break;
            }
            bytes += position.size_bytes;
            count += 1;
        }
        (LogIndex(after.0 + count), bytes)
    }

    pub(crate) fn push(&mut self, entry: EntryInfo) -> LogId {
        self.extend(std::iter::once(entry));
        self.last()
    }

    pub(crate) fn extend(&mut self, entries: impl Iterator<Item = EntryInfo>) {
        let mut last = self.last().index;
        let (memberships, size) = (&mut self.memberships, &mut self.size_bytes);
        self.entries.extend(entries.map(|EntryInfo { term, size_bytes, membership }| {
            last = last.next();
            *size += size_bytes;
            if let Some(membership) = membership {
                memberships.push_back((last, membership));
            }
            Position { term, size_bytes }
        }));
    }

    pub(crate) fn truncate_after(&mut self, index: LogIndex) {
        self.remove(index.since(self.purged.index) as usize..self.entries.len());
        while self.memberships.len() > 1 && self.memberships.back().is_some_and(|(at, _)| *at > index) {
            self.memberships.pop_back();
        }
    }

    /// Purges the entries up to `index`, which is in the log.
    pub(crate) fn purge(&mut self, index: LogIndex) -> Option<SnapshotMeta> {
        let last = self.id_at(index)?;
        let membership = self.membership_at(index);
        self.remove(0..index.since(self.purged.index) as usize);
        self.purged = last;
        while self.memberships.get(1).is_some_and(|(at, _)| *at <= index) {
            self.memberships.pop_front();
        }
        Some(SnapshotMeta { last, membership: (*membership).clone() })
    }

    pub(crate) fn membership_entry(&self, index: LogIndex) -> Option<Arc<Membership>> {
        let found = self.memberships.iter().find(|(at, _)| *at == index && index > self.purged.index);
        found.map(|(_, membership)| membership.clone())
    }

    pub(crate) fn digest(&self, names: Names<'_>, hasher: &mut impl Hasher) {
        let Self { purged, entries, size_bytes, memberships } = self;
        (purged, entries.len(), size_bytes).hash(hasher);
        entries.iter().for_each(|Position { term, size_bytes }| (term, size_bytes).hash(hasher));
        for (at, membership) in memberships {
            at.hash(hasher);
            hash_membership(membership, names, hasher);
        }
    }

    fn remove(&mut self, range: Range<usize>) {
        self.size_bytes -= self.entries.drain(range).map(|position| position.size_bytes).sum::<u64>();
    }

    /// Restarts the log after a snapshot.
    pub(crate) fn reset(&mut self, meta: &SnapshotMeta) {
        *self = Self::new(LogState { purged: meta.clone(), ..LogState::default() });
    }

    /// The configuration in force: the last one in the log (I10).
    pub(crate) fn membership(&self) -> &Arc<Membership> {
        &self.memberships[self.memberships.len() - 1].1
    }

    /// The configuration in force, with the index of its entry.
    pub(crate) fn newest_membership(&self) -> (LogIndex, &Arc<Membership>) {
        let (at, membership) = &self.memberships[self.memberships.len() - 1];
        (*at, membership)
    }

    /// Position in `memberships` of the configuration in force at `index`: for a purged index the oldest one.
    fn membership_position(&self, index: LogIndex) -> usize {
        self.memberships.iter().rposition(|(at, _)| *at <= index).unwrap_or(0)
    }

    pub(crate) fn membership_at(&self, index: LogIndex) -> Arc<Membership> {
        self.memberships[self.membership_position(index)].1.clone()
    }

    /// The configurations in force at `index` and after it, in order.
    pub(crate) fn memberships_from(&self, index: LogIndex) -> impl Iterator<Item = &Membership> {
        self.memberships.range(self.membership_position(index)..).map(|(_, membership)| &**membership)
    }

    /// The leadership to which the entry at `index` belongs, which may be purged; `None` if it is not among the latest ones.
    pub(crate) fn leadership_at(&self, index: LogIndex) -> Option<Leadership> {
        self.memberships[self.membership_position(index)].1.leadership_at(index)
    }

    /// Whether the log has the entry `id` of `leadership`. Every entry may be of an unknown leadership.
    pub(crate) fn contains_from(&self, leadership: LeadershipId, id: LogId) -> bool {
        self.contains(id)
            && self.leadership_at(id.index).is_none_or(|own| own.id.is_compatible_with(leadership))
    }

    /// Last entry before the leadership of the entry at `index`, if it is not purged.
    pub(crate) fn before_leadership(&self, index: LogIndex) -> LogId {
        let before = self.leadership_at(index).map(|own| own.first.index.prev());
        before.and_then(|before| self.id_at(before)).unwrap_or(self.purged)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn log_of(purged: LogId, terms: &[u64]) -> Log {
        let mut log = Log::new(LogState {
            purged: SnapshotMeta { last: purged, ..SnapshotMeta::default() },
            ..LogState::default()
        });
        for term in terms {
            log.push(EntryInfo { term: Term(*term), size_bytes: 10, membership: None });
        }
        log
    }

    #[test]
    fn configuration_is_rolled_back_with_its_entry() {
        let mut log = log_of(LogId::ZERO, &[1]);
        let new = Arc::new(Membership::of_voters([1, 2, 3]));
        log.push(EntryInfo { term: Term(1), size_bytes: 1, membership: Some(new.clone()) });
        assert_eq!(*log.membership(), new);
        log.truncate_after(LogIndex(2));
        assert_eq!(*log.membership(), new, "a truncation of later entries keeps it");
        log.truncate_after(LogIndex(1));
        assert_eq!(**log.membership(), Membership::default());
    }

    #[test]
    fn purge_keeps_configuration_in_force_at_the_purged_position() {
        let configuration = |voters| Arc::new(Membership::of_voters(0..voters));
        let mut log = log_of(LogId::ZERO, &[]);
        for voters in 1..=4 {
            log.push(EntryInfo { term: Term(1), size_bytes: 1, membership: Some(configuration(voters)) });
            log.push(EntryInfo { term: Term(1), size_bytes: 1, membership: None });
        }
        for (purged, voters, left) in [(1, 1, 4), (3, 2, 3), (6, 3, 2)] {
            let meta = log.purge(LogIndex(purged)).unwrap();
            assert_eq!(
                (meta.last, meta.membership),
                (LogId::new(1, purged), (*configuration(voters)).clone())
            );
            assert_eq!(log.membership_at(LogIndex(purged)), configuration(voters));
            assert_eq!((log.membership(), log.memberships.len()), (&configuration(4), left));
        }
        assert_eq!(log.membership_at(LogIndex(7)), configuration(4));
    }

    #[test]
    fn missing_entry_matches_no_log_id() {
        // C15: the term of a missing entry must not be 0.
        let log = log_of(LogId::new(3, 5), &[3, 4]);
        assert!(!log.contains(LogId::new(0, 9)));
        assert!(!log.contains(LogId::new(0, 0)));
        assert!(log.contains(LogId::new(3, 5)));
    }

    #[test]
    fn size_is_the_sum_of_the_entries_in_the_log() {
        let mut log = log_of(LogId::new(3, 5), &[3, 4, 4, 4]);
        assert_eq!((log.size_bytes(), log.tail(25), log.tail(0)), (40, LogIndex(7), LogIndex(9)));
        log.truncate_after(LogIndex(8));
        assert_eq!((log.size_bytes(), log.tail(10)), (30, LogIndex(7)));
        log.purge(LogIndex(6));
        assert_eq!((log.size_bytes(), log.tail(99)), (20, LogIndex(6)));
    }

    #[test]
    fn run_has_at_least_one_entry() {
        let log = log_of(LogId::ZERO, &[1, 1, 1]);
        assert_eq!(log.run_after(LogIndex(0), 10, 1), (LogIndex(1), 10));
        assert_eq!(log.run_after(LogIndex(0), 10, 20), (LogIndex(2), 20));
        assert_eq!(log.run_after(LogIndex(3), 10, 20), (LogIndex(3), 0));
    }

    proptest! {
        #[test]
        fn last_not_after_equals_result_of_linear_scan(
            mut terms in proptest::collection::vec(1u64..5, 0..12), index in 0u64..16, term in 0u64..6, split in 0usize..12,
        ) {
            terms.sort_unstable();
            let purged = split.min(terms.len());
            let base = LogId::new(if purged == 0 { 0 } else { terms[purged - 1] }, purged as u64);
            // Purged in a second step, so that the ring buffer of positions wraps around.
            let mut log = log_of(LogId::ZERO, &terms[..purged]);
            log.purge(base.index);
            for term in &terms[purged..] {
                log.push(EntryInfo { term: Term(*term), size_bytes: 10, membership: None });
            }
            let scan = (purged + 1..=terms.len()).rev()
                .find(|i| *i as u64 <= index && terms[i - 1] <= term)
                .map_or(base, |i| LogId::new(terms[i - 1], i as u64));
            prop_assert_eq!(log.last_not_after(LogIndex(index), Term(term)), scan);
        }
    }
}
