//! How far a RocksDB had been written, noted outside of it.
//!
//! A RocksDB whose newest file is cut short, or of which a file is gone, opens as an older one: what is missing at the end
//! of its log looks like a write that a crash interrupted, and what is missing at the end of its list of tables (the
//! `MANIFEST`) like a table that was never made. Somebody else must remember how much there was.
//!
//! ```text
//! place 0     "MARK" version(4)  writes(8)  oldest log(8)  0(4)  CRC-32C of the bytes before(4)
//! place 512   the same; they are written in turn, so that a torn write leaves the other
//! ```
//! All numbers big-endian.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use consensus_core::StorageError;
use rocksdb::DB;

use crate::data_dir::write_durably;

/// How far a RocksDB had been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mark {
    /// RocksDB's sequence number: the records written since it was made.
    pub(crate) writes: u64,
    /// The oldest of RocksDB's log files that it still needed: it grows when data is moved to a table.
    pub(crate) oldest_log: u64,
}

impl Mark {
    /// How far `db` is written now.
    pub(crate) fn of(db: &DB) -> Self {
        let oldest_log = db.property_int_value("rocksdb.min-log-number-to-keep").ok().flatten().unwrap_or(0);
        Self { writes: db.latest_sequence_number(), oldest_log }
    }

    /// What `self`, which was found, lacks of `noted`.
    pub(crate) fn lacks(self, noted: Self) -> Option<String> {
        let Self { writes, oldest_log } = self;
        if writes < noted.writes {
            let noted = noted.writes;
            return Some(format!(
                "RocksDB finds {writes} of the {noted} records that were written: the end of its log or of its MANIFEST is missing"
            ));
        }
        (oldest_log < noted.oldest_log).then(|| {
            let noted = noted.oldest_log;
            format!("RocksDB looks for its log file {oldest_log}, and had gone on to {noted}: the end of its MANIFEST is missing")
        })
    }

    fn encode(self) -> [u8; RECORD_LEN] {
        let mut record = [0; RECORD_LEN];
        record[..4].copy_from_slice(MAGIC);
        record[4..8].copy_from_slice(&VERSION.to_be_bytes());
        record[8..16].copy_from_slice(&self.writes.to_be_bytes());
        record[16..24].copy_from_slice(&self.oldest_log.to_be_bytes());
        let sum = crc32c::crc32c(&record[..RECORD_LEN - 4]);
        record[RECORD_LEN - 4..].copy_from_slice(&sum.to_be_bytes());
        record
    }

    fn decode(record: &[u8]) -> Option<Self> {
        let number = |at: usize| record[at..at + 8].try_into().map(u64::from_be_bytes).ok();
        let mark = Self { writes: number(8)?, oldest_log: number(16)? };
        (record == mark.encode()).then_some(mark)
    }
}

/// The file with the mark.
#[derive(Debug)]
pub(crate) struct MarkFile {
    file: File,
    /// Where the next mark goes, and the last one.
    place: u64,
    mark: Mark,
}

impl MarkFile {
    /// Makes the file, durably.
    pub(crate) fn create(path: &Path, mark: Mark) -> Result<Self, StorageError> {
        let mut content = vec![0; FILE_LEN];
        for place in PLACES {
            content[place as usize..][..RECORD_LEN].copy_from_slice(&mark.encode());
        }
        let file = write_durably(path, &content).and_then(|()| File::options().write(true).open(path));
        let file = file.map_err(|source| io_error("writing", path, source))?;
        Ok(Self { file, place: PLACES[0], mark })
    }

    /// Opens the file; `None` if it is not there.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>, StorageError> {
        let content = match std::fs::read(path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("reading", path, error)),
        };
        let at = |place: u64| Some((Mark::decode(content.get(place as usize..)?.get(..RECORD_LEN)?)?, place));
        let Some((mark, place)) = PLACES.into_iter().filter_map(at).max() else {
            let position = path.display().to_string();
            let why = "it says nowhere how far the RocksDB beside it had been written".to_owned();
            return Err(StorageError::Corrupt { position, why });
        };
        let file =
            File::options().write(true).open(path).map_err(|error| io_error("opening", path, error))?;
        Ok(Some(Self { file, place: other(place), mark }))
    }

    pub(crate) fn mark(&self) -> Mark {
        self.mark
    }

    /// Notes `mark`, in memory of the system: it survives the process, and a power cut after the system's usual time for
    /// writing back, half a minute. To be called when what it says is durable.
    pub(crate) fn write(&mut self, mark: Mark) -> io::Result<()> {
        if mark == self.mark {
            return Ok(());
        }
        self.file.write_all_at(&mark.encode(), self.place)?;
        (self.place, self.mark) = (other(self.place), mark);
        Ok(())
    }

    /// Makes the mark durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn other(place: u64) -> u64 {
    PLACES[usize::from(place == PLACES[0])]
}

fn io_error(doing: &str, path: &Path, source: io::Error) -> StorageError {
    StorageError::Io { context: format!("{doing} {}", path.display()), source }
}

const MAGIC: &[u8; 4] = b"MARK";
const VERSION: u32 = 1;
const RECORD_LEN: usize = 32;
/// In sectors of their own.
const PLACES: [u64; 2] = [0, 512];
const FILE_LEN: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_mark_counts_and_survives_damage_to_one_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("MARK");
        assert!(MarkFile::open(&path).unwrap().is_none());
        let mark = |writes| Mark { writes, oldest_log: 3 };
        let mut file = MarkFile::create(&path, mark(0)).unwrap();
        for writes in 1..=5 {
            file.write(mark(writes)).unwrap();
        }
        assert_eq!(MarkFile::open(&path).unwrap().unwrap().mark(), mark(5));
        let good = std::fs::read(&path).unwrap();
        for at in 0..RECORD_LEN {
            for (place, left) in [(0, 4), (512, 5)] {
                let mut bad = good.clone();
                bad[place + at] ^= 1;
                std::fs::write(&path, &bad).unwrap();
                assert_eq!(MarkFile::open(&path).unwrap().unwrap().mark(), mark(left), "byte {}", place + at);
                bad[512 - place + at] ^= 1;
                std::fs::write(&path, &bad).unwrap();
                let error = MarkFile::open(&path).unwrap_err().to_string();
                assert!(error.contains(path.to_str().unwrap()), "{error}");
            }
        }
    }

    #[test]
    fn golden_bytes_of_version_1() {
        let record = Mark { writes: 2, oldest_log: 3 }.encode();
        assert_eq!(record[..24], *b"MARK\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03");
        assert_eq!(Mark::decode(&record), Some(Mark { writes: 2, oldest_log: 3 }));
    }
}
