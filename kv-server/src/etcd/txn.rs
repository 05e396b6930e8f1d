//! Transactions, checked and answered as by etcd.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use kv_etcd_api::etcdserverpb::{
    self as pb, TxnRequest,
    compare::{CompareResult as PbResult, CompareTarget as PbTarget, TargetUnion},
    request_op::Request,
    response_op::Response,
};
use kv_state_machine::{
    Compare, CompareResult, CompareTarget, KvOperation, KvResult, TXN_DEPTH_MAX, Txn, TxnDone,
};
use tonic::Status;

use super::{convert, error, signed};

type Result<T> = std::result::Result<T, Status>;

/// Converts a request to an operation, if etcd would accept it.
pub(super) fn operation(request: TxnRequest, operations_max: usize) -> Result<KvOperation> {
    check_count(&request, operations_max, 0)?;
    // As in etcd, each operation is checked first, then their combination.
    let txn = txn(request)?;
    Branch::of(&txn.success)?;
    Branch::of(&txn.failure)?;
    Ok(KvOperation::Txn(txn))
}

/// Whether the transaction has only serializable reads.
pub(super) fn is_serializable(request: &TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).all(|operation| match &operation.request {
        Some(Request::RequestRange(range)) => range.serializable,
        _ => false,
    })
}

/// The parts of a transaction reduce the number that nested ones may have.
fn check_count(request: &TxnRequest, left: usize, depth: usize) -> Result<()> {
    let count = request.compare.len().max(request.success.len()).max(request.failure.len());
    if count > left || depth > TXN_DEPTH_MAX {
        return Err(error::too_many_operations());
    }
    operations(request).try_for_each(|operation| match operation {
        Request::RequestTxn(nested) => check_count(nested, left - count, depth + 1),
        _ => Ok(()),
    })
}

fn operations(request: &TxnRequest) -> impl Iterator<Item = &Request> {
    request.success.iter().chain(&request.failure).filter_map(|operation| operation.request.as_ref())
}

/// Keys that a branch writes. No key may be written twice.
#[derive(Default)]
struct Branch {
    puts: HashSet<Bytes>,
    deletes: Ranges,
}

/// Ranges of keys that do not overlap: their ends by their starts.
#[derive(Default)]
struct Ranges(BTreeMap<Bytes, Bytes>);

impl Ranges {
    fn add(&mut self, mut start: Bytes, mut end: Bytes) {
        // An end that is not after the start, `\0` among them, covers nothing here, as in etcd.
        if end <= start {
            return;
        }
        while let Some((overlapping, its_end)) = self.0.range::<Bytes, _>(..=&end).next_back()
            && *its_end >= start
        {
            let overlapping = overlapping.clone();
            if let Some(its_end) = self.0.remove(&overlapping) {
                (start, end) = (start.min(overlapping), end.max(its_end));
            }
        }
        self.0.insert(start, end);
    }

    fn contain(&self, key: &Bytes) -> bool {
        self.0.range::<Bytes, _>(..=key).next_back().is_some_and(|(_, end)| key < end)
    }
}

impl Branch {
    fn of(operations: &[KvOperation]) -> Result<Self> {
        let mut branch = Self::default();
        for operation in operations {
            if let KvOperation::Delete(delete) = operation {
                let key_itself = || [&delete.key[..], &[0]].concat().into();
                branch.deletes.add(delete.key.clone(), delete.range_end.clone().unwrap_or_else(key_itself));
            }
        }
        for operation in operations {
            if let KvOperation::Txn(nested) = operation {
                branch.add(Self::of(&nested.success)?, Self::of(&nested.failure)?)?;
            }
        }
        for operation in operations {
            if let KvOperation::Put(put) = operation {
                branch.put(put.key.clone())?;
            }
        }
        Ok(branch)
    }

    /// Adds the two branches of a nested transaction, of which one will be executed.
    fn add(&mut self, success: Self, failure: Self) -> Result<()> {
        for key in &failure.puts {
            if self.puts.contains(key) || self.deletes.contain(key) {
                return Err(error::duplicate_key());
            }
        }
        for key in success.puts {
            self.put(key)?;
        }
        self.puts.extend(failure.puts);
        for (start, end) in success.deletes.0.into_iter().chain(failure.deletes.0) {
            self.deletes.add(start, end);
        }
        Ok(())
    }

    fn put(&mut self, key: Bytes) -> Result<()> {
        if self.deletes.contain(&key) || !self.puts.insert(key) {
            return Err(error::duplicate_key());
        }
        Ok(())
    }
}

fn txn(request: TxnRequest) -> Result<Txn> {
    let branch =
        |operations: Vec<pb::RequestOp>| operations.into_iter().map(part).collect::<Result<Vec<_>>>();
    Ok(Txn {
        compare: request.compare.into_iter().map(compare).collect::<Result<_>>()?,
        success: branch(request.success)?,
        failure: branch(request.failure)?,
        ..Txn::default()
    })
}

fn part(operation: pb::RequestOp) -> Result<KvOperation> {
    match operation.request {
        Some(Request::RequestRange(range)) => convert::range(range),
        Some(Request::RequestPut(put)) => convert::put(put),
        Some(Request::RequestDeleteRange(delete)) => convert::delete(delete),
        Some(Request::RequestTxn(nested)) => Ok(KvOperation::Txn(txn(nested)?)),
        None => Err(error::key_not_found()),
    }
}

fn compare(compare: pb::Compare) -> Result<Compare> {
    let target = PbTarget::try_from(compare.target)
        .map_err(|_| error::unknown_number("compare target", compare.target))?;
    let result = PbResult::try_from(compare.result)
        .map_err(|_| error::unknown_number("compare result", compare.result))?;
    // A value that does not fit the target counts as 0 or as empty.
    let with = compare.target_union;
    let target = match target {
        PbTarget::Version => CompareTarget::Version(match with {
            Some(TargetUnion::Version(version)) => version,
            _ => 0,
        }),
        PbTarget::Create => CompareTarget::CreateRevision(match with {
            Some(TargetUnion::CreateRevision(revision)) => revision,
            _ => 0,
        }),
        PbTarget::Mod => CompareTarget::ModRevision(match with {
            Some(TargetUnion::ModRevision(revision)) => revision,
            _ => 0,
        }),
        PbTarget::Lease => CompareTarget::Lease(match with {
            Some(TargetUnion::Lease(lease)) => lease,
            _ => 0,
        }),
        PbTarget::Value => CompareTarget::Value(match with {
            Some(TargetUnion::Value(value)) => value,
            _ => Bytes::new(),
        }),
    };
    let result = match result {
        PbResult::Equal => CompareResult::Equal,
        PbResult::Greater => CompareResult::Greater,
        PbResult::Less => CompareResult::Less,
        PbResult::NotEqual => CompareResult::NotEqual,
    };
    Ok(Compare { keys: convert::keys(compare.key, compare.range_end)?, target, result })
}

/// Converts the result of a transaction. `revision`: revision of the store afterwards.
pub(super) fn done(done: TxnDone, revision: u64, header: pb::ResponseHeader) -> pb::TxnResponse {
    let wrote = done.responses.iter().any(writes);
    let mut revisions = Revisions { now: revision - u64::from(wrote), after: revision };
    let mut response = answer(done, &mut revisions);
    response.header = Some(header);
    response
}

/// Revisions in the headers within a transaction: that of the transaction from the first write on.
struct Revisions {
    now: u64,
    after: u64,
}

fn writes(result: &KvResult) -> bool {
    match result {
        KvResult::Put(_) => true,
        KvResult::Delete(deleted) => deleted.deleted > 0,
        KvResult::Txn(done) => done.responses.iter().any(writes),
        _ => false,
    }
}

fn answer(done: TxnDone, revisions: &mut Revisions) -> pb::TxnResponse {
    let mut responses = Vec::with_capacity(done.responses.len());
    for result in done.responses {
        if !matches!(result, KvResult::Txn(_)) && writes(&result) {
            revisions.now = revisions.after;
        }
        let header = pb::ResponseHeader { revision: signed(revisions.now), ..Default::default() };
        let response = match result {
            KvResult::Range(found) => Some(Response::ResponseRange(convert::found(found, header))),
            KvResult::Put(put) => {
                let prev_kv = put.previous.map(convert::key_value);
                Some(Response::ResponsePut(pb::PutResponse { header: Some(header), prev_kv }))
            }
            KvResult::Delete(deleted) => {
                let prev_kvs = deleted.previous.into_iter().flatten().map(convert::key_value).collect();
                let deleted = signed(deleted.deleted);
                Some(Response::ResponseDeleteRange(pb::DeleteRangeResponse {
                    header: Some(header),
                    deleted,
                    prev_kvs,
                }))
            }
            // Its header is empty, as in etcd.
            KvResult::Txn(nested) => Some(Response::ResponseTxn(answer(nested, revisions))),
            _ => None,
        };
        responses.push(pb::ResponseOp { response });
    }
    let header = Some(pb::ResponseHeader::default());
    pb::TxnResponse { header, succeeded: done.succeeded, responses }
}

#[cfg(test)]
mod tests {
    use kv_state_machine::{Delete, Put};

    use super::*;

    fn op(request: Request) -> pb::RequestOp {
        pb::RequestOp { request: Some(request) }
    }

    fn put(key: &'static str) -> pb::RequestOp {
        op(Request::RequestPut(pb::PutRequest { key: key.into(), ..Default::default() }))
    }

    fn delete(key: &'static str, end: &'static str) -> pb::RequestOp {
        let (key, range_end) = (key.into(), end.into());
        op(Request::RequestDeleteRange(pb::DeleteRangeRequest { key, range_end, prev_kv: false }))
    }

    fn nested(success: Vec<pb::RequestOp>, failure: Vec<pb::RequestOp>) -> pb::RequestOp {
        op(Request::RequestTxn(TxnRequest { compare: vec![], success, failure }))
    }

    fn refusal(success: Vec<pb::RequestOp>) -> Option<String> {
        let request = TxnRequest { compare: vec![], success, failure: vec![] };
        operation(request, 128).err().map(|status| status.message().to_owned())
    }

    #[test]
    fn key_that_a_branch_writes_twice_is_refused() {
        let duplicate = Some("etcdserver: duplicate key given in txn request".to_owned());
        assert_eq!(refusal(vec![put("a"), put("b")]), None);
        assert_eq!(refusal(vec![put("a"), put("a")]), duplicate);
        assert_eq!(refusal(vec![put("b"), delete("a", "c")]), duplicate);
        assert_eq!(refusal(vec![put("b"), delete("b", "")]), duplicate);
        // An end that is not after the key covers nothing.
        assert_eq!(refusal(vec![put("b"), delete("a", "\0")]), None);
        assert_eq!(refusal(vec![put("b"), delete("c", "a")]), None);
        // Only one of two branches is executed.
        assert_eq!(refusal(vec![nested(vec![put("a")], vec![put("a")])]), None);
        assert_eq!(refusal(vec![nested(vec![], vec![put("a")]), put("a")]), duplicate);
        assert_eq!(refusal(vec![nested(vec![put("a")], vec![]), nested(vec![], vec![put("a")])]), duplicate);
    }

    #[test]
    fn ranges_cover_what_was_added_and_nothing_else() {
        let keys: Vec<String> = (0..12).map(|n| format!("{n:02}")).collect();
        let mut seed = 7_u64;
        let mut below = |max: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize % max
        };
        for _ in 0..1000 {
            let (mut ranges, mut covered) = (Ranges::default(), vec![false; keys.len()]);
            for _ in 0..below(6) {
                let (start, end) = (below(keys.len()), below(keys.len()));
                ranges.add(keys[start].clone().into(), keys[end].clone().into());
                (start..end).for_each(|key| covered[key] = true);
            }
            for (key, covered) in keys.iter().zip(covered) {
                assert_eq!(ranges.contain(&key.clone().into()), covered, "{key} in {:?}", ranges.0);
            }
        }
    }

    /// A comparison of each key with each range would take seconds.
    #[test]
    fn check_of_large_transaction_compares_few_ranges() {
        let key = |kind: &str, number: usize| format!("{kind}{number:06}");
        let puts = (0..40_000).map(|n| KvOperation::Put(Put { key: key("p", n).into(), ..Put::default() }));
        let deletes =
            (0..40_000).map(|n| KvOperation::Delete(Delete { key: key("d", n).into(), ..Delete::default() }));
        let operations: Vec<_> = puts.chain(deletes).collect();
        let began = std::time::Instant::now();
        assert!(Branch::of(&operations).is_ok());
        let took = began.elapsed();
        assert!(took < std::time::Duration::from_secs(2), "{took:?}");
    }

    #[test]
    fn operations_are_counted_along_the_path() {
        let too_many = Some("etcdserver: too many operations in txn request".to_owned());
        let ranges = |count: usize| {
            let range = pb::RangeRequest { key: "k".into(), ..Default::default() };
            vec![op(Request::RequestRange(range)); count]
        };
        assert_eq!(refusal(ranges(128)), None);
        assert_eq!(refusal(ranges(129)), too_many);
        assert_eq!(refusal(vec![nested(ranges(127), vec![])]), None);
        assert_eq!(refusal(vec![nested(ranges(128), vec![])]), too_many);
        let deep = (0..=TXN_DEPTH_MAX).fold(put("a"), |inner, _| nested(vec![inner], vec![]));
        assert_eq!(refusal(vec![deep]), too_many);
    }
}
