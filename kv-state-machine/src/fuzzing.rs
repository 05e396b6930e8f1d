//! Entry points for the crate `fuzz`: parsers of bytes from disk or from peers. Also options that only tests need.

use std::{
    io::{self, Read, Write},
    path::Path,
};

use bytes::Bytes;
use consensus_core::{
    NodeId, StorageError,
    codec::{self, CodecError},
};
use consensus_storage_rocksdb::Reserve;

use crate::{
    Durability, KvStateMachine,
    keys::{self, Record},
    snapshot,
    view::Failure,
};

/// Receives the files of a snapshot into an empty directory.
pub fn receive_snapshot(dir: &Path, stream: &mut dyn Read) -> Result<(), Failure> {
    snapshot::receive(dir, stream, &Reserve::new(dir, 0))
}

/// Sends the files of a directory as a snapshot.
pub fn send_snapshot(dir: &Path, out: &mut dyn Write) -> io::Result<()> {
    snapshot::send(dir, out)
}

/// Decodes the place and the record of a version, and encodes both again.
pub fn version(place: &[u8], record: &Bytes) -> Result<(Vec<u8>, Bytes), CodecError> {
    let (key, revision) = keys::split(place)?;
    let place = keys::version(&key, revision);
    Ok((place, Record::decode(key, revision, record)?.encode().into()))
}

/// Decodes a stored session and encodes it again.
pub fn session(bytes: &[u8]) -> Result<Vec<u8>, CodecError> {
    crate::session::reread(bytes)
}

/// Decodes the store's meta record and encodes it again.
pub fn meta(bytes: &[u8]) -> Result<Vec<u8>, Failure> {
    let meta = crate::store::read_meta(Some(bytes.to_vec()))?;
    Ok(codec::encode(crate::store::META_VERSION, &meta))
}

/// Whether all garbage was removed from disk.
#[must_use]
pub fn is_collected(machine: &KvStateMachine) -> bool {
    machine.is_collected()
}

/// Sizes that no response depends on.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Number of keys whose newest versions are kept in memory.
    pub recent_max: usize,
    /// Number of keys above which a segment is split.
    pub segment_keys_max: u64,
    /// Number of keys above which a range is deleted by one record first.
    pub deletions_max: u64,
    /// Number of keys of such a range that are deleted in one write.
    pub deletion_part: u64,
}

/// Lets deletions of ranges wait, or continue, so that tests see the store meanwhile.
pub fn hold_deletions(machine: &KvStateMachine, hold: bool) {
    machine.executor().store().are_deletions_held().store(hold, std::sync::atomic::Ordering::Relaxed);
}

/// Whether a deletion of a range is being carried out.
#[must_use]
pub fn has_deletions(machine: &KvStateMachine) -> bool {
    !machine.executor().store().current().deletions().is_empty()
}

/// Opens a machine with other sizes.
pub fn open_with(path: &Path, sizes: Sizes) -> Result<KvStateMachine, StorageError> {
    open_durable_with(path, sizes, Durability::FromLog)
}

/// Opens a machine with other sizes and a durability.
pub fn open_durable_with(
    path: &Path,
    sizes: Sizes,
    durability: Durability,
) -> Result<KvStateMachine, StorageError> {
    let Sizes { recent_max, segment_keys_max, deletions_max, deletion_part } = sizes;
    let cache_bytes = 8 << 20;
    let tuning =
        crate::store::Tuning { recent_max, segment_keys_max, deletions_max, deletion_part, cache_bytes };
    KvStateMachine::open_with(path, NodeId(1), durability, tuning)
}
