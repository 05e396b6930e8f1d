//! Index of the keys that each revision changed, ordered by revision. A watch that starts at a past revision reads it.

use std::ops::ControlFlow::{self, Break, Continue};

use bytes::Bytes;
use consensus_core::codec;
use rocksdb::{DB, IteratorMode, ReadOptions, WriteBatch};

use crate::{
    KeyValue,
    keys::{self, Record},
    pending_writes::Change,
    range_deletions::RangeDeletions,
    view::{Base, Failure, Overlay, View, disk},
};

/// A change of a key, as it is delivered to a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// Whether the key was deleted. Then only the key and the `mod_revision` of `kv` are meaningful.
    pub deleted: bool,
    /// Key and value after the change.
    pub kv: KeyValue,
    /// Key and value before the change. `None` if there was none, if the watch did not request it, or if it was
    /// compacted.
    pub previous: Option<KeyValue>,
}

impl WatchEvent {
    /// Bytes of the event in a response: keys and values, and 80 for the rest of each pair.
    #[must_use]
    pub fn response_bytes(&self) -> usize {
        let size = |kv: &KeyValue| kv.key.len() + kv.value.len() + PAIR_BYTES;
        size(&self.kv) + self.previous.as_ref().map_or(0, size)
    }
}

/// Adds the keys that a batch changed to a RocksDB write.
pub(crate) fn write(changes: &[Change], write: &mut WriteBatch) {
    write_from(0, changes, write);
}

/// Same as [`write`] with numbers from `first`, for changes of a revision that has changes already. Returns the number
/// of records.
pub(crate) fn write_from(first: u32, changes: &[Change], write: &mut WriteBatch) -> u32 {
    let mut records = 0;
    for chunk in changes.chunks(CHUNK_LEN) {
        if let Some(last) = chunk.last() {
            write.put(keys::changes(last.revision, first + records), codec::encode(VERSION, &chunk));
            records += 1;
        }
    }
    records
}

/// Result of [`read`].
#[derive(Debug, Default)]
pub(crate) struct Read {
    pub(crate) changes: Vec<Change>,
    /// Last revision whose changes were read completely.
    pub(crate) through: u64,
    /// Whether the next revision has more changes than may be read at once.
    pub(crate) is_large_next: bool,
}

/// Reads the changes of revisions `from` to `to`. Stops after about `examined_max` changes, at the end of a revision; and
/// before a revision with more than [`LARGE_CHANGES`] changes or [`LARGE_BYTES`].
pub(crate) fn read(db: &DB, from: u64, to: u64, examined_max: usize) -> Result<Read, Failure> {
    let mut found = Read { through: to, ..Read::default() };
    let (mut revision, mut first, mut bytes) = (0, 0, 0);
    visit(db, from, |change| {
        if change.revision > to {
            return Break(());
        }
        if change.revision > revision {
            if found.changes.len() >= examined_max {
                found.through = change.revision - 1;
                return Break(());
            }
            (revision, first, bytes) = (change.revision, found.changes.len(), 0);
        }
        bytes += size_of(&change);
        found.changes.push(change);
        if found.changes.len() - first > LARGE_CHANGES || bytes > LARGE_BYTES {
            found.changes.truncate(first);
            (found.through, found.is_large_next) = (revision - 1, true);
            return Break(());
        }
        Continue(())
    })?;
    Ok(found)
}

/// Place of a change in the index of one generation. Other nodes have the same changes in other records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    /// Key of the record.
    record: Vec<u8>,
    /// Number of changes before it in the record.
    skip: usize,
}

impl Position {
    /// Before the first change of a revision.
    pub(crate) fn of_revision(revision: u64) -> Self {
        Self { record: keys::changes(revision, 0), skip: 0 }
    }
}

/// Calls `f` with each change from revision `from` on, in order, until it returns `Break`.
pub(crate) fn visit(db: &DB, from: u64, f: impl FnMut(Change) -> ControlFlow<()>) -> Result<(), Failure> {
    let position = Position::of_revision(from);
    visit_from(db, from, &position, f).map(drop)
}

/// Same as [`visit`], from a position. Returns the position of the change at which `f` returned `Break`.
pub(crate) fn visit_from(
    db: &DB,
    from: u64,
    position: &Position,
    mut f: impl FnMut(Change) -> ControlFlow<()>,
) -> Result<Option<Position>, Failure> {
    let mut read = ReadOptions::default();
    read.set_total_order_seek(true);
    read.set_iterate_lower_bound(position.record.clone());
    read.set_iterate_upper_bound(keys::CHANGES_END.to_vec());
    for item in db.iterator_opt(IteratorMode::Start, read) {
        let (record, bytes) = item.map_err(disk)?;
        let chunk: Vec<Change> = codec::decode("changes", VERSION, &bytes)?;
        let skip = if *record == *position.record { position.skip } else { 0 };
        for (skip, change) in chunk.into_iter().enumerate().skip(skip) {
            // A record is found under its last revision. It may begin with earlier ones.
            if change.revision >= from && f(change).is_break() {
                return Ok(Some(Position { record: record.into(), skip }));
            }
        }
    }
    Ok(None)
}

fn size_of(change: &Change) -> usize {
    change.key.len() + change.replaced.as_ref().map_or(0, Bytes::len)
}

/// Returns the event of a change, which is not newer than a deletion of a range that is being carried out; `None` if the written version was compacted.
pub(crate) fn event(base: &Base<'_>, change: &Change, previous: bool) -> Result<Option<WatchEvent>, Failure> {
    let (nothing, none) = (Overlay::new(), RangeDeletions::default());
    let view = View { source: base, overlay: &nothing, deletions: &none };
    let live = |revision: u64| -> Result<Option<KeyValue>, Failure> {
        let version = view.version_of_key(&change.key, revision)?;
        Ok(version.and_then(|version| match version.record {
            Record::Live(kv) => Some(kv),
            Record::Deleted => None,
        }))
    };
    let previous = if previous { live(change.revision - 1)? } else { None };
    let kv = if let Some(record) = &change.replaced {
        match Record::decode(change.key.clone(), change.revision, record)? {
            Record::Live(kv) => kv,
            Record::Deleted => deleted(change),
        }
    } else if change.deleted {
        deleted(change)
    } else {
        match live(change.revision)? {
            Some(kv) if kv.mod_revision == change.revision => kv,
            _ => return Ok(None),
        }
    };
    Ok(Some(WatchEvent { deleted: change.deleted, kv, previous }))
}

/// The pair of a deletion event: only key and revision are set.
fn deleted(change: &Change) -> KeyValue {
    let (key, mod_revision) = (change.key.clone(), change.revision);
    KeyValue { key, value: <_>::default(), create_revision: 0, mod_revision, version: 0, lease_id: 0 }
}

/// Removes the changes that no watch can read any more, those before revision `compacted`.
pub(crate) fn remove_compacted(compacted: u64, write: &mut WriteBatch) {
    write.delete_range(keys::changes(0, 0), keys::changes(compacted, 0));
}

const VERSION: u8 = 1;
/// Bytes of a pair in a response in addition to key and value.
const PAIR_BYTES: usize = 80;
/// Maximum number of changes in one record.
const CHUNK_LEN: usize = 256;
/// Greatest number of changes of a revision, and of bytes of their keys and replaced values, that are read at once.
const LARGE_CHANGES: usize = 50_000;
const LARGE_BYTES: usize = 16 << 20;
