//! The directory of a store and the RocksDB in it.
//!
//! ```text
//! IDENTITY, LOCK     the node that owns the directory
//! CURRENT            name of the generation in use, and a checksum
//! gen-7/             a RocksDB database; a restored snapshot is a new generation
//! checkpoint-3/      a snapshot being sent
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use consensus_core::{ClusterId, LogId, NodeId, StateMachineError, StorageError, codec};
use consensus_storage_rocksdb::{DataDir, DirKind, Expected, MarkedDb, Reserve};
use rocksdb::{DB, DBCompressionType, Options, SliceTransform};
use serde::{Deserialize, Serialize};

use crate::{
    alarm::{AlarmTable, Alarms},
    auth::{AuthState, AuthTable},
    keys,
    lease::LeaseTable,
    measure::Measures,
    pins::Pins,
    range_deletions::{RangeDeletion, RangeDeletions},
    recent::VersionCache,
    segments::{Recount, Segments},
    state_check::Checked,
    view::Failure,
    watch::Dispatcher,
};

/// Metadata of the store, written with every batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) applied: LogId,
    pub(crate) revision: u64,
    pub(crate) compacted: u64,
    pub(crate) last_client_id: u64,
    /// Greatest member id that is known to be in use, to have been in use, or to be reserved.
    pub(crate) last_member_id: u64,
    /// Identity of the cluster in the last configuration that was applied; [`ClusterId::NONE`] without one.
    pub(crate) cluster: ClusterId,
}

impl Default for Meta {
    fn default() -> Self {
        Self {
            applied: LogId::ZERO,
            revision: 1,
            compacted: 0,
            last_client_id: 0,
            last_member_id: 0,
            cluster: ClusterId::NONE,
        }
    }
}

/// Properties of RocksDB: bytes of tables on disk, and of memtables.
pub(crate) const TABLE_BYTES: &str = "rocksdb.total-sst-files-size";
pub(crate) const MEMTABLE_BYTES: &str = "rocksdb.cur-size-all-mem-tables";
pub(crate) const META_VERSION: u8 = 1;

/// Shared by the state machine, its readers and its snapshots.
#[derive(Debug)]
pub(crate) struct Store {
    dir: DataDir,
    current: RwLock<Arc<Generation>>,
    checkpoints: AtomicU64,
    tuning: Tuning,
    /// Whether deletions of ranges wait, for tests.
    are_deletions_held: AtomicBool,
    /// Bytes to leave free on the disk.
    reserve_bytes: AtomicU64,
    dispatcher: Arc<Dispatcher>,
    /// Whether a change waits until it can be flushed.
    waits_for_disk: AtomicBool,
    /// Users and roles. They are not part of a generation, so that the permissions of a generation that is replaced do not
    /// outlive it.
    auth: AuthTable,
    measures: Measures,
    checked: Checked,
}

/// Sizes that no response depends on. Nodes may differ in them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuning {
    /// Number of keys in the cache of newest versions.
    pub(crate) recent_max: usize,
    /// Number of keys above which a segment is split.
    pub(crate) segment_keys_max: u64,
    /// Number of keys above which a range is deleted by one record first.
    pub(crate) deletions_max: u64,
    /// Number of keys of such a range that are deleted in one write.
    pub(crate) deletion_part: u64,
    /// Bytes of blocks of tables that RocksDB keeps in memory.
    pub(crate) cache_bytes: usize,
}

/// The state that readers see.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    pub(crate) meta: Meta,
    /// Segments at the revision of `meta`.
    pub(crate) segments: Segments,
    /// Deletions of ranges that are being carried out.
    pub(crate) deletions: RangeDeletions,
}

/// One RocksDB database. If it is obsolete, its directory is removed when the last reader drops it.
#[derive(Debug)]
pub(crate) struct Generation {
    /// The database; `None` only while the generation is dropped.
    db: Option<MarkedDb>,
    path: PathBuf,
    obsolete: AtomicBool,
    recent: VersionCache,
    leases: LeaseTable,
    alarms: AlarmTable,
    /// Bytes written by batches since the database was opened.
    written: AtomicU64,
    /// State as of the last batch.
    published: Mutex<Published>,
    /// Held while a batch is written, or a part of a deletion of a range.
    exclusive: Mutex<()>,
    batches_waiting: AtomicU64,
    /// Result of the last garbage collection, until the next batch takes it over.
    recount: Mutex<Option<Recount>>,
    /// Revisions that reads of several parts need.
    pins: Arc<Pins>,
}

impl Generation {
    /// Opens a RocksDB database.
    fn open(path: PathBuf, expected: Expected, tuning: Tuning) -> Result<Self, StorageError> {
        let db = MarkedDb::open(&options(tuning.cache_bytes), &path, &path.join(MARK), expected)?;
        let unreadable = |error: Failure| StorageError::Corrupt {
            position: path.display().to_string(),
            why: error.to_string(),
        };
        let meta = load_meta(&db).map_err(unreadable)?;
        let segments = Segments::load(&db, tuning.segment_keys_max).map_err(unreadable)?;
        let leases = LeaseTable::load(&db).map_err(unreadable)?;
        let alarms = AlarmTable::new(Alarms::load(&db).map_err(unreadable)?);
        let written = AtomicU64::new(0);
        let (recent, obsolete) = (VersionCache::new(tuning.recent_max), AtomicBool::new(false));
        let deletions = RangeDeletions::load(&*db as &DB).map_err(unreadable)?;
        let published = Mutex::new(Published { meta, segments, deletions });
        let (exclusive, batches_waiting, recount) = (Mutex::default(), AtomicU64::new(0), Mutex::default());
        Ok(Self {
            db: Some(db),
            path,
            obsolete,
            recent,
            leases,
            alarms,
            written,
            published,
            exclusive,
            batches_waiting,
            recount,
            pins: Arc::default(),
        })
    }

    /// Revisions that reads of several parts need.
    pub(crate) fn pins(&self) -> &Arc<Pins> {
        &self.pins
    }

    /// Cache of newest versions.
    pub(crate) fn recent(&self) -> &VersionCache {
        &self.recent
    }

    /// Leases as of the last batch.
    pub(crate) fn leases(&self) -> &LeaseTable {
        &self.leases
    }

    /// Alarms as of the last batch.
    pub(crate) fn alarms(&self) -> &AlarmTable {
        &self.alarms
    }

    /// Bytes written by batches since the database was opened.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    pub(crate) fn add_written_bytes(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of the database on disk and in memtables.
    pub(crate) fn disk_bytes(&self) -> Result<u64, Failure> {
        Ok(self.property(TABLE_BYTES)? + self.property(MEMTABLE_BYTES)?)
    }

    /// A number of RocksDB; 0 if it has none of this name.
    pub(crate) fn property(&self, name: &str) -> Result<u64, Failure> {
        Ok(self.db().property_int_value(name).map_err(crate::view::disk)?.unwrap_or(0))
    }

    /// Metadata as of the last batch.
    pub(crate) fn meta(&self) -> Meta {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).meta
    }

    /// Metadata, and deletions of ranges that are being carried out.
    pub(crate) fn meta_and_deletions(&self) -> (Meta, RangeDeletions) {
        let published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        (published.meta, published.deletions.clone())
    }

    /// Deletions of ranges that are being carried out.
    pub(crate) fn deletions(&self) -> RangeDeletions {
        self.meta_and_deletions().1
    }

    /// State as of the last batch.
    pub(crate) fn published(&self) -> Published {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets readers see what a batch has written.
    pub(crate) fn publish(&self, meta: Meta, segments: Segments, deletion: Option<RangeDeletion>) {
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        (published.meta, published.segments) = (meta, segments);
        if let Some(deletion) = deletion {
            published.deletions = published.deletions.with(deletion);
        }
    }

    /// Replaces the deletions of ranges that are being carried out.
    pub(crate) fn update_deletions(&self, update: impl FnOnce(&RangeDeletions) -> RangeDeletions) {
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        published.deletions = update(&published.deletions);
    }

    /// Newest revision that watches can receive: all deletions of ranges up to it are carried out.
    pub(crate) fn watchable_revision(&self) -> u64 {
        let published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        published.deletions.first_revision().map_or(published.meta.revision, |first| first - 1)
    }

    /// Excludes other writers of versions, for a batch. It precedes deletions that wait as well.
    pub(crate) fn exclusive_for_batch(&self) -> MutexGuard<'_, ()> {
        self.batches_waiting.fetch_add(1, Ordering::AcqRel);
        let guard = self.exclusive.lock().unwrap_or_else(PoisonError::into_inner);
        self.batches_waiting.fetch_sub(1, Ordering::AcqRel);
        guard
    }

    /// Excludes other writers of versions, for a part of a deletion of a range.
    pub(crate) fn exclusive_for_deletion(&self) -> MutexGuard<'_, ()> {
        self.exclusive.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while a batch waits to be written. The lock alone is not fair.
    pub(crate) fn wait_for_batches(&self) {
        while self.batches_waiting.load(Ordering::Acquire) > 0 {
            std::thread::sleep(BATCH_POLL_INTERVAL);
        }
    }

    /// Keeps the result of a garbage collection for the next batch.
    pub(crate) fn set_recount(&self, recount: Recount) {
        *self.recount.lock().unwrap_or_else(PoisonError::into_inner) = Some(recount);
    }

    #[cfg(test)]
    pub(crate) fn has_recount(&self) -> bool {
        self.recount.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    pub(crate) fn take_recount(&self) -> Option<Recount> {
        self.recount.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Name of the generation's directory.
    fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// Marks the generation as obsolete: it is removed from disk when the last reader drops it.
    pub(crate) fn discard(&self) {
        self.obsolete.store(true, Ordering::Release);
    }

    /// Makes all writes durable.
    ///
    /// # Errors
    /// The disk failed: the call can be repeated. [`StateMachineError::Broken`] if RocksDB refuses all writes from now on.
    pub(crate) fn flush(&self) -> Result<(), StateMachineError> {
        self.check_writable()?;
        self.db().flush_synced().map_err(|error| self.failed("flushing", error))
    }

    /// Checks that a file can be made in the directory of the store. RocksDB accepts no writes after one flush that failed, so it is
    /// not asked to flush where it would fail.
    pub(crate) fn check_writable(&self) -> Result<(), StateMachineError> {
        let probe = self.path.join(PROBE);
        let removed = || match fs::remove_file(&probe) {
            // Another thread checks at the same time.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        };
        fs::write(&probe, PROBE).and_then(|()| removed()).map_err(|error| {
            let why = format!("{}: no file can be written: {error}", self.path.display());
            StateMachineError::Io(io::Error::new(error.kind(), why))
        })
    }

    /// Error of work that flushes the store.
    pub(crate) fn failed(&self, work: &str, error: impl std::fmt::Display) -> StateMachineError {
        let why = format!("{work} {}: {error}", self.path.display());
        if self.db().accepts_writes() {
            return StateMachineError::Io(io::Error::other(why));
        }
        StateMachineError::Broken(format!(
            "{why}; RocksDB accepts no more writes until it is opened again: start this node again when the cause is gone; its log \
             has what the store lacks"
        ))
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
            let path = self.path.display();
            tracing::warn!(%error, %path, "cannot remove an old generation; the next start will remove it");
        }
    }
}

impl Store {
    pub(crate) fn open(path: &Path, node: NodeId, tuning: Tuning) -> Result<Self, StorageError> {
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
        let name = current.as_ref().map_or(FIRST_GENERATION, |text| text.trim());
        if generation_number(name).is_none() {
            return damaged(format!("{name:?} is not the name of a generation"));
        }
        let generation = if current.is_some() {
            Generation::open(dir.path().join(name), Expected::Marked, tuning)?
        } else {
            // This is the first start, or the previous one was killed before it wrote the file. Then there is no other
            // generation, and this one is empty.
            let place =
                dir.create_dir(FIRST_GENERATION).map_err(|error| io("making a directory in", error))?;
            let first = Generation::open(place, Expected::MaybeAbsent, tuning)?;
            let leftovers = leftovers(dir.path(), FIRST_GENERATION).map_err(|error| io("reading", error))?;
            if first.db().latest_sequence_number() > 0 || !leftovers.is_empty() {
                return damaged(
                    "it is missing, but the directory contains data; replace this node".to_owned(),
                );
            }
            dir.replace_file(CURRENT, &format!("{FIRST_GENERATION}\n"))
                .map_err(|error| io("writing CURRENT in", error))?;
            first
        };
        // Leftovers are removed only after the generation in use was opened successfully.
        for leftover in leftovers(dir.path(), name).map_err(|error| io("reading", error))? {
            fs::remove_dir_all(leftover).map_err(|error| io("removing leftovers in", error))?;
        }
        let auth = AuthState::load(generation.db()).map_err(|error| StorageError::Corrupt {
            position: format!("{}/{name}", path.display()),
            why: error.to_string(),
        })?;
        let current = RwLock::new(Arc::new(generation));
        Ok(Self {
            dir,
            current,
            checkpoints: AtomicU64::new(0),
            tuning,
            are_deletions_held: AtomicBool::new(false),
            reserve_bytes: AtomicU64::new(0),
            dispatcher: Arc::default(),
            waits_for_disk: AtomicBool::new(false),
            auth: AuthTable::new(auth),
            measures: Measures::new(),
            checked: Checked::default(),
        })
    }

    pub(crate) fn set_reserve_bytes(&self, bytes: u64) {
        self.reserve_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Space that a deletion of a range must leave free on the disk: half of the reserve, since it makes room in the end.
    pub(crate) fn reserve_for_deletions(&self) -> Reserve {
        Reserve::new(self.path(), self.reserve_bytes.load(Ordering::Relaxed) / 2)
    }

    pub(crate) fn current(&self) -> Arc<Generation> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether deletions of ranges wait, for tests.
    pub(crate) fn are_deletions_held(&self) -> &AtomicBool {
        &self.are_deletions_held
    }

    pub(crate) fn tuning(&self) -> Tuning {
        self.tuning
    }

    /// Users and roles as of the last batch.
    pub(crate) fn auth(&self) -> &AuthTable {
        &self.auth
    }

    /// Dispatcher of changes to watches.
    pub(crate) fn waits_for_disk(&self) -> bool {
        self.waits_for_disk.load(Ordering::Relaxed)
    }

    pub(crate) fn set_waits_for_disk(&self, waits: bool) {
        self.waits_for_disk.store(waits, Ordering::Relaxed);
    }

    pub(crate) fn dispatcher(&self) -> &Arc<Dispatcher> {
        &self.dispatcher
    }

    /// Result of the last check of the state.
    pub(crate) fn checked(&self) -> &Checked {
        &self.checked
    }

    pub(crate) fn measures(&self) -> &Measures {
        &self.measures
    }

    /// Opens a generation that was received into the directory `path`.
    pub(crate) fn open_received(&self, path: PathBuf) -> Result<Generation, StorageError> {
        Generation::open(path, Expected::Received, self.tuning)
    }

    /// Path for a new checkpoint.
    pub(crate) fn checkpoint_path(&self) -> PathBuf {
        let number = self.checkpoints.fetch_add(1, Ordering::Relaxed);
        self.dir.path().join(format!("checkpoint-{number}"))
    }

    /// Path of a new generation, as an empty directory.
    pub(crate) fn next_generation_path(&self) -> io::Result<PathBuf> {
        let current = self.current();
        let name =
            current.path.file_name().and_then(|name| name.to_str()).and_then(generation_number).unwrap_or(0);
        let path = self.dir.path().join(format!("gen-{}", name + 1));
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir(&path)?,
        }
        Ok(path)
    }

    /// Makes `generation`, whose files are on disk, the current one. The rename of `CURRENT` is the commit point.
    ///
    /// # Errors
    /// The previous generation stays in use. After [`StateMachineError::Broken`] the next start may open either one.
    pub(crate) fn switch(&self, generation: Generation) -> Result<(), Failure> {
        if let Err(error) = self.write_current(&generation) {
            // The file may have been renamed although the rename is not durable.
            let old = self.current();
            let is_old = |text: &String| text.trim() == old.name();
            let is_as_before = matches!(self.dir.read_file(CURRENT), Ok(Some(text)) if is_old(&text));
            if !is_as_before && let Err(again) = self.write_current(&old) {
                let path = self.dir.path().join(CURRENT);
                return Err(StateMachineError::Broken(format!(
                    "{} could not be written ({error}), nor restored ({again}): the next start may \
                     open the previous state or the snapshot",
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

    fn write_current(&self, generation: &Generation) -> io::Result<()> {
        self.dir.replace_file(CURRENT, &format!("{}\n", generation.name()))
    }

    /// Path of the store.
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

fn generation_number(name: &str) -> Option<u64> {
    name.strip_prefix("gen-").and_then(|number| number.parse().ok())
}

/// Paths of everything except the generation in use: partly received snapshots, checkpoints and older generations that
/// a crash left.
fn leftovers(dir: &Path, current: &str) -> io::Result<Vec<PathBuf>> {
    let mut leftovers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("checkpoint-") || (generation_number(&name).is_some() && name != current) {
            leftovers.push(entry.path());
        }
    }
    Ok(leftovers)
}

fn options(cache_bytes: usize) -> Options {
    let mut options = Options::default();
    options.set_paranoid_checks(true);
    // A read in memory must not be delayed by the removal of files that a flush left.
    options.set_avoid_unnecessary_blocking_io(true);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_write_buffer_number(4);
    options.set_max_background_jobs(2);
    // Level 0 is not compressed: its files are soon compacted, so the time for compression would be wasted.
    options.set_compression_per_level(&COMPRESSION);
    options.set_keep_log_file_num(6);
    options.set_max_log_file_size(4 << 20);
    options.set_prefix_extractor(SliceTransform::create(PREFIX_NAME, place_prefix, Some(has_prefix)));
    options.set_memtable_prefix_bloom_ratio(0.02); // 10 bits for each key with short values.
    let mut table = rocksdb::BlockBasedOptions::default();
    table.set_block_cache(&rocksdb::Cache::new_lru_cache(cache_bytes));
    table.set_format_version(5);
    table.set_bloom_filter(10.0, false);
    table.set_whole_key_filtering(false);
    options.set_block_based_table_factory(&table);
    options
}

/// Common prefix of the versions of a key, for Bloom filters: reads of most missing keys need no access to tables.
/// Tables written before filters were introduced have none; RocksDB allows that.
fn place_prefix(place: &[u8]) -> &[u8] {
    keys::prefix_and_revision(place).map_or(place, |(prefix, _)| prefix)
}

fn has_prefix(place: &[u8]) -> bool {
    keys::prefix_and_revision(place).is_some()
}

/// Name of the prefix function, stored in every table. A different function needs a different name.
const PREFIX_NAME: &str = "kv.place.1";
const KIND: DirKind = DirKind { name: "kv-state", oldest_format: 5, format: 5 };
/// Time between two looks at whether a batch waits.
const BATCH_POLL_INTERVAL: Duration = Duration::from_micros(50);
const CURRENT: &str = "CURRENT";
const FIRST_GENERATION: &str = "gen-1";
/// File in a generation's directory that records up to where its RocksDB database was written.
const MARK: &str = "MARK";
/// Bytes of a memtable. With 64 MiB the apply thread uses a fifth more time per insertion, because the skip list is
/// longer and exceeds the processor's cache. With 16 MiB flushes and compactions cost more than that saves.
const WRITE_BUFFER_BYTES: usize = 32 << 20;
/// Compression of each level.
const COMPRESSION: [DBCompressionType; 7] = {
    use DBCompressionType::{Lz4, None};
    [None, Lz4, Lz4, Lz4, Lz4, Lz4, Lz4]
};
/// A file that is made and removed, to see whether that is possible.
const PROBE: &str = "PROBE";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{Base, Source};

    #[test]
    fn database_without_filters_is_readable() {
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
        let tuning = Tuning {
            recent_max: 0,
            segment_keys_max: 2,
            deletions_max: 2,
            deletion_part: 1,
            cache_bytes: 1 << 20,
        };
        let generation = Generation::open(dir.path().to_owned(), Expected::Received, tuning).unwrap();
        // The database also has a table with filters, and a memtable.
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
