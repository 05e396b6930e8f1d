//! Power failures and `kill -9` at every sync of the store: each resulting disk image opens, and contains everything
//! that was durable.

use std::path::Path;

use bytes::Bytes;
use consensus_core::{Entry, LogId, NodeId, StateMachine, codec};
use consensus_testkit::crash_images::{self, Image};
use kv_state_machine::{Delete, Durability, KvCommand, KvOperation, KvStateMachine, Put, Session, StateHash};

fn open(dir: &Path, durability: Durability) -> KvStateMachine {
    KvStateMachine::open(&dir.join("node-1/state"), NodeId(1), durability).unwrap()
}

/// Entry `index` of the log.
fn entry(index: u64) -> Entry {
    let key = Bytes::from(format!("key {}", index % 5));
    let (mut session, value) = (None, vec![index as u8; 50 + (index as usize * 97) % 3000]);
    let operation = match index {
        1 => KvOperation::OpenSession { sessions_max: 2 },
        _ if index.is_multiple_of(11) => KvOperation::Compact { revision: index / 2 },
        _ if index.is_multiple_of(4) => KvOperation::Delete(Delete { key, ..Delete::default() }),
        _ => {
            session = Some(Session { client_id: 1, sequence: index });
            KvOperation::Put(Put { key, value: value.into(), ..Put::default() })
        }
    };
    Entry::command(LogId::new(1, index), codec::encode(1, &KvCommand::new(session, operation)))
}

/// States after no entry, after entry 1, and so on.
fn states() -> Vec<StateHash> {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = open(dir.path(), Durability::FromLog);
    let mut states = vec![machine.executor().hash().unwrap()];
    for index in 1..=ENTRIES {
        machine.apply(&[entry(index)]).unwrap();
        states.push(machine.executor().hash().unwrap());
    }
    states
}

/// Without a log: acknowledged entries are on disk.
#[test]
#[ignore = "not a test: the workload of one below"]
fn workload_without_a_log() {
    let Some(dir) = crash_images::workload_dir() else { return };
    for session in 0..3 {
        let mut machine = open(&dir, Durability::EachBatch);
        for index in session * (ENTRIES / 3) + 1..=(session + 1) * (ENTRIES / 3) {
            machine.apply(&[entry(index)]).unwrap();
            println!("durable {index}");
        }
    }
}

/// With a log: flushed entries and restored snapshots are on disk.
#[test]
#[ignore = "not a test: the workload of one below"]
fn workload_with_a_log() {
    let Some(dir) = crash_images::workload_dir() else { return };
    let elsewhere = tempfile::tempdir().unwrap();
    let mut other = open(elsewhere.path(), Durability::FromLog);
    let apply = |machine: &mut KvStateMachine, to: u64| {
        for index in machine.applied().index.0 + 1..=to {
            machine.apply(&[entry(index)]).unwrap();
        }
    };
    let durable = |index: LogId| println!("durable {}", index.index);
    for to in [ENTRIES / 6, ENTRIES / 2] {
        let mut machine = open(&dir, Durability::FromLog);
        apply(&mut machine, to);
        let aside = machine.flush_in_background().expect("a store with a log flushes in the background");
        let aside = std::thread::spawn(aside);
        apply(&mut machine, to + 2);
        durable(aside.join().unwrap().unwrap());
        durable(machine.flush().unwrap());
        // A snapshot flushes too; it is sent to a node that is behind.
        let mut stream = Vec::new();
        apply(&mut machine, to + 3);
        machine.snapshot().unwrap().write_to(&mut stream).unwrap();
        // This node receives a snapshot, too.
        apply(&mut other, to + ENTRIES / 4);
        stream.clear();
        other.snapshot().unwrap().write_to(&mut stream).unwrap();
        machine.restore(&mut &stream[..]).unwrap();
        durable(machine.applied());
        apply(&mut machine, to + ENTRIES / 4 + 5);
    }
}

fn check(image: &Image, durability: Durability, states: &[StateHash]) {
    let dir = tempfile::tempdir().unwrap();
    image.write_to(dir.path()).unwrap();
    let durable: u64 = image.printed_value("durable").map_or(0, |index| index.parse().unwrap());
    let machine = KvStateMachine::open(&dir.path().join("node-1/state"), NodeId(1), durability);
    let mut machine = machine.unwrap_or_else(|error| panic!("{image} does not open: {error}"));
    let applied = machine.applied().index.0;
    assert!(applied >= durable, "{image}: entry {applied} is the last one, but {durable} was durable");
    let one_more_at_most = durability == Durability::FromLog || applied <= durable + 1;
    assert!(one_more_at_most, "{image}: unexpected last entry {applied}");
    let found = machine.executor().hash().unwrap();
    assert_eq!(found, states[applied as usize], "{image}: not the state after entry {applied}");
    // The store accepts further entries.
    if applied < ENTRIES {
        machine.apply(&[entry(applied + 1)]).unwrap();
        assert_eq!(machine.executor().hash().unwrap(), states[applied as usize + 1], "{image}");
    }
}

fn try_all(workload: &str, durability: Durability) {
    let place = tempfile::tempdir().unwrap();
    let recording = match crash_images::record(workload, place.path()) {
        Ok(recording) => recording,
        Err(why) => return println!("SKIPPED, no crash images are tested: {why}"),
    };
    let (states, mut images) = (states(), 0);
    let syncs = recording.images(|image| {
        check(image, durability, &states);
        images += 1;
    });
    println!("{syncs} syncs, {images} images");
    assert!(
        syncs > 20 && images > 100,
        "the recording does not contain the workload: {syncs} syncs, {images} images"
    );
}

#[test]
fn crash_image_of_store_without_log_contains_durable_state() {
    try_all("workload_without_a_log", Durability::EachBatch);
}

#[test]
fn crash_image_of_store_with_log_contains_durable_state() {
    try_all("workload_with_a_log", Durability::FromLog);
}

const ENTRIES: u64 = 48;
