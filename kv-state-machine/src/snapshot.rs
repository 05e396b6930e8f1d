//! Snapshots: a RocksDB checkpoint, streamed file by file.
//!
//! ```text
//! "KVSNAP" version(2), then per file: name length(2) name size(8) content crc32c(4), then 0(2) number of files(4)
//! ```
//! All numbers big-endian. The end marker tells a whole stream from one cut between two files.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use consensus_core::{Snapshot, StateMachineError, StorageError};
use consensus_storage_rocksdb::Expected;

use crate::{
    store::{Generation, Store, load_meta},
    view::Failure,
};

/// A checkpoint on disk; removed when dropped.
struct Checkpoint {
    path: PathBuf,
}

/// Takes a checkpoint: hard links and a flush.
pub(crate) fn take(store: &Store) -> Result<Box<dyn Snapshot>, Failure> {
    let path = store.checkpoint_path();
    let generation = store.current();
    let checkpoint = rocksdb::checkpoint::Checkpoint::new(generation.db()).map_err(crate::view::disk)?;
    checkpoint.create_checkpoint(&path).map_err(crate::view::disk)?;
    Ok(Box::new(Checkpoint { path }))
}

impl Snapshot for Checkpoint {
    fn write_to(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let mut files: Vec<_> =
            fs::read_dir(&self.path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
        files.sort();
        out.write_all(MAGIC)?;
        for path in &files {
            write_file(out, path)?;
        }
        out.write_all(&0u16.to_be_bytes())?;
        out.write_all(&(files.len() as u32).to_be_bytes())
    }
}

fn write_file(out: &mut dyn Write, path: &Path) -> io::Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
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
            tracing::warn!(%error, path = %self.path.display(), "cannot remove a checkpoint; the next start will");
        }
    }
}

/// Reads a stream into a new generation and makes it the current one. Until then nothing has changed.
pub(crate) fn restore(store: &Store, stream: &mut dyn Read) -> Result<(), Failure> {
    let path = store.next_generation_path()?;
    let received = receive(&path, stream).and_then(|()| {
        let unreadable = |error: StorageError| bad(error.to_string());
        let generation = Generation::open(path.clone(), Expected::Received).map_err(unreadable)?;
        load_meta(generation.db())?;
        Ok(generation)
    });
    let generation = received.inspect_err(|_| {
        let _ = fs::remove_dir_all(&path); // The next start removes it otherwise.
    })?;
    Ok(store.switch(generation)?)
}

fn bad(why: impl Into<String>) -> Failure {
    StateMachineError::Unreadable { what: "snapshot", why: why.into() }
}

fn receive(dir: &Path, stream: &mut dyn Read) -> Result<(), Failure> {
    let mut magic = [0; MAGIC.len()];
    stream.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err(bad("it does not begin like one, or is of another version"));
    }
    let mut files = 0u32;
    while receive_file(dir, stream)? {
        files += 1;
    }
    let mut count = [0; 4];
    stream.read_exact(&mut count)?;
    if u32::from_be_bytes(count) != files {
        return Err(bad(format!("it has {files} files, and says {}", u32::from_be_bytes(count))));
    }
    File::open(dir)?.sync_all()?;
    Ok(())
}

/// `false` at the end marker.
fn receive_file(dir: &Path, stream: &mut dyn Read) -> Result<bool, Failure> {
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
    let name = name.ok_or_else(|| bad("a file has an impossible name"))?;
    let mut size = [0; 8];
    stream.read_exact(&mut size)?;
    let mut file = File::create(dir.join(name))?;
    let sum = copy(stream, &mut file, u64::from_be_bytes(size))?;
    file.sync_all()?;
    let mut expected = [0; 4];
    stream.read_exact(&mut expected)?;
    if expected != sum.to_be_bytes() {
        return Err(bad(format!("the checksum of {name} is wrong")));
    }
    Ok(true)
}

const MAGIC: &[u8; 8] = b"KVSNAP\0\x01";
const NAME_MAX: u16 = 64;
