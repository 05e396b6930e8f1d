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

use consensus_core::{LogId, NodeId, StorageError, codec};
use consensus_storage_rocksdb::{DataDir, Expected, Kind, MarkedDb};
use rocksdb::{DB, Options, SliceTransform};
use serde::{Deserialize, Serialize};

use crate::{keys, recent::Recent, view::Failure};

/// What the store knows of itself; written with every batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) applied: LogId,
    pub(crate) revision: u64,
    pub(crate) compacted: u64,
    pub(crate) last_client_id: u64,
}

impl Default for Meta {
    fn default() -> Self {
        Self { applied: LogId::ZERO, revision: 1, compacted: 0, last_client_id: 0 }
    }
}

pub(crate) const META_VERSION: u8 = 1;

/// Shared by the state machine, its readers and its snapshots.
#[derive(Debug)]
pub(crate) struct Store {
    dir: DataDir,
    current: RwLock<Arc<Generation>>,
    checkpoints: AtomicU64,
}

/// One RocksDB. Removed from disk when it is obsolete and nobody reads it any more.
#[derive(Debug)]
pub(crate) struct Generation {
    /// `None` only while it is dropped.
    db: Option<MarkedDb>,
    path: PathBuf,
    obsolete: AtomicBool,
    recent: Recent,
    /// What the last batch wrote of the store, for readers.
    meta: Mutex<Meta>,
}

impl Generation {
    /// Opens a RocksDB.
    pub(crate) fn open(path: PathBuf, expected: Expected) -> Result<Self, StorageError> {
        let db = MarkedDb::open(&options(), &path, &path.join(MARK), expected)?;
        let unreadable = |error: Failure| StorageError::Corrupt {
            position: path.display().to_string(),
            why: error.to_string(),
        };
        let meta = Mutex::new(load_meta(&db).map_err(unreadable)?);
        let (recent, obsolete) = (Recent::new(knob("RECENT", 1 << 18)), AtomicBool::new(false));
        Ok(Self { db: Some(db), path, obsolete, recent, meta })
    }

    /// What is known in memory of the versions in the database.
    pub(crate) fn recent(&self) -> &Recent {
        &self.recent
    }

    /// As of the last batch.
    pub(crate) fn meta(&self) -> Meta {
        *self.meta.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets readers see what a batch has written.
    pub(crate) fn publish(&self, meta: Meta) {
        *self.meta.lock().unwrap_or_else(PoisonError::into_inner) = meta;
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
    pub(crate) fn open(path: &Path, node: NodeId) -> Result<Self, StorageError> {
        let dir = DataDir::open(path, KIND, node)?;
        let io = |doing: &str, source: io::Error| StorageError::Io {
            context: format!("{doing} {}", path.display()),
            source,
        };
        let damaged = |why: String| {
            let position = format!("{}/{CURRENT}", path.display());
            Err(StorageError::Corrupt { position, why })
        };
        let current = dir.read(CURRENT)?;
        let name = current.as_ref().map_or(FIRST, |text| text.trim());
        if number_of(name).is_none() {
            return damaged(format!("{name:?} is not the name of a generation"));
        }
        let generation = if current.is_some() {
            Generation::open(dir.path().join(name), Expected::Marked)?
        } else {
            // The very first start, or one that was killed before it had come to write the file: then nothing else is
            // there, and nothing is in it.
            let place = dir.make_dir(FIRST).map_err(|error| io("making a directory in", error))?;
            let first = Generation::open(place, Expected::Perhaps)?;
            let others = others(dir.path(), FIRST).map_err(|error| io("reading", error))?;
            if first.db().latest_sequence_number() > 0 || !others.is_empty() {
                return damaged("it is missing, and there is data".to_owned());
            }
            dir.replace(CURRENT, &format!("{FIRST}\n")).map_err(|error| io("writing CURRENT in", error))?;
            first
        };
        // Only now, when the one in use is known to be well.
        for leftover in others(dir.path(), name).map_err(|error| io("reading", error))? {
            fs::remove_dir_all(leftover).map_err(|error| io("tidying", error))?;
        }
        Ok(Self { dir, current: RwLock::new(Arc::new(generation)), checkpoints: AtomicU64::new(0) })
    }

    pub(crate) fn current(&self) -> Arc<Generation> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
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
    pub(crate) fn switch(&self, generation: Generation) -> io::Result<()> {
        let name = generation.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        self.dir.replace(CURRENT, &format!("{name}\n"))?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *current, Arc::new(generation));
        old.obsolete.store(true, Ordering::Release);
        Ok(())
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
    options.set_write_buffer_size((knob("WB", 64)) << 20);
    if knob("CONC", 1) == 0 { options.set_allow_concurrent_memtable_write(false); }
    if knob("L0", 0) == 1 { use rocksdb::DBCompressionType::{Lz4, None}; options.set_compression_per_level(&[None, Lz4, Lz4, Lz4, Lz4, Lz4, Lz4]); }
    if knob("HUGE", 0) > 0 { options.set_memtable_huge_page_size(knob("HUGE", 0) << 20); }
    if knob("TRIG", 0) > 0 { options.set_level_zero_file_num_compaction_trigger(knob("TRIG", 0) as i32); }
    if knob("MERGE", 0) > 0 { options.set_min_write_buffer_number_to_merge(knob("MERGE", 0) as i32); }
    if knob("YIELD", 1) == 0 { options.set_enable_write_thread_adaptive_yield(false); }
    options.set_max_write_buffer_number(4);
    options.set_max_background_jobs(2);
    options.set_compression_type(rocksdb::DBCompressionType::Lz4);
    options.set_keep_log_file_num(6);
    options.set_max_log_file_size(4 << 20);
    options.set_prefix_extractor(SliceTransform::create(PREFIX_NAME, place_prefix, Some(has_prefix)));
    options.set_memtable_prefix_bloom_ratio(knob("BLOOM", 20) as f64 / 1000.0);
    let mut table = rocksdb::BlockBasedOptions::default();
    if knob("CLOCK", 0) == 1 { table.set_block_cache(&rocksdb::Cache::new_hyper_clock_cache(BLOCK_CACHE_BYTES, 0)); } else {
    table.set_block_cache(&rocksdb::Cache::new_lru_cache(BLOCK_CACHE_BYTES)); }
    if knob("BLOCK", 4) != 4 { table.set_block_size(knob("BLOCK", 4) << 10); }
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
const KIND: Kind = Kind { name: "kv-state", oldest: 2, format: 2 };
const CURRENT: &str = "CURRENT";
const FIRST: &str = "gen-1";
/// In a generation's directory: how far its RocksDB had been written.
const MARK: &str = "MARK";
const BLOCK_CACHE_BYTES: usize = 128 << 20;

pub(crate) fn knob(name: &str, default: usize) -> usize { std::env::var(name).map_or(default, |v| v.parse().unwrap()) }
