//! Wrong disks (I14, I17 to I20): one test for each mistake of an operator that could lose data.

mod common;

use common::{accepted, append, append_configuration, lead, membership_entry, node, propose, restored, step};
use consensus_core::{
    AppendOutcome, AppendResponse, ClusterId, HardState, InvalidMembership, LEADERSHIPS_MAX, Leadership,
    LeadershipId, LogId, LogIndex, LogState, Member, MemberChange, MemberKind, Membership, NodeId, Role,
    SnapshotMeta, StorageId, Term, VoteKind, VoteRequest,
};
use consensus_raft_protocol::{
    Append, ArrivalOutcome, Config, Contradiction, ControlMessage, EntryInfo, Event, Output, Raft, Refusal,
    Restored, Time, TwoLeaders,
};

const SECOND: Time = Time::from_secs(1);
const CLUSTER: ClusterId = ClusterId(0xC1);

fn contradiction(outputs: &[Output]) -> Option<Contradiction> {
    outputs.iter().find_map(|output| match output {
        Output::Contradicted(contradiction) => Some(*contradiction),
        _ => None,
    })
}

/// Response to AppendEntries.
fn answer(outputs: &[Output]) -> Option<AppendResponse> {
    outputs.iter().find_map(|output| match output {
        Output::Send(_, ControlMessage::AppendResponse(response)) => Some(*response),
        _ => None,
    })
}

/// A node with an empty disk and no first configuration.
fn empty(id: u64) -> Raft {
    let log = LogState { storage: StorageId(id + 100), ..LogState::default() };
    Raft::new(Config::new(NodeId(id)), Restored { log, applied: LogIndex::ZERO }, Time::ZERO).unwrap()
}

// I17: a committed entry is never silently replaced.

#[test]
fn follower_with_contradicting_committed_entry_stops_and_accepts_nothing() {
    // Entries 1.2 and 1.3 are committed here; the leader of term 4 has 2.2 at index 2.
    let mut raft = restored(3, 0, &[1, 1], 3);
    let outputs = step(&mut raft, SECOND, append(4, LogId::new(0, 1), &[2, 4], 3));
    let (own, theirs) = (LogId::new(1, 2), LogId::new(2, 2));
    assert_eq!(contradiction(&outputs), Some(Contradiction { own, theirs, leader: NodeId(1) }));
    assert_eq!(answer(&outputs), None, "the node acknowledges nothing");
    assert_eq!((raft.last_log(), raft.commit()), (LogId::new(1, 3), LogIndex(3)));
    assert!(step(&mut raft, SECOND * 9, Event::Tick).is_empty(), "the node has stopped");
    assert_eq!(raft.take_persist(), None);
}

#[test]
fn follower_with_contradicting_committed_prev_entry_stops() {
    let mut raft = restored(3, 0, &[1, 1], 3);
    let outputs = step(&mut raft, SECOND, append(4, LogId::new(2, 3), &[4], 3));
    assert_eq!(contradiction(&outputs).map(|found| found.own), Some(LogId::new(1, 3)));
}

#[test]
fn follower_with_equal_committed_entries_continues() {
    let mut raft = restored(3, 0, &[1, 1], 3);
    let outputs = step(&mut raft, SECOND, append(4, LogId::new(0, 1), &[1, 1, 4], 3));
    assert_eq!((contradiction(&outputs), raft.last_log()), (None, LogId::new(4, 4)));
}

#[test]
fn snapshot_that_contradicts_committed_entry_stops_the_node() {
    let mut raft = restored(3, 0, &[1, 1], 3);
    let meta = SnapshotMeta { last: LogId::new(2, 3), membership: Membership::of_voters(0..3) };
    let outputs = step(&mut raft, SECOND, Event::SnapshotArrived { from: NodeId(1), term: Term(4), meta });
    assert_eq!(contradiction(&outputs).map(|found| found.theirs), Some(LogId::new(2, 3)));
    assert!(outputs.contains(&Output::SnapshotSettled(ArrivalOutcome::Refused)));
}

#[test]
fn first_configurations_with_equal_log_id_are_told_apart() {
    // The nodes were bootstrapped with different configurations: entry 0.1 is {0, 1, 2} here and {0, 1} on the leader.
    let theirs = Membership::of_voters(0..2);
    let mut uncommitted = node(3, 0, &[]);
    let outputs = step(&mut uncommitted, SECOND, append_configuration(1, LogId::ZERO, theirs.clone(), 0));
    assert_eq!(contradiction(&outputs), None);
    assert_eq!(**uncommitted.membership(), theirs, "the leader's configuration replaces it");
    let mut committed = restored(3, 0, &[], 1);
    let outputs = step(&mut committed, SECOND, append_configuration(1, LogId::ZERO, theirs, 0));
    assert_eq!(contradiction(&outputs).map(|found| found.own), Some(LogId::new(0, 1)));
}

/// A leadership of term `term` that begins with entry `index`.
fn leadership(term: u64, index: u64, id: u64) -> Leadership {
    Leadership { first: LogId::new(term, index), id: LeadershipId(id) }
}

/// A follower with the entries 1.2, the first one of leadership 0xA, and 1.3; of them, those up to `commit` are committed.
fn follower_of_first_leadership(commit: u64) -> Raft {
    let first = Membership::of_voters(0..3).with_leadership(leadership(1, 2, 0xA));
    let mut raft = node(3, 0, &[]);
    step(&mut raft, SECOND, append_configuration(1, LogId::new(0, 1), first, 1));
    step(&mut raft, SECOND, append_after(1, LogId::new(1, 2), 0xA, &[1], commit));
    assert_eq!((raft.last_log(), raft.commit()), (LogId::new(1, 3), LogIndex(commit)));
    raft
}

/// Like [`append`], after an entry of this leadership.
fn append_after(term: u64, prev: LogId, leadership: u64, terms: &[u64], commit: u64) -> Event {
    let Event::Append { from, append, entries } = append(term, prev, terms, commit) else { unreachable!() };
    Event::Append { from, append: Append { prev_leadership: LeadershipId(leadership), ..append }, entries }
}

#[test]
fn committed_entries_of_another_leader_of_their_term_stop_the_node() {
    // An old copy of a disk led in term 1 too, and has other entries under the ids 1.2 and 1.3.
    let id = LogId::new(1, 3);
    let mut raft = follower_of_first_leadership(3);
    let outputs = step(&mut raft, SECOND, append_after(2, id, 0xB, &[2], 3));
    let found = contradiction(&outputs).unwrap();
    assert_eq!(found, Contradiction { own: id, theirs: id, leader: NodeId(1) });
    assert!(
        found
            .to_string()
            .contains("entry 1.3, which is committed here, is another one with the same id there")
    );
    for known in [0xA, 0] {
        let mut raft = follower_of_first_leadership(3);
        let outputs = step(&mut raft, SECOND, append_after(2, id, known, &[2], 3));
        assert_eq!((contradiction(&outputs), raft.last_log()), (None, LogId::new(2, 4)));
    }
}

#[test]
fn uncommitted_entries_of_another_leader_of_their_term_are_replaced() {
    let mut raft = follower_of_first_leadership(1);
    let outputs = step(&mut raft, SECOND, append_after(2, LogId::new(1, 3), 0xB, &[2], 3));
    let hint = LogId::new(0, 1);
    let rejected = AppendOutcome::Rejected { prev: LogIndex(3), hint };
    assert_eq!(
        answer(&outputs).map(|answer| answer.outcome),
        Some(rejected),
        "before the first entry of the leader"
    );
    let theirs = Membership::of_voters(0..3).with_leadership(leadership(1, 2, 0xB));
    let outputs = step(&mut raft, SECOND, append_configuration(2, hint, theirs.clone(), 1));
    assert_eq!(contradiction(&outputs), None);
    assert_eq!((&**raft.membership(), raft.last_log()), (&theirs, LogId::new(2, 2)));
}

#[test]
fn snapshot_over_committed_entries_of_another_leader_of_their_term_stops_the_node() {
    let arrives = |id: u64| {
        let later = [leadership(1, 2, id), leadership(2, 4, 0xC)];
        let membership = later.into_iter().fold(Membership::of_voters(0..3), Membership::with_leadership);
        let meta = SnapshotMeta { last: LogId::new(2, 9), membership };
        let arrived = Event::SnapshotArrived { from: NodeId(1), term: Term(2), meta };
        contradiction(&step(&mut follower_of_first_leadership(3), SECOND, arrived))
    };
    let id = LogId::new(1, 3);
    assert_eq!(arrives(0xB), Some(Contradiction { own: id, theirs: id, leader: NodeId(1) }));
    assert_eq!(arrives(0xA), None);
}

#[test]
fn snapshot_without_the_committed_entries_of_an_earlier_leader_stops_the_node() {
    // Entry 1.3 is committed here. The leader of term 2 began with entry 3.
    let later = [leadership(1, 2, 0xA), leadership(2, 3, 0xC)];
    let membership = later.into_iter().fold(Membership::of_voters(0..3), Membership::with_leadership);
    let meta = SnapshotMeta { last: LogId::new(2, 9), membership };
    let arrived = Event::SnapshotArrived { from: NodeId(1), term: Term(2), meta };
    let found = contradiction(&step(&mut follower_of_first_leadership(3), SECOND, arrived)).unwrap();
    assert_eq!((found.own, found.theirs), (LogId::new(1, 3), LogId::new(2, 3)));
}

#[test]
fn snapshot_after_too_many_leaderships_is_not_compared_with_committed_entries() {
    let installs = |leaderships: u64| {
        let later = (0..leaderships).map(|n| leadership(2 + n, 4 + n, 0xC + n));
        let all = [leadership(1, 2, 0xA)].into_iter().chain(later);
        let membership = all.fold(Membership::of_voters(0..3), Membership::with_leadership);
        let meta = SnapshotMeta { last: LogId::new(1 + leaderships, 4 + leaderships), membership };
        let term = Term(1 + leaderships);
        let mut raft = follower_of_first_leadership(3);
        let arrived = Event::SnapshotArrived { from: NodeId(1), term, meta: meta.clone() };
        assert_eq!(contradiction(&step(&mut raft, SECOND, arrived)), None);
        raft.was_compared_with(&meta)
    };
    let most = LEADERSHIPS_MAX as u64;
    assert!(installs(most - 1));
    assert!(!installs(most));
}

#[test]
fn entries_below_the_purged_ones_of_another_leader_stop_the_node() {
    // Entry 1.3 of leadership 0xA is purged here. The leader has another leadership from 1.2 on, and its log ends before.
    let purged = |raft: &mut Raft| step(raft, SECOND, Event::Compact(LogIndex(3)));
    let theirs = Membership::of_voters(0..3).with_leadership(leadership(1, 2, 0xB));
    for message in
        [append_after(2, LogId::new(1, 2), 0xB, &[], 2), append_configuration(2, LogId::new(0, 1), theirs, 2)]
    {
        let mut raft = follower_of_first_leadership(3);
        purged(&mut raft);
        assert_eq!(raft.purged(), LogId::new(1, 3));
        let outputs = step(&mut raft, SECOND, message);
        assert_eq!(contradiction(&outputs).map(|found| found.own), Some(LogId::new(1, 2)));
        assert_eq!(answer(&outputs), None, "the node acknowledges nothing");
    }
    let mut raft = follower_of_first_leadership(3);
    purged(&mut raft);
    let outputs = step(&mut raft, SECOND, append_after(2, LogId::new(1, 2), 0xA, &[], 2));
    assert_eq!(contradiction(&outputs), None);
}

#[test]
fn leader_names_its_leadership_in_its_first_entry_and_in_its_messages() {
    let mut raft = common::configured(3, 0, &[], |config| config.leadership = LeadershipId(0xA));
    lead(&mut raft, SECOND);
    assert_eq!(raft.membership().leaderships(), [leadership(1, 2, 0xA)]);
    step(&mut raft, SECOND, Event::AppendResponse(NodeId(1), accepted(1, 2)));
    let (_, outputs) = propose(&mut raft, SECOND);
    let named = outputs.iter().any(|output| {
        matches!(output, Output::SendAppend(_, append)
            if append.prev == LogId::new(1, 2) && append.prev_leadership == LeadershipId(0xA))
    });
    assert!(named);
}

fn two_leaders(outputs: &[Output]) -> Option<TwoLeaders> {
    outputs.iter().find_map(|output| match output {
        Output::TwoLeaders(leaders) => Some(*leaders),
        _ => None,
    })
}

#[test]
fn leader_stops_when_it_hears_another_leader_of_its_term() {
    // A voter whose disk was replaced by an old copy has voted for both.
    let mut raft = node(3, 0, &[]);
    lead(&mut raft, SECOND);
    let outputs = step(&mut raft, SECOND, append(1, LogId::new(0, 1), &[1], 0));
    let (term, known, other) = (Term(1), NodeId(0), NodeId(1));
    assert_eq!(two_leaders(&outputs), Some(TwoLeaders { term, known, other }));
    assert_eq!(answer(&outputs), None);
    assert!(step(&mut raft, SECOND * 9, Event::Tick).is_empty(), "the node has stopped");
}

#[test]
fn follower_stops_when_it_hears_second_leader_of_the_term() {
    let from = |leader, event| match event {
        Event::Append { append, entries, .. } => Event::Append { from: NodeId(leader), append, entries },
        other => other,
    };
    let mut raft = node(3, 0, &[]);
    step(&mut raft, SECOND, from(1, append(4, LogId::new(0, 1), &[4], 1)));
    // The follower has lost contact with the first leader meanwhile.
    step(&mut raft, SECOND, Event::Disconnected(NodeId(1)));
    let outputs = step(&mut raft, SECOND, from(2, append(4, LogId::new(0, 1), &[4, 4], 3)));
    let (term, known, other) = (Term(4), NodeId(1), NodeId(2));
    assert_eq!(two_leaders(&outputs), Some(TwoLeaders { term, known, other }));
    assert_eq!((raft.last_log(), raft.commit()), (LogId::new(4, 2), LogIndex(1)));
}

#[test]
fn follower_accepts_leader_of_next_term() {
    let mut raft = node(3, 0, &[]);
    step(&mut raft, SECOND, append(4, LogId::new(0, 1), &[4], 1));
    let append = Append {
        term: Term(5),
        prev: LogId::new(4, 2),
        prev_leadership: LeadershipId::NONE,
        last: LogIndex(2),
        commit: LogIndex(1),
        round: 0,
    };
    let outputs = step(&mut raft, SECOND, Event::Append { from: NodeId(2), append, entries: vec![] });
    assert_eq!((two_leaders(&outputs), raft.leader()), (None, Some(NodeId(2))));
}

// I18: a log that started empty.

#[test]
fn empty_log_of_a_founding_member_neither_campaigns_nor_votes() {
    // Node 2 with an emptied disk. The first configuration is {2} alone, as when node 2 was bootstrapped.
    let mut raft = empty(2);
    let first = append_configuration(3, LogId::ZERO, Membership::of_voters([2]), 9);
    step(&mut raft, SECOND, first);
    assert!(raft.membership().is_only_voter(NodeId(2)), "according to its incomplete log");
    step(&mut raft, SECOND * 60, Event::Tick);
    assert_eq!((raft.role(), raft.term()), (Role::Follower, Term(3)), "the node does not elect itself");
    for kind in [VoteKind::PreVote, VoteKind::Vote, VoteKind::Transfer] {
        let (last_log, storage) = (LogId::new(3, 99), StorageId(0));
        let request = VoteRequest { kind, term: Term(7), last_log, storage, voter_storage: None };
        let outputs = step(&mut raft, SECOND * 60, Event::VoteRequest(NodeId(1), request));
        let refused = |output: &Output| matches!(output, Output::Send(_, ControlMessage::VoteResponse(r)) if !r.granted);
        assert!(outputs.iter().any(refused), "{kind:?}: {outputs:?}");
    }
}

#[test]
fn empty_disk_refuses_vote_to_candidate_that_knows_another_storage() {
    let vote = |raft: &mut Raft, voter_storage| {
        let (term, last_log) = (raft.term().next(), LogId::new(3, 99));
        let request =
            VoteRequest { kind: VoteKind::Vote, term, last_log, storage: StorageId(0), voter_storage };
        let outputs = step(raft, SECOND * 60, Event::VoteRequest(NodeId(1), request));
        outputs
            .iter()
            .any(|output| matches!(output, Output::Send(_, ControlMessage::VoteResponse(r)) if r.granted))
    };
    assert!(!vote(&mut empty(2), Some(StorageId(7))), "the configuration names its former disk");
    assert!(!vote(&mut empty(2), None), "a founding member, which may have voted with a former disk");
    assert!(vote(&mut empty(2), Some(StorageId(102))), "the configuration names this disk");
    assert!(
        !vote(&mut empty(2), Some(StorageId::UNKNOWN)),
        "it is unknown with which disk the member voted since it was added"
    );
    assert!(vote(&mut node(3, 0, &[]), None), "its log has the first configuration");
}

#[test]
fn empty_log_counts_once_it_has_entries_committed_when_it_joined() {
    let mut raft = empty(2);
    let outputs =
        step(&mut raft, SECOND, append_configuration(3, LogId::ZERO, Membership::of_voters(0..3), 3));
    assert!(answer(&outputs).is_some_and(|answer| answer.joining));
    assert_eq!(raft.hard_state().joining, Some(LogIndex::ZERO), "the node has neither entry 3 nor its term");
    step(&mut raft, SECOND, append(3, LogId::new(3, 1), &[3, 3], 3));
    assert_eq!(raft.hard_state().joining, None);
    let outputs = step(&mut raft, SECOND, append(3, LogId::new(3, 3), &[3], 8));
    assert!(answer(&outputs).is_some_and(|answer| !answer.joining), "{outputs:?}");
    assert_eq!(raft.hard_state().joining, None);
    step(&mut raft, SECOND * 60, Event::Tick);
    assert_eq!(raft.role(), Role::PreCandidate);
}

#[test]
fn empty_log_ignores_commit_index_of_leader_before_commit_in_its_term() {
    // Entry 4 was committed in term 3. The leader of term 5 has it, but its commit index is only 2.
    let mut raft = empty(2);
    step(&mut raft, SECOND, append_configuration(3, LogId::ZERO, Membership::of_voters(0..3), 0));
    let outputs = step(&mut raft, SECOND, append(5, LogId::new(3, 1), &[3], 2));
    assert!(answer(&outputs).is_some_and(|answer| answer.joining), "{outputs:?}");
    let outputs = step(&mut raft, SECOND, append(5, LogId::new(3, 2), &[3, 3, 5], 2));
    assert!(answer(&outputs).is_some_and(|answer| answer.joining), "{outputs:?}");
    step(&mut raft, SECOND, append(5, LogId::new(5, 5), &[], 5));
    let outputs = step(&mut raft, SECOND, append(5, LogId::new(5, 5), &[], 5));
    assert!(answer(&outputs).is_some_and(|answer| !answer.joining), "{outputs:?}");
}

#[test]
fn joining_survives_a_restart() {
    let hard_state = HardState { term: Term(3), joining: Some(LogIndex(9)), ..HardState::default() };
    let log = LogState {
        hard_state,
        entries: vec![(LogId::new(0, 1), 100)],
        memberships: vec![(LogIndex(1), Membership::of_voters([2]))],
        ..LogState::default()
    };
    let config = Config::new(NodeId(2));
    let mut raft = Raft::new(config, Restored { log, applied: LogIndex(1) }, Time::ZERO).unwrap();
    step(&mut raft, SECOND * 60, Event::Tick);
    assert_eq!((raft.role(), raft.term()), (Role::Follower, Term(3)));
}

#[test]
fn joining_node_votes_only_for_its_leader_in_the_term() {
    let mut raft = empty(2);
    step(&mut raft, SECOND, append_configuration(3, LogId::ZERO, Membership::of_voters(0..3), 1));
    assert_eq!(raft.hard_state().voted_for, Some(NodeId(1)));
}

#[test]
fn acknowledgement_of_an_emptied_founder_counts_towards_no_quorum() {
    let mut raft = node(3, 0, &[]);
    lead(&mut raft, SECOND);
    let acknowledge = |raft: &mut Raft, joining| {
        let response = AppendResponse { joining, ..accepted(1, 2) };
        step(raft, SECOND, Event::AppendResponse(NodeId(1), response));
    };
    acknowledge(&mut raft, true);
    assert_eq!(raft.commit(), LogIndex::ZERO);
    assert!(raft.peers()[&NodeId(1)].joining && raft.peers()[&NodeId(1)].matched == LogIndex(2));
    acknowledge(&mut raft, false);
    assert_eq!(raft.commit(), LogIndex(2));
}

#[test]
fn acknowledgement_of_an_added_voter_counts_once_the_configuration_names_its_disk() {
    // A second voter with an empty log is added to a cluster of one.
    let mut raft = node(1, 0, &[]);
    step(&mut raft, SECOND, Event::Tick);
    let change = vec![MemberChange::Add(NodeId(1), Member::new(MemberKind::Voter))];
    step(&mut raft, SECOND, Event::ChangeMembership { token: 7, changes: change });
    assert!(
        !raft.membership().is_voter(NodeId(1)) && raft.commit() == LogIndex(3),
        "there is still one voter"
    );
    let acknowledge = |raft: &mut Raft, matched| {
        let response =
            AppendResponse { joining: true, round: 1, storage: StorageId(9), ..accepted(1, matched) };
        step(raft, SECOND * 2, Event::AppendResponse(NodeId(1), response));
    };
    acknowledge(&mut raft, 3);
    step(&mut raft, SECOND * 2, Event::Tick);
    assert!(raft.membership().is_joint() && raft.membership().is_voter(NodeId(1)));
    assert_eq!(raft.commit(), LogIndex(3), "the joint configuration, which names its disk, needs both");
    acknowledge(&mut raft, 4);
    assert_eq!(raft.commit(), LogIndex(4));
}

#[test]
fn added_voter_whose_storage_has_no_identity_votes_when_it_has_acknowledged_something() {
    let mut raft = node(1, 0, &[]);
    step(&mut raft, SECOND, Event::Tick);
    let change = vec![MemberChange::Add(NodeId(1), Member::new(MemberKind::Voter))];
    step(&mut raft, SECOND, Event::ChangeMembership { token: 7, changes: change });
    step(&mut raft, SECOND * 2, Event::Tick);
    assert!(!raft.membership().is_voter(NodeId(1)), "the leader has not heard from it");
    let response = AppendResponse { round: 1, ..accepted(1, 3) };
    step(&mut raft, SECOND * 2, Event::AppendResponse(NodeId(1), response));
    step(&mut raft, SECOND * 3, Event::Tick);
    assert!(raft.membership().is_joint() && raft.membership().is_voter(NodeId(1)));
}

#[test]
fn entry_is_not_committed_by_added_voter_with_unrecorded_disk() {
    // 1. Node 2 is added to {0, 1} as a voter. 2. It acknowledges an entry that node 1 lacks. 3. Its disk is emptied before its
    // identity is recorded. 4. Node 1 requests its vote: neither of them can know of the former disk.
    let mut raft = node(2, 0, &[]);
    lead(&mut raft, SECOND);
    step(&mut raft, SECOND, Event::AppendResponse(NodeId(1), accepted(1, 2)));
    let change = vec![MemberChange::Add(NodeId(2), Member::new(MemberKind::Voter))];
    step(&mut raft, SECOND, Event::ChangeMembership { token: 7, changes: change });
    for matched in [3, 4] {
        step(&mut raft, SECOND, Event::AppendResponse(NodeId(1), accepted(1, matched)));
    }
    let (at, _) = propose(&mut raft, SECOND);
    let last = at.unwrap().index;
    let response = AppendResponse { joining: true, round: 1, storage: StorageId(9), ..accepted(1, last.0) };
    step(&mut raft, SECOND, Event::AppendResponse(NodeId(2), response));
    assert!(raft.commit() < last, "{last} is on the disk of the leader, and on one that may be emptied");
}

#[test]
fn node_with_another_disk_than_configured_does_not_campaign() {
    // The disk was emptied and has caught up, but the node was not added again: it would only raise the term of the others.
    let stands = |storage| {
        let mut members = Membership::of_voters(0..3).members().clone();
        members.get_mut(&NodeId(0)).unwrap().storage = Some(StorageId(11));
        let log = LogState {
            storage: StorageId(storage),
            entries: vec![(LogId::new(0, 1), 100)],
            memberships: vec![(LogIndex(1), Membership::new(members))],
            ..LogState::default()
        };
        let restored = Restored { log, applied: LogIndex(1) };
        let mut raft = Raft::new(Config::new(NodeId(0)), restored, Time::ZERO).unwrap();
        step(&mut raft, SECOND * 60, Event::Tick);
        raft.role() == Role::PreCandidate
    };
    assert!(stands(11) && !stands(12));
}

// I19: one acknowledgement, one storage, one membership.

#[test]
fn change_that_removes_and_adds_the_same_id_is_refused() {
    let mut raft = node(3, 0, &[]);
    lead(&mut raft, SECOND);
    step(&mut raft, SECOND, Event::AppendResponse(NodeId(1), accepted(1, 2)));
    let voter = Member::new(MemberKind::Voter);
    let changes = vec![MemberChange::Remove(NodeId(2)), MemberChange::Set(NodeId(2), voter)];
    let outputs = step(&mut raft, SECOND, Event::ChangeMembership { token: 7, changes });
    let why = InvalidMembership::RemovedAndAdded(NodeId(2));
    assert!(outputs.contains(&Output::ChangeRefused(7, Refusal::Invalid(why))), "{outputs:?}");
}

#[test]
fn acknowledgement_from_before_removal_does_not_count_after_member_is_added_again() {
    // 1. The leader of three sends entries to node 2. 2. Node 2 is removed; its disk is emptied. 3. It is added again, in
    // the same term of the same leader. 4. The old disk's acknowledgement of step 1 arrives.
    let mut raft = node(3, 0, &[]);
    lead(&mut raft, SECOND);
    let acknowledge = |raft: &mut Raft, from, round, matched, storage| {
        let storage = StorageId(storage);
        let response = AppendResponse { round, storage, ..accepted(1, matched) };
        step(raft, SECOND, Event::AppendResponse(NodeId(from), response))
    };
    acknowledge(&mut raft, 1, 0, 2, 1);
    let change = |raft: &mut Raft, change| {
        step(raft, SECOND, Event::ChangeMembership { token: 7, changes: vec![change] });
    };
    change(&mut raft, MemberChange::Remove(NodeId(2)));
    for matched in [3, 4] {
        acknowledge(&mut raft, 1, 0, matched, 1);
    }
    assert!(raft.membership().get(NodeId(2)).is_none() && raft.commit() == LogIndex(4));
    change(&mut raft, MemberChange::Set(NodeId(2), Member::new(MemberKind::Learner)));
    acknowledge(&mut raft, 2, 0, 2, 22);
    assert_eq!(raft.peers()[&NodeId(2)].matched, LogIndex::ZERO, "the new disk has nothing");
    acknowledge(&mut raft, 2, 1, 1, 23);
    let peer = raft.peers()[&NodeId(2)];
    assert_eq!(
        (peer.matched, peer.other_storage),
        (LogIndex(1), false),
        "the recorded storage is the new one"
    );
}

#[test]
fn late_acknowledgement_of_former_disk_does_not_make_entries_of_empty_disk_count() {
    // The leader and node 1 have the entry. Node 2 has it too, but on an empty disk that replaced its own.
    let mut members = Membership::of_voters(0..5).members().clone();
    members.get_mut(&NodeId(2)).unwrap().storage = Some(StorageId(12));
    let mut raft = common::founded(Membership::new(members));
    lead(&mut raft, SECOND);
    let acknowledge = |raft: &mut Raft, from, round, matched, storage| {
        let response = AppendResponse { round, storage: StorageId(storage), ..accepted(1, matched) };
        step(raft, SECOND, Event::AppendResponse(NodeId(from), response));
    };
    step(&mut raft, SECOND + SECOND / 5, Event::Tick); // Starts a round.
    acknowledge(&mut raft, 1, 1, 2, 0);
    acknowledge(&mut raft, 2, 1, 2, 22);
    assert_eq!((raft.commit(), raft.peers()[&NodeId(2)].matched), (LogIndex::ZERO, LogIndex(2)));
    acknowledge(&mut raft, 2, 0, 1, 12);
    acknowledge(&mut raft, 1, 1, 2, 0);
    assert_eq!(raft.commit(), LogIndex::ZERO);
    acknowledge(&mut raft, 2, 1, 1, 12);
    assert_eq!((raft.commit(), raft.peers()[&NodeId(2)].matched), (LogIndex::ZERO, LogIndex(1)));
}

#[test]
fn acknowledgement_from_another_storage_than_before_does_not_count() {
    // The disk is replaced before the configuration names a storage.
    let mut raft = node(3, 0, &[]);
    lead(&mut raft, SECOND);
    let acknowledge = |raft: &mut Raft, matched, storage| {
        let response = AppendResponse { storage: StorageId(storage), ..accepted(1, matched) };
        step(raft, SECOND, Event::AppendResponse(NodeId(1), response));
    };
    acknowledge(&mut raft, 1, 11);
    acknowledge(&mut raft, 2, 12);
    assert_eq!(raft.commit(), LogIndex::ZERO);
    assert!(raft.peers()[&NodeId(1)].other_storage);
}

#[test]
fn member_with_another_storage_is_sent_the_log_and_does_not_count() {
    let mut members = Membership::of_voters(0..3).members().clone();
    members.get_mut(&NodeId(1)).unwrap().storage = Some(StorageId(11));
    let log = LogState {
        entries: vec![(LogId::new(0, 1), 100)],
        memberships: vec![(LogIndex(1), Membership::new(members))],
        ..LogState::default()
    };
    let config = Config::new(NodeId(0));
    let mut raft = Raft::new(config, Restored { log, applied: LogIndex::ZERO }, Time::ZERO).unwrap();
    lead(&mut raft, SECOND); // Elected with the vote of node 2.
    let response = AppendResponse { storage: StorageId(12), ..accepted(1, 1) };
    let outputs = step(&mut raft, SECOND, Event::AppendResponse(NodeId(1), response));
    let sent =
        |output: &Output| matches!(output, Output::SendAppend(NodeId(1), sent) if sent.last == LogIndex(2));
    assert!(outputs.iter().any(sent), "{outputs:?}");
    assert!(raft.peers()[&NodeId(1)].other_storage);
    let response = AppendResponse { storage: StorageId(12), ..accepted(1, 2) };
    step(&mut raft, SECOND, Event::AppendResponse(NodeId(1), response));
    assert_eq!((raft.commit(), raft.peers()[&NodeId(1)].matched), (LogIndex::ZERO, LogIndex(2)));
}

#[test]
fn removed_node_with_reused_id_gets_no_vote_and_changes_no_term() {
    // Node 2 was removed, and another machine with storage 22 was added with its id. The old machine starts again.
    let mut members = Membership::of_voters(0..3).members().clone();
    members.get_mut(&NodeId(2)).unwrap().storage = Some(StorageId(22));
    let mut raft = common::founded(Membership::new(members));
    let mut asks = |storage| {
        let (term, last_log, storage) = (Term(9), LogId::new(8, 99), StorageId(storage));
        let request = VoteRequest { kind: VoteKind::Vote, term, last_log, storage, voter_storage: None };
        let outputs = step(&mut raft, SECOND * 60, Event::VoteRequest(NodeId(2), request));
        let granted =
            |output: &Output| matches!(output, Output::Send(_, ControlMessage::VoteResponse(r)) if r.granted);
        (outputs.iter().any(granted), raft.term())
    };
    assert_eq!(asks(12), (false, Term(0)), "the old machine");
    assert_eq!(asks(22), (true, Term(9)), "the new one");
}

// I20: the identity of the cluster.

#[test]
fn first_leader_draws_the_identity_of_the_cluster_in_its_first_entry() {
    let mut raft = common::configured(3, 0, &[], |config| config.new_cluster = CLUSTER);
    lead(&mut raft, SECOND);
    assert_eq!(
        (raft.membership().cluster(), raft.cluster()),
        (CLUSTER, CLUSTER),
        "a leader reports the identity at once"
    );
    assert_eq!(raft.hard_state().cluster, ClusterId::NONE, "not committed yet");
    step(&mut raft, SECOND, Event::AppendResponse(NodeId(1), accepted(1, 2)));
    assert_eq!(raft.hard_state().cluster, CLUSTER);
    let learner = MemberChange::Set(NodeId(5), Member::new(MemberKind::Learner));
    step(&mut raft, SECOND, Event::ChangeMembership { token: 7, changes: vec![learner] });
    assert_eq!(raft.membership().cluster(), CLUSTER, "the identity does not change");
}

#[test]
fn later_leader_keeps_the_identity() {
    let mut raft = common::configured(3, 0, &[], |config| config.new_cluster = ClusterId(0xC2));
    let founded = Membership::of_voters(0..3).with_cluster(CLUSTER);
    step(&mut raft, SECOND, append_configuration(1, LogId::new(0, 1), founded, 1));
    lead(&mut raft, SECOND * 60);
    assert_eq!(raft.membership().cluster(), CLUSTER);
}

#[test]
fn joining_node_adopts_new_identity_of_recovered_cluster() {
    let mut raft = empty(2);
    let before = Membership::of_voters(0..3).with_cluster(ClusterId(7));
    // The leader has committed more entries than fit in its first message.
    let outputs = step(&mut raft, SECOND, append_configuration(3, LogId::ZERO, before, 2));
    assert_eq!((contradiction(&outputs), raft.commit()), (None, LogIndex(1)));
    assert_eq!(raft.cluster(), ClusterId::NONE, "the log so far may be from before the recovery");
    let after = Membership::of_voters([1]).with_cluster(ClusterId(8));
    let outputs = step(&mut raft, SECOND, append_configuration(3, LogId::new(3, 1), after, 2));
    assert_eq!((contradiction(&outputs), raft.commit()), (None, LogIndex(2)));
    assert_eq!(raft.cluster(), ClusterId(8));
}

#[test]
fn follower_keeps_identity_only_once_committed() {
    let founded = Membership::of_voters(0..3).with_cluster(CLUSTER);
    let mut raft = node(3, 0, &[]);
    step(&mut raft, SECOND, append_configuration(1, LogId::new(0, 1), founded, 1));
    assert_eq!(raft.cluster(), ClusterId::NONE, "the next leader may draw another identity");
    raft.step(SECOND, append(1, LogId::new(1, 2), &[], 2));
    let written = raft.take_persist().and_then(|persist| persist.hard_state);
    assert_eq!((raft.cluster(), written.map(|hard| hard.cluster)), (CLUSTER, Some(CLUSTER)));
}

#[test]
fn restarted_node_knows_its_cluster_before_its_commit_index() {
    let founded = |cluster| Membership::of_voters(0..3).with_cluster(ClusterId(cluster));
    let log = LogState {
        hard_state: HardState { term: Term(1), cluster: CLUSTER, ..HardState::default() },
        entries: vec![(LogId::new(0, 1), 100), (LogId::new(1, 2), 100)],
        memberships: vec![(LogIndex(1), Membership::of_voters(0..3)), (LogIndex(2), founded(0xC1))],
        ..LogState::default()
    };
    let restored = Restored { log, applied: LogIndex::ZERO };
    let mut raft = Raft::new(Config::new(NodeId(0)), restored, Time::ZERO).unwrap();
    assert_eq!((raft.commit(), raft.cluster()), (LogIndex::ZERO, CLUSTER));
    let outputs = step(&mut raft, SECOND, append_configuration(5, LogId::new(0, 1), founded(0xC2), 2));
    assert!(contradiction(&outputs).is_some() && raft.last_log() == LogId::new(1, 2), "{outputs:?}");
}

#[test]
fn joining_node_skips_identity_from_before_recovery() {
    // The log of a cluster that was recovered from one survivor has two identities.
    let founded = |cluster| Membership::of_voters(0..3).with_cluster(ClusterId(cluster));
    let mut raft = empty(2);
    let old = vec![membership_entry(1, founded(0xC1))];
    let head = Append {
        term: Term(4),
        prev: LogId::ZERO,
        prev_leadership: LeadershipId::NONE,
        last: LogIndex(1),
        commit: LogIndex(9),
        round: 0,
    };
    step(&mut raft, SECOND, Event::Append { from: NodeId(1), append: head, entries: old });
    assert_eq!(raft.commit(), LogIndex(1));
    let new = vec![
        membership_entry(3, founded(0xC2)),
        EntryInfo { membership: None, ..membership_entry(4, founded(0)) },
    ];
    let head = Append { prev: LogId::new(1, 1), last: LogIndex(3), commit: LogIndex(3), ..head };
    let outputs = step(&mut raft, SECOND, Event::Append { from: NodeId(1), append: head, entries: new });
    assert_eq!((contradiction(&outputs), raft.commit()), (None, LogIndex(3)));
    assert_eq!(raft.cluster(), ClusterId(0xC2));
}

#[test]
fn configuration_of_another_cluster_stops_the_node() {
    let mut raft = node(3, 0, &[]);
    let founded = |cluster| Membership::of_voters(0..3).with_cluster(ClusterId(cluster));
    step(&mut raft, SECOND, append_configuration(1, LogId::new(0, 1), founded(0xC1), 2));
    assert_eq!(raft.cluster(), CLUSTER);
    let outputs = step(&mut raft, SECOND, append_configuration(2, LogId::new(1, 2), founded(0xC2), 2));
    assert_eq!(contradiction(&outputs).map(|found| found.theirs), Some(LogId::new(2, 3)));
}
