//! Snapshots: a RocksDB checkpoint, streamed file by file.
//!
//! ```text
//! "KVSNAP" version(2), then per file: name length(2) name size(8) content crc32c(4), then 0(2) number of files(4)
//! ```
//! All numbers big-endian. The end marker distinguishes a complete stream from one truncated between two
//! files.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use consensus_core::{Snapshot, StateMachineError, StorageError};
use consensus_storage_rocksdb::Reserve;
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    store::{Generation, Store},
    view::Failure,
};

/// A checkpoint on disk; its directory is removed when it is dropped.
#[derive(Debug)]
struct Checkpoint {
    path: PathBuf,
}

/// A copy of a store at one revision, with a known size, for example for a backup. Until it is dropped, it keeps disk
/// space that later changes would free.
#[derive(Debug)]
pub struct StoreSnapshot {
    checkpoint: Checkpoint,
    size_bytes: u64,
    _permit: Option<OwnedSemaphorePermit>,
}

impl StoreSnapshot {
    /// Takes a copy. `permit` limits the number of copies and is held until the copy is dropped. Blocks on the disk.
    pub(crate) fn take(store: &Store, permit: Option<OwnedSemaphorePermit>) -> Result<Self, Failure> {
        let checkpoint = take_checkpoint(store)?;
        let size_bytes = stream_bytes(&checkpoint.path)?;
        Ok(Self { checkpoint, size_bytes, _permit: permit })
    }

    /// Bytes that [`write_to`](Self::write_to) writes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Writes the copy in the format that [`KvStateMachine`](crate::KvStateMachine) restores. Blocks on the disk; uses
    /// little memory.
    ///
    /// # Errors
    /// The disk failed, or `out` failed.
    pub fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        send(&self.checkpoint.path, out)
    }
}

/// Takes a checkpoint, which is a flush and hard links.
pub(crate) fn take(store: &Store) -> Result<Box<dyn Snapshot>, Failure> {
    Ok(Box::new(take_checkpoint(store)?))
}

fn take_checkpoint(store: &Store) -> Result<Checkpoint, Failure> {
    let path = store.checkpoint_path();
    let generation = store.current();
    generation.check_writable()?;
    let checkpoint = rocksdb::checkpoint::Checkpoint::new(generation.db()).map_err(crate::view::disk)?;
    let taken = checkpoint.create_checkpoint(&path);
    taken
        .map_err(|error| generation.failed(&format!("copying the store to {}, of", path.display()), error))?;
    Ok(Checkpoint { path })
}

impl Snapshot for Checkpoint {
    fn write_to(&mut self, out: &mut dyn Write) -> io::Result<()> {
        send(&self.path, out)
    }
}

/// Writes the files of a directory to a stream.
pub(crate) fn send(dir: &Path, out: &mut dyn Write) -> io::Result<()> {
    let mut files: Vec<_> = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    files.sort();
    out.write_all(MAGIC)?;
    for path in &files {
        write_file(out, path)?;
    }
    out.write_all(&0u16.to_be_bytes())?;
    out.write_all(&(files.len() as u32).to_be_bytes())
}

/// Bytes that [`send`] writes.
fn stream_bytes(dir: &Path) -> io::Result<u64> {
    let mut bytes = (MAGIC.len() + 2 + 4) as u64;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        bytes += (2 + entry.file_name().len() + 8 + 4) as u64 + entry.metadata()?.len();
    }
    Ok(bytes)
}

fn write_file(out: &mut dyn Write, path: &Path) -> io::Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("reading {}: {error}", path.display()));
    let mut file = File::open(path).map_err(named)?;
    let size = file.metadata().map_err(named)?.len();
    out.write_all(&(name.len() as u16).to_be_bytes())?;
    out.write_all(name.as_bytes())?;
    out.write_all(&size.to_be_bytes())?;
    let sum = copy(&mut file, out, size)?;
    out.write_all(&sum.to_be_bytes())
}

/// Copies exactly `size` bytes; returns their checksum.
fn copy(from: &mut dyn Read, to: &mut dyn Write, size: u64) -> io::Result<u32> {
    let (mut left, mut sum) = (size, 0);
    let mut buffer = vec![0; 128 << 10];
    while left > 0 {
        let part = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        from.read_exact(&mut buffer[..part])?;
        to.write_all(&buffer[..part])?;
        sum = crc32c::crc32c_append(sum, &buffer[..part]);
        left -= part as u64;
    }
    Ok(sum)
}

impl Drop for Checkpoint {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            let path = self.path.display();
            tracing::warn!(%error, %path, "cannot remove a checkpoint; the next start will remove it");
        }
    }
}

/// Reads a stream into a new generation, which leaves `reserve` free on the disk. The current generation is unchanged.
pub(crate) fn receive_generation(
    store: &Store,
    stream: &mut dyn Read,
    reserve: &Reserve,
) -> Result<Generation, Failure> {
    let path = store.next_generation_path()?;
    let received = receive(&path, stream, reserve).and_then(|()| {
        let unreadable = |error: StorageError| bad(error.to_string());
        store.open_received(path.clone()).map_err(unreadable)
    });
    received.inspect_err(|_| {
        let _ = fs::remove_dir_all(&path); // If this fails, the next start removes it.
    })
}

fn bad(why: impl Into<String>) -> Failure {
    StateMachineError::Unreadable { what: "snapshot", why: why.into() }
}

/// Reads a stream into files of an empty directory.
pub(crate) fn receive(dir: &Path, stream: &mut dyn Read, reserve: &Reserve) -> Result<(), Failure> {
    let mut magic = [0; MAGIC.len()];
    stream.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err(bad("it does not start with the snapshot header, or is of another version"));
    }
    let mut files = 0u32;
    while receive_file(dir, stream, reserve)? {
        files += 1;
    }
    let mut count = [0; 4];
    stream.read_exact(&mut count)?;
    if u32::from_be_bytes(count) != files {
        return Err(bad(format!("it contains {files} files, but claims {}", u32::from_be_bytes(count))));
    }
    File::open(dir)?.sync_all()?;
    Ok(())
}

/// Receives one file. Returns `false` at the end marker.
fn receive_file(dir: &Path, stream: &mut dyn Read, reserve: &Reserve) -> Result<bool, Failure> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let length = u16::from_be_bytes(length);
    if length == 0 {
        return Ok(false);
    }
    let mut name = vec![0; usize::from(length.min(NAME_MAX))];
    stream.read_exact(&mut name)?;
    let is_plain = |name: &str| {
        name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            && !name.starts_with('.')
    };
    let name = std::str::from_utf8(&name).ok().filter(|name| length <= NAME_MAX && is_plain(name));
    let name = name.ok_or_else(|| bad("the name of a file is invalid"))?;
    let mut size = [0; 8];
    stream.read_exact(&mut size)?;
    let size = u64::from_be_bytes(size);
    reserve.check(size).map_err(StateMachineError::NoRoom)?;
    let mut file = File::create_new(dir.join(name))?; // Fails if a name occurs twice.
    let sum = copy(stream, &mut file, size)?;
    file.sync_all()?;
    let mut expected = [0; 4];
    stream.read_exact(&mut expected)?;
    if expected != sum.to_be_bytes() {
        return Err(bad(format!("the checksum of {name} is wrong")));
    }
    Ok(true)
}

const MAGIC: &[u8; 8] = b"KVSNAP\0\x02";
const NAME_MAX: u16 = 64;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    type Files = BTreeMap<String, Vec<u8>>;

    fn stream(files: &Files) -> Vec<u8> {
        let (dir, mut stream) = (tempfile::tempdir().unwrap(), Vec::new());
        for (name, content) in files {
            fs::write(dir.path().join(name), content).unwrap();
        }
        send(dir.path(), &mut stream).unwrap();
        assert_eq!(stream_bytes(dir.path()).unwrap(), stream.len() as u64);
        stream
    }

    fn received(mut stream: &[u8]) -> Option<Files> {
        let dir = tempfile::tempdir().unwrap();
        receive(dir.path(), &mut stream, &Reserve::new(dir.path(), 0)).ok()?;
        let read =
            |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
        Some(fs::read_dir(dir.path()).unwrap().map(|entry| read(entry.unwrap())).collect())
    }

    #[test]
    fn snapshot_with_duplicate_file_is_refused() {
        let one = stream(&Files::from([("a".to_owned(), vec![1])]));
        let (head, file) = (&one[..MAGIC.len()], &one[MAGIC.len()..one.len() - 6]);
        let twice = [head, file, file, &[0, 0, 0, 0, 0, 2]].concat();
        assert_eq!(received(&twice), None);
    }

    #[test]
    fn snapshot_with_path_in_file_name_is_refused() {
        for name in ["../a", "/tmp/a", ".", "..", "a/b", "a\0", "\u{e4}"] {
            let file = [&(name.len() as u16).to_be_bytes(), name.as_bytes(), &[0; 8], &[0; 4]].concat();
            assert_eq!(received(&[MAGIC, &file[..], &[0, 0, 0, 0, 0, 1]].concat()), None, "{name}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn intact_stream_restores_files_and_damaged_stream_is_refused(
            files in prop::collection::btree_map("[a-zA-Z0-9_-]{1,9}", any::<Vec<u8>>(), 0..4),
            cut: prop::sample::Index,
            bit: prop::sample::Index,
        ) {
            let mut stream = stream(&files);
            prop_assert_eq!(received(&stream), Some(files.clone()));
            prop_assert_eq!(received(&stream[..cut.index(stream.len())]), None);
            let bit = bit.index(8 * stream.len());
            stream[bit / 8] ^= 1 << (bit % 8);
            if let Some(changed) = received(&stream) {
                // Names have no checksum. RocksDB detects that a file it knows is missing.
                let contents = |files: Files| { let mut all: Vec<_> = files.into_values().collect(); all.sort(); all };
                prop_assert_eq!(contents(changed), contents(files));
            }
        }
    }
}
