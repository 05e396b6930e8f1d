//! Parts of replies for the records of calls.

use kv_store_client::protocol::{Fault, Reply};

/// Revision of a reply; `None` if it has none.
pub(crate) fn revision_of(reply: &Reply) -> Option<u64> {
    let header = match reply {
        Reply::Put(reply) => &reply.header,
        Reply::DeleteRange(reply) => &reply.header,
        Reply::Range(reply) => &reply.header,
        Reply::Txn(reply) => &reply.header,
        Reply::Compact(header) => header,
        Reply::LeaseGrant(reply) => &reply.header,
        Reply::LeaseRevoke(reply) => &reply.header,
        Reply::LeaseKeepAlive(reply) => &reply.header,
        Reply::LeaseTimeToLive(reply) => &reply.header,
        Reply::LeaseList(reply) => &reply.header,
        Reply::Watch(reply) => &reply.header,
        _ => return None,
    };
    u64::try_from(header.revision).ok()
}

/// Name of a fault: that of the exception in the IDL.
pub(crate) fn fault_name(fault: &Fault) -> &'static str {
    match fault {
        Fault::NotLeader(_) => "NotLeader",
        Fault::Unavailable(_) => "Unavailable",
        Fault::Invalid(_) => "InvalidRequest",
        Fault::Compacted(_) => "Compacted",
        Fault::Conflict(_) => "Conflict",
        Fault::NoSession(_) => "NoSession",
        Fault::SequenceOver(_) => "SequenceOver",
        Fault::NoLease(_) => "NoLease",
        Fault::LeaseExists(_) => "LeaseExists",
        Fault::NoData(_) => "NoData",
        Fault::Denied(_) => "Denied",
        Fault::Refused(_) => "Refused",
        Fault::Application { .. } => "ApplicationException",
    }
}
