//! The calls of the service and their replies, as frames; for clients and servers.

use bytes::Bytes;
use consensus_transport_thrift::framing;
use thrift::{
    ApplicationErrorKind,
    protocol::{TMessageType, TOutputProtocol},
};

use crate::admin::{
    AdminBetweenNodesArgs, AdminBetweenNodesResult, AdminChangeMembersArgs, AdminChangeMembersResult,
    AdminNoForwardingArgs, AdminNoForwardingResult, AdminTransferLeaderArgs, AdminTransferLeaderResult,
    MemberChange, Refused,
};
use crate::idl::{
    Compacted, Conflict, DeleteRequest, DeleteResponse, HashResponse, InvalidRequest, KvCompactArgs,
    KvCompactResult, KvDeleteRangeArgs, KvDeleteRangeResult, KvHashArgs, KvHashResult, KvOpenSessionArgs,
    KvOpenSessionResult, KvPutArgs, KvPutResult, KvRangeArgs, KvRangeResult, KvStatusArgs, KvStatusResult,
    KvTxnArgs, KvTxnResult, NoData, NoSession, NotLeader, PutRequest, PutResponse, RangeRequest,
    RangeResponse, ResponseHeader, SequenceOver, StatusResponse, TxnRequest, TxnResponse, Unavailable,
};

/// A call.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the methods of the IDL, documented there")]
pub enum Call {
    Put(PutRequest),
    DeleteRange(DeleteRequest),
    Range(RangeRequest),
    Txn(TxnRequest),
    Compact(i64),
    OpenSession,
    Status,
    Hash,
    ChangeMembers(Vec<MemberChange>),
    TransferLeader(i64),
    NoForwarding,
    BetweenNodes(Vec<u8>),
}

/// What a call was answered with.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the methods of the IDL, documented there")]
pub enum Reply {
    Put(PutResponse),
    DeleteRange(DeleteResponse),
    Range(RangeResponse),
    Txn(TxnResponse),
    Compact(ResponseHeader),
    OpenSession(i64),
    Status(StatusResponse),
    Hash(HashResponse),
    ChangeMembers,
    TransferLeader(i64),
    NoForwarding,
    BetweenNodes(Vec<u8>),
}

/// The exceptions of the IDL, and errors of the protocol itself.
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
    #[error("{}", .0.message)]
    NoData(NoData),
    #[error("{}", .0.message)]
    Refused(Refused),
    /// A `TApplicationException`.
    #[error("{message}")]
    Application { kind: ApplicationErrorKind, message: String },
}

impl Call {
    /// Its method.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Put(_) => "put",
            Self::DeleteRange(_) => "delete_range",
            Self::Range(_) => "range",
            Self::Txn(_) => "txn",
            Self::Compact(_) => "compact",
            Self::OpenSession => "open_session",
            Self::Status => "status",
            Self::Hash => "hash",
            Self::ChangeMembers(_) => "change_members",
            Self::TransferLeader(_) => "transfer_leader",
            Self::NoForwarding => "no_forwarding",
            Self::BetweenNodes(_) => "between_nodes",
        }
    }

    /// As a frame.
    ///
    /// # Errors
    /// It is longer than a frame can say.
    pub fn encode(self, sequence: i32) -> thrift::Result<Bytes> {
        framing::encode(self.name(), TMessageType::Call, sequence, |out| match self {
            Self::Put(request) => KvPutArgs { request }.write_to_out_protocol(out),
            Self::DeleteRange(request) => KvDeleteRangeArgs { request }.write_to_out_protocol(out),
            Self::Range(request) => KvRangeArgs { request }.write_to_out_protocol(out),
            Self::Txn(request) => KvTxnArgs { request }.write_to_out_protocol(out),
            Self::Compact(revision) => KvCompactArgs { revision }.write_to_out_protocol(out),
            Self::OpenSession => KvOpenSessionArgs {}.write_to_out_protocol(out),
            Self::Status => KvStatusArgs {}.write_to_out_protocol(out),
            Self::Hash => KvHashArgs {}.write_to_out_protocol(out),
            Self::ChangeMembers(changes) => AdminChangeMembersArgs { changes }.write_to_out_protocol(out),
            Self::TransferLeader(node_id) => AdminTransferLeaderArgs { node_id }.write_to_out_protocol(out),
            Self::NoForwarding => AdminNoForwardingArgs {}.write_to_out_protocol(out),
            Self::BetweenNodes(request) => AdminBetweenNodesArgs { request }.write_to_out_protocol(out),
        })
    }
}

/// A call as a server finds it in a frame.
#[derive(Debug)]
pub struct Incoming {
    /// Comes back with the reply.
    pub sequence: i32,
    /// Method as it was called.
    pub name: String,
    /// The call, or why it is none.
    pub call: Result<Call, Fault>,
}

/// Reads a call.
///
/// # Errors
/// The frame is not a Thrift message at all; there is nobody to answer.
pub fn read_call(frame: &[u8]) -> thrift::Result<Incoming> {
    let (identifier, mut protocol) = framing::open(frame)?;
    let input = &mut protocol;
    let call =
        match identifier.name.as_str() {
            "put" => KvPutArgs::read_from_in_protocol(input).map(|args| Call::Put(args.request)),
            "delete_range" => {
                KvDeleteRangeArgs::read_from_in_protocol(input).map(|args| Call::DeleteRange(args.request))
            }
            "range" => KvRangeArgs::read_from_in_protocol(input).map(|args| Call::Range(args.request)),
            "txn" => KvTxnArgs::read_from_in_protocol(input).map(|args| Call::Txn(args.request)),
            "compact" => KvCompactArgs::read_from_in_protocol(input).map(|args| Call::Compact(args.revision)),
            "open_session" => Ok(Call::OpenSession),
            "status" => Ok(Call::Status),
            "hash" => Ok(Call::Hash),
            "change_members" => AdminChangeMembersArgs::read_from_in_protocol(input)
                .map(|args| Call::ChangeMembers(args.changes)),
            "transfer_leader" => AdminTransferLeaderArgs::read_from_in_protocol(input)
                .map(|args| Call::TransferLeader(args.node_id)),
            "no_forwarding" => Ok(Call::NoForwarding),
            "between_nodes" => AdminBetweenNodesArgs::read_from_in_protocol(input)
                .map(|args| Call::BetweenNodes(args.request)),
            name => Err(thrift::new_application_error(
                ApplicationErrorKind::UnknownMethod,
                format!("there is no method {name:?}"),
            )),
        };
    let call = call.map_err(|error| match error {
        thrift::Error::Application(error) => Fault::Application { kind: error.kind, message: error.message },
        error => Fault::Application {
            kind: ApplicationErrorKind::ProtocolError,
            message: framing::describe(&error),
        },
    });
    Ok(Incoming { sequence: identifier.sequence_number, name: identifier.name, call })
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

/// As a frame, the reply to the call of that name and sequence.
///
/// # Errors
/// It is longer than a frame can say.
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
            no_session: NoSession, sequence_over: SequenceOver)
        .write_to_out_protocol(out),
        "delete_range" => result_struct!(KvDeleteRangeResult, outcome, DeleteRange,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid,
            no_session: NoSession, sequence_over: SequenceOver)
        .write_to_out_protocol(out),
        "range" => result_struct!(KvRangeResult, outcome, Range,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid, compacted: Compacted)
        .write_to_out_protocol(out),
        "txn" => result_struct!(KvTxnResult, outcome, Txn,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid, compacted: Compacted, conflict: Conflict,
            no_session: NoSession, sequence_over: SequenceOver)
        .write_to_out_protocol(out),
        "compact" => result_struct!(KvCompactResult, outcome, Compact,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid, compacted: Compacted)
        .write_to_out_protocol(out),
        "open_session" => result_struct!(KvOpenSessionResult, outcome, OpenSession,
            not_leader: NotLeader, unavailable: Unavailable)
        .write_to_out_protocol(out),
        "status" => result_struct!(KvStatusResult, outcome, Status,)
            .write_to_out_protocol(out),
        "hash" => result_struct!(KvHashResult, outcome, Hash, unavailable: Unavailable, no_data: NoData)
            .write_to_out_protocol(out),
        "transfer_leader" => result_struct!(AdminTransferLeaderResult, outcome, TransferLeader, refused: Refused)
            .write_to_out_protocol(out),
        "between_nodes" => result_struct!(AdminBetweenNodesResult, outcome, BetweenNodes, refused: Refused)
            .write_to_out_protocol(out),
        "change_members" => match outcome {
            Ok(Reply::ChangeMembers) => AdminChangeMembersResult { refused: None }.write_to_out_protocol(out),
            Err(Fault::Refused(refused)) => {
                AdminChangeMembersResult { refused: Some(refused) }.write_to_out_protocol(out)
            }
            other => undeclared(other),
        },
        _ => match outcome {
            Ok(Reply::NoForwarding) => AdminNoForwardingResult {}.write_to_out_protocol(out),
            other => undeclared(other),
        },
    }
}

/// An exception that the method does not declare goes as one of the protocol.
fn undeclared(outcome: Result<Reply, Fault>) -> thrift::Result<()> {
    Err(match outcome {
        Err(Fault::Application { kind, message }) => thrift::new_application_error(kind, message),
        Err(fault) => thrift::new_application_error(ApplicationErrorKind::InternalError, fault.to_string()),
        Ok(_) => {
            thrift::new_application_error(ApplicationErrorKind::InternalError, "a reply to another method")
        }
    })
}

/// Reads back what [`result_struct`] builds.
macro_rules! outcome {
    ($type:ident, $input:expr, $reply:ident, $($field:ident: $fault:ident),*) => {{
        let result = $type::read_from_in_protocol($input)?;
        $(if let Some(exception) = result.$field {
            return Ok(Err(Fault::$fault(exception)));
        })*
        result.result_value.map(Reply::$reply)
    }};
}

/// Reads a reply: its sequence, and the outcome.
///
/// # Errors
/// The frame is not a reply of this service; the connection is of no more use.
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

fn read_outcome(
    name: &str,
    input: &mut dyn thrift::protocol::TInputProtocol,
) -> thrift::Result<Result<Reply, Fault>> {
    let reply = match name {
        "put" => outcome!(KvPutResult, input, Put,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid,
            no_session: NoSession, sequence_over: SequenceOver),
        "delete_range" => outcome!(KvDeleteRangeResult, input, DeleteRange,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid,
            no_session: NoSession, sequence_over: SequenceOver),
        "range" => outcome!(KvRangeResult, input, Range,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid, compacted: Compacted),
        "txn" => outcome!(KvTxnResult, input, Txn,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid, compacted: Compacted, conflict: Conflict,
            no_session: NoSession, sequence_over: SequenceOver),
        "compact" => outcome!(KvCompactResult, input, Compact,
            not_leader: NotLeader, unavailable: Unavailable, invalid: Invalid, compacted: Compacted),
        "open_session" => outcome!(KvOpenSessionResult, input, OpenSession,
            not_leader: NotLeader, unavailable: Unavailable),
        "status" => outcome!(KvStatusResult, input, Status,),
        "hash" => outcome!(KvHashResult, input, Hash, unavailable: Unavailable, no_data: NoData),
        "transfer_leader" => outcome!(AdminTransferLeaderResult, input, TransferLeader, refused: Refused),
        "change_members" => match AdminChangeMembersResult::read_from_in_protocol(input)?.refused {
            Some(refused) => return Ok(Err(Fault::Refused(refused))),
            None => Some(Reply::ChangeMembers),
        },
        "no_forwarding" => Some(Reply::NoForwarding),
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
    use crate::admin::RefusedReason;

    fn header() -> ResponseHeader {
        ResponseHeader { revision: 7, node_id: 1, term: 2, applied_index: 9 }
    }

    #[test]
    fn calls_and_outcomes_come_back() {
        let put = PutRequest::new(vec![1], vec![2, 0], None, true, None, None);
        let change =
            MemberChange::new(3, crate::admin::MemberKind::JOINING, "h:1".to_owned(), None, 7, false);
        let admin = [Call::ChangeMembers(vec![change]), Call::TransferLeader(-1), Call::NoForwarding];
        let kv = [Call::Put(put), Call::Compact(5), Call::OpenSession, Call::Status];
        for call in kv.into_iter().chain(admin) {
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
            ("no_forwarding", Ok(Reply::NoForwarding)),
            ("change_members", Ok(Reply::ChangeMembers)),
            ("put", Err(Fault::NoSession(NoSession { client_id: 5 }))),
            ("txn", Err(Fault::SequenceOver(SequenceOver { client_id: 5, sequence: 1, last_sequence: 2 }))),
            ("hash", Err(Fault::NoData(NoData { message: "m".into() }))),
            ("change_members", Err(Fault::Refused(refused))),
            ("transfer_leader", Ok(Reply::TransferLeader(2))),
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
