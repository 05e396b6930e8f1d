//! The store in simulated clusters whose nodes crash, fall behind, and receive snapshots: all responses and states are
//! the same on all nodes.

use std::{io::Read, path::Path};

use bytes::Bytes;
use consensus_core::{Entry, LogId, NodeId, Snapshot, StateMachine, StateMachineError, codec};
use consensus_raft_simulator::{Guest, Random, run_guest};
use kv_state_machine::{
    Alarm, AlarmKind, Compare, CompareResult, CompareTarget, Delete, Durability, KeyRange, KvCommand,
    KvOperation, KvStateMachine, Put, Range, Session, Txn, Versionstamp,
};
use tempfile::TempDir;

#[test]
fn simulated_nodes_have_equal_stores() {
    let totals = run_guest(Store, 0..16).unwrap();
    for what in [
        "guest restarted from a snapshot",
        "guest with a state was sent a snapshot",
        "guest's state compared",
    ] {
        assert!(totals.reached.contains_key(what), "{what}: {:?}", totals.reached);
    }
}

struct Store;

impl Guest for Store {
    type Machine = Placed;

    fn open(&self) -> Placed {
        // The simulator itself keeps what survives a crash, so the directory may be in memory; on a disk the test takes
        // 15 times as long.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let machine = KvStateMachine::open(dir.path(), NodeId(0), Durability::FromLog).unwrap();
        Placed { machine, _dir: dir }
    }

    /// Few keys, few clients and small numbers, so that commands conflict.
    fn command(&self, random: &mut Random) -> Bytes {
        let session = Session { client_id: random.below(4), sequence: 1 + random.below(20) };
        let session = random.percent(40).then_some(session);
        let operation = match random.below(40) {
            10 => KvOperation::RaiseAlarm(alarm(random)),
            // More often than it is raised, so that most commands are not refused.
            11..15 => KvOperation::DisarmAlarm(alarm(random)),
            0..4 => KvOperation::OpenSession { sessions_max: 1 + random.below(3) },
            4..8 => KvOperation::Compact { revision: random.below(150) },
            8..10 | 15..21 => KvOperation::Txn(transaction(random)),
            _ => simple(random),
        };
        codec::encode(1, &KvCommand::new(session, operation)).into()
    }

    fn digest(&self, placed: &mut Placed) -> Option<Vec<u8>> {
        Some(format!("{:?}", placed.machine.executor().hash().unwrap()).into())
    }
}

/// One kind and node, so that the alarm is soon disarmed.
fn alarm(random: &mut Random) -> Alarm {
    let kind = if random.percent(90) { AlarmKind::NoSpace } else { AlarmKind::Corrupt };
    Alarm { kind, node: Some(NodeId(0)) }
}

fn key(random: &mut Random) -> Bytes {
    format!("k{}", random.below(8)).into()
}

fn keys(random: &mut Random) -> KeyRange {
    let range_end = random.percent(40).then(|| key(random));
    KeyRange { key: key(random), range_end }
}

fn simple(random: &mut Random) -> KvOperation {
    let KeyRange { key, range_end } = keys(random);
    let some = random.percent(50);
    match random.below(5) {
        0 => KvOperation::Delete(Delete { key, range_end, return_previous: some, limit: 0 }),
        1 => {
            let (limit, revision) = (random.below(3), random.below(3) * random.below(100));
            KvOperation::Range(Range {
                key,
                range_end,
                limit,
                revision,
                descending: some,
                ..Range::default()
            })
        }
        _ => {
            let stamps =
                [Versionstamp::None, Versionstamp::None, Versionstamp::KeySuffix, Versionstamp::ValueSuffix];
            let (value, versionstamp) = (random.next().to_le_bytes().to_vec().into(), random.of(&stamps));
            KvOperation::Put(Put { key, value, return_previous: some, versionstamp, ..Put::default() })
        }
    }
}

fn transaction(random: &mut Random) -> Txn {
    let target = match random.below(3) {
        0 => CompareTarget::Version(random.below(3) as i64),
        1 => CompareTarget::ModRevision(random.below(200) as i64),
        _ => CompareTarget::Value(Bytes::new()),
    };
    let result = random.of(&[CompareResult::Equal, CompareResult::Greater, CompareResult::Less]);
    let mut some = || (0..random.below(3)).map(|_| simple(random)).collect();
    let (success, failure) = (some(), some());
    let read_revision = random.below(2) * random.below(300);
    Txn {
        compare: vec![Compare { keys: keys(random), target, result }],
        success,
        failure,
        read_revision,
        read_ranges: vec![keys(random)],
    }
}

/// A store and its own directory.
struct Placed {
    machine: KvStateMachine,
    _dir: TempDir,
}

impl StateMachine for Placed {
    fn applied(&self) -> LogId {
        self.machine.applied()
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Bytes>, StateMachineError> {
        self.machine.apply(entries)
    }

    fn flush(&mut self) -> Result<LogId, StateMachineError> {
        self.machine.flush()
    }

    fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StateMachineError> {
        self.machine.snapshot()
    }

    fn restore(&mut self, stream: &mut dyn Read) -> Result<(), StateMachineError> {
        self.machine.restore(stream)
    }
}
