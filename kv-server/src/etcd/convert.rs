//! Converts requests of the service KV to operations of the store, and results to responses.

use bytes::Bytes;
use kv_etcd_api::{
    etcdserverpb::{
        self as pb, RangeRequest,
        range_request::{SortOrder, SortTarget},
    },
    mvccpb,
};
use kv_state_machine::{
    Delete, Found, Keep, KeyRange, KeyValue, KvOperation, Put, Range, RevisionBounds, Sort, SortBy,
};
use tonic::Status;

use super::{error, signed};

type Result<T> = std::result::Result<T, Status>;

pub(super) fn range(request: RangeRequest) -> Result<KvOperation> {
    let KeyRange { key, range_end } = keys(request.key, request.range_end)?;
    let order = SortOrder::try_from(request.sort_order).map_err(|_| error::invalid_sort_option())?;
    let target = SortTarget::try_from(request.sort_target).map_err(|_| error::invalid_sort_option())?;
    let by = match target {
        SortTarget::Key => SortBy::Key,
        SortTarget::Version => SortBy::Version,
        SortTarget::Create => SortBy::CreateRevision,
        SortTarget::Mod => SortBy::ModRevision,
        SortTarget::Value => SortBy::Value,
    };
    let natural = |number: i64| u64::try_from(number).unwrap_or(0);
    let bounds = RevisionBounds {
        mod_min: natural(request.min_mod_revision),
        mod_max: natural(request.max_mod_revision),
        create_min: natural(request.min_create_revision),
        create_max: natural(request.max_create_revision),
    };
    // etcd applies a limit before it sorts if neither an order nor bounds were asked for.
    let is_plain = order == SortOrder::None && bounds == RevisionBounds::default();
    Ok(KvOperation::Range(Range {
        key,
        range_end,
        limit: natural(request.limit),
        revision: natural(request.revision),
        descending: order == SortOrder::Descend,
        keys_only: request.keys_only,
        count_only: request.count_only,
        whole: true,
        sort: Sort { by, after_limit: is_plain && by != SortBy::Key },
        bounds,
    }))
}

pub(super) fn put(request: pb::PutRequest) -> Result<KvOperation> {
    if request.key.is_empty() {
        return Err(error::empty_key());
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(error::value_provided());
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(error::lease_provided());
    }
    Ok(KvOperation::Put(Put {
        key: request.key,
        value: request.value,
        lease_id: request.lease,
        return_previous: request.prev_kv,
        keep: Keep { value: request.ignore_value, lease: request.ignore_lease },
        ..Put::default()
    }))
}

pub(super) fn delete(request: pb::DeleteRangeRequest) -> Result<KvOperation> {
    let KeyRange { key, range_end } = keys(request.key, request.range_end)?;
    Ok(KvOperation::Delete(Delete { key, range_end, return_previous: request.prev_kv, limit: 0 }))
}

/// A key, or the keys up to an end; the end `\0` means the end of all keys.
pub(super) fn keys(key: Bytes, range_end: Bytes) -> Result<KeyRange> {
    if key.is_empty() {
        return Err(error::empty_key());
    }
    Ok(KeyRange { key, range_end: Some(range_end).filter(|end| !end.is_empty()) })
}

pub(super) fn found(found: Found, header: pb::ResponseHeader) -> pb::RangeResponse {
    let kvs = found.kvs.into_iter().map(key_value).collect();
    pb::RangeResponse { header: Some(header), kvs, more: found.more, count: signed(found.count) }
}

pub(super) fn key_value(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        value: kv.value,
        create_revision: signed(kv.create_revision),
        mod_revision: signed(kv.mod_revision),
        version: signed(kv.version),
        lease: kv.lease_id,
    }
}
