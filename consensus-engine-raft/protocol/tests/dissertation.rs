//! Tests of sentences of the dissertation ("D") on configurations, transfers and reads.

mod common;

use common::{
    LOG_1, SECOND, accepted, append, append_configuration, lead, node, outcome, propose, step, vote,
};
use consensus_core::{
    LeadershipId, LogId, LogIndex, Member, MemberChange, MemberKind, Membership, NodeId, Role, StorageId,
    Term, TimeoutNow, VoteKind, VoteRequest,
};
use consensus_raft_protocol::{Append, ControlMessage, Event, Output, Raft, Refusal, Time};

fn set(id: u64, kind: MemberKind) -> MemberChange {
    MemberChange::Set(NodeId(id), Member::new(kind))
}

fn change(raft: &mut Raft, now: Time, changes: Vec<MemberChange>) -> Vec<Output> {
    step(raft, now, Event::ChangeMembership { token: 7, changes })
}

fn appended(outputs: &[Output]) -> Option<&Membership> {
    outputs.iter().find_map(|output| match output {
        Output::AppendedMembership(_, membership) => Some(&**membership),
        _ => None,
    })
}

fn acknowledge(raft: &mut Raft, now: Time, from: u64, matched: u64) -> Vec<Output> {
    let response = accepted(raft.term().0, matched);
    step(raft, now, Event::AppendResponse(NodeId(from), response))
}

/// Acknowledges a message of round 1, which started when the member was added (I19).
fn acknowledge_as_added(raft: &mut Raft, now: Time, from: u64, matched: u64) -> Vec<Output> {
    let storage = StorageId(100 + from);
    let response = consensus_core::AppendResponse { round: 1, storage, ..accepted(raft.term().0, matched) };
    step(raft, now, Event::AppendResponse(NodeId(from), response))
}

/// Node 0, leader of three voters in term 1, with entry 2 of its term committed.
fn leader() -> Raft {
    leader_of(Membership::of_voters(0..3))
}

/// The same leader, with node 3 as a learner.
fn leader_with_learner() -> Raft {
    let mut members = Membership::of_voters(0..3).members().clone();
    members.insert(NodeId(3), Member::new(MemberKind::Learner));
    leader_of(Membership::new(members))
}

fn leader_of(first: Membership) -> Raft {
    let mut raft = common::founded(first);
    lead(&mut raft, SECOND);
    acknowledge(&mut raft, SECOND, 1, 2);
    assert_eq!(raft.commit(), LogIndex(2));
    raft
}

#[test]
fn d_4_3_voters_change_through_joint_configuration_that_is_left_once_committed() {
    let mut raft = leader_with_learner();
    let outputs = change(&mut raft, SECOND, vec![set(3, MemberKind::Voter), MemberChange::Remove(NodeId(2))]);
    assert!(appended(&outputs).is_some_and(Membership::is_joint), "in force from its append");
    assert!(raft.membership().is_joint());
    // Nodes 0 and 3 are two of the three new voters, but only node 0 is an old one.
    assert_eq!(appended(&acknowledge(&mut raft, SECOND, 3, 3)), None, "the new voters alone are not enough");
    let outputs = acknowledge(&mut raft, SECOND, 1, 3);
    assert_eq!(appended(&outputs).map(Membership::is_joint), Some(false), "left");
    assert!(
        !outputs.iter().any(|output| matches!(output, Output::Changed(..))),
        "the change is not complete"
    );
    let outputs = acknowledge(&mut raft, SECOND, 1, 4);
    assert!(outputs.contains(&Output::Changed(7, LogIndex(4))), "{outputs:?}");
    assert_eq!(raft.membership().voters().collect::<Vec<_>>(), [0, 1, 3].map(NodeId));
    assert!(!raft.peers().contains_key(&NodeId(2)), "the progress of a removed member is removed");
}

#[test]
fn d_4_1_second_change_or_change_before_commit_in_the_term_is_refused() {
    let mut raft = node(3, 0, &[]);
    lead(&mut raft, SECOND);
    let outputs = change(&mut raft, SECOND, vec![set(3, MemberKind::Voter)]);
    assert_eq!(appended(&outputs), None, "M1");
    assert!(appended(&acknowledge(&mut raft, SECOND, 1, 2)).is_some(), "the change waited for the commit");
    let outputs = step(&mut raft, SECOND, Event::ChangeMembership { token: 8, changes: vec![] });
    assert!(outputs.contains(&Output::ChangeRefused(8, Refusal::Busy)), "M10");
}

#[test]
fn d_4_1_committed_configuration_of_earlier_term_does_not_allow_a_change() {
    // The configuration is committed, but no entry of the leader's own term is (M1).
    let mut raft = common::restored(3, 0, &[], 1);
    lead(&mut raft, SECOND);
    assert_eq!(raft.commit(), LogIndex(1));
    let outputs = change(&mut raft, SECOND, vec![set(3, MemberKind::Voter)]);
    assert_eq!(appended(&outputs), None);
    assert!(appended(&acknowledge(&mut raft, SECOND, 1, 2)).is_some());
}

#[test]
fn d_4_3_joint_configuration_is_not_left_when_only_an_earlier_entry_is_committed() {
    let mut raft = leader_with_learner();
    propose(&mut raft, SECOND);
    change(&mut raft, SECOND, vec![set(3, MemberKind::Voter)]);
    acknowledge(&mut raft, SECOND, 3, 3);
    let outputs = acknowledge(&mut raft, SECOND, 1, 3);
    assert_eq!((raft.commit(), appended(&outputs)), (LogIndex(3), None), "M3");
    acknowledge(&mut raft, SECOND, 3, 4);
    assert!(appended(&acknowledge(&mut raft, SECOND, 1, 4)).is_some_and(|now| !now.is_joint()));
}

#[test]
fn new_leader_leaves_joint_configuration_in_its_log() {
    let mut raft = leader_with_learner();
    change(&mut raft, SECOND, vec![set(3, MemberKind::Voter)]);
    let (later, joint) = (SECOND * 2, raft.membership().clone());
    // After another leader, node 0 becomes leader again, in a joint configuration.
    let outputs = step(&mut raft, later, append(2, LogId::new(1, 3), &[2], 2));
    assert!(outputs.contains(&Output::ChangeRefused(7, Refusal::LostLeadership)), "{outputs:?}");
    lead(&mut raft, later * 2);
    assert_eq!(*raft.membership(), joint);
    let outputs = change(&mut raft, later * 2, vec![]);
    assert!(outputs.contains(&Output::ChangeRefused(7, Refusal::Busy)), "{outputs:?}");
    assert_eq!(
        appended(&acknowledge(&mut raft, later * 2, 1, 5)),
        None,
        "M3: a quorum of the old voters alone"
    );
    assert!(appended(&acknowledge(&mut raft, later * 2, 3, 5)).is_some_and(|now| !now.is_joint()), "M4");
}

#[test]
fn d_4_1_configuration_is_rolled_back_with_its_entry() {
    let mut raft = leader();
    let before = raft.membership().clone();
    change(&mut raft, SECOND, vec![set(3, MemberKind::Learner)]);
    assert_ne!(*raft.membership(), before);
    step(&mut raft, SECOND, append(2, LogId::new(1, 2), &[2], 2));
    assert_eq!(*raft.membership(), before, "M6");
}

#[test]
fn d_4_2_2_removed_leader_stays_leader_until_its_removal_is_committed() {
    let mut raft = leader();
    acknowledge(&mut raft, SECOND, 2, 2);
    change(&mut raft, SECOND, vec![MemberChange::Remove(NodeId(0))]);
    acknowledge(&mut raft, SECOND, 1, 3);
    acknowledge(&mut raft, SECOND, 2, 3); // Joint, committed: the new one is appended.
    assert_eq!(
        (raft.role(), raft.membership().is_joint()),
        (Role::Leader, false),
        "M11: the leader does not leave too early"
    );
    acknowledge(&mut raft, SECOND, 1, 4);
    assert_eq!(raft.commit(), LogIndex(3), "its own disk does not count any more");
    let outputs = acknowledge(&mut raft, SECOND, 2, 4);
    assert!(outputs.contains(&Output::Changed(7, LogIndex(4))));
    let asked = Output::Send(NodeId(2), ControlMessage::TimeoutNow(TimeoutNow { term: Term(1) }));
    assert!(outputs.contains(&asked), "leadership is transferred without a timeout: {outputs:?}");
}

#[test]
fn d_4_2_2_removed_leader_leaves_despite_request_without_effect() {
    let mut raft = node(3, 0, &[]);
    // The joint configuration comes from another leader, so this one has no change of its own in progress.
    let left = Membership::of_voters([1, 2]);
    let joint = Membership::of_voters(0..3).step_towards(&left);
    step(&mut raft, SECOND / 100, append_configuration(1, LOG_1, joint, 1));
    lead(&mut raft, SECOND * 2);
    let acknowledged = |raft: &mut Raft, by, index| {
        step(raft, SECOND * 2, Event::AppendResponse(NodeId(by), accepted(2, index)))
    };
    acknowledged(&mut raft, 1, 3);
    acknowledged(&mut raft, 2, 3);
    assert_eq!(**raft.membership(), left, "the joint configuration is left, but this is not committed");
    change(&mut raft, SECOND * 2, vec![set(1, MemberKind::Voter)]);
    acknowledged(&mut raft, 1, 4);
    let outputs = acknowledged(&mut raft, 2, 4);
    assert!(outputs.contains(&Output::Changed(7, LogIndex(4))), "{outputs:?}");
    let asked = |to| Output::Send(NodeId(to), ControlMessage::TimeoutNow(TimeoutNow { term: Term(2) }));
    assert!(outputs.contains(&asked(1)) || outputs.contains(&asked(2)), "{outputs:?}");
}

#[test]
fn d_4_2_2_removed_leader_campaigns_while_its_removal_is_not_committed() {
    let mut raft = leader();
    change(&mut raft, SECOND, vec![MemberChange::Remove(NodeId(0))]);
    acknowledge(&mut raft, SECOND, 1, 3);
    acknowledge(&mut raft, SECOND, 2, 3);
    assert!(raft.membership().get(NodeId(0)).is_none());
    step(&mut raft, SECOND * 5, Event::Tick); // No quorum responds.
    assert_eq!(raft.role(), Role::Learner);
    lead(&mut raft, SECOND * 10);
    assert_eq!(raft.role(), Role::Leader, "it may be the only node that has the change");
}

#[test]
fn d_4_2_2_removed_leader_campaigns_again_after_it_led_once_more() {
    // The first entry of each leader is a configuration, which repeats the one that removes the node.
    let mut raft = common::configured(3, 0, &[], |config| config.leadership = LeadershipId(0xA));
    lead(&mut raft, SECOND);
    acknowledge(&mut raft, SECOND, 1, 2);
    change(&mut raft, SECOND, vec![MemberChange::Remove(NodeId(0))]);
    acknowledge(&mut raft, SECOND, 1, 3);
    acknowledge(&mut raft, SECOND, 2, 3);
    assert!(raft.membership().get(NodeId(0)).is_none());
    for second in [10, 20, 30] {
        step(&mut raft, SECOND * (second - 5), Event::Tick); // No quorum responds.
        assert_eq!(raft.role(), Role::Learner);
        lead(&mut raft, SECOND * second);
        assert_eq!(raft.role(), Role::Leader, "after {second} s");
    }
}

#[test]
fn d_4_2_1_joining_member_becomes_voter_once_caught_up() {
    let mut raft = leader();
    change(&mut raft, SECOND, vec![set(3, MemberKind::Joining)]);
    acknowledge(&mut raft, SECOND, 1, 3);
    let kind = |raft: &Raft| raft.membership().get(NodeId(3)).map(|member| member.kind);
    let tick = |raft: &mut Raft, now| {
        acknowledge(raft, now, 1, 3);
        step(raft, now, Event::Tick);
    };
    tick(&mut raft, SECOND + SECOND / 5);
    assert_eq!(kind(&raft), Some(MemberKind::Joining), "the leader has not heard from it");
    acknowledge_as_added(&mut raft, SECOND, 3, 3);
    tick(&mut raft, SECOND + SECOND / 2);
    assert_eq!(kind(&raft), Some(MemberKind::Joining), "its disk is recorded first");
    let later = SECOND + 7 * SECOND / 10;
    acknowledge(&mut raft, later, 1, 4);
    acknowledge_as_added(&mut raft, later, 3, 4);
    step(&mut raft, later, Event::Tick);
    assert_eq!(kind(&raft), Some(MemberKind::Voter));
    assert!(raft.membership().is_joint());
}

#[test]
fn emptied_disk_does_not_count() {
    let mut raft = leader();
    let from = |raft: &Raft, storage, matched| {
        let storage = StorageId(storage);
        Event::AppendResponse(
            NodeId(1),
            consensus_core::AppendResponse { storage, ..accepted(raft.term().0, matched) },
        )
    };
    let heard = from(&raft, 11, 2);
    step(&mut raft, SECOND, heard);
    let later = SECOND + SECOND / 5;
    step(&mut raft, later, Event::Tick);
    acknowledge(&mut raft, later, 2, 3);
    assert_eq!(raft.membership().get(NodeId(1)).unwrap().storage, Some(StorageId(11)));
    let commit = raft.commit();
    propose(&mut raft, later);
    let emptied = from(&raft, 12, 4);
    step(&mut raft, later, emptied);
    assert_eq!(raft.commit(), commit, "I14");
    let request = VoteRequest {
        kind: VoteKind::Transfer,
        term: Term(9),
        last_log: LogId::new(9, 9),
        storage: StorageId(12),
        voter_storage: None,
    };
    step(&mut raft, later, Event::VoteRequest(NodeId(1), request));
    assert_eq!((raft.term(), raft.role()), (Term(1), Role::Leader), "I14: its vote requests are refused");
}

#[test]
fn d_3_10_transfer_refuses_proposals_and_waits_until_target_has_the_log() {
    let mut raft = leader();
    let asked = Output::Send(NodeId(1), ControlMessage::TimeoutNow(TimeoutNow { term: Term(1) }));
    propose(&mut raft, SECOND);
    let outputs = step(&mut raft, SECOND, Event::Transfer { token: 9, to: Some(NodeId(1)) });
    assert!(!outputs.contains(&asked), "T2: the target lacks entry 3");
    assert_eq!(propose(&mut raft, SECOND).0, None, "T2");
    assert!(acknowledge(&mut raft, SECOND, 1, 3).contains(&asked));
    let request = VoteRequest {
        kind: VoteKind::Transfer,
        term: Term(2),
        last_log: LogId::new(1, 3),
        storage: StorageId(0),
        voter_storage: None,
    };
    let outputs = step(&mut raft, SECOND, Event::VoteRequest(NodeId(1), request));
    assert!(outputs.contains(&Output::TransferEnded(9, Ok(()))), "{outputs:?}");
    assert!(
        outputs.contains(&Output::Send(NodeId(1), ControlMessage::VoteResponse(vote(VoteKind::Vote, 2))))
    );
}

#[test]
fn d_3_10_transfer_without_new_leader_times_out() {
    let mut raft = leader();
    step(&mut raft, SECOND, Event::Transfer { token: 9, to: Some(NodeId(1)) });
    for tenth in 1..=6 {
        let now = SECOND + SECOND * tenth / 10;
        let mut outputs = acknowledge(&mut raft, now, 2, 2);
        outputs.extend(step(&mut raft, now, Event::Tick));
        let ended = outputs.contains(&Output::TransferEnded(9, Err(Refusal::TimedOut)));
        assert_eq!(ended, tenth == 5, "T1, after {tenth} tenths of a second");
    }
    assert!(propose(&mut raft, SECOND * 2).0.is_some(), "proposals are accepted again");
}

#[test]
fn d_3_10_only_request_of_own_leader_starts_an_election() {
    let mut raft = node(3, 1, &[]);
    step(&mut raft, SECOND, append(1, LOG_1, &[1], 1));
    let ask = |raft: &mut Raft, from, term| {
        step(raft, SECOND, Event::TimeoutNow(NodeId(from), TimeoutNow { term: Term(term) }));
        raft.role()
    };
    assert_eq!(ask(&mut raft, 2, 1), Role::Follower, "a request of another node than its leader");
    assert_eq!(ask(&mut raft, 1, 0), Role::Follower, "a request of another term");
    assert_eq!((ask(&mut raft, 1, 1), raft.term()), (Role::Candidate, Term(2)), "without a pre-vote");
}

#[test]
fn leadership_is_transferred_to_higher_priority_once_caught_up() {
    let mut raft = leader();
    let preferred = Member { priority: 1, ..Member::new(MemberKind::Voter) };
    change(&mut raft, SECOND, vec![MemberChange::Set(NodeId(2), preferred)]);
    acknowledge(&mut raft, SECOND, 1, 3);
    let later = SECOND + SECOND / 5;
    step(&mut raft, later, Event::Tick);
    assert_eq!(raft.transferring_to(), None, "the leader has not heard from node 2");
    acknowledge(&mut raft, later, 2, 3);
    acknowledge(&mut raft, later, 1, 3);
    step(&mut raft, later + SECOND / 10, Event::Tick);
    assert_eq!(raft.transferring_to(), Some(NodeId(2)));
}

/// Node 0, leader of term 2 without a committed entry of it. Node 2 has a higher priority, and all earlier entries.
fn leader_with_preferred_successor() -> Raft {
    let mut raft = node(3, 0, &[]);
    let mut members = raft.membership().members().clone();
    members.insert(NodeId(2), Member { priority: 1, ..Member::new(MemberKind::Voter) });
    let membership = Membership::new(members);
    step(&mut raft, SECOND / 100, append_configuration(1, LOG_1, membership, 2));
    lead(&mut raft, SECOND * 2);
    acknowledge(&mut raft, SECOND * 2, 2, 2);
    raft
}

/// Whether the leader transfers leadership to node 2 at its next heartbeat, while node 2 responds.
fn transfers_leadership(raft: &mut Raft, now: Time, matched: u64) -> bool {
    let before = acknowledge(raft, now, 2, matched);
    let outputs = step(raft, now, Event::Tick);
    let asks = |outputs: &[Output]| {
        let asked =
            |output: &Output| matches!(output, Output::Send(NodeId(2), ControlMessage::TimeoutNow(_)));
        outputs.iter().any(asked)
    };
    assert!(!asks(&before), "the leader transfers only at a heartbeat");
    asks(&outputs)
}

#[test]
fn leadership_is_not_transferred_before_commit_in_the_term() {
    let mut raft = leader_with_preferred_successor();
    let tenth = SECOND / 10;
    assert!(!transfers_leadership(&mut raft, SECOND * 2 + tenth, 2));
    assert!(transfers_leadership(&mut raft, SECOND * 2 + tenth * 2, 3));
}

#[test]
fn leadership_is_not_transferred_during_a_change() {
    let mut raft = leader_with_preferred_successor();
    let tenth = SECOND / 10;
    acknowledge(&mut raft, SECOND * 2, 1, 3);
    change(&mut raft, SECOND * 2, vec![set(3, MemberKind::Learner)]);
    assert!(!transfers_leadership(&mut raft, SECOND * 2 + tenth, 3));
    assert!(transfers_leadership(&mut raft, SECOND * 2 + tenth * 2, 4), "the change is committed");
}

#[test]
fn transfer_is_not_repeated_at_once_after_it_failed() {
    let mut raft = leader_with_preferred_successor();
    let mut begun = Vec::new();
    for tenth in 1..=120 {
        let now = SECOND * 2 + SECOND * tenth / 10;
        let was = raft.transferring_to();
        acknowledge(&mut raft, now, 2, 3);
        step(&mut raft, now, Event::Tick);
        if was.is_none() && raft.transferring_to().is_some() {
            begun.push(tenth);
        }
    }
    // A transfer times out after half a second; the next one starts ten times that later.
    assert_eq!(begun, [1, 56, 111]);
}

fn lease_of(raft: &mut Raft, now: Time) -> bool {
    let outputs = raft.step(now, Event::Read { token: 3, lease: true });
    outputs.contains(&Output::ReadReady(3, raft.commit()))
}

/// A leader whose lease started at `SECOND`.
fn leader_with_lease(drift_percent: u32) -> Raft {
    let mut raft = common::configured(3, 0, &[], |config| config.lease_drift_percent = drift_percent);
    lead(&mut raft, SECOND);
    acknowledge(&mut raft, SECOND, 1, 2);
    step(&mut raft, SECOND, Event::Read { token: 1, lease: false });
    let answered = consensus_core::AppendResponse { round: 1, ..accepted(1, 2) };
    step(&mut raft, SECOND, Event::AppendResponse(NodeId(1), answered));
    raft
}

#[test]
fn d_6_4_1_lease_counts_from_start_of_round_and_allows_for_drift() {
    let ms = Time::from_millis;
    let mut raft = leader_with_lease(25);
    // 500 ms on a clock that is 25 percent faster are 300 ms on one that is 25 percent slower.
    assert!(lease_of(&mut raft, SECOND + ms(299)));
    assert!(!lease_of(&mut raft, SECOND + ms(300)), "I15");
    assert!(!lease_of(&mut leader_with_lease(0), SECOND), "there is no lease without a known drift");
}

#[test]
fn d_6_4_1_lease_starts_when_a_quorum_has_responded() {
    let mut raft = common::configured(3, 0, &[], |config| config.lease_drift_percent = 10);
    lead(&mut raft, SECOND);
    acknowledge(&mut raft, SECOND, 1, 2);
    step(&mut raft, SECOND, Event::Read { token: 1, lease: false });
    assert!(!lease_of(&mut raft, SECOND));
    assert_eq!(raft.confirmed_at(), None);
    let answered = consensus_core::AppendResponse { round: 1, ..accepted(1, 2) };
    step(&mut raft, SECOND + SECOND / 10, Event::AppendResponse(NodeId(1), answered));
    assert_eq!(raft.confirmed_at(), Some(SECOND), "the start of the round, not the time of its responses");
    assert!(lease_of(&mut raft, SECOND + SECOND / 10));
    step(&mut raft, SECOND * 2, append(2, LogId::new(1, 2), &[2], 2));
    assert_eq!(raft.confirmed_at(), None);
}

#[test]
fn read_without_leader_is_refused_at_once_and_without_response_at_its_deadline() {
    let mut raft = with_kind(3, MemberKind::Learner, true);
    assert_eq!(raft.next_deadline(), None);
    step(&mut raft, SECOND, Event::Read { token: 5, lease: false });
    assert_eq!(raft.next_deadline(), Some(SECOND + SECOND / 2), "the deadline of the read index request");
    let refused = Output::ReadRefused(4);
    let outputs = step(&mut node(3, 0, &[]), SECOND / 100, Event::Read { token: 4, lease: false });
    assert_eq!(outputs, [refused]);
}

#[test]
fn lease_ends_at_start_of_transfer() {
    let mut raft = leader_with_lease(10);
    assert!(lease_of(&mut raft, SECOND));
    step(&mut raft, SECOND, Event::Transfer { token: 9, to: Some(NodeId(2)) });
    assert!(!lease_of(&mut raft, SECOND), "R5");
}

/// Whether the node grants a vote to node 2, which is eligible.
fn grants_vote(raft: &mut Raft, now: Time) -> bool {
    let (last_log, storage) = (LogId::new(9, 9), StorageId(0));
    let request = VoteRequest { kind: VoteKind::Vote, term: Term(9), last_log, storage, voter_storage: None };
    step(raft, now, Event::VoteRequest(NodeId(2), request));
    raft.hard_state().voted_for.is_some()
}

#[test]
fn with_leases_voter_refuses_votes_after_losing_its_leader() {
    let ms = Time::from_millis;
    // After a start the node may have acknowledged a leader before.
    let restarted = || common::configured(3, 0, &[], |config| config.lease_drift_percent = 10);
    assert!(!grants_vote(&mut restarted(), ms(499)));
    assert!(grants_vote(&mut restarted(), ms(500)));
    // The node heard a leader, and then a message of a later term.
    let mut raft = restarted();
    step(&mut raft, SECOND, append(1, LOG_1, &[1], 1));
    let later_term = consensus_core::VoteResponse { granted: false, ..vote(VoteKind::PreVote, 5) };
    step(&mut raft, SECOND, Event::VoteResponse(NodeId(1), later_term));
    assert_eq!((raft.term(), raft.leader()), (Term(5), None));
    assert!(!grants_vote(&mut raft, SECOND + ms(499)), "I15");
    assert!(grants_vote(&mut raft, SECOND + ms(500)));
}

/// A follower that is told of the disconnect of node 1, its leader, a moment after its last message.
fn disconnected(lease_drift_percent: u32) -> Raft {
    let mut raft = common::configured(3, 0, &[], |config| config.lease_drift_percent = lease_drift_percent);
    step(&mut raft, SECOND, append(1, LOG_1, &[1], 1));
    step(&mut raft, SECOND, Event::Disconnected(NodeId(2)));
    assert_eq!(raft.leader(), Some(NodeId(1)), "the disconnected node is not its leader");
    step(&mut raft, SECOND + Time::from_millis(10), Event::Disconnected(NodeId(1)));
    assert_eq!((raft.role(), raft.leader()), (Role::Follower, None));
    raft
}

#[test]
fn follower_campaigns_soon_after_disconnect_of_its_leader() {
    let ms = Time::from_millis;
    let mut raft = disconnected(0);
    let deadline = raft.next_deadline().unwrap();
    let soon = SECOND + ms(10) + ms(500) / 16;
    assert!(deadline >= soon, "the other nodes must have time to notice");
    assert!(deadline <= soon + ms(500) / 4, "{deadline:?}");
    assert!(grants_vote(&mut raft.clone(), SECOND + ms(11)), "it votes for another node");
    step(&mut raft, deadline, Event::Tick);
    assert_eq!(raft.role(), Role::PreCandidate);
    // The leader is still running.
    let mut raft = disconnected(0);
    step(&mut raft, SECOND + ms(20), append(1, LogId::new(1, 2), &[], 1));
    assert_eq!(raft.leader(), Some(NodeId(1)));
    assert!(raft.next_deadline().unwrap() >= SECOND + ms(520));
    assert!(!grants_vote(&mut raft, SECOND + ms(21)), "I12");
}

#[test]
fn with_leases_voter_refuses_votes_after_disconnect_of_its_leader() {
    let ms = Time::from_millis;
    let mut raft = disconnected(10);
    let deadline = raft.next_deadline().unwrap();
    assert!(deadline >= SECOND + ms(500) && deadline <= SECOND + ms(500) * 21 / 16, "{deadline:?}");
    assert!(!grants_vote(&mut raft, SECOND + ms(499)), "I15");
    assert!(grants_vote(&mut raft, SECOND + ms(500)));
}

#[test]
fn d_6_4_follower_read_ends_with_response_or_deadline() {
    let mut raft = node(3, 0, &[]);
    step(&mut raft, SECOND, append(1, LOG_1, &[1], 1));
    let question = |outputs: &[Output]| {
        outputs.iter().find_map(|output| match output {
            Output::Send(NodeId(1), ControlMessage::ReadIndexRequest(request)) => Some(request.id),
            _ => None,
        })
    };
    let answer = |id, index| consensus_core::ReadIndexResponse { term: Term(1), id, index };
    let outputs = step(&mut raft, SECOND, Event::Read { token: 5, lease: false });
    let id = question(&outputs).unwrap();
    let stale = Event::ReadIndexResponse(NodeId(1), answer(id ^ 1, Some(LogIndex(1))));
    assert_eq!(step(&mut raft, SECOND, stale), [], "a response to another request");
    let outputs = step(&mut raft, SECOND, Event::ReadIndexResponse(NodeId(1), answer(id, Some(LogIndex(2)))));
    assert_eq!(outputs, [Output::ReadReady(5, LogIndex(2))]);
    step(&mut raft, SECOND, Event::Read { token: 6, lease: false });
    let expired = step(&mut raft, SECOND + SECOND / 2, Event::Tick);
    assert!(expired.contains(&Output::ReadRefused(6)), "{expired:?}");
    step(&mut raft, SECOND, Event::Read { token: 7, lease: false });
    let outputs = step(&mut raft, SECOND, append(2, LogId::new(1, 2), &[2], 1));
    let other_leader = Event::Append {
        from: NodeId(2),
        append: Append {
            term: Term(3),
            prev: LogId::new(2, 3),
            prev_leadership: LeadershipId::NONE,
            last: LogIndex(3),
            commit: LogIndex(1),
            round: 0,
        },
        entries: vec![],
    };
    assert!(!outputs.contains(&Output::ReadRefused(7)), "the same leader may still respond in a later term");
    assert!(step(&mut raft, SECOND, other_leader).contains(&Output::ReadRefused(7)));
}

#[test]
fn heartbeat_is_acknowledged_during_a_write() {
    let mut raft = node(3, 1, &[]);
    let entry = raft.step(SECOND, append(1, LOG_1, &[1], 1));
    assert_eq!(outcome(&entry), None, "entries wait for the disk (I2)");
    assert!(raft.take_persist().is_some());
    let heartbeat = raft.step(SECOND, append(1, LogId::new(1, 2), &[], 1));
    assert_eq!(
        outcome(&heartbeat),
        Some(accepted(1, 1).outcome),
        "only durable entries are acknowledged (I2)"
    );
    let written = raft.step(SECOND, Event::Persisted);
    assert_eq!(outcome(&written), Some(accepted(1, 2).outcome));
}

#[test]
fn witness_is_sent_only_entries_durable_on_the_leader() {
    let mut members = Membership::of_voters(0..3).members().clone();
    members.get_mut(&NodeId(2)).unwrap().kind = MemberKind::Witness;
    let mut raft = leader_of(Membership::new(members));
    acknowledge(&mut raft, SECOND, 2, 2);
    let to_witness = |outputs: &[Output]| {
        outputs
            .iter()
            .any(|output| matches!(output, Output::SendAppend(NodeId(2), sent) if sent.last == LogIndex(3)))
    };
    raft.propose(SECOND, &[100]);
    assert!(
        !to_witness(&raft.finish_turn(SECOND)),
        "a crash could remove the entry here, but not on the witness"
    );
    assert!(raft.take_persist().is_some());
    raft.step(SECOND, Event::Persisted);
    assert!(to_witness(&raft.finish_turn(SECOND)));
}

/// Node 0 with a configuration from its leader in which it is `kind`, committed or not.
fn with_kind(voters: u64, kind: MemberKind, committed: bool) -> Raft {
    let mut raft = node(voters, 0, &[]);
    let mut members = raft.membership().members().clone();
    members.insert(NodeId(0), Member::new(kind));
    members.insert(NodeId(1), Member::new(MemberKind::Voter));
    let membership = Membership::new(members);
    let commit = 1 + u64::from(committed);
    step(&mut raft, SECOND, append_configuration(1, LOG_1, membership, commit));
    raft
}

/// Whether the node campaigns without messages; if not, it must have no deadline.
fn campaigns(raft: &mut Raft) -> bool {
    let due = raft.next_deadline();
    step(raft, SECOND * 100, Event::Tick);
    let stands = raft.role() == Role::PreCandidate;
    assert_eq!(due.is_some(), stands);
    stands
}

#[test]
fn only_voters_and_voters_with_uncommitted_removal_campaign() {
    for (kind, committed, expected) in [
        (MemberKind::Voter, true, true),
        (MemberKind::Learner, true, false),
        (MemberKind::Learner, false, true),
        (MemberKind::Witness, true, false),
        (MemberKind::Joining, true, false),
    ] {
        assert_eq!(campaigns(&mut with_kind(3, kind, committed)), expected, "{kind:?} {committed}");
    }
    assert!(!campaigns(&mut with_kind(0, MemberKind::Learner, false)), "the node never was a voter");
    assert!(
        campaigns(&mut with_kind(0, MemberKind::Voter, false)),
        "the node is a voter from the append of the entry"
    );
}

#[test]
fn witness_or_node_installing_a_snapshot_does_not_campaign() {
    assert!(!campaigns(&mut common::configured(3, 0, &[], |config| config.witness = true)));
    let mut raft = node(3, 0, &[]);
    let meta =
        consensus_core::SnapshotMeta { last: LogId::new(1, 9), membership: Membership::of_voters(0..3) };
    let outputs = step(&mut raft, SECOND, Event::SnapshotArrived { from: NodeId(1), term: Term(1), meta });
    assert!(outputs.iter().any(|output| matches!(output, Output::Install(_))), "{outputs:?}");
    assert!(!campaigns(&mut raft));
    step(&mut raft, SECOND, Event::SnapshotInstalled);
    step(&mut raft, SECOND * 200, Event::Tick);
    assert_eq!(raft.role(), Role::PreCandidate, "the snapshot is installed");
}

#[test]
fn d_3_10_change_and_promotion_wait_for_end_of_transfer() {
    let mut raft = leader();
    change(&mut raft, SECOND, vec![set(3, MemberKind::Joining)]);
    acknowledge(&mut raft, SECOND, 1, 3);
    acknowledge_as_added(&mut raft, SECOND, 3, 3);
    step(&mut raft, SECOND, Event::Transfer { token: 9, to: Some(NodeId(2)) });
    let outputs = change(&mut raft, SECOND, vec![set(4, MemberKind::Learner)]);
    assert!(outputs.contains(&Output::ChangeRefused(7, Refusal::Busy)), "{outputs:?}");
    let soon = SECOND + SECOND / 5;
    acknowledge(&mut raft, soon, 1, 3);
    acknowledge_as_added(&mut raft, soon, 3, 3);
    assert_eq!(appended(&step(&mut raft, soon, Event::Tick)), None, "no promotion during the transfer");
    let after = SECOND + SECOND / 2;
    acknowledge(&mut raft, after, 1, 3);
    assert_eq!(raft.transferring_to(), None, "the transfer timed out");
    acknowledge_as_added(&mut raft, after, 3, 3);
    assert!(
        appended(&step(&mut raft, after, Event::Tick)).is_some(),
        "the member is promoted after the transfer"
    );
}

#[test]
fn change_without_effect_succeeds_at_once() {
    let mut raft = leader();
    let outputs = change(&mut raft, SECOND, vec![set(2, MemberKind::Voter)]);
    assert_eq!((appended(&outputs), outputs.contains(&Output::Changed(7, LogIndex(1)))), (None, true));
}

/// Node 1 acknowledges entries up to `matched`, which reports its storage.
fn acknowledge_with_storage(raft: &mut Raft, now: Time, matched: u64) {
    let response =
        consensus_core::AppendResponse { storage: StorageId(11), ..accepted(raft.term().0, matched) };
    step(raft, now, Event::AppendResponse(NodeId(1), response));
}

#[test]
fn storage_is_not_recorded_before_the_last_change_is_committed() {
    let mut raft = leader();
    let later = SECOND + SECOND / 5;
    change(&mut raft, SECOND, vec![set(3, MemberKind::Learner)]);
    acknowledge_with_storage(&mut raft, later, 2);
    assert_eq!(appended(&step(&mut raft, later, Event::Tick)), None, "M10");
    acknowledge_with_storage(&mut raft, later, 3);
    assert!(appended(&step(&mut raft, later + SECOND / 5, Event::Tick)).is_some());
}

#[test]
fn storage_is_not_recorded_before_commit_in_the_term() {
    let mut raft = common::restored(3, 0, &[], 1);
    lead(&mut raft, SECOND);
    let later = SECOND + SECOND / 5;
    acknowledge_with_storage(&mut raft, later, 1);
    assert_eq!(appended(&step(&mut raft, later, Event::Tick)), None, "M1");
    acknowledge_with_storage(&mut raft, later, 2);
    assert!(appended(&step(&mut raft, later * 6 / 5, Event::Tick)).is_some());
}

#[test]
fn d_3_10_second_transfer_during_a_transfer_is_refused() {
    let mut raft = leader();
    let refused = |raft: &mut Raft, to: Option<u64>| {
        let outputs = step(raft, SECOND, Event::Transfer { token: 9, to: to.map(NodeId) });
        outputs.into_iter().find_map(|output| match output {
            Output::TransferEnded(9, result) => result.err(),
            _ => None,
        })
    };
    change(&mut raft, SECOND, vec![set(3, MemberKind::Learner)]);
    acknowledge(&mut raft, SECOND, 1, 3);
    for to in [0, 3, 77] {
        assert_eq!(refused(&mut raft, Some(to)), Some(Refusal::CannotLead(NodeId(to))));
    }
    assert_eq!(refused(&mut raft, Some(2)), None);
    assert_eq!(refused(&mut raft, Some(1)), Some(Refusal::Busy));
    assert_eq!(raft.transferring_to(), Some(NodeId(2)));
    assert_eq!(refused(&mut node(3, 0, &[]), Some(1)), Some(Refusal::NotLeader));
    let mut alone = node(1, 0, &[]);
    step(&mut alone, SECOND, Event::Tick);
    assert_eq!(refused(&mut alone, None), Some(Refusal::NoSuccessor));
}
