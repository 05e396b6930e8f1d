//! A RocksDB that does not open as an older one than it is.
//!
//! One whose newest file is cut short, or of which a file is gone, opens as an older one: what is missing at the end of its
//! log looks like a write that a crash interrupted, and what is missing at the end of its list of tables (the `MANIFEST`)
//! like a table that was never made. Somebody else must remember how much there was.

use std::{
    io,
    ops::Deref,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use consensus_core::StorageError;
use consensus_storage_dir::{Mark, MarkFile};
use rocksdb::{DB, DBRecoveryMode, Options, WriteBatch, WriteOptions};

/// A RocksDB and, in a small file outside of it, how far it had been written. It is refused when something is missing that
/// was durable; a write that nobody was told of may be.
///
/// # The boundary
/// The mark is written after each synced write and not synced itself. A process that dies takes nothing of it; a power
/// cut may take the last half minute, and with it the memory of that. So damage to the disk is always noticed while there
/// was no power cut, and what is older than half a minute always; damage *and* a power cut together can make the last
/// writes before it disappear, if the damage looks like a write that was cut short (RocksDB refuses other damage by its
/// checksums).
#[derive(Debug)]
pub struct MarkedDb {
    db: DB,
    mark: Mutex<MarkFile>,
}

/// What is known of a RocksDB before it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It may never have been made, if there is no mark.
    Perhaps,
    /// It was made, and marked.
    Marked,
    /// It was made elsewhere, and is complete as it lies here. It gets a mark.
    Received,
}

impl MarkedDb {
    /// Opens the RocksDB in the directory `path`, whose mark is the file `mark`. Nothing but RocksDB's own journal
    /// (`LOG`) is changed before it is certain that all is there.
    ///
    /// # Errors
    /// Something is missing or damaged, or cannot be read.
    pub fn open(
        options: &Options,
        path: &Path,
        mark: &Path,
        expected: Expected,
    ) -> Result<Self, StorageError> {
        let missing = |why: &str| {
            let (position, why) = (mark.display().to_string(), format!("it is missing, {why}"));
            Err(StorageError::Corrupt { position, why })
        };
        let noted = MarkFile::open(mark)?;
        let mut options = options.clone();
        options.set_max_open_files(open_files_max());
        options.create_if_missing(noted.is_none() && expected == Expected::Perhaps);
        match &noted {
            Some(noted) => look(&options, path, noted.mark())?,
            None if expected == Expected::Marked => return missing("and was made together with the RocksDB"),
            None => {}
        }
        // What ends in the middle of a record is a write that nobody was told of, as the mark has shown.
        options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        let db = DB::open(&options, path).map_err(|error| opening(path, &error))?;
        if noted.is_none() && expected == Expected::Perhaps && db.latest_sequence_number() > 0 {
            return missing("and the RocksDB holds data");
        }
        let file = match noted {
            Some(mut file) => {
                let io = |source| StorageError::Io { context: format!("writing {}", mark.display()), source };
                file.write(mark_of(&db)).and_then(|()| file.sync()).map_err(io)?;
                file
            }
            None => MarkFile::create(mark, mark_of(&db))?,
        };
        Ok(Self { db, mark: Mutex::new(file) })
    }

    /// Writes a batch; it is durable on return.
    ///
    /// # Errors
    /// What is on disk is unknown then.
    pub fn write_synced(&self, batch: WriteBatch) -> io::Result<()> {
        let mut mark = self.mark();
        // Not the number afterwards: another write, unsynced, may have come in between.
        let writes = self.db.latest_sequence_number() + batch.len() as u64;
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.db.write_opt(batch, &options).map_err(io::Error::other)?;
        mark.write(Mark { writes, ..mark_of(&self.db) })
    }

    /// Makes all writes durable that returned before.
    ///
    /// # Errors
    /// What is on disk is unknown then.
    pub fn flush_synced(&self) -> io::Result<()> {
        let mut mark = self.mark();
        let writes = self.db.latest_sequence_number();
        self.db.flush().map_err(io::Error::other)?;
        mark.write(Mark { writes, ..mark_of(&self.db) })?;
        mark.sync()
    }

    fn mark(&self) -> MutexGuard<'_, MarkFile> {
        self.mark.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many files each [`MarkedDb`] of this process keeps open at most, a few that are in use on top: an eighth of what
/// the process may open (its soft limit, `ulimit -n`).
#[must_use]
pub fn open_files_max() -> i32 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    open_files_of(limit.unwrap_or(u64::MAX))
}

/// The same of a process that may open so many files.
#[must_use]
pub fn open_files_of(limit: u64) -> i32 {
    // RocksDB takes no less than 20. More than that many tables of 64 MiB are half a terabyte.
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
        // One more chance for a mark that was not written back yet; it makes no difference to what is there.
        let _ = self.mark().sync();
    }
}

/// Looks, without changing anything, whether all is there that was noted. Of a log that is damaged somewhere, or that has
/// a hole, what comes before is counted.
fn look(options: &Options, path: &Path, noted: Mark) -> Result<(), StorageError> {
    let mut options = options.clone();
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    let db = DB::open_for_read_only(&options, path, false).map_err(|error| opening(path, &error))?;
    let position = path.display().to_string();
    lacks(mark_of(&db), noted).map_or(Ok(()), |why| Err(StorageError::Corrupt { position, why }))
}

/// How far `db` is written now: the records since it was made (RocksDB's sequence number), and the oldest of its log files
/// that it still needs, which changes when data is moved to a table.
fn mark_of(db: &DB) -> Mark {
    let file = db.property_int_value("rocksdb.min-log-number-to-keep").ok().flatten().unwrap_or(0);
    Mark { writes: db.latest_sequence_number(), file }
}

/// What is missing of `noted`.
fn lacks(found: Mark, noted: Mark) -> Option<String> {
    let Mark { writes, file } = found;
    if writes < noted.writes {
        let noted = noted.writes;
        return Some(format!(
            "RocksDB finds {writes} of the {noted} records that were written: the end of its log or of its MANIFEST is missing"
        ));
    }
    (file < noted.file).then(|| {
        let noted = noted.file;
        format!("RocksDB looks for its log file {file}, and had gone on to {noted}: the end of its MANIFEST is missing")
    })
}

fn opening(path: &Path, error: &rocksdb::Error) -> StorageError {
    let position = path.display().to_string();
    match error.kind() {
        rocksdb::ErrorKind::Corruption => StorageError::Corrupt { position, why: error.to_string() },
        _ => {
            let source = io::Error::other(error.to_string());
            StorageError::Io { context: format!("opening {position}"), source }
        }
    }
}
