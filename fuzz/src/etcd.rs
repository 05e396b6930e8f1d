//! Requests as etcd's clients encode them.

use consensus_core::codec;
use kv_server::fuzzing;
use kv_state_machine::KvOperation;

use crate::bounded;

/// A request over gRPC: its kind in the first byte, then its message.
pub(crate) fn request(bytes: &[u8]) {
    let Some((kind, message)) = bytes.split_first() else { return };
    let operation = bounded(bytes, MESSAGE_PER_BYTE, BESIDES, || fuzzing::etcd_request(*kind, message));
    // What is accepted goes into the log.
    if let Ok(operation) = operation {
        let written = codec::encode(1, &operation);
        let again =
            codec::decode::<KvOperation>("operation", 1, &written).expect("what was written can be read");
        assert_eq!(again, operation);
    }
}

/// A request over the JSON gateway: the path, a line break, and the body.
pub(crate) fn json(bytes: &[u8]) {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return };
    let Ok(path) = std::str::from_utf8(&bytes[..end]) else { return };
    // Built once, and not of the bytes.
    let _ = fuzzing::etcd_json("/v3/kv/range", b"{}");
    bounded(bytes, JSON_PER_BYTE, BESIDES, || drop(fuzzing::etcd_json(path, &bytes[end + 1..])));
}

/// A snapshot of etcd without its checksum.
pub(crate) fn snapshot(bytes: &[u8]) {
    let _ = bounded(bytes, SNAPSHOT_PER_BYTE, BESIDES, || fuzzing::etcd_snapshot(bytes));
}

const SNAPSHOT_PER_BYTE: usize = 200;
const MESSAGE_PER_BYTE: usize = 200;
const JSON_PER_BYTE: usize = 1_000;
const BESIDES: usize = 1 << 20;
