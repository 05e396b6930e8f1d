//! A RocksDB database that refuses to open when its end is missing.
//!
//! RocksDB opens a database whose newest file is truncated or missing as an older version of itself: a missing end of its
//! log looks like a write that a crash interrupted, and a missing end of its list of tables (the `MANIFEST`) like tables
//! that were never created. So the amount of data must be recorded outside of RocksDB.

use std::{
    io,
    ops::Deref,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use consensus_core::StorageError;
use consensus_storage_dir::{Mark, MarkFile};
use rocksdb::{DB, DBRecoveryMode, Options, WriteBatch, WriteOptions};

use crate::manifest;

/// A RocksDB database with a write mark in a small file outside of it. It does not open if durable data is missing; a write
/// that was not acknowledged may be missing.
///
/// # Limits
/// The mark is written after each synced write, and is not synced itself. It survives the end of the process. A power cut
/// may lose the marks of the last half minute. So without a power cut, damage to the disk is always noticed, and damage to
/// data older than half a minute is noticed in every case. Damage *and* a power cut together can hide the last writes before
/// the power cut, if the damage looks like an interrupted write (RocksDB's checksums detect other damage).
#[derive(Debug)]
pub struct MarkedDb {
    db: DB,
    mark: Mutex<MarkFile>,
}

/// Knowledge about a database before it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The database may not exist yet. Without a mark it is created.
    MaybeAbsent,
    /// The database exists, with a mark.
    Marked,
    /// The database is a complete copy from elsewhere. If it has no mark, one is created.
    Received,
}

impl MarkedDb {
    /// Opens the database in the directory `path`, whose mark is the file `mark`. Nothing except RocksDB's message log
    /// (`LOG`) is changed before the database is known to be complete.
    ///
    /// # Errors
    /// Data is missing or damaged, or cannot be read.
    pub fn open(
        options: &Options,
        path: &Path,
        mark: &Path,
        expected: Expected,
    ) -> Result<Self, StorageError> {
        let missing = |why: &str| {
            let position = mark.display().to_string();
            Err(StorageError::Corrupt { position, why: format!("the write mark is missing, {why}") })
        };
        let recorded = MarkFile::open(mark)?;
        let mut options = options.clone();
        options.set_max_open_files(open_files_max());
        manifest::check(path)?;
        manifest::check_logs(path)?;
        options.create_if_missing(recorded.is_none() && expected == Expected::MaybeAbsent);
        match &recorded {
            Some(recorded) => check_complete(&options, path, recorded.mark())?,
            None if expected == Expected::Marked => {
                return missing("though it was created together with the database");
            }
            None => {}
        }
        // The check against the mark has shown that an incomplete record at the end was never acknowledged.
        options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        let db = DB::open(&options, path).map_err(|error| open_error(path, &error))?;
        if recorded.is_none() && expected == Expected::MaybeAbsent && db.latest_sequence_number() > 0 {
            return missing("but the database contains data");
        }
        let file = match recorded {
            Some(mut file) => {
                let io = |source| StorageError::Io { context: format!("writing {}", mark.display()), source };
                file.write(mark_of(&db)).and_then(|()| file.sync()).map_err(io)?;
                file
            }
            None => MarkFile::create(mark, mark_of(&db))?,
        };
        Ok(Self { db, mark: Mutex::new(file) })
    }

    /// Writes a batch, which is durable on return.
    ///
    /// # Errors
    /// Those of RocksDB. It is then unknown what is on disk.
    pub fn write_synced(&self, batch: WriteBatch) -> io::Result<()> {
        let mut mark = self.mark();
        // Computed before the write: afterwards the number may include a concurrent write that was not synced.
        let writes = self.db.latest_sequence_number() + batch.len() as u64;
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.db.write_opt(batch, &options).map_err(io::Error::other)?;
        mark.write(Mark { writes, ..mark_of(&self.db) })
    }

    /// Makes all earlier writes durable.
    ///
    /// # Errors
    /// Those of RocksDB. It is then unknown what is on disk.
    pub fn flush_synced(&self) -> io::Result<()> {
        let mut mark = self.mark();
        let writes = self.db.latest_sequence_number();
        self.db.flush().map_err(io::Error::other)?;
        mark.write(Mark { writes, ..mark_of(&self.db) })?;
        mark.sync()
    }

    /// Whether RocksDB accepts writes. After most failures of a flush or a compaction it does not, until it is opened again: it has
    /// no call that ends this state.
    #[must_use]
    pub fn accepts_writes(&self) -> bool {
        self.db.write(WriteBatch::default()).is_ok()
    }

    fn mark(&self) -> MutexGuard<'_, MarkFile> {
        self.mark.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Most files that each [`MarkedDb`] of this process keeps open, not counting a few that are in use: an eighth of the files
/// that the process may open (its soft limit, `ulimit -n`).
#[must_use]
pub fn open_files_max() -> i32 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    open_files_max_for(limit.unwrap_or(u64::MAX))
}

/// Like [`open_files_max`], for a process that may open `limit` files.
#[must_use]
pub fn open_files_max_for(limit: u64) -> i32 {
    // RocksDB needs at least 20. 8192 tables of 64 MiB are half a terabyte.
    i32::try_from(limit / 8).unwrap_or(i32::MAX).clamp(32, 8192)
}

impl Deref for MarkedDb {
    type Target = DB;

    fn deref(&self) -> &DB {
        &self.db
    }
}

impl Drop for MarkedDb {
    fn drop(&mut self) {
        // Makes the newest mark survive a power cut. A failure does not endanger the data.
        let _ = self.mark().sync();
    }
}

/// Checks, without changing anything, that the database has all data that was recorded. Of a damaged or incomplete log, only
/// the part before the damage counts.
fn check_complete(options: &Options, path: &Path, recorded: Mark) -> Result<(), StorageError> {
    let mut options = options.clone();
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    let db = DB::open_for_read_only(&options, path, false).map_err(|error| open_error(path, &error))?;
    let position = path.display().to_string();
    missing_part(mark_of(&db), recorded).map_or(Ok(()), |why| Err(StorageError::Corrupt { position, why }))
}

/// The mark of `db` as it is now: the number of records since it was created (RocksDB's sequence number), and the oldest log
/// file that it still needs, which changes when data is moved to a table.
fn mark_of(db: &DB) -> Mark {
    let file = db.property_int_value("rocksdb.min-log-number-to-keep").ok().flatten().unwrap_or(0);
    Mark { writes: db.latest_sequence_number(), file }
}

/// Describes what `found` lacks of `recorded`; `None` if nothing is missing.
fn missing_part(found: Mark, recorded: Mark) -> Option<String> {
    let Mark { writes, file } = found;
    if writes < recorded.writes {
        let recorded = recorded.writes;
        return Some(format!(
            "RocksDB finds {writes} of the {recorded} records that were written: the end of its log or of its MANIFEST is missing"
        ));
    }
    (file < recorded.file).then(|| {
        let recorded = recorded.file;
        format!("RocksDB looks for its log file {file}, but had advanced to file {recorded}: the end of its MANIFEST is missing")
    })
}

fn open_error(path: &Path, error: &rocksdb::Error) -> StorageError {
    let position = path.display().to_string();
    match error.kind() {
        rocksdb::ErrorKind::Corruption => StorageError::Corrupt { position, why: error.to_string() },
        _ => {
            let source = io::Error::other(error.to_string());
            StorageError::Io { context: format!("opening {position}"), source }
        }
    }
}
