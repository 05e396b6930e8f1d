//! Alarms, and the quota that raises an alarm.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use consensus_core::{Entry, LogId, LogIndex, NodeId, Payload, StateMachine, Term, codec};
use kv_state_machine::{
    Alarm, AlarmKind, ConsensusKvDatabase, Delete, Durability, KvAnswer, KvCommand, KvError, KvOperation,
    KvRejection, KvResult, KvStateMachine, Limits, Put, Session,
};

const FULL: Alarm = Alarm { kind: AlarmKind::NoSpace, node: Some(NodeId(7)) };

fn put(key: &str, value_len: usize) -> KvOperation {
    // Incompressible bytes.
    let mut state = key.len() as u64 + 1;
    let value: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    })
    .take(value_len)
    .collect();
    KvOperation::Put(Put { key: key.to_owned().into(), value: value.into(), ..Put::default() })
}

async fn open(dir: &Path, quota_bytes: u64) -> ConsensusKvDatabase {
    let mut limits = Limits::default();
    limits.quota_bytes = quota_bytes;
    let database = ConsensusKvDatabase::new_with_mock(NodeId(0), dir).unwrap().with_limits(limits);
    database.start().await.unwrap();
    database
}

fn no_space<T>() -> Result<T, KvError> {
    Err(KvError::Rejected(KvRejection::NoSpace))
}

async fn disarm(database: &ConsensusKvDatabase, alarm: Alarm) -> KvResult {
    database.execute_operation(KvOperation::DisarmAlarm(alarm)).await.unwrap().result
}

#[tokio::test]
async fn raised_alarm_refuses_added_data_until_disarmed_across_restart() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path(), 0).await;
    database.execute_operation(put("a", 9)).await.unwrap();
    let raised = database.execute_operation(KvOperation::RaiseAlarm(FULL)).await.unwrap();
    assert_eq!(raised.result, KvResult::Alarm(true));
    database.shutdown().await.unwrap();
    drop(database);
    let database = open(dir.path(), 0).await;
    assert_eq!(database.alarms(), [FULL]);
    let before = database.revision().unwrap();
    assert_eq!(database.execute_operation(put("b", 9)).await, no_space());
    assert_eq!(database.execute_operation(KvOperation::GrantLease { id: 1, ttl: 9 }).await, no_space());
    assert_eq!(database.revision().unwrap(), before);
    let delete = KvOperation::Delete(Delete { key: "a".into(), ..Delete::default() });
    let deleted = database.execute_operation(delete).await.unwrap();
    database.execute_operation(KvOperation::Compact { revision: deleted.revision }).await.unwrap();
    assert_eq!(disarm(&database, FULL).await, KvResult::Alarm(true));
    assert_eq!(disarm(&database, FULL).await, KvResult::Alarm(false));
    database.execute_operation(put("b", 9)).await.unwrap();
}

#[tokio::test]
async fn burst_exceeds_quota_only_by_writes_in_flight_and_space_is_reclaimed() {
    const VALUE: usize = 64 << 10;
    const WRITERS: usize = 16;
    let quota = 12 << 20;
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path(), quota).await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let database = database.clone();
        writers.spawn(async move {
            for n in 0.. {
                if let Err(error) = database.execute_operation(put(&format!("{writer}/{n}"), VALUE)).await {
                    return (n, error);
                }
            }
            unreachable!()
        });
    }
    let ends = writers.join_all().await;
    assert!(ends.iter().all(|(_, error)| *error == KvError::Rejected(KvRejection::NoSpace)), "{ends:?}");
    let written = ends.iter().map(|(puts, _)| puts * VALUE as u64).sum::<u64>();
    let in_flight = (WRITERS * (VALUE + 1024)) as u64;
    // A memtable block counts as soon as it is allocated.
    assert!(written > quota / 2 && written < quota + in_flight, "{written} bytes were put");
    let size = database.disk_bytes().unwrap();
    assert!(size < quota + in_flight + (2 << 20), "{size} bytes");
    assert_eq!(database.alarms(), [Alarm { kind: AlarmKind::NoSpace, node: Some(NodeId(0)) }]);
    let all = Delete { key: "\0".into(), range_end: Some("\0".into()), ..Delete::default() };
    let deleted = database.execute_operation(KvOperation::Delete(all)).await.unwrap();
    database.execute_operation(KvOperation::Compact { revision: deleted.revision }).await.unwrap();
    let start = Instant::now();
    while database.exceeds_quota().unwrap() || database.disk_bytes().unwrap() > quota / 2 {
        assert!(start.elapsed() < Duration::from_secs(60), "the space is not reclaimed in time");
        database.reclaim_space().await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(
        database.execute_operation(put("a", 9)).await,
        no_space(),
        "refused until the alarm is disarmed"
    );
    disarm(&database, Alarm { kind: AlarmKind::NoSpace, node: Some(NodeId(0)) }).await;
    database.execute_operation(put("a", 9)).await.unwrap();
}

/// A machine that applies commands.
struct Harness {
    machine: KvStateMachine,
    index: u64,
}

impl Harness {
    fn open(dir: &Path) -> Self {
        Self { machine: KvStateMachine::open(dir, NodeId(0), Durability::FromLog).unwrap(), index: 0 }
    }

    fn apply(&mut self, session: Option<Session>, operation: KvOperation) -> Result<KvAnswer, KvRejection> {
        self.index += 1;
        let id = LogId { term: Term(1), index: LogIndex(self.index) };
        let command = codec::encode(1, &KvCommand::new(session, operation));
        let entry = Entry { id, payload: Payload::Command(Bytes::from(command)) };
        codec::decode("answer", 1, &self.machine.apply(&[entry]).unwrap()[0]).unwrap()
    }
}

#[test]
fn alarm_is_part_of_snapshot_and_hash() {
    let dir = tempfile::tempdir().unwrap();
    let mut from = Harness::open(&dir.path().join("from"));
    from.apply(None, put("a", 9)).unwrap();
    let without = from.machine.executor().hash().unwrap().hash;
    from.apply(None, KvOperation::RaiseAlarm(FULL)).unwrap();
    let with = from.machine.executor().hash().unwrap();
    assert_ne!(with.hash, without);
    let mut stream = Vec::new();
    from.machine.snapshot().unwrap().write_to(&mut stream).unwrap();
    let mut to = Harness::open(&dir.path().join("to"));
    to.machine.restore(&mut &stream[..]).unwrap();
    to.index = from.index;
    assert_eq!(to.machine.executor().hash().unwrap(), with);
    assert_eq!(to.apply(None, put("b", 9)), Err(KvRejection::NoSpace));
}

#[test]
fn repetition_of_command_executed_before_alarm_gets_first_response() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = Harness::open(dir.path());
    let opened = harness.apply(None, KvOperation::OpenSession { sessions_max: 9 }).unwrap().result;
    let KvResult::OpenSession(client_id) = opened else { panic!("{opened:?}") };
    let session = |sequence| Some(Session { client_id, sequence });
    let first = harness.apply(session(1), put("a", 9));
    harness.apply(None, KvOperation::RaiseAlarm(FULL)).unwrap();
    assert_eq!(harness.apply(session(1), put("a", 9)), first);
    assert_eq!(harness.apply(session(2), put("a", 9)), Err(KvRejection::NoSpace));
}
