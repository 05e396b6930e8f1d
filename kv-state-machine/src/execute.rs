//! Executes one operation on a [`View`], all of it or nothing.

use std::{
    cmp::Ordering,
    ops::ControlFlow::{Break, Continue},
    sync::atomic::AtomicBool,
};

use bytes::{BufMut, Bytes, BytesMut};
use consensus_core::codec::CodecError;

use crate::{
    Compare, CompareResult, CompareTarget, Delete, Deleted, Found, KeyRange, KeyValue, KvOperation,
    KvRejection, KvResult, Put, PutDone, Range, Txn, TxnDone, Versionstamp,
    keys::{self, Record},
    limits::{Amount, WORK_BYTES_MAX, WORK_KEYS_MAX},
    recent::Counts,
    scan::Scan,
    view::{Failure, Overlay, Source, View},
    work::Work,
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
    overlay: &'a mut Overlay,
    history: History,
    /// What counts as the newest: for a write all that is there.
    latest: u64,
    wrote: bool,
    /// Within a transaction: what it replaced in the overlay, to be put back if it is rejected half-way. Other operations
    /// write when nothing can be wrong any more.
    undo: Option<Vec<(Vec<u8>, Option<Bytes>)>>,
    /// Puts with a versionstamp so far.
    stamps: u16,
    /// Bytes of pairs that the answer may still hold.
    room: usize,
    work: Work<'a>,
}

impl<'a> Execution<'a> {
    pub(crate) fn new(
        source: &'a dyn Source,
        overlay: &'a mut Overlay,
        history: History,
        room: usize,
        bound: Amount,
    ) -> Self {
        let work = Work::new(bound, history.compacted);
        Self { source, overlay, history, latest: u64::MAX, wrote: false, undo: None, stamps: 0, room, work }
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
                self.undo = Some(Vec::new());
                self.txn(txn).map(KvResult::Txn)
            }
            KvOperation::Compact { revision } => self.compact(*revision),
            simple => self.simple(simple),
        };
        match result {
            Ok(result) => {
                let revision = self.history.revision + u64::from(self.wrote);
                Ok((result, History { revision, ..self.history }))
            }
            Err(halt) => {
                for (place, before) in self.undo.take().into_iter().flatten().rev() {
                    match before {
                        Some(bytes) => self.overlay.insert(place, bytes),
                        None => self.overlay.remove(&place),
                    };
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
        View { source: self.source, overlay: self.overlay }
    }

    /// The revision that this operation writes at.
    fn next_revision(&self) -> u64 {
        self.history.revision + 1
    }

    /// Writes a version of the key with this prefix.
    fn write(&mut self, prefix: Vec<u8>, record: Vec<u8>) {
        let place = keys::version_of(prefix, self.next_revision());
        let undone = self.undo.is_some().then(|| place.clone());
        let before = self.overlay.insert(place, record.into());
        if let (Some(undo), Some(place)) = (&mut self.undo, undone) {
            undo.push((place, before));
        }
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
        let first = Counts { create_revision: self.next_revision(), version: 1 };
        let counts = before.map_or(first, |before| Counts { version: before.version + 1, ..before });
        let record = keys::live(counts, put.lease_id, value);
        self.work.write(prefix.len() + record.len())?;
        self.write(prefix, record);
        Ok(PutDone { previous, stamped })
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
        for place in places {
            self.write(place, record.clone());
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
        let keys = KeyRange { key: range.key.clone(), range_end: range.range_end.clone() };
        let limit = if range.limit == 0 { u64::MAX } else { range.limit };
        let (mut found, mut room) = (Found::default(), self.room);
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
                _ => found.more = true,
            }
            Continue(())
        })?;
        self.room = room;
        Ok(found)
    }

    /// `revision` if it lies between compaction and the present.
    fn readable(&self, revision: u64) -> Result<u64, KvRejection> {
        let History { revision: current, compacted } = self.history;
        if revision > current {
            return Err(KvRejection::invalid(format!(
                "revision {revision} is in the future; the store is at {current}"
            )));
        }
        if revision < compacted {
            return Err(KvRejection::Compacted { compacted });
        }
        Ok(revision)
    }

    fn txn(&mut self, txn: &Txn) -> Result<TxnDone, Halt> {
        self.check_reads(txn)?;
        let mut succeeded = true;
        for compare in &txn.compare {
            succeeded = succeeded && self.holds(compare)?;
        }
        let branch = if succeeded { &txn.success } else { &txn.failure };
        let responses = branch.iter().map(|operation| self.simple(operation)).collect::<Result<_, _>>()?;
        Ok(TxnDone { succeeded, responses })
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
