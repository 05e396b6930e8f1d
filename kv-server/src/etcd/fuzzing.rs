//! For the crate `fuzz`: what the front end makes of requests as etcd's clients encode them.

use bytes::Bytes;
use kv_etcd_api::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest};
use kv_state_machine::KvOperation;
use prost::Message;
use tonic::Status;

use super::{convert, gateway, txn};

/// The operation of a request; its kind is 0 for Range, 1 for Put, 2 for DeleteRange, and else Txn.
///
/// # Errors
/// As the client is told.
pub fn request(kind: u8, message: &[u8]) -> Result<KvOperation, String> {
    let message = Bytes::copy_from_slice(message);
    let undecodable = |error: prost::DecodeError| error.to_string();
    let refused = |status: Status| status.to_string();
    match kind {
        0 => convert::range(RangeRequest::decode(message).map_err(undecodable)?).map_err(refused),
        1 => convert::put(PutRequest::decode(message).map_err(undecodable)?).map_err(refused),
        2 => convert::delete(DeleteRangeRequest::decode(message).map_err(undecodable)?).map_err(refused),
        _ => {
            txn::operation(TxnRequest::decode(message).map_err(undecodable)?, OPERATIONS_MAX).map_err(refused)
        }
    }
}

/// The messages of a body of JSON for a path of the gateway, as they are passed on; `None`: there is no such path.
///
/// # Errors
/// As the client is told.
///
/// # Panics
/// A message is another one after it was written as JSON and read again.
pub fn json(path: &str, body: &[u8]) -> Option<Result<Vec<Bytes>, String>> {
    let kind = gateway::method_of(path)?.input();
    let messages = gateway::messages(&kind, body).map_err(|status| status.to_string());
    for message in messages.iter().flatten() {
        let text = gateway::text(&kind, message).expect("a message that was read can be written");
        let again = gateway::messages(&kind, text.as_bytes()).expect("and read again");
        assert_eq!(again, std::slice::from_ref(message), "{text}");
    }
    Some(messages)
}

const OPERATIONS_MAX: usize = 128;
