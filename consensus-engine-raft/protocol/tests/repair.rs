//! A node whose log was damaged and cut (I16): sentence by sentence.

mod common;

use common::{LOG_1, SECOND, accepted, append, lead, node, outcome, step};
use consensus_core::{
    AppendOutcome, AppendResponse, Damage, HardState, LogId, LogIndex, LogState, Member, MemberKind,
    Membership, NodeId, Role, SnapshotMeta, StorageId, Term, VoteKind, VoteRequest,
};
use consensus_raft_protocol::{Config, ControlMessage, Event, Output, Raft, Restored};

/// The log of node 0 in term 3: the first configuration and entries 1.2 to 1.4, of which the record of 1.3 is damaged.
fn damaged(voters: u64) -> LogState {
    LogState {
        hard_state: HardState { term: Term(3), ..HardState::default() },
        entries: vec![(LOG_1, 100), (LogId::new(1, 2), 100)],
        memberships: vec![(LogIndex(1), Membership::of_voters(0..voters))],
        damage: Some(Damage {
            last: LogId::new(1, 4),
            memberships: Vec::new(),
            position: "log index 3".to_owned(),
            why: "its checksum is wrong".to_owned(),
        }),
        ..LogState::default()
    }
}

/// The node as it comes up after the cut.
fn cut(applied: u64) -> Raft {
    let log = damaged(3);
    let batch = Raft::repair(&log, NodeId(0)).expect("two others are a quorum");
    assert_eq!(batch.truncate_after, Some(LogIndex(2)));
    let log = LogState { hard_state: batch.hard_state.unwrap(), damage: None, ..log };
    assert_eq!(log.hard_state.lost_through, Some(LogId::new(1, 4)));
    Raft::new(Config::new(NodeId(0)), Restored { log, applied: LogIndex(applied) }, SECOND).unwrap()
}

fn votes(raft: &mut Raft, kind: VoteKind, last_log: LogId) -> bool {
    let request = VoteRequest { kind, term: Term(4), last_log, storage: StorageId(0), voter_storage: None };
    let outputs = step(raft, 10 * SECOND, Event::VoteRequest(NodeId(1), request));
    outputs.iter().any(
        |output| matches!(output, Output::Send(_, ControlMessage::VoteResponse(answer)) if answer.granted),
    )
}

#[test]
fn it_votes_as_if_it_still_had_what_it_lost() {
    for kind in [VoteKind::PreVote, VoteKind::Vote, VoteKind::Transfer] {
        assert!(
            !votes(&mut cut(1), kind, LogId::new(1, 3)),
            "{kind:?} for who lacks what was acknowledged here"
        );
        assert!(votes(&mut cut(1), kind, LogId::new(1, 4)), "{kind:?} for who has as much");
        assert!(votes(&mut cut(1), kind, LogId::new(2, 2)), "{kind:?} for who has a later entry");
    }
}

#[test]
fn it_stands_for_nothing_until_its_log_is_as_far_again() {
    let mut raft = cut(1);
    assert_eq!(raft.next_deadline(), None);
    step(&mut raft, 10 * SECOND, Event::Tick);
    assert_eq!(raft.role(), Role::Follower);
    step(&mut raft, 10 * SECOND, append(3, LogId::new(1, 2), &[1], 2));
    assert!(raft.hard_state().lost_through.is_some(), "entry 4 is still missing");
    step(&mut raft, 10 * SECOND, append(3, LogId::new(1, 3), &[1], 2));
    assert_eq!(raft.hard_state().lost_through, None);
    step(&mut raft, 20 * SECOND, Event::Tick);
    assert_eq!(raft.role(), Role::PreCandidate);
}

#[test]
fn it_is_as_far_again_when_that_is_on_its_disk() {
    let mut raft = cut(1);
    raft.step(10 * SECOND, append(3, LogId::new(1, 2), &[1, 1], 2));
    raft.finish_turn(10 * SECOND);
    assert!(raft.take_persist().is_some());
    assert!(raft.hard_state().lost_through.is_some(), "a crash could take it back");
    raft.step(10 * SECOND, Event::Persisted);
    assert_eq!(raft.hard_state().lost_through, None);
    assert!(
        raft.take_persist().is_some_and(|persist| persist.hard_state.is_some()),
        "the mark goes from the disk"
    );
}

#[test]
fn a_leader_asks_it_again_for_what_it_had_acknowledged() {
    let mut leader = node(3, 1, &[1, 1, 1]);
    lead(&mut leader, SECOND);
    for follower in [1, 2] {
        step(&mut leader, SECOND, Event::AppendResponse(NodeId(follower), accepted(2, 5)));
    }
    assert_eq!(leader.commit(), LogIndex(5));
    // The next heartbeat finds that its log ends at 2.
    let now = SECOND + SECOND / 5;
    let outputs = step(&mut leader, now, Event::Tick);
    let round = outputs.iter().find_map(|output| match output {
        Output::SendAppend(NodeId(1), append) => Some(append.round),
        _ => None,
    });
    let hint = LogId::new(1, 2);
    let answer = AppendResponse {
        term: Term(2),
        round: round.unwrap(),
        outcome: AppendOutcome::Rejected { prev: LogIndex(5), hint },
        storage: StorageId(0),
        joining: false,
    };
    let outputs = step(&mut leader, now, Event::AppendResponse(NodeId(1), answer));
    let sent = outputs.iter().find_map(|output| match output {
        Output::SendAppend(NodeId(1), append) => Some((append.prev, append.last)),
        _ => None,
    });
    assert_eq!(sent, Some((hint, LogIndex(5))));
    assert_eq!(leader.peers()[&NodeId(1)].matched, LogIndex::ZERO, "what it acknowledged counts no more");
    assert_eq!(leader.commit(), LogIndex(5), "what is committed stays so");
}

#[test]
fn without_others_that_are_a_quorum_it_is_not_repaired() {
    for (voters, spared) in [(1, false), (2, false), (3, true)] {
        assert_eq!(Raft::repair(&damaged(voters), NodeId(0)).is_some(), spared, "{voters} voters");
    }
    assert!(Raft::repair(&damaged(2), NodeId(7)).is_some(), "it does not vote");
    let unknown = LogState { entries: Vec::new(), memberships: Vec::new(), ..damaged(3) };
    assert!(Raft::repair(&unknown, NodeId(0)).is_none(), "who votes cannot be read");
    assert!(
        Raft::repair(&LogState { damage: None, ..damaged(3) }, NodeId(0)).is_none(),
        "nothing is damaged"
    );
}

#[test]
fn all_configurations_of_which_the_log_tells_must_spare_it() {
    let mut log = damaged(3);
    let damage = log.damage.as_mut().unwrap();
    damage.memberships = vec![Membership::of_voters(0..4), Membership::of_voters([0])];
    assert!(Raft::repair(&log, NodeId(0)).is_none(), "it was alone after the damage");
    let mut members = Membership::of_voters(0..3).members().clone();
    members.insert(NodeId(2), Member::new(MemberKind::Witness));
    let log = LogState { memberships: vec![(LogIndex(1), Membership::new(members))], ..damaged(3) };
    assert!(
        Raft::repair(&log, NodeId(0)).is_none(),
        "it and the witness are a quorum: it may have the only command"
    );
    assert!(Raft::repair(&log, NodeId(2)).is_some(), "a witness has none");
    let mut members = Membership::of_voters(0..4).members().clone();
    members.insert(NodeId(3), Member::new(MemberKind::Witness));
    let log = LogState { memberships: vec![(LogIndex(1), Membership::new(members))], ..damaged(3) };
    assert!(
        Raft::repair(&log, NodeId(0)).is_none(),
        "the witness may refuse the two others what only this node had"
    );
}

#[test]
fn a_crash_before_the_loss_is_forgotten_on_disk_makes_it_wait_for_nothing() {
    let log = damaged(3);
    let hard_state = HardState { lost_through: Some(LogId::new(1, 2)), ..log.hard_state.clone() };
    let log = LogState { hard_state, damage: None, ..log };
    let restored = Restored { log, applied: LogIndex(1) };
    let mut raft = Raft::new(Config::new(NodeId(0)), restored, SECOND).unwrap();
    assert_eq!(raft.hard_state().lost_through, None);
    assert!(raft.take_persist().is_some_and(|persist| persist.hard_state.is_some()));
    step(&mut raft, 10 * SECOND, Event::Tick);
    assert_eq!(raft.role(), Role::PreCandidate);
}

#[test]
fn a_snapshot_that_reaches_as_far_ends_the_loss() {
    let mut raft = cut(4);
    let meta = SnapshotMeta { last: LogId::new(1, 4), membership: Membership::of_voters(0..3) };
    let outputs =
        step(&mut raft, 10 * SECOND, Event::SnapshotArrived { from: NodeId(1), term: Term(3), meta });
    assert!(outputs.iter().any(|output| matches!(output, Output::Install(_))));
    step(&mut raft, 10 * SECOND, Event::SnapshotInstalled);
    assert_eq!((raft.hard_state().lost_through, raft.commit()), (None, LogIndex(4)));
}

#[test]
fn it_acknowledges_what_it_has_and_no_more() {
    let mut raft = cut(4);
    let outputs = step(&mut raft, 10 * SECOND, append(3, LogId::new(1, 4), &[], 4));
    let AppendOutcome::Rejected { hint, .. } = outcome(&outputs).unwrap() else { panic!("{outputs:?}") };
    assert_eq!(hint, LogId::new(1, 2));
    let outputs = step(&mut raft, 10 * SECOND, append(3, LogId::new(1, 2), &[1], 4));
    assert_eq!(outcome(&outputs), Some(AppendOutcome::Accepted { matched: LogIndex(3) }));
}
