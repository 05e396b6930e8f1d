//! How far something had been written, noted outside of it.
//!
//! ```text
//! place 0     "MARK" version(4)  writes(8)  file(8)  0(4)  CRC-32C of the bytes before(4)
//! place 512   the same; they are written in turn, so that a torn write leaves the other
//! ```
//! All numbers big-endian.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use consensus_core::StorageError;

use crate::data_dir::write_durably;

/// How far something had been written. Neither number ever goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// What was written since it was made, counted.
    pub writes: u64,
    /// One of the numbered files that it consists of; which one is for its owner to say.
    pub file: u64,
}

impl Mark {
    fn encode(self) -> [u8; RECORD_LEN] {
        let mut record = [0; RECORD_LEN];
        record[..4].copy_from_slice(MAGIC);
        record[4..8].copy_from_slice(&VERSION.to_be_bytes());
        record[8..16].copy_from_slice(&self.writes.to_be_bytes());
        record[16..24].copy_from_slice(&self.file.to_be_bytes());
        let sum = crc32c::crc32c(&record[..RECORD_LEN - 4]);
        record[RECORD_LEN - 4..].copy_from_slice(&sum.to_be_bytes());
        record
    }

    fn decode(record: &[u8]) -> Option<Self> {
        let number = |at: usize| record[at..at + 8].try_into().map(u64::from_be_bytes).ok();
        let mark = Self { writes: number(8)?, file: number(16)? };
        (record == mark.encode()).then_some(mark)
    }
}

/// A file with a [`Mark`], for what may look whole when its end is missing: the end of a log that is cut short looks like
/// a write that a crash interrupted. It is written after each synced write, before anybody is told, and not synced itself.
#[derive(Debug)]
pub struct MarkFile {
    file: File,
    /// Where the next mark goes, and the last one.
    place: u64,
    mark: Mark,
}

impl MarkFile {
    /// Makes the file, durably.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(path: &Path, mark: Mark) -> Result<Self, StorageError> {
        let mut content = vec![0; FILE_LEN];
        for place in PLACES {
            content[place as usize..][..RECORD_LEN].copy_from_slice(&mark.encode());
        }
        let file = write_durably(path, &content).and_then(|()| File::options().write(true).open(path));
        let file = file.map_err(|source| io_error("writing", path, source))?;
        Ok(Self { file, place: PLACES[0], mark })
    }

    /// Opens the file; `None` if it is not there.
    ///
    /// # Errors
    /// It is damaged in both places, or cannot be read.
    pub fn open(path: &Path) -> Result<Option<Self>, StorageError> {
        let content = match std::fs::read(path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("reading", path, error)),
        };
        let at = |place: u64| Some((Mark::decode(content.get(place as usize..)?.get(..RECORD_LEN)?)?, place));
        let Some((mark, place)) = PLACES.into_iter().filter_map(at).max() else {
            let position = path.display().to_string();
            let why = "it says nowhere how far what is beside it had been written".to_owned();
            return Err(StorageError::Corrupt { position, why });
        };
        let file =
            File::options().write(true).open(path).map_err(|error| io_error("opening", path, error))?;
        Ok(Some(Self { file, place: other(place), mark }))
    }

    /// The last mark.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// Notes `mark`, in memory of the system: it survives the process, and a power cut after the system's usual time for
    /// writing back, half a minute. To be called when what it says is durable.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&mut self, mark: Mark) -> io::Result<()> {
        if mark == self.mark {
            return Ok(());
        }
        self.file.write_all_at(&mark.encode(), self.place)?;
        (self.place, self.mark) = (other(self.place), mark);
        Ok(())
    }

    /// Makes the mark durable.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn sync(&self) -> io::Result<()> {
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
        let mark = |writes| Mark { writes, file: 3 };
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
        let record = Mark { writes: 2, file: 3 }.encode();
        assert_eq!(record[..24], *b"MARK\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03");
        assert_eq!(Mark::decode(&record), Some(Mark { writes: 2, file: 3 }));
    }
}
