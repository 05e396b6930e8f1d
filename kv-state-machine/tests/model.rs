//! Compares the store with a simple model: every response and every past revision, across restarts and snapshots.

use std::collections::BTreeMap;

use crate::common::Replica;
use bytes::Bytes;
use consensus_core::{StateMachine, codec};
use kv_state_machine::{
    Compare, CompareResult, CompareTarget, Delete, Deleted, Found, KeyRange, KeyValue, KvAnswer, KvOperation,
    KvRejection, KvResult, Put, PutDone, Range, Session, Txn, TxnDone, Versionstamp,
    fuzzing::{Sizes, hold_deletions},
};
use proptest::prelude::*;

/// States of the store by revision, each a plain map. Simple rather than fast.
#[derive(Clone, Debug)]
struct Model {
    states: Vec<BTreeMap<Bytes, KeyValue>>,
    /// Revision at which each key was last written or deleted.
    touched: BTreeMap<Bytes, u64>,
    compacted: u64,
}

/// An operation in progress.
struct Work {
    state: BTreeMap<Bytes, KeyValue>,
    touched: BTreeMap<Bytes, u64>,
    wrote: bool,
    stamps: u16,
}

impl Model {
    fn new() -> Self {
        // Revisions 0 (unused) and 1 (empty).
        Self { states: vec![BTreeMap::new(), BTreeMap::new()], touched: BTreeMap::new(), compacted: 0 }
    }

    fn revision(&self) -> u64 {
        self.states.len() as u64 - 1
    }

    fn apply(&mut self, operation: &KvOperation) -> Result<KvResult, KvRejection> {
        let state = self.states[self.revision() as usize].clone();
        let mut work = Work { state, touched: self.touched.clone(), wrote: false, stamps: 0 };
        let result = match operation {
            KvOperation::Txn(txn) => KvResult::Txn(self.txn(&mut work, txn)?),
            KvOperation::Compact { revision } => {
                if *revision <= self.compacted {
                    return Err(KvRejection::Compacted { compacted: self.compacted });
                }
                self.check_revision(*revision)?;
                self.compacted = *revision;
                KvResult::Compact
            }
            simple => self.simple(&mut work, simple)?,
        };
        if work.wrote {
            self.states.push(work.state);
            self.touched = work.touched;
        }
        Ok(result)
    }

    fn check_revision(&self, revision: u64) -> Result<(), KvRejection> {
        if revision > self.revision() {
            return Err(KvRejection::FutureRevision { revision, current: self.revision() });
        }
        if revision < self.compacted {
            return Err(KvRejection::Compacted { compacted: self.compacted });
        }
        Ok(())
    }

    fn simple(&self, work: &mut Work, operation: &KvOperation) -> Result<KvResult, KvRejection> {
        let revision = self.revision() + 1;
        match operation {
            KvOperation::Put(put) => {
                let (mut key, mut value) = (put.key.to_vec(), put.value.to_vec());
                let stamp = [&revision.to_be_bytes()[..], &work.stamps.to_be_bytes()].concat();
                let stamped = match put.versionstamp {
                    Versionstamp::None => None,
                    Versionstamp::KeySuffix => {
                        key.extend(stamp);
                        Some(key.clone())
                    }
                    Versionstamp::ValueSuffix => {
                        value.extend(stamp);
                        Some(value.clone())
                    }
                };
                work.stamps += u16::from(stamped.is_some());
                let key = Bytes::from(key);
                let previous = work.state.get(&key).cloned();
                let kv = KeyValue {
                    key: key.clone(),
                    value: value.into(),
                    create_revision: previous.as_ref().map_or(revision, |kv| kv.create_revision),
                    mod_revision: revision,
                    version: previous.as_ref().map_or(1, |kv| kv.version + 1),
                    lease_id: 0,
                };
                work.state.insert(key.clone(), kv);
                work.touched.insert(key, revision);
                work.wrote = true;
                let previous = previous.filter(|_| put.return_previous);
                Ok(KvResult::Put(PutDone { previous, stamped: stamped.map(Bytes::from) }))
            }
            KvOperation::Delete(delete) => {
                let range = KeyRange { key: delete.key.clone(), range_end: delete.range_end.clone() };
                let mut gone: Vec<KeyValue> =
                    work.state.values().filter(|kv| inside(&range, &kv.key)).cloned().collect();
                let limit = if delete.limit == 0 { gone.len() } else { delete.limit as usize };
                let next_key = gone.get(limit).map(|kv| kv.key.clone());
                gone.truncate(limit);
                for kv in &gone {
                    work.state.remove(&kv.key);
                    work.touched.insert(kv.key.clone(), revision);
                    work.wrote = true;
                }
                let deleted = gone.len() as u64;
                let previous = delete.return_previous.then_some(gone);
                Ok(KvResult::Delete(Deleted { deleted, previous, next_key }))
            }
            KvOperation::Range(range) => {
                let state = if range.revision == 0 {
                    &work.state
                } else {
                    self.check_revision(range.revision)?;
                    &self.states[range.revision as usize]
                };
                Ok(KvResult::Range(find(state, range)))
            }
            other => panic!("{other:?}"),
        }
    }

    fn txn(&self, work: &mut Work, txn: &Txn) -> Result<TxnDone, KvRejection> {
        if txn.read_revision > 0 {
            self.check_revision(txn.read_revision)?;
            for range in &txn.read_ranges {
                let changed = |(key, at): &(&Bytes, &u64)| inside(range, key) && **at > txn.read_revision;
                if let Some((key, mod_revision)) = self.touched.iter().find(changed) {
                    return Err(KvRejection::Conflict { key: key.clone(), mod_revision: *mod_revision });
                }
            }
        }
        let succeeded = txn.compare.iter().all(|compare| holds(&work.state, compare));
        let branch = if succeeded { &txn.success } else { &txn.failure };
        let responses =
            branch.iter().map(|operation| self.simple(work, operation)).collect::<Result<_, _>>()?;
        Ok(TxnDone { succeeded, responses })
    }
}

fn inside(range: &KeyRange, key: &Bytes) -> bool {
    match &range.range_end {
        None => *key == range.key,
        Some(end) if end == &[0][..] => *key >= range.key,
        Some(end) => *key >= range.key && key < end,
    }
}

fn find(state: &BTreeMap<Bytes, KeyValue>, range: &Range) -> Found {
    let keys = KeyRange { key: range.key.clone(), range_end: range.range_end.clone() };
    let mut all: Vec<KeyValue> = state.values().filter(|kv| inside(&keys, &kv.key)).cloned().collect();
    let count = all.len() as u64;
    if range.count_only {
        return Found { kvs: vec![], more: false, count };
    }
    if range.descending {
        all.reverse();
    }
    if range.limit > 0 {
        all.truncate(range.limit as usize);
    }
    if range.keys_only {
        all.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    Found { more: (all.len() as u64) < count, kvs: all, count }
}

fn holds(state: &BTreeMap<Bytes, KeyValue>, compare: &Compare) -> bool {
    let one = |kv: Option<&KeyValue>| {
        let number = |of: fn(&KeyValue) -> u64, with: &i64| (kv.map_or(0, of) as i64).cmp(with);
        let order = match &compare.target {
            CompareTarget::Version(with) => number(|kv| kv.version, with),
            CompareTarget::CreateRevision(with) => number(|kv| kv.create_revision, with),
            CompareTarget::ModRevision(with) => number(|kv| kv.mod_revision, with),
            CompareTarget::Lease(with) => 0.cmp(with),
            CompareTarget::Value(with) => match kv {
                Some(kv) => kv.value.cmp(with),
                None => return false,
            },
        };
        match compare.result {
            CompareResult::Equal => order.is_eq(),
            CompareResult::Greater => order.is_gt(),
            CompareResult::Less => order.is_lt(),
            CompareResult::NotEqual => order.is_ne(),
        }
    };
    let found: Vec<&KeyValue> = state.values().filter(|kv| inside(&compare.keys, &kv.key)).collect();
    if found.is_empty() { one(None) } else { found.into_iter().all(|kv| one(Some(kv))) }
}

/// The store with `recent_max` keys in the cache of newest versions. The stores with and without a cache also differ in how
/// they delete ranges.
fn replica(recent_max: usize) -> Replica {
    let deletions_max = if recent_max > 64 { 1 } else { 1000 };
    Replica::new(Sizes { recent_max, segment_keys_max: 4, deletions_max, deletion_part: 1 })
}

fn apply(replica: &mut Replica, operations: &[KvOperation]) -> Vec<Result<KvAnswer, KvRejection>> {
    let responses = replica.apply(operations.iter().map(|operation| (None, operation.clone())));
    responses.iter().map(|response| codec::decode("answer", 1, response).unwrap()).collect()
}

#[derive(Clone, Debug)]
enum Step {
    /// Operations that are applied as one batch.
    Batch(Vec<KvOperation>),
    Flush,
    Restart,
    Snapshot,
    /// Deletions of ranges wait from now on, or continue.
    Hold(bool),
}

fn key() -> impl Strategy<Value = Bytes> {
    prop_oneof![Just("a"), Just("a\0"), Just("ab"), Just("b"), Just("c"), Just("\u{7f}")]
        .prop_map(Bytes::from)
}

fn end() -> impl Strategy<Value = Option<Bytes>> {
    prop_oneof![3 => Just(None), 2 => key().prop_map(Some), 1 => Just(Some(Bytes::from_static(b"\0")))]
}

fn key_range() -> impl Strategy<Value = KeyRange> {
    (key(), end()).prop_map(|(key, range_end)| KeyRange { key, range_end })
}

fn simple() -> impl Strategy<Value = KvOperation> {
    let stamp = prop_oneof![6 => Just(Versionstamp::None), 1 => Just(Versionstamp::KeySuffix), 1 => Just(Versionstamp::ValueSuffix)];
    let put = (key(), "[a-z]{0,3}", any::<bool>(), stamp).prop_map(
        |(key, value, return_previous, versionstamp)| {
            KvOperation::Put(Put {
                key,
                value: value.into(),
                return_previous,
                versionstamp,
                ..Put::default()
            })
        },
    );
    let delete = (key_range(), any::<bool>(), 0u64..3).prop_map(
        |(KeyRange { key, range_end }, return_previous, limit)| {
            KvOperation::Delete(Delete { key, range_end, return_previous, limit })
        },
    );
    let range = (key_range(), 0u64..4, prop_oneof![2 => Just(0), 1 => 1u64..20], any::<(bool, bool, bool)>())
        .prop_map(|(KeyRange { key, range_end }, limit, revision, (descending, keys_only, count_only))| {
            KvOperation::Range(Range {
                key,
                range_end,
                limit,
                revision,
                descending,
                keys_only,
                count_only,
                ..Range::default()
            })
        });
    prop_oneof![4 => put, 2 => delete, 2 => range]
}

fn compare() -> impl Strategy<Value = Compare> {
    let target = prop_oneof![
        (0i64..4).prop_map(CompareTarget::Version),
        (0i64..9).prop_map(CompareTarget::CreateRevision),
        (0i64..9).prop_map(CompareTarget::ModRevision),
        "[a-z]{0,2}".prop_map(|value| CompareTarget::Value(value.into())),
        (0i64..2).prop_map(CompareTarget::Lease),
    ];
    let result = prop_oneof![
        Just(CompareResult::Equal),
        Just(CompareResult::Greater),
        Just(CompareResult::Less),
        Just(CompareResult::NotEqual)
    ];
    (key_range(), target, result).prop_map(|(keys, target, result)| Compare { keys, target, result })
}

fn operation() -> impl Strategy<Value = KvOperation> {
    let list = || proptest::collection::vec(simple(), 0..4);
    let optimistic =
        prop_oneof![Just((0, vec![])), (1u64..20, proptest::collection::vec(key_range(), 0..3)),];
    let txn = (proptest::collection::vec(compare(), 0..3), list(), list(), optimistic).prop_map(
        |(compare, success, failure, (read_revision, read_ranges))| {
            KvOperation::Txn(Txn { compare, success, failure, read_revision, read_ranges })
        },
    );
    prop_oneof![6 => simple(), 3 => txn, 1 => (1u64..15).prop_map(|revision| KvOperation::Compact { revision })]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => proptest::collection::vec(operation(), 1..5).prop_map(Step::Batch),
        1 => Just(Step::Flush),
        1 => Just(Step::Restart),
        1 => Just(Step::Snapshot),
        3 => any::<bool>().prop_map(Step::Hold),
    ]
}

/// Reduces a rejection to its kind, because the model has no messages.
fn kind(result: Result<KvResult, KvRejection>) -> Result<KvResult, KvRejection> {
    result.map_err(|rejection| match rejection {
        KvRejection::Invalid(_) => KvRejection::Invalid(String::new()),
        other => other,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn store_behaves_like_the_model(steps in proptest::collection::vec(step(), 1..25)) {
        let (mut model, mut tested, mut twin) = (Model::new(), replica(1 << 10), replica(0));
        for step in steps {
            match step {
                Step::Flush => { tested.machine().flush().unwrap(); }
                Step::Restart => tested.restart(),
                Step::Snapshot => tested.move_by_snapshot(),
                Step::Hold(hold) => hold_deletions(tested.machine(), hold),
                Step::Batch(operations) => {
                    let answers = apply(&mut tested, &operations);
                    for (operation, answer) in operations.iter().zip(answers) {
                        // The second store applies one operation at a time instead of a batch, and has no cache.
                        apply(&mut twin, std::slice::from_ref(operation));
                        let expected = kind(model.apply(operation));
                        if let Ok(answer) = &answer {
                            prop_assert_eq!(answer.revision, model.revision());
                        }
                        prop_assert_eq!(kind(answer.map(|answer| answer.result)), expected, "{:?}", operation);
                    }
                }
            }
            let hashes = [tested.machine().executor().hash().unwrap(), twin.machine().executor().hash().unwrap()];
            prop_assert_eq!(hashes[0], hashes[1]);
        }
        // Every revision that was not compacted can still be read.
        for revision in model.compacted.max(1)..=model.revision() {
            let range = Range { key: "\0".into(), range_end: Some("\0".into()), revision, ..Range::default() };
            let found = tested.machine().executor().read(&KvOperation::Range(range.clone())).unwrap().unwrap();
            prop_assert_eq!(found.result, KvResult::Range(find(&model.states[revision as usize], &range)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn cache_size_does_not_change_responses(
        steps in proptest::collection::vec((step(), 0u64..3, 1u64..9), 1..25),
        reads in proptest::collection::vec(simple(), 4),
    ) {
        // Caches for all keys, for none, and with one set per shard, which evicts keys.
        let mut machines = [1 << 10, 0, 64].map(replica);
        let opening = KvOperation::OpenSession { sessions_max: 2 };
        for (step, client_id, sequence) in steps {
            let commands = |operations: &[KvOperation]| {
                let session = |n| (client_id > 0).then_some(Session { client_id, sequence: sequence + n });
                let calls = (0..).zip(operations).map(|(n, operation)| (session(n), operation.clone()));
                calls.chain([(None, opening.clone())]).collect::<Vec<_>>()
            };
            let answers = machines.each_mut().map(|tested| {
                match &step {
                    Step::Flush => drop(tested.machine().flush().unwrap()),
                    Step::Restart => tested.restart(),
                    Step::Snapshot => tested.move_by_snapshot(),
                    Step::Hold(hold) => hold_deletions(tested.machine(), *hold),
                    Step::Batch(operations) => return Some(tested.apply(commands(operations))),
                }
                None
            });
            prop_assert!(answers.iter().all(|answer| *answer == answers[0]), "{:?}", answers);
            let seen = machines.each_mut().map(|tested| {
                let executor = tested.machine().executor();
                let reads: Vec<_> = reads.iter().map(|read| executor.read(read).unwrap()).collect();
                (reads, executor.hash().unwrap())
            });
            prop_assert!(seen.iter().all(|other| *other == seen[0]), "{:?}", seen);
        }
    }
}
