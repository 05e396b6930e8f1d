//! Segments: the files of the log.
//!
//! ```text
//! 0   "RAFTWAL" 1 (8)   8  sequence number (8)   16  salt (8)   24  0 (4)   28  CRC-32C of the bytes before (4)
//! 512 frames
//! ```
//! All numbers big-endian. The header has a sector of its own, which is written once for each use of the file.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use consensus_core::StorageError;
use rustix::fs::FallocateFlags;

/// An open file of the log.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) sequence: u64,
    /// Random number, drawn again when the file is reused.
    pub(crate) salt: u64,
    path: PathBuf,
    file: File,
}

impl Segment {
    /// Creates a segment of `len` bytes, all of them written and synced. It gets its final name, durably, when it is complete.
    /// `may_continue` is called with the offset of each piece before the piece is written, and may block; if it returns
    /// `false`, the segment is abandoned.
    pub(crate) fn create(
        dir: &Path,
        sequence: u64,
        len: u64,
        may_continue: &mut dyn FnMut(u64) -> bool,
    ) -> io::Result<Self> {
        let new = dir.join(name(sequence, NEW));
        let made = fill(&new, len, may_continue).and_then(|file| Self::initialize(dir, file, &new, sequence));
        if made.is_err() {
            // Free its disk space, which others may need.
            let _ = fs::remove_file(&new);
        }
        made
    }

    /// Creates a segment from a spare file.
    pub(crate) fn recycle(dir: &Path, spare: &Path, sequence: u64) -> io::Result<Self> {
        // Syncs the earlier rename: otherwise a power cut could bring back the old name, with a header that does not match.
        File::open(dir)?.sync_all()?;
        let file = File::options().read(true).write(true).open(spare)?;
        Self::initialize(dir, file, spare, sequence)
    }

    fn initialize(dir: &Path, file: File, from: &Path, sequence: u64) -> io::Result<Self> {
        let salt = rand::random();
        file.write_all_at(&header(sequence, salt), 0)?;
        file.sync_all()?;
        let path = dir.join(name(sequence, SEGMENT));
        fs::rename(from, &path)?;
        File::open(dir)?.sync_all()?;
        Ok(Self { sequence, salt, path, file })
    }

    /// Opens the segment `sequence`.
    pub(crate) fn open(dir: &Path, sequence: u64) -> Result<Self, StorageError> {
        let path = dir.join(name(sequence, SEGMENT));
        let io = |source| StorageError::Io { context: format!("opening {}", path.display()), source };
        let file = File::options().read(true).write(true).open(&path).map_err(io)?;
        let mut found = [0; HEADER_LEN];
        let salt = match file.read_exact_at(&mut found, 0) {
            Ok(()) => found[16..24].try_into().map(u64::from_be_bytes).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
            Err(error) => return Err(io(error)),
        };
        let segment = Self { sequence, salt, path, file };
        if found != header(sequence, salt) {
            return Err(segment.corrupt(0, "its header is damaged".to_owned()));
        }
        Ok(segment)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Extends the file to `len` bytes. After an error its length is unchanged.
    pub(crate) fn extend(&self, len: u64) -> io::Result<()> {
        let old = self.len()?;
        let extended = allocate(&self.file, len);
        if extended.is_err() {
            // A part of the space may have been allocated.
            let _ = self.file.set_len(old);
        }
        extended
    }

    /// Writes `bytes` at `at`; they are durable on return.
    pub(crate) fn write_synced(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write(bytes, at)?;
        self.sync()
    }

    pub(crate) fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    pub(crate) fn read_exact(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        #[cfg(test)]
        bad_blocks::check(self.sequence, at, bytes.len())?;
        self.file.read_exact_at(bytes, at)
    }

    pub(crate) fn position(&self, at: u64) -> String {
        format!("byte {at} of {}", self.path.display())
    }

    pub(crate) fn corrupt(&self, at: u64, why: String) -> StorageError {
        StorageError::Corrupt { position: self.position(at), why }
    }

    pub(crate) fn io_error(&self, doing: &str, source: io::Error) -> StorageError {
        StorageError::Io { context: format!("{doing} {}", self.path.display()), source }
    }
}

/// Simulates a disk that cannot read some of its blocks.
#[cfg(test)]
pub(crate) mod bad_blocks {
    use std::{cell::RefCell, io};

    thread_local! {
        /// Sequence number of the segment, and offset of the block.
        pub(crate) static BAD: RefCell<Vec<(u64, u64)>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn check(sequence: u64, at: u64, len: usize) -> io::Result<()> {
        let meets = |(segment, block): &(u64, u64)| {
            *segment == sequence && at < block + 4096 && *block < at + len as u64
        };
        let is_bad = BAD.with_borrow(|bad| bad.iter().any(meets));
        if is_bad { Err(rustix::io::Errno::IO.into()) } else { Ok(()) }
    }
}

/// Files of the segment directory.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// Sequence numbers of the segments, in order.
    pub(crate) segments: Vec<u64>,
    /// Files of purged segments, for reuse.
    pub(crate) spares: Vec<PathBuf>,
    /// Files whose creation did not end.
    pub(crate) unfinished: Vec<PathBuf>,
}

impl Files {
    pub(crate) fn list(dir: &Path) -> io::Result<Self> {
        let mut files = Self::default();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
            match (path.extension().and_then(|ext| ext.to_str()), number) {
                (Some(SEGMENT), Some(number)) => files.segments.push(number),
                (Some(SPARE), _) => files.spares.push(path),
                (Some(NEW), _) => files.unfinished.push(path),
                _ => {}
            }
        }
        files.segments.sort_unstable();
        files.spares.sort();
        Ok(files)
    }
}

/// Writes a segment with the frames `body`, without a sync. For [`fuzzing`](crate::fuzzing).
pub(crate) fn write_whole(dir: &Path, sequence: u64, salt: u64, body: &[u8]) -> io::Result<PathBuf> {
    let mut content = header(sequence, salt).to_vec();
    content.resize(FIRST_FRAME as usize, 0);
    content.extend_from_slice(body);
    let path = dir.join(name(sequence, SEGMENT));
    fs::write(&path, content)?;
    Ok(path)
}

/// Name of the spare file made from a segment.
pub(crate) fn spare_name(sequence: u64) -> String {
    name(sequence, SPARE)
}

fn name(sequence: u64, kind: &str) -> String {
    format!("{sequence:016}.{kind}")
}

fn header(sequence: u64, salt: u64) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..8].copy_from_slice(MAGIC);
    header[8..16].copy_from_slice(&sequence.to_be_bytes());
    header[16..24].copy_from_slice(&salt.to_be_bytes());
    let sum = crc32c::crc32c(&header[..HEADER_LEN - 4]);
    header[HEADER_LEN - 4..].copy_from_slice(&sum.to_be_bytes());
    header
}

/// Creates a file of `len` zeros. The zeros are written: a block that is only allocated is marked as written at its first
/// write, and the sync of a frame would have to wait for that. They are written and synced piece by piece, because a
/// concurrent write to the log waits until the current piece is synced.
fn fill(path: &Path, len: u64, may_continue: &mut dyn FnMut(u64) -> bool) -> io::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    allocate(&file, len)?;
    let zeros = vec![0; PIECE_BYTES.min(len) as usize];
    let mut at = 0;
    while at < len {
        let piece = (len - at).min(PIECE_BYTES);
        if !may_continue(at) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        file.write_all_at(&zeros[..piece as usize], at)?;
        file.sync_data()?;
        at += piece;
    }
    Ok(file)
}

/// Allocates disk space for `len` bytes. If the file system does not support that, later writes allocate it.
fn allocate(file: &File, len: u64) -> io::Result<()> {
    use rustix::io::Errno;
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Offset of the first frame of a segment.
pub(crate) const FIRST_FRAME: u64 = 512;
/// Longest segment, unless a single batch needs a longer one.
pub(crate) const SEGMENT_BYTES_MAX: u64 = 1 << 30;
const HEADER_LEN: usize = 32;
const MAGIC: &[u8; 8] = b"RAFTWAL\x01";
const SEGMENT: &str = "wal";
const SPARE: &str = "spare";
const NEW: &str = "new";
/// Bytes of a new segment that are written and synced at once: a millisecond or two of a disk's time.
const PIECE_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_of_version_1() {
        let golden =
            [&b"RAFTWAL\x01\0\0\0\0\0\0\0\x02"[..], &[0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 66, 51, 183, 223]]
                .concat();
        assert_eq!(header(2, 3), golden[..]);
    }

    #[test]
    fn segment_is_created_complete_and_damaged_header_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let made = Segment::create(dir.path(), 3, 5000, &mut |_| true).unwrap();
        assert_eq!(made.len().unwrap(), 5000);
        let opened = Segment::open(dir.path(), 3).unwrap();
        assert_eq!(opened.salt, made.salt);
        let good = fs::read(made.path()).unwrap();
        assert!(good[HEADER_LEN..].iter().all(|byte| *byte == 0));
        for bit in 0..8 * HEADER_LEN {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(made.path(), bad).unwrap();
            let error = Segment::open(dir.path(), 3).unwrap_err().to_string();
            assert!(error.contains("0000000000000003.wal"), "{error}");
        }
        assert!(Segment::create(dir.path(), 4, 5000, &mut |_| false).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the abandoned segment is removed");
    }
}
