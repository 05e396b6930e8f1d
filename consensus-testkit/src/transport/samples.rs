//! Messages of every kind.

use std::collections::BTreeMap;

use consensus_core::{
    AppendEntries, AppendOutcome, AppendResponse, CommitNotification, Entry, LeadershipId, LogId, LogIndex,
    Member, MemberKind, Membership, Message, NodeId, Payload, ReadIndexRequest, ReadIndexResponse, StorageId,
    Term, TimeoutNow, VoteKind, VoteRequest, VoteResponse,
};

/// Returns every kind of message, with extreme values in its fields.
#[must_use]
pub fn samples() -> Vec<Message> {
    let id = LogId::new(7, u64::MAX >> 1);
    let endpoint = "[::1]:65535".parse().ok();
    let known = Some(StorageId(u64::MAX));
    let client_endpoint = "db.example:1".parse().ok();
    let (kind, name) = (MemberKind::Learner, Some("node é".to_owned()));
    let learner = Member { kind, endpoint, client_endpoint, name, storage: known, priority: u32::MAX };
    let others = [MemberKind::Joining, MemberKind::Witness].map(Member::new);
    let others = (10..).map(NodeId).zip(others).chain([(NodeId(9), learner)]);
    let voters = Membership::of_voters([1, 2]).members().clone();
    let members: BTreeMap<NodeId, Member> = voters.clone().into_iter().chain(others).collect();
    let payloads = [
        Payload::Blank,
        Payload::Command(vec![0, 255, 128, 10].into()),
        Payload::Command(vec![7; 300_000].into()),
        Payload::Membership(Membership::new(members.clone())),
        Payload::Membership(Membership::joint(members, voters)),
        Payload::Withheld,
    ];
    let entries = (1..).zip(payloads).map(|(n, payload)| Entry { id: LogId::new(2, n), payload }).collect();
    let (term, round, storage) = (Term(u64::MAX >> 1), 3, StorageId(u64::MAX - 1));
    let rejected = AppendOutcome::Rejected { prev: LogIndex(4), hint: LogId::new(1, 2) };
    let accepted = AppendOutcome::Accepted { matched: LogIndex(8) };
    let empty = AppendEntries {
        term,
        prev: LogId::ZERO,
        prev_leadership: LeadershipId::NONE,
        entries: Vec::new(),
        commit: LogIndex(0),
        round: 0,
    };
    vec![
        Message::VoteRequest(VoteRequest {
            kind: VoteKind::PreVote,
            term,
            last_log: id,
            storage,
            voter_storage: None,
        }),
        Message::VoteRequest(VoteRequest {
            kind: VoteKind::Vote,
            term,
            last_log: LogId::ZERO,
            storage,
            voter_storage: None,
        }),
        Message::VoteRequest(VoteRequest {
            kind: VoteKind::Transfer,
            term,
            last_log: id,
            storage,
            voter_storage: Some(storage),
        }),
        Message::VoteResponse(VoteResponse { kind: VoteKind::PreVote, term, granted: false, storage }),
        Message::VoteResponse(VoteResponse { kind: VoteKind::Vote, term, granted: true, storage }),
        Message::TimeoutNow(TimeoutNow { term }),
        Message::ReadIndexRequest(ReadIndexRequest { term, id: u64::MAX }),
        Message::ReadIndexResponse(ReadIndexResponse { term, id: 0, index: None }),
        Message::ReadIndexResponse(ReadIndexResponse { term, id: 7, index: Some(LogIndex(9)) }),
        Message::AppendEntries(AppendEntries {
            term,
            prev: id,
            prev_leadership: LeadershipId::NONE,
            entries,
            commit: LogIndex(5),
            round,
        }),
        Message::AppendEntries(empty),
        Message::AppendResponse(AppendResponse { term, round, outcome: rejected, storage, joining: false }),
        Message::AppendResponse(AppendResponse { term, round, outcome: accepted, storage, joining: true }),
        Message::CommitNotification(CommitNotification { term, commit: LogIndex(6) }),
        Message::Extension(vec![1, 0, 2].into()),
    ]
}
