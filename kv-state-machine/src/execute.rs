//! Executes one operation on a [`View`]: completely, or without any effect.

use std::{
    cmp::Ordering,
    collections::BTreeSet,
    ops::ControlFlow::{Break, Continue},
    sync::atomic::AtomicBool,
};

use bytes::{BufMut, Bytes, BytesMut};
use consensus_core::codec::CodecError;

use crate::{
    Compare, CompareResult, CompareTarget, Delete, Deleted, Found, KeyRange, KeyValue, KvOperation,
    KvRejection, KvResult, Put, PutDone, Range, RevisionBounds, SortBy, Txn, TxnDone, Versionstamp,
    keys::{self, Record},
    lease::Lease,
    limits::{Amount, WORK_BYTES_MAX, WORK_KEYS_MAX},
    pending_writes::{Change, PendingWrites, RangeDeletionWrite, Undo},
    range_deletions::{RangeDeletion, RangeDeletions},
    recent::Counts,
    scan::Scan,
    segments::{CountChange, CountKind, Segments},
    view::{Failure, Source, View},
    work::Work,
};

/// Reason that an operation was not executed.
#[derive(Debug)]
pub(crate) enum ExecuteError {
    Rejected(KvRejection),
    Failed(Failure),
    /// The operation exceeds its work limit.
    TooMuchWork,
    /// The operation would read too many keys that were deleted and compacted, and are still stored.
    TooMuchGarbage,
    /// The caller no longer waits for the result.
    Cancelled,
}

/// Rejection of an operation that exceeds the work limit of a command.
pub(crate) fn too_much_work(operation: &KvOperation) -> KvRejection {
    let mebibytes = WORK_BYTES_MAX >> 20;
    let advice = match operation {
        KvOperation::Delete(_) => {
            "nothing was deleted; repeat it without return_previous, or delete the range in portions: set `limit`, and continue \
             from `next_key` of the response"
        }
        KvOperation::Range(_) => "read the range without a session",
        _ => "use narrower ranges, or split it into several transactions",
    };
    KvRejection::invalid(format!(
        "the command would read or write more than {WORK_KEYS_MAX} keys or {mebibytes} MiB, the limit of one \
         command: {advice}"
    ))
}

impl From<KvRejection> for ExecuteError {
    fn from(rejection: KvRejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl From<Failure> for ExecuteError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<CodecError> for ExecuteError {
    fn from(error: CodecError) -> Self {
        Self::Failed(error.into())
    }
}

/// Bounds of the store's history: newest revision, and oldest readable one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct History {
    pub(crate) revision: u64,
    pub(crate) compacted: u64,
}

/// The execution of one operation.
pub(crate) struct Execution<'a> {
    source: &'a dyn Source,
    written: &'a mut PendingWrites,
    history: History,
    /// Newest revision that is visible. For a write, all versions are visible.
    latest: u64,
    wrote: bool,
    /// In a transaction: state to restore if the transaction is rejected halfway. Other operations write only after all
    /// checks.
    undo: Option<Undo>,
    /// Number of puts with a versionstamp so far.
    stamps: u16,
    /// Bytes of pairs that the response may still hold.
    room: usize,
    work: Work<'a>,
    /// Segments at the newest revision. Commands have none, since the work that they count must be the same on all
    /// nodes.
    segments: Option<Segments>,
    deletions: RangeDeletions,
    /// Whether a range counts the keys after its last pair, too.
    counts_rest: bool,
    /// For a command: segments before its batch, and the number of keys above which a range is deleted by one record.
    large_deletions: Option<(&'a Segments, u64)>,
}

impl<'a> Execution<'a> {
    pub(crate) fn new(
        source: &'a dyn Source,
        written: &'a mut PendingWrites,
        history: History,
        room: usize,
        bound: Amount,
    ) -> Self {
        let work = Work::new(bound, history.compacted);
        Self {
            source,
            written,
            history,
            latest: u64::MAX,
            wrote: false,
            undo: None,
            stamps: 0,
            room,
            work,
            segments: None,
            deletions: RangeDeletions::default(),
            counts_rest: true,
            large_deletions: None,
        }
    }

    /// Hides versions newer than the current revision, which a read may find while a batch is written.
    pub(crate) fn hide_newer_versions(mut self) -> Self {
        self.latest = self.history.revision;
        self
    }

    /// Reads the newest revision with the help of its segments.
    pub(crate) fn with_segments(self, segments: Option<Segments>) -> Self {
        Self { segments, ..self }
    }

    /// Does not count the keys after the last pair of a range: its count is then the number of its pairs.
    pub(crate) fn without_counting_rest(self) -> Self {
        Self { counts_rest: false, ..self }
    }

    /// Takes deletions of ranges into account that are being carried out.
    pub(crate) fn with_deletions(self, deletions: RangeDeletions) -> Self {
        Self { deletions, ..self }
    }

    /// Deletes ranges with more than `keys_max` keys by one record. `segments` are those before the batch.
    pub(crate) fn deletes_ranges(self, segments: &'a Segments, keys_max: u64) -> Self {
        Self { large_deletions: Some((segments, keys_max)), ..self }
    }

    /// Refuses to read more than this number of keys that were deleted and compacted.
    pub(crate) fn with_garbage_max(self, garbage_max: u64) -> Self {
        Self { work: self.work.with_garbage_max(garbage_max), ..self }
    }

    /// Stops the execution early when `cancelled` is set.
    pub(crate) fn cancelled_by(self, cancelled: &'a AtomicBool) -> Self {
        Self { work: self.work.cancelled_by(cancelled), ..self }
    }

    /// Executes the operation. Returns the result, and the history afterwards.
    pub(crate) fn run(self, operation: &KvOperation) -> Result<(KvResult, History), ExecuteError> {
        self.run_counted(operation).0
    }

    /// Same as [`run`](Self::run), and returns the amount of work.
    pub(crate) fn run_counted(
        mut self,
        operation: &KvOperation,
    ) -> (Result<(KvResult, History), ExecuteError>, Amount) {
        let result = self.execute(operation);
        (result, self.work.done())
    }

    fn execute(&mut self, operation: &KvOperation) -> Result<(KvResult, History), ExecuteError> {
        let result = match operation {
            KvOperation::Txn(txn) => {
                self.undo = Some(Undo::new(self.written));
                self.txn(txn).map(KvResult::Txn)
            }
            KvOperation::Compact { revision } => self.compact(*revision),
            KvOperation::GrantLease { id, ttl } => self.grant(*id, *ttl),
            KvOperation::RevokeLease { id } => self.revoke(*id),
            simple => self.simple(simple),
        };
        match result {
            Ok(result) => {
                let revision = self.history.revision + u64::from(self.wrote);
                Ok((result, History { revision, ..self.history }))
            }
            Err(error) => {
                if let Some(undo) = self.undo.take() {
                    self.written.roll_back(undo);
                }
                Err(error)
            }
        }
    }

    fn simple(&mut self, operation: &KvOperation) -> Result<KvResult, ExecuteError> {
        match operation {
            KvOperation::Put(put) => self.put(put).map(KvResult::Put),
            KvOperation::Delete(delete) => self.delete(delete).map(KvResult::Delete),
            KvOperation::Range(range) => self.range(range).map(KvResult::Range),
            _ => Err(KvRejection::invalid("not an operation on keys").into()),
        }
    }

    fn view(&self) -> View<'_> {
        View { source: self.source, overlay: &self.written.versions, deletions: &self.deletions }
    }

    /// Revision at which this operation writes.
    fn next_revision(&self) -> u64 {
        self.history.revision + 1
    }

    /// Writes a version of the key with this prefix.
    fn write(&mut self, key: &Bytes, prefix: Vec<u8>, record: Vec<u8>, change: KeyChange) {
        let revision = self.next_revision();
        if let Some(kind) = change.count {
            self.written.counts.push(CountChange { prefix: prefix.clone(), kind });
        }
        let place = keys::version_of(prefix, revision);
        let undone = self.undo.is_some().then(|| place.clone());
        let before = self.written.versions.insert(place, record.into());
        let replaced = before.clone();
        if let (Some(undo), Some(place)) = (&mut self.undo, undone) {
            undo.save_version(place, before);
        }
        self.written.attach(key, change.lease_before, change.lease_after, &mut self.undo);
        let deleted = change.count == Some(CountKind::Deleted);
        let change = Change { revision, key: key.clone(), deleted, replaced: None };
        self.written.change(change, replaced);
        self.wrote = true;
    }

    /// Writes a version as it was in another store. `counts` are those of a deletion, or have at least version 1.
    pub(crate) fn import(&mut self, key: &Bytes, counts: Counts, value: &[u8]) -> Result<(), Failure> {
        let prefix = keys::prefix(key);
        let stored = self.view().counts(&prefix)?;
        let lives = stored.is_some_and(|stored| stored.version > 0);
        let (record, count) = if counts == Counts::DELETED {
            match stored {
                // The versions before the deletion are compacted.
                None => {
                    self.written.counts.push(CountChange { prefix: prefix.clone(), kind: CountKind::New });
                }
                Some(_) if !lives => return Ok(()), // It deletes nothing.
                Some(_) => {}
            }
            (Record::Deleted.encode(), Some(CountKind::Deleted))
        } else {
            let count = match stored {
                None => Some(CountKind::New),
                Some(_) if !lives => Some(CountKind::Again),
                Some(_) => None,
            };
            (keys::live(counts, value), count)
        };
        let lease_of = |id: i64| if self.lease(id).is_some() { id } else { 0 };
        let (lease_before, lease_after) =
            (lease_of(stored.map_or(0, |stored| stored.lease_id)), lease_of(counts.lease_id));
        self.write(key, prefix, record, KeyChange { lease_before, lease_after, count });
        Ok(())
    }

    fn put(&mut self, put: &Put) -> Result<PutDone, ExecuteError> {
        let stamped = self.stamped(put);
        let (key, value) = match (put.versionstamp, &stamped) {
            (Versionstamp::KeySuffix, Some(key)) => (key, &put.value),
            (Versionstamp::ValueSuffix, Some(value)) => (&put.key, value),
            _ => (&put.key, &put.value),
        };
        let previous = if put.return_previous { self.previous(key)? } else { None };
        let prefix = keys::prefix(key);
        let stored = self.view().counts(&prefix)?;
        let before = stored.filter(|counts| counts.version > 0);
        let count = match (stored, before) {
            (None, _) => Some(CountKind::New),
            (Some(_), None) => Some(CountKind::Again),
            (Some(_), Some(_)) => None,
        };
        let kept_lease = before.map_or(0, |before| before.lease_id);
        let lease_id = if put.keep.lease { kept_lease } else { put.lease_id };
        // A key that a deletion of a range covers may still be attached to a lease, but not for long: it is attached again.
        let lease_before = stored.map_or(0, |stored| stored.lease_id);
        let lease_before = if before.is_none() && lease_before == lease_id { 0 } else { lease_before };
        if lease_id != 0 && lease_id != kept_lease && self.lease(lease_id).is_none_or(|lease| lease.is_ending)
        {
            return Err(KvRejection::NoLease { id: lease_id }.into());
        }
        let kept = if put.keep.is_any() { self.kept(put, before.is_some())? } else { None };
        let first = Counts { create_revision: self.next_revision(), version: 1, lease_id };
        let counts =
            before.map_or(first, |before| Counts { version: before.version + 1, lease_id, ..before });
        let record = keys::live(counts, kept.as_ref().unwrap_or(value));
        self.work.count_bytes(prefix.len() + record.len())?;
        let key = key.clone();
        let change = KeyChange { lease_before, lease_after: lease_id, count };
        self.write(&key, prefix, record, change);
        Ok(PutDone { previous, stamped })
    }

    /// Value that a put keeps; `None` if it keeps only the lease. The key must exist.
    fn kept(&self, put: &Put, exists: bool) -> Result<Option<Bytes>, ExecuteError> {
        let no_key = || KvRejection::NoKey { key: put.key.clone() };
        if !exists {
            return Err(no_key().into());
        }
        if !put.keep.value {
            return Ok(None);
        }
        let kept =
            self.view().version_of_key(&put.key, self.latest)?.and_then(|version| live(version.record));
        let kept = kept.ok_or_else(no_key)?;
        self.work.count_key(size_of(&kept))?;
        Ok(Some(kept.value))
    }

    /// Current value of `key`, for the response.
    fn previous(&mut self, key: &Bytes) -> Result<Option<KeyValue>, ExecuteError> {
        let previous = self.view().version_of_key(key, self.latest)?.and_then(|version| live(version.record));
        self.work.count_key(previous.as_ref().map_or(0, size_of))?;
        if let Some(kv) = &previous {
            self.reserve_response(size_of(kv))?;
        }
        Ok(previous)
    }

    /// Returns the key or value with the versionstamp appended.
    fn stamped(&mut self, put: &Put) -> Option<Bytes> {
        let target = match put.versionstamp {
            Versionstamp::None => return None,
            Versionstamp::KeySuffix => &put.key,
            Versionstamp::ValueSuffix => &put.value,
        };
        let mut bytes = BytesMut::with_capacity(target.len() + 10);
        bytes.extend_from_slice(target);
        bytes.put_u64(self.next_revision());
        bytes.put_u16(self.stamps);
        self.stamps += 1;
        Some(bytes.freeze())
    }

    fn delete(&mut self, delete: &Delete) -> Result<Deleted, ExecuteError> {
        let range = KeyRange { key: delete.key.clone(), range_end: delete.range_end.clone() };
        let is_whole =
            delete.range_end.is_some() && delete.limit == 0 && !delete.return_previous && self.undo.is_none();
        if let Some((segments, keys_max)) = self.large_deletions.filter(|_| is_whole) {
            let deleted = self.delete_whole(&keys::bounds(&range), segments, keys_max)?;
            return Ok(Deleted { deleted, previous: None, next_key: None });
        }
        let mut found = Vec::new();
        let mut next_key = None;
        let mut room = self.room;
        let values = delete.return_previous;
        let scan = Scan { revision: self.latest, descending: false, values, segments: None };
        self.view().visit_keys(&range, &scan, &self.work, |version| {
            let is_garbage = self.work.is_garbage(version.revision, version.record == Record::Deleted);
            let Some(kv) = live(version.record) else {
                // Do not stop at garbage: another node may have removed it already, and would stop at another key.
                if delete.limit > 0 && self.work.is_full() && !is_garbage {
                    next_key = Some(version.key);
                    return Break(());
                }
                return Continue(());
            };
            let size = if delete.return_previous { size_of(&kv) } else { 0 };
            let fits = room >= size || found.is_empty();
            if delete.limit > 0 && (found.len() as u64 >= delete.limit || self.work.is_full() || !fits) {
                next_key = Some(kv.key);
                return Break(());
            }
            room = room.saturating_sub(size);
            found.push(kv);
            Continue(())
        })?;
        if delete.return_previous {
            self.reserve_response(found.iter().map(size_of).sum())?;
        }
        let deleted = found.len() as u64;
        self.delete_all(&found)?;
        Ok(Deleted { deleted, previous: delete.return_previous.then_some(found), next_key })
    }

    /// Deletes all keys of a range: by one record if there are many or if they have large values, else one by one. Returns
    /// their number. `segments` are those before the batch.
    ///
    /// How it is done, and the work that counts, depends only on the living keys, since nodes differ in the others.
    fn delete_whole(
        &mut self,
        places: &std::ops::Range<Vec<u8>>,
        segments: &Segments,
        keys_max: u64,
    ) -> Result<u64, ExecuteError> {
        let segments = segments.with(&self.written.counts);
        let parts = self.count_living(places, &segments, self.latest, &Work::unlimited())?;
        let living = parts.sum();
        if living == 0 {
            return Ok(0);
        }
        if living <= keys_max
            && let Some(found) = self.small_keys(places, &segments)?
        {
            found.iter().try_for_each(|kv| self.work.count_key(kv.key.len()))?;
            self.delete_all(&found)?;
            return Ok(living);
        }
        let deletion = RangeDeletion::new(self.next_revision(), places.clone());
        let in_parts = (parts.before, parts.after);
        self.written.range_deletion = Some(RangeDeletionWrite { deletion, places: places.clone(), in_parts });
        self.wrote = true;
        Ok(living)
    }

    /// The living keys in a range of places, without their values; `None` if these are large.
    fn small_keys(
        &self,
        places: &std::ops::Range<Vec<u8>>,
        segments: &Segments,
    ) -> Result<Option<Vec<KeyValue>>, ExecuteError> {
        let (mut found, mut is_large) = (Vec::new(), false);
        let scan = Scan { revision: self.latest, descending: false, values: false, segments: Some(segments) };
        let work = Work::unlimited();
        self.view().visit_places(places.clone(), &scan, &work, |version| {
            found.extend(live(version.record));
            is_large = work.living_bytes() > Amount::OF_SHORT_READS.bytes;
            if is_large { Break(()) } else { Continue(()) }
        })?;
        Ok((!is_large).then_some(found))
    }

    /// Deletes all pairs, or none if that exceeds the work limit.
    fn delete_all(&mut self, found: &[KeyValue]) -> Result<(), ExecuteError> {
        let places: Vec<_> = found.iter().map(|kv| keys::prefix(&kv.key)).collect();
        let record = Record::Deleted.encode();
        self.work.count_bytes(places.iter().map(|place| place.len() + record.len()).sum())?;
        for (kv, place) in found.iter().zip(places) {
            self.write(&kv.key, place, record.clone(), KeyChange::deletion(kv.lease_id));
        }
        Ok(())
    }

    /// Reserves response bytes for previous values. If they do not fit, the operation is rejected, because the values
    /// would be lost.
    fn reserve_response(&mut self, bytes: usize) -> Result<(), KvRejection> {
        let why = || {
            format!(
                "the previous values have {bytes} bytes, but the response has space for {} only; repeat the \
                 request without return_previous",
                self.room
            )
        };
        self.room = self.room.checked_sub(bytes).ok_or_else(|| KvRejection::invalid(why()))?;
        Ok(())
    }

    fn range(&mut self, range: &Range) -> Result<Found, ExecuteError> {
        let revision = match range.revision {
            0 => self.latest,
            revision => self.readable(revision)?,
        };
        if range.sort.by != SortBy::Key || range.bounds != RevisionBounds::default() {
            return self.filtered_range(range, revision);
        }
        let keys = KeyRange { key: range.key.clone(), range_end: range.range_end.clone() };
        let limit = if range.limit == 0 { u64::MAX } else { range.limit };
        let (mut found, mut room, mut is_incomplete) = (Found::default(), self.room, false);
        let values = !range.keys_only && !range.count_only;
        let segments = self.segments_at(revision).filter(|_| keys.range_end.is_some());
        let scan = Scan { revision, descending: range.descending, values, segments };
        if let Some(segments) = segments.filter(|_| range.count_only) {
            let parts = self.count_living(&keys::bounds(&keys), segments, revision, &self.work)?;
            return Ok(Found { count: parts.sum(), ..found });
        }
        let mut uncounted = None;
        self.view().visit_keys(&keys, &scan, &self.work, |version| {
            let Record::Live(kv) = version.record else { return Continue(()) };
            found.count += 1;
            if range.count_only {
                return Continue(());
            }
            match room.checked_sub(size_of(&kv)) {
                Some(rest) if !found.more && (found.kvs.len() as u64) < limit => {
                    room = rest;
                    found.kvs.push(kv);
                    return Continue(());
                }
                // The pair does not fit.
                Some(_) | None if range.whole && (found.kvs.len() as u64) < limit => {
                    is_incomplete = true;
                    return Break(());
                }
                _ => found.more = true,
            }
            if !self.counts_rest {
                return Break(());
            }
            if segments.is_none() {
                return Continue(());
            }
            uncounted = Some(places_after(&keys, &kv.key, range.descending));
            Break(())
        })?;
        if is_incomplete {
            return Err(self.too_large().into());
        }
        if let (Some(places), Some(segments)) = (uncounted, segments) {
            found.count += self.count_living(&places, segments, revision, &self.work)?.sum();
        }
        self.room = room;
        Ok(found)
    }

    /// Segments, if they are those of `revision`.
    fn segments_at(&self, revision: u64) -> Option<&Segments> {
        self.segments.as_ref().filter(|_| revision == self.latest)
    }

    /// Counts the living keys in a range of places at the revision of the segments. Scans only the segments that are
    /// partly in the range.
    fn count_living(
        &self,
        places: &std::ops::Range<Vec<u8>>,
        segments: &Segments,
        revision: u64,
        work: &Work<'_>,
    ) -> Result<LivingKeys, ExecuteError> {
        let scan = Scan { revision, descending: false, values: false, segments: Some(segments) };
        let count = |places| {
            let mut count = 0;
            self.view().visit_places(places, &scan, work, |version| {
                count += u64::from(version.record != Record::Deleted);
                Continue(())
            })?;
            Ok::<_, ExecuteError>(count)
        };
        let Some(whole) = segments.within(places) else {
            return Ok(LivingKeys { before: count(places.clone())?, whole: 0, after: 0 });
        };
        let before = count(places.start.clone()..whole.places.start)?;
        Ok(LivingKeys { before, whole: whole.living, after: count(whole.places.end..places.end.clone())? })
    }

    fn too_large(&self) -> KvRejection {
        KvRejection::AnswerTooLarge { bytes_max: self.room as u64 }
    }

    /// A range whose pairs are filtered by revision or not sorted by key: all pairs are collected first.
    fn filtered_range(&mut self, range: &Range, revision: u64) -> Result<Found, ExecuteError> {
        let keys = KeyRange { key: range.key.clone(), range_end: range.range_end.clone() };
        let limit =
            if range.limit == 0 { usize::MAX } else { usize::try_from(range.limit).unwrap_or(usize::MAX) };
        // One more pair than the limit shows whether there are more.
        let gathered_max = if range.sort.after_limit { limit.saturating_add(1) } else { usize::MAX };
        let values = range.sort.by == SortBy::Value || !(range.keys_only || range.count_only);
        let (mut found, mut room, mut is_incomplete) = (Found::default(), self.room, false);
        let descending = range.descending && range.sort.by == SortBy::Key;
        let segments = self.segments_at(revision);
        let scan = Scan { revision, descending, values, segments };
        self.view().visit_keys(&keys, &scan, &self.work, |version| {
            let Record::Live(kv) = version.record else { return Continue(()) };
            found.count += 1;
            if range.count_only || found.kvs.len() >= gathered_max {
                return Continue(());
            }
            let Some(rest) = room.checked_sub(size_of(&kv)) else {
                is_incomplete = true;
                return Break(());
            };
            room = rest;
            found.kvs.push(kv);
            Continue(())
        })?;
        if is_incomplete {
            return Err(self.too_large().into());
        }
        found.kvs.retain(|kv| range.bounds.contain(kv));
        sort(&mut found.kvs, range.sort.by, range.descending);
        found.more = found.kvs.len() > limit;
        found.kvs.truncate(limit);
        if range.keys_only {
            found.kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        self.room -= found.kvs.iter().map(size_of).sum::<usize>();
        Ok(found)
    }

    /// Returns `revision` if it is not compacted and not in the future.
    fn readable(&self, revision: u64) -> Result<u64, KvRejection> {
        let History { revision: current, compacted } = self.history;
        if revision > current {
            return Err(KvRejection::FutureRevision { revision, current });
        }
        if revision < compacted {
            return Err(KvRejection::Compacted { compacted });
        }
        Ok(revision)
    }

    fn txn(&mut self, txn: &Txn) -> Result<TxnDone, ExecuteError> {
        self.check_reads(txn)?;
        let path = self.choose_branches(txn)?;
        self.execute_path(txn, &path)
    }

    /// Evaluates the compares of all nested transactions before anything is executed. Returns the branches to take.
    fn choose_branches(&self, txn: &Txn) -> Result<BranchPath, ExecuteError> {
        let mut succeeded = true;
        for compare in &txn.compare {
            succeeded = succeeded && self.holds(compare)?;
        }
        let branch = if succeeded { &txn.success } else { &txn.failure };
        let nested = branch.iter().filter_map(|operation| match operation {
            KvOperation::Txn(txn) => Some(self.choose_branches(txn)),
            _ => None,
        });
        Ok(BranchPath { succeeded, nested: nested.collect::<Result<_, _>>()? })
    }

    fn execute_path(&mut self, txn: &Txn, path: &BranchPath) -> Result<TxnDone, ExecuteError> {
        let branch = if path.succeeded { &txn.success } else { &txn.failure };
        let mut nested = path.nested.iter();
        let mut responses = Vec::with_capacity(branch.len());
        for operation in branch {
            responses.push(match (operation, nested.as_slice()) {
                (KvOperation::Txn(txn), [path, ..]) => {
                    nested.next();
                    KvResult::Txn(self.execute_path(txn, path)?)
                }
                (operation, _) => self.simple(operation)?,
            });
        }
        Ok(TxnDone { succeeded: path.succeeded, responses })
    }

    /// Checks that nothing that the transaction read was written, deleted or added since.
    fn check_reads(&self, txn: &Txn) -> Result<(), ExecuteError> {
        if txn.read_revision == 0 {
            return Ok(());
        }
        let read = self.readable(txn.read_revision)?;
        for range in &txn.read_ranges {
            let mut conflict = None;
            let scan = Scan { revision: self.latest, descending: false, values: false, segments: None };
            self.view().visit_keys(range, &scan, &self.work, |version| {
                if version.revision <= read {
                    return Continue(());
                }
                conflict = Some(KvRejection::Conflict { key: version.key, mod_revision: version.revision });
                Break(())
            })?;
            if let Some(conflict) = conflict {
                return Err(conflict.into());
            }
        }
        Ok(())
    }

    fn holds(&self, compare: &Compare) -> Result<bool, ExecuteError> {
        let (mut all, mut any) = (true, false);
        let values = matches!(compare.target, CompareTarget::Value(_));
        let segments = self.segments.as_ref();
        let scan = Scan { revision: self.latest, descending: false, values, segments };
        self.view().visit_keys(&compare.keys, &scan, &self.work, |version| {
            let Record::Live(kv) = version.record else { return Continue(()) };
            any = true;
            all = compare_matches(&compare.target, compare.result, Some(&kv));
            if all { Continue(()) } else { Break(()) }
        })?;
        Ok(if any { all } else { compare_matches(&compare.target, compare.result, None) })
    }

    fn compact(&mut self, revision: u64) -> Result<KvResult, ExecuteError> {
        let compacted = self.history.compacted;
        if revision <= compacted {
            return Err(KvRejection::Compacted { compacted }.into());
        }
        self.history.compacted = self.readable(revision)?;
        Ok(KvResult::Compact)
    }

    /// Returns a lease, including the changes of this batch.
    fn lease(&self, id: i64) -> Option<Lease> {
        self.written.lease(self.source, id)
    }

    fn grant(&mut self, id: i64, ttl: u64) -> Result<KvResult, ExecuteError> {
        if self.lease(id).is_some() {
            return Err(KvRejection::LeaseExists { id }.into());
        }
        self.written.leases.insert(id, Some(Lease { ttl, remaining: None, is_ending: false }));
        self.written.granted.insert(id);
        Ok(KvResult::Lease)
    }

    /// Revokes a lease and deletes its keys at one revision, or as many of them as the bound allows. If any are left, the
    /// lease is ending, and the next command for it continues.
    fn revoke(&mut self, id: i64) -> Result<KvResult, ExecuteError> {
        let lease = self.lease(id).ok_or(KvRejection::NoLease { id })?;
        for key in self.attached(id)? {
            if self.work.is_full() {
                self.written.leases.insert(id, Some(Lease { is_ending: true, ..lease }));
                return Ok(KvResult::LeaseEnding);
            }
            let (prefix, record) = (keys::prefix(&key), Record::Deleted.encode());
            self.work.count_key(prefix.len())?;
            self.write(&key, prefix, record, KeyChange::deletion(id));
        }
        self.written.leases.insert(id, None);
        Ok(KvResult::Lease)
    }

    /// First keys attached to a lease, including the changes of this batch: at least one more than may be deleted, if there
    /// are so many.
    fn attached(&self, id: i64) -> Result<BTreeSet<Bytes>, ExecuteError> {
        let changed = || self.written.attached.of_lease(id);
        let max = usize::try_from(self.work.keys_left()).unwrap_or(usize::MAX);
        let max = max.saturating_add(changed().count()).saturating_add(1);
        let mut keys: BTreeSet<_> = self.view().attached_keys(id, max)?.into_iter().collect();
        for (key, is_attached) in changed() {
            if is_attached {
                keys.insert(key.clone());
            } else {
                keys.remove(key);
            }
        }
        Ok(keys)
    }
}

/// Branches that a transaction takes.
struct BranchPath {
    succeeded: bool,
    /// Paths of the transactions in the branch, in their order.
    nested: Vec<BranchPath>,
}

/// Change of a key by a write.
struct KeyChange {
    /// Lease before; 0 means no lease.
    lease_before: i64,
    lease_after: i64,
    /// Whether the key was created or deleted.
    count: Option<CountKind>,
}

impl KeyChange {
    fn deletion(lease_before: i64) -> Self {
        Self { lease_before, lease_after: 0, count: Some(CountKind::Deleted) }
    }
}

/// Numbers of living keys in a range: in its whole segments, and in the segments before and after these that are partly in
/// it. If there is only one segment, they are `before`.
struct LivingKeys {
    before: u64,
    whole: u64,
    after: u64,
}

impl LivingKeys {
    fn sum(&self) -> u64 {
        self.before + self.whole + self.after
    }
}

/// Places of the keys of a range that a scan visits after `key`.
fn places_after(range: &KeyRange, key: &[u8], descending: bool) -> std::ops::Range<Vec<u8>> {
    let (bounds, prefix) = (keys::bounds(range), keys::prefix(key));
    if descending { bounds.start..prefix } else { keys::end_of_prefix(&prefix)..bounds.end }
}

/// Sorts pairs. Equal pairs keep the order of their keys.
fn sort(kvs: &mut [KeyValue], by: SortBy, descending: bool) {
    let compare: fn(&KeyValue, &KeyValue) -> Ordering = match by {
        SortBy::Key => return,
        SortBy::Version => |a, b| a.version.cmp(&b.version),
        SortBy::CreateRevision => |a, b| a.create_revision.cmp(&b.create_revision),
        SortBy::ModRevision => |a, b| a.mod_revision.cmp(&b.mod_revision),
        SortBy::Value => |a, b| a.value.cmp(&b.value),
    };
    kvs.sort_by(|a, b| if descending { compare(b, a) } else { compare(a, b) });
}

fn live(record: Record) -> Option<KeyValue> {
    match record {
        Record::Live(kv) => Some(kv),
        Record::Deleted => None,
    }
}

fn size_of(kv: &KeyValue) -> usize {
    kv.key.len() + kv.value.len() + PAIR_BYTES
}

fn compare_matches(target: &CompareTarget, result: CompareResult, kv: Option<&KeyValue>) -> bool {
    let number = |of: fn(&KeyValue) -> u64, with: &i64| {
        let value = kv.map_or(0, of);
        i64::try_from(value).map_or(Ordering::Greater, |value| value.cmp(with))
    };
    let ordering = match target {
        CompareTarget::Version(with) => number(|kv| kv.version, with),
        CompareTarget::CreateRevision(with) => number(|kv| kv.create_revision, with),
        CompareTarget::ModRevision(with) => number(|kv| kv.mod_revision, with),
        CompareTarget::Lease(with) => kv.map_or(0, |kv| kv.lease_id).cmp(with),
        CompareTarget::Value(with) => match kv {
            Some(kv) => kv.value.cmp(with),
            None => return false,
        },
    };
    match result {
        CompareResult::Equal => ordering.is_eq(),
        CompareResult::Greater => ordering.is_gt(),
        CompareResult::Less => ordering.is_lt(),
        CompareResult::NotEqual => ordering.is_ne(),
    }
}

/// Bytes that a pair counts for in a response in addition to its key and value.
const PAIR_BYTES: usize = 48;
