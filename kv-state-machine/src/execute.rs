//! Executes one operation on a [`View`], all of it or nothing.

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
    lease::{self, Lease},
    limits::{Amount, WORK_BYTES_MAX, WORK_KEYS_MAX},
    recent::Counts,
    scan::Scan,
    view::{Failure, Source, View},
    work::Work,
    written::{Change, Undo, Written},
};

/// Why an operation was not executed.
#[derive(Debug)]
pub(crate) enum Halt {
    Rejected(KvRejection),
    Failed(Failure),
    /// It is more work than its bounds allow.
    TooMuch,
    /// Nobody waits for its outcome.
    Abandoned,
}

/// What the caller of an operation that exceeds the bounds of a command is told.
pub(crate) fn too_much(operation: &KvOperation) -> KvRejection {
    let mebibytes = WORK_BYTES_MAX >> 20;
    let advice = match operation {
        KvOperation::Delete(_) => {
            "nothing was deleted; delete the range in portions: set `limit`, and go on from the answer's `next_key`"
        }
        KvOperation::Range(_) => "read it without a session",
        _ => "name narrower ranges, or make several transactions of it",
    };
    KvRejection::invalid(format!(
        "more than {WORK_KEYS_MAX} keys or {mebibytes} MiB, the most that one command may look at or write: {advice}"
    ))
}

impl From<KvRejection> for Halt {
    fn from(rejection: KvRejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl From<Failure> for Halt {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<CodecError> for Halt {
    fn from(error: CodecError) -> Self {
        Self::Failed(error.into())
    }
}

/// Where the store's history stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct History {
    pub(crate) revision: u64,
    pub(crate) compacted: u64,
}

/// The execution of one operation.
pub(crate) struct Execution<'a> {
    source: &'a dyn Source,
    written: &'a mut Written,
    history: History,
    /// What counts as the newest: for a write all that is there.
    latest: u64,
    wrote: bool,
    /// Within a transaction: what it replaced, to be put back if it is rejected half-way. Other operations write when nothing
    /// can be wrong any more.
    undo: Option<Undo>,
    /// Puts with a versionstamp so far.
    stamps: u16,
    /// Bytes of pairs that the answer may still hold.
    room: usize,
    work: Work<'a>,
}

impl<'a> Execution<'a> {
    pub(crate) fn new(
        source: &'a dyn Source,
        written: &'a mut Written,
        history: History,
        room: usize,
        bound: Amount,
    ) -> Self {
        let work = Work::new(bound, history.compacted);
        Self { source, written, history, latest: u64::MAX, wrote: false, undo: None, stamps: 0, room, work }
    }

    /// For a read beside a writer, whose later versions it may meet.
    pub(crate) fn without_later(mut self) -> Self {
        self.latest = self.history.revision;
        self
    }

    /// Ends early when this is set.
    pub(crate) fn abandoned_by(self, abandoned: &'a AtomicBool) -> Self {
        Self { work: self.work.abandoned_by(abandoned), ..self }
    }

    /// The result, and the revision and compaction afterwards.
    pub(crate) fn run(self, operation: &KvOperation) -> Result<(KvResult, History), Halt> {
        self.run_counted(operation).0
    }

    /// The same, and how much work it was.
    pub(crate) fn run_counted(
        mut self,
        operation: &KvOperation,
    ) -> (Result<(KvResult, History), Halt>, Amount) {
        let result = self.execute(operation);
        (result, self.work.done())
    }

    fn execute(&mut self, operation: &KvOperation) -> Result<(KvResult, History), Halt> {
        let result = match operation {
            KvOperation::Txn(txn) => {
                self.undo = Some(Undo::begin(self.written));
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
            Err(halt) => {
                if let Some(undo) = self.undo.take() {
                    self.written.take_back(undo);
                }
                Err(halt)
            }
        }
    }

    fn simple(&mut self, operation: &KvOperation) -> Result<KvResult, Halt> {
        match operation {
            KvOperation::Put(put) => self.put(put).map(KvResult::Put),
            KvOperation::Delete(delete) => self.delete(delete).map(KvResult::Delete),
            KvOperation::Range(range) => self.range(range).map(KvResult::Range),
            _ => Err(KvRejection::invalid("not an operation on keys").into()),
        }
    }

    fn view(&self) -> View<'_> {
        View { source: self.source, overlay: &self.written.versions }
    }

    /// The revision that this operation writes at.
    fn next_revision(&self) -> u64 {
        self.history.revision + 1
    }

    /// Writes a version of the key that has this prefix.
    fn write(&mut self, key: &Bytes, prefix: Vec<u8>, record: Vec<u8>, leases: LeaseChange) {
        let revision = self.next_revision();
        let place = keys::version_of(prefix, revision);
        let undone = self.undo.is_some().then(|| place.clone());
        let before = self.written.versions.insert(place, record.into());
        let replaced = before.clone();
        if let (Some(undo), Some(place)) = (&mut self.undo, undone) {
            undo.note_version(place, before);
        }
        self.written.attach(key, leases.before, leases.after, &mut self.undo);
        let change = Change { revision, key: key.clone(), deleted: leases.deleted, replaced: None };
        self.written.change(change, replaced);
        self.wrote = true;
    }

    fn put(&mut self, put: &Put) -> Result<PutDone, Halt> {
        let stamped = self.stamped(put);
        let (key, value) = match (put.versionstamp, &stamped) {
            (Versionstamp::KeySuffix, Some(key)) => (key, &put.value),
            (Versionstamp::ValueSuffix, Some(value)) => (&put.key, value),
            _ => (&put.key, &put.value),
        };
        let previous = if put.return_previous { self.previous(key)? } else { None };
        let prefix = keys::prefix(key);
        let before = self.view().counts(&prefix)?.filter(|counts| counts.version > 0);
        let lease_before = before.map_or(0, |before| before.lease_id);
        let lease_id = if put.keep.lease { lease_before } else { put.lease_id };
        if lease_id != 0 && lease_id != lease_before && self.lease(lease_id).is_none() {
            return Err(KvRejection::NoLease { id: lease_id }.into());
        }
        let kept = if put.keep.is_any() { self.kept(put, before.is_some())? } else { None };
        let first = Counts { create_revision: self.next_revision(), version: 1, lease_id };
        let counts =
            before.map_or(first, |before| Counts { version: before.version + 1, lease_id, ..before });
        let record = keys::live(counts, kept.as_ref().unwrap_or(value));
        self.work.write(prefix.len() + record.len())?;
        let key = key.clone();
        self.write(
            &key,
            prefix,
            record,
            LeaseChange { before: lease_before, after: lease_id, deleted: false },
        );
        Ok(PutDone { previous, stamped })
    }

    /// The value that a put keeps, if it keeps the value; the key must exist.
    fn kept(&self, put: &Put, exists: bool) -> Result<Option<Bytes>, Halt> {
        let no_key = || KvRejection::NoKey { key: put.key.clone() };
        if !exists {
            return Err(no_key().into());
        }
        if !put.keep.value {
            return Ok(None);
        }
        let kept = self.view().of_key(&put.key, self.latest)?.and_then(|version| live(version.record));
        let kept = kept.ok_or_else(no_key)?;
        self.work.look_at(size_of(&kept))?;
        Ok(Some(kept.value))
    }

    /// What is there under `key`, to be answered.
    fn previous(&mut self, key: &Bytes) -> Result<Option<KeyValue>, Halt> {
        let previous = self.view().of_key(key, self.latest)?.and_then(|version| live(version.record));
        self.work.look_at(previous.as_ref().map_or(0, size_of))?;
        if let Some(kv) = &previous {
            self.take_room(size_of(kv))?;
        }
        Ok(previous)
    }

    /// The key or the value with its stamp.
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

    fn delete(&mut self, delete: &Delete) -> Result<Deleted, Halt> {
        let range = KeyRange { key: delete.key.clone(), range_end: delete.range_end.clone() };
        let mut found = Vec::new();
        let mut next_key = None;
        let mut room = self.room;
        let scan =
            Scan { range: &range, revision: self.latest, descending: false, values: delete.return_previous };
        self.view().at(&scan, &self.work, |version| {
            let is_garbage = self.work.is_garbage(version.revision, version.record == Record::Deleted);
            let Some(kv) = live(version.record) else {
                // Not at garbage, which another node may have removed: there the walk would end elsewhere.
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
            self.take_room(found.iter().map(size_of).sum())?;
        }
        let deleted = found.len() as u64;
        self.delete_all(&found)?;
        Ok(Deleted { deleted, previous: delete.return_previous.then_some(found), next_key })
    }

    /// All of them or, if that is too much, none.
    fn delete_all(&mut self, found: &[KeyValue]) -> Result<(), Halt> {
        let places: Vec<_> = found.iter().map(|kv| keys::prefix(&kv.key)).collect();
        let record = Record::Deleted.encode();
        self.work.write(places.iter().map(|place| place.len() + record.len()).sum())?;
        for (kv, place) in found.iter().zip(places) {
            let leases = LeaseChange { before: kv.lease_id, after: 0, deleted: true };
            self.write(&kv.key, place, record.clone(), leases);
        }
        Ok(())
    }

    /// What was there is asked for and does not fit: better nothing is done than that it is lost.
    fn take_room(&mut self, bytes: usize) -> Result<(), KvRejection> {
        let why = || {
            format!(
                "the previous values have {bytes} bytes, the answer has room for {}; ask without them",
                self.room
            )
        };
        self.room = self.room.checked_sub(bytes).ok_or_else(|| KvRejection::invalid(why()))?;
        Ok(())
    }

    fn range(&mut self, range: &Range) -> Result<Found, Halt> {
        let revision = match range.revision {
            0 => self.latest,
            revision => self.readable(revision)?,
        };
        if range.sort.by != SortBy::Key || range.bounds != RevisionBounds::default() {
            return self.chosen(range, revision);
        }
        let keys = KeyRange { key: range.key.clone(), range_end: range.range_end.clone() };
        let limit = if range.limit == 0 { u64::MAX } else { range.limit };
        let (mut found, mut room, mut is_cut) = (Found::default(), self.room, false);
        let values = !range.keys_only && !range.count_only;
        let scan = Scan { range: &keys, revision, descending: range.descending, values };
        self.view().at(&scan, &self.work, |version| {
            let Record::Live(kv) = version.record else { return Continue(()) };
            found.count += 1;
            if range.count_only {
                return Continue(());
            }
            match room.checked_sub(size_of(&kv)) {
                Some(rest) if !found.more && (found.kvs.len() as u64) < limit => {
                    room = rest;
                    found.kvs.push(kv);
                }
                // It has no room.
                Some(_) | None if range.whole && (found.kvs.len() as u64) < limit => {
                    is_cut = true;
                    return Break(());
                }
                _ => found.more = true,
            }
            Continue(())
        })?;
        if is_cut {
            return Err(self.too_large().into());
        }
        self.room = room;
        Ok(found)
    }

    fn too_large(&self) -> KvRejection {
        KvRejection::AnswerTooLarge { bytes_max: self.room as u64 }
    }

    /// A range whose pairs are chosen by their revisions, or sorted otherwise than by key: all are gathered first.
    fn chosen(&mut self, range: &Range, revision: u64) -> Result<Found, Halt> {
        let keys = KeyRange { key: range.key.clone(), range_end: range.range_end.clone() };
        let limit =
            if range.limit == 0 { usize::MAX } else { usize::try_from(range.limit).unwrap_or(usize::MAX) };
        // Whether there is more is known with one more.
        let gathered_max = if range.sort.after_limit { limit.saturating_add(1) } else { usize::MAX };
        let values = range.sort.by == SortBy::Value || !(range.keys_only || range.count_only);
        let (mut found, mut room, mut is_cut) = (Found::default(), self.room, false);
        let descending = range.descending && range.sort.by == SortBy::Key;
        let scan = Scan { range: &keys, revision, descending, values };
        self.view().at(&scan, &self.work, |version| {
            let Record::Live(kv) = version.record else { return Continue(()) };
            found.count += 1;
            if range.count_only || found.kvs.len() >= gathered_max {
                return Continue(());
            }
            let Some(rest) = room.checked_sub(size_of(&kv)) else {
                is_cut = true;
                return Break(());
            };
            room = rest;
            found.kvs.push(kv);
            Continue(())
        })?;
        if is_cut {
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

    /// `revision` if it lies between compaction and the present.
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

    fn txn(&mut self, txn: &Txn) -> Result<TxnDone, Halt> {
        self.check_reads(txn)?;
        let path = self.decide(txn)?;
        self.follow(txn, &path)
    }

    /// Which branches are taken, before anything is done.
    fn decide(&self, txn: &Txn) -> Result<Path, Halt> {
        let mut succeeded = true;
        for compare in &txn.compare {
            succeeded = succeeded && self.holds(compare)?;
        }
        let branch = if succeeded { &txn.success } else { &txn.failure };
        let nested = branch.iter().filter_map(|operation| match operation {
            KvOperation::Txn(txn) => Some(self.decide(txn)),
            _ => None,
        });
        Ok(Path { succeeded, nested: nested.collect::<Result<_, _>>()? })
    }

    fn follow(&mut self, txn: &Txn, path: &Path) -> Result<TxnDone, Halt> {
        let branch = if path.succeeded { &txn.success } else { &txn.failure };
        let mut nested = path.nested.iter();
        let mut responses = Vec::with_capacity(branch.len());
        for operation in branch {
            responses.push(match (operation, nested.as_slice()) {
                (KvOperation::Txn(txn), [path, ..]) => {
                    nested.next();
                    KvResult::Txn(self.follow(txn, path)?)
                }
                (operation, _) => self.simple(operation)?,
            });
        }
        Ok(TxnDone { succeeded: path.succeeded, responses })
    }

    /// Nothing that the transaction read was written, deleted or added since.
    fn check_reads(&self, txn: &Txn) -> Result<(), Halt> {
        if txn.read_revision == 0 {
            return Ok(());
        }
        let read = self.readable(txn.read_revision)?;
        for range in &txn.read_ranges {
            let mut conflict = None;
            let scan = Scan { range, revision: self.latest, descending: false, values: false };
            self.view().at(&scan, &self.work, |version| {
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

    fn holds(&self, compare: &Compare) -> Result<bool, Halt> {
        let (mut all, mut any) = (true, false);
        let values = matches!(compare.target, CompareTarget::Value(_));
        let scan = Scan { range: &compare.keys, revision: self.latest, descending: false, values };
        self.view().at(&scan, &self.work, |version| {
            let Record::Live(kv) = version.record else { return Continue(()) };
            any = true;
            all = compares(&compare.target, compare.result, Some(&kv));
            if all { Continue(()) } else { Break(()) }
        })?;
        Ok(if any { all } else { compares(&compare.target, compare.result, None) })
    }

    fn compact(&mut self, revision: u64) -> Result<KvResult, Halt> {
        let compacted = self.history.compacted;
        if revision <= compacted {
            return Err(KvRejection::Compacted { compacted }.into());
        }
        self.history.compacted = self.readable(revision)?;
        Ok(KvResult::Compact)
    }

    /// A lease as it is after what was done so far.
    fn lease(&self, id: i64) -> Option<Lease> {
        self.written.lease(self.source, id)
    }

    fn grant(&mut self, id: i64, ttl: u64) -> Result<KvResult, Halt> {
        if self.lease(id).is_some() {
            return Err(KvRejection::LeaseExists { id }.into());
        }
        self.written.leases.insert(id, Some(Lease { ttl, remaining: None }));
        self.written.granted.insert(id);
        Ok(KvResult::Lease)
    }

    /// Ends a lease; its keys go at one revision, however many they are.
    fn revoke(&mut self, id: i64) -> Result<KvResult, Halt> {
        if self.lease(id).is_none() {
            return Err(KvRejection::NoLease { id }.into());
        }
        for key in self.attached(id)? {
            let (prefix, record) = (keys::prefix(&key), Record::Deleted.encode());
            self.write(&key, prefix, record, LeaseChange { before: id, after: 0, deleted: true });
        }
        self.written.leases.insert(id, None);
        Ok(KvResult::Lease)
    }

    /// The keys that go with a lease.
    fn attached(&self, id: i64) -> Result<BTreeSet<Bytes>, Halt> {
        let mut keys: BTreeSet<_> = lease::attached_keys(self.source, id)?.into_iter().collect();
        for ((_, key), is_attached) in
            self.written.attached.range((id, Bytes::new())..).take_while(|((of, _), _)| *of == id)
        {
            if *is_attached {
                keys.insert(key.clone());
            } else {
                keys.remove(key);
            }
        }
        Ok(keys)
    }
}

/// Which branches a transaction takes.
struct Path {
    succeeded: bool,
    /// Of the transactions in the branch, in their order.
    nested: Vec<Path>,
}

/// How a write changes with which lease its key goes; 0: none.
struct LeaseChange {
    before: i64,
    after: i64,
    deleted: bool,
}

/// What is equal stays in the order of keys.
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

fn compares(target: &CompareTarget, result: CompareResult, kv: Option<&KeyValue>) -> bool {
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

/// What a pair counts for in an answer beyond key and value.
const PAIR_BYTES: usize = 48;
