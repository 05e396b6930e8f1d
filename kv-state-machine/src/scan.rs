//! Scans over the keys of a range that visit one version of each key.
//!
//! A scan moves from key to key, not from version to version: the versions of a key are skipped with a seek. So its
//! cost depends on the number of keys, which [`Work`] bounds.

use std::ops::{Bound, ControlFlow, Range};

use bytes::Bytes;
use rocksdb::{DBRawIteratorWithThreadMode, DBWithThreadMode, ReadOptions, SingleThreaded};

use crate::{
    KeyRange,
    execute::ExecuteError,
    keys::{self, Record},
    segments::Segments,
    view::{Failure, Overlay, Version, View, disk},
    work::Work,
};

/// Parameters of a scan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scan<'a> {
    /// Revision to read at: each key is visited in its newest version at or before this revision.
    pub(crate) revision: u64,
    pub(crate) descending: bool,
    /// Whether values are read. If not, the records that `f` receives have empty values, which are never copied.
    pub(crate) values: bool,
    /// Segments at the revision: keys in segments without living keys are not visited. `None` visits all keys.
    pub(crate) segments: Option<&'a Segments>,
}

impl View<'_> {
    /// Calls `f` with the version of every key of the range that is in force at the revision, including deletions,
    /// until `f` returns `Break`. Counts the scanned keys and bytes in `work`.
    ///
    /// # Errors
    /// The bound of `work` is exceeded. Then `f` has not received all versions.
    pub(crate) fn visit_keys(
        &self,
        range: &KeyRange,
        scan: &Scan<'_>,
        work: &Work,
        mut f: impl FnMut(Version) -> ControlFlow<()>,
    ) -> Result<(), ExecuteError> {
        if range.range_end.is_some() {
            return self.visit_places(keys::bounds(range), scan, work, f);
        }
        let mut version = self.version_of_key(&range.key, scan.revision)?;
        work.count_key(range.key.len() + version.as_ref().map_or(0, |version| size_of(&version.record)))?;
        if let Some(Version { record: Record::Live(kv), .. }) = version.as_mut().filter(|_| !scan.values) {
            kv.value.clear();
        }
        if let Some(version) = version {
            let _ = f(version);
        }
        Ok(())
    }

    /// Same as [`visit_keys`](Self::visit_keys) for a range of places. It does not separate the versions of a key.
    pub(crate) fn visit_places(
        &self,
        places: Range<Vec<u8>>,
        scan: &Scan<'_>,
        work: &Work,
        mut f: impl FnMut(Version) -> ControlFlow<()>,
    ) -> Result<(), ExecuteError> {
        if places.is_empty() {
            return Ok(());
        }
        let mut cursor = Cursor::new(self, places, scan.descending);
        let (mut prefix, mut passed_over) = (Vec::new(), PassedOver::default());
        while let Some((place, _)) = cursor.current()? {
            if let Some(segments) = scan.segments {
                match passed_over.next(segments, place, scan.descending) {
                    Next::Here => {}
                    Next::At(place) => {
                        cursor.move_to(&place);
                        continue;
                    }
                    Next::End => break,
                }
            }
            let (found, _) = keys::split_place(place)?;
            prefix.clear();
            prefix.extend_from_slice(found);
            let passed = self.pass_key(&mut cursor, &prefix, scan)?;
            if passed.newest.is_none_or(|(revision, is_deleted)| work.is_garbage(revision, is_deleted)) {
                work.note_garbage()?;
            } else {
                work.count_key(prefix.len() + passed.in_force.as_ref().map_or(0, |found| found.value_bytes))?;
            }
            let Some(found) = passed.in_force else { continue };
            let key = keys::key_of_prefix(&prefix)?;
            let record = Record::decode(key.clone(), found.revision, &found.record)?;
            if record != Record::Deleted {
                work.note_living(prefix.len() + found.value_bytes);
            }
            if f(Version { key, revision: found.revision, record }).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Keys that have any version in a range of places: prefixes of their places, and whether they are living.
    pub(crate) fn stored_keys(&self, places: Range<Vec<u8>>) -> Result<Vec<(Vec<u8>, bool)>, Failure> {
        let scan = Scan { revision: u64::MAX, descending: false, values: false, segments: None };
        let mut cursor = Cursor::new(self, places, false);
        let mut keys = Vec::new();
        while let Some((place, _)) = cursor.current()? {
            let prefix = keys::split_place(place)?.0.to_vec();
            let newest = self.pass_key(&mut cursor, &prefix, &scan)?.newest;
            keys.push((prefix, newest.is_some_and(|(_, is_deleted)| !is_deleted)));
        }
        Ok(keys)
    }

    /// Keys in a range of places that are living at a revision, with their leases: those among the first `keys_max` keys
    /// of any kind, or fewer if their values are large. Also the prefix of the next key, if there is one.
    pub(crate) fn living_keys(
        &self,
        places: Range<Vec<u8>>,
        revision: u64,
        keys_max: u64,
    ) -> Result<(Vec<(Bytes, i64)>, Option<Vec<u8>>), Failure> {
        let (mut living, mut visited, mut bytes) = (Vec::new(), 0, 0);
        if places.is_empty() {
            return Ok((living, None));
        }
        let scan = Scan { revision, descending: false, values: false, segments: None };
        let mut cursor = Cursor::new(self, places, false);
        while let Some((place, _)) = cursor.current()? {
            let prefix = keys::split_place(place)?.0.to_vec();
            if visited == keys_max || bytes > LIVING_BYTES_MAX {
                return Ok((living, Some(prefix)));
            }
            visited += 1;
            let Some(found) = self.pass_key(&mut cursor, &prefix, &scan)?.in_force else { continue };
            bytes += prefix.len() + found.value_bytes;
            let counts = keys::counts(&found.record)?;
            if counts.version > 0 {
                living.push((keys::key_of_prefix(&prefix)?, counts.lease_id));
            }
        }
        Ok((living, None))
    }

    /// Moves the cursor over all versions of a key to the next key.
    fn pass_key(&self, cursor: &mut Cursor<'_>, prefix: &[u8], scan: &Scan<'_>) -> Result<Passed, Failure> {
        let mut passed = Passed::default();
        let mut steps = 0;
        while let Some((place, record)) = cursor.current()? {
            let (of, revision) = keys::split_place(place)?;
            if of != prefix {
                return self.covered(passed, prefix, scan);
            }
            if steps == STEPS_MAX {
                break;
            }
            passed.take(revision, record, scan)?;
            // In an ascending scan the first version at or before the revision is the one in force. No other version
            // matters.
            if !scan.descending && passed.in_force.is_some() {
                steps = steps.max(STEPS_MAX - 2);
            }
            steps += 1;
            cursor.step();
        }
        if cursor.current()?.is_some() {
            self.look_up(&mut passed, prefix, scan)?;
            cursor.skip_key(prefix);
        }
        self.covered(passed, prefix, scan)
    }

    /// Applies the deletions of ranges to the versions of a key.
    fn covered(&self, mut passed: Passed, prefix: &[u8], scan: &Scan<'_>) -> Result<Passed, Failure> {
        if self.deletions.is_empty() {
            return Ok(passed);
        }
        if let Some((revision, false)) = passed.newest
            && let Some(deleted_at) = self.deletions.deleted_at(prefix, revision, u64::MAX)
        {
            passed.newest = Some((deleted_at, true));
        }
        if let Some(found) = &passed.in_force
            && !keys::is_deleted(&found.record)?
            && let Some(deleted_at) = self.deletions.deleted_at(prefix, found.revision, scan.revision)
        {
            passed.in_force = Some(InForce::new(deleted_at, &Record::Deleted.encode(), scan));
        }
        Ok(passed)
    }

    /// Looks up the versions that were not passed, for a key with many versions.
    fn look_up(&self, passed: &mut Passed, prefix: &[u8], scan: &Scan<'_>) -> Result<(), Failure> {
        if scan.descending
            && let Some((revision, record)) = self.newest(prefix, u64::MAX)?
        {
            passed.newest = Some((revision, keys::is_deleted(&record)?));
        }
        if scan.descending || passed.in_force.is_none() {
            let found = self.newest(prefix, scan.revision)?;
            passed.in_force = found.map(|(revision, record)| InForce::new(revision, &record, scan));
        }
        Ok(())
    }
}

fn size_of(record: &Record) -> usize {
    match record {
        Record::Live(kv) => kv.value.len(),
        Record::Deleted => 0,
    }
}

/// The version of a key that is in force at the revision of a scan.
struct InForce {
    revision: u64,
    /// Record, without its value if the scan does not read values.
    record: Bytes,
    /// Size of the stored value in bytes; 0 for a deletion.
    value_bytes: usize,
}

impl InForce {
    fn new(revision: u64, record: &[u8], scan: &Scan<'_>) -> Self {
        let kept = if scan.values { record } else { keys::without_value(record) };
        let value_bytes = record.len() - keys::without_value(record).len();
        Self { revision, record: Bytes::copy_from_slice(kept), value_bytes }
    }
}

/// Versions of a key that matter for a scan.
#[derive(Default)]
struct Passed {
    /// Revision of the newest version, and whether it is a deletion.
    newest: Option<(u64, bool)>,
    in_force: Option<InForce>,
}

impl Passed {
    fn take(&mut self, revision: u64, record: &[u8], scan: &Scan<'_>) -> Result<(), Failure> {
        if scan.descending || self.newest.is_none() {
            self.newest = Some((revision, keys::is_deleted(record)?));
        }
        // The newest version at or before the revision is in force: the first one of an ascending scan, the last one of
        // a descending scan.
        if revision <= scan.revision && (scan.descending || self.in_force.is_none()) {
            self.in_force = Some(InForce::new(revision, record, scan));
        }
        Ok(())
    }
}

type Db = DBWithThreadMode<SingleThreaded>;

/// A position in the ordered union of the versions in RocksDB and those added by the batch in progress. If both have a
/// version at the same place, the added one takes precedence: it overwrites within one revision.
struct Cursor<'a> {
    stored: DBRawIteratorWithThreadMode<'a, Db>,
    overlay: &'a Overlay,
    added: Option<(&'a Vec<u8>, &'a Bytes)>,
    bounds: Range<Vec<u8>>,
    descending: bool,
}

impl<'a> Cursor<'a> {
    fn new(view: &View<'a>, bounds: Range<Vec<u8>>, descending: bool) -> Self {
        let mut read = ReadOptions::default();
        read.set_total_order_seek(true);
        read.set_iterate_lower_bound(bounds.start.clone());
        read.set_iterate_upper_bound(bounds.end.clone());
        let mut stored = view.source.raw(read);
        if descending {
            stored.seek_to_last();
        } else {
            stored.seek_to_first();
        }
        let mut cursor = Self { stored, overlay: view.overlay, added: None, bounds, descending };
        cursor.added = cursor.added_within(Bound::Unbounded);
        cursor
    }

    /// First added version after `from` in the direction of the scan.
    fn added_within(&self, from: Bound<&[u8]>) -> Option<(&'a Vec<u8>, &'a Bytes)> {
        if self.overlay.is_empty() {
            return None;
        }
        let (start, end) = (Bound::Included(&self.bounds.start[..]), Bound::Excluded(&self.bounds.end[..]));
        if self.descending {
            let end = if from == Bound::Unbounded { end } else { from };
            self.overlay.range::<[u8], _>((start, end)).next_back()
        } else {
            let start = if from == Bound::Unbounded { start } else { from };
            self.overlay.range::<[u8], _>((start, end)).next()
        }
    }

    /// Whether the stored and the added version are at the current position.
    fn here(&self) -> Result<(bool, bool), Failure> {
        let Some(stored) = self.stored.key() else {
            self.stored.status().map_err(disk)?;
            return Ok((false, self.added.is_some()));
        };
        let Some((added, _)) = self.added else { return Ok((true, false)) };
        let order = if self.descending { added[..].cmp(stored) } else { stored.cmp(&added[..]) };
        Ok((order.is_le(), order.is_ge()))
    }

    /// Place and record at the current position.
    fn current(&self) -> Result<Option<(&[u8], &[u8])>, Failure> {
        Ok(match self.here()? {
            (_, true) => self.added.map(|(place, record)| (&place[..], &record[..])),
            (true, false) => self.stored.item(),
            (false, false) => None,
        })
    }

    fn step(&mut self) {
        let Ok((stored, added)) = self.here() else { return };
        if stored && self.descending {
            self.stored.prev();
        } else if stored {
            self.stored.next();
        }
        if let (true, Some((place, _))) = (added, self.added) {
            self.added = self.added_within(Bound::Excluded(place));
        }
    }

    /// Moves past the versions of the key with this prefix.
    fn skip_key(&mut self, prefix: &[u8]) {
        if self.descending {
            self.move_to(prefix);
        } else {
            self.move_to(&keys::end_of_prefix(prefix));
        }
    }

    /// Moves forward to the first version after `place`, or in a descending scan to the last version before it.
    /// `place` is not the place of a version: it is a prefix, the end of a prefix, or the start of a segment.
    fn move_to(&mut self, place: &[u8]) {
        if self.descending {
            // The lower bound is not the place of a version, either.
            self.stored.seek_for_prev(place);
            self.added =
                (place > &self.bounds.start[..]).then(|| self.added_within(Bound::Excluded(place))).flatten();
        } else {
            self.stored.seek(place);
            self.added =
                (place < &self.bounds.end[..]).then(|| self.added_within(Bound::Included(place))).flatten();
        }
    }
}

/// Passes over segments without living keys.
#[derive(Default)]
struct PassedOver {
    /// End of the current segment in the direction of the scan, or `None` if it has none. Unset before the first key.
    until: Option<Option<Vec<u8>>>,
}

/// Where a scan continues.
enum Next {
    Here,
    At(Vec<u8>),
    End,
}

impl PassedOver {
    fn next(&mut self, segments: &Segments, place: &[u8], descending: bool) -> Next {
        let is_within = |until: &Option<Vec<u8>>| match until {
            None => true,
            Some(until) if descending => place >= &until[..],
            Some(until) => place < &until[..],
        };
        if self.until.as_ref().is_some_and(is_within) {
            return Next::Here;
        }
        let living = if descending { segments.living_until(place) } else { segments.living_from(place) };
        let Some(living) = living else { return Next::End };
        if descending {
            self.until = Some(Some(living.start.to_vec()));
            living.end.filter(|end| *end <= place).map_or(Next::Here, |end| Next::At(end.to_vec()))
        } else {
            self.until = Some(living.end.map(<[u8]>::to_vec));
            if living.start > place { Next::At(living.start.to_vec()) } else { Next::Here }
        }
    }
}

/// Bytes of keys and values after which [`View::living_keys`] ends.
const LIVING_BYTES_MAX: usize = 4 << 20;
/// Number of versions of a key that are passed one by one. For more, a seek costs less.
const STEPS_MAX: u32 = 6;
