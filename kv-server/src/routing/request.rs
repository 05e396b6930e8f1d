//! Requests of calls, before it is decided where they are executed.

use consensus_core::NodeId;
use kv_state_machine::{Alarm, Consistency, KvOperation, Session};
use kv_store_client::{
    admin::MemberChange,
    protocol::{Call, Fault},
};

use crate::{
    between::{FromNode, NodeRequest},
    convert,
};

/// A request, checked as far as possible without executing it.
pub(crate) enum Request {
    Operation { operation: KvOperation, session: Option<Session>, consistency: Consistency },
    KeepAlive { id: i64 },
    TimeToLive { id: i64, with_keys: bool },
    ListLeases { after: Option<i64>, limit: usize },
    ChangeMembers(Vec<MemberChange>),
    TransferLeader(Option<NodeId>),
    Alarms,
    DisarmAlarm(Alarm),
    OfNode(FromNode),
}

impl Request {
    /// Bytes that its answer can have at most, as a frame.
    pub(super) fn answer_bytes_max(&self) -> usize {
        match self {
            Self::Operation { operation, session, .. } => operation.answer_bytes_max(session.is_some()),
            Self::OfNode(FromNode { request: NodeRequest::Execute(operation), .. }) => {
                operation.answer_bytes_max(false)
            }
            Self::TimeToLive { with_keys: true, .. } => convert::LEASE_KEYS_BYTES_MAX,
            Self::ListLeases { limit, .. } => limit * LEASE_ID_BYTES,
            Self::KeepAlive { .. } | Self::TimeToLive { .. } => 0,
            Self::Alarms => ALARMS_BYTES_MAX,
            Self::ChangeMembers(_) | Self::TransferLeader(_) | Self::DisarmAlarm(_) | Self::OfNode(_) => 0,
        }
    }
}

/// Converts a call to a request.
pub(crate) fn request(call: Call, sessions_max: u64) -> Result<Request, Fault> {
    let (mut session, mut consistency) = (None, Consistency::Linearizable);
    let operation = match call {
        Call::Put(mut request) => {
            session = convert::session(request.session.take())?;
            convert::put(request)?
        }
        Call::DeleteRange(mut request) => {
            session = convert::session(request.session.take())?;
            convert::delete(request)?
        }
        Call::Txn(mut request) => {
            session = convert::session(request.session.take())?;
            convert::txn(request)?
        }
        Call::Range(request) => {
            consistency = convert::consistency(request.consistency)?;
            convert::range(request)?
        }
        Call::Compact(revision) => convert::compact(revision)?,
        Call::OpenSession => KvOperation::OpenSession { sessions_max },
        Call::LeaseGrant(mut request) => {
            session = convert::session(request.session.take())?;
            convert::grant(&request, session.is_some())?
        }
        Call::LeaseRevoke(mut request) => {
            session = convert::session(request.session.take())?;
            KvOperation::RevokeLease { id: request.lease_id }
        }
        Call::LeaseKeepAlive(request) => return Ok(Request::KeepAlive { id: request.lease_id }),
        Call::LeaseTimeToLive(request) => {
            let with_keys = request.keys.unwrap_or(false);
            return Ok(Request::TimeToLive { id: request.lease_id, with_keys });
        }
        Call::LeaseList(request) => {
            let limit = convert::lease_limit(request.limit)?;
            return Ok(Request::ListLeases { after: request.after, limit });
        }
        Call::ChangeMembers(changes) => return Ok(Request::ChangeMembers(changes)),
        Call::Alarms => return Ok(Request::Alarms),
        Call::DisarmAlarm(alarm) => return Ok(Request::DisarmAlarm(convert::alarm(&alarm)?)),
        Call::TransferLeader(-1) => return Ok(Request::TransferLeader(None)),
        Call::TransferLeader(to) => {
            let to = u64::try_from(to).map_err(|_| {
                convert::invalid(format!("there is no node {to}; -1 stands for the most up-to-date voter"))
            })?;
            return Ok(Request::TransferLeader(Some(NodeId(to))));
        }
        Call::Status
        | Call::Hash
        | Call::NoForwarding(_)
        | Call::Watch(_)
        | Call::BetweenNodes(_)
        | Call::Login(_)
        | Call::ChangeAuth(_)
        | Call::Auth
        | Call::SetLogLevel(_) => {
            return Err(convert::invalid("not an operation"));
        }
    };
    Ok(Request::Operation { operation, session, consistency })
}

/// Of an answer with all alarms: two for each node, of which there are fewer than 1,000.
const ALARMS_BYTES_MAX: usize = 64 << 10;
/// Of an id in an answer.
const LEASE_ID_BYTES: usize = 8;
