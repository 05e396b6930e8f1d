//! The directory of a store and the RocksDB in it.
//!
//! ```text
//! IDENTITY, LOCK     whose it is
//! CURRENT            name of the generation in use, and a checksum
//! gen-7/             a RocksDB; a restored snapshot is a new generation
//! checkpoint-3/      a snapshot being sent
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use consensus_core::{LogId, NodeId, StateMachineError, StorageError, codec};
use consensus_storage_rocksdb::{DataDir, DirKind, Expected, MarkedDb};
use rocksdb::{DB, DBCompressionType, Options, SliceTransform};
use serde::{Deserialize, Serialize};

use crate::{
    alarm::{AlarmTable, Alarms},
    keys,
    lease::LeaseTable,
    recent::Recent,
    view::Failure,
    watch::Hub,
};

/// What the store knows of itself; written with every batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) applied: LogId,
    pub(crate) revision: u64,
    pub(crate) compacted: u64,
    pub(crate) last_client_id: u64,
    /// Greatest id of a member that is in use, was in use, or is reserved, as far as that was noted.
    pub(crate) last_member_id: u64,
}

impl Default for Meta {
    fn default() -> Self {
        Self { applied: LogId::ZERO, revision: 1, compacted: 0, last_client_id: 0, last_member_id: 0 }
    }
}

pub(crate) const META_VERSION: u8 = 1;

/// Shared by the state machine, its readers and its snapshots.
#[derive(Debug)]
pub(crate) struct Store {
    dir: DataDir,
    current: RwLock<Arc<Generation>>,
    checkpoints: AtomicU64,
    /// Keys whose newest versions are known in memory.
    recent_max: usize,
    hub: Arc<Hub>,
}

/// One RocksDB. Removed from disk when it is obsolete and nobody reads it any more.
#[derive(Debug)]
pub(crate) struct Generation {
    /// `None` only while it is dropped.
    db: Option<MarkedDb>,
    path: PathBuf,
    obsolete: AtomicBool,
    recent: Recent,
    leases: LeaseTable,
    alarms: AlarmTable,
    /// Bytes that batches have written since it was opened.
    written: AtomicU64,
    /// What the last batch wrote of the store, for readers.
    meta: Mutex<Meta>,
}

impl Generation {
    /// Opens a RocksDB.
    fn open(path: PathBuf, expected: Expected, recent_max: usize) -> Result<Self, StorageError> {
        let db = MarkedDb::open(&options(), &path, &path.join(MARK), expected)?;
        let unreadable = |error: Failure| StorageError::Corrupt {
            position: path.display().to_string(),
            why: error.to_string(),
        };
        let meta = Mutex::new(load_meta(&db).map_err(unreadable)?);
        let leases = LeaseTable::load(&db).map_err(unreadable)?;
        let alarms = AlarmTable::new(Alarms::load(&db).map_err(unreadable)?);
        let written = AtomicU64::new(0);
        let (recent, obsolete) = (Recent::new(recent_max), AtomicBool::new(false));
        Ok(Self { db: Some(db), path, obsolete, recent, leases, alarms, written, meta })
    }

    /// What is known in memory of the versions in the database.
    pub(crate) fn recent(&self) -> &Recent {
        &self.recent
    }

    /// The leases, as of the last batch.
    pub(crate) fn leases(&self) -> &LeaseTable {
        &self.leases
    }

    /// The alarms, as of the last batch.
    pub(crate) fn alarms(&self) -> &AlarmTable {
        &self.alarms
    }

    /// Bytes that batches have written since the database was opened.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    pub(crate) fn note_written(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that the database has on disk, and in memory before they are there.
    pub(crate) fn disk_bytes(&self) -> Result<u64, Failure> {
        let bytes = |name: &str| self.db().property_int_value(name).map_err(crate::view::disk);
        let (tables, memory) =
            (bytes("rocksdb.total-sst-files-size")?, bytes("rocksdb.cur-size-all-mem-tables")?);
        Ok(tables.unwrap_or(0) + memory.unwrap_or(0))
    }

    /// As of the last batch.
    pub(crate) fn meta(&self) -> Meta {
        *self.meta.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets readers see what a batch has written.
    pub(crate) fn publish(&self, meta: Meta) {
        *self.meta.lock().unwrap_or_else(PoisonError::into_inner) = meta;
    }

    /// Of its directory.
    fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// Has it removed from disk when nobody reads it any more.
    pub(crate) fn discard(&self) {
        self.obsolete.store(true, Ordering::Release);
    }

    pub(crate) fn db(&self) -> &MarkedDb {
        self.db.as_ref().expect("a generation has its database until it is dropped")
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.db = None;
        if self.obsolete.load(Ordering::Acquire)
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove an old generation; the next start will");
        }
    }
}

impl Store {
    pub(crate) fn open(path: &Path, node: NodeId, recent_max: usize) -> Result<Self, StorageError> {
        let dir = DataDir::open(path, KIND, node)?;
        let io = |doing: &str, source: io::Error| StorageError::Io {
            context: format!("{doing} {}", path.display()),
            source,
        };
        let damaged = |why: String| {
            let position = format!("{}/{CURRENT}", path.display());
            Err(StorageError::Corrupt { position, why })
        };
        let current = dir.read_file(CURRENT)?;
        let name = current.as_ref().map_or(FIRST, |text| text.trim());
        if number_of(name).is_none() {
            return damaged(format!("{name:?} is not the name of a generation"));
        }
        let generation = if current.is_some() {
            Generation::open(dir.path().join(name), Expected::Marked, recent_max)?
        } else {
            // The very first start, or one that was killed before it had come to write the file: then nothing else is
            // there, and nothing is in it.
            let place = dir.create_dir(FIRST).map_err(|error| io("making a directory in", error))?;
            let first = Generation::open(place, Expected::MaybeAbsent, recent_max)?;
            let others = others(dir.path(), FIRST).map_err(|error| io("reading", error))?;
            if first.db().latest_sequence_number() > 0 || !others.is_empty() {
                return damaged("it is missing, and there is data".to_owned());
            }
            dir.replace_file(CURRENT, &format!("{FIRST}\n"))
                .map_err(|error| io("writing CURRENT in", error))?;
            first
        };
        // Only now, when the one in use is known to be well.
        for leftover in others(dir.path(), name).map_err(|error| io("reading", error))? {
            fs::remove_dir_all(leftover).map_err(|error| io("tidying", error))?;
        }
        let current = RwLock::new(Arc::new(generation));
        Ok(Self { dir, current, checkpoints: AtomicU64::new(0), recent_max, hub: Arc::default() })
    }

    pub(crate) fn current(&self) -> Arc<Generation> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What watches are told by.
    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Opens what was received into the directory `path`.
    pub(crate) fn open_received(&self, path: PathBuf) -> Result<Generation, StorageError> {
        Generation::open(path, Expected::Received, self.recent_max)
    }

    /// A place for a checkpoint, unused.
    pub(crate) fn checkpoint_path(&self) -> PathBuf {
        let number = self.checkpoints.fetch_add(1, Ordering::Relaxed);
        self.dir.path().join(format!("checkpoint-{number}"))
    }

    /// A place for a new generation, empty.
    pub(crate) fn next_generation_path(&self) -> io::Result<PathBuf> {
        let current = self.current();
        let name = current.path.file_name().and_then(|name| name.to_str()).and_then(number_of).unwrap_or(0);
        let path = self.dir.path().join(format!("gen-{}", name + 1));
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir(&path)?,
        }
        Ok(path)
    }

    /// Makes `generation`, whose files are on disk, the one in use. The rename of `CURRENT` is the moment.
    ///
    /// # Errors
    /// The one from before is in use, but after [`StateMachineError::Broken`] it may not be the one that the next start finds.
    pub(crate) fn switch(&self, generation: Generation) -> Result<(), Failure> {
        if let Err(error) = self.note_current(&generation) {
            // The file may be renamed although that is not durable.
            let old = self.current();
            let is_old = |text: &String| text.trim() == old.name();
            let is_as_before = matches!(self.dir.read_file(CURRENT), Ok(Some(text)) if is_old(&text));
            if !is_as_before && let Err(again) = self.note_current(&old) {
                let path = self.dir.path().join(CURRENT);
                return Err(StateMachineError::Broken(format!(
                    "{} could not be written ({error}), nor written back ({again}): the next start finds the state from before or the snapshot",
                    path.display()
                )));
            }
            generation.discard();
            return Err(error.into());
        }
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *current, Arc::new(generation));
        old.discard();
        Ok(())
    }

    fn note_current(&self, generation: &Generation) -> io::Result<()> {
        self.dir.replace_file(CURRENT, &format!("{}\n", generation.name()))
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Reads a store's meta record from a database or a snapshot of one.
pub(crate) fn read_meta(bytes: Option<Vec<u8>>) -> Result<Meta, Failure> {
    bytes.map_or_else(|| Ok(Meta::default()), |bytes| Ok(codec::decode("meta record", META_VERSION, &bytes)?))
}

fn load_meta(db: &DB) -> Result<Meta, Failure> {
    read_meta(db.get(keys::META).map_err(crate::view::disk)?)
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix("gen-").and_then(|number| number.parse().ok())
}

/// What lies beside the generation in use: half-received snapshots, checkpoints, older generations, left by a crash.
fn others(dir: &Path, current: &str) -> io::Result<Vec<PathBuf>> {
    let mut others = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("checkpoint-") || (number_of(&name).is_some() && name != current) {
            others.push(entry.path());
        }
    }
    Ok(others)
}

fn options() -> Options {
    let mut options = Options::default();
    options.set_paranoid_checks(true);
    // Who reads in memory does not remove files that a flush has left.
    options.set_avoid_unnecessary_blocking_io(true);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_write_buffer_number(4);
    options.set_max_background_jobs(2);
    // What is flushed is soon compacted: that it is small for so long is not worth the time.
    options.set_compression_per_level(&COMPRESSION);
    options.set_keep_log_file_num(6);
    options.set_max_log_file_size(4 << 20);
    options.set_prefix_extractor(SliceTransform::create(PREFIX_NAME, place_prefix, Some(has_prefix)));
    options.set_memtable_prefix_bloom_ratio(0.02); // 10 bits for each key with short values.
    let mut table = rocksdb::BlockBasedOptions::default();
    table.set_block_cache(&rocksdb::Cache::new_lru_cache(BLOCK_CACHE_BYTES));
    table.set_format_version(5);
    table.set_bloom_filter(10.0, false);
    table.set_whole_key_filtering(false);
    options.set_block_based_table_factory(&table);
    options
}

/// What the versions of a key have in common, for Bloom filters: most keys that are not there are known without a look. A
/// database made before has tables without filters, which is allowed.
fn place_prefix(place: &[u8]) -> &[u8] {
    keys::prefix_and_revision(place).map_or(place, |(prefix, _)| prefix)
}

fn has_prefix(place: &[u8]) -> bool {
    keys::prefix_and_revision(place).is_some()
}

/// Stands in every table. With another function it must be another name.
const PREFIX_NAME: &str = "kv.place.1";
const KIND: DirKind = DirKind { name: "kv-state", oldest_format: 2, format: 2 };
const CURRENT: &str = "CURRENT";
const FIRST: &str = "gen-1";
/// In a generation's directory: how far its RocksDB had been written.
const MARK: &str = "MARK";
/// Of 64 MiB an insertion costs a fifth more of the apply thread: the list is longer, and not in the processor's cache. Of
/// 16 MiB the flushes and compactions cost more than that saves.
const WRITE_BUFFER_BYTES: usize = 32 << 20;
/// By level.
const COMPRESSION: [DBCompressionType; 7] = {
    use DBCompressionType::{Lz4, None};
    [None, Lz4, Lz4, Lz4, Lz4, Lz4, Lz4]
};
const BLOCK_CACHE_BYTES: usize = 128 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{Base, Source};

    #[test]
    fn a_database_from_before_the_filters_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (place, names) = (|name: &str| keys::version(name.as_bytes(), 7), ["a", "b", "c"]);
        let mut plain = Options::default();
        plain.create_if_missing(true);
        let db = DB::open(&plain, dir.path()).unwrap();
        for name in names {
            db.put(place(name), name).unwrap();
        }
        db.flush().unwrap();
        drop(db);
        let generation = Generation::open(dir.path().to_owned(), Expected::Received, 0).unwrap();
        // Beside it a table with filters, and the memory.
        generation.db().put(place("d"), "d").unwrap();
        generation.db().flush().unwrap();
        generation.db().put(place("e"), "e").unwrap();
        let base = Base::new(&generation);
        let found = |name: &str| base.first(&keys::version(name.as_bytes(), 9)).unwrap();
        for name in names.into_iter().chain(["d", "e"]) {
            assert_eq!(found(name), Some((7, name.to_owned().into())));
        }
        for absent in ["", "aa", "dd", "f"] {
            assert_eq!(found(absent), None);
        }
        assert_eq!(base.first(&place("a")).unwrap(), Some((7, "a".into())));
        assert_eq!(base.first(&keys::version(b"a", 6)).unwrap(), None);
    }
}
