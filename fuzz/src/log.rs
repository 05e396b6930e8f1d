//! What nodes write for themselves: the log, what they must not forget, recordings; and commands of sessions.

use std::{collections::BTreeMap, path::Path};

use bytes::Bytes;
use consensus_core::{
    Entry, HardState, LogId, Membership, SnapshotMeta, StateMachine, codec, record,
    session::ExactlyOnce,
    typed::{Application, InMemory},
};
use consensus_engine_raft::{
    flight::{FlightReader, MAGIC, Record, framed},
    fuzzing::forwarded,
};
use consensus_raft_protocol::{Raft, Returned};
use consensus_storage_wal::fuzzing;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::bounded;

/// A record of the log, as it is, and with its checksum made right.
pub(crate) fn record(bytes: &[u8]) {
    check_record(Bytes::copy_from_slice(bytes));
    if bytes.len() > 5 {
        let sum = crc32c::crc32c(&bytes[5..]).to_be_bytes();
        check_record([&bytes[..1], &sum, &bytes[5..]].concat().into());
    }
}

fn check_record(bytes: Bytes) {
    let Ok(entry) = bounded(&bytes, PER_BYTE, BESIDES, || record::decode(&bytes)) else { return };
    let mut written = Vec::new();
    record::encode(&entry, &mut written);
    assert_eq!(record::decode(&written.into()), Ok(entry));
}

/// The segments of a log. The first byte says how many frames are in the first one.
pub(crate) fn segments(bytes: &[u8]) {
    let Some((count, bytes)) = bytes.split_first() else { return };
    let (sealed, ends) = fuzzing::sealed(bytes);
    let cut = ends.get(usize::from(*count)).copied().unwrap_or(sealed.len());
    let (first, second) = sealed.split_at(cut);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let scan = || fuzzing::scan(dir.path(), &[first, second]);
    let Ok(state) = bounded(bytes, PER_BYTE, WINDOWS, scan) else { return };
    let mut last = state.purged.last;
    for (id, _) in &state.entries {
        assert!(id.index == last.index.next() && id.term >= last.term, "{id} after {last}");
        last = *id;
    }
    assert!(
        state.memberships.iter().all(|(index, _)| *index > state.purged.last.index && *index <= last.index)
    );
    assert!(state.damage.as_ref().is_none_or(|damage| damage.last.index >= last.index));
    assert_eq!(scan().expect("it was read before"), state);
}

/// Whatever else is encoded by the codec; the first byte says as what.
pub(crate) fn stored(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind {
        0 => check::<HardState>(bytes),
        1 => check::<SnapshotMeta>(bytes),
        2 => check::<Membership>(bytes),
        3 => check::<Returned>(bytes),
        4 => check::<Everything>(bytes),
        5 => rewritten(bytes, forwarded),
        6 => rewritten(bytes, |bytes| Raft::from_checkpoint(bytes).map(|raft| raft.checkpoint())),
        _ => {}
    }
}

/// What no type of the workspace has, and those of users may.
#[derive(Serialize, Deserialize)]
struct Everything {
    numbers: (i8, i16, i32, i64, i128, u16, u128, f32, f64),
    text: (char, String, Option<Box<Everything>>),
    map: BTreeMap<String, Vec<Result<u8, String>>>,
}

fn check<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    rewritten(bytes, |bytes| codec::decode::<T>("value", 1, bytes).map(|value| codec::encode(1, &value)));
}

/// `rewrite` reads and writes; what it wrote it reads, and writes the same again.
pub(crate) fn rewritten<E: std::fmt::Debug>(bytes: &[u8], rewrite: impl Fn(&[u8]) -> Result<Vec<u8>, E>) {
    if let Ok(written) = bounded(bytes, PER_BYTE, BESIDES, || rewrite(bytes)) {
        assert_eq!(rewrite(&written).expect("what was written can be read"), written);
    }
}

#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Names(BTreeMap<u64, Bytes>);

impl Application for Names {
    type Command = (u64, Bytes);
    type Response = Option<Bytes>;

    fn apply(&mut self, (id, name): (u64, Bytes)) -> Option<Bytes> {
        self.0.insert(id, name)
    }
}

/// A command for exactly-once execution and, seen otherwise, the snapshot of a machine that has executed some.
pub(crate) fn session(bytes: &[u8]) {
    let machine = || ExactlyOnce::new(InMemory::new(Names::default()));
    let written = |machine: &mut ExactlyOnce<InMemory<Names>>| {
        let mut stream = Vec::new();
        machine
            .snapshot()
            .and_then(|mut snapshot| Ok(snapshot.write_to(&mut stream)?))
            .expect("no I/O fails");
        stream
    };
    let mut first = machine();
    let entry = Entry::command(LogId::new(1, 1), Bytes::copy_from_slice(bytes));
    let _ = bounded(bytes, PER_BYTE, BESIDES, || first.apply(&[entry]));
    rewritten(bytes, |mut stream| {
        let mut restored = machine();
        restored.restore(&mut stream).map(|()| written(&mut restored))
    });
}

/// A file of the flight recorder; what does not begin as one is taken for the body of its first record.
pub(crate) fn flight(bytes: &[u8]) {
    if bytes.starts_with(&MAGIC) {
        return check_recording(bytes);
    }
    let length = (bytes.len() as u32).to_le_bytes();
    let sums = [crc32c::crc32c(&length), crc32c::crc32c(bytes)].map(u32::to_le_bytes).concat();
    check_recording(&[&MAGIC[..], &length, &sums, bytes].concat());
}

fn check_recording(bytes: &[u8]) {
    let records = bounded(bytes, PER_BYTE, BESIDES, || read_recording(bytes));
    let mut written = MAGIC.to_vec();
    for record in &records {
        written.extend(framed(record).expect("it was no longer when it was read"));
        if let Record::FileStart { state, .. } = record {
            rewritten(state, |bytes| Raft::from_checkpoint(bytes).map(|raft| raft.checkpoint()));
        }
    }
    assert_eq!(read_recording(&written), records);
}

fn read_recording(bytes: &[u8]) -> Vec<Record> {
    let Ok(mut reader) = FlightReader::new(Path::new("recording"), bytes) else { return Vec::new() };
    std::iter::from_fn(|| reader.next_record().ok().flatten()).collect()
}

/// The shortest element of a list has one byte or two, and takes the room of the largest.
const PER_BYTE: usize = 256;
const BESIDES: usize = 32 << 10;
/// What a log is read through.
const WINDOWS: usize = 4 << 20;
