//! Scans over the keys of a range that visit one version of each key.
//!
//! A scan moves from key to key, not from version to version: the versions of a key are skipped with a seek. So its
//! cost depends on the number of keys, which [`Work`] bounds.

use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use rocksdb::{DBRawIteratorWithThreadMode, DBWithThreadMode, ReadOptions, SingleThreaded};

use crate::{
    KeyRange,
    execute::ExecuteError,
    keys::{self, Record},
    view::{Failure, Overlay, Version, View, disk},
    work::Work,
};

/// Parameters of a scan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scan<'a> {
    pub(crate) range: &'a KeyRange,
    /// Revision to read at: each key is visited in its newest version at or before this revision.
    pub(crate) revision: u64,
    pub(crate) descending: bool,
    /// Whether values are read. If not, the records that `f` receives have empty values, which are never copied.
    pub(crate) values: bool,
}

impl View<'_> {
    /// Calls `f` with the version of every key of the range that is in force at the revision, including deletions,
    /// until `f` returns `Break`. Counts the scanned keys and bytes in `work`.
    ///
    /// # Errors
    /// The bound of `work` is exceeded. Then `f` has not received all versions.
    pub(crate) fn visit_keys(
        &self,
        scan: &Scan<'_>,
        work: &Work,
        mut f: impl FnMut(Version) -> ControlFlow<()>,
    ) -> Result<(), ExecuteError> {
        if scan.range.range_end.is_none() {
            let mut version = self.version_of_key(&scan.range.key, scan.revision)?;
            work.count_key(
                scan.range.key.len() + version.as_ref().map_or(0, |version| size_of(&version.record)),
            )?;
            if let Some(Version { record: Record::Live(kv), .. }) = version.as_mut().filter(|_| !scan.values)
            {
                kv.value.clear();
            }
            if let Some(version) = version {
                let _ = f(version);
            }
            return Ok(());
        }
        let bounds = keys::bounds(scan.range);
        if bounds.is_empty() {
            return Ok(());
        }
        let mut cursor = Cursor::new(self, bounds, scan.descending);
        let mut prefix = Vec::new();
        while let Some((place, _)) = cursor.current()? {
            let (found, _) = keys::split_place(place)?;
            prefix.clear();
            prefix.extend_from_slice(found);
            let passed = self.pass_key(&mut cursor, &prefix, scan)?;
            if passed.newest.is_some_and(|(revision, is_deleted)| !work.is_garbage(revision, is_deleted)) {
                work.count_key(prefix.len() + passed.in_force.as_ref().map_or(0, |found| found.value_bytes))?;
            }
            let Some(found) = passed.in_force else { continue };
            let key = keys::key_of_prefix(&prefix)?;
            let record = Record::decode(key.clone(), found.revision, &found.record)?;
            if f(Version { key, revision: found.revision, record }).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Moves the cursor over all versions of a key to the next key.
    fn pass_key(&self, cursor: &mut Cursor<'_>, prefix: &[u8], scan: &Scan<'_>) -> Result<Passed, Failure> {
        let mut passed = Passed::default();
        let mut steps = 0;
        while let Some((place, record)) = cursor.current()? {
            let (of, revision) = keys::split_place(place)?;
            if of != prefix {
                return Ok(passed);
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
    bounds: std::ops::Range<Vec<u8>>,
    descending: bool,
}

impl<'a> Cursor<'a> {
    fn new(view: &View<'a>, bounds: std::ops::Range<Vec<u8>>, descending: bool) -> Self {
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

    /// Moves past the versions of the key with this prefix. No place is equal to a prefix or to the end of a prefix.
    fn skip_key(&mut self, prefix: &[u8]) {
        if self.descending {
            // The lower bound is a prefix, too; no version is before it.
            self.stored.seek_for_prev(prefix);
            self.added = (prefix > &self.bounds.start[..])
                .then(|| self.added_within(Bound::Excluded(prefix)))
                .flatten();
        } else {
            let end = keys::end_of_prefix(prefix);
            self.stored.seek(&end);
            self.added = (end < self.bounds.end).then(|| self.added_within(Bound::Included(&end))).flatten();
        }
    }
}

/// Number of versions of a key that are passed one by one. For more, a seek costs less.
const STEPS_MAX: u32 = 6;
