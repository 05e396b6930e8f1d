//! The write mark: a record of how much data was written, kept outside of the data.
//!
//! ```text
//! byte 0      "MARK" version(4)  writes(8)  file(8)  0(4)  CRC-32C of the bytes before(4)
//! byte 512    the second copy; the copies are written in turn, so that a torn write leaves the other one intact
//! ```
//! All numbers big-endian.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use consensus_core::StorageError;

use crate::data_dir::write_durably;

/// How much of a storage's data was written. Neither number ever decreases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// Number of writes since the storage was created.
    pub writes: u64,
    /// Number of one of the storage's files, usually the newest; the storage defines which one.
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

/// A file with a [`Mark`]. It serves data that looks complete when its end is missing: a log whose last records are lost
/// looks like one whose last write was interrupted by a crash. The mark is written after each synced write, before the write
/// is acknowledged; it is not synced itself.
#[derive(Debug)]
pub struct MarkFile {
    file: File,
    /// Offset of the copy that the next write replaces.
    next_slot: u64,
    /// Last mark that was written.
    mark: Mark,
}

impl MarkFile {
    /// Creates the file; it is durable on return.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(path: &Path, mark: Mark) -> Result<Self, StorageError> {
        let mut content = vec![0; FILE_LEN];
        for slot in SLOTS {
            content[slot as usize..][..RECORD_LEN].copy_from_slice(&mark.encode());
        }
        let file = write_durably(path, &content).and_then(|()| File::options().write(true).open(path));
        let file = file.map_err(|source| io_error("writing", path, source))?;
        Ok(Self { file, next_slot: SLOTS[0], mark })
    }

    /// Opens the file; `None` if it does not exist.
    ///
    /// # Errors
    /// Both copies are damaged, or the file cannot be read.
    pub fn open(path: &Path) -> Result<Option<Self>, StorageError> {
        let content = match std::fs::read(path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("reading", path, error)),
        };
        let at = |slot: u64| Some((Mark::decode(content.get(slot as usize..)?.get(..RECORD_LEN)?)?, slot));
        let Some((mark, slot)) = SLOTS.into_iter().filter_map(at).max() else {
            let position = path.display().to_string();
            let dir = path.parent().unwrap_or(path).display();
            let why = format!(
                "both copies of the write mark are corrupt; restore this node from its peers: remove it, wipe {dir}, add it again"
            );
            return Err(StorageError::Corrupt { position, why });
        };
        let file =
            File::options().write(true).open(path).map_err(|error| io_error("opening", path, error))?;
        Ok(Some(Self { file, next_slot: other_slot(slot), mark }))
    }

    /// The last mark that was written.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// Writes `mark` without a sync. It survives the end of the process; it survives a power cut once the operating system
    /// has written it back, usually within half a minute. Call it when the data that it counts is durable.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&mut self, mark: Mark) -> io::Result<()> {
        if mark == self.mark {
            return Ok(());
        }
        self.file.write_all_at(&mark.encode(), self.next_slot)?;
        self.next_slot = other_slot(self.next_slot);
        self.mark = mark;
        Ok(())
    }

    /// Makes the last mark durable.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn other_slot(slot: u64) -> u64 {
    SLOTS[usize::from(slot == SLOTS[0])]
}

fn io_error(doing: &str, path: &Path, source: io::Error) -> StorageError {
    StorageError::Io { context: format!("{doing} {}", path.display()), source }
}

const MAGIC: &[u8; 4] = b"MARK";
const VERSION: u32 = 1;
const RECORD_LEN: usize = 32;
/// Offsets of the two copies, each in a sector of its own.
const SLOTS: [u64; 2] = [0, 512];
const FILE_LEN: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_mark_is_read_and_damage_to_one_copy_is_survived() {
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
            for (slot, left) in [(0, 4), (512, 5)] {
                let mut bad = good.clone();
                bad[slot + at] ^= 1;
                std::fs::write(&path, &bad).unwrap();
                assert_eq!(MarkFile::open(&path).unwrap().unwrap().mark(), mark(left), "byte {}", slot + at);
                bad[512 - slot + at] ^= 1;
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
