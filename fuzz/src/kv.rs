//! What comes from the clients and operators of the key-value server, and what its store keeps.

use std::{collections::BTreeMap, fs, path::Path};

use bytes::Bytes;
use consensus_core::codec;
use kv_server::fuzzing as server;
use kv_state_machine::{KvAnswer, KvCommand, KvRejection, KvResult, fuzzing as machine};
use kv_store_client::protocol::{self, Call};
use serde::{Serialize, de::DeserializeOwned};

use crate::{bounded, log::rewritten};

/// A frame from a client: a call, and the command for the store that it becomes.
pub(crate) fn call(frame: &[u8]) {
    let Ok(incoming) = bounded(frame, PER_BYTE, BESIDES, || protocol::read_call(frame)) else { return };
    let sequence = incoming.sequence;
    let Ok(call) = incoming.call else { return };
    let written = call.clone().encode(sequence).expect("what was read can be written");
    let again = protocol::read_call(&written[4..]).expect("what was written can be read");
    assert_eq!((again.sequence, again.call.as_ref()), (sequence, Ok(&call)));
    if matches!(call, Call::Status | Call::Hash | Call::NoForwarding(_)) {
        return;
    }
    if let Ok(Some(command)) = bounded(frame, PER_BYTE, BESIDES, || server::command(call)) {
        assert_eq!(codec::decode("command", 1, &codec::encode(1, &command)), Ok(command));
    }
}

/// A frame from a server: a reply.
pub(crate) fn reply(frame: &[u8]) {
    let read = bounded(frame, PER_BYTE, BESIDES, || protocol::read_reply(frame));
    if let Ok((sequence, outcome)) = read {
        let name = frame.get(8..).and_then(|rest| rest.split_at_checked(name_bytes(frame)));
        let name = name.and_then(|(name, _)| std::str::from_utf8(name).ok()).expect("it was read");
        let written = protocol::encode_reply(name, sequence, outcome.clone()).expect("it can be written");
        assert_eq!(protocol::read_reply(&written[4..]).expect("and read"), (sequence, outcome));
    }
}

fn name_bytes(frame: &[u8]) -> usize {
    frame[4..].first_chunk().map_or(0, |length| u32::from_be_bytes(*length) as usize)
}

/// A command as it stands in the log and, seen otherwise, the answer to one.
pub(crate) fn command(bytes: &[u8]) {
    check::<KvCommand>(bytes);
    check::<Result<KvAnswer, KvRejection>>(bytes);
    let Ok(answer) = codec::decode::<Result<KvAnswer, KvRejection>>("answer", 1, bytes) else { return };
    let name = match &answer {
        Err(KvRejection::LeaseExists { .. }) => "lease_grant",
        Err(_) => "txn",
        Ok(answer) => match answer.result {
            KvResult::Put(_) => "put",
            KvResult::Delete(_) => "delete_range",
            KvResult::Range(_) => "range",
            KvResult::Txn(_) => "txn",
            KvResult::Lease | KvResult::LeaseEnding => "lease_revoke",
            KvResult::Compact
            | KvResult::MemberId(_)
            | KvResult::Alarm(_)
            | KvResult::Auth
            | KvResult::CheckState => "compact",
            KvResult::OpenSession(_) => "open_session",
        },
    };
    let outcome = server::reply(answer);
    let frame = protocol::encode_reply(name, 7, outcome.clone()).expect("an answer can be written");
    assert_eq!(protocol::read_reply(&frame[4..]).expect("and read"), (7, outcome));
}

fn check<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let decoded = bounded(bytes, COMMAND_PER_BYTE, BESIDES, || codec::decode::<T>("value", 1, bytes));
    if let Ok(value) = decoded {
        let written = codec::encode(1, &value);
        let again = codec::decode::<T>("value", 1, &written).expect("what was written can be read");
        assert_eq!(codec::encode(1, &again), written);
    }
}

/// What lies in RocksDB; the first byte says as what.
pub(crate) fn store(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind {
        0 => rewritten(bytes, machine::session),
        1 => rewritten(bytes, machine::meta),
        // A version: the length of its place, its place, its record.
        &length => {
            let (place, record) = bytes.split_at(bytes.len().min(length.into()));
            let record = Bytes::copy_from_slice(record);
            if let Ok(version) = bounded(bytes, PER_BYTE, BESIDES, || machine::version(place, &record)) {
                assert_eq!(version, (place.to_vec(), record), "there is one way to write it");
            }
        }
    }
}

/// A snapshot's stream; what does not begin as one is taken for files: a length and a name, a length and a content.
pub(crate) fn snapshot(bytes: &[u8]) {
    if bytes.starts_with(b"KVSNAP") {
        return check_snapshot(bytes);
    }
    let (mut stream, mut files, mut rest) = (b"KVSNAP\0\x02".to_vec(), 0u32, bytes);
    while let Some((name, after)) = piece(rest) {
        let (content, after) = piece(after).unwrap_or_default();
        (files, rest) = (files + 1, after);
        stream.extend([&(name.len() as u16).to_be_bytes()[..], name].concat());
        stream.extend([&(content.len() as u64).to_be_bytes()[..], content].concat());
        stream.extend(crc32c::crc32c(content).to_be_bytes());
    }
    stream.extend([&[0, 0][..], &files.to_be_bytes()].concat());
    check_snapshot(&stream);
}

fn piece(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    Some(rest.split_at(rest.len().min((*length).into())))
}

fn check_snapshot(stream: &[u8]) {
    let dir = || tempfile::tempdir().expect("a temporary directory can be made");
    let (first, second) = (dir(), dir());
    let received =
        bounded(stream, 4, SNAPSHOT_BESIDES, || machine::receive_snapshot(first.path(), &mut &*stream));
    let files = files(first.path());
    if received.is_ok() {
        let mut written = Vec::new();
        machine::send_snapshot(first.path(), &mut written).expect("files can be read");
        machine::receive_snapshot(second.path(), &mut &*written).expect("what was written can be read");
        assert_eq!(self::files(second.path()), files);
    }
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let read =
        |entry: fs::DirEntry| Ok((entry.file_name().to_string_lossy().into(), fs::read(entry.path())?));
    let files: std::io::Result<_> = fs::read_dir(dir).and_then(|dir| dir.map(|entry| read(entry?)).collect());
    files.expect("files are where they belong, and can be read")
}

/// A configuration: flags, one a line, down to a line of three dashes, if there is one, then the file.
pub(crate) fn configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (flags, file) = text.split_once("\n---\n").unwrap_or(("", text));
    let flags: Vec<&str> = flags.lines().collect();
    let read = || server::configuration(&flags, file);
    let first = bounded(bytes, CONFIGURATION_PER_BYTE, CONFIGURATION_BESIDES, read);
    assert_eq!(read(), first, "the same file, the same settings");
    if let Err(why) = first {
        let says_where =
            ["cluster.toml", "command line: ", "default: "].iter().any(|place| why.starts_with(place));
        assert!(says_where && why.len() > 20, "{why:?} does not say where and what");
    }
}

const PER_BYTE: usize = 64;
const BESIDES: usize = 32 << 10;
/// The shortest operation has two bytes, and takes the room of the largest.
const COMMAND_PER_BYTE: usize = 256;
/// The buffer through which files are copied.
const SNAPSHOT_BESIDES: usize = 192 << 10;
const CONFIGURATION_PER_BYTE: usize = 1024;
/// What `clap` makes of the flags that there are.
const CONFIGURATION_BESIDES: usize = 1 << 20;
