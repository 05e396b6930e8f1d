//! Calls about leases.

use consensus_core::NodeId;
use kv_state_machine::{KvAnswer, KvOperation, LeaseState, random_lease_id};
use kv_store_client::{
    idl,
    protocol::{Fault, Reply},
};

use super::{Result, header, invalid, natural, signed};

pub(crate) fn no_lease(id: i64) -> Fault {
    Fault::NoLease(idl::NoLease { lease_id: id })
}

pub(crate) fn grant(request: &idl::LeaseGrantRequest, in_session: bool) -> Result<KvOperation> {
    let id = match request.lease_id {
        Some(id) => id,
        // A repetition would ask for another lease.
        None if in_session => {
            return Err(invalid("in a session a lease is granted with the id that the client gives"));
        }
        None => random_lease_id(),
    };
    Ok(KvOperation::GrantLease { id, ttl: natural("ttl_seconds", Some(request.ttl_seconds))? })
}

pub(crate) fn granted(node: NodeId, answer: &KvAnswer, id: i64, ttl: u64) -> Reply {
    let (lease_id, ttl_seconds) = (id, signed(ttl));
    Reply::LeaseGrant(idl::LeaseGrantResponse { header: header(node, answer), lease_id, ttl_seconds })
}

pub(crate) fn kept_alive(header: idl::ResponseHeader, ttl: u64) -> Reply {
    Reply::LeaseKeepAlive(idl::LeaseKeepAliveResponse { header, ttl_seconds: signed(ttl) })
}

pub(crate) fn time_to_live(header: idl::ResponseHeader, state: LeaseState, with_keys: bool) -> Reply {
    let (mut keys, mut bytes, mut more) = (Vec::new(), 0, false);
    for key in state.keys {
        bytes += key.len() + LENGTH_BYTES;
        if bytes > LEASE_KEYS_BYTES_MAX {
            more = true;
            break;
        }
        keys.push(key.into());
    }
    Reply::LeaseTimeToLive(idl::LeaseTimeToLiveResponse {
        header,
        granted_ttl_seconds: signed(state.ttl),
        remaining_ms: i64::try_from(state.left.as_millis()).unwrap_or(i64::MAX),
        keys: with_keys.then_some(keys),
        more: with_keys.then_some(more),
    })
}

/// How many leases are listed at most.
pub(crate) fn lease_limit(limit: Option<i64>) -> Result<usize> {
    let limit = usize::try_from(natural("limit", limit)?).unwrap_or(usize::MAX);
    Ok(if limit == 0 { LEASES_MAX } else { limit.min(LEASES_MAX) })
}

pub(crate) fn leases(header: idl::ResponseHeader, ids: Vec<i64>, after: Option<i64>, limit: usize) -> Reply {
    let mut wanted = ids.into_iter().filter(|id| after.is_none_or(|after| *id > after));
    let lease_ids = wanted.by_ref().take(limit).collect();
    Reply::LeaseList(idl::LeaseListResponse { header, lease_ids, more: wanted.next().is_some() })
}

/// Bytes of the keys of a lease in one answer.
pub(crate) const LEASE_KEYS_BYTES_MAX: usize = 4 << 20;
/// Leases in one answer.
const LEASES_MAX: usize = 100_000;
/// Bytes before a key in a response.
const LENGTH_BYTES: usize = 4;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn header() -> idl::ResponseHeader {
        idl::ResponseHeader::new(7, 1, 2, 9)
    }

    #[test]
    fn leases_are_listed_in_parts_without_a_gap() {
        let list = |after, limit| match leases(header(), vec![-5, 1, 2, 9], after, limit) {
            Reply::LeaseList(response) => (response.lease_ids, response.more),
            other => panic!("{other:?}"),
        };
        assert_eq!(list(None, 3), (vec![-5, 1, 2], true));
        assert_eq!(list(Some(2), 3), (vec![9], false));
        assert_eq!(list(Some(9), 3), (vec![], false));
        assert_eq!(lease_limit(None).unwrap(), LEASES_MAX);
        assert_eq!(lease_limit(Some(i64::MAX)).unwrap(), LEASES_MAX);
        assert!(lease_limit(Some(-1)).is_err());
    }

    #[test]
    fn keys_of_a_lease_beyond_the_bound_are_left_out_and_that_is_said() {
        let keys = vec![vec![b'k'; 16 << 10].into(); 300];
        let state = LeaseState { ttl: 10, left: Duration::from_millis(1500), keys };
        let Reply::LeaseTimeToLive(response) = time_to_live(header(), state, true) else { panic!() };
        assert_eq!((response.remaining_ms, response.more), (1500, Some(true)));
        let bytes: usize = response.keys.unwrap().iter().map(Vec::len).sum();
        assert!(bytes <= LEASE_KEYS_BYTES_MAX && bytes > LEASE_KEYS_BYTES_MAX - (32 << 10), "{bytes}");
    }

    #[test]
    fn grant_in_a_session_needs_an_id() {
        let request = idl::LeaseGrantRequest::new(10, None, None);
        assert!(grant(&request, true).is_err());
        assert!(matches!(grant(&request, false), Ok(KvOperation::GrantLease { ttl: 10, id }) if id > 0));
        assert!(grant(&idl::LeaseGrantRequest::new(-1, 7, None), false).is_err());
    }
}
