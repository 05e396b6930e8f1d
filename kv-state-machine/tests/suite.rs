//! Conformance suite of state machines, and tests of sessions, compaction and snapshots.

use std::{
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use consensus_core::{Entry, LogId, NodeId, StateMachine, StateMachineError, codec};
use consensus_testkit::state_machine::{Fixture, run_suite};
use kv_state_machine::{
    Delete, Durability, KeyRange, KvAnswer, KvCommand, KvOperation, KvRejection, KvResult, KvStateMachine,
    Put, Range, Session, StateHash, Txn,
};
use tempfile::TempDir;

struct Place(TempDir, Durability);

impl Fixture for Place {
    type Machine = KvStateMachine;

    fn open(&mut self) -> KvStateMachine {
        KvStateMachine::open(self.0.path(), NodeId(1), self.1).unwrap()
    }

    fn command(&self, n: u64) -> Bytes {
        let key = Bytes::from(format!("key {}", n % 3));
        let operation = match n % 7 {
            0 => KvOperation::OpenSession { sessions_max: 2 },
            4 => KvOperation::Delete(Delete { key, ..Delete::default() }),
            _ => KvOperation::Put(Put { key, value: format!("value {n}").into(), ..Put::default() }),
        };
        codec::encode(1, &KvCommand::new(None, operation)).into()
    }

    fn digest(&self, machine: &mut KvStateMachine) -> Vec<u8> {
        format!("{:?} {:?}", machine.applied(), machine.executor().hash().unwrap()).into()
    }
}

#[test]
fn state_machine_with_log_passes_conformance_suite() {
    run_suite(|| Place(tempfile::tempdir().unwrap(), Durability::FromLog));
}

#[test]
fn state_machine_without_log_passes_conformance_suite() {
    run_suite(|| Place(tempfile::tempdir().unwrap(), Durability::EachBatch));
}

/// A machine and the log that it applies.
struct Harness {
    machine: KvStateMachine,
    last: u64,
}

type Answer = Result<KvAnswer, KvRejection>;

impl Harness {
    fn new(dir: &TempDir) -> Self {
        let machine = KvStateMachine::open(dir.path(), NodeId(1), Durability::FromLog).unwrap();
        let last = machine.applied().index.0;
        Self { machine, last }
    }

    fn apply(&mut self, session: Option<Session>, operation: KvOperation) -> Answer {
        self.last += 1;
        let command = codec::encode(1, &KvCommand::new(session, operation));
        let entry = Entry::command(LogId::new(1, self.last), command);
        codec::decode("answer", 1, &self.machine.apply(&[entry]).unwrap()[0]).unwrap()
    }

    fn open_session(&mut self, sessions_max: u64) -> u64 {
        match self.apply(None, KvOperation::OpenSession { sessions_max }).unwrap().result {
            KvResult::OpenSession(id) => id,
            other => panic!("{other:?}"),
        }
    }

    fn put(&mut self, client_id: u64, sequence: u64, value: &str) -> Answer {
        let put =
            Put { key: "k".into(), value: value.to_owned().into(), return_previous: true, ..Put::default() };
        self.apply(Some(Session { client_id, sequence }), KvOperation::Put(put))
    }

    fn value(&self) -> Option<Bytes> {
        let read = KvOperation::Range(Range { key: "k".into(), ..Range::default() });
        let KvResult::Range(found) = self.machine.executor().read(&read).unwrap().unwrap().result else {
            panic!()
        };
        found.kvs.first().map(|kv| kv.value.clone())
    }
}

#[test]
fn repeated_write_is_applied_once_and_gets_same_response() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = Harness::new(&dir);
    let id = harness.open_session(10);
    let first = harness.put(id, 1, "one");
    let second = harness.put(id, 2, "two");
    assert_eq!(harness.put(id, 2, "two"), second);
    // The same after a restart, and after a snapshot.
    harness.machine.flush().unwrap();
    drop(harness);
    let mut harness = Harness::new(&dir);
    assert_eq!(harness.put(id, 2, "two"), second);
    let mut stream = Vec::new();
    harness.machine.snapshot().unwrap().write_to(&mut stream).unwrap();
    let other = tempfile::tempdir().unwrap();
    let mut restored = Harness::new(&other);
    restored.machine.restore(&mut &stream[..]).unwrap();
    restored.last = harness.last;
    assert_eq!(restored.put(id, 2, "two"), second);
    // An earlier number is refused and changes nothing.
    assert!(first.is_ok());
    let over = KvRejection::SequenceOver { client_id: id, sequence: 1, last: 2 };
    assert_eq!(restored.put(id, 1, "one"), Err(over));
    assert_eq!(restored.value().unwrap(), "two");
}

#[test]
fn rejected_write_uses_its_sequence_number() {
    // Otherwise a delayed duplicate could be executed after the client's next request.
    let dir = tempfile::tempdir().unwrap();
    let mut harness = Harness::new(&dir);
    let client_id = harness.open_session(10);
    let session = Some(Session { client_id, sequence: 1 });
    let future = KvOperation::Compact { revision: 99 };
    let rejected = harness.apply(session, future.clone());
    assert!(matches!(rejected, Err(KvRejection::FutureRevision { .. })), "{rejected:?}");
    assert_eq!(harness.apply(session, future), rejected);
    assert!(harness.put(client_id, 1, "late").is_err());
    assert_eq!(harness.value(), None);
}

#[test]
fn sequence_number_of_another_request_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = Harness::new(&dir);
    let client_id = harness.open_session(10);
    harness.put(client_id, 1, "read").unwrap();
    harness.put(client_id, 2, "changed since").unwrap();
    let session = Some(Session { client_id, sequence: 3 });
    let range = KeyRange { key: "k".into(), range_end: None };
    let stale = KvOperation::Txn(Txn { read_revision: 2, read_ranges: vec![range], ..Txn::default() });
    let conflict = harness.apply(session, stale.clone());
    assert!(matches!(conflict, Err(KvRejection::Conflict { .. })), "{conflict:?}");
    // The stored response is the conflict, which is not a response to a put, and the put would be lost silently.
    let refused = harness.put(client_id, 3, "another request");
    let is_explained = |why: &str| why.contains("was used for another request");
    assert!(matches!(&refused, Err(KvRejection::Invalid(why)) if is_explained(why)), "{refused:?}");
    assert_eq!(harness.value().unwrap(), "changed since");
    // The first request still gets its response, after a restart too.
    assert_eq!(harness.apply(session, stale.clone()), conflict);
    harness.machine.flush().unwrap();
    drop(harness);
    let mut harness = Harness::new(&dir);
    assert_eq!(harness.apply(session, stale), conflict);
    harness.put(client_id, 9, "with a gap in the numbers").unwrap();
}

#[test]
fn session_idle_longest_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = Harness::new(&dir);
    let (a, b) = (harness.open_session(2), harness.open_session(2));
    harness.put(a, 1, "used").unwrap();
    let c = harness.open_session(2);
    assert!(matches!(harness.put(b, 1, "x"), Err(KvRejection::NoSession { client_id }) if client_id == b));
    harness.put(a, 2, "x").unwrap();
    harness.put(c, 1, "x").unwrap();
    // The same after a restart from disk.
    harness.machine.flush().unwrap();
    drop(harness);
    let mut harness = Harness::new(&dir);
    harness.open_session(2);
    assert!(harness.put(a, 3, "x").is_err());
    harness.put(c, 2, "x").unwrap();
}

#[test]
fn compacted_history_is_removed_from_disk_without_changing_hash() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = Harness::new(&dir);
    for n in 0..50 {
        let put = Put { key: format!("k{}", n % 5).into(), value: format!("{n}").into(), ..Put::default() };
        harness.apply(None, KvOperation::Put(put)).unwrap();
    }
    harness.apply(None, KvOperation::Compact { revision: 40 }).unwrap();
    let before = harness.machine.executor().hash().unwrap();
    harness.machine.flush().unwrap();
    drop(harness); // Stops the collector in the middle of its work.
    let harness = Harness::new(&dir); // The new collector starts from the first key.
    assert_eq!(harness.machine.executor().hash().unwrap(), before);
    let old = KvOperation::Range(Range { key: "k1".into(), revision: 39, ..Range::default() });
    assert_eq!(harness.machine.executor().read(&old).unwrap(), Err(KvRejection::Compacted { compacted: 40 }));
}

/// A stream that calls a function before each read.
struct Watched<'a, F>(&'a [u8], F);

impl<F: FnMut(usize)> std::io::Read for Watched<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let piece = buffer.len().min(self.0.len()).min(1024);
        (self.1)(self.0.len());
        buffer[..piece].copy_from_slice(&self.0[..piece]);
        self.0 = &self.0[piece..];
        Ok(piece)
    }
}

/// Returns a store with some state, and a snapshot of another store.
fn old_and_snapshot_of_new(dir: &TempDir) -> (Harness, StateHash, Vec<u8>, StateHash) {
    let other = tempfile::tempdir().unwrap();
    let mut new = Harness::new(&other);
    for n in 0..100 {
        let put = Put { key: format!("k{n}").into(), value: vec![b'v'; 200].into(), ..Put::default() };
        new.apply(None, KvOperation::Put(put)).unwrap();
    }
    let mut stream = Vec::new();
    new.machine.snapshot().unwrap().write_to(&mut stream).unwrap();
    let mut old = Harness::new(dir);
    old.apply(None, KvOperation::Put(Put { key: "k".into(), value: "old".into(), ..Put::default() }))
        .unwrap();
    old.machine.flush().unwrap();
    let before = old.machine.executor().hash().unwrap();
    (old, before, stream, new.machine.executor().hash().unwrap())
}

/// Copies the directory, as a crash would leave it, at each read of the restore, and opens each copy.
#[test]
fn crash_during_restore_keeps_old_state() {
    let dir = tempfile::tempdir().unwrap();
    let (mut old, before, stream, after) = old_and_snapshot_of_new(&dir);
    let images = tempfile::tempdir().unwrap();
    let mut taken = 0;
    let mut copy = |_| {
        let to = images.path().join(taken.to_string());
        assert!(Command::new("cp").arg("-r").arg(dir.path()).arg(to).status().unwrap().success());
        taken += 1;
    };
    old.machine.restore(&mut Watched(&stream, &mut copy)).unwrap();
    assert_eq!(old.machine.executor().hash().unwrap(), after);
    copy(0);
    assert!(taken > 20, "{taken}");
    for image in 0..taken {
        let place = images.path().join(image.to_string());
        let machine = KvStateMachine::open(&place, NodeId(1), Durability::FromLog).unwrap();
        let expected = if image == taken - 1 { &after } else { &before };
        assert_eq!(machine.executor().hash().unwrap(), *expected, "image {image} of {taken}");
    }
}

#[test]
fn damaged_snapshot_is_refused_or_restores_same_state() {
    let dir = tempfile::tempdir().unwrap();
    let (mut old, before, stream, after) = old_and_snapshot_of_new(&dir);
    // All positions in the header, and some of the rest.
    let places = (0..60).chain((60..stream.len()).step_by(stream.len() / 60));
    for at in places {
        assert!(old.machine.restore(&mut &stream[..at]).is_err(), "cut at {at}");
        assert_eq!(old.machine.executor().hash().unwrap(), before, "cut at {at}");
        let mut changed = stream.clone();
        changed[at] ^= 4;
        if old.machine.restore(&mut &*changed).is_ok() {
            // The name of a file without state was changed.
            assert_eq!(old.machine.executor().hash().unwrap(), after, "changed at {at}");
            drop(old);
            std::fs::remove_dir_all(dir.path()).unwrap();
            (old, ..) = old_and_snapshot_of_new(&dir);
        }
        assert_eq!(old.machine.executor().hash().unwrap(), before, "changed at {at}");
    }
}

#[test]
fn snapshot_without_disk_space_is_refused_and_keeps_old_state() {
    let dir = tempfile::tempdir().unwrap();
    let (mut old, before, stream, _) = old_and_snapshot_of_new(&dir);
    old.machine = old.machine.with_reserve(1 << 60);
    let refused = old.machine.restore(&mut &stream[..]);
    assert!(
        matches!(&refused, Err(StateMachineError::NoRoom(why)) if why.contains("MiB free")),
        "{refused:?}"
    );
    assert_eq!(old.machine.executor().hash().unwrap(), before);
    assert!(!dir.path().join("gen-2").exists(), "received files are removed");
    old.apply(None, KvOperation::Put(Put { key: "k".into(), value: "new".into(), ..Put::default() }))
        .unwrap();
    assert_eq!(old.value().unwrap(), "new");
}

#[test]
fn snapshot_that_fails_to_become_current_can_be_restored_later() {
    let dir = tempfile::tempdir().unwrap();
    let (mut old, before, stream, after) = old_and_snapshot_of_new(&dir);
    let in_the_way = dir.path().join("CURRENT.new");
    std::fs::create_dir(&in_the_way).unwrap();
    let refused = old.machine.restore(&mut &stream[..]);
    assert!(matches!(&refused, Err(StateMachineError::Io(_))), "{refused:?}");
    assert_eq!(old.machine.executor().hash().unwrap(), before);
    std::fs::remove_dir(&in_the_way).unwrap();
    old.machine.restore(&mut &stream[..]).unwrap();
    assert_eq!(old.machine.executor().hash().unwrap(), after);
    drop(old);
    assert_eq!(Harness::new(&dir).machine.executor().hash().unwrap(), after);
}

/// Each operation writes its revision to both keys, and history is compacted immediately after it.
#[test]
fn concurrent_reads_see_one_revision() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = Harness::new(&dir);
    let executor = harness.machine.executor();
    let mut write = |revision: u64| {
        let value = Bytes::from(revision.to_string());
        let put = |key: &'static str| Put { key: key.into(), value: value.clone(), ..Put::default() };
        let success = ["a", "b"].map(|key| KvOperation::Put(put(key))).into();
        assert_eq!(
            harness.apply(None, KvOperation::Txn(Txn { success, ..Txn::default() })).unwrap().revision,
            revision
        );
        if revision.is_multiple_of(16) {
            harness.apply(None, KvOperation::Compact { revision }).unwrap();
        }
    };
    write(2);
    let written = AtomicBool::new(false);
    let read = |range_end: Option<Bytes>, expected: usize| {
        while !written.load(Ordering::Relaxed) {
            let range = Range { key: "a".into(), range_end: range_end.clone(), ..Range::default() };
            let answer = executor.read(&KvOperation::Range(range)).unwrap().unwrap();
            let KvResult::Range(found) = answer.result else { panic!() };
            let values: Vec<_> = found.kvs.into_iter().map(|kv| kv.value).collect();
            assert_eq!(values, vec![Bytes::from(answer.revision.to_string()); expected]);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| read(None, 1));
        scope.spawn(|| read(Some("c".into()), 2));
        (3..3000).for_each(&mut write);
        written.store(true, Ordering::Relaxed);
    });
}
