//! Limits of the work of one command: a command that exceeds them is refused as a whole, equally on every node, and a
//! large deletion is executed in portions.

use std::time::{Duration, Instant};

use bytes::Bytes;
use consensus_core::{Entry, LogId, NodeId, StateMachine, codec};
use kv_state_machine::{
    ConsensusKvDatabase, Delete, Deleted, Durability, KvAnswer, KvCommand, KvError, KvOperation, KvRejection,
    KvResult, KvStateMachine, Put, Range, Session, Txn, WORK_KEYS_MAX, fuzzing::is_collected,
};
use tempfile::TempDir;

type Answer = Result<KvAnswer, KvRejection>;

/// A machine and the log that it applies.
struct Harness {
    machine: KvStateMachine,
    last: u64,
    _dir: TempDir,
}

impl Harness {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let machine = KvStateMachine::open(dir.path(), NodeId(1), Durability::FromLog).unwrap();
        Self { machine, last: 0, _dir: dir }
    }

    fn entries(&mut self, commands: Vec<(Option<Session>, KvOperation)>) -> Vec<Entry> {
        let entry = |(session, operation)| {
            self.last += 1;
            let command = KvCommand::new(session, operation);
            Entry::command(LogId::new(1, self.last), codec::encode(1, &command))
        };
        commands.into_iter().map(entry).collect()
    }

    /// Applies all operations in one batch.
    fn apply_all(&mut self, operations: Vec<KvOperation>) -> Vec<Answer> {
        let entries = self.entries(operations.into_iter().map(|operation| (None, operation)).collect());
        let responses = consensus_core::apply_all(&mut self.machine, &entries).unwrap();
        responses.iter().map(|response| codec::decode("answer", 1, response).unwrap()).collect()
    }

    fn apply(&mut self, operation: KvOperation) -> Answer {
        self.apply_all(vec![operation]).remove(0)
    }

    fn fill(&mut self, keys: u64) {
        self.apply_all((0..keys).map(|n| put(&key(n), "v")).collect());
    }

    fn count(&self) -> u64 {
        let read = self.machine.executor().read(&KvOperation::Range(Range { count_only: true, ..all() }));
        let KvResult::Range(found) = read.unwrap().unwrap().result else { panic!() };
        found.count
    }
}

fn key(n: u64) -> String {
    format!("k{n:06}")
}

fn put(key: &str, value: &str) -> KvOperation {
    KvOperation::Put(Put { key: key.to_owned().into(), value: value.to_owned().into(), ..Put::default() })
}

fn all() -> Range {
    Range { key: "k".into(), range_end: Some("l".into()), ..Range::default() }
}

fn delete_from(key: impl Into<Bytes>, limit: u64) -> KvOperation {
    KvOperation::Delete(Delete {
        key: key.into(),
        range_end: Some("l".into()),
        limit,
        return_previous: false,
    })
}

fn delete_with_previous(key: impl Into<Bytes>) -> KvOperation {
    let KvOperation::Delete(delete) = delete_from(key, 0) else { panic!() };
    KvOperation::Delete(Delete { return_previous: true, ..delete })
}

fn deleted(answer: Answer) -> Deleted {
    let KvResult::Delete(deleted) = answer.unwrap().result else { panic!() };
    deleted
}

fn refusal(answer: Answer) -> String {
    match answer {
        Err(KvRejection::Invalid(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn lease_with_too_many_keys_for_one_command_has_ended_and_its_keys_follow() {
    let mut harness = Harness::new();
    let attached = |n: u64| {
        KvOperation::Put(Put { key: key(n).into(), value: "v".into(), lease_id: 7, ..Put::default() })
    };
    let revoke = KvOperation::RevokeLease { id: 7 };
    harness.apply(KvOperation::GrantLease { id: 7, ttl: 9 }).unwrap();
    harness.apply_all((0..=WORK_KEYS_MAX).map(attached).collect());
    assert_eq!(harness.apply(revoke.clone()).unwrap().result, KvResult::LeaseEnding);
    assert_eq!(harness.count(), 1);
    assert_eq!(harness.apply(attached(0)), Err(KvRejection::NoLease { id: 7 }));
    let again = harness.apply(KvOperation::GrantLease { id: 7, ttl: 9 });
    assert_eq!(again, Err(KvRejection::LeaseExists { id: 7 }));
    assert_eq!(harness.apply(revoke.clone()).unwrap().result, KvResult::Lease);
    assert_eq!(harness.count(), 0);
    assert_eq!(harness.apply(revoke), Err(KvRejection::NoLease { id: 7 }));
}

/// The batch has attached and detached keys that are not on disk yet.
#[test]
fn keys_of_ending_lease_do_not_depend_on_batches() {
    let operations = || {
        let with = |n: u64, lease_id| {
            KvOperation::Put(Put { key: key(n).into(), value: "v".into(), lease_id, ..Put::default() })
        };
        let mut all = vec![KvOperation::GrantLease { id: 7, ttl: 9 }];
        all.extend((0..WORK_KEYS_MAX + 50).map(|n| with(2 * n, 7)));
        all.extend((0..30).map(|n| with(2 * n, 0)));
        all.extend((0..40).map(|n| with(2 * n + 1, 7)));
        all.push(KvOperation::RevokeLease { id: 7 });
        all
    };
    let (mut whole, mut single) = (Harness::new(), Harness::new());
    let mut answers = whole.apply_all(operations());
    assert_eq!(answers.pop().unwrap().unwrap().result, KvResult::LeaseEnding);
    let singly: Vec<_> = operations().into_iter().map(|operation| single.apply(operation)).collect();
    assert_eq!(singly.last().unwrap().as_ref().unwrap().result, KvResult::LeaseEnding);
    assert_eq!(whole.machine.executor().hash().unwrap(), single.machine.executor().hash().unwrap());
}

#[test]
fn delete_over_work_limit_is_refused_without_effect() {
    let mut harness = Harness::new();
    harness.fill(WORK_KEYS_MAX);
    let hash = harness.machine.executor().hash().unwrap().hash;
    harness.fill(WORK_KEYS_MAX + 1);
    let before = harness.machine.executor().hash().unwrap().hash;
    assert_ne!(hash, before);
    let why = refusal(harness.apply(delete_with_previous("k")));
    assert!(
        why.contains("10000 keys") && why.contains("return_previous") && why.contains("next_key"),
        "{why}"
    );
    let txn = Txn { success: vec![delete_from("k", 0)], ..Txn::default() };
    let why = refusal(harness.apply(KvOperation::Txn(txn)));
    assert!(why.contains("several transactions"), "{why}");
    assert_eq!(harness.machine.executor().hash().unwrap().hash, before);
    // A deletion of exactly the limit succeeds.
    assert_eq!(deleted(harness.apply(delete_with_previous(key(1)))).deleted, WORK_KEYS_MAX);
    assert_eq!(harness.count(), 1);
}

/// The first copy may be in the log already, so a later one must not be executed.
#[test]
fn refused_command_uses_its_number_in_the_session_and_a_copy_gets_the_same_answer() {
    let mut harness = Harness::new();
    harness.fill(WORK_KEYS_MAX + 1);
    let opened = harness.apply(KvOperation::OpenSession { sessions_max: 9 }).unwrap().result;
    let KvResult::OpenSession(client_id) = opened else { panic!("{opened:?}") };
    let delete = |harness: &mut Harness, sequence| {
        let txn = Txn { success: vec![delete_from("k000001", 0)], ..Txn::default() };
        let entries = harness.entries(vec![(Some(Session { client_id, sequence }), KvOperation::Txn(txn))]);
        let responses = consensus_core::apply_all(&mut harness.machine, &entries).unwrap();
        codec::decode::<Answer>("answer", 1, &responses[0]).unwrap()
    };
    harness.apply(put("kz", "v")).unwrap();
    let first = delete(&mut harness, 1);
    assert!(refusal(first.clone()).contains("10000 keys"));
    // From now on the command would be within the limit.
    assert_eq!(deleted(harness.apply(delete_from("kz", 0))).deleted, 1);
    let revision = harness.machine.executor().revision().unwrap();
    harness.apply(KvOperation::Compact { revision }).unwrap();
    assert_eq!(delete(&mut harness, 1), first);
    assert_eq!(harness.count(), WORK_KEYS_MAX + 1, "nothing was deleted");
    delete(&mut harness, 2).unwrap();
    assert_eq!(harness.count(), 1);
}

#[test]
fn delete_without_previous_values_has_no_limit() {
    let mut harness = Harness::new();
    harness.fill(3 * WORK_KEYS_MAX);
    let before = harness.apply(put("kk", "v")).unwrap().revision;
    let answer = harness.apply(delete_from("k", 0)).unwrap();
    assert_eq!(answer.revision, before + 1);
    assert_eq!(deleted(Ok(answer)).deleted, 3 * WORK_KEYS_MAX + 1);
    assert_eq!(harness.count(), 0);
    let again = harness.apply(delete_from("k", 0)).unwrap();
    assert_eq!(again.revision, before + 1, "nothing was deleted");
}

#[test]
fn delete_in_portions_removes_each_key_once_and_returns_next_key() {
    let mut harness = Harness::new();
    harness.fill(2 * WORK_KEYS_MAX + 500);
    let (mut from, mut portions) = (Bytes::from_static(b"k"), Vec::new());
    loop {
        let part = deleted(harness.apply(delete_from(from, u64::MAX)));
        portions.push(part.deleted);
        match part.next_key {
            Some(next) => from = next,
            None => break,
        }
    }
    assert_eq!(portions.iter().sum::<u64>(), 2 * WORK_KEYS_MAX + 500);
    assert!(portions.len() == 3 && portions.iter().all(|part| *part <= WORK_KEYS_MAX), "{portions:?}");
    assert_eq!(harness.count(), 0);
    // Deleted keys count too, because they are scanned. So this ends in portions, and finds nothing.
    let part = deleted(harness.apply(delete_from("k", u64::MAX)));
    assert_eq!((part.deleted, part.next_key), (0, Some(key(WORK_KEYS_MAX - 1).into())));
    // A small limit.
    harness.fill(10);
    let part = deleted(harness.apply(delete_from("k", 4)));
    assert_eq!((part.deleted, part.next_key), (4, Some(key(4).into())));
}

#[test]
fn transaction_over_work_limit_is_undone() {
    let mut harness = Harness::new();
    harness.fill(WORK_KEYS_MAX / 2);
    let range = || KvOperation::Range(Range { limit: 1, ..all() });
    let txn = |success| KvOperation::Txn(Txn { success, ..Txn::default() });
    harness.apply(txn(vec![put("k", "new"), range()])).unwrap();
    let before = harness.machine.executor().hash().unwrap();
    let why = refusal(harness.apply(txn(vec![put("kk", "x"), range(), range()])));
    assert!(why.contains("several transactions"), "{why}");
    let after = harness.machine.executor().hash().unwrap();
    assert_eq!((after.hash, after.revision), (before.hash, before.revision));
}

/// Garbage exists on one node and was removed on another. The result of a command is the same.
#[test]
fn uncollected_garbage_does_not_count_as_work() {
    let mut answers = Vec::new();
    for collects in [true, false] {
        let mut harness = Harness::new();
        harness.fill(WORK_KEYS_MAX);
        deleted(harness.apply(delete_from("k", 0)));
        let revision = harness.apply(put("k", "v")).unwrap().revision;
        let compact = KvOperation::Compact { revision };
        let mut commands = vec![compact];
        if collects {
            harness.apply_all(std::mem::take(&mut commands)).remove(0).unwrap();
            let start = Instant::now();
            while !is_collected(&harness.machine) {
                assert!(start.elapsed() < Duration::from_secs(60), "garbage is not collected in time");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let rest = [put(&key(7), "v"), put(&key(9), "v"), delete_from("k", u64::MAX), delete_from("k", 0)];
        commands.extend(rest);
        let results = harness.apply_all(commands);
        let last = results[results.len() - 4..].iter().map(|answer| answer.clone().unwrap().result);
        answers.push(last.collect::<Vec<_>>());
    }
    assert_eq!(answers[0], answers[1]);
    let KvResult::Delete(portion) = &answers[0][2] else { panic!() };
    assert_eq!((portion.deleted, &portion.next_key), (3, &None));
}

#[test]
fn large_responses_are_applied_in_several_calls() {
    let mut harness = Harness::new();
    let value = "v".repeat(1 << 20);
    harness.apply(put("k", &value)).unwrap();
    let previous = || {
        let (key, value) = ("k".into(), value.clone().into());
        KvOperation::Put(Put { key, value, return_previous: true, ..Put::default() })
    };
    let entries = harness.entries((0..40).map(|_| (None, previous())).collect());
    let responses = harness.machine.apply(&entries).unwrap();
    let bytes: usize = responses.iter().map(Bytes::len).sum();
    assert!(responses.len() < 40 && bytes < 32 << 20, "{} responses of {bytes} bytes", responses.len());
    assert_eq!(harness.machine.applied().index.0, 1 + responses.len() as u64);
    let rest = consensus_core::apply_all(&mut harness.machine, &entries[responses.len()..]).unwrap();
    assert_eq!(responses.len() + rest.len(), 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn command_over_work_limit_is_refused_before_proposal() {
    let dir = tempfile::tempdir().unwrap();
    let database = ConsensusKvDatabase::new_with_mock(NodeId(0), dir.path()).unwrap();
    database.start().await.unwrap();
    for part in 0..=WORK_KEYS_MAX / 100 {
        let success = (0..100).map(|n| put(&key(part * 100 + n), "v")).collect();
        database.execute_operation(KvOperation::Txn(Txn { success, ..Txn::default() })).await.unwrap();
    }
    let last = database.status().borrow().last_log;
    let refused = database.execute_operation(delete_with_previous("k")).await;
    assert!(matches!(&refused, Err(KvError::Rejected(KvRejection::Invalid(_)))), "{refused:?}");
    let txn = Txn { success: vec![put("kk", "x"), KvOperation::Range(all())], ..Txn::default() };
    let refused = database.execute_operation(KvOperation::Txn(txn)).await;
    assert!(matches!(&refused, Err(KvError::Rejected(KvRejection::Invalid(_)))), "{refused:?}");
    let success = vec![put("kk", "x"); 129];
    let refused = database.execute_operation(KvOperation::Txn(Txn { success, ..Txn::default() })).await;
    assert!(refused.unwrap_err().to_string().contains("transaction_operations_max"));
    assert_eq!(database.status().borrow().last_log, last);
    // A range outside of a transaction may read any number of keys, because it delays no other operation.
    let count = KvOperation::Range(Range { count_only: true, ..all() });
    let KvResult::Range(found) = database.execute_operation(count).await.unwrap().result else { panic!() };
    assert_eq!(found.count, WORK_KEYS_MAX + 100);
    // In a session the refusal is the response to that sequence number, each time the request is repeated.
    let opened = database.execute_operation(KvOperation::OpenSession { sessions_max: 9 }).await.unwrap();
    let KvResult::OpenSession(client_id) = opened.result else { panic!() };
    let session = Some(Session { client_id, sequence: 1 });
    for _ in 0..2 {
        let refused = database.execute(delete_with_previous("k"), session, Default::default()).await;
        assert!(matches!(&refused, Err(KvError::Rejected(KvRejection::Invalid(_)))), "{refused:?}");
    }
    database.shutdown().await.unwrap();
}
