//! The log storage: layout, writes and reads.
//!
//! ```text
//! key                      value
//! "e" index (8, BE)        record of the entry
//! "h"                      hard state
//! "l"                      log id of the last entry
//! "p"                      purged position and its configuration
//! ```

use std::{
    error::Error,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use consensus_core::{
    Damage, Entry, LogBatch, LogId, LogIndex, LogState, LogStorage, Membership, NodeId, Payload,
    SnapshotMeta, StorageError, codec, record,
};
use rocksdb::{Direction, IteratorMode, Options, ReadOptions, WriteBatch};
use serde::de::DeserializeOwned;

use crate::{DataDir, DirKind, Expected, MarkedDb, Reserve};

/// A [`LogStorage`] in a RocksDB database.
#[derive(Debug)]
pub struct RocksLogStorage {
    db: MarkedDb,
    dir: DataDir,
    bounds: Mutex<Bounds>,
    reserve: Reserve,
}

/// First and last position of the log, and the error of a failed write.
#[derive(Debug, Default)]
struct Bounds {
    purged: LogIndex,
    last: LogIndex,
    failed: Option<String>,
}

impl RocksLogStorage {
    /// Opens the log of `node` in the directory `path`; creates it if it does not exist.
    ///
    /// # Errors
    /// The directory belongs to another node or is in use, RocksDB cannot open it, or a record other than an entry is damaged.
    pub fn open(path: &Path, node: NodeId) -> Result<Self, StorageError> {
        let dir = DataDir::open(path, KIND, node)?;
        let db_path = dir.create_dir("rocksdb").map_err(|source| StorageError::Io {
            context: format!("creating a directory in {}", path.display()),
            source,
        })?;
        let db = MarkedDb::open(&options(), &db_path, &dir.path().join(MARK), Expected::MaybeAbsent)?;
        let storage = Self { db, reserve: Reserve::new(dir.path(), 0), dir, bounds: Mutex::default() };
        let state = storage.load()?;
        *storage.bounds() =
            Bounds { purged: state.purged.last.index, last: last_index(&state), failed: None };
        Ok(storage)
    }

    /// Refuses commands ([`StorageError::NoRoom`], not final) that would leave less than `bytes` free on the disk. RocksDB,
    /// and a state machine on the same disk, need space for background work; a completely full disk stops the node.
    /// Default: 0.
    #[must_use]
    pub fn with_reserve(mut self, bytes: u64) -> Self {
        self.reserve = Reserve::new(self.dir.path(), bytes);
        self
    }

    fn bounds(&self) -> MutexGuard<'_, Bounds> {
        self.bounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn io_error(&self, doing: &str, error: impl Into<Box<dyn Error + Send + Sync>>) -> StorageError {
        let context = format!("{doing} {}", self.dir.path().display());
        StorageError::Io { context, source: std::io::Error::other(error) }
    }

    fn corrupt(&self, what: &str, why: impl ToString) -> StorageError {
        let position = format!("{what} in {}", self.dir.path().display());
        StorageError::Corrupt { position, why: why.to_string() }
    }

    /// Reads a record that is not an entry; the default value if it was never written.
    fn get_small<T: DeserializeOwned + Default>(
        &self,
        key: &[u8],
        what: &'static str,
    ) -> Result<T, StorageError> {
        let value = self.db.get_pinned(key).map_err(|error| self.io_error("reading", error))?;
        let Some(bytes) = value else { return Ok(T::default()) };
        codec::decode(what, META_VERSION, &bytes).map_err(|error| self.corrupt(what, error))
    }

    /// Log id of the last entry after `batch`, whose index is `last`; `None` if it is unchanged.
    fn new_last_entry(
        &self,
        before: &Bounds,
        batch: &LogBatch,
        last: LogIndex,
    ) -> Result<Option<LogId>, StorageError> {
        if let Some(entry) = batch.entries.last() {
            return Ok(Some(entry.id));
        }
        let purged = batch.purge.as_ref().map(|meta| meta.last).filter(|purged| purged.index == last);
        if last == before.last || purged.is_some() {
            return Ok(purged);
        }
        // The log was truncated and nothing was appended.
        if last == before.purged {
            return Ok(Some(self.get_small::<SnapshotMeta>(PURGED, "the purged position")?.last));
        }
        Ok(self.read(last.prev(), last, 0)?.first().map(|entry| entry.id))
    }

    /// All readable configurations after `index`, also those after damaged entries.
    fn memberships_after(&self, index: LogIndex) -> Vec<Membership> {
        let from = entry_key(index.next());
        let entries = self.db.iterator(IteratorMode::From(&from, Direction::Forward)).map_while(Result::ok);
        let entries = entries.filter(|(key, _)| key.first() == Some(&ENTRY));
        let read = entries.filter_map(|(_, value)| record::decode(&Bytes::from(value)).ok());
        read.filter_map(|entry| match entry.payload {
            Payload::Membership(membership) => Some(membership),
            _ => None,
        })
        .collect()
    }

    /// Calls `f` with the entries after `after`, in order, until it returns `false`.
    fn scan(
        &self,
        after: LogIndex,
        mut f: impl FnMut(Entry) -> Result<bool, StorageError>,
    ) -> Result<(), StorageError> {
        let mut read = ReadOptions::default();
        read.set_iterate_upper_bound(UPPER.to_vec());
        let from = entry_key(after.next());
        for item in self.db.iterator_opt(IteratorMode::From(&from, Direction::Forward), read) {
            let (key, value) = item.map_err(|error| self.io_error("reading", error))?;
            let name = || format!("the record of log index {}", index_of(&key).unwrap_or_default());
            let entry = record::decode(&Bytes::from(value)).map_err(|error| self.corrupt(&name(), error))?;
            if index_of(&key) != Some(entry.id.index) {
                return Err(self.corrupt(&name(), format!("it holds entry {}", entry.id)));
            }
            if !f(entry)? {
                break;
            }
        }
        Ok(())
    }
}

impl LogStorage for RocksLogStorage {
    fn load(&self) -> Result<LogState, StorageError> {
        let hard_state = self.get_small(HARD_STATE, "the hard state")?;
        let purged = self.get_small(PURGED, "the purged position")?;
        let mut state = LogState { storage: self.dir.storage(), hard_state, purged, ..LogState::default() };
        match self.scan(LogIndex::ZERO, |entry| state.push(&entry).map(|()| true)) {
            Err(StorageError::Corrupt { position, why }) => {
                let last = self.get_small(LAST, "the position of the last entry")?;
                let memberships = self.memberships_after(state.last().index);
                state.damage = Some(Damage { last, memberships, position, why });
            }
            scanned => scanned?,
        }
        Ok(state)
    }

    fn write(&self, batch: LogBatch) -> Result<(), StorageError> {
        let mut bounds = self.bounds();
        if let Some(why) = &bounds.failed {
            return Err(StorageError::Failed(why.clone()));
        }
        if batch.must_leave_reserve() {
            let bytes = batch.entries.iter().map(Entry::size_bytes).sum();
            if let Err(why) = self.reserve.check(bytes) {
                return Err(StorageError::NoRoom { why, batch: Box::new(batch) });
            }
        }
        let (mut write, purged, last) = plan_write(&bounds, &batch)?;
        if let Some(id) = self.new_last_entry(&bounds, &batch, last)? {
            write.put(LAST, codec::encode(META_VERSION, &id));
        }
        if let Err(error) = self.db.write_synced(write) {
            bounds.failed = Some(error.to_string());
            return Err(self.io_error("writing", error));
        }
        bounds.purged = purged;
        bounds.last = last;
        Ok(())
    }

    fn read(&self, after: LogIndex, last: LogIndex, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut next = after.next();
        if after >= last {
            return Ok(entries);
        }
        let mut gap = false;
        self.scan(after, |entry| {
            gap = entry.id.index != next;
            bytes += entry.size_bytes();
            if gap || entry.id.index > last || (!entries.is_empty() && bytes > max_bytes) {
                return Ok(false);
            }
            next = next.next();
            entries.push(entry);
            Ok(true)
        })?;
        if entries.is_empty() {
            let bounds = self.bounds();
            return Err(StorageError::Missing {
                index: after.next(),
                purged: bounds.purged,
                last: bounds.last,
            });
        }
        Ok(entries)
    }
}

/// Converts `batch` to a write batch of RocksDB. Also returns the purged and the last index after it.
fn plan_write(bounds: &Bounds, batch: &LogBatch) -> Result<(WriteBatch, LogIndex, LogIndex), StorageError> {
    let mut write = WriteBatch::default();
    let mut purged = bounds.purged;
    let mut last = bounds.last;
    if let Some(meta) = &batch.purge {
        if meta.last.index < purged {
            let why = format!(
                "a purge up to index {}, but the log is purged up to {purged} already",
                meta.last.index
            );
            return Err(StorageError::Misuse(why));
        }
        write.delete_range(entry_key(purged.next()), entry_key(meta.last.index.next()));
        write.put(PURGED, codec::encode(META_VERSION, meta));
        purged = meta.last.index;
        last = last.max(purged);
    }
    if let Some(after) = batch.truncate_after {
        let after = after.max(purged);
        if after < last {
            write.delete_range(entry_key(after.next()), entry_key(last.next()));
            last = after;
        }
    }
    let mut buffer = Vec::new();
    for entry in &batch.entries {
        if entry.id.index != last.next() {
            return Err(StorageError::Misuse(format!("entry {} does not follow index {last}", entry.id)));
        }
        buffer.clear();
        record::encode(entry, &mut buffer);
        write.put(entry_key(entry.id.index), &buffer);
        last = entry.id.index;
    }
    if let Some(hard_state) = &batch.hard_state {
        write.put(HARD_STATE, codec::encode(META_VERSION, hard_state));
    }
    Ok((write, purged, last))
}

/// Last index on disk, also if its entry is not readable.
fn last_index(state: &LogState) -> LogIndex {
    state.damage.as_ref().map_or(state.last().index, |damage| damage.last.index)
}

fn options() -> Options {
    let mut options = Options::default();
    options.set_paranoid_checks(true);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_write_buffer_number(3);
    options.set_compression_type(rocksdb::DBCompressionType::Lz4);
    options.set_keep_log_file_num(6);
    options.set_max_log_file_size(4 << 20);
    options
}

fn entry_key(index: LogIndex) -> [u8; 9] {
    let mut key = [ENTRY; 9];
    key[1..].copy_from_slice(&index.0.to_be_bytes());
    key
}

fn index_of(key: &[u8]) -> Option<LogIndex> {
    key.get(1..9).and_then(|bytes| bytes.try_into().ok()).map(|bytes| LogIndex(u64::from_be_bytes(bytes)))
}

const KIND: DirKind = DirKind { name: "raft-log", oldest_format: 2, format: 2 };
/// Name of the file with the write mark.
const MARK: &str = "MARK";
const META_VERSION: u8 = 1;
const ENTRY: u8 = b'e';
/// After the last possible entry.
const UPPER: &[u8] = b"f";
const HARD_STATE: &[u8] = b"h";
/// Log id of the last entry, kept apart so that it is known even if the entry's record is damaged.
const LAST: &[u8] = b"l";
const PURGED: &[u8] = b"p";
/// Large enough that most entries are purged before they would be moved to a table.
const WRITE_BUFFER_BYTES: usize = 64 << 20;
