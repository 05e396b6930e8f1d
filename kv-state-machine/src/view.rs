//! Views of the store at a revision: the versions in RocksDB, and those added by the batch in progress.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    iter::Peekable,
    ops::{
        Bound::{Included, Unbounded},
        ControlFlow,
    },
};

use bytes::Bytes;
use consensus_core::StateMachineError;
use rocksdb::{
    DBIteratorWithThreadMode, DBRawIteratorWithThreadMode, DBWithThreadMode, ErrorKind, IteratorMode,
    ReadOptions, ReadTier, SingleThreaded, WriteBatch, WriteOptions,
};

use crate::{
    keys::{self, Record},
    lease::{self, Lease, LeaseTable},
    range_deletions::RangeDeletions,
    recent::{Counts, Newest, VersionCache},
    store::Generation,
};

type Db = DBWithThreadMode<SingleThreaded>;

/// Versions written by the batch in progress that are not in RocksDB yet, by place.
pub(crate) type Overlay = BTreeMap<Vec<u8>, Bytes>;

/// A source of stored versions.
pub(crate) trait Source {
    fn iterate(&self, mode: IteratorMode<'_>, read: ReadOptions) -> DBIteratorWithThreadMode<'_, Db>;

    /// Returns an iterator that does not copy the items it passes.
    fn raw(&self, read: ReadOptions) -> DBRawIteratorWithThreadMode<'_, Db>;

    /// Returns the record of the alarms.
    fn alarms(&self) -> Result<Option<Vec<u8>>, Failure>;

    /// Returns the first version of the same key at `place` or after it.
    fn first(&self, place: &[u8]) -> FoundVersion;

    /// Returns the newest version of the key with this prefix, if it is in the cache.
    fn known(&self, _prefix: &[u8]) -> Option<Newest> {
        None
    }

    /// Returns a lease.
    fn lease(&self, _id: i64) -> Option<Lease> {
        None
    }
}

/// Revision and record of a version.
pub(crate) type FoundVersion = Result<Option<(u64, Bytes)>, Failure>;

impl Source for Db {
    fn alarms(&self) -> Result<Option<Vec<u8>>, Failure> {
        self.get(keys::ALARMS).map_err(disk)
    }

    fn iterate(&self, mode: IteratorMode<'_>, read: ReadOptions) -> DBIteratorWithThreadMode<'_, Db> {
        self.iterator_opt(mode, read)
    }

    fn raw(&self, read: ReadOptions) -> DBRawIteratorWithThreadMode<'_, Db> {
        self.raw_iterator_opt(read)
    }

    fn first(&self, place: &[u8]) -> FoundVersion {
        first(&mut self.raw_iterator_opt(single_key_options()), place).map_err(disk)
    }
}

impl Source for rocksdb::Snapshot<'_> {
    fn alarms(&self) -> Result<Option<Vec<u8>>, Failure> {
        self.get(keys::ALARMS).map_err(disk)
    }

    fn iterate(&self, mode: IteratorMode<'_>, read: ReadOptions) -> DBIteratorWithThreadMode<'_, Db> {
        self.iterator_opt(mode, read)
    }

    fn raw(&self, read: ReadOptions) -> DBRawIteratorWithThreadMode<'_, Db> {
        self.raw_iterator_opt(read)
    }

    fn first(&self, place: &[u8]) -> FoundVersion {
        first(&mut self.raw_iterator_opt(single_key_options()), place).map_err(disk)
    }
}

/// State after the last batch: RocksDB, with the caches in memory. Batches are applied to it, and reads use it.
pub(crate) struct Base<'a> {
    db: &'a Db,
    recent: &'a VersionCache,
    leases: &'a LeaseTable,
    /// Iterator for all keys of the batch, because creating one costs more than using it.
    seeker: RefCell<Option<DBRawIteratorWithThreadMode<'a, Db>>>,
    /// Whether reads are limited to memory.
    in_memory: bool,
    /// Whether a read failed because the data is not in memory.
    incomplete: Cell<bool>,
}

impl<'a> Base<'a> {
    pub(crate) fn new(generation: &'a Generation) -> Self {
        Self {
            db: generation.db(),
            recent: generation.recent(),
            leases: generation.leases(),
            seeker: RefCell::new(None),
            in_memory: false,
            incomplete: Cell::new(false),
        }
    }

    /// Creates a view that reads without the disk. Other reads fail, and set [`is_incomplete`](Self::is_incomplete).
    pub(crate) fn in_memory(generation: &'a Generation) -> Self {
        Self { in_memory: true, ..Self::new(generation) }
    }

    pub(crate) fn is_incomplete(&self) -> bool {
        self.incomplete.get()
    }

    fn single_key_options(&self) -> ReadOptions {
        let mut read = single_key_options();
        if self.in_memory {
            read.set_read_tier(ReadTier::BlockCache);
        }
        read
    }

    fn failed(&self, error: rocksdb::Error) -> Failure {
        if error.kind() == ErrorKind::Incomplete {
            self.incomplete.set(true);
        }
        disk(error)
    }

    /// Returns the newest version of a key if the cache knows it and if it is not before `place`. The version may be
    /// missing: a newer one may have been written, and all older ones removed by a compaction.
    fn newest(&self, place: &[u8]) -> FoundVersion {
        let known = keys::prefix_and_revision(place).and_then(|(prefix, revision)| {
            let newest = self.recent.get(prefix).filter(|newest| newest.revision <= revision)?;
            Some((prefix, newest.revision))
        });
        let Some((prefix, revision)) = known else { return Ok(None) };
        let place = keys::version_of(prefix.to_vec(), revision);
        let record =
            self.db.get_opt(place, &self.single_key_options()).map_err(|error| self.failed(error))?;
        Ok(record.map(|record| (revision, record.into())))
    }
}

impl Source for Base<'_> {
    fn alarms(&self) -> Result<Option<Vec<u8>>, Failure> {
        self.db.alarms()
    }

    fn iterate(&self, mode: IteratorMode<'_>, read: ReadOptions) -> DBIteratorWithThreadMode<'_, Db> {
        self.db.iterate(mode, read)
    }

    fn raw(&self, read: ReadOptions) -> DBRawIteratorWithThreadMode<'_, Db> {
        self.db.raw_iterator_opt(read)
    }

    fn first(&self, place: &[u8]) -> FoundVersion {
        if let Some(found) = self.newest(place)? {
            return Ok(Some(found));
        }
        let mut seeker = self.seeker.borrow_mut();
        let seeker = seeker.get_or_insert_with(|| self.db.raw_iterator_opt(self.single_key_options()));
        first(seeker, place).map_err(|error| self.failed(error))
    }

    fn known(&self, prefix: &[u8]) -> Option<Newest> {
        self.recent.get(prefix)
    }

    fn lease(&self, id: i64) -> Option<Lease> {
        self.leases.get(id)
    }
}

/// Options for reads of one key: they use Bloom filters, and do not search the versions of other keys.
fn single_key_options() -> ReadOptions {
    let mut read = ReadOptions::default();
    read.set_prefix_same_as_start(true);
    read
}

fn first(
    seeker: &mut DBRawIteratorWithThreadMode<'_, Db>,
    place: &[u8],
) -> Result<Option<(u64, Bytes)>, rocksdb::Error> {
    seeker.seek(place);
    let Some((found, record)) = seeker.item() else {
        seeker.status()?;
        return Ok(None);
    };
    let of = |place| keys::prefix_and_revision(place).unwrap_or_default();
    let (prefix, revision) = of(found);
    Ok((prefix == of(place).0).then(|| (revision, Bytes::copy_from_slice(record))))
}

/// A consistent view of stored and added versions.
pub(crate) struct View<'a> {
    pub(crate) source: &'a dyn Source,
    pub(crate) overlay: &'a Overlay,
    /// Deletions of ranges, for which stored and added versions have no records yet.
    pub(crate) deletions: &'a RangeDeletions,
}

/// One version of a key.
pub(crate) struct Version {
    pub(crate) key: Bytes,
    pub(crate) revision: u64,
    pub(crate) record: Record,
}

/// An error of the store: of the disk, or of its content.
pub(crate) type Failure = StateMachineError;

pub(crate) fn disk(error: rocksdb::Error) -> Failure {
    StateMachineError::Io(std::io::Error::other(error))
}

/// Writes without RocksDB's log: a crash keeps the write, or loses it together with all later ones of this kind.
pub(crate) fn write_unlogged(db: &Db, write: WriteBatch) -> Result<(), Failure> {
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    db.write_opt(write, &options).map_err(disk)
}

impl View<'_> {
    /// Calls `f` with every version in `range`, in the order of places.
    pub(crate) fn versions(
        &self,
        range: std::ops::Range<Vec<u8>>,
        mut f: impl FnMut(Version) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        if range.is_empty() {
            return Ok(());
        }
        let mut read = ReadOptions::default();
        read.set_total_order_seek(true);
        read.set_iterate_lower_bound(range.start.clone());
        read.set_iterate_upper_bound(range.end.clone());
        let stored = self.source.iterate(IteratorMode::Start, read);
        let stored = stored.map(|item| item.map(|(place, bytes)| (Vec::from(place), Bytes::from(bytes))));
        let added = self.overlay.range(range).map(|(place, bytes)| Ok((place.clone(), bytes.clone())));
        let merged = Merge { stored: stored.peekable(), added: added.peekable() };
        // Prefix and revision of the previous version, which is newer if it is of the same key.
        let mut newer: Option<(Vec<u8>, u64)> = None;
        for item in merged {
            let (place, bytes) = item.map_err(disk)?;
            let (prefix, revision) = keys::split_place(&place)?;
            let key = keys::key_of_prefix(prefix)?;
            let record = Record::decode(key.clone(), revision, &bytes)?;
            if !self.deletions.is_empty() && record != Record::Deleted {
                let through =
                    newer.as_ref().filter(|(of, _)| of == prefix).map_or(u64::MAX, |(_, at)| at - 1);
                if let Some(revision) = self.deletions.deleted_at(prefix, revision, through) {
                    let deletion = Version { key: key.clone(), revision, record: Record::Deleted };
                    if f(deletion).is_break() {
                        break;
                    }
                }
            }
            if !self.deletions.is_empty() {
                newer = Some((prefix.to_vec(), revision));
            }
            if f(Version { key, revision, record }).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// First keys attached to a lease on disk, at most `max`, in key order.
    pub(crate) fn attached_keys(&self, lease_id: i64, max: usize) -> Result<Vec<Bytes>, Failure> {
        let mut keys = Vec::new();
        lease::visit_attached_keys(self.source, lease_id, |key| {
            if keys.len() == max {
                return Ok(ControlFlow::Break(()));
            }
            if self.is_attached(lease_id, &key)? {
                keys.push(key);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(keys)
    }

    /// Whether a key that is attached to a lease on disk exists: the deletion of a range leaves attachments for a moment.
    pub(crate) fn is_attached(&self, lease_id: i64, key: &[u8]) -> Result<bool, Failure> {
        if self.deletions.is_empty() {
            return Ok(true);
        }
        let counts = self.counts(&keys::prefix(key))?;
        Ok(counts.is_some_and(|counts| counts.version > 0 && counts.lease_id == lease_id))
    }

    /// Returns the version of a key that is in force at `revision`.
    pub(crate) fn version_of_key(&self, key: &Bytes, revision: u64) -> Result<Option<Version>, Failure> {
        let Some((revision, record)) = self.newest(&keys::prefix(key), revision)? else { return Ok(None) };
        let record = Record::decode(key.clone(), revision, &record)?;
        Ok(Some(Version { key: key.clone(), revision, record }))
    }

    /// Returns the newest version of the key with this prefix at or before `revision`.
    pub(crate) fn newest(&self, prefix: &[u8], revision: u64) -> FoundVersion {
        let place = keys::version_of(prefix.to_vec(), revision);
        let added = self.added(prefix, &place);
        let stored = self.source.first(&place)?;
        // If both have the same revision, the added version overwrote the stored one.
        let found = match (added, stored) {
            (Some(added), Some(stored)) if added.0 < stored.0 => Some(stored),
            (added, stored) => added.map(|(revision, record)| (revision, record.clone())).or(stored),
        };
        let Some((at, record)) = found.as_ref().filter(|_| !self.deletions.is_empty()) else {
            return Ok(found);
        };
        let deleted_at = self.deletions.deleted_at(prefix, *at, revision);
        Ok(match deleted_at {
            Some(revision) if !keys::is_deleted(record)? => Some((revision, Record::Deleted.encode().into())),
            _ => found,
        })
    }

    /// Returns the counts in the newest version of the key with this prefix. If a deletion of a range covers it, its
    /// version is 0, and it may still be attached to its lease.
    pub(crate) fn counts(&self, prefix: &[u8]) -> Result<Option<Counts>, Failure> {
        // Versions of the batch are newer than all stored ones.
        if let Some((_, record)) = self.added(prefix, prefix) {
            return Ok(Some(keys::counts(record)?));
        }
        let (revision, counts) = if let Some(Newest { revision, counts }) = self.source.known(prefix) {
            (revision, counts)
        } else {
            let stored = self.source.first(&keys::version_of(prefix.to_vec(), u64::MAX))?;
            let Some((revision, record)) = stored else { return Ok(None) };
            (revision, keys::counts(&record)?)
        };
        let is_covered = self.deletions.deleted_at(prefix, revision, u64::MAX).is_some();
        Ok(Some(if is_covered { Counts { lease_id: counts.lease_id, ..Counts::DELETED } } else { counts }))
    }

    /// Returns the first version of the key with this prefix, at or after `place`, that the batch wrote.
    fn added(&self, prefix: &[u8], place: &[u8]) -> Option<(u64, &Bytes)> {
        let (found, record) = self.overlay.range::<[u8], _>((Included(place), Unbounded)).next()?;
        let (of, revision) = keys::prefix_and_revision(found)?;
        (of == prefix).then_some((revision, record))
    }
}

type Item = Result<(Vec<u8>, Bytes), rocksdb::Error>;

/// Merges two ordered iterators. If both have the same place, the added version takes precedence: it overwrites within
/// one revision.
struct Merge<A: Iterator<Item = Item>, B: Iterator<Item = Item>> {
    stored: Peekable<A>,
    added: Peekable<B>,
}

impl<A: Iterator<Item = Item>, B: Iterator<Item = Item>> Iterator for Merge<A, B> {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        let (Some(Ok((stored, _))), Some(Ok((added, _)))) = (self.stored.peek(), self.added.peek()) else {
            return self.stored.next().or_else(|| self.added.next());
        };
        match stored.cmp(added) {
            std::cmp::Ordering::Less => self.stored.next(),
            std::cmp::Ordering::Greater => self.added.next(),
            std::cmp::Ordering::Equal => {
                self.stored.next();
                self.added.next()
            }
        }
    }
}
