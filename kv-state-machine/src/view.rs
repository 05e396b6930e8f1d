//! The store as it stands at some moment: RocksDB, and what the batch in hand has added.

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
    ReadOptions, ReadTier, SingleThreaded,
};

use crate::{
    keys::{self, Record},
    lease::{Lease, LeaseTable},
    recent::{Counts, Recent},
    store::Generation,
};

type Db = DBWithThreadMode<SingleThreaded>;

/// Versions written by the batch in hand and not yet by RocksDB, by place.
pub(crate) type Overlay = BTreeMap<Vec<u8>, Bytes>;

/// Where versions are read from.
pub(crate) trait Source {
    fn iterate(&self, mode: IteratorMode<'_>, read: ReadOptions) -> DBIteratorWithThreadMode<'_, Db>;

    /// An iterator that copies nothing of what it passes.
    fn raw(&self, read: ReadOptions) -> DBRawIteratorWithThreadMode<'_, Db>;

    /// The record of the alarms.
    fn alarms(&self) -> Result<Option<Vec<u8>>, Failure>;

    /// The first version at `place` or after it that is of the same key.
    fn first(&self, place: &[u8]) -> Found;

    /// The counts in the newest version of the key with this prefix, if they are known without a look.
    fn known(&self, _prefix: &[u8]) -> Option<Counts> {
        None
    }

    /// A lease.
    fn lease(&self, _id: i64) -> Option<Lease> {
        None
    }
}

/// Revision and record of a version.
pub(crate) type Found = Result<Option<(u64, Bytes)>, Failure>;

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

    fn first(&self, place: &[u8]) -> Found {
        first(&mut self.raw_iterator_opt(of_one_key()), place).map_err(disk)
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

    fn first(&self, place: &[u8]) -> Found {
        first(&mut self.raw_iterator_opt(of_one_key()), place).map_err(disk)
    }
}

/// RocksDB as the last batch left it, with what is known of it in memory: what a batch is applied to, and what is read.
pub(crate) struct Base<'a> {
    db: &'a Db,
    recent: &'a Recent,
    leases: &'a LeaseTable,
    /// One for all keys of the batch: to make one costs more than to use it.
    seeker: RefCell<Option<DBRawIteratorWithThreadMode<'a, Db>>>,
    /// What is not in memory is not read.
    in_memory: bool,
    /// It met with something that is not.
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

    /// Only what can be read without the disk; the rest fails, and [`is_incomplete`](Self::is_incomplete) then.
    pub(crate) fn in_memory(generation: &'a Generation) -> Self {
        Self { in_memory: true, ..Self::new(generation) }
    }

    pub(crate) fn is_incomplete(&self) -> bool {
        self.incomplete.get()
    }

    fn of_one_key(&self) -> ReadOptions {
        let mut read = of_one_key();
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

    /// The newest version of a key, if it is known which that is, and that it is not before `place`. It may be gone by now,
    /// if something newer was written and all before that was compacted.
    fn newest(&self, place: &[u8]) -> Found {
        let known = keys::prefix_and_revision(place).and_then(|(prefix, revision)| {
            let newest = self.recent.get(prefix).filter(|newest| newest.revision <= revision)?;
            Some((prefix, newest.revision))
        });
        let Some((prefix, revision)) = known else { return Ok(None) };
        let place = keys::version_of(prefix.to_vec(), revision);
        let record = self.db.get_opt(place, &self.of_one_key()).map_err(|error| self.failed(error))?;
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

    fn first(&self, place: &[u8]) -> Found {
        if let Some(found) = self.newest(place)? {
            return Ok(Some(found));
        }
        let mut seeker = self.seeker.borrow_mut();
        let seeker = seeker.get_or_insert_with(|| self.db.raw_iterator_opt(self.of_one_key()));
        first(seeker, place).map_err(|error| self.failed(error))
    }

    fn known(&self, prefix: &[u8]) -> Option<Counts> {
        self.recent.get(prefix).map(|newest| newest.counts)
    }

    fn lease(&self, id: i64) -> Option<Lease> {
        self.leases.get(id)
    }
}

/// For reads of one key: Bloom filters are asked first, and no other key's versions are looked through.
fn of_one_key() -> ReadOptions {
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

/// Reads versions.
pub(crate) struct View<'a> {
    pub(crate) source: &'a dyn Source,
    pub(crate) overlay: &'a Overlay,
}

/// One version of a key.
pub(crate) struct Version {
    pub(crate) key: Bytes,
    pub(crate) revision: u64,
    pub(crate) record: Record,
}

/// An error on the way through the store: of the disk, or of what lies on it.
pub(crate) type Failure = StateMachineError;

pub(crate) fn disk(error: rocksdb::Error) -> Failure {
    StateMachineError::Io(std::io::Error::other(error))
}

impl View<'_> {
    /// Calls `f` with every version in `range`, in the order of their places or against it.
    pub(crate) fn versions(
        &self,
        range: std::ops::Range<Vec<u8>>,
        descending: bool,
        mut f: impl FnMut(Version) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        if range.is_empty() {
            return Ok(());
        }
        let mut read = ReadOptions::default();
        read.set_total_order_seek(true);
        read.set_iterate_lower_bound(range.start.clone());
        read.set_iterate_upper_bound(range.end.clone());
        let mode = if descending { IteratorMode::End } else { IteratorMode::Start };
        let stored = self.source.iterate(mode, read);
        let stored = stored.map(|item| item.map(|(place, bytes)| (Vec::from(place), Bytes::from(bytes))));
        let added = self.overlay.range(range).map(|(place, bytes)| Ok((place.clone(), bytes.clone())));
        let added: Box<dyn Iterator<Item = Item>> =
            if descending { Box::new(added.rev()) } else { Box::new(added) };
        let merged = Merge { stored: stored.peekable(), added: added.peekable(), descending };
        for item in merged {
            let (place, bytes) = item.map_err(disk)?;
            let (key, revision) = keys::split(&place)?;
            let record = Record::decode(key.clone(), revision, &bytes)?;
            if f(Version { key, revision, record }).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// The version of one key that is in force at `revision`.
    pub(crate) fn of_key(&self, key: &Bytes, revision: u64) -> Result<Option<Version>, Failure> {
        let Some((revision, record)) = self.newest(&keys::prefix(key), revision)? else { return Ok(None) };
        let record = Record::decode(key.clone(), revision, &record)?;
        Ok(Some(Version { key: key.clone(), revision, record }))
    }

    /// The newest version of the key with this prefix that is not after `revision`.
    pub(crate) fn newest(&self, prefix: &[u8], revision: u64) -> Found {
        let place = keys::version_of(prefix.to_vec(), revision);
        let added = self.added(prefix, &place);
        let stored = self.source.first(&place)?;
        // Where both have a revision, the added one overwrites the other.
        Ok(match (added, stored) {
            (Some(added), Some(stored)) if added.0 < stored.0 => Some(stored),
            (added, stored) => added.map(|(revision, record)| (revision, record.clone())).or(stored),
        })
    }

    /// The counts in the newest version of the key with this prefix.
    pub(crate) fn counts(&self, prefix: &[u8]) -> Result<Option<Counts>, Failure> {
        // What the batch wrote is newer than all that is stored.
        if let Some((_, record)) = self.added(prefix, prefix) {
            return Ok(Some(keys::counts(record)?));
        }
        if let Some(known) = self.source.known(prefix) {
            return Ok(Some(known));
        }
        let stored = self.source.first(&keys::version_of(prefix.to_vec(), u64::MAX))?;
        Ok(stored.map(|(_, record)| keys::counts(&record)).transpose()?)
    }

    /// The first version from `place` on that the batch wrote of the key with this prefix.
    fn added(&self, prefix: &[u8], place: &[u8]) -> Option<(u64, &Bytes)> {
        let (found, record) = self.overlay.range::<[u8], _>((Included(place), Unbounded)).next()?;
        let (of, revision) = keys::prefix_and_revision(found)?;
        (of == prefix).then_some((revision, record))
    }
}

type Item = Result<(Vec<u8>, Bytes), rocksdb::Error>;

/// Two ordered runs as one. Where both have a place, the added one counts: it overwrites within one revision.
struct Merge<A: Iterator<Item = Item>, B: Iterator<Item = Item>> {
    stored: Peekable<A>,
    added: Peekable<B>,
    descending: bool,
}

impl<A: Iterator<Item = Item>, B: Iterator<Item = Item>> Iterator for Merge<A, B> {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        let (Some(Ok((stored, _))), Some(Ok((added, _)))) = (self.stored.peek(), self.added.peek()) else {
            return self.stored.next().or_else(|| self.added.next());
        };
        let order = if self.descending { added.cmp(stored) } else { stored.cmp(added) };
        match order {
            std::cmp::Ordering::Less => self.stored.next(),
            std::cmp::Ordering::Greater => self.added.next(),
            std::cmp::Ordering::Equal => {
                self.stored.next();
                self.added.next()
            }
        }
    }
}
