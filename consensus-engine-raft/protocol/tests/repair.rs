//! A node whose log was truncated because of damage (I16).

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

/// The node after its start with the truncated log.
fn repaired(applied: u64) -> Raft {
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
fn repaired_node_votes_as_if_it_still_had_lost_entries() {
    for kind in [VoteKind::PreVote, VoteKind::Vote, VoteKind::Transfer] {
        assert!(
            !votes(&mut repaired(1), kind, LogId::new(1, 3)),
            "{kind:?} for a candidate that lacks entries that this node acknowledged"
        );
        assert!(votes(&mut repaired(1), kind, LogId::new(1, 4)), "{kind:?} for a candidate that has them");
        assert!(
            votes(&mut repaired(1), kind, LogId::new(2, 2)),
            "{kind:?} for a candidate with an entry of a later term"
        );
    }
}

#[test]
fn repaired_node_does_not_campaign_until_its_log_has_caught_up() {
    let mut raft = repaired(1);
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
fn repaired_node_has_caught_up_only_once_entries_are_durable() {
    let mut raft = repaired(1);
    raft.step(10 * SECOND, append(3, LogId::new(1, 2), &[1, 1], 2));
    raft.finish_turn(10 * SECOND);
    assert!(raft.take_persist().is_some());
    assert!(raft.hard_state().lost_through.is_some(), "a crash could still remove the entries");
    raft.step(10 * SECOND, Event::Persisted);
    assert_eq!(raft.hard_state().lost_through, None);
    assert!(
        raft.take_persist().is_some_and(|persist| persist.hard_state.is_some()),
        "the loss is cleared on the disk"
    );
}

#[test]
fn leader_probes_repaired_follower_below_its_acknowledgements() {
    let mut leader = node(3, 1, &[1, 1, 1]);
    lead(&mut leader, SECOND);
    for follower in [1, 2] {
        step(&mut leader, SECOND, Event::AppendResponse(NodeId(follower), accepted(2, 5)));
    }
    assert_eq!(leader.commit(), LogIndex(5));
    // The next heartbeat shows that the follower's log ends at index 2.
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
    assert_eq!(
        leader.peers()[&NodeId(1)].matched,
        LogIndex::ZERO,
        "earlier acknowledgements do not count any more"
    );
    assert_eq!(leader.commit(), LogIndex(5), "committed entries stay committed");
}

#[test]
fn damaged_log_is_not_repaired_without_quorum_of_other_members() {
    for (voters, spared) in [(1, false), (2, false), (3, true)] {
        assert_eq!(Raft::repair(&damaged(voters), NodeId(0)).is_some(), spared, "{voters} voters");
    }
    assert!(Raft::repair(&damaged(2), NodeId(7)).is_some(), "the damaged node is no voter");
    let unknown = LogState { entries: Vec::new(), memberships: Vec::new(), ..damaged(3) };
    assert!(Raft::repair(&unknown, NodeId(0)).is_none(), "the voters are unknown");
    assert!(
        Raft::repair(&LogState { damage: None, ..damaged(3) }, NodeId(0)).is_none(),
        "nothing is damaged"
    );
}

#[test]
fn repair_requires_quorum_of_others_in_every_configuration() {
    let mut log = damaged(3);
    let damage = log.damage.as_mut().unwrap();
    damage.memberships = vec![Membership::of_voters(0..4), Membership::of_voters([0])];
    assert!(
        Raft::repair(&log, NodeId(0)).is_none(),
        "the node is the only voter in a configuration after the damage"
    );
    let mut members = Membership::of_voters(0..3).members().clone();
    members.insert(NodeId(2), Member::new(MemberKind::Witness));
    let log = LogState { memberships: vec![(LogIndex(1), Membership::new(members))], ..damaged(3) };
    assert!(
        Raft::repair(&log, NodeId(0)).is_none(),
        "the node and the witness are a quorum: it may have the only copy of a command"
    );
    assert!(Raft::repair(&log, NodeId(2)).is_some(), "a witness has no commands");
    let mut members = Membership::of_voters(0..4).members().clone();
    members.insert(NodeId(3), Member::new(MemberKind::Witness));
    let log = LogState { memberships: vec![(LogIndex(1), Membership::new(members))], ..damaged(3) };
    assert!(
        Raft::repair(&log, NodeId(0)).is_none(),
        "the witness may refuse its vote to the other two, which lack entries of this node"
    );
}

#[test]
fn crash_before_loss_is_cleared_on_disk_does_not_block_the_node() {
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
fn snapshot_beyond_lost_entries_clears_the_loss() {
    let mut raft = repaired(4);
    let meta = SnapshotMeta { last: LogId::new(1, 4), membership: Membership::of_voters(0..3) };
    let outputs =
        step(&mut raft, 10 * SECOND, Event::SnapshotArrived { from: NodeId(1), term: Term(3), meta });
    assert!(outputs.iter().any(|output| matches!(output, Output::Install(_))));
    step(&mut raft, 10 * SECOND, Event::SnapshotInstalled);
    assert_eq!((raft.hard_state().lost_through, raft.commit()), (None, LogIndex(4)));
}

#[test]
fn repaired_node_acknowledges_only_entries_it_has() {
    let mut raft = repaired(4);
    let outputs = step(&mut raft, 10 * SECOND, append(3, LogId::new(1, 4), &[], 4));
    let AppendOutcome::Rejected { hint, .. } = outcome(&outputs).unwrap() else { panic!("{outputs:?}") };
    assert_eq!(hint, LogId::new(1, 2));
    let outputs = step(&mut raft, 10 * SECOND, append(3, LogId::new(1, 2), &[1], 4));
    assert_eq!(outcome(&outputs), Some(AppendOutcome::Accepted { matched: LogIndex(3) }));
}
