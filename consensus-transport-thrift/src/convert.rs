//! Converts between the types of `consensus-core` and those of the IDL. Values that have no meaning are errors, never panics.

use std::collections::BTreeMap;

use consensus_core::{
    AppendEntries, AppendOutcome, AppendResponse, ClusterId, CommitNotification, Endpoint, EndpointError,
    Entry, Leadership, LeadershipId, LogId, LogIndex, Member, MemberKind, Membership, Message, NodeId,
    Payload, ReadIndexRequest, ReadIndexResponse, SnapshotAck, SnapshotChunk, SnapshotMeta, SnapshotOutcome,
    StorageId, Term, TimeoutNow, VoteKind, VoteRequest, VoteResponse,
};

use crate::generated as wire;

type Result<T> = std::result::Result<T, String>;

pub(crate) fn message_to_wire(message: Message) -> Result<wire::Message> {
    Ok(match message {
        Message::VoteRequest(VoteRequest { kind, term, last_log, storage, voter_storage }) => {
            wire::Message::VoteRequest(wire::VoteRequest {
                kind: kind_to_wire(kind),
                term: signed(term.0),
                last_log: id_to_wire(last_log),
                storage: signed(storage.0),
                voter_storage: voter_storage.map(|storage| signed(storage.0)),
            })
        }
        Message::VoteResponse(VoteResponse { kind, term, granted, storage }) => {
            wire::Message::VoteResponse(wire::VoteResponse {
                kind: kind_to_wire(kind),
                term: signed(term.0),
                granted,
                storage: signed(storage.0),
            })
        }
        Message::AppendEntries(append) => wire::Message::AppendEntries(wire::AppendEntries {
            term: signed(append.term.0),
            prev: id_to_wire(append.prev),
            entries: append.entries.into_iter().map(entry_to_wire).collect(),
            commit: signed(append.commit.0),
            round: signed(append.round),
            prev_leadership: signed(append.prev_leadership.0),
        }),
        Message::AppendResponse(AppendResponse { term, round, outcome, storage, joining }) => {
            let outcome = match outcome {
                AppendOutcome::Accepted { matched } => wire::AppendOutcome::Matched(signed(matched.0)),
                AppendOutcome::Rejected { prev, hint } => {
                    let (prev, hint) = (signed(prev.0), id_to_wire(hint));
                    wire::AppendOutcome::Rejected(wire::Rejection { prev, hint })
                }
            };
            let (term, round, storage) = (signed(term.0), signed(round), signed(storage.0));
            wire::Message::AppendResponse(wire::AppendResponse { term, round, outcome, storage, joining })
        }
        Message::TimeoutNow(TimeoutNow { term }) => {
            wire::Message::TimeoutNow(wire::TimeoutNow { term: signed(term.0) })
        }
        Message::ReadIndexRequest(ReadIndexRequest { term, id }) => {
            let (term, id) = (signed(term.0), signed(id));
            wire::Message::ReadIndexRequest(wire::ReadIndexRequest { term, id })
        }
        Message::ReadIndexResponse(ReadIndexResponse { term, id, index }) => {
            let (term, id, index) = (signed(term.0), signed(id), index.map(|index| signed(index.0)));
            wire::Message::ReadIndexResponse(wire::ReadIndexResponse { term, id, index })
        }
        Message::CommitNotification(CommitNotification { term, commit }) => {
            let (term, commit) = (signed(term.0), signed(commit.0));
            wire::Message::CommitNotification(wire::CommitNotification { term, commit })
        }
        Message::Extension(bytes) => wire::Message::Extension(bytes.into()),
        other => return Err(format!("this version cannot encode {other:?}")),
    })
}

pub(crate) fn message_from_wire(message: wire::Message) -> Result<Message> {
    Ok(match message {
        wire::Message::VoteRequest(request) => Message::VoteRequest(VoteRequest {
            kind: kind_from_wire(request.kind)?,
            term: term(request.term),
            last_log: id_from_wire(&request.last_log),
            storage: storage(request.storage),
            voter_storage: request.voter_storage.map(storage),
        }),
        wire::Message::VoteResponse(response) => Message::VoteResponse(VoteResponse {
            kind: kind_from_wire(response.kind)?,
            term: term(response.term),
            granted: response.granted,
            storage: storage(response.storage),
        }),
        wire::Message::AppendEntries(append) => Message::AppendEntries(AppendEntries {
            term: term(append.term),
            prev: id_from_wire(&append.prev),
            entries: append.entries.into_iter().map(entry_from_wire).collect::<Result<_>>()?,
            commit: index(append.commit),
            round: unsigned(append.round),
            prev_leadership: LeadershipId(unsigned(append.prev_leadership)),
        }),
        wire::Message::AppendResponse(response) => Message::AppendResponse(AppendResponse {
            term: term(response.term),
            round: unsigned(response.round),
            outcome: match response.outcome {
                wire::AppendOutcome::Matched(matched) => AppendOutcome::Accepted { matched: index(matched) },
                wire::AppendOutcome::Rejected(rejection) => {
                    let (prev, hint) = (index(rejection.prev), id_from_wire(&rejection.hint));
                    AppendOutcome::Rejected { prev, hint }
                }
            },
            storage: storage(response.storage),
            joining: response.joining,
        }),
        wire::Message::TimeoutNow(request) => Message::TimeoutNow(TimeoutNow { term: term(request.term) }),
        wire::Message::ReadIndexRequest(request) => {
            let (term, id) = (term(request.term), unsigned(request.id));
            Message::ReadIndexRequest(ReadIndexRequest { term, id })
        }
        wire::Message::ReadIndexResponse(response) => {
            let (term, id, index) = (term(response.term), unsigned(response.id), response.index.map(index));
            Message::ReadIndexResponse(ReadIndexResponse { term, id, index })
        }
        wire::Message::CommitNotification(notification) => {
            let (term, commit) = (term(notification.term), index(notification.commit));
            Message::CommitNotification(CommitNotification { term, commit })
        }
        wire::Message::Extension(bytes) => Message::Extension(bytes.into()),
    })
}

pub(crate) fn chunk_to_wire(chunk: SnapshotChunk) -> wire::SnapshotChunk {
    wire::SnapshotChunk {
        term: signed(chunk.term.0),
        transfer: signed(chunk.transfer),
        last: id_to_wire(chunk.meta.last),
        membership: membership_to_wire(&chunk.meta.membership),
        offset: signed(chunk.offset),
        data: chunk.data.into(),
        checksum: chunk.last.map(i64::from),
    }
}

pub(crate) fn chunk_from_wire(chunk: wire::SnapshotChunk) -> Result<SnapshotChunk> {
    let membership = membership_from_wire(chunk.membership)?;
    let checksum = chunk.checksum.map(u32::try_from).transpose();
    Ok(SnapshotChunk {
        term: term(chunk.term),
        transfer: unsigned(chunk.transfer),
        meta: SnapshotMeta { last: id_from_wire(&chunk.last), membership },
        offset: unsigned(chunk.offset),
        data: chunk.data.into(),
        last: checksum.map_err(|_| "the checksum has more than 32 bits".to_owned())?,
    })
}

pub(crate) fn ack_to_wire(ack: SnapshotAck) -> wire::SnapshotAck {
    let (outcome, offset) = match ack.outcome {
        SnapshotOutcome::Continue { offset } => (wire::SnapshotOutcome::CONTINUE, Some(signed(offset))),
        SnapshotOutcome::Installed => (wire::SnapshotOutcome::INSTALLED, None),
        SnapshotOutcome::Refused => (wire::SnapshotOutcome::REFUSED, None),
    };
    wire::SnapshotAck { term: signed(ack.term.0), outcome, offset }
}

pub(crate) fn ack_from_wire(ack: wire::SnapshotAck) -> Result<SnapshotAck> {
    let outcome = match (ack.outcome, ack.offset) {
        (wire::SnapshotOutcome::CONTINUE, Some(offset)) => {
            SnapshotOutcome::Continue { offset: unsigned(offset) }
        }
        (wire::SnapshotOutcome::INSTALLED, _) => SnapshotOutcome::Installed,
        (wire::SnapshotOutcome::REFUSED, _) => SnapshotOutcome::Refused,
        other => return Err(format!("{other:?} is not a response to a snapshot chunk")),
    };
    Ok(SnapshotAck { term: term(ack.term), outcome })
}

fn entry_to_wire(entry: Entry) -> wire::Entry {
    let (command, membership, withheld) = match entry.payload {
        Payload::Blank => (None, None, None),
        Payload::Command(command) => (Some(command.into()), None, None),
        Payload::Membership(membership) => (None, Some(membership_to_wire(&membership)), None),
        Payload::Withheld => (None, None, Some(true)),
    };
    wire::Entry { id: id_to_wire(entry.id), command, membership, withheld }
}

fn entry_from_wire(entry: wire::Entry) -> Result<Entry> {
    let payload = match (entry.command, entry.membership, entry.withheld.unwrap_or(false)) {
        (None, None, false) => Payload::Blank,
        (Some(command), None, false) => Payload::Command(command.into()),
        (None, Some(membership), false) => Payload::Membership(membership_from_wire(membership)?),
        (None, None, true) => Payload::Withheld,
        _ => return Err("an entry has more than one of command, membership and withheld".to_owned()),
    };
    Ok(Entry { id: id_from_wire(&entry.id), payload })
}

fn membership_to_wire(membership: &Membership) -> wire::Membership {
    let members = |members: &BTreeMap<NodeId, Member>| members.iter().map(member_to_wire).collect();
    wire::Membership {
        members: members(membership.members()),
        outgoing: members(membership.outgoing()),
        cluster: signed(membership.cluster().0),
        leaderships: membership.leaderships().iter().map(leadership_to_wire).collect(),
    }
}

fn leadership_to_wire(leadership: &Leadership) -> wire::Leadership {
    wire::Leadership { first: id_to_wire(leadership.first), id: signed(leadership.id.0) }
}

fn leadership_from_wire(leadership: &wire::Leadership) -> Leadership {
    Leadership { first: id_from_wire(&leadership.first), id: LeadershipId(unsigned(leadership.id)) }
}

fn member_to_wire((id, member): (&NodeId, &Member)) -> wire::Member {
    wire::Member {
        node_id: signed(id.0),
        kind: match member.kind {
            MemberKind::Voter => wire::MemberKind::VOTER,
            MemberKind::Joining => wire::MemberKind::JOINING,
            MemberKind::Witness => wire::MemberKind::WITNESS,
            _ => wire::MemberKind::LEARNER,
        },
        endpoint: member.endpoint.as_ref().map(Endpoint::to_string),
        client_endpoint: member.client_endpoint.as_ref().map(Endpoint::to_string),
        name: member.name.clone(),
        storage: member.storage.map(|storage| signed(storage.0)),
        priority: i32::from_ne_bytes(member.priority.to_ne_bytes()),
    }
}

fn membership_from_wire(membership: wire::Membership) -> Result<Membership> {
    let members = |members: Vec<wire::Member>| -> Result<BTreeMap<NodeId, Member>> {
        members.into_iter().map(member_from_wire).collect()
    };
    let cluster = ClusterId(unsigned(membership.cluster));
    let leaderships = membership.leaderships.iter().map(leadership_from_wire);
    let membership = Membership::joint(members(membership.members)?, members(membership.outgoing)?);
    Ok(leaderships.fold(membership.with_cluster(cluster), Membership::with_leadership))
}

fn member_from_wire(member: wire::Member) -> Result<(NodeId, Member)> {
    let kind = match member.kind {
        wire::MemberKind::VOTER => MemberKind::Voter,
        wire::MemberKind::LEARNER => MemberKind::Learner,
        wire::MemberKind::JOINING => MemberKind::Joining,
        wire::MemberKind::WITNESS => MemberKind::Witness,
        other => return Err(format!("{other:?} is not a kind of member")),
    };
    let endpoint = |text: Option<String>| {
        text.map(|text| text.parse()).transpose().map_err(|error: EndpointError| error.to_string())
    };
    let (endpoint, client_endpoint) = (endpoint(member.endpoint)?, endpoint(member.client_endpoint)?);
    let priority = u32::from_ne_bytes(member.priority.to_ne_bytes());
    let storage = member.storage.map(storage);
    let name = member.name;
    Ok((
        NodeId(unsigned(member.node_id)),
        Member { kind, endpoint, priority, client_endpoint, name, storage },
    ))
}

fn storage(value: i64) -> StorageId {
    StorageId(unsigned(value))
}

fn kind_to_wire(kind: VoteKind) -> wire::VoteKind {
    match kind {
        VoteKind::PreVote => wire::VoteKind::PRE_VOTE,
        VoteKind::Vote => wire::VoteKind::VOTE,
        VoteKind::Transfer => wire::VoteKind::TRANSFER,
    }
}

fn kind_from_wire(kind: wire::VoteKind) -> Result<VoteKind> {
    match kind {
        wire::VoteKind::PRE_VOTE => Ok(VoteKind::PreVote),
        wire::VoteKind::VOTE => Ok(VoteKind::Vote),
        wire::VoteKind::TRANSFER => Ok(VoteKind::Transfer),
        other => Err(format!("{other:?} is not a kind of vote")),
    }
}

fn id_to_wire(id: LogId) -> wire::LogId {
    wire::LogId { term: signed(id.term.0), index: signed(id.index.0) }
}

fn id_from_wire(id: &wire::LogId) -> LogId {
    LogId { term: term(id.term), index: index(id.index) }
}

fn term(value: i64) -> Term {
    Term(unsigned(value))
}

fn index(value: i64) -> LogIndex {
    LogIndex(unsigned(value))
}

/// The same 64 bits as a signed number, the only kind that Thrift has.
pub(crate) fn signed(value: u64) -> i64 {
    i64::from_ne_bytes(value.to_ne_bytes())
}

pub(crate) fn unsigned(value: i64) -> u64 {
    u64::from_ne_bytes(value.to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing::{Call, read_call, read_chunk_answer, write_call, write_chunk_answer};

    #[test]
    fn every_message_round_trips() {
        for message in consensus_testkit::transport::samples() {
            assert_eq!(message_from_wire(message_to_wire(message.clone()).unwrap()), Ok(message));
        }
    }

    #[test]
    fn message_of_unknown_kind_is_an_error() {
        // The code that the Thrift compiler generates panicked here.
        let message = consensus_testkit::transport::samples().swap_remove(0);
        let mut frame = write_call(Call::Deliver(message)).unwrap()[4..].to_vec();
        let union = frame.iter().rposition(|byte| *byte == b'r').unwrap() + 5 + 3;
        assert_eq!(frame[union..union + 3], [12, 0, 1], "a struct, of the first kind");
        frame[union + 2] = 99;
        assert_eq!(read_call(&frame), Err("received an unknown field for a union".to_owned()));
    }

    fn id() -> impl Strategy<Value = LogId> {
        any::<(u64, u64)>().prop_map(|(term, index)| LogId::new(term, index))
    }

    fn endpoint() -> impl Strategy<Value = Option<Endpoint>> {
        let text = prop_oneof![Just("db.example:9090"), Just("[::1]:1"), Just("10.0.0.1:65535")];
        prop::option::of(text.prop_map(|text| text.parse().unwrap()))
    }

    fn members() -> impl Strategy<Value = BTreeMap<NodeId, Member>> {
        let kinds = [MemberKind::Voter, MemberKind::Learner, MemberKind::Joining, MemberKind::Witness];
        let member = (
            0..kinds.len(),
            endpoint(),
            endpoint(),
            any::<u32>(),
            any::<Option<String>>(),
            any::<Option<u64>>(),
        );
        let member = member.prop_map(move |(kind, endpoint, client_endpoint, priority, name, storage)| {
            let storage = storage.map(StorageId);
            Member { kind: kinds[kind], endpoint, priority, client_endpoint, name, storage }
        });
        prop::collection::btree_map(any::<u64>().prop_map(NodeId), member, 0..5)
    }

    fn membership() -> impl Strategy<Value = Membership> {
        let leaderships = prop::collection::vec((id(), any::<u64>()), 0..4);
        (members(), members(), any::<u64>(), leaderships).prop_map(
            |(members, outgoing, cluster, leaderships)| {
                let membership = Membership::joint(members, outgoing).with_cluster(ClusterId(cluster));
                leaderships.into_iter().fold(membership, |membership, (first, id)| {
                    membership.with_leadership(Leadership { first, id: LeadershipId(id) })
                })
            },
        )
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let payload = prop_oneof![
            Just(Payload::Blank),
            Just(Payload::Withheld),
            any::<Vec<u8>>().prop_map(|command| Payload::Command(command.into())),
            membership().prop_map(Payload::Membership),
        ];
        (id(), payload).prop_map(|(id, payload)| Entry { id, payload })
    }

    fn message() -> impl Strategy<Value = Message> {
        let samples = consensus_testkit::transport::samples();
        let append = (any::<(u64, u64, u64, u64)>(), id(), prop::collection::vec(entry(), 0..4));
        let append = append.prop_map(|((term, commit, round, leadership), prev, entries)| {
            let prev_leadership = LeadershipId(leadership);
            let (term, commit) = (Term(term), LogIndex(commit));
            Message::AppendEntries(AppendEntries { term, prev, prev_leadership, entries, commit, round })
        });
        let extension = any::<Vec<u8>>().prop_map(|bytes| Message::Extension(bytes.into()));
        // For messages that consist of numbers only, the samples are enough.
        prop_oneof![4 => append, 1 => extension, 2 => prop::sample::select(samples)]
    }

    fn chunk() -> impl Strategy<Value = SnapshotChunk> {
        let numbers = any::<(u64, u64, u64, Option<u32>)>();
        (numbers, id(), membership(), any::<Vec<u8>>()).prop_map(|(numbers, last_id, membership, data)| {
            let (term, transfer, offset, last) = numbers;
            let meta = SnapshotMeta { last: last_id, membership };
            SnapshotChunk { term: Term(term), transfer, meta, offset, data: data.into(), last }
        })
    }

    /// Checks that a truncated call is an error, and that a flipped bit is an error or results in another valid call.
    fn check_damaged(
        call: Call,
        cut: prop::sample::Index,
        bit: prop::sample::Index,
    ) -> std::result::Result<(), TestCaseError> {
        let good = &write_call(call.clone()).unwrap()[4..];
        prop_assert_eq!(read_call(good), Ok(call));
        prop_assert!(read_call(&good[..cut.index(good.len())]).is_err());
        let mut flipped = good.to_vec();
        let bit = bit.index(8 * good.len());
        flipped[bit / 8] ^= 1 << (bit % 8);
        if let Ok(changed) = read_call(&flipped)
            && let Some(frame) = write_call(changed.clone())
        {
            prop_assert_eq!(read_call(&frame[4..]), Ok(changed));
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn damaged_call_is_an_error_or_another_valid_call(
            message in message(),
            chunk in chunk(),
            sequence: i32,
            cut: prop::sample::Index,
            bit: prop::sample::Index,
        ) {
            check_damaged(Call::Deliver(message), cut, bit)?;
            check_damaged(Call::SnapshotChunk(sequence, chunk), cut, bit)?;
        }

        #[test]
        fn chunk_response_round_trips(sequence: i32, term: u64, offset: u64, outcome in 0..3, bit: prop::sample::Index) {
            let outcome = match outcome {
                0 => SnapshotOutcome::Continue { offset },
                1 => SnapshotOutcome::Installed,
                _ => SnapshotOutcome::Refused,
            };
            let ack = SnapshotAck { term: Term(term), outcome };
            let mut frame = write_chunk_answer(sequence, ack).unwrap()[4..].to_vec();
            prop_assert_eq!(read_chunk_answer(&frame), Ok((sequence, ack)));
            let bit = bit.index(8 * frame.len());
            frame[bit / 8] ^= 1 << (bit % 8);
            let _ = read_chunk_answer(&frame);
        }
    }

    #[test]
    fn value_without_a_meaning_is_an_error() {
        let entry = wire::Entry {
            id: wire::LogId { term: 1, index: 1 },
            command: Some(vec![]),
            membership: Some(wire::Membership {
                members: vec![],
                outgoing: vec![],
                cluster: 0,
                leaderships: vec![],
            }),
            withheld: None,
        };
        assert!(entry_from_wire(entry).is_err());
        assert!(kind_from_wire(wire::VoteKind(7)).is_err());
        let outcome = wire::SnapshotOutcome::CONTINUE;
        assert!(ack_from_wire(wire::SnapshotAck { term: 1, outcome, offset: None }).is_err());
    }
}
