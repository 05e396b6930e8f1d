//! The files that the log consists of.
//!
//! ```text
//! 0   "RAFTWAL" 1 (8)   8  sequence number (8)   16  salt (8)   24  0 (4)   28  CRC-32C of the bytes before (4)
//! 512 frames
//! ```
//! All numbers big-endian. The header has a sector of its own, which is written once in a life.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use consensus_core::StorageError;
use rustix::fs::FallocateFlags;

/// A file of the log, open.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) sequence: u64,
    /// Another one in each life of the file.
    pub(crate) salt: u64,
    path: PathBuf,
    file: File,
}

impl Segment {
    /// Makes a segment of `len` bytes, all of them written and synced. It has its name, durably, when it is complete.
    /// `may_go_on` is asked before it is written from a place on, and may take its time; `false` gives it up.
    pub(crate) fn create(
        dir: &Path,
        sequence: u64,
        len: u64,
        may_go_on: &mut dyn FnMut(u64) -> bool,
    ) -> io::Result<Self> {
        let new = dir.join(name(sequence, NEW));
        let made = fill(&new, len, may_go_on).and_then(|file| Self::begin(dir, file, &new, sequence));
        if made.is_err() {
            // What it holds of the room may be what others need.
            let _ = fs::remove_file(&new);
        }
        made
    }

    /// The same, made of a file that was one before.
    pub(crate) fn recycle(dir: &Path, spare: &Path, sequence: u64) -> io::Result<Self> {
        // After a power cut its old name must not be back, above a header that does not belong to it.
        File::open(dir)?.sync_all()?;
        let file = File::options().read(true).write(true).open(spare)?;
        Self::begin(dir, file, spare, sequence)
    }

    fn begin(dir: &Path, file: File, from: &Path, sequence: u64) -> io::Result<Self> {
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

    /// Makes it longer, or says that there is no room for that.
    pub(crate) fn extend(&self, len: u64) -> io::Result<()> {
        let old = self.len()?;
        let extended = allocate(&self.file, len);
        if extended.is_err() {
            // Some of the room may have been taken.
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

    pub(crate) fn io(&self, doing: &str, source: io::Error) -> StorageError {
        StorageError::Io { context: format!("{doing} {}", self.path.display()), source }
    }
}

/// A disk that does not give back some of its blocks.
#[cfg(test)]
pub(crate) mod bad_blocks {
    use std::{cell::RefCell, io};

    thread_local! {
        /// Segment, and where in it.
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

/// The files of a directory.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// Sequence numbers of the segments, in order.
    pub(crate) segments: Vec<u64>,
    /// Such as were segments and can be again.
    pub(crate) spares: Vec<PathBuf>,
    /// Such as were being made.
    pub(crate) unfinished: Vec<PathBuf>,
}

impl Files {
    pub(crate) fn of(dir: &Path) -> io::Result<Self> {
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

/// Writes a segment with `body`, not synced. For [`fuzzing`](crate::fuzzing).
pub(crate) fn write_whole(dir: &Path, sequence: u64, salt: u64, body: &[u8]) -> io::Result<PathBuf> {
    let mut content = header(sequence, salt).to_vec();
    content.resize(FIRST_FRAME as usize, 0);
    content.extend_from_slice(body);
    let path = dir.join(name(sequence, SEGMENT));
    fs::write(&path, content)?;
    Ok(path)
}

/// What a segment is called when it is none any more.
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

/// A file of `len` zeros. They are written, as blocks that are merely reserved are marked as written when they are, and
/// that is what the sync of a log record would wait for; and synced piece by piece, as a record that is written meanwhile
/// waits behind the piece under way.
fn fill(path: &Path, len: u64, may_go_on: &mut dyn FnMut(u64) -> bool) -> io::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    allocate(&file, len)?;
    let zeros = vec![0; PIECE_BYTES.min(len) as usize];
    let mut at = 0;
    while at < len {
        let piece = (len - at).min(PIECE_BYTES);
        if !may_go_on(at) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        file.write_all_at(&zeros[..piece as usize], at)?;
        file.sync_data()?;
        at += piece;
    }
    Ok(file)
}

/// Takes the room for `len` bytes. Where the file system cannot do that, the writes that follow do.
fn allocate(file: &File, len: u64) -> io::Result<()> {
    use rustix::io::Errno;
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Where the first frame of a segment is.
pub(crate) const FIRST_FRAME: u64 = 512;
/// Longer ones are made for single batches only.
pub(crate) const SEGMENT_BYTES_MAX: u64 = 1 << 30;
const HEADER_LEN: usize = 32;
const MAGIC: &[u8; 8] = b"RAFTWAL\x01";
const SEGMENT: &str = "wal";
const SPARE: &str = "spare";
const NEW: &str = "new";
/// A millisecond or two of a disk's time.
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
    fn a_segment_is_made_whole_and_every_damage_to_its_header_is_noticed() {
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
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "what was begun is gone");
    }
}
