//! Reads of the newest revision, which use the counts of segments, against a plain map: over splits and merges of
//! segments, garbage collection, restarts, crashes and snapshots.

use std::collections::BTreeSet;

use crate::common::Replica;
use bytes::Bytes;
use consensus_core::StateMachine;
use kv_state_machine::{
    Delete, KvOperation, KvResult, KvStateMachine, Put, Range, Txn,
    fuzzing::{Sizes, hold_deletions, is_collected},
};
use proptest::prelude::*;

/// Few keys in a segment, so that there are many; and deletions of few keys that count as large.
const SIZES: Sizes = Sizes { recent_max: 64, segment_keys_max: 4, deletions_max: 3, deletion_part: 2 };

#[derive(Clone, Debug)]
enum Step {
    /// Operations that are applied as one batch.
    Batch(Vec<KvOperation>),
    /// A compaction to the newest revision, and its garbage collection.
    Compact,
    Flush,
    /// A start after a crash: what was not flushed is applied again.
    Restart,
    Snapshot,
    /// Deletions of ranges wait from now on, or continue.
    Hold(bool),
    Reads(Vec<Range>),
}

#[derive(Debug, PartialEq)]
struct Answer {
    keys: Vec<Bytes>,
    more: bool,
    count: u64,
}

struct Tested {
    replica: Replica,
    keys: BTreeSet<Bytes>,
}

impl Tested {
    fn new() -> Self {
        Self { replica: Replica::new(SIZES), keys: BTreeSet::new() }
    }

    fn machine(&mut self) -> &mut KvStateMachine {
        self.replica.machine()
    }

    fn apply(&mut self, operations: Vec<KvOperation>) {
        operations.iter().for_each(|operation| self.note(operation));
        self.replica.apply(operations.into_iter().map(|operation| (None, operation)));
    }

    fn note(&mut self, operation: &KvOperation) {
        match operation {
            KvOperation::Put(put) => {
                self.keys.insert(put.key.clone());
            }
            KvOperation::Delete(Delete { key, range_end, .. }) => {
                self.keys.retain(|other| !is_within(key, range_end.as_ref(), other));
            }
            KvOperation::Txn(txn) if is_undone(txn) => {}
            KvOperation::Txn(txn) => txn.success.iter().for_each(|operation| self.note(operation)),
            _ => {}
        }
    }

    fn compact(&mut self) {
        hold_deletions(self.machine(), false);
        let revision = self.machine().executor().revision().unwrap();
        self.apply(vec![KvOperation::Compact { revision }]);
        while !is_collected(self.machine()) {
            std::thread::yield_now();
        }
    }

    /// Reads a range of the machine, and the same of the map.
    fn read(&mut self, range: &Range) -> (Answer, Answer) {
        let answer = self.machine().executor().read(&KvOperation::Range(range.clone())).unwrap().unwrap();
        let KvResult::Range(found) = answer.result else { panic!("{answer:?}") };
        let is_wanted = |key: &&Bytes| is_within(&range.key, range.range_end.as_ref(), key);
        let mut keys: Vec<_> = self.keys.iter().filter(is_wanted).cloned().collect();
        let count = keys.len() as u64;
        if range.descending {
            keys.reverse();
        }
        if range.limit > 0 {
            keys.truncate(range.limit as usize);
        }
        let more = (keys.len() as u64) < count && !range.count_only;
        if range.count_only {
            keys.clear();
        }
        let found_keys = found.kvs.into_iter().map(|kv| kv.key).collect();
        (Answer { keys: found_keys, more: found.more, count: found.count }, Answer { keys, more, count })
    }
}

fn is_undone(txn: &Txn) -> bool {
    txn.success.iter().any(|operation| matches!(operation, KvOperation::Put(put) if put.lease_id != 0))
}

fn is_within(key: &Bytes, range_end: Option<&Bytes>, other: &Bytes) -> bool {
    match range_end {
        None => other == key,
        Some(end) => other >= key && (end == &[0][..] || other < end),
    }
}

fn key() -> impl Strategy<Value = Bytes> {
    // Keys in groups, some of them prefixes of others, some with zeros.
    let part = || prop_oneof![4 => (b'a'..b'f').prop_map(Some), 1 => Just(Some(0)), 1 => Just(None)];
    (part(), part(), part())
        .prop_map(|(one, two, three)| [Some(b'k'), one, two, three].into_iter().flatten().collect())
}

fn end() -> impl Strategy<Value = Option<Bytes>> {
    prop_oneof![1 => Just(None), 4 => key().prop_map(Some), 1 => Just(Some(Bytes::from_static(b"\0")))]
}

fn write() -> impl Strategy<Value = KvOperation> {
    let put = key().prop_map(|key| KvOperation::Put(Put { key, value: "v".into(), ..Put::default() }));
    let delete = (key(), end())
        .prop_map(|(key, range_end)| KvOperation::Delete(Delete { key, range_end, ..Delete::default() }));
    prop_oneof![9 => put, 1 => delete]
}

fn operation() -> impl Strategy<Value = KvOperation> {
    let valid = proptest::collection::vec(write(), 1..4)
        .prop_map(|success| KvOperation::Txn(Txn { success, ..Txn::default() }));
    // A transaction that is undone: it puts keys with a lease that does not exist.
    let undone = proptest::collection::vec(write(), 1..4).prop_map(|mut success| {
        success.push(KvOperation::Put(Put { key: "k".into(), lease_id: 7, ..Put::default() }));
        KvOperation::Txn(Txn { success, ..Txn::default() })
    });
    prop_oneof![6 => write(), 2 => valid, 1 => undone]
}

fn range() -> impl Strategy<Value = Range> {
    (key(), end(), 0u64..4, any::<(bool, bool)>()).prop_map(
        |(key, range_end, limit, (descending, count_only))| Range {
            key,
            range_end,
            limit,
            descending,
            count_only,
            ..Range::default()
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => proptest::collection::vec(operation(), 1..12).prop_map(Step::Batch),
        2 => Just(Step::Compact),
        1 => Just(Step::Flush),
        1 => Just(Step::Restart),
        1 => Just(Step::Snapshot),
        4 => any::<bool>().prop_map(Step::Hold),
        8 => proptest::collection::vec(range(), 8).prop_map(Step::Reads),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn ranges_of_the_newest_revision_have_the_keys_and_counts_of_a_map(
        steps in proptest::collection::vec(step(), 1..40),
        last in proptest::collection::vec(range(), 16),
    ) {
        let mut tested = Tested::new();
        for step in steps.into_iter().chain([Step::Reads(last)]) {
            match step {
                Step::Batch(operations) => tested.apply(operations),
                Step::Compact => tested.compact(),
                Step::Flush => { tested.machine().flush().unwrap(); }
                Step::Restart => tested.replica.restart(),
                Step::Snapshot => tested.replica.move_by_snapshot(),
                Step::Hold(hold) => hold_deletions(tested.machine(), hold),
                Step::Reads(ranges) => for range in ranges {
                    let (found, expected) = tested.read(&range);
                    prop_assert_eq!(found, expected, "{:?}", range);
                },
            }
        }
    }
}
