//! For the crate `fuzz`: what a store makes of bytes that lie on disk or come from a peer. And for tests, what cannot be
//! chosen otherwise.

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

/// Reads the place and the record of a version, and writes both again.
pub fn version(place: &[u8], record: &Bytes) -> Result<(Vec<u8>, Bytes), CodecError> {
    let (key, revision) = keys::split(place)?;
    let place = keys::version(&key, revision);
    Ok((place, Record::decode(key, revision, record)?.encode().into()))
}

/// Reads a stored session and writes it again.
pub fn session(bytes: &[u8]) -> Result<Vec<u8>, CodecError> {
    crate::session::reread(bytes)
}

/// Reads the record of what a store knows of itself and writes it again.
pub fn meta(bytes: &[u8]) -> Result<Vec<u8>, Failure> {
    let meta = crate::store::read_meta(Some(bytes.to_vec()))?;
    Ok(codec::encode(crate::store::META_VERSION, &meta))
}

/// Whether what was compacted away is gone from the disk.
#[must_use]
pub fn is_collected(machine: &KvStateMachine) -> bool {
    machine.is_collected()
}

/// A machine that has in memory of so many keys which version is the newest.
pub fn open_with_recent(path: &Path, recent_max: usize) -> Result<KvStateMachine, StorageError> {
    KvStateMachine::open_with(path, NodeId(1), Durability::FromLog, recent_max)
}
