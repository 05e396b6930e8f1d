//! Every operation and every response survives encoding and decoding. Damaged bytes are an error or decode to another
//! valid value.

use crate::{AlarmKind, TXN_DEPTH_MAX};
use consensus_core::{NodeId, codec};
use proptest::prelude::*;
use serde::de::DeserializeOwned;

use super::*;

fn bytes() -> impl Strategy<Value = Bytes> {
    any::<Vec<u8>>().prop_map(Bytes::from)
}

fn keys() -> impl Strategy<Value = KeyRange> {
    (bytes(), prop::option::of(bytes())).prop_map(|(key, range_end)| KeyRange { key, range_end })
}

fn versionstamp() -> impl Strategy<Value = Versionstamp> {
    prop_oneof![Just(Versionstamp::None), Just(Versionstamp::KeySuffix), Just(Versionstamp::ValueSuffix)]
}

fn sort_by() -> impl Strategy<Value = SortBy> {
    let all = [SortBy::Key, SortBy::Version, SortBy::CreateRevision, SortBy::ModRevision, SortBy::Value];
    prop::sample::select(all.to_vec())
}

fn simple_operation() -> impl Strategy<Value = KvOperation> {
    let put = (bytes(), bytes(), any::<i64>(), any::<(bool, bool, bool)>(), versionstamp());
    let put = put.prop_map(|(key, value, lease_id, (return_previous, value_kept, lease), versionstamp)| {
        let keep = Keep { value: value_kept, lease };
        KvOperation::Put(Put { key, value, lease_id, return_previous, versionstamp, keep })
    });
    let delete = (keys(), any::<bool>(), any::<u64>());
    let delete = delete.prop_map(|(KeyRange { key, range_end }, return_previous, limit)| {
        KvOperation::Delete(Delete { key, range_end, return_previous, limit })
    });
    let range = (keys(), any::<(u64, u64)>(), any::<[bool; 5]>(), sort_by(), any::<[u64; 4]>());
    let range = range.prop_map(|(KeyRange { key, range_end }, (limit, revision), flags, by, bounds)| {
        let [descending, keys_only, count_only, whole, after_limit] = flags;
        let sort = Sort { by, after_limit };
        let [mod_min, mod_max, create_min, create_max] = bounds;
        let bounds = RevisionBounds { mod_min, mod_max, create_min, create_max };
        KvOperation::Range(Range {
            key,
            range_end,
            limit,
            revision,
            descending,
            keys_only,
            count_only,
            whole,
            sort,
            bounds,
        })
    });
    let lease = prop_oneof![
        any::<(i64, u64)>().prop_map(|(id, ttl)| KvOperation::GrantLease { id, ttl }),
        any::<i64>().prop_map(|id| KvOperation::RevokeLease { id }),
        any::<(Vec<i64>, u64)>().prop_map(|(ids, term)| KvOperation::ExpireLeases { ids, term }),
        any::<(Vec<(i64, Option<u64>)>, u64)>()
            .prop_map(|(remaining, term)| KvOperation::CheckpointLeases { remaining, term }),
    ];
    let alarm = (any::<bool>(), any::<u64>(), any::<bool>()).prop_map(|(is_full, node, raises)| {
        let kind = if is_full { AlarmKind::NoSpace } else { AlarmKind::Corrupt };
        let alarm = Alarm { kind, node: node.checked_sub(1).map(NodeId) };
        if raises { KvOperation::RaiseAlarm(alarm) } else { KvOperation::DisarmAlarm(alarm) }
    });
    prop_oneof![
        put,
        delete,
        range,
        lease,
        alarm,
        any::<(u64, u64)>().prop_map(|(through, more)| KvOperation::ReserveMemberIds { through, more }),
        any::<u64>().prop_map(|revision| KvOperation::Compact { revision }),
        any::<u64>().prop_map(|sessions_max| KvOperation::OpenSession { sessions_max }),
        Just(KvOperation::CheckState),
    ]
}

fn compare() -> impl Strategy<Value = Compare> {
    let target = prop_oneof![
        any::<i64>().prop_map(CompareTarget::Version),
        any::<i64>().prop_map(CompareTarget::CreateRevision),
        any::<i64>().prop_map(CompareTarget::ModRevision),
        bytes().prop_map(CompareTarget::Value),
        any::<i64>().prop_map(CompareTarget::Lease),
    ];
    let results =
        [CompareResult::Equal, CompareResult::Greater, CompareResult::Less, CompareResult::NotEqual];
    let result = prop::sample::select(results.to_vec());
    (keys(), target, result).prop_map(|(keys, target, result)| Compare { keys, target, result })
}

fn operation() -> impl Strategy<Value = KvOperation> {
    let list = || prop::collection::vec(simple_operation(), 0..4);
    let compare = prop::collection::vec(compare(), 0..4);
    let read_ranges = prop::collection::vec(keys(), 0..3);
    let txn = (compare, list(), list(), any::<u64>(), read_ranges);
    let txn = txn.prop_map(|(compare, success, failure, read_revision, read_ranges)| {
        KvOperation::Txn(Txn { compare, success, failure, read_revision, read_ranges })
    });
    prop_oneof![simple_operation(), txn]
}

fn command() -> impl Strategy<Value = KvCommand> {
    let session = any::<(u64, u64)>().prop_map(|(client_id, sequence)| Session { client_id, sequence });
    let parts = (prop::option::of(session), operation());
    parts.prop_map(|(session, operation)| KvCommand::new(session, operation))
}

fn key_value() -> impl Strategy<Value = KeyValue> {
    (bytes(), bytes(), any::<(u64, u64, u64, i64)>()).prop_map(|(key, value, numbers)| {
        let (create_revision, mod_revision, version, lease_id) = numbers;
        KeyValue { key, value, create_revision, mod_revision, version, lease_id }
    })
}

fn simple_result() -> impl Strategy<Value = KvResult> {
    let kvs = || prop::collection::vec(key_value(), 0..4);
    let put = (prop::option::of(key_value()), prop::option::of(bytes()));
    let found = (kvs(), any::<bool>(), any::<u64>());
    prop_oneof![
        put.prop_map(|(previous, stamped)| KvResult::Put(PutDone { previous, stamped })),
        (any::<u64>(), prop::option::of(kvs()), prop::option::of(bytes())).prop_map(
            |(deleted, previous, next_key)| KvResult::Delete(Deleted { deleted, previous, next_key })
        ),
        found.prop_map(|(kvs, more, count)| KvResult::Range(Found { kvs, more, count })),
        Just(KvResult::Compact),
        Just(KvResult::Lease),
        Just(KvResult::LeaseEnding),
        any::<bool>().prop_map(KvResult::Alarm),
        any::<u64>().prop_map(KvResult::MemberId),
        Just(KvResult::CheckState),
        any::<u64>().prop_map(KvResult::OpenSession),
    ]
}

fn answer() -> impl Strategy<Value = Result<KvAnswer, KvRejection>> {
    let txn = (any::<bool>(), prop::collection::vec(simple_result(), 0..4));
    let txn = txn.prop_map(|(succeeded, responses)| KvResult::Txn(TxnDone { succeeded, responses }));
    let result = prop_oneof![simple_result(), txn];
    let answer = (result, any::<(u64, u64, u64)>()).prop_map(|(result, numbers)| {
        let (revision, applied_index, term) = numbers;
        KvAnswer { revision, applied_index, term, result }
    });
    let rejection = prop_oneof![
        ".{0,9}".prop_map(KvRejection::Invalid),
        any::<u64>().prop_map(|compacted| KvRejection::Compacted { compacted }),
        (bytes(), any::<u64>()).prop_map(|(key, mod_revision)| KvRejection::Conflict { key, mod_revision }),
        any::<(u64, u64)>().prop_map(|(revision, current)| KvRejection::FutureRevision { revision, current }),
        bytes().prop_map(|key| KvRejection::NoKey { key }),
        any::<i64>().prop_map(|id| KvRejection::NoLease { id }),
        any::<i64>().prop_map(|id| KvRejection::LeaseExists { id }),
        prop::sample::select(vec![KvRejection::NoSpace, KvRejection::Corrupt]),
        any::<u64>().prop_map(|bytes_max| KvRejection::AnswerTooLarge { bytes_max }),
    ];
    prop_oneof![answer.prop_map(Ok), rejection.prop_map(Err)]
}

fn check<T>(value: &T, cut: prop::sample::Index, bit: prop::sample::Index) -> Result<(), TestCaseError>
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let decode = |bytes: &[u8]| codec::decode::<T>("value", 1, bytes);
    let mut bytes = codec::encode(1, value);
    let read = decode(&bytes);
    prop_assert_eq!(read.as_ref(), Ok(value));
    prop_assert!(decode(&bytes[..cut.index(bytes.len())]).is_err());
    let bit = bit.index(8 * bytes.len());
    bytes[bit / 8] ^= 1 << (bit % 8);
    if let Ok(changed) = decode(&bytes) {
        prop_assert_eq!(decode(&codec::encode(1, &changed)), Ok(changed));
    }
    Ok(())
}

proptest! {
    #[test]
    fn encoded_commands_and_responses_decode_to_equal_values(
        command in command(),
        answer in answer(),
        cut: prop::sample::Index,
        bit: prop::sample::Index,
    ) {
        check(&command, cut, bit)?;
        check(&answer, cut, bit)?;
    }
}

#[test]
fn nested_transactions_decode_up_to_maximum_depth() {
    let txn = |success| KvOperation::Txn(Txn { success: vec![success], ..Txn::default() });
    let nested = |depth| (0..=depth).fold(KvOperation::Compact { revision: 1 }, |inner, _| txn(inner));
    let read = |operation: &KvOperation| codec::decode("operation", 1, &codec::encode(1, operation));
    assert_eq!(read(&nested(TXN_DEPTH_MAX)), Ok(nested(TXN_DEPTH_MAX)));
    assert!(read(&nested(TXN_DEPTH_MAX + 1)).is_err());
    assert_eq!(read(&nested(TXN_DEPTH_MAX)), Ok(nested(TXN_DEPTH_MAX)), "an error leaves nothing behind");
    let done = |response| KvResult::Txn(TxnDone { succeeded: true, responses: vec![response] });
    let nested = |depth| (0..=depth).fold(KvResult::Compact, |inner, _| done(inner));
    let read = |result: &KvResult| codec::decode("result", 1, &codec::encode(1, result));
    assert_eq!(read(&nested(TXN_DEPTH_MAX)), Ok(nested(TXN_DEPTH_MAX)));
    assert!(read(&nested(TXN_DEPTH_MAX + 1)).is_err());
}

#[test]
fn endless_nested_transactions_fail_to_decode_within_bounded_stack() {
    let endless = [vec![1], [3, 0, 253, 0, 0, 0, 0, 0, 0, 1, 0].repeat(1 << 20)].concat();
    assert!(codec::decode::<KvOperation>("operation", 1, &endless).is_err());
}
