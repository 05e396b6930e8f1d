//! Number of living keys in each segment of the key space.
//!
//! A segment contains the keys from its start up to the start of the next one, about a few hundred. With their counts a
//! read of the newest revision knows the number of keys of any range without a scan of all of them, and passes over
//! segments without living keys. Old revisions have no counts.
//!
//! The counts are written to RocksDB with the batch that changes them, so that a crash, a snapshot or a restart keeps
//! them. Only keys that are created or deleted change them. Nodes may have different segments: results do not depend on
//! where a segment starts.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use consensus_core::codec::CodecError;
use rocksdb::{DB, IteratorMode, ReadOptions, WriteBatch};

use crate::{
    keys,
    view::{Failure, disk},
};

/// Segments of the key space at one revision. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Segments {
    /// Chunks of segments in the order of their starts; at least one.
    chunks: Arc<Vec<Arc<Chunk>>>,
    /// Number of keys above which a segment is split.
    keys_max: u64,
}

/// Some adjacent segments. A change of counts copies only one chunk, and not the starts.
#[derive(Clone, Debug)]
struct Chunk {
    /// First place of each segment; at least one. The very first is empty.
    starts: Arc<Vec<Bytes>>,
    counts: Vec<Count>,
    /// Sum of the living keys.
    living: u64,
}

/// Numbers of keys of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    /// Exact number of keys that are not deleted.
    living: u64,
    /// Approximate number of keys that have any version in RocksDB.
    stored: u64,
}

/// A change of the number of keys in the segment that contains a place.
#[derive(Clone, Debug)]
pub(crate) struct CountChange {
    pub(crate) prefix: Vec<u8>,
    pub(crate) kind: CountKind,
}

/// Kind of a [`CountChange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CountKind {
    /// A key was created that has no stored version.
    New,
    /// A deleted key was created again.
    Again,
    Deleted,
}

/// Position of a segment: chunk, and segment in the chunk.
type Position = (usize, usize);

/// Segments that are completely within a range of places.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct WholeSegments {
    pub(crate) places: Range<Vec<u8>>,
    pub(crate) living: u64,
}

/// Places of a segment with living keys; the last segment has no end.
pub(crate) struct LivingSegment<'a> {
    pub(crate) start: &'a [u8],
    pub(crate) end: Option<&'a [u8]>,
}

impl Segments {
    /// Loads the segments of a store.
    pub(crate) fn load(db: &DB, keys_max: u64) -> Result<Self, Failure> {
        let mut read = ReadOptions::default();
        read.set_total_order_seek(true);
        read.set_iterate_lower_bound(keys::SEGMENTS.start);
        read.set_iterate_upper_bound(keys::SEGMENTS.end);
        let mut segments = Vec::new();
        for item in db.iterator_opt(IteratorMode::Start, read) {
            let (place, record) = item.map_err(disk)?;
            segments.push((keys::segment_start(&place), Count::decode(&record)?));
        }
        if segments.first().is_none_or(|(start, _)| !start.is_empty()) {
            segments.insert(0, (Bytes::new(), Count::default()));
        }
        Ok(Self::of(&segments, keys_max))
    }

    fn of(segments: &[(Bytes, Count)], keys_max: u64) -> Self {
        let chunks = segments.chunks(CHUNK_LEN / 2).map(|part| Arc::new(Chunk::of(part))).collect();
        Self { chunks: Arc::new(chunks), keys_max }
    }

    /// Position of the segment that contains `place`.
    fn find(&self, place: &[u8]) -> Position {
        let chunk = self.chunks.partition_point(|chunk| chunk.starts[0][..] <= *place).saturating_sub(1);
        let starts = &self.chunks[chunk].starts;
        (chunk, starts.partition_point(|start| start[..] <= *place).saturating_sub(1))
    }

    fn start(&self, (chunk, segment): Position) -> &Bytes {
        &self.chunks[chunk].starts[segment]
    }

    fn count(&self, (chunk, segment): Position) -> Count {
        self.chunks[chunk].counts[segment]
    }

    fn next(&self, (chunk, segment): Position) -> Option<Position> {
        if segment + 1 < self.chunks[chunk].counts.len() {
            Some((chunk, segment + 1))
        } else {
            (chunk + 1 < self.chunks.len()).then_some((chunk + 1, 0))
        }
    }

    fn end(&self, position: Position) -> Option<&Bytes> {
        self.next(position).map(|next| self.start(next))
    }

    /// Segments that are completely within a range of places, with their number of living keys: none, if the range is in
    /// two segments. `None` means that it is in one.
    pub(crate) fn within(&self, places: &Range<Vec<u8>>) -> Option<WholeSegments> {
        let mut first = self.find(&places.start);
        if self.start(first)[..] < places.start[..] {
            first = self.next(first)?;
        }
        let is_whole_end = places.end >= keys::all().end;
        let (end, living) = if is_whole_end {
            (places.end.clone(), self.living_between(first, (self.chunks.len(), 0)))
        } else {
            let after = self.find(&places.end);
            (self.start(after).to_vec(), self.living_between(first, after))
        };
        let start = self.start(first).to_vec().max(places.start.clone());
        (start <= end).then_some(WholeSegments { places: start..end, living })
    }

    /// Number of living keys.
    pub(crate) fn living_keys(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.living).sum()
    }

    /// Sum of the living keys of the segments from `first` up to `after`, which is excluded.
    fn living_between(&self, first: Position, after: Position) -> u64 {
        let of = |counts: &[Count]| counts.iter().map(|count| count.living).sum::<u64>();
        if first >= after {
            return 0;
        }
        let head = &self.chunks[first.0];
        if first.0 == after.0 {
            return of(&head.counts[first.1..after.1]);
        }
        let whole = self.chunks[first.0 + 1..after.0].iter().map(|chunk| chunk.living).sum::<u64>();
        let tail = self.chunks.get(after.0).map_or(0, |chunk| of(&chunk.counts[..after.1]));
        of(&head.counts[first.1..]) + whole + tail
    }

    /// The first segment with living keys that contains `place` or is after it.
    pub(crate) fn living_from(&self, place: &[u8]) -> Option<LivingSegment<'_>> {
        let (first, mut segment) = self.find(place);
        for (number, chunk) in self.chunks.iter().enumerate().skip(first) {
            let rest = if chunk.living > 0 { &chunk.counts[segment..] } else { &[] };
            if let Some(found) = rest.iter().position(|count| count.living > 0) {
                return Some(self.living((number, segment + found)));
            }
            segment = 0;
        }
        None
    }

    /// The last segment with living keys that contains `place` or is before it.
    pub(crate) fn living_until(&self, place: &[u8]) -> Option<LivingSegment<'_>> {
        let (last, segment) = self.find(place);
        for (number, chunk) in self.chunks.iter().enumerate().take(last + 1).rev() {
            let after = if number == last { segment + 1 } else { chunk.counts.len() };
            let rest = if chunk.living > 0 { &chunk.counts[..after] } else { &[] };
            if let Some(found) = rest.iter().rposition(|count| count.living > 0) {
                return Some(self.living((number, found)));
            }
        }
        None
    }

    fn living(&self, position: Position) -> LivingSegment<'_> {
        LivingSegment { start: self.start(position), end: self.end(position).map(|end| &end[..]) }
    }

    /// The same with other counts.
    pub(crate) fn with(&self, changes: &[CountChange]) -> Self {
        let mut segments = self.clone();
        for change in changes {
            segments.change_one(change);
        }
        segments
    }

    /// Changes the counts, and adds the records of the changed segments to a RocksDB write. Returns the starts of the
    /// segments that have too many keys.
    pub(crate) fn change(&mut self, changes: &[CountChange], write: &mut WriteBatch) -> Vec<Bytes> {
        let mut changed: Vec<_> = changes.iter().map(|change| self.change_one(change)).collect();
        changed.sort_unstable();
        changed.dedup();
        let mut full = Vec::new();
        for position in changed {
            self.write(position, write);
            if self.count(position).stored > self.keys_max {
                full.push(self.start(position).clone());
            }
        }
        full
    }

    fn change_one(&mut self, change: &CountChange) -> Position {
        let (chunk, segment) = self.find(&change.prefix);
        let position = (chunk, segment);
        let chunk = Arc::make_mut(&mut Arc::make_mut(&mut self.chunks)[chunk]);
        let count = &mut chunk.counts[segment];
        match change.kind {
            CountKind::New | CountKind::Again => {
                count.living += 1;
                count.stored += u64::from(change.kind == CountKind::New);
                chunk.living += 1;
            }
            CountKind::Deleted => {
                count.living = count.living.saturating_sub(1);
                chunk.living = chunk.living.saturating_sub(1);
            }
        }
        position
    }

    /// Removes all living keys in a range of places, of which `first` and `last` are in the segments that are partly
    /// before and after its [whole](Self::within) segments, or all in the only segment. Adds the records to a RocksDB
    /// write.
    pub(crate) fn remove_living(
        &mut self,
        places: &Range<Vec<u8>>,
        (first, last): (u64, u64),
        write: &mut WriteBatch,
    ) {
        let whole = self.within(places);
        self.subtract(&places.start, first, write);
        let Some(WholeSegments { places, .. }) = whole else { return };
        self.subtract(&places.end, last, write);
        let mut at = self.find(&places.start);
        while !places.is_empty() {
            let living = self.count(at).living;
            if living > 0 {
                let start = self.start(at).clone();
                self.subtract(&start, living, write);
            }
            match self.next(at) {
                Some(next) if self.start(next)[..] < places.end[..] => at = next,
                _ => return,
            }
        }
    }

    fn subtract(&mut self, place: &[u8], living: u64, write: &mut WriteBatch) {
        if living == 0 {
            return;
        }
        let (number, segment) = self.find(place);
        let chunk = Arc::make_mut(&mut Arc::make_mut(&mut self.chunks)[number]);
        debug_assert!(chunk.counts[segment].living >= living, "more keys were deleted than there were");
        let living = living.min(chunk.counts[segment].living);
        chunk.counts[segment].living -= living;
        chunk.living -= living;
        self.write((number, segment), write);
    }

    fn write(&self, position: Position, write: &mut WriteBatch) {
        write.put(keys::segment(self.start(position)), self.count(position).encode());
    }

    /// Places of the segment that contains `place`.
    pub(crate) fn places(&self, place: &[u8]) -> Range<Vec<u8>> {
        let position = self.find(place);
        let all = keys::all();
        let start = self.start(position).to_vec().max(all.start);
        start..self.end(position).map_or(all.end, |end| end.to_vec())
    }

    /// Splits the segment that contains `place`, whose stored keys are `keys`: prefixes of their places, and whether
    /// they are living. Adds the records to a RocksDB write.
    pub(crate) fn split(&mut self, place: &[u8], keys: &[(Vec<u8>, bool)], write: &mut WriteBatch) {
        let (number, segment) = self.find(place);
        let part_len = usize::try_from(self.keys_max / 2).unwrap_or(usize::MAX).max(1);
        let mut parts = Vec::new();
        let mut last_of_previous: Option<&[u8]> = None;
        for part in keys.chunks(part_len) {
            let start = match last_of_previous {
                None => self.start((number, segment)).clone(),
                Some(last) => separator(last, &part[0].0),
            };
            let living = part.iter().filter(|(_, is_living)| *is_living).count() as u64;
            parts.push((start, Count { living, stored: part.len() as u64 }));
            last_of_previous = part.last().map(|(prefix, _)| &prefix[..]);
        }
        if parts.is_empty() {
            parts.push((self.start((number, segment)).clone(), Count::default()));
        }
        let living = parts.iter().map(|(_, count)| count.living).sum::<u64>();
        debug_assert_eq!(living, self.count((number, segment)).living, "counts differ from the keys");
        let mut all = self.chunks[number].segments();
        all.splice(segment..=segment, parts.iter().cloned());
        let pieces = if all.len() > CHUNK_LEN { CHUNK_LEN / 2 } else { CHUNK_LEN };
        let chunks = all.chunks(pieces).map(|part| Arc::new(Chunk::of(part)));
        Arc::make_mut(&mut self.chunks).splice(number..=number, chunks);
        for (start, count) in &parts {
            write.put(keys::segment(start), count.encode());
        }
    }

    /// Takes over a recount of the stored keys, and merges adjacent segments with few keys, unless one has living keys
    /// and the other none. Adds the records to a RocksDB write.
    pub(crate) fn recount(&mut self, recount: &Recount, write: &mut WriteBatch) {
        let mut merged: Vec<(Bytes, Count)> = Vec::new();
        let before: Vec<_> = self.chunks.iter().flat_map(|chunk| chunk.segments()).collect();
        let mut is_last_changed = false;
        let put = |(start, count): &(Bytes, Count), write: &mut WriteBatch| {
            write.put(keys::segment(start), count.encode());
        };
        for (start, mut count) in before {
            let stored = recount.apply(&start, count.stored);
            let is_changed = stored != count.stored;
            count.stored = stored;
            match merged.last_mut() {
                Some((_, last)) if last.can_merge(count, self.keys_max) => {
                    last.living += count.living;
                    last.stored += count.stored;
                    write.delete(keys::segment(&start));
                    is_last_changed = true;
                }
                last => {
                    last.filter(|_| is_last_changed).iter().for_each(|last| put(last, write));
                    is_last_changed = is_changed;
                    merged.push((start, count));
                }
            }
        }
        merged.last().filter(|_| is_last_changed).iter().for_each(|last| put(last, write));
        *self = Self::of(&merged, self.keys_max);
    }
}

impl Chunk {
    fn of(segments: &[(Bytes, Count)]) -> Self {
        let (starts, counts): (Vec<_>, Vec<_>) = segments.iter().cloned().unzip();
        let living = counts.iter().map(|count| count.living).sum();
        Self { starts: Arc::new(starts), counts, living }
    }

    fn segments(&self) -> Vec<(Bytes, Count)> {
        self.starts.iter().cloned().zip(self.counts.iter().copied()).collect()
    }
}

impl Count {
    fn encode(self) -> [u8; COUNT_LEN] {
        let mut out = [COUNT_VERSION; COUNT_LEN];
        out[1..9].copy_from_slice(&self.living.to_be_bytes());
        out[9..].copy_from_slice(&self.stored.to_be_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let what = "segment record";
        let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        match bytes.first() {
            Some(&COUNT_VERSION) if bytes.len() == COUNT_LEN => {
                Ok(Self { living: number(1), stored: number(9) })
            }
            Some(&found) if found != COUNT_VERSION => {
                Err(CodecError::Version { what, found, supported: COUNT_VERSION })
            }
            _ => Err(CodecError::Malformed { what, why: format!("it has {} bytes", bytes.len()) }),
        }
    }

    fn can_merge(self, next: Self, keys_max: u64) -> bool {
        (self.living > 0) == (next.living > 0) && self.stored + next.stored <= keys_max / 2
    }
}

/// The shortest start of a segment that separates the versions of the key with prefix `before` from those of `after`.
fn separator(before: &[u8], after: &[u8]) -> Bytes {
    let common = before.iter().zip(after).take_while(|(one, other)| one == other).count();
    Bytes::copy_from_slice(&after[..after.len().min(common + 1)])
}

/// Counts the stored keys of segments while the garbage collector passes them in order.
#[derive(Debug)]
pub(crate) struct Recount {
    /// Start of each segment, its number of stored keys before, and the number that was found.
    found: Vec<(Bytes, u64, u64)>,
    at: usize,
}

impl Recount {
    pub(crate) fn new(segments: &Segments) -> Self {
        let segments = segments.chunks.iter().flat_map(|chunk| chunk.segments());
        Self { found: segments.map(|(start, count)| (start, count.stored, 0)).collect(), at: 0 }
    }

    /// Counts a key that stays. The keys come in order.
    pub(crate) fn count(&mut self, prefix: &[u8]) {
        while self.found.get(self.at + 1).is_some_and(|(start, ..)| start[..] <= *prefix) {
            self.at += 1;
        }
        self.found[self.at].2 += 1;
    }

    /// New number of stored keys of a segment that has `now` at present.
    fn apply(&self, start: &Bytes, now: u64) -> u64 {
        match self.found.binary_search_by(|(of, ..)| of.cmp(start)) {
            // Keys that were added meanwhile were not counted.
            Ok(at) if now >= self.found[at].1 => self.found[at].2 + (now - self.found[at].1),
            _ => now,
        }
    }
}

const COUNT_VERSION: u8 = 1;
/// Version and two numbers.
const COUNT_LEN: usize = 17;
/// Number of segments in a chunk above which it is split.
const CHUNK_LEN: usize = 64;
/// Default of the number of keys above which a segment is split. A count without a scan reads up to two such segments.
pub(crate) const SEGMENT_KEYS_MAX: u64 = 512;

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use consensus_core::{Entry, LogId, NodeId, StateMachine, codec};

    use super::*;
    use crate::{
        Delete, Durability, Found, KvCommand, KvOperation, KvResult, KvStateMachine, Put, Range as KeysRange,
        limits::Amount,
    };

    /// A store with keys `k0000` and so on.
    struct Keys {
        machine: KvStateMachine,
        index: u64,
        _dir: tempfile::TempDir,
    }

    impl Keys {
        fn new(number: u64) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let machine = KvStateMachine::open(dir.path(), NodeId(1), Durability::FromLog).unwrap();
            let mut keys = Self { machine, index: 0, _dir: dir };
            keys.apply((0..number).map(|key| {
                KvOperation::Put(Put { key: name(key), value: "value".into(), ..Put::default() })
            }));
            keys
        }

        fn apply(&mut self, operations: impl Iterator<Item = KvOperation>) {
            for operation in operations {
                self.index += 1;
                let command = codec::encode(1, &KvCommand::new(None, operation));
                let entry = Entry::command(LogId::new(1, self.index), command);
                self.machine.apply(&[entry]).unwrap();
            }
        }

        fn delete(&mut self, keys: Range<u64>) {
            self.apply(keys.step_by(1000).map(|key| {
                let (key, range_end) = (name(key), Some(name(key + 1000)));
                KvOperation::Delete(Delete { key, range_end, ..Delete::default() })
            }));
        }

        fn segments(&self) -> Segments {
            self.machine.executor().store().current().published().segments
        }

        /// Reads a range that may scan at most the keys of two segments.
        fn read(&self, range: KeysRange) -> Found {
            let bound = Amount { keys: 2 * SEGMENT_KEYS_MAX, bytes: 1 << 20 };
            let never = AtomicBool::new(false);
            let answer = self
                .machine
                .executor()
                .read_within(&crate::Caller::Server, &KvOperation::Range(range), bound, &never)
                .unwrap();
            let KvResult::Range(found) = answer.result else { panic!("{answer:?}") };
            found
        }
    }

    fn name(key: u64) -> Bytes {
        format!("k{key:05}").into()
    }

    fn all() -> KeysRange {
        KeysRange { key: "k".into(), range_end: Some("l".into()), ..KeysRange::default() }
    }

    #[test]
    fn counts_and_first_keys_are_read_without_a_scan() {
        let mut keys = Keys::new(20_000);
        let part = KeysRange { key: name(77), range_end: Some(name(19_001)), ..KeysRange::default() };
        assert_eq!(keys.read(KeysRange { count_only: true, ..part.clone() }).count, 18_924);
        keys.delete(0..15_000);
        keys.delete(16_000..20_000);
        for (descending, first) in [(false, 15_000), (true, 15_999)] {
            let found = keys.read(KeysRange { limit: 1, descending, ..all() });
            assert_eq!((found.count, found.more), (1000, true));
            assert_eq!(found.kvs[0].key, name(first));
        }
        let found = keys.read(KeysRange { limit: 1, ..part });
        assert_eq!((found.count, &found.kvs[0].key), (1000, &name(15_000)));
    }

    #[test]
    fn segments_of_removed_keys_are_merged() {
        let mut keys = Keys::new(20_000);
        let before = keys.segments().chunks.iter().map(|chunk| chunk.counts.len()).sum::<usize>();
        assert!((40..160).contains(&before), "{before}");
        keys.delete(0..19_000);
        let revision = keys.machine.executor().revision().unwrap();
        keys.apply([KvOperation::Compact { revision }].into_iter());
        while !keys.machine.is_collected() {
            std::thread::yield_now();
        }
        // The recount follows the last write of the collection; the next batch takes it over.
        let generation = keys.machine.executor().store().current();
        while !generation.has_recount() {
            std::thread::yield_now();
        }
        keys.apply([KvOperation::Put(Put { key: "z".into(), ..Put::default() })].into_iter());
        let segments = keys.segments();
        let after = segments.chunks.iter().map(|chunk| chunk.counts.len()).sum::<usize>();
        assert!(after <= 9, "{after} segments for 1,001 keys");
        let reloaded = Segments::load(generation.db(), SEGMENT_KEYS_MAX).unwrap();
        let counts = |segments: &Segments| -> Vec<_> {
            segments.chunks.iter().flat_map(|chunk| chunk.segments()).collect()
        };
        assert_eq!(counts(&reloaded), counts(&segments));
        assert_eq!(keys.read(KeysRange { count_only: true, ..all() }).count, 1000);
    }

    #[test]
    fn separator_is_after_one_key_and_not_after_the_next() {
        for (before, after) in [("a", "b"), ("a", "aa"), ("a\0", "a\u{1}"), ("abc", "abd"), ("a", "a\0")] {
            let (before, after) = (keys::prefix(before.as_bytes()), keys::prefix(after.as_bytes()));
            let start = separator(&before, &after);
            assert!(keys::version_of(before, 0)[..] < start[..] && start[..] <= after[..]);
        }
    }
}
