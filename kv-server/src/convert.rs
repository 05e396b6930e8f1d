//! Between the IDL's types and those of the store. Where the IDL can say what the store cannot take (a negative limit, a
//! compare without its operand), the answer is InvalidRequest.

mod alarms;
mod auth;
mod leases;
mod recorded;

use consensus_core::{Endpoint, EndpointError, Member, MemberChange, MemberKind, Membership, NodeId};
use kv_state_machine::{
    AuthRejection, Compare, CompareResult, CompareTarget, Consistency, Delete, Deleted, Found, Keep,
    KeyRange, KeyValue, KvAnswer, KvError, KvOperation, KvRejection, KvResult, Put, PutDone, Range,
    RevisionBounds, Session, Sort, SortBy, StateHash, Txn, Versionstamp,
};
use kv_store_client::{
    admin::{self, RefusedReason},
    idl,
    protocol::{Fault, Reply},
};

use crate::auth::LoginError;

pub(crate) use self::alarms::{alarm, alarms, disarmed};
pub(crate) use self::auth::{auth_change, auth_status};
pub(crate) use self::leases::{
    LEASE_KEYS_BYTES_MAX, grant, granted, kept_alive, lease_limit, leases, no_lease, time_to_live,
};
pub(crate) use self::recorded::{fault_name, revision_of};

type Result<T> = std::result::Result<T, Fault>;

pub(crate) fn invalid(message: impl Into<String>) -> Fault {
    Fault::Invalid(idl::InvalidRequest { message: message.into() })
}

pub(crate) fn refused(message: impl Into<String>, reason: RefusedReason) -> Fault {
    Fault::Refused(admin::Refused {
        message: message.into(),
        maybe_done: reason == RefusedReason::UNKNOWN,
        reason: Some(reason),
        leader_id: None,
        leader_endpoint: None,
    })
}

/// A fault as the service for operators says it, which has one exception for all.
pub(crate) fn admins_fault(fault: Fault) -> Fault {
    let message = fault.to_string();
    match fault {
        Fault::Unavailable(why) if why.maybe_applied => refused(why.message, RefusedReason::UNKNOWN),
        Fault::Unavailable(why) => refused(why.message, RefusedReason::UNAVAILABLE),
        Fault::Invalid(_) | Fault::Denied(_) => refused(message, RefusedReason::REJECTED),
        Fault::NotLeader(idl::NotLeader { leader_id, leader_endpoint }) => Fault::Refused(admin::Refused {
            message,
            maybe_done: false,
            reason: Some(RefusedReason::NOT_LEADER),
            leader_id,
            leader_endpoint,
        }),
        other => other,
    }
}

/// The changes that a caller asks for, checked against the configuration `now`; `problem` tells what is wrong with a member.
pub(crate) fn member_changes(
    changes: &[admin::MemberChange],
    now: &Membership,
    problem: impl Fn(NodeId) -> Option<String>,
) -> Result<Vec<MemberChange>> {
    let change = |change| member_change(change, now, &problem);
    let changes: Vec<_> = changes.iter().map(change).collect::<Result<_>>()?;
    check_endpoints(&changes, now)?;
    Ok(changes)
}

fn member_change(
    change: &admin::MemberChange,
    now: &Membership,
    problem: impl Fn(NodeId) -> Option<String>,
) -> Result<MemberChange> {
    let refuse = |why: String| refused(why, RefusedReason::REJECTED);
    let id = NodeId(natural("node_id", Some(change.node_id))?);
    let known = now.members().get(&id);
    match (change.is_member, known) {
        (Some(false), Some(member)) => return Err(refuse(already_a_member(id, member, problem(id)))),
        (Some(true), None) => return Err(refuse(no_member(id, now))),
        _ => {}
    }
    let Some(kind) = change.kind else { return Ok(MemberChange::Remove(id)) };
    let kind = match kind {
        admin::MemberKind::VOTER => MemberKind::Voter,
        admin::MemberKind::LEARNER => MemberKind::Learner,
        admin::MemberKind::JOINING => MemberKind::Joining,
        admin::MemberKind::WITNESS => MemberKind::Witness,
        admin::MemberKind::AS_IS => known.ok_or_else(|| refuse(no_member(id, now)))?.kind,
        other => return Err(refuse(format!("kind {} is not 1, 2, 3, 4 or 5", other.0))),
    };
    if let Some(member) = known.filter(|member| kind == MemberKind::Joining && member.kind.votes()) {
        return Err(refuse(match change.is_member {
            Some(true) => format!("node {id} votes already: it is a {}", member.kind),
            _ => already_a_member(id, member, problem(id)),
        }));
    }
    let endpoint = |name: &str, text: &Option<String>, known_endpoint: Option<Endpoint>| match text {
        Some(text) => text.parse().map(Some).map_err(|error: EndpointError| refuse(error.to_string())),
        None if known.is_none() => Err(refuse(format!("node {id} is new: its {name} endpoint is needed"))),
        // One that has yet to tell where it serves clients does so when it starts.
        None => Ok(known_endpoint),
    };
    let priority = change.priority.map_or(Ok(known.map_or(0, |member| member.priority)), u32::try_from);
    let consensus = known.and_then(|member| member.endpoint.clone());
    let client = known.and_then(|member| member.client_endpoint.clone());
    let member = Member {
        kind,
        endpoint: endpoint("consensus", &change.consensus_endpoint, consensus)?,
        client_endpoint: endpoint("client", &change.client_endpoint, client)?,
        priority: priority.map_err(|_| refuse("a priority cannot be negative".to_owned()))?,
        name: known.and_then(|member| member.name.clone()),
        storage: None,
    };
    // The engine checks again that it is new, when the change is its turn.
    let adds = change.is_member == Some(false) || (change.is_member.is_none() && known.is_none());
    Ok(if adds { MemberChange::Add(id, member) } else { MemberChange::Set(id, member) })
}

/// Message to an operator who adds a node that is a member.
fn already_a_member(id: NodeId, member: &Member, problem: Option<String>) -> String {
    let problem = problem.map_or_else(String::new, |problem| format!("; {problem}"));
    format!(
        "node {id} is a member already: {} at {}{problem}. To move it: `kvctl member update {id} --consensus HOST:PORT --client \
         HOST:PORT`. If its disk was emptied or replaced: `kvctl member remove {id}`, then add it again. For another \
         server choose an id that was never used",
        member.kind,
        places(member)
    )
}

fn no_member(id: NodeId, now: &Membership) -> String {
    let ids: Vec<String> = now.members().keys().map(NodeId::to_string).collect();
    format!("node {id} is not a member; the members are {}. To add it: `kvctl member add`", ids.join(", "))
}

/// Where a member is, for people.
fn places(member: &Member) -> String {
    let place = |endpoint: &Option<Endpoint>| {
        endpoint.as_ref().map_or_else(|| "an unknown endpoint".to_owned(), Endpoint::to_string)
    };
    format!("{} (clients {})", place(&member.endpoint), place(&member.client_endpoint))
}

/// Refuses an endpoint that another node listens at, be it for nodes or for clients: the one would be called in place of
/// the other. An endpoint that two members share already prevents no other change.
fn check_endpoints(changes: &[MemberChange], now: &Membership) -> Result<()> {
    let mut members = now.members().clone();
    for change in changes {
        match change {
            MemberChange::Set(id, member) | MemberChange::Add(id, member) => {
                members.insert(*id, member.clone());
            }
            MemberChange::Remove(id) => drop(members.remove(id)),
        }
    }
    for (id, member) in &members {
        let known = now.members().get(id).map(endpoints_of).unwrap_or_default();
        let new: Vec<&Endpoint> =
            endpoints_of(member).into_iter().filter(|new| !known.contains(new)).collect();
        if let [one, other] = new[..]
            && one == other
        {
            return Err(refused(
                format!("node {id} cannot serve nodes and clients at the same endpoint, {one}"),
                RefusedReason::REJECTED,
            ));
        }
        for new in new {
            let has =
                |(other, member): &(&NodeId, &Member)| *other != id && endpoints_of(member).contains(&new);
            if let Some((owner, _)) = members.iter().find(has) {
                return Err(refused(endpoint_taken(*id, new, *owner), RefusedReason::REJECTED));
            }
        }
    }
    Ok(())
}

fn endpoints_of(member: &Member) -> Vec<&Endpoint> {
    member.endpoint.iter().chain(&member.client_endpoint).collect()
}

fn endpoint_taken(id: NodeId, endpoint: &Endpoint, owner: NodeId) -> String {
    format!(
        "node {id} cannot be at {endpoint}: node {owner} is there by the configuration. If node {owner} is gone: `kvctl \
         member remove {owner}` first; if it moved: `kvctl member update {owner} --consensus HOST:PORT --client HOST:PORT` \
         first"
    )
}

pub(crate) fn transferred(leader: NodeId) -> Reply {
    Reply::TransferLeader(signed(leader.0))
}

pub(crate) fn natural(what: &str, value: Option<i64>) -> Result<u64> {
    let value = value.unwrap_or(0);
    u64::try_from(value).map_err(|_| invalid(format!("{what} is {value}; it cannot be negative")))
}

/// Numbers of the store stay far below 2^63; one that does not is shown as the greatest.
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(crate) fn session(session: Option<idl::Session>) -> Result<Option<Session>> {
    let Some(session) = session else { return Ok(None) };
    let client_id = natural("session.client_id", Some(session.client_id))?;
    Ok(Some(Session { client_id, sequence: natural("session.sequence", Some(session.sequence))? }))
}

pub(crate) fn put(request: idl::PutRequest) -> Result<KvOperation> {
    Ok(KvOperation::Put(Put {
        key: request.key.into(),
        value: request.value.into(),
        lease_id: request.lease_id.unwrap_or(0),
        return_previous: request.return_previous.unwrap_or(false),
        versionstamp: match request.versionstamp {
            None | Some(idl::Versionstamp::NONE) => Versionstamp::None,
            Some(idl::Versionstamp::KEY_SUFFIX) => Versionstamp::KeySuffix,
            Some(idl::Versionstamp::VALUE_SUFFIX) => Versionstamp::ValueSuffix,
            Some(other) => return Err(invalid(format!("versionstamp {} is not 0, 1 or 2", other.0))),
        },
        keep: Keep {
            value: request.ignore_value.unwrap_or(false),
            lease: request.ignore_lease.unwrap_or(false),
        },
    }))
}

pub(crate) fn delete(request: idl::DeleteRequest) -> Result<KvOperation> {
    Ok(KvOperation::Delete(Delete {
        key: request.key.into(),
        range_end: request.range_end.map(Into::into),
        return_previous: request.return_previous.unwrap_or(false),
        limit: natural("limit", request.limit)?,
    }))
}

pub(crate) fn range(request: idl::RangeRequest) -> Result<KvOperation> {
    Ok(KvOperation::Range(Range {
        key: request.key.into(),
        range_end: request.range_end.map(Into::into),
        limit: natural("limit", request.limit)?,
        revision: natural("revision", request.revision)?,
        descending: request.descending.unwrap_or(false),
        keys_only: request.keys_only.unwrap_or(false),
        count_only: request.count_only.unwrap_or(false),
        whole: false,
        sort: Sort { by: sort_by(request.sort_by)?, after_limit: false },
        bounds: RevisionBounds {
            mod_min: natural("min_mod_revision", request.min_mod_revision)?,
            mod_max: natural("max_mod_revision", request.max_mod_revision)?,
            create_min: natural("min_create_revision", request.min_create_revision)?,
            create_max: natural("max_create_revision", request.max_create_revision)?,
        },
    }))
}

fn sort_by(sort_by: Option<idl::SortBy>) -> Result<SortBy> {
    match sort_by {
        None | Some(idl::SortBy::KEY) => Ok(SortBy::Key),
        Some(idl::SortBy::VERSION) => Ok(SortBy::Version),
        Some(idl::SortBy::CREATE_REVISION) => Ok(SortBy::CreateRevision),
        Some(idl::SortBy::MOD_REVISION) => Ok(SortBy::ModRevision),
        Some(idl::SortBy::VALUE) => Ok(SortBy::Value),
        Some(other) => Err(invalid(format!("sort_by {} is not 0, 1, 2, 3 or 4", other.0))),
    }
}

pub(crate) fn consistency(consistency: Option<idl::Consistency>) -> Result<Consistency> {
    match consistency {
        None | Some(idl::Consistency::LINEARIZABLE) => Ok(Consistency::Linearizable),
        Some(idl::Consistency::LEASE) => Ok(Consistency::Lease),
        Some(idl::Consistency::STALE) => Ok(Consistency::Stale),
        Some(other) => Err(invalid(format!("consistency {} is not 0, 1 or 2", other.0))),
    }
}

pub(crate) fn compact(revision: i64) -> Result<KvOperation> {
    Ok(KvOperation::Compact { revision: natural("revision", Some(revision))? })
}

pub(crate) fn txn(request: idl::TxnRequest) -> Result<KvOperation> {
    let operations = |list: Vec<idl::Operation>| list.into_iter().map(operation).collect::<Result<_>>();
    let read_ranges = request.read_ranges.unwrap_or_default().into_iter();
    let key_range =
        |range: idl::KeyRange| KeyRange { key: range.key.into(), range_end: range.range_end.map(Into::into) };
    Ok(KvOperation::Txn(Txn {
        compare: request.compare.into_iter().map(compare).collect::<Result<_>>()?,
        success: operations(request.success)?,
        failure: operations(request.failure)?,
        read_revision: natural("read_revision", request.read_revision)?,
        read_ranges: read_ranges.map(key_range).collect(),
    }))
}

fn operation(operation: idl::Operation) -> Result<KvOperation> {
    let no_session = |session: &Option<idl::Session>| match session {
        Some(_) => Err(invalid("within a transaction the session is that of the transaction")),
        None => Ok(()),
    };
    match operation {
        idl::Operation::Put(request) => {
            no_session(&request.session)?;
            put(request)
        }
        idl::Operation::DeleteRange(request) => {
            no_session(&request.session)?;
            delete(request)
        }
        idl::Operation::Range(request) => range(request),
    }
}

fn compare(compare: idl::Compare) -> Result<Compare> {
    let number = || compare.number.ok_or_else(|| invalid("a compare of this target needs its number"));
    let target = match compare.target {
        idl::CompareTarget::VERSION => CompareTarget::Version(number()?),
        idl::CompareTarget::CREATE_REVISION => CompareTarget::CreateRevision(number()?),
        idl::CompareTarget::MOD_REVISION => CompareTarget::ModRevision(number()?),
        idl::CompareTarget::LEASE => CompareTarget::Lease(number()?),
        idl::CompareTarget::VALUE => {
            let value = compare.value.ok_or_else(|| invalid("a compare of the value needs a value"))?;
            CompareTarget::Value(value.into())
        }
        other => return Err(invalid(format!("compare target {} is unknown", other.0))),
    };
    let result = match compare.result {
        idl::CompareResult::EQUAL => CompareResult::Equal,
        idl::CompareResult::GREATER => CompareResult::Greater,
        idl::CompareResult::LESS => CompareResult::Less,
        idl::CompareResult::NOT_EQUAL => CompareResult::NotEqual,
        other => return Err(invalid(format!("compare result {} is unknown", other.0))),
    };
    let keys = KeyRange { key: compare.key.into(), range_end: compare.range_end.map(Into::into) };
    Ok(Compare { keys, target, result })
}

fn header(node: NodeId, answer: &KvAnswer) -> idl::ResponseHeader {
    idl::ResponseHeader {
        revision: signed(answer.revision),
        node_id: signed(node.0),
        term: signed(answer.term),
        applied_index: signed(answer.applied_index),
    }
}

pub(crate) fn reply(node: NodeId, answer: KvAnswer) -> Reply {
    let header = header(node, &answer);
    match answer.result {
        KvResult::Put(done) => Reply::Put(put_done(header, done)),
        KvResult::Delete(deleted) => Reply::DeleteRange(delete_done(header, deleted)),
        KvResult::Range(found) => Reply::Range(range_done(header, found)),
        // No call asks for an alarm or an id yet.
        KvResult::Compact
        | KvResult::Alarm(_)
        | KvResult::MemberId(_)
        | KvResult::Auth
        | KvResult::CheckState => Reply::Compact(header),
        KvResult::Lease | KvResult::LeaseEnding => Reply::LeaseRevoke(idl::LeaseRevokeResponse { header }),
        KvResult::OpenSession(id) => Reply::OpenSession(signed(id)),
        KvResult::Txn(done) => {
            let responses = done.responses.into_iter().filter_map(|result| match result {
                KvResult::Put(done) => Some(idl::OperationResponse::Put(put_done(header.clone(), done))),
                KvResult::Delete(deleted) => {
                    Some(idl::OperationResponse::DeleteRange(delete_done(header.clone(), deleted)))
                }
                KvResult::Range(found) => {
                    Some(idl::OperationResponse::Range(range_done(header.clone(), found)))
                }
                _ => None, // Not within a transaction.
            });
            let responses = responses.collect();
            Reply::Txn(idl::TxnResponse { header, succeeded: done.succeeded, responses })
        }
    }
}

fn put_done(header: idl::ResponseHeader, done: PutDone) -> idl::PutResponse {
    idl::PutResponse { header, previous: done.previous.map(key_value), stamped: done.stamped.map(Into::into) }
}

fn delete_done(header: idl::ResponseHeader, deleted: Deleted) -> idl::DeleteResponse {
    let previous = deleted.previous.map(|kvs| kvs.into_iter().map(key_value).collect());
    let next_key = deleted.next_key.map(Into::into);
    idl::DeleteResponse { header, deleted: signed(deleted.deleted), previous, next_key }
}

fn range_done(header: idl::ResponseHeader, found: Found) -> idl::RangeResponse {
    let kvs = found.kvs.into_iter().map(key_value).collect();
    idl::RangeResponse { header, kvs, more: found.more, count: signed(found.count) }
}

pub(crate) fn key_value(kv: KeyValue) -> idl::KeyValue {
    idl::KeyValue {
        key: kv.key.into(),
        value: kv.value.into(),
        create_revision: signed(kv.create_revision),
        mod_revision: signed(kv.mod_revision),
        version: signed(kv.version),
        lease_id: kv.lease_id,
    }
}

pub(crate) fn hash(server: &admin::NodeIdentity, hash: &StateHash) -> Reply {
    let header = idl::ResponseHeader {
        revision: signed(hash.revision),
        node_id: server.node_id,
        term: signed(hash.term),
        applied_index: signed(hash.applied_index),
    };
    let cluster_id = server.cluster_id.clone();
    Reply::Hash(idl::HashResponse { header, hash: i64::from(hash.hash), cluster_id })
}

/// All but NotLeader, of which the router knows more.
pub(crate) fn fault(error: KvError) -> Fault {
    match error {
        KvError::Rejected(KvRejection::Invalid(message)) => invalid(message),
        KvError::Rejected(KvRejection::Compacted { compacted }) => {
            Fault::Compacted(idl::Compacted { compacted_revision: signed(compacted) })
        }
        KvError::Rejected(KvRejection::Conflict { key, mod_revision }) => {
            Fault::Conflict(idl::Conflict { key: key.into(), mod_revision: signed(mod_revision) })
        }
        KvError::Rejected(KvRejection::NoSession { client_id }) => {
            Fault::NoSession(idl::NoSession { client_id: signed(client_id) })
        }
        KvError::Rejected(KvRejection::SequenceOver { client_id, sequence, last }) => {
            let (client_id, sequence, last_sequence) = (signed(client_id), signed(sequence), signed(last));
            Fault::SequenceOver(idl::SequenceOver { client_id, sequence, last_sequence })
        }
        KvError::Rejected(KvRejection::NoLease { id }) => no_lease(id),
        KvError::Rejected(KvRejection::LeaseExists { id }) => {
            Fault::LeaseExists(idl::LeaseExists { lease_id: id })
        }
        KvError::Rejected(KvRejection::Auth(rejection)) => denied(rejection),
        KvError::Rejected(rejection) => invalid(rejection.to_string()),
        KvError::Unavailable { why, maybe_applied } => unavailable(why, maybe_applied),
        other => unavailable(other.to_string(), false),
    }
}

/// A refusal because of users and permissions.
pub(crate) fn denied(rejection: AuthRejection) -> Fault {
    let reason = match rejection {
        AuthRejection::NoUser => idl::DeniedReason::NO_USER,
        AuthRejection::OutdatedAdmission => idl::DeniedReason::LOGIN_AGAIN,
        _ => idl::DeniedReason::PERMISSION,
    };
    Fault::Denied(idl::Denied { message: rejection.to_string(), reason })
}

/// A login that failed.
pub(crate) fn login_fault(error: LoginError) -> Fault {
    let reason = match error {
        LoginError::TooMany => return unavailable(error.to_string(), false),
        LoginError::NotEnabled => idl::DeniedReason::NOT_ENABLED,
        LoginError::Failed | LoginError::NoPassword => idl::DeniedReason::LOGIN_FAILED,
    };
    Fault::Denied(idl::Denied { message: error.to_string(), reason })
}

pub(crate) fn unavailable(message: impl Into<String>, maybe_applied: bool) -> Fault {
    let retry_after_ms = (!maybe_applied).then_some(RETRY_AFTER_MS);
    Fault::Unavailable(idl::Unavailable { message: message.into(), maybe_applied, retry_after_ms })
}

/// About what an election or an overload takes.
const RETRY_AFTER_MS: i64 = 100;
