//! Calls of the service and their replies, as frames, for clients and servers.

use bytes::Bytes;
use consensus_transport_thrift::framing;
use thrift::{
    ApplicationErrorKind,
    protocol::{TInputProtocol, TMessageType, TOutputProtocol},
};

use crate::admin::{
    AdminAlarmsArgs, AdminAlarmsResult, AdminAuthArgs, AdminAuthResult, AdminBetweenNodesArgs,
    AdminBetweenNodesResult, AdminChangeAuthArgs, AdminChangeAuthResult, AdminChangeMembersArgs,
    AdminChangeMembersResult, AdminDisarmAlarmArgs, AdminDisarmAlarmResult, AdminNoForwardingArgs,
    AdminNoForwardingResult, AdminSetLogLevelArgs, AdminSetLogLevelResult, AdminTransferLeaderArgs,
    AdminTransferLeaderResult, Alarm, AuthChange, AuthStatus, MemberChange, NodeIdentity, Refused,
};
use crate::idl::{
    Compacted, Conflict, DeleteRequest, DeleteResponse, Denied, HashResponse, InvalidRequest, KvCompactArgs,
    KvCompactResult, KvDeleteRangeArgs, KvDeleteRangeResult, KvHashArgs, KvHashResult, KvLeaseGrantArgs,
    KvLeaseGrantResult, KvLeaseKeepAliveArgs, KvLeaseKeepAliveResult, KvLeaseListArgs, KvLeaseListResult,
    KvLeaseRevokeArgs, KvLeaseRevokeResult, KvLeaseTimeToLiveArgs, KvLeaseTimeToLiveResult, KvLoginArgs,
    KvLoginResult, KvOpenSessionArgs, KvOpenSessionResult, KvPutArgs, KvPutResult, KvRangeArgs,
    KvRangeResult, KvStatusArgs, KvStatusResult, KvTxnArgs, KvTxnResult, KvWatchArgs, KvWatchResult,
    LeaseExists, LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseListRequest, LeaseListResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse, LoginRequest, LoginResponse, NoData, NoLease, NoSession, NotLeader, PutRequest,
    PutResponse, RangeRequest, RangeResponse, ResponseHeader, SequenceOver, StatusResponse, TxnRequest,
    TxnResponse, Unavailable, WatchRequest, WatchResponse,
};

/// A call of a method.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the methods of the IDL, documented there")]
pub enum Call {
    Put(PutRequest),
    DeleteRange(DeleteRequest),
    Range(RangeRequest),
    Txn(TxnRequest),
    Compact(i64),
    OpenSession,
    LeaseGrant(LeaseGrantRequest),
    LeaseRevoke(LeaseRevokeRequest),
    LeaseKeepAlive(LeaseKeepAliveRequest),
    LeaseTimeToLive(LeaseTimeToLiveRequest),
    LeaseList(LeaseListRequest),
    Watch(WatchRequest),
    Status,
    Hash,
    ChangeMembers(Vec<MemberChange>),
    TransferLeader(i64),
    Alarms,
    DisarmAlarm(Alarm),
    ChangeAuth(AuthChange),
    Auth,
    SetLogLevel(String),
    NoForwarding(NodeIdentity),
    BetweenNodes(Vec<u8>),
    Login(LoginRequest),
}

/// Reply to a call.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the methods of the IDL, documented there")]
pub enum Reply {
    Put(PutResponse),
    DeleteRange(DeleteResponse),
    Range(RangeResponse),
    Txn(TxnResponse),
    Compact(ResponseHeader),
    OpenSession(i64),
    LeaseGrant(LeaseGrantResponse),
    LeaseRevoke(LeaseRevokeResponse),
    LeaseKeepAlive(LeaseKeepAliveResponse),
    LeaseTimeToLive(LeaseTimeToLiveResponse),
    LeaseList(LeaseListResponse),
    Watch(WatchResponse),
    Status(StatusResponse),
    Hash(HashResponse),
    ChangeMembers,
    TransferLeader(i64),
    Alarms(Vec<Alarm>),
    DisarmAlarm(bool),
    ChangeAuth,
    Auth(AuthStatus),
    SetLogLevel(String),
    NoForwarding(NodeIdentity),
    BetweenNodes(Vec<u8>),
    Login(LoginResponse),
}

/// An exception of the IDL, or an error of the protocol itself.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs, reason = "the exceptions of the IDL, documented there")]
pub enum Fault {
    #[error("the node does not lead{}", .0.leader_endpoint.as_ref().map(|e| format!("; {e} does")).unwrap_or_default())]
    NotLeader(NotLeader),
    #[error("unavailable: {}", .0.message)]
    Unavailable(Unavailable),
    #[error("{}", .0.message)]
    Invalid(InvalidRequest),
    #[error("revisions below {} were compacted away", .0.compacted_revision)]
    Compacted(Compacted),
    #[error("a key that was read was changed at revision {}", .0.mod_revision)]
    Conflict(Conflict),
    #[error("there is no session {}, or it was idle for too long", .0.client_id)]
    NoSession(NoSession),
    #[error(
        "sequence {} of session {} is over: {} was executed; the answer to an earlier number is not kept",
        .0.sequence, .0.client_id, .0.last_sequence
    )]
    SequenceOver(SequenceOver),
    #[error("there is no lease {:x}: it was never granted, or has ended", .0.lease_id)]
    NoLease(NoLease),
    #[error("there is a lease {:x} already", .0.lease_id)]
    LeaseExists(LeaseExists),
    #[error("{}", .0.message)]
    NoData(NoData),
    #[error("{}", .0.message)]
    Denied(Denied),
    #[error("{}", .0.message)]
    Refused(Refused),
    /// A `TApplicationException`.
    #[error("{message}")]
    Application { kind: ApplicationErrorKind, message: String },
}

impl Call {
    /// Returns the name of the method.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Put(_) => "put",
            Self::DeleteRange(_) => "delete_range",
            Self::Range(_) => "range",
            Self::Txn(_) => "txn",
            Self::Compact(_) => "compact",
            Self::OpenSession => "open_session",
            Self::LeaseGrant(_) => "lease_grant",
            Self::LeaseRevoke(_) => "lease_revoke",
            Self::LeaseKeepAlive(_) => "lease_keep_alive",
            Self::LeaseTimeToLive(_) => "lease_time_to_live",
            Self::LeaseList(_) => "lease_list",
            Self::Watch(_) => "watch",
            Self::Status => "status",
            Self::Hash => "hash",
            Self::ChangeMembers(_) => "change_members",
            Self::TransferLeader(_) => "transfer_leader",
            Self::Alarms => "alarms",
            Self::DisarmAlarm(_) => "disarm_alarm",
            Self::ChangeAuth(_) => "change_auth",
            Self::Auth => "auth",
            Self::SetLogLevel(_) => "set_log_level",
            Self::NoForwarding(_) => "no_forwarding",
            Self::BetweenNodes(_) => "between_nodes",
            Self::Login(_) => "login",
        }
    }

    /// Encodes the call as a frame.
    ///
    /// # Errors
    /// The call is longer than the length field of a frame can express.
    pub fn encode(self, sequence: i32) -> thrift::Result<Bytes> {
        framing::encode(self.name(), TMessageType::Call, sequence, |out| match self {
            Self::Put(request) => KvPutArgs { request }.write_to_out_protocol(out),
            Self::DeleteRange(request) => KvDeleteRangeArgs { request }.write_to_out_protocol(out),
            Self::Range(request) => KvRangeArgs { request }.write_to_out_protocol(out),
            Self::Txn(request) => KvTxnArgs { request }.write_to_out_protocol(out),
            Self::Compact(revision) => KvCompactArgs { revision }.write_to_out_protocol(out),
            Self::OpenSession => KvOpenSessionArgs {}.write_to_out_protocol(out),
            Self::LeaseGrant(request) => KvLeaseGrantArgs { request }.write_to_out_protocol(out),
            Self::LeaseRevoke(request) => KvLeaseRevokeArgs { request }.write_to_out_protocol(out),
            Self::LeaseKeepAlive(request) => KvLeaseKeepAliveArgs { request }.write_to_out_protocol(out),
            Self::LeaseTimeToLive(request) => KvLeaseTimeToLiveArgs { request }.write_to_out_protocol(out),
            Self::LeaseList(request) => KvLeaseListArgs { request }.write_to_out_protocol(out),
            Self::Watch(request) => KvWatchArgs { request }.write_to_out_protocol(out),
            Self::Status => KvStatusArgs {}.write_to_out_protocol(out),
            Self::Hash => KvHashArgs {}.write_to_out_protocol(out),
            Self::ChangeMembers(changes) => AdminChangeMembersArgs { changes }.write_to_out_protocol(out),
            Self::TransferLeader(node_id) => AdminTransferLeaderArgs { node_id }.write_to_out_protocol(out),
            Self::Alarms => AdminAlarmsArgs {}.write_to_out_protocol(out),
            Self::DisarmAlarm(alarm) => AdminDisarmAlarmArgs { alarm }.write_to_out_protocol(out),
            Self::ChangeAuth(change) => AdminChangeAuthArgs { change }.write_to_out_protocol(out),
            Self::Auth => AdminAuthArgs {}.write_to_out_protocol(out),
            Self::SetLogLevel(directives) => AdminSetLogLevelArgs { directives }.write_to_out_protocol(out),
            Self::NoForwarding(expected) => AdminNoForwardingArgs { expected }.write_to_out_protocol(out),
            Self::BetweenNodes(request) => AdminBetweenNodesArgs { request }.write_to_out_protocol(out),
            Self::Login(request) => KvLoginArgs { request }.write_to_out_protocol(out),
        })
    }
}

/// A call as a server receives it in a frame.
#[derive(Debug)]
pub struct Incoming {
    /// Sequence number, which the reply repeats.
    pub sequence: i32,
    /// Name of the method in the frame.
    pub name: String,
    /// The call, or the fault to reply with if the frame has no valid call.
    pub call: Result<Call, Fault>,
}

/// Reads a call.
///
/// # Errors
/// The frame is not a Thrift message, so that no reply is possible.
pub fn read_call(frame: &[u8]) -> thrift::Result<Incoming> {
    let (identifier, mut protocol) = framing::open(frame)?;
    let call = read_arguments(&identifier.name, &mut protocol);
    let call = call.map_err(|error| match error {
        thrift::Error::Application(error) => Fault::Application { kind: error.kind, message: error.message },
        error => Fault::Application {
            kind: ApplicationErrorKind::ProtocolError,
            message: framing::error_text(&error),
        },
    });
    Ok(Incoming { sequence: identifier.sequence_number, name: identifier.name, call })
}

fn read_arguments(name: &str, input: &mut dyn TInputProtocol) -> thrift::Result<Call> {
    Ok(match name {
        "put" => Call::Put(KvPutArgs::read_from_in_protocol(input)?.request),
        "delete_range" => Call::DeleteRange(KvDeleteRangeArgs::read_from_in_protocol(input)?.request),
        "range" => Call::Range(KvRangeArgs::read_from_in_protocol(input)?.request),
        "txn" => Call::Txn(KvTxnArgs::read_from_in_protocol(input)?.request),
        "compact" => Call::Compact(KvCompactArgs::read_from_in_protocol(input)?.revision),
        "open_session" => Call::OpenSession,
        "lease_grant" => Call::LeaseGrant(KvLeaseGrantArgs::read_from_in_protocol(input)?.request),
        "lease_revoke" => Call::LeaseRevoke(KvLeaseRevokeArgs::read_from_in_protocol(input)?.request),
        "lease_keep_alive" => {
            Call::LeaseKeepAlive(KvLeaseKeepAliveArgs::read_from_in_protocol(input)?.request)
        }
        "lease_time_to_live" => {
            Call::LeaseTimeToLive(KvLeaseTimeToLiveArgs::read_from_in_protocol(input)?.request)
        }
        "lease_list" => Call::LeaseList(KvLeaseListArgs::read_from_in_protocol(input)?.request),
        "watch" => Call::Watch(KvWatchArgs::read_from_in_protocol(input)?.request),
        "login" => Call::Login(KvLoginArgs::read_from_in_protocol(input)?.request),
        "status" => Call::Status,
        "hash" => Call::Hash,
        "change_members" => {
            Call::ChangeMembers(AdminChangeMembersArgs::read_from_in_protocol(input)?.changes)
        }
        "transfer_leader" => {
            Call::TransferLeader(AdminTransferLeaderArgs::read_from_in_protocol(input)?.node_id)
        }
        "alarms" => Call::Alarms,
        "disarm_alarm" => Call::DisarmAlarm(AdminDisarmAlarmArgs::read_from_in_protocol(input)?.alarm),
        "change_auth" => Call::ChangeAuth(AdminChangeAuthArgs::read_from_in_protocol(input)?.change),
        "auth" => Call::Auth,
        "set_log_level" => Call::SetLogLevel(AdminSetLogLevelArgs::read_from_in_protocol(input)?.directives),
        "no_forwarding" => Call::NoForwarding(AdminNoForwardingArgs::read_from_in_protocol(input)?.expected),
        "between_nodes" => Call::BetweenNodes(AdminBetweenNodesArgs::read_from_in_protocol(input)?.request),
        name => {
            return Err(thrift::new_application_error(
                ApplicationErrorKind::UnknownMethod,
                format!("there is no method {name:?}"),
            ));
        }
    })
}

/// Builds a result struct of the IDL from a reply or from one of the exceptions that the method declares.
macro_rules! result_struct {
    ($type:ident, $outcome:expr, $reply:ident, $($field:ident: $fault:ident),*) => {{
        let mut result = $type { result_value: None, $($field: None),* };
        match $outcome {
            Ok(Reply::$reply(value)) => result.result_value = Some(value),
            $(Err(Fault::$fault(exception)) => result.$field = Some(exception),)*
            other => return undeclared(other),
        }
        result
    }};
}

/// Encodes the reply to the call with this name and sequence number as a frame.
///
/// # Errors
/// The reply is longer than the length field of a frame can express.
pub fn encode_reply(name: &str, sequence: i32, outcome: Result<Reply, Fault>) -> thrift::Result<Bytes> {
    let written =
        framing::encode(name, TMessageType::Reply, sequence, |out| write_result(name, outcome, out));
    match written {
        Err(thrift::Error::Application(error)) => {
            framing::encode_application_error(name, sequence, error.kind, &error.message)
        }
        written => written,
    }
}

fn write_result(
    name: &str,
    outcome: Result<Reply, Fault>,
    out: &mut dyn TOutputProtocol,
) -> thrift::Result<()> {
    match name {
        "put" => result_struct!(KvPutResult, outcome, Put,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid,
            no_session: NoSession, sequence_over: SequenceOver, no_lease: NoLease, denied: Denied)
        .write_to_out_protocol(out),
        "delete_range" => result_struct!(KvDeleteRangeResult, outcome, DeleteRange,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid,
            no_session: NoSession, sequence_over: SequenceOver, denied: Denied)
        .write_to_out_protocol(out),
        "range" => result_struct!(KvRangeResult, outcome, Range,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid, compacted: Compacted, denied: Denied)
        .write_to_out_protocol(out),
        "txn" => result_struct!(KvTxnResult, outcome, Txn,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid, compacted: Compacted, conflict: Conflict,
            no_session: NoSession, sequence_over: SequenceOver, no_lease: NoLease, denied: Denied)
        .write_to_out_protocol(out),
        "compact" => result_struct!(KvCompactResult, outcome, Compact,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid, compacted: Compacted, denied: Denied)
        .write_to_out_protocol(out),
        "open_session" => result_struct!(KvOpenSessionResult, outcome, OpenSession,
            not_leader: NotLeader, unavailable: Unavailable, denied: Denied)
        .write_to_out_protocol(out),
        "lease_grant" => result_struct!(KvLeaseGrantResult, outcome, LeaseGrant,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid,
            no_session: NoSession, sequence_over: SequenceOver, lease_exists: LeaseExists, denied: Denied)
        .write_to_out_protocol(out),
        "lease_revoke" => result_struct!(KvLeaseRevokeResult, outcome, LeaseRevoke,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid,
            no_session: NoSession, sequence_over: SequenceOver, no_lease: NoLease, denied: Denied)
        .write_to_out_protocol(out),
        "lease_keep_alive" => result_struct!(KvLeaseKeepAliveResult, outcome, LeaseKeepAlive,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid, no_lease: NoLease, denied: Denied)
        .write_to_out_protocol(out),
        "lease_time_to_live" => result_struct!(KvLeaseTimeToLiveResult, outcome, LeaseTimeToLive,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid, no_lease: NoLease, denied: Denied)
        .write_to_out_protocol(out),
        "lease_list" => result_struct!(KvLeaseListResult, outcome, LeaseList,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid, denied: Denied)
        .write_to_out_protocol(out),
        "watch" => result_struct!(KvWatchResult, outcome, Watch,
            unavailable: Unavailable, invalid: Invalid, compacted: Compacted, no_data: NoData, denied: Denied)
        .write_to_out_protocol(out),
        "login" => result_struct!(KvLoginResult, outcome, Login, unavailable: Unavailable, denied: Denied)
            .write_to_out_protocol(out),
        "status" => result_struct!(KvStatusResult, outcome, Status,)
            .write_to_out_protocol(out),
        "hash" => result_struct!(KvHashResult, outcome, Hash, unavailable: Unavailable, no_data: NoData, denied: Denied)
            .write_to_out_protocol(out),
        "transfer_leader" => result_struct!(AdminTransferLeaderResult, outcome, TransferLeader, refused: Refused)
            .write_to_out_protocol(out),
        "alarms" => result_struct!(AdminAlarmsResult, outcome, Alarms, refused: Refused)
            .write_to_out_protocol(out),
        "disarm_alarm" => result_struct!(AdminDisarmAlarmResult, outcome, DisarmAlarm, refused: Refused)
            .write_to_out_protocol(out),
        "between_nodes" => result_struct!(AdminBetweenNodesResult, outcome, BetweenNodes, refused: Refused)
            .write_to_out_protocol(out),
        "auth" => result_struct!(AdminAuthResult, outcome, Auth, refused: Refused)
            .write_to_out_protocol(out),
        "set_log_level" => result_struct!(AdminSetLogLevelResult, outcome, SetLogLevel, refused: Refused)
            .write_to_out_protocol(out),
        "change_auth" => match outcome {
            Ok(Reply::ChangeAuth) => AdminChangeAuthResult { refused: None }.write_to_out_protocol(out),
            Err(Fault::Refused(refused)) => {
                AdminChangeAuthResult { refused: Some(refused) }.write_to_out_protocol(out)
            }
            other => undeclared(other),
        },
        "change_members" => match outcome {
            Ok(Reply::ChangeMembers) => AdminChangeMembersResult { refused: None }.write_to_out_protocol(out),
            Err(Fault::Refused(refused)) => {
                AdminChangeMembersResult { refused: Some(refused) }.write_to_out_protocol(out)
            }
            other => undeclared(other),
        },
        "no_forwarding" => result_struct!(AdminNoForwardingResult, outcome, NoForwarding, refused: Refused)
            .write_to_out_protocol(out),
        _ => undeclared(outcome),
    }
}

/// Returns an exception that the method does not declare as an application exception of the protocol.
fn undeclared(outcome: Result<Reply, Fault>) -> thrift::Result<()> {
    Err(match outcome {
        Err(Fault::Application { kind, message }) => thrift::new_application_error(kind, message),
        Err(fault) => thrift::new_application_error(ApplicationErrorKind::InternalError, fault.to_string()),
        Ok(_) => {
            thrift::new_application_error(ApplicationErrorKind::InternalError, "a reply to another method")
        }
    })
}

/// Reads the outcome from a result struct of the IDL; the reverse of [`result_struct`].
macro_rules! outcome {
    ($type:ident, $input:expr, $reply:ident, $($field:ident: $fault:ident),*) => {{
        let result = $type::read_from_in_protocol($input)?;
        $(if let Some(exception) = result.$field {
            return Ok(Err(Fault::$fault(exception)));
        })*
        result.result_value.map(Reply::$reply)
    }};
}

/// Reads a reply. Returns its sequence number and the outcome.
///
/// # Errors
/// The frame is not a reply of this service. The connection cannot be used any more.
pub fn read_reply(frame: &[u8]) -> thrift::Result<(i32, Result<Reply, Fault>)> {
    let (identifier, mut protocol) = framing::open(frame)?;
    let outcome = if identifier.message_type == TMessageType::Exception {
        let error = thrift::Error::read_application_error_from_in_protocol(&mut protocol)?;
        Err(Fault::Application { kind: error.kind, message: error.message })
    } else {
        read_outcome(&identifier.name, &mut protocol)?
    };
    Ok((identifier.sequence_number, outcome))
}

fn read_outcome(name: &str, input: &mut dyn TInputProtocol) -> thrift::Result<Result<Reply, Fault>> {
    let reply = match name {
        "put" => outcome!(KvPutResult, input, Put,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid,
            no_session: NoSession, sequence_over: SequenceOver, no_lease: NoLease, denied: Denied),
        "delete_range" => outcome!(KvDeleteRangeResult, input, DeleteRange,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid,
            no_session: NoSession, sequence_over: SequenceOver, denied: Denied),
        "range" => outcome!(KvRangeResult, input, Range,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid, compacted: Compacted, denied: Denied),
        "txn" => outcome!(KvTxnResult, input, Txn,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid, compacted: Compacted, conflict: Conflict,
            no_session: NoSession, sequence_over: SequenceOver, no_lease: NoLease, denied: Denied),
        "compact" => outcome!(KvCompactResult, input, Compact,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid, compacted: Compacted, denied: Denied),
        "open_session" => outcome!(KvOpenSessionResult, input, OpenSession,
            not_leader: NotLeader, unavailable: Unavailable, denied: Denied),
        "lease_grant" => outcome!(KvLeaseGrantResult, input, LeaseGrant,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid,
            no_session: NoSession, sequence_over: SequenceOver, lease_exists: LeaseExists, denied: Denied),
        "lease_revoke" => outcome!(KvLeaseRevokeResult, input, LeaseRevoke,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid,
            no_session: NoSession, sequence_over: SequenceOver, no_lease: NoLease, denied: Denied),
        "lease_keep_alive" => outcome!(KvLeaseKeepAliveResult, input, LeaseKeepAlive,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid, no_lease: NoLease, denied: Denied),
        "lease_time_to_live" => outcome!(KvLeaseTimeToLiveResult, input, LeaseTimeToLive,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid, no_lease: NoLease, denied: Denied),
        "lease_list" => outcome!(KvLeaseListResult, input, LeaseList,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid, denied: Denied),
        "watch" => outcome!(KvWatchResult, input, Watch,
            unavailable: Unavailable, invalid: Invalid, compacted: Compacted, no_data: NoData, denied: Denied),
        "login" => outcome!(KvLoginResult, input, Login, unavailable: Unavailable, denied: Denied),
        "status" => outcome!(KvStatusResult, input, Status,),
        "hash" => {
            outcome!(KvHashResult, input, Hash, unavailable: Unavailable, no_data: NoData, denied: Denied)
        }
        "transfer_leader" => outcome!(AdminTransferLeaderResult, input, TransferLeader, refused: Refused),
        "change_members" => match AdminChangeMembersResult::read_from_in_protocol(input)?.refused {
            Some(refused) => return Ok(Err(Fault::Refused(refused))),
            None => Some(Reply::ChangeMembers),
        },
        "auth" => outcome!(AdminAuthResult, input, Auth, refused: Refused),
        "set_log_level" => outcome!(AdminSetLogLevelResult, input, SetLogLevel, refused: Refused),
        "change_auth" => match AdminChangeAuthResult::read_from_in_protocol(input)?.refused {
            Some(refused) => return Ok(Err(Fault::Refused(refused))),
            None => Some(Reply::ChangeAuth),
        },
        "alarms" => outcome!(AdminAlarmsResult, input, Alarms, refused: Refused),
        "disarm_alarm" => outcome!(AdminDisarmAlarmResult, input, DisarmAlarm, refused: Refused),
        "no_forwarding" => outcome!(AdminNoForwardingResult, input, NoForwarding, refused: Refused),
        "between_nodes" => outcome!(AdminBetweenNodesResult, input, BetweenNodes, refused: Refused),
        _ => None,
    };
    reply.map(Ok).ok_or_else(|| {
        thrift::new_application_error(
            ApplicationErrorKind::MissingResult,
            format!("no result in the reply to {name:?}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::admin::{AlarmKind, RefusedReason};

    fn header() -> ResponseHeader {
        ResponseHeader { revision: 7, node_id: 1, term: 2, applied_index: 9 }
    }

    #[test]
    fn calls_and_outcomes_come_back() {
        let put = PutRequest { lease_id: Some(5), ..PutRequest::of([1], [2, 0]) };
        let change =
            MemberChange::new(3, crate::admin::MemberKind::JOINING, "h:1".to_owned(), None, 7, false);
        let alarm = Alarm::new(AlarmKind::CORRUPT, 3);
        let identity = NodeIdentity::new(2, "00000000000000ff".to_owned());
        let admin = [
            Call::ChangeMembers(vec![change]),
            Call::TransferLeader(-1),
            Call::Alarms,
            Call::DisarmAlarm(alarm.clone()),
            Call::SetLogLevel("debug".to_owned()),
            Call::NoForwarding(identity.clone()),
        ];
        let kv = [Call::Put(put), Call::Compact(5), Call::OpenSession, Call::Status];
        let leases = [
            Call::LeaseGrant(LeaseGrantRequest::new(10, 7, None)),
            Call::LeaseRevoke(LeaseRevokeRequest::new(7, None)),
            Call::LeaseKeepAlive(LeaseKeepAliveRequest::new(7)),
            Call::LeaseTimeToLive(LeaseTimeToLiveRequest::new(7, true)),
            Call::LeaseList(LeaseListRequest::new(7, 3)),
            Call::Watch(WatchRequest { start_event: Some(3), ..WatchRequest::of("k", None) }),
        ];
        for call in kv.into_iter().chain(leases).chain(admin) {
            let frame = call.clone().encode(3).unwrap();
            let incoming = read_call(&frame[4..]).unwrap();
            assert_eq!((incoming.sequence, incoming.call), (3, Ok(call)));
        }
        let unavailable = Unavailable { message: "m".into(), maybe_applied: true, retry_after_ms: Some(5) };
        let refused = Refused {
            message: "m".into(),
            maybe_done: false,
            reason: Some(RefusedReason::NOT_LEADER),
            leader_id: Some(1),
            leader_endpoint: Some("h:1".into()),
        };
        let internal = Fault::Application { kind: ApplicationErrorKind::InternalError, message: "x".into() };
        let outcomes = [
            ("put", Ok(Reply::Put(PutResponse { header: header(), previous: None, stamped: Some(vec![3]) }))),
            ("put", Err(Fault::Unavailable(unavailable))),
            ("txn", Err(Fault::Conflict(Conflict { key: vec![1], mod_revision: 4 }))),
            ("compact", Ok(Reply::Compact(header()))),
            ("hash", Err(internal)),
            ("no_forwarding", Ok(Reply::NoForwarding(identity))),
            ("no_forwarding", Err(Fault::Refused(refused.clone()))),
            ("change_members", Ok(Reply::ChangeMembers)),
            ("put", Err(Fault::NoSession(NoSession { client_id: 5 }))),
            ("txn", Err(Fault::SequenceOver(SequenceOver { client_id: 5, sequence: 1, last_sequence: 2 }))),
            ("hash", Err(Fault::NoData(NoData { message: "m".into() }))),
            ("change_members", Err(Fault::Refused(refused))),
            ("alarms", Ok(Reply::Alarms(vec![alarm]))),
            ("disarm_alarm", Ok(Reply::DisarmAlarm(true))),
            ("set_log_level", Ok(Reply::SetLogLevel("debug".to_owned()))),
            ("transfer_leader", Ok(Reply::TransferLeader(2))),
            ("lease_grant", Ok(Reply::LeaseGrant(LeaseGrantResponse::new(header(), 7, 10)))),
            ("lease_grant", Err(Fault::LeaseExists(LeaseExists::new(7)))),
            ("lease_revoke", Ok(Reply::LeaseRevoke(LeaseRevokeResponse::new(header())))),
            ("lease_keep_alive", Ok(Reply::LeaseKeepAlive(LeaseKeepAliveResponse::new(header(), 10)))),
            ("lease_keep_alive", Err(Fault::NoLease(NoLease::new(7)))),
            (
                "lease_time_to_live",
                Ok(Reply::LeaseTimeToLive(LeaseTimeToLiveResponse::new(
                    header(),
                    10,
                    300,
                    vec![vec![1]],
                    true,
                ))),
            ),
            ("lease_list", Ok(Reply::LeaseList(LeaseListResponse::new(header(), vec![7, 8], true)))),
            ("put", Err(Fault::NoLease(NoLease::new(7)))),
            ("watch", Ok(Reply::Watch(WatchResponse::new(header(), Vec::new(), 300, 2)))),
            ("watch", Err(Fault::Compacted(Compacted::new(300)))),
        ];
        for (name, outcome) in outcomes {
            let frame = encode_reply(name, 8, outcome.clone()).unwrap();
            assert_eq!(read_reply(&frame[4..]).unwrap(), (8, outcome));
        }
    }

    #[test]
    fn an_unknown_method_is_told() {
        let frame = framing::encode("drop_all", TMessageType::Call, 1, |_| Ok(())).unwrap();
        let fault = read_call(&frame[4..]).unwrap().call.unwrap_err();
        assert!(
            matches!(fault, Fault::Application { kind: ApplicationErrorKind::UnknownMethod, .. }),
            "{fault:?}"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), name in 0usize..5) {
            let _ = read_call(&bytes);
            let _ = read_reply(&bytes);
            let name = ["put", "txn", "range", "status", "nothing"][name];
            for kind in [TMessageType::Call, TMessageType::Reply, TMessageType::Exception] {
                let head = framing::encode(name, kind, 1, |_| Ok(())).unwrap();
                let frame = [&head[4..], &bytes].concat();
                let _ = read_call(&frame);
                let _ = read_reply(&frame);
            }
        }
    }
}
